//! The accounts of a core: a message in, an answer and a journal line out.

use std::collections::BTreeMap;

use wakala::card::Pan;
use wakala::iso8583::{Message, Value};

use super::journal::{Entry, What};

/// What identifies a request: terminal (DE41), STAN (DE11) and transmission time (DE7). A reversal says it in DE90.
type Request = (String, String, String);

/// The accounts, and what was done to them.
#[derive(Debug)]
pub struct Book {
    accounts: BTreeMap<String, i64>,
    others_minor: Option<i64>,
    requests: BTreeMap<Request, Past>,
    authorisations: u32,
}

/// What became of a request.
#[derive(Debug)]
enum Past {
    Booked {
        card: String,
        /// What it did to the account.
        change: i64,
        authorisation: String,
        rrn: String,
    },
    Declined {
        code: &'static str,
    },
    Reversed,
    /// Its reversal came first.
    Forbidden,
}

const APPROVED: &str = "00";
const INVALID: &str = "12";
const UNKNOWN_CARD: &str = "14";
const NO_ORIGINAL: &str = "25";
const FORMAT: &str = "30";
const INSUFFICIENT: &str = "51";
const DUPLICATE: &str = "94";

/// What an answer carries on of what it answers.
const CARRIED: [u8; 11] = [3, 4, 7, 11, 12, 13, 32, 33, 37, 41, 49];

impl Book {
    #[must_use]
    pub fn new(accounts: BTreeMap<String, i64>, others_minor: Option<i64>) -> Self {
        Self { accounts, others_minor, requests: BTreeMap::new(), authorisations: 0 }
    }

    /// What an account holds, in minor units.
    #[must_use]
    pub fn balance(&self, pan: &str) -> Option<i64> {
        self.accounts.get(pan).copied().or(self.others_minor)
    }

    /// Judges a request or a reversal. With `refused`, it is declined with that code whatever it says.
    pub fn judge(&mut self, message: &Message, refused: Option<&'static str>, at: u64) -> (Message, Entry) {
        let judged =
            if message.mti.class() == 4 { self.reversal(message, refused) } else { self.request(message, refused) };
        let text = |field| message.text(field).unwrap_or_default().to_owned();
        let entry = Entry {
            at,
            what: judged.what,
            mti: message.mti.to_string(),
            processing: text(3).chars().take(2).collect(),
            rrn: text(37),
            stan: text(11),
            terminal: text(41),
            agent: text(42),
            amount: amount(message).unwrap_or(0),
            currency: text(49),
            card: pan(message).map(|(_, masked)| masked).unwrap_or_default(),
            code: judged.code.to_owned(),
            booked: judged.booked,
        };
        (answer(message, &judged), entry)
    }

    fn request(&mut self, message: &Message, refused: Option<&'static str>) -> Judged {
        let Some(request) = identity(message) else { return Judged::declined(FORMAT) };
        match self.requests.get(&request) {
            Some(Past::Booked { authorisation, .. }) => {
                let authorisation = Some(authorisation.clone());
                return Judged { what: What::Repeated, code: APPROVED, authorisation, booked: 0 };
            }
            Some(Past::Declined { code }) => return Judged { what: What::Repeated, ..Judged::declined(code) },
            Some(Past::Reversed) => return Judged { what: What::Repeated, ..Judged::declined(DUPLICATE) },
            Some(Past::Forbidden) => return Judged::declined(DUPLICATE),
            None => {}
        }
        match refused.map_or_else(|| self.change(message), Err) {
            Err(code) => {
                self.requests.insert(request, Past::Declined { code });
                Judged::declined(code)
            }
            Ok((card, change)) => {
                self.authorisations = (self.authorisations + 1) % 1_000_000;
                let authorisation = format!("{:06}", self.authorisations);
                let balance = self.balance(&card).unwrap_or(0);
                self.accounts.insert(card.clone(), balance + change);
                let rrn = message.text(37).unwrap_or_default().to_owned();
                self.requests.insert(request, Past::Booked { card, change, authorisation: authorisation.clone(), rrn });
                Judged { what: What::Booked, code: APPROVED, authorisation: Some(authorisation), booked: change.abs() }
            }
        }
    }

    /// Which account changes by how much, or why none does.
    fn change(&self, message: &Message) -> Result<(String, i64), &'static str> {
        let amount = amount(message).filter(|&amount| amount > 0).ok_or(FORMAT)?;
        let (card, _) = pan(message).ok_or(UNKNOWN_CARD)?;
        let balance = self.balance(&card).ok_or(UNKNOWN_CARD)?;
        match message.text(3).map(|code| code.get(..2)) {
            Some(Some("01")) if balance < amount => Err(INSUFFICIENT),
            Some(Some("01")) => Ok((card, -amount)),
            Some(Some("21")) => Ok((card, amount)),
            Some(_) => Err(INVALID),
            None => Err(FORMAT),
        }
    }

    fn reversal(&mut self, message: &Message, refused: Option<&'static str>) -> Judged {
        let Some(original) = original(message) else {
            return Judged { what: What::ReversalRefused, ..Judged::declined(FORMAT) };
        };
        if let Some(code) = refused {
            return Judged { what: What::ReversalRefused, ..Judged::declined(code) };
        }
        let nothing = Judged { what: What::NothingToReverse, ..Judged::declined(NO_ORIGINAL) };
        match self.requests.get_mut(&original) {
            // A reversal that names another RRN is of another request.
            Some(Past::Booked { rrn, .. }) if message.text(37).is_some_and(|named| named != rrn) => nothing,
            Some(past @ Past::Booked { .. }) => {
                let Past::Booked { card, change, .. } = std::mem::replace(past, Past::Reversed) else { return nothing };
                *self.accounts.entry(card).or_insert(0) -= change;
                Judged { what: What::Reversed, code: APPROVED, authorisation: None, booked: -change.abs() }
            }
            Some(Past::Reversed) => {
                Judged { what: What::ReversalRepeated, code: APPROVED, authorisation: None, booked: 0 }
            }
            Some(Past::Declined { .. } | Past::Forbidden) => nothing,
            None => {
                self.requests.insert(original, Past::Forbidden);
                nothing
            }
        }
    }
}

struct Judged {
    what: What,
    code: &'static str,
    authorisation: Option<String>,
    booked: i64,
}

impl Judged {
    fn declined(code: &'static str) -> Self {
        Self { what: What::Declined, code, authorisation: None, booked: 0 }
    }
}

fn answer(message: &Message, judged: &Judged) -> Message {
    let mut answer = Message::new(message.mti.response());
    for field in CARRIED {
        if let Some(value) = message.get(field) {
            answer.set(field, Value::new(value.as_bytes().to_vec()));
        }
    }
    if let Some(authorisation) = &judged.authorisation {
        answer.set(38, authorisation.as_str());
    }
    answer.with(39, judged.code)
}

fn identity(message: &Message) -> Option<Request> {
    Some((message.text(41)?.to_owned(), message.text(11)?.to_owned(), message.text(7)?.to_owned()))
}

/// DE90: MTI (4), STAN (6), transmission time (10), acquirer (11), forwarder (11).
fn original(message: &Message) -> Option<Request> {
    let original = message.text(90)?;
    Some((message.text(41)?.to_owned(), original.get(4..10)?.to_owned(), original.get(10..20)?.to_owned()))
}

fn amount(message: &Message) -> Option<i64> {
    message.text(4)?.parse().ok()
}

/// The account and the card as it may be shown; `None` when DE2 is no PAN.
fn pan(message: &Message) -> Option<(String, String)> {
    let text = message.text(2)?;
    let pan = Pan::new(text).ok()?;
    Some((text.to_owned(), pan.masked().as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAN: &str = "4111111111111111";

    fn book() -> Book {
        Book::new(BTreeMap::from([(PAN.to_owned(), 1_000)]), None)
    }

    fn request(processing: &str, stan: &str, amount: &str) -> Message {
        Message::new(wakala::iso8583::Mti::FINANCIAL_REQUEST)
            .with(2, PAN)
            .with(3, processing)
            .with(4, amount)
            .with(7, "1121012345")
            .with(11, stan)
            .with(37, format!("632501{stan}").as_str())
            .with(41, "T1")
            .with(49, "834")
    }

    fn reversal(stan: &str) -> Message {
        let mut message = request("010000", stan, "000000000400");
        message.mti = wakala::iso8583::Mti::REVERSAL_ADVICE;
        message.set(7, "1121012400");
        message.with(90, format!("0200{stan}1121012345{:022}", 0).as_str())
    }

    /// The code, what happened, what was booked, and what the account then holds.
    fn judged(book: &mut Book, message: &Message) -> (String, What, i64, i64) {
        let (answer, entry) = book.judge(message, None, 0);
        assert_eq!(answer.text(39), Some(entry.code.as_str()));
        assert_eq!(entry.card, "411111******1111");
        (entry.code, entry.what, entry.booked, book.balance(PAN).expect("an account"))
    }

    #[test]
    fn money_is_booked_once_and_taken_back_once() {
        let mut book = book();
        let withdrawal = request("010000", "000001", "000000000400");
        assert_eq!(judged(&mut book, &withdrawal), ("00".into(), What::Booked, 400, 600));
        assert_eq!(judged(&mut book, &withdrawal), ("00".into(), What::Repeated, 0, 600));
        assert_eq!(judged(&mut book, &reversal("000001")), ("00".into(), What::Reversed, -400, 1_000));
        assert_eq!(judged(&mut book, &reversal("000001")), ("00".into(), What::ReversalRepeated, 0, 1_000));
        assert_eq!(judged(&mut book, &withdrawal), ("94".into(), What::Repeated, 0, 1_000));
        let deposit = request("210000", "000002", "000000000300");
        assert_eq!(judged(&mut book, &deposit), ("00".into(), What::Booked, 300, 1_300));
        assert_eq!(judged(&mut book, &reversal("000002")), ("00".into(), What::Reversed, -300, 1_000));
    }

    #[test]
    fn a_request_whose_reversal_came_first_is_declined() {
        let mut book = book();
        assert_eq!(judged(&mut book, &reversal("000001")), ("25".into(), What::NothingToReverse, 0, 1_000));
        let withdrawal = request("010000", "000001", "000000000400");
        assert_eq!(judged(&mut book, &withdrawal), ("94".into(), What::Declined, 0, 1_000));
        assert_eq!(judged(&mut book, &reversal("000001")), ("25".into(), What::NothingToReverse, 0, 1_000));
    }

    #[test]
    fn a_reversal_of_another_rrn_takes_nothing_back() {
        let mut book = book();
        judged(&mut book, &request("010000", "000001", "000000000400"));
        let other = reversal("000001").with(37, "632501999999");
        assert_eq!(judged(&mut book, &other), ("25".into(), What::NothingToReverse, 0, 600));
    }

    #[test]
    fn what_cannot_be_booked_is_declined() {
        let mut book = book();
        for (message, code) in [
            (request("010000", "000001", "000000001001"), "51"),
            (request("990000", "000002", "000000000001"), "12"),
            (request("010000", "000003", "000000000000"), "30"),
            (request("010000", "000004", "000000000001").with(2, "4222222222222220"), "14"),
            (request("010000", "000005", "000000000001").with(2, "4222222222222"), "14"),
        ] {
            let (_, entry) = book.judge(&message, None, 0);
            assert_eq!((entry.code.as_str(), entry.booked), (code, 0));
        }
        assert_eq!(book.balance(PAN), Some(1_000));
    }
}
