//! `wakala terminals`: who may connect.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use argon2::PasswordHasher as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use wakala::id::{AgentId, CoreId, TerminalId};
use wakala::money::Currency;
use wakala::receipt::{receipt_topic, request_topic};

use super::{Output, bans, rfc3339, table};
use crate::config::Config;
use crate::ports::{Clock, KeyName};
use crate::store::terminals::{Enrolment, Terminal};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Let a terminal connect, and print what it needs
    ///
    /// The terminal's name is its MQTT client identifier and user name. Without --certificate a password is drawn and
    /// printed once; only its argon2id hash is stored. With --certificate the terminal comes with that client certificate
    /// (mutual TLS) and needs no password. The agent's float account is created with the terminal if it is not there.
    Enrol {
        /// The terminal's name: 1 to 32 characters of A-Z a-z 0-9 - . _
        terminal: TerminalId,
        /// Who runs it and owns the float
        #[arg(long)]
        agent: AgentId,
        /// The bank core that serves the agent, as the configuration calls it
        #[arg(long)]
        core: CoreId,
        /// Currency of the agent's float, ISO 4217 letters
        #[arg(long, default_value = "TZS", value_parser = currency)]
        currency: Currency,
        /// The terminal's certificate (PEM)
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// The initial key identifier of its PIN pad: 16 hexadecimal digits that begin with a base derivation key's
        ///
        /// Checked and printed with the rest; Wakala learns which terminal uses it from the first request.
        #[arg(long, value_name = "HEX", value_parser = initial_key_id)]
        key_id: Option<InitialKeyId>,
    },
    /// Keep a terminal out for ever, and end its connection: a ban like those of wakala bans add --client
    Block {
        /// Who
        terminal: TerminalId,
        /// Stored with the block, for whoever asks later
        #[arg(long, value_parser = reason)]
        why: String,
    },
    /// Let a blocked terminal in again: all bans of its name are lifted
    Unblock {
        /// Who
        terminal: TerminalId,
    },
    /// Queue a message for a terminal, on its topic c/TERMINAL
    ///
    /// It waits in the terminal's queue, between its receipts, until the terminal is connected and subscribes to that
    /// topic. At QoS 1 it is kept until the terminal acknowledges it, through losses of the connection and of nodes, for
    /// as long as its session lives. At QoS 0 it is sent once, at best. A terminal that subscribes at QoS 0 hears either
    /// at QoS 0. How many may wait for one terminal, and how large one may be: sessions.messages_max and
    /// sessions.packet_bytes_max. Exit 1 if nothing was queued.
    Tell(super::tell::Arguments),
    /// Show who is enrolled
    List {
        /// Only those after this name
        #[arg(long)]
        after: Option<TerminalId>,
        /// At most so many
        #[arg(long, default_value_t = 1000)]
        limit: u32,
    },
}

/// A line, as tables and auditors show it.
pub(super) fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    let fits = (1..=200).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(text.to_owned()) } else { Err("a reason is one line of 1 to 200 characters".to_owned()) }
}

pub(super) fn currency(text: &str) -> Result<Currency, String> {
    Currency::from_code(text).ok_or_else(|| format!("{text} is no ISO 4217 code; TZS is one"))
}

/// The first eight bytes of a terminal's KSNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialKeyId([u8; 8]);

impl std::fmt::Display for InitialKeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode_upper(self.0))
    }
}

impl InitialKeyId {
    /// The base derivation key that the terminal's initial key is derived from.
    fn bdk(self) -> KeyName {
        let [a, b, c, d, ..] = self.0;
        KeyName::BaseDerivation([a, b, c, d])
    }
}

fn initial_key_id(text: &str) -> Result<InitialKeyId, String> {
    let mut id = [0; 8];
    hex::decode_to_slice(text, &mut id).map_err(|_| "an identifier has 16 hexadecimal digits".to_owned())?;
    Ok(InitialKeyId(id))
}

/// # Errors
/// When the database is away or the terminal is not as the command needs it.
pub async fn run(command: Command, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let store = super::store(&config.database).await?;
    match command {
        Command::Enrol { terminal, agent, core, currency, certificate, key_id } => {
            if !config.cores.contains_key(&core) {
                let known: Vec<String> = config.cores.keys().map(ToString::to_string).collect();
                bail!("no core {core} is configured; there are: {}", known.join(", "));
            }
            if let Some(bdk) = key_id.map(InitialKeyId::bdk) {
                let known = store.key_blocks().await?.iter().any(|block| block.name == bdk);
                ensure!(known, "there is no base derivation key {bdk} for this identifier; wakala keys list");
            }
            let certificate_sha256 = certificate.map(|file| fingerprint(&file)).transpose()?;
            let secret = if certificate_sha256.is_none() { Some(draw_password()?) } else { None };
            let password_hash = secret.as_deref().map(hash_password).transpose()?;
            let row = Terminal {
                id: terminal.clone(),
                agent: agent.clone(),
                core,
                password_hash,
                certificate_sha256,
                blocked: None,
                sandbox: config.node.sandbox,
                enrolled_at: clock.now(),
            };
            match store.enrol_terminal(row, currency).await? {
                Enrolment::Done => enrolled(config, &terminal, &agent, secret.as_deref(), key_id, output),
                Enrolment::NameTaken => {
                    bail!("there is a terminal {terminal} already; block it, or choose another name")
                }
                Enrolment::CertificateTaken => bail!("another terminal comes with this certificate"),
            }
        }
        Command::Block { terminal, why } => {
            if !store.block_terminal(&terminal, &why, &bans::operator(), clock.now()).await? {
                bail!("there is no terminal {terminal}");
            }
            let ended = super::status::look_for_bans(config.admin.address).await;
            output.print(
                || format!("{terminal}: blocked; {}", bans::said(ended, config)),
                &json!({ "terminal": terminal, "blocked": true, "ended": ended }),
            )
        }
        Command::Unblock { terminal } => {
            if !store.unblock_terminal(&terminal, &bans::operator(), clock.now()).await? {
                bail!("there is no terminal {terminal}");
            }
            let _ = super::status::look_for_bans(config.admin.address).await;
            output.print(|| format!("{terminal}: may connect"), &json!({ "terminal": terminal, "blocked": false }))
        }
        Command::Tell(arguments) => super::tell::run(arguments, &store, config, clock, output).await,
        Command::List { after, limit } => {
            let terminals = store.terminals(after.as_ref(), limit).await?;
            list(&terminals, output)
        }
    }
}

fn enrolled(
    config: &Config,
    terminal: &TerminalId,
    agent: &AgentId,
    password: Option<&str>,
    key_id: Option<InitialKeyId>,
    output: Output,
) -> anyhow::Result<()> {
    let first_ksn = key_id.map(|id| format!("{id}00000001"));
    let value = json!({
        "client_id": terminal, "user_name": terminal, "password": password, "agent": agent,
        "publish": request_topic(terminal), "subscribe": receipt_topic(terminal), "qos": 1, "clean_session": false,
        "listener": config.listener.addresses(),
        "initial_key_id": key_id.map(|id| id.to_string()), "first_ksn": first_ksn,
    });
    let text = || {
        let rows = [
            ["client identifier".to_owned(), terminal.to_string()],
            ["user name".to_owned(), terminal.to_string()],
            ["password".to_owned(), password.map_or_else(|| "none: its certificate".to_owned(), str::to_owned)],
            ["publishes on".to_owned(), format!("{} at QoS 1", request_topic(terminal))],
            ["subscribes to".to_owned(), format!("{} at QoS 1", receipt_topic(terminal))],
            ["session".to_owned(), "persistent: clean session 0, or in MQTT 5 a session expiry".to_owned()],
            ["connects to".to_owned(), config.listener.addresses().join(", ")],
        ];
        let keys = key_id
            .zip(first_ksn.clone())
            .map(|(id, ksn)| [["initial key identifier".to_owned(), id.to_string()], ["first KSN".to_owned(), ksn]]);
        let once = password.map_or("", |_| "The password is shown this once. ");
        let injected = match key_id {
            // In clear it leaves in the sandbox alone.
            Some(id) if config.node.sandbox => format!("wakala keys initial-key --bdk {} --id {id}", id.bdk()),
            Some(id) => format!("wakala keys initial-key --bdk {} --id {id} --under KBPK", id.bdk()),
            None => "wakala keys initial-key --help".to_owned(),
        };
        let shown = table(["terminal", ""], rows.into_iter().chain(keys.into_iter().flatten()));
        format!("{shown}\n{once}Its DUKPT initial key: {injected}")
    };
    output.print(text, &value)
}

fn list(terminals: &[Terminal], output: Output) -> anyhow::Result<()> {
    let values: Vec<_> = terminals
        .iter()
        .map(|t| {
            json!({
                "terminal": t.id, "agent": t.agent, "core": t.core, "sandbox": t.sandbox,
                "enters_with": enters_with(t), "blocked": t.blocked.as_ref().map(|b| &b.why),
                "enrolled_at": rfc3339(t.enrolled_at),
            })
        })
        .collect();
    let text = || {
        let rows = terminals.iter().map(|t| {
            [
                t.id.to_string(),
                t.agent.to_string(),
                t.core.to_string(),
                enters_with(t).to_owned(),
                t.blocked.as_ref().map_or_else(String::new, |b| b.why.clone()),
                if t.sandbox { "sandbox".to_owned() } else { String::new() },
            ]
        });
        format!(
            "{}\n{} terminals",
            table(["terminal", "agent", "core", "enters with", "blocked", ""], rows),
            terminals.len()
        )
    };
    output.print(text, &values)
}

fn enters_with(terminal: &Terminal) -> &'static str {
    if terminal.certificate_sha256.is_some() { "certificate" } else { "password" }
}

/// 26 characters of Crockford's base 32: 130 bits, and nothing that is mistaken when typed.
fn draw_password() -> anyhow::Result<String> {
    const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    let mut bytes = [0; 26];
    getrandom::fill(&mut bytes).context("no randomness")?;
    Ok(bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect())
}

fn hash_password(password: &str) -> anyhow::Result<String> {
    let hash = argon2::Argon2::default().hash_password(password.as_bytes());
    Ok(hash.map_err(|error| anyhow::anyhow!("{error}"))?.to_string())
}

/// SHA-256 over the first certificate of the file, in DER.
pub(super) fn fingerprint(file: &std::path::Path) -> anyhow::Result<[u8; 32]> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject as _;
    let certificate = CertificateDer::from_pem_file(file)
        .map_err(|error| anyhow::anyhow!("{}: no certificate in PEM: {error}", file.display()))?;
    Ok(Sha256::digest(&certificate).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_a_line() {
        assert_eq!(reason(" stolen "), Ok("stolen".to_owned()));
        for bad in ["", " ", "two\nlines", "\u{1b}[2J", &"x".repeat(201)] {
            assert!(reason(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_initial_key_identifier_names_its_base_key() {
        let id = initial_key_id("5a5A000100000002").expect("an identifier");
        assert_eq!((id.to_string().as_str(), id.bdk().to_string().as_str()), ("5A5A000100000002", "bdk-5A5A0001"));
        for bad in ["", "5A5A0001", "5A5A00010000000", "5A5A00010000000g", "5A5A0001000000020000"] {
            assert!(initial_key_id(bad).is_err(), "{bad}");
        }
    }
}
