//! Requests, reversals, and what a core may say to them.

use super::*;

#[test]
fn a_withdrawal_is_written_and_its_approval_told() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let expected = [
        (2, PAN),
        (3, "010000"),
        (4, "000005000000"),
        (7, "1121012345"),
        (11, "000042"),
        // At the core's place it is three hours later.
        (12, "042345"),
        (13, "1121"),
        (14, "3012"),
        (37, "632501000042"),
        (41, "T0000001"),
        (42, "A1"),
        (49, "834"),
    ];
    for (field, text) in expected {
        assert_eq!(request.text(field), Some(text), "DE{field}");
    }
    assert_eq!(link.bank.in_flight(), (1, 0));
    assert_eq!(link.receive(&answer(&request, "00").with(38, "123456")), [approved(42)]);
    assert_eq!(link.bank.in_flight(), (0, 0));
}

#[test]
fn a_deposit_says_so() {
    let mut link = Link::ready();
    let mut deposit = transaction(7);
    deposit.kind = Kind::Deposit;
    let said = link.handle(Event::Ask { partition: P, transaction: deposit });
    assert!(matches!(&said[..], [Said::Write(message)] if message.text(3) == Some("210000")), "{said:?}");
}

#[test]
fn a_reversal_names_its_original() {
    let mut link = Link::ready();
    link.ask(42);
    link.now = link.now + seconds(15);
    let said = link.reverse(42, 1);
    let [Said::Write(reversal)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(reversal.mti, Mti::REVERSAL_ADVICE);
    // MTI, STAN and time of the request, its acquirer, no forwarder.
    assert_eq!(reversal.text(90), Some("020000004211210123450000083400100000000000"));
    let same = [(2, PAN), (3, "010000"), (11, "000042"), (37, "632501000042"), (39, "68"), (41, "T0000001")];
    for (field, text) in same {
        assert_eq!(reversal.text(field), Some(text), "DE{field}");
    }
    assert_eq!(reversal.text(7), Some("1121012400"), "its own time");
    assert_eq!(reversal.text(12), Some("042345"), "the request's time");

    let repeat = link.reverse(42, 2);
    let [Said::Write(repeat)] = &repeat[..] else { panic!("{repeat:?}") };
    assert_eq!(repeat.mti, Mti::REVERSAL_ADVICE.repeat());
    assert_eq!(link.bank.in_flight(), (1, 1));
    assert_eq!(link.receive(&answer(repeat, "00")), [told(42, CoreAnswer::Reversed)]);
    assert_eq!(link.bank.in_flight(), (1, 0));
}

#[test]
fn which_codes_settle_a_reversal() {
    let mut link = Link::ready();
    let refused = |code| CoreAnswer::ReversalRefused(Reason::new(code));
    for (n, code, expected) in [
        (1, "00", CoreAnswer::Reversed),
        (2, "25", CoreAnswer::Reversed),
        (3, "96", refused("96")),
        (4, "91", refused("91")),
        (5, "ZZ", refused("ZZ")),
    ] {
        let said = link.reverse(n, 1);
        let [Said::Write(reversal)] = &said[..] else { panic!("{said:?}") };
        assert_eq!(link.receive(&answer(reversal, code)), [told(n, expected)], "{code}");
    }
}

#[test]
fn declines_carry_the_cores_code() {
    let mut link = Link::ready();
    for (n, code) in [(1, "51"), (2, "14"), (3, "05"), (4, "91"), (5, "96"), (6, "55")] {
        let request = link.ask(n);
        assert_eq!(link.receive(&answer(&request, code)), [told(n, CoreAnswer::Declined(Reason::new(code)))]);
    }
}

/// An approval of something else, or a code that nobody told us of, is neither yes nor no.
#[test]
fn a_code_that_means_nothing_certain_is_in_doubt() {
    let mut link = Link::ready();
    for (n, code) in [(1, "10"), (2, "11"), (3, "08"), (4, "09"), (5, "68"), (6, "ZZ"), (7, "0A"), (8, "99")] {
        let request = link.ask(n);
        let why = format!("{code} means nothing certain in this dialect");
        assert_eq!(link.receive(&answer(&request, code)), [Said::Unmatched(why), lost(n)]);
    }
    assert_eq!(link.bank.in_flight(), (0, 0));
}

#[test]
fn an_answer_that_is_not_to_this_request_is_no_answer() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let good = || answer(&request, "00").with(38, "123456");
    let mut no_terminal = good();
    no_terminal.take(41);
    let mut no_stan = good();
    no_stan.take(11);
    let mut no_code = good();
    no_code.take(39);
    let mut request_again = good();
    request_again.mti = Mti::FINANCIAL_REQUEST;
    let mut to_a_reversal = good();
    to_a_reversal.mti = Mti::REVERSAL_ADVICE.response();
    for (message, why) in [
        (good().with(11, "000043"), "no request waits for it"),
        (good().with(41, "T0000002"), "no request waits for it"),
        (good().with(41, ""), "no request waits for it"),
        (to_a_reversal, "no request waits for it"),
        (good().with(37, "632501000043"), "DE37 is not that of its request"),
        (good().with(37, ""), "DE37 is not that of its request"),
        (good().with(4, "000005000001"), "DE4 is not that of its request"),
        (good().with(4, "000000000000"), "DE4 is not that of its request"),
        (good().with(4, "999999999999"), "DE4 is not that of its request"),
        (good().with(49, "840"), "DE49 is not that of its request"),
        (no_terminal, "a part of the match key is missing"),
        (no_stan, "a part of the match key is missing"),
        (no_code, "it has no DE39"),
        (request_again, "a request, and this switch takes none"),
        (Message::new(Mti::new(9999).expect("four digits")), "a part of the match key is missing"),
        (Message::new(Mti::new(0).expect("four digits")), "a request, and this switch takes none"),
        (Message::new(Mti::NETWORK_REQUEST.response()).with(11, "000042"), "no sign-on or echo waits for it"),
    ] {
        assert_eq!(link.receive(&message), unmatched(why), "{message:?}");
        assert_eq!(link.bank.in_flight(), (1, 0));
    }
    // And none of that has kept the right one from being heard.
    assert_eq!(link.receive(&good()), [approved(42)]);
}

#[test]
fn bytes_that_are_no_message_end_nothing() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let good = link.bank.dialect.layout.encode(&answer(&request, "00").with(38, "123456")).expect("fits");
    for bytes in [&b""[..], b"0210", b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xFF; 64], &good[..good.len() - 1]] {
        let said = link.receive_bytes(Bytes::new(bytes.to_vec()));
        assert!(matches!(&said[..], [Said::Unmatched(_)]), "{said:?}");
    }
    assert_eq!(link.receive_bytes(good), [approved(42)]);
}

/// Cores differ in padding: "42" and "000042" are one STAN, "T1" and "T1      " one terminal.
#[test]
fn padding_is_no_difference() {
    let mut link = Link::with(&SANDBOX.replace("11 = \"n 6\"", "11 = \"n..6\""), limits());
    link.sign_on();
    let request = link.ask(42);
    assert_eq!(link.receive(&answer(&request, "00").with(11, "42").with(38, "123456")), [approved(42)]);
}

#[test]
fn answers_may_lack_what_need_not_be_echoed() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let mut spare = Message::new(request.mti.response()).with(39, "00");
    spare.set(11, "000042");
    spare.set(41, "T0000001");
    assert_eq!(link.receive(&spare), [told(42, CoreAnswer::Approved { authorisation: "".into() })]);
}

#[test]
fn late_and_doubled_answers_still_name_their_transaction() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let answer = answer(&request, "00").with(38, "123456");
    assert_eq!(link.after(seconds(21)), []);
    assert_eq!(link.bank.in_flight(), (0, 0));
    assert_eq!(link.receive(&answer), [approved(42)], "late");
    assert_eq!(link.receive(&answer), [approved(42)], "doubled");
    let held = link.after(seconds(601));
    assert!(matches!(&held[..], [Said::Write(_)]), "an echo: {held:?}");
    assert_eq!(link.receive(&answer), unmatched("no request waits for it"), "forgotten");
}

/// Each is a row in the database: a core that says the same for ever must not fill it.
#[test]
fn answers_that_are_doubled_without_end_end_the_link() {
    let mut link = Link::ready();
    let request = link.ask(42);
    let answer = answer(&request, "00").with(38, "123456");
    assert_eq!(link.receive(&answer), [approved(42)]);
    for _ in 0..40 {
        assert_eq!(link.receive(&answer), [approved(42)]);
    }
    let why = "too many messages that nobody waits for".to_owned();
    assert_eq!(link.receive(&answer), [Said::Close(why), Said::Gate(false)]);
}

/// A core that stood still answers all at once: late, but each for the first time.
#[test]
fn late_answers_are_no_noise() {
    let mut link = Link::with(SANDBOX, Limits { requests: 100, remembered: 200, breaker_after: 200, ..limits() });
    link.sign_on();
    let answers: Vec<Message> = (1..=60).map(|n| answer(&link.ask(n), "00").with(38, "123456")).collect();
    link.after(seconds(21));
    for (n, answer) in (1..).zip(&answers) {
        assert_eq!(link.receive(answer), [approved(n)]);
    }
}

#[test]
fn an_answer_after_the_reversal_is_the_requests_answer() {
    let mut link = Link::ready();
    let request = link.ask(42);
    link.now = link.now + seconds(15);
    let said = link.reverse(42, 1);
    let [Said::Write(reversal)] = &said[..] else { panic!("{said:?}") };
    assert_eq!(link.receive(&answer(reversal, "00")), [told(42, CoreAnswer::Reversed)]);
    assert_eq!(link.receive(&answer(&request, "00").with(38, "123456")), [approved(42)]);
}

#[test]
fn what_waits_for_its_card_never_overtakes_its_reversal() {
    let mut link = Link::ready();
    link.hold = true;
    let said = link.handle(Event::Ask { partition: P, transaction: transaction(42) });
    let [Said::Prepare(request)] = said[..] else { panic!("{said:?}") };
    let said = link.reverse(42, 1);
    let [Said::Prepare(reversal)] = said[..] else { panic!("{said:?}") };
    let message = || Ok(link_message());
    assert!(matches!(link.handle(Event::Prepared { ticket: reversal, message: message() })[..], [Said::Write(_)]));
    assert_eq!(link.handle(Event::Prepared { ticket: request, message: message() }), [], "the request stays here");
}

fn link_message() -> Bytes {
    let dialect = Dialect::parse(SANDBOX).expect("a dialect");
    dialect.layout.encode(&Message::new(Mti::FINANCIAL_REQUEST)).expect("fits")
}

#[test]
fn a_card_that_cannot_be_opened_declines_and_leaves_nothing() {
    let mut link = Link::ready();
    link.hold = true;
    let declined = told(42, CoreAnswer::Declined(Reason::new("96")));
    let said = link.handle(Event::Ask { partition: P, transaction: transaction(42) });
    let [Said::Prepare(ticket)] = said[..] else { panic!("{said:?}") };
    let said = link.handle(Event::Prepared { ticket, message: Err("no key".to_owned()) });
    assert_eq!(said, [Said::Unfit("no key".to_owned()), declined]);
    assert_eq!(link.bank.in_flight(), (0, 0));
    // One that takes too long has not left either.
    assert_eq!(link.handle(Event::Ask { partition: P, transaction: transaction(43) }).len(), 1);
    assert_eq!(link.after(seconds(20)), [unsent(43)]);
}

#[test]
fn a_transaction_that_does_not_fit_is_declined_here() {
    let mut link = Link::with(&SANDBOX.replace("\"terminal_tail\"", "\"terminal\""), limits());
    link.sign_on();
    let said = link.handle(Event::Ask { partition: P, transaction: transaction(42) });
    let unfit = Said::Unfit("DE41 is 12 long and 8 is the most".to_owned());
    assert_eq!(said, [unfit, told(42, CoreAnswer::Declined(Reason::new("96")))]);
    let mut without = transaction(43);
    without.trace = None;
    let said = link.handle(Event::Ask { partition: P, transaction: without });
    assert!(matches!(&said[..], [Said::Unfit(_), Said::Tell(_)]), "{said:?}");
}

#[test]
fn requests_and_reversals_in_flight_are_bounded() {
    let mut link = Link::ready();
    for n in 1..=4 {
        link.ask(n);
    }
    assert_eq!(link.handle(Event::Ask { partition: P, transaction: transaction(5) }), [unsent(5)]);
    for n in 1..=4 {
        assert_eq!(link.reverse(n, 1).len(), 1);
    }
    assert_eq!(link.reverse(6, 1), [], "it is repeated when it is due");
    assert_eq!(link.bank.in_flight(), (4, 4));
}

#[test]
fn a_stan_that_is_still_in_flight_is_not_used_twice() {
    let mut link = Link::ready();
    link.ask(42);
    let mut other = transaction(43);
    other.trace = transaction(42).trace;
    assert_eq!(link.handle(Event::Ask { partition: P, transaction: other }), [unsent(43)]);
}

#[test]
fn memory_is_bounded_and_the_oldest_is_forgotten_first() {
    let mut link = Link::ready();
    let mut requests = Vec::new();
    for n in 1..=40 {
        let request = link.ask(n);
        assert_eq!(link.receive(&answer(&request, "00").with(38, "123456")), [approved(n)]);
        requests.push(request);
        link.now = link.now + Duration::from_millis(1);
    }
    assert_eq!(link.bank.flight.len(), 16);
    let doubled = |n: usize| answer(&requests[n - 1], "00").with(38, "123456");
    assert_eq!(link.receive(&doubled(24)), unmatched("no request waits for it"));
    assert_eq!(link.receive(&doubled(25)), [approved(25)]);
}
