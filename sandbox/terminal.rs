//! A simulated terminal: it does what docs/terminals.md asks of a terminal maker, and what it does it does from flash
//! memory, so that it may lose its power at any moment.
//!
//! The task of [`Terminal::live`] may be aborted anywhere and started again; only [`Flash`] is remembered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message as _;
use rand::Rng as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, sleep_until, timeout};
use wakala::card::Mac;
use wakala::id::{RequestKey, TerminalId};
use wakala::pin::dukpt::BadCounter;
use wakala::pin::terminal::Injected;
use wakala::receipt::{receipt_topic, request_topic};
use wakala::request::Kind;
use wakala::wire;

use crate::cards::Card;
use crate::flash::{Flash, Receipt, Sent, Strange};
use crate::mqtt::{Broken, Connect, Packet, Version};
use crate::plan::{Manner, Step};

/// TZS, ISO 4217.
const CURRENCY: u32 = 834;

/// How a terminal waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the connection, CONNACK and SUBACK each.
    pub connect: Duration,
    /// Between PINGREQs; also what CONNECT says.
    pub keep_alive: Duration,
    /// For PUBACK and PINGRESP, before the connection is taken for dead.
    pub stall: Duration,
    /// For a receipt after PUBACK, before the same bytes are published again.
    pub repeat: Duration,
    /// The first ceiling of the wait before a reconnect; doubled each time. The wait is drawn from zero to it.
    pub reconnect_first: Duration,
    pub reconnect_max: Duration,
    /// Between one customer and the next, at most; drawn from zero to it.
    pub customer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            keep_alive: Duration::from_secs(60),
            stall: Duration::from_secs(20),
            repeat: Duration::from_secs(20),
            reconnect_first: Duration::from_millis(250),
            reconnect_max: Duration::from_secs(5),
            customer: Duration::ZERO,
        }
    }
}

/// Where the node is, as this terminal sees it.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    /// The certificates to trust, for a connection by TLS.
    pub tls: Option<tokio_rustls::TlsConnector>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.address, if self.tls.is_some() { " by TLS" } else { "" })
    }
}

/// One terminal.
pub struct Terminal {
    pub id: TerminalId,
    pub password: String,
    pub version: Version,
    /// What was injected into its PIN pad.
    pub pin_pad: Injected,
    pub cards: Vec<Arc<Card>>,
    pub steps: Vec<Step>,
    pub server: Server,
    pub patience: Patience,
    /// When the shop opens: it connects before, customers come after.
    pub opens: Instant,
    pub flash: Flash,
    /// Raised with every step that is done.
    pub progress: Arc<AtomicUsize>,
    /// No further customer is let in.
    pub closed: Arc<AtomicBool>,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:?} by MQTT {}", self.id, self.server, self.version)
    }
}

/// A terminal has got the first receipt of a request, or a notice.
#[derive(Debug)]
pub struct Told {
    pub terminal: TerminalId,
    pub receipt: wire::Receipt,
    /// From the first byte sent.
    pub took: Option<Duration>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("the server closed the connection")]
    Closed,
    #[error("CONNACK with code {0:#04x}")]
    Refused(u8),
    #[error("the subscription was refused")]
    NotSubscribed,
    #[error("PUBLISH refused with reason code {0:#04x}")]
    NotPublished(u8),
    #[error("no answer in time")]
    Stalled,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
struct Connection<'a> {
    terminal: &'a Terminal,
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    last_sent: Instant,
    /// When something was sent that must be acknowledged, if it is not yet.
    waiting: Option<Instant>,
    /// When the open request was last published here, or acknowledged.
    last_asked: Instant,
    /// When the next customer comes.
    next_customer: Instant,
    told: &'a mpsc::Sender<Told>,
}

impl Terminal {
    /// Works until `stop` says so; connects again, with full jitter, as often as it must.
    pub async fn live(self: Arc<Self>, told: mpsc::Sender<Told>, mut stop: watch::Receiver<bool>) {
        let mut ceiling = self.patience.reconnect_first;
        while !*stop.borrow() {
            let began = Instant::now();
            match self.connection(&told, &mut stop).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(terminal = %self.id, %error, "connection lost"),
            }
            if began.elapsed() > self.patience.reconnect_max {
                ceiling = self.patience.reconnect_first;
            }
            let wait = rand::rng().random_range(Duration::ZERO..=ceiling);
            ceiling = (ceiling * 2).min(self.patience.reconnect_max);
            tokio::select! {
                () = sleep(wait) => {}
                _ = stop.changed() => {}
            }
        }
    }

    /// Whether a customer is served, or it has never been let in by the node.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        let flash = self.flash.lock();
        flash.open.is_some() || !flash.subscribed
    }

    /// Whether a customer waits.
    fn has_customer(&self, done: usize) -> bool {
        done < self.steps.len() && !self.closed.load(Ordering::Relaxed)
    }

    async fn connection(&self, told: &mpsc::Sender<Told>, stop: &mut watch::Receiver<bool>) -> Result<(), Lost> {
        let stream = timeout(self.patience.connect, self.dial()).await.map_err(|_| Lost::Stalled)??;
        let now = Instant::now();
        let mut connection = Connection {
            terminal: self,
            stream,
            buffer: Vec::new(),
            last_sent: now,
            waiting: None,
            last_asked: now,
            next_customer: self.opens.max(now),
            told,
        };
        timeout(self.patience.connect, connection.enter()).await.map_err(|_| Lost::Stalled)??;
        connection.resume().await?;
        connection.work(stop).await
    }

    async fn dial(&self) -> std::io::Result<Box<dyn Stream>> {
        let tcp = TcpStream::connect(self.server.address).await?;
        tcp.set_nodelay(true)?;
        let Some(tls) = &self.server.tls else { return Ok(Box::new(tcp)) };
        let name = rustls::pki_types::ServerName::try_from("localhost").map_err(std::io::Error::other)?;
        Ok(Box::new(tls.connect(name, tcp).await?))
    }

    /// Makes the request of the next step and stores it; its place in flash.
    pub(crate) fn store_next(&self) -> Option<usize> {
        let mut flash = self.flash.lock();
        let step = self.steps.get(flash.done).filter(|_| self.has_customer(flash.done))?;
        let place = flash.requests.len();
        let key = match step.manner {
            Manner::ReusesKey => flash.requests.last()?.key,
            Manner::Malformed => {
                let bytes = malformed();
                let (step, manner, key) = (flash.done, step.manner, RequestKey::of_bytes(&bytes));
                flash.requests.push(Sent::stored(step, manner, key, None, bytes));
                flash.open = Some(place);
                return Some(place);
            }
            Manner::Plain | Manner::Hasty | Manner::AsksAgain | Manner::ForgedMac => RequestKey(rand::rng().random()),
        };
        let counter = flash.next_counter()?;
        let bytes = self.request(step, key, counter).ok()?;
        let (at, manner) = (flash.done, step.manner);
        let counter = (manner != Manner::ForgedMac).then_some(counter);
        flash.requests.push(Sent::stored(at, manner, key, counter, bytes));
        flash.open = Some(place);
        Some(place)
    }

    fn request(&self, step: &Step, key: RequestKey, counter: u32) -> Result<Vec<u8>, BadCounter> {
        let card = &self.cards[step.card];
        let keys = self.pin_pad.transaction(counter)?;
        let pin_block = match (step.kind, card.pin(step.pin_is_right)) {
            (Kind::Withdrawal, Some(pin)) => keys.pin_block(&pin, &card.pan, rand::rng().random()).0.to_vec(),
            (Kind::Withdrawal, None) | (Kind::Deposit, _) => Vec::new(),
        };
        let request = wire::Request {
            key: key.0.to_vec(),
            kind: step.kind.wire().into(),
            amount: step.amount,
            currency: CURRENCY,
            card: Some(wire::Card { data: keys.card_data(&card.pan, card.expiry).to_vec(), pin_block }),
            made_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        };
        let body = request.encode_to_vec();
        let mut mac = keys.request_mac(&body).0.to_vec();
        if step.manner == Manner::ForgedMac {
            mac[0] ^= 1;
        }
        Ok(wire::Envelope { body, ksn: keys.ksn().to_bytes().to_vec(), mac }.encode_to_vec())
    }

    /// Stores what came on the receipts' topic; what there is to show of it.
    fn hear(&self, topic: String, bytes: Vec<u8>) -> Option<Told> {
        let at = Instant::now();
        let mut flash = self.flash.lock();
        let strange = |why| Strange { topic: topic.clone(), bytes: bytes.clone(), why };
        if topic != receipt_topic(&self.id) {
            let strange = strange("another terminal's topic");
            flash.strange.push(strange);
            return None;
        }
        let envelope = wire::ReceiptEnvelope::decode(&bytes[..]).unwrap_or_default();
        let receipt = wire::Receipt::decode(&envelope.body[..]).unwrap_or_default();
        let Some(place) = flash.answered_by(&receipt).filter(|_| receipt.terminal == self.id.as_str()) else {
            let strange = strange("answers no request of this terminal");
            flash.strange.push(strange);
            return None;
        };
        let open = flash.open == Some(place);
        let sent = &mut flash.requests[place];
        let authentic = self.is_authentic(sent, &envelope);
        if receipt.outcome == i32::from(wire::Outcome::Pending) {
            sent.notices += 1;
            return (sent.notices == 1).then(|| Told { terminal: self.id.clone(), receipt, took: None });
        }
        sent.receipts.push(Receipt { bytes, at, authentic });
        let (copies, took) = (sent.receipts.len(), sent.took());
        let wanted = if sent.manner == Manner::AsksAgain { 2 } else { 1 };
        if open && copies >= wanted {
            flash.open = None;
            flash.done += 1;
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        (copies == 1).then(|| Told { terminal: self.id.clone(), receipt, took })
    }

    fn is_authentic(&self, sent: &Sent, envelope: &wire::ReceiptEnvelope) -> bool {
        match sent.counter {
            None => envelope.mac.is_empty(),
            Some(counter) => {
                let keys = self.pin_pad.transaction(counter).ok();
                let mac = <[u8; 8]>::try_from(&envelope.mac[..]).ok().map(Mac);
                keys.zip(mac).is_some_and(|(keys, mac)| keys.receipt_mac(&envelope.body) == mac)
            }
        }
    }
}

impl Sent {
    fn stored(step: usize, manner: Manner, key: RequestKey, counter: Option<u32>, bytes: Vec<u8>) -> Self {
        Self {
            step,
            manner,
            key,
            counter,
            bytes,
            first_sent: None,
            published: 0,
            pubacks: Vec::new(),
            notices: 0,
            receipts: Vec::new(),
        }
    }
}

/// Bytes of 8 to 40 that no reader takes for an `Envelope`: field 1 claims more bytes than there are.
fn malformed() -> Vec<u8> {
    let mut bytes = vec![0x0A, 0x7F];
    let length = rand::rng().random_range(8..40);
    bytes.resize_with(length, || rand::rng().random());
    bytes
}

impl Connection<'_> {
    /// CONNECT, and SUBSCRIBE unless the server has kept the session.
    async fn enter(&mut self) -> Result<(), Lost> {
        let terminal = self.terminal;
        let keep_alive = u16::try_from(terminal.patience.keep_alive.as_secs()).unwrap_or(u16::MAX);
        let (client_id, password) = (terminal.id.as_str(), Some(&*terminal.password));
        let connect = Connect { client_id, password, clean: false, keep_alive };
        self.send(terminal.version.connect(&connect)).await?;
        let session_present = match self.receive().await? {
            Packet::ConnAck { session_present, code: 0 } => session_present,
            Packet::ConnAck { code, .. } => return Err(Lost::Refused(code)),
            _ => return Err(Broken("something before CONNACK").into()),
        };
        if session_present && terminal.flash.lock().subscribed {
            return Ok(());
        }
        let id = {
            let mut flash = terminal.flash.lock();
            let id = flash.next_packet(usize::MAX);
            flash.unacknowledged.pop();
            id
        };
        self.send(terminal.version.subscribe(id, &receipt_topic(&terminal.id))).await?;
        loop {
            match self.receive().await? {
                Packet::SubAck { id: of, codes } if of == id => {
                    if codes[..] != [1] {
                        return Err(Lost::NotSubscribed);
                    }
                    terminal.flash.lock().subscribed = true;
                    return Ok(());
                }
                packet => self.take(packet).await?,
            }
        }
    }

    /// Sends again what was not acknowledged (4.4.0-1: DUP, the original identifiers, the original order), and the
    /// open request if no PUBLISH of it is under way.
    async fn resume(&mut self) -> Result<(), Lost> {
        let (again, open) = {
            let flash = self.terminal.flash.lock();
            let again = flash.unacknowledged.clone();
            let open = flash.open.filter(|&open| again.iter().all(|&(_, request)| request != open));
            (again, open)
        };
        for (id, request) in again {
            self.publish(id, request, true).await?;
        }
        match open {
            // Stored, and the power went before the first byte.
            Some(open) if self.terminal.flash.lock().requests[open].published == 0 => self.ask(open).await,
            Some(_) | None => Ok(()),
        }
    }

    async fn work(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), Lost> {
        loop {
            if *stop.borrow() {
                let disconnect = self.terminal.version.disconnect();
                self.send(disconnect).await?;
                return Ok(self.stream.shutdown().await?);
            }
            let due = self.due();
            tokio::select! {
                packet = self.receive() => {
                    let packet = packet?;
                    self.take(packet).await?;
                }
                () = sleep_until(due.into()) => self.tick().await?,
                _ = stop.changed() => {}
            }
        }
    }

    fn due(&self) -> Instant {
        let patience = &self.terminal.patience;
        let ping = self.last_sent + patience.keep_alive;
        let stall = self.waiting.map_or(ping, |since| since + patience.stall);
        let flash = self.terminal.flash.lock();
        let work = match flash.open {
            Some(_) => self.last_asked + patience.repeat,
            None if self.terminal.has_customer(flash.done) => self.next_customer,
            None => ping,
        };
        ping.min(stall).min(work)
    }

    async fn tick(&mut self) -> Result<(), Lost> {
        let (now, patience) = (Instant::now(), self.terminal.patience);
        if self.waiting.is_some_and(|since| now >= since + patience.stall) {
            return Err(Lost::Stalled);
        }
        if now >= self.last_sent + patience.keep_alive {
            let ping = self.terminal.version.pingreq();
            self.send(ping).await?;
            self.waiting = self.waiting.or(Some(now));
        }
        let open = self.terminal.flash.lock().open;
        match open {
            Some(open) if now >= self.last_asked + patience.repeat => self.ask(open).await,
            None if now >= self.next_customer => self.serve().await,
            Some(_) | None => Ok(()),
        }
    }

    /// The next customer, if there is one.
    async fn serve(&mut self) -> Result<(), Lost> {
        let Some(place) = self.terminal.store_next() else { return Ok(()) };
        let hasty = self.terminal.flash.lock().requests[place].manner == Manner::Hasty;
        for _ in 0..if hasty { 3 } else { 1 } {
            self.ask(place).await?;
        }
        Ok(())
    }

    /// Publishes a stored request under an identifier of its own.
    async fn ask(&mut self, request: usize) -> Result<(), Lost> {
        let id = self.terminal.flash.lock().next_packet(request);
        self.publish(id, request, false).await
    }

    async fn publish(&mut self, id: u16, request: usize, dup: bool) -> Result<(), Lost> {
        let now = Instant::now();
        let packet = {
            let mut flash = self.terminal.flash.lock();
            let sent = &mut flash.requests[request];
            sent.first_sent.get_or_insert(now);
            sent.published += 1;
            self.terminal.version.publish(&request_topic(&self.terminal.id), id, dup, &sent.bytes)
        };
        self.waiting = self.waiting.or(Some(now));
        self.last_asked = now;
        self.send(packet).await
    }

    async fn take(&mut self, packet: Packet) -> Result<(), Lost> {
        match packet {
            Packet::Publish { topic, payload, qos, id, .. } => {
                let open = self.terminal.flash.lock().open;
                let told = self.terminal.hear(topic, payload);
                if qos == 1 {
                    let puback = self.terminal.version.puback(id);
                    self.send(puback).await?;
                }
                self.after_hearing(open).await?;
                if let Some(told) = told {
                    // For the eye alone; what counts is in flash.
                    let _ = self.told.try_send(told);
                }
            }
            Packet::PubAck { id, code } => {
                let mut flash = self.terminal.flash.lock();
                if code >= 0x80 {
                    return Err(Lost::NotPublished(code));
                }
                flash.acknowledged(id, Instant::now());
                self.waiting = if flash.unacknowledged.is_empty() { None } else { Some(Instant::now()) };
                self.last_asked = Instant::now();
            }
            Packet::PingResp => {
                let idle = self.terminal.flash.lock().unacknowledged.is_empty();
                if idle {
                    self.waiting = None;
                }
            }
            Packet::SubAck { .. } => {}
            Packet::ConnAck { .. } => return Err(Broken("a second CONNACK").into()),
            Packet::Disconnect { code } => return Err(Lost::Refused(code)),
        }
        Ok(())
    }

    /// A request that has its receipt makes room for the next customer; one that wants a copy asks again.
    async fn after_hearing(&mut self, open_before: Option<usize>) -> Result<(), Lost> {
        let Some(request) = open_before else { return Ok(()) };
        let asks_again = {
            let flash = self.terminal.flash.lock();
            let sent = &flash.requests[request];
            flash.open == open_before && sent.manner == Manner::AsksAgain && sent.receipts.len() == 1
        };
        if asks_again {
            return self.ask(request).await;
        }
        if self.terminal.flash.lock().open.is_none() {
            let pause = rand::rng().random_range(Duration::ZERO..=self.terminal.patience.customer);
            self.next_customer = Instant::now() + pause;
        }
        Ok(())
    }

    async fn send(&mut self, packet: Vec<u8>) -> Result<(), Lost> {
        timeout(self.terminal.patience.stall, self.stream.write_all(&packet)).await.map_err(|_| Lost::Stalled)??;
        self.stream.flush().await?;
        self.last_sent = Instant::now();
        Ok(())
    }

    async fn receive(&mut self) -> Result<Packet, Lost> {
        loop {
            if let Some(packet) = self.terminal.version.read(&mut self.buffer)? {
                return Ok(packet);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(Lost::Closed);
            }
        }
    }
}
