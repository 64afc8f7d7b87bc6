//! What SUBSCRIBE and UNSUBSCRIBE change, of many sessions in one commit.

use sea_orm::sqlx;
use wakala::id::{ClientId, Epoch};
use wakala::session::{Change, Subscription};

use super::batch::{Batcher, one_each};
use super::sessions::{nth_true, option_bits};
use super::{Error, Store};

/// What one client changes.
#[derive(Clone, Debug)]
pub struct Changed {
    pub client: ClientId,
    pub epoch: Epoch,
    pub change: Change,
}

/// Stores changes, many in one commit. False when a later connection owns the session.
pub type Changes = Batcher<Changed, bool>;

impl Changes {
    /// Stores one.
    ///
    /// # Errors
    /// [`Error::Fenced`] when a later connection owns the session; what the database said.
    pub(crate) async fn store(self, changed: Changed) -> Result<(), Error> {
        let client = changed.client.clone();
        let owned = self.submit(changed).await?;
        owned.then_some(()).ok_or_else(|| Error::Fenced(format!("the session of {client} has a later connection")))
    }
}

impl Store {
    /// A batcher for changes: at most `room` wait, at most `max` go into one commit.
    #[must_use]
    pub fn changes(&self, room: usize, max: usize) -> Changes {
        self.batches(room, max, |store, changes| async move { store.change_subscriptions(changes).await })
    }

    /// Stores these changes, those of one client one after the other. For each whether its connection owned the session.
    ///
    /// # Errors
    /// When the database does not do it.
    pub async fn change_subscriptions(&self, changes: Vec<Changed>) -> Result<Vec<bool>, Error> {
        self.run(move |db| async move {
            let mut done = vec![false; changes.len()];
            for part in one_each(changes, |changed| changed.client.clone()) {
                let owned = store(db.get_postgres_connection_pool(), &part).await?;
                for ((place, _), owned) in part.iter().zip(owned) {
                    if let Some(done) = done.get_mut(*place) {
                        *done = owned;
                    }
                }
            }
            Ok(done)
        })
        .await
    }
}

/// Changes of different clients, in one statement.
async fn store(pool: &sqlx::PgPool, changes: &[(usize, Changed)]) -> Result<Vec<bool>, Error> {
    let (mut places, mut new): (Vec<i64>, Vec<&Subscription>) = (Vec::new(), Vec::new());
    let (mut leaving, mut filters): (Vec<i64>, Vec<String>) = (Vec::new(), Vec::new());
    for (nth, (_, changed)) in (1..).zip(changes) {
        let Change { begun, ended } = &changed.change;
        places.extend(begun.iter().map(|_| nth));
        new.extend(begun);
        leaving.extend(ended.iter().map(|_| nth));
        filters.extend(ended.iter().map(ToString::to_string));
    }
    let owned: Vec<(i64,)> = sqlx::query_as(
        // The lock that a later connection's opening waits for. It stands in nobody's way who queues for the client.
        "with owned as materialized (select c.nth, c.client_id \
           from unnest($1::text[], $2::bigint[]) with ordinality c (client_id, epoch, nth) \
           join wakala.session s on s.client_id = c.client_id and s.epoch = c.epoch \
           order by s.client_id for key share of s), \
         added as (insert into wakala.subscription (client_id, filter, qos, options, identifier) \
           select o.client_id, n.filter, n.qos, n.options, n.identifier \
           from unnest($3::bigint[], $4::text[], $5::smallint[], $6::smallint[], $7::integer[]) \
             n (nth, filter, qos, options, identifier) join owned o using (nth) \
           on conflict (client_id, filter) do update \
           set qos = excluded.qos, options = excluded.options, identifier = excluded.identifier), \
         gone as (delete from wakala.subscription d \
           using unnest($8::bigint[], $9::text[]) u (nth, filter) join owned o using (nth) \
           where d.client_id = o.client_id and d.filter = u.filter) \
         select nth from owned",
    )
    .bind(changes.iter().map(|(_, changed)| changed.client.as_str().to_owned()).collect::<Vec<_>>())
    .bind(changes.iter().map(|(_, changed)| changed.epoch.0).collect::<Vec<_>>())
    .bind(places)
    .bind(new.iter().map(|s| s.filter.to_string()).collect::<Vec<_>>())
    .bind(new.iter().map(|s| s.options.qos as i16).collect::<Vec<_>>())
    .bind(new.iter().map(|s| option_bits(s.options)).collect::<Vec<_>>())
    .bind(new.iter().map(|s| s.identifier.and_then(|id| i32::try_from(id.get()).ok())).collect::<Vec<_>>())
    .bind(leaving)
    .bind(filters)
    .fetch_all(pool)
    .await?;
    Ok(nth_true(changes.len(), &owned))
}
