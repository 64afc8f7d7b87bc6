//! Kept sessions that other nodes have, as the tables have them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::MutexGuard;
use wakala::id::{ClientId, Epoch};
use wakala::session::Subscription;
use wakala::time::Time;

use super::table::{Client, Table};
use super::{Router, Shared};
use crate::store::sessions::Kept;

/// Whatever the tables say: what is here is not in them yet.
pub(super) const ALL: u32 = u32::MAX;

/// Clients that are gone through while nobody else can look for one.
const PAGE: usize = 256;

type Stored = (Epoch, Time, Vec<Subscription>);

/// The tables are being read.
pub(crate) struct Reading<'a> {
    shared: &'a Shared,
    /// The how manieth time.
    nth: u32,
    _turn: MutexGuard<'a, ()>,
}

impl Router {
    /// To be called before the tables are read; until that is dropped nobody else reads any.
    pub(crate) async fn read(&self) -> Reading<'_> {
        self.0.table.read_tables().await
    }

    /// The end of a connection is stored, or a later one owns the session: from here on the tables have the last word.
    pub(crate) fn settled(&self, client: &ClientId, epoch: Epoch) {
        self.0.table.settled(client, epoch);
    }

    /// It has gone on at another node: from here nobody sees when its session is over.
    pub(crate) fn went_on(&self, client: &ClientId, epoch: Epoch) {
        let ends = |present: &&Client| present.epoch < epoch && present.over_at != Time::NEVER;
        // Most have not been here, and many come at once.
        if self.0.table.read().clients.get(client).filter(ends).is_none() {
            return;
        }
        if let Some(present) = self.0.table.write().clients.get_mut(client) {
            present.over_at = Time::NEVER;
        }
    }
}

impl Shared {
    async fn read_tables(&self) -> Reading<'_> {
        let turn = self.turn.lock().await;
        let mut table = self.write();
        table.reads += 1;
        Reading { shared: self, nth: table.reads, _turn: turn }
    }

    fn settled(&self, client: &ClientId, epoch: Epoch) {
        let mut table = self.write();
        let reads = table.reads;
        let gone = |client: &&mut Client| client.epoch == epoch && client.inbox.is_none();
        if let Some(client) = table.clients.get_mut(client).filter(gone) {
            client.ahead = reads;
        }
    }
}

impl Reading<'_> {
    /// These are all kept guests, or those `of`, with their subscriptions. Whoever is connected here, or was when the reading
    /// began, is known better here.
    pub(crate) fn adopt(self, of: Option<&BTreeSet<ClientId>>, stored: Vec<Kept>) {
        let mut by_client: BTreeMap<ClientId, Stored> = BTreeMap::new();
        for Kept { client, epoch, over_at, subscription } in stored {
            let new = (epoch, over_at.unwrap_or(Time::NEVER), Vec::new());
            by_client.entry(client).or_insert(new).2.extend(subscription);
        }
        let gone = |client: &&ClientId| !by_client.contains_key(*client);
        let gone: Vec<ClientId> = match of {
            Some(of) => of.iter().filter(gone).cloned().collect(),
            None => self.shared.read().clients.keys().filter(gone).cloned().collect(),
        };
        for page in gone.chunks(PAGE) {
            let mut table = self.shared.write();
            for client in page {
                let over = |present: &Client| present.inbox.is_none() && present.ahead < self.nth;
                if table.clients.get(client).is_some_and(over) {
                    table.remove(client);
                }
            }
        }
        let mut rows = by_client.into_iter().peekable();
        while rows.peek().is_some() {
            let mut table = self.shared.write();
            for (client, stored) in rows.by_ref().take(PAGE) {
                table.adopt(&client, stored, self.nth);
            }
        }
    }
}

impl Table {
    fn adopt(&mut self, client: &ClientId, (epoch, over_at, with): Stored, nth: u32) {
        let better = |present: &Client| present.epoch > epoch || present.epoch == epoch && present.ahead >= nth;
        if self.clients.get(client).is_some_and(better) {
            return;
        }
        self.remove(client);
        self.add(client, Client { filters: Vec::new(), kept: true, epoch, ahead: 0, inbox: None, over_at });
        for subscription in &with {
            self.subscribe(client, subscription);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;
    use ntex_mqtt::v5::codec::SubscriptionOptions;
    use tokio::runtime::Handle;

    use super::*;
    use crate::neighbours::Neighbours;
    use crate::store::batch::Batcher;
    use crate::store::words::Word;

    fn shared() -> Shared {
        let words = Batcher::new(&Handle::current(), 1, 1, |words: Vec<Word>| async move { Ok(vec![(); words.len()]) });
        let neighbours = Neighbours::new(words).into();
        let (table, turn, metrics) = Default::default();
        Shared { table, turn, ttl_max: None, metrics, neighbours }
    }

    fn client() -> ClientId {
        ClientId::new("c").expect("short")
    }

    fn row(filter: &'static str) -> Kept {
        let subscription =
            Subscription { filter: filter.into(), options: SubscriptionOptions::default(), identifier: None };
        Kept { client: client(), epoch: Epoch(1), over_at: None, subscription: Some(subscription) }
    }

    /// It was here with this filter, and its end is on its way.
    fn left_with(filter: &'static str) -> Shared {
        let shared = shared();
        let mut table = shared.write();
        let gone =
            Client { filters: Vec::new(), kept: true, epoch: Epoch(1), ahead: ALL, inbox: None, over_at: Time::NEVER };
        table.add(&client(), gone);
        table.subscribe(&client(), &row(filter).subscription.expect("one"));
        drop(table);
        shared
    }

    fn filters(shared: &Shared) -> Option<Vec<String>> {
        let table = shared.read();
        Some(table.clients.get(&client())?.filters.iter().map(ToString::to_string).collect())
    }

    #[tokio::test]
    async fn who_was_here_is_as_the_tables_have_it_once_its_end_is_stored() {
        for (rows, then) in [(vec![], None), (vec![row("theirs")], Some(vec!["theirs".to_owned()]))] {
            let shared = left_with("ours");
            let ours = Some(vec!["ours".to_owned()]);
            shared.read_tables().await.adopt(None, rows.clone());
            assert_eq!(filters(&shared), ours, "not stored yet");
            let early = shared.read_tables().await;
            shared.settled(&client(), Epoch(1));
            early.adopt(None, rows.clone());
            assert_eq!(filters(&shared), ours, "read before it was stored");
            shared.read_tables().await.adopt(None, rows);
            assert_eq!(filters(&shared), then);
        }
    }

    #[tokio::test]
    async fn of_two_who_read_the_second_begins_when_the_first_has_done() {
        let shared = shared();
        let first = shared.read_tables().await;
        let mut second = pin!(shared.read_tables());
        assert!(poll!(&mut second).is_pending());
        first.adopt(None, vec![row("old")]);
        second.await.adopt(None, vec![row("new")]);
        assert_eq!(filters(&shared), Some(vec!["new".to_owned()]));
    }
}
