//! Which rows of a client's queue are read: receipts and other messages, each kind while the client wants it.

use std::num::NonZeroU32;

use ntex_bytes::ByteString;
use ntex_mqtt::v5::codec::QoS;

use super::super::{Subscription, messages_topic, receipts_topic};
use super::What;
use crate::id::ClientId;
use crate::session::rights::Rights;
use crate::session::subscriptions::place;

/// Where the queue is to be read on, for each kind of rows; none for a kind that the client does not subscribe to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    pub receipts: Option<i64>,
    pub messages: Option<i64>,
    /// And first of all the rows whose PUBREL is owed, wherever they are, in the order of their PUBRECs, from this one on; none
    /// when all of them were read.
    pub owed: Option<u32>,
}

#[derive(Debug)]
pub(super) struct Lanes {
    pub(super) receipts: Lane,
    pub(super) messages: Lane,
}

/// The rows of one kind.
#[derive(Debug)]
pub(super) struct Lane {
    /// On which its rows go out; none where each row says that itself.
    pub(super) topic: Option<Box<ByteString>>,
    /// What the client subscribes with, if it does: the granted QoS and the identifier.
    pub(super) granted: Option<(QoS, Option<NonZeroU32>)>,
    /// Rows of this kind up to this place are in the queue or done with.
    pub(super) read_to: i64,
}

impl Lane {
    /// Where it is to be read on, if it is.
    pub(super) fn beyond(&self) -> Option<i64> {
        self.granted.map(|_| self.read_to)
    }
}

impl Lanes {
    pub(super) fn of(client: &ClientId, rights: &Rights) -> Self {
        let lane = |topic, granted| Lane { topic, granted, read_to: 0 };
        match rights {
            Rights::Terminal => Self {
                receipts: lane(Some(Box::new(receipts_topic(client))), None),
                messages: lane(Some(Box::new(messages_topic(client))), None),
            },
            // What was queued for a subscription goes out, also when that has ended (3.10.4).
            Rights::Open(_) | Rights::Granted(_) => {
                Self { receipts: lane(None, None), messages: lane(None, Some((QoS::ExactlyOnce, None))) }
            }
        }
    }

    pub(super) fn of_row(&self, what: &What) -> &Lane {
        match what {
            What::Receipt(_) => &self.receipts,
            What::Message(_) => &self.messages,
        }
    }

    pub(super) fn beyond(&self, owed: Option<u32>) -> Beyond {
        Beyond { receipts: self.receipts.beyond(), messages: self.messages.beyond(), owed }
    }

    /// Whether there is a row, up to `hinted_to`, that was not read.
    pub(super) fn behind(&self, hinted_to: i64) -> bool {
        [&self.receipts, &self.messages].into_iter().filter_map(Lane::beyond).any(|read_to| hinted_to > read_to)
    }

    pub(super) fn read_up_to(&mut self, place: i64) {
        for lane in [&mut self.receipts, &mut self.messages] {
            if lane.granted.is_some() {
                lane.read_to = lane.read_to.max(place);
            }
        }
    }

    /// Takes the row after the last: the kind it belongs to is read up to it, and so is the other if it was as far.
    pub(super) fn read_next(&mut self, what: &What, seq: i64) -> bool {
        if self.of_row(what).beyond() != Some(seq - 1) {
            return false;
        }
        for lane in [&mut self.receipts, &mut self.messages] {
            if lane.read_to == seq - 1 {
                lane.read_to = seq;
            }
        }
        true
    }

    /// What the client subscribes to now. For each kind that it took up or left: whether it is the receipts, and whether
    /// it has it now.
    pub(super) fn heed(&mut self, subscriptions: &[Subscription]) -> [Option<(bool, bool)>; 2] {
        let mut turned = [None; 2];
        for (turned, (lane, receipts)) in
            turned.iter_mut().zip([(&mut self.receipts, true), (&mut self.messages, false)])
        {
            let Some(topic) = &lane.topic else { continue };
            let found = place(subscriptions, topic).ok().and_then(|place| subscriptions.get(place));
            let had = lane.granted.is_some();
            lane.granted = found.map(|subscription| (subscription.options.qos, subscription.identifier));
            let has = lane.granted.is_some();
            *turned = (had != has).then_some((receipts, has));
        }
        turned
    }
}
