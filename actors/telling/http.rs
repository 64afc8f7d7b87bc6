//! The door for the bank's programs: where they come, how many, and by which certificate they know the node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Server, Service as _};
use actix_web::{App, HttpServer, web};
use rustls::server::{ClientHello, ResolvesServerCert, ServerConfig};
use serde::{Deserialize, Serialize};

use super::Options;
use super::teller::{self, Teller};
use super::tokens::Tokens;
use crate::listener::tls::Credentials;
use crate::sessions::Sessions;
use crate::watched::Watched;

/// Where programs come, and who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Http {
    /// Without TLS, on loopback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain: Option<SocketAddr>,
    /// With TLS (`https://`), by the certificate of `listener.tls`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SocketAddr>,
    /// A line for each token (`wakala told token NAME`).
    pub tokens: PathBuf,
    /// How often it is looked whether that file has changed.
    #[serde(default = "look_every", with = "humantime_serde")]
    pub look_every: Duration,
    /// Programs that are connected at the same time.
    #[serde(default = "connections_max")]
    pub connections_max: usize,
    /// The longest that a request may take to arrive.
    #[serde(default = "request_within", with = "humantime_serde")]
    pub request_within: Duration,
}

fn look_every() -> Duration {
    Duration::from_millis(250)
}

fn connections_max() -> usize {
    256
}

fn request_within() -> Duration {
    Duration::from_secs(10)
}

impl Http {
    /// With this file, and all else as it is by default.
    #[must_use]
    pub fn new(tokens: PathBuf) -> Self {
        let (look_every, connections_max, request_within) = (look_every(), connections_max(), request_within());
        Self { plain: None, tls: None, tokens, look_every, connections_max, request_within }
    }

    /// What is wrong with it: a key and a text.
    pub(crate) fn faults(&self, tls: bool) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.plain.is_none() && self.tls.is_none() {
            faults.push(("plain", "neither `plain` nor `tls` has an address".to_owned()));
        }
        if let Some(plain) = self.plain.filter(|plain| !plain.ip().is_loopback()) {
            faults.push(("plain", format!("{plain} is not loopback, and tokens could be read on the way; use `tls`")));
        }
        if self.tls.is_some() && !tls {
            faults.push(("tls", "needs listener.tls, whose certificate it shows".to_owned()));
        }
        faults
    }
}

/// Opens the door. The server ends with its handle.
///
/// # Errors
/// What is wrong with the addresses, or with the file of tokens.
pub fn serve(
    http: &Http,
    options: &Options,
    sessions: Sessions,
    credentials: Option<Credentials>,
) -> anyhow::Result<Server> {
    let file = http.tokens.clone();
    let tokens = Watched::open("the tokens of programs", vec![file.clone()], move || Tokens::read(&file));
    let tokens = tokens.map_err(|why| anyhow::anyhow!("telling.http.tokens: {why}"))?;
    tokens.look_every(http.look_every, sessions.store().handle());
    let teller = web::Data::new(Teller::new(sessions, options, tokens, http.request_within));
    let server = HttpServer::new(move || {
        let counted = teller.clone();
        App::new()
            .app_data(teller.clone())
            .wrap_fn(move |request, service| {
                let (teller, answer) = (counted.clone(), service.call(request));
                async move {
                    let answer = answer.await?;
                    teller.answered(answer.status());
                    Ok(answer)
                }
            })
            .configure(teller::routes)
    })
    .workers(1)
    .max_connections(http.connections_max)
    .client_request_timeout(http.request_within)
    .disable_signals()
    .shutdown_timeout(1);
    let server = match http.plain {
        Some(plain) => server.bind(plain).map_err(|error| anyhow::anyhow!("telling.http.plain: {plain}: {error}"))?,
        None => server,
    };
    let server = match http.tls.zip(credentials) {
        Some((tls, credentials)) => server
            .bind_rustls_0_23(tls, secured(credentials)?)
            .map_err(|error| anyhow::anyhow!("telling.http.tls: {tls}: {error}"))?,
        None => server,
    };
    Ok(server.run())
}

/// Shows the certificate that the listener shows at that moment.
#[derive(Debug)]
struct Current(Credentials);

impl ResolvesServerCert for Current {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.trust().shows().resolve(hello)
    }
}

/// A program proves who it is by its token, and needs no certificate.
fn secured(credentials: Credentials) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(credentials.oldest().versions())?;
    Ok(config.with_no_client_auth().with_cert_resolver(Arc::new(Current(credentials))))
}
