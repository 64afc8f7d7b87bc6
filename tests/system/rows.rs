//! What is looked for again and again reads what is due, and a commit what it is about, however many rows there are.

use std::time::Duration;

use wakala::time::Time;
use wakala::transaction::CoreAnswer;
use wakala_node::store::Store;
use wakala_system_tests::{Database, Desk, now, withdrawal};

const HOUR: Duration = Duration::from_secs(3600);

/// Ten thousand terminals, ten of them connected to this node and ten to another. For each a receipt, a message that has
/// not expired and, if it is away, a session that has not.
const MANY: &str = "insert into wakala.terminal (id, agent, core, password_hash, sandbox, enrolled_at) \
     select 'T' || i, 'A1', 'C1', '', true, now() from generate_series(1, 10000) i; \
     insert into wakala.session (client_id, node, connected, expiry_s, expires_at, created_at) \
     select 'T' || i, case i % 1000 when 0 then 'n1' when 1 then 'n2' end, i % 1000 < 2, 86400, \
            case when i % 1000 > 1 then now() + interval '1 day' end, now() from generate_series(1, 10000) i; \
     insert into wakala.subscription (client_id, filter, qos) \
     select client_id, 'r/' || client_id, 1 from wakala.session; \
     insert into wakala.message (client_id, seq, topic, qos, payload, expires_at, at) \
     select client_id, 1, 'c/' || client_id, 1, 'x', now() + interval '1 day', now() from wakala.session; \
     insert into wakala.receipt (answers, stage, terminal, seq, envelope, at) \
     select gen_random_uuid(), 1, client_id, 2, 'x', now() from wakala.session; \
     insert into wakala.pin_try (terminal, key, token, digest, at) \
     select client_id, decode(md5(client_id), 'hex'), 'x', decode(md5(client_id), 'hex'), now() from wakala.session; \
     analyze";

/// Rows and index entries that whoever was connected has read of the node's tables.
fn read(database: &Database) -> u64 {
    let text = "select (select sum(seq_tup_read) from pg_stat_user_tables where schemaname in ('wakala', 'ledger')) \
                + (select sum(idx_tup_read) from pg_stat_user_indexes where schemaname in ('wakala', 'ledger'))";
    database.rows(text).parse().expect("a count")
}

/// How many rows this reads. Postgres counts what a connection read when it ends.
async fn reads(database: &Database, look: impl AsyncFnOnce(&Store)) -> u64 {
    let before = read(database);
    let store = database.store().await;
    look(&store).await;
    store.close().await;
    let text = "select count(*) from pg_stat_activity where application_name = 'wakala' \
                and datname = current_database()";
    while database.rows(text) != "0" {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    read(database) - before
}

#[tokio::test]
async fn housekeeping_reads_what_is_due() {
    let database = Database::new();
    let _ = database.rows(MANY);
    let at = now();
    let messages = reads(&database, async |store| assert_eq!(store.expire_messages(at, 1000).await, Ok(0))).await;
    assert!(messages < 10, "{messages} rows for no message that has expired");
    let sessions = reads(&database, async |store| assert_eq!(store.expire_sessions(at, 1000).await, Ok(vec![]))).await;
    assert!(sessions < 10, "{sessions} rows for no session whose time is over");
    let hour_ago = Time::from_millis(at.millis() - 3_600_000);
    let tries = reads(&database, async |store| assert_eq!(store.forget_tries(hour_ago, 1000).await, Ok(0))).await;
    assert!(tries < 10, "{tries} rows for no try that is old");
    let swept = reads(&database, async |store| {
        let found = store.terminals_waiting("n1", at + HOUR, HOUR / 2, 100).await.expect("read");
        assert_eq!(found.len(), 10);
    });
    let swept = swept.await;
    assert!(swept < 200, "{swept} rows for ten terminals that wait here");
    let forgotten =
        reads(&database, async |store| assert_eq!(store.forget_connections("n3", at).await, Ok(vec![]))).await;
    assert!(forgotten < 10, "{forgotten} rows for no connection of this node");
}

#[tokio::test]
async fn old_tries_are_forgotten_some_at_a_time() {
    let database = Database::new();
    let _ = database.rows(MANY);
    let (store, later) = (database.store().await, now() + HOUR);
    assert_eq!(store.forget_tries(later, 6000).await, Ok(6000));
    assert_eq!(store.forget_tries(later, 6000).await, Ok(4000));
    assert_eq!(database.rows("select count(*) from wakala.pin_try"), "0");
}

/// What others did in some months: transactions with a receipt and a pending entry.
const LONG_AGO: &str = "begin; set local session_replication_role = replica; \
     insert into wakala.receipt (answers, stage, terminal, seq, envelope, at, delivered_at) \
     select md5('t' || i)::uuid, 1, 'Z', 1, repeat('r', 300)::bytea, now(), now() from generate_series(1, 60000) i; \
     insert into ledger.account (name, kind, owner, currency) \
     values ('float:Z:TZS', 'float', 'Z', 'TZS'), ('settlement:Z:TZS', 'settlement', 'Z', 'TZS'); \
     insert into ledger.entry (transaction, phase, at) \
     select md5('t' || i)::uuid, 'pending', now() from generate_series(1, 60000) i; \
     insert into ledger.posting (entry_id, line, account_id, minor) \
     select e.id, a.id, a.id, case a.kind when 'float' then -5 else 5 end from ledger.entry e, ledger.account a; commit";

#[tokio::test]
async fn a_commit_reads_what_it_is_about() {
    let database = Database::new();
    let _ = database.rows(LONG_AGO);
    let _ = database.rows("vacuum analyze");
    let committed = reads(&database, async |store| {
        let mut desk = Desk::open(store, "n1", 0).await;
        let asked: Vec<_> = (1..=64).map(|n| withdrawal(n, 1, 5_000)).collect();
        desk.records(asked.clone()).await.expect("committed");
        desk.answer(CoreAnswer::Approved { authorisation: "A12345".into() }).await.expect("committed");
        // Asked again: told again.
        desk.records(asked).await.expect("committed");
    });
    let committed = committed.await;
    // The new rows are read some times each; entries, postings and receipts of others would be 60,000 and more.
    assert!(committed < 60_000, "{committed} rows for 64 requests, their answers and their repetition");
}
