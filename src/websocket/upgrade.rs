//! The HTTP request with which a WebSocket begins, and its answer (RFC 6455 §4.2).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest as _, Sha1};

/// What a request must fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The path that is served.
    pub path: String,
    /// Pages that may connect, as a browser names them in `Origin`. When there are none, all may.
    pub origins: Vec<String>,
}

/// Why a request is not answered with 101.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("not a request of HTTP/1.1")]
    NotHttp,
    #[error("the request's head is too large")]
    TooLarge,
    #[error("not a GET")]
    NotGet,
    #[error("another path")]
    NoSuchPath,
    #[error("not a request for a WebSocket")]
    NotWebSocket,
    #[error("another version of WebSocket")]
    Version,
    #[error("no subprotocol `mqtt` [MQTT-6.0.0-3]")]
    NotMqtt,
    #[error("a page of another origin")]
    Origin,
}

/// Most requests have a dozen.
const HEADERS_MAX: usize = 64;
/// RFC 6455 §1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

impl Refusal {
    /// The answer, after which the connection ends.
    #[must_use]
    pub fn answer(self) -> String {
        let (status, header) = match self {
            Self::NotHttp | Self::NotMqtt => ("400 Bad Request", ""),
            Self::TooLarge => ("431 Request Header Fields Too Large", ""),
            Self::NotGet => ("405 Method Not Allowed", "Allow: GET\r\n"),
            Self::NoSuchPath => ("404 Not Found", ""),
            Self::NotWebSocket => ("426 Upgrade Required", "Upgrade: websocket\r\n"),
            // §4.4: the versions that would do.
            Self::Version => ("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            Self::Origin => ("403 Forbidden", ""),
        };
        let body = format!("{self}\n");
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\n{header}Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    }
}

/// Reads a request's head, whole to its empty line, and gives the answer that opens the WebSocket.
///
/// # Errors
/// What is wrong with it.
pub fn accept(head: &[u8], terms: &Terms) -> Result<String, Refusal> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut room);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) if request.version == Some(1) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        _ => return Err(Refusal::NotHttp),
    }
    if request.method != Some("GET") {
        return Err(Refusal::NotGet);
    }
    // Proxies and portals may add a query; it says nothing here.
    if request.path.and_then(|path| path.split('?').next()) != Some(&terms.path) {
        return Err(Refusal::NoSuchPath);
    }
    let headers = Headers(request.headers);
    if !(headers.lists("upgrade", |token| token.eq_ignore_ascii_case("websocket"))
        && headers.lists("connection", |token| token.eq_ignore_ascii_case("upgrade")))
    {
        return Err(Refusal::NotWebSocket);
    }
    // RFC 9112 §3.2 and §6.3: one host, and no body, which would be read as frames.
    if headers.one("host").is_none() || headers.any("transfer-encoding") || !headers.has_no_length() {
        return Err(Refusal::NotHttp);
    }
    if headers.one("sec-websocket-version") != Some("13") {
        return Err(Refusal::Version);
    }
    let key = headers.one("sec-websocket-key").ok_or(Refusal::NotWebSocket)?;
    if BASE64.decode(key).map(|key| key.len()) != Ok(16) {
        return Err(Refusal::NotWebSocket);
    }
    // Who sends no origin is no browser, and could send any: the list keeps out pages, not programs (§10.2).
    if headers.any("origin") && !terms.origins.is_empty() {
        let origin = headers.one("origin").ok_or(Refusal::Origin)?;
        if !terms.origins.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
            return Err(Refusal::Origin);
        }
    }
    if !headers.lists("sec-websocket-protocol", |token| token == "mqtt") {
        return Err(Refusal::NotMqtt);
    }
    let accept = BASE64.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    ))
}

struct Headers<'a>(&'a [httparse::Header<'a>]);

impl<'a> Headers<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a str> {
        // A value that is not even UTF-8 is none that is looked for.
        let named = self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| std::str::from_utf8(header.value).unwrap_or_default().trim())
    }

    fn any(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// The value of a header that is there once.
    fn one(&self, name: &str) -> Option<&'a str> {
        let mut values = self.values(name);
        values.next().filter(|value| !value.is_empty() && values.next().is_none())
    }

    /// Whether the list, in one header or several (RFC 9110 §5.3), has such a token.
    fn lists(&self, name: &str, is: impl Fn(&str) -> bool) -> bool {
        self.values(name).flat_map(|value| value.split(',')).any(|token| is(token.trim()))
    }

    fn has_no_length(&self) -> bool {
        self.values("content-length").all(|length| length == "0")
    }
}

#[cfg(test)]
mod tests;
