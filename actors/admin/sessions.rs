//! The admin port's part of `wakala sessions` and `wakala tap`.

use std::time::Duration;

use actix_web::web::{self, Bytes, Data, Query, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use wakala::id::ClientId;

use super::Node;
use crate::sessions::evacuation::Evacuate;
use crate::sessions::{ANSWER_WITHIN, Here, Sessions};
use crate::store::standing::Action;
use crate::tap::{Line, View};

pub(super) fn routes(config: &mut ServiceConfig) {
    config
        .route("/sessions", web::get().to(list))
        .route("/sessions/kick", web::post().to(kick))
        .route("/evacuation", web::post().to(evacuate))
        .route("/evacuation", web::delete().to(stay))
        .route("/tap", web::get().to(tap))
        .route("/traces/look", web::post().to(look_for_traces));
}

/// Sessions of one answer, at most.
const PAGE: usize = 1000;

#[derive(Debug, Deserialize)]
struct Page {
    /// This one alone.
    client: Option<String>,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    after: String,
    #[serde(default)]
    limit: usize,
}

/// Who is connected to this node.
#[derive(Debug, Serialize)]
struct List {
    node: String,
    sessions: Vec<Here>,
}

async fn list(node: Data<dyn Node>, page: Query<Page>) -> HttpResponse {
    let sessions = node.sessions();
    let Page { client, prefix, after, limit } = page.into_inner();
    let found = match client.as_deref().map(ClientId::new) {
        Some(Ok(client)) => sessions.one_here(&client).await.into_iter().collect(),
        Some(Err(_)) => Vec::new(),
        None => sessions.here(&prefix, &after, limit.clamp(1, PAGE)).await,
    };
    HttpResponse::Ok().json(List { node: sessions.node().to_owned(), sessions: found })
}

/// Whoever asks for something that is recorded.
#[derive(Debug, Deserialize)]
struct Asked {
    client: String,
    #[serde(default)]
    who: String,
    #[serde(default)]
    why: String,
    /// Of a tap: how long, in seconds.
    seconds: Option<u64>,
    packets: Option<u64>,
}

/// A header that no web page can make a browser send: that a person has this port's page open must not do anything here.
pub(crate) const ASKED_BY: &str = "x-wakala";

fn is_ours(request: &HttpRequest) -> bool {
    asker(request).is_some()
}

/// What stands in that header: of some commands, who typed them.
fn asker(request: &HttpRequest) -> Option<&str> {
    request.headers().get(ASKED_BY).map(|value| value.to_str().unwrap_or("unknown"))
}

async fn kick(node: Data<dyn Node>, request: HttpRequest, asked: Query<Asked>) -> HttpResponse {
    let Asked { client, who, why, .. } = asked.into_inner();
    if !is_ours(&request) {
        return HttpResponse::Forbidden().body("wakala sessions kick asks for this\n");
    }
    let Ok(client) = ClientId::new(&client) else { return super::found(false) };
    super::found(node.sessions().kick_for(&client, who, why))
}

async fn evacuate(node: Data<dyn Node>, request: HttpRequest, wanted: web::Json<Evacuate>) -> HttpResponse {
    let Some(who) = asker(&request) else { return HttpResponse::Forbidden().body("wakala evacuate asks for this\n") };
    let wanted = wanted.into_inner();
    let Evacuate { per_second, down_to, .. } = wanted;
    tracing::warn!(who, per_second, down_to, "an operator sends clients elsewhere");
    node.sessions().evacuate(wanted, node.elsewhere());
    HttpResponse::NoContent().finish()
}

async fn stay(node: Data<dyn Node>, request: HttpRequest) -> HttpResponse {
    let Some(who) = asker(&request) else { return HttpResponse::Forbidden().body("wakala evacuate asks for this\n") };
    let was = node.sessions().stay();
    if was {
        tracing::warn!(who, "an operator called off that clients are sent elsewhere");
    }
    super::found(was)
}

async fn look_for_traces(node: Data<dyn Node>) -> HttpResponse {
    match node.sessions().look_for_traces().await {
        Ok(carried_out) => HttpResponse::Ok().json(serde_json::json!({ "carried_out": carried_out })),
        Err(_) => HttpResponse::ServiceUnavailable().body("the database is away\n"),
    }
}

/// How long nothing may be said: then an empty line shows whether somebody still reads. That he has gone shows at the second.
const SILENCE: Duration = Duration::from_secs(2);

async fn tap(node: Data<dyn Node>, request: HttpRequest, asked: Query<Asked>) -> HttpResponse {
    let Asked { client, who, why, seconds, packets } = asked.into_inner();
    if !is_ours(&request) {
        return HttpResponse::Forbidden().body("wakala tap asks for this\n");
    }
    let Ok(client) = ClientId::new(&client) else {
        return HttpResponse::BadRequest().body("a client identifier has 1 to 256 bytes\n");
    };
    let sessions = node.sessions();
    let options = sessions.taps().options().clone();
    let whose = sessions.whose(&client).await;
    let view = match sessions.taps().begin(&client, whose) {
        Ok(view) => view,
        Err(why) => return HttpResponse::ServiceUnavailable().body(format!("{why}\n")),
    };
    let lasts = seconds.map_or(options.for_max, |seconds| Duration::from_secs(seconds).min(options.for_max));
    let packets = packets.map_or(options.packets_max, |packets| packets.min(options.packets_max));
    let first = match sessions.one_here(&client).await {
        Some(here) => format!("{client} is connected to {} from {}", sessions.node(), here.connection.address),
        None => format!("{client} is not connected to {}; waiting for it", sessions.node()),
    };
    let record = Record::begin(sessions, client, who, why).await;
    let first = view.note(format!("{first}; for {} or {packets} packets", humantime::format_duration(lasts)));
    let told = Telling { view, record, ends: Instant::now() + lasts, left: packets, first: Some(first), over: false };
    let lines = futures_util::stream::unfold(told, |mut told| async move {
        let line = told.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), told))
    });
    HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines)
}

/// What is told to one operator.
struct Telling {
    view: View,
    record: Record,
    ends: Instant,
    left: u64,
    first: Option<Line>,
    over: bool,
}

impl Telling {
    /// The next line as it is sent; none at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.over {
            return None;
        }
        let line = match self.first.take() {
            Some(first) => first,
            None if self.left == 0 => self.last("as many packets as were wanted, or as may be (tap.packets_max)"),
            None => tokio::select! {
                biased;
                () = tokio::time::sleep_until(self.ends) => self.last("as long as was wanted, or as may be (tap.for_max)"),
                line = self.view.next() => line,
                () = tokio::time::sleep(SILENCE) => return Some(Bytes::from_static(b"\n")),
            },
        };
        match &line {
            Line::Packet { .. } => {
                self.left -= 1;
                self.record.packets += 1;
            }
            Line::Lost { lost } => self.record.lost += lost,
            Line::Note { .. } => {}
        }
        let mut text = serde_json::to_vec(&line).ok()?;
        text.push(b'\n');
        Some(Bytes::from(text))
    }

    fn last(&mut self, why: &str) -> Line {
        self.over = true;
        let lost = self.view.lost();
        self.record.lost += lost;
        self.record.outcome = why.to_owned();
        let behind = if lost > 0 { format!("{lost} packets are missing at the end; ") } else { String::new() };
        self.view.note(format!("{behind}ended: {why}"))
    }
}

/// That somebody looked: in the log, and in the database if it is there.
struct Record {
    sessions: Sessions,
    client: ClientId,
    who: String,
    id: Option<i64>,
    packets: u64,
    lost: u64,
    outcome: String,
}

impl Record {
    async fn begin(sessions: &Sessions, client: ClientId, who: String, why: String) -> Self {
        tracing::info!(%client, who, why, "a tap begins");
        let action = Action {
            at: sessions.clock().now(),
            what: "tap",
            client: client.clone(),
            epoch: None,
            node: sessions.node().to_owned(),
            who: who.clone(),
            why,
            done_at: None,
            outcome: None,
        };
        // While the database is away is when somebody wants to look.
        let recorded = tokio::time::timeout(ANSWER_WITHIN, sessions.store().record_action(action)).await;
        let id = recorded.ok().and_then(Result::ok);
        if id.is_none() {
            tracing::warn!(%client, "the database is away: who taps a client is in this log only");
        }
        let outcome = "its reader went away".to_owned();
        Self { sessions: sessions.clone(), client, who, id, packets: 0, lost: 0, outcome }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self { client, who, packets, lost, outcome, .. } = self;
        tracing::info!(%client, %who, packets, lost, outcome, "a tap has ended");
        let said = format!("{packets} packets shown, {lost} lost; {outcome}");
        let (store, at) = (self.sessions.store().clone(), self.sessions.clock().now());
        if let Some(id) = self.id {
            store.handle().clone().spawn(async move {
                if let Err(error) = store.action_done(id, at, said).await {
                    tracing::warn!(%error, "the end of a tap is in this log only");
                }
            });
        }
    }
}
