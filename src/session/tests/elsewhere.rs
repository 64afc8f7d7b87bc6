//! Where clients are sent when the server stops or is full.

use ntex_mqtt::v5::codec::ConnectAck;

use super::*;

fn servers(names: &[&str]) -> Elsewhere {
    Elsewhere::new(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
}

fn left(version: Version, connect: &Connect, elsewhere: Elsewhere) -> Vec<Disconnect> {
    let (mut session, _) = resumed(version, connect, Loaded::default());
    let mut effects = Vec::new();
    session.handle(Event::Leave(elsewhere, "the node is stopping"), at(1), &mut effects);
    assert!(matches!(effects.pop(), Some(Effect::Close(_))), "it ends");
    let said = effects.into_iter().map(|effect| match effect {
        Effect::Send(Packet::Disconnect(disconnect)) => disconnect,
        other => panic!("{other:?}"),
    });
    said.collect()
}

fn turned_away(elsewhere: &Elsewhere, connect: &Connect) -> ConnectAck {
    elsewhere.refuse(&connect.client_id, connect.max_packet_size.map_or(u32::MAX, NonZeroU32::get))
}

#[test]
fn a_server_that_stops_says_where_else_to_go_4_13() {
    let two = servers(&["mqtt-2:8883", "[fe80::1]:8883"]);
    let said = left(Version::V5, &asked(true), two.clone()).remove(0);
    assert_eq!(said.reason_code, Reason::UseAnotherServer);
    let reference = said.server_reference.expect("a reference");
    assert!(["mqtt-2:8883 [fe80::1]:8883", "[fe80::1]:8883 mqtt-2:8883"].contains(&&*reference), "{reference}");
    assert_eq!(left(Version::V3, &asked(true), two), [], "3.1.1 has no words for it");
    let said = left(Version::V5, &asked(true), Elsewhere::default()).remove(0);
    assert_eq!((said.reason_code, said.server_reference), (Reason::ServerShuttingDown, None));
}

#[test]
fn a_reference_is_no_larger_than_the_client_takes_mqtt_3_1_2_24() {
    let far = servers(&["a-server-with-a-long-name.bank.example:8883"]);
    let codec = ntex_mqtt::v5::codec::Codec::new();
    for bytes_max in 30..120 {
        let small = Connect { max_packet_size: NonZeroU32::new(bytes_max), ..asked(true) };
        let (said, refused) = (left(Version::V5, &small, far.clone()).remove(0), turned_away(&far, &small));
        assert_eq!(said.server_reference.is_some(), said.reason_code == Reason::UseAnotherServer);
        assert_eq!(refused.server_reference.is_some(), refused.reason_code == ConnectAckReason::UseAnotherServer);
        for (named, packet) in [
            (said.server_reference.is_some(), Packet::Disconnect(said)),
            (refused.server_reference.is_some(), Packet::ConnectAck(Box::new(refused))),
        ] {
            let mut bytes = ntex_bytes::BytePages::default();
            let packet = ntex_mqtt::v5::codec::Encoded::Packet(packet);
            ntex_codec::Encoder::encodev(&codec, packet, &mut bytes).expect("it is a packet");
            assert!(!named || bytes.len() <= bytes_max as usize, "{} of {bytes_max}", bytes.len());
        }
    }
    let enough = Connect { max_packet_size: NonZeroU32::new(120), ..asked(true) };
    assert!(left(Version::V5, &enough, far.clone())[0].server_reference.is_some());
    assert!(turned_away(&far, &enough).server_reference.is_some());
}

#[test]
fn those_who_are_sent_away_together_do_not_all_go_to_the_same() {
    let three = servers(&["a", "b", "c"]);
    let mut first = [0; 3];
    for n in 0..3000 {
        let connect = Connect { client_id: format!("T{n}").into(), ..asked(true) };
        let refused = turned_away(&three, &connect);
        assert_eq!(refused.reason_code, ConnectAckReason::UseAnotherServer);
        let reference = refused.server_reference.expect("a reference");
        assert!(["a b c", "b c a", "c a b"].contains(&&*reference), "each once, in turn: {reference}");
        assert_eq!(
            turned_away(&three, &connect).server_reference,
            Some(reference.clone()),
            "always the same for one client"
        );
        first[usize::from(reference.as_bytes()[0] - b'a')] += 1;
    }
    assert!(first.iter().all(|&count| (800..1200).contains(&count)), "{first:?}");
    let busy = turned_away(&Elsewhere::default(), &asked(true));
    assert_eq!((busy.reason_code, busy.server_reference), (ConnectAckReason::ServerBusy, None));
}
