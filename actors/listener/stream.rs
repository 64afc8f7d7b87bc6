//! How the bytes of a connection go between its socket and ntex: instead of ntex's own way over tokio, which has two tasks
//! for each connection and reads once more after each packet, to find nothing.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use ntex::SharedCfg;
use ntex::io::{Handle, Io, IoContext, IoStream, IoTaskStatus, Readiness, types::PeerAddr};
use ntex::rt::{BlockFuture, Driver, Notify, Reactor, Runner, channel::Receiver, with_reactor};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use crate::turns::{idle, stand};

/// The most that one read takes. It is of the thread: who has nothing to say has no buffer.
const READ_MAX: usize = 16 * 1024;
/// Pages of one write.
const PAGES_MAX: usize = 16;

thread_local! {
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_MAX].into_boxed_slice());
}

/// The runtime of the listener's threads: tokio's of one thread, with sockets as they are carried here.
#[derive(Debug)]
pub(super) struct Runtime;

impl Runner for Runtime {
    fn block_on(&self, future: BlockFuture) -> Result<(), Box<dyn Any + Send>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().on_thread_park(idle).build();
        let runtime = runtime.map_err(|error| Box::new(error) as Box<dyn Any + Send>)?;
        let sockets: Box<dyn Reactor> = Box::new(Sockets);
        with_reactor(&sockets, || LocalSet::new().block_on(&runtime, future));
        Ok(())
    }
}

struct Sockets;

/// tokio drives: ntex asks a driver only where it has its own.
impl Driver for Sockets {
    fn handle(&self) -> Box<dyn Notify> {
        unreachable!("ntex's own driver does not run here")
    }

    fn run(&self, _: &ntex::rt::Runtime) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

impl Reactor for Sockets {
    fn from_tcp_stream(&self, _: std::net::TcpStream, _: SharedCfg) -> io::Result<Io> {
        Err(ErrorKind::Unsupported.into())
    }

    fn tcp_connect(&self, _: SocketAddr, _: SharedCfg) -> Receiver<Io> {
        Receiver::new(Err(ErrorKind::Unsupported.into()))
    }

    fn unix_connect(&self, _: PathBuf, _: SharedCfg) -> Receiver<Io> {
        Receiver::new(Err(ErrorKind::Unsupported.into()))
    }

    fn from_unix_stream(&self, _: std::os::unix::net::UnixStream, _: SharedCfg) -> io::Result<Io> {
        Err(ErrorKind::Unsupported.into())
    }
}

/// A connection's bytes from now on.
pub(super) fn carry(connection: TcpStream, options: SharedCfg) -> Io {
    Io::new(Socket(Rc::new(connection)), options)
}

#[derive(Clone)]
struct Socket(Rc<TcpStream>);

impl IoStream for Socket {
    fn start(self, connection: IoContext) -> Box<dyn Handle> {
        tokio::task::spawn_local(Carried { socket: self.clone(), connection, leaving: None });
        Box::new(self)
    }
}

impl Handle for Socket {
    fn query(&self, what: TypeId) -> Option<Box<dyn Any>> {
        if what != TypeId::of::<PeerAddr>() {
            return None;
        }
        Some(Box::new(PeerAddr(self.0.peer_addr().ok()?)))
    }

    /// ntex has something to be written and would rather not wait for the task's turn.
    fn write(&self, connection: &IoContext) {
        self.send(connection);
    }

    fn notify(&self, _: &IoContext) {}
}

/// A connection's task. It is a struct, and what is needed at the end only is boxed, because there is one for each
/// connection: 128 bytes with what tokio adds, where an `async` block would take 256.
struct Carried {
    socket: Socket,
    connection: IoContext,
    leaving: Option<Box<Leaving>>,
}

/// When all are cut at once, those who are not have their turn in between.
struct Leaving {
    turn: oneshot::Receiver<()>,
    why: Option<io::Error>,
}

impl Future for Carried {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let why = match &mut self.leaving {
            Some(leaving) => {
                // The sender lives as long as this thread.
                let _ = ready!(Pin::new(&mut leaving.turn).poll(cx));
                leaving.why.take()
            }
            None => {
                let Gone::Peer(why) = ready!(self.socket.turn(&self.connection, cx)) else { return Poll::Ready(()) };
                if let Some(turn) = stand() {
                    self.leaving = Some(Box::new(Leaving { turn, why }));
                    return self.poll(cx);
                }
                why
            }
        };
        self.connection.stop(why);
        Poll::Ready(())
    }
}

/// Why nothing is read or written any more.
enum Gone {
    /// The peer has ended the connection, or it broke.
    Peer(Option<io::Error>),
    /// This side has.
    Here,
}

impl Socket {
    fn turn(&self, connection: &IoContext, cx: &mut Context<'_>) -> Poll<Gone> {
        match self.read(connection, cx) {
            Poll::Ready(gone) => Poll::Ready(gone),
            Poll::Pending => self.write(connection, cx),
        }
    }

    fn read(&self, connection: &IoContext, cx: &mut Context<'_>) -> Poll<Gone> {
        loop {
            if ready!(connection.poll_read_ready(cx)) != Readiness::Ready {
                return Poll::Ready(Gone::Here);
            }
            if let Err(error) = ready!(self.0.poll_read_ready(cx)) {
                return Poll::Ready(Gone::Peer(Some(error)));
            }
            let status = READ.with_borrow_mut(|bytes| {
                let count = receive(&self.0, bytes)?;
                if count == 0 {
                    return Ok(None);
                }
                let mut buffer = connection.get_read_buf();
                buffer.extend_from_slice(&bytes[..count]);
                Ok(Some(connection.update_read_status(buffer, Ok(count))))
            });
            match status {
                Ok(Some(IoTaskStatus::Io)) => {}
                // Woken when what was read has been taken.
                Ok(Some(IoTaskStatus::Pause)) => return Poll::Pending,
                Ok(Some(IoTaskStatus::Stop)) => return Poll::Ready(Gone::Here),
                Ok(None) => return Poll::Ready(Gone::Peer(None)),
                Err::<_, io::Error>(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Gone::Peer(Some(error))),
            }
        }
    }

    fn write(&self, connection: &IoContext, cx: &mut Context<'_>) -> Poll<Gone> {
        loop {
            if ready!(connection.poll_write_ready(cx)) != Readiness::Ready {
                return Poll::Ready(Gone::Here);
            }
            if let Err(error) = ready!(self.0.poll_write_ready(cx)) {
                return Poll::Ready(Gone::Peer(Some(error)));
            }
            match self.send(connection) {
                IoTaskStatus::Io => {}
                IoTaskStatus::Pause => return Poll::Pending,
                IoTaskStatus::Stop => return Poll::Ready(Gone::Here),
            }
        }
    }

    fn send(&self, connection: &IoContext) -> IoTaskStatus {
        let sent: io::Result<usize> = connection.with_write_buf(|pages| {
            let mut slices = [IoSlice::new(&[]); PAGES_MAX];
            let mut count = 0;
            for (slice, page) in slices.iter_mut().zip(pages.iter()) {
                *slice = IoSlice::new(page);
                count += 1;
            }
            let sent = match &slices[..count] {
                [] => Ok(0),
                [one] => self.0.try_write(one),
                several => self.0.try_write_vectored(several),
            }?;
            // Only a page that is taken goes back to the thread: who has nothing to hear has none.
            if sent == pages.len() {
                pages.clear()
            } else {
                pages.advance_to(sent)
            }
            Ok(sent)
        });
        connection.update_write_status(match sent {
            Ok(sent) => Ok(sent > 0),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        })
    }
}

/// Reads once. What does not fill `bytes` was all there is: the socket counts as not ready until the kernel says otherwise,
/// as it does whenever more comes (epoll(7), edge-triggered, question 9).
fn receive(stream: &TcpStream, bytes: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    let all = bytes.len();
    let more = stream.try_io(Interest::READABLE, || {
        read = rustix::io::retry_on_intr(|| rustix::io::read(stream, &mut *bytes))?;
        // The end of the stream is no reason to wait.
        if 0 < read && read < all { Err(ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match more {
        Err(error) if read == 0 => Err(error),
        _ => Ok(read),
    }
}
