//! MQTT in WebSocket: a client of these tests' own, what breaks its rules, and TLS below it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex, split};
use tokio::net::TcpStream;
use wakala_node::listener;
use wakala_system_tests::{Database, terminal};

use super::certificates::Papers;
use super::openssl::Client;
use super::wire::{Stream, Wire, connect};
use super::{Broker, PASSWORD, WebSocket, enrol, queue_receipt, tell};

const PATIENCE: Duration = Duration::from_secs(10);
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqtt\r\nOrigin: https://portal.example\r\n\r\n";

async fn start(database: &Database, papers: Option<&Papers>) -> Broker {
    let websocket = WebSocket { plain: Some(ANYWHERE), tls: papers.map(|_| ANYWHERE), ..WebSocket::default() };
    let options = listener::Options {
        plain: Some(ANYWHERE),
        tls: papers.map(Papers::tls_with_list),
        websocket: Some(websocket),
        handshake_within: Duration::from_secs(1),
        ..listener::Options::default()
    };
    Broker::with(database.store().await, options).await
}

fn at(broker: &Broker) -> SocketAddr {
    broker.listening.websocket.plain.expect("an address")
}

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0xA5, 0x5A, 0x0F, 0xF0];
    let mut bytes = vec![first];
    match u8::try_from(payload.len()) {
        Ok(short @ ..=125) => bytes.push(0x80 | short),
        _ => {
            bytes.push(0xFE);
            bytes.extend(u16::try_from(payload.len()).expect("not longer").to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

/// A server's frame; none at the end of the connection.
async fn hear(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.ok()?;
    let length = match stream.read_u8().await.ok()? {
        126 => usize::from(stream.read_u16().await.ok()?),
        127 => usize::try_from(stream.read_u64().await.ok()?).expect("a length"),
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    Some((first, payload))
}

/// Sends a request and reads the head of its answer.
async fn ask(stream: &mut impl Stream, request: &[u8]) -> String {
    stream.write_all(request).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an answer in time") {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("text")
}

async fn open(stream: &mut impl Stream) {
    let head = ask(stream, REQUEST.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert!(head.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"), "{head}");
}

async fn upgraded(broker: &Broker) -> TcpStream {
    let mut stream = TcpStream::connect(at(broker)).await.expect("it listens");
    open(&mut stream).await;
    stream
}

/// A connection whose bytes travel in frames of at most `cut` bytes, several to a message.
async fn wire(mut stream: impl Stream + 'static, v5: bool, cut: usize) -> Wire {
    open(&mut stream).await;
    let (ours, theirs) = duplex(64 * 1024);
    let (mut from_wire, mut to_wire) = split(theirs);
    let (mut from_server, mut to_server) = split(stream);
    tokio::spawn(async move {
        while let Some((first, payload)) = hear(&mut from_server).await {
            match first {
                0x82 => to_wire.write_all(&payload).await.expect("read"),
                0x88 => break,
                other => panic!("{other:x}"),
            }
        }
        let _ = to_wire.shutdown().await;
    });
    tokio::spawn(async move {
        let mut some = vec![0; 1000];
        while let Ok(read @ 1..) = from_wire.read(&mut some).await {
            let parts: Vec<&[u8]> = some[..read].chunks(cut).collect();
            for (at, part) in parts.iter().enumerate() {
                let first = (u8::from(at == 0) * 2) | (u8::from(at + 1 == parts.len()) * 0x80);
                let _ = to_server.write_all(&frame(first, part)).await;
            }
        }
    });
    Wire::over(ours, v5)
}

#[tokio::test]
async fn a_session_lives_over_websocket_as_over_tcp() {
    let database = Database::new();
    let broker = start(&database, None).await;
    broker.enrol("T1").await;
    for (v5, cut) in [(false, 1000), (true, 1000), (false, 1), (true, 1), (true, 3)] {
        let stream = TcpStream::connect(at(&broker)).await.expect("it listens");
        let mut client = wire(stream, v5, cut).await;
        assert_eq!(client.introduce("T1", true).await, [0, 0]);
        assert_eq!(client.subscribe("c/T1", 1).await, 1);
        let before = broker.taken.texts().len();
        client.publish("q/T1", 1, 7, &"x".repeat(500)).await;
        client.publish("q/T1", 1, 8, "y").await;
        for id in [7, 8] {
            assert_eq!(client.receive().await.map(|(first, body)| (first, body[1])), Some((0x40, id)));
        }
        assert_eq!(broker.taken.texts()[before..], ["x".repeat(500), "y".to_owned()]);
        let long = "m".repeat(30_000);
        tell(&broker.store, "T1", 1, &long).await;
        broker.sessions.wake("T1");
        let (qos, dup, id, _, text) = client.message("T1").await;
        assert_eq!((qos, dup, text == long), (1, false, true), "one that takes several pages");
        client.acknowledge(id).await;
        client.ping().await;
        // A kick is heard as over TCP, and then the WebSocket closes.
        assert!(broker.sessions.kick("T1"));
        if v5 {
            assert_eq!(client.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x98)));
        }
        assert_eq!(client.receive().await, None);
        broker.connected(0).await;
    }
}

#[tokio::test]
async fn a_session_goes_on_over_another_transport() {
    let database = Database::new();
    let broker = start(&database, None).await;
    broker.enrol("T1").await;
    let stream = TcpStream::connect(at(&broker)).await.expect("it listens");
    let mut client = wire(stream, true, 100).await;
    assert_eq!(client.introduce("T1", false).await, [0, 0]);
    assert_eq!(client.subscribe("r/T1", 1).await, 1);
    let (mut tcp, connack) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(connack, [1, 0]);
    assert_eq!(client.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)), "taken over");
    queue_receipt(&database, "T1", "one");
    broker.sessions.hint(&terminal("T1"), 1, Some(b"one".to_vec()));
    assert_eq!(tcp.delivery().await, (false, 1, "one".to_owned()));
}

#[tokio::test]
async fn frames_that_break_a_rule_end_the_connection_with_a_code() {
    let database = Database::new();
    let broker = start(&database, None).await;
    broker.enrol("T1").await;
    let hello = connect(true, "T1", "T1", PASSWORD, true, 60);
    for (what, sent, code) in [
        ("text [MQTT-6.0.0-1]", frame(0x81, b"x"), 1003_u16),
        ("no mask", vec![0x82, 2, 0xC0, 0], 1002),
        ("a reserved bit", frame(0xC2, &[0xC0, 0]), 1002),
        ("a ping in parts", frame(0x09, b"x"), 1002),
        ("a message in a message", [frame(0x02, &[0xC0]), frame(0x82, &[0])].concat(), 1002),
        ("leave", frame(0x88, &[0x03, 0xE9]), 1001),
    ] {
        for early in [true, false] {
            let mut stream = upgraded(&broker).await;
            if !early {
                stream.write_all(&frame(0x82, &hello)).await.expect("sent");
                let (first, packet) = hear(&mut stream).await.expect("a CONNACK");
                assert_eq!((first, packet[0], packet[3]), (0x82, 0x20, 0), "{packet:?}");
            }
            stream.write_all(&sent).await.expect("sent");
            let heard = tokio::time::timeout(PATIENCE, hear(&mut stream)).await.expect("in time");
            assert_eq!(heard, Some((0x88, code.to_be_bytes().to_vec())), "{what}, early: {early}");
            assert_eq!(hear(&mut stream).await, None);
            broker.connected(0).await;
        }
    }
    // Pings are answered, before CONNECT and after, and between the parts of a packet.
    let mut stream = upgraded(&broker).await;
    let (a, b) = hello.split_at(5);
    let sent = [frame(0x89, b"one"), frame(0x02, a), frame(0x89, b"two"), frame(0x80, b)];
    for (some, pong) in sent.chunks(2).zip(["one", "two"]) {
        stream.write_all(&some.concat()).await.expect("sent");
        assert_eq!(hear(&mut stream).await, Some((0x8A, pong.as_bytes().to_vec())));
    }
    assert_eq!(hear(&mut stream).await.map(|(first, packet)| (first, packet[0])), Some((0x82, 0x20)));
}

#[tokio::test]
async fn requests_that_are_not_for_mqtt_are_answered_with_a_status() {
    let database = Database::new();
    let broker = start(&database, None).await;
    let large = format!("GET /mqtt HTTP/1.1\r\nCookie: {}\r\n", "x".repeat(8192));
    for (request, status) in [
        (REQUEST.replace("/mqtt ", "/ "), "404"),
        (REQUEST.replace("GET", "POST"), "405"),
        (REQUEST.replace("Protocol: mqtt", "Protocol: chat"), "400"),
        (REQUEST.replace("Version: 13", "Version: 8"), "426"),
        (REQUEST.replace("Upgrade: websocket", "Upgrade: h2c"), "426"),
        ("\u{16}\u{3}\u{1} a TLS hello".to_owned(), "400"),
        ("\u{10}\u{25}\0\u{4}MQTT".to_owned(), "400"),
        (large, "431"),
    ] {
        let mut stream = TcpStream::connect(at(&broker)).await.expect("it listens");
        let head = ask(&mut stream, request.as_bytes()).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {head}");
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        ended.expect("it is closed").expect("and not reset");
    }
}

#[tokio::test]
async fn whoever_says_nothing_is_put_out_in_time() {
    let database = Database::new();
    let broker = start(&database, None).await;
    let begun = [&b""[..], b"GET /mqtt HTTP/1.1\r\n"];
    for some in begun {
        let mut stream = TcpStream::connect(at(&broker)).await.expect("it listens");
        stream.write_all(some).await.expect("sent");
        let ended = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("in time");
        assert!(ended.is_err(), "without an answer");
    }
    // Nor do frames without MQTT in them buy time.
    let mut stream = upgraded(&broker).await;
    let ended = async {
        loop {
            if stream.write_all(&frame(0x8A, b"still here")).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("it is closed");
}

/// Each part in time, and all of it not.
#[tokio::test]
async fn whoever_drags_out_each_part_has_no_more_time_for_all() {
    let database = Database::new();
    let time = Duration::from_secs(3);
    let options = listener::Options {
        plain: Some(ANYWHERE),
        websocket: Some(WebSocket { plain: Some(ANYWHERE), ..WebSocket::default() }),
        handshake_within: time,
        connect_within: time,
        ..listener::Options::default()
    };
    let broker = Broker::made(database.store().await, options, |_| ()).await;
    let begun = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(at(&broker)).await.expect("it listens");
    tokio::time::sleep(time * 2 / 3).await;
    let head = ask(&mut stream, REQUEST.as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let ended = tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("in time");
    assert!(ended.is_err() && begun.elapsed() < time * 3 / 2, "{:?}", begun.elapsed());
}

/// A client that pings and reads nothing costs one answer, not each of them.
#[tokio::test]
async fn pings_without_end_are_not_gathered() {
    let database = Database::new();
    let broker = start(&database, None).await;
    broker.enrol("T1").await;
    let mut stream = upgraded(&broker).await;
    stream.write_all(&frame(0x82, &connect(true, "T1", "T1", PASSWORD, true, 60))).await.expect("sent");
    assert_eq!(hear(&mut stream).await.map(|(first, packet)| (first, packet[0])), Some((0x82, 0x20)));
    // More than the sockets' buffers hold of pongs: the server reads on, and answers when it can.
    let ping = frame(0x89, &[b'p'; 125]);
    let many = ping.repeat(1000);
    for _ in 0..400 {
        tokio::time::timeout(PATIENCE, stream.write_all(&many)).await.expect("it is read").expect("sent");
    }
    stream.write_all(&frame(0x89, b"the last")).await.expect("sent");
    stream.write_all(&frame(0x82, &[0xC0, 0])).await.expect("sent");
    let (mut pongs, mut last, mut answered) = (0, Vec::new(), false);
    while !(answered && last == b"the last") {
        let (first, payload) =
            tokio::time::timeout(PATIENCE, hear(&mut stream)).await.expect("in time").expect("it is open");
        if first == 0x8A {
            (pongs, last) = (pongs + 1, payload);
        } else {
            answered |= (first, &payload[..]) == (0x82, &[0xD0, 0][..]);
        }
    }
    assert!(pongs < 400_000, "not each of them: {pongs}");
}

#[tokio::test]
async fn over_tls_the_certificate_is_who_it_is_and_a_list_that_revokes_it_ends_it() {
    let database = Database::new();
    let papers = Papers::new();
    let stolen = papers.issue("stolen");
    let broker = start(&database, Some(&papers)).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    enrol(&broker.store, "T2", Some(stolen.sha256)).await;
    let wss = broker.listening.websocket.tls.expect("an address");
    let urls = broker.listening.addresses();
    assert_eq!(urls[2..], [format!("ws://{}/mqtt", at(&broker)), format!("wss://{wss}/mqtt")]);
    let come = async |file: &str| {
        let tcp = TcpStream::connect(wss).await.expect("it listens");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let tls = papers.connector(file).connect(name, tcp).await.expect("a handshake");
        wire(tls, true, 50).await
    };
    let (mut stays, mut leaves) = (come("terminal").await, come("stolen").await);
    // The password is not looked at where the certificate says it.
    stays.send(&connect(true, "T1", "T1", "wrong", true, 60)).await;
    assert_eq!(stays.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
    leaves.send(&connect(true, "T2", "T2", "wrong", true, 60)).await;
    assert_eq!(leaves.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
    papers.revoke(&[stolen]);
    assert_eq!(leaves.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x87)));
    assert_eq!(leaves.receive().await, None);
    stays.ping().await;
    // A browser says that it speaks HTTP/1.1; who speaks something else only is at the wrong door.
    let browser = Client::new(&papers, "terminal", "-tls1_3");
    let (content, said) = browser.look(wss, &["-alpn", "http/1.1"]).await;
    assert!(content && said.contains("ALPN protocol: http/1.1"), "{said}");
    assert!(!browser.look(wss, &["-alpn", "mqtt"]).await.0);
    // No handshake, no WebSocket, no MQTT.
    let mut plain = TcpStream::connect(wss).await.expect("it listens");
    assert_eq!(ask(&mut plain, REQUEST.as_bytes()).await, "");
}
