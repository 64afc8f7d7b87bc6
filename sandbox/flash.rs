//! What a terminal holds in flash memory: it outlives every loss of power, and the auditor reads it as the terminal's
//! testimony.
//!
//! A request is stored before its first byte leaves, a receipt before it is acknowledged.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message as _;
use wakala::id::RequestKey;
use wakala::wire;

use crate::plan::Manner;

/// Flash memory. Every change is made under its lock, whole or not at all.
#[derive(Debug, Default)]
pub struct Flash(Mutex<Stored>);

impl Flash {
    /// The stored state. The lock is held for moments and never across a wait.
    pub fn lock(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
pub struct Stored {
    /// The last key counter that was used; 0 before the first.
    pub counter: u32,
    /// The last packet identifier that was used.
    packet: u16,
    /// Whether the server has confirmed the subscription to the receipts.
    pub subscribed: bool,
    /// How many steps of the plan have their receipt.
    pub done: usize,
    /// The request that has no receipt yet, by its place in `requests`.
    pub open: Option<usize>,
    /// PUBLISH packets that were sent and not acknowledged, oldest first: identifier, place in `requests`.
    pub unacknowledged: Vec<(u16, usize)>,
    pub requests: Vec<Sent>,
    /// What was received and answers no request of this terminal.
    pub strange: Vec<Strange>,
}

/// A request as it was stored before it was sent.
#[derive(Debug)]
pub struct Sent {
    /// The step of the plan that it carries out.
    pub step: usize,
    pub manner: Manner,
    pub key: RequestKey,
    /// The key counter of its KSN; `None` for bytes that have none.
    pub counter: Option<u32>,
    /// What goes out, each time the same.
    pub bytes: Vec<u8>,
    pub first_sent: Option<Instant>,
    /// How often it was published, repetitions included.
    pub published: u32,
    /// When each PUBACK came.
    pub pubacks: Vec<Instant>,
    /// PENDING notices received.
    pub notices: u32,
    /// Every final receipt received, as it came; the first is the receipt, the others are copies.
    pub receipts: Vec<Receipt>,
}

/// A final receipt as it came.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The bytes of the PUBLISH: a serialised `ReceiptEnvelope`.
    pub bytes: Vec<u8>,
    pub at: Instant,
    /// Whether its code is the one that it must have.
    pub authentic: bool,
}

impl Receipt {
    /// What it says; bytes that say nothing say the default.
    #[must_use]
    pub fn read(&self) -> wire::Receipt {
        wire::ReceiptEnvelope::decode(&self.bytes[..])
            .and_then(|envelope| wire::Receipt::decode(&envelope.body[..]))
            .unwrap_or_default()
    }
}

/// Something that a terminal should never receive.
#[derive(Debug)]
pub struct Strange {
    pub topic: String,
    pub bytes: Vec<u8>,
    pub why: &'static str,
}

impl Stored {
    /// The next key counter that X9.24-3 allows; `None` when the initial key is used up.
    pub fn next_counter(&mut self) -> Option<u32> {
        self.counter = wakala::pin::dukpt::next_counter(self.counter)?;
        Some(self.counter)
    }

    /// A packet identifier that is not in use (MQTT 2.2.1), kept with what it is used for.
    pub fn next_packet(&mut self, request: usize) -> u16 {
        loop {
            self.packet = self.packet.checked_add(1).unwrap_or(1);
            if self.unacknowledged.iter().all(|&(id, _)| id != self.packet) {
                self.unacknowledged.push((self.packet, request));
                return self.packet;
            }
        }
    }

    /// A PUBACK came.
    pub fn acknowledged(&mut self, id: u16, at: Instant) {
        if let Some(place) = self.unacknowledged.iter().position(|&(open, _)| open == id) {
            let (_, request) = self.unacknowledged.remove(place);
            self.requests[request].pubacks.push(at);
        }
    }

    /// The request that `receipt` answers. Of two with one key, the refusal of a reused key answers the later one.
    #[must_use]
    pub fn answered_by(&self, receipt: &wire::Receipt) -> Option<usize> {
        let of_key = |reused: bool| {
            self.requests
                .iter()
                .position(|sent| sent.key.0[..] == receipt.key[..] && (sent.manner == Manner::ReusesKey) == reused)
        };
        let reused = receipt.outcome == i32::from(wire::Outcome::Refused) && receipt.code == "94";
        if reused { of_key(true) } else { of_key(false) }
    }
}

impl Sent {
    /// From the first byte sent to the first receipt.
    #[must_use]
    pub fn took(&self) -> Option<Duration> {
        let receipt = self.receipts.first()?;
        Some(receipt.at.duration_since(self.first_sent?))
    }
}
