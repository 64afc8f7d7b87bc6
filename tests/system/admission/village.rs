//! A bank with one card, its keys, and terminals that send what a terminal would.

use std::process::Command;
use std::sync::Arc;

use prost::Message as _;
use tempfile::TempDir;
use wakala::card::{Expiry, Ksn, Pan, Token};
use wakala::id::RequestKey;
use wakala::pin::Pin as ClearPin;
use wakala::pin::dukpt::{Transaction, initial_key};
use wakala::pin::key::{AesKey, TdesKey};
use wakala::pin::pvv;
use wakala::record::{Body, Pin, Record};
use wakala::request::{Kind, Refusal};
use wakala::wire;
use wakala_node::adapters::soft_hsm::{OpenError, Options as KeyOptions, SoftHsm, Source};
use wakala_node::clock::MonotonicClock;
use wakala_node::edge::{Edge, Options};
use wakala_node::ports::{Custody, KeyBytes};
use wakala_node::store::cards::{Card, Reference};
use wakala_node::store::{Error, Store};
use wakala_node::terminal::Enrolled;
use wakala_system_tests::{Database, agent, core, now, terminal};

use super::counting::Counting;

pub(crate) const BDK: [u8; 16] = *b"\xFE\xDC\xBA\x98\x76\x54\x32\x10\xF1\xF1\xF1\xF1\xF1\xF1\xF1\xF1";
pub(crate) const PVK: [u8; 16] = *b"\x01\x23\x45\x67\x89\xAB\xCD\xEF\xFE\xDC\xBA\x98\x76\x54\x32\x10";
pub(crate) const MASTER: &str = "5A0112233445566778899AABBCCDDEEFF5A0112233445566778899AABBCCDDEE";
pub(crate) const RIGHT: &str = "1234";
pub(crate) const WRONG: &str = "4321";
/// No PIN: a block of noise.
pub(crate) const NOISE: &str = "noise";

pub(crate) fn pan() -> Pan {
    Pan::new("4111111111111111").expect("a PAN")
}

pub(crate) fn pin_of(text: &str) -> ClearPin {
    ClearPin::new(text).expect("a PIN")
}

pub(crate) fn verdict_of(record: &Record) -> Pin {
    match &record.body {
        Body::Asked(asked) => asked.pin,
        Body::Refused(refusal) => panic!("refused: {refusal}"),
    }
}

pub(crate) fn refusal_of(record: &Record) -> Refusal {
    match &record.body {
        Body::Refused(refusal) => *refusal,
        Body::Asked(asked) => panic!("asked: {asked:?}"),
    }
}

/// One node and its database.
pub(crate) struct Village {
    pub(crate) database: Database,
    pub(crate) store: Store,
    pub(crate) hsm: Arc<Counting>,
    pub(crate) edge: Arc<Edge>,
    token: Token,
    sandbox: bool,
    folder: TempDir,
}

impl Village {
    pub(crate) async fn new(sandbox: bool) -> Self {
        let (database, folder) = (Database::new(), tempfile::tempdir().expect("a folder"));
        let store = database.store().await;
        let keys = soft_hsm(&folder, MASTER, sandbox);
        let bytes = |key: [u8; 16]| KeyBytes(key.to_vec().into());
        let name = |text: &str| text.parse().expect("a key's name");
        for block in [
            keys.import(&name("bdk-12345678"), &bytes(BDK), sandbox),
            keys.import(&name("pvk-1"), &bytes(PVK), sandbox),
            keys.generate(&name("card-token"), sandbox),
            keys.generate(&name("card-seal"), sandbox),
        ] {
            assert_eq!(store.add_key_block(block.expect("a key"), now()).await, Ok(true));
        }
        keys.load(&store.key_blocks().await.expect("keys")).expect("loaded");
        let token = keys.token(&pan()).expect("a token");
        let (hsm, edge) = started(&store, &folder, sandbox).await;
        let village = Self { database, store, hsm, edge, token, sandbox, folder };
        assert_eq!(village.import_card().await, Ok(1));
        village
    }

    /// Another node on the same database, or this one started again.
    pub(crate) async fn another_node(&self) -> (Store, Arc<Counting>, Arc<Edge>) {
        let store = self.database.store().await;
        let (hsm, edge) = started(&store, &self.folder, self.sandbox).await;
        (store, hsm, edge)
    }

    /// The keys, as a node of this mode reads them.
    pub(crate) async fn opened(&self, sandbox: bool) -> Result<SoftHsm, OpenError> {
        SoftHsm::open(&self.store, &options(&self.folder, MASTER), sandbox).await
    }

    pub(crate) async fn opened_under(&self, master: &str) -> Result<SoftHsm, OpenError> {
        SoftHsm::open(&self.store, &options(&self.folder, master), self.sandbox).await
    }

    /// The key store of somebody with this master key.
    pub(crate) fn unlocked(&self, master: &str) -> Box<dyn Custody> {
        Box::new(soft_hsm(&self.folder, master, self.sandbox))
    }

    /// The card's.
    pub(crate) fn token(&self) -> Token {
        self.token
    }

    pub(crate) async fn import_card(&self) -> Result<u64, Error> {
        let value = pvv::pvv(&TdesKey::new(PVK), 1, &pan(), &pin_of(RIGHT)).0;
        let card = Card { token: self.token, masked: pan().masked(), reference: Reference { pvki: 1, pvv: value } };
        self.store.import_cards(vec![card], self.sandbox).await
    }

    pub(crate) fn terminal(&self, n: u8) -> Enrolled {
        Enrolled {
            terminal: terminal(&format!("T{n}")),
            agent: agent("A1"),
            core: core(),
            sandbox: self.sandbox,
            blocked: false,
        }
    }

    pub(crate) async fn admit(&self, envelope: &Envelope) -> Record {
        self.edge.admit(&self.terminal(envelope.terminal), &envelope.bytes()).await.expect("a record")
    }

    pub(crate) async fn tries_used(&self) -> i64 {
        self.store.card(self.token()).await.expect("the database").expect("the card").tries_used
    }

    /// The record as the log keeps it.
    pub(crate) fn append(&self, record: &Record) {
        let bytes = hex::encode(record.encode());
        let offset = self.database.rows("select count(*) from wakala.log_record");
        let insert = format!(
            "insert into wakala.log_record (partition, \"offset\", terminal, bytes, at) values (0, {offset}, 'T1', '\\x{bytes}', now())"
        );
        assert_eq!(self.database.rows(&insert), "");
    }

    pub(crate) fn dump(&self) -> String {
        let dumped = Command::new("pg_dump").arg(self.database.url("postgres")).output().expect("pg_dump is there");
        assert!(dumped.status.success(), "{}", String::from_utf8_lossy(&dumped.stderr));
        String::from_utf8(dumped.stdout).expect("text")
    }
}

fn options(folder: &TempDir, master: &str) -> KeyOptions {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.path().join(format!("master-{}.key", &master[..4]));
    std::fs::write(&path, master).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    KeyOptions { master: Source::File(path) }
}

fn soft_hsm(folder: &TempDir, master: &str, sandbox: bool) -> SoftHsm {
    SoftHsm::unlock(&options(folder, master), sandbox).expect("a master key")
}

async fn started(store: &Store, folder: &TempDir, sandbox: bool) -> (Arc<Counting>, Arc<Edge>) {
    let keys = SoftHsm::open(store, &options(folder, MASTER), sandbox).await.expect("keys");
    let hsm = Arc::new(Counting::new(keys));
    let edge = Edge::new(hsm.clone(), store, Arc::new(MonotonicClock::start()), Options::default(), sandbox);
    (hsm, Arc::new(edge))
}

/// What a terminal sends.
pub(crate) struct Envelope {
    pub(crate) terminal: u8,
    pub(crate) key: RequestKey,
    keys: Transaction,
    kind: Kind,
    card_data: [u8; 16],
    pin_block: Option<[u8; 16]>,
    pin: String,
}

impl Envelope {
    /// With the counter in its key, so that another counter is another request.
    pub(crate) fn withdrawal(terminal: u8, counter: u32, pin: &str) -> Self {
        let keys = keys(&AesKey::new(BDK), terminal, counter);
        let mut key = [terminal; 16];
        key[12..].copy_from_slice(&counter.to_be_bytes());
        let card_data = keys.card_data(&pan(), Expiry { year: 99, month: 12 });
        let pin_block = Some(block(&keys, pin, &pan()));
        Self { terminal, key: RequestKey(key), keys, kind: Kind::Withdrawal, card_data, pin_block, pin: pin.to_owned() }
    }

    pub(crate) fn deposit(terminal: u8, counter: u32) -> Self {
        Self { kind: Kind::Deposit, pin_block: None, ..Self::withdrawal(terminal, counter, RIGHT) }
    }

    pub(crate) fn with_key(self, key: u8) -> Self {
        Self { key: RequestKey([key; 16]), ..self }
    }

    pub(crate) fn with_card_data(self, card_data: [u8; 16]) -> Self {
        Self { card_data, ..self }
    }

    pub(crate) fn of_card(self, pan: &str) -> Self {
        let pan = Pan::new(pan).expect("a PAN");
        let card_data = self.keys.card_data(&pan, Expiry { year: 99, month: 12 });
        let pin_block = Some(block(&self.keys, &self.pin, &pan));
        Self { card_data, pin_block, ..self }
    }

    /// From a terminal into which a key of another bank was injected.
    pub(crate) fn under(self, bdk: &AesKey) -> Self {
        Self { keys: keys(bdk, self.terminal, self.keys.ksn().counter), ..self }
    }

    pub(crate) fn ksn(&self) -> Ksn {
        self.keys.ksn()
    }

    pub(crate) fn pin_block(&self) -> [u8; 16] {
        self.pin_block.expect("a withdrawal")
    }

    pub(crate) fn card_data(&self) -> [u8; 16] {
        self.card_data
    }

    fn envelope(&self) -> wire::Envelope {
        let request = wire::Request {
            key: self.key.0.to_vec(),
            kind: self.kind.wire().into(),
            amount: 5_000_000,
            currency: 834,
            card: Some(wire::Card {
                data: self.card_data.to_vec(),
                pin_block: self.pin_block.map_or_else(Vec::new, |block| block.to_vec()),
            }),
            made_at: 1_795_224_225,
        };
        let body = request.encode_to_vec();
        let mac = self.keys.request_mac(&body).0.to_vec();
        wire::Envelope { body, ksn: self.ksn().to_bytes().to_vec(), mac }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.envelope().encode_to_vec()
    }

    /// As it arrives when somebody had his hands on it.
    pub(crate) fn altered(&self, change: impl FnOnce(&mut wire::Envelope)) -> Vec<u8> {
        let mut envelope = self.envelope();
        change(&mut envelope);
        envelope.encode_to_vec()
    }
}

fn keys(bdk: &AesKey, terminal: u8, counter: u32) -> Transaction {
    let id = [0x12, 0x34, 0x56, 0x78, 0, 0, 0, terminal];
    let ksn = Ksn { initial_key_id: id, counter };
    Transaction::under_initial_key(&initial_key(bdk, &id), ksn).expect("a counter")
}

fn block(keys: &Transaction, pin: &str, pan: &Pan) -> [u8; 16] {
    if pin == NOISE { [0x99; 16] } else { keys.pin_block(&pin_of(pin), pan, [0x2F; 8]).0 }
}
