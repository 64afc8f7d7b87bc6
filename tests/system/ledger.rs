//! `verify` finds what the database's own checks were made to overlook, and names it.

use wakala::id::RequestKey;
use wakala::id::TransactionId;
use wakala::ledger::Account;
use wakala::money::Currency;
use wakala::partition::Event;
use wakala::receipt::Reason;
use wakala::record::{Body, Pin};
use wakala::transaction::{CoreAnswer, State};
use wakala_node::store::ledger::Report;
use wakala_node::store::{Error, Store};
use wakala_system_tests::{Database, Desk, agent, deposit, terminal, withdrawal};

fn approved() -> CoreAnswer {
    CoreAnswer::Approved { authorisation: "A12345".into() }
}

/// One transaction of every fate: approved cash out and cash in, declined here and by the core, reversed, and one of each
/// open state.
async fn a_day(store: &Store) {
    let mut desk = Desk::open(store, "n1", 0).await;
    desk.records(vec![withdrawal(1, 1, 9_000), withdrawal(2, 1, 7_000)]).await.expect("committed");
    desk.answer(approved()).await.expect("committed");
    desk.records(vec![deposit(1, 2, 4_000)]).await.expect("committed");
    desk.answer(approved()).await.expect("committed");
    desk.records(vec![withdrawal(1, 3, 100), deposit(2, 3, 200)]).await.expect("committed");
    desk.answer(CoreAnswer::Declined(Reason::new("51"))).await.expect("committed");
    let mut wrong = withdrawal(1, 4, 300);
    if let Body::Asked(asked) = &mut wrong.body {
        asked.pin = Pin::Wrong;
    }
    desk.records(vec![wrong, deposit(1, 5, 900_000)]).await.expect("committed");
    let lost = |n: u8, key: u8| Event::Lost {
        transaction: TransactionId::of(&terminal(&format!("T{n}")), RequestKey([key; 16])),
    };
    desk.records(vec![withdrawal(1, 6, 500)]).await.expect("committed");
    desk.take(vec![lost(1, 6)]).await.expect("committed");
    desk.answer(CoreAnswer::Reversed).await.expect("committed");
    desk.records(vec![deposit(2, 7, 600), withdrawal(2, 8, 700)]).await.expect("committed");
    desk.take(vec![lost(2, 7)]).await.expect("committed");
    desk.room = 0;
    desk.records(vec![deposit(2, 9, 800)]).await.expect("committed");
}

/// The first posted entry, and its transaction.
const POSTED: &str = "(select id from ledger.entry where phase = 'posted' order by id limit 1)";
const OF_POSTED: &str = "(select transaction from ledger.entry where phase = 'posted' order by id limit 1)";
const DECLINED_BY_CORE: &str = "(select id from wakala.transaction where state = 'DECLINED' and stan is not null)";

/// What somebody with a superuser's rights might do, and the rule that finds it.
const TAMPERINGS: &[(&str, &str)] = &[
    ("update ledger.posting set minor = minor + 1 where entry_id = {posted} and line = 1", "sums to zero"),
    ("update ledger.posting set minor = minor * 2 where entry_id = {posted}", "posted is what was pending"),
    (
        "update ledger.posting set minor = minor * 2 where entry_id in \
                     (select id from ledger.entry where transaction = {of_posted})",
        "books its transaction's amount",
    ),
    (
        "update ledger.posting set minor = -minor where entry_id in \
                     (select id from ledger.entry where transaction = {of_posted})",
        "books its transaction's amount",
    ),
    ("update wakala.transaction set amount = amount + 1 where id = {of_posted}", "books its transaction's amount"),
    ("update wakala.transaction set agent = 'A2' where id = {of_posted}", "books its transaction's amount"),
    ("delete from ledger.posting where entry_id = {posted}", "have postings"),
    ("update ledger.posting set account_id = 999 where entry_id = {posted} and line = 1", "on an account"),
    ("delete from ledger.account where kind = 'settlement'", "on an account"),
    (
        "delete from ledger.posting where entry_id = {posted}; delete from ledger.entry where phase = 'posted' \
                     and not exists (select from ledger.posting where entry_id = id)",
        "approved transaction has one posted",
    ),
    (
        "delete from ledger.posting where entry_id in (select id from ledger.entry where phase = 'pending'); \
             delete from ledger.entry where phase = 'pending'",
        "one pending entry",
    ),
    (
        "alter table ledger.entry drop constraint entry_transaction_phase_key; drop index ledger.entry_resolved_once; \
             insert into ledger.entry (transaction, phase, at) select transaction, phase, at from ledger.entry \
             where phase = 'voided'",
        "one pending entry",
    ),
    (
        "update ledger.entry set id = default where id = \
                  (select min(id) from ledger.entry where transaction = {of_posted})",
        "every posting is of an entry",
    ),
    ("delete from wakala.transaction where id = {of_posted}", "every entry is of a transaction"),
    ("update wakala.transaction set state = 'DECLINED' where id = {of_posted}", "nothing posted"),
    ("delete from ledger.entry where phase = 'voided'", "what was pending is voided"),
    (
        "update wakala.transaction set state = 'REVERSED', stan = 1, rrn = '1', sent_at = now() where code = '55'",
        "was sent to its core was pending",
    ),
    (
        "update wakala.transaction set state = 'SENT', due = now() where id = {of_posted}",
        "an open transaction is pending and no more",
    ),
    ("update ledger.float_balance set posted = posted + 1", "balance is what is posted"),
    ("update ledger.float_balance set reserved = reserved + 1 where reserved > 0", "balance is what is posted"),
    ("delete from ledger.float_balance", "balance is what is posted"),
    (
        "alter table ledger.float_balance drop constraint float_covered; \
             update ledger.float_balance set floor = 1000000",
        "below its floor",
    ),
    ("delete from wakala.receipt where answers = {of_posted}", "has one receipt"),
    ("update wakala.receipt set terminal = 'T9' where answers = {of_posted}", "has one receipt"),
    (
        "insert into wakala.receipt (answers, stage, terminal, seq, envelope, at) \
             select id, 1, terminal, 1000, '', now() from wakala.transaction where state = 'SENT'",
        "no open transaction has a receipt",
    ),
    (
        "alter table wakala.transaction drop constraint transaction_terminal_key_key; \
             update wakala.transaction set key = decode(repeat('00', 16), 'hex') where terminal = 'T1'",
        "a terminal's key is one transaction",
    ),
    (
        "update wakala.transaction set key = decode(repeat('aa', 16), 'hex') where id = {of_posted}",
        "its terminal and its key",
    ),
    (
        "update wakala.transaction set terminal = 'T9' where id = {of_posted}; \
             update wakala.receipt set terminal = 'T9' where answers = {of_posted}",
        "its terminal and its key",
    ),
    (
        "alter table ledger.account drop constraint account_check; \
             update ledger.account set owner = 'A9' where name = 'float:A1:TZS'",
        "an account's name",
    ),
    (
        "alter table ledger.account drop constraint account_check; \
             update ledger.account set currency = 'KES' where kind = 'settlement'",
        "an account's name",
    ),
    (
        "alter table ledger.account drop constraint account_name_key; \
             insert into ledger.account (name, kind, owner, currency) \
             select name, kind, owner, currency from ledger.account where kind = 'settlement'",
        "an account's name",
    ),
    (
        "insert into ledger.float_balance (account_id) select id from ledger.account where kind = 'settlement'",
        "a balance row",
    ),
    ("insert into ledger.float_balance (account_id) values (999)", "a balance row"),
    ("update ledger.posting set line = 7 where entry_id = {posted} and line = 2", "lines are numbered"),
    ("update ledger.entry set at = at - interval '1 day' where id = {posted}", "of the moment"),
    (
        "update ledger.entry set at = at + interval '1 ms' where id = (select min(id) from ledger.entry where phase = 'voided')",
        "of the moment",
    ),
    ("alter table ledger.posting disable trigger balanced", "own checks"),
    ("alter table ledger.posting disable trigger all", "own checks"),
    ("drop trigger only_added_to on ledger.entry", "own checks"),
    ("alter table ledger.float_balance drop constraint float_covered", "own checks"),
    ("drop index ledger.entry_resolved_once", "own checks"),
    ("grant update on ledger.posting to wakala_service", "own checks"),
    ("grant delete on ledger.entry to wakala_service", "own checks"),
    ("grant update (floor) on ledger.float_balance to wakala_service", "own checks"),
    (
        "delete from ledger.posting where entry_id in (select id from ledger.entry where transaction in {declined}); \
             delete from ledger.entry where transaction in {declined}",
        "was sent to its core was pending",
    ),
    ("update wakala.transaction set stan = stan + 1 where id = {of_posted}", "ends in its transaction's STAN"),
    (
        "update ledger.posting set minor = minor * 2 where entry_id in \
                     (select id from ledger.entry where transaction = {of_posted}); \
             update ledger.float_balance set posted = posted + (select amount from wakala.transaction where id = {of_posted}) \
             where account_id = (select account_id from ledger.posting where entry_id = {posted} and line = 2); \
             update wakala.transaction set amount = amount * 2 where id = {of_posted}",
        "a receipt says",
    ),
    ("update wakala.transaction set amount = amount + 1 where code = '55'", "a receipt says"),
    ("update wakala.transaction set currency = 'KES' where code = '55'", "a receipt says"),
    ("update wakala.transaction set kind = 'DEPOSIT' where code = '55'", "a receipt says"),
    ("update wakala.transaction set agent = 'A2' where code = '55'", "a receipt says"),
    ("update wakala.transaction set state = 'DECLINED' where state = 'REVERSED'", "a receipt says"),
    ("update wakala.transaction set code = '05' where code = '51'", "a receipt says"),
    ("update wakala.transaction set authorisation = 'A12346' where id = {of_posted}", "a receipt says"),
    ("update wakala.transaction set rrn = '9' || substr(rrn, 2) where id = {of_posted}", "a receipt says"),
    ("update wakala.transaction set card_masked = '400000******0002' where id = {of_posted}", "a receipt says"),
    ("update wakala.transaction set card_token = 'x' where id = {of_posted}", "a receipt says"),
    (
        "update wakala.receipt set at = at + interval '1 s' where answers in (select id from wakala.transaction where code = '55')",
        "a receipt says",
    ),
    ("update wakala.receipt set envelope = envelope || 'x' where answers = {of_posted}", "a receipt says"),
    ("update wakala.receipt set envelope = '' where answers = {of_posted}", "a receipt says"),
    (
        "update wakala.receipt set envelope = (select envelope from wakala.receipt where answers in {declined} and stage = 1 \
             limit 1) where answers = {of_posted}",
        "a receipt says",
    ),
];

async fn verify(database: &Database) -> Report {
    database.store().await.verify_ledger().await.expect("it can be read")
}

#[tokio::test]
async fn a_good_day_verifies_and_every_tampering_is_named() {
    let good = Database::new();
    let store = good.store().await;
    a_day(&store).await;
    let report = store.verify_ledger().await.expect("it can be read");
    let wanted = Report {
        accounts: 3,
        entries: 15,
        postings: 24,
        transactions: 11,
        open: 3,
        approved: 3,
        declined: 4,
        reversed: 1,
        receipts: 8,
        first_break: None,
    };
    assert_eq!(report, wanted);
    store.close().await;

    let mut missed = Vec::new();
    for &(tampering, rule) in TAMPERINGS {
        let tampering = tampering.replace("{posted}", POSTED).replace("{of_posted}", OF_POSTED);
        let tampering = tampering.replace("{declined}", DECLINED_BY_CORE);
        let bad = good.copy();
        // As a superuser who knows how: no trigger fires, no foreign key is looked at.
        bad.sql("postgres", &format!("begin; set local session_replication_role = replica; {tampering}; commit"))
            .unwrap_or_else(|error| panic!("{tampering}: {error}"));
        match verify(&bad).await.first_break {
            None => missed.push(tampering),
            Some(found) => {
                assert!(found.rule.contains(rule), "{tampering}\nfound: {found:?}");
                assert!(!found.what.is_empty());
            }
        }
    }
    assert_eq!(missed, Vec::<String>::new());
    assert_eq!(verify(&good).await, wanted);
}

#[tokio::test]
async fn a_transaction_is_shown_with_all_that_belongs_to_it() {
    let database = Database::new();
    let store = database.store().await;
    a_day(&store).await;
    let id = TransactionId::of(&terminal("T1"), RequestKey([6; 16]));
    let shown = store.transaction(id).await.expect("read").expect("there");
    assert_eq!((shown.transaction.id, shown.transaction.state), (id, State::Reversed));
    let phases: Vec<(&str, usize)> =
        shown.entries.iter().map(|entry| (entry.phase.as_str(), entry.postings.len())).collect();
    assert_eq!(phases, [("pending", 2), ("voided", 0)]);
    assert_eq!(shown.entries[0].postings[1], ("float:A1:TZS".to_owned(), -500));
    assert_eq!(shown.receipts.len(), 2);
    assert!(shown.receipts[0].withdrawn_at.is_some() && shown.receipts[1].withdrawn_at.is_none());
    let rrn = shown.transaction.trace.expect("it was sent").rrn;
    assert_eq!(store.transactions_by_rrn(rrn.as_str()).await, Ok(vec![id]));
    assert_eq!(store.transaction(TransactionId(uuid::Uuid::nil())).await, Ok(None));
}

#[tokio::test]
async fn a_credit_line_is_the_owners_to_give() {
    let database = Database::new();
    let store = database.store().await;
    a_day(&store).await;
    let float = Account::float(agent("A1"), Currency::TZS);
    let refused = store.set_floor(&float, -1).await;
    assert!(
        matches!(&refused, Err(Error::Broken(why)) if why.contains("right role") && !why.contains(" at line ")),
        "{refused:?}"
    );
    let owner = Store::connect_as_owner(&database.options()).await.expect("connects");
    assert_eq!(owner.set_floor(&float, -900_000).await, Ok(true));
    assert_eq!(owner.set_floor(&Account::float(agent("A9"), Currency::TZS), 0).await, Ok(false));
    let mut desk = Desk::open(&store, "n1", 0).await;
    desk.records(vec![deposit(1, 20, 900_000)]).await.expect("committed");
    desk.answer(approved()).await.expect("committed");
    assert_eq!(database.rows("select posted from ledger.float_balance order by account_id limit 1"), "-895000");
    let refused = owner.set_floor(&float, 0).await;
    assert!(matches!(&refused, Err(Error::Broken(why)) if why.contains("below that floor already")), "{refused:?}");
    assert_eq!(store.verify_ledger().await.expect("read").first_break, None);
}
