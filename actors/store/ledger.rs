//! The ledger, looked at from outside: everything computed again, and one transaction with all that belongs to it.

use sea_orm::sqlx::{self, PgConnection, Row as _};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;
use wakala::id::TransactionId;
use wakala::ledger::Account;
use wakala::receipt::Stage;
use wakala::time::Time;
use wakala::transaction::Transaction;

use super::receipts::stage_of;
use super::{Error, Store, time_of, transactions};

/// What was looked at, and the first thing found wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub accounts: i64,
    pub entries: i64,
    pub postings: i64,
    pub transactions: i64,
    /// Not final yet: ACCEPTED, SENT, IN_DOUBT.
    pub open: i64,
    pub approved: i64,
    pub declined: i64,
    pub reversed: i64,
    /// Final receipts; the PENDING notices are not among them.
    pub receipts: i64,
    /// `None` when everything agrees.
    pub first_break: Option<Break>,
}

/// A rule that does not hold, and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Break {
    pub rule: String,
    pub what: String,
}

/// Rules and the statements that find the first row that breaks each, in words. They do not trust the database's own
/// checks: a superuser, a disk or a restored dump may have gone round them.
const RULES: [(&str, &str); 23] = [
    (
        "an account's name says what it is, and is one account's",
        "select format('account %s, %s: %s of %s in %s; %s of that name', a.id, a.name, a.kind, a.owner, a.currency, n.n)
         from ledger.account a join (select name, count(*) as n from ledger.account group by name) n using (name)
         where a.name <> format('%s:%s:%s', a.kind, a.owner, a.currency) or n.n <> 1 order by a.id limit 1",
    ),
    (
        "a balance row is a float's",
        "select format('balance row of account %s, which is %s', b.account_id, coalesce(a.name, 'none'))
         from ledger.float_balance b left join ledger.account a on a.id = b.account_id
         where a.kind is distinct from 'float' order by b.account_id limit 1",
    ),
    (
        "every posting is of an entry and on an account",
        "select format('line %s of entry %s on account %s', p.line, p.entry_id, p.account_id) from ledger.posting p
         left join ledger.entry e on e.id = p.entry_id left join ledger.account a on a.id = p.account_id
         where e.id is null or a.id is null order by p.entry_id, p.line limit 1",
    ),
    (
        "every entry sums to zero in every currency",
        "select format('entry %s (%s of %s) sums to %s %s', e.id, e.phase, e.transaction, sum(p.minor), a.currency)
         from ledger.entry e join ledger.posting p on p.entry_id = e.id join ledger.account a on a.id = p.account_id
         group by e.id, a.currency having sum(p.minor) <> 0 order by e.id limit 1",
    ),
    (
        "pending and posted entries have postings, voided ones none",
        "select format('entry %s (%s of %s) has %s postings', e.id, e.phase, e.transaction, count(p.line))
         from ledger.entry e left join ledger.posting p on p.entry_id = e.id
         group by e.id having (e.phase = 'voided') <> (count(p.line) = 0) order by e.id limit 1",
    ),
    (
        "an entry's lines are numbered from 1",
        "select format('entry %s has the lines %s', entry_id, string_agg(line::text, ', ' order by line))
         from ledger.posting group by entry_id having min(line) <> 1 or max(line) <> count(distinct line)
                or count(*) <> count(distinct line) order by entry_id limit 1",
    ),
    (
        "a transaction has one pending entry, and at most one that resolves it, which comes later",
        "select format('transaction %s: %s', transaction, string_agg(phase, ', ' order by id)) from ledger.entry
         group by transaction
         having count(*) filter (where phase = 'pending') <> 1 or count(*) > 2
                or min(id) <> min(id) filter (where phase = 'pending')
         order by min(id) limit 1",
    ),
    (
        "what is posted is what was pending",
        "with lines as (select e.transaction, e.phase, array_agg((p.account_id, p.minor) order by p.account_id, p.minor) as lines
                        from ledger.entry e join ledger.posting p on p.entry_id = e.id group by e.id)
         select format('transaction %s: pending %s, posted %s', transaction, p.lines, q.lines)
         from lines p join lines q using (transaction)
         where p.phase = 'pending' and q.phase = 'posted' and p.lines <> q.lines order by transaction limit 1",
    ),
    (
        "every entry is of a transaction",
        "select format('entry %s is of %s, which is none', e.id, e.transaction) from ledger.entry e
         left join wakala.transaction t on t.id = e.transaction where t.id is null order by e.id limit 1",
    ),
    (
        "every entry books its transaction's amount between its agent's float and its core's settlement account",
        "select format('entry %s of transaction %s (%s of %s %s) has line %s: %s %s', e.id, t.id, t.kind, t.amount, t.currency,
                       p.line, a.name, p.minor)
         from ledger.posting p join ledger.entry e on e.id = p.entry_id join ledger.account a on a.id = p.account_id
         join wakala.transaction t on t.id = e.transaction
         where a.name <> case a.kind when 'float' then format('float:%s:%s', t.agent, t.currency)
                                     else format('settlement:%s:%s', t.core, t.currency) end
            or p.minor <> case when (a.kind = 'float') = (t.kind = 'DEPOSIT') then t.amount else -t.amount end
            or (select count(*) from ledger.posting q where q.entry_id = e.id) <> 2
         order by e.id, p.line limit 1",
    ),
    (
        "an approved transaction has one posted entry",
        "select format('transaction %s is APPROVED and has %s posted entries', t.id, count(e.id)) from wakala.transaction t
         left join ledger.entry e on e.transaction = t.id and e.phase = 'posted'
         where t.state = 'APPROVED' group by t.id having count(e.id) <> 1 order by t.id limit 1",
    ),
    (
        "a declined or reversed transaction has nothing posted, and what was pending is voided",
        "select format('transaction %s is %s and has: %s', t.id, t.state, string_agg(e.phase, ', ' order by e.id))
         from wakala.transaction t join ledger.entry e on e.transaction = t.id
         where t.state in ('DECLINED', 'REVERSED') group by t.id
         having count(*) filter (where e.phase = 'posted') > 0 or count(*) filter (where e.phase = 'voided') <> 1
         order by t.id limit 1",
    ),
    (
        "a transaction that was sent to its core was pending",
        "select format('transaction %s is %s, STAN %s, and has no entry', t.id, t.state, t.stan) from wakala.transaction t
         where t.stan is not null and not exists (select from ledger.entry e where e.transaction = t.id)
         order by t.id limit 1",
    ),
    (
        "a retrieval reference number ends in its transaction's STAN",
        "select format('transaction %s: %s does not end in %s', id, rrn, lpad(stan::text, 6, '0')) from wakala.transaction
         where right(rrn, 6) <> lpad(stan::text, 6, '0') order by id limit 1",
    ),
    (
        "an open transaction is pending and no more",
        "select format('transaction %s is %s and has: %s', t.id, t.state,
                       coalesce(string_agg(e.phase, ', ' order by e.id), 'no entry'))
         from wakala.transaction t left join ledger.entry e on e.transaction = t.id
         where t.state in ('ACCEPTED', 'SENT', 'IN_DOUBT') group by t.id
         having count(*) filter (where e.phase = 'pending') <> 1 or count(e.id) <> 1 order by t.id limit 1",
    ),
    (
        "a float's balance is what is posted and what is held",
        "with posted as (select p.account_id, -sum(p.minor) as minor from ledger.posting p
                         join ledger.entry e on e.id = p.entry_id and e.phase = 'posted' group by p.account_id),
              held as (select p.account_id, sum(p.minor) as minor from ledger.posting p
                       join ledger.entry e on e.id = p.entry_id and e.phase = 'pending' and p.minor > 0
                       where not exists (select from ledger.entry r where r.transaction = e.transaction and r.phase <> 'pending')
                       group by p.account_id)
         select format('%s has %s posted and %s reserved; its entries say %s and %s', a.name,
                       coalesce(b.posted::text, 'no row'), coalesce(b.reserved::text, 'no row'),
                       coalesce(posted.minor, 0), coalesce(held.minor, 0))
         from ledger.account a left join ledger.float_balance b on b.account_id = a.id
         left join posted on posted.account_id = a.id left join held on held.account_id = a.id
         where a.kind = 'float' and (b.account_id is null or b.posted <> coalesce(posted.minor, 0)
                                     or b.reserved <> coalesce(held.minor, 0)) order by a.id limit 1",
    ),
    (
        "no float is below its floor",
        "select format('%s has %s posted, %s reserved and the floor %s', a.name, b.posted, b.reserved, b.floor)
         from ledger.float_balance b join ledger.account a on a.id = b.account_id
         where b.posted - b.reserved < b.floor or b.reserved < 0 order by a.id limit 1",
    ),
    (
        "every final transaction has one receipt, its own terminal's",
        "select format('transaction %s of %s is %s and has %s receipts%s', t.id, t.terminal, t.state, count(r.answers),
                       coalesce(' for ' || string_agg(r.terminal, ', '), ''))
         from wakala.transaction t left join wakala.receipt r on r.answers = t.id and r.stage = 1
         where t.state in ('APPROVED', 'DECLINED', 'REVERSED') group by t.id
         having count(r.answers) <> 1 or min(r.terminal) <> t.terminal order by t.id limit 1",
    ),
    (
        "no open transaction has a receipt",
        "select format('transaction %s is %s and has a receipt', t.id, t.state) from wakala.transaction t
         join wakala.receipt r on r.answers = t.id and r.stage = 1
         where t.state in ('ACCEPTED', 'SENT', 'IN_DOUBT') order by t.id limit 1",
    ),
    (
        "a terminal's key is one transaction",
        "select format('terminal %s, key %s: %s transactions', terminal, encode(key, 'hex'), count(*))
         from wakala.transaction group by terminal, key having count(*) > 1 order by terminal limit 1",
    ),
    (
        "a transaction's identity is that of its terminal and its key",
        // The first 16 bytes of a SHA-256 with the version and variant bits of RFC 9562, version 8.
        "with named as (select id, terminal, key, substring(sha256(convert_to(terminal, 'UTF8') || '\\x00' || key) for 16) as d
                        from wakala.transaction)
         select format('transaction %s is not the one of terminal %s and key %s', id, terminal, encode(key, 'hex')) from named
         where uuid_send(id) <> set_byte(set_byte(d, 6, get_byte(d, 6) & 15 | 128), 8, get_byte(d, 8) & 63 | 128)
         order by id limit 1",
    ),
    (
        "an entry that resolves a transaction is of the moment of its receipt",
        "select format('entry %s (%s of %s) is of %s, the receipt of %s', e.id, e.phase, e.transaction, e.at, r.at)
         from ledger.entry e join wakala.receipt r on r.answers = e.transaction and r.stage = 1
         where e.phase <> 'pending' and e.at <> r.at order by e.id limit 1",
    ),
    (
        "the ledger's own checks are in place, and the service cannot change what is written",
        GUARDS,
    ),
];

/// What `migrations` put around the ledger: without it nothing is wrong yet, and anything may become so.
const GUARDS: &str = "with wanted (kind, place, name) as (values
        ('trigger', 'account', 'only_added_to'), ('trigger', 'entry', 'only_added_to'),
        ('trigger', 'posting', 'only_added_to'), ('trigger', 'float_balance', 'only_updated'),
        ('trigger', 'posting', 'balanced'), ('trigger', 'entry', 'in_order'), ('trigger', 'entry', 'whole'),
        ('constraint', 'account', 'account_check'), ('constraint', 'account', 'account_name_key'),
        ('constraint', 'account', 'account_pkey'), ('constraint', 'float_balance', 'float_balance_account_id_fkey'),
        ('constraint', 'float_balance', 'float_balance_pkey'), ('constraint', 'float_balance', 'float_balance_reserved_check'),
        ('constraint', 'float_balance', 'float_covered'), ('constraint', 'entry', 'entry_phase_check'),
        ('constraint', 'entry', 'entry_pkey'), ('constraint', 'entry', 'entry_transaction_phase_key'),
        ('constraint', 'posting', 'posting_account_id_fkey'), ('constraint', 'posting', 'posting_entry_id_fkey'),
        ('constraint', 'posting', 'posting_minor_check'), ('constraint', 'posting', 'posting_pkey'),
        ('index', 'entry', 'entry_resolved_once')),
     relations as (select c.oid, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
                   where n.nspname = 'ledger' and c.relkind = 'r'),
     found (kind, place, name) as (
        select 'trigger', r.relname, t.tgname from pg_trigger t join relations r on r.oid = t.tgrelid
            where t.tgenabled in ('O', 'A')
        union all select 'constraint', r.relname, c.conname from pg_constraint c join relations r on r.oid = c.conrelid
            where c.convalidated
        union all select 'index', r.relname, i.relname from pg_index x join relations r on r.oid = x.indrelid
            join pg_class i on i.oid = x.indexrelid where x.indisunique and x.indisvalid),
     wrong (what) as (
        select format('%s %s on ledger.%s is gone or off', w.kind, w.name, w.place) from wanted w
            where not exists (select from found f where (f.kind, f.place, f.name) = (w.kind, w.place, w.name))
        union all select format('trigger %s on ledger.%s is off', t.tgname, r.relname)
            from pg_trigger t join relations r on r.oid = t.tgrelid where t.tgenabled not in ('O', 'A')
        union all select format('wakala_service has the right to %s on ledger.%s', p, r.relname)
            from relations r, unnest(array['UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER']) p
            where has_table_privilege('wakala_service', r.oid, p)
        union all select format('wakala_service has the right to UPDATE ledger.%s.%s', r.relname, a.attname)
            from relations r join pg_attribute a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
            where has_column_privilege('wakala_service', r.oid, a.attnum, 'UPDATE')
              and not (r.relname = 'float_balance' and a.attname in ('posted', 'reserved')))
     select what from wrong order by what limit 1";

const COUNTS: &str = "select (select count(*) from ledger.account) as accounts,
    (select count(*) from ledger.entry) as entries, (select count(*) from ledger.posting) as postings, count(*) as transactions,
    count(*) filter (where state in ('ACCEPTED', 'SENT', 'IN_DOUBT')) as open,
    count(*) filter (where state = 'APPROVED') as approved, count(*) filter (where state = 'DECLINED') as declined,
    count(*) filter (where state = 'REVERSED') as reversed,
    (select count(*) from wakala.receipt where stage = 1) as receipts
    from wakala.transaction";

impl Store {
    /// Computes everything again, in one snapshot, and reports the first rule that does not hold. Nothing is written
    /// and nobody is held up.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn verify_ledger(&self) -> Result<Report, Error> {
        self.run_long(|db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *opened).await?;
            // It reads every row there is, and nothing waits for it.
            sqlx::query("set local statement_timeout = 0").execute(&mut *opened).await?;
            sqlx::query("set local idle_in_transaction_session_timeout = 0").execute(&mut *opened).await?;
            verify(&mut opened).await
        })
        .await
    }

    /// One transaction with its entries, what its terminal was told, and what its core said too late.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn transaction(&self, id: TransactionId) -> Result<Option<Shown>, Error> {
        self.run(move |db| async move {
            let mut opened = db.get_postgres_connection_pool().begin().await?;
            sqlx::query("set transaction isolation level repeatable read, read only").execute(&mut *opened).await?;
            show(&mut opened, id).await
        })
        .await
    }

    /// The transactions of a retrieval reference number: one, or more where the number came round after ten years.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub async fn transactions_by_rrn(&self, rrn: &str) -> Result<Vec<TransactionId>, Error> {
        let rrn = rrn.to_owned();
        self.run(move |db| async move {
            let rows: Vec<(Uuid,)> =
                sqlx::query_as("select id from wakala.transaction where rrn = $1 order by asked_at desc")
                    .bind(rrn)
                    .fetch_all(db.get_postgres_connection_pool())
                    .await?;
            Ok(rows.into_iter().map(|(id,)| TransactionId(id)).collect())
        })
        .await
    }

    /// Sets how low a float may go, in minor units; below zero it is a credit line. For a store that is connected as
    /// the owner: the service must not lower its own floors. False when there is no such float.
    ///
    /// # Errors
    /// When the float is below the new floor, or the caller is the service.
    pub async fn set_floor(&self, float: &Account, floor: i64) -> Result<bool, Error> {
        let name = float.to_string();
        self.run(move |db| async move {
            let set = sqlx::query(
                "update ledger.float_balance b set floor = $2 from ledger.account a \
                 where a.id = b.account_id and a.name = $1",
            )
            .bind(name)
            .bind(floor)
            .execute(db.get_postgres_connection_pool())
            .await;
            match set {
                Err(sqlx::Error::Database(said)) if said.constraint() == Some("float_covered") => {
                    Err(Error::Broken("the float, less what is held of it, is below that floor already".to_owned()))
                }
                set => Ok(set?.rows_affected() == 1),
            }
        })
        .await
    }
}

async fn verify(db: &mut PgConnection) -> Result<Report, Error> {
    let row = sqlx::query(COUNTS).fetch_one(&mut *db).await?;
    let mut report = Report {
        accounts: row.try_get("accounts")?,
        entries: row.try_get("entries")?,
        postings: row.try_get("postings")?,
        transactions: row.try_get("transactions")?,
        open: row.try_get("open")?,
        approved: row.try_get("approved")?,
        declined: row.try_get("declined")?,
        reversed: row.try_get("reversed")?,
        receipts: row.try_get("receipts")?,
        first_break: None,
    };
    for (rule, first) in RULES {
        let found: Option<(String,)> = sqlx::query_as(first).fetch_optional(&mut *db).await?;
        if let Some((what,)) = found {
            report.first_break = Some(Break { rule: rule.to_owned(), what });
            return Ok(report);
        }
    }
    report.first_break = contradiction(db).await?;
    Ok(report)
}

/// Transactions and their receipts that are held in memory at a time.
const PAGE: i64 = 1000;

/// The first receipt that says otherwise than its transaction's row: what the customer has in hand is the one thing that
/// nobody can change afterwards.
async fn contradiction(db: &mut PgConnection) -> Result<Option<Break>, Error> {
    let found = |what| Ok(Some(Break { rule: "a receipt says what its transaction's row says".to_owned(), what }));
    let text = format!(
        "select t.*, r.envelope, r.at as told_at from (select {} from wakala.transaction) t \
         join wakala.receipt r on r.answers = t.id and r.stage = 1 where t.id > $1 order by t.id limit $2",
        transactions::COLUMNS
    );
    let mut after = Uuid::nil();
    loop {
        let rows = sqlx::query(sqlx::AssertSqlSafe(text.as_str())).bind(after).bind(PAGE).fetch_all(&mut *db).await?;
        for row in &rows {
            after = row.try_get("id")?;
            let transaction = match transactions::of_row(row) {
                Ok((transaction, _)) => transaction,
                Err(Error::Broken(why)) => return found(format!("transaction {after}: {why}")),
                Err(error) => return Err(error),
            };
            let should = transaction.told().answer(&transaction.verdict(), time_of(row.try_get("told_at")?));
            if let Some(why) = wakala::receipt::contradiction(row.try_get("envelope")?, &should) {
                return found(format!("receipt of transaction {after}: {why}"));
            }
        }
        if i64::try_from(rows.len()).is_ok_and(|rows| rows < PAGE) {
            return Ok(None);
        }
    }
}

/// A transaction and all that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub transaction: Transaction,
    pub updated_at: Time,
    /// In the order in which they were made.
    pub entries: Vec<ShownEntry>,
    /// The notice before the receipt.
    pub receipts: Vec<ShownReceipt>,
    /// What the core said when it changed nothing any more: the word, its code, when.
    pub late: Vec<(String, Option<String>, Time)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownEntry {
    pub phase: String,
    pub at: Time,
    /// Accounts and minor units; debit positive, credit negative.
    pub postings: Vec<(String, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownReceipt {
    pub stage: Stage,
    pub seq: i64,
    /// The bytes that went out, or will.
    pub envelope: Vec<u8>,
    pub at: Time,
    pub delivered_at: Option<Time>,
    pub withdrawn_at: Option<Time>,
    /// How often it was given again after it had been delivered.
    pub copies: i32,
}

/// An entry's number, phase and time, and one line of it: account and amount.
type Line = (i64, String, OffsetDateTime, Option<String>, Option<i64>);

async fn show(db: &mut PgConnection, id: TransactionId) -> Result<Option<Shown>, Error> {
    let text = format!("select {} from wakala.transaction where id = $1", transactions::COLUMNS);
    let row = sqlx::query(sqlx::AssertSqlSafe(text)).bind(id.0).fetch_optional(&mut *db).await?;
    let Some(row) = row else { return Ok(None) };
    let (transaction, updated_at) = transactions::of_row(&row)?;

    let lines: Vec<Line> = sqlx::query_as(
        "select e.id, e.phase, e.at, a.name, p.minor from ledger.entry e \
         left join ledger.posting p on p.entry_id = e.id left join ledger.account a on a.id = p.account_id \
         where e.transaction = $1 order by e.id, p.line",
    )
    .bind(id.0)
    .fetch_all(&mut *db)
    .await?;
    let mut entries: Vec<(i64, ShownEntry)> = Vec::new();
    for (entry, phase, at, account, minor) in lines {
        if entries.last().is_none_or(|(last, _)| *last != entry) {
            entries.push((entry, ShownEntry { phase, at: time_of(at), postings: Vec::new() }));
        }
        if let (Some((_, shown)), Some(account), Some(minor)) = (entries.last_mut(), account, minor) {
            shown.postings.push((account, minor));
        }
    }

    let rows = sqlx::query("select * from wakala.receipt where answers = $1 order by stage").bind(id.0);
    let receipts = rows.fetch_all(&mut *db).await?;
    let receipt = |row: &sqlx::postgres::PgRow| {
        Ok::<_, Error>(ShownReceipt {
            stage: stage_of(row.try_get("stage")?)?,
            seq: row.try_get("seq")?,
            envelope: row.try_get("envelope")?,
            at: time_of(row.try_get("at")?),
            delivered_at: row.try_get::<Option<OffsetDateTime>, _>("delivered_at")?.map(time_of),
            withdrawn_at: row.try_get::<Option<OffsetDateTime>, _>("withdrawn_at")?.map(time_of),
            copies: row.try_get("copies")?,
        })
    };
    let late: Vec<(String, Option<String>, OffsetDateTime)> =
        sqlx::query_as("select answer, code, at from wakala.late_answer where transaction = $1 order by id")
            .bind(id.0)
            .fetch_all(db)
            .await?;
    Ok(Some(Shown {
        transaction,
        updated_at,
        entries: entries.into_iter().map(|(_, shown)| shown).collect(),
        receipts: receipts.iter().map(receipt).collect::<Result<_, _>>()?,
        late: late.into_iter().map(|(answer, code, at)| (answer, code, time_of(at))).collect(),
    }))
}
