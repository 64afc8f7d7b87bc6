//! Bans: of each kind, on both versions, live and at CONNECT, at this node and at another, for a time and for ever.

use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use wakala::ban::Subject;
use wakala_node::cli::{Output, bans as typing};
use wakala_node::config::Config;
use wakala_node::store::Store;
use wakala_node::store::bans::{Banning, NewBan, Whom};

use super::certificates::Papers;
use super::openssl::Client;
use super::wire::Wire;
use super::{Broker, Calendar, enrol};
use wakala_system_tests::{Database, now};

fn subject(kind: &str, text: &str) -> Subject {
    Subject::new(kind, text).expect("a subject")
}

/// As `wakala bans add` does on a machine where no node runs.
async fn ban(store: &Store, subject: &Subject, lasts: Option<Duration>) -> i64 {
    let since = now();
    let until = lasts.map(|lasts| since + lasts);
    let ban = NewBan { subject: subject.clone(), why: "test".into(), by: "tester".into(), since, until };
    match store.ban(ban, 10_000).await {
        Ok(Banning::Done(id)) => id,
        other => panic!("{other:?}"),
    }
}

/// The end of a live session: what an MQTT 5 client hears, and the moment.
async fn ended(wire: &mut Wire, v5: bool) -> Instant {
    let heard = wire.receive().await;
    if v5 {
        assert_eq!(heard.map(|(first, body)| (first, body[0])), Some((0xE0, 0x98)), "administrative action");
        assert_eq!(wire.receive().await, None);
    } else {
        assert_eq!(heard, None);
    }
    Instant::now()
}

#[tokio::test]
async fn a_ban_ends_the_live_session_and_refuses_the_next_wherever_it_was_added() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    for name in ["T1", "T2"] {
        broker.enrol(name).await;
    }
    let (mut other, _) = Wire::connect(broker.plain(), true, "T2", true).await;
    for kind in ["client", "user"] {
        for v5 in [true, false] {
            let (mut live, connack) = Wire::connect(broker.plain(), v5, "T1", true).await;
            assert_eq!(connack, [0, 0]);
            let (whom, told) = (subject(kind, "T1"), Instant::now());
            let id = ban(&broker.store, &whom, None).await;
            let out = ended(&mut live, v5).await;
            assert!(out - told < Duration::from_secs(2), "{:?}", out - told);
            let (_refused, connack) = Wire::connect(broker.plain(), v5, "T1", true).await;
            assert_eq!(connack, [0, if v5 { 0x8A } else { 5 }], "{kind}");
            // Lifted, by its number and by its subject.
            let which = if v5 { Whom::Ban(id) } else { Whom::Subject(whom) };
            assert_eq!(broker.store.lift_bans(which, "tester", now()).await.expect("lifted").len(), 1);
            broker.sessions.look_for_bans().await.expect("looked");
        }
    }
    other.ping().await;
    assert!(broker.sessions.bounds_report().banned >= 4 && broker.sessions.bounds_report().ended >= 4);
    assert_eq!(database.rows("select count(*), count(lifted_at), min(lifted_by) from wakala.ban"), "4|4|tester");
}

#[tokio::test]
async fn a_ban_for_a_time_is_over_by_itself() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    ban(&broker.store, &subject("client", "T1"), Some(Duration::from_secs(5))).await;
    broker.sessions.look_for_bans().await.expect("looked");
    let (_refused, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0x8A]);
    tokio::time::sleep(Duration::from_millis(5_100)).await;
    let (mut wire, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
    wire.ping().await;
    assert_eq!(database.rows("select count(*) from wakala.ban where lifted_at is null"), "1", "its row stays");
}

/// Whoever bans may do so in the database itself, and make a mistake.
#[tokio::test]
async fn a_ban_that_cannot_be_read_keeps_no_other_from_being_known() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let _ = database.rows(
        "insert into wakala.ban (kind, subject, why, banned_by, since) values ('network', '10.1.2.3/16', 'x', 'me', now())",
    );
    ban(&broker.store, &subject("network", "127.0.0.1"), None).await;
    broker.sessions.look_for_bans().await.expect("looked");
    assert_eq!(broker.sessions.bounds_report().bans, 1);
    assert_eq!(Wire::open(broker.plain(), true).await.receive().await, None, "closed at once");
}

#[tokio::test]
async fn a_certificate_is_banned_whatever_its_terminal_is_called() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    let at = broker.listening.tls.expect("an address");
    let mut live = client.open(at, true);
    assert_eq!(live.introduce("T1", true).await, [0, 0]);
    let whom = Subject::Certificate(papers.terminal.sha256);
    ban(&broker.store, &whom, None).await;
    ended(&mut live, true).await;
    let mut again = client.open(at, true);
    assert_eq!(again.introduce("T1", true).await, [0, 0x8A]);
    // The terminal is not banned: with its password it may come.
    let (_, connack) = Wire::connect(broker.plain(), true, "T1", true).await;
    assert_eq!(connack, [0, 0]);
}

#[tokio::test]
async fn a_network_that_is_banned_is_closed_before_tls_and_its_live_sessions_end() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    broker.enrol("T1").await;
    broker.enrol("T2").await;
    let mut live = Wire::open_from([127, 9, 0, 1], broker.plain(), true).await;
    assert_eq!(live.introduce("T1", true).await, [0, 0]);
    let mut stays = Wire::open_from([127, 8, 0, 1], broker.plain(), true).await;
    assert_eq!(stays.introduce("T2", true).await, [0, 0]);
    ban(&broker.store, &subject("network", "127.9.0.0/16"), None).await;
    ended(&mut live, true).await;
    stays.ping().await;
    for at in [broker.plain(), broker.listening.tls.expect("an address")] {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(std::net::SocketAddr::from(([127, 9, 7, 7], 0))).expect("an address of this machine");
        let mut stream: TcpStream = socket.connect(at).await.expect("it listens");
        // Not a byte was sent. Before it gives up a handshake, a listener waits for seconds.
        let heard = tokio::time::timeout(Duration::from_millis(800), stream.read(&mut [0; 16])).await;
        assert!(matches!(heard.expect("closed at once"), Ok(0) | Err(_)));
    }
    assert_eq!(broker.sessions.bounds_report().banned_addresses, 2);
}

#[tokio::test]
async fn bans_are_a_trail_that_the_service_cannot_rewrite() {
    let database = Database::new();
    let store = database.store().await;
    let id = ban(&store, &subject("client", "T1"), None).await;
    for statement in ["delete from wakala.ban", "update wakala.ban set why = 'x'", "truncate wakala.ban"] {
        let said = database.sql("service", statement).expect_err(statement);
        assert!(said.contains("42501"), "{statement}: {said}");
    }
    assert_eq!(store.lift_bans(Whom::Ban(id), "ana", now()).await.expect("lifted").len(), 1);
    assert_eq!(store.lift_bans(Whom::Ban(id), "eve", now()).await.expect("asked").len(), 0, "once");
    let said = database.sql("service", "update wakala.ban set lifted_by = 'eve'").expect_err("rewritten");
    assert!(said.contains("23001"), "{said}");
    let trail = database.sql("auditor", "select kind, subject, why, banned_by, lifted_by from audit.bans");
    assert_eq!(trail, Ok("client|T1|test|tester|ana".to_owned()));
}

#[derive(clap::Parser)]
struct Typed {
    #[command(subcommand)]
    command: typing::Command,
}

#[test]
fn what_an_operator_types_is_done_or_answered() {
    // The client of the admin port wants a system of actors around it.
    actix::System::new().block_on(typed());
}

async fn typed() {
    use clap::Parser as _;
    let database = Database::new();
    let mut config = Config::default();
    config.database.url = database.url("service");
    // Nobody answers there.
    config.admin.address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    config.sessions.bounds.bans_max = 2;
    let typed = async |line: &str| {
        let words = std::iter::once("bans").chain(line.split(' '));
        let typed = Typed::try_parse_from(words).map_err(|error| error.to_string())?;
        let run = typing::run(typed.command, &config, &Calendar, Output { json: true });
        run.await.map_err(|error| format!("{error:#}"))
    };
    assert_eq!(typed("add --client T1 --why stolen --for 2h --by ana").await, Ok(()));
    assert_eq!(typed("add --network 10.0.0.0/8 --why strangers").await, Ok(()));
    for (line, says) in [
        ("add --client T2 --why more", "2 bans are in force already"),
        ("add --why nobody", "whom? --client NAME"),
        ("add --client T1 --user T1 --why both", "cannot be used with"),
        ("add --client T1", "--why"),
        ("add --client T1 --why x --for soon", "right would be 90m"),
        ("add --network 10.1.0.0/8 --why x", "right would be 10.0.0.0/8"),
        ("add --network 0.0.0.0/0 --why x", "every address"),
        ("lift", "which?"),
        ("lift 9", "there is no ban 9 in force"),
        ("lift --client T9", "there is no ban on client T9 in force"),
        ("show 9", "there is no ban 9"),
    ] {
        let said = typed(line).await.expect_err(line);
        assert!(said.contains(says), "{line}: {said}");
    }
    assert_eq!(typed("lift --client T1 --by ben").await, Ok(()));
    for line in ["list", "list --all", "show 1", "show 2", "add --client T2 --why more"] {
        assert_eq!(typed(line).await, Ok(()), "{line}");
    }
    let rows = "select string_agg(concat_ws(' ', subject, (until - since)::text, banned_by, lifted_by), ', ' order by id) \
                from wakala.ban where id = 1";
    assert_eq!(database.rows(rows), "T1 02:00:00 ana ben");
    assert_eq!(database.rows("select count(*) from wakala.ban where lifted_at is null"), "2");
}
