//! The schema of Wakala's database, one step per file, each with the way back.
//!
//! The steps are SQL as Postgres reads it: grants, triggers and partial indexes are what matters here, and no other
//! dialect is meant. A step once released is never edited; what is wrong in it is put right by the next one. Nothing
//! here imports the code that it outlives.
//!
//! Steps run as the role `wakala_owner`, who owns everything; the node works as `wakala_service`, auditors as
//! `wakala_auditor`. The roles are made by whoever makes the database (`scripts/postgres`, or a DBA).

use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, TransactionTrait};

/// A step: its name, why it is there, and SQL for both ways.
macro_rules! step {
    ($name:literal, up: $up:literal, down: $down:literal) => {
        #[derive(Debug)]
        pub(crate) struct Step;

        impl sea_orm_migration::MigrationName for Step {
            fn name(&self) -> &str {
                $name
            }
        }

        #[expect(elided_lifetimes_in_paths, reason = "as the trait's own macro wants it written")]
        #[sea_orm_migration::async_trait::async_trait]
        impl sea_orm_migration::MigrationTrait for Step {
            async fn up(&self, manager: &sea_orm_migration::SchemaManager) -> Result<(), sea_orm_migration::DbErr> {
                let db = manager.get_connection();
                sea_orm_migration::sea_orm::ConnectionTrait::execute_unprepared(db, $up).await.map(drop)
            }

            async fn down(&self, manager: &sea_orm_migration::SchemaManager) -> Result<(), sea_orm_migration::DbErr> {
                let db = manager.get_connection();
                sea_orm_migration::sea_orm::ConnectionTrait::execute_unprepared(db, $down).await.map(drop)
            }
        }
    };
}

mod m0001_schemas;
mod m0002_terminals;
mod m0003_keys_and_cards;
mod m0004_log;
mod m0005_partitions;
mod m0006_transactions;
mod m0007_receipts;
mod m0008_sessions;
mod m0009_ledger;
mod m0010_ledger_guards;
mod m0011_audit;
mod m0012_admission;
mod m0013_due;
mod m0014_blocked_terminals;
mod m0015_sums;
mod m0016_ledger_columns;
mod m0017_broker;
mod m0019_presence;
mod m0022_tally;
mod m0023_classes;
mod m0024_bans;
mod m0025_came;
mod m0026_went;
mod m0027_told;
mod m0028_began;
mod m0029_messages_told;
mod m0030_traces;
mod m0031_conservation;
mod m0032_will_nodes;
mod m0033_retained_publishers;
mod m0034_received;
mod m0035_owed;

/// All steps, oldest first.
#[derive(Debug)]
pub struct Migrator;

impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m0001_schemas::Step),
            Box::new(m0002_terminals::Step),
            Box::new(m0003_keys_and_cards::Step),
            Box::new(m0004_log::Step),
            Box::new(m0005_partitions::Step),
            Box::new(m0006_transactions::Step),
            Box::new(m0007_receipts::Step),
            Box::new(m0008_sessions::Step),
            Box::new(m0009_ledger::Step),
            Box::new(m0010_ledger_guards::Step),
            Box::new(m0011_audit::Step),
            Box::new(m0012_admission::Step),
            Box::new(m0013_due::Step),
            Box::new(m0014_blocked_terminals::Step),
            Box::new(m0015_sums::Step),
            Box::new(m0016_ledger_columns::Step),
            Box::new(m0017_broker::Step),
            Box::new(m0019_presence::Step),
            Box::new(m0022_tally::Step),
            Box::new(m0023_classes::Step),
            Box::new(m0024_bans::Step),
            Box::new(m0025_came::Step),
            Box::new(m0026_went::Step),
            Box::new(m0027_told::Step),
            Box::new(m0028_began::Step),
            Box::new(m0029_messages_told::Step),
            Box::new(m0030_traces::Step),
            Box::new(m0031_conservation::Step),
            Box::new(m0032_will_nodes::Step),
            Box::new(m0033_retained_publishers::Step),
            Box::new(m0034_received::Step),
            Box::new(m0035_owed::Step),
        ]
    }
}

/// Brings the schema to the newest step. Two nodes that start together take turns. The connection is the owner's.
///
/// # Errors
/// What Postgres said of the first step that failed; that step changed nothing, those before it stay.
pub async fn migrate(owner: &DatabaseConnection) -> Result<(), DbErr> {
    let turn = owner.begin().await?;
    // The one before takes as long as there are rows.
    turn.execute_unprepared("set local lock_timeout = 0").await?;
    // The number means nothing; whoever migrates uses the same.
    turn.execute_unprepared("select pg_advisory_xact_lock(7738221)").await?;
    Migrator::up(owner, None).await?;
    // The node looks whether the schema is the one it was built for.
    owner.execute_unprepared("grant select on seaql_migrations to wakala_service").await?;
    turn.commit().await
}

/// Takes the last `steps` back, or all. What their tables held is gone.
///
/// # Errors
/// What Postgres said of the first step that failed.
pub async fn take_back(owner: &DatabaseConnection, steps: Option<u32>) -> Result<(), DbErr> {
    Migrator::down(owner, steps).await
}

/// The steps that this database lacks, oldest first. The service's role may ask.
///
/// # Errors
/// When the database cannot be asked, or has a step that this program does not know: it is newer.
pub async fn pending(db: &DatabaseConnection) -> Result<Vec<String>, DbErr> {
    let steps = Migrator::get_pending_migrations_read_only(db).await?;
    Ok(steps.iter().map(|step| step.name().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_run_in_the_order_of_their_names() {
        let names: Vec<String> = Migrator::migrations().iter().map(|step| step.name().to_owned()).collect();
        let mut sorted = names.clone();
        sorted.sort();
        sorted.dedup();
        assert_eq!(names, sorted);
    }
}
