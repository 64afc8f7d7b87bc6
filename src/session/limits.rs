//! The bounds of one session.

use std::num::{NonZeroU16, NonZeroU32};
use std::time::Duration;

use super::pace::Pace;

/// What a session may take, each with its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest keep-alive; a client of MQTT 5 that asks for more, or for none, is told that it has this one.
    pub keep_alive_max: Duration,
    /// The same for a 3.1.1 client, which cannot be told. After one and a half of it without a packet its link is dead.
    pub keep_alive_unannounced_max: Duration,
    /// The longest time that a session outlives its connection.
    pub session_expiry_max: Duration,
    /// The largest packet that is taken, in bytes.
    pub packet_bytes_max: u32,
    /// Publishes of a client that may wait to be durable (Receive Maximum).
    pub inbound_max: NonZeroU16,
    /// Publishes of a 3.1.1 client at QoS 1 and 2 that may be incomplete; more end the connection. That version has no
    /// Receive Maximum to say so.
    pub unreleased_max: NonZeroU16,
    /// Publishes to a guest that may wait for its PUBACK or PUBCOMP; a client's own Receive Maximum may be less.
    pub outbound_max: NonZeroU16,
    /// The same of a terminal: on a slow link, what is sent ahead delays all that follows it.
    pub terminal_outbound_max: NonZeroU16,
    /// Requests of one client on their way into the log at once; with 1 they enter it in the order of arrival.
    pub admitting_max: NonZeroU16,
    /// Messages above QoS 0 for a client whose session ends with its connection that may wait for it; more are dropped.
    pub direct_max: NonZeroU16,
    /// Bytes that they take in memory, with their topics and properties: with as many the next one is dropped.
    pub direct_bytes_max: NonZeroU32,
    /// Subscriptions of one client; more are refused.
    pub subscriptions_max: NonZeroU16,
    /// Topic aliases in each direction (Topic Alias Maximum).
    pub topic_alias_max: u16,
    /// Deliveries that a session keeps in memory; the rest stay in the database.
    pub page: NonZeroU16,
    /// How long a client may leave every delivery unacknowledged before the connection is given up.
    pub ack_within: Duration,
    /// How fast a client may publish.
    pub pace: Pace,
}
