//! Messages are conserved: each copy of one that was addressed to a subscriber waits, or has ended in one of these ways.
//!
//! A copy is one message for one subscriber, however many of its subscriptions match. It ends once. What is counted is
//! `addressed = waiting + the sum of all ends`; docs/operators.md says when each count moves.

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Acknowledged with PUBACK or PUBCOMP; at QoS 0 written to the socket.
    Delivered,
    /// Its time was over (MQTT-3.3.2-5).
    Expired,
    /// At QoS 0, and its subscriber was not there.
    Away,
    /// Its subscriber's session or queue had no room.
    Full,
    /// A later one of its topic took its place: only the last is kept of a configuration.
    Replaced,
    /// Larger than the packets that its subscriber takes (MQTT-3.1.2-25).
    TooLarge,
    /// Its subscriber answered with an error code.
    Declined,
    /// It was for one connection, and that ended.
    ConnectionOver,
    /// The session ended for which it waited: its time was over, it was not to outlive its connection, or a clean start was
    /// wanted.
    SessionOver,
}

impl Fate {
    pub const ALL: [Self; 9] = [
        Self::Delivered,
        Self::Expired,
        Self::Away,
        Self::Full,
        Self::Replaced,
        Self::TooLarge,
        Self::Declined,
        Self::ConnectionOver,
        Self::SessionOver,
    ];

    /// Its name in the database and in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Expired => "expired",
            Self::Away => "away",
            Self::Full => "full",
            Self::Replaced => "replaced",
            Self::TooLarge => "too_large",
            Self::Declined => "declined",
            Self::ConnectionOver => "connection_over",
            Self::SessionOver => "session_over",
        }
    }

    /// Neither delivered nor expired: its subscriber did not get it, for this reason.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        !matches!(self, Self::Delivered | Self::Expired)
    }
}

/// How copies ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends([u64; Fate::ALL.len()]);

impl Ends {
    pub const fn add(&mut self, fate: Fate, copies: u64) {
        self.0[fate as usize] += copies;
    }

    #[must_use]
    pub const fn of(&self, fate: Fate) -> u64 {
        self.0[fate as usize]
    }

    #[must_use]
    pub fn refused(&self) -> u64 {
        Fate::ALL.into_iter().filter(|fate| fate.is_refusal()).map(|fate| self.of(fate)).sum()
    }

    #[must_use]
    pub fn all(&self) -> u64 {
        self.0.iter().sum()
    }
}

/// What was addressed and is neither waiting nor has ended: 0, or something is lost (more) or counted twice (less).
#[must_use]
pub fn balance(addressed: u64, waiting: u64, ended: u64) -> i64 {
    let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    signed(addressed).saturating_sub(signed(waiting)).saturating_sub(signed(ended))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_place_and_its_name() {
        let mut ends = Ends::default();
        for (n, fate) in (1..).zip(Fate::ALL) {
            ends.add(fate, n);
        }
        for (n, fate) in (1..).zip(Fate::ALL) {
            assert_eq!(ends.of(fate), n, "{fate:?}");
        }
        let words: std::collections::BTreeSet<_> = Fate::ALL.into_iter().map(Fate::word).collect();
        assert_eq!(words.len(), Fate::ALL.len());
        assert_eq!((ends.refused(), ends.all()), (3 + 4 + 5 + 6 + 7 + 8 + 9, 45));
        assert_eq!((balance(40, 4, 36), balance(41, 4, 36), balance(40, 4, 37)), (0, 1, -1));
    }
}
