//! Clients that others wrote: Eclipse Paho for Python, and mosquitto's.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::process::Command;
use wakala_system_tests::Database;

use super::certificates::Papers;
use super::{Broker, PASSWORD, enrol, queue_receipt, until, waiting};

fn repository(path: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests")).join("../..").join(path)
}

/// Runs the Paho terminal; what it printed.
async fn paho(version: &str, at: SocketAddr, name: &str, proof: [&str; 4], receipts: u8, requests: &[&str]) -> String {
    let run = Command::new(repository("var/venv/bin/python"))
        .arg(repository("tests/foreign/mqtt_terminal.py"))
        .args([version, "127.0.0.1", &at.port().to_string(), name])
        .args(proof)
        .arg(receipts.to_string())
        .args(requests)
        .output()
        .await
        .expect("scripts/test prepares Python");
    let (said, wrong) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}{wrong}");
    said.into_owned()
}

#[tokio::test]
async fn paho_withdraws_its_receipts_in_both_versions_plain_and_over_tls() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(false))).await;
    enrol(&broker.store, "T1", None).await;
    enrol(&broker.store, "T2", Some(papers.terminal.sha256)).await;
    let (plain, tls) = (broker.plain(), broker.listening.tls.expect("an address"));
    let (ca, certificate, key) = (papers.path("ca.pem"), papers.path("terminal.pem"), papers.path("terminal.key"));
    let by_password = [PASSWORD, "-", "-", "-"];
    let by_password_tls = [PASSWORD, &ca, "-", "-"];
    let by_certificate = ["-", &ca, &certificate, &key];
    let mut rounds = 0;
    for (at, name, proof) in [(plain, "T1", by_password), (tls, "T1", by_password_tls), (tls, "T2", by_certificate)] {
        for version in ["4", "5"] {
            for n in 0..3 {
                queue_receipt(&database, name, &format!("r{n}"));
            }
            let said = paho(version, at, name, proof, 3, &["ask 1", "ask 2"]).await;
            let receipts: Vec<&str> = said.lines().filter(|line| line.starts_with("receipt")).collect();
            let wanted: Vec<String> = (0..3).map(|n| format!("receipt r/{name} qos=1 r{n}")).collect();
            assert_eq!(receipts, wanted, "version {version} of {name}:\n{said}");
            assert_eq!(said.lines().filter(|line| line.starts_with("acknowledged")).count(), 2);
            let count = "select count(*) from wakala.receipt where delivered_at is null";
            until(&database, count, "0").await;
            rounds += 1;
        }
    }
    assert_eq!(broker.taken.texts(), ["ask 1", "ask 2"].repeat(rounds));
}

#[tokio::test]
async fn a_certificate_that_nobody_enrolled_or_signed_proves_nothing() {
    let database = Database::new();
    let papers = Papers::new();
    let strangers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    enrol(&broker.store, "T1", Some([7; 32])).await;
    let port = broker.listening.tls.expect("an address").port().to_string();
    let ca = papers.path("ca.pem");
    for (papers, refused) in [(&papers, "not authorised"), (&strangers, "")] {
        let (certificate, key) = (papers.path("terminal.pem"), papers.path("terminal.key"));
        let run = Command::new("mosquitto_pub")
            .args(["-h", "127.0.0.1", "-p", &port, "-V", "mqttv311", "-i", "T1", "-q", "1", "-t", "q/T1", "-m", "x"])
            .args(["--cafile", &ca, "--cert", &certificate, "--key", &key])
            .output()
            .await
            .expect("mosquitto_pub is installed");
        assert!(!run.status.success());
        let said = String::from_utf8_lossy(&run.stderr).to_lowercase();
        assert!(said.contains(refused), "{said}");
    }
    assert!(broker.taken.texts().is_empty());
}

#[tokio::test]
async fn mosquitto_publishes_and_hears_its_receipts() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let port = broker.plain().port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        let proof = ["-h", "127.0.0.1", "-p", &port, "-V", version, "-i", "T1", "-u", "T1", "-P", PASSWORD, "-q", "1"];
        let asked = Command::new("mosquitto_pub").args(proof).args(["-t", "q/T1", "-m", version]).output().await;
        let asked = asked.expect("mosquitto_pub is installed");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        queue_receipt(&database, "T1", version);
        let run = Command::new("mosquitto_sub")
            .args(proof)
            .args(["-c", "-t", "r/T1", "-C", "1", "-W", "10", "-F", "%t %q %m %p"])
            .output()
            .await
            .expect("mosquitto_sub is installed");
        let seq = if version == "mqttv311" { 1 } else { 2 };
        let said = String::from_utf8_lossy(&run.stdout).trim().to_owned();
        assert_eq!(said, format!("r/T1 1 {seq} {version}"), "{}", String::from_utf8_lossy(&run.stderr));
        until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
    }
    assert_eq!(broker.taken.texts(), ["mqttv311", "mqttv5"]);
    assert_eq!(waiting(&database, "T1"), "0");
}
