//! The admin port: the living tree as JSON, readiness, and in sandbox mode a way to make actors panic.
//!
//! It listens on loopback, unless the configuration says twice that it is to listen elsewhere: whoever reaches it may read
//! what the node counts, and end connections. There is no money behind it.

mod page;
mod sessions;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{StatusCode, header};
use actix_web::middleware::{Condition, Next, from_fn};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use serde::{Deserialize, Serialize};
use wakala::session::Elsewhere;

use crate::metrics::exposition::{Format, Snapshot};
use crate::metrics::figures::{Conservation, Looked, Looks};
use crate::ports::Wait;
use crate::sessions::Sessions;

pub(crate) use sessions::ASKED_BY;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where `wakala status` finds the node, and Prometheus `/metrics`.
    pub address: SocketAddr,
    /// The address may be another than loopback. Whoever can reach it can end connections and tap them: it belongs behind a firewall.
    pub beyond_loopback: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 8830)), beyond_loopback: false }
    }
}

/// What the admin port may ask of the node.
pub trait Node: Send + Sync {
    fn status(&self) -> Status;

    /// Whether terminals may be sent here.
    fn is_ready(&self) -> bool;

    /// The sessions that are connected here.
    fn sessions(&self) -> &Sessions;

    /// Other servers that MQTT 5 clients may be sent to.
    fn elsewhere(&self) -> Elsewhere;

    /// Looks at once who is banned, and ends their connections: how many, or nothing when the database is away.
    fn look_for_bans(&self) -> Wait<'static, Option<usize>>;

    /// Has a terminal's session look at its queue; true when there was one.
    fn wake(&self, terminal: &str) -> bool;

    /// Makes an actor panic; only in sandbox mode. True when there was such an actor.
    fn panic(&self, actor: &str, key: &str) -> bool;

    fn is_sandbox(&self) -> bool;
}

/// What `wakala status` shows.
#[derive(Debug, Serialize)]
pub struct Status {
    pub node: String,
    pub version: &'static str,
    pub sandbox: bool,
    pub ready: bool,
    pub uptime_seconds: u64,
    /// Connected terminals.
    pub sessions: usize,
    /// Where it is offered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<crate::listener::tls::Report>,
    /// Where tokens are taken, or a hook is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<crate::listener::identity::Report>,
    /// Of a general broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<crate::router::Holdings>,
    /// While clients are being sent elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evacuation: Option<crate::sessions::evacuation::Evacuation>,
    pub bounds: crate::sessions::bounds::Report,
    pub admitted: crate::sessions::admission::Admitted,
    pub cores: std::collections::BTreeMap<String, crate::banks::Load>,
    pub actors: std::collections::BTreeMap<String, crate::supervision::Branch>,
}

/// Starts serving; the server ends with its handle.
///
/// # Errors
/// When the address is taken.
pub fn serve(options: &Options, node: Arc<dyn Node>, looks: Arc<Looks>) -> std::io::Result<actix_web::dev::Server> {
    let (node, looks) = (web::Data::from(node), web::Data::from(looks));
    let by_any_name = options.beyond_loopback;
    let server = HttpServer::new(move || {
        App::new()
            .wrap(Condition::new(!by_any_name, from_fn(by_address)))
            .app_data(node.clone())
            .app_data(looks.clone())
            .route("/", web::get().to(page))
            .route("/metrics", web::get().to(metrics))
            .route("/status", web::get().to(status))
            .route("/readyz", web::get().to(ready))
            .configure(sessions::routes)
            .route("/bans/look", web::post().to(look_for_bans))
            .route("/terminals/{terminal}/wake", web::post().to(wake))
            .route("/sandbox/panic", web::post().to(panic))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(1)
    .bind(options.address)?;
    Ok(server.run())
}

/// Turns away whoever calls this machine by another name than its own: a web page whose name was made to lead here may send
/// what it likes, and read the answer (DNS rebinding).
async fn by_address(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, actix_web::Error> {
    let name = request.headers().get(header::HOST).map(|name| name.to_str().unwrap_or_default());
    if name.is_none_or(is_local) {
        return Ok(next.call(request).await?.map_into_left_body());
    }
    let said = "the admin port is called by its address, or localhost\n";
    Ok(request.into_response(HttpResponse::build(StatusCode::MISDIRECTED_REQUEST).body(said)).map_into_right_body())
}

fn is_local(name: &str) -> bool {
    let host = name.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(name, |(host, _)| host);
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// The status with what the database says.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    status: Status,
    conservation: Conservation,
}

async fn status(node: web::Data<dyn Node>, looks: web::Data<Looks>) -> HttpResponse {
    let (status, _, conservation) = look(&node, &looks).await;
    HttpResponse::Ok().json(Whole { status, conservation })
}

async fn page(node: web::Data<dyn Node>, looks: web::Data<Looks>) -> HttpResponse {
    let (status, _, conservation) = look(&node, &looks).await;
    match serde_json::to_value(Whole { status, conservation }) {
        Ok(status) => HttpResponse::Ok()
            .content_type("text/html; charset=utf-8")
            .insert_header((header::CONTENT_SECURITY_POLICY, page::POLICY))
            .body(page::draw(&status).into_string()),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

async fn metrics(node: web::Data<dyn Node>, looks: web::Data<Looks>, request: HttpRequest) -> HttpResponse {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::of(accept.unwrap_or_default());
    let (status, looked, conservation) = look(&node, &looks).await;
    let snapshot = Snapshot::new(status, Arc::clone(looks.store().metrics()), looked, conservation);
    match snapshot.write(format) {
        Ok(page) => HttpResponse::Ok().content_type(format.content_type()).body(page),
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

async fn look(node: &web::Data<dyn Node>, looks: &Looks) -> (Status, Looked, Conservation) {
    let looked = looks.look().await;
    let status = node.status();
    let arriving = status.broker.as_ref().map_or(0, |broker| broker.arriving);
    let conservation = Conservation::of(looks.store().metrics(), looked.figures.as_deref(), arriving);
    (status, looked, conservation)
}

async fn ready(node: web::Data<dyn Node>) -> HttpResponse {
    if node.is_ready() {
        HttpResponse::Ok().body("ready\n")
    } else {
        HttpResponse::ServiceUnavailable().body("not ready\n")
    }
}

async fn look_for_bans(node: web::Data<dyn Node>) -> HttpResponse {
    match node.look_for_bans().await {
        Some(ended) => HttpResponse::Ok().json(serde_json::json!({ "ended": ended })),
        None => HttpResponse::ServiceUnavailable().body("the database is away\n"),
    }
}

async fn wake(node: web::Data<dyn Node>, terminal: web::Path<String>) -> HttpResponse {
    found(node.wake(&terminal))
}

#[derive(Deserialize)]
struct Which {
    /// `session`, `partition` or `bank`.
    actor: String,
    /// Terminal, partition number or core; empty for any.
    #[serde(default)]
    key: String,
}

async fn panic(node: web::Data<dyn Node>, which: web::Query<Which>) -> HttpResponse {
    if !node.is_sandbox() {
        return HttpResponse::Forbidden().body("this node is not in sandbox mode\n");
    }
    found(node.panic(&which.actor, &which.key))
}

fn found(it_was: bool) -> HttpResponse {
    if it_was { HttpResponse::NoContent().finish() } else { HttpResponse::NotFound().body("no such actor\n") }
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn this_machine_is_called_by_an_address_or_as_localhost() {
        for name in ["127.0.0.1", "127.0.0.1:8830", "localhost", "LocalHost:8830", "[::1]", "[::1]:8830", "10.0.0.7:1"]
        {
            assert!(is_local(name), "{name}");
        }
        for name in
            ["", "bank.example", "bank.example:8830", "localhost.bank.example", "127.0.0.1.bank.example:1", "[::1"]
        {
            assert!(!is_local(name), "{name}");
        }
    }
}
