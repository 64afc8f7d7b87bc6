//! QoS 2, method A of section 4.3.3, in both directions; every half-done exchange goes on after a reconnect.

use ntex_mqtt::v5::codec::{PublishAck2, PublishAckReason};

use super::*;
use crate::mqtt::Properties;

fn publish_2(packet_id: u16, payload: &'static str) -> Event {
    let publish =
        Publish { qos: QoS::ExactlyOnce, packet_id: Some(id(packet_id)), topic: "t".into(), ..Publish::default() };
    Event::Publish(publish, Bytes::from_static(payload.as_bytes()))
}

fn pubrel(packet_id: u16) -> Event {
    Event::Packet(Packet::PublishRelease(PublishAck2 { packet_id: id(packet_id), ..PublishAck2::default() }))
}

fn pubcomp(packet_id: u16) -> Event {
    Event::Packet(Packet::PublishComplete(PublishAck2 { packet_id: id(packet_id), ..PublishAck2::default() }))
}

fn pubrec(packet_id: u16, reason_code: PublishAckReason) -> Event {
    Event::Packet(Packet::PublishReceived(PublishAck {
        packet_id: id(packet_id),
        reason_code,
        ..PublishAck::default()
    }))
}

fn row(seq: i64, received: Option<u32>) -> Delivery {
    let message = Message {
        topic: "t".into(),
        payload: Bytes::from(seq.to_string()),
        qos: QoS::ExactlyOnce,
        retain: false,
        expires_at: None,
        properties: Properties::default(),
    };
    let addressed =
        Addressed { message: Arc::new(message), qos: QoS::ExactlyOnce, retain: false, identifiers: Vec::new() };
    Delivery { seq, received, what: What::Message(addressed) }
}

/// A session of a general broker's client, kept or not, and what an earlier connection left.
fn session(clean: bool, received: &[u16], sent_to: i64) -> Session {
    let received = received.iter().map(|&number| id(number)).collect();
    let loaded = Loaded { present: !clean, received, sent_to, ..Loaded::default() };
    playing(open(), Version::V5, &asked(clean), loaded).0
}

fn steps(session: &mut Session, steps: Vec<(Event, &[&str])>) {
    for (event, wanted) in steps {
        let what = format!("{event:?}");
        assert_eq!(told(&handle(session, event, 1)), wanted, "{what}");
    }
}

#[test]
fn a_publish_is_taken_once_however_often_it_comes_and_completed_once_it_is_forgotten() {
    steps(
        &mut session(false, &[], 0),
        vec![
            (publish_2(7, "a"), &["route 0 t a remember 7"]),
            (Event::Durable { ticket: 0 }, &["pubrec 7 00"]),
            (publish_2(7, "a"), &["pubrec 7 00"]),
            (pubrel(7), &["forget 7"]),
            (pubrel(7), &[]),
            (Event::Forgotten { packet_id: id(7) }, &["pubcomp 7 00"]),
            (pubrel(7), &["pubcomp 7 92"]),
            (publish_2(7, "b"), &["route 2 t b remember 7"]),
        ],
    );
}

#[test]
fn a_session_that_ends_with_its_connection_remembers_without_the_database() {
    steps(
        &mut session(true, &[], 0),
        vec![
            (publish_2(7, "a"), &["route 0 t a"]),
            (Event::Durable { ticket: 0 }, &["pubrec 7 00"]),
            (publish_2(7, "a"), &["pubrec 7 00"]),
            (pubrel(7), &["pubcomp 7 00"]),
        ],
    );
}

#[test]
fn what_was_taken_before_the_connection_broke_is_not_taken_again() {
    steps(
        &mut session(false, &[7, 9], 0),
        vec![
            (publish_2(9, "i"), &["pubrec 9 00"]),
            (pubrel(7), &["forget 7"]),
            (Event::Forgotten { packet_id: id(7) }, &["pubcomp 7 00"]),
            (publish_2(7, "b"), &["route 1 t b remember 7"]),
        ],
    );
}

#[test]
fn identifiers_count_until_they_are_complete() {
    // The Receive Maximum is 4, and what an earlier connection left does not count (4.9), but is bounded.
    let mut five = session(false, &[1, 2], 0);
    for number in 3..=6 {
        handle(&mut five, publish_2(number, "x"), 1);
        handle(&mut five, Event::Durable { ticket: u32::from(number) - 3 }, 1);
    }
    handle(&mut five, pubrel(1), 1);
    handle(&mut five, Event::Forgotten { packet_id: id(1) }, 1);
    assert_eq!(told(&handle(&mut five, publish_2(7, "x"), 1)), ["disconnect 93", "close"]);
    let mut five = session(false, &[1, 2, 3, 4, 5, 6], 0);
    assert_eq!(told(&handle(&mut five, publish_2(7, "x"), 1)), ["disconnect 93", "close"]);
    let mut three = playing(open(), Version::V3, &asked(true), Loaded::default()).0;
    for number in 1..=6 {
        handle(&mut three, publish_2(number, "x"), 1);
        handle(&mut three, Event::Durable { ticket: u32::from(number) - 1 }, 1);
    }
    assert_eq!(told(&handle(&mut three, publish_2(7, "x"), 1)), ["close"]);
    for event in [publish(1, "x"), pubrel(2)] {
        let mut session = session(false, &[1], 0);
        handle(&mut session, publish_2(2, "y"), 1);
        assert_eq!(told(&handle(&mut session, event, 1)), ["disconnect 82", "close"], "in use, or not received yet");
    }
}

#[test]
fn what_is_sent_again_on_another_connection_counts_once_there() {
    let mut session = session(false, &[1], 0);
    for number in [1, 1, 2, 3, 4] {
        handle(&mut session, publish_2(number, "x"), 1);
    }
    assert_eq!(told(&handle(&mut session, publish_2(5, "x"), 1)), ["disconnect 93", "close"]);
}

#[test]
fn who_releases_has_its_pubrec_and_gets_no_other() {
    let (forgotten, mut session) = (Event::Forgotten { packet_id: id(1) }, session(false, &[1], 0));
    steps(
        &mut session,
        vec![
            (publish_2(2, "b"), &["route 0 t b remember 2"]),
            // Its answer waits for the one before it.
            (publish_2(1, "a"), &[]),
            (pubrel(1), &["forget 1"]),
            (forgotten, &["pubcomp 1 00"]),
            (publish_2(1, "c"), &["route 2 t c remember 1"]),
            (Event::Durable { ticket: 0 }, &["pubrec 2 00"]),
            (Event::Durable { ticket: 2 }, &["pubrec 1 00"]),
        ],
    );
}

/// A repetition, which [MQTT-4.3.3-6] forbids, or another message, which would be lost if it were taken for one.
#[test]
fn an_identifier_that_is_being_forgotten_is_in_use() {
    let mut session = session(false, &[1], 0);
    steps(&mut session, vec![(pubrel(1), &["forget 1"]), (publish_2(1, "b"), &["disconnect 82", "close"])]);
}

#[test]
fn a_delivery_is_released_once_its_receipt_is_stored_and_done_with_when_it_is_complete() {
    let mut session = session(false, &[], 0);
    steps(
        &mut session,
        vec![
            (
                Event::Fetched { deliveries: vec![row(1, None), row(2, None)], last: 2 },
                &["publish t 1 1", "publish t 2 2"],
            ),
            (pubrec(1, PublishAckReason::Success), &["received 1 as 0"]),
            (pubrec(1, PublishAckReason::Success), &[]),
            (Event::Kept { seq: 1 }, &["pubrel 1 00"]),
            (pubrec(1, PublishAckReason::Success), &["pubrel 1 00"]),
            (pubrec(2, PublishAckReason::QuotaExceeded), &["declined 2"]),
            (pubcomp(1), &["acked 1"]),
            (pubcomp(1), &[]),
            (pubrec(1, PublishAckReason::Success), &["pubrel 1 92"]),
        ],
    );
}

#[test]
fn deliveries_are_released_in_the_order_in_which_they_were_received() {
    let mut session = session(false, &[], 0);
    let _ = handle(&mut session, Event::Fetched { deliveries: [1, 2, 3].map(|n| row(n, None)).into(), last: 3 }, 1);
    steps(
        &mut session,
        vec![
            (pubrec(1, PublishAckReason::Success), &["received 1 as 0"]),
            (pubrec(3, PublishAckReason::Success), &["received 3 as 1"]),
            (pubrec(2, PublishAckReason::Success), &["received 2 as 2"]),
            (Event::Kept { seq: 2 }, &[]),
            (Event::Kept { seq: 3 }, &[]),
            (pubrec(3, PublishAckReason::Success), &[]),
            (Event::Kept { seq: 1 }, &["pubrel 1 00", "pubrel 3 00", "pubrel 2 00"]),
        ],
    );
}

/// While the database is away a PUBREC waits for it, and the client for its PUBREL.
#[test]
fn who_waits_for_a_pubrel_is_not_one_who_acknowledges_nothing() {
    let mut session = session(false, &[], 0);
    let wait = |session: &mut Session, seconds| {
        handle(session, Event::Packet(Packet::PingRequest), seconds);
        told(&handle(session, Event::Wake, seconds))
    };
    handle(&mut session, Event::Fetched { deliveries: vec![row(1, None)], last: 1 }, 1);
    handle(&mut session, pubrec(1, PublishAckReason::Success), 2);
    assert_eq!(wait(&mut session, 63), [""; 0]);
    assert_eq!(told(&handle(&mut session, Event::Kept { seq: 1 }, 64)), ["pubrel 1 00"]);
    assert_eq!(wait(&mut session, 123), [""; 0]);
    assert_eq!(wait(&mut session, 124), ["disconnect 80", "close"], "its PUBCOMP does not come");
}

#[test]
fn identifiers_are_complete_as_soon_as_each_is_forgotten() {
    let mut session = session(false, &[1, 2], 0);
    steps(
        &mut session,
        vec![
            (pubrel(1), &["forget 1"]),
            (pubrel(2), &["forget 2"]),
            (Event::Forgotten { packet_id: id(2) }, &["pubcomp 2 00"]),
            (Event::Forgotten { packet_id: id(1) }, &["pubcomp 1 00"]),
        ],
    );
}

#[test]
fn what_was_released_is_released_again_and_what_was_not_is_sent_again() {
    let mut session = session(false, &[], 2);
    steps(
        &mut session,
        vec![
            (
                Event::Fetched { deliveries: vec![row(1, Some(0)), row(2, None), row(3, None)], last: 3 },
                &["pubrel 1 00", "publish t 2 dup 2", "publish t 3 3"],
            ),
            (pubcomp(1), &["acked 1"]),
        ],
    );
    assert_eq!(session.remains().sent_to, 3);
}

/// [MQTT-4.6.0-4] of an earlier connection's PUBRECs, and of this one's behind them: the window has room for three.
#[test]
fn what_was_received_on_an_earlier_connection_is_released_in_that_order_and_first() {
    let mut session = session(false, &[], 4);
    let rows = vec![row(1, Some(6)), row(2, None), row(3, Some(4)), row(4, Some(5)), row(5, Some(9))];
    steps(
        &mut session,
        vec![
            (Event::Fetched { deliveries: rows, last: 5 }, &["pubrel 3 00", "pubrel 4 00", "pubrel 1 00"]),
            (pubcomp(4), &["acked 4", "pubrel 5 00"]),
            (pubcomp(3), &["acked 3", "publish t 2 dup 2"]),
            (pubrec(2, PublishAckReason::Success), &["received 2 as 10"]),
        ],
    );
}

/// What was acknowledged in between, and not stored before the node died, may fill pages.
#[test]
fn what_is_owed_is_read_first_wherever_it_is_and_a_page_at_a_time() {
    let asks = |effects: &[Effect]| {
        let asked = effects.iter().find_map(|effect| match effect {
            Effect::Fetch { beyond, .. } => Some((beyond.messages, beyond.owed)),
            _ => None,
        });
        asked.unwrap_or_else(|| panic!("it reads on: {:?}", told(effects)))
    };
    let loaded = Loaded { present: true, sent_to: 100, ..Loaded::default() };
    let (mut session, effects) = playing(open(), Version::V5, &asked(false), loaded);
    assert_eq!(asks(&effects), (Some(0), Some(0)));
    let owed = [90, 2, 70, 71, 72, 73, 74, 75].into_iter().zip(4..).map(|(seq, nth)| row(seq, Some(nth)));
    let effects = handle(&mut session, Event::Fetched { deliveries: owed.collect(), last: 100 }, 1);
    assert_eq!(told(&effects), ["pubrel 90 00", "pubrel 2 00", "pubrel 70 00"], "the window has room for three");
    for (seq, next) in [(90, 71), (2, 72), (70, 73)] {
        steps(&mut session, vec![(pubcomp(seq), &[&format!("acked {seq}"), &format!("pubrel {next} 00")])]);
    }
    // Half of what there is room for.
    assert_eq!(asks(&handle(&mut session, pubcomp(71), 1)), (Some(0), Some(12)), "there may be more of them");
    let rest = [row(3, Some(12))].into_iter().chain((4..=10).map(|seq| row(seq, None))).collect();
    handle(&mut session, Event::Fetched { deliveries: rest, last: 100 }, 1);
    for (seq, next) in [(72, "pubrel 75 00"), (73, "pubrel 3 00"), (74, "publish t 4 dup 4")] {
        steps(&mut session, vec![(pubcomp(seq), &[&format!("acked {seq}"), next])]);
    }
    steps(&mut session, vec![(pubrec(4, PublishAckReason::Success), &["received 4 as 13"])]);
    handle(&mut session, pubcomp(75), 1);
    handle(&mut session, pubcomp(3), 1);
    for seq in [5, 6] {
        handle(&mut session, pubrec(seq, PublishAckReason::QuotaExceeded), 1);
    }
    let effects = handle(&mut session, pubrec(7, PublishAckReason::QuotaExceeded), 1);
    assert_eq!(asks(&effects), (Some(10), None), "no further than the page went");
}

/// To end a subscription does not end what was begun for it (3.10.4).
#[test]
fn what_is_owed_is_released_also_without_the_subscription() {
    let resumed = |subscriptions| {
        resumed(Version::V5, &asked(false), Loaded { present: true, subscriptions, sent_to: 9, ..Loaded::default() })
    };
    let owed = || (1..=4).map(|seq| row(seq, Some(2))).collect();
    let in_the_window = ["pubrel 1 00", "pubrel 2 00", "pubrel 3 00"];

    let (mut session, effects) = resumed(vec![]);
    let beyond = Beyond { receipts: None, messages: None, owed: Some(0) };
    assert!(
        matches!(&effects[..], [_, Effect::Fetch { beyond: asked, .. }] if *asked == beyond),
        "{:?}",
        told(&effects)
    );
    let effects = handle(&mut session, Event::Fetched { deliveries: owed(), last: 9 }, 1);
    assert_eq!(told(&effects), in_the_window);

    let options = SubscriptionOptions { qos: QoS::ExactlyOnce, ..SubscriptionOptions::default() };
    let messages = Subscription { filter: "c/T1".into(), options, identifier: None };
    let (mut session, _) = resumed(vec![messages]);
    let effects = handle(&mut session, Event::Fetched { deliveries: owed(), last: 9 }, 1);
    assert_eq!(told(&effects), in_the_window);
    let gone = Unsubscribe { packet_id: id(2), user_properties: vec![], topic_filters: vec!["c/T1".into()] };
    handle(&mut session, Event::Packet(Packet::Unsubscribe(gone)), 1);
    handle(&mut session, Event::Stored, 1);
    steps(&mut session, vec![(pubcomp(1), &["acked 1", "pubrel 4 00"])]);
}

#[test]
fn acknowledgements_of_the_other_kind_are_refused() {
    let rows = || Event::Fetched { deliveries: vec![row(1, None)], last: 1 };
    for event in [puback(1), pubcomp(1)] {
        let mut session = session(false, &[], 0);
        handle(&mut session, rows(), 1);
        assert_eq!(told(&handle(&mut session, event, 1)), ["disconnect 82", "close"]);
    }
    let mut terminal = going_on(Version::V5, 0);
    handle(&mut terminal, Event::Fetched { deliveries: vec![receipt(1, "r")], last: 1 }, 1);
    assert_eq!(told(&handle(&mut terminal, pubrec(1, PublishAckReason::Success), 1)), ["disconnect 82", "close"]);
}

#[test]
fn a_terminal_may_ask_at_qos_2_too() {
    let Event::Publish(publish, payload) = publish_2(5, "request") else { unreachable!() };
    let asked = Event::Publish(Publish { topic: "q/T1".into(), ..publish }, payload);
    steps(
        &mut going_on(Version::V5, 0),
        vec![(asked, &["admit 0 request remember 5"]), (Event::Durable { ticket: 0 }, &["pubrec 5 00"])],
    );
}
