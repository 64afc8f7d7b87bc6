//! One connection, byte by byte: what a client that follows the standard would see, and what one that does not.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::{Broker, PASSWORD, until};
use crate::locks::Holding;
use wakala_node::store::subscriptions::Changed;
use wakala_system_tests::{Database, terminal};

/// What carries the bytes.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A raw client.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    v5: bool,
}

/// A packet: the first byte and what follows the length.
pub(super) type Packet = (u8, Vec<u8>);

const PATIENCE: Duration = Duration::from_secs(10);

impl Wire {
    /// From an address of its own: all that begin with 127 are this machine's.
    pub(super) async fn open_from(from: [u8; 4], address: SocketAddr, v5: bool) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::from((from, 0))).expect("an address of this machine");
        Self::over(socket.connect(address).await.expect("it listens"), v5)
    }

    pub(super) async fn open(address: SocketAddr, v5: bool) -> Self {
        Self::over(TcpStream::connect(address).await.expect("it listens"), v5)
    }

    pub(super) fn over(stream: impl Stream + 'static, v5: bool) -> Self {
        Self { stream: Box::new(stream), v5 }
    }

    /// Connects as a terminal with the tests' password; gives the CONNACK's flags and code.
    pub(super) async fn connect(address: SocketAddr, v5: bool, name: &str, clean: bool) -> (Self, [u8; 2]) {
        let mut wire = Self::open(address, v5).await;
        let connack = wire.introduce(name, clean).await;
        (wire, connack)
    }

    /// Sends CONNECT with the tests' password; gives the CONNACK's flags and code.
    pub(super) async fn introduce(&mut self, name: &str, clean: bool) -> [u8; 2] {
        self.say_hello(name, clean).await;
        let (first, body) = self.receive().await.expect("a CONNACK");
        assert_eq!(first, 0x20);
        [body[0], body[1]]
    }

    /// Sends CONNECT with another password; gives the CONNACK's flags and code.
    pub(super) async fn try_password(&mut self, name: &str, password: &str) -> [u8; 2] {
        self.send(&connect(self.v5, name, name, password, true, 60)).await;
        let (first, body) = self.receive().await.expect("a CONNACK");
        assert_eq!(first, 0x20);
        [body[0], body[1]]
    }

    /// Sends CONNECT, whatever comes of it.
    pub(super) async fn say_hello(&mut self, name: &str, clean: bool) {
        self.send(&connect(self.v5, name, name, PASSWORD, clean, 60)).await;
    }

    /// That the other side is there.
    pub(super) async fn ping(&mut self) {
        self.send(&[0xC0, 0]).await;
        assert_eq!(self.receive().await, Some((0xD0, vec![])), "a PINGRESP");
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        // A server that has closed is found out at the next read. What is written to TLS may wait there to be flushed.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; none at the end of the connection.
    pub(super) async fn receive(&mut self) -> Option<Packet> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("an answer in time")
    }

    /// That nothing comes for a while.
    pub(super) async fn silence(&mut self) {
        let heard = tokio::time::timeout(Duration::from_millis(300), self.read()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    async fn read(&mut self) -> Option<Packet> {
        let first = self.stream.read_u8().await.ok()?;
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7F) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((first, body))
    }

    pub(super) async fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        self.ask_for(filter, qos).await;
        let (first, body) = self.receive().await.expect("a SUBACK");
        assert_eq!((first, &body[..2]), (0x90, &[0, 9][..]));
        *body.last().expect("a code")
    }

    /// Sends SUBSCRIBE, whatever comes of it.
    pub(super) async fn ask_for(&mut self, filter: &str, qos: u8) {
        let mut body = vec![0, 9];
        body.extend(self.v5.then_some(0));
        body.extend(text(filter));
        body.push(qos);
        self.send(&packet(0x82, &body)).await;
    }

    pub(super) async fn publish(&mut self, topic: &str, qos: u8, id: u8, payload: &str) {
        let mut body = text(topic);
        if qos > 0 {
            body.extend([0, id]);
        }
        body.extend(self.v5.then_some(0));
        body.extend(payload.as_bytes());
        self.send(&packet(0x30 | qos << 1, &body)).await;
    }

    pub(super) async fn acknowledge(&mut self, id: u16) {
        self.send(&packet(0x40, &id.to_be_bytes())).await;
    }

    /// A PUBLISH at QoS 1: whether DUP is set, its identifier, its payload.
    pub(super) async fn delivery(&mut self) -> (bool, u16, String) {
        let (first, body) = self.receive().await.expect("a PUBLISH");
        assert_eq!(first & 0xF6, 0x32, "a PUBLISH at QoS 1: {first:x} {body:?}");
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let id = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
        let payload = &body[4 + topic + usize::from(self.v5)..];
        (first & 0x08 != 0, id, String::from_utf8_lossy(payload).into_owned())
    }

    /// A PUBLISH at QoS 1 of MQTT 5, with whatever properties: whether DUP is set, its identifier, its payload.
    pub(super) async fn any_delivery(&mut self) -> (bool, u16, String) {
        let (first, body) = self.receive().await.expect("a PUBLISH");
        assert_eq!(first & 0xF6, 0x32, "a PUBLISH at QoS 1: {first:x} {body:?}");
        let topic = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let id = u16::from_be_bytes([body[2 + topic], body[3 + topic]]);
        let payload = &body[5 + topic + usize::from(body[4 + topic])..];
        (first & 0x08 != 0, id, String::from_utf8_lossy(payload).into_owned())
    }

    /// A PUBLISH of a message: QoS, whether DUP is set, its identifier, its expiry in seconds, its payload.
    pub(super) async fn message(&mut self, name: &str) -> (u8, bool, u16, Option<u32>, String) {
        let (first, body) = self.receive().await.expect("a PUBLISH");
        let (qos, topic) = (first >> 1 & 3, text(&format!("c/{name}")));
        assert_eq!((first & 0xF1, &body[..topic.len()]), (0x30, &topic[..]), "on its topic, not retained");
        let (mut at, mut id, mut expiry) = (topic.len(), 0, None);
        if qos > 0 {
            id = u16::from_be_bytes([body[at], body[at + 1]]);
            at += 2;
        }
        if self.v5 {
            match body[at] {
                0 => {}
                5 => {
                    assert_eq!(body[at + 1], 2, "a Message Expiry Interval");
                    expiry = Some(u32::from_be_bytes(body[at + 2..at + 6].try_into().expect("four bytes")));
                }
                other => panic!("{other} bytes of properties: {body:?}"),
            }
            at += 1 + usize::from(body[at]);
        }
        (qos, first & 0x08 != 0, id, expiry, String::from_utf8_lossy(&body[at..]).into_owned())
    }

    /// Takes its leave; the session stays.
    pub(super) async fn leave(mut self) {
        self.send(&[0xE0, 0]).await;
        assert_eq!(self.receive().await, None);
    }

    /// Ends the connection without a word.
    pub(super) fn cut(self) {
        drop(self);
    }
}

pub(super) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut length = body.len();
    loop {
        let more = length > 0x7F;
        bytes.push(u8::try_from(length & 0x7F).expect("7 bits") | if more { 0x80 } else { 0 });
        length >>= 7;
        if !more {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

pub(super) fn text(text: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(text.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

pub(super) fn connect(v5: bool, client: &str, user: &str, password: &str, clean: bool, keep_alive: u8) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([if v5 { 5 } else { 4 }, 0xC0 | u8::from(clean) << 1, 0, keep_alive]);
    if v5 {
        // Session Expiry Interval: one hour, unless the session is to be clean.
        body.extend(if clean { vec![0] } else { vec![5, 0x11, 0, 0, 0x0E, 0x10] });
    }
    body.extend(text(client));
    body.extend(text(user));
    body.extend(text(password));
    packet(0x10, &body)
}

#[tokio::test]
async fn only_an_enrolled_terminal_that_is_not_blocked_gets_in() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    broker.enrol("T2").await;
    assert_eq!(
        broker.store.block_terminal(&terminal("T2"), "stolen", "test", wakala_system_tests::now()).await,
        Ok(true)
    );
    for (client, user, password, code_v3, code_v5) in [
        ("T1", "T1", PASSWORD, 0, 0),
        ("T1", "T1", "wrong", 4, 0x86),
        ("T9", "T9", PASSWORD, 4, 0x86),
        ("a/b", "a/b", PASSWORD, 4, 0x86),
        // The client identifier is the terminal's name.
        ("T9", "T1", PASSWORD, 2, 0x85),
        ("T2", "T2", PASSWORD, 5, 0x8A),
    ] {
        for v5 in [false, true] {
            let mut wire = Wire::open(broker.plain(), v5).await;
            wire.send(&connect(v5, client, user, password, true, 60)).await;
            let (_, body) = wire.receive().await.expect("a CONNACK");
            assert_eq!(body[1], if v5 { code_v5 } else { code_v3 }, "{client} {user} v5={v5}");
            if body[1] != 0 {
                assert_eq!(wire.receive().await, None, "a refused connection is closed");
            }
        }
    }
    // An MQTT 5 client without an identifier is given its name.
    let mut wire = Wire::open(broker.plain(), true).await;
    wire.send(&connect(true, "", "T1", PASSWORD, true, 60)).await;
    let (_, body) = wire.receive().await.expect("a CONNACK");
    assert!(body.windows(5).any(|window| window == [0x12, 0, 2, b'T', b'1']), "{body:?}");
}

#[tokio::test]
async fn a_stranger_costs_little_and_not_for_long() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    // Slow loris: a byte now and then is no CONNECT.
    let mut slow = Wire::open(broker.plain(), false).await;
    let started = std::time::Instant::now();
    for byte in [0x10, 0x30, 0, 4, b'M'] {
        slow.send(&[byte]).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(slow.receive().await, None);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    // 1 MiB announced; a packet that is no CONNECT; another protocol; a length of five bytes.
    for bytes in
        [&[0x10, 0x80, 0x80, 0x40][..], &[0xC0, 0][..], b"GET / HTTP/1.1\r\n", &[0x10, 0xFF, 0xFF, 0xFF, 0xFF, 1]]
    {
        let mut wire = Wire::open(broker.plain(), false).await;
        wire.send(bytes).await;
        assert_eq!(wire.receive().await, None, "{bytes:?}");
    }
    // MQTT 3.1 and MQTT 6 hear that their version is not offered.
    let mut old = Wire::open(broker.plain(), false).await;
    old.send(&packet(0x10, b"\0\x06MQIsdp\x03\x02\0\x3C\0\x01x")).await;
    assert_eq!(old.receive().await, Some((0x20, vec![0, 1])));
    // A session to be kept has to have a name in MQTT 3.1.1 [3.1.1: MQTT-3.1.3-8].
    let mut nameless = Wire::open(broker.plain(), false).await;
    nameless.send(&packet(0x10, b"\0\x04MQTT\x04\0\0\x3C\0\0")).await;
    assert_eq!(nameless.receive().await, Some((0x20, vec![0, 2])));
    assert_eq!(nameless.receive().await, None);
    let mut new = Wire::open(broker.plain(), true).await;
    new.send(&packet(0x10, b"\0\x04MQTT\x06\x02\0\x3C\0\0\x01x")).await;
    assert_eq!(new.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0x84)));
}

#[tokio::test]
async fn pain_04_acknowledgements_wait_for_the_log_and_keep_the_order() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", true).await;
    broker.taken.away.store(true, std::sync::atomic::Ordering::SeqCst);
    for id in 1..=5 {
        wire.publish("q/T1", 1, id, &format!("p{id}")).await;
    }
    wire.publish("q/T2", 1, 6, "foreign").await;
    wire.silence().await;
    // The connection itself is well: it is only the PUBACK that is withheld.
    wire.send(&[0xC0, 0]).await;
    assert_eq!(wire.receive().await, Some((0xD0, vec![])));
    broker.taken.away.store(false, std::sync::atomic::Ordering::SeqCst);
    for id in 1..=5 {
        assert_eq!(wire.receive().await, Some((0x40, vec![0, id, 0, 0])));
    }
    let (first, body) = wire.receive().await.expect("a PUBACK");
    assert_eq!((first, &body[..3]), (0x40, &[0, 6, 0x87][..]), "in its turn: not authorised");
    assert_eq!(broker.taken.texts(), ["p1", "p2", "p3", "p4", "p5"]);
}

#[tokio::test]
async fn what_is_not_allowed_ends_the_connection_with_its_reason() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    for (what, bytes, reason) in [
        ("retain", packet(0x33, b"\0\x04q/T1\0\x01\0x"), 0x9A),
        ("a wildcard in a topic", packet(0x32, b"\0\x03q/#\0\x01\0x"), 0x90),
        ("a topic alias above the maximum", packet(0x32, b"\0\x04q/T1\0\x01\x03\x23\0\x11x"), 0x94),
        ("a second CONNECT", connect(true, "T1", "T1", PASSWORD, true, 60), 0x82),
        ("SUBSCRIBE without a filter", packet(0x82, b"\0\x01\0"), 0x82),
        ("a packet that only a server sends", vec![0xD0, 0], 0x82),
        ("PINGREQ with a body", vec![0xC0, 1, 0], 0x81),
        ("too large", vec![0x30, 0xFF, 0xFF, 0x7F], 0x95),
        ("AUTH", vec![0xF0, 0], 0x82),
    ] {
        let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", true).await;
        wire.send(&bytes).await;
        let (first, body) = wire.receive().await.unwrap_or_else(|| panic!("{what}: a DISCONNECT"));
        assert_eq!((first, body[0]), (0xE0, reason), "{what}");
        assert_eq!(wire.receive().await, None, "{what}");
    }
    for (what, bytes) in
        [("another's topic", packet(0x32, b"\0\x04q/T2\0\x01x")), ("QoS 3", packet(0x36, b"\0\x04q/T1\0\x01x"))]
    {
        let (mut wire, _) = Wire::connect(broker.plain(), false, "T1", true).await;
        wire.send(&bytes).await;
        assert_eq!(wire.receive().await, None, "{what}: MQTT 3.1.1 closes");
    }
}

#[tokio::test]
async fn silence_for_one_and_a_half_keep_alives_ends_the_connection() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let mut wire = Wire::open(broker.plain(), true).await;
    // A session whose opening takes longer than the keep-alive begins all the same.
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'T1' for update");
    wire.send(&connect(true, "T1", "T1", PASSWORD, false, 1)).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let opened = std::time::Instant::now();
    drop(holding);
    assert_eq!(wire.receive().await.map(|(first, _)| first), Some(0x20));
    assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8D)));
    let lived = opened.elapsed();
    assert!(lived >= Duration::from_millis(1500), "{lived:?}");
    until(&database, "select connected, expiry_s from wakala.session where client_id = 'T1'", "f|3600").await;
}

#[tokio::test]
async fn pain_03_a_later_connection_takes_over_and_the_earlier_one_is_fenced() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    let t1 = broker.enrol("T1").await;
    let (mut first, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(first.subscribe("r/T1", 1).await, 1);
    let (mut second, connack) = Wire::connect(broker.plain(), false, "T1", false).await;
    assert_eq!(connack, [1, 0], "the session is present");
    assert_eq!(first.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)));
    broker.connected(1).await;
    // What the first connection still writes changes nothing.
    let late = wakala::session::Change { ended: vec!["r/T1".into()], ..Default::default() };
    let late = Changed { client: (&t1).into(), epoch: wakala::id::Epoch(1), change: late };
    assert_eq!(broker.store.change_subscriptions(vec![late]).await, Ok(vec![false]));
    assert_eq!(database.rows("select filter from wakala.subscription"), "r/T1");
    assert_eq!(database.rows("select epoch, connected from wakala.session where client_id = 'T1'"), "2|t");
    super::queue_receipt(&database, "T1", "one");
    broker.sessions.hint(&t1, 1, Some(b"one".to_vec()));
    assert_eq!(second.delivery().await, (false, 1, "one".to_owned()));
}

#[tokio::test]
async fn a_session_that_panics_comes_back_with_its_terminal() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    broker.enrol("T2").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    let (mut other, _) = Wire::connect(broker.plain(), true, "T2", false).await;
    assert_eq!(wire.subscribe("r/T1", 1).await, 1);
    super::queue_receipt(&database, "T1", "one");
    broker.sessions.wake("T1");
    assert_eq!(wire.delivery().await, (false, 1, "one".to_owned()));
    assert!(broker.sessions.panic("T1"));
    assert_eq!(wire.receive().await, None, "the connection is closed");
    broker.connected(1).await;
    let (mut wire, connack) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(connack, [1, 0]);
    assert_eq!(wire.delivery().await, (true, 1, "one".to_owned()));
    other.send(&[0xC0, 0]).await;
    assert_eq!(other.receive().await, Some((0xD0, vec![])), "the other never noticed");
    assert!(broker.sessions.kick("T2"));
    assert_eq!(other.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x98)));
}
