//! `wakala keys`: the keys of the soft key store, and where they come from.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use wakala::pin::key::{AesKey, CheckValue, TdesKey, combined};
use zeroize::Zeroizing;

use super::{Output, table};
use crate::ports::{Clock, Custody, KeyBytes, KeyName};
use crate::store::{self, Store};

/// Opens the key store: reads the master key. `main.rs` knows how.
pub type Unlock<'a> = &'a dyn Fn() -> anyhow::Result<Box<dyn Custody>>;

/// Keys lie in the database, sealed under a master key that comes from outside (`keys.master` in the configuration: a
/// systemd credential, a file or an environment variable). Whoever has the database but not the master key has nothing.
///
/// A new installation: `wakala keys master /etc/wakala/master.key`, then `wakala keys generate card-token` and
/// `card-seal`, then import the bank's keys, then `wakala cards import`.
///
/// Names say what a key is for:
///
///   bdk-12345678  base derivation key (BDK): every terminal's initial key is derived from it. 12345678 is its
///                 identifier, the first four bytes of the initial key identifiers (IKID) of its terminals.
///   pvk-1         PIN verification key (PVK) with index 1: the bank made its cards' PVVs with it.
///   zpk-NAME      zone PIN key: shared with the core NAME that wants the PIN itself.
///   kbpk-NAME     key block protection key: what NAME wraps keys with that it sends us, or that we send it (TR-31).
///   card-token    hashes card numbers, so that a card is found without its number. Generate it once, never change it.
///   card-seal     seals card numbers on their way to the core. Generate it once.
#[derive(Debug, clap::Subcommand)]
#[command(verbatim_doc_comment)]
pub enum Command {
    /// Draw a master key into a new file that its owner alone can read
    ///
    /// 32 random bytes as 64 hexadecimal digits. Keep a copy in a safe: without it all keys are lost. An existing file is
    /// never written over.
    Master {
        /// The new file, such as /etc/wakala/master.key
        file: PathBuf,
    },
    /// Draw a key at random and store it sealed
    ///
    /// For card-token and card-seal, and for trying things out. The bank's own BDK and PVK are imported.
    Generate {
        /// Which; wakala keys --help lists the names
        name: KeyName,
    },
    /// Put a key together from its custodians' components and store it sealed
    ///
    /// Each custodian types his component (hexadecimal; nothing is shown while he types, and it may also come on standard
    /// input, one a line). The check value of each is shown, for him to compare with his paper; the key is the exclusive or
    /// of all. With --tr31 it comes as a key block instead (ANSI X9.143, TR-31 version D), and nobody types anything. It is
    /// stored only if its check value is the one that the bank wrote down.
    Import {
        /// Which; wakala keys --help lists the names
        name: KeyName,
        /// How many custodians there are; at least two, so that no one person knows the key
        #[arg(long, default_value_t = 2)]
        components: u8,
        /// The key's check value as the bank wrote it down: six hexadecimal digits, by CMAC (AES keys) or by encrypting zeros
        #[arg(long, value_name = "HEX", value_parser = check_value)]
        check: String,
        /// A key block in place of components
        #[arg(long, value_name = "BLOCK", requires = "under", conflicts_with = "components")]
        tr31: Option<String>,
        /// The key block protection key that it was wrapped with
        #[arg(long, value_name = "KBPK")]
        under: Option<KeyName>,
    },
    /// Show which keys there are, with their check values. Needs no master key
    List,
    /// Open a key and recompute its check value; with HEX, compare it
    Check {
        /// Which
        name: KeyName,
        /// The check value that it must have
        hex: Option<String>,
    },
    /// Derive what is injected into one terminal: its initial key (X9.24-3)
    ///
    /// With --under as a key block (TR-31 version D, usage B1) for a key injection facility that shares that key. Without it
    /// in clear, and so only on a node in sandbox mode: a real initial key never travels in clear.
    InitialKey {
        /// The base derivation key
        #[arg(long)]
        bdk: KeyName,
        /// The terminal's initial key identifier: 16 hexadecimal digits that begin with the BDK's, or its last 8
        #[arg(long, value_name = "HEX")]
        id: String,
        /// The key block protection key to wrap it with
        #[arg(long, value_name = "KBPK")]
        under: Option<KeyName>,
    },
}

/// Carries a command out. On a node in sandbox mode all keys made are sandbox keys.
///
/// # Errors
/// When there is no master key, no database, or the key is not as the command needs it.
pub async fn run(
    command: Command,
    database: &store::Options,
    sandbox: bool,
    unlock: Unlock<'_>,
    clock: &dyn Clock,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        Command::Master { file } => {
            draw_master(&file)?;
            let text = || format!("a new master key is in {}; keep a copy in a safe", file.display());
            output.print(text, &json!({ "master": file.to_string_lossy() }))
        }
        Command::Generate { name } => {
            let (custody, store) = opened(database, unlock).await?;
            let block = custody.generate(&name, sandbox)?;
            stored(&store, block, clock, output).await
        }
        Command::Import { name, check, tr31: Some(block), under: Some(under), .. } => {
            let (custody, store) = opened(database, unlock).await?;
            let block = custody.import_block(&name, &block, &under, sandbox)?;
            ensure!(
                same(&check, &block.check_value),
                "the key's check value is {}, not {check}; nothing was stored",
                block.check_value
            );
            stored(&store, block, clock, output).await
        }
        Command::Import { name, components, check, .. } => {
            ensure!(components >= 2 || sandbox, "one person would know the key: at least two components, please");
            // Before anybody types.
            let (custody, store) = opened(database, unlock).await?;
            let key = asked_for(&name, components, &check)?;
            let block = custody.import(&name, &key, sandbox)?;
            stored(&store, block, clock, output).await
        }
        Command::List => list(&super::store(database).await?.key_blocks().await?, output),
        Command::Check { name, hex } => {
            let blocks = super::store(database).await?.key_blocks().await?;
            let block =
                blocks.iter().find(|block| block.name == name).with_context(|| format!("there is no key {name}"))?;
            let opens = if block.sandbox == sandbox {
                unlock()?.load(std::slice::from_ref(block)).map(|()| true)?
            } else {
                false
            };
            let right = hex.as_ref().is_none_or(|hex| same(hex, &block.check_value));
            ensure!(right, "the check value of {name} is {}, not what was given", block.check_value);
            let note = if opens { "opens" } else { "is of the other mode (sandbox or real) and was not opened" };
            let value = json!({ "name": name.to_string(), "check_value": block.check_value, "opens": opens });
            output.print(|| format!("{name} {}: {note}", block.check_value), &value)
        }
        Command::InitialKey { bdk, id, under } => {
            let id = identifier(&bdk, &id)?;
            let (custody, _) = opened(database, unlock).await?;
            match under {
                Some(under) => {
                    let block = custody.initial_key_block(&id, &under)?;
                    let value =
                        json!({ "initial_key_id": hex::encode_upper(id), "tr31": block, "under": under.to_string() });
                    output.print(|| block.clone(), &value)
                }
                None => injection(&id, &custody.initial_key(&id)?, output),
            }
        }
    }
}

/// The key store with the keys that are in it. A key under another master key than theirs would keep every node from
/// starting, so none is added before these have opened.
async fn opened(database: &store::Options, unlock: Unlock<'_>) -> anyhow::Result<(Box<dyn Custody>, Store)> {
    let (custody, store) = (unlock()?, super::store(database).await?);
    custody.load(&store.key_blocks().await?)?;
    Ok((custody, store))
}

async fn stored(store: &Store, block: crate::ports::KeyBlock, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let (name, check_value) = (block.name.clone(), block.check_value.clone());
    let mode = if block.sandbox { ", sandbox" } else { "" };
    if !store.add_key_block(block, clock.now()).await? {
        bail!("there is a key {name} already, and what hangs on it would be lost; nothing was changed");
    }
    let text = || format!("{name} is stored, check value {check_value}{mode}; running nodes read it when they start");
    output.print(text, &json!({ "name": name.to_string(), "usage": name.usage(), "check_value": check_value }))
}

fn list(blocks: &[crate::ports::KeyBlock], output: Output) -> anyhow::Result<()> {
    let values: Vec<_> = blocks
        .iter()
        .map(|block| {
            json!({
                "name": block.name.to_string(), "usage": block.name.usage(),
                "check_value": block.check_value, "sandbox": block.sandbox,
            })
        })
        .collect();
    let text = || {
        let mode = |sandbox| if sandbox { "sandbox" } else { "" };
        let rows = blocks.iter().map(|block| {
            [
                block.name.to_string(),
                block.name.usage().to_owned(),
                purpose(&block.name).to_owned(),
                block.check_value.clone(),
                mode(block.sandbox).to_owned(),
            ]
        });
        format!("{}\n{} keys", table(["key", "usage", "for", "check value", ""], rows), blocks.len())
    };
    output.print(text, &values)
}

fn purpose(name: &KeyName) -> &'static str {
    match name {
        KeyName::BaseDerivation(_) => "terminals' keys (DUKPT)",
        KeyName::PinVerification(_) => "PVVs of cards",
        KeyName::Zone(_) => "PINs for a core",
        KeyName::Protection(_) => "keys on their way (TR-31)",
        KeyName::CardToken => "tokens of card numbers",
        KeyName::CardSeal => "sealed card numbers",
    }
}

/// Looked at before the custodians type their components in vain.
fn check_value(text: &str) -> Result<String, String> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    let six = digits.len() == 6 && digits.iter().all(char::is_ascii_hexdigit);
    if six { Ok(text.to_owned()) } else { Err("a check value has six hexadecimal digits".to_owned()) }
}

/// Whether two check values are the same, spaces and case aside.
fn same(written: &str, computed: &str) -> bool {
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_uppercase();
    bare(written) == bare(computed)
}

fn identifier(bdk: &KeyName, id: &str) -> anyhow::Result<[u8; 8]> {
    let KeyName::BaseDerivation(base) = bdk else { bail!("{bdk} is no base derivation key; those are bdk-12345678") };
    let given = hex::decode(id).context("the identifier is hexadecimal")?;
    let whole = if given.len() == 4 { [&base[..], &given].concat() } else { given };
    let whole: [u8; 8] = whole.try_into().map_err(|_| anyhow::anyhow!("an identifier has 16 hexadecimal digits"))?;
    ensure!(whole.starts_with(base), "the identifier does not begin with that of {bdk}");
    Ok(whole)
}

fn injection(id: &[u8; 8], key: &KeyBytes, output: Output) -> anyhow::Result<()> {
    let clear: [u8; 16] = key.0.as_slice().try_into().context("an initial key has 16 bytes")?;
    let (id, key) = (hex::encode_upper(id), AesKey::new(clear));
    let check_value = key.check_value();
    let shown = Zeroizing::new(hex::encode_upper(key.expose()));
    let value = json!({
        "initial_key_id": id, "initial_key": *shown, "check_value": check_value.to_string(), "first_ksn": format!("{id}00000001"),
    });
    let text = || {
        let rows = [
            ["initial key identifier".to_owned(), id.clone()],
            ["initial key".to_owned(), shown.to_string()],
            ["check value (CMAC)".to_owned(), check_value.to_string()],
            ["first KSN".to_owned(), format!("{id}00000001")],
        ];
        format!("{}\nA sandbox key: it protects nothing.", table(["inject", ""], rows))
    };
    output.print(text, &value)
}

fn draw_master(path: &Path) -> anyhow::Result<()> {
    let mut key = Zeroizing::new([0_u8; 32]);
    getrandom::fill(&mut *key).context("no random bytes")?;
    let line = Zeroizing::new(format!("{}\n", hex::encode_upper(*key)));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("{} is not written", path.display()))?;
    file.write_all(line.as_bytes()).and_then(|()| file.sync_all()).with_context(|| path.display().to_string())
}

/// Asks the custodians one after the other.
fn asked_for(name: &KeyName, components: u8, check: &str) -> anyhow::Result<KeyBytes> {
    ensure!(
        !matches!(name, KeyName::CardToken | KeyName::CardSeal),
        "{name} is nobody else's key: wakala keys generate {name}"
    );
    let stdin = std::io::stdin();
    let _silent = stdin.is_terminal().then(Silence::begin);
    let mut parts = Vec::new();
    for number in 1..=components {
        say(&format!("component {number} of {components}: "))?;
        let mut line = Zeroizing::new(String::new());
        stdin.lock().read_line(&mut line).context("standard input")?;
        let part = component(&line).with_context(|| format!("component {number}"))?;
        say(&format!("check value {}\n", shown(name, &part)))?;
        parts.push(part);
    }
    let key = combined(parts.iter().map(|part| &**part));
    let values = check_values(name, &key);
    if !values.iter().any(|value| value.is(check)) {
        bail!("the key's check value is {}, not {check}; nothing was stored", shown(name, &key));
    }
    Ok(KeyBytes(Zeroizing::new(key.to_vec())))
}

fn component(line: &str) -> anyhow::Result<Zeroizing<[u8; 16]>> {
    let digits = Zeroizing::new(line.chars().filter(|c| !c.is_whitespace()).collect::<String>());
    let mut part = Zeroizing::new([0; 16]);
    // Its own error would quote what was typed.
    hex::decode_to_slice(digits.as_bytes(), &mut *part).map_err(|_| anyhow::anyhow!("not 32 hexadecimal digits"))?;
    Ok(part)
}

fn check_values(name: &KeyName, key: &[u8; 16]) -> Vec<CheckValue> {
    match name {
        KeyName::PinVerification(_) => vec![TdesKey::new(*key).check_value()],
        _ => {
            let key = AesKey::new(*key);
            vec![key.check_value(), key.legacy_check_value()]
        }
    }
}

/// `FF0BD7 (by CMAC) or ED6429 (by encrypting zeros)`.
fn shown(name: &KeyName, key: &[u8; 16]) -> String {
    let texts: Vec<String> = check_values(name, key)
        .into_iter()
        .map(|value| match value.convention() {
            wakala::pin::key::Convention::Cmac => format!("{value} (by CMAC)"),
            wakala::pin::key::Convention::Ecb => format!("{value} (by encrypting zeros)"),
        })
        .collect();
    texts.join(" or ")
}

/// To the person at the terminal; standard output has the answer alone.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stderr();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.flush())?)
}

/// While it lives, what is typed is not shown.
struct Silence;

impl Silence {
    fn begin() -> Self {
        stty("-echo");
        Self
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        stty("echo");
    }
}

/// Where there is no `stty`, what is typed is shown; the custodian sees that.
fn stty(mode: &str) {
    let _ = Program::new("stty").arg(mode).stdin(Stdio::inherit()).stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn name(text: &str) -> KeyName {
        text.parse().expect("a key's name")
    }

    #[test]
    fn a_master_key_is_drawn_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("master.key");
        draw_master(&path).expect("drawn");
        let first = std::fs::read_to_string(&path).expect("text");
        assert_eq!(first.trim_end().len(), 64);
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(draw_master(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("text"), first);
    }

    #[actix_rt::test]
    async fn a_path_that_is_no_text_is_a_path() {
        use std::os::unix::ffi::OsStrExt as _;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(std::ffi::OsStr::from_bytes(b"\xFFmaster"));
        let (unlock, clock) = (|| bail!("not asked for"), crate::clock::MonotonicClock::start());
        let command = Command::Master { file: file.clone() };
        let done = run(command, &store::Options::default(), true, &unlock, &clock, Output { json: true }).await;
        assert!(done.is_ok() && file.is_file(), "{done:?}");
    }

    #[test]
    fn a_check_value_has_six_digits() {
        for (text, fits) in [("FF0BD7", true), ("ff 0b d7", true), ("", false), ("FF0BD", false), ("FF0BDZ", false)] {
            assert_eq!(check_value(text).is_ok(), fits, "{text}");
        }
        assert!(check_value(&"A".repeat(10_000)).is_err());
    }

    #[test]
    fn names_of_keys_are_read_and_written_the_same() {
        for text in ["bdk-12345678", "bdk-ABCDEF01", "pvk-1", "zpk-mwanga", "kbpk-mwanga", "card-token", "card-seal"] {
            assert_eq!(name(text).to_string(), text);
        }
        for text in
            ["", "bdk", "bdk-", "bdk-1234", "bdk-1234567g", "pvk-10", "pvk-x", "pvk-+", "zpk-", "zpk-a/b", "card-x"]
        {
            assert!(text.parse::<KeyName>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_identifier_belongs_to_its_base_key() {
        let whole = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];
        let bdk = name("bdk-12345678");
        assert_eq!(identifier(&bdk, "1234567890123456").expect("whole"), whole);
        assert_eq!(identifier(&bdk, "90123456").expect("its last half"), whole);
        for bad in ["1234567990123456", "9012", "", "x", "123456789012345600"] {
            assert!(identifier(&bdk, bad).is_err(), "{bad}");
        }
        assert!(identifier(&name("pvk-1"), "90123456").is_err());
    }

    #[test]
    fn a_component_that_is_none_is_not_repeated() {
        assert_eq!(component("0123 4567 89ab cdef FEDC BA98 7654 3210\n").expect("a component")[0], 0x01);
        for bad in ["0123456789ABCDEF", "0123456789ABCDEFFEDCBA987654321x"] {
            let error = component(bad).expect_err(bad);
            assert!(!format!("{error:?}").contains("0123"), "{error:?}");
        }
    }

    #[test]
    fn check_values_of_both_conventions_are_taken() {
        let key = *b"\xFE\xDC\xBA\x98\x76\x54\x32\x10\xF1\xF1\xF1\xF1\xF1\xF1\xF1\xF1";
        assert_eq!(shown(&name("bdk-12345678"), &key), "FF0BD7 (by CMAC) or ED6429 (by encrypting zeros)");
        assert!(check_values(&name("bdk-12345678"), &key).iter().any(|value| value.is("ed6429")));
        assert!(same("ff 0b d7", "FF0BD7") && !same("FF0BD8", "FF0BD7") && !same("", "FF0BD7"));
    }
}
