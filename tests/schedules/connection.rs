//! One connection of a schedule, and how it begins.

use std::collections::VecDeque;
use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use ntex_bytes::{ByteString, BytesMut};
use ntex_codec::Decoder;
use ntex_mqtt::v5::codec::{self as mqtt, Packet};
use wakala::session::pace::Pace;
use wakala::session::{Beyond, Change, Limits, Rights, Session, Subscription, Version, What, strict};
use wakala::time::Time;

use crate::bytes::Bytes;
use crate::frames::{Frames, Inbound};
use crate::watch::Watch;

pub(crate) const FRAME_BYTES_MAX: u32 = 1 << 20;

pub(crate) fn limits(small: bool) -> Limits {
    let count = |number| NonZeroU16::new(number).expect("not zero");
    let choose = |little, much| count(if small { little } else { much });
    Limits {
        keep_alive_max: Duration::from_secs(600),
        keep_alive_unannounced_max: Duration::from_secs(1200),
        session_expiry_max: Duration::from_secs(86_400),
        packet_bytes_max: FRAME_BYTES_MAX,
        inbound_max: choose(3, 16),
        unreleased_max: choose(5, 32),
        outbound_max: choose(2, 16),
        terminal_outbound_max: choose(2, 4),
        admitting_max: choose(1, 4),
        direct_max: choose(3, 32),
        direct_bytes_max: NonZeroU32::MAX,
        subscriptions_max: choose(3, 8),
        topic_alias_max: if small { 1 } else { 10 },
        page: choose(4, 32),
        ack_within: Duration::from_secs(60),
        pace: Pace::default(),
    }
}

/// One of the client's queue.
pub(crate) struct Row {
    pub(crate) what: What,
    /// As which one its PUBREC came.
    pub(crate) received: Option<u32>,
}

pub(crate) struct Connection {
    pub(crate) session: Session,
    /// As the effects say; those of the database are the same once it has answered.
    pub(crate) subscriptions: Vec<Subscription>,
    pub(crate) frames: Frames,
    pub(crate) watch: Watch,
    /// What the client wrote and the server has not read.
    pub(crate) socket: BytesMut,
    pub(crate) expiry_s: u32,
    pub(crate) loaded: usize,
    /// Publishes on their way to be durable: ticket, serial number, what is to be remembered.
    pub(crate) tickets: Vec<(u32, u32, Option<NonZeroU16>)>,
    pub(crate) question: Option<(Beyond, u16)>,
    pub(crate) change: Option<Change>,
    pub(crate) forgetting: VecDeque<NonZeroU16>,
    pub(crate) keeping: VecDeque<(i64, u32)>,
    pub(crate) marks: VecDeque<i64>,
    /// Nothing that a client may not do was done: nothing is held against it.
    pub(crate) behaves: bool,
}

impl Connection {
    /// Whether the client subscribes to a row, and can be sent it.
    pub(crate) fn wants(&self, row: &Row, rights: &Rights, now: Time) -> bool {
        let (topic, over) = match &row.what {
            What::Receipt(_) => ("r/T1", false),
            What::Message(addressed) => ("c/T1", addressed.message.is_over(now)),
        };
        let subscribed = || self.subscriptions.iter().any(|subscription| subscription.filter == topic);
        let hears = if *rights == Rights::Terminal { subscribed() } else { self.expiry_s > 0 };
        hears && !over && self.watch.takes(512)
    }

    pub(crate) fn ticket(&mut self, ticket: u32, payload: &[u8], remember: Option<NonZeroU16>) {
        let serial = std::str::from_utf8(payload).expect("text").parse().expect("a number");
        assert!(self.tickets.iter().all(|(other, ..)| *other != ticket), "a ticket for two");
        assert!(remember.is_none() || self.expiry_s > 0, "nothing outlives this connection");
        self.tickets.push((ticket, serial, remember));
    }
}

/// A CONNECT, made of some bytes or read from them as a server does.
pub(crate) fn connect(bytes: &mut Bytes<'_>) -> Option<(Version, mqtt::Connect)> {
    let flags = bytes.byte()?;
    if flags & 0x80 != 0 && flags & 0x40 != 0 {
        let frame = bytes.some()?;
        let version = strict::version(frame).ok()?.ok()?;
        let frames = Frames::new(version, FRAME_BYTES_MAX);
        return match frames.decode(&mut BytesMut::from(frame)) {
            Ok(Some(Inbound::Packet(Packet::Connect(connect)))) => Some((version, *connect)),
            _ => None,
        };
    }
    let version = if flags & 1 == 0 { Version::V3 } else { Version::V5 };
    let some = bytes.byte()?;
    let five = version == Version::V5;
    Some((
        version,
        mqtt::Connect {
            clean_start: flags & 2 != 0,
            keep_alive: [0, 10, 60, u16::MAX][usize::from(flags >> 2 & 3)],
            session_expiry_interval_secs: if five { [0, 1, 3600, u32::MAX][usize::from(flags >> 4 & 3)] } else { 0 },
            auth_method: None,
            auth_data: None,
            request_problem_info: some & 1 == 0,
            request_response_info: five && some & 2 != 0,
            receive_max: if five { NonZeroU16::new([0, 1, 2, 7][usize::from(some >> 2 & 3)]) } else { None },
            topic_alias_max: if five { [0, 1, 2, 20][usize::from(some >> 4 & 3)] } else { 0 },
            user_properties: Vec::new(),
            max_packet_size: if five {
                NonZeroU32::new(if some == 0xFF { 20 } else { [0, 48, 100, 300][usize::from(some >> 6)] })
            } else {
                None
            },
            last_will: None,
            client_id: if flags & 0x40 == 0 || flags & 2 == 0 { "T1".into() } else { ByteString::new() },
            username: None,
            password: None,
        },
    ))
}
