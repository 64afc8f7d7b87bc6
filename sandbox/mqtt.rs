//! The packets that a terminal needs, MQTT 3.1.1 and 5, written from the OASIS standards and not from the server's codec:
//! two readings of one standard find each other's mistakes.

use std::fmt;

/// Which of the two a terminal speaks: the protocol level byte of CONNECT (3.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311 = 4,
    V5 = 5,
}

/// What a terminal says of itself when it connects.
#[derive(Clone, Copy, Debug)]
pub struct Connect<'a> {
    pub client_id: &'a str,
    /// The user name is the client identifier.
    pub password: Option<&'a str>,
    /// Discards the stored session.
    pub clean: bool,
    /// Seconds; 0 for none.
    pub keep_alive: u16,
}

/// What a server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    ConnAck { session_present: bool, code: u8 },
    Publish { topic: String, payload: Vec<u8>, qos: u8, dup: bool, retain: bool, id: u16 },
    PubAck { id: u16, code: u8 },
    SubAck { id: u16, codes: Vec<u8> },
    PingResp,
    Disconnect { code: u8 },
}

/// Bytes that the standard does not allow a server to send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server broke the protocol: {0}")]
pub struct Broken(pub &'static str);

/// How long a version 5 session outlives its connection, in seconds: a week.
pub const SESSION_EXPIRY_S: u32 = 7 * 24 * 3600;

/// The largest packet that a terminal takes, in bytes.
const PACKET_MAX: usize = 64 * 1024;

/// MQTT 5, 2.2.2.2: session expiry interval.
const PROPERTY_SESSION_EXPIRY: u8 = 0x11;

impl Version {
    #[must_use]
    pub fn connect(self, connect: &Connect<'_>) -> Vec<u8> {
        let mut body = Vec::with_capacity(64);
        string(&mut body, "MQTT");
        body.push(self as u8);
        let mut flags = 0;
        if connect.clean {
            flags |= 0x02;
        }
        if connect.password.is_some() {
            flags |= 0xC0;
        }
        body.push(flags);
        body.extend_from_slice(&connect.keep_alive.to_be_bytes());
        if self == Self::V5 {
            body.extend_from_slice(&[5, PROPERTY_SESSION_EXPIRY]);
            body.extend_from_slice(&SESSION_EXPIRY_S.to_be_bytes());
        }
        string(&mut body, connect.client_id);
        if let Some(password) = connect.password {
            string(&mut body, connect.client_id);
            string(&mut body, password);
        }
        framed(0x10, &body)
    }

    /// A PUBLISH at QoS 1.
    #[must_use]
    pub fn publish(self, topic: &str, id: u16, dup: bool, payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::with_capacity(topic.len() + payload.len() + 8);
        string(&mut body, topic);
        body.extend_from_slice(&id.to_be_bytes());
        self.no_properties(&mut body);
        body.extend_from_slice(payload);
        framed(0x32 | if dup { 0x08 } else { 0 }, &body)
    }

    /// "Success" has no reason code and no properties in either version (MQTT 5, 3.4.2.1).
    #[must_use]
    pub fn puback(self, id: u16) -> Vec<u8> {
        framed(0x40, &id.to_be_bytes())
    }

    /// A SUBSCRIBE to one filter at QoS 1.
    #[must_use]
    pub fn subscribe(self, id: u16, filter: &str) -> Vec<u8> {
        let mut body = id.to_be_bytes().to_vec();
        self.no_properties(&mut body);
        string(&mut body, filter);
        body.push(1);
        framed(0x82, &body)
    }

    #[must_use]
    pub fn pingreq(self) -> Vec<u8> {
        vec![0xC0, 0]
    }

    #[must_use]
    pub fn disconnect(self) -> Vec<u8> {
        vec![0xE0, 0]
    }

    fn no_properties(self, body: &mut Vec<u8>) {
        if self == Self::V5 {
            body.push(0);
        }
    }

    /// Takes the first packet off `buffer`; `None` when it is not whole yet.
    ///
    /// # Errors
    /// When the bytes are no packet that a server may send.
    pub fn read(self, buffer: &mut Vec<u8>) -> Result<Option<Packet>, Broken> {
        let Some((length, header)) = remaining_length(buffer)? else { return Ok(None) };
        if buffer.len() < header + length {
            return Ok(None);
        }
        let rest = buffer.split_off(header + length);
        let packet = std::mem::replace(buffer, rest);
        self.packet(packet[0], Bytes(&packet[header..])).map(Some)
    }

    fn packet(self, first: u8, mut body: Bytes<'_>) -> Result<Packet, Broken> {
        let packet = match (first >> 4, first & 0x0F) {
            (2, 0) => {
                let flags = body.byte()?;
                let code = body.byte()?;
                if flags > 1 {
                    return Err(Broken("CONNACK flags"));
                }
                self.skip_properties(&mut body)?;
                Packet::ConnAck { session_present: flags == 1, code }
            }
            (3, flags) => return self.publish_received(flags, body),
            (4, 0) => {
                let id = body.two()?;
                Packet::PubAck { id, code: self.reason(&mut body)? }
            }
            (9, 0) => {
                let id = body.two()?;
                self.skip_properties(&mut body)?;
                Packet::SubAck { id, codes: body.rest().to_vec() }
            }
            (13, 0) => Packet::PingResp,
            (14, 0) if self == Self::V5 => Packet::Disconnect { code: self.reason(&mut body)? },
            _ => return Err(Broken("a packet that no server sends")),
        };
        if body.0.is_empty() { Ok(packet) } else { Err(Broken("bytes after the end")) }
    }

    fn publish_received(self, flags: u8, mut body: Bytes<'_>) -> Result<Packet, Broken> {
        let (dup, qos, retain) = (flags & 8 != 0, (flags >> 1) & 3, flags & 1 != 0);
        if qos > 1 || (qos == 0 && dup) {
            return Err(Broken("PUBLISH flags"));
        }
        let topic = body.string()?.to_owned();
        let id = if qos == 0 { 0 } else { body.two()? };
        if qos == 1 && id == 0 {
            return Err(Broken("packet identifier 0"));
        }
        self.skip_properties(&mut body)?;
        Ok(Packet::Publish { topic, payload: body.rest().to_vec(), qos, dup, retain, id })
    }

    /// An optional reason code and optional properties at the end of a version 5 packet.
    fn reason(self, body: &mut Bytes<'_>) -> Result<u8, Broken> {
        if self == Self::V311 || body.0.is_empty() {
            return Ok(0);
        }
        let code = body.byte()?;
        if !body.0.is_empty() {
            self.skip_properties(body)?;
        }
        Ok(code)
    }

    fn skip_properties(self, body: &mut Bytes<'_>) -> Result<(), Broken> {
        if self == Self::V5 {
            let (length, size) = variable(body.0)?.ok_or(Broken("properties cut short"))?;
            body.take(size)?;
            body.take(length)?;
        }
        Ok(())
    }
}

/// What is left of a packet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Broken("a packet cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn byte(&mut self) -> Result<u8, Broken> {
        Ok(self.take(1)?[0])
    }

    fn two(&mut self) -> Result<u16, Broken> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn string(&mut self) -> Result<&'a str, Broken> {
        let length = self.two()?;
        std::str::from_utf8(self.take(length.into())?).map_err(|_| Broken("a topic that is not UTF-8"))
    }
}

/// A variable byte integer and how many bytes it takes; `None` when it is not whole.
fn variable(bytes: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
    let mut value = 0;
    for at in 0..4 {
        let Some(&byte) = bytes.get(at) else { return Ok(None) };
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    Err(Broken("a length of more than four bytes"))
}

/// The remaining length, and where the variable header begins.
fn remaining_length(buffer: &[u8]) -> Result<Option<(usize, usize)>, Broken> {
    let Some((_, after_first)) = buffer.split_first() else { return Ok(None) };
    match variable(after_first)? {
        Some((length, _)) if length > PACKET_MAX => Err(Broken("a packet larger than a terminal takes")),
        Some((length, size)) => Ok(Some((length, 1 + size))),
        None => Ok(None),
    }
}

fn string(body: &mut Vec<u8>, text: &str) {
    body.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    body.extend_from_slice(text.as_bytes());
}

fn framed(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(body.len() + 5);
    packet.push(first);
    let mut length = body.len();
    loop {
        let byte = u8::try_from(length & 0x7F).unwrap_or(0x7F);
        length >>= 7;
        packet.push(if length > 0 { byte | 0x80 } else { byte });
        if length == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V311 => "3.1.1",
            Self::V5 => "5",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connect_is_what_the_standard_prints() {
        let connect = Connect { client_id: "T1", password: Some("pw"), clean: false, keep_alive: 300 };
        let expected = "101600044d51545404c0012c000254310002543100027077";
        assert_eq!(hex::encode(Version::V311.connect(&connect)), expected);
        let five = hex::encode(Version::V5.connect(&connect));
        assert_eq!(five, "101c00044d51545405c0012c051100093a80000254310002543100027077");
    }

    #[test]
    fn a_publish_carries_its_identifier_and_dup() {
        assert_eq!(hex::encode(Version::V311.publish("q/T1", 10, false, b"x")), "32090004712f5431000a78");
        assert_eq!(hex::encode(Version::V5.publish("q/T1", 10, true, b"x")), "3a0a0004712f5431000a0078");
    }

    #[test]
    fn long_packets_have_long_lengths() {
        let packet = Version::V311.publish("q", 1, false, &[0; 300]);
        assert_eq!(packet[..3], [0x32, 0xB1, 0x02]); // 305
    }

    #[test]
    fn packets_are_read_one_byte_at_a_time() {
        let mut wire = hex::decode("20020100").expect("hex"); // CONNACK, session present
        wire.extend(hex::decode("320900 04722f5431 0007 78".replace(' ', "")).expect("hex"));
        wire.extend([0x40, 2, 0, 9, 0x90, 3, 0, 1, 1, 0xD0, 0]);
        let (mut buffer, mut found) = (Vec::new(), Vec::new());
        for byte in wire {
            buffer.push(byte);
            found.extend(Version::V311.read(&mut buffer).expect("good packets"));
        }
        assert_eq!(
            found,
            [
                Packet::ConnAck { session_present: true, code: 0 },
                Packet::Publish {
                    topic: "r/T1".into(),
                    payload: b"x".to_vec(),
                    qos: 1,
                    dup: false,
                    retain: false,
                    id: 7
                },
                Packet::PubAck { id: 9, code: 0 },
                Packet::SubAck { id: 1, codes: vec![1] },
                Packet::PingResp,
            ]
        );
        assert!(buffer.is_empty());
    }

    #[test]
    fn version_5_properties_are_passed_over() {
        let mut buffer = hex::decode("200800000513 012c2a00".replace(' ', "")).expect("hex");
        let packet = Version::V5.read(&mut buffer).expect("a CONNACK");
        assert_eq!(packet, Some(Packet::ConnAck { session_present: false, code: 0 }));
        let mut buffer = vec![0xE0, 1, 0x8E];
        assert_eq!(Version::V5.read(&mut buffer), Ok(Some(Packet::Disconnect { code: 0x8E })));
    }

    #[test]
    fn what_no_server_sends_is_refused() {
        for wire in ["1000", "3600", "20020200", "30ffffffff01", "3206000172000061", "c000", "4003000100"] {
            let mut buffer = hex::decode(wire).expect("hex");
            assert!(Version::V311.read(&mut buffer).is_err(), "{wire}");
        }
    }
}
