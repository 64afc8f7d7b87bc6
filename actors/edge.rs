//! From the bytes of a PUBLISH to a record for the log: who asks, with which key, for which card, and is the PIN hers.
//!
//! **Here the PIN block ends** (law 3). It arrives in a [`Request`], whose Debug leaves it out, and is moved into
//! [`PinBlock`], which is neither `Clone` nor `Serialize` and prints its name only. It goes to [`Hsm::verify_pin`] in memory
//! and is wiped when that call ends. What goes to the database is an [`Arrival`] and a [`Settlement`], what goes to the log
//! is a [`Record`]: none of them has a field that could hold it. The tests below hold the types to that.
//!
//! Whatever the bytes are, there is a record and so a receipt. Only where the database or the HSM is away there is an
//! error: the caller withholds the PUBACK and the terminal sends again, which is the same try.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use wakala::card::{CardRef, Ksn, PinBlock};
use wakala::id::RequestKey;
use wakala::record::{Asked, Body, Pin, Record};
use wakala::request::{Kind, Refusal, Request};
use wakala::time::Time;

use crate::metrics::Metrics;
use crate::ports::{Clock, Hsm, HsmError, PinReference, PinVerdict};
use crate::store::cards::{Admission, Admissions, Arrival, Settlement};
use crate::store::{self, Store};
use crate::terminal::Enrolled;

/// How much the edge does at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Calls of the HSM under way at the same time, each on a thread that may block.
    pub hsm_calls: usize,
    /// The longest wait for the HSM, and for its turn. A soft HSM takes less than a millisecond.
    #[serde(with = "humantime_serde")]
    pub hsm_timeout: Duration,
    /// How long it is remembered which request a PIN try was for. A repetition after that counts as a try of its own.
    #[serde(with = "humantime_serde")]
    pub tries_kept: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let tries_kept = Duration::from_secs(30 * 24 * 3600);
        Self { hsm_calls: 8, hsm_timeout: Duration::from_secs(5), tries_kept }
    }
}

/// The caller withholds the PUBACK; the terminal sends again.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The HSM can tell neither who asks nor for which card.
    #[error("the HSM is away: {0}")]
    Hsm(String),
}

/// How often old PIN tries are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(3600);
/// So many are forgotten in one commit.
const FORGET_MAX: u32 = 10_000;

/// The edge of the switch, shared by all sessions.
pub struct Edge {
    hsm: Arc<dyn Hsm>,
    hsm_turns: Arc<Semaphore>,
    admissions: Admissions,
    clock: Arc<dyn Clock>,
    options: Options,
    sandbox: bool,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Edge").field("options", &self.options).field("sandbox", &self.sandbox).finish_non_exhaustive()
    }
}

/// A request whose code is right.
struct Known {
    request: Request,
    card: Result<CardRef, Refusal>,
}

impl Edge {
    /// For a node in sandbox mode, or for one that is not: each refuses the other's terminals, keys and cards.
    #[must_use]
    pub fn new(hsm: Arc<dyn Hsm>, store: &Store, clock: Arc<dyn Clock>, options: Options, sandbox: bool) -> Self {
        let hsm_turns = Arc::new(Semaphore::new(options.hsm_calls.max(1)));
        let metrics = Arc::clone(store.metrics());
        Self { hsm, hsm_turns, admissions: Admissions::new(store, sandbox), clock, options, sandbox, metrics }
    }

    /// Once an hour, as long as the edge is there, forgets which requests old PIN tries were for.
    pub fn forget_old_tries(self: &Arc<Self>, store: &Store) {
        let (edge, store) = (Arc::downgrade(self), store.clone());
        store.handle().clone().spawn(async move {
            while let Some(edge) = edge.upgrade() {
                let before = edge.clock.now() - edge.options.tries_kept;
                drop(edge);
                // Some at a time: all that gather in an hour may take longer than a statement may.
                loop {
                    match store.forget_tries(before, FORGET_MAX).await {
                        Ok(forgotten) if forgotten >= u64::from(FORGET_MAX) => {}
                        Ok(_) => break,
                        Err(error) => {
                            tracing::warn!(%error, "old PIN tries are remembered for now");
                            break;
                        }
                    }
                }
                tokio::time::sleep(FORGET_EVERY).await;
            }
        });
    }

    /// What the log is to keep of these bytes. Requests of one terminal are admitted one after the other: a second before
    /// the first is done may overtake it, and the first's key counter would be refused as an old one.
    ///
    /// # Errors
    /// When the database or the HSM is away.
    pub async fn admit(&self, terminal: &Enrolled, payload: &[u8]) -> Result<Record, EdgeError> {
        let at = self.clock.now();
        let digest = RequestKey::of_bytes(payload);
        let record = |key, ksn, body| Record {
            terminal: terminal.terminal.clone(),
            agent: terminal.agent.clone(),
            core: terminal.core.clone(),
            key,
            at,
            ksn,
            body,
        };
        let request = match Request::read(payload) {
            Ok(request) => request,
            Err(malformed) => {
                return Ok(record(malformed.key.unwrap_or(digest), None, Body::Refused(malformed.refusal)));
            }
        };
        let key = request.key;
        if terminal.blocked || terminal.sandbox != self.sandbox {
            return Ok(record(key, None, Body::Refused(Refusal::TerminalBlocked)));
        }
        let Known { request, card } = match self.known(request).await? {
            Ok(known) => known,
            Err(refusal) => return Ok(record(key, None, Body::Refused(refusal))),
        };
        let ksn = Some(request.ksn);
        let card = match card {
            Ok(card) => card,
            Err(refusal) => return Ok(record(key, ksn, Body::Refused(refusal))),
        };
        let (kind, amount) = (request.kind, request.amount);
        let body = match self.judged(terminal, request, &card, digest, at).await? {
            Some(pin) => Body::Asked(Asked { kind, amount, card, pin }),
            None => Body::Refused(Refusal::KsnReplayed),
        };
        Ok(record(key, ksn, body))
    }

    /// Whether the terminal made these bytes, and the card that they are about.
    async fn known(&self, request: Request) -> Result<Result<Known, Refusal>, EdgeError> {
        let hsm = Arc::clone(&self.hsm);
        let looked_at = self.blocking(move || {
            match hsm.verify_mac(&request.ksn, &request.body, &request.mac) {
                Ok(true) => {}
                Ok(false) => return Ok(Err(Refusal::BadMac)),
                Err(HsmError::UnknownKey(_) | HsmError::BadCounter) => return Ok(Err(Refusal::UnknownTerminalKey)),
                Err(error) => return Err(error),
            }
            let card = match hsm.read_card(&request.ksn, &request.card_data) {
                Ok(card) => Ok(card),
                Err(HsmError::BadCard) => Err(Refusal::BadCard),
                Err(error) => return Err(error),
            };
            Ok(Ok(Known { request, card }))
        });
        looked_at.await.map_err(|error| EdgeError::Hsm(error.to_string()))
    }

    /// What becomes of the PIN; `None` where the key counter was used by another request.
    async fn judged(
        &self,
        terminal: &Enrolled,
        request: Request,
        card: &CardRef,
        digest: RequestKey,
        at: Time,
    ) -> Result<Option<Pin>, EdgeError> {
        let (key, ksn) = (request.key, request.ksn);
        let arrival = Arrival {
            terminal: terminal.terminal.clone(),
            key,
            digest: digest.0,
            ksn,
            token: card.token,
            pin: request.pin_block.is_some(),
            at,
        };
        let (reference, attempt) = match self.admissions.admit(arrival).await? {
            Admission::Replayed => return Ok(None),
            Admission::LetIn { card: None, .. } => return Ok(Some(Pin::UnknownCard)),
            Admission::LetIn { card: Some(reference), attempt } => (reference, attempt),
        };
        let Some(block) = request.pin_block else {
            return Ok(Some(match request.kind {
                Kind::Deposit => Pin::NotAsked,
                // `Request::read` lets none through; here it would be money without a PIN.
                Kind::Withdrawal => Pin::Malformed,
            }));
        };
        let Some(attempt) = attempt else { return Ok(Some(Pin::TriesExceeded)) };
        let reference = PinReference::Pvv { index: reference.pvki, value: reference.pvv };
        let pin = self.verdict(terminal, ksn, block, card.clone(), reference).await;
        self.metrics.pins.verified(pin);
        if pin != Pin::Wrong {
            let correct = pin == Pin::Correct;
            let terminal = terminal.terminal.clone();
            let settlement = Settlement { terminal, key, token: card.token, attempt, correct };
            self.admissions.settle(settlement).await?;
        }
        Ok(Some(pin))
    }

    async fn verdict(
        &self,
        terminal: &Enrolled,
        ksn: Ksn,
        block: PinBlock,
        card: CardRef,
        reference: PinReference,
    ) -> Pin {
        let hsm = Arc::clone(&self.hsm);
        match self.blocking(move || hsm.verify_pin(&ksn, &block, &card, &reference)).await {
            Ok(PinVerdict::Correct) => Pin::Correct,
            Ok(PinVerdict::Wrong) => Pin::Wrong,
            Ok(PinVerdict::Malformed) => {
                tracing::warn!(terminal = %terminal.terminal, "a PIN block without a PIN: wrong key, or a broken PIN pad");
                Pin::Malformed
            }
            Err(error) => {
                tracing::error!(terminal = %terminal.terminal, %error, "the HSM did not verify a PIN");
                Pin::HsmFault
            }
        }
    }

    /// Runs a call of the HSM where it may block. A call that was given up on keeps its turn until it ends, so that a
    /// hanging HSM does not gather threads.
    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, HsmError> + Send + 'static,
    ) -> Result<T, HsmError> {
        let turns = Arc::clone(&self.hsm_turns);
        let called = async move {
            let turn = turns.acquire_owned().await.map_err(|_| HsmError::Fault("closed".to_owned()))?;
            let running = tokio::task::spawn_blocking(move || {
                let done = call();
                drop(turn);
                done
            });
            running.await.unwrap_or_else(|_| Err(HsmError::Fault("its driver panicked".to_owned())))
        };
        let patience = self.options.hsm_timeout;
        tokio::time::timeout(patience, called)
            .await
            .unwrap_or_else(|_| Err(HsmError::Fault(format!("no answer for {patience:?}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does not compile where the type implements the trait: two candidates then fit.
    macro_rules! never {
        ($($type:ty: $trait:path;)*) => { $(const _: fn() = || {
            trait Ambiguous<A> { fn some() {} }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct If;
            impl<T: ?Sized + $trait> Ambiguous<If> for T {}
            let _ = <$type as Ambiguous<_>>::some;
        };)* };
    }

    never! {
        PinBlock: Clone;
        PinBlock: Serialize;
        PinBlock: std::fmt::Display;
        wakala::pin::Pin: Clone;
        wakala::pin::Pin: Serialize;
        wakala::pin::Pin: std::fmt::Display;
        wakala::pin::key::AesKey: Clone;
        wakala::pin::key::AesKey: Serialize;
        wakala::pin::key::AesKey: std::fmt::Display;
        wakala::pin::key::TdesKey: Clone;
        wakala::pin::key::TdesKey: Serialize;
        wakala::pin::dukpt::Transaction: Clone;
        wakala::pin::dukpt::Transaction: Serialize;
        wakala::card::Pan: Clone;
        wakala::card::Pan: Serialize;
        crate::ports::KeyBytes: Clone;
        crate::ports::KeyBytes: Serialize;
        Request: Clone;
        Request: Serialize;
    }

    #[test]
    fn secrets_print_their_names_only() {
        assert_eq!(format!("{:?}", PinBlock([0xA9; 16])), "PinBlock");
        assert_eq!(format!("{:?}", wakala::pin::Pin::new("1234").expect("a PIN")), "Pin");
        assert_eq!(format!("{:?}", wakala::pin::key::AesKey::new([0xA9; 16])), "AesKey");
        let key = crate::ports::KeyBytes(zeroize::Zeroizing::new(vec![0xA9; 16]));
        assert_eq!(format!("{key:?}"), "KeyBytes");
    }
}
