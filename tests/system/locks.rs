//! Rows are locked in one order by all who lock several, or two would wait for each other in a circle.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use wakala::card::{Masked, Token};
use wakala::conservation::Fate;
use wakala::id::Epoch;
use wakala_node::store::Store;
use wakala_node::store::batch::Batcher;
use wakala_node::store::cards::{Card, Reference};
use wakala_node::store::openings::WhenLocked;
use wakala_node::store::sessions::{Acknowledged, Closed, Ended, Left};
use wakala_system_tests::{Database, now, terminal};

/// Somebody's database transaction that holds locks until this is dropped.
pub(crate) struct Holding(Child);

impl Holding {
    pub(crate) fn new(database: &Database, text: &str) -> Self {
        let mut psql = Command::new("psql")
            .args(["--no-psqlrc", "--quiet", &database.url("postgres")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("psql is there");
        let input = psql.stdin.as_mut().expect("piped");
        writeln!(input, "set application_name = 'holding'; begin; {text};").expect("it reads");
        let idle = "select count(*) from pg_stat_activity where application_name = 'holding' \
                    and state = 'idle in transaction' and datname = current_database() and query not like 'begin%'";
        while database.rows(idle) == "0" {}
        Self(psql)
    }

    /// Lets it take effect.
    pub(crate) fn commit(mut self) {
        writeln!(self.0.stdin.as_mut().expect("piped"), "commit;").expect("it reads");
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Holds the row that is first in order, waits until `call` waits for it, and looks whether the call has locked the row
/// that is second.
async fn keeps_to_the_order<F>(database: &Database, table: &str, rows: [&str; 2], call: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let lock = |row: &str| format!("select from wakala.{table} where {row} for update");
    let holding = Holding::new(database, &lock(rows[0]));
    let call = tokio::spawn(call);
    let waits = "select count(*) from pg_stat_activity where application_name = 'wakala' \
                 and wait_event_type = 'Lock' and datname = current_database()";
    while database.rows(waits) == "0" {
        assert!(!call.is_finished(), "{table}: it locks the row that is held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let second = database.sql("postgres", &format!("{} nowait", lock(rows[1])));
    drop(holding);
    call.await.expect("done in the end");
    assert_eq!(second, Ok(String::new()), "{table}: {} was locked before {}", rows[1], rows[0]);
}

/// Four sessions; the queue of each has a notice and a message. Of the notices' identities the order is the other way
/// round.
const QUEUES: &str = "insert into wakala.session (client_id, epoch, node, connected, expiry_s, created_at) \
     select 'T' || i, 1, 'n1', true, 60, now() from generate_series(4, 1, -1) i; \
     insert into wakala.receipt (answers, stage, terminal, seq, envelope, at) \
     select ('00000000-0000-8000-8000-00000000000' || 9 - i)::uuid, 0, 'T' || i, 1, 'x', now() from generate_series(1, 4) i; \
     insert into wakala.message (client_id, seq, topic, qos, payload, at) \
     select 'T' || i, 2, 'c/T' || i, 0, 'x', now() from generate_series(4, 1, -1) i";

/// Submits for each terminal; what comes while the first is under way is committed together.
async fn submit<T, R>(batcher: Batcher<T, R>, things: [T; 4], wanted: R)
where
    T: Send + 'static,
    R: Copy + std::fmt::Debug + PartialEq + Send + 'static,
{
    let mut submitted = tokio::task::JoinSet::new();
    for thing in things {
        let batcher = batcher.clone();
        submitted.spawn(async move { batcher.submit(thing).await });
    }
    for done in submitted.join_all().await {
        assert_eq!(done, Ok(wanted));
    }
}

fn acknowledge(store: &Store, receipt: bool, order: [u8; 4]) -> impl Future<Output = ()> + Send + 'static {
    let each = order.map(|n| Acknowledged {
        client: (&terminal(&format!("T{n}"))).into(),
        epoch: Epoch(1),
        seq: if receipt { 1 } else { 2 },
        receipt,
        fate: Fate::Delivered,
        at: now(),
    });
    submit(store.acknowledgements(16, 16), each, true)
}

async fn queues() -> (Database, Store) {
    let database = Database::new();
    let _ = database.rows(QUEUES);
    let store = database.store().await;
    (database, store)
}

#[tokio::test]
async fn of_receipts_by_what_they_answer() {
    let (database, store) = queues().await;
    let rows = ["terminal = 'T3'", "terminal = 'T2'"];
    keeps_to_the_order(&database, "receipt", rows, acknowledge(&store, true, [1, 2, 3, 4])).await;
    assert_eq!(database.rows("select count(*) from wakala.receipt where delivered_at is null"), "0");
}

#[tokio::test]
async fn of_messages_by_their_queue_and_place() {
    let (database, store) = queues().await;
    let rows = ["client_id = 'T2'", "client_id = 'T3'"];
    keeps_to_the_order(&database, "message", rows, acknowledge(&store, false, [1, 4, 3, 2])).await;
    assert_eq!(database.rows("select count(*) from wakala.message"), "0");
}

#[tokio::test]
async fn of_messages_too_when_sessions_end() {
    let (database, store) = queues().await;
    let end = |n| Ended {
        client: (&terminal(&format!("T{n}"))).into(),
        epoch: Epoch(1),
        expiry_s: 0,
        sent_to: 0,
        will: Left::Nothing,
        why: "the test says so".to_owned(),
        at: now(),
        when_locked: WhenLocked::Wait,
    };
    let call = submit(store.ends(16), [1, 4, 3, 2].map(end), Closed::Stored);
    keeps_to_the_order(&database, "message", ["client_id = 'T2'", "client_id = 'T3'"], call).await;
    assert_eq!(database.rows("select count(*) from wakala.message"), "0");
}

#[tokio::test]
async fn of_sessions_when_a_node_begins_again() {
    let (database, store) = queues().await;
    let call = async move { assert_eq!(store.forget_connections("n1", now()).await.map(|ended| ended.len()), Ok(4)) };
    keeps_to_the_order(&database, "session", ["client_id = 'T1'", "client_id = 'T4'"], call).await;
}

#[tokio::test]
async fn of_cards_by_their_token() {
    let database = Database::new();
    let store = database.store().await;
    let card = |n: u8| Card {
        token: Token([n; 16]),
        masked: Masked::stored("411111******1111"),
        reference: Reference { pvki: 1, pvv: [1, 2, 3, 4] },
    };
    assert_eq!(store.import_cards([1, 2].map(card).to_vec(), true).await, Ok(2));
    let call = async move { assert_eq!(store.import_cards([2, 1].map(card).to_vec(), true).await, Ok(0)) };
    let row = |n: u8| format!("token = decode(repeat('0{n}', 16), 'hex')");
    keeps_to_the_order(&database, "card", [&row(1), &row(2)], call).await;
}
