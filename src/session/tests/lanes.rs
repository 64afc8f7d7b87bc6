//! Receipts and other messages in one queue: what goes out at which QoS, and what waits without being in the way.

use super::*;
use crate::mqtt::Properties;

fn told_at(seq: i64, qos: QoS, expires_at: Option<Time>, payload: &'static str) -> Delivery {
    let (topic, payload) = ("c/T1".into(), Bytes::from_static(payload.as_bytes()));
    let message =
        Arc::new(Message { topic, payload, qos, retain: false, expires_at, properties: Properties::default() });
    Delivery {
        seq,
        received: None,
        what: What::Message(Addressed { message, qos, retain: false, identifiers: vec![] }),
    }
}

fn message(seq: i64, payload: &'static str) -> Delivery {
    told_at(seq, QoS::AtLeastOnce, None, payload)
}

fn unkept(seq: i64, payload: &'static str) -> Delivery {
    told_at(seq, QoS::AtMostOnce, None, payload)
}

fn expiring(seq: i64, millis: i64) -> Delivery {
    told_at(seq, QoS::AtLeastOnce, Some(Time::from_millis(millis)), "brief")
}

fn messages(qos: QoS) -> Subscription {
    let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    Subscription { filter: "c/T1".into(), options, identifier: NonZeroU32::new(5) }
}

fn with(version: Version, subscriptions: Vec<Subscription>, sent_to: i64) -> Session {
    resumed(version, &asked(false), Loaded { present: true, subscriptions, sent_to, ..Loaded::default() }).0
}

fn fetched(deliveries: Vec<Delivery>, last: i64) -> Event {
    Event::Fetched { deliveries, last }
}

fn subscribe(session: &mut Session, filter: &'static str, qos: QoS) -> Vec<String> {
    let options = SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    let topic_filters = vec![(filter.into(), options)];
    let packet = Subscribe { packet_id: id(900), id: None, user_properties: vec![], topic_filters };
    assert_eq!(
        told(&handle(session, Event::Packet(Packet::Subscribe(packet)), 1)),
        [&format!("new {filter}"), "store +1 -0"]
    );
    told(&handle(session, Event::Stored, 1))
}

fn unsubscribe(session: &mut Session, filter: &'static str) -> Vec<String> {
    let packet = Unsubscribe { packet_id: id(901), user_properties: vec![], topic_filters: vec![filter.into()] };
    let made = told(&handle(session, Event::Packet(Packet::Unsubscribe(packet)), 1));
    assert_eq!(made, [&format!("left {filter}"), "store +0 -1"]);
    told(&handle(session, Event::Stored, 1))
}

#[test]
fn a_message_goes_out_at_the_lesser_qos_of_its_own_and_its_subscriptions() {
    for (granted, wanted) in [
        (
            QoS::AtMostOnce,
            ["publish c/T1 0 kept", "acked 1", "publish c/T1 0 not", "acked 2", "publish r/T1 3 dup r"].as_slice(),
        ),
        (QoS::AtLeastOnce, &["publish c/T1 1 dup kept", "publish c/T1 0 not", "acked 2", "publish r/T1 3 dup r"]),
    ] {
        for version in [Version::V3, Version::V5] {
            let mut session = with(version, vec![receipts(), messages(granted)], 3);
            let queue = vec![message(1, "kept"), unkept(2, "not"), receipt(3, "r")];
            let effects = handle(&mut session, fetched(queue, 3), 1);
            assert_eq!(told(&effects), wanted, "{granted:?}: nothing at QoS 0 has an identifier or DUP");
            let Effect::Publish(first, _) = &effects[0] else { panic!("{effects:?}") };
            assert_eq!((first.qos, first.retain), (granted, false));
            assert_eq!(first.subscription_ids, [NonZeroU32::new(5).expect("not zero")]);
        }
    }
}

#[test]
fn what_the_client_does_not_subscribe_to_is_not_read_and_so_in_nobodys_way() {
    let mut session = with(Version::V5, vec![receipts()], 0);
    assert_eq!(told(&handle(&mut session, fetched(vec![receipt(41, "r")], 41), 1)), ["publish r/T1 41 r"]);
    assert_eq!(subscribe(&mut session, "c/T1", QoS::AtLeastOnce), ["suback [01]", "fetch r41 c0"]);
    // More than a page waited: the next one goes on where the first ended, for either kind.
    let page: Vec<Delivery> = (1..=8).map(|seq| message(seq, "m")).collect();
    assert_eq!(told(&handle(&mut session, fetched(page, 50), 1)), ["publish c/T1 1 m", "publish c/T1 2 m"]);
    for seq in [1, 2, 3] {
        handle(&mut session, puback(seq), 1);
    }
    assert_eq!(told(&handle(&mut session, puback(4), 1)), ["acked 4", "publish c/T1 6 m"]);
    assert_eq!(told(&handle(&mut session, puback(5), 1)), ["acked 5", "publish c/T1 7 m", "fetch r41 c8"]);
    handle(&mut session, fetched(vec![message(9, "m"), receipt(42, "s")], 50), 1);
    for seq in [6, 7, 8, 9] {
        handle(&mut session, puback(seq), 1);
    }
    assert_eq!(told(&handle(&mut session, puback(41), 1)), ["acked 41"]);
    assert_eq!(told(&handle(&mut session, puback(42), 1)), ["acked 42"]);
}

#[test]
fn what_waited_for_its_subscription_goes_before_what_was_queued_later() {
    let mut session = with(Version::V5, vec![receipts()], 0);
    let queue = (11..=14).map(|seq| receipt(seq, "r")).collect();
    assert_eq!(handle(&mut session, fetched(queue, 14), 1).len(), 3, "the window is full");
    assert_eq!(subscribe(&mut session, "c/T1", QoS::AtLeastOnce), ["suback [01]", "fetch r14 c0"]);
    assert_eq!(told(&handle(&mut session, fetched(vec![message(10, "m")], 14), 1)), [""; 0]);
    assert_eq!(told(&handle(&mut session, puback(11), 1)), ["acked 11", "publish c/T1 10 m"]);
    assert_eq!(told(&handle(&mut session, puback(12), 1)), ["acked 12", "publish r/T1 14 r"]);
}

#[test]
fn what_was_not_sent_when_its_subscription_went_is_read_again_when_it_comes_back() {
    let mut session = with(Version::V5, vec![receipts(), messages(QoS::AtLeastOnce)], 0);
    let queue = vec![message(1, "a"), message(2, "b"), receipt(3, "r"), message(4, "d"), receipt(5, "s")];
    let effects = handle(&mut session, fetched(queue, 5), 1);
    assert_eq!(told(&effects), ["publish c/T1 1 a", "publish c/T1 2 b", "publish r/T1 3 r"]);
    assert_eq!(unsubscribe(&mut session, "c/T1"), ["unsuback [00]"]);
    // What is in flight stays so [MQTT-3.10.4-2]; what follows is the other kind's.
    assert_eq!(told(&handle(&mut session, puback(1), 1)), ["acked 1", "publish r/T1 5 s"]);
    assert_eq!(subscribe(&mut session, "c/T1", QoS::AtMostOnce), ["suback [00]", "fetch r5 c3"]);
    assert_eq!(told(&handle(&mut session, fetched(vec![message(4, "d")], 5), 1)), [""; 0], "the window is full");
    assert_eq!(told(&handle(&mut session, puback(2), 1)), ["acked 2", "publish c/T1 0 d", "acked 4"]);
}

#[test]
fn an_answer_from_before_a_change_of_subscriptions_is_not_believed() {
    let mut session = with(Version::V5, vec![receipts()], 0);
    assert_eq!(subscribe(&mut session, "c/T1", QoS::AtLeastOnce), ["suback [01]"], "the queue is being read");
    assert_eq!(told(&handle(&mut session, fetched(vec![receipt(2, "r")], 2), 1)), ["fetch r0 c0"]);
    let effects = handle(&mut session, fetched(vec![message(1, "m"), receipt(2, "r")], 2), 1);
    assert_eq!(told(&effects), ["publish c/T1 1 m", "publish r/T1 2 r"]);
}

#[test]
fn what_is_queued_while_the_queue_is_read_is_looked_for_again() {
    let mut session = with(Version::V5, vec![receipts()], 0);
    assert_eq!(told(&handle(&mut session, Event::Look, 1)), [""; 0]);
    assert_eq!(told(&handle(&mut session, fetched(vec![], 0), 1)), ["fetch 0"]);
    assert_eq!(told(&handle(&mut session, fetched(vec![receipt(1, "r")], 1), 1)), ["publish r/T1 1 r"]);
}

#[test]
fn a_hint_of_a_receipt_does_not_overtake_a_message() {
    let mut session = with(Version::V5, vec![receipts(), messages(QoS::AtLeastOnce)], 0);
    let hint = |seq| Event::Hint { seq, what: Some(What::Receipt(Bytes::from_static(b"r"))) };
    handle(&mut session, fetched(vec![], 0), 1);
    assert_eq!(told(&handle(&mut session, hint(1), 1)), ["publish r/T1 1 r"]);
    assert_eq!(told(&handle(&mut session, hint(3), 1)), ["fetch r1 c1"], "2 may be a message");
    let effects = handle(&mut session, fetched(vec![message(2, "m"), receipt(3, "r")], 3), 1);
    assert_eq!(told(&effects), ["publish c/T1 2 m", "publish r/T1 3 r"]);
}

#[test]
fn an_expired_message_is_not_sent_and_the_rest_of_the_time_of_another_is_told() {
    for (version, granted) in
        [(Version::V5, QoS::AtLeastOnce), (Version::V5, QoS::AtMostOnce), (Version::V3, QoS::AtLeastOnce)]
    {
        let mut session = with(version, vec![messages(granted)], 0);
        let queue =
            vec![expiring(1, 9_999), expiring(2, 10_000), expiring(3, 10_001), expiring(4, 70_000), message(5, "m")];
        let effects = handle(&mut session, fetched(queue, 5), 10);
        let sent: Vec<(&str, Option<u32>)> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Publish(publish, payload) => {
                    Some((std::str::from_utf8(payload).expect("text"), publish.expiry_s))
                }
                _ => None,
            })
            .collect();
        assert_eq!(sent, [("brief", Some(1)), ("brief", Some(60)), ("m", None)], "{version:?}");
    }
    // It may expire while the window is full.
    let mut session = with(Version::V5, vec![messages(QoS::AtLeastOnce)], 0);
    let queue = vec![message(1, "a"), message(2, "b"), message(3, "c"), expiring(4, 20_000), message(5, "e")];
    assert_eq!(handle(&mut session, fetched(queue, 5), 1).len(), 3);
    assert_eq!(told(&handle(&mut session, puback(1), 20)), ["acked 1", "expired 4", "publish c/T1 5 e"]);
}

#[test]
fn a_message_that_the_client_cannot_take_is_over_and_not_delivered() {
    let connect = Connect { max_packet_size: NonZeroU32::new(40), ..asked(false) };
    let loaded = Loaded { present: true, subscriptions: vec![messages(QoS::AtLeastOnce)], ..Loaded::default() };
    let (mut session, _) = resumed(Version::V5, &connect, loaded);
    let effects = handle(&mut session, fetched(vec![message(1, "much too large for this client, I fear")], 1), 1);
    assert_eq!(told(&effects), ["too large 1", "too_large 1"]);
}

#[test]
fn the_largest_payload_fills_a_packet() {
    let max = usize::try_from(payload_bytes_max(messages_topic(&client()), 100)).expect("small");
    let connect = Connect { max_packet_size: NonZeroU32::new(100), ..asked(false) };
    for (bytes, fits) in [(max, true), (max + 1, false)] {
        // The longest that an identifier can be on the wire.
        let longest = Subscription { identifier: NonZeroU32::new(268_435_455), ..messages(QoS::AtLeastOnce) };
        let loaded = Loaded { present: true, subscriptions: vec![longest], ..Loaded::default() };
        let (mut session, _) = resumed(Version::V5, &connect, loaded);
        let mut delivery = expiring(1, 60_000);
        if let What::Message(addressed) = &mut delivery.what {
            Arc::make_mut(&mut addressed.message).payload = Bytes::from(vec![b'x'; bytes]);
        }
        let effects = handle(&mut session, fetched(vec![delivery], 1), 1);
        assert_eq!(matches!(effects[0], Effect::Publish(..)), fits, "{bytes}");
    }
}
