//! What one decision writes, one statement per table: arrays through `unnest`, so that a batch of a hundred
//! transactions costs as many round trips as one.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm::sqlx::{self, PgConnection};
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::id::{Epoch, TerminalId, TransactionId};
use wakala::ledger::{Account, Phase};
use wakala::partition::Decision;
use wakala::receipt::{Answer, Stage};
use wakala::transaction::CoreAnswer;

use super::receipts::{Hint, stage_of, terminal_of};
use super::{Error, timestamp};

/// Every account that the decision books on or moves.
pub(super) fn accounts(decision: &Decision) -> BTreeSet<Account> {
    let booked = decision.entries.iter().flat_map(|entry| &entry.postings).map(|posting| &posting.account);
    booked.chain(decision.floats.iter().map(|moved| &moved.account)).cloned().collect()
}

fn number(accounts: &BTreeMap<Account, i64>, account: &Account) -> Result<i64, Error> {
    accounts.get(account).copied().ok_or_else(|| Error::Broken(format!("no account {account}")))
}

/// Entries with their postings, and the balance rows of floats.
pub(super) async fn write_ledger(
    db: &mut PgConnection,
    decision: &Decision,
    accounts: &BTreeMap<Account, i64>,
) -> Result<(), Error> {
    write_entries(db, decision, accounts).await?;
    // One update per row, whatever the batch moves on it.
    let mut moves: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for moved in &decision.floats {
        let sums = moves.entry(number(accounts, &moved.account)?).or_default();
        let beyond = || Error::Broken(format!("{} moves by more than can be counted", moved.account));
        sums.0 = sums.0.checked_add(moved.posted).ok_or_else(beyond)?;
        sums.1 = sums.1.checked_add(moved.reserved).ok_or_else(beyond)?;
    }
    moves.retain(|_, sums| *sums != (0, 0));
    if moves.is_empty() {
        return Ok(());
    }
    let moved = sqlx::query(
        "update ledger.float_balance b set posted = b.posted + m.posted, reserved = b.reserved + m.reserved \
         from unnest($1::bigint[], $2::bigint[], $3::bigint[]) m (account, posted, reserved) \
         where b.account_id = m.account",
    )
    .bind(moves.keys().copied().collect::<Vec<_>>())
    .bind(moves.values().map(|sums| sums.0).collect::<Vec<_>>())
    .bind(moves.values().map(|sums| sums.1).collect::<Vec<_>>())
    .execute(db)
    .await?;
    whole("balance", moved.rows_affected(), moves.len())
}

async fn write_entries(
    db: &mut PgConnection,
    decision: &Decision,
    accounts: &BTreeMap<Account, i64>,
) -> Result<(), Error> {
    if decision.entries.is_empty() {
        return Ok(());
    }
    let entries = &decision.entries;
    let (mut transactions, mut phases, mut lines, mut numbers, mut minors): (Vec<Uuid>, Vec<&str>, Vec<i16>, _, _) =
        (vec![], vec![], vec![], vec![], vec![]);
    for entry in entries {
        for (line, posting) in (1..).zip(&entry.postings) {
            transactions.push(entry.transaction.0);
            phases.push(entry.phase.as_str());
            lines.push(line);
            numbers.push(number(accounts, &posting.account)?);
            minors.push(posting.minor);
        }
    }
    let postings = transactions.len();
    // Entry and postings in one statement: the database's own checks see them whole.
    let (entered, posted): (i64, i64) = sqlx::query_as(
        "with entered as (insert into ledger.entry (transaction, phase, at) \
             select e.transaction, e.phase, e.at \
             from unnest($1::uuid[], $2::text[], $3::timestamptz[]) with ordinality e (transaction, phase, at, nth) \
             order by e.nth returning id, transaction, phase), \
         posted as (insert into ledger.posting (entry_id, line, account_id, minor) \
             select e.id, p.line, p.account, p.minor \
             from unnest($4::uuid[], $5::text[], $6::smallint[], $7::bigint[], $8::bigint[]) \
                  p (transaction, phase, line, account, minor) \
             join entered e on e.transaction = p.transaction and e.phase = p.phase returning 1) \
         select (select count(*) from entered), (select count(*) from posted)",
    )
    .bind(entries.iter().map(|entry| entry.transaction.0).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| Phase::as_str(entry.phase)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| timestamp(entry.at)).collect::<Vec<_>>())
    .bind(transactions)
    .bind(phases)
    .bind(lines)
    .bind::<Vec<i64>>(numbers)
    .bind::<Vec<i64>>(minors)
    .fetch_one(db)
    .await?;
    whole("entry", entered.unsigned_abs(), entries.len())?;
    whole("posting", posted.unsigned_abs(), postings)
}

fn whole(what: &str, written: u64, wanted: usize) -> Result<(), Error> {
    if usize::try_from(written) == Ok(wanted) {
        return Ok(());
    }
    Err(Error::Broken(format!("{written} of {wanted} {what} rows written")))
}

/// What a core said too late, and records that are not followed.
pub(super) async fn write_asides(db: &mut PgConnection, partition: i16, decision: &Decision) -> Result<(), Error> {
    if !decision.late.is_empty() {
        let words: Vec<(&str, Option<&str>)> = decision.late.iter().map(|late| word(&late.answer)).collect();
        sqlx::query(
            "insert into wakala.late_answer (transaction, answer, code, at) \
             select * from unnest($1::uuid[], $2::text[], $3::text[], $4::timestamptz[])",
        )
        .bind(decision.late.iter().map(|late| late.transaction.0).collect::<Vec<_>>())
        .bind(words.iter().map(|word| word.0).collect::<Vec<_>>())
        .bind(words.iter().map(|word| word.1).collect::<Vec<_>>())
        .bind(decision.late.iter().map(|late| timestamp(late.at)).collect::<Vec<_>>())
        .execute(&mut *db)
        .await?;
    }
    if !decision.parked.is_empty() {
        sqlx::query(
            r#"insert into wakala.parked (partition, "offset", why, at)
               select $1, * from unnest($2::bigint[], $3::text[], $4::timestamptz[])"#,
        )
        .bind(partition)
        .bind(decision.parked.iter().map(|parked| parked.offset.0).collect::<Vec<_>>())
        .bind(decision.parked.iter().map(|parked| parked.why.as_str()).collect::<Vec<_>>())
        .bind(decision.parked.iter().map(|parked| timestamp(parked.at)).collect::<Vec<_>>())
        .execute(db)
        .await?;
    }
    Ok(())
}

/// A core's word, and its data element 39 (38 where it approved).
fn word(answer: &CoreAnswer) -> (&'static str, Option<&str>) {
    match answer {
        CoreAnswer::Approved { authorisation } => ("APPROVED", Some(authorisation)),
        CoreAnswer::Declined(reason) => ("DECLINED", Some(reason.as_str())),
        CoreAnswer::Reversed => ("REVERSED", None),
        CoreAnswer::ReversalRefused(reason) => ("REVERSAL_REFUSED", Some(reason.as_str())),
    }
}

/// A stored answer that was asked for again.
struct Stored {
    answers: Uuid,
    stage: Stage,
    terminal: TerminalId,
    seq: i64,
    envelope: Vec<u8>,
    delivered: bool,
}

/// Stores new receipts and notices, takes back notices that a receipt overtook, and queues again what was delivered and
/// is asked for again. Gives what terminals can be woken for, by terminal in the order of delivery.
pub(super) async fn write_receipts(
    db: &mut PgConnection,
    sealed: &[(Answer, Vec<u8>)],
    again: &[TransactionId],
) -> Result<Vec<Hint>, Error> {
    // What is answered in this very commit is queued by it; asking again changes nothing.
    let fresh: BTreeSet<TransactionId> = sealed.iter().map(|(answer, _)| answer.answers).collect();
    let again: BTreeSet<TransactionId> = again.iter().filter(|id| !fresh.contains(id)).copied().collect();
    let stored = stored_answers(db, &again).await?;

    let mut wanted: BTreeMap<&str, i64> = BTreeMap::new();
    let requeued = stored.iter().filter(|stored| stored.delivered).map(|stored| &stored.terminal);
    for terminal in sealed.iter().map(|(answer, _)| &answer.terminal).chain(requeued) {
        *wanted.entry(terminal.as_str()).or_default() += 1;
    }
    let mut next = draw_seqs(db, &wanted).await?;
    let mut draw = |terminal: &TerminalId| -> Result<i64, Error> {
        let none = || Error::Broken(format!("no sequence for {terminal}"));
        let next = next.get_mut(terminal.as_str()).ok_or_else(none)?;
        *next += 1;
        Ok(*next - 1)
    };

    let mut hints = Vec::with_capacity(sealed.len() + stored.len());
    for (answer, envelope) in sealed {
        hints.push(Hint {
            terminal: answer.terminal.clone(),
            seq: draw(&answer.terminal)?,
            answers: answer.answers,
            stage: answer.stage,
            envelope: envelope.clone(),
        });
    }
    insert_receipts(db, sealed, &hints).await?;
    withdraw_notices(db, sealed).await?;
    let overtaken = finals(sealed);
    hints.retain(|hint| hint.stage == Stage::Final || !overtaken.contains_key(&hint.answers));

    let mut requeue = (Vec::new(), Vec::new(), Vec::new());
    for stored in stored {
        let seq = if stored.delivered { draw(&stored.terminal)? } else { stored.seq };
        if stored.delivered {
            requeue.0.push(stored.answers);
            requeue.1.push(stage_number(stored.stage));
            requeue.2.push(seq);
        }
        let Stored { answers, stage, terminal, envelope, .. } = stored;
        hints.push(Hint { terminal, seq, answers: TransactionId(answers), stage, envelope });
    }
    if !requeue.0.is_empty() {
        sqlx::query(
            "with r as (update wakala.receipt r set seq = q.seq, delivered_at = null, copies = r.copies + 1 \
               from unnest($1::uuid[], $2::smallint[], $3::bigint[]) q (answers, stage, seq) \
               where r.answers = q.answers and r.stage = q.stage returning 1) \
             insert into wakala.tally select 'receipt_created', count(*) from r having count(*) > 0",
        )
        .bind(requeue.0)
        .bind(requeue.1)
        .bind(requeue.2)
        .execute(db)
        .await?;
    }
    hints.sort_by(|a, b| (&a.terminal, a.seq).cmp(&(&b.terminal, b.seq)));
    Ok(hints)
}

fn stage_number(stage: Stage) -> i16 {
    match stage {
        Stage::Notice => 0,
        Stage::Final => 1,
    }
}

/// The transactions that have their receipt now, and when it was made.
fn finals(sealed: &[(Answer, Vec<u8>)]) -> BTreeMap<TransactionId, OffsetDateTime> {
    let receipts = sealed.iter().map(|(answer, _)| answer).filter(|answer| answer.stage == Stage::Final);
    receipts.map(|answer| (answer.answers, timestamp(answer.at))).collect()
}

async fn stored_answers(db: &mut PgConnection, again: &BTreeSet<TransactionId>) -> Result<Vec<Stored>, Error> {
    if again.is_empty() {
        return Ok(Vec::new());
    }
    // The receipt where there is one, else the notice; of an open transaction that was told nothing yet, neither.
    let rows: Vec<(Uuid, i16, String, i64, Vec<u8>, bool)> = sqlx::query_as(
        "select distinct on (answers) answers, stage, terminal, seq, envelope, delivered_at is not null \
         from wakala.receipt where answers = any($1) order by answers, stage desc",
    )
    .bind(again.iter().map(|id| id.0).collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    let read = |(answers, stage, terminal, seq, envelope, delivered): (Uuid, i16, String, i64, Vec<u8>, bool)| {
        Ok(Stored { answers, stage: stage_of(stage)?, terminal: terminal_of(&terminal)?, seq, envelope, delivered })
    };
    rows.into_iter().map(read).collect()
}

/// Draws so many numbers for each terminal and gives the first. The session's row stays locked until the commit, so
/// that numbers become visible in their order.
pub(super) async fn draw_seqs(
    db: &mut PgConnection,
    wanted: &BTreeMap<&str, i64>,
) -> Result<BTreeMap<String, i64>, Error> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut drawn = draw_existing(db, wanted).await?;
    let missing: BTreeMap<&str, i64> =
        wanted.iter().filter(|(client, _)| !drawn.contains_key(**client)).map(|(client, n)| (*client, *n)).collect();
    if !missing.is_empty() {
        // A session exists from enrolment on; one that is gone nevertheless must not keep a receipt from its terminal.
        sqlx::query(
            "insert into wakala.session (client_id, created_at) select client, now() from unnest($1::text[]) client \
             order by client on conflict do nothing",
        )
        .bind(missing.keys().copied().collect::<Vec<_>>())
        .execute(&mut *db)
        .await?;
        drawn.extend(draw_existing(db, &missing).await?);
    }
    Ok(drawn.into_iter().map(|(client, drawn)| (client, drawn.next)).collect())
}

/// Places of a queue that were drawn.
pub(super) struct Drawn {
    /// The first of them.
    pub(super) next: i64,
    /// Of the connection that the session began with.
    pub(super) began: Epoch,
}

/// Draws so many places in the queues of those of these clients who have a session.
pub(super) async fn draw_existing(
    db: &mut PgConnection,
    wanted: &BTreeMap<&str, i64>,
) -> Result<BTreeMap<String, Drawn>, Error> {
    let rows: Vec<(String, i64, i64)> = sqlx::query_as(
        "with wanted as (select * from unnest($1::text[], $2::bigint[]) w (client, n)), \
              locked as (select s.client_id from wakala.session s where s.client_id = any($1) \
                         order by s.client_id for no key update) \
         update wakala.session s set next_seq = s.next_seq + w.n \
         from wanted w join locked l on l.client_id = w.client where s.client_id = w.client \
         returning s.client_id, s.next_seq - w.n, s.began",
    )
    .bind(wanted.keys().copied().collect::<Vec<_>>())
    .bind(wanted.values().copied().collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|(client, next, began)| (client, Drawn { next, began: Epoch(began) })).collect())
}

async fn insert_receipts(db: &mut PgConnection, sealed: &[(Answer, Vec<u8>)], hints: &[Hint]) -> Result<(), Error> {
    if sealed.is_empty() {
        return Ok(());
    }
    let overtaken = finals(sealed);
    let withdrawn = |answer: &Answer| match answer.stage {
        Stage::Final => None,
        Stage::Notice => overtaken.get(&answer.answers).copied(),
    };
    sqlx::query(
        "with r as (insert into wakala.receipt (answers, stage, terminal, seq, envelope, at, withdrawn_at) \
           select * from unnest($1::uuid[], $2::smallint[], $3::text[], $4::bigint[], $5::bytea[], $6::timestamptz[], \
           $7::timestamptz[]) returning withdrawn_at) \
         insert into wakala.tally select 'receipt_created', count(*) from r having count(*) > 0 \
         union all select 'receipt_withdrawn', count(*) from r where withdrawn_at is not null having count(*) > 0",
    )
    .bind(sealed.iter().map(|(answer, _)| answer.answers.0).collect::<Vec<_>>())
    .bind(sealed.iter().map(|(answer, _)| stage_number(answer.stage)).collect::<Vec<_>>())
    .bind(sealed.iter().map(|(answer, _)| answer.terminal.as_str()).collect::<Vec<_>>())
    .bind(hints.iter().map(|hint| hint.seq).collect::<Vec<_>>())
    .bind(sealed.iter().map(|(_, envelope)| envelope.as_slice()).collect::<Vec<_>>())
    .bind(sealed.iter().map(|(answer, _)| timestamp(answer.at)).collect::<Vec<_>>())
    .bind(sealed.iter().map(|(answer, _)| withdrawn(answer)).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}

/// A notice that was not delivered when the receipt came says nothing any more. Locked in the order of acknowledgements,
/// which may come for the same notices.
async fn withdraw_notices(db: &mut PgConnection, sealed: &[(Answer, Vec<u8>)]) -> Result<(), Error> {
    let finals = finals(sealed);
    if finals.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "with w as (select r.answers, f.at from unnest($1::uuid[], $2::timestamptz[]) f (answers, at) \
           join wakala.receipt r on r.answers = f.answers and r.stage = 0 \
           where r.delivered_at is null and r.withdrawn_at is null order by r.answers for no key update of r), \
         done as (update wakala.receipt r set withdrawn_at = w.at from w \
           where r.answers = w.answers and r.stage = 0 and r.delivered_at is null and r.withdrawn_at is null returning 1) \
         insert into wakala.tally select 'receipt_withdrawn', count(*) from done having count(*) > 0",
    )
    .bind(finals.keys().map(|id| id.0).collect::<Vec<_>>())
    .bind(finals.values().copied().collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}
