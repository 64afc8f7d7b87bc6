//! Sealed keys. What is in these rows opens under the master key alone, which is not in the database.

use sea_orm::sqlx;
use wakala::time::Time;

use super::{Error, Store, timestamp};
use crate::ports::{KeyBlock, KeyName};

impl Store {
    /// All keys, by name.
    ///
    /// # Errors
    /// When the database is away, or a row's name names no key.
    pub async fn key_blocks(&self) -> Result<Vec<KeyBlock>, Error> {
        self.run(|db| async move {
            let rows: Vec<(String, String, Vec<u8>, bool)> =
                sqlx::query_as("select name, check_value, sealed, sandbox from wakala.key_block order by name")
                    .fetch_all(db.get_postgres_connection_pool())
                    .await?;
            let block = |(name, check_value, sealed, sandbox): (String, String, Vec<u8>, bool)| {
                let name: KeyName =
                    name.parse().map_err(|error| Error::Broken(format!("wakala.key_block: {error}")))?;
                Ok(KeyBlock { name, check_value, sealed, sandbox })
            };
            rows.into_iter().map(block).collect()
        })
        .await
    }

    /// Stores a key under a name that has none yet. False when it has one: a key that receipts and cards hang on is not
    /// written over.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn add_key_block(&self, block: KeyBlock, at: Time) -> Result<bool, Error> {
        self.run(move |db| async move {
            let done = sqlx::query(
                "insert into wakala.key_block (name, usage, check_value, sealed, sandbox, created_at)
                 values ($1, $2, $3, $4, $5, $6) on conflict (name) do nothing",
            )
            .bind(block.name.to_string())
            .bind(block.name.usage())
            .bind(block.check_value)
            .bind(block.sealed)
            .bind(block.sandbox)
            .bind(timestamp(at))
            .execute(db.get_postgres_connection_pool())
            .await?;
            Ok(done.rows_affected() == 1)
        })
        .await
    }
}
