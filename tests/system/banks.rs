//! The actor of a core over a real socket: against the simulated core, which can misbehave, and against a foreign one.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use wakala::bank::Unmatched;
use wakala::card::{CardRef, Expiry, Ksn, Mac, Masked, Pan, PinBlock, Sealed, Token};
use wakala::id::{CoreId, PartitionNo, RequestKey, Rrn, Stan, TransactionId};
use wakala::iso8583::Dialect;
use wakala::money::{Currency, Money};
use wakala::partition::Event;
use wakala::receipt::Reason;
use wakala::request::Kind;
use wakala::transaction::{CoreAnswer, State, Trace, Transaction};
use wakala_node::adapters::iso8583_tcp::Iso8583Tcp;
use wakala_node::banks::{self, Banks, Deps, Options};
use wakala_node::clock::MonotonicClock;
use wakala_node::ports::{Hsm, HsmError, PinReference, PinVerdict};
use wakala_node::supervision::{Policy, Tree};
use wakala_sandbox::core::behaviour::{Behaviour, Quirk};
use wakala_sandbox::core::journal::{self, What};
use wakala_sandbox::core::{self, Core};
use wakala_system_tests::{agent, now, terminal};

const PAN: &str = "4111111111111111";
const P: PartitionNo = PartitionNo(5);

/// Opens a sealed value that is the digits themselves; it is all that a bank asks of an HSM.
struct Opener;

impl Hsm for Opener {
    fn read_card(&self, _: &Ksn, _: &[u8; 16]) -> Result<CardRef, HsmError> {
        Err(not_asked())
    }

    fn verify_pin(&self, _: &Ksn, _: &PinBlock, _: &CardRef, _: &PinReference) -> Result<PinVerdict, HsmError> {
        Err(not_asked())
    }

    fn translate_pin(&self, _: &Ksn, _: &PinBlock, _: &CardRef, _: &str) -> Result<PinBlock, HsmError> {
        Err(not_asked())
    }

    fn verify_mac(&self, _: &Ksn, _: &[u8], _: &Mac) -> Result<bool, HsmError> {
        Err(not_asked())
    }

    fn generate_mac(&self, _: &Ksn, _: &[u8]) -> Result<Mac, HsmError> {
        Err(not_asked())
    }

    fn open_pan(&self, sealed: &Sealed) -> Result<Pan, HsmError> {
        std::str::from_utf8(&sealed.0).ok().and_then(|digits| Pan::new(digits).ok()).ok_or(HsmError::BadCard)
    }

    fn check_value(&self, _: &str) -> Result<String, HsmError> {
        Err(not_asked())
    }
}

fn not_asked() -> HsmError {
    HsmError::Fault("a bank asks no such thing".to_owned())
}

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests")).join("../..")
}

fn dialect_file(name: &str) -> PathBuf {
    root().join("config/banks").join(name)
}

fn name() -> CoreId {
    "sandbox".parse().expect("a name")
}

/// The banks of a node with one core, and what its partition hears.
struct Desk {
    banks: Banks,
    tree: Tree,
    heard: mpsc::UnboundedReceiver<Event>,
    unmatched: mpsc::UnboundedReceiver<Unmatched>,
}

impl Desk {
    fn open(address: &str, dialect: &str, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options {
            dialect: dialect_file(dialect),
            address: address.to_owned(),
            backoff_min: Duration::from_millis(40),
            backoff_max: Duration::from_millis(200),
            ..Options::default()
        };
        change(&mut options);
        let (tell, heard) = mpsc::unbounded_channel();
        let (keep, unmatched) = mpsc::unbounded_channel();
        let deps = Deps {
            clock: Arc::new(MonotonicClock::start()),
            hsm: Arc::new(Opener),
            driver: Arc::new(|options, dialect| Arc::new(Iso8583Tcp::new(&options.address, dialect.framing.clone()))),
            outcome: Arc::new(move |partition, event| {
                assert_eq!(partition, P);
                let _ = tell.send(event);
            }),
            unmatched: Box::new(move |_, unmatched| {
                let _ = keep.send(unmatched);
            }),
        };
        let tree = Tree::default();
        let cores = BTreeMap::from([(name(), options)]);
        let banks = banks::start(&cores, deps, Policy::default(), tree.clone(), |why| panic!("{why}")).expect("banks");
        Self { banks, tree, heard, unmatched }
    }

    fn is_open(&self) -> bool {
        self.banks.gate(&name()).expect("a gate").is_open()
    }

    /// Waits until the link is signed on, or is not.
    async fn until_open(&self, open: bool) {
        until(|| self.is_open() == open).await;
    }

    fn free(&self) -> usize {
        self.banks.gate(&name()).expect("a gate").free()
    }

    fn ask(&self, transaction: &Transaction) {
        self.banks.ask(P, Box::new(transaction.clone()));
    }

    fn reverse(&self, transaction: &Transaction, times: u32) {
        let mut transaction = transaction.clone();
        transaction.state = State::InDoubt;
        transaction.reversals = times;
        self.banks.reverse(P, Box::new(transaction));
    }

    async fn hears(&mut self) -> Event {
        let heard = tokio::time::timeout(Duration::from_secs(10), self.heard.recv()).await;
        heard.expect("nothing was heard").expect("the banks are there")
    }

    async fn hears_nothing_for(&mut self, wait: Duration) {
        let heard = tokio::time::timeout(wait, self.heard.recv()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
}

async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it never came to that");
}

fn transaction(n: u32, kind: Kind, minor: u64, pan: &str) -> Transaction {
    let terminal = terminal("T0001");
    let key = RequestKey([u8::try_from(n).expect("small"); 16]);
    let (at, stan) = (now(), Stan(n));
    Transaction {
        id: TransactionId::of(&terminal, key),
        partition: P,
        terminal,
        agent: agent("A1"),
        core: name(),
        key,
        fingerprint: [0; 32],
        kind,
        amount: Money::new(minor, Currency::TZS).expect("an amount"),
        card: CardRef {
            token: Token([9; 16]),
            masked: Masked::stored("411111******1111"),
            sealed: Sealed(pan.as_bytes().into()),
            expiry: Expiry { year: 40, month: 12 },
        },
        ksn: None,
        state: State::Sent,
        asked_at: at,
        trace: Some(Trace { stan, rrn: Rrn::new(at, stan), sent_at: at }),
        due: None,
        reversals: 0,
        code: None,
        authorisation: None,
    }
}

fn withdrawal(n: u32, minor: u64) -> Transaction {
    transaction(n, Kind::Withdrawal, minor, PAN)
}

fn rrn(transaction: &Transaction) -> &str {
    transaction.trace.as_ref().expect("a trace").rrn.as_str()
}

fn answer(transaction: &Transaction, answer: CoreAnswer) -> Event {
    Event::Answer { transaction: transaction.id, answer }
}

fn declined(transaction: &Transaction, code: &str) -> Event {
    answer(transaction, CoreAnswer::Declined(Reason::new(code)))
}

fn is_approved(event: &Event, of: &Transaction) -> bool {
    matches!(event, Event::Answer { transaction, answer: CoreAnswer::Approved { authorisation } }
        if *transaction == of.id && authorisation.len() == 6)
}

async fn core_that(dialect: &str, behaviour: Behaviour) -> Core {
    let text = std::fs::read_to_string(dialect_file(dialect)).expect("a file");
    let dialect = Arc::new(Dialect::parse(&text).expect("a dialect"));
    let accounts = BTreeMap::from([(PAN.to_owned(), 10_000)]);
    let well_behaved = core::Options::well_behaved(dialect);
    let options = core::Options { accounts, others_minor: None, behaviour, ..well_behaved };
    Core::start(options).await.expect("a core")
}

fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(test);
}

async fn signed_on(dialect: &str, behaviour: Behaviour) -> (Core, Desk) {
    signed_on_with(dialect, behaviour, |_| {}).await
}

async fn signed_on_with(dialect: &str, behaviour: Behaviour, change: impl FnOnce(&mut Options)) -> (Core, Desk) {
    let core = core_that(dialect, behaviour).await;
    let desk = Desk::open(&core.address().to_string(), dialect, change);
    desk.until_open(true).await;
    (core, desk)
}

#[test]
fn a_core_books_what_it_approves_and_says_why_not() {
    run(async {
        for dialect in ["sandbox.toml", "ascii-hex.toml"] {
            let (core, mut desk) = signed_on(dialect, Behaviour::default()).await;
            let cash = withdrawal(1, 4_000);
            desk.ask(&cash);
            let heard = desk.hears().await;
            assert!(is_approved(&heard, &cash), "{dialect} {heard:?}");
            let too_much = withdrawal(2, 6_001);
            desk.ask(&too_much);
            assert_eq!(desk.hears().await, declined(&too_much, "51"));
            let stranger = transaction(3, Kind::Withdrawal, 1, "4222222222222220");
            desk.ask(&stranger);
            assert_eq!(desk.hears().await, declined(&stranger, "14"));
            let deposit = transaction(4, Kind::Deposit, 500, PAN);
            desk.ask(&deposit);
            let heard = desk.hears().await;
            assert!(is_approved(&heard, &deposit), "{dialect} {heard:?}");
            let nets = journal::nets(&core.journal());
            let booked: Vec<i64> = [&cash, &too_much, &stranger, &deposit].map(|t| nets[rrn(t)].booked).into();
            assert_eq!(booked, [4_000, 0, 0, 500]);
            assert!(core.journal().iter().all(|line| !line.card.contains("11111111")));
        }
    });
}

#[test]
fn a_link_cut_in_between_is_in_doubt_and_taken_back_over_the_next() {
    run(async {
        let (core, mut desk) = signed_on("sandbox.toml", Behaviour::scripted([Quirk::Cut])).await;
        let cash = withdrawal(1, 4_000);
        desk.ask(&cash);
        assert_eq!(desk.hears().await, Event::Lost { transaction: cash.id });
        desk.until_open(true).await;
        desk.reverse(&cash, 1);
        assert_eq!(desk.hears().await, answer(&cash, CoreAnswer::Reversed));
        // Again, as a partition does that did not hear it.
        desk.reverse(&cash, 2);
        assert_eq!(desk.hears().await, answer(&cash, CoreAnswer::Reversed));
        let whats: Vec<(What, String)> = core.journal().into_iter().map(|line| (line.what, line.mti)).collect();
        let expected = [(What::Booked, "0200"), (What::Reversed, "0420"), (What::ReversalRepeated, "0421")];
        assert_eq!(whats, expected.map(|(what, mti)| (what, mti.to_owned())));
        assert_eq!(journal::nets(&core.journal())[rrn(&cash)].booked, 0);
    });
}

#[test]
fn what_never_left_says_so() {
    run(async {
        let (core, mut desk) = signed_on("sandbox.toml", Behaviour::default()).await;
        drop(core);
        desk.until_open(false).await;
        let cash = withdrawal(1, 4_000);
        desk.ask(&cash);
        assert_eq!(desk.hears().await, Event::Unsent { transaction: cash.id });
        desk.reverse(&cash, 1);
        desk.hears_nothing_for(Duration::from_millis(200)).await;
        let mut nowhere = withdrawal(2, 1);
        nowhere.core = "elsewhere".parse().expect("a name");
        desk.ask(&nowhere);
        assert_eq!(desk.hears().await, Event::Unsent { transaction: nowhere.id });
    });
}

#[test]
fn places_are_bounded_and_none_is_given_while_the_link_is_down() {
    run(async {
        let (core, desk) = signed_on_with("sandbox.toml", Behaviour::default(), |options| options.in_flight = 3).await;
        let mut places = desk.banks.places(&name(), 10);
        assert_eq!((places.len(), desk.free()), (3, 0));
        assert!(desk.banks.places(&name(), 1).is_empty());
        places.pop();
        assert_eq!(desk.banks.places(&name(), 10).len(), 1);
        drop(places);
        assert_eq!(desk.free(), 3);
        drop(core);
        desk.until_open(false).await;
        assert!(desk.banks.places(&name(), 1).is_empty());
        assert!(desk.banks.places(&"elsewhere".parse().expect("a name"), 1).is_empty());
    });
}

#[test]
fn a_silent_link_is_asked_whether_it_is_there() {
    run(async {
        let quick = |options: &mut Options| options.echo_idle = Duration::from_millis(50);
        let (core, desk) = signed_on_with("sandbox.toml", Behaviour::default(), quick).await;
        until(|| core.network().get("301").is_some_and(|&echoes| echoes >= 3)).await;
        assert!(desk.is_open());
        assert_eq!(core.network()["001"], 1);
    });
}

#[test]
fn an_actor_that_panics_comes_back_signed_on_and_nobody_waits_in_vain() {
    run(async {
        let (core, mut desk) = signed_on("sandbox.toml", Behaviour::scripted([Quirk::Swallow])).await;
        let places = desk.banks.places(&name(), 64);
        let cash = withdrawal(1, 4_000);
        desk.ask(&cash);
        until(|| core.journal().len() == 1).await;
        assert!(desk.banks.panic(Some(&name())));
        assert_eq!(desk.hears().await, Event::Lost { transaction: cash.id });
        desk.until_open(true).await;
        assert_eq!(core.network()["001"], 2);
        until(|| core.links() == 1).await;
        drop(places);
        assert_eq!(desk.free(), 64, "places outlive the actor");
        let branch = desk.tree.branches()["banks/sandbox"].clone();
        assert_eq!((branch.panics, branch.restarts), (1, 1));
        desk.reverse(&cash, 1);
        assert_eq!(desk.hears().await, answer(&cash, CoreAnswer::Reversed));
    });
}

#[test]
fn late_doubled_and_overtaken_answers_name_their_transaction() {
    run(async {
        let script = [Quirk::Twice, Quirk::Late(Duration::from_millis(300)), Quirk::AfterReversal];
        let (core, mut desk) = signed_on("sandbox.toml", Behaviour::scripted(script)).await;
        let twice = withdrawal(1, 100);
        desk.ask(&twice);
        for _ in 0..2 {
            let heard = desk.hears().await;
            assert!(is_approved(&heard, &twice), "{heard:?}");
        }
        let late = withdrawal(2, 100);
        desk.ask(&late);
        desk.hears_nothing_for(Duration::from_millis(100)).await;
        let heard = desk.hears().await;
        assert!(is_approved(&heard, &late), "{heard:?}");
        let overtaken = withdrawal(3, 100);
        desk.ask(&overtaken);
        until(|| core.journal().len() == 3).await;
        desk.reverse(&overtaken, 1);
        assert_eq!(desk.hears().await, answer(&overtaken, CoreAnswer::Reversed));
        let heard = desk.hears().await;
        assert!(is_approved(&heard, &overtaken), "{heard:?}");
        assert_eq!(journal::nets(&core.journal())[rrn(&overtaken)].booked, 0);
        assert!(desk.unmatched.try_recv().is_err());
    });
}

#[test]
fn a_core_that_falls_silent_is_left_alone_for_a_while() {
    run(async {
        let quick = |options: &mut Options| {
            options.answer_timeout = Duration::from_millis(100);
            options.breaker_after = 3;
            // Long enough to be seen, however busy the machine is.
            options.breaker = Duration::from_secs(3);
        };
        let silence = Behaviour::scripted(vec![Quirk::Swallow; 3]);
        let (core, mut desk) = signed_on_with("sandbox.toml", silence, quick).await;
        for n in 1..=3 {
            desk.ask(&withdrawal(n, 1));
        }
        desk.until_open(false).await;
        let note = || desk.tree.branches()["banks/sandbox"].note.clone().unwrap_or_default();
        until(|| note() == "BROKEN: 3 messages in a row were not answered").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!((desk.is_open(), core.network()["001"]), (false, 1));
        desk.until_open(true).await;
        let cash = withdrawal(4, 1);
        desk.ask(&cash);
        let heard = desk.hears().await;
        assert!(is_approved(&heard, &cash), "{heard:?}");
    });
}

#[test]
fn told_to_end_it_signs_off() {
    run(async {
        let (core, desk) = signed_on("sandbox.toml", Behaviour::default()).await;
        desk.banks.end();
        until(|| core.network().get("002") == Some(&1)).await;
        until(|| core.links() == 0).await;
        assert!(!desk.is_open());
    });
}

#[test]
fn many_at_once_over_a_rough_core_end_as_the_core_has_them() {
    run(async {
        let rough = Behaviour {
            delay: Duration::ZERO..Duration::from_millis(20),
            twice: 100,
            decline: 100,
            ..Behaviour::default()
        };
        let (core, mut desk) = signed_on("sandbox.toml", rough).await;
        let asked: Vec<Transaction> = (1..=60).map(|n| withdrawal(n, 10)).collect();
        for transaction in &asked {
            desk.ask(transaction);
        }
        let mut first: BTreeMap<TransactionId, bool> = BTreeMap::new();
        while first.len() < asked.len() {
            let Event::Answer { transaction, answer } = desk.hears().await else { panic!("all are answered") };
            first.entry(transaction).or_insert(matches!(answer, CoreAnswer::Approved { .. }));
        }
        let nets = journal::nets(&core.journal());
        for transaction in &asked {
            assert_eq!(nets[rrn(transaction)].booked, if first[&transaction.id] { 10 } else { 0 });
        }
        assert!(first.values().any(|approved| !approved));
    });
}

/// A core that shares no code with us: Python, pyiso8583.
struct Foreign {
    process: Child,
    port: u16,
    journal: PathBuf,
    _folder: tempfile::TempDir,
}

impl Foreign {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let journal = folder.path().join("core.jsonl");
        let python = root().join("var/venv/bin/python");
        assert!(python.exists(), "{} is missing: scripts/test system prepares it", python.display());
        let mut process = Command::new(python)
            .arg(root().join("tests/foreign/core.py"))
            .args(["--port", "0", "--balance", "10000", "--journal"])
            .arg(&journal)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a foreign core");
        let mut first = String::new();
        let stdout = process.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut first).expect("its port");
        let port = first.trim().parse().expect("a port");
        Self { process, port, journal, _folder: folder }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_foreign_core_understands_us_and_we_it() {
    run(async {
        let core = Foreign::start(&["--swallow", "1"]);
        let quick = |options: &mut Options| options.echo_idle = Duration::from_millis(100);
        let mut desk = Desk::open(&format!("127.0.0.1:{}", core.port), "sandbox.toml", quick);
        desk.until_open(true).await;
        let swallowed = withdrawal(1, 1_000);
        desk.ask(&swallowed);
        desk.hears_nothing_for(Duration::from_millis(300)).await;
        desk.reverse(&swallowed, 1);
        assert_eq!(desk.hears().await, answer(&swallowed, CoreAnswer::Reversed));
        desk.reverse(&swallowed, 2);
        assert_eq!(desk.hears().await, answer(&swallowed, CoreAnswer::Reversed));
        let cash = withdrawal(2, 4_000);
        desk.ask(&cash);
        let heard = desk.hears().await;
        assert!(is_approved(&heard, &cash), "{heard:?}");
        let too_much = withdrawal(3, 6_001);
        desk.ask(&too_much);
        assert_eq!(desk.hears().await, declined(&too_much, "51"));
        // A reversal that comes first forbids what comes after.
        let overtaken = withdrawal(4, 1);
        desk.reverse(&overtaken, 1);
        assert_eq!(desk.hears().await, answer(&overtaken, CoreAnswer::Reversed));
        desk.ask(&overtaken);
        assert_eq!(desk.hears().await, declined(&overtaken, "94"));
        assert!(desk.is_open() && desk.unmatched.try_recv().is_err());

        let lines = journal::read(&core.journal).expect("its journal is ours to read");
        let nets = journal::nets(&lines);
        let booked = [&swallowed, &cash, &too_much, &overtaken].map(|t| nets[rrn(t)].booked);
        assert_eq!(booked, [0, 4_000, 0, 0]);
        assert!(lines.iter().all(|line| line.card == "411111******1111" && line.agent == "A1"), "{lines:?}");
    });
}
