//! Topic aliases (3.3.2.3.4): a number in place of a topic, for one direction of one connection.

use std::num::NonZeroU16;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::DisconnectReasonCode as Reason;

use super::strict::Flaw;
use crate::mqtt::Publish;

/// What a client's aliases stand for.
#[derive(Debug)]
pub(super) struct Heard {
    max: u16,
    topics: Vec<Option<ByteString>>,
}

impl Heard {
    pub(super) fn new(max: u16) -> Self {
        Self { max, topics: Vec::new() }
    }

    /// How many there is room for so far.
    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// Puts the topic in the alias' place.
    pub(super) fn resolve(&mut self, publish: &mut Publish) -> Result<(), Flaw> {
        let Some(alias) = publish.topic_alias.take() else {
            if publish.topic.is_empty() {
                return Err(Flaw { reason: Reason::ProtocolError, why: "neither a topic nor an alias (3.3.2.1)" });
            }
            return Ok(());
        };
        if alias.get() > self.max {
            return Err(Flaw {
                reason: Reason::TopicAliasInvalid,
                why: "above the topic alias maximum [MQTT-3.3.2-9]",
            });
        }
        let place = usize::from(alias.get()) - 1;
        if !publish.topic.is_empty() {
            if self.topics.len() <= place {
                self.topics.resize(place + 1, None);
            }
            // A slice of the packet would keep all of it in memory for the life of the connection.
            self.topics[place] = Some(ByteString::from(publish.topic.as_str().to_owned()));
        } else if let Some(Some(topic)) = self.topics.get(place) {
            publish.topic = topic.clone();
        } else {
            return Err(Flaw { reason: Reason::ProtocolError, why: "an alias that stands for nothing (3.3.2.3.4)" });
        }
        Ok(())
    }
}

/// The aliases that a client is told: the first topics get one each, as many as it takes.
#[derive(Debug)]
pub(super) struct Told {
    max: u16,
    topics: Vec<ByteString>,
}

impl Told {
    pub(super) fn new(max: u16) -> Self {
        Self { max, topics: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.topics.len()
    }

    /// What goes out for a topic.
    pub(super) fn shorten(&mut self, topic: &ByteString) -> (ByteString, Option<NonZeroU16>) {
        let alias = |place: usize| u16::try_from(place + 1).ok().and_then(NonZeroU16::new);
        match self.topics.iter().position(|told| told == topic) {
            Some(place) => (ByteString::new(), alias(place)),
            None if self.topics.len() < usize::from(self.max) => {
                self.topics.push(ByteString::from(topic.as_str().to_owned()));
                (topic.clone(), alias(self.topics.len() - 1))
            }
            None => (topic.clone(), None),
        }
    }
}
