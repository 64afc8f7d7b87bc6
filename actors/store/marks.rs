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
    /// It has the delivery at this place, and its PUBREC came as this one.
    Received { client: ClientId, epoch: Epoch, seq: i64, nth: u32 },
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
            let mut received = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            for mark in &marks {
                match mark {
                    Mark::Forget(remembered) => {
                        forgets.0.push(remembered.client.as_str().to_owned());
                        forgets.1.push(remembered.epoch.0);
                        forgets.2.push(i32::from(remembered.packet_id.get()));
                    }
                    Mark::Received { client, epoch, seq, nth } => {
                        received.0.push(client.as_str().to_owned());
                        received.1.push(epoch.0);
                        received.2.push(*seq);
                        received.3.push(i64::from(*nth));
                    }
                }
            }
            // Nobody opens these sessions until the commit: it would take what is forgotten here for what came, and read past what
            // is released here.
            let owned: Vec<(bool,)> = sqlx::query_as(
                "with s as materialized (select client_id, epoch from wakala.session where client_id = any($1::text[] || $4::text[]) \
                   order by client_id for no key update), \
                 f as (select nth, f.client_id, f.packet_id, coalesce(s.epoch = f.epoch, false) as owned \
                   from unnest($1::text[], $2::bigint[], $3::integer[]) with ordinality f (client_id, epoch, packet_id, nth) \
                   left join s using (client_id)), \
                 gone as (delete from wakala.received r using f \
                   where f.owned and r.client_id = f.client_id and r.packet_id = f.packet_id) \
                 select owned from f order by nth",
            )
            .bind(forgets.0)
            .bind(forgets.1)
            .bind(forgets.2)
            .bind(received.0.clone())
            .fetch_all(&mut *opened)
            .await?;
            let kept: Vec<(String, i64)> = sqlx::query_as(
                "update wakala.message m set released = true, received_nth = r.nth \
                 from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) r (client_id, epoch, seq, nth) \
                 join wakala.session s using (client_id) \
                 where s.epoch = r.epoch and m.client_id = r.client_id and m.seq = r.seq returning m.client_id, m.seq",
            )
            .bind(received.0)
            .bind(received.1)
            .bind(received.2)
            .bind(received.3)
            .fetch_all(&mut *opened)
            .await?;
            opened.commit().await?;
            let kept: BTreeSet<(String, i64)> = kept.into_iter().collect();
            let mut owned = owned.into_iter();
            let done = marks.iter().map(|mark| match mark {
                Mark::Forget(_) => owned.next().is_some_and(|(owned,)| owned),
                Mark::Received { client, seq, .. } => kept.contains(&(client.as_str().to_owned(), *seq)),
            });
            Ok(done.collect())
        })
        .await
    }
}

/// How a publish stands to those of its identifier before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is to be sent: it has none at QoS 2, or none that is known.
    First,
    /// Its identifier is known: it was sent.
    Again,
    /// Its publisher has a later connection, which began without it: it is sent again there, or was, and may be complete.
    Late,
}

/// Remembers identifiers. The sessions are locked.
pub(super) async fn remember(db: &mut PgConnection, wanted: &[Option<&Remembered>]) -> Result<Vec<Taken>, Error> {
    let remembered: Vec<&Remembered> = wanted.iter().copied().flatten().collect();
    if remembered.is_empty() {
        return Ok(vec![Taken::First; wanted.len()]);
    }
    let rows: Vec<(bool, bool)> = sqlx::query_as(
        "with r as (select nth, r.client_id, r.packet_id, coalesce(s.epoch = r.epoch, false) as owned \
           from unnest($1::text[], $2::bigint[], $3::integer[]) with ordinality r (client_id, epoch, packet_id, nth) \
           left join wakala.session s using (client_id)), \
         added as (insert into wakala.received (client_id, packet_id) \
           select distinct client_id, packet_id from r where owned order by 1, 2 \
           on conflict do nothing returning client_id, packet_id) \
         select owned, a.packet_id is not null from r left join added a using (client_id, packet_id) order by nth",
    )
    .bind(remembered.iter().map(|each| each.client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(remembered.iter().map(|each| each.epoch.0).collect::<Vec<_>>())
    .bind(remembered.iter().map(|each| i32::from(each.packet_id.get())).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let (mut rows, mut sent) = (rows.into_iter(), BTreeSet::new());
    let taken = |each: &&Remembered| match rows.next() {
        // Of two in one batch the first is the one.
        Some((true, true)) if sent.insert((each.client.clone(), each.packet_id)) => Taken::First,
        Some((true, _)) => Taken::Again,
        Some((false, _)) | None => Taken::Late,
    };
    let mut taken = remembered.iter().map(taken);
    Ok(wanted.iter().map(|each| each.and_then(|_| taken.next()).unwrap_or(Taken::First)).collect())
}
