//! The node as a child process: started, killed, started again; asked and provoked through its admin port.

use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// One node.
#[derive(Debug)]
pub struct Node {
    /// The binary `wakala`.
    program: PathBuf,
    config: PathBuf,
    admin: SocketAddr,
    /// Where its output goes.
    log: PathBuf,
    child: Option<Child>,
}

/// The longest wait for one answer of the admin port.
const ADMIN_PATIENCE: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 4 * 1024 * 1024;

impl Node {
    #[must_use]
    pub fn new(program: PathBuf, config: PathBuf, admin: SocketAddr, log: PathBuf) -> Self {
        Self { program, config, admin, log, child: None }
    }

    /// Runs another command of `wakala` with this node's configuration and gives its standard output.
    ///
    /// # Errors
    /// When it ends with something else than 0; with what it said.
    pub async fn command(&self, words: &[&str]) -> anyhow::Result<String> {
        let output = Command::new(&self.program).args(words).arg("--config").arg(&self.config).output().await;
        let output = output.with_context(|| format!("{}", self.program.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "wakala {}: {}: {said}", words.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it; it is not ready yet.
    ///
    /// # Errors
    /// When the program cannot be started or its log not be written.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| self.log.display().to_string())?;
        let child = Command::new(&self.program)
            .args(["run", "--config"])
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the sandbox, which then ends the node in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.with_context(|| self.program.display().to_string())?);
        Ok(())
    }

    /// Waits until terminals may be sent to it.
    ///
    /// # Errors
    /// When it ends, or is not ready in time; with the end of its log.
    pub async fn ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.ended()? {
                bail!("the node ended with {status}; the end of {}:\n{}", self.log.display(), tail(&self.log));
            }
            if matches!(self.ask("GET", "/readyz").await, Ok((200, _))) {
                return Ok(());
            }
            if Instant::now() >= until {
                bail!(
                    "the node is not ready after {within:?}; the end of {}:\n{}",
                    self.log.display(),
                    tail(&self.log)
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// How it ended, if it did by itself.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn ended(&mut self) -> std::io::Result<Option<ExitStatus>> {
        self.child.as_mut().map_or(Ok(None), Child::try_wait)
    }

    /// SIGKILL, at once.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub async fn kill(&mut self) -> std::io::Result<()> {
        match self.child.take() {
            Some(mut child) => child.kill().await,
            None => Ok(()),
        }
    }

    /// SIGTERM, and time to end in order; SIGKILL after that.
    ///
    /// # Errors
    /// When it did not end by itself, or not with 0.
    pub async fn stop(&mut self, within: Duration) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        if let Some(id) = child.id() {
            let node = i32::try_from(id).ok().and_then(Pid::from_raw).context("a process identifier")?;
            kill_process(node, Signal::TERM).context("SIGTERM")?;
        }
        match timeout(within, child.wait()).await {
            Ok(status) => {
                let status = status?;
                ensure!(status.success(), "the node ended with {status}; its log is {}", self.log.display());
                Ok(())
            }
            Err(_) => {
                child.kill().await?;
                bail!("the node did not end within {within:?} of SIGTERM; its log is {}", self.log.display())
            }
        }
    }

    /// Its process identifier, while it runs.
    #[must_use]
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Its resident memory, while it runs.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
    }

    async fn ask(&self, method: &str, path: &str) -> std::io::Result<(u16, String)> {
        ask(self.admin, method, path).await
    }
}

/// Makes an actor panic; true when there was such an actor.
///
/// # Errors
/// When the node cannot be reached, which is no wonder while it is killed now and then.
pub async fn panic(admin: SocketAddr, actor: &str, key: &str) -> std::io::Result<bool> {
    let (status, _) = ask(admin, "POST", &format!("/sandbox/panic?actor={actor}&key={key}")).await?;
    Ok(status == 204)
}

/// One HTTP/1.1 exchange. The admin port is ours and on loopback: status line, headers, and a body to the end.
async fn ask(admin: SocketAddr, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(admin).await?;
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {admin}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status = status.ok_or_else(|| std::io::Error::other("no HTTP status"))?;
        Ok((status, body.to_owned()))
    };
    timeout(ADMIN_PATIENCE, exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
