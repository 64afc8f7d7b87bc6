//! Actor of one core: carries out what its twin says, over one link.
//!
//! It alone opens a card's number, on a thread that may block, just before a message is written, and has forgotten it
//! when the message is. Everything that it spawned ends with it; what its twin had in flight is told to the partitions
//! even when it dies of a panic.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tokio::sync::mpsc;
use wakala::bank::{Bank as Twin, Draft, Effect, Event, Standing};
use wakala::id::{CoreId, PartitionNo};
use wakala::iso8583::{Bytes, Dialect};
use wakala::time::Time;
use wakala::transaction::Transaction;

use crate::banks::{Deps, Gate, Options, Outcome};
use crate::ports::{BankLink, LinkReader, LinkWriter};
use crate::supervision::{Link, Stop, Tree};

/// See the module's text.
pub struct Bank {
    core: CoreId,
    dialect: Arc<Dialect>,
    deps: Arc<Deps>,
    gate: Gate,
    driver: Arc<dyn BankLink>,
    twin: Twin,
    write_timeout: Duration,
    mailbox: usize,
    connection: Option<Connection>,
    wake: Option<(Time, SpawnHandle)>,
    standing: Standing,
    tree: Tree,
    /// Ends when the sign-off is written.
    stopping: bool,
    parent: Link,
}

/// What belongs to one connection, from the attempt on.
struct Connection {
    link: u64,
    /// Connecting, then reading.
    inward: SpawnHandle,
    /// To the task that writes, once connected.
    outward: Option<mpsc::Sender<Bytes>>,
}

impl std::fmt::Debug for Bank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bank").field("core", &self.core).field("standing", &self.standing).finish_non_exhaustive()
    }
}

/// A request for the core. Whoever drops it unread (a full mailbox, a dead actor) says by that that it did not leave.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ask {
    partition: PartitionNo,
    transaction: Option<Box<Transaction>>,
    outcome: Outcome,
}

impl Ask {
    pub(crate) fn new(partition: PartitionNo, transaction: Box<Transaction>, outcome: Outcome) -> Self {
        Self { partition, transaction: Some(transaction), outcome }
    }
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ask").field("transaction", &self.transaction).finish_non_exhaustive()
    }
}

impl Drop for Ask {
    fn drop(&mut self) {
        if let Some(transaction) = self.transaction.take() {
            (self.outcome)(self.partition, wakala::partition::Event::Unsent { transaction: transaction.id });
        }
    }
}

/// A reversal for the core.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Reverse {
    pub(crate) partition: PartitionNo,
    pub(crate) transaction: Box<Transaction>,
}

/// Panics; for tests, in sandbox mode.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Panic;

impl Bank {
    pub(crate) fn new(
        core: CoreId,
        options: &Options,
        dialect: Arc<Dialect>,
        gate: Gate,
        deps: Arc<Deps>,
        tree: Tree,
        parent: Link,
    ) -> Self {
        let limits = options.limits();
        let twin = Twin::new(Arc::clone(&dialect), limits, deps.clock.now());
        Self {
            driver: (deps.driver)(options, &dialect),
            core,
            dialect,
            deps,
            gate,
            twin,
            write_timeout: options.write_timeout,
            mailbox: limits.requests + limits.reversals + 16,
            connection: None,
            wake: None,
            standing: Standing::Stopped,
            tree,
            stopping: false,
            parent,
        }
    }

    pub(crate) fn start_on(self, arbiter: &ArbiterHandle) -> Addr<Self> {
        Self::start_in_arbiter(arbiter, move |ctx| {
            ctx.set_mailbox_capacity(self.mailbox);
            self
        })
    }

    /// Has the twin decide, and does what it says.
    fn happened(&mut self, event: Event, ctx: &mut Context<Self>) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let now = self.deps.clock.now();
            for effect in self.twin.handle(event, now) {
                events.extend(self.act(effect, ctx));
            }
        }
        self.show();
        self.sleep(ctx);
    }

    /// Does one thing. Gives back what happened by it.
    fn act(&mut self, effect: Effect, ctx: &mut Context<Self>) -> Option<Event> {
        match effect {
            Effect::Connect { link } => self.connect(link, ctx),
            Effect::Close { link, why } => {
                self.close(ctx);
                return Some(down(link, why));
            }
            Effect::Prepare(draft) => self.prepare(draft, ctx),
            Effect::Write { link, message } => return self.write(link, message, ctx),
            Effect::Tell { partition, event } => (self.deps.outcome)(partition, event),
            Effect::Gate { open } => self.gate.set(open),
            Effect::Unmatched(unmatched) => {
                tracing::warn!(core = %self.core, why = unmatched.why, message = ?unmatched.summary, "nobody waits for this");
                (self.deps.unmatched)(&self.core, unmatched);
            }
            Effect::Unfit { transaction, why } => {
                tracing::error!(core = %self.core, %transaction, why, "cannot be said to this core");
            }
        }
        None
    }

    fn connect(&mut self, link: u64, ctx: &mut Context<Self>) {
        let driver = Arc::clone(&self.driver);
        let connecting = async move { driver.connect().await };
        let inward = ctx.spawn(connecting.into_actor(self).map(move |connected, this, ctx| match connected {
            Ok((writer, reader)) => this.connected(link, writer, reader, ctx),
            Err(error) => this.happened(down(link, error), ctx),
        }));
        self.connection = Some(Connection { link, inward, outward: None });
    }

    fn connected(
        &mut self,
        link: u64,
        writer: Box<dyn LinkWriter>,
        reader: Box<dyn LinkReader>,
        ctx: &mut Context<Self>,
    ) {
        let (outward, messages) = mpsc::channel(self.mailbox);
        let writing = write_all(writer, messages, self.write_timeout);
        ctx.spawn(writing.into_actor(self).map(move |written, this, ctx| {
            if this.stopping {
                ctx.stop();
            } else if let Err(error) = written {
                this.dropped(link, error, ctx);
            }
        }));
        if let Some(connection) = self.connection.as_mut().filter(|connection| connection.link == link) {
            connection.outward = Some(outward);
        }
        self.read(link, reader, ctx);
        self.happened(Event::Up { link }, ctx);
    }

    fn read(&mut self, link: u64, mut reader: Box<dyn LinkReader>, ctx: &mut Context<Self>) {
        let reading = async move {
            let read = reader.read().await;
            (reader, read)
        };
        let inward = ctx.spawn(reading.into_actor(self).map(move |(reader, read), this, ctx| match read {
            Ok(Some(message)) => {
                // First on with reading, so that a link closed by this message takes the reading with it.
                this.read(link, reader, ctx);
                this.happened(Event::Received { link, message: Bytes::new(message) }, ctx);
            }
            Ok(None) => this.dropped(link, "closed by the core", ctx),
            Err(error) => this.dropped(link, error, ctx),
        }));
        if let Some(connection) = self.connection.as_mut().filter(|connection| connection.link == link) {
            connection.inward = inward;
        }
    }

    /// The link went without our doing.
    fn dropped(&mut self, link: u64, why: impl ToString, ctx: &mut Context<Self>) {
        if self.connection.as_ref().is_some_and(|connection| connection.link == link) {
            self.close(ctx);
            self.happened(down(link, why), ctx);
        }
    }

    /// Reads no more; what is queued is still written, each message within its time.
    fn close(&mut self, ctx: &mut Context<Self>) {
        if let Some(connection) = self.connection.take() {
            ctx.cancel_future(connection.inward);
        }
    }

    fn write(&mut self, link: u64, message: Bytes, ctx: &mut Context<Self>) -> Option<Event> {
        let outward = self.connection.as_ref().filter(|connection| connection.link == link);
        match outward.and_then(|connection| connection.outward.as_ref()).map(|outward| outward.try_send(message)) {
            Some(Ok(())) => None,
            // The queue holds all that may be in flight: the core has stopped reading.
            _ => {
                self.close(ctx);
                Some(down(link, "the link takes no more"))
            }
        }
    }

    /// Opens the card's number and writes the message with it, on a thread that may block.
    fn prepare(&mut self, draft: Draft, ctx: &mut Context<Self>) {
        let (deps, dialect, ticket) = (Arc::clone(&self.deps), Arc::clone(&self.dialect), draft.ticket);
        let preparing = tokio::task::spawn_blocking(move || {
            let pan = deps.hsm.open_pan(&draft.transaction.card.sealed).map_err(|error| error.to_string())?;
            draft.encode(&dialect, &pan).map_err(|unfit| unfit.to_string())
        });
        ctx.spawn(preparing.into_actor(self).map(move |prepared, this, ctx| {
            let message = prepared.unwrap_or_else(|_| Err("the HSM panicked".to_owned()));
            this.happened(Event::Prepared { ticket, message }, ctx);
        }));
    }

    fn sleep(&mut self, ctx: &mut Context<Self>) {
        let Some(due) = self.twin.poll_timeout() else { return };
        if let Some((set, handle)) = self.wake {
            // One that comes too early does no harm: it looks again.
            if set <= due {
                return;
            }
            ctx.cancel_future(handle);
        }
        let wait = due.since(self.deps.clock.now()).max(Duration::from_millis(1));
        let handle = ctx.run_later(wait, |this, ctx| {
            this.wake = None;
            this.happened(Event::Wake, ctx);
        });
        self.wake = Some((due, handle));
    }

    /// Says in the tree and in the log how the link stands, when that changed.
    fn show(&mut self) {
        let standing = self.twin.standing();
        if standing == self.standing {
            return;
        }
        self.standing = standing;
        let text = standing.as_str();
        match standing {
            Standing::Waiting | Standing::Broken => {
                let why = self.twin.last_down().unwrap_or_default();
                tracing::warn!(core = %self.core, standing = text, why, "the link is down");
                self.tree.note(&format!("banks/{}", self.core), format!("{text}: {why}"));
            }
            Standing::Connecting | Standing::SigningOn | Standing::Ready | Standing::Stopped => {
                tracing::info!(core = %self.core, standing = text, "the link");
                self.tree.note(&format!("banks/{}", self.core), text);
            }
        }
    }
}

fn down(link: u64, why: impl ToString) -> Event {
    // Without a lot the back-off is merely less spread.
    let lot = getrandom::u32().map_or(0, |lot| lot.to_le_bytes()[0]);
    Event::Down { link, why: why.to_string(), lot }
}

/// Until there is nothing more to write, or one message could not be.
async fn write_all(
    mut writer: Box<dyn LinkWriter>,
    mut messages: mpsc::Receiver<Bytes>,
    within: Duration,
) -> std::io::Result<()> {
    while let Some(message) = messages.recv().await {
        tokio::time::timeout(within, writer.write(&message)).await??;
    }
    Ok(())
}

impl Actor for Bank {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        self.happened(Event::Wake, ctx);
    }
}

impl Drop for Bank {
    fn drop(&mut self) {
        self.gate.set(false);
        // Of a panic too: whatever may have left is in doubt at once, not only when its patience ends.
        for effect in self.twin.handle(Event::Stop, self.deps.clock.now()) {
            if let Effect::Tell { partition, event } = effect {
                (self.deps.outcome)(partition, event);
            }
        }
    }
}

impl Handler<Ask> for Bank {
    type Result = ();

    fn handle(&mut self, mut ask: Ask, ctx: &mut Context<Self>) {
        if let Some(transaction) = ask.transaction.take() {
            self.happened(Event::Ask { partition: ask.partition, transaction }, ctx);
        }
    }
}

impl Handler<Reverse> for Bank {
    type Result = ();

    fn handle(&mut self, Reverse { partition, transaction }: Reverse, ctx: &mut Context<Self>) {
        self.happened(Event::Reverse { partition, transaction }, ctx);
    }
}

impl Handler<Stop> for Bank {
    type Result = ();

    /// Signs off, if there is a link, and ends when that is written.
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        self.stopping = true;
        self.parent.because("told to stop");
        let connected = self.connection.as_ref().is_some_and(|connection| connection.outward.is_some());
        self.happened(Event::Stop, ctx);
        if !connected {
            ctx.stop();
        }
    }
}

impl Handler<Panic> for Bank {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("asked to, in sandbox mode");
    }
}
