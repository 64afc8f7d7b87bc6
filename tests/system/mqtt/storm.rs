//! Many CONNECTs at once: in batches, the most urgent first, and nobody's lock holds the others up.

use std::cell::Cell;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use wakala::conservation::Fate;
use wakala::id::{ClientId, Epoch};
use wakala_node::listener::{self, Tls};
use wakala_node::sessions::admission;
use wakala_node::store::Error;
use wakala_node::store::openings::{Opened, Opening, WhenLocked};
use wakala_system_tests::{Database, now};

use super::certificates::Papers;
use super::wire::{Wire, connect};
use super::{Broker, anywhere, queue_receipt, tell, until};
use crate::locks::Holding;

async fn open_broker(database: &Database, tls: Option<Tls>) -> Broker {
    // Guests from one address.
    let bounds = listener::bounds::Options { address_connects_burst: 0, ..Default::default() };
    let options = listener::Options { bounds, tls, ..anywhere() };
    Broker::made(database.store().await, options, |deps| deps.open.anonymous = true).await
}

async fn strict_broker(database: &Database, admission: admission::Options) -> Broker {
    Broker::made(database.store().await, anywhere(), |deps| deps.options.admission = admission).await
}

/// Holds whatever opens a session, until it is dropped: sessions that go on read what they subscribe to.
fn held(database: &Database) -> Holding {
    Holding::new(database, "lock table wakala.subscription in access exclusive mode")
}

/// Waits until so many calls of the node wait for a lock.
async fn waits(database: &Database, count: &str) {
    let text = "select count(*) from pg_stat_activity where application_name = 'wakala' and wait_event_type = 'Lock' \
                and datname = current_database()";
    until(database, text, count).await;
}

async fn waiting(broker: &Broker, count: usize) {
    for _ in 0..200 {
        if broker.sessions.admitted().waiting == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {count} wait: {:?}", broker.sessions.admitted());
}

/// Other brokers' listeners hung, closed connections or answered after minutes when their clients came back together.
#[tokio::test]
async fn pain_09_sessions_that_are_cut_at_once_all_come_back_and_hold_nobody_up() {
    let database = Database::new();
    let broker = open_broker(&database, None).await;
    let at = broker.plain();
    storms(&database, &broker, 500, async |v5| Wire::open(at, v5).await).await;
}

/// emqx #4227: with certificates on both sides, whose handshakes are what a storm costs most.
#[tokio::test]
async fn pain_09_with_certificates_all_come_back_too() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = open_broker(&database, Some(papers.tls_with_list())).await;
    let (at, connector) = (broker.listening.tls.expect("an address"), papers.connector("terminal"));
    storms(&database, &broker, 150, async |v5| {
        let stream = TcpStream::connect(at).await.expect("it listens");
        let name = ServerName::try_from("localhost").expect("a name");
        Wire::over(connector.connect(name, stream).await.expect("a handshake"), v5)
    })
    .await;
}

/// So many sessions are cut at once and come back, twice, while another client talks to itself.
async fn storms(database: &Database, broker: &Broker, many: usize, open: impl AsyncFn(bool) -> Wire) {
    let come = async |expected: [u8; 2]| {
        let all = (0..many).map(|n| {
            let open = &open;
            async move {
                let mut wire = open(n % 2 == 0).await;
                assert_eq!(wire.introduce(&format!("S{n}"), false).await, expected, "S{n}");
                wire
            }
        });
        join_all(all).await
    };
    let mut wires = come([0, 0]).await;
    for (n, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.subscribe(&format!("x/{n}"), 1).await, 1);
    }
    let (mut other, _) = Wire::connect(broker.plain(), false, "other", false).await;
    assert_eq!(other.subscribe("other", 1).await, 1);
    for storm in 1..=2 {
        wires.into_iter().for_each(Wire::cut);
        let (mut heard, mut meanwhile, back) = (0, 0, Cell::new(false));
        // As long as the storm lasts, and each of its messages comes back to it.
        let talk = async {
            while !back.get() || heard < 20 {
                other.publish("other", 1, 7, "in the middle").await;
                let (mut acked, mut delivered) = (false, false);
                while !(acked && delivered) {
                    let (first, body) = other.receive().await.expect("a packet");
                    acked |= first == 0x40;
                    if first & 0xF0 == 0x30 {
                        delivered = true;
                        other.acknowledge(u16::from_be_bytes([body[7], body[8]])).await;
                    }
                }
                heard += 1;
                meanwhile += u32::from(!back.get());
            }
        };
        let coming = async {
            let wires = come([1, 0]).await;
            back.set(true);
            wires
        };
        (wires, ()) = tokio::join!(coming, talk);
        assert!(meanwhile >= 2, "it was held up: {meanwhile} of its messages came back during the storm");
        broker.connected(many + 1).await;
        for (n, wire) in wires.iter_mut().enumerate().step_by(50) {
            other.publish(&format!("x/{n}"), 1, 99, &format!("storm {storm}")).await;
            assert_eq!(other.receive().await.map(|(first, _)| first), Some(0x40));
            let (_, id, text) = wire.delivery().await;
            assert_eq!(text, format!("storm {storm}"));
            wire.acknowledge(id).await;
        }
    }
    assert_eq!(database.rows("select count(*) from wakala.session where connected"), (many + 1).to_string());
}

#[tokio::test]
async fn who_waits_for_a_receipt_comes_first_then_who_has_messages() {
    let database = Database::new();
    let broker = strict_broker(&database, admission::Options { batch_max: 1, ..admission::Options::default() }).await;
    for n in 0..8 {
        broker.enrol(&format!("T{n}")).await;
        Wire::connect(broker.plain(), true, &format!("T{n}"), false).await.0.leave().await;
    }
    until(&database, "select count(*) from wakala.session where connected", "0").await;
    queue_receipt(&database, "T6", "a");
    tell(&broker.store, "T5", 1, "b").await;
    let _ = database.rows(
        "insert into wakala.transaction (id, partition, terminal, agent, core, key, fingerprint, kind, amount, currency, \
           card_token, card_masked, card_sealed, card_expiry, state, asked_at, reversals, updated_at, due) \
         values (gen_random_uuid(), 0, 'T7', 'A1', 'C1', '0123456789abcdef', '0123456789abcdef0123456789abcdef', \
           'WITHDRAWAL', 1, 'TZS', '', '', '', 2601, 'ACCEPTED', now(), 0, now(), now())",
    );
    let holding = held(&database);
    let mut coming = JoinSet::new();
    for n in 0..8 {
        let at = broker.plain();
        coming.spawn(async move { Wire::connect(at, true, &format!("T{n}"), false).await });
        // The first is in the database's hands; the others gather.
        if n == 0 {
            waits(&database, "1").await;
        } else {
            waiting(&broker, n).await;
        }
    }
    drop(holding);
    // Kept: the end of a connection writes the row too.
    let let_in = coming.join_all().await;
    assert!(let_in.iter().all(|(_, connack)| *connack == [1, 0]));
    let order = database.rows("select string_agg(client_id, ' ' order by xmin::text::bigint) from wakala.session");
    assert_eq!(order, "T0 T6 T7 T5 T1 T2 T3 T4");
}

#[tokio::test]
async fn who_finds_no_room_or_has_waited_for_too_long_is_told_to_come_again() {
    let database = Database::new();
    let admission = admission::Options {
        batch_max: 1,
        waiting_max: 1,
        wait_max: Duration::from_secs(1),
        come_again_min: Duration::from_secs(7),
        come_again_max: Duration::from_secs(7),
    };
    let broker = strict_broker(&database, admission).await;
    for n in 0..4 {
        broker.enrol(&format!("T{n}")).await;
    }
    let holding = held(&database);
    let mut wires = Vec::new();
    for n in 0..4 {
        let mut wire = Wire::open(broker.plain(), n % 2 == 0).await;
        wire.say_hello(&format!("T{n}"), false).await;
        match n {
            0 => waits(&database, "1").await,
            1 => waiting(&broker, 1).await,
            // No room.
            2 => {
                let (first, body) = wire.receive().await.expect("a CONNACK");
                assert_eq!((first, body[1]), (0x20, 0x89), "server busy");
                let said = String::from_utf8_lossy(&body).into_owned();
                assert!(said.contains("busy; come again in 7 s") && said.contains("retry-after\0\x017"), "{said}");
                assert_eq!(wire.receive().await, None);
            }
            _ => {
                assert_eq!(wire.receive().await, Some((0x20, vec![0, 3])), "server unavailable");
                assert_eq!(wire.receive().await, None);
            }
        }
        wires.push(wire);
    }
    // The one that waits has waited for too long, and the database is still held.
    assert_eq!(wires[1].receive().await, Some((0x20, vec![0, 3])));
    assert_eq!(database.rows("select epoch from wakala.session where client_id = 'T1'"), "0", "and was not opened");
    drop(holding);
    assert_eq!(wires[0].receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
    let admitted = broker.sessions.admitted();
    assert_eq!((admitted.opened, admitted.busy, admitted.waiting), (1, 3, 0), "{admitted:?}");
}

#[tokio::test]
async fn who_is_gone_before_its_turn_is_not_let_in() {
    let database = Database::new();
    let broker = strict_broker(&database, admission::Options { batch_max: 1, ..admission::Options::default() }).await;
    for n in 0..3 {
        broker.enrol(&format!("T{n}")).await;
    }
    let holding = held(&database);
    let mut wires = Vec::new();
    for n in 0..3 {
        let mut wire = Wire::open(broker.plain(), true).await;
        wire.say_hello(&format!("T{n}"), false).await;
        if n == 0 {
            waits(&database, "1").await
        } else {
            waiting(&broker, n).await
        }
        wires.push(wire);
    }
    wires.remove(1).cut();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(holding);
    for wire in &mut wires {
        assert_eq!(wire.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
    }
    assert_eq!(database.rows("select client_id from wakala.session where epoch = 0"), "T1");
}

#[tokio::test]
async fn a_session_that_somebody_has_locked_holds_nobody_else_up() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    for name in ["T1", "T2"] {
        broker.enrol(name).await;
    }
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'T1' for update");
    let mut locked = Wire::open(broker.plain(), true).await;
    locked.say_hello("T1", false).await;
    waits(&database, "1").await;
    for _ in 0..3 {
        let (_wire, connack) = Wire::connect(broker.plain(), false, "T2", true).await;
        assert_eq!(connack, [0, 0]);
    }
    drop(holding);
    assert_eq!(locked.receive().await.map(|(first, body)| (first, body[1])), Some((0x20, 0)));
}

fn opening(client: &str, expiry_s: u32) -> Opening {
    Opening {
        client: ClientId::new(client).expect("short"),
        guest: true,
        node: "n1".to_owned(),
        above: Epoch(0),
        will: None,
        clean_start: false,
        expiry_s,
        connection: Default::default(),
        at: now(),
    }
}

#[tokio::test]
async fn of_two_connects_of_one_client_in_a_batch_the_later_fences_the_earlier() {
    let database = Database::new();
    let store = database.store().await;
    let batch = vec![opening("b", 60), opening("a", 60), opening("b", 60), opening("b", 0)];
    let opened = store.open_sessions(batch, WhenLocked::PassOver).await.expect("opened");
    let epochs: Vec<(i64, bool)> = opened
        .iter()
        .map(|opened| match opened {
            Opened::Session(epoch, loaded) => (epoch.0, loaded.present),
            other => panic!("{other:?}"),
        })
        .collect();
    let [(first, false), (_, false), (second, true), (third, true)] = epochs[..] else { panic!("{epochs:?}") };
    assert!(first < second && second < third, "{epochs:?}");
    assert_eq!(database.rows("select epoch, expiry_s from wakala.session where client_id = 'b'"), format!("{third}|0"));
    // Two nodes at once: whatever the order, epochs differ and the highest is the session's.
    let stores = [store, database.store().await];
    let mut at_once = JoinSet::new();
    for n in 0..20 {
        let store = stores[n % 2].clone();
        at_once.spawn(async move {
            let batch = ["a", "b", "c"].map(|client| opening(client, 60)).to_vec();
            store.open_sessions(batch, WhenLocked::Wait).await.expect("opened")
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    for (nth, opened) in at_once.join_all().await.into_iter().flatten().enumerate() {
        let Opened::Session(epoch, _) = opened else { panic!("{opened:?}") };
        assert!(seen.insert((nth % 3, epoch)), "an epoch twice");
    }
    for (nth, client) in ["a", "b", "c"].into_iter().enumerate() {
        let last = seen.iter().filter(|(of, _)| *of == nth).map(|(_, epoch)| epoch.0).max().expect("opened");
        let text = format!("select epoch from wakala.session where client_id = '{client}'");
        assert_eq!(database.rows(&text), last.to_string());
    }
}

#[tokio::test]
async fn sessions_that_are_made_together_are_as_their_connections_opened_them() {
    let database = Database::new();
    let store = database.store().await;
    let _ = store.open_session(opening("b", 60)).await.expect("opened");
    let batch = vec![opening("a", 60), opening("b", 60), opening("c", 90)];
    let opened = store.open_sessions(batch, WhenLocked::PassOver).await.expect("opened");
    assert!(opened.iter().all(|opened| matches!(opened, Opened::Session(..))), "{opened:?}");
    let rows = |text: &str| database.rows(text).lines().collect::<Vec<_>>().join(" ");
    let text = "select client_id, node, connected, expiry_s, sent_seq is null, connection is not null from wakala.session \
                order by client_id";
    assert_eq!(rows(text), "a|n1|t|60|t|t b|n1|t|60|t|t c|n1|t|90|t|t");
    let told = "select client_id, string_agg(case when p.online then 'on' else 'off' end, ',' order by p.seq), \
                max(p.epoch) = max(s.epoch) from wakala.presence p join wakala.session s using (client_id) group by 1 order by 1";
    assert_eq!(rows(told), "a|on|t b|on,off,on|t c|on|t");
}

#[tokio::test]
async fn one_whose_session_cannot_be_opened_takes_no_one_along() {
    let database = Database::new();
    let store = database.store().await;
    let unknown = Opening { guest: false, ..opening("nobody", 60) };
    let opened = store.open_sessions(vec![unknown, opening("a", 60)], WhenLocked::PassOver).await.expect("opened");
    assert!(matches!(opened[..], [Opened::Unknown, Opened::Session(..)]), "{opened:?}");
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'a' for update");
    let opened = store.open_sessions(vec![opening("a", 60), opening("b", 60)], WhenLocked::PassOver).await;
    assert!(matches!(opened.expect("opened")[..], [Opened::Locked, Opened::Session(..)]));
    drop(holding);
    // What the database refuses: it and whoever shares its statement are tried again one by one, for nothing of them is stored.
    let refused = Opening { node: "a name with a \0".to_owned(), ..opening("c", 60) };
    let both = vec![refused, opening("d", 60), opening("b", 60)];
    let opened = store.open_sessions(both, WhenLocked::PassOver).await.expect("asked");
    assert!(opened.iter().all(|each| matches!(each, Opened::Failed(Error::Broken(_)))), "{opened:?}");
    assert_eq!(database.rows("select string_agg(client_id, ' ' order by client_id) from wakala.session"), "a b");
}

#[tokio::test]
async fn a_guest_whose_row_goes_with_its_earlier_session_just_then_gets_a_new_one() {
    let database = Database::new();
    let store = database.store().await;
    let _ = store.open_session(opening("a", 60)).await.expect("opened");
    let ending = || Holding::new(&database, "delete from wakala.session where client_id = 'a'");
    let holding = ending();
    let passed = store.open_sessions(vec![opening("a", 60)], WhenLocked::PassOver).await.expect("asked");
    assert!(matches!(passed[..], [Opened::Locked]), "{passed:?}");
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.open_session(opening("a", 60)).await }
    });
    waits(&database, "1").await;
    holding.commit();
    let (_, loaded) = waiting.await.expect("no panic").expect("opened");
    assert!(!loaded.present);
    assert_eq!(database.rows("select connected from wakala.session where client_id = 'a'"), "t");
}

/// [MQTT-3.1.2-4]: what was found for an earlier session, and is stored when that is over already, is not for the next one.
#[tokio::test]
async fn a_message_of_an_earlier_session_does_not_come_to_one_that_began_meanwhile() {
    let database = Database::new();
    let broker = open_broker(&database, None).await;
    for name in ["away", "back"] {
        let (mut wire, _) = Wire::connect(broker.plain(), true, name, false).await;
        assert_eq!(wire.subscribe(name, 1).await, 1);
        wire.leave().await;
    }
    broker.connected(0).await;
    let (mut publisher, _) = Wire::connect(broker.plain(), true, "publisher", true).await;
    let holding = Holding::new(&database, "select from wakala.session where client_id = 'away' for update");
    publisher.publish("away", 1, 1, "first").await;
    waits(&database, "1").await;
    publisher.publish("back", 1, 2, "for the earlier session").await;
    publisher.ping().await;
    let mut back = Wire::open(broker.plain(), true).await;
    let mut hello = connect(true, "back", "back", "", false, 60);
    // Clean Start; the session is kept all the same.
    hello[9] |= 0x02;
    back.send(&hello).await;
    assert_eq!(back.receive().await.expect("a CONNACK").1[..2], [0, 0], "no session is present");
    drop(holding);
    for id in [1, 2] {
        assert_eq!(publisher.receive().await.expect("a PUBACK").1[..2], [0, id]);
    }
    back.silence().await;
    assert_eq!(back.subscribe("back", 1).await, 1);
    publisher.publish("back", 1, 3, "for this one").await;
    assert_eq!(back.any_delivery().await.2, "for this one");
    let tally = broker.store.tally().await.expect("the database is there");
    assert_eq!((tally.ends.of(Fate::SessionOver), tally.balance()), (1, 0), "{tally:?}");
}
