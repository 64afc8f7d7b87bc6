//! Requests and responses over topics of each terminal: t/ID/req to one responder, t/ID/res back, all at QoS 1.
//! Closed: each terminal sends the next request when it has the answer. Open: requests are sent when they are due, whatever
//! became of those before, and the time counts from when they were due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hdrhistogram::Histogram;

use super::join::{Client, join};
use super::{Setting, finish};
use crate::links::{Links, Play};
use crate::packets::{self, Arrived, PUBACK, PUBLISH, Publish};
use crate::process::Meter;
use crate::report::{Report, rounded};

/// The responder's link. Terminal N is link N.
const RESPONDER: usize = 0;
/// Requests of one terminal that may be without an answer in an open load; more, and the broker does not keep up.
const UNANSWERED_MAX: usize = 1000;

/// `rate`: requests per second of all terminals together, for an open load.
pub(crate) fn run(setting: &Setting, terminals: usize, rate: Option<f64>) -> Result<Report> {
    let mut links = setting.links(terminals + 1)?;
    let mut joining = vec![Client::clean("bench-responder").subscribing("t/+/req", 1)];
    joining
        .extend((1..=terminals).map(|n| Client::clean(&format!("bench-t{n}")).subscribing(&format!("t/{n}/res"), 1)));
    join(&mut links, &joining, setting)?;
    let mut exchange = Exchange::new(terminals, rate.is_some(), setting.size)?;
    let begin = Instant::now();
    let mut schedule = rate.map(|rate| Schedule { begin, interval: Duration::from_secs_f64(1.0 / rate), sent: 0 });
    if schedule.is_none() {
        for terminal in 1..=terminals {
            exchange.request(&mut links, terminal, Instant::now());
        }
    }
    exchange.go_on(&mut links, &mut schedule, setting.warm_up)?;
    exchange.times.reset();
    let meter = Meter::start(&setting.pids);
    exchange.go_on(&mut links, &mut schedule, setting.measured)?;
    let (answered, shares) = meter.finish(exchange.times.len());
    let times = exchange.times.clone();
    exchange.stopping = true;
    finish(&mut links, &mut exchange, setting.patience, Exchange::is_quiet)?;
    let report = match rate {
        None => Report::new(answered, "round trips/s"),
        Some(rate) => Report::new(milliseconds(&times, 0.99), "ms p99")
            .with("rate", rate)
            .with("answered_per_s", rounded(answered)),
    };
    Ok(report
        .with("terminals", terminals)
        .with("p50_ms", milliseconds(&times, 0.5))
        .with("p99_ms", milliseconds(&times, 0.99))
        .with("max_ms", milliseconds(&times, 1.0))
        .unless_zero(exchange.unanswered(), "requests without a response")
        .unless_zero(exchange.unacknowledged, "publishes without PUBACK")
        .and(shares))
}

pub(crate) fn milliseconds(times: &Histogram<u64>, quantile: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a measurement")]
    let microseconds = times.value_at_quantile(quantile) as f64;
    rounded(microseconds / 1000.0)
}

/// Round trips from a microsecond to a minute, to the hundredth.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000, 3).context("a histogram")
}

/// When requests of an open load are due.
struct Schedule {
    begin: Instant,
    interval: Duration,
    sent: u32,
}

impl Schedule {
    fn due(&self) -> Instant {
        self.begin + self.interval * self.sent
    }
}

struct Exchange {
    /// By terminal, from 1.
    terminals: Vec<Terminal>,
    responses: Vec<Publish>,
    /// The responder's last identifier.
    response_id: u16,
    open: bool,
    stopping: bool,
    next_terminal: usize,
    stamp: u64,
    /// Of all clients together.
    unacknowledged: u64,
    size: usize,
    times: Histogram<u64>,
}

struct Terminal {
    request: Publish,
    id: u16,
    /// Stamps without an answer, and since when.
    unanswered: VecDeque<(u64, Instant)>,
}

impl Exchange {
    fn new(terminals: usize, open: bool, size: usize) -> Result<Self> {
        let ids = 0..=terminals;
        let terminal = |n: usize| Terminal {
            request: Publish::new(&format!("t/{n}/req"), 1, size),
            id: 0,
            unanswered: VecDeque::with_capacity(if open { UNANSWERED_MAX } else { 1 }),
        };
        Ok(Self {
            terminals: ids.clone().map(terminal).collect(),
            responses: ids.map(|n| Publish::new(&format!("t/{n}/res"), 1, size)).collect(),
            response_id: 0,
            open,
            stopping: false,
            next_terminal: 1,
            stamp: 0,
            unacknowledged: 0,
            size,
            times: histogram()?,
        })
    }

    fn go_on(&mut self, links: &mut Links, schedule: &mut Option<Schedule>, span: Duration) -> Result<()> {
        let end = Instant::now() + span;
        while Instant::now() < end {
            links.turn(self)?;
            while let Some(schedule) = schedule
                && schedule.due() <= Instant::now()
            {
                self.request(links, self.next_terminal, schedule.due());
                self.next_terminal = self.next_terminal % (self.terminals.len() - 1) + 1;
                schedule.sent += 1;
            }
        }
        Ok(())
    }

    fn request(&mut self, links: &mut Links, at: usize, due: Instant) {
        let terminal = &mut self.terminals[at];
        self.stamp += 1;
        next(&mut terminal.id);
        terminal.unanswered.push_back((self.stamp, due));
        terminal.request.push(links.out(at), terminal.id, self.stamp);
        self.unacknowledged += 1;
    }

    fn respond(&mut self, links: &mut Links, arrived: &Arrived<'_>) -> Result<()> {
        let terminal = arrived.topic.strip_prefix(b"t/").and_then(|rest| rest.strip_suffix(b"/req"));
        let terminal = terminal.and_then(|digits| str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let response = terminal.and_then(|terminal| self.responses.get(terminal));
        let response = response.with_context(|| format!("a request on {}", String::from_utf8_lossy(arrived.topic)))?;
        next(&mut self.response_id);
        self.unacknowledged += 1;
        response.push(links.out(RESPONDER), self.response_id, arrived.stamp);
        Ok(())
    }

    fn answered(&mut self, links: &mut Links, at: usize, stamp: u64) -> Result<()> {
        let waiting = &mut self.terminals[at].unanswered;
        let Some((first, due)) = waiting.pop_front() else { anyhow::bail!("an answer to nothing at terminal {at}") };
        ensure!(first == stamp, "terminal {at} was answered {stamp} when {first} was due");
        ensure!(waiting.len() < UNANSWERED_MAX, "the broker does not keep up");
        let now = Instant::now();
        let took = u64::try_from((now - due).as_micros()).unwrap_or(u64::MAX);
        self.times.saturating_record(took);
        if !self.open && !self.stopping {
            self.request(links, at, now);
        }
        Ok(())
    }

    fn unanswered(&self) -> u64 {
        self.terminals.iter().map(|terminal| terminal.unanswered.len() as u64).sum()
    }

    fn is_quiet(&self) -> bool {
        self.unacknowledged == 0 && self.unanswered() == 0
    }
}

/// The identifier after this one; 0 is none (MQTT-2.3.1-1).
fn next(id: &mut u16) {
    *id = id.checked_add(1).unwrap_or(1);
}

impl Play for Exchange {
    /// epoll waits whole milliseconds: an open load looks all the time.
    fn wait(&self) -> Duration {
        if self.open { Duration::ZERO } else { Duration::from_millis(20) }
    }

    fn packet(&mut self, links: &mut Links, at: usize, first: u8, body: &[u8]) -> Result<()> {
        match packets::kind(first) {
            PUBACK => {
                ensure!(self.unacknowledged > 0, "a PUBACK for nothing");
                self.unacknowledged -= 1;
                Ok(())
            }
            PUBLISH => {
                let arrived = Arrived::read(first, body)?;
                ensure!(arrived.id != 0, "a delivery at QoS 0");
                ensure!(arrived.size == self.size, "a payload of {} bytes", arrived.size);
                packets::push_puback(links.out(at), arrived.id);
                if at == RESPONDER { self.respond(links, &arrived) } else { self.answered(links, at, arrived.stamp) }
            }
            _ => anyhow::bail!("client {at} was sent a packet {first:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(exchange: &mut Exchange, links: &mut Links, terminal: usize, stamp: u64) -> Result<()> {
        let mut bytes = Vec::new();
        Publish::new(&format!("t/{terminal}/res"), 1, 8).push(&mut bytes, 7, stamp);
        let body = packets::body(&bytes)?.unwrap();
        exchange.packet(links, terminal, bytes[0], &bytes[body.clone()])
    }

    #[test]
    fn an_answer_must_be_to_the_request_that_waits() {
        let mut links = Links::new(([127, 0, 0, 1], 1).into(), None, 3).unwrap();
        let mut exchange = Exchange::new(2, true, 8).unwrap();
        exchange.request(&mut links, 1, Instant::now());
        exchange.request(&mut links, 1, Instant::now());
        assert!(response(&mut exchange, &mut links, 2, 1).is_err(), "terminal 2 has asked nothing");
        response(&mut exchange, &mut links, 1, 1).unwrap();
        assert_eq!((exchange.unanswered(), exchange.times.len()), (1, 1));
        assert!(response(&mut exchange, &mut links, 1, 1).is_err(), "the same again");
    }
}
