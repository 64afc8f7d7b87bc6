//! The packets of MQTT 3.1.1 that a load needs, written once and patched: nothing is encoded while the clock runs.

use std::ops::Range;

use anyhow::{Result, ensure};

pub(crate) const CONNACK: u8 = 0x20;
pub(crate) const PUBLISH: u8 = 0x30;
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const SUBACK: u8 = 0x90;

/// A packet's type: the upper half of its first byte.
pub(crate) fn kind(first: u8) -> u8 {
    first & 0xF0
}

pub(crate) fn connect(client_id: &str, clean: bool, password: Option<&str>) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 + client_id.len());
    string(&mut body, "MQTT");
    body.push(4);
    // MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22].
    body.push(if clean { 0x02 } else { 0x00 } | if password.is_some() { 0xC0 } else { 0x00 });
    // Longer than any measurement: pings would be noise.
    body.extend_from_slice(&3600_u16.to_be_bytes());
    string(&mut body, client_id);
    if let Some(password) = password {
        string(&mut body, client_id);
        string(&mut body, password);
    }
    framed(0x10, &body)
}

pub(crate) fn subscribe(filter: &str, qos: u8) -> Vec<u8> {
    let mut body = 1_u16.to_be_bytes().to_vec();
    string(&mut body, filter);
    body.push(qos);
    framed(0x82, &body)
}

pub(crate) const DISCONNECT: [u8; 2] = [0xE0, 0];

pub(crate) fn push_puback(out: &mut Vec<u8>, id: u16) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[0x40, 2, high, low]);
}

/// A PUBLISH that waits for its identifier and its stamp.
#[derive(Debug)]
pub(crate) struct Publish {
    bytes: Vec<u8>,
    /// `None` at QoS 0.
    id_at: Option<usize>,
    stamp_at: usize,
}

/// What the first bytes of each payload say, so that a delivery can be told from another.
pub(crate) const STAMP: usize = 8;

impl Publish {
    /// `size` is of the payload, and at least `STAMP`.
    pub(crate) fn new(topic: &str, qos: u8, size: usize) -> Self {
        let mut body = Vec::with_capacity(4 + topic.len() + size);
        string(&mut body, topic);
        let id_at = (qos > 0).then_some(body.len());
        if qos > 0 {
            body.extend_from_slice(&[0, 0]);
        }
        let stamp_at = body.len();
        let filler = (0_u8..=255).cycle().take(size.max(STAMP));
        body.extend(filler);
        let bytes = framed(0x30 | qos << 1, &body);
        let header = bytes.len() - body.len();
        Self { bytes, id_at: id_at.map(|at| at + header), stamp_at: stamp_at + header }
    }

    pub(crate) fn push(&self, out: &mut Vec<u8>, id: u16, stamp: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let packet = &mut out[start..];
        if let Some(at) = self.id_at {
            packet[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        packet[self.stamp_at..self.stamp_at + STAMP].copy_from_slice(&stamp.to_be_bytes());
    }
}

/// A PUBLISH that has arrived.
#[derive(Debug)]
pub(crate) struct Arrived<'a> {
    pub(crate) topic: &'a [u8],
    /// 0 at QoS 0.
    pub(crate) id: u16,
    pub(crate) stamp: u64,
    pub(crate) size: usize,
}

impl<'a> Arrived<'a> {
    pub(crate) fn read(first: u8, body: &'a [u8]) -> Result<Self> {
        let topic_end = 2 + number(body, 0).map_or(0, usize::from);
        let qos = first >> 1 & 3;
        let payload_at = if qos > 0 { topic_end + 2 } else { topic_end };
        ensure!(body.len() >= payload_at + STAMP, "a PUBLISH of {} bytes is too short", body.len());
        let id = if qos > 0 { number(body, topic_end).unwrap_or(0) } else { 0 };
        ensure!(qos == 0 || id != 0, "a PUBLISH at QoS {qos} without an identifier");
        let mut stamp = [0; STAMP];
        stamp.copy_from_slice(&body[payload_at..payload_at + STAMP]);
        Ok(Self { topic: &body[2..topic_end], id, stamp: u64::from_be_bytes(stamp), size: body.len() - payload_at })
    }
}

/// The big-endian number at `at`: a packet identifier, a length.
pub(crate) fn number(body: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]))
}

/// Where the body of the first packet of `bytes` lies; `None` when it is not whole yet.
pub(crate) fn body(bytes: &[u8]) -> Result<Option<Range<usize>>> {
    let mut length = 0;
    for at in 1..=4 {
        let Some(&byte) = bytes.get(at) else { return Ok(None) };
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            let end = at + 1 + length;
            return Ok((bytes.len() >= end).then_some(at + 1..end));
        }
    }
    anyhow::bail!("a remaining length of more than four bytes (MQTT 3.1.1, 2.2.3)")
}

fn string(body: &mut Vec<u8>, text: &str) {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut rest = body.len();
    loop {
        let low = u8::try_from(rest & 0x7F).unwrap_or(0);
        rest >>= 7;
        packet.push(if rest > 0 { low | 0x80 } else { low });
        if rest == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_read_as_it_was_written() {
        for (qos, size) in [(0, 256), (1, 256), (1, 8), (1, 20_000)] {
            let mut bytes = vec![0xAA];
            Publish::new("t/0007/req", qos, size).push(&mut bytes, 513, 1 << 40);
            let range = body(&bytes[1..]).unwrap().unwrap();
            assert_eq!(range.end, bytes.len() - 1);
            let arrived = Arrived::read(bytes[1], &bytes[1..][range]).unwrap();
            assert_eq!((arrived.topic, arrived.stamp, arrived.size), (&b"t/0007/req"[..], 1 << 40, size));
            assert_eq!(arrived.id, if qos > 0 { 513 } else { 0 });
        }
    }

    #[test]
    fn half_a_packet_is_none_yet() {
        let mut bytes = Vec::new();
        Publish::new("t", 1, 300).push(&mut bytes, 1, 0);
        assert_eq!(bytes.len(), 3 + 3 + 2 + 300);
        for end in 0..bytes.len() {
            assert_eq!(body(&bytes[..end]).unwrap(), None, "{end}");
        }
        assert!(body(&[0x30, 0x80, 0x80, 0x80, 0x80, 1]).is_err());
    }

    #[test]
    fn connect_and_subscribe_are_the_standards() {
        let mut expected = vec![0x10, 13, 0, 4];
        expected.extend_from_slice(b"MQTT\x04\x02\x0e\x10\x00\x01a");
        assert_eq!(connect("a", true, None), expected);
        assert_eq!(&connect("a", false, Some("b"))[9..], b"\xc0\x0e\x10\x00\x01a\x00\x01a\x00\x01b");
        assert_eq!(subscribe("a/b", 1), b"\x82\x08\x00\x01\x00\x03a/b\x01");
    }
}
