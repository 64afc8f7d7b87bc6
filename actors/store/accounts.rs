//! Accounts and the balance rows of floats.
//!
//! Balance rows are locked in the order of their accounts' numbers, everywhere: two decisions that want the same two
//! floats wait for each other, never in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use sea_orm::sqlx::{self, PgConnection, PgPool};
use wakala::ledger::{Account, AccountKind};

use super::Error;

/// Accounts' numbers by name, of committed rows; an account never changes or goes.
pub(super) type Numbers = Mutex<BTreeMap<String, i64>>;

fn parts(account: &Account) -> (&'static str, &str) {
    match &account.kind {
        AccountKind::Float(agent) => ("float", agent.as_str()),
        AccountKind::Settlement(core) => ("settlement", core.as_str()),
    }
}

fn remembered(numbers: &Numbers, wanted: &BTreeSet<Account>) -> BTreeMap<Account, i64> {
    let numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
    wanted.iter().filter_map(|account| Some((account.clone(), *numbers.get(&account.to_string())?))).collect()
}

/// Keeps numbers of rows that are committed.
pub(super) fn remember(numbers: &Numbers, committed: BTreeMap<Account, i64>) {
    let mut numbers = numbers.lock().unwrap_or_else(PoisonError::into_inner);
    numbers.extend(committed.into_iter().map(|(account, id)| (account.to_string(), id)));
}

/// The accounts' numbers; those that do not exist are made, with empty balances, in a commit of their own.
pub(super) async fn ensure(
    pool: &PgPool,
    numbers: &Numbers,
    wanted: &BTreeSet<Account>,
) -> Result<BTreeMap<Account, i64>, Error> {
    let mut found = remembered(numbers, wanted);
    if found.len() < wanted.len() {
        let mut opened = pool.begin().await?;
        found = look_up(&mut opened, wanted).await?;
        make_missing(&mut opened, &mut found, wanted).await?;
        opened.commit().await?;
        remember(numbers, found.clone());
    }
    Ok(found)
}

/// The numbers of those that exist.
pub(super) async fn known(
    db: &mut PgConnection,
    numbers: &Numbers,
    wanted: &BTreeSet<Account>,
) -> Result<BTreeMap<Account, i64>, Error> {
    let found = remembered(numbers, wanted);
    if found.len() == wanted.len() { Ok(found) } else { look_up(db, wanted).await }
}

async fn look_up(db: &mut PgConnection, wanted: &BTreeSet<Account>) -> Result<BTreeMap<Account, i64>, Error> {
    let by_name: BTreeMap<String, &Account> = wanted.iter().map(|account| (account.to_string(), account)).collect();
    let names: Vec<&str> = by_name.keys().map(String::as_str).collect();
    let rows: Vec<(String, i64)> =
        sqlx::query_as("select name, id from ledger.account where name = any($1)").bind(names).fetch_all(db).await?;
    Ok(rows.into_iter().filter_map(|(name, id)| by_name.get(&name).map(|&account| (account.clone(), id))).collect())
}

/// Makes the accounts that are wanted and not among `found`, and the empty balance rows of floats; adds them to `found`
/// and gives them back. Sorted by name, so that two who make the same ones wait for each other in one order.
pub(super) async fn make_missing(
    db: &mut PgConnection,
    found: &mut BTreeMap<Account, i64>,
    wanted: &BTreeSet<Account>,
) -> Result<BTreeMap<Account, i64>, Error> {
    let mut missing: Vec<(String, &Account)> =
        wanted.iter().filter(|account| !found.contains_key(account)).map(|a| (a.to_string(), a)).collect();
    if missing.is_empty() {
        return Ok(BTreeMap::new());
    }
    missing.sort_unstable();
    let names: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
    let kinds: Vec<&str> = missing.iter().map(|(_, account)| parts(account).0).collect();
    let owners: Vec<&str> = missing.iter().map(|(_, account)| parts(account).1).collect();
    let currencies: Vec<&str> = missing.iter().map(|(_, account)| account.currency()).collect();
    // Where another transaction is making the same account, this waits for its end; a row that is not there cannot be
    // locked, so only what is there afterwards can be relied on.
    sqlx::query(
        "insert into ledger.account (name, kind, owner, currency) \
         select * from unnest($1::text[], $2::text[], $3::text[], $4::text[]) on conflict (name) do nothing",
    )
    .bind(&names)
    .bind(kinds)
    .bind(owners)
    .bind(currencies)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "insert into ledger.float_balance (account_id) \
         select id from ledger.account where name = any($1) and kind = 'float' order by id on conflict do nothing",
    )
    .bind(&names)
    .execute(&mut *db)
    .await?;
    let made = look_up(db, &missing.iter().map(|&(_, account)| account.clone()).collect()).await?;
    if made.len() < missing.len() {
        return Err(Error::Broken("an account was made and is not there".to_owned()));
    }
    found.extend(made.clone());
    Ok(made)
}

/// Locks balance rows in their order, waiting, and says what is free in each.
pub(super) async fn lock(db: &mut PgConnection, accounts: &BTreeSet<i64>) -> Result<BTreeMap<i64, i64>, Error> {
    if accounts.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows: Vec<(i64, i64)> = sqlx::query_as(
        "select account_id, posted - reserved - floor from ledger.float_balance where account_id = any($1) \
         order by account_id for no key update",
    )
    .bind(accounts.iter().copied().collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Locks `more` balance rows beside those `held`, keeping to the order. False when that would take waiting out of
/// order; then some may be locked and others not.
pub(super) async fn lock_more(
    db: &mut PgConnection,
    held: &BTreeSet<i64>,
    more: &BTreeSet<i64>,
) -> Result<bool, Error> {
    let more: BTreeSet<i64> = more.difference(held).copied().collect();
    if held.last() < more.first() {
        lock(db, &more).await?;
        return Ok(true);
    }
    if more.is_empty() {
        return Ok(true);
    }
    let rows: Vec<(i64,)> = sqlx::query_as(
        "select account_id from ledger.float_balance where account_id = any($1) order by account_id \
         for no key update skip locked",
    )
    .bind(more.iter().copied().collect::<Vec<_>>())
    .fetch_all(db)
    .await?;
    Ok(rows.len() == more.len())
}
