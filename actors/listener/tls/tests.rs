//! Handshakes without sockets, and what is in a list.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, ClientConnection, HandshakeKind, ServerConnection};

use super::*;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    authority_with(name, KeyPair::generate().expect("a key"))
}

fn authority_with(name: &str, key: KeyPair) -> Authority {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(rcgen::DnType::CommonName, name);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(authority, key).expect("signed")
}

/// A list as its authority publishes it (DER).
fn list(signer: &Authority, serials: &[u64]) -> Vec<u8> {
    let revoked = serials.iter().map(|&serial| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2026, 1, 1),
        next_update: date_time_ymd(2036, 1, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(signer).expect("signed").der().to_vec()
}

/// The files of a listener, and a terminal's certificate of serial number 7.
struct Desk {
    folder: tempfile::TempDir,
    authority: Authority,
    client: Arc<ClientConfig>,
    options: Tls,
}

impl Desk {
    fn new(authorities: bool) -> Self {
        Self::until(authorities, Duration::from_secs(3600))
    }

    fn until(authorities: bool, end: Duration) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let path = |file: &str| folder.path().join(file);
        let (authority, key) = (authority("one"), KeyPair::generate().expect("a key"));
        let server = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let server = server.signed_by(&key, &authority).expect("signed");
        std::fs::write(path("server.pem"), server.pem()).expect("written");
        std::fs::write(path("server.key"), key.serialize_pem()).expect("written");
        std::fs::write(path("authorities.pem"), authority.pem()).expect("written");
        let key = KeyPair::generate().expect("a key");
        let mut terminal = CertificateParams::new(Vec::new()).expect("parameters");
        terminal.serial_number = Some(SerialNumber::from(7));
        terminal.not_after = (SystemTime::now() + end).into();
        let terminal = terminal.signed_by(&key, &authority).expect("signed");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).expect("an authority");
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("a key");
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![terminal.der().clone()], key)
            .expect("its key");
        let files = Files {
            certificate: path("server.pem"),
            key: path("server.key"),
            client_authorities: authorities.then(|| path("authorities.pem")),
            revoked: None,
        };
        let options = Tls::new(SocketAddr::from(([127, 0, 0, 1], 0)), files);
        Self { folder, authority, client: Arc::new(client), options }
    }

    /// Publishes the authority's list.
    fn revoke(&mut self, serials: &[u64]) {
        let list = list(&self.authority, serials);
        self.publish(&list);
    }

    fn publish(&mut self, list: &[u8]) {
        let path = self.folder.path().join("revoked.crl");
        std::fs::write(&path, list).expect("written");
        self.options.files.revoked = Some(path);
    }

    fn open(&self) -> Credentials {
        Credentials::open(&self.options).expect("the files are right")
    }

    fn fault(&self) -> String {
        let error = check(&self.options.files).expect_err("a file is not right").to_string();
        error.replace(&format!("{}/", self.folder.path().display()), "")
    }

    /// Shakes hands; how, and the chain that the server has of the terminal.
    fn shake(&self, trust: &Trust) -> Result<(HandshakeKind, Vec<CertificateDer<'static>>), rustls::Error> {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(Arc::clone(&self.client), name).expect("a client");
        let mut server = ServerConnection::new(trust.config(Inside::Mqtt)).expect("a server");
        while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).expect("memory");
            }
            server.read_tls(&mut wire.as_slice()).expect("memory");
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).expect("memory");
            }
            client.read_tls(&mut wire.as_slice()).expect("memory");
            client.process_new_packets().expect("the server is as the client wants it");
        }
        let chain = server.peer_certificates().expect("a certificate").iter().map(|each| each.clone().into_owned());
        Ok((server.handshake_kind().expect("done"), chain.collect()))
    }
}

#[test]
fn a_full_handshake_is_refused_to_the_revoked_and_a_resumed_one_is_judged_after_it() {
    let mut desk = Desk::new(true);
    desk.revoke(&[6, 8]);
    let credentials = desk.open();
    let before = credentials.trust();
    let (kind, chain) = desk.shake(&before).expect("it is good");
    assert_eq!(kind, HandshakeKind::Full);
    let report = credentials.report();
    assert_eq!((report.revoked, report.lists_until.map(|until| until.year())), (2, Some(2036)));
    let papers = before.examine(&chain, &before, UnixTime::now()).expect("good").expect("an authority was asked");
    assert_eq!(before.objection(&papers, UnixTime::now()), None);

    desk.revoke(&[6, 7, 8]);
    credentials.reload().expect("right");
    let now = credentials.trust();
    let (kind, chain) = desk.shake(&now).expect("rustls does not look again");
    assert_eq!(kind, HandshakeKind::Resumed, "the sessions outlive the reload");
    assert_eq!(now.examine(&chain, &now, UnixTime::now()).map(drop), Err(Objection::Revoked));
    // One that had begun before is judged by what is in force at its end.
    assert_eq!(now.examine(&chain, &before, UnixTime::now()).map(drop), Err(Objection::Revoked));
    assert_eq!(now.objection(&papers, UnixTime::now()), Some(Objection::Revoked), "and who is connected");
    Arc::make_mut(&mut desk.client).resumption = rustls::client::Resumption::disabled();
    assert_eq!(desk.shake(&now).err(), Some(rustls::Error::InvalidCertificate(CertificateError::Revoked)));
}

#[test]
fn a_certificate_is_good_until_its_end_resumed_or_not() {
    let desk = Desk::new(true);
    let trust = desk.open().trust();
    let (_, chain) = desk.shake(&trust).expect("it is good");
    let papers = trust.examine(&chain, &trust, UnixTime::now()).expect("good").expect("papers");
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + seconds));
    assert_eq!(trust.objection(&papers, at(3590)), None);
    assert_eq!(trust.objection(&papers, at(3601)), Some(Objection::Expired));
    assert_eq!(trust.examine(&chain, &trust, at(3601)).map(drop), Err(Objection::Expired));
}

#[test]
fn what_was_found_good_under_an_authority_that_is_gone_is_asked_again() {
    let desk = Desk::new(true);
    let credentials = desk.open();
    let before = credentials.trust();
    let (_, chain) = desk.shake(&before).expect("it is good");
    let papers = before.examine(&chain, &before, UnixTime::now()).expect("good").expect("papers");
    let file = desk.folder.path().join("authorities.pem");
    std::fs::write(&file, desk.authority.pem() + &authority("another").pem()).expect("written");
    credentials.reload().expect("right");
    assert!(!credentials.trust().must_vouch_for(&papers), "one more takes nothing from what was found");
    assert_eq!(desk.shake(&credentials.trust()).expect("good").0, HandshakeKind::Resumed);

    // Of the same name, with another key.
    std::fs::write(&file, authority("one").pem()).expect("written");
    credentials.reload().expect("right");
    let now = credentials.trust();
    assert_eq!(now.objection(&papers, UnixTime::now()), None);
    assert!(now.must_vouch_for(&papers));
    assert_eq!(now.vouch(&chain, &papers, UnixTime::now()), Err(Objection::NoAuthority));
    assert_eq!(now.examine(&chain, &before, UnixTime::now()).map(drop), Err(Objection::NoAuthority));
    let refused = desk.shake(&now).err();
    assert!(
        matches!(refused, Some(rustls::Error::InvalidCertificate(_))),
        "a full handshake, and in vain: {refused:?}"
    );

    std::fs::write(&file, desk.authority.pem()).expect("written");
    credentials.reload().expect("right");
    let again = credentials.trust();
    assert_eq!(again.vouch(&chain, &papers, UnixTime::now()), Ok(()));
    assert!(!again.must_vouch_for(&papers));
}

#[test]
fn without_authorities_nothing_but_the_fingerprint_counts() {
    let desk = Desk::until(false, Duration::ZERO);
    let trust = desk.open().trust();
    let (_, chain) = desk.shake(&trust).expect("it holds the key");
    assert!(trust.examine(&chain, &trust, UnixTime::now()).expect("nothing to say").is_none());
}

/// An authority that was given another name and kept its key.
#[test]
fn a_list_is_of_the_authority_that_it_names_though_another_has_its_key() {
    let mut desk = Desk::new(true);
    let key = KeyPair::from_pem(&desk.authority.key().serialize_pem()).expect("its key");
    let older = authority_with("as it was called before", key);
    let both = [older.pem(), desk.authority.pem()].concat();
    std::fs::write(desk.folder.path().join("authorities.pem"), both).expect("written");
    desk.revoke(&[7]);
    let refused = desk.shake(&desk.open().trust()).expect_err("revoked");
    assert_eq!(refused, rustls::Error::InvalidCertificate(CertificateError::Revoked));
}

#[test]
fn a_wrong_file_is_named_with_what_is_wrong() {
    let mut desk = Desk::new(true);
    desk.publish(&list(&authority("a stranger"), &[]));
    assert_eq!(desk.fault(), "revoked.crl: none of the configured authorities signed the list of CN=a stranger");
    std::fs::write(desk.folder.path().join("revoked.crl"), "").expect("written");
    assert_eq!(desk.fault(), "revoked.crl: no revocation list in it: neither PEM (BEGIN X509 CRL) nor DER");
    desk.options.files.client_authorities = None;
    assert!(desk.fault().starts_with("revoked.crl: "), "{}", desk.fault());
    desk.options.files.revoked = None;
    std::fs::write(desk.folder.path().join("server.key"), KeyPair::generate().expect("a key").serialize_pem())
        .expect("written");
    assert!(desk.fault().starts_with("server.key: not the key of the certificate in "), "{}", desk.fault());
    std::fs::write(desk.folder.path().join("server.key"), "").expect("written");
    assert!(desk.fault().starts_with("server.key: no private key in PEM"), "{}", desk.fault());
    std::fs::remove_file(desk.folder.path().join("server.pem")).expect("removed");
    assert!(desk.fault().starts_with("server.pem: No such file"), "{}", desk.fault());
}

#[test]
fn a_file_that_is_being_written_is_left_to_be_finished_and_what_is_wrong_is_said_once() {
    let desk = Desk::new(true);
    let credentials = desk.open();
    let (file, good) = (desk.folder.path().join("authorities.pem"), desk.authority.pem());
    credentials.look();
    assert_eq!(credentials.report().reloads, 0, "nothing has changed");
    std::fs::write(&file, &good[..40]).expect("half of it");
    credentials.look();
    std::fs::write(&file, &good).expect("all of it");
    credentials.look();
    credentials.look();
    assert_eq!((credentials.report().reloads, credentials.report().failures), (1, 0));
    std::fs::write(&file, "wrong").expect("written");
    (0..5).for_each(|_| credentials.look());
    let report = credentials.report();
    assert_eq!((report.reloads, report.failures), (1, 1), "said once");
    assert!(report.failure.is_some_and(|why| why.contains("authorities.pem")));
    desk.shake(&credentials.trust()).expect("what was in force stays so");
    std::fs::write(&file, &good).expect("put right");
    (0..2).for_each(|_| credentials.look());
    assert!(credentials.report().failure.is_none());
}
