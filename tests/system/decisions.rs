//! A decision is committed whole, once, and by its owner alone.

use std::time::Duration;

use wakala::id::{Offset, PartitionNo, TransactionId};
use wakala::money::Currency;
use wakala::partition::Event;
use wakala::receipt::{Reason, Stage};
use wakala::transaction::{CoreAnswer, State};
use wakala_node::store::partitions::Hint;
use wakala_node::store::terminals::{Enrolment, Sought, Terminal};
use wakala_node::store::{Error, Options, Store};
use wakala_system_tests::{Database, Desk, agent, core, deposit, now, terminal, withdrawal};

fn approved() -> CoreAnswer {
    CoreAnswer::Approved { authorisation: "A12345".into() }
}

fn shown(hints: &[Hint]) -> Vec<(String, i64, Stage)> {
    hints.iter().map(|hint| (hint.terminal.to_string(), hint.seq, hint.stage)).collect()
}

fn deliver(database: &Database, hint: &Hint) {
    let Hint { terminal, seq, .. } = hint;
    let marked =
        format!("update wakala.receipt set delivered_at = now() where terminal = '{terminal}' and seq = {seq}");
    assert_eq!(database.rows(&marked), "");
}

/// The receipts that wait for a terminal, with their bytes.
fn waiting(database: &Database, n: u8) -> String {
    database.rows(&format!(
        "select terminal, seq, answers, encode(envelope, 'hex') from wakala.receipt \
         where terminal = 'T{n}' and delivered_at is null and withdrawn_at is null order by seq"
    ))
}

fn shown_as_rows(hints: &[Hint]) -> String {
    let each = hints.iter().map(|hint| {
        let Hint { terminal, seq, answers, envelope, .. } = hint;
        format!("{terminal}|{seq}|{answers}|{}", hex::encode(envelope))
    });
    each.collect::<Vec<_>>().join("\n")
}

async fn enrol(store: &Store, n: u8) {
    let enrolled = Terminal {
        id: terminal(&format!("T{n}")),
        agent: agent(&format!("A{n}")),
        core: core(),
        password_hash: Some("$argon2id$".to_owned()),
        certificate_sha256: None,
        blocked: None,
        sandbox: true,
        enrolled_at: now(),
    };
    assert_eq!(store.enrol_terminal(enrolled, Currency::TZS).await, Ok(Enrolment::Done));
}

#[tokio::test]
async fn pain_05_a_withdrawal_is_committed_from_the_record_to_the_receipt() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, 1).await;
    let mut desk = Desk::open(&store, "n1", 0).await;
    let record = withdrawal(1, 7, 50_000);
    let id = record.transaction();
    assert_eq!(desk.records(vec![record]).await, Ok(vec![]));
    assert_eq!(desk.acts.len(), 1);
    // A node that loads now finds it as it was committed, numbers and all.
    let (_, position, open) = store.load_partition(PartitionNo(0), "n1").await.expect("ours");
    assert_eq!((position, open.len()), (Offset(1), 1));
    let mut desk = Desk::open(&store, "n1", 0).await;
    assert_eq!(desk.twin.open().get(&id), open.first());
    assert!(open[0].trace.is_some() && open[0].state == State::Sent);

    let answered = Event::Answer { transaction: id, answer: approved() };
    let hints = desk.take(vec![answered]).await.expect("committed");
    assert_eq!(shown(&hints), [("T1".to_owned(), 1, Stage::Final)]);
    assert_eq!(waiting(&database, 1), shown_as_rows(&hints));
    assert_eq!(
        database.rows("select phase, account, debit, credit from audit.journal order by entry, line"),
        "pending|settlement:sandbox:TZS|500.00|\npending|float:A1:TZS||500.00\n\
         posted|settlement:sandbox:TZS|500.00|\nposted|float:A1:TZS||500.00"
    );
    assert_eq!(database.rows("select posted, reserved from ledger.float_balance"), "50000|0");
    assert_eq!(database.rows("select state, authorisation from wakala.transaction"), "APPROVED|A12345");

    deliver(&database, &hints[0]);
    assert_eq!(waiting(&database, 1), "");
}

#[tokio::test]
async fn what_is_asked_again_is_the_stored_receipt_and_moves_nothing() {
    let database = Database::new();
    let store = database.store().await;
    enrol(&store, 1).await;
    let mut desk = Desk::open(&store, "n1", 0).await;
    // Twice in one batch, again while it is open: nothing to say yet.
    desk.records(vec![withdrawal(1, 7, 500), withdrawal(1, 7, 500)]).await.expect("committed");
    let asked = std::mem::take(&mut desk.acts);
    assert_eq!(asked.len(), 1);
    assert_eq!(desk.records(vec![withdrawal(1, 7, 500)]).await, Ok(vec![]));
    desk.acts = asked;
    let receipt = desk.answer(approved()).await.expect("committed").remove(0);

    // Still queued: a hint, and the same place.
    assert_eq!(desk.records(vec![withdrawal(1, 7, 500)]).await, Ok(vec![receipt.clone()]));
    deliver(&database, &receipt);
    // Delivered: the same bytes in a new place, once, though asked twice.
    let copies = desk.records(vec![withdrawal(1, 7, 500), withdrawal(1, 7, 500)]).await.expect("committed");
    assert_eq!(copies, [Hint { seq: 2, ..receipt.clone() }]);
    assert_eq!(database.rows("select copies, delivered_at is null from wakala.receipt"), "1|t");

    // The same key for another amount is refused, and so is its repetition, with one stored answer.
    let refused = desk.records(vec![withdrawal(1, 7, 501)]).await.expect("committed");
    assert_eq!(shown(&refused), [("T1".to_owned(), 3, Stage::Final)]);
    assert_eq!(desk.records(vec![withdrawal(1, 7, 501)]).await, Ok(refused.clone()));
    assert_ne!(refused[0].answers, receipt.answers);
    assert_eq!(database.rows("select count(*) from wakala.transaction"), "1");
    assert_eq!(database.rows("select count(*) from ledger.entry"), "2");
}

#[tokio::test]
async fn a_notice_is_withdrawn_when_the_receipt_overtakes_it() {
    let database = Database::new();
    let store = database.store().await;
    for (n, delivered) in [(1, false), (2, true)] {
        enrol(&store, n).await;
        let mut desk = Desk::open(&store, "n1", 0).await;
        desk.records(vec![withdrawal(n, 7, 500)]).await.expect("committed");
        let id = TransactionId::of(&terminal(&format!("T{n}")), wakala::id::RequestKey([7; 16]));
        let notice = desk.take(vec![Event::Lost { transaction: id }]).await.expect("committed").remove(0);
        assert_eq!((notice.seq, notice.stage), (1, Stage::Notice));
        if delivered {
            deliver(&database, &notice);
        }
        let receipt = desk.answer(CoreAnswer::Reversed).await.expect("committed").remove(0);
        assert_eq!((receipt.seq, receipt.stage), (2, Stage::Final));
        assert_eq!(waiting(&database, n), shown_as_rows(std::slice::from_ref(&receipt)));
        let withdrawn =
            format!("select withdrawn_at is not null from wakala.receipt where stage = 0 and terminal = 'T{n}'");
        assert_eq!(database.rows(&withdrawn), if delivered { "f" } else { "t" });
        // Late words are kept.
        desk.take(vec![Event::Answer { transaction: id, answer: CoreAnswer::Declined(Reason::new("51")) }])
            .await
            .expect("committed");
    }
    assert_eq!(database.rows("select answer, code, count(*) from wakala.late_answer group by 1, 2"), "DECLINED|51|2");
    assert_eq!(database.rows("select state, count(*) from wakala.transaction group by 1"), "REVERSED|2");
    assert_eq!(database.rows("select phase, count(*) from ledger.entry group by 1 order by 1"), "pending|2\nvoided|2");
}

#[tokio::test]
async fn pain_06_an_owner_of_yesterday_writes_nothing() {
    let database = Database::new();
    let store = database.store().await;
    let mut old = Desk::open(&store, "n1", 0).await;
    old.records(vec![withdrawal(1, 1, 500)]).await.expect("committed");
    let mut new = Desk::open(&store, "n1", 0).await;

    assert!(matches!(old.records(vec![withdrawal(1, 2, 500)]).await, Err(Error::Fenced(_))));
    // With a core's word alone, no record: the fence holds as well.
    assert!(matches!(old.answer(approved()).await, Err(Error::Fenced(_))));
    assert_eq!(database.rows("select count(*) from wakala.transaction"), "1");

    // The right epoch and another position: somebody read on.
    let stale = store.begin(PartitionNo(0), new.epoch, Offset(0), &wakala::partition::Needs::default()).await;
    assert!(matches!(stale, Err(Error::Fenced(_))));
    // One that is under way holds the new owner up, and counts.
    let events = new.as_events(vec![withdrawal(1, 3, 500)]);
    let (work, decision, sealed) = new.decide(events).await.expect("begun");
    let loading = {
        let store = store.clone();
        tokio::spawn(async move { store.load_partition(PartitionNo(0), "n1").await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!loading.is_finished());
    work.commit(decision, sealed).await.expect("committed");
    let (_, position, open) = loading.await.expect("no panic").expect("loaded");
    assert_eq!((position, open.len()), (Offset(2), 2));

    // Another node has no business here while the lease is ours.
    assert!(matches!(store.load_partition(PartitionNo(0), "n2").await, Err(Error::Fenced(_))));
}

#[tokio::test]
async fn pain_05_work_that_is_dropped_never_was_and_frees_its_locks() {
    let database = Database::new();
    let store = database.store().await;
    let mut desk = Desk::open(&store, "n1", 0).await;
    for _ in 0..40 {
        let events = desk.as_events(vec![deposit(1, 1, 500)]);
        let mut spare = Desk::open(&store, "n1", 0).await;
        let (work, ..) = spare.decide(events).await.expect("begun");
        // On a thread without a runtime, as an actor's may be when it panics.
        std::thread::spawn(move || drop(work)).join().expect("no panic");
    }
    desk = Desk::open(&store, "n1", 0).await;
    desk.records(vec![withdrawal(1, 1, 500)]).await.expect("committed");
    assert_eq!(database.rows("select count(*) from wakala.transaction"), "1");
}

#[tokio::test]
async fn an_owner_that_sleeps_in_the_middle_does_not_keep_its_partition() {
    let database = Database::new();
    let options = Options { idle_timeout: Duration::from_millis(200), ..database.options() };
    let sleeper = Store::connect(&options).await.expect("the database is there");
    let store = database.store().await;
    enrol(&store, 1).await;
    let mut asleep = Desk::open(&sleeper, "n1", 0).await;
    let events = asleep.as_events(vec![withdrawal(1, 1, 500)]);
    let (work, decision, sealed) = asleep.decide(events).await.expect("begun");
    // The lease of the one that sleeps is over, and another node loads: it waits for the row no longer than that.
    let over = "update wakala.partition_owner set lease_until = now() - interval '1 second'";
    assert_eq!(database.rows(over), "");
    let mut awake = Desk::open(&store, "n2", 0).await;
    awake.records(vec![withdrawal(1, 1, 500)]).await.expect("committed");
    assert!(work.commit(decision, sealed).await.is_err(), "what it wakes up with is void");
    assert_eq!(database.rows("select count(*) from wakala.transaction"), "1");
}

#[tokio::test]
async fn two_deposits_that_exceed_a_float_together_do_not_both_pass() {
    let database = Database::new();
    let store = database.store().await;
    // One agent with two terminals in two partitions, and 900 to pay in.
    let mut left = Desk::open(&store, "n1", 0).await;
    left.records(vec![withdrawal(1, 1, 900)]).await.expect("committed");
    left.answer(approved()).await.expect("committed");
    for round in 0..5 {
        let mut left = Desk::open(&store, "n1", 0).await;
        let mut right = Desk::open(&store, "n1", 1).await;
        let mut other = deposit(1, 100 + round, 600);
        other.terminal = terminal("T2");
        let (one, two) = (left.as_events(vec![deposit(1, 10 + round, 600)]), right.as_events(vec![other]));
        let (one, two) = tokio::join!(left.take(one), right.take(two));
        let told = one.expect("committed").len() + two.expect("committed").len();
        assert_eq!((told, left.acts.len() + right.acts.len()), (1, 1), "one is declined at once, one is asked for");
        assert_eq!(database.rows("select posted, reserved from ledger.float_balance"), "900|600");
        // The core declines, and the money is free again.
        let asked = if left.acts.is_empty() { &mut right } else { &mut left };
        asked.answer(CoreAnswer::Declined(Reason::new("05"))).await.expect("committed");
        assert_eq!(database.rows("select posted, reserved from ledger.float_balance"), "900|0");
    }
    assert_eq!(
        database.rows("select code, count(*) from wakala.transaction where kind = 'DEPOSIT' group by 1 order by 1"),
        "05|5\n51|5"
    );
}

#[tokio::test]
async fn partitions_that_want_the_same_floats_crosswise_both_commit() {
    let database = Database::new();
    let store = database.store().await;
    let mut zero = Desk::open(&store, "n1", 0).await;
    zero.records(vec![withdrawal(1, 1, 10_000), withdrawal(2, 1, 10_000)]).await.expect("committed");
    zero.answer(approved()).await.expect("committed");
    // Each holds the float that the other's answered withdrawal is going to move.
    let (mut left, mut right) = (Desk::open(&store, "n1", 0).await, Desk::open(&store, "n1", 1).await);
    for round in 0..10_u8 {
        left.records(vec![withdrawal(2, 50 + round, 100)]).await.expect("committed");
        right.records(vec![withdrawal(1, 150 + round, 100)]).await.expect("committed");
        let crossed = |desk: &mut Desk, n: u8, key: u8| {
            let acts = std::mem::take(&mut desk.acts);
            let wakala::partition::Act::Ask(asked) = &acts[0] else { panic!("asked") };
            let mut events = desk.as_events(vec![deposit(n, key, 50)]);
            events.push(Event::Answer { transaction: asked.id, answer: approved() });
            events
        };
        let (one, two) = (crossed(&mut left, 1, 20 + round), crossed(&mut right, 2, 120 + round));
        let (one, two) = tokio::join!(left.decide(one), right.decide(two));
        let ((one, first, sealed), (two, second, also)) = (one.expect("begun"), two.expect("begun"));
        let began = std::time::Instant::now();
        let (one, two) = tokio::join!(one.commit(first, sealed), two.commit(second, also));
        assert_eq!((one.expect("committed").len(), two.expect("committed").len()), (1, 1));
        // Not by Postgres' deadlock detection, which looks after a second.
        assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    }
    assert_eq!(
        database.rows("select posted, reserved from ledger.float_balance order by account_id"),
        "11000|500\n11000|500"
    );
}

#[tokio::test]
async fn records_that_kill_are_counted_and_parked_ones_are_kept() {
    let database = Database::new();
    let store = database.store().await;
    let mut desk = Desk::open(&store, "n1", 0).await;
    for attempt in 1..=3 {
        assert_eq!(store.suspect(PartitionNo(0), desk.epoch, Offset(0)).await, Ok(attempt));
    }
    let unreadable = Event::Unreadable { offset: Offset(0), why: "it kills".to_owned() };
    assert_eq!(desk.take(vec![unreadable]).await, Ok(vec![]));
    assert_eq!(database.rows(r#"select partition, "offset", why from wakala.parked"#), "0|0|it kills");
    let desk = Desk::open(&store, "n1", 0).await;
    assert_eq!(desk.twin.position(), Offset(1));
    assert_eq!(database.rows("select count(*) from wakala.suspect"), "0");
    let parked: Vec<_> =
        store.partition_figures().await.expect("asked").iter().map(|of| (of.partition, of.parked)).collect();
    assert_eq!(parked, [(0, 1), (1, 0), (2, 0), (3, 0)]);
}

#[tokio::test]
async fn nodes_share_the_partitions_and_inherit_those_of_the_dead() {
    let database = Database::new();
    let store = database.store().await;
    let lease = Duration::from_secs(2);
    let claim = |node: &'static str| {
        let store = store.clone();
        async move { store.claim_partitions(node, 6, lease).await.expect("claimed").iter().map(|p| p.0).collect::<Vec<_>>() }
    };
    assert_eq!(claim("a").await, [0, 1, 2, 3, 4, 5]);
    assert_eq!(claim("b").await, [0_u16; 0], "they are taken");
    assert_eq!(claim("a").await, [0, 1, 2], "it lets go of what is beyond its share");
    assert_eq!(claim("b").await, [3, 4, 5]);
    store.release_partitions("a").await.expect("released");
    assert_eq!(claim("b").await, [0, 1, 2, 3, 4, 5]);
    // b dies: when its lease has run out, c inherits.
    assert_eq!(claim("c").await, [0_u16; 0]);
    tokio::time::sleep(lease + Duration::from_millis(200)).await;
    assert_eq!(claim("c").await, [0, 1, 2, 3, 4, 5]);
    assert!(matches!(store.load_partition(PartitionNo(0), "b").await, Err(Error::Fenced(_))));
}

#[tokio::test]
async fn a_terminal_is_enrolled_once_blocked_and_found() {
    let database = Database::new();
    let store = database.store().await;
    let one = Terminal {
        id: terminal("T1"),
        agent: agent("A1"),
        core: core(),
        password_hash: None,
        certificate_sha256: Some([5; 32]),
        blocked: None,
        sandbox: false,
        enrolled_at: now(),
    };
    assert_eq!(store.enrol_terminal(one.clone(), Currency::TZS).await, Ok(Enrolment::Done));
    assert_eq!(store.enrol_terminal(one.clone(), Currency::TZS).await, Ok(Enrolment::NameTaken));
    let two = Terminal { id: terminal("T2"), ..one.clone() };
    assert_eq!(store.enrol_terminal(two.clone(), Currency::TZS).await, Ok(Enrolment::CertificateTaken));
    let two = Terminal { certificate_sha256: None, password_hash: Some("x".to_owned()), ..two };
    assert_eq!(store.enrol_terminal(two.clone(), Currency::TZS).await, Ok(Enrolment::Done));

    assert_eq!(store.terminal(&one.id).await, Ok(Some(one.clone())));
    assert_eq!(
        store.look_up(vec![Sought::Certificate([5; 32]), Sought::Name(one.id.clone())]).await,
        Ok(vec![Some(one.clone()), Some(one.clone())])
    );
    assert_eq!(store.look_up(vec![Sought::Certificate([6; 32])]).await, Ok(vec![None]));
    assert_eq!(store.terminals(None, 10).await, Ok(vec![one.clone(), two.clone()]));
    assert_eq!(store.terminals(Some(&one.id), 10).await, Ok(vec![two]));
    let at = now();
    assert_eq!(store.block_terminal(&one.id, "stolen", "test", at).await, Ok(true));
    assert_eq!(store.block_terminal(&one.id, "lost", "test", now()).await, Ok(true));
    let blocked = store.terminal(&one.id).await.expect("asked").expect("there").blocked.expect("blocked");
    assert_eq!((blocked.at, blocked.why.as_str()), (at, "stolen"));
    assert_eq!(store.unblock_terminal(&one.id, "test", now()).await, Ok(true));
    assert_eq!(store.unblock_terminal(&terminal("T9"), "test", now()).await, Ok(false));
    // Its session and its agent's float are there from the start.
    assert_eq!(database.rows("select string_agg(client_id, ' ' order by client_id) from wakala.session"), "T1 T2");
    assert_eq!(database.rows("select agent, currency, free from audit.agent_float"), "A1|TZS|0.00");
}

#[tokio::test]
async fn a_late_owner_suspects_nothing() {
    let database = Database::new();
    let store = database.store().await;
    let late = Desk::open(&store, "n1", 0).await;
    let now = Desk::open(&store, "n1", 0).await;
    assert_eq!(store.suspect(PartitionNo(0), now.epoch, Offset(7)).await, Ok(1));
    assert!(matches!(store.suspect(PartitionNo(0), late.epoch, Offset(7)).await, Err(Error::Fenced(_))));
    assert_eq!(store.suspect(PartitionNo(0), now.epoch, Offset(7)).await, Ok(2));
}
