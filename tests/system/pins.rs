//! `src/pin` against Python: thousands of random cases, drawn anew by every run of the pipeline that sets a seed.

use std::process::Command;

use wakala_system_tests::script;

#[path = "../pins/check.rs"]
mod check;

const CASES: usize = 3000;

/// `WAKALA_SEED` draws others; the seed is in the message when they differ.
#[test]
fn what_python_computes_is_what_we_compute() {
    let seed = std::env::var("WAKALA_SEED").unwrap_or_else(|_| "20261121".to_owned());
    let root = script("..").canonicalize().expect("the repository");
    let python = root.join("var/venv/bin/python");
    assert!(python.exists(), "{} is made by scripts/test", python.display());
    let drawn = Command::new(python)
        .arg(root.join("tests/foreign/pin_cases.py"))
        .args(["--seed", &seed, "--count", &CASES.to_string()])
        .output()
        .expect("Python can be run");
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    println!("seed {seed}");
    assert_eq!(check::all(&String::from_utf8(drawn.stdout).expect("text")), CASES);
}

/// The oracle is right where the standard says what is right.
#[test]
fn the_oracle_knows_the_standards_vectors() {
    let root = script("..").canonicalize().expect("the repository");
    let tested = Command::new(root.join("var/venv/bin/python"))
        .arg(root.join("tests/foreign/dukpt.py"))
        .arg("self-test")
        .output()
        .expect("Python can be run");
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stderr));
    assert!(String::from_utf8_lossy(&tested.stdout).contains("passed"));
}
