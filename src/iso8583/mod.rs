//! ISO 8583:1987: messages between a switch and a core banking system.
//!
//! A message is a message type indicator (MTI), one or two bit maps that say which data elements (DE) follow, and those
//! data elements in ascending order. How each is written down differs from bank to bank, so all of that is data: a
//! [`Dialect`], one TOML file per bank in `config/banks/`. [`Layout`] is its part that the codec needs, [`Framing`] the
//! part that cuts a byte stream into messages.
//!
//! Reading is total: any bytes give a [`Message`] or a [`Malformed`] that names the data element and the byte. Values
//! are wiped when dropped, for any of them may be card data; none is ever printed whole (see [`Message`]'s `Debug`).

mod codec;
mod dialect;
mod format;
mod framing;
mod message;

#[cfg(test)]
mod tests;

pub use codec::{Fault, Layout, Malformed, Place, Unfit, Unfitness};
pub use dialect::{Answers, Dialect, Invalid, Matching, Shape, Source};
pub use format::{Body, Class, Format, Length, Prefix};
pub use framing::{BadFrame, Framing, LengthPrefix};
pub use message::{Bytes, Message, Mti, Value};
