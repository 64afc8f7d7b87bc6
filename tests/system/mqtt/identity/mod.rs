//! Clients that prove who they are by a token, or by what another program says of them.

mod hook;
mod jwt;
mod server;

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use wakala_node::listener;
use wakala_node::router;
use wakala_system_tests::Database;

use super::Broker;
use super::wire::{Wire, packet};

/// A broker for terminals, and for guests unless `change` says otherwise.
async fn broker(database: &Database, change: impl FnOnce(&mut listener::Options, &mut router::Options)) -> Broker {
    let mut options =
        listener::Options { plain: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..listener::Options::default() };
    let mut open = router::Options { guests: true, ..router::Options::default() };
    change(&mut options, &mut open);
    Broker::made(database.store().await, options, |deps| deps.open = open).await
}

/// Who says that he comes, and with what.
#[derive(Clone, Copy)]
pub(super) struct Hello<'a> {
    pub(super) v5: bool,
    pub(super) client: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a str>,
    pub(super) will: Option<&'a str>,
    /// The session is to outlive the connection.
    pub(super) kept: bool,
}

fn hello<'a>(client: &'a str, user: &'a str, password: &'a str) -> Hello<'a> {
    Hello { v5: true, client, user: Some(user), password: Some(password), will: None, kept: false }
}

impl Hello<'_> {
    fn packet(&self) -> Vec<u8> {
        fn text(text: &str) -> Vec<u8> {
            [&u16::try_from(text.len()).expect("short").to_be_bytes(), text.as_bytes()].concat()
        }
        let mut flags = u8::from(!self.kept) << 1;
        let mut rest = text(self.client);
        if let Some(topic) = self.will {
            flags |= 0x04;
            rest.extend(self.v5.then_some(0));
            rest.extend(text(topic));
            rest.extend(text("gone"));
        }
        for (text_of, flag) in [(self.user, 0x80), (self.password, 0x40)] {
            if let Some(given) = text_of {
                flags |= flag;
                rest.extend(text(given));
            }
        }
        let mut body = text("MQTT");
        body.extend([if self.v5 { 5 } else { 4 }, flags, 0, 60]);
        if self.v5 {
            body.extend(if self.kept { vec![5, 0x11, 0, 0, 0x0E, 0x10] } else { vec![0] });
        }
        body.extend(rest);
        packet(0x10, &body)
    }

    /// The connection, and the code of the CONNACK.
    pub(super) async fn at(&self, broker: &Broker) -> (Wire, u8) {
        self.to(broker.plain()).await
    }

    pub(super) async fn to(&self, address: SocketAddr) -> (Wire, u8) {
        let mut wire = Wire::open(address, self.v5).await;
        wire.send(&self.packet()).await;
        let (first, body) = wire.receive().await.expect("a CONNACK");
        assert_eq!(first, 0x20);
        (wire, body[1])
    }

    async fn code(&self, broker: &Broker) -> u8 {
        self.at(broker).await.1
    }
}

/// Publishes at QoS 1; gives the code of the PUBACK.
async fn published(wire: &mut Wire, topic: &str) -> u8 {
    wire.publish(topic, 1, 7, "x").await;
    let (first, body) = wire.receive().await.expect("a PUBACK");
    assert_eq!((first, &body[..2]), (0x40, &[0, 7][..]));
    body.get(2).copied().unwrap_or(0)
}

/// The reason of the DISCONNECT that comes next.
async fn sent_away(wire: &mut Wire) -> u8 {
    let (first, body) = wire.receive().await.expect("a DISCONNECT");
    assert_eq!(first, 0xE0);
    body[0]
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

const DENIED: u8 = 0x86;
pub(super) const NOT_AUTHORISED: u8 = 0x87;
const UNAVAILABLE: u8 = 0x88;
const BUSY: u8 = 0x89;
const WRONG_NAME: u8 = 0x85;
