//! What strangers may cost together, one address, one client or one network by itself, before anything is opened for them.
//!
//! [`wakala::bounds`] decides; here it is asked, under one lock for all workers, and what it says is counted and logged.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ntex::io::IoRef;
use ntex::tls::rustls::PeerCertChain;
use ntex_mqtt::v5::codec::{Connect, ConnectAckReason as Refusal};
use serde::{Deserialize, Serialize};
use wakala::ban::{Network, Traits};
use wakala::bounds::{self as decided, Excess, Limits, Patience, Place, Rate};
use wakala::time::Time;

use super::tls;
use crate::metrics::counts::Count;
use crate::session::lease::calendar;
use crate::sessions::Sessions;

/// What is borne. Behind one address of a mobile operator there may be hundreds of terminals: what is counted against an
/// address is never what a known terminal does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Connections of one address, per worker, of which it is not known yet who they are: they have not sent a whole CONNECT, or
    /// wait for their password to be verified. The next one is closed.
    pub strangers_per_address_max: usize,
    /// Connects of one client that may follow each other at once, the successful ones too. On 2G a terminal takes its own
    /// session over again and again. 0 is no limit.
    pub client_connects_burst: u32,
    /// How often one more is let in after that.
    #[serde(with = "humantime_serde")]
    pub client_connects_every: Duration,
    /// Connects from one address that may follow each other at once, of those that lead to nobody, or to a guest under a name
    /// that neither its token nor the hook vouches for. 0 is no limit.
    pub address_connects_burst: u32,
    /// How often one more is let in after that.
    #[serde(with = "humantime_serde")]
    pub address_connects_every: Duration,
    /// Wrong passwords for one name from one address before the next one has to wait.
    pub wrong_per_client_max: u32,
    /// Wrong passwords from one address, but for terminals that are known there.
    pub wrong_per_address_max: u32,
    /// Wrong passwords for one name from all addresses; then each further address has one, and none is kept out.
    pub wrong_per_name_max: u32,
    /// The first wait; doubled with each further wrong password.
    #[serde(with = "humantime_serde")]
    pub wrong_wait_min: Duration,
    /// The longest wait. In this time what was counted is forgiven.
    #[serde(with = "humantime_serde")]
    pub wrong_wait_max: Duration,
    /// How long a terminal that proved who it is counts as known at its address.
    #[serde(with = "humantime_serde")]
    pub known_for: Duration,
    /// Networks of which all connects are counted together, up to [`RANGES_MAX`]; of several around an address, in the
    /// narrowest. A mobile operator's APN gives its SIMs addresses from one.
    pub ranges: Vec<Range>,
    /// Clients and addresses of which any of this is remembered, each; without room the mildest case is forgotten.
    pub remembered_max: usize,
}

/// Each CONNECT is looked for in all of them.
pub const RANGES_MAX: usize = 64;

/// What may be connected from one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Range {
    pub network: Network,
    /// Connects from there that may follow each other at once, whoever they are and whatever comes of them. 0 is no limit.
    pub connects_burst: u32,
    /// How often one more is let in after that.
    #[serde(with = "humantime_serde")]
    pub connects_every: Duration,
    /// A terminal that has proved who it is in this network is let in again after this time, whatever the others do.
    #[serde(with = "humantime_serde", default = "known_every")]
    pub known_every: Duration,
}

const fn known_every() -> Duration {
    Duration::from_secs(30)
}

impl Default for Options {
    fn default() -> Self {
        Self {
            strangers_per_address_max: 3072,
            client_connects_burst: 60,
            client_connects_every: Duration::from_secs(3),
            address_connects_burst: 1000,
            address_connects_every: Duration::from_millis(100),
            wrong_per_client_max: 5,
            wrong_per_address_max: 100,
            wrong_per_name_max: 20,
            wrong_wait_min: Duration::from_secs(10),
            wrong_wait_max: Duration::from_secs(15 * 60),
            known_for: Duration::from_secs(7 * 24 * 3600),
            ranges: Vec::new(),
            remembered_max: 50_000,
        }
    }
}

impl Options {
    fn limits(&self, workers: usize) -> Limits {
        Limits {
            strangers_per_place_max: self.strangers_per_address_max.saturating_mul(workers),
            client_connects: Rate::new(self.client_connects_burst, self.client_connects_every),
            place_connects: Rate::new(self.address_connects_burst, self.address_connects_every),
            patience: Patience {
                per_client: self.wrong_per_client_max,
                per_place: self.wrong_per_address_max,
                per_name: self.wrong_per_name_max,
                wait_min: self.wrong_wait_min,
                wait_max: self.wrong_wait_max,
            },
            known_for: self.known_for,
            remembered_max: self.remembered_max,
        }
    }

    fn ranges(&self) -> Vec<decided::Range> {
        let ranges = self.ranges.iter().map(|range| decided::Range {
            network: range.network,
            connects: Rate::new(range.connects_burst, range.connects_every),
            known_every: range.known_every,
        });
        ranges.collect()
    }

    /// What is wrong with the ranges.
    pub(crate) fn faults(&self) -> Option<String> {
        if self.ranges.len() > RANGES_MAX {
            return Some(format!("{} networks; there may be {RANGES_MAX}", self.ranges.len()));
        }
        self.ranges.iter().enumerate().find_map(|(at, Range { network, connects_every, known_every, .. })| {
            if self.ranges[..at].iter().any(|before| before.network == *network) {
                return Some(format!("{network} is there twice"));
            }
            if connects_every.is_zero() {
                return Some(format!("{network}: connects_every must be longer than no time"));
            }
            let short = *known_every < Duration::from_secs(1);
            short.then(|| format!("{network}: known_every must be at least 1s"))
        })
    }
}

/// What is over is of no use meanwhile; it only takes memory.
const FORGET_EVERY: Duration = Duration::from_secs(10);

/// For all connections of this node. Clones are the same.
#[derive(Clone)]
pub(super) struct Bounds {
    decided: Arc<Mutex<decided::Bounds>>,
    sessions: Sessions,
}

impl Bounds {
    pub(super) fn new(options: &Options, workers: usize, sessions: Sessions) -> Self {
        let decided = decided::Bounds::new(options.limits(workers.max(1)), options.ranges());
        let bounds = Self { decided: Arc::new(Mutex::new(decided)), sessions };
        bounds.forget();
        bounds
    }

    /// Forgets what is over, again and again, as long as the listener is there.
    fn forget(&self) {
        let (decided, clock) = (Arc::downgrade(&self.decided), self.sessions.clock());
        self.sessions.store().handle().spawn(async move {
            loop {
                tokio::time::sleep(FORGET_EVERY).await;
                let Some(decided) = decided.upgrade() else { break };
                decided.lock().unwrap_or_else(PoisonError::into_inner).forget(clock.now());
            }
        });
    }

    fn decided(&self) -> MutexGuard<'_, decided::Bounds> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection was accepted: its place among those of its address, if there is one, and if the address is not banned.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Entered> {
        let now = self.sessions.clock().now();
        let counts = self.sessions.counts();
        if let Some(ban) = self.sessions.bans().on_address(address, calendar()) {
            counts.banned_addresses.one();
            if self.decided().is_news(&format!("ban {ban} {address}"), now) {
                tracing::info!(%address, ban, "connections are closed at once: the address is banned");
            }
            return None;
        }
        let place = Place::of(address);
        let entered = self.decided().enter(place);
        if !entered {
            counts.crowded.one();
            self.tell(&format!("crowd {place}"), || {
                tracing::warn!(%place, "connections are closed: too many from there have not said who they are");
            });
        }
        entered.then(|| Entered { bounds: self.clone(), address, place })
    }

    fn tell(&self, what: &str, log: impl FnOnce()) {
        let now = self.sessions.clock().now();
        if self.decided().is_news(what, now) {
            log();
        }
    }

    /// A CONNECT came: what it shows of itself, unless it is banned or comes too often.
    /// `vouched`: somebody vouches for its certificate.
    pub(super) fn knock(
        &self,
        entered: &Entered,
        io: &IoRef,
        connect: &Connect,
        vouched: bool,
    ) -> Result<Caller, Refusal> {
        let (&Entered { address, place, .. }, now) = (entered, self.sessions.clock().now());
        let peer = io.query::<PeerCertChain<'static>>();
        let certificate = peer.as_ref().and_then(|PeerCertChain(chain)| Some(tls::fingerprint(chain.first()?)));
        let user = connect.username.as_ref().map(|name| Box::from(&**name));
        let traits = Traits { address: Some(address), user, certificate: certificate.map(Box::new) };
        // A terminal that names no client is the one that its user name says.
        let client = match (&*connect.client_id, &traits.user) {
            ("", Some(user)) => user.clone(),
            (client, _) => client.into(),
        };
        self.let_by(&client, &traits)?;
        let knocked = {
            let mut decided = self.decided();
            let further = decided.knock(&client, place, vouched, now);
            further.and_then(|()| decided.knock_from(&client, address, now))
        };
        knocked.map_err(|excess| self.refuse(excess, &client, place))?;
        Ok(Caller { bounds: self.clone(), traits, place })
    }

    /// Whether too many came from there who led to nobody.
    pub(super) fn is_spent(&self, entered: &Entered) -> bool {
        self.decided().is_spent(entered.place, self.sessions.clock().now())
    }

    /// Whoever is banned is not let by.
    fn let_by(&self, client: &str, traits: &Traits) -> Result<(), Refusal> {
        let Some(ban) = self.sessions.bans().on(client, traits, calendar()) else { return Ok(()) };
        self.sessions.counts().banned.one();
        self.tell(&format!("ban {ban} {client}"), || {
            tracing::info!(client = %client.escape_debug(), ban, "a CONNECT was refused: banned");
        });
        Err(Refusal::Banned)
    }

    fn refuse(&self, excess: Excess, client: &str, place: Place) -> Refusal {
        let (client, counts) = (client.escape_debug(), self.sessions.counts());
        let (which, what): (&Count, _) = match excess {
            Excess::Client => (&counts.flapping, format!("client {client}")),
            Excess::Place => (&counts.flapping_addresses, format!("place {place}")),
            Excess::Range(network) => (&counts.flapping_ranges, format!("range {network}")),
            Excess::Guesses => (&counts.unverified, String::new()),
        };
        which.one();
        match excess {
            Excess::Client => self.tell(&what, || {
                tracing::warn!(%client, %place, "a client connects too often and is refused for a while");
            }),
            Excess::Place => self.tell(&what, || {
                tracing::warn!(%place, "too many connects from there lead to nobody; who is not known there is refused for a while");
            }),
            Excess::Range(network) => self.tell(&what, || {
                tracing::warn!(%network, "too many connects from a network; who was let in there lately is refused for a while");
            }),
            // That was said when the last wrong one came.
            Excess::Guesses => {}
        }
        Refusal::ConnectionRateExceeded
    }
}

/// Who sent a CONNECT, as far as it shows.
pub(super) struct Caller {
    bounds: Bounds,
    pub(super) traits: Traits,
    place: Place,
}

impl Caller {
    /// Where it comes from, as limits count it.
    pub(super) const fn place(&self) -> Place {
        self.place
    }

    fn now(&self) -> Time {
        self.bounds.sessions.clock().now()
    }

    /// Its name is known, which it need not have said: a token or a certificate may have.
    pub(super) fn named(&self, client: &str) -> Result<(), Refusal> {
        self.bounds.let_by(client, &self.traits)
    }

    /// A terminal has proved who it is.
    pub(super) fn proved(&self, client: &str) -> Result<(), Refusal> {
        self.is_known(client, decided::Bounds::proved)
    }

    /// A guest has, as far as its name goes.
    pub(super) fn vouched(&self, client: &str) -> Result<(), Refusal> {
        self.is_known(client, decided::Bounds::vouched)
    }

    fn is_known(
        &self,
        client: &str,
        known: impl FnOnce(&mut decided::Bounds, &str, Place, Time) -> Result<(), Excess>,
    ) -> Result<(), Refusal> {
        let (now, mut decided) = (self.now(), self.bounds.decided());
        let proved = known(&mut decided, client, self.place, now);
        if let (Ok(()), Some(address)) = (proved, self.traits.address) {
            decided.proved_from(client, address, now);
        }
        drop(decided);
        proved.map_err(|excess| self.bounds.refuse(excess, client, self.place))
    }

    /// It is let in under the name that it gave itself.
    pub(super) fn guest(&self, client: &str) -> Result<(), Refusal> {
        let let_in = self.bounds.decided().guest(client, self.place, self.now());
        let_in.map_err(|excess| self.bounds.refuse(excess, client, self.place))
    }

    /// A refusal is counted against its place, unless the server or the state of somebody who is known is the reason.
    pub(super) fn refused(&self, refusal: Refusal) {
        use Refusal as R;
        if !matches!(
            refusal,
            R::ServerBusy
                | R::ServerUnavailable
                | R::Banned
                | R::ConnectionRateExceeded
                | R::QuotaExceeded
                | R::UseAnotherServer
        ) {
            self.bounds.decided().failed(self.place, self.now());
        }
    }

    /// A password is about to be verified.
    pub(super) fn guess<'a>(&'a self, name: &'a str) -> Result<Guess<'a>, Refusal> {
        let guess = self.bounds.decided().guess(name, self.place, self.now());
        guess.map_err(|excess| self.bounds.refuse(excess, name, self.place))?;
        Ok(Guess { caller: self, name, open: true })
    }
}

/// One of the strangers of its address.
pub(super) struct Entered {
    bounds: Bounds,
    address: IpAddr,
    place: Place,
}

impl Entered {
    /// It sent no CONNECT that can be read.
    pub(super) fn failed(&self) {
        let now = self.bounds.sessions.clock().now();
        self.bounds.decided().failed(self.place, now);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.bounds.decided().leave(self.place);
    }
}

/// A password that is being verified. Dropped without a word, it was not.
pub(super) struct Guess<'a> {
    caller: &'a Caller,
    name: &'a str,
    open: bool,
}

impl Guess<'_> {
    /// What came of it.
    pub(super) fn came_to<T>(mut self, came: &Result<T, Refusal>) {
        match came {
            Ok(_) => self.right(),
            Err(Refusal::BadUserNameOrPassword) => self.wrong(),
            Err(_) => {}
        }
    }

    fn right(&mut self) {
        self.open = false;
        self.caller.bounds.decided().guessed(self.name, self.caller.place);
    }

    fn wrong(&mut self) {
        self.open = false;
        let Caller { bounds, place, .. } = self.caller;
        bounds.sessions.counts().wrong_passwords.one();
        let wait = bounds.decided().misguessed(self.name, *place, self.caller.now());
        if let Some(wait) = wait {
            let name: String = self.name.chars().take(64).collect();
            tracing::warn!(name = %name.escape_debug(), from = %place, ?wait, "wrong passwords; none is looked at for a while");
        }
    }
}

impl Drop for Guess<'_> {
    fn drop(&mut self) {
        if self.open {
            let Caller { bounds, place, .. } = self.caller;
            bounds.decided().unguessed(self.name, *place, self.caller.now());
        }
    }
}
