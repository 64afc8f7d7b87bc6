//! Where else a client may go when this server stops or is full (4.11, 4.13): MQTT 5 clients are told so.

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{ConnectAck, ConnectAckReason, Disconnect, DisconnectReasonCode as Reason, Packet};

use super::connect::refuse;
use super::{Effect, Session, Version};

/// Other servers, as a Server Reference names them (4.11): `mqtt-2.bank.example:8883`. None of them: nobody is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere(std::sync::Arc<[String]>);

/// What DISCONNECT and CONNACK have besides a reference and a reason: the fixed header, flags, codes and lengths.
const REST_BYTES: usize = 24;

impl Elsewhere {
    #[must_use]
    pub fn new(servers: &[String]) -> Self {
        Self(servers.into())
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in an order of this client's own: those who are sent away together do not all go to the first.
    fn reference(&self, client: &str) -> Option<ByteString> {
        // FNV-1a. Any spread will do, as long as it is the same at every node and in every release.
        let hash =
            client.bytes().fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let first = hash as usize % self.0.len().max(1);
        let (after, from) = self.0.split_at(first);
        let servers: Vec<&str> = from.iter().chain(after).map(String::as_str).collect();
        (!servers.is_empty()).then(|| ByteString::from(servers.join(" ")))
    }

    /// What a client hears that is not let in here, in a packet of so many bytes at most [MQTT-3.1.2-24].
    #[must_use]
    pub fn refuse(&self, client: &str, packet_bytes_max: u32) -> ConnectAck {
        match self.reference(client) {
            Some(reference) if reference.len() + REST_BYTES <= packet_bytes_max as usize => {
                ConnectAck { server_reference: Some(reference), ..refuse(ConnectAckReason::UseAnotherServer) }
            }
            _ => refuse(ConnectAckReason::ServerBusy),
        }
    }
}

impl Session {
    /// The server stops, or wants to have fewer clients.
    pub(super) fn leave(&mut self, elsewhere: &Elsewhere, why: &'static str, effects: &mut Vec<Effect>) {
        let bytes_max = self.terms.packet_bytes_max as usize;
        let reference = elsewhere.reference(self.client.as_str());
        let reference = reference.filter(|reference| reference.len() + why.len() + REST_BYTES <= bytes_max);
        match reference.filter(|_| self.terms.version == Version::V5 && self.greeted) {
            Some(reference) => {
                let disconnect = Disconnect {
                    reason_string: self.terms.explain(why, reference.len() + 3),
                    server_reference: Some(reference),
                    ..Disconnect::new(Reason::UseAnotherServer)
                };
                effects.push(Effect::Send(Packet::Disconnect(disconnect)));
                self.close(None, why, effects);
            }
            None => self.close(Some(Reason::ServerShuttingDown), why, effects),
        }
    }
}
