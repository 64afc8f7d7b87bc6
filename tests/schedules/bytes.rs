//! What a schedule is read from, and what a client writes.

use wakala::session::Version;

/// Bytes that nobody chose, read from the front.
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> Option<usize> {
        self.byte().map(|byte| usize::from(byte) % end)
    }

    /// As many bytes as the next one says, or what is left.
    pub(crate) fn some(&mut self) -> Option<&'a [u8]> {
        let length = usize::from(self.byte()?).min(self.0.len());
        let (some, rest) = self.0.split_at(length);
        self.0 = rest;
        Some(some)
    }
}

/// A frame, its length where it belongs.
pub(crate) fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut left = body.len();
    loop {
        let low = u8::try_from(left & 0x7F).expect("seven bits");
        left >>= 7;
        out.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("short").to_be_bytes());
    out.extend(text.as_bytes());
}

/// A PUBLISH as it is put together.
pub(crate) struct Publish<'a> {
    pub(crate) qos: u8,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) topic: &'a str,
    pub(crate) packet_id: u16,
    pub(crate) alias: u16,
}

impl Publish<'_> {
    pub(crate) fn frame(&self, version: Version) -> Vec<u8> {
        let first = 0x30 | self.qos << 1 | u8::from(self.dup) << 3 | u8::from(self.retain);
        let mut body = Vec::new();
        text(&mut body, self.topic);
        if self.qos > 0 {
            body.extend(self.packet_id.to_be_bytes());
        }
        match (version, self.alias) {
            (Version::V3, _) => {}
            (Version::V5, 0) => body.push(0),
            (Version::V5, alias) => {
                body.extend([3, 0x23]);
                body.extend(alias.to_be_bytes());
            }
        }
        body.extend(b"payload");
        frame(first, &body)
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
pub(crate) fn acknowledgement(version: Version, first: u8, packet_id: u16, reason: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 && reason != 0 {
        body.push(reason);
    }
    frame(first, &body)
}

pub(crate) fn subscribe(version: Version, packet_id: u16, filters: &[(&str, u8)]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for (filter, qos) in filters {
        text(&mut body, filter);
        body.push(*qos);
    }
    frame(0x82, &body)
}

pub(crate) fn unsubscribe(version: Version, packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    filters.iter().for_each(|filter| text(&mut body, filter));
    frame(0xA2, &body)
}
