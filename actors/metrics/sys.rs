//! `$SYS`: what a general broker says of itself on topics of its own, by the names that users of Mosquitto know.
//!
//! They are retained in memory and nowhere else, sent at QoS 0, and again only when they have changed. Filters that begin with
//! a wildcard do not see them [MQTT-4.7.2-1], and no client may publish there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wakala::load::{Load, MINUTES};

use super::figures::Looks;
use super::wire::{RECEIVED, SENT};
use crate::router::{Holdings, Router};

const VERSION: &str = concat!("wakala version ", env!("CARGO_PKG_VERSION"));

/// Announces at once and then again and again, until nobody holds the looks any more. `connected` gives how many clients
/// are.
pub fn announce_every(
    every: Duration,
    router: Router,
    looks: &Arc<Looks>,
    connected: impl Fn() -> usize + Send + Sync + 'static,
) {
    if every.is_zero() {
        return;
    }
    let weak = Arc::downgrade(looks);
    looks.store().handle().spawn(async move {
        let mut heard = Heard::new();
        while let Some(looks) = weak.upgrade() {
            let stored = looks.look().await.figures.map(|figures| figures.tally.waiting);
            let refused = looks.store().metrics().direct.refused();
            let sockets = looks.store().metrics().connections.taken();
            drop(looks);
            for (topic, text) in heard.say(connected(), router.holdings(), stored, refused, sockets) {
                router.announce(&format!("$SYS/broker/{topic}"), text);
            }
            tokio::time::sleep(every).await;
        }
    });
}

/// What must be remembered from one time to the next.
struct Heard {
    started: Instant,
    last: Instant,
    most: usize,
    loads: [Load; 8],
}

const LOADS: [&str; 8] = [
    "messages/received",
    "messages/sent",
    "publish/received",
    "publish/sent",
    "publish/dropped",
    "bytes/received",
    "bytes/sent",
    "sockets",
];

impl Heard {
    fn new() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, most: 0, loads: Default::default() }
    }

    fn say(
        &mut self,
        connected: usize,
        holdings: Holdings,
        stored: Option<u64>,
        dropped: u64,
        sockets: u64,
    ) -> Vec<(String, String)> {
        self.most = self.most.max(connected);
        let total = holdings.clients.max(connected);
        let publishes = [&RECEIVED, &SENT].map(|direction| direction.publishes().iter().sum::<u64>());
        let mut said: Vec<(String, String)> = [
            ("version", VERSION.to_owned()),
            ("uptime", format!("{} seconds", self.started.elapsed().as_secs())),
            ("clients/total", total.to_string()),
            ("clients/connected", connected.to_string()),
            ("clients/active", connected.to_string()),
            ("clients/disconnected", (total - connected).to_string()),
            ("clients/inactive", (total - connected).to_string()),
            ("clients/maximum", self.most.to_string()),
            ("messages/received", RECEIVED.packets().to_string()),
            ("messages/sent", SENT.packets().to_string()),
            ("publish/messages/received", publishes[0].to_string()),
            ("publish/messages/sent", publishes[1].to_string()),
            ("publish/messages/dropped", dropped.to_string()),
            ("publish/bytes/received", RECEIVED.payload_bytes().to_string()),
            ("publish/bytes/sent", SENT.payload_bytes().to_string()),
            ("bytes/received", RECEIVED.bytes().to_string()),
            ("bytes/sent", SENT.bytes().to_string()),
            ("retained messages/count", holdings.retained.to_string()),
            ("subscriptions/count", holdings.subscriptions.to_string()),
        ]
        .map(|(topic, text)| (topic.to_owned(), text))
        .into();
        if let Some(stored) = stored {
            said.push(("messages/stored".to_owned(), stored.to_string()));
            said.push(("store/messages/count".to_owned(), stored.to_string()));
        }
        let totals = [
            RECEIVED.packets(),
            SENT.packets(),
            publishes[0],
            publishes[1],
            dropped,
            RECEIVED.bytes(),
            SENT.bytes(),
            sockets,
        ];
        let after = self.last.elapsed();
        self.last += after;
        for ((load, total), name) in self.loads.iter_mut().zip(totals).zip(LOADS) {
            load.told(total, after);
            for (average, minutes) in load.per_minute().into_iter().zip(MINUTES) {
                said.push((format!("load/{name}/{minutes}min"), format!("{average:.2}")));
            }
        }
        said
    }
}
