//! Receipts that wait for their terminals. The row is the queue; see `wakala.receipt`.

use std::time::Duration;

use sea_orm::sqlx;
use wakala::id::{TerminalId, TransactionId};
use wakala::receipt::Stage;
use wakala::time::Time;

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
    /// Terminals connected to this node with a receipt or another message that has waited for longer than `waited` at `now`,
    /// the longest waiting first, at most `limit`. What a terminal does not subscribe to does not count: it would be found
    /// for ever, and before what can be delivered. Nor do guests, whose sessions hear of every row from the router, or
    /// terminals of other nodes: those of a dead one are shown as connected until it is back.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn terminals_waiting(
        &self,
        node: &str,
        now: Time,
        waited: Duration,
        limit: u32,
    ) -> Result<Vec<TerminalId>, Error> {
        let node = node.to_owned();
        let before = timestamp(now - waited);
        self.run(move |db| async move {
            // Terminals that are not connected cannot be woken; they read what waits when they connect. Of a session that
            // ends with its connection no subscriptions are stored.
            // Each table is joined by itself: the planner begins with what is fewer, sessions here or rows that wait.
            let rows: Vec<(String,)> = sqlx::query_as(
                "with waiting as ( \
                   select s.client_id, s.expiry_s, r.at, 'r/' || s.client_id as topic \
                   from wakala.session s join wakala.receipt r on r.terminal = s.client_id \
                   where s.connected and s.node = $4 \
                     and r.delivered_at is null and r.withdrawn_at is null and r.at <= $1 \
                   union all \
                   select s.client_id, s.expiry_s, m.at, m.topic \
                   from wakala.session s join wakala.message m on m.client_id = s.client_id \
                   where s.connected and s.node = $4 and m.at <= $1 and (m.expires_at is null or m.expires_at > $3)) \
                 select w.client_id from waiting w \
                 where exists (select from wakala.terminal t where t.id = w.client_id) \
                   and (w.expiry_s = 0 or exists (select from wakala.subscription u \
                     where u.client_id = w.client_id and u.filter = w.topic)) \
                 group by w.client_id order by min(w.at) limit $2",
            )
            .bind(before)
            .bind(i64::from(limit))
            .bind(timestamp(now))
            .bind(node)
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            rows.iter().map(|(terminal,)| terminal_of(terminal)).collect()
        })
        .await
    }
}
