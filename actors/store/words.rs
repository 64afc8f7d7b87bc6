//! What the nodes of one database tell each other at once (NOTIFY). Words may be lost: what counts is in the tables, and
//! whoever has not listened for a while reads those.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::time::Duration;

use sea_orm::sqlx;
use sea_orm::sqlx::postgres::{PgListener, PgNotification, PgPoolOptions};
use wakala::id::{ClientId, Epoch};
use wakala::presence::Standing;
use wakala::time::Time;

use super::batch::Batcher;
use super::presence::Stands;
use super::{Error, Store, in_time, name};

/// One of them. Nothing in it has a line's end: neither names of nodes and clients nor topics may (1.5.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// A node is there.
    Here,
    /// Until now it did not know that others are, and told nobody anything.
    Anything,
    /// What a client that is no terminal subscribes to is another, or its session, which is kept or was, is another or over.
    Changed(ClientId),
    /// A topic's retained message is another, or gone.
    Retained(String),
    /// Something was queued for a client who is not connected where that was done.
    Queued(ClientId),
    /// A guest of whom nothing is stored is connected.
    Came(Came),
    /// So a client stands of whom something is stored.
    Stands(Stands),
}

/// A connection, and the node that has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Came {
    pub client: ClientId,
    pub epoch: Epoch,
    pub node: String,
}

/// Tells words, many in one statement.
pub type Words = Batcher<Word, ()>;

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// From whom, and what. Of this node's own words it is heard that there are any.
    Words(BTreeSet<String>, Vec<Word>),
    /// The connection was lost: anything may have been said meanwhile.
    Anything,
    /// Nothing for a while.
    Nothing,
}

/// Hears what other nodes say.
pub struct Ear {
    /// Under way all the time: what is cut short while it connects anew would not say that it did.
    next: Pin<Box<dyn Future<Output = (PgListener, Received)> + Send>>,
    node: String,
}

type Received = Result<Option<PgNotification>, sqlx::Error>;

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ear").field("node", &self.node).finish_non_exhaustive()
    }
}

const CHANNEL: &str = "wakala";

impl Store {
    /// A batcher for this node's words: at most `room` wait, at most `max` go into one statement.
    #[must_use]
    pub fn words(&self, node: &str, room: usize, max: usize) -> Words {
        let node: std::sync::Arc<str> = node.into();
        self.batches(room, max, move |store, words: Vec<Word>| {
            let node = std::sync::Arc::clone(&node);
            async move {
                let texts: Vec<String> = words.iter().map(|word| word.text(&node)).collect();
                store.say(texts).await?;
                Ok(vec![(); words.len()])
            }
        })
    }

    async fn say(&self, texts: Vec<String>) -> Result<(), Error> {
        self.run(move |db| async move {
            sqlx::query("select pg_notify($1, word) from unnest($2::text[]) word")
                .bind(CHANNEL)
                .bind(texts)
                .execute(db.get_postgres_connection_pool())
                .await?;
            Ok(())
        })
        .await
    }

    /// Listens from now on, on a connection of its own. To be called, and listened with, on runtime D.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn listen(&self, node: &str) -> Result<Ear, Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.inner.acquire_timeout)
            .connect_lazy_with(name::lasting(self));
        let listening = in_time(self.inner.call_timeout, async {
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.listen(CHANNEL).await?;
            Ok(listener)
        });
        let listener = listening.await?;
        Ok(Ear { next: next(listener), node: node.to_owned() })
    }
}

impl Ear {
    /// What other nodes say next, all that is there; or that nobody said anything for so long.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn hear(&mut self, patience: Duration) -> Result<Heard, Error> {
        let Ok((mut listener, received)) = tokio::time::timeout(patience, &mut self.next).await else {
            return Ok(Heard::Nothing);
        };
        let (mut nodes, mut words) = (BTreeSet::new(), Vec::new());
        let heard = received.map(|first| {
            let connected = first.is_some();
            let mut said = first;
            while let Some(notification) = said {
                // What a later version says besides is for later versions.
                if let Some((node, word)) = Word::read(notification.payload()).filter(|(node, _)| *node != self.node) {
                    if !nodes.contains(node) {
                        nodes.insert(node.to_owned());
                    }
                    words.push(word);
                }
                said = listener.next_buffered();
            }
            if connected { Heard::Words(nodes, words) } else { Heard::Anything }
        });
        self.next = next(listener);
        Ok(heard?)
    }
}

fn next(mut listener: PgListener) -> Pin<Box<dyn Future<Output = (PgListener, Received)> + Send>> {
    Box::pin(async move {
        let received = listener.try_recv().await;
        (listener, received)
    })
}

impl Word {
    fn text(&self, node: &str) -> String {
        let (kind, what) = match self {
            Self::Here => ("here", Cow::Borrowed("")),
            Self::Anything => ("anything", "".into()),
            Self::Changed(client) => ("changed", client.as_str().into()),
            Self::Retained(topic) => ("retained", topic.into()),
            Self::Queued(client) => ("queued", client.as_str().into()),
            Self::Came(Came { client, epoch, .. }) => ("came", format!("{} {}", epoch.0, client.as_str()).into()),
            Self::Stands(Stands { client, standing: Standing { epoch, online, since }, kept, .. }) => {
                let how = if *online {
                    "here"
                } else if *kept {
                    "away"
                } else {
                    "gone"
                };
                ("stands", format!("{how} {} {} {}", epoch.0, since.millis(), client.as_str()).into())
            }
        };
        format!("{node}\n{kind}\n{what}")
    }

    fn read(text: &str) -> Option<(&str, Self)> {
        let (node, said) = text.split_once('\n')?;
        let (kind, what) = said.split_once('\n')?;
        let word = match kind {
            "here" => Self::Here,
            "anything" => Self::Anything,
            "changed" => Self::Changed(ClientId::new(what).ok()?),
            "retained" => Self::Retained(what.to_owned()),
            "queued" => Self::Queued(ClientId::new(what).ok()?),
            "came" => {
                let (epoch, client) = what.split_once(' ')?;
                let (client, epoch) = (ClientId::new(client).ok()?, Epoch(epoch.parse().ok()?));
                Self::Came(Came { client, epoch, node: node.to_owned() })
            }
            "stands" => {
                let mut parts = what.splitn(4, ' ');
                let mut next = || parts.next();
                let (how, epoch, since, client) = (next()?, next()?, next()?, next()?);
                let (online, kept) = match how {
                    "here" => (true, true),
                    "away" => (false, true),
                    "gone" => (false, false),
                    _ => return None,
                };
                let since = Time::from_millis(since.parse().ok()?);
                let standing = Standing { epoch: Epoch(epoch.parse().ok()?), online, since };
                let client = ClientId::new(client).ok()?;
                Self::Stands(Stands { client, standing, node: Some(node.to_owned()), kept })
            }
            _ => return None,
        };
        Some((node, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_said() {
        let client = || ClientId::new("a client").expect("short");
        let stands = |online, kept| {
            let standing = Standing { epoch: Epoch(7), online, since: Time::from_millis(9) };
            Word::Stands(Stands { client: client(), standing, node: Some("n1".to_owned()), kept })
        };
        for word in [
            Word::Here,
            Word::Anything,
            Word::Changed(client()),
            Word::Retained("a/b".to_owned()),
            Word::Queued(client()),
            Word::Came(Came { client: client(), epoch: Epoch(7), node: "n1".to_owned() }),
            stands(true, true),
            stands(false, true),
            stands(false, false),
        ] {
            assert_eq!(Word::read(&word.text("n1")), Some(("n1", word)));
        }
        assert_eq!((Word::read("n1\nlater\nx"), Word::read("n1"), Word::read("n1\ncame\nx y")), (None, None, None));
    }
}
