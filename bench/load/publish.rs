//! QoS 1 publishes that nobody subscribes to: what a broker's reading and acknowledging costs.

use anyhow::{Result, ensure};

use super::join::{Client, join};
use super::{Setting, finish, go_on};
use crate::links::{Links, Play};
use crate::packets::{self, PUBACK, Publish};
use crate::process::Meter;
use crate::report::Report;

/// Publishers, and how many publishes of each wait for their PUBACK at any time.
pub(crate) fn run(setting: &Setting, clients: usize, in_flight: u16) -> Result<Report> {
    let mut links = setting.links(clients)?;
    let joining: Vec<Client> = (0..clients).map(|n| Client::clean(&format!("bench-p{n}"))).collect();
    join(&mut links, &joining, setting)?;
    let mut publishers = Publishers::new(clients, in_flight, |n| format!("bench/{n}/up"), setting.size);
    publishers.start(&mut links);
    go_on(&mut links, &mut publishers, setting.warm_up)?;
    let (before, meter) = (publishers.acknowledged, Meter::start(&setting.pids));
    go_on(&mut links, &mut publishers, setting.measured)?;
    let (rate, shares) = meter.finish(publishers.acknowledged - before);
    publishers.stopping = true;
    finish(&mut links, &mut publishers, setting.patience, |publishers| publishers.unacknowledged == 0)?;
    Ok(Report::new(rate, "publishes/s")
        .with("clients", clients)
        .with("in_flight", in_flight)
        .unless_zero(publishers.unacknowledged, "publishes without PUBACK")
        .and(shares))
}

/// Clients that keep a number of publishes in flight. Each identifier is taken again as soon as it is free, in whatever order
/// the broker acknowledges.
pub(crate) struct Publishers {
    templates: Vec<Publish>,
    in_flight: u16,
    /// By client and identifier: what the publish under way is stamped with.
    waiting: Vec<Option<u64>>,
    next_stamp: Vec<u64>,
    pub(crate) acknowledged: u64,
    pub(crate) unacknowledged: u64,
    pub(crate) stopping: bool,
    /// By client and stamp, for whoever wants to know: whether it was acknowledged.
    pub(crate) witnessed: Option<Vec<Vec<bool>>>,
}

impl Publishers {
    pub(crate) fn new(clients: usize, in_flight: u16, topic: impl Fn(usize) -> String, size: usize) -> Self {
        Self {
            templates: (0..clients).map(|n| Publish::new(&topic(n), 1, size)).collect(),
            in_flight,
            waiting: vec![None; clients * usize::from(in_flight)],
            next_stamp: vec![0; clients],
            acknowledged: 0,
            unacknowledged: 0,
            stopping: false,
            witnessed: None,
        }
    }

    pub(crate) fn start(&mut self, links: &mut Links) {
        for at in 0..self.templates.len() {
            for id in 1..=self.in_flight {
                self.publish(links, at, id);
            }
        }
    }

    fn slot(&self, at: usize, id: u16) -> usize {
        at * usize::from(self.in_flight) + usize::from(id - 1)
    }

    fn publish(&mut self, links: &mut Links, at: usize, id: u16) {
        let stamp = self.next_stamp[at];
        self.next_stamp[at] += 1;
        let slot = self.slot(at, id);
        self.waiting[slot] = Some(stamp);
        self.unacknowledged += 1;
        self.templates[at].push(links.out(at), id, stamp);
    }
}

impl Play for Publishers {
    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        ensure!(packets::kind(first) == PUBACK, "publisher {at} was sent a packet {first:#x}");
        let id = packets::number(body, 0).unwrap_or(0);
        ensure!((1..=self.in_flight).contains(&id), "PUBACK for {id}, which was never used");
        let slot = self.slot(at, id);
        let Some(stamp) = self.waiting[slot].take() else { anyhow::bail!("a second PUBACK for {id}") };
        self.acknowledged += 1;
        self.unacknowledged -= 1;
        if let Some(witnessed) = &mut self.witnessed {
            let (stamps, stamp) = (&mut witnessed[at], usize::try_from(stamp)?);
            if stamps.len() <= stamp {
                stamps.resize(stamp + 1, false);
            }
            stamps[stamp] = true;
        }
        if !self.stopping {
            self.publish(links, at, id);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Duration;

    use super::*;

    /// A broker of one thread per client that acknowledges every publish but each `forgotten`th.
    fn broker(forgotten: Option<u32>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                std::thread::spawn(move || serve(client.unwrap(), forgotten));
            }
        });
        address
    }

    fn serve(mut client: TcpStream, forgotten: Option<u32>) {
        let (mut bytes, mut chunk, mut publishes) = (Vec::new(), [0; 1000], 0);
        while let Ok(got) = client.read(&mut chunk)
            && got > 0
        {
            bytes.extend_from_slice(&chunk[..got]);
            while let Some(range) = packets::body(&bytes).unwrap() {
                let mut answer = Vec::new();
                if packets::kind(bytes[0]) == packets::PUBLISH {
                    publishes += 1;
                    if forgotten.is_none_or(|forgotten| publishes % forgotten != 0) {
                        let arrived = packets::Arrived::read(bytes[0], &bytes[range.clone()]).unwrap();
                        packets::push_puback(&mut answer, arrived.id);
                    }
                } else {
                    answer.extend_from_slice(&[0x20, 2, 0, 0]);
                }
                // One byte at a time, so that packets arrive in pieces.
                answer.chunks(1).for_each(|byte| drop(client.write_all(byte)));
                bytes.drain(..range.end);
            }
        }
    }

    fn run_against(target: SocketAddr) -> Report {
        let setting = Setting {
            target,
            tls: None,
            secret: None,
            pids: Vec::new(),
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(300),
            patience: Duration::from_secs(2),
            size: 256,
        };
        run(&setting, 3, 8).unwrap()
    }

    #[test]
    fn a_broker_that_acknowledges_everything_has_a_figure() {
        let report = run_against(broker(None));
        assert_eq!(report.faults, Vec::<String>::new());
        assert!(report.value > 0.0);
    }

    #[test]
    fn a_broker_that_forgets_an_acknowledgement_has_none() {
        let report = run_against(broker(Some(50)));
        assert_eq!(report.faults.len(), 1, "{report:?}");
        assert!(report.faults[0].contains("without PUBACK"), "{report:?}");
    }

    #[test]
    fn a_second_acknowledgement_is_an_error() {
        let mut links = Links::new(([127, 0, 0, 1], 1).into(), None, 1).unwrap();
        let mut publishers = Publishers::new(1, 2, |_| "t".to_owned(), 8);
        publishers.stopping = true;
        publishers.publish(&mut links, 0, 1);
        assert!(publishers.packet(&mut links, 0, 0x40, &[0, 2]).is_err(), "for one that was not sent");
        publishers.packet(&mut links, 0, 0x40, &[0, 1]).unwrap();
        assert!(publishers.packet(&mut links, 0, 0x40, &[0, 1]).is_err(), "for one that has it");
        assert!(publishers.packet(&mut links, 0, 0x40, &[0, 3]).is_err(), "for an identifier that is not used");
    }
}
