//! Many connections on one thread: epoll, one large buffer to read into, writes gathered until a batch of events is done.
//! No message allocates; a connection that is idle holds next to nothing.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::packets;
use crate::tls::{Secured, Tls};

/// Read at once from one connection. The largest packet that fits is as large.
const BUFFER_BYTES: usize = 256 * 1024;
const EVENTS: usize = 4096;

/// Who acts in a scenario. An error ends the run: a load that is not what it says it is measures nothing.
pub(crate) trait Play {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()>;

    /// The connection ended, or never came to be, and not because it was told to.
    fn closed(&mut self, _links: &mut Links, at: usize, why: &str) -> Result<()> {
        anyhow::bail!("connection {at} was closed: {why}")
    }

    /// The longest wait for events: how late the clock may be looked at.
    fn wait(&self) -> Duration {
        Duration::from_millis(20)
    }

    /// All that had happened has been told.
    fn turned(&mut self, _links: &mut Links) -> Result<()> {
        Ok(())
    }
}

/// All connections, by number.
#[derive(Debug)]
pub(crate) struct Links {
    poll: Poll,
    events: Option<Events>,
    buffer: Vec<u8>,
    all: Vec<Link>,
    /// Those with something to write.
    dirty: Vec<usize>,
    target: SocketAddr,
    tls: Option<Tls>,
}

#[derive(Debug, Default)]
struct Link {
    stream: Option<Stream>,
    /// What is to be written, and how much of it has been.
    out: Vec<u8>,
    written: usize,
    /// The beginning of a packet whose rest has not come.
    carry: Vec<u8>,
    dirty: bool,
    /// TCP's handshake is done.
    connected: bool,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<Secured>),
}

/// How a read or a write of all that is possible went.
enum Went {
    Well,
    Closed(String),
}

impl Links {
    pub(crate) fn new(target: SocketAddr, tls: Option<Tls>, count: usize) -> Result<Self> {
        let all = std::iter::repeat_with(Link::default).take(count).collect();
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            events: Some(Events::with_capacity(EVENTS)),
            buffer: vec![0; BUFFER_BYTES],
            all,
            dirty: Vec::with_capacity(count),
            target,
            tls,
        })
    }

    /// Begins to connect; `hello` is written as soon as that is possible: on loopback, with the batch of events.
    pub(crate) fn open(&mut self, at: usize, hello: &[u8]) -> Result<()> {
        let mut stream = TcpStream::connect(self.target).context("connect")?;
        stream.set_nodelay(true)?;
        self.poll.registry().register(&mut stream, Token(at), Interest::READABLE | Interest::WRITABLE)?;
        let stream = match &self.tls {
            Some(tls) => Stream::Tls(Box::new(tls.secure(stream)?)),
            None => Stream::Plain(stream),
        };
        let link = &mut self.all[at];
        *link = Link { stream: Some(stream), out: std::mem::take(&mut link.out), dirty: link.dirty, ..Link::default() };
        link.out.clear();
        self.out(at).extend_from_slice(hello);
        Ok(())
    }

    /// What is put here is written when the batch of events is done.
    pub(crate) fn out(&mut self, at: usize) -> &mut Vec<u8> {
        let link = &mut self.all[at];
        if !link.dirty {
            link.dirty = true;
            self.dirty.push(at);
        }
        &mut link.out
    }

    pub(crate) fn is_open(&self, at: usize) -> bool {
        self.all[at].stream.is_some()
    }

    /// Writes what can be written and ends the connection at once, with a reset: it leaves no port in TIME_WAIT, of which a
    /// few thousand connections per second would have none left soon.
    pub(crate) fn cut(&mut self, at: usize) {
        drop(self.write(at));
        let link = &mut self.all[at];
        if let Some(stream) = link.stream.take() {
            // It may be reset already.
            let _gone = rustix::net::sockopt::set_socket_linger(stream.socket(), Some(Duration::ZERO));
        }
        link.out.clear();
        link.written = 0;
    }

    /// Waits for events, tells them to `play` and writes what it has to say.
    pub(crate) fn turn(&mut self, play: &mut impl Play) -> Result<()> {
        self.flush(play)?;
        let mut events = self.events.take().unwrap_or_else(|| Events::with_capacity(EVENTS));
        match self.poll.poll(&mut events, Some(play.wait())) {
            Err(error) if error.kind() == ErrorKind::Interrupted => events.clear(),
            other => other.context("epoll")?,
        }
        for event in &events {
            let Token(at) = event.token();
            if !self.all[at].connected && !self.has_connected(at, play)? {
                continue;
            }
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                let went = self.read(at, play)?;
                self.mind(at, went, play)?;
            }
            if event.is_writable() && self.all[at].unwritten() {
                self.out(at);
            }
        }
        self.events = Some(events);
        play.turned(self)?;
        self.flush(play)
    }

    fn flush(&mut self, play: &mut impl Play) -> Result<()> {
        while let Some(at) = self.dirty.pop() {
            self.all[at].dirty = false;
            let went = self.write(at);
            self.mind(at, went, play)?;
        }
        Ok(())
    }

    fn mind(&mut self, at: usize, went: Went, play: &mut impl Play) -> Result<()> {
        match went {
            Went::Well => Ok(()),
            Went::Closed(why) => {
                self.all[at].stream = None;
                play.closed(self, at, &why)
            }
        }
    }

    /// The first event of a socket tells whether it is connected (connect(2), EINPROGRESS).
    fn has_connected(&mut self, at: usize, play: &mut impl Play) -> Result<bool> {
        let Some(stream) = &self.all[at].stream else { return Ok(false) };
        let socket = stream.socket();
        let failed = match (socket.take_error(), socket.peer_addr()) {
            (Ok(Some(error)) | Err(error), _) => error,
            (Ok(None), Ok(_)) => {
                self.all[at].connected = true;
                self.out(at);
                return Ok(true);
            }
            (Ok(None), Err(_)) => return Ok(false),
        };
        self.mind(at, Went::Closed(format!("connect: {failed}")), play)?;
        Ok(false)
    }

    /// Reads until nothing is left, as epoll by edges wants it.
    fn read(&mut self, at: usize, play: &mut impl Play) -> Result<Went> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let went = self.read_into(&mut buffer, at, play);
        self.buffer = buffer;
        went
    }

    fn read_into(&mut self, buffer: &mut [u8], at: usize, play: &mut impl Play) -> Result<Went> {
        loop {
            let link = &mut self.all[at];
            let Some(stream) = &mut link.stream else { return Ok(Went::Well) };
            let carried = link.carry.len();
            buffer[..carried].copy_from_slice(&link.carry);
            link.carry.clear();
            let (got, drained) = match stream.read(&mut buffer[carried..]) {
                Ok(0) => return Ok(Went::Closed("end of stream".to_owned())),
                Ok(got) => (got, matches!(stream, Stream::Plain(_)) && got < buffer.len() - carried),
                Err(error) if error.kind() == ErrorKind::WouldBlock => (0, true),
                Err(error) if error.kind() == ErrorKind::Interrupted => (0, false),
                Err(error) => return Ok(Went::Closed(format!("read: {error}"))),
            };
            let bytes = &buffer[..carried + got];
            let used = if got > 0 { self.tell(bytes, at, play)? } else { 0 };
            self.all[at].carry.extend_from_slice(&bytes[used..]);
            anyhow::ensure!(used > 0 || bytes.len() < buffer.len(), "a packet of more than {BUFFER_BYTES} bytes");
            // What TLS has to say of its own (a key, an alert) goes out with the rest.
            if matches!(&self.all[at].stream, Some(Stream::Tls(secured)) if secured.wants_write()) {
                self.out(at);
            }
            if drained {
                return Ok(Went::Well);
            }
        }
    }

    /// Tells the packets that are whole; how many bytes they were.
    fn tell(&mut self, bytes: &[u8], at: usize, play: &mut impl Play) -> Result<usize> {
        let mut used = 0;
        while let Some(range) = packets::body(&bytes[used..])? {
            let packet = &bytes[used..used + range.end];
            play.packet(self, at, packet[0], &packet[range.clone()])?;
            used += range.end;
            // Whoever ended the connection wants to hear no more of it.
            if !self.is_open(at) {
                return Ok(bytes.len());
            }
        }
        Ok(used)
    }

    fn write(&mut self, at: usize) -> Went {
        let link = &mut self.all[at];
        let Some(stream) = &mut link.stream else { return Went::Well };
        if !link.connected && matches!(stream, Stream::Tls(_)) {
            return Went::Well;
        }
        while link.written < link.out.len() || stream.wants_write() {
            match stream.write(&link.out[link.written..]) {
                Ok(wrote) => {
                    link.connected = true;
                    link.written += wrote;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Went::Well,
                // It connects still, or could not: its first event tells.
                Err(_) if !link.connected => return Went::Well,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Went::Closed(format!("write: {error}")),
            }
        }
        link.out.clear();
        link.written = 0;
        Went::Well
    }
}

impl Link {
    fn unwritten(&self) -> bool {
        self.written < self.out.len() || self.stream.as_ref().is_some_and(Stream::wants_write)
    }
}

impl Stream {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(secured) => secured.socket(),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Tls(secured) => secured.read(buffer),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(secured) => secured.write(bytes),
        }
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(secured) => secured.wants_write(),
        }
    }
}
