//! The threads that accept connections, and carry their bytes and the session actors behind them.
//!
//! Each accepts for itself. With a thread that accepts for all, and another that deals out, as `ntex::server` has them, each
//! connection wakes three threads, which on a small server is a fifth of what a connection costs.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ntex::SharedCfg;
use ntex::io::IoConfig;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, spawn_local};

use super::porch::Porch;
use super::stream;

/// The wait when nothing can be accepted, as when the process may open no further file.
const REST: Duration = Duration::from_millis(500);

/// One of the addresses, and what its connections pass.
pub(super) struct Way {
    pub(super) name: &'static str,
    pub(super) socket: TcpListener,
    pub(super) porch: Porch,
}

impl Way {
    /// For one more thread.
    fn again(&self) -> io::Result<Self> {
        Ok(Self { name: self.name, socket: self.socket.try_clone()?, porch: self.porch.clone() })
    }
}

/// The threads. Dropped, they end with all that is on them.
#[derive(Debug)]
pub(super) struct Workers {
    phase: watch::Sender<Phase>,
    /// Closed when all have ended, however.
    ended: watch::Receiver<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Whoever comes is let in.
    Open,
    /// The addresses are given up; who is there may stay.
    Closed,
    /// All ends.
    Over,
}

/// Opens an address, with so many connections that may wait to be accepted.
pub(super) fn open(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = ntex::server::create_tcp_listener(address, backlog)?;
    socket.set_nonblocking(true)?;
    // Connections have this from the socket that accepts them (tcp(7)): a PUBACK of four bytes does not wait for more.
    rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

impl Workers {
    /// Starts so many.
    ///
    /// # Errors
    /// When a thread cannot be started, or does not listen.
    pub(super) async fn start(count: usize, ways: &[Way]) -> io::Result<Self> {
        let (phase, _) = watch::channel(Phase::Open);
        let (ends, ended) = watch::channel(());
        let (workers, ends) = (Self { phase, ended }, Arc::new(ends));
        for nth in 0..count.max(1) {
            let ways = ways.iter().map(Way::again).collect::<io::Result<Vec<_>>>()?;
            let lives = Lives { phase: workers.phase.clone(), _ends: Arc::clone(&ends) };
            let (told, hears) = oneshot::channel();
            let name = format!("mqtt:{nth}");
            std::thread::Builder::new().name(name.clone()).spawn(move || {
                let system = ntex::rt::System::new(&name, stream::Runtime);
                system.block_on(work(ways, lives.phase.subscribe(), told));
            })?;
            hears.await.unwrap_or_else(|_| Err(io::Error::other("no word from its thread")))?;
        }
        Ok(workers)
    }

    /// Nobody is let in any more: the addresses are given up.
    pub(super) fn close(&self) {
        self.phase.send_replace(Phase::Closed);
    }

    /// Ends the threads, and with them all sessions that are left.
    pub(super) fn end(&self) {
        self.phase.send_replace(Phase::Over);
    }

    /// Done when the threads have ended. Not by joining them: a thread that waits for a thread that hangs would keep the
    /// process from its end.
    pub(super) async fn ended(&mut self) {
        // Nobody says anything there.
        let _ = self.ended.changed().await;
    }
}

/// Whoever forgets them wants nobody served any more: else they would go on, and all that looks at the database for them.
impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

/// Dropped last by a thread, also by a panic: where one ends the others do.
struct Lives {
    phase: watch::Sender<Phase>,
    _ends: Arc<watch::Sender<()>>,
}

impl Drop for Lives {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Over);
    }
}

/// The life of one of the threads.
async fn work(ways: Vec<Way>, mut phases: watch::Receiver<Phase>, told: oneshot::Sender<io::Result<()>>) {
    let mut accepting = Vec::new();
    let listens = ways.into_iter().try_for_each(|way| {
        let socket = tokio::net::TcpListener::from_std(way.socket)?;
        accepting.push(spawn_local(accept(way.name, socket, Rc::new(way.porch))));
        Ok(())
    });
    // Whoever does not listen for it ends the threads.
    let _ = told.send(listens);
    // The sender is as old as this thread's end.
    let _ = phases.wait_for(|phase| *phase != Phase::Open).await;
    accepting.iter().for_each(JoinHandle::abort);
    let _ = phases.wait_for(|phase| *phase == Phase::Over).await;
}

/// Accepts for ever, whoever has a place among the strangers; the others wait in the kernel.
async fn accept(way: &'static str, socket: tokio::net::TcpListener, porch: Rc<Porch>) {
    let config: SharedCfg = SharedCfg::new("mqtt").add(io_config()).into();
    loop {
        let (connection, peer) = match socket.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_gone(&error) => continue,
            Err(error) => {
                tracing::error!(way, %error, "connections cannot be accepted for now");
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let Some(place) = porch.place().await else { return };
        let io = stream::carry(connection, config.clone());
        spawn_local(Rc::clone(&porch).pass(io, peer.ip(), place));
    }
}

/// That one went away before it was accepted is no fault of the socket (accept(2)).
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

/// Buffers belong to the worker: who is idle has none. A client that has this much unread is written no more to.
fn io_config() -> IoConfig {
    IoConfig::new().set_read_buf(16 * 1024, 512, 32).set_write_buf(64 * 1024, 512, 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn where_one_ends_the_others_do_and_whoever_asks_again_hears_it_again() {
        let mut workers = Workers::start(2, &[]).await.expect("they start");
        assert!(tokio::time::timeout(Duration::from_millis(100), workers.ended()).await.is_err(), "they live");
        drop(Lives { phase: workers.phase.clone(), _ends: Arc::new(watch::channel(()).0) });
        for _ in 0..2 {
            tokio::time::timeout(Duration::from_secs(10), workers.ended()).await.expect("they have ended");
        }
    }
}
