//! Pages of clients' queues, of many clients in one query.

use sea_orm::sqlx;
use wakala::id::ClientId;
use wakala::session::{Beyond, Delivery};
use wakala::time::Time;

use super::batch::Batcher;
use super::{Error, Store, messages, timestamp};

/// Which page is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub client: ClientId,
    pub beyond: Beyond,
    /// Rows, at most.
    pub max: u16,
    pub at: Time,
}

/// A page of a client's queue.
#[derive(Clone, Debug, Default)]
pub struct Queued {
    pub deliveries: Vec<Delivery>,
    /// The last place that had been given out when it was read.
    pub last: i64,
}

/// Reads pages.
pub type Pages = Batcher<Wanted, Queued>;

impl Store {
    /// A batcher that reads pages: at most `room` wait, at most `max` are read at once.
    #[must_use]
    pub fn pages(&self, room: usize, max: usize) -> Pages {
        self.batches(room, max, |store, wanted| async move { store.queued(wanted).await })
    }

    /// What is queued for each of these clients beyond their places, in order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn queued(&self, wanted: Vec<Wanted>) -> Result<Vec<Queued>, Error> {
        self.run(move |db| async move {
            // One statement, so one snapshot: every row up to `last` is in it, for a place is given out under the lock
            // of the session's row, which is held until the commit.
            let rows: Vec<messages::Row> = sqlx::query_as(
                "select w.nth, s.next_seq - 1, q.* \
                 from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::timestamptz[]) \
                   with ordinality w (client_id, receipts, messages, owed, max, at, nth) \
                 join wakala.session s on s.client_id = w.client_id \
                 left join lateral ( \
                   (select seq, envelope as payload, null::smallint as qos, null::text as topic, false as retain, \
                    null::bytea as properties, null::timestamptz as expires_at, null::bigint as received, \
                    '{}'::integer[] as identifiers \
                    from wakala.receipt where terminal = w.client_id and seq > w.receipts \
                    and delivered_at is null and withdrawn_at is null order by seq limit w.max) \
                   union all \
                   (select seq, payload, qos, topic, retain, properties, expires_at, null, identifiers \
                    from wakala.message \
                    where client_id = w.client_id and seq > w.messages and not released \
                    and (expires_at is null or expires_at > w.at or qos = 2) \
                    order by seq limit w.max) \
                   union all \
                   (select seq, payload, qos, topic, retain, properties, expires_at, coalesce(received_nth, 0), identifiers \
                    from wakala.message \
                    where client_id = w.client_id and released and coalesce(received_nth, 0) >= w.owed \
                    order by 8, seq limit w.max) \
                   order by received, seq limit w.max) q on true \
                 order by w.nth, q.received, q.seq",
            )
            .bind(wanted.iter().map(|each| each.client.as_str().to_owned()).collect::<Vec<_>>())
            .bind(wanted.iter().map(|each| each.beyond.receipts.unwrap_or(i64::MAX)).collect::<Vec<_>>())
            .bind(wanted.iter().map(|each| each.beyond.messages.unwrap_or(i64::MAX)).collect::<Vec<_>>())
            .bind(wanted.iter().map(|each| each.beyond.owed.map_or(i64::MAX, i64::from)).collect::<Vec<_>>())
            .bind(wanted.iter().map(|each| i64::from(each.max)).collect::<Vec<_>>())
            .bind(wanted.iter().map(|each| timestamp(each.at)).collect::<Vec<_>>())
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let mut pages: Vec<Queued> = wanted.iter().map(|_| Queued::default()).collect();
            for row in rows {
                let page = usize::try_from(row.0 - 1).ok().and_then(|place| pages.get_mut(place));
                let Some(page) = page else { continue };
                page.last = row.1;
                page.deliveries.extend(messages::delivery(row)?);
            }
            Ok(pages)
        })
        .await
    }
}
