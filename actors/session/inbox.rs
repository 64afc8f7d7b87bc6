//! What others have for a session: messages that are handed to it, and word of rows that were queued for it.
//!
//! It is a second mailbox beside the actor's own. Many messages wake the actor once, nothing is allocated for each, and it
//! is bounded by itself: what a slow client leaves lying is counted against that client alone.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use wakala::session::{Addressed, Limits, What};

/// Filled from any thread, emptied by the session.
#[derive(Debug)]
pub struct Inbox {
    max: usize,
    bytes_max: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    arrived: VecDeque<Arrival>,
    /// What they take in memory.
    bytes: u32,
    /// There are rows of which nothing arrived.
    look: bool,
    waiting: Option<Waker>,
}

/// Something that arrived.
#[derive(Debug)]
pub enum Arrival {
    /// A message that is not stored.
    Message(Addressed),
    /// A row was queued at this place.
    Row(i64, What),
}

/// What was taken. Boxed, for an empty one is four words, and most sessions have taken nothing.
pub(super) type Arrivals = Box<VecDeque<Arrival>>;

impl Inbox {
    /// One that holds as much as may wait for a client, by number and by bytes.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let (max, bytes_max) = (limits.direct_max.get().into(), limits.direct_bytes_max.get());
        Self { max, bytes_max, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a message would be taken now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.takes(&self.state())
    }

    fn takes(&self, state: &State) -> bool {
        state.arrived.len() < self.max && state.bytes < self.bytes_max
    }

    /// False when there is no room for it.
    pub fn hand(&self, message: Addressed) -> bool {
        let mut state = self.state();
        let room = self.takes(&state);
        if room {
            state.bytes = state.bytes.saturating_add(message.bytes());
            state.arrived.push_back(Arrival::Message(message));
        }
        wake(state);
        room
    }

    /// Where there is no room the session reads the row from the database: nothing is lost.
    pub fn queued(&self, seq: i64, what: What) {
        let mut state = self.state();
        if self.takes(&state) {
            state.bytes = state.bytes.saturating_add(what.bytes());
            state.arrived.push_back(Arrival::Row(seq, what));
        } else {
            state.look = true;
        }
        wake(state);
    }

    /// How many messages are in it.
    #[must_use]
    pub fn messages(&self) -> usize {
        messages(&self.state().arrived)
    }

    /// What arrived, in the place of what was taken before, all of which is done with. True when there are rows besides.
    /// When nothing arrived, `waker` is woken as soon as something does.
    pub(super) fn take(&self, arrivals: &mut Option<Arrivals>, waker: &Waker) -> bool {
        let mut state = self.state();
        let look = mem::take(&mut state.look);
        if !state.arrived.is_empty() {
            state.bytes = 0;
            mem::swap(&mut state.arrived, arrivals.get_or_insert_default());
        } else if !look {
            // An idle session keeps no buffers.
            (state.arrived, *arrivals) = Default::default();
            if !state.waiting.as_ref().is_some_and(|waiting| waiting.will_wake(waker)) {
                state.waiting = Some(waker.clone());
            }
        }
        look
    }
}

/// Those of them that are not rows.
pub(super) fn messages(arrivals: &VecDeque<Arrival>) -> usize {
    arrivals.iter().filter(|arrival| matches!(arrival, Arrival::Message(_))).count()
}

fn wake(mut state: MutexGuard<'_, State>) {
    let waiting = state.waiting.take();
    drop(state);
    if let Some(waker) = waiting {
        waker.wake();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use wakala::mqtt::Properties;

    use std::num::{NonZeroU16, NonZeroU32};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use ntex_bytes::Bytes;

    use super::*;

    /// Counts how often.
    #[derive(Default)]
    pub(crate) struct Woken(AtomicUsize);

    impl Woken {
        pub(crate) fn times(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn limits(number: u16, bytes: u32) -> Limits {
        Limits {
            direct_max: NonZeroU16::new(number).expect("not zero"),
            direct_bytes_max: NonZeroU32::new(bytes).expect("not zero"),
            ..crate::sessions::Options::default().limits()
        }
    }

    #[test]
    fn what_is_too_much_by_bytes_has_no_room_either() {
        let (inbox, mut taken) = (Inbox::new(&limits(8, 10)), None);
        let receipt = |bytes| What::Receipt(Bytes::from(vec![0; bytes]));
        inbox.queued(1, receipt(9));
        inbox.queued(2, receipt(9));
        inbox.queued(3, receipt(1));
        assert!(inbox.take(&mut taken, Waker::noop()), "the third is to be looked for");
        assert_eq!(taken.take().map_or(0, |taken| taken.len()), 2);
        inbox.queued(4, receipt(1));
        assert!(!inbox.take(&mut taken, Waker::noop()) && taken.is_some_and(|taken| taken.len() == 1));
    }

    fn row(seq: i64) -> (i64, What) {
        (seq, What::Receipt(Bytes::new()))
    }

    #[test]
    fn many_arrivals_wake_once_and_come_in_order() {
        let (inbox, woken, mut taken) = (Inbox::new(&limits(8, 100)), Arc::<Woken>::default(), None);
        let waker = Waker::from(Arc::clone(&woken));
        assert!(!inbox.take(&mut taken, &waker) && taken.is_none());
        for seq in 1..=3 {
            let (seq, what) = row(seq);
            inbox.queued(seq, what);
        }
        assert_eq!(woken.times(), 1);
        assert!(!inbox.take(&mut taken, &waker));
        let places = taken.into_iter().flat_map(|taken| *taken).map(|arrival| match arrival {
            Arrival::Row(seq, _) => seq,
            Arrival::Message(_) => 0,
        });
        assert_eq!(places.collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn rows_without_room_are_looked_for_and_messages_without_room_are_refused() {
        let (inbox, mut taken) = (Inbox::new(&limits(1, 100)), None);
        for seq in 1..=2 {
            let (seq, what) = row(seq);
            inbox.queued(seq, what);
        }
        let message = wakala::message::Message {
            topic: "t".into(),
            payload: Bytes::new(),
            qos: ntex_mqtt::v5::codec::QoS::AtMostOnce,
            retain: false,
            expires_at: None,
            properties: Properties::default(),
        };
        let qos = message.qos;
        let addressed = Addressed { message: Arc::new(message), qos, retain: false, identifiers: vec![] };
        assert!(!inbox.hand(addressed.clone()));
        assert!(inbox.take(&mut taken, Waker::noop()) && taken.take().is_some_and(|taken| taken.len() == 1));
        assert!(inbox.hand(addressed));
        assert!(!inbox.take(&mut taken, Waker::noop()) && taken.is_some_and(|taken| taken.len() == 1));
    }

    /// User properties that are empty have no bytes in the topic or the payload.
    #[test]
    fn what_a_message_has_in_properties_takes_room_too() {
        let inbox = Inbox::new(&limits(8, 1000));
        let properties = Properties::stored([0x26, 0, 0, 0, 0].repeat(200)).expect("user properties");
        let message = wakala::message::Message {
            topic: "t".into(),
            payload: Bytes::new(),
            qos: ntex_mqtt::v5::codec::QoS::AtLeastOnce,
            retain: false,
            expires_at: None,
            properties,
        };
        let qos = message.qos;
        let addressed = Addressed { message: Arc::new(message), qos, retain: false, identifiers: vec![] };
        assert!(inbox.hand(addressed.clone()) && !inbox.hand(addressed));
    }
}
