//! The configuration: one file in TOML, `WAKALA_…` variables over it, flags over those.
//!
//! Every limit is named with its unit, every key has a default, and an unknown key is refused with the name that may have
//! been meant. `config/wakala.toml` shows every key with its default; a test keeps it so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::providers::{Env, Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};
use wakala::id::CoreId;

use crate::adapters::{kafka, postgres_log, soft_hsm};
use crate::supervision::Policy;
use crate::{
    admin, banks, edge, listener, metrics, partitions, presence, receipts, router, sessions, store, tap, telling,
};

mod said;

/// EX_CONFIG: starting again would not mend it, so systemd does not (`RestartPreventExitStatus`).
pub const EXIT_CONFIG: i32 = 78;

/// Variables that are flags of the command line and of the scripts, not keys of the configuration.
const FLAGS: [&str; 2] = ["config", "var"];

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub database: store::Options,
    pub log: Log,
    pub listener: listener::Options,
    pub sessions: sessions::Options,
    pub open: router::Options,
    pub presence: presence::Options,
    pub tap: tap::Options,
    pub telling: telling::Options,
    pub edge: edge::Options,
    pub keys: soft_hsm::Options,
    pub partitions: partitions::Options,
    /// Bank cores by name: `[cores.mwanga]`.
    pub cores: BTreeMap<CoreId, banks::Options>,
    pub receipts: receipts::Options,
    pub supervision: Policy,
    pub admin: admin::Options,
    pub metrics: metrics::Options,
    pub logging: Logging,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// This node's name among the nodes of one database: in leases, logs and `wakala status`.
    pub name: String,
    /// Takes sandbox keys, cards and terminals and no others; actors can be made to panic. Never at a bank.
    pub sandbox: bool,
    /// How long a stopping node waits for what is under way.
    #[serde(with = "humantime_serde")]
    pub drain: std::time::Duration,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: "wakala-1".to_owned(), sandbox: false, drain: std::time::Duration::from_secs(10) }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub kind: LogKind,
    pub postgres: postgres_log::Options,
    pub kafka: kafka::Options,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// In the database that is there anyway: nothing else need run.
    #[default]
    Postgres,
    Kafka,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Logging {
    pub format: LogFormat,
    /// Which events are logged, as `tracing_subscriber::EnvFilter` reads it: `info,wakala_node=debug`.
    pub filter: String,
}

impl Default for Logging {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For a terminal and for the journal.
    Text,
    /// One JSON object a line.
    Json,
}

/// What is wrong with a configuration, each line of it.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Error(pub Vec<String>);

impl Config {
    /// Reads the file, then `WAKALA_…` variables (`WAKALA_NODE__NAME` is `node.name`), then `flags` (`node.name=x`), and
    /// checks what they say together.
    ///
    /// # Errors
    /// Every fault with its source, its key, and what would be right.
    pub fn load(file: Option<&Path>, flags: &[String]) -> Result<Self, Error> {
        // Defaults come from serde alone. Merged in as values they would stay beside what the file says: of two ways to
        // the master key both would be there.
        if let Some(file) = file {
            let why = match std::fs::metadata(file) {
                Ok(found) if found.is_file() => None,
                Ok(_) => Some("it is not a file".to_owned()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("there is no such file".to_owned()),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                return Err(Error(vec![format!("{}: {why}", file.display())]));
            }
        }
        let variables = Env::prefixed("WAKALA_").ignore(&FLAGS).split("__");
        let figment = over(file, flags_over(variables, flags)?);
        let config: Self = figment.extract().map_err(|first| said::every(&figment, first))?;
        let faults = config.faults(file.and_then(Path::parent)).into_iter().map(|(key, text)| {
            let source = figment.find_metadata(&key).map_or_else(String::new, said::source);
            format!("{source}{key}: {text}")
        });
        let faults: Vec<String> = faults.collect();
        if faults.is_empty() { Ok(config) } else { Err(Error(faults)) }
    }

    /// What no single key can know: keys, and what is wrong with them.
    fn faults(&self, folder: Option<&Path>) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, text: String| faults.push((key.to_owned(), text));
        if let Err(error) = self.node.name.parse::<wakala::id::AgentId>() {
            fault("node.name", error.to_string().replace("an agent's name", "it"));
        }
        if !self.admin.address.ip().is_loopback() && !self.admin.beyond_loopback {
            let text = "is not loopback; use 127.0.0.1, or say admin.beyond_loopback = true as well";
            fault("admin.address", format!("{} {text}", self.admin.address));
        }
        if self.partitions.renew * 2 > self.partitions.lease {
            fault(
                "partitions.renew",
                "must be at most half of partitions.lease, or a hiccup loses the lease".to_owned(),
            );
        }
        let whole = serde_json::to_value(self).unwrap_or_default();
        for key in wrong_keys(&whole, "", is_too_little) {
            fault(&key, "must be at least 1".to_owned());
        }
        // What is due at once is due for ever, and what is done every no time is all that is done.
        for key in wrong_keys(&whole, "", is_too_short) {
            if !MAY_BE_NO_TIME.contains(&key.as_str()) {
                fault(&key, "must be at least 1ms".to_owned());
            }
        }
        if let Err(text) = store::check_address(&self.database.url) {
            fault("database.url", text);
        }
        if let Err(text) = store::check_address(&self.database.owner_url)
            && !self.database.owner_url.is_empty()
        {
            fault("database.owner_url", text);
        }
        for (core, options) in &self.cores {
            if options.answer_timeout < self.partitions.answer_patience {
                let text = "must not be shorter than partitions.answer_patience, or the breaker opens too soon";
                fault(&format!("cores.{core}.answer_timeout"), text.to_owned());
            }
            if !is_host_and_port(&options.address) {
                let text = format!("{:?} is not a host and a port; right would be 10.1.2.3:8583", options.address);
                fault(&format!("cores.{core}.address"), text);
            }
            let file = resolve(folder, &options.dialect);
            if let Err(error) = banks::read_dialect(&file) {
                fault(&format!("cores.{core}.dialect"), format!("{error:#}"));
            }
        }
        if self.sessions.keep_alive_max < Duration::from_secs(1) {
            // It is told in whole seconds, and none is no keep-alive at all.
            fault("sessions.keep_alive_max", "must be at least 1s".to_owned());
        }
        let kafka = &self.log.kafka;
        if self.log.kind == LogKind::Kafka && kafka.replication_factor > 1 && kafka.min_insync_replicas < 2 {
            let text =
                "must be at least 2 where there are several copies, or a record counts that one broker alone has";
            fault("log.kafka.min_insync_replicas", text.to_owned());
        }
        for (key, text) in self.faults_of_doors() {
            fault(&key, text);
        }
        if let Err(error) = self.logging.filter.parse::<tracing_subscriber::EnvFilter>() {
            fault("logging.filter", format!("{error}; right would be, for example, \"info,wakala_node=debug\""));
        }
        faults
    }

    /// The same of where terminals and programs come.
    fn faults_of_doors(&self) -> Vec<(String, String)> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, text: String| faults.push((key.to_owned(), text));
        for (key, text) in listener::identity::faults(&self.listener, &self.open, !self.cores.is_empty()) {
            fault(key, text.to_owned());
        }
        if let Some(text) = self.listener.bounds.faults() {
            fault("listener.bounds.ranges", text);
        }
        let files = self.listener.tls.as_ref().map(|tls| &tls.files);
        if files.is_some_and(|files| files.revoked.is_some() && files.client_authorities.is_none()) {
            fault("listener.tls.files.revoked", "needs client_authorities, which must have signed it".to_owned());
        }
        let is_word = |word: &String| !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic());
        if !self.listener.elsewhere.iter().all(is_word) || self.listener.elsewhere.concat().len() > 1024 {
            let text = "right would be, for example, [\"mqtt-2.bank.example:8883\"], 1 KiB in all at most";
            fault("listener.elsewhere", text.to_owned());
        }
        let tls = self.listener.tls.is_some();
        let websocket = self.listener.websocket.iter().flat_map(|door| door.faults(tls));
        let websocket = websocket.map(|(key, text)| (format!("listener.websocket.{key}"), text));
        let http = self.telling.http.iter().flat_map(|door| door.faults(tls));
        for (key, text) in websocket.chain(http.map(|(key, text)| (format!("telling.http.{key}"), text))) {
            fault(&key, text);
        }
        faults
    }

    /// What is wrong with the files that only the node itself may read.
    ///
    /// # Errors
    /// The first fault, with its key.
    pub fn check_secret_files(&self) -> Result<(), Error> {
        listener::identity::check(&self.listener).map_err(|error| Error(vec![error]))?;
        if let Some(http) = &self.telling.http {
            telling::tokens::Tokens::read(&http.tokens)
                .map_err(|error| Error(vec![format!("telling.http.tokens: {error}")]))?;
        }
        let Some(tls) = &self.listener.tls else { return Ok(()) };
        listener::tls::check(&tls.files).map_err(|error| Error(vec![format!("listener.tls.files: {error}")]))
    }

    /// Has paths that the file gives relative to itself found from anywhere.
    #[must_use]
    pub fn resolved(mut self, file: Option<&Path>) -> Self {
        let folder = file.and_then(Path::parent);
        for options in self.cores.values_mut() {
            options.dialect = resolve(folder, &options.dialect);
        }
        if let Some(tls) = &mut self.listener.tls {
            tls.files.resolve(|path| resolve(folder, path));
        }
        if let Some(http) = &mut self.telling.http {
            http.tokens = resolve(folder, &http.tokens);
        }
        listener::identity::resolve(&mut self.listener, |path| resolve(folder, path));
        self
    }

    /// Has no password in it, for whoever wants to see what it came to.
    #[must_use]
    pub fn shown(&self) -> Self {
        Self { database: self.database.without_passwords(), ..self.clone() }
    }
}

/// The flags over the variables.
fn flags_over(variables: impl Provider, flags: &[String]) -> Result<Figment, Error> {
    let master = MASTER.join(".");
    let way = |flag: &String| flag.strip_prefix(&master).is_some_and(|rest| rest.starts_with(['=', '.']));
    let variables =
        if flags.iter().any(way) { Figment::from(WithoutMaster(variables)) } else { Figment::from(variables) };
    flags.iter().try_fold(variables, |above, flag| {
        let Some((key, value)) = flag.split_once('=') else {
            return Err(Error(vec![format!("--set {flag}: right would be, for example, --set node.name=wakala-2")]));
        };
        let Ok(value) = value.parse::<Value>();
        Ok(above.merge((key.to_owned(), value)))
    })
}

/// The variables over the file.
fn over(file: Option<&Path>, variables: Figment) -> Figment {
    let Some(file) = file.map(Toml::file_exact) else { return variables };
    // Tables are merged, and the way to the master key is a table of one key: merged, there would be two ways.
    if variables.find_value(MASTER.join(".").as_str()).is_ok() {
        Figment::from(WithoutMaster(file)).merge(variables)
    } else {
        Figment::from(file).merge(variables)
    }
}

const MASTER: [&str; 2] = ["keys", "master"];

/// What another provider says, but for the way to the master key.
struct WithoutMaster<P>(P);

impl<P: Provider> Provider for WithoutMaster<P> {
    fn metadata(&self) -> Metadata {
        self.0.metadata()
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut data = self.0.data()?;
        for dict in data.values_mut() {
            if let Some(Value::Dict(_, keys)) = dict.get_mut(MASTER[0]) {
                keys.remove(MASTER[1]);
            }
        }
        Ok(data)
    }
}

/// What may be none at all, or without a limit: panics that are borne, messages that are kept, answers that nobody waits
/// for, how often somebody connects, how fast he publishes, how often he is told something.
const MAY_BE_ZERO: [&str; 13] = [
    "address_connects_burst",
    "agent_bytes_per_second",
    "agent_publishes_per_second",
    "bytes_per_second",
    "client_connects_burst",
    "configurations_per_hour",
    "intensity",
    "messages_max",
    "messages_per_hour",
    "news_per_hour",
    "publishes_per_second",
    "topic_alias_max",
    "unmatched_per_second",
];

/// Times that may be none at all.
const MAY_BE_NO_TIME: [&str; 3] = ["node.drain", "listener.jwt.leeway", "open.sys_every"];

/// The keys below `key` whose value is `wrong`.
fn wrong_keys(value: &serde_json::Value, key: &str, wrong: fn(&str, &serde_json::Value) -> bool) -> Vec<String> {
    let serde_json::Value::Object(fields) = value else {
        return if wrong(key, value) { vec![key.to_owned()] } else { Vec::new() };
    };
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    fields.iter().flat_map(|(name, value)| wrong_keys(value, &below(name), wrong)).collect()
}

/// A count or a size that is zero or less.
fn is_too_little(key: &str, value: &serde_json::Value) -> bool {
    let may = key.rsplit('.').next().is_some_and(|name| MAY_BE_ZERO.contains(&name));
    value.as_i64().is_some_and(|n| n < i64::from(!may))
}

/// A duration of less than a millisecond.
fn is_too_short(_: &str, value: &serde_json::Value) -> bool {
    let wait = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    wait.is_some_and(|wait| wait < Duration::from_millis(1))
}

fn is_host_and_port(address: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    address.rsplit_once(':').is_some_and(|(host, number)| !host.is_empty() && port(number))
}

fn resolve(folder: Option<&Path>, path: &Path) -> PathBuf {
    match folder {
        Some(folder) if path.is_relative() => folder.join(path),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests;
