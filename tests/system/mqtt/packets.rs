//! The tables of `tests/packets`, at a node's socket: bytes in, and the bytes that come out.

#![allow(dead_code, reason = "tests/packets.rs uses the rest")]

#[path = "../../packets/case.rs"]
mod case;
#[path = "../../packets/families/mod.rs"]
mod families;
#[path = "../../packets/notation.rs"]
mod notation;
#[path = "../../packets/render.rs"]
mod render;
#[path = "../../packets/standard.rs"]
mod standard;
#[path = "../../packets/tables.rs"]
mod tables;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use wakala::session::Version;
use wakala_node::listener;
use wakala_node::session::frames;
use wakala_system_tests::Database;

use super::wire::{Packet, Wire};
use super::{Broker, anywhere};
use case::{BYTES_MAX, Case, Wanted};

/// What a node that takes this much is to say before it closes the connection, if it is to: first byte and reason code.
fn last_word(case: &Case) -> Option<Vec<(u8, u8)>> {
    let opens = case.first || case.bytes.first() == Some(&0x10) && matches!(case.wanted, Wanted::Connack(_));
    match &case.wanted {
        // A CONNECT is answered by CONNACK, whatever it is; a second one on a connection is another fault.
        Wanted::Refused(codes) if opens || case.bytes.first() == Some(&0x10) => {
            Some(codes.iter().map(|&code| (0x20, code)).collect())
        }
        Wanted::Refused(codes) => Some(codes.iter().map(|&code| (0xE0, code)).collect()),
        Wanted::Connack(code) => Some(vec![(0x20, *code)]),
        Wanted::Closed => Some(Vec::new()),
        Wanted::Packet(_) | Wanted::More => None,
    }
}

/// What is wrong with what came, if anything is.
async fn fault(at: SocketAddr, nth: usize, case: &Case, words: &[(u8, u8)]) -> Option<String> {
    let mut wire = Wire::open(at, case.by == Version::V5).await;
    if !case.first && case.bytes.first() != Some(&0x10) {
        wire.introduce(&format!("client {nth}"), true).await;
    }
    wire.send(&case.bytes).await;
    // A DISCONNECT has been read when the client closes; who waits for the server to close waits for a second.
    let came = wire.receive().await.map(|(first, body)| {
        let code = if first == 0x20 { body.get(1) } else { body.first() };
        (first, code.copied().unwrap_or(0))
    });
    // And then it closes. That takes a second where the client does not, so not each is waited for.
    let ends = came.is_none() || !nth.is_multiple_of(16) || wire.receive().await.is_none();
    let right = ends && came.map_or(words.is_empty(), |word| words.contains(&word));
    (!right).then(|| told(case, &words, &came))
}

/// The first byte of a packet, and its identifier or its reason code (to a CONNECT behind what is present); none is the end
/// of the connection.
type Word = Option<(u8, [u8; 2])>;

const PINGRESP: Word = Some((0xD0, [0, 0]));

/// What a session that has just begun says to a packet that is well formed and to PINGREQ behind it. None where the case is
/// not of this test.
fn words(case: &Case) -> Option<Vec<Word>> {
    let Wanted::Packet(packet) = &case.wanted else { return None };
    let (first, body) = (*case.bytes.first()?, body(&case.bytes)?);
    // It knows no way to authenticate (4.12), has no aliases yet, and takes so many (3.1.2.11.5).
    match packet {
        _ if packet.contains(" AuthenticationMethod=") => return Some(vec![Some((0x20, [0, 0x8C])), None]),
        _ if packet.ends_with(" MaximumPacketSize=1") => return Some(vec![None]),
        _ if packet.contains(" TopicAlias=65535") => return Some(vec![Some((0xE0, [0x94, 0])), None]),
        _ if packet.contains(" \"\" ") && packet.contains(" TopicAlias=") => {
            return Some(vec![Some((0xE0, [0x82, 0])), None]);
        }
        _ => {}
    }
    let id = |at: usize| body.get(at..at + 2).map(|id| [id[0], id[1]]);
    let topic = || usize::from(u16::from_be_bytes(id(0).expect("a topic")));
    let answer = match (first >> 4, first >> 1 & 3) {
        (1, _) => (0x20, [0, 0]),
        (3, 0) | (4 | 7, _) => return Some(vec![PINGRESP]),
        (3, 1) => (0x40, id(2 + topic())?),
        (3, _) => (0x50, id(2 + topic())?),
        // Of an identifier that is not in use.
        (5, _) => (0x62, id(0)?),
        (6, _) => (0x70, id(0)?),
        (8, _) => (0x90, id(0)?),
        (10, _) => (0xB0, id(0)?),
        (12, _) => (0xD0, [0, 0]),
        // Its session was to end with the connection (3.14.2.2.2).
        (14, _) if packet.contains(" SessionExpiryInterval=") && !packet.contains(" SessionExpiryInterval=0") => {
            return Some(vec![Some((0xE0, [0x82, 0])), None]);
        }
        (14, _) => return Some(vec![None]),
        // [MQTT-4.12.0-6]: its CONNECT named no way to authenticate.
        _ => return Some(vec![Some((0xE0, [0x82, 0])), None]),
    };
    Some(vec![Some(answer), PINGRESP])
}

/// What is behind the fixed header, if that is all of the bytes.
fn body(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes[1..].iter().take(4).position(|byte| byte & 0x80 == 0)? + 1;
    let said = bytes[1..=length].iter().rev().fold(0, |sum, byte| sum << 7 | usize::from(byte & 0x7F));
    bytes.get(1 + length..).filter(|body| body.len() == said)
}

/// What is wrong with what is said, if anything is.
async fn otherwise(at: SocketAddr, nth: usize, case: &Case, words: &[Word]) -> Option<String> {
    let mut wire = Wire::open(at, case.by == Version::V5).await;
    if case.bytes.first() != Some(&0x10) {
        wire.introduce(&format!("client {nth}"), true).await;
    }
    wire.send(&case.bytes).await;
    let mut came = Vec::new();
    while came.len() < words.len() {
        // It is still there then, and nothing else was said.
        if came.len() + 1 == words.len() {
            wire.send(&[0xC0, 0]).await;
        }
        came.push(next(&mut wire).await.map(|(first, body)| {
            let at = |at: usize| body.get(at).copied().unwrap_or(0);
            // What is behind the code of a DISCONNECT is for people.
            (first, [at(0), if first == 0xE0 { 0 } else { at(1) }])
        }));
    }
    (came != words).then(|| told(case, &words, &came))
}

fn told(case: &Case, wanted: &impl std::fmt::Debug, came: &impl std::fmt::Debug) -> String {
    let shown = hex::encode(&case.bytes[..case.bytes.len().min(60)]);
    let Case { place, name, by, rule, .. } = case;
    format!("{place}: {name} ({by:?})\n    bytes  {shown}\n    wanted {wanted:x?} by {rule}\n    came   {came:x?}")
}

/// What is said to this client, and no message that it has subscribed to.
async fn next(wire: &mut Wire) -> Option<Packet> {
    loop {
        match wire.receive().await {
            Some((first, _)) if first >> 4 == 3 => {}
            other => return other,
        }
    }
}

/// For anybody, however often, and for larger packets than the tables have.
async fn broker(database: &Database) -> Broker {
    let bounds = listener::bounds::Options {
        client_connects_burst: 0,
        address_connects_burst: 0,
        strangers_per_address_max: 1000,
        ..Default::default()
    };
    let options = listener::Options { bounds, ..anywhere() };
    Broker::made(database.store().await, options, |deps| deps.open.anonymous = true).await
}

fn cases() -> impl Iterator<Item = (usize, Case)> {
    // A frame that is longer than the node takes is refused for that; the tables have a bound of their own.
    let cases = tables::tables().into_iter().chain(families::all());
    cases.filter(|case| case.bytes_max == BYTES_MAX && case.bytes.len() < 4096).enumerate()
}

#[tokio::test]
async fn what_the_standards_allow_is_answered_at_the_socket() {
    let database = Database::new();
    let broker = broker(&database).await;
    let (mut wrong, mut played) = (Vec::new(), 0);
    for (nth, case) in cases() {
        let Some(words) = words(&case) else { continue };
        played += 1;
        // One after the other: all CONNECTs are of one client.
        wrong.extend(otherwise(broker.plain(), nth, &case, &words).await);
    }
    assert!(wrong.is_empty(), "{}\n{} of {played} are answered otherwise", wrong.join("\n"), wrong.len());
    println!("{played} answers");
    assert!(played >= 1000, "{played} cases only");
}

#[tokio::test]
async fn what_the_standards_refuse_is_refused_at_the_socket_in_their_words() {
    let database = Database::new();
    let broker = broker(&database).await;
    let (room, mut playing, mut played) = (Arc::new(Semaphore::new(64)), JoinSet::new(), 0);
    for (nth, case) in cases() {
        let Some(words) = last_word(&case) else { continue };
        played += 1;
        let (room, at) = (Arc::clone(&room), broker.plain());
        playing.spawn(async move {
            let _place = room.acquire_owned().await.expect("never closed");
            fault(at, nth, &case, &words).await
        });
    }
    let wrong: Vec<String> = playing.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}\n{} of {played} are answered otherwise", wrong.join("\n"), wrong.len());
    println!("{played} refusals");
    assert!(played >= 1500, "{played} cases only");
}
