//! A commit of publishes whose answer was lost: the connection broke, or it took too long. It may have been done; tried once more
//! what is in it would be found to have come before, and nobody would be told of it who is to be.

use std::sync::{Mutex, PoisonError};

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::PgConnection;

use super::publications::{RETRY, Stored};
use super::{Error, Store};

/// What is about to be committed, and in which transaction.
#[derive(Debug, Default)]
pub(super) struct Commit(Mutex<Option<(String, Vec<Stored>)>>);

impl Commit {
    /// To be called last before the commit.
    pub(super) async fn begin(&self, db: &mut PgConnection, stored: &[Stored]) -> Result<(), Error> {
        let (transaction,): (String,) = sqlx::query_as("select pg_current_xact_id()::text").fetch_one(db).await?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((transaction, stored.to_vec()));
        Ok(())
    }

    fn take(&self) -> Option<(String, Vec<Stored>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Store {
    /// What came of it, where the answer does not say: waits until the database can be asked.
    pub(super) async fn outcome(
        &self,
        tried: Result<Vec<Stored>, Error>,
        commit: &Commit,
    ) -> Result<Vec<Stored>, Error> {
        let error = match tried {
            Err(error @ Error::Away(_)) => error,
            other => return other,
        };
        let Some((transaction, stored)) = commit.take() else { return Err(error) };
        loop {
            match self.is_committed(transaction.clone()).await {
                Ok(Some(true)) => return Ok(stored),
                Ok(Some(false)) => return Err(error),
                Ok(None) | Err(Error::Away(_)) => tokio::time::sleep(RETRY).await,
                // Another server in its place does not know it: there it was not done.
                Err(_) => return Err(error),
            }
        }
    }

    /// Whether a transaction was committed; None while it is under way.
    async fn is_committed(&self, transaction: String) -> Result<Option<bool>, Error> {
        self.run(move |db| async move {
            let (status,): (Option<String>,) = sqlx::query_as("select pg_xact_status($1::text::xid8)")
                .bind(transaction)
                .fetch_one(db.get_postgres_connection_pool())
                .await?;
            Ok(match status.as_deref() {
                Some("committed") => Some(true),
                Some("in progress") => None,
                _ => Some(false),
            })
        })
        .await
    }
}
