//! TLS from the client's side, and the certificates of a measurement: P-256, one authority, no intermediates.

use std::fs;
use std::io::{Error, ErrorKind, Read as _, Result as IoResult, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mio::net::TcpStream;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// How connections are secured.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// From the files that `write_certificates` made. Every handshake is a full one: nothing is resumed.
    pub(crate) fn new(folder: &Path, mutual: bool) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&folder.join("ca.pem"))?)?;
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = if mutual {
            let key = folder.join("client.key");
            let key = PrivateKeyDer::from_pem_file(&key).with_context(|| key.display().to_string())?;
            builder.with_client_auth_cert(vec![certificate(&folder.join("client.pem"))?], key)?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), name: IpAddr::from(Ipv4Addr::LOCALHOST).into() })
    }

    pub(crate) fn secure(&self, socket: TcpStream) -> Result<Secured> {
        let connection = ClientConnection::new(Arc::clone(&self.config), self.name.clone())?;
        Ok(Secured { connection, socket })
    }
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>> {
    CertificateDer::from_pem_file(path).with_context(|| path.display().to_string())
}

/// A TCP connection with TLS on it.
#[derive(Debug)]
pub(crate) struct Secured {
    connection: ClientConnection,
    socket: TcpStream,
}

impl Secured {
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Reads what was sent; `WouldBlock` when the socket has nothing more.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> IoResult<usize> {
        loop {
            match self.connection.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.connection.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            self.connection.process_new_packets().map_err(Error::other)?;
        }
    }

    /// Takes what it can of `bytes` and sends; `WouldBlock` when neither went any further.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> IoResult<usize> {
        let taken = if bytes.is_empty() { 0 } else { self.connection.writer().write(bytes)? };
        let mut sent = 0;
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.socket) {
                Ok(wrote) => sent += wrote,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if taken == 0 && sent == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
}

/// Makes an authority, a server for 127.0.0.1 and a client: ca.pem, server.pem, server.key, client.pem, client.key.
pub(crate) fn write_certificates(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "bench authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), authority.pem())?;
    for (name, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let signed = params.signed_by(&key, &authority)?;
        fs::write(folder.join(format!("{name}.pem")), signed.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}
