//! How a client is connected and how its session stands, for whoever asks, and its packets for whoever taps it.

use actix::prelude::*;
use ntex::io::IoRef;
use ntex::io::types::{HttpProtocol, PeerAddr};
use ntex::tls::rustls::PeerCert;
use wakala::session::connect::Terms;
use wakala::session::{Event, Session as Twin, Version};

use super::Session;
use super::frames::Outbound;
use crate::listener::tls::fingerprint;
use crate::store::presence::Connection;
use crate::tap::Of;
use crate::terminal::Who;

impl Connection {
    /// Of a socket that has said CONNECT.
    pub(crate) fn of(io: &IoRef, terms: &Terms) -> Self {
        let address = io.query::<PeerAddr>().as_ref().map_or_else(String::new, |PeerAddr(address)| address.to_string());
        let protocol = match terms.version {
            Version::V3 => "MQTT 3.1.1",
            Version::V5 => "MQTT 5",
        };
        // A certificate is known by the first half of its SHA-256, which is what its enrolment names too.
        let certificate = io.query::<PeerCert<'static>>();
        let certificate = certificate.as_ref().map(|PeerCert(der)| hex::encode(&fingerprint(der)[..16]));
        let carrier = match certificate {
            Some(sha256) => format!("TLS, certificate {sha256}"),
            // Only TLS says what was agreed on inside it.
            None if io.query::<HttpProtocol>().as_ref().is_some() => "TLS".to_owned(),
            None => "TCP".to_owned(),
        };
        Self { address, protocol: protocol.to_owned(), carrier, keep_alive_s: terms.keep_alive().as_secs() }
    }
}

/// How a session stands at this moment.
#[derive(Debug, Message)]
#[rtype(result = "About")]
pub(crate) struct Describe;

/// See [`Describe`].
#[derive(Clone, Debug, PartialEq, Eq, MessageResponse)]
pub(crate) struct About {
    pub(crate) connection: Connection,
    /// Deliveries that wait for the client's acknowledgement.
    pub(crate) in_flight: usize,
    /// Deliveries that are in memory, to be sent.
    pub(crate) held: usize,
    /// How long the session outlives the connection, in seconds.
    pub(crate) expiry_s: u32,
}

impl Handler<Describe> for Session {
    type Result = About;

    fn handle(&mut self, _: Describe, _: &mut Context<Self>) -> About {
        let (terms, (in_flight, held)) = (self.twin.terms(), self.twin.waiting());
        About { connection: Connection::of(&self.io.get_ref(), terms), in_flight, held, expiry_s: terms.expiry_s }
    }
}

impl Session {
    /// What has come of the client's doing, for whoever taps it.
    #[inline]
    pub(super) fn heard(&mut self, event: &Event) {
        let of = of(&self.twin, &self.who);
        self.tapped.heard(self.sessions.taps(), of, event);
    }

    /// What goes to the client, for whoever taps it.
    #[inline]
    pub(super) fn told(&mut self, item: &Outbound) {
        let of = of(&self.twin, &self.who);
        self.tapped.told(self.sessions.taps(), of, item);
    }
}

#[inline]
fn of<'a>(twin: &'a Twin, who: &'a Who) -> Of<'a> {
    let terminal = match who {
        Who::Terminal(enrolled) => Some(&enrolled.terminal),
        Who::Guest { .. } => None,
    };
    Of { client: twin.client(), terminal, version: twin.terms().version }
}
