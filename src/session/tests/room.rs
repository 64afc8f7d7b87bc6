//! What a client has room for, and what follows before its turn: faults that `tests/fuzz/schedules.rs` and [`super::pair`] found.

use super::*;

fn limited(max: u32) -> Connect {
    Connect { max_packet_size: NonZeroU32::new(max), ..asked(false) }
}

fn subscribe(packet_id: u16, filters: &[&'static str]) -> Event {
    let topic_filters = filters.iter().map(|&filter| (filter.into(), SubscriptionOptions::default())).collect();
    Event::Packet(Packet::Subscribe(Subscribe {
        packet_id: id(packet_id),
        id: None,
        user_properties: vec![],
        topic_filters,
    }))
}

fn unsubscribe(packet_id: u16, filter: &'static str) -> Event {
    let packet = Unsubscribe { packet_id: id(packet_id), user_properties: vec![], topic_filters: vec![filter.into()] };
    Event::Packet(Packet::Unsubscribe(packet))
}

/// [MQTT-3.1.2-24]: no packet is larger than the client's Maximum Packet Size.
#[test]
fn a_client_that_could_not_be_answered_is_not_let_in() {
    let terms = |connect: &Connect| Terms::of(connect, Version::V5, &limits(), &open()).map(|_| ());
    assert_eq!(terms(&limited(29)), Err(ConnectAckReason::PacketTooLarge));
    assert_eq!(terms(&limited(30)), Ok(()));
    let curious = Connect { request_response_info: true, ..limited(38) };
    let told = |connect: &Connect| {
        let (_, effects) = playing(open(), Version::V5, connect, Loaded::default());
        let Effect::Send(Packet::ConnectAck(ack)) = &effects[0] else { panic!("{effects:?}") };
        ack.response_info.clone()
    };
    assert_eq!(told(&curious), None);
    assert_eq!(told(&Connect { max_packet_size: NonZeroU32::new(39), ..curious }).as_deref(), Some("r/T1"));
}

/// [MQTT-3.1.2-24]: its name is to be told too, if it is the server's to give.
#[test]
fn a_name_that_could_not_be_told_is_not_given() {
    let name = ClientId::new("a name of some length").expect("short");
    for (client, max, takes) in [("", 55, false), ("", 56, true), ("C", 30, true)] {
        let connect = Connect { client_id: client.into(), ..limited(max) };
        let terms = Terms::of(&connect, Version::V5, &limits(), &open()).expect("terms");
        assert_eq!(terms.takes(&name), takes, "{client:?} {max}");
        let ack = terms.accept(&name, &open(), false, &limits());
        let mut wire = ntex_bytes::BytePages::default();
        let packet = ntex_mqtt::v5::codec::Encoded::Packet(Packet::ConnectAck(Box::new(ack)));
        ntex_codec::Encoder::encodev(&ntex_mqtt::v5::codec::Codec::new(), packet, &mut wire).expect("written");
        assert!(!takes || wire.len() <= max as usize, "{} of {max}", wire.len());
    }
}

/// [MQTT-3.14.2-3], [MQTT-3.9.2-1], [MQTT-3.4.2-2]
#[test]
fn a_reason_is_given_in_words_where_it_fits() {
    for (max, said) in [(30, false), (31, true)] {
        let (mut session, _) = playing(open(), Version::V5, &limited(max), Loaded::default());
        let effects = handle(&mut session, Event::End(Reason::ServerShuttingDown, "sixteen letters!"), 1);
        let Effect::Send(Packet::Disconnect(bye)) = &effects[0] else { panic!("{effects:?}") };
        assert_eq!(bye.reason_string.is_some(), said, "{max}");
    }
    let (mut session, _) = playing(open(), Version::V5, &limited(30), Loaded::default());
    let effects = handle(&mut session, subscribe(1, &["a"; 21]), 1);
    assert_eq!(told(&effects), ["disconnect 95", "close"], "the codes alone would be too many");
}

#[test]
fn subscriptions_that_follow_at_once_are_decided_each_upon_the_one_before() {
    let (mut session, _) = playing(open(), Version::V5, &asked(false), Loaded::default());
    // Three are the most.
    let mut does = |event| told(&handle(&mut session, event, 1));
    assert_eq!(does(subscribe(1, &["a", "b"])), ["new a", "new b", "store +2 -0"]);
    assert_eq!(does(subscribe(2, &["c", "d"])), ["new c"]);
    assert_eq!(does(unsubscribe(3, "a")), ["left a"]);
    assert_eq!(does(subscribe(4, &["e"])), ["new e"]);
    assert_eq!(does(unsubscribe(5, "e")), ["left e"]);
    assert_eq!(does(subscribe(6, &["b"])), ["again b"]);
    assert_eq!(does(Event::Stored), ["suback [00, 00]", "store +2 -2"], "the rest goes together");
    assert_eq!(does(unsubscribe(7, "x")), [""; 0], "an answer does not overtake another");
    let answers = ["suback [00, 97]", "unsuback [00]", "suback [00]", "unsuback [00]", "suback [00]", "unsuback [11]"];
    assert_eq!(does(Event::Stored), answers);
    assert_eq!(session.remains().change, None);
}

#[test]
fn what_is_not_stored_when_the_connection_ends_remains() {
    for (expiry_s, kept) in [(None, true), (Some(0), false)] {
        let (mut session, _) = playing(open(), Version::V5, &asked(false), Loaded::default());
        handle(&mut session, subscribe(1, &["a", "b"]), 1);
        handle(&mut session, unsubscribe(2, "a"), 1);
        let leave =
            Disconnect { session_expiry_interval_secs: expiry_s, ..Disconnect::new(Reason::NormalDisconnection) };
        assert_eq!(told(&handle(&mut session, Event::Packet(Packet::Disconnect(leave)), 1)), ["close"]);
        let change = session.remains().change.map(|change| (change.begun[0].filter.to_string(), change.ended));
        assert_eq!(change, kept.then(|| ("b".to_owned(), vec!["a".into()])));
    }
}

#[test]
fn so_many_changes_wait_before_the_socket_is_left_unread() {
    let (mut session, _) = playing(open(), Version::V5, &asked(false), Loaded::default());
    for id in 1..=16 {
        assert!(!session.full(), "{id}");
        handle(&mut session, subscribe(id, &["a"]), 1);
    }
    assert!(session.full());
    handle(&mut session, Event::Stored, 1);
    assert!(!session.full());
}

/// A session that was kept, and whose client comes back to end it (Session Expiry Interval 0).
#[test]
fn what_was_queued_is_delivered_on_the_last_connection_too() {
    let last = Connect { session_expiry_interval_secs: 0, ..asked(false) };
    let loaded = Loaded { present: true, ..Loaded::default() };
    let (_, effects) = playing(open(), Version::V5, &last, loaded);
    assert_eq!(told(&effects), ["connack present=true", "fetch r-1 c0"]);
    let (_, effects) = playing(open(), Version::V5, &last, Loaded::default());
    assert_eq!(told(&effects), ["connack present=false"], "there is nothing to be read");
}

#[test]
fn a_terminal_has_a_window_of_its_own() {
    let limits = Arc::new(Limits { terminal_outbound_max: id(2), ..limits() });
    let sent = |rights: Rights, receive_max: Option<u16>| {
        let connect = Connect { receive_max: receive_max.and_then(NonZeroU16::new), ..asked(false) };
        let terms = Terms::of(&connect, Version::V5, &limits, &rights).expect("granted");
        let loaded = Loaded { present: true, subscriptions: vec![receipts()], ..Loaded::default() };
        let mut session = Session::load(client(), rights, terms, &limits, loaded, at(0));
        session.resume(&mut Vec::new());
        let deliveries = (1..=5).map(|seq| receipt(seq, "x")).collect();
        handle(&mut session, Event::Fetched { deliveries, last: 5 }, 1).len()
    };
    assert_eq!((sent(Rights::Terminal, None), sent(open(), None)), (2, 3));
    assert_eq!((sent(Rights::Terminal, Some(1)), sent(open(), Some(1))), (1, 1), "a client may want fewer");
}

/// Of many whose publishes wait for the database none is to be ended for a PINGREQ that nobody reads.
#[test]
fn who_is_left_unread_for_others_sake_is_not_silent() {
    let (mut session, _) = playing(open(), Version::V5, &asked(false), Loaded::default());
    let silent = session.poll_timeout().expect("a keep-alive");
    session.hold_up(true, at(1));
    assert!(session.poll_timeout().is_none_or(|at| at > silent), "no time counts");
    assert_eq!(told(&handle(&mut session, Event::Wake, 100_000)), [""; 0]);
    session.hold_up(false, at(100_000));
    assert!(session.poll_timeout().is_some_and(|next| next > at(100_000)), "it counts anew");
    assert_eq!(told(&handle(&mut session, Event::Wake, 1_000_000)), ["disconnect 8d", "close"]);
}

/// [MQTT-3.14.0-1]
#[test]
fn who_was_not_let_in_hears_no_disconnect() {
    let terms = Terms::of(&asked(false), Version::V5, &limits(), &open()).expect("granted");
    let mut session = Session::load(client(), open(), terms, &std::sync::Arc::new(limits()), Loaded::default(), at(0));
    assert_eq!(told(&handle(&mut session, Event::End(Reason::SessionTakenOver, "late"), 1)), ["close"]);
}
