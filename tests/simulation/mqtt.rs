//! MQTT packets as values, in the version that the terminal speaks.

use ntex_bytes::Bytes;
use ntex_mqtt::{v3::codec as v3, v5::codec as v5};
use wakala::mqtt::Publish;
use wakala::session::{Version, lift};

/// One packet on a connection.
#[derive(Debug)]
pub(crate) enum Mqtt {
    V3(v3::Packet),
    V5(v5::Packet),
    Publish(Version, Publish, Bytes),
}

/// A packet of a client, raised to MQTT 5.
pub(crate) enum Raised {
    Packet(v5::Packet),
    Publish(Publish, Bytes),
}

impl Mqtt {
    /// A server's packet in a client's version; `None` for what that version does not have.
    pub(crate) fn packet(version: Version, packet: v5::Packet) -> Option<Self> {
        match version {
            Version::V3 => lift::lower(packet).map(Self::V3),
            Version::V5 => Some(Self::V5(packet)),
        }
    }

    pub(crate) fn version(&self) -> Version {
        match self {
            Self::V3(_) => Version::V3,
            Self::V5(_) => Version::V5,
            Self::Publish(version, ..) => *version,
        }
    }

    pub(crate) fn raised(self) -> Raised {
        match self {
            Self::V3(packet) => Raised::Packet(lift::packet(packet)),
            Self::V5(packet) => Raised::Packet(packet),
            Self::Publish(_, publish, payload) => Raised::Publish(publish, payload),
        }
    }
}
