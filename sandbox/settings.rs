//! The node's configuration for a run: what the caller gave, and over it what only the sandbox knows.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::CertificateDer;
use toml::{Table, Value};

use crate::ports::free_port;

/// Where everything of a run is.
#[derive(Debug)]
pub struct Settings {
    /// The node's configuration file.
    pub config: PathBuf,
    /// Where the node's output goes.
    pub log: PathBuf,
    pub master: PathBuf,
    pub listener: SocketAddr,
    pub admin: SocketAddr,
    /// What terminals trust, when they connect by TLS.
    pub authority: Option<CertificateDer<'static>>,
}

/// What a caller chooses.
#[derive(Debug)]
pub struct Choice<'a> {
    /// Where files go; it is made when it is not there.
    pub folder: &'a Path,
    /// Where the master key goes; it is made when it is not there.
    pub secrets: &'a Path,
    /// Configuration to begin with.
    pub base: Option<&'a Path>,
    pub database: &'a str,
    pub owner_database: &'a str,
    pub log: Option<&'a str>,
    pub dialect: &'a Path,
    pub core: SocketAddr,
    pub tls: bool,
    /// Waits are short and restarts many: the node will be killed all the time.
    pub hasty: bool,
}

impl Settings {
    /// Writes the configuration, and certificates if they are wanted.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(choice: &Choice<'_>) -> anyhow::Result<Self> {
        std::fs::create_dir_all(choice.folder).with_context(|| choice.folder.display().to_string())?;
        let folder = choice.folder.canonicalize()?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(choice.secrets)?;
        let mut settings = Self {
            config: folder.join("node.toml"),
            log: folder.join("node.log"),
            master: choice.secrets.canonicalize()?.join("master.key"),
            listener: free_port()?,
            admin: free_port()?,
            authority: None,
        };
        let mut table = match choice.base {
            Some(base) => std::fs::read_to_string(base).with_context(|| base.display().to_string())?.parse()?,
            None => Table::new(),
        };
        let mut set = |path: &str, value: Value| put(&mut table, path, value);
        set("node.sandbox", true.into());
        set("database.url", choice.database.into());
        set("database.owner_url", choice.owner_database.into());
        set("admin.address", settings.admin.to_string().into());
        set("keys.master.file", path(&settings.master));
        set("cores.sandbox.dialect", path(&choice.dialect.canonicalize().with_context(|| name(choice.dialect))?));
        set("cores.sandbox.address", choice.core.to_string().into());
        if let Some(log) = choice.log {
            set("log.kind", log.into());
        }
        if choice.hasty {
            for (key, value) in HASTY {
                set(key, (*value).into());
            }
            set("supervision.intensity", 1000.into());
        }
        if choice.tls {
            let (authority, chain, key) = certificates(&folder)?;
            settings.authority = Some(authority);
            set("listener.tls.address", settings.listener.to_string().into());
            set("listener.tls.files.certificate", path(&chain));
            set("listener.tls.files.key", path(&key));
            // There is a port without TLS by default; it must not be one that is taken.
            set("listener.plain", free_port()?.to_string().into());
        } else {
            set("listener.plain", settings.listener.to_string().into());
        }
        std::fs::write(&settings.config, table.to_string()).with_context(|| name(&settings.config))?;
        Ok(settings)
    }
}

/// What makes a doubt short.
const HASTY: &[(&str, &str)] = &[
    ("partitions.lease", "2s"),
    ("partitions.renew", "500ms"),
    ("partitions.answer_patience", "3s"),
    ("partitions.reversal_first", "500ms"),
    ("partitions.reversal_max", "4s"),
    ("cores.sandbox.answer_timeout", "3s"),
    ("cores.sandbox.backoff_min", "100ms"),
    ("cores.sandbox.backoff_max", "1s"),
    ("cores.sandbox.breaker", "1s"),
    ("receipts.sweep", "1s"),
    ("receipts.waited", "1s"),
];

/// Sets a key of a table in a table.
fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((first, rest)) => {
            let inner = table.entry(first).or_insert_with(|| Table::new().into());
            if !inner.is_table() {
                *inner = Table::new().into();
            }
            if let Value::Table(inner) = inner {
                put(inner, rest, value);
            }
        }
    }
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn path(path: &Path) -> Value {
    name(path).into()
}

/// An authority of this run, and a certificate for `localhost` under it: the authority, and the files of chain and key.
fn certificates(folder: &Path) -> anyhow::Result<(CertificateDer<'static>, PathBuf, PathBuf)> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.distinguished_name.push(rcgen::DnType::CommonName, "Wakala sandbox authority");
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let server = KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&server, &authority)?;
    let (chain, key) = (folder.join("server.pem"), folder.join("server.key"));
    std::fs::write(&chain, certificate.pem()).with_context(|| name(&chain))?;
    std::fs::write(&key, server.serialize_pem()).with_context(|| name(&key))?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600))?;
    Ok((authority.der().clone(), chain, key))
}

/// What a terminal connects with when it trusts one authority.
///
/// # Errors
/// When the certificate is none.
pub fn connector(authority: CertificateDer<'static>) -> anyhow::Result<tokio_rustls::TlsConnector> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_to_its_table_and_leaves_the_others() {
        let mut table: Table = "[log]\nkind = 'kafka'\n[log.kafka]\nbrokers = 'x:1'".parse().expect("TOML");
        put(&mut table, "log.kind", "postgres".into());
        put(&mut table, "node.sandbox", true.into());
        assert_eq!(table["log"]["kafka"]["brokers"].as_str(), Some("x:1"));
        assert_eq!(table["log"]["kind"].as_str(), Some("postgres"));
        assert_eq!(table["node"]["sandbox"].as_bool(), Some(true));
    }
}
