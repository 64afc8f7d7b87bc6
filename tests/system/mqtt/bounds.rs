//! What one client, one agent, one address and one network may cost: connects in a loop, wrong passwords, silence, bytes that dribble, floods.

use std::time::{Duration, Instant};

use super::certificates::Papers;
use super::openssl::Client;
use super::wire::{Wire, packet};
use super::{Broker, Tuned, enrol, enrol_with, queue_receipt, until};
use crate::locks::Holding;
use wakala_node::listener::bounds::Range;
use wakala_system_tests::Database;

const HERE: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

async fn tuned(database: &Database, tune: impl FnOnce(&mut Tuned)) -> Broker {
    Broker::tuned(database.store().await, HERE.into(), None, tune).await
}

/// MQTT 5: Connection rate exceeded; 3.1.1 has a code for "not now" only.
const fn not_now(v5: bool) -> [u8; 2] {
    [0, if v5 { 0x9F } else { 3 }]
}

/// screentinker #146: a device connected successfully, again and again, until the server was down.
#[tokio::test]
async fn pain_13_a_device_that_connects_in_a_loop_is_refused_before_its_session_is_opened() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.listener.bounds.client_connects_burst = 4;
        tuned.listener.bounds.client_connects_every = Duration::from_secs(600);
    })
    .await;
    for name in ["T1", "T2", "T3"] {
        broker.enrol(name).await;
    }
    let (mut neighbour, _) = Wire::connect(broker.plain(), true, "T2", true).await;
    for n in 0..4 {
        let (wire, connack) = Wire::connect(broker.plain(), n % 2 == 0, "T1", false).await;
        assert_eq!(connack[1], 0, "connect {n}");
        wire.cut();
    }
    until(&database, "select connected from wakala.session where client_id = 'T1'", "f").await;
    let epoch = database.rows("select epoch from wakala.session where client_id = 'T1'");
    for v5 in [true, false, true, false] {
        let (mut wire, connack) = Wire::connect(broker.plain(), v5, "T1", false).await;
        assert_eq!(connack, not_now(v5));
        assert_eq!(wire.receive().await, None, "closed");
    }
    assert_eq!(database.rows("select epoch from wakala.session where client_id = 'T1'"), epoch, "nothing was opened");
    assert_eq!(broker.sessions.bounds_report().flapping, 4);
    // A stranger under its name uses nothing of a terminal's up.
    for _ in 0..4 {
        let connack = Wire::open(broker.plain(), true).await.try_password("T3", "not its own").await;
        assert_eq!(connack, [0, 0x86]);
    }
    for n in 0..4 {
        let (_, connack) = Wire::connect(broker.plain(), true, "T3", true).await;
        assert_eq!(connack, [0, 0], "connect {n}");
    }
    neighbour.ping().await;
}

/// emqx #18218: limits by client identifier were passed with random ones.
#[tokio::test]
async fn pain_13_random_client_ids_from_one_address_do_not_pass_the_limit() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.open.anonymous = true;
        tuned.listener.bounds.address_connects_burst = 5;
        tuned.listener.bounds.address_connects_every = Duration::from_secs(60);
    })
    .await;
    for n in 0..5 {
        let (_, connack) = Wire::connect(broker.plain(), true, &format!("random-{n}"), true).await;
        assert_eq!(connack, [0, 0]);
    }
    for (n, v5) in [true, false].into_iter().enumerate() {
        let (_, connack) = Wire::connect(broker.plain(), v5, &format!("fresh-{n}"), true).await;
        assert_eq!(connack, not_now(v5));
    }
    let mut elsewhere = Wire::open_from([127, 0, 0, 2], broker.plain(), true).await;
    assert_eq!(elsewhere.introduce("fresh", true).await, [0, 0]);
    assert_eq!(broker.sessions.bounds_report().flapping_addresses, 2);
}

/// An APN that drops everybody every few seconds has all its SIMs connect again and again, successfully, each within its own
/// limits and from an address of its own.
#[tokio::test]
async fn pain_13_a_network_whose_terminals_come_back_again_and_again_is_turned_away_and_another_is_not() {
    let database = Database::new();
    let known_every = Duration::from_secs(6);
    let broker = tuned(&database, |tuned| {
        let range = |network: &str, connects_burst| Range {
            network: network.parse().expect("a network"),
            connects_burst,
            connects_every: Duration::from_secs(600),
            known_every,
        };
        tuned.listener.bounds.ranges =
            vec![range("127.1.0.0/16", 4), range("127.1.2.0/24", 1), range("127.3.0.0/16", 9)];
    })
    .await;
    for name in ["T1", "T2", "T3", "T4"] {
        broker.enrol(name).await;
    }
    let come = async |from: [u8; 4], v5: bool, name: &str| {
        let mut wire = Wire::open_from(from, broker.plain(), v5).await;
        let connack = wire.introduce(name, false).await;
        (wire, connack[1])
    };
    for n in 1..=4 {
        let (wire, code) = come([127, 1, 9, n], n % 2 == 0, if n < 3 { "T1" } else { "T2" }).await;
        assert_eq!(code, 0, "connect {n}");
        wire.cut();
    }
    let since = Instant::now();
    until(&database, "select count(*) from wakala.session where connected", "0").await;
    let epochs = "select string_agg(epoch::text, ' ' order by client_id) from wakala.session";
    let before = database.rows(epochs);
    for (v5, name) in [(true, "T3"), (false, "T3"), (true, "T2")] {
        let (mut wire, code) = come([127, 1, 9, 5], v5, name).await;
        assert_eq!(code, not_now(v5)[1], "{name}");
        assert_eq!(wire.receive().await, None, "closed");
    }
    assert!(since.elapsed() < known_every, "too slow a machine for this test");
    assert_eq!(database.rows(epochs), before, "nothing was opened");
    assert_eq!(broker.sessions.bounds_report().flapping_ranges, 3);
    // Another network, one that none of them is in, and a narrower one within.
    for from in [[127, 3, 0, 1], [127, 0, 0, 1], [127, 1, 2, 1]] {
        let (mut wire, code) = come(from, true, "T3").await;
        assert_eq!(code, 0, "{from:?}");
        wire.ping().await;
    }
    assert_eq!(come([127, 1, 2, 1], true, "T4").await.1, not_now(true)[1]);
    // Its neighbours do not keep one out for long who is known in that network, wherever in it he is.
    tokio::time::sleep((known_every + Duration::from_millis(100)).saturating_sub(since.elapsed())).await;
    assert_eq!(come([127, 1, 9, 77], true, "T3").await.1, not_now(true)[1], "not known there");
    assert_eq!(come([127, 1, 9, 77], true, "T1").await.1, 0, "known there");
    assert_eq!(come([127, 1, 9, 77], true, "T1").await.1, not_now(true)[1], "once in that time");
    let report = broker.sessions.bounds_report();
    assert_eq!((report.flapping_ranges, report.flapping, report.flapping_addresses), (6, 0, 0));
}

/// In a bank's network strangers behind the operator's one address do not keep its terminals out.
#[tokio::test]
async fn pain_13_strangers_behind_one_address_do_not_keep_its_terminals_out() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::tuned(database.store().await, HERE.into(), Some(papers.tls(true)), |tuned| {
        tuned.listener.bounds.address_connects_burst = 5;
        tuned.listener.bounds.address_connects_every = Duration::from_secs(60);
    })
    .await;
    broker.enrol("T1").await;
    broker.enrol("T2").await;
    enrol(&broker.store, "T3", Some(papers.terminal.sha256)).await;
    let (known, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    known.cut();
    for n in 0..8 {
        let connack = Wire::open(broker.plain(), true).await.try_password(&format!("X{n}"), "guess").await;
        assert_eq!(connack, if n < 5 { [0, 0x86] } else { not_now(true) }, "{n}");
    }
    assert_eq!(Wire::connect(broker.plain(), true, "T1", true).await.1, [0, 0], "known there");
    assert_eq!(Wire::connect(broker.plain(), true, "T2", true).await.1, not_now(true), "not known there yet");
    let mut certified = Client::new(&papers, "terminal", "-tls1_3").open(broker.listening.tls.expect("TLS"), true);
    assert_eq!(certified.introduce("T3", true).await, [0, 0]);
}

/// Anybody can make a certificate.
#[tokio::test]
async fn a_certificate_passes_the_limit_of_its_address_if_an_authority_vouches_for_it_or_a_terminal_has_it() {
    let papers = Papers::new();
    papers.issue("other");
    for authorities in [false, true] {
        let database = Database::new();
        let broker = Broker::tuned(database.store().await, HERE.into(), Some(papers.tls(authorities)), |tuned| {
            tuned.listener.bounds.address_connects_burst = 3;
            tuned.listener.bounds.address_connects_every = Duration::from_secs(600);
        })
        .await;
        enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
        for n in 0..4 {
            let connack = Wire::open(broker.plain(), true).await.try_password(&format!("X{n}"), "guess").await;
            assert_eq!(connack, if n < 3 { [0, 0x86] } else { not_now(true) }, "{n}");
        }
        let at = broker.listening.tls.expect("TLS");
        let told = if authorities { [0, 0x86] } else { not_now(true) };
        assert_eq!(Client::new(&papers, "other", "-tls1_2").open(at, true).introduce("X9", true).await, told);
        assert_eq!(Client::new(&papers, "terminal", "-tls1_2").open(at, true).introduce("T1", true).await, [0, 0]);
    }
}

/// emqx #3357: on 2G a terminal's new connection comes before its old one is known to be gone; that looked like a conflict.
#[tokio::test]
async fn pain_13_a_terminal_on_2g_takes_its_own_session_over_and_over() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let mut held = Vec::new();
    for n in 0..20 {
        let (wire, connack) = Wire::connect(broker.plain(), n % 2 == 0, "T1", false).await;
        assert_eq!(connack[1], 0, "connect {n}");
        held.push(wire);
    }
    held.last_mut().expect("the last").ping().await;
    let report = broker.sessions.bounds_report();
    assert_eq!((report.flapping, report.banned, report.bans), (0, 0, 0));
}

#[tokio::test]
async fn after_wrong_passwords_none_is_looked_at_but_the_terminal_gets_in_from_elsewhere_and_with_its_certificate() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::tuned(database.store().await, HERE.into(), Some(papers.tls(true)), |tuned| {
        tuned.listener.bounds.wrong_per_client_max = 3;
        tuned.listener.bounds.wrong_wait_min = Duration::from_secs(4);
    })
    .await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    for _ in 0..3 {
        let connack = Wire::open(broker.plain(), true).await.try_password("T1", "guess").await;
        assert_eq!(connack, [0, 0x86]);
    }
    let barred = Instant::now();
    // The right one is not looked at either: it could be the next guess.
    for v5 in [true, false] {
        let (_, connack) = Wire::connect(broker.plain(), v5, "T1", true).await;
        assert_eq!(connack, not_now(v5));
    }
    let report = broker.sessions.bounds_report();
    assert_eq!((report.wrong_passwords, report.unverified), (3, 2), "no password was verified");
    let mut elsewhere = Wire::open_from([127, 0, 0, 2], broker.plain(), true).await;
    assert_eq!(elsewhere.introduce("T1", true).await, [0, 0]);
    let mut certified = Client::new(&papers, "terminal", "-tls1_3").open(broker.listening.tls.expect("TLS"), true);
    assert_eq!(certified.introduce("T1", true).await, [0, 0]);
    // The next wait is twice as long.
    tokio::time::sleep(Duration::from_millis(4_100).saturating_sub(barred.elapsed())).await;
    assert_eq!(Wire::open(broker.plain(), true).await.try_password("T1", "guess").await, [0, 0x86]);
    assert_eq!(Wire::connect(broker.plain(), true, "T1", true).await.1, not_now(true));
    tokio::time::sleep(Duration::from_millis(8_100)).await;
    assert_eq!(Wire::connect(broker.plain(), true, "T1", true).await.1, [0, 0], "and then right is right");
}

/// Slow loris, before CONNECT: one address does not take all places.
#[tokio::test]
async fn silent_connections_of_one_address_leave_places_for_others() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.listener.strangers_max = 10;
        tuned.listener.bounds.strangers_per_address_max = 4;
        tuned.listener.connect_within = Duration::from_secs(6);
    })
    .await;
    broker.enrol("T1").await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::open_from([127, 0, 0, 9], broker.plain(), true).await;
        wire.send(&[0x10]).await;
        silent.push(wire);
    }
    for wire in &mut silent {
        wire.silence().await;
    }
    let begun = Instant::now();
    let mut one_more = Wire::open_from([127, 0, 0, 9], broker.plain(), true).await;
    assert_eq!(one_more.receive().await, None);
    assert!(begun.elapsed() < Duration::from_secs(1), "closed at once");
    let (mut wire, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    // They do not stay for ever, and then their address has places again; whoever has said who he is holds none.
    for wire in &mut silent {
        assert_eq!(wire.receive().await, None);
    }
    let mut again = Wire::open_from([127, 0, 0, 9], broker.plain(), true).await;
    assert_eq!(again.introduce("T1", true).await, [0, 0]);
    assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), Some((0xE0, 0x8E)), "taken over");
    assert_eq!(broker.sessions.bounds_report().crowded, 1);
}

/// A password is dear: whole CONNECTs of one address under made-up names keep nobody else out.
#[tokio::test]
async fn passwords_of_one_address_keep_nobody_else_waiting() {
    const MANY: u64 = 24;
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.listener.strangers_max = 20;
        tuned.listener.bounds.strangers_per_address_max = 8;
        tuned.listener.passwords_at_once = 1;
    })
    .await;
    broker.enrol("T1").await;
    let mut strangers = Vec::new();
    for n in 0..MANY {
        let mut wire = Wire::open_from([127, 0, 0, 9], broker.plain(), true).await;
        wire.say_hello(&format!("made-up-{n}"), true).await;
        strangers.push(wire);
        // Its CONNECT is read meanwhile.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let before = broker.sessions.bounds_report();
    assert!(before.crowded > 0, "{before:?}");
    // That it comes in its turn and not behind them all, the listener's own tests show.
    let (_wire, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    // Those who are within the limit are all answered.
    let mut answered = 0;
    for wire in &mut strangers {
        answered += u64::from(wire.receive().await.is_some());
    }
    let crowded = broker.sessions.bounds_report().crowded;
    assert_eq!(answered + crowded, MANY);
}

/// It takes a while to verify this terminal's password from now on.
pub(super) fn make_dear(database: &Database, name: &str) {
    use argon2::PasswordHasher as _;
    let dear = argon2::Params::new(64 * 1024, 12, 1, None).expect("parameters");
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, dear);
    let hash = argon2.hash_password(super::PASSWORD.as_bytes()).expect("hashed").to_string();
    let _ = database.rows(&format!("update wakala.terminal set password_hash = '{hash}' where id = '{name}'"));
}

/// In a storm terminals lose patience before it is their password's turn, and come again: what they left would keep those who
/// are there waiting for longer than anybody waits.
#[tokio::test]
async fn whoever_has_hung_up_has_no_password_verified() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| tuned.listener.passwords_at_once = 1).await;
    broker.enrol("T1").await;
    make_dear(&database, "T1");
    for _ in 0..20 {
        let mut wire = Wire::open(broker.plain(), true).await;
        wire.send(&super::wire::connect(true, "T1", "T1", "a guess", true, 60)).await;
        // Its CONNECT is read meanwhile.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (_wire, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    let wrong = broker.sessions.bounds_report().wrong_passwords;
    assert!(wrong < 5, "{wrong} of twenty were verified");
}

/// At the last gate those come first who wait for a receipt: they must come as far as that.
#[tokio::test]
async fn of_those_whose_passwords_wait_to_be_verified_who_waits_for_a_receipt_comes_first() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| tuned.listener.passwords_at_once = 1).await;
    let names = ["T1", "T2", "T3", "T4", "T5"];
    for name in names {
        broker.enrol(name).await;
        make_dear(&database, name);
    }
    queue_receipt(&database, "T5", "a");
    let mut wires = Vec::new();
    for name in names {
        let mut wire = Wire::open(broker.plain(), true).await;
        wire.say_hello(name, true).await;
        wires.push(wire);
        // Its CONNECT is read meanwhile; T1's password is being verified all the while.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for wire in &mut wires {
        assert_eq!(wire.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
    }
    let order = "select string_agg(client_id, ' ' order by connected_at) from wakala.session";
    assert_eq!(database.rows(order), "T1 T5 T2 T3 T4");
}

/// The thread that carries a terminal's bytes does not compute argon2id meanwhile.
#[tokio::test]
async fn while_a_password_is_verified_who_is_connected_is_served() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| tuned.listener.workers = 1).await;
    broker.enrol("T1").await;
    broker.enrol("T2").await;
    let (mut served, connack) = Wire::connect(broker.plain(), true, "T2", true).await;
    assert_eq!(connack, [0, 0]);
    make_dear(&database, "T1");
    let mut comes = Wire::open(broker.plain(), true).await;
    // A wrong one is answered as soon as it is verified.
    comes.send(&super::wire::connect(true, "T1", "T1", "a guess", true, 60)).await;
    // Its CONNECT is read meanwhile.
    tokio::time::sleep(Duration::from_millis(20)).await;
    tokio::select! {
        biased;
        _ = comes.receive() => panic!("its password was verified first"),
        () = served.ping() => {}
    }
    assert_eq!(comes.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0x86)));
}

/// A client that pings and acknowledges nothing would hold what is for it for ever.
#[tokio::test]
async fn pain_14_a_client_that_acknowledges_nothing_is_given_up_though_it_pings() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| tuned.sessions.ack_within = Duration::from_secs(1)).await;
    broker.enrol("T1").await;
    for (v5, end) in [(true, Some((0xE0, 0x80))), (false, None)] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, "T1", false).await;
        // The session goes on: then the receipt comes by itself.
        if v5 {
            assert_eq!(wire.subscribe("r/T1", 1).await, 1);
            queue_receipt(&database, "T1", "unread");
            broker.sessions.wake("T1");
        }
        assert_eq!(wire.delivery().await.2, "unread");
        wire.ping().await;
        assert_eq!(wire.receive().await.map(|(first, body)| (first, body[0])), end);
    }
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    let (dup, id, text) = wire.delivery().await;
    assert_eq!((dup, text.as_str()), (true, "unread"), "it is not lost");
    wire.acknowledge(id).await;
}

/// Slow loris, after CONNECT.
#[tokio::test]
async fn a_packet_that_dribbles_in_ends_its_connection_and_an_idle_one_stays() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| tuned.sessions.bounds.frame_within = Duration::from_secs(1)).await;
    for name in ["T1", "T2", "T3"] {
        broker.enrol(name).await;
    }
    let (mut idle, _) = Wire::connect(broker.plain(), true, "T3", true).await;
    for (v5, name) in [(true, "T1"), (false, "T2")] {
        let (mut wire, connack) = Wire::connect(broker.plain(), v5, name, true).await;
        assert_eq!(connack, [0, 0]);
        wire.ping().await;
        // A PUBLISH of 100 bytes, a byte at a time.
        let bytes = packet(0x30, &[b'x'; 100]);
        let begun = Instant::now();
        for byte in bytes.iter().take(30) {
            wire.send(&[*byte]).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let heard = wire.receive().await;
        assert_eq!(heard.map(|(first, body)| (first, body[0])), v5.then_some((0xE0, 0x80)));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
    // Nothing in part is there of a client that only waits, or that sends its packets whole.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        idle.ping().await;
    }
    assert_eq!(broker.sessions.bounds_report().late, 2);
}

#[tokio::test]
async fn a_client_that_publishes_too_fast_is_read_more_slowly_and_loses_nothing() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.sessions.bounds.publishes_per_second = 10;
        tuned.sessions.bounds.publishes_burst = 5;
    })
    .await;
    for name in ["T1", "T2", "T3"] {
        broker.enrol(name).await;
    }
    for (v5, name) in [(true, "T1"), (false, "T2")] {
        let (mut wire, _) = Wire::connect(broker.plain(), v5, name, true).await;
        let begun = Instant::now();
        // Within the Receive Maximum of 16.
        for id in 1..=15 {
            wire.publish(&format!("q/{name}"), 1, id, &format!("{name} {id}")).await;
        }
        for id in 1..=15 {
            let (first, body) = wire.receive().await.expect("a PUBACK");
            assert_eq!((first, &body[..2]), (0x40, &[0, id][..]));
        }
        // Ten more than the burst, one each tenth of a second.
        assert!(begun.elapsed() > Duration::from_millis(800), "{:?}", begun.elapsed());
        wire.ping().await;
    }
    assert_eq!(broker.taken.texts().len(), 30);
    assert!(broker.sessions.bounds_report().held >= 10);
}

#[tokio::test]
async fn terminals_of_one_agent_share_a_rate_and_those_of_another_are_not_held() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| {
        tuned.listener.workers = 2;
        tuned.sessions.bounds.agent_publishes_per_second = 2;
        tuned.sessions.bounds.agent_publishes_burst = 5;
    })
    .await;
    for (agent, name) in [("A1", "T1"), ("A1", "T2"), ("A1", "T3"), ("A2", "T4")] {
        enrol_with(agent, &broker.store, name, None).await;
    }
    let mut wires = Vec::new();
    for (v5, name) in [(true, "T1"), (false, "T2"), (true, "T3"), (true, "T4")] {
        wires.push(Wire::connect(broker.plain(), v5, name, true).await.0);
    }
    let [one, two, idle, other] = &mut wires[..] else { panic!("four of them") };
    let begun = Instant::now();
    // Each within the limits of one.
    for id in 1..=6 {
        one.publish("q/T1", 1, id, &format!("T1 {id}")).await;
        two.publish("q/T2", 1, id, &format!("T2 {id}")).await;
    }
    // Who does not publish is not held, and for another agent all this is nothing.
    idle.ping().await;
    for id in 1..=5 {
        other.publish("q/T4", 1, id, &format!("T4 {id}")).await;
        assert_eq!(other.receive().await.map(|(first, body)| (first, body[1])), Some((0x40, id)));
    }
    let at_once = broker.taken.texts().iter().filter(|text| !text.starts_with("T4")).count();
    assert!(at_once < 12, "not all of the first agent's are read by then");
    // When it publishes, it waits behind the others.
    idle.publish("q/T3", 1, 1, "T3 1").await;
    assert_eq!(idle.receive().await.map(|(first, body)| (first, body[1])), Some((0x40, 1)));
    idle.send(&[0xC0, 0]).await;
    idle.silence().await;
    for id in 1..=6 {
        for wire in [&mut *one, &mut *two] {
            let (first, body) = wire.receive().await.expect("a PUBACK");
            assert_eq!((first, &body[..2]), (0x40, &[0, id][..]));
        }
    }
    assert_eq!(idle.receive().await, Some((0xD0, vec![])), "a PINGRESP, when it was paid for");
    // Of thirteen five are there at once, and one follows each half of a second; nobody waits for what comes after his last.
    assert!(begun.elapsed() > Duration::from_millis(2800), "{:?}", begun.elapsed());
    let texts = broker.taken.texts();
    for name in ["T1", "T2"] {
        let his: Vec<_> = texts.iter().filter(|text| text.starts_with(name)).cloned().collect();
        assert_eq!(his, (1..=6).map(|id| format!("{name} {id}")).collect::<Vec<_>>(), "all, in order");
    }
    let report = broker.sessions.bounds_report();
    assert!(report.held_agents >= 7 && report.held == 0, "{report:?}");
}

/// A client's window bounds what it has under way; all windows together are more than there is memory for, when the database is slow.
#[tokio::test]
async fn publishers_whose_messages_wait_to_be_stored_are_left_unread_and_nobody_else() {
    let database = Database::new();
    let broker = tuned(&database, |tuned| (tuned.open.anonymous, tuned.open.waiting_max) = (true, 4)).await;
    let (mut away, _) = Wire::connect(broker.plain(), true, "away", false).await;
    assert_eq!(away.subscribe("a", 1).await, 1);
    away.cut();
    broker.connected(0).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    let (mut other, _) = Wire::connect(broker.plain(), true, "other", true).await;
    let slow = Holding::new(&database, "lock table wakala.message in access exclusive mode");
    for id in 1..=8 {
        publisher.publish("a", 1, id, "text").await;
    }
    publisher.send(&[0xC0, 0]).await;
    publisher.silence().await;
    other.ping().await;
    other.publish("b", 1, 1, "nobody subscribes").await;
    assert_eq!(other.receive().await.map(|(first, _)| first), Some(0x40));
    drop(slow);
    let mut heard = Vec::new();
    for _ in 0..9 {
        heard.push(publisher.receive().await.map(|(first, body)| (first, body.get(1).copied())));
    }
    heard.sort_unstable();
    let mut expected: Vec<_> = (1..=8).map(|id| Some((0x40, Some(id)))).collect();
    expected.push(Some((0xD0, None)));
    assert_eq!(heard, expected);
    assert_eq!(database.rows("select count(*) from wakala.message where client_id = 'away'"), "8");
}
