//! From the first byte to the session: CONNECT within its bounds, who it is, and what is stored of it.

use std::sync::Arc;
use std::time::Duration;

use ntex::io::IoBoxed;
use ntex::tls::rustls::PeerCertChain;
use ntex_bytes::BytesMut;
use ntex_mqtt::v5::codec::{Connect, ConnectAckReason as Refusal, Packet};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wakala::id::{ClientId, Epoch, NoClientId, TerminalId};
use wakala::session::connect::{Terms, refuse};
use wakala::session::strict::{self, Flaw};
use wakala::session::{Loaded, Rights, Session as Twin, Version};

use super::Options;
use super::password::{Passwords, Verdict};
use super::tls::{self, Handshake, Papers};
use crate::session::frames::{Frames, Inbound};
use crate::session::{Session, say};
use crate::sessions::Sessions;
use crate::store::presence::Connection;
use crate::store::sessions::Opening;
use crate::store::terminals::Terminal;
use crate::terminal::{Enrolled, Who};

/// What every connection passes.
#[derive(Clone)]
pub(super) struct Door {
    sessions: Sessions,
    passwords: Passwords,
    strangers: Arc<Semaphore>,
    connect_within: Duration,
    connect_bytes_max: u32,
    connections_max: usize,
}

/// A place among those who have not proved yet who they are.
pub(super) type Stranger = OwnedSemaphorePermit;

impl Door {
    pub(super) fn new(options: &Options, sessions: Sessions) -> Self {
        Self {
            sessions,
            passwords: Passwords::new(options.passwords_at_once, options.password_within),
            strangers: Arc::new(Semaphore::new(options.strangers_max * options.workers.max(1))),
            connect_within: options.connect_within,
            connect_bytes_max: options.connect_bytes_max,
            connections_max: options.connections_max,
        }
    }

    pub(super) fn stranger(&self) -> Option<Stranger> {
        Arc::clone(&self.strangers).try_acquire_owned().ok()
    }

    /// Takes a connection as far as its session, or ends it.
    pub(super) async fn welcome(&self, io: IoBoxed, stranger: Option<Stranger>, handshake: Option<Handshake>) {
        let Some(_stranger) = stranger.or_else(|| self.stranger()) else { return };
        let Ok(read) = tokio::time::timeout(self.connect_within, self.read_connect(&io)).await else {
            tracing::debug!("no CONNECT in time");
            return io.terminate();
        };
        if let Some((frames, connect)) = read {
            // On the heap for as long as it takes: the session itself does not need this much.
            Box::pin(self.admit(io, frames, connect, handshake)).await;
        } else {
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

    async fn admit(&self, io: IoBoxed, frames: Frames, mut connect: Box<Connect>, handshake: Option<Handshake>) {
        let password = connect.password.take();
        let limits = self.sessions.limits();
        let admitted = match self.sessions.rights() {
            Some(rights) => self.guest(&connect, &frames, rights),
            None => self.authenticate(&io, &connect, password, handshake).await.and_then(|(terminal, papers)| {
                let terms = Terms::of(&connect, frames.version(), limits, &Rights::Terminal)?;
                Ok(Admitted::terminal(terminal, terms, papers))
            }),
        };
        match admitted {
            Ok(admitted) => self.open(io, frames, admitted).await,
            Err(refusal) => self.turn_away(&io, &frames, &connect, refusal).await,
        }
    }

    /// Anybody, under the name that it gives itself or under one that it is given.
    fn guest(&self, connect: &Connect, frames: &Frames, rights: Rights) -> Result<Admitted, Refusal> {
        let terms = Terms::of(connect, frames.version(), self.sessions.limits(), &rights)?;
        let client = match &*connect.client_id {
            "" => assigned(),
            named => ClientId::new(named),
        };
        let client = client.map_err(|_| Refusal::ClientIdentifierNotValid)?;
        if !self.sessions.has_room_for(&client, self.connections_max) {
            return Err(Refusal::ServerBusy);
        }
        if terms.expiry_s > 0 && !self.sessions.router().has_room_for(&client) {
            return Err(Refusal::QuotaExceeded);
        }
        let keeps = self.sessions.router().keeps(&client);
        let stored = terms.expiry_s > 0 || terms.will.is_some() || keeps || self.sessions.stores_clean();
        Ok(Admitted { client, rights, who: Who::Guest { stored }, terms, papers: None })
    }

    async fn turn_away(&self, io: &IoBoxed, frames: &Frames, connect: &Connect, refusal: Refusal) {
        tracing::info!(client = %Printable(&connect.client_id), ?refusal, "a connection was refused");
        say(&io.get_ref(), frames, Packet::ConnectAck(Box::new(refuse(refusal))));
        end(io).await;
    }

    /// Whose connection it is. A certificate that is enrolled is proof by itself; otherwise the password is.
    async fn authenticate(
        &self,
        io: &IoBoxed,
        connect: &Connect,
        password: Option<ntex_bytes::Bytes>,
        handshake: Option<Handshake>,
    ) -> Result<(Terminal, Option<Papers>), Refusal> {
        let (proven, papers) = match handshake {
            Some(handshake) => self.by_certificate(io, &handshake).await?,
            None => (None, None),
        };
        let terminal = match proven {
            Some(terminal) => terminal,
            None => self.by_password(connect, password).await?,
        };
        if !connect.client_id.is_empty() && *connect.client_id != *terminal.id.as_str() {
            return Err(Refusal::ClientIdentifierNotValid);
        }
        if terminal.blocked.is_some() {
            return Err(Refusal::Banned);
        }
        if terminal.sandbox && !self.sessions.sandbox() {
            return Err(Refusal::NotAuthorized);
        }
        if !self.sessions.has_room_for(&ClientId::from(&terminal.id), self.connections_max) {
            return Err(Refusal::ServerBusy);
        }
        Ok((terminal, papers))
    }

    /// The terminal that is enrolled with the certificate of this connection, and what is to be remembered of that. One
    /// that is no longer good opens nothing, with a password neither.
    async fn by_certificate(
        &self,
        io: &IoBoxed,
        handshake: &Handshake,
    ) -> Result<(Option<Terminal>, Option<Papers>), Refusal> {
        let peer = io.query::<PeerCertChain<'static>>();
        let Some(PeerCertChain(chain)) = peer.as_ref() else { return Ok((None, None)) };
        let Some(certificate) = chain.first() else { return Ok((None, None)) };
        let papers = handshake.examine(chain).map_err(|objection| {
            tracing::info!(why = objection.text(), "a certificate was not taken");
            Refusal::NotAuthorized
        })?;
        let terminal = self.sessions.store().terminal_by_certificate(tls::fingerprint(certificate)).await;
        Ok((terminal.map_err(away)?, papers))
    }

    async fn by_password(&self, connect: &Connect, password: Option<ntex_bytes::Bytes>) -> Result<Terminal, Refusal> {
        let (Some(name), Some(password)) = (&connect.username, password) else { return Err(Refusal::NotAuthorized) };
        let terminal = match TerminalId::new(name) {
            Ok(id) => self.sessions.store().terminal(&id).await.map_err(away)?,
            Err(_) => None,
        };
        let hash = terminal.as_ref().and_then(|terminal| terminal.password_hash.clone());
        match (self.passwords.verify(hash, password).await, terminal) {
            (Verdict::Right, Some(terminal)) => Ok(terminal),
            (Verdict::Busy, _) => Err(Refusal::ServerBusy),
            (Verdict::Right | Verdict::Wrong, _) => Err(Refusal::BadUserNameOrPassword),
        }
    }

    /// Opens what is stored of the session and hands the connection to its actor.
    async fn open(&self, io: IoBoxed, frames: Frames, admitted: Admitted) {
        let Admitted { client, rights, who, terms, papers } = admitted;
        let (now, guest) = (self.sessions.clock().now(), matches!(who, Who::Guest { .. }));
        let mut above = self.sessions.epoch_of(&client);
        if guest {
            // Of a session that is not stored no epoch stays, and the next must be higher all the same.
            above = above.max(self.sessions.guest_epoch(now));
        }
        let opened = if matches!(who, Who::Guest { stored: false }) {
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
            self.sessions.store().open_session(opening).await
        };
        let (epoch, loaded) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(%client, %error, "a session could not be opened");
                say(&io.get_ref(), &frames, Packet::ConnectAck(Box::new(refuse(Refusal::ServerUnavailable))));
                return end(&io).await;
            }
        };
        let (kept, with) = (terms.expiry_s > 0, loaded.subscriptions.clone());
        let twin = Twin::load(client.clone(), rights, terms, self.sessions.limits(), loaded, now);
        let (addr, inbox) = Session::start(twin, epoch, who, self.sessions.clone(), io, frames);
        if guest {
            self.sessions.router().connected(&client, epoch, inbox, kept, &with);
            self.sessions.came(&client, epoch, now);
        }
        self.sessions.register(client, epoch, addr, papers);
    }
}

/// Who is let in, and on which terms.
struct Admitted {
    client: ClientId,
    rights: Rights,
    who: Who,
    terms: Terms,
    /// Of its certificate, where it has one that may be revoked.
    papers: Option<Papers>,
}

impl Admitted {
    fn terminal(terminal: Terminal, terms: Terms, papers: Option<Papers>) -> Self {
        let client = ClientId::from(&terminal.id);
        let enrolled = Arc::new(Enrolled {
            terminal: terminal.id,
            agent: terminal.agent,
            core: terminal.core,
            sandbox: terminal.sandbox,
            blocked: false,
        });
        Self { client, rights: Rights::Terminal, who: Who::Terminal(enrolled), terms, papers }
    }
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

fn away(error: crate::store::Error) -> Refusal {
    tracing::warn!(%error, "a terminal could not be looked up");
    Refusal::ServerUnavailable
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
