//! From the first byte to the session: CONNECT within its bounds, who it is, and what is stored of it.

use std::mem;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ntex::io::IoBoxed;
use ntex_bytes::BytesMut;
use ntex_mqtt::v5::codec::{Connect, ConnectAck, ConnectAckReason as Refusal, Packet};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};
use wakala::ban::Traits;
use wakala::id::{ClientId, Epoch};
use wakala::session::connect::{Terms, busy, refuse};
use wakala::session::strict::{self, Flaw};
use wakala::session::{Change, Elsewhere, Loaded, Rights, Session as Twin, Subscription, Version};

use super::Options;
use super::bounds::{Bounds, Caller, Entered};
use super::gone::gone;
use super::identity::{Bearer, Identified, Identity, Secret};
use super::tls::{Handshake, Papers};
use crate::metrics::wire;
use crate::session::frames::{Frames, Inbound};
use crate::session::lease::Lease;
use crate::session::{Session, say};
use crate::sessions::Sessions;
use crate::sessions::admission::NotOpened;
use crate::store::openings::Opening;
use crate::store::presence::Connection;
use crate::store::subscriptions::Changed;
use crate::store::terminals::Terminal;
use crate::terminal::{Enrolled, Who};
use crate::turns::turn_again;

/// A CONNACK of MQTT 5 that says why, and nothing else.
const REFUSED_BYTES: u32 = 5;

/// What every connection passes.
#[derive(Clone)]
pub(super) struct Door {
    sessions: Sessions,
    identity: Identity,
    bounds: Bounds,
    strangers: Arc<Semaphore>,
    connect_within: Duration,
    connect_bytes_max: u32,
    connections_max: usize,
    elsewhere: Elsewhere,
}

/// A place among those who have not proved yet who they are.
pub(super) struct Stranger {
    _place: OwnedSemaphorePermit,
    entered: Entered,
}

impl Stranger {
    /// It got no further.
    pub(super) fn failed(&self) {
        self.entered.failed();
    }
}

impl Door {
    pub(super) fn new(options: &Options, identity: Identity, sessions: Sessions) -> Self {
        Self {
            bounds: Bounds::new(&options.bounds, options.workers, sessions.clone()),
            sessions,
            identity,
            strangers: Arc::new(Semaphore::new(options.strangers_max * options.workers.max(1))),
            connect_within: options.connect_within,
            connect_bytes_max: options.connect_bytes_max,
            connections_max: options.connections_max,
            elsewhere: Elsewhere::new(&options.elsewhere),
        }
    }

    /// Until when whoever is served now is to have sent its CONNECT.
    pub(super) fn connected_by(&self) -> Instant {
        Instant::now() + self.connect_within
    }

    /// A place among the strangers, as soon as there is one. None when nobody is let in any more.
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.strangers).acquire_owned().await.ok()
    }

    /// Whoever has taken it, unless its address has too many already.
    pub(super) fn stranger(&self, address: IpAddr, place: OwnedSemaphorePermit) -> Option<Stranger> {
        let entered = self.bounds.enter(address);
        if entered.is_none() {
            self.sessions.store().metrics().connections.crowded.one();
        }
        Some(Stranger { _place: place, entered: entered? })
    }

    /// One came, in this way.
    pub(super) fn arrived(&self, tls: bool, websocket: bool) {
        let connections = &self.sessions.store().metrics().connections;
        let transport = match (tls, websocket) {
            (false, false) => &connections.plain,
            (true, false) => &connections.tls,
            (false, true) => &connections.websocket,
            (true, true) => &connections.websocket_tls,
        };
        transport.one();
    }

    /// Takes a connection as far as its session, or ends it.
    pub(super) async fn welcome(&self, io: IoBoxed, stranger: Stranger, handshake: Option<Handshake>, by: Instant) {
        let connections = &self.sessions.store().metrics().connections;
        let Ok(read) = timeout_at(by, self.read_connect(&io)).await else {
            tracing::debug!("no CONNECT in time");
            connections.slow.one();
            stranger.failed();
            return io.terminate();
        };
        if let Some((frames, connect)) = read {
            // On the heap for as long as it takes: the session itself does not need this much. It is a stranger until it is
            // known who it is, however long its password waits for its turn.
            Box::pin(self.admit(io, frames, connect, handshake, &stranger.entered)).await;
        } else {
            stranger.failed();
            connections.unread.one();
            end(&io).await;
        }
    }

    /// The CONNECT and the codec for what follows; none when the connection is to be closed.
    async fn read_connect(&self, io: &IoBoxed) -> Option<(Frames, Box<Connect>)> {
        let frame = self.read_frame(io).await?;
        let version = match strict::version(&frame) {
            Ok(Ok(version)) => version,
            Ok(Err(level)) => {
                // A client of MQTT 3.1 or of one to come: each is told in the words of the nearest that is known.
                let version = if level > 5 { Version::V5 } else { Version::V3 };
                let ack = refuse(Refusal::UnsupportedProtocolVersion);
                say(&io.get_ref(), &Frames::new(version, 0), Packet::ConnectAck(Box::new(ack)));
                return None;
            }
            Err(_) => return None,
        };
        let frames = Frames::new(version, self.connect_bytes_max);
        let decoded = ntex::codec::Decoder::decode(&frames, &mut BytesMut::from(&*frame));
        match decoded {
            Ok(Some(Inbound::Packet(Packet::Connect(connect)))) => {
                wire::RECEIVED.frame(wire::CONNECT, frame.len());
                frames.set_bytes_max(self.sessions.limits().packet_bytes_max);
                Some((frames, connect))
            }
            Ok(_) => None,
            Err(flaw) => {
                // [MQTT-3.1.4-1]: MQTT 5 may be told why; 3.1.1 has a code for one reason only.
                let refusal = match version {
                    Version::V5 => Some(refusal_of(flaw)),
                    Version::V3 => strict::nameless(&frame).then_some(Refusal::ClientIdentifierNotValid),
                };
                if let Some(refusal) = refusal {
                    say(&io.get_ref(), &frames, Packet::ConnectAck(Box::new(refuse(refusal))));
                }
                None
            }
        }
    }

    /// The first frame, whole.
    async fn read_frame(&self, io: &IoBoxed) -> Option<BytesMut> {
        // What is no CONNECT is not answered [MQTT-3.1.4-1].
        io.recv(&FirstFrame { bytes_max: self.connect_bytes_max }).await.ok().flatten()
    }

    async fn admit(
        &self,
        io: IoBoxed,
        frames: Frames,
        mut connect: Box<Connect>,
        handshake: Option<Handshake>,
        entered: &Entered,
    ) {
        self.sessions.taps().connecting(&connect, frames.version());
        // Where it makes no difference nobody is asked.
        let vouched = match &handshake {
            Some(handshake) if self.bounds.is_spent(entered) => self.identity.knows_certificate(&io, handshake).await,
            _ => false,
        };
        let caller = match self.bounds.knock(entered, &io.get_ref(), &connect, vouched) {
            Ok(caller) => caller,
            Err(refusal) => return self.turn_away(&io, &frames, &connect, refusal).await,
        };
        let password = connect.password.take().map(Secret);
        let identified = tokio::select! {
            biased;
            identified = self.identity.identify(&io, &connect, frames.version(), password, handshake, &caller) => identified,
            // Nobody waits for it: in a storm its password would keep others waiting, who wait for less long than that takes.
            () = gone(&io) => return end(&io).await,
            () = self.sessions.admission().stopped() => Err(Refusal::UseAnotherServer),
        };
        match identified.and_then(|identified| self.grant(&connect, &frames, identified, &caller)) {
            Ok(admitted) => {
                // It is no stranger any more: in a storm it may wait for its turn, and takes no place of those who come.
                let (door, traits) = (self.clone(), caller.traits);
                tokio::task::spawn_local(async move { door.open(io, frames, admitted, traits).await });
            }
            Err(refusal) => {
                caller.refused(refusal);
                self.turn_away(&io, &frames, &connect, refusal).await;
            }
        }
    }

    /// The terms for somebody who is known, if there is room for him and he does not come too often.
    fn grant(
        &self,
        connect: &Connect,
        frames: &Frames,
        identified: Identified,
        caller: &Caller,
    ) -> Result<Admitted, Refusal> {
        let Identified { bearer, papers, lease, vouched } = identified;
        let (client, rights) = match &bearer {
            Bearer::Terminal(terminal) => (ClientId::from(&terminal.id), Rights::Terminal),
            Bearer::Guest(client, rights) => (client.clone(), rights.clone()),
        };
        caller.named(client.as_str())?;
        let terms = Terms::of(connect, frames.version(), self.sessions.limits(), &rights)?;
        match &bearer {
            Bearer::Terminal(_) => caller.proved(client.as_str())?,
            Bearer::Guest(..) if vouched => caller.vouched(client.as_str())?,
            // It could have come under any other name.
            Bearer::Guest(..) => caller.guest(&connect.client_id)?,
        }
        if !terms.takes(&client) {
            return Err(Refusal::PacketTooLarge);
        }
        if self.sessions.admission().is_stopping() || !self.sessions.has_room_for(&client, self.connections_max) {
            return Err(Refusal::UseAnotherServer);
        }
        match bearer {
            Bearer::Terminal(terminal) => Ok(Admitted::terminal(*terminal, terms, papers, lease)),
            Bearer::Guest(..) => {
                if terms.expiry_s > 0 && !self.sessions.router().has_room_for(&client) {
                    return Err(Refusal::QuotaExceeded);
                }
                let keeps = self.sessions.router().keeps(&client);
                let stored = terms.expiry_s > 0 || terms.will.is_some() || keeps || self.sessions.stores_clean();
                let named = vouched || !connect.client_id.is_empty();
                Ok(Admitted { client, rights, who: Who::Guest { stored }, named, terms, papers, lease })
            }
        }
    }

    async fn turn_away(&self, io: &IoBoxed, frames: &Frames, connect: &Connect, refusal: Refusal) {
        let answer = match refusal {
            Refusal::UseAnotherServer => {
                let packet_bytes_max = connect.max_packet_size.map_or(u32::MAX, NonZeroU32::get);
                self.elsewhere.refuse(&connect.client_id, packet_bytes_max)
            }
            other => refuse(other),
        };
        // Of these two it is said once, where they are decided.
        if !matches!(refusal, Refusal::Banned | Refusal::ConnectionRateExceeded) {
            tracing::info!(client = %Printable(&connect.client_id), refusal = ?answer.reason_code, "a connection was refused");
        }
        self.sessions.store().metrics().connections.refuse(answer.reason_code);
        let ack = Packet::ConnectAck(Box::new(answer));
        // [MQTT-3.1.2-24]: a client that takes less hears nothing.
        if connect.max_packet_size.is_some_and(|max| max.get() < REFUSED_BYTES) {
            return end(io).await;
        }
        self.sessions.taps().refused(&connect.client_id, &ack, frames.version());
        say(&io.get_ref(), frames, ack);
        end(io).await;
    }

    /// What a client hears whose session was not opened.
    fn not_opened(&self, client: &ClientId, terms: &Terms, error: &NotOpened) -> ConnectAck {
        let said = match error {
            NotOpened::Busy { come_again_s } => busy(*come_again_s, terms.packet_bytes_max),
            NotOpened::Stopping => self.elsewhere.refuse(client.as_str(), terms.packet_bytes_max),
            NotOpened::Store(_) | NotOpened::Gone => {
                tracing::warn!(%client, %error, "a session could not be opened");
                return refuse(Refusal::ServerUnavailable);
            }
        };
        tracing::info!(%client, %error, "a session was not opened");
        said
    }

    /// Opens what is stored of the session and hands the connection to its actor.
    async fn open(&self, io: IoBoxed, frames: Frames, admitted: Admitted, traits: Traits) {
        let _coming = self.sessions.admission().coming();
        let Admitted { client, rights, who, named, terms, papers, lease } = admitted;
        let (now, guest) = (self.sessions.clock().now(), matches!(who, Who::Guest { .. }));
        let stored = !matches!(who, Who::Guest { stored: false });
        let mut above = self.sessions.epoch_of(&client);
        if guest {
            // Of a session that is not stored no epoch stays, and the next must be higher all the same.
            above = above.max(self.sessions.guest_epoch(now));
        }
        let was_kept = guest && stored && self.sessions.router().keeps(&client);
        let opened = if !stored {
            Ok((Epoch(above.0 + 1), Loaded::default()))
        } else {
            let opening = Opening {
                client: client.clone(),
                guest,
                node: self.sessions.node().to_owned(),
                above,
                clean_start: terms.clean_start,
                expiry_s: terms.expiry_s,
                // A terminal's will has no topic that it may go to.
                will: terms.will.clone().filter(|_| guest),
                connection: Connection::of(&io.get_ref(), &terms),
                at: now,
            };
            let opened = self.reopen(opening, &rights, terms.version, gone(&io)).await;
            // Hundreds hear of it at once: they were opened in one commit.
            turn_again().await;
            opened
        };
        let (epoch, loaded) = match opened {
            Ok(opened) => opened,
            Err(NotOpened::Gone) => return end(&io).await,
            Err(error) => {
                let ack = self.not_opened(&client, &terms, &error);
                self.sessions.store().metrics().connections.refuse(ack.reason_code);
                say(&io.get_ref(), &frames, Packet::ConnectAck(Box::new(ack)));
                return end(&io).await;
            }
        };
        // One that was kept has a queue, also when it ends with this connection: what comes now is behind that.
        let (kept, with) = (terms.expiry_s > 0 || loaded.present, loaded.subscriptions.clone());
        if guest && !loaded.present && (kept || was_kept) {
            // One begins, or was discarded: a clean start at another node must find it, and what is for it go where it is.
            self.sessions.kept_otherwise(&client);
        }
        // However long that took: the keep-alive counts from here.
        let now = self.sessions.clock().now();
        let twin = Twin::load(client.clone(), rights, terms, self.sessions.limits(), loaded, now);
        let (addr, inbox) = Session::start(twin, epoch, who, self.sessions.clone(), io, frames);
        if let Some(lease) = lease {
            // Its mailbox is empty yet.
            let _ = addr.try_send(lease);
        }
        if guest {
            self.sessions.router().connected(&client, epoch, inbox, kept, &with);
            self.sessions.came(&client, epoch, kept, now);
        } else {
            self.sessions.terminal_came(&client, epoch, now);
        }
        self.sessions.store().metrics().connections.sessions.one();
        self.sessions.register(client.clone(), (epoch, stored), addr, papers, traits);
        if !stored && named {
            self.sessions.tell_came(client, epoch);
        }
    }
}

impl Door {
    /// What is stored of a session, without the subscriptions to which its client has a right no longer. What was queued
    /// for them stays its own. MQTT 3.1.1 knows nothing of No Local and Retain As Published [MQTT-3.3.1-9].
    async fn reopen(
        &self,
        opening: Opening,
        rights: &Rights,
        version: Version,
        gone: impl Future<Output = ()>,
    ) -> Result<(Epoch, Loaded), NotOpened> {
        let client = opening.client.clone();
        self.sessions.left(&client).await;
        let (epoch, mut loaded) = self.sessions.admission().open(opening, gone).await?;
        let lost = |subscription: &Subscription| !rights.keeps(&client, subscription);
        let lost: Vec<_> = loaded.subscriptions.extract_if(.., |subscription| lost(subscription)).collect();
        if !lost.is_empty() {
            tracing::info!(%client, count = lost.len(), "subscriptions ended to which a client has a right no longer");
        }
        let newer = |subscription: &mut Subscription| {
            let options = &mut subscription.options;
            (mem::take(&mut options.no_local) | mem::take(&mut options.retain_as_published))
                .then(|| subscription.clone())
        };
        let older = loaded.subscriptions.iter_mut().filter(|_| version == Version::V3);
        let begun = older.filter_map(newer).collect();
        let change = Change { begun, ended: lost.into_iter().map(|subscription| subscription.filter).collect() };
        if !change.is_empty() {
            self.sessions.changes().store(Changed { client: client.clone(), epoch, change }).await?;
            self.sessions.tell_changed(&client).await;
        }
        Ok((epoch, loaded))
    }
}

/// Who is let in, and on which terms.
struct Admitted {
    client: ClientId,
    rights: Rights,
    who: Who,
    /// By its name others may come too: it was not drawn for this connection.
    named: bool,
    terms: Terms,
    /// Of its certificate, where it has one that may be revoked.
    papers: Option<Papers>,
    /// Until when it may stay, if that is known.
    lease: Option<Lease>,
}

impl Admitted {
    fn terminal(terminal: Terminal, terms: Terms, papers: Option<Papers>, lease: Option<Lease>) -> Self {
        let client = ClientId::from(&terminal.id);
        let enrolled = Arc::new(Enrolled {
            terminal: terminal.id,
            agent: terminal.agent,
            core: terminal.core,
            sandbox: terminal.sandbox,
            blocked: false,
        });
        let (rights, who) = (Rights::Terminal, Who::Terminal(enrolled));
        Self { client, rights, who, named: true, terms, papers, lease }
    }
}

fn refusal_of(flaw: Flaw) -> Refusal {
    use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;
    match flaw.reason {
        Reason::ProtocolError => Refusal::ProtocolError,
        Reason::PacketTooLarge => Refusal::PacketTooLarge,
        Reason::TopicNameInvalid => Refusal::TopicNameInvalid,
        _ => Refusal::MalformedPacket,
    }
}

/// Sends what was written and closes.
async fn end(io: &IoBoxed) {
    // The peer may be gone already.
    let _ = io.shutdown().await;
}

/// A text from outside, as a log may hold it.
struct Printable<'a>(&'a str);

impl std::fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut end = self.0.len().min(64);
        while !self.0.is_char_boundary(end) {
            end -= 1;
        }
        write!(f, "{}", self.0[..end].escape_debug())
    }
}

/// Gives the first frame as bytes: which codec reads it is not known before.
#[derive(Debug)]
struct FirstFrame {
    bytes_max: u32,
}

impl ntex::codec::Decoder for FirstFrame {
    type Item = BytesMut;
    type Error = Flaw;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<BytesMut>, Flaw> {
        // What does not begin like a CONNECT is not waited for.
        if src.first().is_some_and(|&byte| byte != 0x10) {
            let reason = ntex_mqtt::v5::codec::DisconnectReasonCode::ProtocolError;
            return Err(Flaw { reason, why: "the first packet is not CONNECT [MQTT-3.1.0-1]" });
        }
        let Some(bytes) = strict::frame_bytes(src, self.bytes_max)? else { return Ok(None) };
        Ok((src.len() >= bytes).then(|| BytesMut::from(&*src.split_to(bytes))))
    }
}
