//! Who is too fast is left unread, and who is too slow with one packet is given up.

use super::*;
use crate::bounds::Rate;
use crate::mqtt::Properties;

fn paced(pace: Pace) -> Session {
    let limits = Limits { pace, ..limits() };
    let terms = Terms::of(&asked(true), Version::V5, &limits, &Rights::Terminal).expect("terms");
    let mut session = Session::load(client(), Rights::Terminal, terms, &Arc::new(limits), Loaded::default(), at(0));
    session.resume(&mut Vec::new());
    session
}

fn at(millis: i64) -> Time {
    Time::from_millis(1_700_000_000_000 + millis)
}

/// Publishes one at QoS 0, and has it durable.
fn publish_one(session: &mut Session, payload: &'static str, now: Time) {
    let mut effects = Vec::new();
    session.handle(publish(0, payload), now, &mut effects);
    for effect in effects {
        if let Effect::Admit { ticket, .. } = effect {
            session.handle(Event::Durable { ticket }, now, &mut Vec::new());
        }
    }
}

#[test]
fn a_client_that_publishes_too_fast_is_left_unread_and_loses_nothing() {
    let mut session = paced(Pace { publishes: Rate::per_second(10, 3), ..Pace::default() });
    for _ in 0..3 {
        assert!(!session.full());
        publish_one(&mut session, "x", at(0));
    }
    assert!(session.full() && session.held_by() == Some(TooFast::Client), "the fourth would be too many");
    let until = session.poll_timeout().expect("a wake-up");
    assert_eq!(until.since(at(0)), Duration::from_millis(100), "when one more token is there");
    session.handle(Event::Wake, at(99), &mut Vec::new());
    assert!(session.full(), "not yet");
    session.handle(Event::Wake, at(100), &mut Vec::new());
    assert!(!session.full());
    publish_one(&mut session, "x", at(100));
    assert!(session.full(), "one each tenth of a second from now on");
}

#[test]
fn a_client_that_sends_too_many_bytes_is_left_unread_until_they_are_paid_for() {
    let mut session = paced(Pace { bytes: Rate::per_second(10, 10), ..Pace::default() });
    // With its topic it has 14 bytes: more than the burst.
    publish_one(&mut session, "0123456789", at(0));
    let until = session.poll_timeout().expect("a wake-up");
    assert!(session.full() && until.since(at(0)) == Duration::from_millis(500), "{until:?}");
    // Meanwhile it is not silent, whatever its keep-alive says.
    let mut effects = Vec::new();
    session.handle(Event::Wake, at(500), &mut effects);
    assert!(effects.is_empty() && !session.full());
}

/// Bytes that are no topic and no payload are bytes too.
#[test]
fn properties_and_filters_are_paid_for() {
    let bytes = Pace { bytes: Rate::per_second(10, 30), ..Pace::default() };
    let mut session = paced(bytes);
    let Event::Publish(mut empty, payload) = publish(0, "") else { panic!("a publish") };
    empty.properties = Properties::stored([0x26, 0, 0, 0, 0].repeat(6)).expect("user properties");
    session.handle(Event::Publish(empty, payload), at(0), &mut Vec::new());
    assert_eq!(session.held_by(), Some(TooFast::Client));
    let mut session = paced(bytes);
    let filter = "a/filter/that/does/have/30/byt";
    let topic_filters = vec![(filter.into(), SubscriptionOptions::default())];
    let subscribe = Subscribe { packet_id: id(1), id: None, user_properties: vec![], topic_filters };
    session.handle(Event::Packet(Packet::Subscribe(subscribe)), at(0), &mut Vec::new());
    assert_eq!(session.held_by(), Some(TooFast::Client));
    let mut session = paced(bytes);
    session.handle(Event::Packet(Packet::PingRequest), at(0), &mut Vec::new());
    let unsubscribe = Unsubscribe { packet_id: id(1), user_properties: vec![], topic_filters: vec![filter.into()] };
    session.handle(Event::Packet(Packet::Unsubscribe(unsubscribe)), at(0), &mut Vec::new());
    assert_eq!(session.held_by(), Some(TooFast::Client));
}

/// What the terminals of its agent owe together is told to each with its own publish.
#[test]
fn a_terminal_whose_agent_was_too_fast_is_left_unread_until_all_is_paid_for() {
    let mut session = paced(Pace { publishes: Rate::per_second(10, 1), ..Pace::default() });
    let mut effects = Vec::new();
    publish_one(&mut session, "x", at(0));
    assert_eq!(session.held_by(), Some(TooFast::Client));
    session.handle(Event::Owed { until: at(50) }, at(0), &mut effects);
    assert_eq!(session.held_by(), Some(TooFast::Client), "it waits for longer anyway");
    session.handle(Event::Owed { until: at(700) }, at(0), &mut effects);
    assert!(session.full() && session.held_by() == Some(TooFast::Agent));
    session.handle(Event::Owed { until: at(300) }, at(0), &mut effects);
    assert_eq!(session.poll_timeout(), Some(at(700)));
    session.handle(Event::Wake, at(699), &mut effects);
    assert!(session.full());
    session.handle(Event::Wake, at(700), &mut effects);
    assert!(!session.full() && effects.is_empty(), "{effects:?}");
    session.handle(Event::Owed { until: at(700) }, at(700), &mut effects);
    assert!(!session.full(), "that is paid for");
}

#[test]
fn a_packet_once_begun_is_whole_in_time_or_the_connection_ends() {
    let within = Duration::from_secs(5);
    let mut session = paced(Pace { frame_within: Some(within), ..Pace::default() });
    let mut effects = Vec::new();
    // Bytes that follow each other have no end for that.
    session.partial(true, at(0));
    session.partial(true, at(4000));
    assert_eq!(session.poll_timeout(), Some(at(5000)));
    session.handle(Event::Wake, at(4999), &mut effects);
    assert!(effects.is_empty());
    session.handle(Event::Wake, at(5000), &mut effects);
    assert_eq!(told(&effects), ["disconnect 80", "close"]);
}

#[test]
fn each_packet_has_its_own_time() {
    let mut session = paced(Pace { frame_within: Some(Duration::from_secs(5)), ..Pace::default() });
    let mut effects = Vec::new();
    for second in 0..20 {
        // One is whole, and the next has begun: no packet takes longer than a second.
        session.partial(true, at(second * 1000));
        session.handle(Event::Packet(Packet::PingRequest), at(second * 1000 + 999), &mut effects);
        session.handle(Event::Wake, at(second * 1000 + 999), &mut effects);
    }
    assert!(!told(&effects).contains(&"close".to_owned()));
    // While it is not read, what it sent in part is no fault of its own.
    let mut session = paced(Pace {
        publishes: Rate::per_second(1, 1),
        frame_within: Some(Duration::from_millis(10)),
        ..Pace::default()
    });
    session.partial(true, at(0));
    publish_one(&mut session, "x", at(0));
    session.partial(true, at(0));
    let mut effects = Vec::new();
    session.handle(Event::Wake, at(1000), &mut effects);
    assert!(effects.is_empty() && !session.full(), "{effects:?}");
}
