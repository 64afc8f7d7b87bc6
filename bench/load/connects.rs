//! Clients that come, subscribe and go, always so many of them under way: CONNECT, CONNACK, SUBSCRIBE, SUBACK, DISCONNECT.
//! Where sessions are persistent each client is new, and its session and subscription stay behind.

use anyhow::{Result, ensure};

use super::join::{AT_ONCE, Client, accepted, granted};
use super::{Setting, finish, go_on};
use crate::links::{Links, Play};
use crate::packets::{self, CONNACK, DISCONNECT, SUBACK};
use crate::process::Meter;
use crate::report::Report;

pub(crate) fn run(setting: &Setting, at_once: usize, persistent: bool) -> Result<Report> {
    let mut links = setting.links(at_once)?;
    let mut comers = Comers::new(at_once, persistent);
    comers.start(&mut links)?;
    go_on(&mut links, &mut comers, setting.warm_up)?;
    let (before, meter) = (comers.joined, Meter::start(&setting.pids));
    go_on(&mut links, &mut comers, setting.measured)?;
    let (rate, shares) = meter.finish(comers.joined - before);
    comers.stopping = true;
    finish(&mut links, &mut comers, setting.patience, |comers| comers.under_way() == 0)?;
    Ok(Report::new(rate, "connects/s")
        .with("at_once", at_once)
        .with("persistent", persistent)
        .with("clients", comers.joined)
        .unless_zero(comers.under_way(), "clients without an answer")
        .and(shares))
}

/// So many clients come and go, and no more.
pub(crate) fn come_and_go(setting: &Setting, clients: u64, persistent: bool) -> Result<()> {
    let mut links = setting.links(AT_ONCE)?;
    let mut comers = Comers::new(AT_ONCE, persistent);
    comers.left = clients;
    comers.start(&mut links)?;
    let all = finish(&mut links, &mut comers, setting.patience, |comers| comers.under_way() == 0)?;
    ensure!(
        all && comers.joined == clients,
        "{} of {clients} clients had come after {:?}",
        comers.joined,
        setting.patience
    );
    Ok(())
}

struct Comers {
    persistent: bool,
    run: u32,
    next: u64,
    /// How many may still come.
    left: u64,
    /// By link.
    current: Vec<Option<Client>>,
    joined: u64,
    stopping: bool,
}

impl Comers {
    fn new(at_once: usize, persistent: bool) -> Self {
        Self {
            persistent,
            // Of this run alone: no client finds a session of another run.
            run: std::process::id(),
            next: 0,
            left: u64::MAX,
            current: vec![None; at_once],
            joined: 0,
            stopping: false,
        }
    }

    fn start(&mut self, links: &mut Links) -> Result<()> {
        (0..self.current.len()).try_for_each(|at| self.come(links, at))
    }

    fn come(&mut self, links: &mut Links, at: usize) -> Result<()> {
        if self.stopping || self.left == 0 {
            self.current[at] = None;
            return Ok(());
        }
        let kind = if self.persistent { "kept" } else { "clean" };
        let id = format!("bench-{}-{kind}-{}", self.run, self.next);
        self.next += 1;
        self.left -= 1;
        let client = if self.persistent { Client::persistent(&id) } else { Client::clean(&id) };
        let client = client.subscribing(&format!("t/{id}/res"), 1);
        links.open(at, &client.connect)?;
        self.current[at] = Some(client);
        Ok(())
    }

    fn under_way(&self) -> u64 {
        self.current.iter().flatten().count() as u64
    }
}

impl Play for Comers {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            CONNACK => {
                ensure!(!accepted(body)?, "a new client finds a session");
                let subscribe = self.current[at].as_ref().and_then(|client| client.subscribe.as_ref());
                links.out(at).extend_from_slice(subscribe.map_or(&[][..], Vec::as_slice));
                Ok(())
            }
            SUBACK => {
                granted(body)?;
                self.joined += 1;
                links.out(at).extend_from_slice(&DISCONNECT);
                links.cut(at);
                self.come(links, at)
            }
            _ => anyhow::bail!("client {at} was sent a packet {first:#x}"),
        }
    }
}
