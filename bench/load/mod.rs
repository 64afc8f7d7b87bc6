//! The loads, one per file.

pub(crate) mod connects;
pub(crate) mod fan_out;
pub(crate) mod join;
pub(crate) mod memory;
pub(crate) mod publish;
pub(crate) mod queue;
pub(crate) mod requests;
pub(crate) mod storm;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::links::{Links, Play};
use crate::tls::Tls;

/// What all loads are told.
#[derive(Debug)]
pub(crate) struct Setting {
    pub(crate) target: SocketAddr,
    pub(crate) tls: Option<Tls>,
    /// Of the tokens that clients bear, where the load has them bear any.
    pub(crate) secret: Option<ring::hmac::Key>,
    /// The broker's processes.
    pub(crate) pids: Vec<u32>,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// How long the broker may leave what it owes.
    pub(crate) patience: Duration,
    /// Bytes of each payload.
    pub(crate) size: usize,
}

impl Setting {
    pub(crate) fn links(&self, count: usize) -> Result<Links> {
        Links::new(self.target, self.tls.clone(), count)
    }
}

/// Lets `play` go on for so long.
fn go_on(links: &mut Links, play: &mut impl Play, span: Duration) -> Result<()> {
    let end = Instant::now() + span;
    while Instant::now() < end {
        links.turn(play)?;
    }
    Ok(())
}

/// Lets `play` go on until it is done, or `patience` is over; whether it is.
fn finish<P: Play>(links: &mut Links, play: &mut P, patience: Duration, done: impl Fn(&P) -> bool) -> Result<bool> {
    let end = Instant::now() + patience;
    while !done(play) {
        if Instant::now() > end {
            return Ok(false);
        }
        links.turn(play)?;
    }
    Ok(true)
}
