//! Packet identifiers of QoS 2 that clients used, and what they did with deliveries: what a session that goes on must know
//! (MQTT 5, 4.1).

use std::collections::BTreeSet;
use std::num::NonZeroU16;
use std::sync::Arc;

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;
use wakala::id::{ClientId, Epoch};

use super::batch::Batcher;
use super::{Error, Store};

/// A packet identifier of QoS 2, of this connection: on a later one it may belong to another message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remembered {
    pub client: ClientId,
    pub epoch: Epoch,
    pub packet_id: NonZeroU16,
}

/// Something that a client has done with a packet of QoS 2.
#[derive(Clone, Debug)]
pub enum Mark {
    /// It released what it had published.
    Forget(Remembered),
    /// It has the delivery at this place.
    Received { client: ClientId, epoch: Epoch, seq: i64 },
}

/// Stores marks. False when a later connection owns the session.
pub type Marks = Batcher<Mark, bool>;

impl Store {
    /// A batcher for what clients have done with packets of QoS 2: at most `room` wait, at most `max` go into one commit.
    #[must_use]
    pub fn marks(&self, room: usize, max: usize) -> Marks {
        let store = self.clone();
        let counts = Arc::clone(&self.metrics().batches.marks);
        Batcher::counted(self.handle(), room, max, counts, move |marks| {
            let store = store.clone();
            async move { store.mark(marks).await }
        })
    }

    async fn mark(&self, marks: Vec<Mark>) -> Result<Vec<bool>, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            let mut forgets = (Vec::new(), Vec::new(), Vec::new());
            let mut received = (Vec::new(), Vec::new(), Vec::new());
            for mark in &marks {
                match mark {
                    Mark::Forget(remembered) => {
                        forgets.0.push(remembered.client.as_str().to_owned());
                        forgets.1.push(remembered.epoch.0);
                        forgets.2.push(i32::from(remembered.packet_id.get()));
                    }
                    Mark::Received { client, epoch, seq } => {
                        received.0.push(client.as_str().to_owned());
                        received.1.push(epoch.0);
                        received.2.push(*seq);
                    }
                }
            }
            sqlx::query(
                "delete from wakala.received r using unnest($1::text[], $2::bigint[], $3::integer[]) f (client_id, epoch, packet_id) \
                 join wakala.session s using (client_id) \
                 where s.epoch = f.epoch and r.client_id = f.client_id and r.packet_id = f.packet_id",
            )
            .bind(forgets.0)
            .bind(forgets.1)
            .bind(forgets.2)
            .execute(&mut *opened)
            .await?;
            let kept: Vec<(String, i64)> = sqlx::query_as(
                "update wakala.message m set released = true \
                 from unnest($1::text[], $2::bigint[], $3::bigint[]) r (client_id, epoch, seq) \
                 join wakala.session s using (client_id) \
                 where s.epoch = r.epoch and m.client_id = r.client_id and m.seq = r.seq returning m.client_id, m.seq",
            )
            .bind(received.0)
            .bind(received.1)
            .bind(received.2)
            .fetch_all(&mut *opened)
            .await?;
            opened.commit().await?;
            let kept: BTreeSet<(String, i64)> = kept.into_iter().collect();
            let done = marks.iter().map(|mark| match mark {
                Mark::Forget(_) => true,
                Mark::Received { client, seq, .. } => kept.contains(&(client.as_str().to_owned(), *seq)),
            });
            Ok(done.collect())
        })
        .await
    }
}

/// Remembers identifiers. For each publish whether it is to be sent: at QoS 2 it is not if its identifier is known, or if its
/// publisher has a later connection, which began without it: it is sent again there, or was, and may be complete.
pub(super) async fn remember(db: &mut PgConnection, wanted: &[Option<&Remembered>]) -> Result<Vec<bool>, Error> {
    let remembered: Vec<&Remembered> = wanted.iter().copied().flatten().collect();
    if remembered.is_empty() {
        return Ok(vec![true; wanted.len()]);
    }
    let added: Vec<(String, i32)> = sqlx::query_as(
        "insert into wakala.received (client_id, packet_id) \
         select r.client_id, r.packet_id from unnest($1::text[], $2::bigint[], $3::integer[]) r (client_id, epoch, packet_id) \
         join wakala.session s using (client_id) where s.epoch = r.epoch \
         order by 1, 2 on conflict do nothing returning client_id, packet_id",
    )
    .bind(remembered.iter().map(|each| each.client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(remembered.iter().map(|each| each.epoch.0).collect::<Vec<_>>())
    .bind(remembered.iter().map(|each| i32::from(each.packet_id.get())).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let mut added: BTreeSet<(String, i32)> = added.into_iter().collect();
    // Of two in one batch the first is the one.
    let mut new = |each: &Remembered| added.remove(&(each.client.as_str().to_owned(), i32::from(each.packet_id.get())));
    Ok(wanted.iter().map(|each| each.is_none_or(&mut new)).collect())
}
