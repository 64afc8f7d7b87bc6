//! What lies before the door: TLS, WebSocket, both or neither.

use std::net::IpAddr;
use std::rc::Rc;

use ntex::io::{Filter, Io};
use ntex::server::rustls::TlsServerFilter;
use ntex::time::Millis;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::tls::{self, Credentials, Handshake, Inside};
use super::websocket::Upgrade;
use super::welcome::{Door, Stranger};
use crate::metrics::wire;
use crate::turns::turn;

/// What the connections of one address pass before they are a stream of MQTT's bytes.
#[derive(Clone)]
pub(super) struct Porch {
    pub(super) door: Door,
    pub(super) credentials: Option<Credentials>,
    pub(super) upgrade: Option<Upgrade>,
    /// The longest TLS handshake.
    pub(super) within: Millis,
}

impl Porch {
    /// A place among the strangers, as soon as there is one.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.door.place().await
    }

    /// Takes a connection from that place as far as its session.
    pub(super) async fn pass(self: Rc<Self>, io: Io, address: IpAddr, place: OwnedSemaphorePermit) {
        self.door.arrived(self.credentials.is_some(), self.upgrade.is_some());
        let Some(stranger) = self.door.stranger(address, place) else { return };
        // Of thousands who come at once each would be ready for its handshake, and those who are connected wait for all.
        // Nor is anything of them read before, which would take a buffer for each.
        io.pause();
        turn().await;
        // One time for all of it: whoever drags each of its parts out has no more than who drags out one.
        let by = self.door.connected_by();
        let Some(credentials) = &self.credentials else { return self.enter(io, stranger, None, by).await };
        let handshake = credentials.handshake();
        match TlsServerFilter::create(io, handshake.config(self.inside()), self.within).await {
            Ok(io) => {
                wire::SHAKEN.one();
                self.enter(io, stranger, Some(handshake), by).await;
            }
            Err(error) => {
                wire::UNSHAKEN.one();
                tls::tell_of_failure(&error);
                stranger.failed();
            }
        }
    }

    fn inside(&self) -> Inside {
        if self.upgrade.is_some() { Inside::WebSocket } else { Inside::Mqtt }
    }

    async fn enter<F: Filter>(&self, io: Io<F>, stranger: Stranger, handshake: Option<Handshake>, by: Instant) {
        let io = match &self.upgrade {
            Some(upgrade) => match upgrade.accept(io, by).await {
                Some(io) => io.boxed(),
                None => return stranger.failed(),
            },
            None => io.boxed(),
        };
        self.door.welcome(io, stranger, handshake, by).await;
    }
}
