//! Whether Postgres keeps what it has committed.

use sea_orm::sqlx;

use super::{Error, Store};

impl Store {
    /// The settings that are off without which a power cut may take back what was committed, by their names in order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn undurable(&self) -> Result<Vec<String>, Error> {
        self.run(|db| async move {
            let off: Vec<(String,)> = sqlx::query_as(
                "select name from pg_settings where setting = 'off' \
                 and name in ('fsync', 'full_page_writes', 'synchronous_commit') order by name",
            )
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            Ok(off.into_iter().map(|(name,)| name).collect())
        })
        .await
    }
}
