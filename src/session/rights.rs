//! What a client may do with topics, and so what its CONNACK offers.

mod grants;

use std::sync::Arc;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::{DisconnectReasonCode as Reason, QoS, SubscribeAckReason as Code};

use super::strict::Flaw;
use super::{Subscription, TOO_LONG};
use crate::id::ClientId;
use crate::topics::{covers, fits, is_servers, matches, shared};
pub use grants::{Grants, NoTemplate, TEMPLATE_MAX, Template, Templates};

/// The part that a client plays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rights {
    /// An enrolled terminal: it asks on `q/<itself>`, and hears its receipts on `r/<itself>` and what else is for it on
    /// `c/<itself>`. No other topic, no wildcard, nothing retained.
    Terminal,
    /// A client of a general broker: every topic but those that these filters match.
    Open(Arc<Closed>),
    /// A client of a general broker who has proved who it is: what is granted to it, but for the closed topics.
    Granted(Arc<Granted>),
}

/// Topic filters that nobody is granted.
pub type Closed = Vec<ByteString>;

/// See [`Rights::Granted`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub closed: Arc<Closed>,
    pub grants: Grants,
}

/// Where a publish goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// It is a request: to be admitted and logged.
    Intake,
    /// To the subscribers of its topic.
    Subscribers,
    /// Nowhere, for this reason.
    Nobody(&'static str),
}

/// What a CONNACK announces (3.2.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offers {
    pub(super) retained: bool,
    pub(super) wildcards: bool,
    pub(super) shared: bool,
}

impl Offers {
    /// A filter of MQTT 5 that is none of what the CONNACK said is there (3.2.2.3.11, 3.2.2.3.13).
    pub(super) fn include(self, filter: &str) -> Result<(), Flaw> {
        if !self.shared && filter.starts_with("$share/") {
            let why = "shared subscriptions are not offered";
            Err(Flaw { reason: Reason::SharedSubscriptionNotSupported, why })
        } else if !self.wildcards && filter.contains(['+', '#']) {
            let why = "wildcard subscriptions are not offered";
            Err(Flaw { reason: Reason::WildcardSubscriptionsNotSupported, why })
        } else {
            Ok(())
        }
    }
}

impl Rights {
    fn closed(&self) -> &[ByteString] {
        match self {
            Self::Terminal => &[],
            Self::Open(closed) => closed,
            Self::Granted(granted) => &granted.closed,
        }
    }

    pub(super) fn offers(&self) -> Offers {
        let all = !matches!(self, Self::Terminal);
        Offers { retained: all, wildcards: all, shared: all }
    }

    pub(super) fn publish(&self, client: &ClientId, topic: &str) -> Target {
        match self {
            Self::Terminal if is_own(client, "q/", topic) => Target::Intake,
            Self::Terminal => Target::Nobody("a terminal publishes on q/<its name> only"),
            Self::Open(_) | Self::Granted(_) => self.bars(topic).map_or(Target::Subscribers, Target::Nobody),
        }
    }

    /// Why a guest may not publish there.
    fn bars(&self, topic: &str) -> Option<&'static str> {
        // 4.7.2: what begins with $ is the server's to give a meaning to.
        if is_servers(topic) {
            return Some("$SYS and the topics below it are the server's");
        }
        if self.closed().iter().any(|closed| matches(closed, topic)) {
            return Some("a closed topic");
        }
        matches!(self, Self::Granted(granted) if !granted.grants.publish(topic)).then_some(NOT_GRANTED)
    }

    /// Whether it may leave such a will. What has been closed since is looked at when the will is due.
    pub(super) fn will(&self, topic: &str) -> bool {
        // A terminal's goes nowhere.
        matches!(self, Self::Terminal) || self.bars(topic).is_none()
    }

    /// Whether a subscription of an earlier connection, with other rights perhaps, may stay.
    #[must_use]
    pub fn keeps(&self, client: &ClientId, subscription: &Subscription) -> bool {
        match self {
            Self::Granted(_) => self.subscribe(client, &subscription.filter, subscription.options.qos).is_ok(),
            Self::Terminal | Self::Open(_) => true,
        }
    }

    /// The granted QoS.
    pub(super) fn subscribe(&self, client: &ClientId, filter: &str, asked: QoS) -> Result<QoS, (Code, &'static str)> {
        match self {
            Self::Terminal => terminal(client, filter, asked),
            Self::Open(_) | Self::Granted(_) => {
                // In MQTT 3.1.1 that is no malformed packet: it knows no shared subscriptions.
                let Ok(shared) = shared(filter) else {
                    return Err((Code::TopicFilterInvalid, "no shared subscription"));
                };
                if !fits(filter) {
                    return Err((Code::TopicFilterInvalid, TOO_LONG));
                }
                let inner = shared.map_or(filter, |shared| shared.filter);
                if self.closed().iter().any(|closed| covers(closed, inner)) {
                    // The one code for it that MQTT 3.1.1 has, and so the one that all clients know.
                    Err((Code::UnspecifiedError, "a closed topic"))
                } else if let Self::Granted(granted) = self
                    && !granted.grants.subscribe(inner)
                {
                    Err((Code::NotAuthorized, NOT_GRANTED))
                } else {
                    Ok(asked)
                }
            }
        }
    }
}

const NOT_GRANTED: &str = "not among the topics that are granted to this client";

fn terminal(client: &ClientId, filter: &str, asked: QoS) -> Result<QoS, (Code, &'static str)> {
    if is_own(client, "r/", filter) {
        match asked {
            QoS::AtMostOnce => Err((Code::ImplementationSpecificError, "receipts need QoS 1")),
            // A receipt is kept until it is acknowledged, and says itself which request it answers: QoS 2 would cost two
            // packets more.
            QoS::AtLeastOnce | QoS::ExactlyOnce => Ok(QoS::AtLeastOnce),
        }
    } else if is_own(client, "c/", filter) {
        Ok(asked.min(QoS::AtLeastOnce))
    } else {
        Err((Code::NotAuthorized, "a terminal subscribes to r/<its name> and c/<its name> only"))
    }
}

/// Whether `topic` is this client's own, such as `q/T1`.
fn is_own(client: &ClientId, prefix: &str, topic: &str) -> bool {
    topic.strip_prefix(prefix) == Some(client.as_str())
}
