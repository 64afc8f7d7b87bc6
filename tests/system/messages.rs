//! `src/iso8583` against pyiso8583: thousands of random messages, drawn anew by every run of the pipeline that sets a seed.

use std::process::Command;

use wakala_system_tests::script;

#[path = "../messages/check.rs"]
mod check;

const CASES: usize = 3000;

/// `WAKALA_SEED` draws others; the seed is in the message when they differ.
#[test]
fn what_pyiso8583_writes_we_write_and_what_it_refuses_we_refuse() {
    let seed = std::env::var("WAKALA_SEED").unwrap_or_else(|_| "20261121".to_owned());
    let root = script("..").canonicalize().expect("the repository");
    let python = root.join("var/venv/bin/python");
    assert!(python.exists(), "{} is made by scripts/test", python.display());
    let drawn = Command::new(python)
        .arg(root.join("tests/foreign/iso8583_cases.py"))
        .args(["--seed", &seed, "--count", &CASES.to_string()])
        .output()
        .expect("Python can be run");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    println!("seed {seed}");
    let counts = check::all(&String::from_utf8(drawn.stdout).expect("text"));
    assert!(counts.whole == 2000 && counts.refused >= 500, "{counts:?}");
}
