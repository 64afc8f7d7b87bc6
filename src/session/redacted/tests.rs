use std::num::{NonZeroU16, NonZeroU32};

use ntex_bytes::{ByteString, Bytes};

use super::*;
use crate::mqtt::{Properties, Publish as Wire};

const PAN: &str = "4111111111111111";
const PIN_BLOCK: [u8; 8] = [0x04, 0x12, 0x34, 0xEE, 0xDD, 0xCC, 0xBB, 0xAA];
const PASSWORD: &str = "kanga-kitenge";

fn id() -> NonZeroU16 {
    NonZeroU16::new(7).expect("7")
}

fn redactor(whose: Whose) -> Redactor {
    Redactor::new(ClientId::new("T1").expect("short"), whose, [9; 32])
}

/// The secrets as they may stand in a field that holds text.
fn texts(whose: Whose, names: bool) -> Vec<String> {
    let hex = hex::encode(PIN_BLOCK);
    let mut texts = vec![
        PAN.to_owned(),
        "4111 1111 1111 1111".to_owned(),
        format!("card/{PAN}/x"),
        "q/4111/1111/1111/1111".to_owned(),
        format!("pan-{PAN}"),
        hex.clone(),
        hex.to_uppercase(),
        format!("pin.{hex}"),
        "04-12-34-EE-DD-CC-BB-AA".to_owned(),
    ];
    // A guest's names are shown to all subscribers, and a password is no pattern; anywhere else it is not shown.
    if !(names && whose == Whose::Guest) {
        texts.extend([PASSWORD.to_owned(), format!("x/{PASSWORD}")]);
    }
    texts
}

/// The secrets as they may stand in a field that holds bytes.
fn data() -> Vec<Vec<u8>> {
    let mut data: Vec<Vec<u8>> = texts(Whose::Terminal, false).into_iter().map(String::into_bytes).collect();
    data.push(PIN_BLOCK.to_vec());
    data.push([&b"\x0A\x08"[..], &PIN_BLOCK, PAN.as_bytes()].concat());
    data
}

/// Whatever a person or a program is shown of it.
fn shown(summary: &Summary) -> Vec<String> {
    let json = serde_json::to_string(summary).expect("JSON");
    let again: Summary = serde_json::from_str(&json).expect("what was written is read");
    assert_eq!(again, *summary);
    vec![json, summary.to_string(), format!("{summary:?}")]
}

fn assert_clean(summary: &Summary, planted: &[u8]) {
    for text in shown(summary) {
        let plain: String = text.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
        let low = plain.to_lowercase();
        assert!(!low.contains(PAN) && !low.contains(&hex::encode(PIN_BLOCK)), "{text}");
        assert!(!text.contains(PASSWORD) && !low.contains("kangakitenge"), "{text}");
        let bytes = format!("{PIN_BLOCK:?}");
        assert!(!text.contains(bytes.trim_matches(['[', ']'])), "{text}");
        let planted = String::from_utf8_lossy(planted);
        assert!(planted.len() < 8 || !text.contains(&*planted), "{text} shows {planted}");
    }
}

fn properties(text: &str) -> mqtt::UserProperties {
    vec![(text.to_owned().into(), text.to_owned().into())]
}

/// A PUBLISH with this in one of its fields, each in turn.
fn publishes(text: &str, name: bool) -> Vec<Wire> {
    let plain = Wire { topic: "q/T1".into(), qos: mqtt::QoS::AtLeastOnce, packet_id: Some(id()), ..Default::default() };
    let with = |change: &dyn Fn(&mut Wire)| {
        let mut publish = plain.clone();
        change(&mut publish);
        publish
    };
    let length = u16::try_from(text.len()).expect("short").to_be_bytes();
    let stored = |begin: &[u8]| Properties::stored([begin, &length, text.as_bytes()].concat()).expect("properties");
    if name {
        vec![with(&|p| p.topic = text.to_owned().into()), with(&|p| p.properties = stored(&[0x08]))]
    } else {
        [&[0x03][..], &[0x09], &[0x26, 0, 1, b'n']].map(|begin| with(&|p| p.properties = stored(begin))).to_vec()
    }
}

/// A CONNECT with this in one of its fields, each in turn.
fn connects(text: &str, name: bool) -> Vec<mqtt::Connect> {
    let will = mqtt::LastWill {
        qos: mqtt::QoS::AtLeastOnce,
        retain: false,
        topic: "w".into(),
        message: Bytes::new(),
        will_delay_interval_sec: Some(1),
        correlation_data: None,
        message_expiry_interval: None,
        content_type: None,
        user_properties: Vec::new(),
        is_utf8_payload: None,
        response_topic: None,
    };
    let plain = mqtt::Connect { client_id: "T1".into(), last_will: Some(will), ..Default::default() };
    let with = |change: &dyn Fn(&mut mqtt::Connect, ByteString)| {
        let mut connect = plain.clone();
        change(&mut connect, ByteString::from(text.to_owned()));
        connect
    };
    let with_will = |change: &dyn Fn(&mut mqtt::LastWill, ByteString)| {
        with(&|connect, text| change(connect.last_will.as_mut().expect("one"), text))
    };
    let bytes = |text: ByteString| Bytes::from(text.to_string());
    if name {
        return vec![with(&|c, text| c.client_id = text), with_will(&|will, text| will.topic = text)];
    }
    vec![
        with(&|c, text| c.username = Some(text)),
        with(&|c, text| c.password = Some(bytes(text))),
        with(&|c, text| c.auth_method = Some(text)),
        with(&|c, text| c.auth_data = Some(bytes(text))),
        with(&|c, text| c.user_properties = properties(&text)),
        with_will(&|will, text| will.message = bytes(text)),
        with_will(&|will, text| will.correlation_data = Some(bytes(text))),
        with_will(&|will, text| will.content_type = Some(text)),
        with_will(&|will, text| will.response_topic = Some(text)),
        with_will(&|will, text| will.user_properties = properties(&text)),
    ]
}

/// Every acknowledgement of a publish with this in each of its fields.
fn acknowledgements(text: &str) -> [Packet; 4] {
    let (reason_string, properties) = (Some(ByteString::from(text.to_owned())), properties(text));
    let ack = mqtt::PublishAck {
        packet_id: id(),
        reason_string: reason_string.clone(),
        properties: properties.clone(),
        ..Default::default()
    };
    let ack2 = mqtt::PublishAck2 {
        packet_id: id(),
        reason_string: reason_string.clone(),
        properties: properties.clone(),
        ..Default::default()
    };
    [
        Packet::PublishAck(ack.clone()),
        Packet::PublishReceived(ack),
        Packet::PublishRelease(ack2.clone()),
        Packet::PublishComplete(ack2),
    ]
}

/// Every other packet with this in each of its fields.
fn packets(text: &str, name: bool) -> Vec<Packet> {
    let text = || ByteString::from(text.to_owned());
    if name {
        return vec![
            Packet::Subscribe(mqtt::Subscribe {
                packet_id: id(),
                id: None,
                user_properties: Vec::new(),
                topic_filters: vec![(text(), mqtt::SubscriptionOptions::default())],
            }),
            Packet::Unsubscribe(mqtt::Unsubscribe {
                packet_id: id(),
                user_properties: Vec::new(),
                topic_filters: vec![text()],
            }),
        ];
    }
    let (reason_string, properties) = (Some(text()), properties(&text()));
    vec![
        Packet::ConnectAck(Box::new(mqtt::ConnectAck {
            reason_string: reason_string.clone(),
            user_properties: properties.clone(),
            response_info: Some(text()),
            server_reference: Some(text()),
            auth_method: Some(text()),
            auth_data: Some(Bytes::from(text().to_string())),
            ..Default::default()
        })),
        Packet::Subscribe(mqtt::Subscribe {
            packet_id: id(),
            id: NonZeroU32::new(1),
            user_properties: properties.clone(),
            topic_filters: Vec::new(),
        }),
        Packet::SubscribeAck(mqtt::SubscribeAck {
            packet_id: id(),
            properties: properties.clone(),
            reason_string: reason_string.clone(),
            status: vec![mqtt::SubscribeAckReason::NotAuthorized],
        }),
        Packet::Unsubscribe(mqtt::Unsubscribe {
            packet_id: id(),
            user_properties: properties.clone(),
            topic_filters: Vec::new(),
        }),
        Packet::UnsubscribeAck(mqtt::UnsubscribeAck {
            packet_id: id(),
            properties: properties.clone(),
            reason_string: reason_string.clone(),
            status: Vec::new(),
        }),
        Packet::Disconnect(mqtt::Disconnect {
            reason_string: reason_string.clone(),
            server_reference: Some(text()),
            user_properties: properties.clone(),
            ..mqtt::Disconnect::new(mqtt::DisconnectReasonCode::AdministrativeAction)
        }),
        Packet::Auth(mqtt::Auth {
            reason_string,
            auth_method: Some(text()),
            auth_data: Some(Bytes::from(text().to_string())),
            user_properties: properties,
            ..Default::default()
        }),
    ]
}

#[test]
fn secrets_in_any_field_are_in_no_summary() {
    let mut looked = 0;
    for whose in [Whose::Terminal, Whose::Guest] {
        let redactor = redactor(whose);
        for name in [true, false] {
            for text in texts(whose, name) {
                let connects = connects(&text, name);
                let mut summaries: Vec<Summary> =
                    connects.iter().map(|connect| redactor.connect(connect, Version::V5)).collect();
                summaries.extend(publishes(&text, name).iter().map(|publish| redactor.publish(publish, b"")));
                summaries.extend(packets(&text, name).iter().map(|packet| redactor.packet(packet, Version::V5)));
                if !name {
                    let acks = acknowledgements(&text);
                    summaries.extend(acks.iter().map(|packet| redactor.packet(packet, Version::V5)));
                }
                looked += summaries.len();
                summaries.iter().for_each(|summary| assert_clean(summary, text.as_bytes()));
            }
        }
        for payload in data() {
            let publish = Wire { topic: "r/T1".into(), ..Default::default() };
            assert_clean(&redactor.publish(&publish, &payload), &payload);
            looked += 1;
        }
    }
    assert!(looked > 600, "{looked}");
}

/// Else the test above would find nothing whatever was shown.
#[test]
fn the_search_for_secrets_finds_them() {
    for text in texts(Whose::Terminal, false) {
        let found = std::panic::catch_unwind(|| assert_clean(&Summary::Ended { why: text.clone() }, text.as_bytes()));
        assert!(found.is_err(), "{text}");
    }
}

#[test]
fn names_are_shown() {
    let (guest, terminal) = (redactor(Whose::Guest), redactor(Whose::Terminal));
    for topic in ["q/T1", "r/T1", "c/T1", ""] {
        assert_eq!(terminal.topic(topic), Text::Shown(topic.to_owned()));
    }
    assert!(matches!(terminal.topic("q/T2"), Text::Hidden(_)));
    for topic in ["site/42/meter/2026-11-21", "$SYS/presence/+", "devices/ab12cd34/state", "Überwachung/é", "room 7"]
    {
        assert_eq!(guest.topic(topic), Text::Shown(topic.to_owned()), "{topic}");
    }
    // Arabic-Indic and fullwidth digits are digits as well.
    for topic in ["٤١١١١١١١١١١١١١١١", "４１１１１１１１１１１１１１１１", &"x".repeat(257)]
    {
        assert!(matches!(guest.topic(topic), Text::Hidden(_)), "{topic}");
    }
}

#[test]
fn a_line_says_what_the_packet_is_about() {
    let redactor = redactor(Whose::Terminal);
    let mut publish =
        Wire { topic: "q/T1".into(), qos: mqtt::QoS::AtLeastOnce, packet_id: Some(id()), ..Default::default() };
    publish.dup = true;
    let line = redactor.publish(&publish, b"a request").to_string();
    let digest = redactor.hidden(b"a request").digest;
    assert_eq!(line, format!("PUBLISH     q/T1 QoS 1, id 7, dup, 9 bytes #{digest}"));
    let other = Redactor::new(ClientId::new("T1").expect("short"), Whose::Terminal, [8; 32]);
    assert_ne!(other.hidden(b"a request").digest, digest, "of no use to another tap");
    assert_eq!(redactor.packet(&Packet::PingRequest, Version::V3).to_string(), "PINGREQ");
    let ack = mqtt::PublishAck { packet_id: id(), ..Default::default() };
    assert_eq!(redactor.packet(&Packet::PublishAck(ack), Version::V3).to_string(), "PUBACK      id 7");
    let connect = mqtt::Connect {
        client_id: "T1".into(),
        username: Some("T1".into()),
        password: Some("x".into()),
        ..Default::default()
    };
    assert_eq!(
        redactor.connect(&connect, Version::V3).to_string(),
        "CONNECT     T1, MQTT 3.1.1, keep-alive 0 s, user name T1, a password"
    );
    let escape = super::tests::redactor(Whose::Guest).name("\u{1b}[2J");
    assert_eq!(escape.to_string(), "\\u{1b}[2J");
}
