//! Bytes that nobody chose. What must hold of any: no panic; it is refused, or it is a packet that, written again by the
//! codec, passes every check and reads the same.

use ntex_bytes::{BytePages, BytesMut};
use ntex_codec::{Decoder, Encoder};
use wakala::session::{Version, strict};

use crate::frames::{Frames, Inbound, Outbound};

/// A terminal sends nothing longer.
const BYTES_MAX: u32 = 1 << 20;

/// Whether the bytes begin with a packet of this version.
///
/// # Panics
/// When what must hold does not.
pub(crate) fn is_packet(version: Version, bytes: &[u8]) -> bool {
    let _ = strict::version(bytes);
    let _ = strict::nameless(bytes);
    let frames = Frames::new(version, BYTES_MAX);
    let mut buffer = BytesMut::from(bytes);
    let Ok(Some(inbound)) = frames.decode(&mut buffer) else { return false };
    let first = format!("{inbound:?}");
    let outbound = match inbound {
        Inbound::Packet(packet) => Outbound::Packet(packet),
        Inbound::Publish(publish, payload) => Outbound::Publish(publish, payload),
    };
    let mut pages = BytePages::default();
    frames.encodev(outbound, &mut pages).expect("what was read can be written");
    let mut again = BytesMut::from(&*pages.freeze());
    // MQTT 3.1.1 does not write what only a client sends.
    if !again.is_empty() {
        let read = frames.decode(&mut again).expect("what was written is right");
        assert_eq!(format!("{:?}", read.expect("and whole")), first, "it reads otherwise once it is written again");
        assert!(again.is_empty(), "more was written than a packet");
    }
    true
}
