//! What an idle terminal costs: resident memory of the node per connection, without TLS, with a subscription.

use std::sync::Arc;

use super::killed::start;
use super::wire::Wire;
use super::{enrol, until};
use wakala_system_tests::Database;

/// How many terminals; `WAKALA_IDLE=10000` for the figure in `docs/performance.md`.
fn terminals() -> usize {
    std::env::var("WAKALA_IDLE").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

/// Measured unoptimised: 8.7 KiB each at 500 terminals, 5.3 KiB each at 10,000, where what all share weighs less.
const BYTES_MAX: u64 = 16 * 1024;

fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

async fn idle(at: std::net::SocketAddr, numbers: std::ops::Range<usize>) -> Vec<Wire> {
    let mut wires = Vec::new();
    for n in numbers {
        let name = format!("T{n}");
        let (mut wire, connack) = Wire::connect(at, true, &name, true).await;
        assert_eq!(connack, [0, 0]);
        assert_eq!(wire.subscribe(&format!("r/{name}"), 1).await, 1);
        wires.push(wire);
    }
    wires
}

#[tokio::test]
async fn an_idle_terminal_costs_little_memory() {
    let database = Arc::new(Database::new());
    enrol(&database.store().await, "T0", None).await;
    let count = terminals();
    let _ = database.rows(&format!(
        "insert into wakala.terminal select 'T' || n, agent, core, password_hash, null, null, null, sandbox, enrolled_at \
         from wakala.terminal, generate_series(1, {count}) n; \
         insert into wakala.session (client_id, created_at) select 'T' || n, now() from generate_series(1, {count}) n"
    ));
    let (node, at) = start(&database);
    // The pool, the caches and the first buffers are no terminal's.
    let warm = idle(at, 0..50).await;
    let before = resident(node.process());
    let steps = 10;
    let tasks: Vec<_> = (0..steps)
        .map(|step| tokio::spawn(idle(at, 50 + (count - 50) * step / steps..50 + (count - 50) * (step + 1) / steps)))
        .collect();
    let mut wires = warm;
    for task in tasks {
        wires.extend(task.await.expect("no panic"));
    }
    until(&database, "select count(*) from wakala.session where connected", &count.to_string()).await;
    let each = resident(node.process()).saturating_sub(before) / u64::try_from(count - 50).expect("some");
    println!("{count} idle terminals, {each} bytes each, {before} before");
    assert!(each < BYTES_MAX, "{each} bytes");
}
