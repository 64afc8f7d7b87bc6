//! Packets and bytes, of all connections of this process. One for each kind, side by side, without a way to it.

use ntex_mqtt::v5::codec::{Packet, QoS};

use super::counts::Count;

/// What came, and what was written to sockets.
pub static RECEIVED: Direction = Direction::new();
pub static SENT: Direction = Direction::new();
/// TLS: connections that went on with keys of an earlier one.
pub static RESUMED: Count = Count::new();
/// TLS: handshakes that were done, and those that were not.
pub static SHAKEN: Count = Count::new();
pub static UNSHAKEN: Count = Count::new();

/// One of the two.
#[derive(Debug)]
pub struct Direction {
    /// By the packet's type (2.1.2).
    kinds: [Flow; KINDS],
    publishes: [Count; 3],
    /// Of publishes.
    payload_bytes: Count,
}

#[derive(Debug)]
struct Flow {
    packets: Count,
    bytes: Count,
}

const KINDS: usize = 16;

/// The names of packets by their type.
const NAMES: [&str; KINDS] = [
    "",
    "connect",
    "connack",
    "publish",
    "puback",
    "pubrec",
    "pubrel",
    "pubcomp",
    "subscribe",
    "suback",
    "unsubscribe",
    "unsuback",
    "pingreq",
    "pingresp",
    "disconnect",
    "auth",
];

impl Direction {
    const fn new() -> Self {
        Self {
            kinds: [const { Flow { packets: Count::new(), bytes: Count::new() } }; KINDS],
            publishes: [const { Count::new() }; 3],
            payload_bytes: Count::new(),
        }
    }

    /// A frame, by its first byte.
    pub fn frame(&self, first: u8, bytes: usize) {
        if let Some(flow) = self.kinds.get(usize::from(first >> 4)) {
            flow.packets.one();
            flow.bytes.add(u64::try_from(bytes).unwrap_or(u64::MAX));
        }
    }

    pub fn publish(&self, qos: QoS, payload: usize) {
        if let Some(count) = self.publishes.get(qos as usize) {
            count.one();
        }
        self.payload_bytes.add(u64::try_from(payload).unwrap_or(u64::MAX));
    }

    /// Each type that there is with its packets and bytes.
    pub fn kinds(&self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        let named = NAMES.iter().zip(&self.kinds).skip(1);
        named.map(|(name, flow)| (*name, flow.packets.get(), flow.bytes.get()))
    }

    /// By QoS.
    #[must_use]
    pub fn publishes(&self) -> [u64; 3] {
        [0, 1, 2].map(|qos: usize| self.publishes.get(qos).map_or(0, Count::get))
    }

    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes.get()
    }

    #[must_use]
    pub fn packets(&self) -> u64 {
        self.kinds().map(|(_, packets, _)| packets).sum()
    }

    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.kinds().map(|(_, _, bytes)| bytes).sum()
    }
}

/// The first bytes of packets, without their flags.
pub const CONNECT: u8 = 1 << 4;
pub const PUBLISH: u8 = 3 << 4;

/// That of a packet that is no PUBLISH.
#[must_use]
pub const fn kind(packet: &Packet) -> u8 {
    (match packet {
        Packet::Connect(_) => 1,
        Packet::ConnectAck(_) => 2,
        Packet::PublishAck(_) => 4,
        Packet::PublishReceived(_) => 5,
        Packet::PublishRelease(_) => 6,
        Packet::PublishComplete(_) => 7,
        Packet::Subscribe(_) => 8,
        Packet::SubscribeAck(_) => 9,
        Packet::Unsubscribe(_) => 10,
        Packet::UnsubscribeAck(_) => 11,
        Packet::PingRequest => 12,
        Packet::PingResponse => 13,
        Packet::Disconnect(_) => 14,
        Packet::Auth(_) => 15,
    }) << 4
}
