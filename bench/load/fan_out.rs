//! A few publishers, many subscribers, each of whom is to have everything. A publisher waits for the slowest subscriber, so that
//! no broker has a reason to drop; what is dropped all the same shows as a gap in the stamps.

use anyhow::{Context as _, Result, ensure};

use super::join::{Client, join};
use super::{Setting, finish, go_on};
use crate::links::{Links, Play};
use crate::packets::{self, Arrived, PUBACK, PUBLISH, Publish};
use crate::process::Meter;
use crate::report::Report;

/// `in_flight`: how far each publisher may be ahead of its slowest subscriber.
pub(crate) fn run(setting: &Setting, publishers: usize, subscribers: usize, qos: u8, in_flight: u16) -> Result<Report> {
    let mut links = setting.links(publishers + subscribers)?;
    let mut joining: Vec<Client> = (0..publishers).map(|n| Client::clean(&format!("bench-f{n}"))).collect();
    joining.extend((0..subscribers).map(|n| Client::clean(&format!("bench-s{n}")).subscribing("f/+", qos)));
    join(&mut links, &joining, setting)?;
    let mut fan = Fan::new(publishers, subscribers, qos, in_flight, setting.size);
    go_on(&mut links, &mut fan, setting.warm_up)?;
    let (before, meter) = (fan.delivered, Meter::start(&setting.pids));
    go_on(&mut links, &mut fan, setting.measured)?;
    let (rate, shares) = meter.finish(fan.delivered - before);
    fan.stopping = true;
    finish(&mut links, &mut fan, setting.patience, |fan| fan.missing() == 0 && fan.unacknowledged() == 0)?;
    Ok(Report::new(rate, "deliveries/s")
        .with("publishers", publishers)
        .with("subscribers", subscribers)
        .with("qos", qos)
        .with("in_flight", in_flight)
        .unless_zero(fan.dropped + fan.missing(), "deliveries dropped")
        .unless_zero(fan.unacknowledged(), "publishes without PUBACK")
        .and(shares))
}

struct Fan {
    publishers: Vec<Publisher>,
    qos: u8,
    in_flight: u16,
    size: usize,
    delivered: u64,
    dropped: u64,
    stopping: bool,
}

struct Publisher {
    template: Publish,
    /// How many publishes; their stamps count from 0.
    sent: u64,
    /// By subscriber: the stamp that comes next.
    received: Vec<u64>,
    unacknowledged: u64,
}

impl Fan {
    fn new(publishers: usize, subscribers: usize, qos: u8, in_flight: u16, size: usize) -> Self {
        let publisher = |n| Publisher {
            template: Publish::new(&format!("f/{n}"), qos, size),
            sent: 0,
            received: vec![0; subscribers],
            unacknowledged: 0,
        };
        let publishers = (0..publishers).map(publisher).collect();
        Self { publishers, qos, in_flight, size, delivered: 0, dropped: 0, stopping: false }
    }

    fn missing(&self) -> u64 {
        self.publishers.iter().flat_map(|p| p.received.iter().map(|received| p.sent - received)).sum()
    }

    fn unacknowledged(&self) -> u64 {
        self.publishers.iter().map(|publisher| publisher.unacknowledged).sum()
    }

    fn delivered(&mut self, subscriber: usize, arrived: &Arrived<'_>) -> Result<()> {
        ensure!(arrived.size == self.size, "a payload of {} bytes", arrived.size);
        let publisher = arrived.topic.strip_prefix(b"f/").and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        let publisher = publisher.and_then(|n: usize| self.publishers.get_mut(n));
        let publisher = publisher.with_context(|| format!("on {}", String::from_utf8_lossy(arrived.topic)))?;
        let next = &mut publisher.received[subscriber];
        ensure!(arrived.stamp >= *next && arrived.stamp < publisher.sent, "{} when {next} was due", arrived.stamp);
        self.dropped += arrived.stamp - *next;
        *next = arrived.stamp + 1;
        self.delivered += 1;
        Ok(())
    }
}

impl Play for Fan {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            PUBACK => {
                let publisher = self.publishers.get_mut(at).context("a PUBACK for a subscriber")?;
                ensure!(publisher.unacknowledged > 0, "a PUBACK for nothing");
                publisher.unacknowledged -= 1;
                Ok(())
            }
            PUBLISH => {
                let arrived = Arrived::read(first, body)?;
                if arrived.id != 0 {
                    packets::push_puback(links.out(at), arrived.id);
                }
                let subscriber = at.checked_sub(self.publishers.len()).context("a delivery to a publisher")?;
                self.delivered(subscriber, &arrived)
            }
            _ => anyhow::bail!("client {at} was sent a packet {first:#x}"),
        }
    }

    fn turned(&mut self, links: &mut Links) -> Result<()> {
        if self.stopping {
            return Ok(());
        }
        for (at, publisher) in self.publishers.iter_mut().enumerate() {
            let slowest = publisher.received.iter().min().copied().unwrap_or(0);
            let window = u64::from(self.in_flight);
            while publisher.sent - slowest < window && publisher.unacknowledged < window {
                // Stamps modulo 65,535, from 1: an identifier comes again long after its PUBACK.
                let id = u16::try_from(publisher.sent % 65_535 + 1).unwrap_or(1);
                publisher.template.push(links.out(at), id, publisher.sent);
                publisher.sent += 1;
                publisher.unacknowledged += u64::from(self.qos);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_a_drop_and_nobody_runs_ahead_of_the_slowest() {
        let mut links = Links::new(([127, 0, 0, 1], 1).into(), None, 3).unwrap();
        let mut fan = Fan::new(1, 2, 0, 4, 8);
        fan.turned(&mut links).unwrap();
        assert_eq!(fan.publishers[0].sent, 4);
        let deliver = |fan: &mut Fan, links: &mut Links, subscriber: usize, stamp: u64| {
            let mut bytes = Vec::new();
            Publish::new("f/0", 0, 8).push(&mut bytes, 0, stamp);
            let body = packets::body(&bytes)?.unwrap();
            fan.packet(links, 1 + subscriber, bytes[0], &bytes[body.clone()])
        };
        for stamp in 0..4 {
            deliver(&mut fan, &mut links, 0, stamp).unwrap();
        }
        fan.turned(&mut links).unwrap();
        assert_eq!((fan.publishers[0].sent, fan.missing(), fan.dropped), (4, 4, 0), "the other one has had none");
        deliver(&mut fan, &mut links, 1, 0).unwrap();
        deliver(&mut fan, &mut links, 1, 3).unwrap();
        assert_eq!((fan.dropped, fan.missing(), fan.delivered), (2, 0, 6));
        fan.turned(&mut links).unwrap();
        assert_eq!(fan.publishers[0].sent, 8);
        assert!(deliver(&mut fan, &mut links, 1, 3).is_err(), "the same again");
        assert!(deliver(&mut fan, &mut links, 1, 8).is_err(), "one that was not sent");
    }
}
