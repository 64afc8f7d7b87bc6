//! The links of a core: reads messages, has them judged, answers as its temper has it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use wakala::iso8583::{Framing, Message, Value};

use super::Inside;
use super::behaviour::Quirk;

/// Answers that may wait to be written; more are dropped, as by a core that is overrun.
const ANSWERS: usize = 4096;

/// The links that are up.
#[derive(Debug, Default)]
pub(super) struct Links(Mutex<BTreeMap<u64, AbortHandle>>);

impl Links {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn len(&self) -> usize {
        self.lock().values().filter(|link| !link.is_finished()).count()
    }

    pub(super) fn cut(&self) {
        for link in std::mem::take(&mut *self.lock()).into_values() {
            link.abort();
        }
    }
}

pub(super) async fn listen(listener: TcpListener, inside: Arc<Inside>) {
    let mut number = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                number += 1;
                let serving = tokio::spawn(serve(stream, Arc::clone(&inside))).abort_handle();
                let mut links = inside.links.lock();
                links.retain(|_, link| !link.is_finished());
                links.insert(number, serving);
            }
            Err(error) => {
                tracing::warn!(%error, "the core cannot take a link");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, inside: Arc<Inside>) {
    let (from, to) = stream.into_split();
    let (answers, queue) = mpsc::channel(ANSWERS);
    let link = Link { inside: Arc::clone(&inside), answers, signed_on: false, held: BTreeMap::new() };
    let framing = inside.dialect.framing.clone();
    // Whichever ends first ends the link.
    let ended = tokio::select! {
        read = link.read(from) => read,
        written = write(to, queue, framing) => written,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a link of the core ended");
    }
}

async fn write(mut to: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>, framing: Framing) -> io::Result<()> {
    while let Some(message) = queue.recv().await {
        let framed = framing.frame(&message).map_err(|bad| io::Error::new(io::ErrorKind::InvalidInput, bad))?;
        to.write_all(&framed).await?;
    }
    Ok(())
}

struct Link {
    inside: Arc<Inside>,
    answers: mpsc::Sender<Vec<u8>>,
    signed_on: bool,
    /// Answers that are kept until the reversal, by RRN.
    held: BTreeMap<String, Vec<u8>>,
}

impl Link {
    async fn read(mut self, mut from: OwnedReadHalf) -> io::Result<()> {
        let framing = self.inside.dialect.framing.clone();
        loop {
            let mut prefix = vec![0; framing.prefix_bytes()];
            from.read_exact(&mut prefix).await?;
            let bad = |bad| io::Error::new(io::ErrorKind::InvalidData, bad);
            let mut rest = vec![0; framing.rest(&prefix).map_err(bad)?];
            from.read_exact(&mut rest).await?;
            if rest.is_empty() {
                continue;
            }
            match self.inside.dialect.layout.parse(&rest[framing.header.len()..]) {
                Ok(message) if message.mti.is_response() => {}
                Ok(message) if message.mti.class() == 8 => self.network(&message),
                Ok(message) => self.money(&message)?,
                Err(malformed) => tracing::warn!(%malformed, "the core cannot read a message"),
            }
        }
    }

    fn network(&mut self, message: &Message) {
        let what = message.text(70).unwrap_or_default().to_owned();
        match what.as_str() {
            "001" => self.signed_on = true,
            "002" => self.signed_on = false,
            _ => {}
        }
        *self.inside.state().network.entry(what).or_insert(0) += 1;
        let mut answer = Message::new(message.mti.response());
        for field in [7, 11, 33, 70] {
            if let Some(value) = message.get(field) {
                answer.set(field, Value::new(value.as_bytes().to_vec()));
            }
        }
        if let Some(answer) = self.encoded(&answer.with(39, "00")) {
            self.send(answer, Duration::ZERO);
        }
    }

    /// An error ends the link.
    fn money(&mut self, message: &Message) -> io::Result<()> {
        let mut state = self.inside.state();
        let (quirk, delay) = (state.temper.quirk(), state.temper.delay());
        if quirk == Quirk::Ignore {
            return Ok(());
        }
        let refused = match quirk {
            _ if !self.signed_on => Some("58"),
            Quirk::Decline(code) => Some(code),
            _ => None,
        };
        let (answer, entry) = state.book.judge(message, refused, now());
        let rrn = entry.rrn.clone();
        state.journal.append(entry)?;
        drop(state);
        let Some(answer) = self.encoded(&answer) else { return Ok(()) };
        match quirk {
            Quirk::Behave | Quirk::Decline(_) | Quirk::Ignore => self.send(answer, delay),
            Quirk::Swallow => {}
            Quirk::Late(late) => self.send(answer, late),
            Quirk::Twice => {
                self.send(answer.clone(), delay);
                self.send(answer, delay);
            }
            Quirk::AfterReversal if message.mti.class() == 2 => {
                self.held.insert(rrn, answer);
                return Ok(());
            }
            Quirk::AfterReversal => self.send(answer, delay),
            Quirk::Cut => return Err(io::Error::new(io::ErrorKind::ConnectionReset, "cut, as it was told")),
        }
        if message.mti.class() == 4
            && let Some(held) = self.held.remove(&rrn)
        {
            self.send(held, delay + Duration::from_millis(5));
        }
        Ok(())
    }

    fn encoded(&self, answer: &Message) -> Option<Vec<u8>> {
        match self.inside.dialect.layout.encode(answer) {
            Ok(bytes) => Some(bytes.to_vec()),
            Err(unfit) => {
                tracing::warn!(%unfit, "the core cannot write an answer");
                None
            }
        }
    }

    fn send(&self, answer: Vec<u8>, after: Duration) {
        let answers = self.answers.clone();
        if after.is_zero() {
            // A full queue is an overrun core; the answer is lost.
            let _ = answers.try_send(answer);
        } else {
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                let _ = answers.try_send(answer);
            });
        }
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
