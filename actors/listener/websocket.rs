//! MQTT in WebSocket: the upgrade of a connection, and the layer that takes the bytes out of frames and puts them in.
//!
//! A layer below the session, above TLS where there is TLS: what it gives is a stream of bytes like any other, and nobody
//! after it knows. ntex has such a layer too; it takes frames with reserved bits and pings in parts, gathers a frame
//! before it hands it on, writes pongs without a bound to a client that does not read, and closes without saying why.
//! So the frames are ours (`src/websocket/`).

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ntex::io::{Filter, FilterBuf, FilterLayer, Io, Layer};
use ntex_bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};
use wakala::websocket::frames::{Code, Frames, What, binary, pong};
use wakala::websocket::upgrade::{self, Refusal, Terms};

/// Where MQTT is spoken in WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebSocket {
    /// Without TLS (`ws://`). For loopback and behind a proxy that has TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<SocketAddr>,
    /// With TLS (`wss://`), by the files of `listener.tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SocketAddr>,
    /// The path that is served.
    #[serde(default = "path")]
    pub path: String,
    /// Pages that may connect, as browsers name them: `https://portal.bank.example`. Empty: any page.
    #[serde(default)]
    pub origins: Vec<String>,
    /// The largest head of a request, in bytes.
    #[serde(default = "head_bytes_max")]
    pub head_bytes_max: u32,
}

fn path() -> String {
    "/mqtt".to_owned()
}

fn head_bytes_max() -> u32 {
    8 * 1024
}

impl Default for WebSocket {
    fn default() -> Self {
        Self { plain: None, tls: None, path: path(), origins: Vec::new(), head_bytes_max: head_bytes_max() }
    }
}

impl WebSocket {
    /// What is wrong with it: a key and a text.
    pub(crate) fn faults(&self, tls: bool) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.plain.is_none() && self.tls.is_none() {
            faults.push(("plain", "neither `plain` nor `tls` has an address".to_owned()));
        }
        if self.tls.is_some() && !tls {
            faults.push(("tls", "needs listener.tls, whose files it uses".to_owned()));
        }
        if !self.path.starts_with('/') || self.path.contains(|c: char| !c.is_ascii_graphic() || "?#".contains(c)) {
            faults.push(("path", format!("{:?} is not a path; right would be \"/mqtt\"", self.path)));
        }
        for origin in &self.origins {
            // RFC 6454 §6.2: a scheme, a host and perhaps a port. What has a path never matches.
            if origin
                .split_once("://")
                .is_none_or(|(scheme, host)| scheme.is_empty() || host.is_empty() || host.contains('/'))
            {
                let text = format!("{origin:?} is not an origin; right would be \"https://portal.bank.example\"");
                faults.push(("origins", text));
            }
        }
        faults
    }
}

/// Makes connections WebSockets.
#[derive(Clone, Debug)]
pub(super) struct Upgrade {
    terms: Arc<Terms>,
    head_bytes_max: usize,
    within: Duration,
}

impl Upgrade {
    pub(super) fn new(options: &WebSocket, within: Duration) -> Self {
        let terms = Terms { path: options.path.clone(), origins: options.origins.clone() };
        Self { terms: Arc::new(terms), head_bytes_max: options.head_bytes_max as usize, within }
    }

    /// The connection as a stream of MQTT's bytes; none when it was no request for that, which it has been told, or did not
    /// come in time.
    pub(super) async fn accept<F: Filter>(&self, io: Io<F>, by: Instant) -> Option<Io<Layer<Carried, F>>> {
        let head = RequestHead { bytes_max: self.head_bytes_max, seen: Cell::new(0) };
        let Ok(received) = timeout_at(by.min(Instant::now() + self.within), io.recv(&head)).await else {
            tracing::debug!("no request for a WebSocket in time");
            io.terminate();
            return None;
        };
        let answer = match received {
            Ok(Some(head)) => upgrade::accept(&head, &self.terms),
            Ok(None) | Err(ntex::util::Either::Right(_)) => return None,
            Err(ntex::util::Either::Left(refusal)) => Err(refusal),
        };
        match answer {
            Ok(answer) => {
                io.encode_slice(answer.as_bytes()).ok()?;
                Some(io.add_filter(Carried::default()))
            }
            Err(refusal) => {
                tracing::debug!(why = %refusal, "a request for a WebSocket was refused");
                // The peer may be gone already.
                let _ = io.encode_slice(refusal.answer().as_bytes());
                let _ = io.shutdown().await;
                None
            }
        }
    }
}

/// Gives the head of a request, whole.
#[derive(Debug)]
struct RequestHead {
    bytes_max: usize,
    /// Where its end is not.
    seen: Cell<usize>,
}

const END: &[u8] = b"\r\n\r\n";

impl ntex_codec::Decoder for RequestHead {
    type Item = BytesMut;
    type Error = Refusal;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<BytesMut>, Refusal> {
        // What does not begin like a request is not waited for: a TLS hello, a CONNECT.
        if src.first().is_some_and(|byte| !byte.is_ascii_uppercase()) {
            return Err(Refusal::NotHttp);
        }
        let seen = self.seen.get();
        let end = src[seen..].windows(END.len()).position(|four| four == END).map(|at| seen + at + END.len());
        self.seen.set(src.len().saturating_sub(END.len() - 1));
        match end {
            Some(end) if end <= self.bytes_max => Ok(Some(BytesMut::from(&*src.split_to(end)))),
            None if src.len() < self.bytes_max => Ok(None),
            _ => Err(Refusal::TooLarge),
        }
    }
}

/// The layer of one connection.
#[derive(Debug, Default)]
pub(super) struct Carried {
    frames: RefCell<Frames>,
    /// The latest ping that was not answered yet.
    ping: RefCell<Option<Vec<u8>>>,
    /// A close frame was the last one.
    closed: Cell<bool>,
}

/// A pong waits while more than this waits for the socket already.
const UNSENT_MAX: usize = 4096;

impl Carried {
    /// Says why, after which nothing is sent and nothing is read.
    fn close(&self, code: Code, buf: &FilterBuf<'_>) {
        if !self.closed.replace(true) {
            buf.with_write_buffers(|_, to| to.extend_from_slice(&code.frame()));
        }
    }

    /// Answers the latest ping. A client that sends many and reads nothing costs one answer, not each of them.
    fn answer(&self, buf: &FilterBuf<'_>) {
        let mut ping = self.ping.borrow_mut();
        if ping.is_none() || buf.io().with_write_dst_buf(|unsent| unsent.len()) > UNSENT_MAX {
            return;
        }
        if let Some(ping) = ping.take() {
            buf.with_write_buffers(|_, to| {
                to.extend_from_slice(pong(ping.len()).as_ref());
                to.extend_from_slice(&ping);
            });
        }
    }

    /// Takes what there is out of its frames; the code with which it ends.
    fn unpack(&self, from: &mut BytesMut, to: &mut BytesMut) -> Option<Code> {
        let mut frames = self.frames.borrow_mut();
        while let Some(piece) = frames.read(from) {
            match piece.what {
                What::Bytes(range) => to.extend_from_slice(&from[range]),
                What::Ping(range) => *self.ping.borrow_mut() = Some(from[range].to_vec()),
                What::Nothing => {}
                What::End(code) => return Some(code),
            }
            from.advance_to(piece.bytes);
        }
        None
    }
}

impl FilterLayer for Carried {
    fn process_read_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        let end = buf.with_read_buffers(|from, to| {
            let from = from.as_mut()?;
            let end = if self.closed.get() { None } else { self.unpack(from, to) };
            if end.is_some() || self.closed.get() {
                from.clear();
            }
            end
        });
        self.answer(buf);
        if let Some(code) = end {
            self.close(code, buf);
            buf.io().close();
        }
        Ok(())
    }

    fn process_write_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        if self.closed.get() {
            buf.with_write_buffers(|from, _| from.clear());
            return Ok(());
        }
        // Packets that were written together share a frame.
        buf.with_write_buffers(|from, to| {
            if !from.is_empty() {
                to.extend_from_slice(binary(from.len()).as_ref());
            }
            while let Some(page) = from.take() {
                to.append(page);
            }
        });
        self.answer(buf);
        Ok(())
    }

    fn shutdown(&self, buf: &FilterBuf<'_>) -> io::Result<Poll<()>> {
        self.close(Code::NORMAL, buf);
        Ok(Poll::Ready(()))
    }
}
