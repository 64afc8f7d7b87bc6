//! The schema keeps its rules by itself, whoever asks.

use std::time::Duration;

use wakala_node::store::Store;
use wakala_system_tests::Database;

/// One balanced pending entry in one statement, as the service writes it.
const ENTRY: &str = "with a as (insert into ledger.account (name, kind, owner, currency) values \
     ('float:A1:TZS', 'float', 'A1', 'TZS'), ('settlement:C1:TZS', 'settlement', 'C1', 'TZS') returning id, kind), \
     e as (insert into ledger.entry (transaction, phase, at) \
           values ('00000000-0000-8000-8000-000000000001', 'pending', now()) returning id) \
     insert into ledger.posting select e.id, row_number() over (), a.id, \
     case a.kind when 'float' then -500 else 500 end from a, e";

fn refused(found: Result<String, String>, sqlstate: &str, what: &str) {
    let error = found.expect_err(what);
    assert!(error.contains(sqlstate), "{what}: {error}");
}

#[tokio::test]
async fn every_step_goes_up_and_down_and_up_again() {
    let database = Database::empty();
    let owner = Store::connect_as_owner(&database.options()).await.expect("connects");
    owner.migrate().await.expect("up");
    let steps = database.rows("select count(*) from seaql_migrations");
    let shape = "select string_agg(table_schema || '.' || table_name || '.' || column_name || ' ' || data_type, ',' \
                 order by table_schema, table_name, column_name) from information_schema.columns \
                 where table_schema in ('wakala', 'ledger', 'audit')";
    let before = database.rows(shape);
    assert!(before.contains("wakala.receipt.envelope bytea"), "{before}");
    owner.run(|db| async move { Ok(wakala_migrations::take_back(&db, None).await?) }).await.expect("down");
    assert_eq!(database.rows("select count(*) from pg_namespace where nspname in ('wakala', 'ledger', 'audit')"), "0");
    assert_eq!(owner.pending().await.expect("asked").len().to_string(), steps);
    owner.migrate().await.expect("up again");
    assert_eq!(database.rows(shape), before);
    // Migrating what is migrated changes nothing, and the node's own role can see that nothing is left to do.
    owner.migrate().await.expect("twice");
    assert_eq!(database.store().await.pending().await.expect("asked"), Vec::<String>::new());
}

#[tokio::test]
async fn a_schema_that_is_not_this_programs_says_so() {
    let database = Database::new();
    assert_eq!(database.rows("insert into public.seaql_migrations values ('m9999_later', 1) returning 1"), "1");
    let said = database.store().await.pending().await.expect_err("a later step").to_string();
    assert!(said.contains("newer than this program") && said.contains("m9999_later"), "{said}");
    let empty = Database::empty();
    let none = empty.store().await;
    let said = none.terminals(None, 1).await.expect_err("no schema").to_string();
    assert!(said.contains("wakala migrate --pending"), "{said}");
}

#[tokio::test]
async fn a_database_that_is_not_there_says_why() {
    let url = "postgres://wakala_service@127.0.0.1:1/wakala".to_owned();
    let options = wakala_node::store::Options { url, acquire_timeout: Duration::from_secs(1), ..Default::default() };
    let Err(said) = Store::connect(&options).await else { panic!("connected") };
    assert!(said.to_string().contains("refused"), "{said}");
}

#[test]
fn nobody_changes_the_ledger() {
    let database = Database::new();
    database.sql("service", ENTRY).expect("a balanced entry");
    for (statement, sqlstate) in [
        ("update ledger.posting set minor = minor", "42501"),
        ("update ledger.entry set at = now()", "42501"),
        ("update ledger.account set name = name", "42501"),
        ("delete from ledger.posting", "42501"),
        ("delete from ledger.entry", "42501"),
        ("truncate ledger.posting", "42501"),
        ("truncate ledger.entry cascade", "42501"),
        ("delete from ledger.float_balance", "42501"),
        ("update ledger.float_balance set floor = -1", "42501"),
        (
            "insert into ledger.entry (id, transaction, phase, at) overriding system value \
             values (1000000, gen_random_uuid(), 'pending', now())",
            "42501",
        ),
        (
            "insert into ledger.entry (transaction, phase, at, xact) \
             values (gen_random_uuid(), 'pending', now(), pg_current_xact_id())",
            "42501",
        ),
        (
            "insert into ledger.account (id, name, kind, owner, currency) overriding system value \
             values (1000000, 'float:B:TZS', 'float', 'B', 'TZS')",
            "42501",
        ),
        ("insert into ledger.float_balance (account_id, posted) select id, 1 from ledger.account", "42501"),
        ("alter table ledger.posting disable trigger all", "42501"),
        ("drop trigger balanced on ledger.posting", "42501"),
        ("update wakala.receipt set envelope = ''", "42501"),
        ("delete from wakala.receipt", "42501"),
        ("delete from wakala.transaction", "42501"),
        ("delete from wakala.log_record", "42501"),
    ] {
        refused(database.sql("service", statement), sqlstate, statement);
    }
    // The owner has the right and meets the trigger.
    for statement in [
        "update ledger.posting set minor = minor",
        "delete from ledger.entry",
        "truncate ledger.posting",
        "truncate ledger.entry cascade",
        "delete from ledger.float_balance",
    ] {
        refused(database.sql("owner", statement), "23001", statement);
    }
    assert_eq!(database.rows("select count(*), sum(minor) from ledger.posting"), "2|0");
}

#[test]
fn an_entry_that_does_not_balance_is_refused() {
    let database = Database::new();
    let service = |text: &str| database.sql("service", text);
    refused(service(&ENTRY.replace("-500", "-499")), "23514", "one unit short");
    refused(
        service(&ENTRY.replace("'C1', 'TZS'", "'C1', 'KES'").replace("C1:TZS", "C1:KES")),
        "23514",
        "two currencies",
    );
    refused(
        service("insert into ledger.entry (transaction, phase, at) values (gen_random_uuid(), 'pending', now())"),
        "23514",
        "no postings at all",
    );
    assert_eq!(database.rows("select count(*) from ledger.entry"), "0");

    service(ENTRY).expect("a balanced one");
    let pair = "insert into ledger.posting select e.id, 10 + row_number() over (), a.id, \
                case a.kind when 'float' then -1 else 1 end from ledger.entry e, ledger.account a";
    refused(service(pair), "23001", "postings added to an entry of an earlier transaction");
    // The service has no right to name one; who has it meets the trigger.
    let other =
        "insert into ledger.entry (transaction, phase, at, xact) values (gen_random_uuid(), 'pending', now(), '3')";
    refused(database.sql("owner", other), "23001", "an entry that names another transaction");
}

#[test]
fn phases_come_in_order_and_once() {
    let database = Database::new();
    let service = |text: &str| database.sql("service", text);
    let voided = "insert into ledger.entry (transaction, phase, at) \
                  values ('00000000-0000-8000-8000-000000000001', 'voided', now())";
    refused(service(voided), "23514", "voided without pending");
    service(ENTRY).expect("pending");
    refused(
        service("insert into ledger.entry (transaction, phase, at) select transaction, phase, at from ledger.entry"),
        "23505",
        "pending twice",
    );
    service(voided).expect("voided");
    refused(
        service(
            "with e as (insert into ledger.entry (transaction, phase, at) \
             values ('00000000-0000-8000-8000-000000000001', 'posted', now()) returning id) \
             insert into ledger.posting select e.id, p.line, p.account_id, p.minor from e, ledger.posting p",
        ),
        "23505",
        "posted after voided",
    );
    refused(
        service(
            "insert into ledger.posting select e.id, 1, a.id, 5 from ledger.entry e, ledger.account a \
             where e.phase = 'voided' and a.kind = 'float'",
        ),
        "23",
        "a voided entry with postings",
    );
}

#[test]
fn an_auditor_reads_the_views_and_nothing_else() {
    let database = Database::new();
    database.sql("service", ENTRY).expect("an entry");
    let views =
        database.rows("select string_agg(table_name, ' ') from information_schema.views where table_schema = 'audit'");
    assert!(views.split(' ').count() >= 10, "{views}");
    for view in views.split(' ') {
        database
            .sql("auditor", &format!("select * from audit.{view}"))
            .unwrap_or_else(|error| panic!("{view}: {error}"));
    }
    assert_eq!(
        database.sql("auditor", "select account, debit, credit from audit.journal order by line"),
        Ok("float:A1:TZS||5.00\nsettlement:C1:TZS|5.00|".to_owned())
    );
    let tables = database.rows(
        "select string_agg(format('%I.%I', table_schema, table_name), ' ') from information_schema.tables \
         where table_schema in ('wakala', 'ledger')",
    );
    assert!(tables.split(' ').count() >= 20, "{tables}");
    for table in tables.split(' ') {
        refused(database.sql("auditor", &format!("select * from {table}")), "42501", table);
    }
    for statement in [
        "create table audit.mine (n int)",
        "create table public.mine (n int)",
        "insert into ledger.account (name, kind, owner, currency) values ('float:X:TZS', 'float', 'X', 'TZS')",
        "update audit.terminals set agent = 'X'",
        "select nextval('wakala.stan')",
    ] {
        refused(database.sql("auditor", statement), "42501", statement);
    }
}

#[tokio::test]
async fn a_migration_takes_its_time_and_its_turn() {
    let database = Database::empty();
    let short = Duration::from_millis(50);
    let options = wakala_node::store::Options { idle_timeout: short, lock_timeout: short, ..database.options() };
    let owner = Store::connect_as_owner(&options).await.expect("connects");
    let other = std::thread::spawn({
        let turn = "begin; select pg_advisory_xact_lock(7738221); select pg_sleep(1); commit";
        let url = database.url("owner");
        move || std::process::Command::new("psql").args(["-qc", turn, &url]).output().expect("psql")
    });
    let begun = "select count(*) from pg_locks where locktype = 'advisory' and granted \
                 and database = (select oid from pg_database where datname = current_database())";
    while database.rows(begun) == "0" {}
    // The other's turn is longer than a lock is waited for, and ours is longer than a transaction may do nothing.
    owner.migrate().await.expect("migrated");
    assert!(other.join().expect("no panic").status.success());
    assert_eq!(owner.pending().await, Ok(Vec::new()));
}
