//! One case of `tests/foreign/pin_cases.py` against `src/pin`.

use serde_json::Value;
use wakala::card::{Expiry, Ksn, Mac, Pan, PinBlock};
use wakala::pin::dukpt::{self, Transaction, Usage};
use wakala::pin::key::{AesKey, TdesKey};
use wakala::pin::offset::{self, Table, ValidationData};
use wakala::pin::terminal::Injected;
use wakala::pin::{Pin, block, card_data, pvv};

/// Checks each line, and gives how many there were.
pub(crate) fn all(lines: &str) -> usize {
    lines.lines().map(|line| check(&serde_json::from_str(line).expect("a JSON object"))).count()
}

struct Case<'a>(&'a Value);

impl Case<'_> {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_else(|| panic!("no text {name}"))
    }

    fn bytes<const N: usize>(&self, name: &str) -> [u8; N] {
        hex::decode(self.text(name)).expect("hex").try_into().unwrap_or_else(|_| panic!("{name} is not {N} bytes"))
    }

    fn digits(&self, name: &str) -> Vec<u8> {
        self.text(name).bytes().map(|digit| digit - b'0').collect()
    }
}

fn check(case: &Value) {
    let case = Case(case);
    let ksn = Ksn::from_bytes(&case.bytes::<12>("ksn")).expect("a KSN");
    let bdk = AesKey::new(case.bytes("bdk"));
    let host = Transaction::under_base_key(&bdk, ksn).expect("a counter");
    let initial = dukpt::initial_key(&bdk, &ksn.initial_key_id);
    assert_eq!(*initial.expose(), case.bytes("initial_key"), "{ksn:?}");
    for (usage, name) in [
        (Usage::PinEncryption, "pin_key"),
        (Usage::MacGeneration, "mac_generation_key"),
        (Usage::MacVerification, "mac_verification_key"),
        (Usage::DataEncryption, "data_key"),
    ] {
        assert_eq!(*host.working_key(usage).expose(), case.bytes(name), "{name} of {ksn:?}");
    }
    let next = dukpt::next_counter(ksn.counter).map(u64::from);
    assert_eq!(next, case.0["next_counter"].as_u64(), "{ksn:?}");
    let terminal = Injected::new(initial, ksn.initial_key_id).transaction(ksn.counter).expect("a counter");
    wire(&case, &host, &terminal);
    references(&case, &bdk);
}

/// What goes over the wire, made by the terminal's half and read by the host's.
fn wire(case: &Case<'_>, host: &Transaction, terminal: &Transaction) {
    let (pan, pin) = (Pan::new(case.text("pan")).expect("a PAN"), Pin::new(case.text("pin")).expect("a PIN"));
    let made = terminal.pin_block(&pin, &pan, case.bytes("random"));
    assert_eq!(made.0, case.bytes("pin_block"));
    let theirs = PinBlock(case.bytes("pin_block"));
    let found = block::decoded(&host.working_key(Usage::PinEncryption), &theirs, &pan).expect("a PIN");
    assert_eq!(found.digits(), pin.digits());

    let expiry = Expiry::from_yymm(case.text("expiry").parse().expect("a number")).expect("a month");
    assert_eq!(terminal.card_data(&pan, expiry), case.bytes("card_data"));
    let card = card_data::decrypted(&host.working_key(Usage::DataEncryption), &case.bytes("card_data"));
    let (found, until) = card.expect("a card");
    assert_eq!((found.digits(), until), (pan.digits(), expiry));

    let body = hex::decode(case.text("body")).expect("hex");
    assert_eq!(terminal.request_mac(&body), Mac(case.bytes("request_mac")));
    assert_eq!(host.receipt_mac(&body), Mac(case.bytes("receipt_mac")));
}

/// What the bank compares a PIN with, and the check values of its keys.
fn references(case: &Case<'_>, bdk: &AesKey) {
    let (pan, pin) = (Pan::new(case.text("pan")).expect("a PAN"), Pin::new(case.text("pin")).expect("a PIN"));
    let pvk = TdesKey::new(case.bytes("pvk"));
    let index = u8::try_from(case.0["pvki"].as_u64().expect("a number")).expect("a digit");
    assert_eq!(pvv::pvv(&pvk, index, &pan, &pin).0.as_slice(), case.digits("pvv"));
    let table = Table::new(case.text("table")).expect("a table");
    let data = ValidationData::new(&case.digits("validation"), 0xF);
    assert_eq!(offset::offset(&pvk, &data, &table, &pin).digits(), case.digits("offset"));
    assert!(pvk.check_value().is(case.text("pvk_check")));
    assert!(bdk.check_value().is(case.text("bdk_check")));
    assert!(bdk.legacy_check_value().is(case.text("bdk_legacy_check")));
}
