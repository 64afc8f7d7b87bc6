//! What an idle terminal costs: resident memory of the node per connection with a subscription, plain and with mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;

use super::certificates::Papers;
use super::killed::{Node, start, start_with};
use super::wire::Wire;
use super::{enrol, until};
use wakala_system_tests::Database;

/// How many terminals; `WAKALA_IDLE=10000` for the figure in `docs/performance.md`.
fn terminals() -> usize {
    std::env::var("WAKALA_IDLE").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

/// Measured unoptimised: 8.7 KiB each at 500 terminals, 5.3 KiB each at 10,000, where what all share weighs less.
const BYTES_MAX: u64 = 16 * 1024;

/// With a certificate, what is kept for its resumption included. Measured unoptimised: 15.5 KiB each at 500 terminals.
const BYTES_MAX_TLS: u64 = 24 * 1024;

pub(super) fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

async fn idle(at: SocketAddr, papers: Option<Arc<Papers>>, numbers: std::ops::Range<usize>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for n in numbers {
        let name = format!("T{n}");
        let mut wire = match &papers {
            None => Wire::open(at, true).await,
            Some(papers) => {
                let stream = TcpStream::connect(at).await.expect("it listens");
                let server = ServerName::try_from("localhost").expect("a name");
                Wire::over(papers.connector(&name).connect(server, stream).await.expect("a handshake"), true)
            }
        };
        assert_eq!(wire.introduce(&name, true).await, [0, 0]);
        assert_eq!(wire.subscribe(&format!("r/{name}"), 1).await, 1);
        wires.push(wire);
    }
    wires
}

#[tokio::test]
async fn an_idle_terminal_costs_little_memory() {
    let database = Database::new();
    enrol(&database.store().await, "T0", None).await;
    let count = terminals();
    let _ = database.rows(&format!(
        "insert into wakala.terminal select 'T' || n, agent, core, password_hash, null, sandbox, enrolled_at \
         from wakala.terminal, generate_series(1, {count}) n; \
         insert into wakala.session (client_id, created_at) select 'T' || n, now() from generate_series(1, {count}) n"
    ));
    let each = each(&database, start(&database), None, count).await;
    assert!(each < BYTES_MAX, "{each} bytes");
}

/// emqx #3277, #3289, #1535: with mutual TLS a connection cost 155 kB, and TLS was left to a proxy.
#[tokio::test]
async fn pain_11_an_idle_terminal_with_a_certificate_costs_little_memory() {
    let database = Database::new();
    let (store, papers, count) = (database.store().await, Arc::new(Papers::new()), terminals());
    for n in 0..count {
        let name = format!("T{n}");
        enrol(&store, &name, Some(papers.issue(&name).sha256)).await;
    }
    let each = each(&database, start_with(&database, Some(&papers)), Some(papers), count).await;
    assert!(each < BYTES_MAX_TLS, "{each} bytes");
}

/// What each of so many costs the node.
async fn each(database: &Database, (node, at): (Node, SocketAddr), papers: Option<Arc<Papers>>, count: usize) -> u64 {
    // The pool, the caches and the first buffers are no terminal's.
    let warm = idle(at, papers.clone(), 0..50).await;
    let before = resident(node.process());
    let steps = 10;
    let tasks: Vec<_> = (0..steps)
        .map(|step| {
            tokio::spawn(idle(
                at,
                papers.clone(),
                50 + (count - 50) * step / steps..50 + (count - 50) * (step + 1) / steps,
            ))
        })
        .collect();
    let mut wires = warm;
    for task in tasks {
        wires.extend(task.await.expect("no panic"));
    }
    until(database, "select count(*) from wakala.session where connected", &count.to_string()).await;
    let each = resident(node.process()).saturating_sub(before) / u64::try_from(count - 50).expect("some");
    println!("{count} idle terminals, {each} bytes each, {before} before");
    each
}
