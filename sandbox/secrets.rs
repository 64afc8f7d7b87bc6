//! What a run must have left nowhere: its account numbers, PINs, PIN blocks and keys, each in every form in which a
//! program might let it slip, and the search for them in all that was written.
//!
//! The forms: digits as ASCII; as values 0 to 9, as they lie in memory; packed two to a byte (BCD), also shifted by half a
//! byte, as in the PAN field of ISO 9564-1 format 4; and bytes as they are and as hexadecimal. Packed digits as hexadecimal
//! are digits again, and base 64 is not looked for. What is found is reported by its place and its kind, never itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use aho_corasick::AhoCorasick;
use anyhow::{Context as _, bail, ensure};
use prost::Message as _;
use serde::Serialize;
use wakala::pin::dukpt::initial_key;
use wakala::wire;

use crate::cards::Village;
use crate::terminal::Terminal;

/// What kind of secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// An account number, as digits.
    Pan,
    /// As digits; long enough that none is met by chance.
    Pin,
    /// As a terminal sent it.
    PinBlock,
    Key,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Pan, Self::Pin, Self::PinBlock, Self::Key];

    const fn name(self) -> &'static str {
        match self {
            Self::Pan => "pan",
            Self::Pin => "pin",
            Self::PinBlock => "pin-block",
            Self::Key => "key",
        }
    }

    const fn is_digits(self) -> bool {
        matches!(self, Self::Pan | Self::Pin)
    }
}

/// Shorter ones would be met by chance.
const DIGITS_MIN: usize = 12;
const BYTES_MIN: usize = 16;
/// A form of five bytes is met by chance: one of 120 was, in the compressed pages of a write-ahead log of 40 MB. So twelve
/// digits are looked for packed, and not shifted.
const FORM_BYTES_MIN: usize = 6;
/// How much of a file is read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// The secrets of a run; digits as ASCII.
#[derive(Default)]
pub struct Secrets(BTreeSet<(Kind, Vec<u8>)>);

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} secrets", self.0.len())
    }
}

/// A form of a secret, as bytes to look for.
struct Pattern {
    kind: Kind,
    form: &'static str,
    bytes: Vec<u8>,
}

impl Secrets {
    /// # Errors
    /// When the value is so short that it would be found by chance.
    pub fn add(&mut self, kind: Kind, value: &[u8]) -> anyhow::Result<()> {
        let least = if kind.is_digits() { DIGITS_MIN } else { BYTES_MIN };
        ensure!(value.len() >= least, "a {} of fewer than {least} would be found by chance", kind.name());
        self.0.insert((kind, value.to_vec()));
        Ok(())
    }

    /// Everything that is secret in a village, and what its terminals have sent.
    ///
    /// # Errors
    /// When the master key cannot be read.
    pub fn of(village: &Village, terminals: &[&Terminal], master: &Path) -> anyhow::Result<Self> {
        let mut secrets = Self::default();
        let text = std::fs::read_to_string(master).with_context(|| master.display().to_string())?;
        secrets.add(Kind::Key, &hex::decode(text.trim())?)?;
        for key in [village.bdk().expose().as_slice(), village.pvk().expose(), village.token_key(), village.seal_key()]
        {
            secrets.add(Kind::Key, key)?;
        }
        for enrolled in &village.terminals {
            secrets.add(Kind::Key, initial_key(&village.bdk(), &enrolled.key_id).expose())?;
        }
        for card in village.cards() {
            secrets.add(Kind::Pan, card.account().as_bytes())?;
            for right in [true, false] {
                secrets.add(Kind::Pin, card.pin_text(right).as_bytes())?;
            }
        }
        for terminal in terminals {
            for sent in &terminal.flash.lock().requests {
                let block = pin_block(&sent.bytes);
                if !block.is_empty() {
                    secrets.add(Kind::PinBlock, &block)?;
                }
            }
        }
        Ok(secrets)
    }

    /// Writes them where only their owner may read: a line each, the kind and the value.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> anyhow::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let path = folder.join(name);
        let mut text = String::new();
        for (kind, value) in &self.0 {
            let value = if kind.is_digits() { String::from_utf8_lossy(value).into_owned() } else { hex::encode(value) };
            text.push_str(&format!("{} {value}\n", kind.name()));
        }
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes()).with_context(|| path.display().to_string())
    }

    /// What runs have written, of all files of the folder that end in `.txt`.
    ///
    /// # Errors
    /// When a line is none, or there is nothing to look for.
    pub fn read(folder: &Path) -> anyhow::Result<Self> {
        let mut secrets = Self::default();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "txt") {
                continue;
            }
            for (number, line) in std::fs::read_to_string(&path)?.lines().enumerate() {
                let place = || format!("{}:{}", path.display(), number + 1);
                secrets.add_line(line).with_context(place)?;
            }
        }
        for kind in Kind::ALL {
            let any = secrets.0.iter().any(|(other, _)| *other == kind);
            ensure!(any, "{}: no {} to look for: did a run write its secrets?", folder.display(), kind.name());
        }
        Ok(secrets)
    }

    fn add_line(&mut self, line: &str) -> anyhow::Result<()> {
        let (name, value) = line.split_once(' ').context("a line is a kind and a value")?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name).context("no such kind")?;
        if kind.is_digits() {
            ensure!(value.bytes().all(|byte| byte.is_ascii_digit()), "not digits");
            self.add(kind, value.as_bytes())
        } else {
            // Its own error would quote the value.
            self.add(kind, &hex::decode(value).map_err(|_| anyhow::anyhow!("not hexadecimal"))?)
        }
    }

    fn patterns(&self) -> Vec<Pattern> {
        let forms = |(kind, value): &(Kind, Vec<u8>)| {
            let kind = *kind;
            let forms = if kind.is_digits() { digits(value) } else { bytes(value) };
            forms.into_iter().map(move |(form, bytes)| Pattern { kind, form, bytes })
        };
        self.0.iter().flat_map(forms).collect()
    }
}

/// The PIN block of a request; empty where there is none.
fn pin_block(payload: &[u8]) -> Vec<u8> {
    let envelope = wire::Envelope::decode(payload).unwrap_or_default();
    let request = wire::Request::decode(&envelope.body[..]).unwrap_or_default();
    request.card.map(|card| card.pin_block).filter(|block| block.len() == BYTES_MIN).unwrap_or_default()
}

fn digits(ascii: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let values: Vec<u8> = ascii.iter().map(|byte| byte.wrapping_sub(b'0')).collect();
    // Whole pairs: what stands before or behind them depends on the padding.
    let packed = |from: usize| values[from..].chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let mut forms = vec![
        ("ASCII", ascii.to_vec()),
        ("ASCII in hexadecimal", hex::encode(ascii).into_bytes()),
        ("packed BCD", packed(0)),
        ("packed BCD, shifted", packed(1)),
        ("values", values.clone()),
    ];
    forms.retain(|(_, form)| form.len() >= FORM_BYTES_MIN);
    forms
}

fn bytes(raw: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let (lower, upper) = (hex::encode(raw).into_bytes(), hex::encode_upper(raw).into_bytes());
    vec![("bytes", raw.to_vec()), ("hexadecimal", lower), ("hexadecimal, capitals", upper)]
}

/// What a search saw.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub files: u64,
    pub bytes: u64,
    pub secrets: usize,
    pub patterns: usize,
    pub hits: u64,
    pub seconds: f64,
}

/// One search: the automaton, and what it has seen.
pub struct Search {
    patterns: Vec<Pattern>,
    automaton: AhoCorasick,
    overlap: usize,
    skipped: Vec<PathBuf>,
    began: Instant,
    report: Report,
    /// Under the path that was asked for: which patterns were seen.
    seen: BTreeMap<PathBuf, BTreeSet<usize>>,
}

impl std::fmt::Debug for Search {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Search for {} patterns", self.patterns.len())
    }
}

impl Search {
    /// # Errors
    /// When there are more patterns than an automaton holds.
    pub fn new(secrets: &Secrets, skipped: &[PathBuf]) -> anyhow::Result<Self> {
        let patterns = secrets.patterns();
        let automaton = AhoCorasick::new(patterns.iter().map(|pattern| &pattern.bytes))?;
        let overlap = patterns.iter().map(|pattern| pattern.bytes.len()).max().unwrap_or(1) - 1;
        let report = Report { secrets: secrets.0.len(), patterns: patterns.len(), ..Report::default() };
        let skipped = skipped.iter().filter_map(|path| path.canonicalize().ok()).collect();
        Ok(Self { patterns, automaton, overlap, skipped, began: Instant::now(), report, seen: BTreeMap::new() })
    }

    /// Searches a file, or all files under a folder, and tells of each hit: file, offset, kind and form.
    ///
    /// # Errors
    /// When a file cannot be read: what was not searched is not free of secrets.
    pub fn path(&mut self, root: &Path, told: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        self.seen.entry(root.to_owned()).or_default();
        let mut open = vec![root.canonicalize().with_context(|| root.display().to_string())?];
        while let Some(path) = open.pop() {
            let about = || path.display().to_string();
            if self.skipped.contains(&path) {
                continue;
            }
            // A server that runs renames and removes files.
            let Ok(kind) = std::fs::symlink_metadata(&path).map(|metadata| metadata.file_type()) else { continue };
            if kind.is_dir() {
                for entry in std::fs::read_dir(&path).with_context(about)? {
                    open.push(entry?.path());
                }
            } else if kind.is_file() {
                match File::open(&path) {
                    Ok(file) => self.file(root, &path, file, told).with_context(about)?,
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => bail!("{}: {error}", path.display()),
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, root: &Path, path: &Path, mut file: File, told: &mut dyn FnMut(&str)) -> std::io::Result<()> {
        self.report.files += 1;
        let mut buffer = vec![0; self.overlap + CHUNK_BYTES];
        // What is at the buffer's begin: the last bytes of the chunk before, and where they are in the file.
        let (mut kept, mut base) = (0, 0);
        loop {
            let read = file.read(&mut buffer[kept..])?;
            if read == 0 {
                return Ok(());
            }
            self.report.bytes += read as u64;
            let filled = kept + read;
            for found in self.automaton.find_overlapping_iter(&buffer[..filled]) {
                // One that ends among the bytes that were kept was told already.
                if found.end() <= kept {
                    continue;
                }
                let at = found.pattern().as_usize();
                self.report.hits += 1;
                if let Some(seen) = self.seen.get_mut(root) {
                    seen.insert(at);
                }
                let Pattern { kind, form, .. } = &self.patterns[at];
                told(&format!("{}: offset {}: a {}, as {form}", path.display(), base + found.start(), kind.name()));
            }
            let keep = self.overlap.min(filled);
            buffer.copy_within(filled - keep..filled, 0);
            (kept, base) = (keep, base + filled - keep);
        }
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&mut self) -> &Report {
        self.report.seconds = self.began.elapsed().as_secs_f64();
        &self.report
    }

    /// Where a planted secret was not found: each path must have shown every form, a text (`.sql`) every form that is
    /// text.
    #[must_use]
    pub fn missed(&self) -> Vec<String> {
        let mut missed = Vec::new();
        for (root, seen) in &self.seen {
            let text = root.extension().is_some_and(|extension| extension == "sql");
            for (at, pattern) in self.patterns.iter().enumerate() {
                let asked = !text || pattern.bytes.iter().all(u8::is_ascii_graphic);
                if asked && !seen.contains(&at) {
                    missed.push(format!("{}: a planted {} as {}", root.display(), pattern.kind.name(), pattern.form));
                }
            }
        }
        missed
    }
}

/// One secret of each kind that nobody has, for planting.
#[must_use]
pub fn planted() -> Secrets {
    use rand::Rng as _;
    let mut random = rand::rng();
    let mut digits = |count| (0..count).map(|_| b'0' + random.random_range(0..10)).collect::<Vec<u8>>();
    let mut secrets = Secrets::default();
    secrets.0.insert((Kind::Pan, digits(16)));
    secrets.0.insert((Kind::Pin, digits(12)));
    for kind in [Kind::PinBlock, Kind::Key] {
        secrets.0.insert((kind, random.random::<[u8; 16]>().to_vec()));
    }
    secrets
}

impl Secrets {
    /// Every form of every one, as it is looked for.
    #[must_use]
    pub fn forms(&self) -> Vec<Vec<u8>> {
        self.patterns().into_iter().map(|pattern| pattern.bytes).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(secrets: &Secrets, content: &[u8]) -> (Vec<String>, u64) {
        let folder = std::env::temp_dir().join(format!("wakala-secrets-{}", rand::random::<u64>()));
        std::fs::create_dir_all(folder.join("inner")).expect("a folder");
        std::fs::write(folder.join("inner/file"), content).expect("written");
        let mut search = Search::new(secrets, &[]).expect("an automaton");
        let mut told = Vec::new();
        search.path(&folder, &mut |line| told.push(line.to_owned())).expect("searched");
        let hits = search.report().hits;
        std::fs::remove_dir_all(folder).expect("removed");
        (told, hits)
    }

    #[test]
    fn every_form_is_found_wherever_it_is() {
        let secrets = planted();
        for form in secrets.forms() {
            for at in [0, 1, CHUNK_BYTES - form.len() / 2, CHUNK_BYTES, 2 * CHUNK_BYTES + secrets.0.len() + 7] {
                let mut content = vec![0xEE; at];
                content.extend_from_slice(&form);
                content.extend_from_slice(&[0xEE; 50]);
                let (told, _) = search(&secrets, &content);
                assert_eq!(
                    told.iter().filter(|line| line.contains(&format!("offset {at}:"))).count(),
                    1,
                    "{at}: {told:?}"
                );
            }
        }
    }

    #[test]
    fn the_pan_field_of_format_4_and_padding_are_seen_through() {
        let mut secrets = Secrets::default();
        secrets.add(Kind::Pan, b"4111111111111111").expect("long enough");
        for (field, form) in [
            ("44111111111111111000000000000000", "shifted"),
            ("4111111111111111ffff301200000000", "packed BCD"),
            ("34313131313131313131313131313131", "ASCII"),
        ] {
            let (told, _) = search(&secrets, &hex::decode(field).expect("hex"));
            assert!(told.iter().any(|line| line.contains(form)), "{field}: {told:?}");
            assert!(!search(&secrets, field.as_bytes()).0.is_empty(), "{field} as text");
        }
        assert_eq!(search(&secrets, b"411111******1111").1, 0);
    }

    #[test]
    fn what_is_told_is_no_secret() {
        let secrets = planted();
        for form in secrets.forms() {
            let (told, _) = search(&secrets, &form);
            assert!(!told.is_empty() && search(&secrets, told.concat().as_bytes()).1 == 0);
        }
    }

    #[test]
    fn a_planted_secret_that_is_not_found_is_missed() {
        let secrets = planted();
        let mut forms = secrets.forms();
        let folder = std::env::temp_dir().join(format!("wakala-planted-{}", rand::random::<u64>()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("file");
        let missed = |content: &[Vec<u8>]| {
            std::fs::write(&file, content.concat()).expect("written");
            let mut search = Search::new(&secrets, &[]).expect("an automaton");
            search.path(&folder, &mut |_| ()).expect("searched");
            search.missed().len()
        };
        assert_eq!(missed(&forms), 0);
        let all = forms.len();
        assert_eq!(missed(&[]), all);
        forms.pop();
        assert_eq!(missed(&forms), 1);
        std::fs::remove_dir_all(&folder).expect("removed");
    }

    #[test]
    fn what_is_short_or_no_secret_is_refused() {
        let mut secrets = Secrets::default();
        for line in ["pin 1234", "key 00", "pan 41111111111x", "cvv 123456789012", "pan", "key zz"] {
            let error = secrets.add_line(line).expect_err(line);
            assert!(!format!("{error:?}").contains("1111"));
        }
        secrets.add_line("pin-block 00112233445566778899aabbccddeeff").expect("a block");
        assert_eq!(secrets.forms().len(), 3);
    }
}
