//! The people of the village and what they carry: test keys, terminals, agents and cards, all from one seed.
//!
//! Nothing here is a secret and nothing here is real: the account numbers begin with 999991, which ISO/IEC 7812 leaves to
//! national bodies and no issuer uses, and a node that is not in sandbox mode refuses every row that is made of this.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use std::sync::Arc;
use wakala::card::{Expiry, Pan};
use wakala::id::{AgentId, CoreId, TerminalId};
use wakala::pin::Pin;
use wakala::pin::key::{AesKey, TdesKey};
use wakala::pin::pvv::{Pvv, pvv};

use crate::plan::CARDS_PER_TERMINAL;

/// Which base derivation key the sandbox's terminals have their initial keys from: the first half of each KSN's
/// initial key identifier.
pub const BDK_ID: [u8; 4] = [0x5A, 0x5A, 0x00, 0x01];

/// Which PIN verification key the sandbox's cards name.
pub const PVK_INDEX: u8 = 1;

/// What every test account number begins with.
pub const TEST_ISSUER: &str = "999991";

/// The longest there are (ISO 9564-1), so that none is met by chance where it is searched for.
const PIN_DIGITS: usize = 12;

/// The core that serves every agent of the sandbox.
pub const CORE: &str = "sandbox";

/// How many terminals share an agent.
const TERMINALS_PER_AGENT: usize = 5;

/// What an agent may owe the bank, in minor units: TZS 100,000,000.00.
pub const CREDIT_LINE_MINOR: i64 = 10_000_000_000;

/// What an account at the core holds when the sandbox opens, in minor units: TZS 50,000,000.00.
pub const ACCOUNT_MINOR: i64 = 5_000_000_000;

/// Everybody.
pub struct Village {
    pub seed: u64,
    bdk: [u8; 16],
    pvk: [u8; 16],
    token_key: [u8; 32],
    seal_key: [u8; 32],
    pub core: CoreId,
    pub terminals: Vec<Enrolled>,
}

/// A terminal, its agent and the cards that are used there.
pub struct Enrolled {
    pub id: TerminalId,
    pub agent: AgentId,
    pub password: String,
    /// Initial key identifier of its DUKPT key.
    pub key_id: [u8; 8],
    pub cards: Vec<Arc<Card>>,
}

/// A card and the PIN that its holder knows.
pub struct Card {
    pub pan: Pan,
    pub expiry: Expiry,
    digits: String,
    pin: [u8; PIN_DIGITS],
    wrong_pin: [u8; PIN_DIGITS],
    /// What the bank compares the PIN with.
    pub pvv: Pvv,
}

impl Card {
    /// The account number in clear, as the core knows the account.
    #[must_use]
    pub fn account(&self) -> &str {
        &self.digits
    }

    /// The right PIN, or one that is not.
    #[must_use]
    pub fn pin(&self, right: bool) -> Option<Pin> {
        Pin::from_digits(if right { &self.pin } else { &self.wrong_pin }).ok()
    }

    /// A PIN as text, for whoever searches logs and dumps for it.
    #[must_use]
    pub fn pin_text(&self, right: bool) -> String {
        let pin = if right { &self.pin } else { &self.wrong_pin };
        pin.iter().map(|digit| char::from(b'0' + digit)).collect()
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.pan, f)
    }
}

impl Village {
    /// The village of a seed. Its first terminals are the same however many there are.
    #[must_use]
    pub fn new(seed: u64, terminals: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (bdk, pvk) = (random.random(), random.random());
        let (token_key, seal_key) = (random.random(), random.random());
        let mut village =
            Self { seed, bdk, pvk, token_key, seal_key, core: named(CORE), terminals: Vec::with_capacity(terminals) };
        let verification = village.pvk();
        for number in 0..terminals {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(1_000_000 + u64::try_from(number).unwrap_or(0));
            village.terminals.push(Enrolled::new(number, &verification, &mut random));
        }
        village
    }

    /// The base derivation key.
    #[must_use]
    pub fn bdk(&self) -> AesKey {
        AesKey::new(self.bdk)
    }

    /// The PIN verification key.
    #[must_use]
    pub fn pvk(&self) -> TdesKey {
        TdesKey::new(self.pvk)
    }

    /// What tokens of card numbers are made with.
    #[must_use]
    pub fn token_key(&self) -> &[u8] {
        &self.token_key
    }

    /// What card numbers are sealed with on their way to the core.
    #[must_use]
    pub fn seal_key(&self) -> &[u8] {
        &self.seal_key
    }

    pub fn cards(&self) -> impl Iterator<Item = &Arc<Card>> {
        self.terminals.iter().flat_map(|terminal| &terminal.cards)
    }
}

impl std::fmt::Debug for Village {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Village of seed {} with {} terminals", self.seed, self.terminals.len())
    }
}

impl Enrolled {
    fn new(number: usize, verification: &TdesKey, random: &mut ChaCha8Rng) -> Self {
        let derivation = u32::try_from(number).unwrap_or(0) + 1;
        let mut key_id = [0; 8];
        key_id[..4].copy_from_slice(&BDK_ID);
        key_id[4..].copy_from_slice(&derivation.to_be_bytes());
        let cards = (0..CARDS_PER_TERMINAL)
            .map(|card| Arc::new(Card::new(number * CARDS_PER_TERMINAL + card, verification, random)))
            .collect();
        Self {
            id: named(&format!("T{:05}", number + 1)),
            agent: named(&format!("A{:04}", number / TERMINALS_PER_AGENT + 1)),
            password: hex::encode(random.random::<[u8; 12]>()),
            key_id,
            cards,
        }
    }
}

impl std::fmt::Debug for Enrolled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of {}", self.id, self.agent)
    }
}

impl Card {
    fn new(number: usize, verification: &TdesKey, random: &mut ChaCha8Rng) -> Self {
        let body = format!("{TEST_ISSUER}{:03}{number:06}", random.random_range(0..1000));
        let (digits, pan) = with_check_digit(&body);
        let pin: [u8; PIN_DIGITS] = std::array::from_fn(|_| random.random_range(0..10));
        #[expect(clippy::expect_used, reason = "twelve digits are a PIN")]
        let value =
            |pin: &[u8; PIN_DIGITS]| pvv(verification, PVK_INDEX, &pan, &Pin::from_digits(pin).expect("twelve digits"));
        let right = value(&pin);
        // A PVV looks at the first four digits. One PIN in 10,000 has the value of another: what is to be wrong must be seen to be wrong.
        let mut wrong_pin = pin;
        while value(&wrong_pin) == right {
            wrong_pin[3] = (wrong_pin[3] + 1) % 10;
            wrong_pin[2] = (wrong_pin[2] + 3) % 10;
        }
        let expiry = Expiry { year: 40, month: random.random_range(1..=12) };
        Self { pan, expiry, digits, pin, wrong_pin, pvv: right }
    }
}

/// ISO/IEC 7812-1 Annex B: of the ten check digits one is right.
#[expect(clippy::expect_used, reason = "one of the ten check digits is right for any 15 digits")]
fn with_check_digit(body: &str) -> (String, Pan) {
    (0..10)
        .find_map(|check| {
            let digits = format!("{body}{check}");
            Pan::new(&digits).ok().map(|pan| (digits, pan))
        })
        .expect("a check digit")
}

/// A name of letters and digits that are written here.
#[expect(clippy::expect_used, reason = "the names are made in this file, of letters and digits")]
fn named<T: std::str::FromStr<Err = wakala::id::Error>>(text: &str) -> T {
    text.parse().expect("a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_village_follows_from_its_seed_and_grows_at_its_end() {
        let (small, large, other) = (Village::new(7, 3), Village::new(7, 10), Village::new(8, 3));
        let shown = |village: &Village| -> Vec<String> {
            village.terminals.iter().map(|t| format!("{t:?} {} {:?}", t.password, t.cards)).collect()
        };
        assert_eq!(shown(&small), shown(&large)[..3]);
        assert_ne!(shown(&small), shown(&other));
    }

    #[test]
    fn the_account_numbers_are_test_numbers_and_differ() {
        let village = Village::new(1, 200);
        let mut accounts: Vec<&str> = village.cards().map(|card| card.account()).collect();
        assert!(accounts.iter().all(|account| account.starts_with(TEST_ISSUER) && account.len() == 16));
        accounts.sort_unstable();
        accounts.dedup();
        assert_eq!(accounts.len(), 200 * CARDS_PER_TERMINAL);
    }

    #[test]
    fn the_wrong_pin_is_wrong() {
        let village = Village::new(1, 20);
        for card in village.cards() {
            let verify = |right| {
                let pin = card.pin(right).expect("a PIN");
                wakala::pin::pvv::verified(&village.pvk(), PVK_INDEX, &card.pan, &pin, card.pvv)
            };
            assert!(verify(true) && !verify(false));
        }
    }
}
