use wakala::card::Expiry;
use wakala::pin::Pin;
use wakala::pin::terminal::Injected;

use super::*;

const BDK: [u8; 16] = *b"\xFE\xDC\xBA\x98\x76\x54\x32\x10\xF1\xF1\xF1\xF1\xF1\xF1\xF1\xF1";
const PVK: [u8; 16] = *b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\xFE\xDC\xBA\x98\x76\x54\x32\x10";
const IKID: [u8; 8] = [0x12, 0x34, 0x56, 0x78, 0x90, 0x12, 0x34, 0x56];

fn empty(sandbox: bool) -> SoftHsm {
    let master = master::tests_support::of([0x5A; 31]);
    SoftHsm { master, sandbox, keys: RwLock::default() }
}

fn bytes(key: &[u8]) -> KeyBytes {
    KeyBytes(Zeroizing::new(key.to_vec()))
}

fn name(text: &str) -> KeyName {
    text.parse().expect("a key's name")
}

fn blocks(hsm: &SoftHsm) -> Vec<KeyBlock> {
    vec![
        hsm.import(&name("bdk-12345678"), &bytes(&BDK), true).expect("imported"),
        hsm.import(&name("pvk-1"), &bytes(&PVK), true).expect("imported"),
        hsm.generate(&name("zpk-crdb"), true).expect("generated"),
        hsm.generate(&name("card-token"), true).expect("generated"),
        hsm.generate(&name("card-seal"), true).expect("generated"),
    ]
}

fn loaded() -> SoftHsm {
    let hsm = empty(true);
    hsm.load(&blocks(&hsm)).expect("loaded");
    hsm
}

/// What a terminal makes with the key that was injected into it.
fn terminal(hsm: &SoftHsm) -> Transaction {
    let injected = hsm.initial_key(&IKID).expect("a sandbox key");
    let key: [u8; 16] = injected.0.as_slice().try_into().expect("16 bytes");
    Injected::new(AesKey::new(key), IKID).transaction(1).expect("a counter")
}

fn pan() -> Pan {
    Pan::new("4111111111111111").expect("a PAN")
}

const EXPIRY: Expiry = Expiry { year: 30, month: 12 };

#[test]
fn a_card_is_read_tokenised_masked_and_sealed() {
    let hsm = loaded();
    let sent = terminal(&hsm);
    let card = hsm.read_card(&sent.ksn(), &sent.card_data(&pan(), EXPIRY)).expect("a card");
    assert_eq!((card.masked.as_str(), card.expiry), ("411111******1111", EXPIRY));
    assert_eq!(card.token, hsm.token(&pan()).expect("a token"));
    assert_eq!(hsm.open_pan(&card.sealed).expect("ours").digits(), pan().digits());
    assert!(!card.sealed.0.windows(6).any(|part| part == b"411111"));
    let again = hsm.read_card(&sent.ksn(), &sent.card_data(&pan(), EXPIRY)).expect("a card");
    assert_eq!(again.token, card.token);
    assert_ne!(again.sealed, card.sealed, "sealed with another nonce");
    assert_eq!(hsm.read_card(&sent.ksn(), &[0; 16]), Err(HsmError::BadCard));
}

#[test]
fn a_token_needs_its_key() {
    let (one, other) = (loaded(), loaded());
    assert_ne!(one.token(&pan()), other.token(&pan()), "each bank has its own token key");
}

#[test]
fn a_pin_is_right_wrong_or_malformed() {
    let hsm = loaded();
    let sent = terminal(&hsm);
    let card = hsm.read_card(&sent.ksn(), &sent.card_data(&pan(), EXPIRY)).expect("a card");
    let pin = |text: &str| Pin::new(text).expect("a PIN");
    let value = pvv::pvv(&TdesKey::new(PVK), 1, &pan(), &pin("1234")).0;
    let reference = PinReference::Pvv { index: 1, value };
    let verdict = |block: &PinBlock| hsm.verify_pin(&sent.ksn(), block, &card, &reference);
    assert_eq!(verdict(&sent.pin_block(&pin("1234"), &pan(), [1; 8])), Ok(PinVerdict::Correct));
    assert_eq!(verdict(&sent.pin_block(&pin("1235"), &pan(), [1; 8])), Ok(PinVerdict::Wrong));
    assert_eq!(verdict(&PinBlock([9; 16])), Ok(PinVerdict::Malformed));
    let other = Pan::new("5500005555555559").expect("a PAN");
    assert_eq!(verdict(&sent.pin_block(&pin("1234"), &other, [1; 8])), Ok(PinVerdict::Malformed), "another card's");
    let reference = PinReference::Pvv { index: 2, value };
    let block = sent.pin_block(&pin("1234"), &pan(), [1; 8]);
    assert_eq!(hsm.verify_pin(&sent.ksn(), &block, &card, &reference), Err(HsmError::UnknownKey("pvk-2".into())));
}

#[test]
fn codes_go_each_way() {
    let hsm = loaded();
    let sent = terminal(&hsm);
    assert_eq!(hsm.verify_mac(&sent.ksn(), b"body", &sent.request_mac(b"body")), Ok(true));
    assert_eq!(hsm.verify_mac(&sent.ksn(), b"bodY", &sent.request_mac(b"body")), Ok(false));
    assert_eq!(hsm.verify_mac(&sent.ksn(), b"body", &sent.receipt_mac(b"body")), Ok(false));
    assert_eq!(hsm.generate_mac(&sent.ksn(), b"receipt"), Ok(sent.receipt_mac(b"receipt")));
    let unknown = Ksn { initial_key_id: [0; 8], counter: 1 };
    let error = hsm.verify_mac(&unknown, b"", &Mac([0; 8]));
    assert_eq!(error, Err(HsmError::UnknownKey("bdk-00000000".into())));
    let worn = Ksn { initial_key_id: IKID, counter: 0x1_FFFF };
    assert_eq!(hsm.verify_mac(&worn, b"", &Mac([0; 8])), Err(HsmError::BadCounter));
}

#[test]
fn a_translated_block_is_under_the_zone_key() {
    let hsm = empty(true);
    let zone = [0x11; 15].iter().chain(&[0x12]).copied().collect::<Vec<u8>>();
    let mut all = blocks(&hsm);
    all[2] = hsm.import(&name("zpk-crdb"), &bytes(&zone), true).expect("imported");
    hsm.load(&all).expect("loaded");
    let sent = terminal(&hsm);
    let card = hsm.read_card(&sent.ksn(), &sent.card_data(&pan(), EXPIRY)).expect("a card");
    let block = sent.pin_block(&Pin::new("1234").expect("a PIN"), &pan(), [1; 8]);
    let zoned = hsm.translate_pin(&sent.ksn(), &block, &card, "crdb").expect("translated");
    let zone_key = AesKey::new(zone.try_into().expect("16 bytes"));
    assert_eq!(block::decoded(&zone_key, &zoned, &pan()).expect("a PIN").digits(), [1, 2, 3, 4]);
    let nowhere = hsm.translate_pin(&sent.ksn(), &block, &card, "nmb").map(|_| ());
    assert_eq!(nowhere, Err(HsmError::UnknownKey("zpk-nmb".into())));
}

#[test]
fn a_sealed_key_opens_in_its_row_under_its_master_key_alone() {
    let hsm = empty(true);
    let all = blocks(&hsm);
    let with = |change: &dyn Fn(&mut KeyBlock)| {
        let mut altered = all.clone();
        change(&mut altered[0]);
        hsm.load(&altered)
    };
    let unreadable = |found: Result<(), KeyError>| matches!(found, Err(KeyError::Unreadable { .. }));
    assert!(unreadable(with(&|block| block.name = name("bdk-12345679"))), "another name");
    assert!(unreadable(with(&|block| block.name = name("zpk-crdb"))), "another usage");
    assert!(unreadable(with(&|block| block.sealed = all[2].sealed.clone())), "another row's key");
    assert!(unreadable(with(&|block| block.check_value = "000000".into())), "another check value");
    let other = SoftHsm { master: master::tests_support::of([0xA5; 31]), sandbox: true, keys: RwLock::default() };
    assert!(unreadable(other.load(&all)), "another master key");
    // A sandbox key that somebody marks as real does not become one.
    let real = empty(false);
    assert_eq!(real.load(&all), Ok(()), "sandbox keys are passed over");
    assert_eq!(real.check_value("bdk-12345678"), Err(HsmError::UnknownKey("bdk-12345678".into())));
    let marked: Vec<_> = all.iter().cloned().map(|block| KeyBlock { sandbox: false, ..block }).collect();
    assert!(unreadable(real.load(&marked)));
}

#[test]
fn a_failed_load_leaves_the_keys_as_they_were() {
    let hsm = loaded();
    let broken = KeyBlock { name: name("pvk-1"), check_value: "08D7B4".into(), sealed: vec![1; 45], sandbox: true };
    assert!(hsm.load(&[broken]).is_err());
    assert_eq!(hsm.check_value("bdk-12345678").as_deref(), Ok("FF0BD7"));
    assert_eq!(hsm.check_value("pvk-1").as_deref(), Ok("08D7B4"));
}

#[test]
fn what_cannot_be_a_key_is_refused() {
    let hsm = empty(true);
    for (key, named) in [
        (vec![1, 2, 3], "bdk-12345678"),
        (vec![0; 16], "bdk-12345678"),
        (b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\x01\x23\x45\x67\x89\xAB\xCD\xEF".to_vec(), "pvk-1"),
        (BDK.to_vec(), "card-token"),
    ] {
        assert!(matches!(hsm.import(&name(named), &bytes(&key), true), Err(KeyError::NotAKey(_))), "{named}");
    }
}

#[test]
fn an_initial_key_leaves_in_clear_in_the_sandbox_alone() {
    assert_eq!(
        hex::encode_upper(&*loaded().initial_key(&IKID).expect("sandbox").0),
        "1273671EA26AC29AFA4D1084127652A1"
    );
    let real = empty(false);
    real.load(&[real.import(&name("bdk-12345678"), &bytes(&BDK), false).expect("imported")]).expect("loaded");
    assert!(matches!(real.initial_key(&IKID), Err(KeyError::Refused(_))));
}

#[test]
fn generated_pin_verification_keys_have_odd_parity() {
    let mut key = [0x00, 0x01, 0xFE, 0xFF];
    with_odd_parity(&mut key);
    assert_eq!(key, [0x01, 0x01, 0xFE, 0xFE]);
}

#[test]
fn without_its_keys_it_faults_and_says_which() {
    let hsm = empty(true);
    hsm.load(&[hsm.import(&name("bdk-12345678"), &bytes(&BDK), true).expect("imported")]).expect("loaded");
    let sent = terminal(&hsm);
    let Err(HsmError::Fault(why)) = hsm.read_card(&sent.ksn(), &sent.card_data(&pan(), EXPIRY)) else {
        panic!("it has no key to seal with")
    };
    assert!(why.contains("wakala keys generate card-seal"), "{why}");
}

/// Made by psec 1.3.0 under [`KBPK`]: [`BDK`], usage B0.
const BLOCK: &str = "D0144B0AX00E0000B3B57B1A4F78AB777E0DBAE46315F4EF4B094A528641B5BA1F0C623E356724728AA1788B19959F29\
                     76B1138ED826F1618E61E00D6DD8E5B38D73D0112355C3D8";
const KBPK: [u8; 16] = *b"\x88\xE1\xAB\x2A\x2E\x3D\xD3\x8C\x1F\xA8\xA2\xCD\x2F\x7B\x7D\x3C";

#[test]
fn keys_come_and_go_in_key_blocks() {
    let hsm = empty(false);
    let under = name("kbpk-bank");
    assert!(hsm.import_block(&name("bdk-12345678"), BLOCK, &under, false).is_err(), "the protection key is not here");
    let protection = hsm.import(&under, &bytes(&KBPK), false).expect("imported");
    hsm.load(std::slice::from_ref(&protection)).expect("loaded");
    let imported = hsm.import_block(&name("bdk-12345678"), BLOCK, &under, false).expect("a block");
    assert_eq!(imported.check_value, "FF0BD7");
    for other in ["zpk-crdb", "pvk-1", "kbpk-other"] {
        let refused = hsm.import_block(&name(other), BLOCK, &under, false);
        assert!(matches!(refused, Err(KeyError::NotAKey(_))), "a BDK is no {other}");
    }
    // A real initial key leaves under a protection key, and in no other way.
    hsm.load(&[protection, imported]).expect("loaded");
    assert!(matches!(hsm.initial_key(&IKID), Err(KeyError::Refused(_))));
    let block = hsm.initial_key_block(&IKID, &under).expect("wrapped");
    let (attributes, key) = tr31::unwrapped(&AesKey::new(KBPK), &block).expect("a block");
    assert_eq!((attributes.usage, hex::encode_upper(&*key).as_str()), (*b"B1", "1273671EA26AC29AFA4D1084127652A1"));
}
