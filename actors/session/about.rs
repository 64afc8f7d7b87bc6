//! How a client is connected, for whoever asks about its session.

use ntex::io::IoRef;
use ntex::io::types::{HttpProtocol, PeerAddr};
use ntex::tls::rustls::PeerCert;
use wakala::session::Version;
use wakala::session::connect::Terms;

use crate::listener::tls::fingerprint;
use crate::store::presence::Connection;

impl Connection {
    /// Of a socket that has said CONNECT.
    pub(crate) fn of(io: &IoRef, terms: &Terms) -> Self {
        let address = io.query::<PeerAddr>().as_ref().map_or_else(String::new, |PeerAddr(address)| address.to_string());
        let protocol = match terms.version {
            Version::V3 => "MQTT 3.1.1",
            Version::V5 => "MQTT 5",
        };
        // A certificate is known by the first half of its SHA-256, which is what its enrolment names too.
        let certificate = io.query::<PeerCert<'static>>();
        let certificate = certificate.as_ref().map(|PeerCert(der)| hex::encode(&fingerprint(der)[..16]));
        let carrier = match certificate {
            Some(sha256) => format!("TLS, certificate {sha256}"),
            // Only TLS says what was agreed on inside it.
            None if io.query::<HttpProtocol>().as_ref().is_some() => "TLS".to_owned(),
            None => "TCP".to_owned(),
        };
        Self { address, protocol: protocol.to_owned(), carrier, keep_alive_s: terms.keep_alive.as_secs() }
    }
}
