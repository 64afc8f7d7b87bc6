//! What users of other brokers suffer from: docs/pains.md has a row for each pain, and each row has tests that would have
//! caught it, named after it. And pain 17, which no running node shows.

#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PAINS: usize = 17;

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"))
}

/// The tests of a file that are named after a pain. A function is one in Rust if an attribute above it says so, and in Python by its name alone.
fn tests_in(text: &str, python: bool) -> Vec<String> {
    let (mut found, mut above) = (Vec::new(), Vec::new());
    for line in text.lines().map(str::trim_end) {
        let bare = line.trim_start();
        let function = if python {
            line.strip_prefix("def test_")
        } else {
            let says = |what: &str| above.iter().any(|attribute: &&str| attribute.starts_with(what));
            let is_test = says("#[test]") || says("#[tokio::test");
            bare.trim_start_matches("async ").strip_prefix("fn ").filter(|_| is_test)
        };
        let name = function.and_then(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next());
        found.extend(name.filter(|name| name.starts_with("pain_")).map(str::to_owned));
        if bare.starts_with("#[") {
            above.push(bare);
        } else {
            above.clear();
        }
    }
    found
}

/// Every test below a folder that is named after a pain.
fn tests_below(folder: &Path, found: &mut BTreeSet<String>) {
    for path in fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path())) {
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "py") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            found.extend(tests_in(&text, path.extension().is_some_and(|end| end == "py")));
        }
    }
}

#[test]
fn every_pain_has_a_test_that_would_have_caught_it() {
    let mut there = BTreeSet::new();
    for room in ["src", "actors", "sandbox", "tests"] {
        tests_below(&root().join(room), &mut there);
    }
    let text = fs::read_to_string(root().join("docs/pains.md")).expect("docs/pains.md");
    let rows: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| ") && line[2..].starts_with(char::is_numeric)).collect();
    assert_eq!(rows.len(), PAINS, "a row for each");
    let mut named = BTreeSet::new();
    for (number, row) in (1..).zip(&rows) {
        let prefix = format!("pain_{number:02}_");
        let own: BTreeSet<_> = row.split('`').skip(1).step_by(2).filter(|name| name.starts_with(&prefix)).collect();
        assert!(!own.is_empty(), "a test is named after it: {row}");
        named.extend(own.into_iter().map(str::to_owned));
    }
    let gone: Vec<_> = named.difference(&there).collect();
    assert!(gone.is_empty(), "docs/pains.md names tests that do not exist: {gone:?}");
    let unnamed: Vec<_> = there.difference(&named).collect();
    assert!(unnamed.is_empty(), "docs/pains.md does not name {unnamed:?}");
}

#[test]
fn a_function_that_nobody_runs_is_no_test() {
    let rust = "#[test]\nfn pain_1() {}\n  #[tokio::test(flavor = \"multi_thread\")]\n  #[cfg(unix)]\n  async fn pain_2() {}\n\
                fn pain_3() {}\n#[test]\n\nfn pain_4() {}\n#[test]\nfn other() {}\nfn pain_5() {}\n// fn pain_6() {}\n";
    assert_eq!(tests_in(rust, false), ["pain_1", "pain_2"]);
    let python = "def test_pain_1(broker):\ndef pain_2():\n    def test_pain_3():\n# def test_pain_4():\n";
    assert_eq!(tests_in(python, true), ["pain_1"]);
}

/// Whether an SPDX expression allows us to use it on the terms of the list: each AND, and one of each OR.
fn allowed(expression: &str, list: &BTreeSet<String>) -> bool {
    let mut tokens: Vec<String> = Vec::new();
    // Old manifests write `/` for OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    for word in spaced.split_whitespace() {
        let joins = word == "WITH" || tokens.last().is_some_and(|last| last.ends_with(" WITH"));
        match tokens.last_mut().filter(|_| joins) {
            Some(last) => *last = format!("{last} {word}"),
            None => tokens.push(word.to_owned()),
        }
    }
    let mut rest = tokens.as_slice();
    let all = any_of(&mut rest, list);
    all && rest.is_empty()
}

fn any_of(rest: &mut &[String], list: &BTreeSet<String>) -> bool {
    let mut any = all_of(rest, list);
    while let Some((_, after)) = rest.split_first().filter(|(first, _)| *first == "OR") {
        *rest = after;
        any |= all_of(rest, list);
    }
    any
}

fn all_of(rest: &mut &[String], list: &BTreeSet<String>) -> bool {
    let mut all = one(rest, list);
    while let Some((_, after)) = rest.split_first().filter(|(first, _)| *first == "AND") {
        *rest = after;
        all &= one(rest, list);
    }
    all
}

fn one(rest: &mut &[String], list: &BTreeSet<String>) -> bool {
    let Some((first, after)) = rest.split_first() else { return false };
    *rest = after;
    if first != "(" {
        return list.contains(first);
    }
    let inner = any_of(rest, list);
    *rest = rest.get(1..).unwrap_or_default();
    inner
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    let list = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned));
    for yes in [
        "MIT",
        "MIT OR GPL-3.0",
        "GPL-3.0/MIT",
        "MIT AND ISC",
        "(MIT OR X) AND ISC",
        "X OR Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(allowed(yes, &list), "{yes}");
    }
    for no in ["", "BUSL-1.1", "MIT AND X", "(MIT OR ISC) AND X", "Apache-2.0", "Apache-2.0 WITH other", "MIT ISC"] {
        assert!(!allowed(no, &list), "{no}");
    }
}

/// EMQX 5.9: BSL 1.1, a cluster needs a licence; VerneMQ: its packages need a subscription. `cargo deny` in `scripts/test
/// lint` looks at the licences' texts too; this needs nothing but cargo.
#[test]
fn pain_17_we_and_all_that_we_lean_on_are_free_to_use() {
    let licence = fs::read_to_string(root().join("LICENSE")).expect("our own licence");
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
    let deny = fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let list: BTreeSet<String> = deny
        .split("allow = [")
        .nth(1)
        .and_then(|rest| rest.split(']').next())
        .expect("the licences that are allowed")
        .lines()
        .filter_map(|line| line.split('"').nth(1).map(str::to_owned))
        .collect();
    assert!(list.contains("MIT") && !list.iter().any(|name| name.contains("GPL") || name.contains("BUSL")), "{list:?}");
    let metadata = Command::new(std::env::var_os("CARGO").expect("cargo runs the tests"))
        .args([
            "metadata",
            "--offline",
            "--locked",
            "--format-version",
            "1",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(root())
        .output()
        .expect("cargo");
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let bad: Vec<String> = packages
        .iter()
        .filter(|package| !allowed(package["license"].as_str().unwrap_or_default(), &list))
        .map(|package| format!("{} {}: {}", package["name"], package["version"], package["license"]))
        .collect();
    assert!(bad.is_empty(), "on terms that are not allowed:\n{}", bad.join("\n"));
    let ours = packages.iter().filter(|package| package["source"].is_null());
    assert!(packages.len() > 100 && ours.clone().count() >= 5, "{} packages", packages.len());
    for package in ours {
        assert_eq!(package["license"], "Apache-2.0", "{}", package["name"]);
    }
}
