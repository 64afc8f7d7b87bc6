//! Dialects: those that are delivered, and what is no dialect.

use super::*;

#[test]
fn the_dialects_of_the_house_are_read() {
    let sandbox = sandbox();
    assert_eq!(sandbox.matching, Matching { key: vec![41, 11], echo: vec![37, 4, 49] });
    assert_eq!(sandbox.withdrawal.fields.get(&3), Some(&Source::Literal(b"010000"[..].into())));
    assert_eq!(sandbox.reversal.fields.get(&90), Some(&Source::Original));
    let hex = Dialect::parse(ASCII_HEX).expect("ascii-hex");
    assert_eq!(&*hex.framing.header, b"ISO015000077");
    assert!(hex.framing.counts_itself);
}

/// Codes that approve something else than was asked must not pass for a decline, and nothing is both.
#[test]
fn what_is_not_certain_is_in_no_list() {
    for dialect in [sandbox(), Dialect::parse(ASCII_HEX).expect("ascii-hex")] {
        for code in ["08", "09", "10", "11", "16", "68"] {
            let answers = &dialect.answers;
            assert!(!answers.approved.contains(code) && !answers.declined.contains(code), "{} {code}", dialect.name);
        }
    }
}

#[test]
fn what_is_no_dialect_is_refused_with_what_would_be_right() {
    for (from, to, says) in [
        ("bitmap = \"binary\"", "bitmaps = \"binary\"", "unknown field `bitmaps`, expected one of `length`"),
        ("[match]", "[matching]", "unknown field `matching`"),
        ("name = \"sandbox\"", "", "missing field `name`"),
        (
            "bitmap = \"binary\"",
            "bitmap = \"ascii\"",
            "wire.bitmap: Ascii cannot be; right would be one of [Binary, Hex]",
        ),
        ("mti = \"ascii\"", "mti = \"ebcdic\"", "unknown variant `ebcdic`, expected one of `ascii`"),
        ("digits = \"ascii\"", "digits = \"binary\"", "wire.digits: Binary cannot be"),
        ("length = \"binary-2\"", "length = \"binary-3\"", "unknown variant `binary-3`"),
        ("header = \"\"", "header = \"60x\"", "wire.header: right would be bytes in hexadecimal"),
        ("utc_offset_minutes = 180", "utc_offset_minutes = 900", "utc_offset_minutes: no place is more than 14 hours"),
        ("utc_offset_minutes = 180", "utc_offset_minutes = -32768", "utc_offset_minutes: no place is more than 14"),
        ("2 = \"n..19\"", "2 = \"n.19\"", "fields.2: \"n.19\" is no format; right would be"),
        ("2 = \"n..19\"", "1 = \"n..19\"", "fields.1: \"1\" is no data element; right would be a number from 2 to 128"),
        ("2 = \"n..19\"", "pan = \"n..19\"", "fields.pan: \"pan\" is no data element"),
        ("55 = \"b...255\"", "55 = { format = \"b...255\", coding = \"hex\" }", "fields.55: unknown field `coding`"),
        ("55 = \"b...255\"", "55 = { format = \"b...255\", encoding = \"bcd\" }", "fields.55.encoding: Bcd cannot be"),
        ("key = [41, 11]", "key = [41, 11, 2]", "match.key: DE2 is card data and is not kept"),
        ("key = [41, 11]", "key = []", "match.key: is empty"),
        ("key = [41, 11]", "key = [41, 7]", "match.key: DE7 differs from repeat to repeat"),
        ("key = [41, 11]", "key = [41, 42]", "match.key: names no request; right would be such as [41, 11]"),
        ("key = [41, 11]", "key = [41, 62]", "match.key: messages.withdrawal carries no DE62"),
        ("echo = [37, 4, 49]", "echo = [35]", "match.echo: DE35 is card data"),
        (
            "approved = [\"00\"]",
            "approved = [\"0\"]",
            "answers.approved: \"0\" is no code; right would be two characters",
        ),
        ("approved = [\"00\"]", "approved = [\"00\", \"51\"]", "answers.declined: \"51\" is in answers.approved too"),
        ("settled = [\"00\", \"25\"]", "settled = []", "answers.settled: is empty"),
        ("mti = \"0420\"", "mti = \"0430\"", "messages.reversal.mti: \"0430\" is no request"),
        ("mti = \"0420\"", "", "messages.reversal.mti: is missing"),
        (
            "3 = \"010000\"",
            "3 = \"01000x\"",
            "messages.withdrawal.3: \"01000x\" has a character that its format does not allow",
        ),
        ("3 = \"010000\"", "3 = \"0100000\"", "messages.withdrawal.3: \"0100000\" is 7 long and 6 is the most"),
        (
            "4 = \"amount\"",
            "4 = \"amout\"",
            "messages.deposit.4: \"amout\" names nothing; right would be a literal or one of pan",
        ),
        ("4 = \"amount\"", "6 = \"amount\"", "messages.deposit.6: DE6 has no format; right would be fields.6"),
        (
            "2 = \"pan\"",
            "2 = \"4111111111111111\"",
            "messages.deposit.2: DE2 is the card's number; right would be \"pan\"",
        ),
        ("37 = \"rrn\"", "37 = \"pan\"", "messages.deposit.37: a card's number goes into DE2"),
        ("37 = \"rrn\"", "37 = \"original\"", "messages.deposit.37: \"original\" is not known to this message"),
        ("70 = \"301\"", "70 = \"amount\"", "messages.echo.70: \"amount\" is not known to this message"),
    ] {
        assert!(SANDBOX.contains(from), "{from} is not in the file");
        let why = Dialect::parse(&SANDBOX.replace(from, to)).expect_err(to).to_string();
        // Messages are read in the order of the file's kinds; the first of both that has the fault is named.
        let says = says.replace("messages.deposit", "messages.withdrawal");
        assert!(why.contains(&says), "{from} → {to}\n{why}");
    }
}

#[test]
fn the_link_can_do_without_signing_on() {
    let without = SANDBOX.split("[messages.sign_on]").next().expect("the rest");
    let dialect = Dialect::parse(without).expect("a dialect");
    assert!(dialect.sign_on.is_none() && dialect.echo.is_none() && dialect.sign_off.is_none());
}
