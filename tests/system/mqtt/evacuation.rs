//! A node that is to be empty, or less full, sends its clients elsewhere.

use std::time::{Duration, Instant};

use wakala::session::Elsewhere;
use wakala_node::listener;
use wakala_node::sessions::evacuation::Evacuate;
use wakala_system_tests::Database;

use super::wire::Wire;
use super::{Broker, queue_receipt, until};

const ALL: Evacuate = Evacuate { per_second: 100, down_to: 0, wait_s: 1 };

fn another() -> Elsewhere {
    Elsewhere::new(&["mqtt-2:8883".to_owned()])
}

async fn connected(broker: &Broker, names: &[String]) -> Vec<Wire> {
    let mut wires = Vec::new();
    for name in names {
        broker.enrol(name).await;
        wires.push(Wire::connect(broker.plain(), true, name, false).await.0);
    }
    wires
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("T{n}")).collect()
}

/// How a connection ended: the reason code and what else DISCONNECT says.
async fn ended(wire: &mut Wire) -> (u8, String) {
    let (first, body) = wire.receive().await.expect("a DISCONNECT");
    assert_eq!(first, 0xE0, "{body:?}");
    (body[0], String::from_utf8_lossy(&body[1..]).into_owned())
}

#[tokio::test]
async fn all_go_and_nobody_comes_and_who_waits_for_a_receipt_goes_last() {
    let database = Database::new();
    let options = listener::Options { elsewhere: vec!["mqtt-2:8883".to_owned()], ..super::anywhere() };
    let broker = Broker::with(database.store().await, options).await;
    let mut wires = connected(&broker, &names(6)).await;
    // By name it would be the first. It does not subscribe, so its receipt stays.
    queue_receipt(&database, "T0", "outstanding");
    let began = Instant::now();
    broker.sessions.evacuate(ALL, another());
    for wire in &mut wires[1..] {
        let (reason, said) = ended(wire).await;
        assert!(reason == 0x9C && said.contains("mqtt-2:8883") && said.contains("elsewhere"), "{reason:x} {said}");
    }
    broker.connected(1).await;
    let mut late = Wire::open(broker.plain(), true).await;
    let [_, reason] = late.introduce("T1", false).await;
    assert_eq!(reason, 0x9C, "it was sent away, and is not let in again");
    assert_eq!(ended(&mut wires[0]).await.0, 0x9C);
    assert!(began.elapsed() >= Duration::from_secs(1), "its receipt was waited for");
    broker.connected(0).await;
    for _ in 0..100 {
        if broker.sessions.evacuation().is_some_and(|found| found.done) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = broker.sessions.evacuation().expect("until it is called off");
    assert_eq!((found.done, found.sent, found.waited_for), (true, 6, 0));
    until(&database, "select count(*) from wakala.session where connected or expiry_s = 0", "0").await;
    assert!(broker.sessions.stay() && !broker.sessions.stay());
    assert_eq!(Wire::connect(broker.plain(), true, "T1", false).await.1, [1, 0], "its session is kept");
}

#[tokio::test]
async fn so_many_go_in_a_second_and_so_many_stay() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    let wires = connected(&broker, &names(30)).await;
    let began = Instant::now();
    broker.sessions.evacuate(Evacuate { per_second: 10, down_to: 5, wait_s: 0 }, another());
    broker.connected(5).await;
    assert!(began.elapsed() >= Duration::from_millis(2000), "25 of them: {:?}", began.elapsed());
    for _ in 0..100 {
        if broker.sessions.evacuation().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(broker.sessions.evacuation(), None, "done, and the door is open");
    let gone =
        database.rows("select min(client_id) from wakala.session where not connected and ended_why like '%elsewhere'");
    assert_eq!(Wire::connect(broker.plain(), true, &gone, false).await.1, [1, 0]);
    drop(wires);
}

/// Who subscribes is written to before the publisher is answered; a session that ended in between had the publisher send it again.
#[tokio::test]
async fn who_is_sent_elsewhere_has_been_answered_for_what_others_have() {
    let database = Database::new();
    let broker = Broker::open(&database).await;
    // The last by name goes last.
    let (mut subscriber, _) = Wire::connect(broker.plain(), true, "subscriber", true).await;
    assert_eq!(subscriber.subscribe("t", 0).await, 0);
    let hears = tokio::spawn(async move {
        let mut heard = std::collections::BTreeSet::new();
        while let Some((0x30, body)) = subscriber.receive().await {
            heard.insert(String::from_utf8_lossy(&body[4..]).into_owned());
        }
        heard
    });
    let mut publish = Vec::new();
    for n in 0..60 {
        let (mut publisher, _) = Wire::connect(broker.plain(), true, &format!("p{n}"), true).await;
        publish.push(tokio::spawn(async move {
            for nth in 0.. {
                publisher.publish("t", 1, 1, &format!("p{n} {nth}")).await;
                if publisher.receive().await.is_none_or(|(first, _)| first != 0x40) {
                    return format!("p{n} {nth}");
                }
            }
            unreachable!("it goes on until it is ended")
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    broker.sessions.evacuate(Evacuate { per_second: 100_000, down_to: 0, wait_s: 1 }, another());
    let mut unanswered = Vec::new();
    for publish in publish {
        unanswered.push(publish.await.expect("no panic"));
    }
    let heard = hears.await.expect("no panic");
    assert!(!heard.is_empty());
    unanswered.retain(|text| heard.contains(text));
    assert!(unanswered.is_empty(), "{unanswered:?}");
}
