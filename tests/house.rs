//! The house, checked: which room may know which, what may not be said where, and how large a room may grow.
//! ARCHITECTURE.md explains the walls; this keeps them standing.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

const ROOMS: [&str; 6] = ["src", "actors", "migrations", "sandbox", "bench", "tests"];

/// A file's lines, comments blanked, so that a wall is not broken by speaking of it.
struct Source {
    path: PathBuf,
    lines: Vec<String>,
}

impl Source {
    fn name(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    fn under(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }

    fn says(&self, word: &str) -> Option<usize> {
        self.lines.iter().position(|line| line.contains(word)).map(|at| at + 1)
    }
}

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"))
}

fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().filter_map(|e| e.ok().map(|e| e.path())).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_under(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    for room in ROOMS {
        files_under(&root().join(room), &mut found);
    }
    let rust = found.into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| {
        let text = fs::read_to_string(&path).expect("a source file is text");
        let lines = text.lines().map(|line| line.split("//").next().unwrap_or("").to_owned()).collect();
        Source { path: path.strip_prefix(root()).expect("under the root").to_owned(), lines }
    })
    .collect()
}

/// Asserts that no file of `rooms` says any of `words`, but for the files of `except`.
fn silent(rooms: &[&str], words: &[&str], except: &[&str], why: &str) {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|s| rooms.iter().any(|room| s.under(room))) {
        if except.iter().any(|free| source.under(free)) {
            continue;
        }
        for word in words {
            if let Some(line) = source.says(word) {
                broken.push(format!("{}:{line} says `{word}`", source.name()));
            }
        }
    }
    assert!(broken.is_empty(), "{why}:\n{}", broken.join("\n"));
}

#[test]
fn the_room_that_decides_does_not_move() {
    let movement = [
        "tokio",
        "actix",
        "sea_orm",
        "sqlx",
        "rdkafka",
        "ntex::",
        "std::net",
        "std::fs",
        "std::thread",
        "std::env",
        "Instant::now",
        "SystemTime::now",
        "now_utc",
        "rand::",
        "getrandom",
        "tracing",
        "async fn",
        ".await",
        "HashMap",
        "println!",
    ];
    silent(&["src"], &movement, &[], "src/ is pure: time, chance and the world are handed in");
}

#[test]
fn only_the_broker_knows_mqtt_packets() {
    silent(
        &["src"],
        &["ntex_mqtt", "ntex_bytes"],
        &["src/session", "src/topics", "src/message.rs", "src/mqtt.rs", "src/mqtt"],
        "packets belong to the broker",
    );
}

/// A calendar that jumps moves no deadline: what is due is told by a clock that it only anchors. What others have dated, such as
/// certificates, tokens and bans, is judged by the calendar.
#[test]
fn two_files_ask_the_calendar() {
    let calendars = ["SystemTime::now", "now_utc(", "now_local(", "Utc::now", "current_timestamp"];
    silent(
        &["actors"],
        &calendars,
        &["actors/clock.rs", "actors/session/lease.rs", "actors/listener/tls/tests.rs"],
        "a calendar may jump",
    );
}

#[test]
fn pin_iso8583_and_ledger_never_meet() {
    for (room, strangers) in [
        ("src/pin", ["crate::iso8583", "crate::ledger"]),
        ("src/iso8583", ["crate::pin", "crate::ledger"]),
        ("src/ledger", ["crate::pin", "crate::iso8583"]),
    ] {
        silent(&[room], &strangers, &[], "transaction joins them; they do not know each other");
    }
}

#[test]
fn store_and_adapters_know_no_actor() {
    let actors = [
        "crate::session::",
        "crate::sessions",
        "crate::partition::",
        "crate::partitions",
        "crate::bank::",
        "crate::banks",
        "crate::receipts::",
        "crate::listener",
        "crate::node",
        "crate::admin",
        "crate::cli",
        "crate::supervision",
    ];
    silent(&["actors/store", "actors/adapters"], &actors, &[], "they are told what to do; they do not know by whom");
}

#[test]
fn adapters_are_named_in_one_file() {
    let free = ["actors/adapters", "actors/main.rs", "actors/config.rs", "actors/lib.rs", "tests"];
    silent(&["actors"], &["adapters::"], &free, "main.rs alone chooses the drivers, config.rs has their settings");
}

#[test]
fn sql_is_in_the_store() {
    let sql = ["sea_orm::", "sqlx::"];
    let free = ["actors/store", "actors/adapters/postgres_log.rs"];
    silent(&["actors"], &sql, &free, "all SQL lives in store/");
}

/// No trigger does it: one for each statement is called for every change of a session's row, also for its next place in the queue.
#[test]
fn whoever_says_who_is_connected_writes_presence() {
    let says = ["connected = true", "connected = false", "connected, connected_at"];
    let mut statements = 0;
    for source in sources().iter().filter(|source| source.under("actors")) {
        let text = source.lines.join("\n");
        for function in text.split("fn ").filter(|function| says.iter().any(|word| function.contains(word))) {
            let name = function.split('(').next().unwrap_or_default();
            assert!(function.contains("insert into wakala.presence"), "{}: {name} tells nobody", source.name());
            statements += 1;
        }
    }
    assert_eq!(statements, 5, "they are made, go on, end, end with their node, and end when a terminal has their name");
}

#[test]
fn whoever_deletes_a_message_says_what_became_of_it() {
    let mut statements = 0;
    for source in sources().iter().filter(|source| source.under("actors")) {
        let text = source.lines.join("\n");
        for function in text.split("fn ").filter(|function| function.contains("delete from wakala.message")) {
            let name = function.split('(').next().unwrap_or_default();
            let deletions = function.matches("delete from wakala.message").count();
            assert_eq!(deletions, 1, "{}: {name}", source.name());
            assert!(function.contains("insert into wakala.told_end"), "{}: {name} tells nobody", source.name());
            statements += 1;
        }
    }
    assert_eq!(statements, 7, "acknowledged, expired, over with a session or a connection, dropped for others");
}

#[test]
fn migrations_outlive_the_code() {
    silent(&["migrations"], &["wakala::", "wakala_node"], &[], "a migration must not change when the code does");
}

#[test]
fn the_server_does_not_know_the_sandbox() {
    silent(&["src", "actors"], &["wakala_sandbox"], &[], "simulated parts stay out of the server's binary");
}

#[test]
fn the_load_knows_no_broker() {
    silent(&["bench"], &["wakala::", "wakala_node"], &[], "all brokers are measured by the same stranger");
}

#[test]
fn mailboxes_are_bounded() {
    // Last words of a link to its parent, and first and last words to a session: one each in an actor's life.
    let last_words = ["actors/supervision.rs", "actors/sessions.rs"];
    silent(&["actors"], &["do_send("], &last_words, "do_send ignores the mailbox's bound (actix 0.13.5)");
}

#[test]
fn every_twin_has_its_actor() {
    for twin in ["session", "partition", "bank"] {
        let decides = [format!("src/{twin}.rs"), format!("src/{twin}/mod.rs")];
        let acts = [format!("actors/{twin}.rs"), format!("actors/{twin}/mod.rs")];
        for places in [decides, acts] {
            assert!(places.iter().any(|place| root().join(place).exists()), "neither of {places:?} exists");
        }
    }
}

#[test]
fn rooms_are_not_crowded() {
    let crowded: Vec<String> = sources()
        .iter()
        .filter(|source| source.lines.len() > 600)
        .map(|source| format!("{} has {} lines", source.name(), source.lines.len()))
        .collect();
    assert!(crowded.is_empty(), "move walls first, then add:\n{}", crowded.join("\n"));
}

#[test]
fn names_name_something() {
    let nothing = ["util", "utils", "helper", "helpers", "common", "misc", "manager", "service", "handler2"];
    let empty: Vec<String> = sources()
        .iter()
        .map(Source::name)
        .filter(|name| {
            let words = |part: &str| part.split(['_', '.']).any(|word| nothing.contains(&word));
            name.split('/').any(words)
        })
        .collect();
    assert!(empty.is_empty(), "these names name nothing: {empty:?}");
}

#[test]
fn nothing_is_left_for_later() {
    let left = ["todo!", "unimplemented!", concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), "#[ignore"];
    let mut found = Vec::new();
    for room in ROOMS {
        let mut files = Vec::new();
        files_under(&root().join(room), &mut files);
        for path in files.iter().filter(|path| !path.ends_with("house.rs")) {
            let text = fs::read_to_string(path).unwrap_or_default();
            found.extend(
                left.iter().filter(|word| text.contains(**word)).map(|word| format!("{}: {word}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn panics_unwind() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the manifest");
    assert_eq!(manifest.matches("panic = \"unwind\"").count(), 2, "supervision hears of a death by a Drop on unwind");
    assert!(!manifest.contains("panic = \"abort\""));
}

/// ARCHITECTURE.md leads from a PUBLISH to the receipt. Each step names a file and something in it.
#[test]
fn the_way_from_publish_to_receipt_exists() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let way = text.split("## From a PUBLISH to the receipt").nth(1).expect("the section");
    let way = way.split("\n## ").next().expect("its end");
    let mut steps = 0;
    for line in way.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())) {
        let mut quoted = line.split('`').skip(1).step_by(2);
        let file = quoted.next().unwrap_or_else(|| panic!("no file in: {line}"));
        let source = fs::read_to_string(root().join(file)).unwrap_or_else(|_| panic!("{file} does not exist: {line}"));
        for name in quoted.filter(|word| word.chars().all(|c| c.is_alphanumeric() || c == '_')) {
            assert!(source.contains(name), "{file} does not say {name}: {line}");
        }
        steps += 1;
    }
    assert!(steps >= 8, "the way has {steps} steps only");
}
