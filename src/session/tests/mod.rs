//! Events in, effects out.

mod elsewhere;
mod exactly_once;
mod frames;
mod lanes;
mod model;
mod open;
mod pace;
mod pair;
mod room;

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ntex_mqtt::v5::codec::{
    Connect, ConnectAckReason, LastWill, PublishAck, Subscribe, SubscribeAckReason, SubscriptionOptions, Unsubscribe,
};

use super::pace::Pace;
use super::*;

fn limits() -> Limits {
    let count = |number| NonZeroU16::new(number).expect("not zero");
    Limits {
        keep_alive_max: Duration::from_secs(600),
        keep_alive_unannounced_max: Duration::from_secs(1200),
        session_expiry_max: Duration::from_secs(86_400),
        packet_bytes_max: 4096,
        inbound_max: count(4),
        unreleased_max: count(6),
        outbound_max: count(3),
        terminal_outbound_max: count(3),
        admitting_max: count(2),
        direct_max: count(4),
        direct_bytes_max: NonZeroU32::new(8192).expect("not zero"),
        subscriptions_max: count(3),
        topic_alias_max: 2,
        page: count(8),
        ack_within: Duration::from_secs(60),
        pace: Pace::default(),
    }
}

fn asked(clean_start: bool) -> Connect {
    Connect {
        clean_start,
        keep_alive: 60,
        session_expiry_interval_secs: if clean_start { 0 } else { 3600 },
        auth_method: None,
        auth_data: None,
        request_problem_info: true,
        request_response_info: false,
        receive_max: None,
        topic_alias_max: 0,
        user_properties: Vec::new(),
        max_packet_size: None,
        last_will: None,
        client_id: "T1".into(),
        username: None,
        password: None,
    }
}

fn client() -> ClientId {
    ClientId::new("T1").expect("short")
}

fn open() -> Rights {
    Rights::Open(Arc::new(vec![ByteString::from_static("closed")]))
}

fn at(seconds: i64) -> Time {
    Time::from_millis(seconds * 1000)
}

fn id(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("not zero")
}

fn receipts() -> Subscription {
    let options = SubscriptionOptions { qos: QoS::AtLeastOnce, ..SubscriptionOptions::default() };
    Subscription { filter: "r/T1".into(), options, identifier: None }
}

fn resumed(version: Version, connect: &Connect, loaded: Loaded) -> (Session, Vec<Effect>) {
    playing(Rights::Terminal, version, connect, loaded)
}

fn playing(rights: Rights, version: Version, connect: &Connect, loaded: Loaded) -> (Session, Vec<Effect>) {
    let terms = Terms::of(connect, version, &limits(), &rights).expect("granted");
    let mut session = Session::load(client(), rights, terms, &Arc::new(limits()), loaded, at(0));
    let mut effects = Vec::new();
    session.resume(&mut effects);
    (session, effects)
}

/// A session that goes on, with its subscription to receipts.
fn going_on(version: Version, sent_to: i64) -> Session {
    let loaded = Loaded { present: true, subscriptions: vec![receipts()], sent_to, ..Loaded::default() };
    resumed(version, &asked(false), loaded).0
}

fn handle(session: &mut Session, event: Event, seconds: i64) -> Vec<Effect> {
    let mut effects = Vec::new();
    session.handle(event, at(seconds), &mut effects);
    effects
}

fn publish(packet_id: u16, payload: &'static str) -> Event {
    let publish = Publish {
        qos: if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce },
        packet_id: NonZeroU16::new(packet_id),
        topic: "q/T1".into(),
        ..Publish::default()
    };
    Event::Publish(publish, Bytes::from_static(payload.as_bytes()))
}

fn puback(packet_id: u16) -> Event {
    Event::Packet(Packet::PublishAck(PublishAck { packet_id: id(packet_id), ..PublishAck::default() }))
}

fn receipt(seq: i64, payload: &'static str) -> Delivery {
    Delivery { seq, received: None, what: What::Receipt(Bytes::from_static(payload.as_bytes())) }
}

/// SUBSCRIBE with an identifier.
fn asking(filters: &[(&'static str, QoS)]) -> Event {
    let options = |qos| SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    let topic_filters = filters.iter().map(|&(filter, qos)| (filter.into(), options(qos))).collect();
    let subscribe = Subscribe { packet_id: id(1), id: NonZeroU32::new(77), user_properties: vec![], topic_filters };
    Event::Packet(Packet::Subscribe(subscribe))
}

/// Effects as short texts.
fn told(effects: &[Effect]) -> Vec<String> {
    effects.iter().map(tell).collect()
}

fn tell(effect: &Effect) -> String {
    match effect {
        Effect::Send(Packet::PublishAck(ack)) => format!("puback {} {:02x}", ack.packet_id, u8::from(ack.reason_code)),
        Effect::Send(Packet::PublishReceived(ack)) => {
            format!("pubrec {} {:02x}", ack.packet_id, u8::from(ack.reason_code))
        }
        Effect::Send(Packet::PublishRelease(ack)) => {
            format!("pubrel {} {:02x}", ack.packet_id, u8::from(ack.reason_code))
        }
        Effect::Send(Packet::PublishComplete(ack)) => {
            format!("pubcomp {} {:02x}", ack.packet_id, u8::from(ack.reason_code))
        }
        Effect::Send(Packet::Disconnect(bye)) => format!("disconnect {:02x}", u8::from(bye.reason_code)),
        Effect::Send(Packet::SubscribeAck(ack)) => {
            format!("suback {:02x?}", ack.status.iter().map(|&code| u8::from(code)).collect::<Vec<_>>())
        }
        Effect::Send(Packet::UnsubscribeAck(ack)) => {
            format!("unsuback {:02x?}", ack.status.iter().map(|&code| u8::from(code)).collect::<Vec<_>>())
        }
        Effect::Send(Packet::ConnectAck(ack)) => format!("connack present={}", ack.session_present),
        Effect::Send(packet) => format!("{packet:?}"),
        Effect::Publish(publish, payload) => {
            let dup = if publish.dup { " dup" } else { "" };
            let number = publish.packet_id.map_or(0, NonZeroU16::get);
            format!("publish {} {number}{dup} {}", publish.topic, String::from_utf8_lossy(payload))
        }
        Effect::Admit { ticket, payload, remember } => {
            format!("admit {ticket} {}{}", String::from_utf8_lossy(payload), remembering(*remember))
        }
        Effect::Route { ticket, message, remember } => {
            let payload = String::from_utf8_lossy(&message.payload);
            format!("route {ticket} {} {payload}{}", message.topic, remembering(*remember))
        }
        Effect::Forget { packet_id } => format!("forget {packet_id}"),
        Effect::Received { seq, nth } => format!("received {seq} as {nth}"),
        Effect::Subscribed { subscription, existed } => {
            format!("{} {}", if *existed { "again" } else { "new" }, subscription.filter)
        }
        Effect::Unsubscribed { filter } => format!("left {filter}"),
        Effect::Dropped => "dropped".to_owned(),
        Effect::Store(Change { begun, ended }) => format!("store +{} -{}", begun.len(), ended.len()),
        Effect::Acked { seq, fate: Fate::Delivered, .. } => format!("acked {seq}"),
        Effect::Acked { seq, fate, .. } => format!("{} {seq}", fate.word()),
        Effect::Fetch { beyond, .. } => match (beyond.receipts, beyond.messages) {
            (Some(receipts), None) => format!("fetch {receipts}"),
            (receipts, messages) => {
                format!("fetch r{} c{}", receipts.unwrap_or(-1), messages.unwrap_or(-1))
            }
        },
        Effect::TooLarge { seq } => format!("too large {}", seq.unwrap_or(0)),
        Effect::Close(_) => "close".to_owned(),
    }
}

fn remembering(packet_id: Option<NonZeroU16>) -> String {
    packet_id.map(|packet_id| format!(" remember {packet_id}")).unwrap_or_default()
}

#[test]
fn acknowledgements_follow_in_the_order_of_arrival() {
    let mut session = going_on(Version::V5, 0);
    assert_eq!(told(&handle(&mut session, publish(7, "a"), 1)), ["admit 0 a"]);
    assert_eq!(told(&handle(&mut session, publish(3, "b"), 1)), ["admit 1 b"]);
    // Two are on their way into the log; the third waits its turn, and QoS 0 is admitted like the others.
    assert_eq!(told(&handle(&mut session, publish(9, "c"), 1)), [""; 0]);
    assert_eq!(told(&handle(&mut session, publish(0, "d"), 1)), [""; 0]);
    assert_eq!(told(&handle(&mut session, Event::Durable { ticket: 1 }, 2)), ["admit 2 c"]);
    assert_eq!(
        told(&handle(&mut session, Event::Durable { ticket: 0 }, 3)),
        ["puback 7 00", "puback 3 00", "admit 3 d"]
    );
    assert_eq!(told(&handle(&mut session, Event::Durable { ticket: 3 }, 4)), [""; 0]);
    assert_eq!(told(&handle(&mut session, Event::Durable { ticket: 2 }, 5)), ["puback 9 00"]);
    // A word about a ticket of long ago changes nothing.
    assert_eq!(told(&handle(&mut session, Event::Durable { ticket: 0 }, 6)), [""; 0]);
}

#[test]
fn what_is_not_offered_is_asked_for_in_vain() {
    for (filter, five) in [("r/+", "disconnect a2"), ("$share/g/r/T1", "disconnect 9e")] {
        let wanted = || asking(&[("r/T1", QoS::AtLeastOnce), (filter, QoS::AtLeastOnce)]);
        assert_eq!(told(&handle(&mut going_on(Version::V5, 0), wanted(), 1)), [five, "close"], "(3.2.2.3)");
        let effects = handle(&mut going_on(Version::V3, 0), wanted(), 1);
        assert!(told(&effects).contains(&"store +1 -0".to_owned()), "MQTT 3.1.1 hears it in the SUBACK");
    }
}

#[test]
fn the_receive_maximum_is_kept_in_mqtt_5_and_the_socket_left_unread_in_3() {
    let (mut five, mut three) = (going_on(Version::V5, 0), going_on(Version::V3, 0));
    for number in 1..=4 {
        assert!(!three.full());
        handle(&mut five, publish(number, "x"), 1);
        handle(&mut three, publish(number, "x"), 1);
    }
    assert!(three.full() && !five.full());
    assert_eq!(told(&handle(&mut five, publish(5, "x"), 1)), ["disconnect 93", "close"]);
    // A client whose packets are not read is not silent; when they are read again its keep-alive starts anew.
    assert_eq!(three.poll_timeout(), None);
    handle(&mut three, Event::Durable { ticket: 0 }, 1000);
    assert!(!three.full());
    assert_eq!(three.poll_timeout(), Some(at(1090)));
}

#[test]
fn an_identifier_in_use_is_refused_and_a_repetition_of_3_is_not_taken_twice() {
    let mut five = going_on(Version::V5, 0);
    handle(&mut five, publish(1, "a"), 1);
    assert_eq!(told(&handle(&mut five, publish(1, "b"), 1)), ["disconnect 82", "close"]);
    let mut three = going_on(Version::V3, 0);
    handle(&mut three, publish(1, "a"), 1);
    let Event::Publish(mut again, payload) = publish(1, "a") else { unreachable!() };
    again.dup = true;
    assert_eq!(told(&handle(&mut three, Event::Publish(again, payload), 1)), [""; 0]);
    assert_eq!(told(&handle(&mut three, Event::Durable { ticket: 0 }, 1)), ["puback 1 00"]);
    assert_eq!(told(&handle(&mut three, publish(1, "a"), 1)), ["admit 1 a"], "free again");
}

#[test]
fn what_was_in_flight_goes_out_again_with_dup_and_its_identifier() {
    let mut session = going_on(Version::V3, 5);
    let deliveries = vec![receipt(4, "d"), receipt(5, "e"), receipt(6, "f"), receipt(7, "g")];
    let effects = handle(&mut session, Event::Fetched { deliveries, last: 7 }, 1);
    assert_eq!(told(&effects), ["publish r/T1 4 dup d", "publish r/T1 5 dup e", "publish r/T1 6 f"]);
    assert_eq!(told(&handle(&mut session, puback(5), 2)), ["acked 5", "publish r/T1 7 g"]);
    assert_eq!(told(&handle(&mut session, puback(5), 2)), [""; 0], "a late acknowledgement is no fault");
    assert_eq!(session.remains().sent_to, 7);
}

#[test]
fn a_hint_that_follows_without_a_gap_spares_the_database() {
    let mut session = going_on(Version::V5, 0);
    let hint =
        |seq, text: &'static str| Event::Hint { seq, what: Some(What::Receipt(Bytes::from_static(text.as_bytes()))) };
    // The queue is being read: what the hint is about may or may not be in it.
    assert_eq!(told(&handle(&mut session, hint(4, "d"), 1)), [""; 0]);
    let effects = handle(&mut session, Event::Fetched { deliveries: vec![], last: 3 }, 1);
    assert_eq!(told(&effects), ["fetch 3"]);
    let effects = handle(&mut session, Event::Fetched { deliveries: vec![receipt(4, "d")], last: 4 }, 1);
    assert_eq!(told(&effects), ["publish r/T1 4 d"]);
    assert_eq!(told(&handle(&mut session, hint(5, "e"), 1)), ["publish r/T1 5 e"]);
    assert_eq!(told(&handle(&mut session, hint(5, "e"), 1)), [""; 0], "known already");
    assert_eq!(told(&handle(&mut session, hint(7, "g"), 1)), ["fetch 5"], "6 is missing");
    let effects =
        handle(&mut session, Event::Fetched { deliveries: vec![receipt(6, "f"), receipt(7, "g")], last: 7 }, 1);
    assert_eq!(told(&effects), ["publish r/T1 6 f"], "three in flight");
    assert_eq!(told(&handle(&mut session, Event::Look, 1)), ["fetch 7"]);
}

#[test]
fn receipts_wait_for_their_subscription_and_the_subscription_for_the_database() {
    let (mut session, effects) = resumed(Version::V5, &asked(false), Loaded::default());
    assert_eq!(told(&effects), ["connack present=false"]);
    assert_eq!(told(&handle(&mut session, Event::Hint { seq: 1, what: None }, 1)), [""; 0]);
    let all = [
        ("r/T1", QoS::ExactlyOnce),
        ("r/T1", QoS::AtMostOnce),
        ("c/T1", QoS::AtMostOnce),
        ("r/T2", QoS::AtLeastOnce),
        ("q/T1", QoS::AtLeastOnce),
        ("$SYS/broker", QoS::AtLeastOnce),
    ];
    assert_eq!(told(&handle(&mut session, asking(&all), 1)), ["new r/T1", "new c/T1", "store +2 -0"]);
    assert!(!session.has_room(), "what it brings waits for the SUBACK");
    assert_eq!(told(&handle(&mut session, Event::Look, 1)), [""; 0]);
    let effects = handle(&mut session, Event::Stored, 1);
    assert_eq!(told(&effects), ["suback [01, 83, 00, 87, 87, 87]", "fetch r0 c0"]);
    let effects = handle(&mut session, Event::Fetched { deliveries: vec![receipt(1, "a")], last: 1 }, 1);
    let Effect::Publish(publish, _) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!(publish.subscription_ids, [NonZeroU32::new(77).expect("not zero")]);
    let gone = Unsubscribe {
        packet_id: id(2),
        user_properties: vec![],
        topic_filters: vec!["r/T1".into(), "r/T9".into(), "r/T1".into()],
    };
    assert_eq!(told(&handle(&mut session, Event::Packet(Packet::Unsubscribe(gone)), 1)), ["left r/T1", "store +0 -1"]);
    assert_eq!(told(&handle(&mut session, Event::Stored, 1)), ["unsuback [00, 11, 11]"]);
    let hint = Event::Hint { seq: 2, what: Some(What::Receipt(Bytes::from_static(b"b"))) };
    assert_eq!(told(&handle(&mut session, hint, 1)), ["fetch r-1 c1"], "kept while nobody subscribes to it");
    assert_eq!(told(&handle(&mut session, Event::Fetched { deliveries: vec![], last: 2 }, 1)), [""; 0]);
    assert_eq!(told(&handle(&mut session, asking(&all[..1]), 1)), ["new r/T1", "store +1 -0"]);
    assert_eq!(told(&handle(&mut session, Event::Stored, 1)), ["suback [01]", "fetch r1 c2"]);
    let effects = handle(&mut session, Event::Fetched { deliveries: vec![receipt(2, "b")], last: 2 }, 1);
    assert_eq!(told(&effects), ["publish r/T1 2 b"]);
}

#[test]
fn a_clean_session_stores_no_subscription() {
    let (mut session, _) = resumed(Version::V3, &asked(true), Loaded::default());
    let topic_filters = vec![("r/T1".into(), receipts().options)];
    let subscribe = Subscribe { packet_id: id(1), id: None, user_properties: vec![], topic_filters };
    let effects = handle(&mut session, Event::Packet(Packet::Subscribe(subscribe)), 1);
    assert_eq!(told(&effects), ["new r/T1", "suback [01]", "fetch 0"]);
    let remains = session.remains();
    assert_eq!((remains.expiry_s, remains.change), (0, None));
}

#[test]
fn a_delivery_that_the_client_cannot_take_stays_queued() {
    let connect = Connect { max_packet_size: NonZeroU32::new(40), ..asked(false) };
    let loaded = Loaded { present: true, subscriptions: vec![receipts()], ..Loaded::default() };
    let (mut session, effects) = resumed(Version::V5, &connect, loaded);
    assert_eq!(told(&effects), ["connack present=true", "fetch 0"]);
    let deliveries = vec![receipt(1, "much too large for this client, I fear"), receipt(2, "small")];
    let effects = handle(&mut session, Event::Fetched { deliveries, last: 2 }, 1);
    assert_eq!(told(&effects), ["too large 1", "publish r/T1 2 small"]);
}

#[test]
fn a_client_that_acknowledges_nothing_is_given_up() {
    let mut session = going_on(Version::V5, 0);
    handle(&mut session, Event::Fetched { deliveries: vec![receipt(1, "a")], last: 1 }, 10);
    assert_eq!(session.poll_timeout(), Some(at(70)));
    handle(&mut session, Event::Packet(Packet::PingRequest), 69);
    assert_eq!(told(&handle(&mut session, Event::Wake, 69)), [""; 0]);
    assert_eq!(told(&handle(&mut session, Event::Wake, 70)), ["disconnect 80", "close"]);
    assert_eq!(told(&handle(&mut session, puback(1), 70)), [""; 0], "closed is closed");
}

#[test]
fn keep_alive_is_one_and_a_half_and_has_a_cap() {
    for (version, keep_alive, silence_max) in [
        (Version::V5, 60, 90),
        (Version::V3, 60, 90),
        (Version::V5, 0, 900),
        (Version::V5, 65_535, 900),
        // It cannot be told of a cap, and so has one of its own.
        (Version::V3, 0, 1800),
        (Version::V3, 1198, 1797),
        (Version::V3, 65_535, 1800),
    ] {
        let connect = Connect { keep_alive, ..asked(false) };
        let (mut session, effects) = resumed(version, &connect, Loaded::default());
        let Effect::Send(Packet::ConnectAck(ack)) = &effects[0] else { panic!("{effects:?}") };
        if version == Version::V5 {
            assert_eq!(ack.server_keepalive_sec, (silence_max == 900).then_some(600));
        }
        assert_eq!(session.poll_timeout(), Some(at(silence_max)));
        let effects = handle(&mut session, Event::Wake, silence_max);
        let closed: &[&str] = if version == Version::V5 { &["disconnect 8d", "close"] } else { &["close"] };
        assert_eq!(told(&effects), closed);
    }
}

fn will(topic: &'static str) -> LastWill {
    LastWill {
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: topic.into(),
        message: Bytes::new(),
        will_delay_interval_sec: None,
        correlation_data: None,
        message_expiry_interval: None,
        content_type: None,
        user_properties: vec![],
        is_utf8_payload: None,
        response_topic: None,
    }
}

#[test]
fn a_will_is_kept_until_the_client_takes_its_leave() {
    let will = will("c/T1");
    for (reason, kept) in [(Reason::NormalDisconnection, false), (Reason::DisconnectWithWillMessage, true)] {
        let connect = Connect { last_will: Some(will.clone()), ..asked(false) };
        let (mut session, _) = resumed(Version::V5, &connect, Loaded::default());
        let effects = handle(&mut session, Event::Packet(Packet::Disconnect(Disconnect::new(reason))), 1);
        assert_eq!(told(&effects), ["close"]);
        assert_eq!(session.remains().will, kept);
        assert!(session.terms().will.is_none(), "what it says is stored, and not in memory besides");
    }
    let connect = Connect { last_will: Some(LastWill { retain: true, ..will }), ..asked(false) };
    let terms = |version, rights| Terms::of(&connect, version, &limits(), &rights);
    assert_eq!(terms(Version::V5, Rights::Terminal), Err(ConnectAckReason::RetainNotSupported));
    assert!(terms(Version::V3, Rights::Terminal).is_ok() && terms(Version::V5, open()).is_ok());
}

#[test]
fn a_session_may_be_shortened_at_the_end_but_not_brought_to_life() {
    let bye = |expiry| {
        let session_expiry_interval_secs = Some(expiry);
        let bye = Disconnect { session_expiry_interval_secs, ..Disconnect::new(Reason::NormalDisconnection) };
        Event::Packet(Packet::Disconnect(bye))
    };
    let mut session = going_on(Version::V5, 0);
    assert_eq!(told(&handle(&mut session, bye(1_000_000), 1)), ["close"]);
    assert_eq!(session.remains().expiry_s, 86_400, "the longest there is");
    let (mut clean, _) = resumed(Version::V5, &asked(true), Loaded::default());
    assert_eq!(told(&handle(&mut clean, bye(1), 1)), ["disconnect 82", "close"]);
}

#[test]
fn a_packet_identifier_is_never_zero_and_belongs_to_its_place() {
    for (seq, number) in [(1, 1), (2, 2), (32_767, 32_767), (32_768, 1), (65_535, 1), (65_534, 32_767), (i64::MAX, 7)] {
        assert_eq!(packet_id(seq).get(), number, "{seq}");
    }
}

#[test]
fn a_place_whose_identifier_is_in_flight_waits() {
    let mut session = going_on(Version::V5, 0);
    let deliveries = vec![receipt(1, "a"), receipt(32_767, "b"), receipt(32_768, "c")];
    let effects = handle(&mut session, Event::Fetched { deliveries, last: 32_768 }, 1);
    assert_eq!(told(&effects), ["publish r/T1 1 a", "publish r/T1 32767 b"]);
    assert_eq!(told(&handle(&mut session, puback(1), 1)), ["acked 1", "publish r/T1 1 c"]);
}

#[test]
fn reasons_are_not_explained_to_a_client_that_does_not_want_it() {
    let connect = Connect { request_problem_info: false, ..asked(false) };
    let (mut session, _) = resumed(Version::V5, &connect, Loaded::default());
    let effects = handle(&mut session, Event::End(Reason::SessionTakenOver, "taken over"), 1);
    let Effect::Send(Packet::Disconnect(bye)) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((bye.reason_code, &bye.reason_string), (Reason::SessionTakenOver, &None));
    assert_eq!(SubscribeAckReason::ImplementationSpecificError as u8, 0x83);
}
