//! A bank's core: an independent little bank with books of its own, which are the witness. It reads and writes real
//! ISO 8583 bytes and knows nothing of Wakala's states.
//!
//! What it promises, and no more: a request that it has seen before it does not book again; a reversal that it
//! acknowledges holds for ever, also for a request that arrives after it; its books survive its restarts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use wakala::iso8583::{Bytes, Message, Mti};

use super::stage::{About, DIALECT, Payload, Side, Stage, What, WireNo};

#[derive(Debug)]
pub(crate) enum Event {
    /// A message is worked off.
    Works {
        life: u32,
        wire: WireNo,
        message: Message,
        written: u64,
    },
    /// An answer goes out.
    Says {
        life: u32,
        wire: WireNo,
        message: Message,
    },
    Restarts,
    ComesBack(u32),
}

/// How a request is known here: card acceptor, STAN, RRN, time of transmission.
type Name = [String; 4];

/// One request in the books.
#[derive(Clone, Debug)]
pub(crate) struct Booking {
    pub(crate) deposit: bool,
    /// Minor units asked for; names the terminal's request.
    pub(crate) amount: u64,
    card: String,
    /// It was approved, and the money moved.
    pub(crate) booked: bool,
    /// It was taken back, or may never be booked.
    pub(crate) reversed: bool,
    answer: String,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Core {
    no: usize,
    life: u32,
    away: bool,
    /// What each card's account holds, by PAN.
    accounts: BTreeMap<String, i64>,
    pub(crate) books: BTreeMap<Name, Booking>,
    /// Reversals of requests that are not here (yet), with when the first was written.
    refused: BTreeMap<Name, u64>,
    reversals_written: BTreeMap<Name, u64>,
    /// Which amount each STAN of a terminal stood for.
    stans: BTreeMap<(String, String), u64>,
    signed_on: BTreeSet<WireNo>,
}

fn part(message: &Message, field: u8) -> String {
    message.text(field).unwrap_or_default().to_owned()
}

impl Core {
    pub(crate) fn new(no: usize) -> Self {
        let accounts = super::edge::CARDS.iter().map(|card| (card.pan.to_owned(), 150_000_000));
        Self { no, accounts: accounts.collect(), ..Self::default() }
    }

    pub(crate) fn handle(&mut self, event: Event, stage: &mut Stage) {
        match event {
            Event::Works { life, wire, message, written } if life == self.life => {
                self.works(wire, message, written, stage);
            }
            Event::Says { life, wire, message } if life == self.life => {
                let bytes = DIALECT.layout.encode(&message).expect("a message of this dialect");
                stage.send_iso(wire, 1, bytes);
            }
            Event::Works { .. } | Event::Says { .. } => {}
            Event::Restarts => self.restart(stage),
            Event::ComesBack(life) => self.away = self.away && life != self.life,
        }
    }

    fn restart(&mut self, stage: &mut Stage) {
        let no = self.no;
        stage.tell_world(|| format!("core {no} starts again"));
        self.life += 1;
        self.away = true;
        self.signed_on.clear();
        for (wire, _) in stage.wires_of(|end| *end == super::stage::End::Core { no }) {
            let heard = stage.chance.happens(0.8);
            stage.cut(wire, heard);
        }
        let wait = stage.chance.wait(20_000);
        stage.after(wait, What::Core(no, Event::ComesBack(self.life)));
    }

    /// The faults are over; this one may come back only later.
    pub(crate) fn heal(&mut self, away: Option<Duration>, stage: &mut Stage) {
        self.away = false;
        if let Some(wait) = away {
            self.restart(stage);
            self.life += 1;
            stage.after(wait, What::Core(self.no, Event::ComesBack(self.life)));
        }
    }

    pub(crate) fn heard(&mut self, wire: WireNo, side: Side, payload: Payload, stage: &mut Stage) {
        debug_assert_eq!(side, 0, "a core opens no connection");
        match payload {
            Payload::Open if self.away => stage.close(wire, 1),
            Payload::Open => stage.send(wire, 1, Payload::Open),
            Payload::Iso { bytes, written } => self.received(wire, &bytes, written, stage),
            Payload::End => {
                self.signed_on.remove(&wire);
                stage.close(wire, 1);
            }
            Payload::Mqtt(_) => {}
        }
    }

    fn received(&mut self, wire: WireNo, bytes: &Bytes, written: u64, stage: &mut Stage) {
        let message = DIALECT.layout.parse(bytes).expect("a switch says what its dialect has");
        if stage.chance.happens(stage.weather.core_deaf) {
            return;
        }
        let wait = if stage.chance.happens(stage.weather.core_books_late) { 30_000 } else { 20 };
        let wait = stage.chance.wait(wait);
        let life = self.life;
        stage.after(wait, What::Core(self.no, Event::Works { life, wire, message, written }));
    }

    fn works(&mut self, wire: WireNo, message: Message, written: u64, stage: &mut Stage) {
        match message.mti.class() {
            8 => self.network(wire, message, stage),
            2 => self.request(wire, message, written, stage),
            _ => self.reversal(wire, message, written, stage),
        }
    }

    fn network(&mut self, wire: WireNo, message: Message, stage: &mut Stage) {
        let refuses = message.text(70) == Some("001") && stage.chance.happens(stage.weather.core_refuses_sign_on);
        if !refuses {
            self.signed_on.insert(wire);
        }
        self.answer(wire, message, if refuses { "91" } else { "00" }, stage);
    }

    fn request(&mut self, wire: WireNo, message: Message, written: u64, stage: &mut Stage) {
        let name = [41, 11, 37, 7].map(|field| part(&message, field));
        let amount: u64 = part(&message, 4).parse().expect("an amount");
        let no = self.no;
        let line = |what: &str| format!("core {no}: request for {amount} ({name:?}): {what}");
        if self.reversals_written.get(&name).is_some_and(|&reversal| reversal < written) {
            stage.violated("a request leaves before its reversal, or not at all", About::Amount(amount), || {
                line("it was written after its reversal")
            });
        }
        let stood_for = *self.stans.entry((name[0].clone(), name[1].clone())).or_insert(amount);
        if stood_for != amount {
            stage.violated("law 5: a STAN names one request", About::Amount(amount), || line("its STAN was used"));
        }
        let about = || About::Amount(amount);
        if let Some(known) = self.books.get(&name) {
            stage.tell(about, || line("seen before"));
            let code = known.answer.clone();
            return self.answer(wire, message, &code, stage);
        }
        let deposit = part(&message, 3).starts_with('2');
        let card = part(&message, 2);
        let funds = self.accounts.get(&card).copied().unwrap_or(0);
        let minor = i64::try_from(amount).expect("twelve digits");
        let code = if self.refused.contains_key(&name) {
            "12"
        } else if stage.chance.happens(stage.weather.core_declines) {
            ["05", "61", "51"][stage.chance.index(3)]
        } else if !deposit && funds < minor {
            "51"
        } else {
            "00"
        };
        let booked = code == "00";
        stage.tell(about, || line(if booked { "booked" } else { "declined" }));
        if booked {
            *self.accounts.entry(card.clone()).or_default() += if deposit { minor } else { -minor };
        }
        let reversed = self.refused.contains_key(&name);
        let booking = Booking { deposit, amount, card, booked, reversed, answer: code.to_owned() };
        self.books.insert(name, booking);
        let code = if stage.chance.happens(stage.weather.core_unknown_code) { "99" } else { code };
        self.answer(wire, message, code, stage);
    }

    fn reversal(&mut self, wire: WireNo, message: Message, written: u64, stage: &mut Stage) {
        // DE90: MTI, STAN and time of transmission of the request.
        let original = part(&message, 90);
        assert!(original.starts_with("0200") && original.len() == 42, "{original}");
        let name = [part(&message, 41), original[4..10].to_owned(), part(&message, 37), original[10..20].to_owned()];
        let amount: u64 = part(&message, 4).parse().expect("an amount");
        let no = self.no;
        let first = self.reversals_written.entry(name.clone()).or_insert(written);
        *first = written.min(*first);
        if stage.chance.happens(stage.weather.core_refuses_reversal) {
            return self.answer(wire, message, "96", stage);
        }
        let code = match self.books.get_mut(&name) {
            Some(known) if known.amount != amount => {
                stage.violated("I5: a reversal names what it takes back", About::Amount(amount), || {
                    format!("core {no}: {name:?} was {} and is reversed with {amount}", known.amount)
                });
                "30"
            }
            Some(known) if known.booked && !known.reversed => {
                known.reversed = true;
                let minor = i64::try_from(amount).expect("twelve digits");
                *self.accounts.entry(known.card.clone()).or_default() += if known.deposit { -minor } else { minor };
                "00"
            }
            Some(known) => {
                known.reversed = true;
                "00"
            }
            None => {
                self.refused.insert(name.clone(), written);
                "25"
            }
        };
        stage.tell(|| About::Amount(amount), || format!("core {no}: reversal of {amount} ({name:?}): {code}"));
        self.answer(wire, message, code, stage);
    }

    fn answer(&mut self, wire: WireNo, mut message: Message, code: &str, stage: &mut Stage) {
        if stage.chance.happens(stage.weather.core_mute) {
            return;
        }
        let times = 1 + usize::from(stage.chance.happens(stage.weather.core_twice));
        let wrong = message.mti != Mti::NETWORK_REQUEST && stage.chance.happens(stage.weather.core_wrong_echo);
        let fields: Vec<(u8, String)> = [3, 4, 7, 11, 37, 41, 49, 70]
            .into_iter()
            .filter_map(|field| Some((field, message.text(field)?.to_owned())))
            .collect();
        for _ in 0..times {
            let mut answer = Message::new(message.mti.response());
            for (field, text) in &fields {
                answer.set(*field, text.as_str());
            }
            // The answer to somebody else's request, as it looks here.
            let code = match code {
                _ if !wrong => code,
                "00" => "05",
                _ => "00",
            };
            if wrong {
                answer.set(4, "000000000001");
            }
            if code == "00" && message.mti == Mti::FINANCIAL_REQUEST {
                answer.set(38, "A12345");
            }
            let answer = answer.with(39, code);
            let wait = if stage.chance.happens(stage.weather.core_slow) { 60_000 } else { 100 };
            let wait = stage.chance.wait(wait).max(Duration::from_millis(1));
            let life = self.life;
            stage.after(wait, What::Core(self.no, Event::Says { life, wire, message: answer }));
        }
        message.take(2);
    }

    /// What it has moved for this amount, minor units: withdrawals and deposits alike are positive.
    pub(crate) fn net(&self, amount: u64) -> u64 {
        let moved =
            self.books.values().filter(|booking| booking.amount == amount && booking.booked && !booking.reversed);
        moved.map(|booking| booking.amount).sum()
    }

    pub(crate) fn taken_back(&self) -> usize {
        self.books.values().filter(|booking| booking.booked && booking.reversed).count()
    }

    /// Requests that arrived when their reversal had been acknowledged.
    pub(crate) fn came_after(&self) -> usize {
        self.books.keys().filter(|name| self.refused.contains_key(*name)).count()
    }

    pub(crate) fn was_asked(&self, amount: u64) -> bool {
        self.books.values().any(|booking| booking.amount == amount)
    }
}
