//! The codec of one connection, with what passes through it counted.

use std::borrow::Borrow;

use ntex_bytes::{BytePages, BytesMut};
use ntex_codec::{Decoder, Encoder};
use ntex_mqtt::error::EncodeError;
use wakala::session::strict::Flaw;

use super::frames::{Frames, Inbound, Outbound};
use crate::metrics::wire::{PUBLISH, RECEIVED, SENT, kind};

/// [`Frames`], counted.
#[derive(Debug)]
pub(crate) struct Counted<F>(pub(crate) F);

impl<F: Borrow<Frames>> Decoder for Counted<F> {
    type Item = Inbound;
    type Error = Flaw;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Inbound>, Flaw> {
        let (first, before) = (src.first().copied().unwrap_or(0), src.len());
        let inbound = self.0.borrow().decode(src)?;
        if let Some(inbound) = &inbound {
            RECEIVED.frame(first, before - src.len());
            if let Inbound::Publish(publish, payload) = inbound {
                RECEIVED.publish(publish.qos, payload.len());
            }
        }
        Ok(inbound)
    }
}

impl<F: Borrow<Frames>> Encoder for Counted<F> {
    type Item = Outbound;
    type Error = EncodeError;

    fn encodev(&self, item: Outbound, dst: &mut BytePages) -> Result<(), EncodeError> {
        let (before, publish) = (dst.len(), as_publish(&item));
        let first = if let Outbound::Packet(packet) = &item { kind(packet) } else { PUBLISH };
        self.0.borrow().encodev(item, dst)?;
        let bytes = dst.len() - before;
        // MQTT 3.1.1 has no word for some of them.
        if bytes > 0 {
            SENT.frame(first, bytes);
        }
        if let Some((qos, payload)) = publish {
            SENT.publish(qos, payload);
        }
        Ok(())
    }
}

fn as_publish(item: &Outbound) -> Option<(ntex_mqtt::v5::codec::QoS, usize)> {
    match item {
        Outbound::Publish(publish, payload) => Some((publish.qos, payload.len())),
        Outbound::Packet(_) => None,
    }
}
