//! A node that may open no more files.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::net::TcpStream;

use super::killed::{Node, start};
use super::wire::Wire;
use super::{enrol, queue_receipt, until};
use wakala_system_tests::Database;

/// Lets a process open so many more files than it has open now.
fn more_files(node: &Node, more: u64) {
    let process = node.process();
    let open = std::fs::read_dir(format!("/proc/{process}/fd")).expect("it lives").count();
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(u64::try_from(open).expect("few") + more);
    let process = Pid::from_raw(i32::try_from(process).expect("small"));
    prlimit(process, Resource::Nofile, Rlimit { current, maximum }).expect("it is ours");
}

/// What a process has computed, in ticks of a hundredth of a second.
fn computed(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.process())).expect("it lives");
    // Its name, which is before, is in parentheses (proc(5)).
    let (_, rest) = stat.rsplit_once(") ").expect("a name");
    rest.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum()
}

/// EMFILE at accept(2): a loop that tries again at once takes a whole processor from those who are there, and one that ends takes
/// the door from everybody.
#[tokio::test]
async fn a_node_without_files_serves_those_who_are_there_and_lets_others_in_later() {
    let database = Database::new();
    let store = database.store().await;
    for name in ["T1", "T2"] {
        enrol(&store, name, None).await;
    }
    let (node, address) = start(&database);
    let (mut there, _) = Wire::connect(address, true, "T1", false).await;
    assert_eq!(there.subscribe("c/T1", 1).await, 1);
    more_files(&node, 10);
    let mut strangers = Vec::new();
    for _ in 0..50 {
        // The kernel takes them for the node.
        strangers.push(TcpStream::connect(address).await.expect("it listens"));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = computed(&node);
    for _ in 0..10 {
        there.ping().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let ticks = computed(&node) - before;
    assert!(ticks < 100, "{ticks} hundredths of a second in two seconds");
    // Nobody wakes a session in another process here: its subscription has the queue read.
    queue_receipt(&database, "T1", "in spite of it");
    assert_eq!(there.subscribe("r/T1", 1).await, 1);
    let (_, id, text) = there.delivery().await;
    assert_eq!(text, "in spite of it");
    there.acknowledge(id).await;
    until(&database, "select count(*) from wakala.receipt where delivered_at is null", "0").await;
    drop(strangers);
    let (mut late, connack) = Wire::connect(address, true, "T2", false).await;
    assert_eq!(connack, [0, 0]);
    late.ping().await;
}
