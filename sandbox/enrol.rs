//! Makes the village known to a node: keys, cards, terminals, floats, all marked as sandbox.
//!
//! By the functions behind `wakala keys`, `wakala cards` and `wakala terminals enrol`, because ten thousand terminals are no
//! work for a command line.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use argon2::password_hash::PasswordHasher as _;
use argon2::{Algorithm, Argon2, Params};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use rand::Rng as _;
use sea_orm::{ConnectionTrait as _, DatabaseConnection, DbBackend, Statement, Value};
use wakala::money::Currency;
use wakala::time::Time;
use wakala_node::adapters::soft_hsm::{self, SoftHsm, Source};
use wakala_node::ports::{Custody as _, KeyBytes, KeyName};
use wakala_node::store::Store;
use wakala_node::store::cards::{Card, Reference};
use wakala_node::store::terminals::{Enrolment, Terminal};
use zeroize::Zeroizing;

use crate::cards::{BDK_ID, CREDIT_LINE_MINOR, Enrolled, PVK_INDEX, Village};

/// Terminals enrolled at the same time.
const AT_ONCE: usize = 8;

/// Enrols everybody. The master key is drawn when its file is not there.
///
/// # Errors
/// When the database is in use already: key counters and sessions belong to one village.
pub async fn enrol(village: &Village, store: &Store, owner: &DatabaseConnection, master: &Path) -> anyhow::Result<()> {
    let used = !store.terminals(None, 1).await?.is_empty();
    ensure!(!used, "the database has terminals already, and the sandbox wants an empty one");
    if !master.exists() {
        draw_master(master).with_context(|| master.display().to_string())?;
    }
    let hsm = keys(village, store, master).await?;
    let cards: anyhow::Result<Vec<Card>> = village
        .cards()
        .map(|card| {
            let reference = Reference { pvki: PVK_INDEX, pvv: card.pvv.0 };
            Ok(Card { token: hsm.token(&card.pan)?, masked: card.pan.masked(), reference })
        })
        .collect();
    store.import_cards(cards?, true).await?;
    stream::iter(&village.terminals)
        .map(|terminal| enrol_terminal(village, terminal, store))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    // An agent begins with nothing and a credit line: so the ledger begins with no entry, and is balanced.
    let sql = "update ledger.float_balance set floor = $1";
    owner.execute_raw(statement(sql, [Value::from(-CREDIT_LINE_MINOR)])).await?;
    Ok(())
}

async fn keys(village: &Village, store: &Store, master: &Path) -> anyhow::Result<SoftHsm> {
    let hsm = SoftHsm::unlock(&soft_hsm::Options { master: Source::File(master.to_owned()) }, true)?;
    let clear = |key: &[u8]| KeyBytes(Zeroizing::new(key.to_vec()));
    let blocks = [
        hsm.import(&KeyName::BaseDerivation(BDK_ID), &clear(village.bdk().expose()), true)?,
        hsm.import(&KeyName::PinVerification(PVK_INDEX), &clear(village.pvk().expose()), true)?,
        hsm.import(&KeyName::CardToken, &clear(village.token_key()), true)?,
        hsm.import(&KeyName::CardSeal, &clear(village.seal_key()), true)?,
    ];
    hsm.load(&blocks)?;
    for block in blocks {
        let name = block.name.clone();
        ensure!(store.add_key_block(block, now()).await?, "there is a key {name} already");
    }
    Ok(hsm)
}

async fn enrol_terminal(village: &Village, terminal: &Enrolled, store: &Store) -> anyhow::Result<()> {
    let row = Terminal {
        id: terminal.id.clone(),
        agent: terminal.agent.clone(),
        core: village.core.clone(),
        password_hash: Some(password_hash(&terminal.password)?),
        certificate_sha256: None,
        blocked: None,
        sandbox: true,
        enrolled_at: now(),
    };
    let enrolment = store.enrol_terminal(row, Currency::TZS).await?;
    ensure!(enrolment == Enrolment::Done, "{}: {enrolment:?}", terminal.id);
    Ok(())
}

/// Draws a master key into a file that its owner alone can read.
fn draw_master(path: &Path) -> std::io::Result<()> {
    let key = Zeroizing::new(hex::encode(rand::rng().random::<[u8; 32]>()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(key.as_bytes())
}

/// Argon2id as light as it goes: the sandbox's passwords guard nothing, and ten thousand of them are checked in a storm.
fn password_hash(password: &str) -> anyhow::Result<String> {
    let light = Params::new(Params::MIN_M_COST, Params::MIN_T_COST, Params::MIN_P_COST, None);
    let light = light.map_err(|error| anyhow::anyhow!("{error}"))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, light);
    Ok(argon2.hash_password(password.as_bytes()).map_err(|error| anyhow::anyhow!("{error}"))?.to_string())
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_millis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

pub(crate) fn statement(sql: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}
