//! `wakala cards`: the bank's cards, by what their PINs are compared with.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use wakala::card::{Pan, Token};
use zeroize::Zeroizing;

use super::Output;
use super::keys::Unlock;
use crate::ports::Custody;
use crate::store::cards::{Card, Reference};
use crate::store::{self, Store};

/// A card is found by its token, a keyed hash of its number; the number itself is nowhere in the database. Card numbers are
/// read from a file or from standard input, never from the command line, which others can see.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Bring cards in: one a line, `PAN;PVKI;PVV`
    ///
    /// PAN: the card number. PVKI: the index of the PIN verification key, one digit. PVV: the Visa PIN verification value, four
    /// digits. A line that begins with # is passed over. Cards that are there get their new PVV and keep their PIN tries. If
    /// a line is wrong, nothing is brought in, and the message names the line without showing it.
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// Show how a card stands. Its number comes on standard input
    Show,
    /// Withdraw a card: it is answered as one that is not known. Its number comes on standard input
    Block,
    /// Give a withdrawn card back. Its number comes on standard input
    Unblock,
    /// Give a card its PIN tries back, once the bank knows its customer again. Its number comes on standard input
    ClearTries,
}

/// Carries a command out. On a node in sandbox mode the cards are sandbox cards.
///
/// # Errors
/// When there is no master key, no database, no such card, or a line that is none.
pub async fn run(
    command: Command,
    database: &store::Options,
    sandbox: bool,
    unlock: Unlock<'_>,
    output: Output,
) -> anyhow::Result<()> {
    let (custody, store) = (unlock()?, super::store(database).await?);
    custody.load(&store.key_blocks().await?)?;
    let (token, blocked) = match command {
        Command::Import { file } => {
            let cards = cards(opened(&file)?, &*custody)?;
            let lines = cards.len();
            let new = store.import_cards(cards, sandbox).await?;
            let text = || format!("{lines} cards, {new} of them new");
            return output.print(text, &json!({ "cards": lines, "new": new }));
        }
        Command::Show => return shown(&store, typed(&*custody)?, output).await,
        Command::ClearTries => {
            let token = typed(&*custody)?;
            ensure!(store.clear_tries(token).await?, "there is no such card");
            return shown(&store, token, output).await;
        }
        Command::Block => (typed(&*custody)?, true),
        Command::Unblock => (typed(&*custody)?, false),
    };
    ensure!(store.block_card(token, blocked).await?, "there is no such card");
    shown(&store, token, output).await
}

async fn shown(store: &Store, token: Token, output: Output) -> anyhow::Result<()> {
    let card = store.card(token).await?.context("there is no such card")?;
    let value = json!({
        "card": card.masked.as_str(), "token": format!("{token:?}"), "blocked": card.blocked,
        "tries_used": card.tries_used, "sandbox": card.sandbox,
    });
    let blocked = if card.blocked { ", withdrawn" } else { "" };
    let mode = if card.sandbox { ", sandbox" } else { "" };
    output.print(|| format!("{}: {} PIN tries used{blocked}{mode}", card.masked, card.tries_used), &value)
}

fn opened(file: &Path) -> anyhow::Result<Box<dyn BufRead>> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin().lock()));
    }
    let opened = File::open(file).with_context(|| file.display().to_string())?;
    // It would open, and be unreadable in its first line.
    ensure!(!opened.metadata().is_ok_and(|found| found.is_dir()), "{}: is a directory", file.display());
    Ok(Box::new(BufReader::new(opened)))
}

fn typed(custody: &dyn Custody) -> anyhow::Result<Token> {
    let mut line = Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut line).context("standard input")?;
    Ok(custody.token(&Pan::new(line.trim())?)?)
}

/// All lines, or the number of the first that is none.
fn cards(mut lines: Box<dyn BufRead>, custody: &dyn Custody) -> anyhow::Result<Vec<Card>> {
    let mut cards = Vec::new();
    let mut lines_of = BTreeMap::new();
    // One buffer for all lines, wiped in the end: card numbers are in it.
    let mut line = Zeroizing::new(String::new());
    for number in 1.. {
        line.clear();
        if lines.read_line(&mut line).with_context(|| format!("line {number}"))? == 0 {
            break;
        }
        let text = line.trim();
        if !text.is_empty() && !text.starts_with('#') {
            let card = card(text, custody).with_context(|| format!("line {number}"))?;
            // Of two PVVs nobody could say which holds.
            if let Some(before) = lines_of.insert(card.token, number) {
                bail!("line {number}: this card is in line {before} already");
            }
            cards.push(card);
        }
    }
    Ok(cards)
}

fn card(line: &str, custody: &dyn Custody) -> anyhow::Result<Card> {
    let mut fields = line.split(';').map(str::trim);
    let (Some(pan), Some(pvki), Some(pvv), None) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
        bail!("a card is PAN;PVKI;PVV")
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(pvki.len() == 1 && digits(pvki), "a PVKI is one digit");
    ensure!(pvv.len() == 4 && digits(pvv), "a PVV has four digits");
    let mut value = [0; 4];
    for (digit, byte) in value.iter_mut().zip(pvv.bytes()) {
        *digit = byte - b'0';
    }
    let pan = Pan::new(pan)?;
    let reference = Reference { pvki: pvki.parse()?, pvv: value };
    Ok(Card { token: custody.token(&pan)?, masked: pan.masked(), reference })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::{HsmError, KeyBlock, KeyBytes, KeyError, KeyName};

    /// Tokens of the last digits; no other verb is used.
    #[derive(Debug)]
    struct Hashing;

    impl Custody for Hashing {
        fn token(&self, pan: &Pan) -> Result<Token, HsmError> {
            Ok(Token([*pan.digits().last().expect("digits"); 16]))
        }
        fn load(&self, _: &[KeyBlock]) -> Result<(), KeyError> {
            Err(KeyError::Refused("not here"))
        }
        fn generate(&self, _: &KeyName, _: bool) -> Result<KeyBlock, KeyError> {
            Err(KeyError::Refused("not here"))
        }
        fn import(&self, _: &KeyName, _: &KeyBytes, _: bool) -> Result<KeyBlock, KeyError> {
            Err(KeyError::Refused("not here"))
        }
        fn import_block(&self, _: &KeyName, _: &str, _: &KeyName, _: bool) -> Result<KeyBlock, KeyError> {
            Err(KeyError::Refused("not here"))
        }
        fn initial_key_block(&self, _: &[u8; 8], _: &KeyName) -> Result<String, KeyError> {
            Err(KeyError::Refused("not here"))
        }
        fn initial_key(&self, _: &[u8; 8]) -> Result<KeyBytes, KeyError> {
            Err(KeyError::Refused("not here"))
        }
    }

    fn read(text: &'static str) -> anyhow::Result<Vec<Card>> {
        cards(Box::new(text.as_bytes()), &Hashing)
    }

    #[test]
    fn cards_are_read_a_line_each() {
        let cards =
            read("# PAN;PVKI;PVV\n4111111111111111;1;0123\r\n\n 5500005555555559 ; 2 ; 9876\n").expect("two cards");
        let shown: Vec<_> = cards.iter().map(|c| (c.masked.as_str(), c.reference.pvki, c.reference.pvv)).collect();
        assert_eq!(shown, [("411111******1111", 1, [0, 1, 2, 3]), ("550000******5559", 2, [9, 8, 7, 6])]);
    }

    #[test]
    fn a_wrong_line_is_named_and_not_shown() {
        for (line, why) in [
            ("4111111111111112;1;0123", "check digit"),
            ("4111111111111111;10;0123", "PVKI"),
            ("4111111111111111;1;012", "PVV"),
            ("4111111111111111;1;012x", "PVV"),
            ("4111111111111111;1", "PAN;PVKI;PVV"),
            ("4111111111111111;1;0123;", "PAN;PVKI;PVV"),
            ("4111111111111111;1;9876", "in line 1 already"),
        ] {
            let text: &'static str = format!("4111111111111111;1;0123\n{line}\n").leak();
            let error = format!("{:#}", read(text).expect_err(line));
            assert!(error.contains("line 2") && error.contains(why), "{error}");
            assert!(!error.contains("41111"), "{error}");
        }
    }
}
