//! docs/terminals.md is what a terminal maker builds from: its example's bytes and its tables are what the code makes.

use prost::Message as _;
use wakala::card::{Expiry, Ksn, Masked, Pan};
use wakala::id::{AgentId, RequestKey, Rrn, TerminalId, TransactionId};
use wakala::money::{Currency, Money};
use wakala::pin::Pin;
use wakala::pin::dukpt::{Transaction, Usage, initial_key, is_counter};
use wakala::pin::key::AesKey;
use wakala::receipt::{Told, Verdict, text_of};
use wakala::request::{Kind, Refusal};
use wakala::time::Time;
use wakala::wire;

const DOCUMENT: &str = include_str!("../docs/terminals.md");

/// The test keys of ANSI X9.24-3:2017, supplement.
fn keys() -> Transaction {
    let bdk = AesKey::new(hex::decode("FEDCBA9876543210F1F1F1F1F1F1F1F1").expect("hex").try_into().expect("16 bytes"));
    let ksn = Ksn { initial_key_id: [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56], counter: 1 };
    Transaction::under_initial_key(&initial_key(&bdk, &ksn.initial_key_id), ksn).expect("a counter")
}

fn key() -> RequestKey {
    RequestKey(std::array::from_fn(|at| u8::try_from(at * 0x11).expect("a byte")))
}

fn hexed(bytes: impl AsRef<[u8]>) -> String {
    hex::encode(bytes)
}

#[test]
fn the_example_is_what_the_code_makes() {
    let keys = keys();
    let pan = Pan::new("4111111111111111").expect("a PAN");
    let filler = hex::decode("2F69ADDE2E9E7ACE").expect("hex").try_into().expect("8 bytes");
    let data = keys.card_data(&pan, Expiry { year: 30, month: 12 });
    let pin_block = keys.pin_block(&Pin::new("1234").expect("a PIN"), &pan, filler);
    let request = wire::Request {
        key: key().0.to_vec(),
        kind: wire::Kind::Withdrawal.into(),
        amount: 5_000_000,
        currency: 834,
        card: Some(wire::Card { data: data.to_vec(), pin_block: pin_block.0.to_vec() }),
        made_at: 1_795_224_225,
    };
    let body = request.encode_to_vec();
    let mac = keys.request_mac(&body).0;
    let ksn = keys.ksn().to_bytes();
    let envelope = wire::Envelope { body: body.clone(), ksn: ksn.to_vec(), mac: mac.to_vec() }.encode_to_vec();

    let (terminal, agent) = (TerminalId::new("T1").expect("a name"), AgentId::new("A1").expect("a name"));
    let told = Told {
        transaction: TransactionId::of(&terminal, key()),
        terminal: &terminal,
        agent: &agent,
        key: key(),
        kind: Kind::Withdrawal,
        amount: Money::new(5_000_000, Currency::TZS).expect("an amount"),
        card: &Masked::stored("411111******1111"),
        rrn: Some(&Rrn::stored("632501000042")),
        ksn: Some(keys.ksn()),
    };
    let at = Time::from_millis(1_795_224_226_000);
    let answer = told.answer(&Verdict::Approved { authorisation: "A1B2C3".into() }, at);
    let receipt_mac = keys.receipt_mac(&answer.body).0;

    // Words beside the bytes are no hexadecimal digits of even length, and are left out.
    let is_hex =
        |word: &&str| word.len().is_multiple_of(2) && word.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let document: String = DOCUMENT.split_whitespace().filter(is_hex).collect();
    let mut missing = String::new();
    for (name, bytes) in [
        ("PIN encryption key", hexed(keys.working_key(Usage::PinEncryption).expose())),
        ("data encryption key", hexed(keys.working_key(Usage::DataEncryption).expose())),
        ("MAC generation key", hexed(keys.working_key(Usage::MacGeneration).expose())),
        ("MAC verification key", hexed(keys.working_key(Usage::MacVerification).expose())),
        ("card data block", hexed(data)),
        ("PIN block", hexed(pin_block.0)),
        ("Request", hexed(&body)),
        ("request code", hexed(mac)),
        ("Envelope", hexed(&envelope)),
        ("Receipt", hexed(&answer.body)),
        ("receipt code", hexed(receipt_mac)),
        ("ReceiptEnvelope", hexed(answer.envelope(Some(receipt_mac)))),
    ] {
        if !document.contains(&bytes) {
            missing.push_str(&format!("{name}: {bytes}\n"));
        }
    }
    assert!(missing.is_empty(), "docs/terminals.md does not have:\n{missing}");
}

#[test]
fn every_code_and_every_refusal_is_in_the_tables() {
    for code in ["00", "05", "12", "13", "14", "30", "51", "54", "55", "58", "61", "63", "75", "91", "94", "96"] {
        let row = format!("| `{code}` | {} |", text_of(code));
        assert!(DOCUMENT.contains(&row), "docs/terminals.md lacks the row {row}");
    }
    for refusal in Refusal::ALL {
        let row = format!("| `{}` | {refusal} |", refusal.code());
        assert!(DOCUMENT.contains(&row), "docs/terminals.md lacks the row {row}");
    }
}

#[test]
fn the_counters_that_it_names_are_the_counters() {
    for (counter, good) in [(0, false), (1, true), (0x0000_FFFF, true), (0x0001_FFFF, false), (0xFFFF_0000, true)] {
        assert_eq!(is_counter(counter), good, "{counter:08X}");
    }
}
