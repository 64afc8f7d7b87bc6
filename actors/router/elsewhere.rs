//! Kept sessions that other nodes have, as the tables have them.

use std::collections::{BTreeMap, BTreeSet};

use wakala::id::{ClientId, Epoch};
use wakala::session::Subscription;

use super::{Client, Router, Table};

type Stored = (Epoch, Vec<Subscription>);

impl Router {
    /// These are all kept guests, or those `of`, with their subscriptions. Whoever is connected here, or was last, is known better
    /// here.
    pub(crate) fn adopt(&self, of: Option<&BTreeSet<ClientId>>, stored: Vec<(ClientId, Epoch, Option<Subscription>)>) {
        let mut by_client: BTreeMap<ClientId, Stored> = BTreeMap::new();
        for (client, epoch, subscription) in stored {
            by_client.entry(client).or_insert((epoch, Vec::new())).1.extend(subscription);
        }
        let mut table = self.0.table.write();
        let gone: Vec<ClientId> = match of {
            Some(of) => of.iter().filter(|client| !by_client.contains_key(*client)).cloned().collect(),
            None => {
                let kept = table.clients.iter().filter(|(client, each)| !each.ours && !by_client.contains_key(*client));
                kept.map(|(client, _)| client.clone()).collect()
            }
        };
        for client in gone {
            if table.clients.get(&client).is_some_and(|present| present.inbox.is_none()) {
                table.remove(&client);
            }
        }
        for (client, (epoch, with)) in by_client {
            table.adopt(&client, epoch, &with);
        }
    }
}

impl Table {
    fn adopt(&mut self, client: &ClientId, epoch: Epoch, with: &[Subscription]) {
        let better = |present: &Client| present.epoch > epoch || present.epoch == epoch && present.ours;
        if self.clients.get(client).is_some_and(better) {
            return;
        }
        self.remove(client);
        self.add(client, Client { filters: Vec::new(), kept: true, epoch, ours: false, inbox: None });
        for subscription in with {
            self.subscribe(client, subscription);
        }
    }
}
