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

use super::wire::Wire;
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
    let shown = hex::encode(&case.bytes[..case.bytes.len().min(60)]);
    let told = || {
        format!(
            "{}: {} ({:?})\n    bytes  {shown}\n    wanted {words:x?} by {}\n    came   {came:x?}",
            case.place, case.name, case.by, case.rule
        )
    };
    (!right).then(told)
}

#[tokio::test]
async fn what_the_standards_refuse_is_refused_at_the_socket_in_their_words() {
    let database = Database::new();
    let bounds =
        listener::bounds::Options { address_connects_burst: 0, strangers_per_address_max: 1000, ..Default::default() };
    let options = listener::Options { bounds, ..anywhere() };
    let broker = Broker::made(database.store().await, options, |deps| deps.open.anonymous = true).await;
    // A frame that is longer than the node takes is refused for that; the tables have a bound of their own.
    let cases = tables::tables().into_iter().chain(families::all());
    let cases = cases.filter(|case| case.bytes_max == BYTES_MAX && case.bytes.len() < 4096);
    let (room, mut playing, mut played) = (Arc::new(Semaphore::new(64)), JoinSet::new(), 0);
    for (nth, case) in cases.enumerate() {
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
