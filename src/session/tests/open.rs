//! A client of a general broker: any topic, aliases both ways, messages that are not stored.

use ntex_mqtt::v5::codec::RetainHandling;

use super::*;
use crate::mqtt::Properties;

fn connected(version: Version, connect: &Connect) -> Session {
    playing(open(), version, connect, Loaded::default()).0
}

fn to(topic: &'static str, alias: u16) -> Event {
    let publish = Publish { topic: topic.into(), topic_alias: NonZeroU16::new(alias), ..Publish::default() };
    Event::Publish(publish, Bytes::from_static(b"x"))
}

fn for_it(topic: &'static str, qos: QoS, payload: &'static str) -> Event {
    let payload = Bytes::from_static(payload.as_bytes());
    let message = Message {
        topic: topic.into(),
        payload,
        qos,
        retain: false,
        expires_at: None,
        properties: Properties::default(),
    };
    let addressed = Addressed { message: Arc::new(message), qos: QoS::ExactlyOnce, retain: false, identifiers: vec![] };
    Event::Message(addressed)
}

/// [MQTT-3.8.4-5]: as if each had come in a packet of its own.
#[test]
fn the_same_filter_twice_in_one_packet_is_subscribed_to_twice_and_stored_once() {
    let mut session = playing(open(), Version::V5, &asked(true), Loaded::default()).0;
    session.terms.expiry_s = 60;
    let to_a = |qos, retain_handling| {
        ("a".into(), SubscriptionOptions { qos, retain_handling, ..SubscriptionOptions::default() })
    };
    let topic_filters =
        vec![to_a(QoS::AtLeastOnce, RetainHandling::AtSubscribe), to_a(QoS::AtMostOnce, RetainHandling::NoAtSubscribe)];
    let subscribe = Subscribe { packet_id: id(1), id: None, user_properties: vec![], topic_filters };
    let effects = handle(&mut session, Event::Packet(Packet::Subscribe(subscribe)), 1);
    assert_eq!(told(&effects), ["new a", "again a", "store +1 -0"]);
    let Some(Effect::Store(change)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(change.begun[0].options.retain_handling, RetainHandling::NoAtSubscribe, "the later one");
    assert_eq!(session.subscriptions, change.begun);
    assert_eq!(told(&handle(&mut session, Event::Stored, 1)), ["suback [01, 00]"]);
}

#[test]
fn everything_is_offered_and_only_what_is_closed_is_refused() {
    let (mut session, effects) = playing(open(), Version::V5, &asked(true), Loaded::default());
    let Effect::Send(Packet::ConnectAck(ack)) = &effects[0] else { panic!("{effects:?}") };
    assert!(ack.retain_available && ack.wildcard_subscription_available && ack.shared_subscription_available);
    assert_eq!((ack.max_qos, ack.topic_alias_max), (QoS::ExactlyOnce, 2));
    let filters = [
        ("#", QoS::ExactlyOnce),
        ("closed", QoS::AtMostOnce),
        ("$share/g/closed", QoS::AtMostOnce),
        // As MQTT 3.1.1 may ask; in MQTT 5 it is malformed, and does not come this far.
        ("$share/g", QoS::AtMostOnce),
        ("a", QoS::AtLeastOnce),
    ];
    let options = |qos| SubscriptionOptions { qos, ..SubscriptionOptions::default() };
    let topic_filters = filters.map(|(filter, qos)| (filter.into(), options(qos))).to_vec();
    let subscribe = || {
        let topic_filters = topic_filters.clone();
        Event::Packet(Packet::Subscribe(Subscribe {
            packet_id: id(1),
            id: None,
            user_properties: vec![],
            topic_filters,
        }))
    };
    assert_eq!(told(&handle(&mut session, subscribe(), 1)), ["new #", "new a", "suback [02, 80, 80, 8f, 01]"]);
    assert_eq!(told(&handle(&mut session, subscribe(), 1)), ["again #", "again a", "suback [02, 80, 80, 8f, 01]"]);
    for topic in ["closed", "$SYS/uptime"] {
        let at_1 = Publish { topic: topic.into(), qos: QoS::AtLeastOnce, packet_id: Some(id(1)), ..Publish::default() };
        assert_eq!(told(&handle(&mut session, Event::Publish(at_1, Bytes::new()), 1)), ["puback 1 87"]);
    }
}

#[test]
fn a_client_has_so_many_subscriptions_and_may_replace_them() {
    let mut session = connected(Version::V5, &asked(true));
    let mut subscribe = |filters: &[&'static str]| {
        let topic_filters = filters.iter().map(|&filter| (filter.into(), SubscriptionOptions::default())).collect();
        let packet = Subscribe { packet_id: id(1), id: None, user_properties: vec![], topic_filters };
        told(&handle(&mut session, Event::Packet(Packet::Subscribe(packet)), 1)).pop()
    };
    assert_eq!(subscribe(&["a", "b"]).as_deref(), Some("suback [00, 00]"));
    assert_eq!(subscribe(&["c", "d", "a", "c"]).as_deref(), Some("suback [00, 97, 00, 00]"));
}

#[test]
fn a_clients_alias_stands_for_the_topic_that_it_came_with() {
    let mut session = connected(Version::V5, &asked(true));
    let steps: [(Event, &[&str]); 5] = [
        (to("a", 1), &["route 0 a x"]),
        (to("", 1), &["route 1 a x"]),
        (to("b", 1), &["route 2 b x"]),
        (to("", 1), &["route 3 b x"]),
        (to("", 2), &["disconnect 82", "close"]),
    ];
    for (event, wanted) in steps {
        assert_eq!(told(&handle(&mut session, event, 1)), wanted);
    }
    for (event, reason) in [(to("a", 3), "disconnect 94"), (to("", 0), "disconnect 82")] {
        let mut session = connected(Version::V5, &asked(true));
        assert_eq!(told(&handle(&mut session, event, 1)), [reason, "close"]);
    }
}

#[test]
fn the_first_topics_get_the_aliases_that_the_client_allows() {
    for (allows, wanted) in
        [(0, ["a -", "a -", "b -", "c -"]), (1, ["a 1", " 1", "b -", "c -"]), (9, ["a 1", " 1", "b 2", "c -"])]
    {
        let mut session = connected(Version::V5, &Connect { topic_alias_max: allows, ..asked(true) });
        let sent = ["a", "a", "b", "c"].map(|topic| {
            let effects = handle(&mut session, for_it(topic, QoS::AtMostOnce, "x"), 1);
            let Effect::Publish(publish, _) = &effects[0] else { panic!("{effects:?}") };
            let alias = publish.topic_alias.map_or_else(|| "-".to_owned(), |alias| alias.to_string());
            format!("{} {alias}", publish.topic)
        });
        assert_eq!(sent, wanted, "{allows}");
    }
}

#[test]
fn what_is_not_stored_waits_for_the_window_up_to_a_limit_and_at_qos_0_for_nothing() {
    let mut session = connected(Version::V5, &asked(true));
    let wanted: [&[&str]; 8] = [
        &["publish t 32768 a"],
        &["publish t 32769 b"],
        &["publish t 32770 c"],
        &[],
        &["dropped"],
        &["dropped"],
        &["dropped"],
        &["dropped"],
    ];
    for (payload, wanted) in ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().zip(wanted) {
        assert_eq!(told(&handle(&mut session, for_it("t", QoS::AtLeastOnce, payload), 1)), wanted, "{payload}");
    }
    assert_eq!(told(&handle(&mut session, for_it("t", QoS::AtMostOnce, "0"), 1)), ["publish t 0 0"]);
    assert_eq!(told(&handle(&mut session, puback(32_769), 1)), ["publish t 32771 d"]);
    assert_eq!(told(&handle(&mut session, for_it("t", QoS::AtLeastOnce, "i"), 1)), [""; 0], "there is room again");
}

#[test]
fn identifiers_that_are_in_flight_are_not_given_again() {
    let mut session = connected(Version::V5, &asked(true));
    handle(&mut session, for_it("t", QoS::AtLeastOnce, "stays"), 1);
    for number in (32_769..=u16::MAX).chain([32_769]) {
        let effects = handle(&mut session, for_it("t", QoS::AtLeastOnce, "x"), 1);
        assert_eq!(told(&effects), [format!("publish t {number} x")]);
        handle(&mut session, puback(number), 1);
    }
}

/// Messages of every shape, and what becomes of them on the wire.
#[test]
fn what_fits_is_what_is_written() {
    let properties = |name: &str| {
        let length = u8::try_from(name.len()).expect("short");
        let bytes = [&[0x26, 0, 1, b'a', 0, length], name.as_bytes(), &[0x08, 0, 1, b'r', 0x01, 1]].concat();
        Properties::stored(bytes).expect("properties")
    };
    let long = "x".repeat(150);
    for (payload, with, qos, expires) in [
        (20, Properties::default(), QoS::AtMostOnce, None),
        (100, Properties::default(), QoS::AtLeastOnce, None),
        (121, properties("n"), QoS::AtLeastOnce, Some(at(9))),
        (20_000, properties(&long), QoS::ExactlyOnce, Some(at(9))),
    ] {
        for identifier in [1, 127, 128, 268_435_455] {
            let message = Message {
                topic: "some/topic".into(),
                payload: Bytes::from(vec![0; payload]),
                qos,
                retain: false,
                expires_at: expires,
                properties: with.clone(),
            };
            let identifiers = vec![NonZeroU32::new(identifier).expect("not zero")];
            let addressed = Addressed { message: Arc::new(message), qos, retain: true, identifiers };
            let sent = |max: u32| {
                let connect = Connect { max_packet_size: NonZeroU32::new(max), ..asked(true) };
                let mut session = connected(Version::V5, &connect);
                handle(&mut session, Event::Message(addressed.clone()), 1).remove(0)
            };
            let Effect::Publish(publish, payload) = sent(1_000_000) else { panic!("it fits") };
            let mut wire = ntex_bytes::BytePages::default();
            publish.write(Version::V5, payload, &mut wire);
            let bytes = u32::try_from(wire.len()).expect("short");
            assert!(matches!(sent(bytes), Effect::Publish(..)), "{bytes}");
            assert_eq!(tell(&sent(bytes - 1)), "too large 0", "{bytes}");
        }
    }
}

/// 8,192 bytes may wait here, and whoever has fewer takes one more.
#[test]
fn what_waits_for_it_is_bounded_by_bytes_too() {
    let mut session = connected(Version::V5, &asked(true));
    let large = "x".repeat(5_000).leak();
    let mut comes = |event| {
        let told = told(&handle(&mut session, event, 1));
        told.iter().map(|told| told.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    let another = || for_it("t", QoS::AtLeastOnce, large);
    assert_eq!(comes(another()), ["publish t 32768"]);
    assert_eq!(comes(another()), ["publish t 32769"]);
    assert_eq!(comes(another()), ["dropped"]);
    comes(puback(32_768));
    assert_eq!(comes(another()), ["publish t 32770"]);
    assert_eq!(comes(for_it("t", QoS::AtMostOnce, large)), ["publish t 0"], "it waits for nothing");
}

/// What a client may do to whom this is granted for both, on a broker where `closed` is closed.
fn granted(templates: &[&str]) -> Rights {
    let templates: Vec<Template> = templates.iter().map(|text| Template::new(text).expect("a template")).collect();
    let grants = Templates { publish: templates.clone(), subscribe: templates }.fill("T1", None);
    Rights::Granted(Arc::new(Granted { closed: Arc::new(vec![ByteString::from_static("closed")]), grants }))
}

#[test]
fn a_client_with_rights_by_template_uses_its_topics_and_no_others() {
    let (mut session, _) =
        playing(granted(&["up/%c", "down/%c/#", "closed"]), Version::V5, &asked(true), Loaded::default());
    let filters = ["down/T1/#", "down/T2/#", "$share/g/down/T1/+", "$share/g/#", "closed"];
    let topic_filters = filters.map(|filter| (filter.into(), SubscriptionOptions::default())).to_vec();
    let subscribe = Subscribe { packet_id: id(1), id: None, user_properties: vec![], topic_filters };
    assert_eq!(
        told(&handle(&mut session, Event::Packet(Packet::Subscribe(subscribe)), 1)),
        ["new down/T1/#", "new $share/g/down/T1/+", "suback [00, 87, 00, 87, 80]"]
    );
    for (topic, retain, told_of) in [
        ("up/T1", false, "route"),
        ("up/T1", true, "route"),
        ("up/T2", false, "puback 1 87"),
        ("up/T2", true, "puback 1 87"),
        ("closed", false, "puback 1 87"),
    ] {
        let publish = Publish {
            topic: topic.into(),
            qos: QoS::AtLeastOnce,
            retain,
            packet_id: Some(id(1)),
            ..Publish::default()
        };
        let effects = handle(&mut session, Event::Publish(publish, Bytes::new()), 1);
        if told_of == "route" {
            let [Effect::Route { ticket, message, .. }] = &effects[..] else { panic!("{topic}: {effects:?}") };
            assert_eq!((&*message.topic, message.retain), (topic, retain));
            assert_eq!(told(&handle(&mut session, Event::Durable { ticket: *ticket }, 1)), ["puback 1 00"]);
        } else {
            assert_eq!(told(&effects), [told_of], "{topic}");
        }
    }
}

#[test]
fn a_will_goes_where_its_client_may_publish() {
    let some = granted(&["up/%c", "closed"]);
    for (topic, anybody, this_one) in
        [("up/T1", true, true), ("up/T2", true, false), ("closed", false, false), ("$SYS/x", false, false)]
    {
        let mut connect = asked(true);
        connect.last_will = Some(will(topic));
        for (rights, may) in [(&open(), anybody), (&some, this_one)] {
            for version in [Version::V3, Version::V5] {
                let terms = Terms::of(&connect, version, &limits(), rights).map(|_| ());
                assert_eq!(terms, if may { Ok(()) } else { Err(ConnectAckReason::NotAuthorized) }, "{topic}");
            }
        }
    }
}

#[test]
fn a_subscription_outlives_rights_that_are_taken_away_by_no_connection() {
    let subscription = |filter: &'static str| Subscription {
        filter: filter.into(),
        options: SubscriptionOptions::default(),
        identifier: None,
    };
    let rights = granted(&["down/%c/#"]);
    assert!(rights.keeps(&client(), &subscription("down/T1/+")) && !rights.keeps(&client(), &subscription("#")));
    assert!(open().keeps(&client(), &subscription("#")));
}
