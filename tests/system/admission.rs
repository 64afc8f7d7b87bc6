//! The edge on a real database: PIN tries, key counters, keys and cards of the wrong kind, and what stays behind of a PIN.

mod counting;
mod tries;
mod village;

use wakala::card::Mac;
use wakala::id::RequestKey;
use wakala::pin::key::AesKey;
use wakala::record::{Body, Pin};
use wakala::request::{Kind, Refusal};
use wakala_node::cli;
use wakala_node::clock::MonotonicClock;
use wakala_node::edge::EdgeError;
use wakala_node::ports::Hsm as _;

use self::village::{Envelope, MASTER, RIGHT, Village, WRONG, pan, refusal_of, verdict_of};

#[tokio::test]
async fn a_withdrawal_is_admitted_with_its_card_and_without_its_pin() {
    let village = Village::new(true).await;
    let envelope = Envelope::withdrawal(1, 1, RIGHT);
    let sent = envelope.bytes();
    let record = village.edge.admit(&village.terminal(1), &sent).await.expect("a record");
    assert_eq!((record.key, record.ksn), (envelope.key, Some(envelope.ksn())));
    let Body::Asked(asked) = &record.body else { panic!("{record:?}") };
    assert_eq!((asked.kind, asked.amount.minor(), asked.pin), (Kind::Withdrawal, 5_000_000, Pin::Correct));
    assert_eq!(asked.card.masked.as_str(), "411111******1111");
    assert_eq!(village.hsm.open_pan(&asked.card.sealed).expect("ours").digits(), pan().digits());
    // What goes to the log has no PIN block and no PAN in it, in clear or as it came.
    let stored = record.encode();
    for secret in [&envelope.pin_block()[..], &envelope.card_data()[..], b"4111111111111111", &[0x41, 0x11, 0x11, 0x11]]
    {
        assert!(!stored.windows(secret.len()).any(|part| part == secret));
    }
}

#[tokio::test]
async fn a_deposit_asks_for_no_pin_and_counts_no_try() {
    let village = Village::new(true).await;
    let record = village.admit(&Envelope::deposit(1, 1)).await;
    assert_eq!(verdict_of(&record), Pin::NotAsked);
    assert_eq!((village.tries_used().await, village.hsm.asked()), (0, 0));
}

#[tokio::test]
async fn a_counter_is_used_by_one_request() {
    let village = Village::new(true).await;
    let first = Envelope::withdrawal(1, 5, RIGHT);
    assert_eq!(verdict_of(&village.admit(&first).await), Pin::Correct);
    for counter in [5, 4, 1] {
        let replayed = village.admit(&Envelope::withdrawal(1, counter, RIGHT).with_key(99)).await;
        assert_eq!(refusal_of(&replayed), Refusal::KsnReplayed, "counter {counter}");
        assert!(replayed.ksn.is_some(), "its receipt has a code: the terminal is known");
    }
    assert_eq!(village.hsm.asked(), 1, "no PIN was looked at");
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 6, RIGHT)).await), Pin::Correct);
    // The first one comes once more, though a later one was seen: the link was cut before its PUBACK.
    assert_eq!(verdict_of(&village.admit(&first).await), Pin::Correct);
    // Another terminal's counters are its own.
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(2, 1, RIGHT)).await), Pin::Correct);
    // Another terminal cannot send what it overheard.
    let overheard = village.edge.admit(&village.terminal(2), &first.bytes()).await.expect("a record");
    assert_eq!(refusal_of(&overheard), Refusal::KsnReplayed);
}

#[tokio::test]
async fn a_wrong_code_key_or_card_is_refused_before_any_try() {
    let village = Village::new(true).await;
    let terminal = village.terminal(1);
    let admitted = async |bytes: Vec<u8>| village.edge.admit(&terminal, &bytes).await.expect("a record");

    let altered = admitted(Envelope::withdrawal(1, 1, RIGHT).altered(|e| e.mac[0] ^= 1)).await;
    assert_eq!((refusal_of(&altered), altered.ksn), (Refusal::BadMac, None));
    let other_amount = Envelope::withdrawal(1, 1, RIGHT).altered(|e| {
        let at = e.body.windows(4).position(|part| part == [0x18, 0xC0, 0x96, 0xB1]).expect("the amount");
        e.body[at + 1] ^= 1;
    });
    assert_eq!(refusal_of(&admitted(other_amount).await), Refusal::BadMac);
    let unknown = admitted(Envelope::withdrawal(1, 1, RIGHT).altered(|e| e.ksn[0] ^= 1)).await;
    assert_eq!((refusal_of(&unknown), unknown.ksn), (Refusal::UnknownTerminalKey, None));
    let worn = admitted(Envelope::withdrawal(1, 1, RIGHT).altered(|e| e.ksn[8..].fill(0xFF))).await;
    assert_eq!(refusal_of(&worn), Refusal::UnknownTerminalKey);
    let foreign = Envelope::withdrawal(1, 1, RIGHT).under(&AesKey::new([0x77; 16]));
    assert_eq!(refusal_of(&village.admit(&foreign).await), Refusal::BadMac);
    let no_card = admitted(Envelope::withdrawal(1, 1, RIGHT).with_card_data([0x55; 16]).bytes()).await;
    assert_eq!(refusal_of(&no_card), Refusal::BadCard);
    assert!(no_card.ksn.is_some());

    assert_eq!((village.tries_used().await, village.hsm.asked()), (0, 0));
    // None of them has used the counter up.
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 1, RIGHT)).await), Pin::Correct);
}

#[tokio::test]
async fn bytes_that_are_no_request_are_answered_under_their_hash() {
    let village = Village::new(true).await;
    for bytes in [&b""[..], b"{\"amount\":1}", &[0xFF; 2000]] {
        let record = village.edge.admit(&village.terminal(1), bytes).await.expect("a record");
        assert_eq!(record.key, RequestKey::of_bytes(bytes));
        assert!(matches!(record.body, Body::Refused(Refusal::Unreadable | Refusal::TooLarge)), "{record:?}");
    }
}

#[tokio::test]
async fn a_card_that_is_not_the_banks_is_not_known() {
    let village = Village::new(true).await;
    let other = Envelope::withdrawal(1, 1, RIGHT).of_card("5500005555555559");
    assert_eq!(verdict_of(&village.admit(&other).await), Pin::UnknownCard);
    let token = village.token();
    assert_eq!(village.store.block_card(token, true).await, Ok(true));
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 2, RIGHT)).await), Pin::UnknownCard);
    assert_eq!(village.store.block_card(token, false).await, Ok(true));
    assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 3, RIGHT)).await), Pin::Correct);
    assert_eq!(village.hsm.asked(), 1);
}

#[tokio::test]
async fn the_sandbox_and_a_bank_refuse_each_other() {
    for node_sandbox in [true, false] {
        let village = Village::new(node_sandbox).await;
        let blocked = wakala_node::terminal::Enrolled { blocked: true, ..village.terminal(1) };
        let other = wakala_node::terminal::Enrolled { sandbox: !node_sandbox, ..village.terminal(1) };
        for terminal in [blocked, other] {
            let record =
                village.edge.admit(&terminal, &Envelope::withdrawal(1, 1, RIGHT).bytes()).await.expect("a record");
            assert_eq!(refusal_of(&record), Refusal::TerminalBlocked);
        }
        // The card is of the other kind.
        let changed = village.database.rows("update wakala.card set sandbox = not sandbox returning 1");
        assert_eq!(changed, "1");
        assert_eq!(verdict_of(&village.admit(&Envelope::withdrawal(1, 1, RIGHT)).await), Pin::UnknownCard);
        // Nor is it brought in as one of its own kind over the other.
        assert!(village.import_card().await.is_err());
        // So are the keys: a node of the other kind has none of them.
        let key = Envelope::withdrawal(1, 1, RIGHT);
        let theirs = village.opened(!node_sandbox).await.expect("opens, and loads no key");
        let found = theirs.verify_mac(&key.ksn(), b"", &Mac([0; 8]));
        assert!(matches!(found, Err(wakala_node::ports::HsmError::UnknownKey(_))), "{found:?}");
    }
}

#[tokio::test]
async fn keys_open_under_their_master_key_alone() {
    let village = Village::new(true).await;
    assert!(village.opened(true).await.is_ok());
    let error = village.opened_under("00112233445566778899AABBCCDDEEFF0123456789ABCDEF0123456789ABCDEF").await;
    let error = error.expect_err("another master key").to_string();
    assert!(error.contains("cannot be opened") && error.contains("another master key"), "{error}");
    // A key moved to another name does not open either, whoever moved it.
    let moved = "update wakala.key_block set name = 'bdk-12345679' where name = 'bdk-12345678' returning 1";
    assert_eq!(village.database.rows(moved), "1");
    assert!(village.opened(true).await.is_err());
}

#[tokio::test]
async fn a_key_is_not_written_over() {
    let village = Village::new(true).await;
    let blocks = village.store.key_blocks().await.expect("keys");
    assert_eq!(blocks.len(), 4);
    assert_eq!(village.store.add_key_block(blocks[0].clone(), wakala_system_tests::now()).await, Ok(false));
}

#[tokio::test]
async fn no_key_is_added_under_another_master_key() {
    const OTHER: &str = "00112233445566778899AABBCCDDEEFF0123456789ABCDEF0123456789ABCDEF";
    let (village, clock) = (Village::new(true).await, MonotonicClock::start());
    let (options, output) = (village.database.options(), cli::Output { json: true });
    let name = || "pvk-2".parse().expect("a key's name");
    let generate = || cli::keys::Command::Generate { name: name() };
    let added = cli::keys::run(generate(), &options, true, &|| Ok(village.unlocked(OTHER)), &clock, output).await;
    assert!(added.expect_err("another master key").to_string().contains("another master key"));
    let import =
        cli::keys::Command::Import { name: name(), components: 2, check: "000000".to_owned(), tr31: None, under: None };
    let added = cli::keys::run(import, &options, true, &|| Ok(village.unlocked(OTHER)), &clock, output).await;
    assert!(added.expect_err("another master key").to_string().contains("another master key"), "before anybody types");
    cli::keys::run(generate(), &options, true, &|| Ok(village.unlocked(MASTER)), &clock, output).await.expect("added");
    assert!(village.opened(true).await.is_ok(), "a node starts");
}

#[tokio::test]
async fn without_the_database_there_is_no_record() {
    let village = Village::new(true).await;
    village.store.close().await;
    let refused = village.edge.admit(&village.terminal(1), &Envelope::withdrawal(1, 1, RIGHT).bytes()).await;
    assert!(matches!(refused, Err(EdgeError::Store(_))), "{refused:?}");
    // What needs no database is answered.
    assert!(village.edge.admit(&village.terminal(1), b"").await.is_ok());
}

/// Laws 3: a dump of the database has none of the card numbers, PINs, PIN blocks or keys that went through.
#[tokio::test]
async fn nothing_secret_is_in_the_database() {
    let village = Village::new(true).await;
    let mut secrets: Vec<(String, Vec<u8>)> = vec![
        ("the PAN as text".into(), b"4111111111111111".to_vec()),
        ("the PAN packed".into(), hex::decode("4111111111111111").expect("hex")),
        ("the BDK".into(), village::BDK.to_vec()),
        ("the PVK".into(), village::PVK.to_vec()),
        ("the master key".into(), hex::decode(village::MASTER).expect("hex")),
    ];
    for (counter, pin) in (1..).zip([RIGHT, WRONG, WRONG, WRONG, WRONG]) {
        let envelope = Envelope::withdrawal(1, counter, pin);
        let record = village.admit(&envelope).await;
        secrets.push((format!("PIN block {counter}"), envelope.pin_block().to_vec()));
        secrets.push((format!("card data {counter}"), envelope.card_data().to_vec()));
        village.append(&record);
    }
    let pin_field = hex::decode(format!("44{RIGHT}AAAAAAAAAA")).expect("hex");
    secrets.push(("a PIN field".into(), pin_field));
    let dump = village.dump();
    assert!(dump.contains("wakala.pin_try") && dump.contains("411111******1111"), "the dump has the rows");
    let lower = dump.to_lowercase();
    for (what, secret) in secrets {
        assert!(!lower.contains(&hex::encode(&secret)), "{what} is in the dump");
        // Text is dumped as it is.
        if let Ok(text) = std::str::from_utf8(&secret) {
            assert!(!dump.contains(text), "{what} is in the dump");
        }
    }
}
