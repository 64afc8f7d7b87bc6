//! OpenSSL's own client as a foreign terminal: it keeps a TLS session in a file and resumes it, as a terminal would.

use std::net::SocketAddr;
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Join, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::certificates::Papers;
use super::wire::Wire;

/// A terminal with a certificate, and a place for its TLS session.
pub(super) struct Client<'a> {
    papers: &'a Papers,
    file: &'a str,
    version: &'static str,
}

/// How a connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shook {
    Full,
    Resumed,
}

impl<'a> Client<'a> {
    /// With `{file}.pem` and `{file}.key`, in TLS `-tls1_3` or `-tls1_2`.
    pub(super) fn new(papers: &'a Papers, file: &'a str, version: &'static str) -> Self {
        Self { papers, file, version }
    }

    fn path(&self, ending: &str) -> String {
        self.papers.path(&format!("{}.{ending}", self.file))
    }

    fn command(&self, at: SocketAddr) -> Command {
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-connect", &at.to_string(), self.version, "-verify_return_error"])
            .args(["-CAfile", &self.papers.path("ca.pem"), "-cert", &self.path("pem"), "-key", &self.path("key")])
            .args(["-sess_out", &self.path("session")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Opens a connection, resumed if there is a session to resume. Whether the server has taken it, CONNACK says.
    pub(super) fn open(&self, at: SocketAddr, v5: bool) -> Wire {
        let mut command = self.command(at);
        command.args(["-quiet", "-msg", "-msgfile", &self.path("messages")]);
        if std::fs::exists(self.path("session")).expect("a directory") {
            command.args(["-sess_in", &self.path("session")]);
        }
        let mut child = command.stderr(Stdio::null()).spawn().expect("openssl is installed");
        let (from, to) = (child.stdout.take().expect("piped"), child.stdin.take().expect("piped"));
        Wire::over(Peer { pipes: tokio::io::join(from, to), _child: child }, v5)
    }

    /// How the last connection shook hands: a server that resumes asks for no certificate and shows none.
    pub(super) fn shook(&self) -> Shook {
        let messages = std::fs::read_to_string(self.path("messages")).expect("it wrote them");
        assert!(messages.contains("Finished"), "{messages}");
        if messages.contains(", Certificate") { Shook::Full } else { Shook::Resumed }
    }

    /// Forgets the session: the next handshake is a full one.
    pub(super) fn forget(&self) {
        std::fs::remove_file(self.path("session")).expect("it had one");
    }

    /// Shakes hands and leaves; all that OpenSSL says of it, and whether it was content.
    pub(super) async fn look(&self, at: SocketAddr, more: &[&str]) -> (bool, String) {
        let mut command = self.command(at);
        let run = command.args(more).stdin(Stdio::null()).output().await.expect("openssl is installed");
        let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
        (run.status.success(), said)
    }
}

/// The pipes of a process that ends with them.
struct Peer {
    pipes: Join<ChildStdout, ChildStdin>,
    _child: Child,
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipes).poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.pipes).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipes).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipes).poll_shutdown(cx)
    }
}

/// Carries connections on and counts their bytes.
pub(super) struct Scales {
    pub(super) at: SocketAddr,
    weighed: mpsc::UnboundedReceiver<u64>,
}

impl Scales {
    pub(super) async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let at = listener.local_addr().expect("bound");
        let (tell, weighed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(server).await.expect("it listens");
                let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
                let (up, down) = tokio::join!(carry(from_client, to_server), carry(from_server, to_client));
                let _ = tell.send(up + down);
            }
        });
        Self { at, weighed }
    }

    /// The bytes of the next connection that ends, both ways.
    pub(super) async fn read(&mut self) -> u64 {
        let weighed = tokio::time::timeout(Duration::from_secs(10), self.weighed.recv()).await;
        weighed.expect("a connection ends").expect("the scales are there")
    }
}

/// Counts what was carried also when an end closes rudely.
async fn carry(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>) -> u64 {
    let (mut buffer, mut carried) = ([0; 4096], 0);
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        carried += length as u64;
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
    carried
}
