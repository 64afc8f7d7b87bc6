//! Cards by token, and what is asked of them before a request enters the log: is its key counter a new one, which card is
//! it, and which try of that card is its PIN.
//!
//! **A try is counted before the PIN is looked at.** A crash in between leaves it counted, which is the safe side. Tries
//! used are `tries_counted − tries_cleared`; a fourth is refused without asking the HSM.
//!
//! **Once per request.** `pin_try` remembers which try a request was. The same bytes again are the same try; other bytes
//! under the same key are another, or a terminal could guess for ever under one key.
//!
//! **A correct PIN clears** the tries up to its own: `tries_cleared = greatest(tries_cleared, number)`. Each try has a
//! number of its own, and the greatest of several is the same in any order and however often it is said, so concurrent
//! and repeated calls end where the numbers' order would: only tries after the last correct one count.
//!
//! **A block without a PIN in it gives its try back**, `tries_cleared + 1`, once (`pin_try.number` becomes 0), and only if
//! its number is above `tries_cleared`. That never clears too much. Let `l` be the last correct try said so far and `r` the
//! tries given back since: `tries_cleared = l + r`, each of the `r` a different try above `l`. A later correct try `m` leaves
//! the greater of `l + r` and `m`. At most `m − l − 1` of the `r` lie below `m`, so at least `l + r + 1 − m` lie above it: where
//! `l + r` stays, it exceeds `m` by less than the tries above `m` that were given back. With tries of one card under way at
//! the same time it may clear one too few, the safe side; `tests/system` tries orders of all kinds.

use sea_orm::sqlx::{self, PgPool};
use wakala::card::{Ksn, Masked, Token};
use wakala::id::{RequestKey, TerminalId};
use wakala::time::Time;

use super::batch::Batcher;
use super::{Error, Store, timestamp};

/// So many wrong PINs are looked at.
pub const TRIES_MAX: i64 = 3;

/// Requests that wait to be let in, and PINs whose verdict waits to be written: beyond that the sessions wait.
const ROOM: usize = 4096;
/// Requests in one commit.
const BATCH_MAX: usize = 256;

/// A request whose code is right and whose card could be read.
#[derive(Clone, Debug)]
pub struct Arrival {
    pub terminal: TerminalId,
    pub key: RequestKey,
    /// Which bytes it came as.
    pub digest: [u8; 16],
    pub ksn: Ksn,
    pub token: Token,
    /// It has a PIN to be verified.
    pub pin: bool,
    pub at: Time,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its key counter was used by another request.
    Replayed,
    LetIn {
        /// `None`: no such card, or one that the bank withdrew.
        card: Option<Reference>,
        /// Which try of the card this is; `None`: there is none left, or there is no PIN.
        attempt: Option<i64>,
    },
}

/// What a card's PIN is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub pvki: u8,
    /// Four digits, each 0 to 9.
    pub pvv: [u8; 4],
}

/// What came of a try that was counted. A wrong PIN changes nothing and is not said.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub terminal: TerminalId,
    pub key: RequestKey,
    pub token: Token,
    pub attempt: i64,
    /// Else no PIN was compared.
    pub correct: bool,
}

/// The way in for requests of all sessions of this node: one commit carries many.
#[derive(Clone, Debug)]
pub struct Admissions {
    arrivals: Batcher<Arrival, Admission>,
    settlements: Batcher<Settlement, ()>,
}

impl Admissions {
    /// A node in sandbox mode finds sandbox cards, and no others; any other node the others.
    #[must_use]
    pub fn new(store: &Store, sandbox: bool) -> Self {
        let (admitting, settling) = (store.clone(), store.clone());
        Self {
            arrivals: Batcher::new(store.handle(), ROOM, BATCH_MAX, move |batch: Vec<Arrival>| {
                let store = admitting.clone();
                async move {
                    store
                        .run(move |db| async move { admit(db.get_postgres_connection_pool(), sandbox, &batch).await })
                        .await
                }
            }),
            settlements: Batcher::new(store.handle(), ROOM, BATCH_MAX, move |batch: Vec<Settlement>| {
                let store = settling.clone();
                async move {
                    store.run(move |db| async move { settle(db.get_postgres_connection_pool(), &batch).await }).await
                }
            }),
        }
    }

    /// Lets a request in. Requests of one terminal are let in one after the other, or a later key counter overtakes an
    /// earlier one.
    ///
    /// # Errors
    /// When the database is away. The try may be counted; asked again with the same bytes it is not counted again.
    pub async fn admit(&self, arrival: Arrival) -> Result<Admission, Error> {
        self.arrivals.submit(arrival).await
    }

    /// Writes what came of a try. It may be said again.
    ///
    /// # Errors
    /// When the database is away: the try stays counted.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        self.settlements.submit(settlement).await
    }
}

/// Place, replayed, PVKI, PVV, number.
type Admitted = (i64, bool, Option<i16>, Option<String>, Option<i64>);

async fn admit(pool: &PgPool, sandbox: bool, batch: &[Arrival]) -> Result<Vec<Admission>, Error> {
    let at = batch.iter().map(|arrival| arrival.at).max().unwrap_or(Time::from_millis(0));
    let rows: Vec<Admitted> = sqlx::query_as(
        "select place, replayed, pvki, pvv, number from wakala.admit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(sandbox)
    .bind(TRIES_MAX)
    .bind(timestamp(at))
    .bind(batch.iter().map(|a| a.terminal.as_str()).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| &a.key.0[..]).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| &a.digest[..]).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| &a.ksn.initial_key_id[..]).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| i64::from(a.ksn.counter)).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| &a.token.0[..]).collect::<Vec<_>>())
    .bind(batch.iter().map(|a| a.pin).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    let mut admissions = vec![Admission::Replayed; batch.len()];
    for (place, replayed, pvki, pvv, attempt) in rows {
        let Some(admission) = usize::try_from(place - 1).ok().and_then(|at| admissions.get_mut(at)) else {
            return Err(Error::Broken(format!("an answer for place {place} of {}", batch.len())));
        };
        if !replayed {
            let card = pvki.zip(pvv).map(|(pvki, pvv)| reference(pvki, &pvv)).transpose()?;
            *admission = Admission::LetIn { card, attempt };
        }
    }
    Ok(admissions)
}

fn reference(pvki: i16, pvv: &str) -> Result<Reference, Error> {
    let broken = || Error::Broken("a card's row has no PVV of four digits".to_owned());
    let digits: [u8; 4] = pvv.as_bytes().try_into().map_err(|_| broken())?;
    let pvki = u8::try_from(pvki).map_err(|_| broken())?;
    Ok(Reference { pvki, pvv: digits.map(|digit| digit.wrapping_sub(b'0')) })
}

async fn settle(pool: &PgPool, batch: &[Settlement]) -> Result<Vec<()>, Error> {
    sqlx::query("select wakala.settle_tries($1, $2, $3, $4, $5)")
        .bind(batch.iter().map(|s| s.terminal.as_str()).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| &s.key.0[..]).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| &s.token.0[..]).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.attempt).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.correct).collect::<Vec<_>>())
        .execute(pool)
        .await?;
    Ok(vec![(); batch.len()])
}

/// A card as the bank brings it in.
#[derive(Clone, Debug)]
pub struct Card {
    pub token: Token,
    pub masked: Masked,
    pub reference: Reference,
}

/// How a card stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub masked: Masked,
    pub blocked: bool,
    pub sandbox: bool,
    pub tries_used: i64,
}

impl Store {
    /// Brings cards in; those that are there get their new reference and keep their tries. Gives how many were new.
    ///
    /// # Errors
    /// When the database is away, or a sandbox card would take a real one's place or the other way round.
    pub async fn import_cards(&self, mut cards: Vec<Card>, sandbox: bool) -> Result<u64, Error> {
        // In the order in which admissions lock them, which go on meanwhile.
        cards.sort_by_key(|card| card.token.0);
        self.run(move |db| async move {
            let pool = db.get_postgres_connection_pool();
            let mut work = pool.begin().await?;
            let mut new = 0;
            // Arrays of some size: one statement's parameters are bounded, an array's elements are not.
            for some in cards.chunks(1000) {
                let rows: Vec<(bool,)> = sqlx::query_as(
                    "insert into wakala.card as c (token, masked, pvki, pvv, sandbox)
                     select t, m, k, v, $5 from unnest($1, $2, $3, $4) as a (t, m, k, v)
                     on conflict (token) do update set pvki = excluded.pvki, pvv = excluded.pvv
                     where c.sandbox = excluded.sandbox
                     returning xmax = 0",
                )
                .bind(some.iter().map(|card| &card.token.0[..]).collect::<Vec<_>>())
                .bind(some.iter().map(|card| card.masked.as_str()).collect::<Vec<_>>())
                .bind(some.iter().map(|card| i16::from(card.reference.pvki)).collect::<Vec<_>>())
                .bind(some.iter().map(|card| digits(card.reference.pvv)).collect::<Vec<_>>())
                .bind(sandbox)
                .fetch_all(&mut *work)
                .await?;
                if rows.len() != some.len() {
                    return Err(Error::Broken(
                        "a card is there already in the other mode (sandbox or real)".to_owned(),
                    ));
                }
                new += rows.iter().filter(|(inserted,)| *inserted).count();
            }
            work.commit().await?;
            Ok(u64::try_from(new).unwrap_or(0))
        })
        .await
    }

    /// How a card stands; `None` when there is none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn card(&self, token: Token) -> Result<Option<Standing>, Error> {
        self.run(move |db| async move {
            let row: Option<(String, bool, bool, i64)> = sqlx::query_as(
                "select masked, blocked, sandbox, tries_counted - tries_cleared from wakala.card where token = $1",
            )
            .bind(&token.0[..])
            .fetch_optional(db.get_postgres_connection_pool())
            .await?;
            Ok(row.map(|(masked, blocked, sandbox, tries_used)| Standing {
                masked: Masked::stored(&masked),
                blocked,
                sandbox,
                tries_used,
            }))
        })
        .await
    }

    /// Withdraws a card or gives it back. False when there is none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn block_card(&self, token: Token, blocked: bool) -> Result<bool, Error> {
        self.run(move |db| async move {
            let done = sqlx::query("update wakala.card set blocked = $2 where token = $1")
                .bind(&token.0[..])
                .bind(blocked)
                .execute(db.get_postgres_connection_pool())
                .await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    /// Gives a card all its tries back, once the bank knows its customer again. False when there is none.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn clear_tries(&self, token: Token) -> Result<bool, Error> {
        self.run(move |db| async move {
            let done = sqlx::query("update wakala.card set tries_cleared = tries_counted where token = $1")
                .bind(&token.0[..])
                .execute(db.get_postgres_connection_pool())
                .await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }

    /// Forgets which tries requests were that came in before `at`, the oldest first and at most `limit`: nobody repeats
    /// them any more. Gives how many.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn forget_tries(&self, at: Time, limit: u32) -> Result<u64, Error> {
        self.run(move |db| async move {
            let done = sqlx::query(
                "delete from wakala.pin_try where ctid in (select ctid from wakala.pin_try where at < $1 \
                 order by at limit $2 for update skip locked)",
            )
            .bind(timestamp(at))
            .bind(i64::from(limit))
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(done.rows_affected())
        })
        .await
    }
}

fn digits(pvv: [u8; 4]) -> String {
    pvv.iter().map(|digit| char::from(b'0' + digit)).collect()
}
