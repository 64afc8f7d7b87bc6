//! MQTT packets as values, in the version that the terminal speaks.

use ntex_bytes::Bytes;
use ntex_mqtt::{v3::codec as v3, v5::codec as v5};
use wakala::session::{Version, lift};

/// One packet on a connection.
#[derive(Debug)]
pub(crate) enum Mqtt {
    V3(v3::Packet),
    V3Publish(v3::Publish, Bytes),
    V5(v5::Packet),
    V5Publish(v5::Publish, Bytes),
}

/// A packet of a client, raised to MQTT 5.
pub(crate) enum Raised {
    Packet(v5::Packet),
    Publish(v5::Publish, Bytes),
}

impl Mqtt {
    /// A server's packet in a client's version; `None` for what that version does not have.
    pub(crate) fn packet(version: Version, packet: v5::Packet) -> Option<Self> {
        match version {
            Version::V3 => lift::lower(packet).map(Self::V3),
            Version::V5 => Some(Self::V5(packet)),
        }
    }

    pub(crate) fn publish(version: Version, publish: v5::Publish, payload: Bytes) -> Self {
        match version {
            Version::V3 => Self::V3Publish(lift::lower_publish(publish), payload),
            Version::V5 => Self::V5Publish(publish, payload),
        }
    }

    pub(crate) fn version(&self) -> Version {
        match self {
            Self::V3(_) | Self::V3Publish(..) => Version::V3,
            Self::V5(_) | Self::V5Publish(..) => Version::V5,
        }
    }

    pub(crate) fn raised(self) -> Raised {
        match self {
            Self::V3(packet) => Raised::Packet(lift::packet(packet)),
            Self::V3Publish(publish, payload) => Raised::Publish(lift::publish(publish), payload),
            Self::V5(packet) => Raised::Packet(packet),
            Self::V5Publish(publish, payload) => Raised::Publish(publish, payload),
        }
    }
}
