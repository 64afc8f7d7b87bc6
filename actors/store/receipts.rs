//! Receipts that wait for their terminals. The row is the queue; see `wakala.receipt`.

use std::time::Duration;

use sea_orm::sqlx;
use uuid::Uuid;
use wakala::id::{TerminalId, TransactionId};
use wakala::receipt::Stage;
use wakala::time::Time;

use super::batch::Batcher;
use super::{Error, Store, timestamp};

/// A receipt that was just queued: what a session needs to deliver it without asking the database. It may be lost.
#[derive(Clone, PartialEq, Eq)]
pub struct Hint {
    pub terminal: TerminalId,
    /// Its place in the terminal's queue. The packet identifier follows from it.
    pub seq: i64,
    pub answers: TransactionId,
    pub stage: Stage,
    /// The bytes that go out.
    pub envelope: Vec<u8>,
}

impl std::fmt::Debug for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hint")
            .field("terminal", &self.terminal)
            .field("seq", &self.seq)
            .field("answers", &self.answers)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

/// What a terminal acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivered {
    pub terminal: TerminalId,
    pub seq: i64,
    pub at: Time,
}

/// Marks deliveries, many in one commit. True when the receipt was waiting under that number.
pub type Deliveries = Batcher<Delivered, bool>;

pub(super) fn stage_of(number: i16) -> Result<Stage, Error> {
    match number {
        0 => Ok(Stage::Notice),
        1 => Ok(Stage::Final),
        other => Err(Error::Broken(format!("a receipt of stage {other}"))),
    }
}

pub(super) fn terminal_of(text: &str) -> Result<TerminalId, Error> {
    text.parse().map_err(|error: wakala::id::Error| Error::Broken(error.to_string()))
}

impl Store {
    /// What waits for a terminal beyond `after`, in the order of delivery, at most `limit`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn undelivered(&self, terminal: &TerminalId, after: i64, limit: u32) -> Result<Vec<Hint>, Error> {
        let terminal = terminal.clone();
        self.run(move |db| async move {
            let rows: Vec<(i64, Uuid, i16, Vec<u8>)> = sqlx::query_as(
                "select seq, answers, stage, envelope from wakala.receipt \
                 where terminal = $1 and seq > $2 and delivered_at is null and withdrawn_at is null \
                 order by seq limit $3",
            )
            .bind(terminal.as_str())
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read = |(seq, answers, stage, envelope)| {
                let (terminal, answers) = (terminal.clone(), TransactionId(answers));
                Ok(Hint { terminal, seq, answers, stage: stage_of(stage)?, envelope })
            };
            rows.into_iter().map(read).collect()
        })
        .await
    }

    /// Marks what was acknowledged, in one commit; says for each whether it was waiting under that number.
    ///
    /// # Errors
    /// When the database does not do it; the receipts then go out again, as the same bytes.
    pub async fn mark_delivered(&self, delivered: Vec<Delivered>) -> Result<Vec<bool>, Error> {
        self.run(move |db| async move {
            let marked: Vec<(i64,)> = sqlx::query_as(
                "update wakala.receipt r set delivered_at = d.at \
                 from unnest($1::text[], $2::bigint[], $3::timestamptz[]) with ordinality d (terminal, seq, at, nth) \
                 where r.terminal = d.terminal and r.seq = d.seq and r.delivered_at is null returning d.nth",
            )
            .bind(delivered.iter().map(|each| each.terminal.as_str().to_owned()).collect::<Vec<_>>())
            .bind(delivered.iter().map(|each| each.seq).collect::<Vec<_>>())
            .bind(delivered.iter().map(|each| timestamp(each.at)).collect::<Vec<_>>())
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let mut results = vec![false; delivered.len()];
            for (nth,) in marked {
                if let Some(result) = usize::try_from(nth - 1).ok().and_then(|at| results.get_mut(at)) {
                    *result = true;
                }
            }
            Ok(results)
        })
        .await
    }

    /// A batcher over [`Store::mark_delivered`]: at most `room` wait, at most `max` go into one commit.
    #[must_use]
    pub fn deliveries(&self, room: usize, max: usize) -> Deliveries {
        let store = self.clone();
        Batcher::new(self.handle(), room, max, move |delivered| {
            let store = store.clone();
            async move { store.mark_delivered(delivered).await }
        })
    }

    /// Terminals with a receipt that has waited for longer than `waited` at `now`, the longest waiting first, at most
    /// `limit`.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn terminals_waiting(&self, now: Time, waited: Duration, limit: u32) -> Result<Vec<TerminalId>, Error> {
        let waited = i64::try_from(waited.as_millis()).unwrap_or(i64::MAX);
        let before = timestamp(Time::from_millis(now.millis().saturating_sub(waited)));
        self.run(move |db| async move {
            // Terminals that are not connected cannot be woken; they read what waits when they connect.
            let rows: Vec<(String,)> = sqlx::query_as(
                "select r.terminal from wakala.receipt r join wakala.session s on s.client_id = r.terminal \
                 where r.delivered_at is null and r.withdrawn_at is null and r.at <= $1 and s.connected \
                 group by r.terminal order by min(r.at) limit $2",
            )
            .bind(before)
            .bind(i64::from(limit))
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            rows.iter().map(|(terminal,)| terminal_of(terminal)).collect()
        })
        .await
    }
}
