//! How clients come: CONNECT, CONNACK, and where they subscribe SUBSCRIBE, SUBACK; each packet after the answer to the one before.

use anyhow::{Result, ensure};

use super::{Setting, finish};
use crate::links::{Links, Play};
use crate::packets::{self, CONNACK, SUBACK};
use crate::token::token;

/// Clients that connect at the same time while a load is being prepared: below the listen backlog of any broker (Mosquitto's
/// is 100).
pub(crate) const AT_ONCE: usize = 64;

/// What one client says to begin with.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) connect: Vec<u8>,
    pub(crate) subscribe: Option<Vec<u8>>,
}

impl Client {
    pub(crate) fn clean(id: &str) -> Self {
        Self { connect: packets::connect(id, true, None), subscribe: None }
    }

    pub(crate) fn persistent(id: &str) -> Self {
        Self { connect: packets::connect(id, false, None), subscribe: None }
    }

    /// With a token as its password, where the broker asks for one.
    pub(crate) fn known(setting: &Setting, id: &str, clean: bool) -> Self {
        let token = setting.secret.as_ref().map(|secret| token(secret, id));
        Self { connect: packets::connect(id, clean, token.as_deref()), subscribe: None }
    }

    pub(crate) fn subscribing(self, filter: &str, qos: u8) -> Self {
        Self { subscribe: Some(packets::subscribe(filter, qos)), ..self }
    }
}

/// Whether the session was there, from the CONNACK that accepts it.
pub(crate) fn accepted(body: &[u8]) -> Result<bool> {
    ensure!(body.len() >= 2, "a CONNACK of {} bytes", body.len());
    ensure!(body[1] == 0, "CONNACK says {}", body[1]);
    Ok(body[0] & 1 == 1)
}

/// That the one subscription of a SUBACK was granted.
pub(crate) fn granted(body: &[u8]) -> Result<()> {
    ensure!(body.len() == 3 && body[2] < 3, "SUBACK says {:?}", body.get(2));
    Ok(())
}

/// Brings all clients in, the first one at link 0. Anything that goes wrong is an error.
pub(crate) fn join(links: &mut Links, clients: &[Client], setting: &Setting) -> Result<()> {
    let mut joining = Joining { clients, next: 0, joined: 0 };
    for _ in 0..AT_ONCE.min(clients.len()) {
        joining.open(links)?;
    }
    let all = finish(links, &mut joining, setting.patience, |joining| joining.joined == clients.len())?;
    ensure!(all, "{} of {} clients were in after {:?}", joining.joined, clients.len(), setting.patience);
    Ok(())
}

struct Joining<'a> {
    clients: &'a [Client],
    next: usize,
    joined: usize,
}

impl Joining<'_> {
    fn open(&mut self, links: &mut Links) -> Result<()> {
        if let Some(client) = self.clients.get(self.next) {
            links.open(self.next, &client.connect)?;
            self.next += 1;
        }
        Ok(())
    }
}

impl Play for Joining<'_> {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            CONNACK => {
                accepted(body)?;
                if let Some(subscribe) = &self.clients[at].subscribe {
                    links.out(at).extend_from_slice(subscribe);
                    return Ok(());
                }
            }
            SUBACK => granted(body)?,
            _ => anyhow::bail!("client {at} was sent a packet {first:#x} while it joined"),
        }
        self.joined += 1;
        self.open(links)
    }
}
