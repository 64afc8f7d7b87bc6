//! What monitoring asks of the database, besides [`super::tally`].

use sea_orm::sqlx;

use super::{Error, Store};

/// A partition of the log and its transactions, whichever node has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionFigures {
    pub partition: i16,
    /// Records that are not decided; none where the log is not in the database.
    pub lag: Option<i64>,
    /// Transactions that are not at their end.
    pub open: i64,
    /// Of these, those of which nobody knows what the core did (law 5).
    pub in_doubt: i64,
    /// Records that nobody could decide.
    pub parked: i64,
}

impl Store {
    /// Whether the database does, whatever it has to do.
    ///
    /// # Errors
    /// When it does not.
    pub async fn is_there(&self) -> Result<(), Error> {
        self.run(|db| async move {
            sqlx::query("select 1").execute(db.get_postgres_connection_pool()).await?;
            Ok(())
        })
        .await
    }

    /// All partitions, in order.
    ///
    /// # Errors
    /// When the database cannot be asked.
    pub async fn partition_figures(&self) -> Result<Vec<PartitionFigures>, Error> {
        self.run(|db| async move {
            let rows: Vec<(i16, Option<i64>, i64, i64, i64)> = sqlx::query_as(
                // What is open has an index of its own, and is little.
                "with open as materialized (select partition, count(*) as open, \
                   count(*) filter (where state = 'IN_DOUBT') as in_doubt from wakala.transaction \
                   where state in ('ACCEPTED', 'SENT', 'IN_DOUBT') group by partition) \
                 select o.partition, h.next_offset - o.position, coalesce(open.open, 0), coalesce(open.in_doubt, 0), \
                 (select count(*) from wakala.parked p where p.partition = o.partition) \
                 from wakala.partition_owner o left join wakala.log_head h using (partition) \
                 left join open using (partition) order by o.partition",
            )
            .fetch_all(db.get_postgres_connection_pool())
            .await?;
            let read =
                |(partition, lag, open, in_doubt, parked)| PartitionFigures { partition, lag, open, in_doubt, parked };
            Ok(rows.into_iter().map(read).collect())
        })
        .await
    }
}
