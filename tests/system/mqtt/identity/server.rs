//! The program that is asked: an HTTP server of some lines, which does what it is told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::json;

/// What it does with a question.
#[derive(Clone, Debug)]
pub(super) enum Does {
    /// 200, and this.
    Answers(String),
    /// This status, and a page.
    Fails(u16),
    Hangs,
    /// Elsewhere.
    Redirects(SocketAddr),
}

/// One that runs until its runtime ends.
pub(super) struct Server {
    pub(super) at: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    does: Does,
    questions: Vec<(String, Value)>,
}

impl Server {
    pub(super) async fn start(does: Does) -> Self {
        Self::with(does, None).await
    }

    /// Under TLS, if there is something to serve it with.
    pub(super) async fn with(does: Does, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let at = socket.local_addr().expect("its address");
        let state = Arc::new(Mutex::new(State { does, questions: Vec::new() }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = socket.accept().await {
                let (state, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, state).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { at, state }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/mqtt", self.at)
    }

    pub(super) fn now(&self, does: Does) {
        self.state.lock().expect("no panic").does = does;
    }

    /// How often it was asked.
    pub(super) fn asked(&self) -> usize {
        self.state.lock().expect("no panic").questions.len()
    }

    /// The last question: its head and its body.
    pub(super) fn last(&self) -> (String, Value) {
        self.state.lock().expect("no panic").questions.last().cloned().expect("it was asked")
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>) {
    let mut read = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        };
        let text = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        let end = head + length.and_then(|length| length.trim().parse::<usize>().ok()).unwrap_or(0);
        while read.len() < end {
            if !matches!(stream.read_buf(&mut read).await, Ok(1..)) {
                return;
            }
        }
        let body = String::from_utf8_lossy(&read[head..end]).into_owned();
        read.drain(..end);
        let does = {
            let mut state = state.lock().expect("no panic");
            state.questions.push((text, json(&body)));
            state.does.clone()
        };
        let (status, more, answer) = match does {
            Does::Answers(answer) => ("200 OK".to_owned(), String::new(), answer),
            Does::Fails(status) => (format!("{status} Wrong"), String::new(), "<html>wrong</html>".to_owned()),
            Does::Redirects(to) => ("307 There".to_owned(), format!("location: http://{to}/\r\n"), String::new()),
            Does::Hangs => return std::future::pending().await,
        };
        let answer = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{answer}", answer.len());
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
