//! What programs ask for: a message for a terminal, and what became of it; in a general broker a message on a topic.
//!
//! ```text
//! POST /terminals/T1/messages?class=news&expires=2h     the body is the message
//! POST /publish?topic=news/all&qos=1&retain=true        in a general broker
//! GET  /messages/ID        GET /messages?key=KEY        what became of it
//! ```
//!
//! A program that does not know whether it was heard asks again under the same `Idempotency-Key`
//! (draft-ietf-httpapi-idempotency-key-header), and has the same message: the key is stored with it, in one commit.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, Data, Payload, Query};
use actix_web::{HttpRequest, HttpResponse};
use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::QoS;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;
use wakala::id::{ClientId, TerminalId};
use wakala::message::Message as Published;
use wakala::mqtt::Properties;
use wakala::session::strict::is_topic_name;
use wakala::session::{messages_topic, payload_bytes_max};
use wakala::time::Time;

use super::problem::Problem;
use super::tokens::Tokens;
use super::{Options, key, lifetime, shown};
use crate::sessions::Sessions;
use crate::store::Error;
use crate::store::messages::{Class, Limits, Message, Queueing};
use crate::store::publications::Stored;
use crate::store::told::{Asked, Entered, Told, Which};
use crate::watched::Watched;

/// What a request is answered from.
pub(super) struct Teller {
    sessions: Sessions,
    limits: Limits,
    packet_bytes_max: u32,
    request_within: Duration,
    tokens: Watched<Tokens>,
    /// Publishes under way, by who asked and the key. What is retained is in memory before it is stored: of two at once under one
    /// key the second would put it over what came between.
    under_way: Mutex<BTreeSet<(String, String)>>,
}

type Answer = Result<HttpResponse, Problem>;

pub(super) fn routes(config: &mut web::ServiceConfig) {
    config
        .app_data(web::QueryConfig::default().error_handler(|error, _| bad(error.to_string()).into()))
        .route("/terminals/{terminal}/messages", web::post().to(tell))
        .route("/publish", web::post().to(publish))
        .route("/messages/{id}", web::get().to(by_id))
        .route("/messages", web::get().to(by_key))
        .default_service(web::to(nothing));
}

/// What is wanted besides the message itself.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    topic: Option<String>,
    qos: Option<u8>,
    retain: bool,
    class: Option<String>,
    expires: Option<String>,
}

async fn tell(
    teller: Data<Teller>,
    request: HttpRequest,
    to: web::Path<String>,
    wanted: Query<Wanted>,
    body: Payload,
) -> Answer {
    let by = teller.caller(&request)?;
    let key = key_of(&request)?;
    let wanted = wanted.into_inner();
    if wanted.topic.is_some() || wanted.retain {
        return Err(bad(
            "a terminal is told something on its own topic, and nothing is retained there: no topic, no retain",
        ));
    }
    let qos = wanted.qos.unwrap_or(1);
    let class = wanted.class.as_deref().unwrap_or(Class::Message.word());
    let class: Class = class.parse().map_err(|right| bad(format!("class={class}: right would be {right}")))?;
    if qos > 1 {
        return Err(bad(format!("qos={qos}: right would be 1 (kept until the terminal has it) or 0")));
    }
    let terminal: TerminalId = to.parse().map_err(|_| not_enrolled(&to))?;
    let topic = messages_topic(&ClientId::from(&terminal));
    let payload = teller.read(body, payload_bytes_max(topic.clone(), teller.packet_bytes_max)).await?;
    let at = teller.sessions.clock().now();
    let expires_at = wanted.expires(at)?;
    let asked = Asked { id: Uuid::now_v7(), by, key };
    let told =
        Told { terminal: Some(terminal.to_string()), class, ..new(&asked, &topic, qos, payload.len(), at, expires_at) };
    let message = Message { terminal: terminal.clone(), class, kept: qos > 0, payload, expires_at, at, asked };
    let place = match teller.sessions.store().queue_message(message, teller.limits).await? {
        Queueing::Queued(place) => place,
        Queueing::Again(id) => return teller.again(id).await,
        other => return Err(refused(&terminal, &other)),
    };
    // Whoever holds its connection finds the row by itself; this spares the wait.
    teller.sessions.wake(terminal.as_str());
    let mut said = shown(&Told { became: [("waiting".to_owned(), 1)].into(), ..told });
    said["queue"] = json!({
        "waiting": place.waiting, "dropped": place.dropped, "connected": place.connected, "persistent": place.persistent,
    });
    Ok(created(&said))
}

async fn publish(teller: Data<Teller>, request: HttpRequest, wanted: Query<Wanted>, body: Payload) -> Answer {
    let by = teller.caller(&request)?;
    let key = key_of(&request)?;
    let wanted = wanted.into_inner();
    if !teller.sessions.open().is_open() {
        let text =
            "this is no general broker, and a terminal hears on its own topic alone: POST /terminals/NAME/messages";
        return Err(Problem::new(StatusCode::NOT_FOUND, text));
    }
    let topic = wanted.topic.as_deref().unwrap_or_default();
    if !is_topic_name(topic) || topic.starts_with('$') {
        return Err(bad(format!(
            "topic={topic:?}: right would be a topic without wildcards that does not begin with $"
        )));
    }
    if teller.sessions.router().is_closed(topic) {
        let text = format!("nobody may publish on {topic} (open.closed)");
        return Err(Problem::new(StatusCode::FORBIDDEN, text));
    }
    if wanted.class.is_some() {
        return Err(bad("classes are of what terminals are told: no class here"));
    }
    let qos = match wanted.qos.unwrap_or(1) {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        2 => QoS::ExactlyOnce,
        qos => return Err(bad(format!("qos={qos}: right would be 0, 1 or 2"))),
    };
    let topic = ByteString::from(topic);
    let payload = teller.read(body, payload_bytes_max(topic.clone(), teller.packet_bytes_max)).await?;
    let at = teller.sessions.clock().now();
    let expires_at = wanted.expires(at)?;
    let asked = Asked { id: Uuid::now_v7(), by, key };
    let told = Told { retain: wanted.retain, ..new(&asked, &topic, qos as u8, payload.len(), at, expires_at) };
    let (payload, properties) = (payload.into(), Properties::default());
    let message = Published { topic, payload, qos, retain: wanted.retain, expires_at, properties };
    let _turn = teller.turn(&asked)?;
    let stored = match teller.sessions.store().told_before(asked.clone(), message.clone(), at).await? {
        Some(before) => (Stored::Told(before), 0),
        None => teller.sessions.router().tell(message, asked, at).await?,
    };
    match stored {
        (Stored::At(places), direct) => {
            let waiting = u64::try_from(places.iter().flatten().count()).unwrap_or(u64::MAX);
            let became = (waiting > 0).then(|| ("waiting".to_owned(), waiting)).into_iter().collect();
            Ok(created(&shown(&Told { became, direct: u32::try_from(direct).unwrap_or(u32::MAX), ..told })))
        }
        (Stored::Told(Entered::Again(id)), _) => teller.again(id).await,
        (Stored::Told(Entered::Other(id)), _) => Err(key_taken(id)),
        // It is no will, and at no client's packet identifier.
        (Stored::Told(Entered::New) | Stored::Before | Stored::Late, _) => {
            Err(Error::Broken("a publish that came before".to_owned()).into())
        }
    }
}

async fn by_id(teller: Data<Teller>, request: HttpRequest, id: web::Path<String>) -> Answer {
    let by = teller.caller(&request)?;
    let id: Uuid = id.parse().map_err(|_| unknown(&id))?;
    let found = teller.sessions.store().told(Which::Id(id), Some(by)).await?;
    Ok(HttpResponse::Ok().json(shown(&found.ok_or_else(|| unknown(&id.to_string()))?)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ByKey {
    key: String,
}

async fn by_key(teller: Data<Teller>, request: HttpRequest, asked: Query<ByKey>) -> Answer {
    let by = teller.caller(&request)?;
    let ByKey { key } = asked.into_inner();
    let found = teller.sessions.store().told(Which::Key(key.clone()), Some(by)).await?;
    Ok(HttpResponse::Ok().json(shown(&found.ok_or_else(|| unknown(&key))?)))
}

async fn nothing() -> Answer {
    let text = "there are POST /terminals/NAME/messages, POST /publish?topic=TOPIC, GET /messages/ID and GET /messages?key=KEY";
    Err(Problem::new(StatusCode::NOT_FOUND, text))
}

impl Wanted {
    /// When it is not worth being told any more.
    fn expires(&self, now: Time) -> Result<Option<Time>, Problem> {
        let read = |text: &String| {
            lifetime(text).map_err(|why| bad(format!("expires={text}: {why}; right would be 90s or 2h")))
        };
        Ok(self.expires.as_ref().map(read).transpose()?.map(|lifetime| now + lifetime))
    }
}

/// The turn of a publish under a key.
struct Turn<'a> {
    teller: &'a Teller,
    of: Option<(String, String)>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(of) = &self.of {
            self.teller.under_way().remove(of);
        }
    }
}

impl Teller {
    pub(super) fn new(
        sessions: Sessions,
        options: &Options,
        tokens: Watched<Tokens>,
        request_within: Duration,
    ) -> Self {
        let (limits, packet_bytes_max) = (options.limits(sessions.options()), sessions.options().packet_bytes_max);
        Self { sessions, limits, packet_bytes_max, request_within, tokens, under_way: Mutex::default() }
    }

    pub(super) fn answered(&self, status: StatusCode) {
        self.sessions.store().metrics().telling.answered(status.as_u16());
    }

    /// Whose token came along.
    fn caller(&self, request: &HttpRequest) -> Result<String, Problem> {
        let header = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, token) = header.and_then(|header| header.split_once(' ')).unwrap_or_default();
        let tokens = self.tokens.now();
        // The scheme in whatever case (RFC 9110, 11.1).
        let whose = scheme.eq_ignore_ascii_case("bearer").then(|| tokens.whose(token.trim())).flatten();
        whose.map(str::to_owned).ok_or_else(|| {
            let text = "Authorization: Bearer TOKEN, with one that telling.http.tokens knows; wakala told token NAME makes one";
            Problem::new(StatusCode::UNAUTHORIZED, text)
        })
    }

    /// The whole message, if it is not too long and comes in time.
    async fn read(&self, body: Payload, max: u32) -> Result<Vec<u8>, Problem> {
        let limit = usize::try_from(max).unwrap_or(usize::MAX);
        let read = tokio::time::timeout(self.request_within, body.to_bytes_limited(limit)).await;
        let read = read.map_err(|_| {
            Problem::new(
                StatusCode::REQUEST_TIMEOUT,
                "the message did not arrive in time (telling.http.request_within)",
            )
        })?;
        let read = read.map_err(|_| {
            let text = format!("on this topic a message has at most {max} bytes (sessions.packet_bytes_max)");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, text)
        })?;
        read.map(|bytes| bytes.to_vec()).map_err(|error| bad(error.to_string()))
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self, asked: &Asked) -> Result<Turn<'_>, Problem> {
        let of = asked.key.as_ref().map(|key| (asked.by.clone(), key.clone()));
        if of.as_ref().is_some_and(|of| !self.under_way().insert(of.clone())) {
            let text = "the same key is being published just now; ask again";
            return Err(Problem::new(StatusCode::CONFLICT, text).again(Duration::from_secs(1)));
        }
        Ok(Turn { teller: self, of })
    }

    /// It was told before: as it stands.
    async fn again(&self, id: Uuid) -> Answer {
        let found = self.sessions.store().told(Which::Id(id), None).await?;
        let mut said = shown(&found.ok_or_else(|| unknown(&id.to_string()))?);
        said["repeated"] = json!(true);
        Ok(HttpResponse::Ok().json(said))
    }
}

/// The quotes of a structured field may be there (RFC 9651, 3.3.3) or not.
fn key_of(request: &HttpRequest) -> Result<Option<String>, Problem> {
    let Some(value) = request.headers().get("idempotency-key") else { return Ok(None) };
    let text = value.to_str().unwrap_or_default();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    key(text).map(Some).map_err(|right| bad(format!("Idempotency-Key: {right}")))
}

/// A message of which nothing has become yet.
fn new(asked: &Asked, topic: &str, qos: u8, bytes: usize, at: Time, expires_at: Option<Time>) -> Told {
    Told {
        id: asked.id,
        asked_by: asked.by.clone(),
        key: asked.key.clone(),
        terminal: None,
        topic: topic.to_owned(),
        class: Class::Message,
        qos,
        retain: false,
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        at,
        expires_at,
        direct: 0,
        became: std::collections::BTreeMap::new(),
        copies: Vec::new(),
    }
}

fn created(said: &Value) -> HttpResponse {
    let at = format!("/messages/{}", said["id"].as_str().unwrap_or_default());
    HttpResponse::Created().insert_header((header::LOCATION, at)).json(said)
}

fn bad(text: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, text)
}

fn unknown(which: &str) -> Problem {
    let text = format!("{which}: nothing that this token has asked for, or it is forgotten (telling.keep)");
    Problem::new(StatusCode::NOT_FOUND, text)
}

fn not_enrolled(terminal: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no terminal {terminal}"))
}

fn key_taken(id: Uuid) -> Problem {
    let text =
        format!("under this Idempotency-Key something else was told, as {id}; another message needs another key");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, text)
}

/// Nothing was queued, and the key is still free.
fn refused(terminal: &TerminalId, why: &Queueing) -> Problem {
    let conflict = |text: String| Problem::new(StatusCode::CONFLICT, text);
    match why {
        Queueing::NotEnrolled => not_enrolled(terminal.as_str()),
        Queueing::NotConnected => {
            conflict(format!("{terminal} is not connected, and at QoS 0 nothing is kept; qos=1 waits for it"))
        }
        Queueing::NoSession => conflict(format!(
            "{terminal} is not connected and has left no session, which alone could keep a message; it has one once it has \
             connected with a persistent session"
        )),
        Queueing::Full(waiting) => {
            conflict(format!("{waiting} messages wait for {terminal} already (sessions.messages_max)"))
                .again(Duration::from_secs(60))
        }
        Queueing::TooOften(per_hour, wait) => {
            let text = format!("{terminal} was told {per_hour} of this class within the hour (telling.*_per_hour)");
            Problem::new(StatusCode::TOO_MANY_REQUESTS, text).again(*wait)
        }
        Queueing::KeyTaken(id) => key_taken(*id),
        Queueing::Queued(_) | Queueing::Again(_) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "it was told"),
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        tracing::warn!(%error, "a program was not served");
        let text = "the database is away, and whether the message is told nobody can say; ask again under the same Idempotency-Key";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text).again(Duration::from_secs(1))
    }
}
