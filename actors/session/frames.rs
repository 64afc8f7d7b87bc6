//! Bytes to packets and back, for one connection: each frame is checked whole before it is decoded.

use std::cell::Cell;

use ntex_bytes::{BytePages, Bytes, BytesMut};
use ntex_codec::{Decoder, Encoder};
use ntex_mqtt::error::{DecodeError, EncodeError};
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
use ntex_mqtt::{v3::codec as v3, v5::codec as v5};
use wakala::mqtt::Publish;
use wakala::session::strict::{self, Flaw};
use wakala::session::{Version, lift};

/// What a client sent.
#[derive(Debug)]
pub enum Inbound {
    Packet(v5::Packet),
    Publish(Publish, Bytes),
}

/// What a client is sent.
#[derive(Debug)]
pub enum Outbound {
    Packet(v5::Packet),
    Publish(Publish, Bytes),
}

/// The codec of one connection.
#[derive(Debug)]
pub struct Frames {
    codec: Codec,
    bytes_max: Cell<u32>,
}

#[derive(Debug)]
enum Codec {
    V3(v3::Codec),
    V5(v5::Codec),
}

impl Frames {
    /// Takes frames of at most `bytes_max` bytes, header included.
    #[must_use]
    pub fn new(version: Version, bytes_max: u32) -> Self {
        let codec = match version {
            Version::V3 => Codec::V3(v3::Codec::new()),
            Version::V5 => Codec::V5(v5::Codec::new()),
        };
        Self { codec, bytes_max: Cell::new(bytes_max) }
    }

    /// Takes frames of at most this many bytes from now on.
    pub fn set_bytes_max(&self, bytes_max: u32) {
        self.bytes_max.set(bytes_max);
    }

    #[must_use]
    pub fn version(&self) -> Version {
        match self.codec {
            Codec::V3(_) => Version::V3,
            Codec::V5(_) => Version::V5,
        }
    }

    /// Of a whole frame.
    fn decode_packet(&self, frame: &mut BytesMut) -> Result<Option<v5::Packet>, DecodeError> {
        Ok(match &self.codec {
            Codec::V3(codec) => match codec.decode(frame)? {
                Some(v3::Decoded::Packet(packet, _)) => Some(lift::packet(packet)),
                _ => None,
            },
            Codec::V5(codec) => match codec.decode(frame)? {
                Some(v5::Decoded::Packet(packet, _)) => Some(packet),
                _ => None,
            },
        })
    }
}

impl Decoder for Frames {
    type Item = Inbound;
    type Error = Flaw;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Inbound>, Flaw> {
        let Some(bytes) = strict::frame_bytes(src, self.bytes_max.get())? else { return Ok(None) };
        let Some(frame) = src.get(..bytes) else {
            src.reserve(bytes - src.len());
            return Ok(None);
        };
        let expiry_of_zero = strict::frame(self.version(), frame)?;
        // A frame of its own: what a session keeps of it must not keep the whole read buffer.
        let frame = src.split_to(bytes);
        let inbound = if is_publish(&frame) {
            let (publish, payload) =
                Publish::read(self.version(), &Bytes::copy_from_slice(&frame)).ok_or(UNREADABLE)?;
            Inbound::Publish(publish, payload)
        } else {
            let mut frame = BytesMut::from(&*frame);
            if let Some(at) = expiry_of_zero {
                strict::mend(&mut frame, at);
            }
            Inbound::Packet(self.decode_packet(&mut frame).map_err(flaw)?.ok_or(UNREADABLE)?)
        };
        Ok(Some(inbound))
    }
}

impl Encoder for Frames {
    type Item = Outbound;
    type Error = EncodeError;

    fn encodev(&self, item: Outbound, dst: &mut BytePages) -> Result<(), EncodeError> {
        match (&self.codec, item) {
            (Codec::V3(codec), Outbound::Packet(packet)) => match lift::lower(packet) {
                Some(packet) => codec.encodev(v3::Encoded::Packet(packet), dst),
                None => Ok(()),
            },
            (Codec::V5(codec), Outbound::Packet(packet)) => codec.encodev(v5::Encoded::Packet(packet), dst),
            (_, Outbound::Publish(publish, payload)) => {
                publish.write(self.version(), payload, dst);
                Ok(())
            }
        }
    }
}

fn is_publish(frame: &[u8]) -> bool {
    frame.first().is_some_and(|first| first >> 4 == 3)
}

const UNREADABLE: Flaw = Flaw { reason: Reason::MalformedPacket, why: "not a packet of this version of MQTT" };

/// A codec's error does not always say which fault it is; what it refuses beyond [`strict`] cannot be parsed.
fn flaw(error: DecodeError) -> Flaw {
    match error {
        DecodeError::MaxSizeExceeded { .. } => {
            Flaw { reason: Reason::PacketTooLarge, why: "larger than the maximum packet size" }
        }
        _ => UNREADABLE,
    }
}
