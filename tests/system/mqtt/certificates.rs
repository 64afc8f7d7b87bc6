//! An authority of the tests, and what it signs, as files.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use wakala_node::listener::Tls;
use wakala_node::listener::tls::{Files, fingerprint};

/// An authority with a server and a terminal under it: `ca.pem`, `authorities.pem`, `server.pem`, `server.key`,
/// `terminal.pem`, `terminal.key`.
pub(super) struct Papers {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    serials: AtomicU64,
    pub(super) terminal: Issued,
}

/// A certificate that the authority signed.
#[derive(Clone, Copy)]
pub(super) struct Issued {
    pub(super) sha256: [u8; 32],
    serial: u64,
}

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Papers {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        authority.distinguished_name.push(DnType::CommonName, "an authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = authority.self_signed(&key).expect("signed");
        // Whom terminals trust, and whom the listener asks about terminals.
        for file in ["ca.pem", "authorities.pem"] {
            std::fs::write(dir.path().join(file), ca.pem()).expect("written");
        }
        let issuer = Issuer::new(authority, key);
        let nobody = Issued { sha256: [0; 32], serial: 0 };
        let mut papers = Self { dir, issuer, serials: AtomicU64::new(1000), terminal: nobody };
        papers.issue("server");
        papers.terminal = papers.issue("terminal");
        papers
    }

    /// Signs a certificate: `{file}.pem` and `{file}.key`, over those of that name.
    pub(super) fn issue(&self, file: &str) -> Issued {
        self.issue_for(file, TEN_YEARS)
    }

    pub(super) fn issue_for(&self, file: &str, time: Duration) -> Issued {
        let key = KeyPair::generate().expect("a key");
        let serial = self.serials.fetch_add(1, Ordering::Relaxed);
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut parameters = CertificateParams::new(names).expect("parameters");
        parameters.distinguished_name.push(DnType::CommonName, file);
        parameters.serial_number = Some(SerialNumber::from(serial));
        parameters.not_after = (SystemTime::now() + time).into();
        let certificate = parameters.signed_by(&key, &self.issuer).expect("signed");
        self.write(&format!("{file}.key"), &key.serialize_pem());
        self.write(&format!("{file}.pem"), &certificate.pem());
        Issued { sha256: fingerprint(certificate.der()), serial }
    }

    /// What a terminal connects with that has this certificate.
    pub(super) fn connector(&self, file: &str) -> tokio_rustls::TlsConnector {
        let pem = |file: &str| std::fs::read(self.path(file)).expect("it is there");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("ca.pem")).expect("PEM")).expect("an authority");
        let certificate = CertificateDer::from_pem_slice(&pem(&format!("{file}.pem"))).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(&pem(&format!("{file}.key"))).expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("versions").with_root_certificates(roots);
        Arc::new(config.with_client_auth_cert(vec![certificate], key).expect("its key")).into()
    }

    /// Signs `revoked.pem`, the list of these.
    pub(super) fn revoke(&self, revoked: &[Issued]) {
        self.write("revoked.pem", &self.list(revoked).pem().expect("PEM"));
    }

    /// The same list as authorities publish it.
    pub(super) fn list(&self, revoked: &[Issued]) -> rcgen::CertificateRevocationList {
        let revoked = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2036, 1, 1),
            crl_number: SerialNumber::from(self.serials.fetch_add(1, Ordering::Relaxed)),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .expect("signed")
    }

    pub(super) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.dir.path().join(file), text).expect("written");
    }

    pub(super) fn read(&self, file: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(file)).expect("it is there")
    }

    pub(super) fn path(&self, file: &str) -> String {
        self.dir.path().join(file).to_string_lossy().into_owned()
    }

    /// A listener with the server's certificate and, if they are to be asked, the authorities.
    pub(super) fn tls(&self, authorities: bool) -> Tls {
        let files = Files {
            certificate: self.path("server.pem").into(),
            key: self.path("server.key").into(),
            client_authorities: authorities.then(|| self.path("authorities.pem").into()),
            revoked: None,
        };
        Tls::new(SocketAddr::from(([127, 0, 0, 1], 0)), files)
    }

    /// A listener that looks at a list too; nobody is on it yet.
    pub(super) fn tls_with_list(&self) -> Tls {
        self.revoke(&[]);
        let mut tls = self.tls(true);
        tls.files.revoked = Some(self.path("revoked.pem").into());
        tls
    }
}
