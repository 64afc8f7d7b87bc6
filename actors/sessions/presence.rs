//! What the sessions tell of who came and went, and when that and what terminals were told is forgotten.

use std::time::Duration;

use wakala::id::{ClientId, Epoch};
use wakala::presence::Standing;
use wakala::time::Time;

use super::{Deps, Inner, Sessions};
use crate::store::Error;
use crate::store::presence::Stands;
use crate::store::sessions::Cut;
use crate::store::words::Word;

impl Sessions {
    /// Higher than any before it, in earlier lives of the node too: by the calendar, and no two alike.
    pub(crate) fn guest_epoch(&self, now: Time) -> Epoch {
        self.0.presence.draw_epoch(now)
    }

    /// A guest's connection begins: before its CONNACK, and after what is stored of it.
    pub(crate) fn came(&self, client: &ClientId, epoch: Epoch, kept: bool, now: Time) {
        self.0.presence.came(client, epoch, now);
        self.tell_stands(kept, client, Standing { epoch, online: true, since: now }, kept);
    }

    /// A terminal comes: a guest that had its name before it was enrolled is forgotten.
    pub(crate) fn terminal_came(&self, terminal: &ClientId, epoch: Epoch, now: Time) {
        if self.0.router.keeps(terminal) {
            self.0.router.over(std::slice::from_ref(terminal));
            self.0.presence.over([terminal], u64::MAX);
        }
        self.0.presence.terminal_came(terminal, epoch, now);
        let tells = self.0.deps.presence.tell_terminals;
        self.tell_stands(tells, terminal, Standing { epoch, online: true, since: now }, true);
    }

    /// A terminal's connection has ended.
    pub(crate) fn terminal_went(&self, terminal: &ClientId, epoch: Epoch, why: &str, now: Time) {
        let news = self.0.presence.terminal_went(terminal, epoch, why, now);
        self.tell_stands(news, terminal, Standing { epoch, online: false, since: now }, false);
    }

    /// A guest's connection has ended; the session is kept, or ended with it.
    pub(crate) fn went(&self, client: &ClientId, epoch: Epoch, kept: bool, why: &str, now: Time) {
        let news = self.0.presence.went(client, epoch, kept, why, now);
        // Of the end of a session that was kept other nodes hear when that is stored.
        self.tell_stands(news && kept, client, Standing { epoch, online: false, since: now }, kept);
    }

    /// Other nodes show it to whoever asks there; what they miss they read.
    fn tell_stands(&self, tells: bool, client: &ClientId, standing: Standing, kept: bool) {
        if tells {
            let node = || Some(self.node().to_owned());
            let neighbours = &self.0.neighbours;
            neighbours.tell_now(|| Word::Stands(Stands { client: client.clone(), standing, node: node(), kept }));
        }
    }

    /// Whether connections are stored of which nothing stays when they end.
    pub(crate) fn stores_clean(&self) -> bool {
        self.0.deps.presence.store_clean
    }

    /// What is stored of who is there.
    pub(super) async fn standings(&self) -> Result<Vec<Stands>, Error> {
        let Deps { store, presence, clock, .. } = &self.0.deps;
        store.presence_of_all(presence.tell_terminals, clock.now()).await
    }

    pub(super) async fn begin_presence(&self, ended: &[Cut]) {
        let Deps { store, clock, .. } = &self.0.deps;
        let (stored, watched) = loop {
            let read = async { Ok((self.standings().await?, store.presence_is_watched().await?)) };
            match read.await {
                Ok(read) => break read,
                Err::<_, Error>(error) => tracing::warn!(%error, "waiting for the database: who was there"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let (router, clock) = (self.0.router.clone(), clock.clone());
        self.0.presence.begin(stored, ended, watched, router, clock, store.handle());
    }
}

impl Inner {
    /// Forgets what was told long ago, but for what waits.
    pub(super) async fn forget_told(&self, now: Time) {
        let Deps { store, telling, options, .. } = &self.deps;
        let until = now - telling.keep;
        let forgotten = loop {
            match store.forget_told(until, telling.rows_max, options.expire_batch_max).await {
                Ok(forgotten) if forgotten == u64::from(options.expire_batch_max) => {}
                done => break done,
            }
        };
        if let Err(error) = forgotten {
            tracing::warn!(%error, "what was told long ago is kept for now");
        }
    }

    /// Forgets what is old of who came and went.
    pub(super) async fn forget_presence(&self, now: Time) {
        let Deps { store, presence, options, .. } = &self.deps;
        let until = now - presence.keep;
        loop {
            match store.forget_presence(until, presence.rows_max, options.expire_batch_max).await {
                Ok(forgotten) if forgotten == u64::from(options.expire_batch_max) => {}
                Ok(_) => break,
                Err(error) => break tracing::warn!(%error, "who came and went long ago is kept for now"),
            }
        }
    }
}
