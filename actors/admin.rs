//! The admin port: the living tree as JSON, readiness, and in sandbox mode a way to make actors panic.
//!
//! It listens on loopback only; the configuration refuses anything else. There is no money behind it.

mod sessions;

use std::net::SocketAddr;
use std::sync::Arc;

use actix_web::{App, HttpResponse, HttpServer, web};
use serde::{Deserialize, Serialize};

use crate::sessions::Sessions;

pub(crate) use sessions::ASKED_BY;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where `wakala status` finds the node. Loopback only.
    pub address: SocketAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 8830)) }
    }
}

/// What the admin port may ask of the node.
pub trait Node: Send + Sync {
    fn status(&self) -> Status;

    /// Whether terminals may be sent here.
    fn is_ready(&self) -> bool;

    /// The sessions that are connected here.
    fn sessions(&self) -> &Sessions;

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
    pub messages: Option<crate::router::Traffic>,
    pub cores: std::collections::BTreeMap<String, crate::banks::Load>,
    pub actors: std::collections::BTreeMap<String, crate::supervision::Branch>,
}

/// Starts serving; the server ends with its handle.
///
/// # Errors
/// When the address is taken.
pub fn serve(options: &Options, node: Arc<dyn Node>) -> std::io::Result<actix_web::dev::Server> {
    let node = web::Data::from(node);
    let server = HttpServer::new(move || {
        App::new()
            .app_data(node.clone())
            .route("/status", web::get().to(status))
            .route("/readyz", web::get().to(ready))
            .configure(sessions::routes)
            .route("/terminals/{terminal}/wake", web::post().to(wake))
            .route("/sandbox/panic", web::post().to(panic))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(1)
    .bind(options.address)?;
    Ok(server.run())
}

async fn status(node: web::Data<dyn Node>) -> HttpResponse {
    HttpResponse::Ok().json(node.status())
}

async fn ready(node: web::Data<dyn Node>) -> HttpResponse {
    if node.is_ready() {
        HttpResponse::Ok().body("ready\n")
    } else {
        HttpResponse::ServiceUnavailable().body("not ready\n")
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
