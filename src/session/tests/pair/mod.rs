//! Two clients of a general broker, against a reference of a few lines.
//!
//! Goal: whatever breaks, what was published at QoS 2 is routed once, at QoS 1 at least once, at QoS 0 once at most; and each
//! copy for a subscriber is heard as its own QoS says, in its order, unless its session or its time was over. Method: two
//! sessions of the twin at a time, the database with what waits for it, the real [`crate::topics`] beside the definition of a
//! match, two links and two clients that follow the standard; links are cut, sessions taken over, ended and overdue, and the
//! node dies, at steps drawn by proptest; at the end everything is let through and counted. What did not happen often enough
//! to show anything fails the test too.
//!
//! That it can fail was seen by breaking the twin in these ways, one at a time:
//! - a repeated PUBLISH at QoS 2 is taken again ([`Incoming`] does not look at what it received)
//! - an acknowledgement is sent before its publish is durable
//! - PUBCOMP is sent before the identifier is forgotten
//! - identifiers of QoS 2 are not loaded with the session
//! - a resend does not have DUP
//! - a row's identifier does not follow from its place
//! - a row that was released is published again
//! - the window is one larger than the client's Receive Maximum
//! - a hint after a gap is taken as if there was none
//! - a page that was full is taken for all there is
//! - PUBREC releases a row before that is stored
//! - a message that is over is sent
//! - one of QoS 2 that was sent, and is over, is not sent again
//! - an alias of the client's is not replaced by a new topic
//! - an alias is told that the client has no room for
//! - UNSUBSCRIBE keeps the subscription
//! - a subscription that replaces another is taken for new
//! - what waits for another change to be stored is not left over at the end

mod broker;
mod client;
mod world;

use ntex_mqtt::v5::codec::RetainHandling;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use world::World;

/// How a client connects the next time.
#[derive(Clone, Copy, Debug)]
struct Manner {
    five: bool,
    clean_start: bool,
    expiry_s: u32,
    receive_max: u16,
    topic_alias_max: u16,
    /// So many seconds later.
    away: u8,
}

#[derive(Clone, Copy, Debug)]
struct Words {
    qos: u8,
    topic: usize,
    retain: bool,
    /// In seconds, for an MQTT 5 client.
    expiry: Option<u32>,
    alias: bool,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(usize, Words),
    Subscribe(usize, usize, u8, RetainHandling),
    Unsubscribe(usize, usize),
    /// The server reads one packet of this client's.
    Up(usize),
    /// The client reads one packet of the server's.
    Down(usize),
    /// The database answers this client's session what is queued.
    Answer(usize),
    /// The oldest publish that waits for the database is stored; its hint comes whole, bare or not at all.
    Store(u8),
    /// The change of this client's subscriptions is stored.
    Change(usize),
    /// The oldest mark of QoS 2 is stored.
    Mark {
        late: bool,
    },
    /// The oldest acknowledgement is stored.
    Ack,
    /// So many seconds pass.
    Pass(u8),
    /// The link breaks; how far the session had sent is stored before the client is back, or is not.
    Cut(usize, bool, Manner),
    /// The client comes back while the server still believes in its old connection.
    TakeOver(usize, Manner),
    /// The client takes its leave.
    Leave(usize, Manner),
    /// The node dies, and with it all that waits for the database.
    Crash,
}

/// What happened, over all schedules.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    steps: u64,
    cuts: u64,
    crashes: u64,
    takeovers: u64,
    resumed: u64,
    /// Sessions that were there and were over when their client came back.
    expired: u64,
    cleaned: u64,
    published: [u64; 3],
    heard: [u64; 3],
    again: u64,
    released_again: u64,
    aliases_up: u64,
    aliases_down: u64,
    /// Something waited because the client took no more at once.
    held: u64,
    /// The socket was left unread.
    unread: u64,
    subscribed: u64,
    replaced: u64,
    unsubscribed: u64,
    /// A connection ended before what it had changed was stored.
    left_over: u64,
    retained: u64,
    shared: u64,
    over: u64,
    /// It was over, and sent again all the same.
    over_again: u64,
    dropped: u64,
}

impl Tally {
    /// That each of these happened often enough.
    fn is_ample(&self) {
        assert!(self.steps >= 300_000, "{self:?}");
        let each = [
            self.cuts,
            self.crashes,
            self.takeovers,
            self.resumed,
            self.expired,
            self.cleaned,
            self.again,
            self.released_again,
            self.aliases_up,
            self.aliases_down,
            self.held,
            self.unread,
            self.subscribed,
            self.replaced,
            self.unsubscribed,
            self.left_over,
            self.retained,
            self.shared,
            self.over,
            self.over_again,
        ];
        let mut each = each.into_iter().chain(self.published).chain(self.heard);
        assert!(each.all(|times| times >= 10), "too seldom to show anything: {self:?}");
        // Some thirty times, more or less.
        assert!(self.dropped > 0, "too seldom to show anything: {self:?}");
        let often = [self.cuts, self.crashes, self.takeovers, self.resumed, self.again, self.held];
        assert!(often.into_iter().chain(self.heard).all(|times| times >= 500), "too seldom: {self:?}");
    }
}

fn manner() -> impl Strategy<Value = Manner> {
    let some = (any::<bool>(), 0..8_u8, 0..8_usize, 1..4_u16, 0..3_u16, 0..4_usize);
    some.prop_map(|(five, clean, expiry, receive_max, topic_alias_max, away)| Manner {
        five,
        clean_start: clean == 0,
        expiry_s: [0, 0, 3, 3, 60, 3600, 3600, 3600][expiry],
        receive_max,
        topic_alias_max,
        away: [0, 0, 2, 7][away],
    })
}

fn words() -> impl Strategy<Value = Words> {
    let some = (0..3_u8, 0..broker::TOPICS.len(), 0..6_u8, 0..6_u8, any::<bool>());
    some.prop_map(|(qos, topic, retain, expiry, alias)| Words {
        qos,
        topic,
        retain: retain == 0,
        expiry: (expiry == 0).then_some(4),
        alias,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let client = || 0..2_usize;
    let filter = || 0..broker::FILTERS.len();
    let handling = prop_oneof![
        Just(RetainHandling::AtSubscribe),
        Just(RetainHandling::AtSubscribeNew),
        Just(RetainHandling::NoAtSubscribe)
    ];
    prop_oneof![
        16 => (client(), words()).prop_map(|(client, words)| Step::Publish(client, words)),
        6 => (client(), filter(), 0..3_u8, handling).prop_map(|(client, filter, qos, handling)| {
            Step::Subscribe(client, filter, qos, handling)
        }),
        3 => (client(), filter()).prop_map(|(client, filter)| Step::Unsubscribe(client, filter)),
        36 => client().prop_map(Step::Up),
        36 => client().prop_map(Step::Down),
        16 => client().prop_map(Step::Answer),
        16 => (0..3_u8).prop_map(Step::Store),
        8 => client().prop_map(Step::Change),
        16 => any::<bool>().prop_map(|late| Step::Mark { late }),
        16 => Just(Step::Ack),
        4 => (0..5_u8).prop_map(Step::Pass),
        2 => (client(), any::<bool>(), manner()).prop_map(|(client, stored, manner)| Step::Cut(client, stored, manner)),
        1 => (client(), manner()).prop_map(|(client, manner)| Step::TakeOver(client, manner)),
        1 => (client(), manner()).prop_map(|(client, manner)| Step::Leave(client, manner)),
        1 => Just(Step::Crash),
    ]
}

#[test]
fn each_qos_keeps_its_promise_whatever_breaks() {
    // `PROPTEST_CASES` plays more of them.
    let usual = ProptestConfig::default();
    let config = ProptestConfig { cases: usual.cases.max(1_200), failure_persistence: None, ..usual };
    let all = std::cell::Cell::new(Tally::default());
    let schedules = proptest::collection::vec(step(), 0..500);
    let run = TestRunner::new(config).run(&schedules, |steps| {
        let mut world = World::new(all.get());
        for step in &steps {
            world.step(*step);
        }
        all.set(world.finish());
        Ok(())
    });
    if let Err(error) = run {
        panic!("{error}");
    }
    all.get().is_ample();
}
