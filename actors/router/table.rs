//! Who is connected here or has a session that is kept, and what they subscribe to.

use std::collections::BTreeMap;
use std::sync::Arc;

use ntex_bytes::ByteString;
use wakala::id::{ClientId, Epoch};
use wakala::session::Subscription;
use wakala::time::Time;
use wakala::topics::{Granted, Reach, Subscriptions};

use crate::session::inbox::Inbox;

#[derive(Default)]
pub(super) struct Table {
    pub(super) subscriptions: Subscriptions<ClientId>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    /// How many of them have a session that is kept.
    pub(super) kept: usize,
    /// How often the tables have begun to be read.
    pub(super) reads: u32,
}

/// A client that is connected here, or whose session is kept.
pub(super) struct Client {
    pub(super) filters: Vec<ByteString>,
    /// The session outlives the connection.
    pub(super) kept: bool,
    /// Of its connection, or of its last one.
    pub(super) epoch: Epoch,
    /// So many reads of the tables, from the first on, know it worse than it is known here ([`super::elsewhere::ALL`] of them until the
    /// end of its connection is stored).
    pub(super) ahead: u32,
    /// Of its connection, if that is here.
    pub(super) inbox: Option<Arc<Inbox>>,
    /// When the session is over, of one that is away, or [`Time::NEVER`].
    pub(super) over_at: Time,
}

impl Table {
    pub(super) fn inbox(&self, client: &ClientId) -> Option<&Arc<Inbox>> {
        self.clients.get(client)?.inbox.as_ref()
    }

    /// Nobody shall wait for a session to be swept away that has ended: what it draws of a shared subscription ends with it.
    pub(super) fn reach(&self, client: &ClientId, now: Time) -> Reach {
        match self.clients.get(client) {
            Some(Client { inbox: Some(inbox), .. }) if inbox.has_room() => Reach::Connected,
            Some(Client { inbox: Some(_), kept: false, .. }) => Reach::Lost,
            Some(Client { over_at, .. }) if now < *over_at => Reach::Away,
            _ => Reach::Lost,
        }
    }

    pub(super) fn is_of(&self, client: &ClientId, epoch: Epoch) -> bool {
        self.clients.get(client).is_some_and(|present| present.epoch == epoch)
    }

    pub(super) fn subscribe(&mut self, client: &ClientId, new: &Subscription) {
        let granted = Granted { options: new.options, identifier: new.identifier };
        let Some(present) = self.clients.get_mut(client) else { return };
        // The filter was checked when it came.
        if self.subscriptions.subscribe(client.clone(), &new.filter, granted) == Ok(false) {
            // Most have one.
            present.filters.reserve_exact(usize::from(present.filters.is_empty()));
            present.filters.push(new.filter.clone());
        }
    }

    pub(super) fn add(&mut self, client: &ClientId, new: Client) {
        self.kept += usize::from(new.kept);
        self.clients.insert(client.clone(), new);
    }

    pub(super) fn remove(&mut self, client: &ClientId) {
        let Some(gone) = self.clients.remove(client) else { return };
        self.kept -= usize::from(gone.kept);
        for filter in gone.filters {
            self.subscriptions.unsubscribe(client, &filter);
        }
    }
}
