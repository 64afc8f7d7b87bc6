//! Wakala decides here. Pure, synchronous, deterministic: no runtime, no driver, no clock, no randomness, no file and no
//! socket. What the world did comes in as values, what is to be done goes out as values, and the crate `wakala-node`
//! (`actors/`) carries it out.
//!
//! The modules in the order in which a request meets them:

/// The messages of `proto/wakala.proto`, generated.
pub mod wire {
    #![allow(clippy::all, clippy::pedantic, missing_debug_implementations, unreachable_pub)]
    include!(concat!(env!("OUT_DIR"), "/wakala.v1.rs"));
}

pub mod card;
pub mod id;
pub mod money;
pub mod time;

pub mod ban;
pub mod bounds;
pub mod hook;
pub mod token;
pub mod turnstile;
pub mod websocket;

pub mod admission;
pub mod conservation;
pub mod load;
pub mod message;
pub mod mqtt;
pub mod presence;
pub mod session;
pub mod topics;

pub mod request;

pub mod pin;

pub mod record;

pub mod partition;
pub mod transaction;

pub mod ledger;

pub mod bank;
pub mod iso8583;

pub mod receipt;
