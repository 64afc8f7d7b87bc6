//! Who it is that connects. There is one entry, [`Identity::identify`], and every way is behind it:
//!
//! | way | proof | for |
//! |---|---|---|
//! | certificate | the TLS handshake | enrolled terminals |
//! | token | a signature (`jwt`) | guests, and terminals where configured |
//! | password | argon2id against its row (`password`) | enrolled terminals |
//! | hook | another program says so (`hook`) | guests, and terminals where configured |
//! | none | | guests where anybody may connect |
//!
//! In this order, and the first that fits decides: whoever has a row with a password is judged by that row, and waits for
//! no other program.

mod faults;
mod hook;
mod jwt;
mod password;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ntex::io::IoBoxed;
use ntex::io::types::PeerAddr;
use ntex::tls::rustls::PeerCertChain;
use ntex_bytes::Bytes;
use ntex_mqtt::v5::codec::{Connect, ConnectAckReason as Refusal};
use serde::Serialize;
use wakala::admission::Claim;
use wakala::hook::{Allowed, Decision};
use wakala::id::{ClientId, NoClientId, TerminalId};
use wakala::session::{Closed, Granted, NoTemplate, Rights, Template, Templates, Version};
use wakala::time::Time;
use wakala::token;

use super::Options;
use super::bounds::Caller;
use super::tls::{self, Handshake, Papers};
use crate::router;
use crate::session::lease::{Lease, calendar};
use crate::sessions::Sessions;
use crate::store::openings::Claims;
use crate::store::terminals::{Lookups, Sought, Terminal};

pub use faults::faults;
pub use hook::Options as HookOptions;
use hook::{Hook, Question, Undecided};
pub use jwt::Options as JwtOptions;
use jwt::Tokens;
use password::{Passwords, Verdict};

/// A password as it came. It cannot be printed.
pub(super) struct Secret(pub(super) Bytes);

/// Somebody who has proved who he is, or need not.
pub(super) struct Identified {
    pub(super) bearer: Bearer,
    /// What is to be remembered of the certificate that he came with.
    pub(super) papers: Option<Papers>,
    /// Until when his proof is good, if it ends.
    pub(super) lease: Option<Lease>,
    /// His name is not merely what he says.
    pub(super) vouched: bool,
}

pub(super) enum Bearer {
    Terminal(Box<Terminal>),
    Guest(ClientId, Rights),
}

/// The ways by which clients of this node prove who they are. Clones are the same.
#[derive(Clone)]
pub(super) struct Identity(Arc<Inner>);

/// Terminals that are looked up in one query.
const LOOKED_UP_AT_ONCE: usize = 256;

struct Inner {
    sessions: Sessions,
    lookups: Lookups,
    claims: Claims,
    passwords: Passwords,
    tokens: Option<Tokens>,
    hook: Option<Hook>,
    /// Anybody may connect.
    anonymous: bool,
    guests: Option<Guests>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// What `wakala status` shows of the ways that have something to show.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jwt: Option<JwtReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<HookReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct JwtReport {
    pub keys: usize,
    #[serde(flatten)]
    pub files: crate::watched::Report,
}

#[derive(Clone, Debug, Serialize)]
pub struct HookReport {
    #[serde(flatten)]
    pub asked: wakala::hook::Report,
    #[serde(flatten)]
    pub files: crate::watched::Report,
}

/// Has paths that the configuration's file gives relative to itself found from anywhere.
pub(crate) fn resolve(options: &mut Options, found: impl Fn(&Path) -> PathBuf) {
    if let Some(jwt) = &mut options.jwt {
        jwt.resolve(&found);
    }
    if let Some(hook) = &mut options.hook {
        hook.resolve(&found);
    }
}

/// Reads the files as the listener would when it starts.
///
/// # Errors
/// The first fault, with its key.
pub(crate) fn check(options: &Options) -> Result<(), String> {
    if let Some(jwt) = &options.jwt {
        jwt.read().map_err(|why| format!("listener.jwt: {why}"))?;
    }
    if let Some(hook) = &options.hook {
        hook.read().map_err(|why| format!("listener.hook: {why}"))?;
    }
    Ok(())
}

impl Identity {
    pub(super) fn open(options: &Options, sessions: &Sessions) -> Result<Self, String> {
        let (runtime, open) = (sessions.store().handle().clone(), sessions.open());
        let tokens = options.jwt.as_ref().map(|jwt| Tokens::open(jwt, &runtime)).transpose()?;
        let hook = options.hook.as_ref().map(|hook| Hook::open(hook, open.templates_max, sessions.clock(), &runtime));
        Ok(Self(Arc::new(Inner {
            passwords: Passwords::new(options.passwords_at_once, options.password_within),
            tokens,
            hook: hook.transpose()?,
            anonymous: open.anonymous,
            guests: open.is_open().then(|| Guests::new(open)),
            lookups: sessions.store().lookups(options.strangers_max, LOOKED_UP_AT_ONCE),
            claims: sessions.store().claimed(options.strangers_max, LOOKED_UP_AT_ONCE),
            sessions: sessions.clone(),
        })))
    }

    /// Reads the files again at once. Not for an event loop.
    pub(super) fn reload(&self) {
        if let Some(tokens) = &self.0.tokens {
            tokens.reload();
        }
        if let Some(hook) = &self.0.hook {
            hook.reload();
        }
    }

    pub(super) fn report(&self) -> Option<Report> {
        let jwt = self.0.tokens.as_ref().map(|tokens| {
            let (keys, files) = tokens.report();
            JwtReport { keys, files }
        });
        let hook = self.0.hook.as_ref().map(|hook| {
            let (asked, files) = hook.report();
            HookReport { asked, files }
        });
        (jwt.is_some() || hook.is_some()).then_some(Report { jwt, hook })
    }

    /// Whether somebody vouches for the certificate of this connection: an authority, or a terminal is enrolled with it.
    pub(super) async fn knows_certificate(&self, io: &IoBoxed, handshake: &Handshake) -> bool {
        let peer = io.query::<PeerCertChain<'static>>();
        let certificate = peer.as_ref().and_then(|PeerCertChain(chain)| chain.first().map(tls::fingerprint));
        let Some(certificate) = certificate else { return false };
        handshake.asked_authorities()
            || matches!(self.0.lookups.submit(Sought::Certificate(certificate)).await, Ok(Some(_)))
    }

    /// Whose connection it is, and what it may do.
    pub(super) async fn identify(
        &self,
        io: &IoBoxed,
        connect: &Connect,
        version: Version,
        password: Option<Secret>,
        handshake: Option<Handshake>,
        caller: &Caller,
    ) -> Result<Identified, Refusal> {
        let inner = &*self.0;
        let (certificate, papers) = handshake.map_or(Ok((None, None)), |handshake| examined(io, &handshake))?;
        if let Some(guests) = inner.guests.as_ref().filter(|_| inner.anonymous) {
            return guests.anybody(&connect.client_id, papers);
        }
        if let Some(certificate) = certificate
            && let Some(terminal) = inner.lookups.submit(Sought::Certificate(certificate)).await.map_err(away)?
        {
            return inner.terminal(terminal, papers, &connect.client_id, None);
        }
        if let (Some(tokens), Some(Secret(text))) = (&inner.tokens, &password)
            && token::is_meant(text)
        {
            return inner.by_token(tokens, &connect.client_id, text, papers).await;
        }
        // Before anything is asked or computed for it.
        let guess = match &password {
            // A password may come without a user name (3.1.2.9): it is for the client identifier then.
            Some(_) => Some(caller.guess(connect.username.as_ref().unwrap_or(&connect.client_id))?),
            None => None,
        };
        let row = match &connect.username {
            Some(name) => inner.enrolled(name).await?,
            None => None,
        };
        let hash = row.as_ref().and_then(|terminal| terminal.password_hash.clone());
        let came = match (&inner.hook, password) {
            (_, Some(password)) if hash.is_some() || inner.hook.is_none() => {
                let verified = inner.by_password(connect.username.is_some(), row, hash, password, caller).await;
                verified.and_then(|terminal| inner.terminal(terminal, papers, &connect.client_id, None))
            }
            (None, _) => Err(Refusal::NotAuthorized),
            (Some(hook), password) => inner.by_hook(hook, io, connect, version, row, password, papers).await,
        };
        if let Some(guess) = guess {
            guess.came_to(&came);
        }
        came
    }
}

impl Inner {
    async fn enrolled(&self, name: &str) -> Result<Option<Terminal>, Refusal> {
        match TerminalId::new(name) {
            Ok(id) => self.lookups.submit(Sought::Name(id)).await.map_err(away),
            Err(_) => Ok(None),
        }
    }

    /// A terminal that has proved to be it, if it may connect here under the name that it gives itself.
    fn terminal(
        &self,
        terminal: Terminal,
        papers: Option<Papers>,
        client: &str,
        until: Option<Time>,
    ) -> Result<Identified, Refusal> {
        if !client.is_empty() && *client != *terminal.id.as_str() {
            return Err(Refusal::ClientIdentifierNotValid);
        }
        if terminal.blocked.is_some() {
            return Err(Refusal::Banned);
        }
        if terminal.sandbox && !self.sessions.sandbox() {
            return Err(Refusal::NotAuthorized);
        }
        let lease = until.map(|until| Lease { until });
        Ok(Identified { bearer: Bearer::Terminal(Box::new(terminal)), papers, lease, vouched: true })
    }

    async fn by_password(
        &self,
        named: bool,
        terminal: Option<Terminal>,
        hash: Option<String>,
        Secret(password): Secret,
        caller: &Caller,
    ) -> Result<Terminal, Refusal> {
        if !named {
            return Err(Refusal::NotAuthorized);
        }
        // At the last gate they are the first (`src/admission.rs`): they must come as far as that.
        let urgent = async {
            match &terminal {
                Some(terminal) => self.awaits_receipt((&terminal.id).into()).await,
                None => false,
            }
        };
        let verdict = self.passwords.verify(caller.place(), urgent, hash, password).await;
        match (verdict, terminal) {
            (Verdict::Right, Some(terminal)) => Ok(terminal),
            (Verdict::Busy, _) => Err(Refusal::ServerBusy),
            (Verdict::Right | Verdict::Wrong, _) => Err(Refusal::BadUserNameOrPassword),
        }
    }

    /// Whether a transaction of it is under way, or its receipt waits.
    async fn awaits_receipt(&self, client: ClientId) -> bool {
        match self.claims.submit(client).await {
            Ok(claim) => claim == Claim::Transaction,
            Err(error) => {
                tracing::debug!(%error, "nobody knows who waits for a receipt");
                false
            }
        }
    }

    async fn by_token(
        &self,
        tokens: &Tokens,
        client: &str,
        text: &[u8],
        papers: Option<Papers>,
    ) -> Result<Identified, Refusal> {
        let token = tokens.judge(text, calendar()).map_err(|objection| {
            tracing::info!(why = %objection, "a token was not taken");
            Refusal::BadUserNameOrPassword
        })?;
        if !client.is_empty() && *client != *token.name {
            return Err(Refusal::ClientIdentifierNotValid);
        }
        if let Some(terminal) = self.enrolled(&token.name).await? {
            let may = tokens.terminals.then_some(terminal).ok_or(Refusal::NotAuthorized)?;
            return self.terminal(may, papers, client, Some(token.until));
        }
        let guests = self.guests.as_ref().ok_or(Refusal::NotAuthorized)?;
        let name = ClientId::new(&token.name).map_err(|_| Refusal::ClientIdentifierNotValid)?;
        let read = |texts: Option<Vec<String>>| guests.read(texts);
        let rights = read(token.publish).and_then(|publish| {
            let subscribe = read(token.subscribe)?;
            // Its user name is what nobody has vouched for; the token's is.
            Ok(guests.rights(&name, Some(&token.name), publish.as_deref(), subscribe.as_deref()))
        });
        let rights = rights.map_err(|why| {
            tracing::info!(client = %name, %why, "a token was not taken");
            Refusal::NotAuthorized
        })?;
        let lease = Some(Lease { until: token.until });
        Ok(Identified { bearer: Bearer::Guest(name, rights), papers, lease, vouched: true })
    }

    async fn by_hook(
        &self,
        hook: &Hook,
        io: &IoBoxed,
        connect: &Connect,
        version: Version,
        row: Option<Terminal>,
        password: Option<Secret>,
        papers: Option<Papers>,
    ) -> Result<Identified, Refusal> {
        let user = connect.username.as_deref();
        // Whose name it wants to have: an enrolled terminal's is not to be had by the way.
        let terminal = match &*connect.client_id {
            "" => row,
            named if Some(named) == user => row,
            named => self.enrolled(named).await?,
        };
        let for_it = match &terminal {
            Some(terminal) => hook.terminals() && terminal.password_hash.is_none(),
            None => self.guests.is_some(),
        };
        if !for_it {
            return Err(Refusal::BadUserNameOrPassword);
        }
        let chain = io.query::<PeerCertChain<'static>>();
        let certificate = chain.as_ref().and_then(|PeerCertChain(chain)| chain.first().map(tls::fingerprint));
        let question = Question {
            client: &connect.client_id,
            username: user,
            password: password.as_ref().map(|Secret(bytes)| &**bytes),
            address: address_of(io),
            certificate,
            protocol: if version == Version::V5 { "5" } else { "3.1.1" },
        };
        let allowed = match hook.decide(&question).await {
            Ok(Decision::Allow(allowed)) => allowed,
            Ok(Decision::Deny) => return Err(Refusal::BadUserNameOrPassword),
            Err(Undecided::Busy) => return Err(Refusal::ServerBusy),
            Err(Undecided::Away) => return Err(Refusal::ServerUnavailable),
        };
        let until = allowed.session.map(|session| calendar() + session);
        if let Some(terminal) = terminal {
            return self.terminal(terminal, papers, &connect.client_id, until);
        }
        let guests = self.guests.as_ref().ok_or(Refusal::NotAuthorized)?;
        let name = named_or_assigned(&connect.client_id)?;
        let Allowed { publish, subscribe, .. } = &*allowed;
        let rights = guests.rights(&name, user, publish.as_deref(), subscribe.as_deref());
        // The hook says yes to a user: whoever is one could come under any number of other names.
        let vouched = user == Some(name.as_str());
        let lease = until.map(|until| Lease { until });
        Ok(Identified { bearer: Bearer::Guest(name, rights), papers, lease, vouched })
    }
}

/// The fingerprint of the certificate that this connection came with, and what is to be remembered of it. One that is no longer
/// good opens nothing, neither with a password nor where anybody may connect: a resumed handshake does not look at it again.
fn examined(io: &IoBoxed, handshake: &Handshake) -> Result<(Option<[u8; 32]>, Option<Papers>), Refusal> {
    let peer = io.query::<PeerCertChain<'static>>();
    let Some(PeerCertChain(chain)) = peer.as_ref() else { return Ok((None, None)) };
    let papers = handshake.examine(chain).map_err(|objection| {
        tracing::info!(why = objection.text(), "a certificate was not taken");
        Refusal::NotAuthorized
    })?;
    Ok((chain.first().map(tls::fingerprint), papers))
}

/// What guests may do of whom nothing else is said.
struct Guests {
    closed: Arc<Closed>,
    templates: Templates,
    templates_max: usize,
    /// Anybody may connect, and the templates grant every topic: then `$SYS` is no secret either.
    all: bool,
}

/// Why topics that a token brings are not taken.
#[derive(Debug, thiserror::Error)]
enum NoRights {
    #[error(transparent)]
    Template(#[from] NoTemplate),
    #[error("more topic templates than open.templates_max")]
    TooMany,
}

impl Guests {
    fn new(open: &router::Options) -> Self {
        let usual = router::Options::default();
        Self {
            closed: Arc::new(open.closed.iter().map(|topic| topic.clone().into()).collect()),
            templates: Templates { publish: open.publish.clone(), subscribe: open.subscribe.clone() },
            templates_max: open.templates_max,
            all: open.anonymous && (&open.publish, &open.subscribe) == (&usual.publish, &usual.subscribe),
        }
    }

    fn anybody(&self, client: &str, papers: Option<Papers>) -> Result<Identified, Refusal> {
        let name = named_or_assigned(client)?;
        let rights = self.rights(&name, None, None, None);
        Ok(Identified { bearer: Bearer::Guest(name, rights), papers, lease: None, vouched: false })
    }

    fn read(&self, texts: Option<Vec<String>>) -> Result<Option<Vec<Template>>, NoRights> {
        let Some(texts) = texts else { return Ok(None) };
        if texts.len() > self.templates_max {
            return Err(NoRights::TooMany);
        }
        let templates: Result<_, _> = texts.iter().map(|text| Template::new(text)).collect();
        Ok(Some(templates?))
    }

    fn rights(
        &self,
        client: &ClientId,
        user: Option<&str>,
        publish: Option<&[Template]>,
        subscribe: Option<&[Template]>,
    ) -> Rights {
        let closed = Arc::clone(&self.closed);
        if self.all && publish.is_none() && subscribe.is_none() {
            return Rights::Open(closed);
        }
        let templates = Templates {
            publish: publish.unwrap_or(&self.templates.publish).to_vec(),
            subscribe: subscribe.unwrap_or(&self.templates.subscribe).to_vec(),
        };
        Rights::Granted(Arc::new(Granted { closed, grants: templates.fill(client.as_str(), user) }))
    }
}

/// The name that a guest gives itself, or one that it is given.
fn named_or_assigned(client: &str) -> Result<ClientId, Refusal> {
    let name = if client.is_empty() { assigned() } else { ClientId::new(client) };
    name.map_err(|_| Refusal::ClientIdentifierNotValid)
}

/// A client identifier for one that brought none (3.1.3.1), which nobody else has.
fn assigned() -> Result<ClientId, NoClientId> {
    let mut drawn = [0; 12];
    // Without randomness it would be somebody else's; an empty one is refused.
    match getrandom::fill(&mut drawn) {
        Ok(()) => ClientId::new(&format!("auto-{}", hex::encode(drawn))),
        Err(_) => ClientId::new(""),
    }
}

fn address_of(io: &IoBoxed) -> Option<IpAddr> {
    io.query::<PeerAddr>().get().map(|PeerAddr(address)| address.ip())
}

fn away(error: crate::store::Error) -> Refusal {
    tracing::warn!(%error, "a terminal could not be looked up");
    Refusal::ServerUnavailable
}
