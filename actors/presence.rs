//! Who is there, as messages: `$SYS/presence/<client>` of a general broker.
//!
//! The board ([`wakala::presence`]) decides what is told and in which order; one task tells it, to those who are subscribed.
//! What a new subscriber hears first, as if it had been retained, is made from the board when it asks: nothing is kept twice,
//! and while nobody has asked nothing is told at all. The whole history is in the database (`store/presence.rs`), and for
//! terminals only there, unless the operator has theirs told too.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ntex_mqtt::v5::codec::QoS;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use wakala::id::{ClientId, Epoch};
use wakala::message::Message;
use wakala::mqtt::Properties;
use wakala::presence::{Board, Standing, Told, concerns, topic};
use wakala::session::{Addressed, Subscription};
use wakala::time::Time;

use crate::cli::rfc3339;
use crate::metrics::Metrics;
use crate::ports::Clock;
use crate::router::Router;
use crate::router::owed::{Behind, Owed, Page, Share};
use crate::store::presence::Stands;
use crate::store::publications::Publication;
use crate::store::sessions::Cut;

/// Who came and went, and for how long that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How long the beginnings and ends of connections are kept in the database.
    #[serde(with = "humantime_serde")]
    pub keep: Duration,
    /// How many are kept at most, of all clients together, in rows; the oldest are forgotten.
    pub rows_max: u64,
    /// In a general broker, also those of clients whose session ends with the connection, which else are told to subscribers
    /// and not stored. Each of their connections then costs a commit when it begins and part of one when it ends.
    pub store_clean: bool,
    /// Also terminals' presence is told to subscribers: guests may have eyes for `$SYS`.
    pub tell_terminals: bool,
    /// In a general broker, what is to be told to subscribers and waits; beyond, it is not told, and counted.
    pub waiting_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: Duration::from_secs(30 * 24 * 3600),
            rows_max: 1_000_000,
            store_clean: false,
            tell_terminals: false,
            waiting_max: 100_000,
        }
    }
}

/// The presence of the clients of this node. Clones are the same one, for any thread.
#[derive(Clone, Debug)]
pub struct Presence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    board: Mutex<Board>,
    node: String,
    tell_terminals: bool,
    /// Somebody has asked, now or in an earlier life of the node.
    watched: AtomicBool,
    telling: mpsc::Sender<Told>,
    /// Taken by the task that tells.
    to_tell: Mutex<Option<mpsc::Receiver<Told>>>,
    metrics: Arc<Metrics>,
    /// When it was last logged that something is not told, in milliseconds.
    warned: AtomicI64,
    /// The last that was drawn.
    epoch: AtomicI64,
}

/// What goes into one commit, at most.
const BATCH: usize = 256;

/// While presence is not told, that is logged so often.
const WARN_EVERY: Duration = Duration::from_secs(60);

impl Presence {
    #[must_use]
    pub fn new(options: &Options, node: &str, metrics: &Arc<Metrics>) -> Self {
        let (telling, to_tell) = mpsc::channel(options.waiting_max.max(1));
        Self(Arc::new(Inner {
            board: Mutex::default(),
            node: node.to_owned(),
            tell_terminals: options.tell_terminals,
            watched: AtomicBool::new(false),
            telling,
            to_tell: Mutex::new(Some(to_tell)),
            metrics: Arc::clone(metrics),
            warned: AtomicI64::new(i64::MIN),
            epoch: AtomicI64::new(0),
        }))
    }

    /// Starts to tell. `stored` is what is stored of clients, `ended` the connections that ended with the node's last life;
    /// `watched` is whether somebody's session is subscribed to presence.
    pub fn begin(
        &self,
        stored: Vec<Stands>,
        ended: &[Cut],
        watched: bool,
        router: Router,
        clock: Arc<dyn Clock>,
        runtime: &tokio::runtime::Handle,
    ) {
        let now = clock.now();
        if let Some(to_tell) = self.0.to_tell.lock().unwrap_or_else(PoisonError::into_inner).take() {
            runtime.spawn(tell(to_tell, self.0.node.clone(), router, clock));
        }
        self.watch(watched);
        self.adopt(stored, 0);
        let _in_turn = self.board();
        self.say(self.told_of(ended).map(|cut| died(cut, now)), now);
    }

    /// Whether somebody is subscribed to presence, here or elsewhere: from then on it is told.
    pub(crate) fn watch(&self, watched: bool) {
        self.0.watched.fetch_or(watched, Ordering::Relaxed);
    }

    /// How often something of it has changed: what is read now is not newer than what changes from now on.
    pub(crate) fn changes(&self) -> u64 {
        self.board().changes()
    }

    /// This is stored of clients, read after so many changes. Of those who are here it is known better.
    pub(crate) fn adopt(&self, stored: Vec<Stands>, until: u64) {
        let (known, mut after) = (stored.iter().map(|stands| stands.client.clone()).collect(), None);
        stored.into_iter().for_each(|stands| self.heard(stands));
        // Others have the board in between.
        loop {
            after = self.board().over_but(&known, until, after.as_ref(), BATCH);
            if after.is_none() {
                return;
            }
        }
    }

    /// So a client stands, as another node says or the database.
    pub(crate) fn heard(&self, Stands { client, standing, node, kept }: Stands) {
        let mut board = self.board();
        if standing.online && node.as_deref().is_none_or(|node| node == self.0.node) {
            return;
        }
        show(&mut board, client, standing, node.as_deref(), kept);
    }

    /// The epoch of a connection that others are not to be mistaken for: milliseconds of the calendar, and no two alike.
    #[must_use]
    pub fn draw_epoch(&self, now: Time) -> Epoch {
        let next = |last: i64| Some(now.millis().max(last + 1));
        let last = self.0.epoch.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).unwrap_or_else(|last| last);
        Epoch(now.millis().max(last + 1))
    }

    /// A connection begins.
    pub fn came(&self, client: &ClientId, epoch: Epoch, now: Time) {
        let mut board = self.board();
        self.say(board.came(client, epoch, now), now);
    }

    /// A connection has ended; the session is kept, or ended with it. False if that is no news: a later one is known.
    pub fn went(&self, client: &ClientId, epoch: Epoch, kept: bool, why: &str, now: Time) -> bool {
        let mut board = self.board();
        let told = board.went(client, epoch, kept, why, now);
        let news = told.is_some();
        self.say(told, now);
        news
    }

    /// A terminal's connection begins.
    pub fn terminal_came(&self, terminal: &ClientId, epoch: Epoch, now: Time) {
        if self.0.tell_terminals {
            self.came(terminal, epoch, now);
        }
    }

    /// A terminal's has ended. Nothing is kept of one that is away.
    pub fn terminal_went(&self, terminal: &ClientId, epoch: Epoch, why: &str, now: Time) -> bool {
        self.0.tell_terminals && self.went(terminal, epoch, false, why, now)
    }

    fn told_of<'a>(&self, ended: &'a [Cut]) -> impl Iterator<Item = &'a Cut> + use<'a> {
        let tell_terminals = self.0.tell_terminals;
        ended.iter().filter(move |cut| cut.guest || tell_terminals)
    }

    /// Connections of another node have ended with it.
    pub fn died(&self, ended: &[Cut], now: Time) {
        let mut board = self.board();
        for cut in ended {
            show(&mut board, cut.client.clone(), died(cut, now).standing, None, cut.guest && !cut.over);
        }
        self.say(self.told_of(ended).map(|cut| died(cut, now)), now);
    }

    /// Sessions that were kept are over, or never were; so it was after `until` changes.
    pub(crate) fn over<'a>(&self, clients: impl IntoIterator<Item = &'a ClientId>, until: u64) {
        let mut board = self.board();
        clients.into_iter().for_each(|client| board.over(client, until));
    }

    /// What a new subscription hears first: how those stand whom it concerns.
    #[must_use]
    pub(crate) fn owed(&self, client: &ClientId, new: &Subscription, existed: bool) -> Option<Owed> {
        if !concerns(&new.filter) {
            return None;
        }
        // Before the board is read: who comes then is told of.
        self.0.watched.store(true, Ordering::Relaxed);
        let until = self.board().changes();
        Owed::of(client, new, existed, Behind::Present(None), until)
    }

    /// The next of them, as far as the share goes.
    pub(crate) fn page(&self, owed: &mut Owed, share: &mut Share, now: Time) -> Vec<Addressed> {
        let Behind::Present(after) = owed.behind() else { return Vec::new() };
        let board = self.board();
        let found = board.look(owed.filter(), after.as_ref(), owed.until()).map(|(client, found)| {
            let message =
                |(standing, node): (_, Option<&str>)| message(node.unwrap_or(&self.0.node), client, standing, None);
            (client, found.map(|found| Arc::new(message(found))))
        });
        let Page { messages, last, done } = owed.fill(found, share, now);
        let last = last.map(|client| Behind::Present(Some(client.clone())));
        drop(board);
        owed.go_on(last, done);
        messages
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With the board locked, so that what is decided first is told first.
    fn say(&self, told: impl IntoIterator<Item = Told>, now: Time) {
        if !self.0.watched.load(Ordering::Relaxed) {
            return;
        }
        for told in told {
            if self.0.telling.try_send(told).is_err() {
                self.leave_untold(now);
            }
        }
    }

    fn leave_untold(&self, now: Time) {
        let Inner { metrics, warned, .. } = &*self.0;
        metrics.presence_untold.one();
        let since = now.millis().saturating_sub(warned.load(Ordering::Relaxed));
        if u128::try_from(since).is_ok_and(|since| since >= WARN_EVERY.as_millis()) {
            warned.store(now.millis(), Ordering::Relaxed);
            let untold = metrics.presence_untold.get();
            tracing::warn!(untold, "presence is not told to subscribers: more waits than presence.waiting_max");
        }
    }
}

/// So a client stands that is not connected here; of one that is away and not `kept` nothing is shown.
fn show(board: &mut Board, client: ClientId, standing: Standing, node: Option<&str>, kept: bool) {
    board.heard(client.clone(), standing, node);
    if !kept {
        let until = board.changes();
        board.over(&client, until);
    }
}

fn died(cut: &Cut, now: Time) -> Told {
    let standing = Standing { epoch: cut.epoch, online: false, since: now };
    Told { client: cut.client.clone(), standing, node: None, why: Some("its node died".to_owned()) }
}

/// Tells one after the other. What is for sessions that are kept goes into the database, many in one commit, before
/// anything later is told.
async fn tell(mut to_tell: mpsc::Receiver<Told>, node: String, router: Router, clock: Arc<dyn Clock>) {
    let mut gathered = Vec::new();
    while to_tell.recv_many(&mut gathered, BATCH).await > 0 {
        let now = clock.now();
        let mut stored = Publication::at(now);
        for Told { client, standing, node: other, why } in gathered.drain(..) {
            let message = message(other.as_deref().unwrap_or(&node), &client, standing, why.as_deref());
            if router.is_closed(&message.topic) {
                continue;
            }
            let message = Arc::new(message);
            if let Some(publication) = router.route(None, &message, None, now) {
                stored.to.extend(publication.to);
            }
        }
        if !stored.to.is_empty()
            && let Err(error) = router.store(stored).await
        {
            tracing::warn!(%error, "presence could not be queued for sessions that are kept");
        }
    }
}

/// What is said on the wire.
#[derive(Serialize)]
struct Said<'a> {
    client: &'a str,
    online: bool,
    /// A later connection has a higher one.
    epoch: i64,
    at: String,
    node: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<&'a str>,
}

fn message(node: &str, client: &ClientId, standing: Standing, why: Option<&str>) -> Message {
    let at = rfc3339(standing.since);
    let said = Said { client: client.as_str(), online: standing.online, epoch: standing.epoch.0, at, node, why };
    Message {
        topic: topic(client).into(),
        payload: serde_json::to_vec(&said).unwrap_or_default().into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        expires_at: None,
        properties: Properties::default(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ntex_mqtt::v5::codec::SubscriptionOptions;

    use super::*;

    #[test]
    fn a_new_subscriber_hears_of_everybody_a_page_at_a_time() {
        let (presence, now) = (Presence::new(&Options::default(), "n1", &Arc::default()), Time::from_millis(1));
        for n in 0..600 {
            presence.came(&ClientId::new(&format!("c{n}")).expect("short"), Epoch(1), now);
        }
        let options = SubscriptionOptions::default();
        let all = Subscription { filter: "$SYS/presence/+".into(), options, identifier: None };
        let own = ClientId::new("own").expect("short");
        let mut owed = presence.owed(&own, &all, false).expect("owed");
        // Of who comes now it is told.
        presence.came(&ClientId::new("later").expect("short"), Epoch(1), now);
        let (mut pages, mut heard) = (Vec::new(), BTreeSet::new());
        while !owed.is_done() {
            let page = presence.page(&mut owed, &mut Share { looks: 256, bytes: u32::MAX }, now);
            pages.push(page.len());
            heard.extend(page.into_iter().map(|addressed| addressed.message.topic.to_string()));
        }
        assert_eq!((pages, heard.len()), (vec![256, 256, 88], 600));
        let mut few = presence.owed(&own, &all, false).expect("owed");
        let page = presence.page(&mut few, &mut Share { looks: 256, bytes: 1000 }, now);
        assert!(page.len() < 20 && !few.is_done(), "{} of them", page.len());
    }

    /// What was logged.
    #[derive(Clone, Default)]
    struct Logged(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Logged {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_not_told_is_counted_and_said_once_a_minute() {
        let (logged, metrics) = (Logged::default(), Arc::<Metrics>::default());
        let presence = Presence::new(&Options { waiting_max: 2, ..Options::default() }, "n1", &metrics);
        let options = SubscriptionOptions::default();
        let all = Subscription { filter: "$SYS/presence/+".into(), options, identifier: None };
        let _ = presence.owed(&ClientId::new("own").expect("short"), &all, false);
        let into = logged.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || into.clone()).finish();
        // Nobody tells: two wait, and no more.
        tracing::subscriber::with_default(subscriber, || {
            for (n, seconds) in [0, 0, 0, 0, 59, 60, 60, 200].into_iter().enumerate() {
                let client = ClientId::new(&format!("c{n}")).expect("short");
                presence.came(&client, Epoch(1), Time::from_millis(1_790_000_000_000 + seconds * 1000));
            }
        });
        assert_eq!(metrics.presence_untold.get(), 6);
        let logged = String::from_utf8(logged.0.lock().expect("no panic").clone()).expect("text");
        let said: Vec<&str> = logged.lines().filter_map(|line| line.split("untold=").nth(1)).collect();
        assert_eq!(said, ["1", "4", "6"], "{logged}");
    }
}
