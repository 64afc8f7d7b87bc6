//! What terminals are told: who asked, how often the same is asked for, and what became of each copy.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wakala_node::listener::Tls;
use wakala_node::listener::tls::Oldest;
use wakala_node::store::messages::{Class, Limits, Message, Queueing};
use wakala_node::store::told::Which;
use wakala_node::telling::http::{Http, serve};
use wakala_node::telling::{self, tokens};
use wakala_system_tests::{Database, now, terminal};

use super::certificates::Papers;
use super::openssl::Client;
use super::wire::Wire;
use super::{Broker, asked, enrol, room, told, until};

/// What became of the message with this key, in its words.
async fn became(broker: &Broker, key: &str) -> String {
    let found = broker.store.told(Which::Key(key.to_owned()), None).await.expect("the database is there");
    let found = found.unwrap_or_else(|| panic!("{key} is not known"));
    assert_eq!(found.copies.len(), 1, "{found:?}");
    assert_eq!(found.became, [(found.copies[0].became.clone(), 1)].into());
    assert_eq!(found.copies[0].at.is_none(), found.copies[0].became == "waiting", "{found:?}");
    found.copies[0].became.clone()
}

async fn queue(broker: &Broker, class: Class, qos: u8, key: &str) -> Queueing {
    let message = Message { class, asked: asked(Some(key)), ..told("T1", qos, key) };
    broker.store.queue_message(message, Limits { news_max: 1, ..room(100) }).await.expect("the database is there")
}

#[tokio::test]
async fn the_end_of_each_message_is_known_however_it_ended() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    for (qos, key) in [(1, "heard"), (0, "sent")] {
        assert!(matches!(queue(&broker, Class::Message, qos, key).await, Queueing::Queued(_)));
        assert_eq!(became(&broker, key).await, "waiting");
        broker.sessions.wake("T1");
        let (_, _, id, _, text) = wire.message("T1").await;
        assert_eq!(text, key);
        if qos > 0 {
            wire.acknowledge(id).await;
        }
        until(&database, "select count(*) from wakala.message", "0").await;
        assert_eq!(became(&broker, key).await, "delivered", "{key}");
    }
    // Nobody wakes the session: it is there when the connection ends.
    queue(&broker, Class::Message, 0, "too late").await;
    wire.leave().await;
    until(&database, "select connected from wakala.session", "f").await;
    assert_eq!(became(&broker, "too late").await, "connection_over");
    for (class, key) in [
        (Class::Configuration, "old configuration"),
        (Class::Configuration, "configuration"),
        (Class::News, "old news"),
        (Class::News, "news"),
    ] {
        assert!(matches!(queue(&broker, class, 1, key).await, Queueing::Queued(_)));
    }
    assert_eq!(became(&broker, "old configuration").await, "replaced");
    assert_eq!(became(&broker, "old news").await, "full");
    let short = Message { expires_at: Some(now()), asked: asked(Some("short")), ..told("T1", 1, "short") };
    assert!(matches!(broker.store.queue_message(short, room(100)).await, Ok(Queueing::Queued(_))));
    assert_eq!(broker.store.expire_messages(now(), 10).await, Ok(1));
    assert_eq!(became(&broker, "short").await, "expired");
    // What waits is not forgotten, whatever its age; the rest goes with its ends.
    assert_eq!(broker.store.forget_told(now(), 100, 2).await, Ok(2));
    assert_eq!(broker.store.forget_told(now(), 100, 100).await, Ok(4));
    assert_eq!(broker.store.forget_told(now(), 100, 100).await, Ok(0));
    assert_eq!(database.rows("select count(*) from wakala.told_end"), "0");
    let (wire, _) = Wire::connect(broker.plain(), true, "T1", true).await;
    for key in ["configuration", "news"] {
        assert_eq!(became(&broker, key).await, "session_over");
    }
    assert_eq!(
        broker.store.forget_told(now() - Duration::from_secs(60), 1, 100).await,
        Ok(1),
        "one is kept, the later"
    );
    assert_eq!(became(&broker, "news").await, "session_over");
    assert_eq!(broker.store.tally().await.expect("counted").balance(), 0);
    let ends = "select string_agg(became || ' ' || copies, ', ' order by became) from audit.conservation \
                where copies_of = 'messages'";
    let all = "addressed 8, connection_over 1, delivered 2, expired 1, full 1, replaced 1, session_over 2, waiting 0";
    assert_eq!(database.rows(ends), all, "an auditor reads the same");
    wire.leave().await;
}

#[tokio::test]
async fn under_one_key_there_is_one_message() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    enrol(&broker.store, "T2", None).await;
    assert_eq!(queue(&broker, Class::Message, 1, "k").await, Queueing::NoSession, "the key is still free");
    Wire::connect(broker.plain(), true, "T1", false).await.0.leave().await;
    until(&database, "select expiry_s > 0 and not connected from wakala.session where client_id = 'T1'", "t").await;
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let store = broker.store.clone();
        let message = Message { asked: asked(Some("k")), ..told("T1", 1, "k") };
        at_once.spawn(async move { store.queue_message(message, room(100)).await.expect("the database is there") });
    }
    let answers = at_once.join_all().await;
    let ids: Vec<_> =
        answers.iter().filter_map(|a| if let Queueing::Again(id) = a { Some(*id) } else { None }).collect();
    assert_eq!(answers.iter().filter(|answer| matches!(answer, Queueing::Queued(_))).count(), 1, "{answers:?}");
    assert_eq!(ids, [ids[0]; 7]);
    assert_eq!(database.rows("select count(*) || ' ' || min(told::text) from wakala.message"), format!("1 {}", ids[0]));
    // Anything else under it is something else.
    let expires_at = Some(now() + Duration::from_secs(60));
    let same = told("T1", 1, "k");
    for other in [
        told("T1", 1, "other"),
        told("T1", 0, "k"),
        Message { class: Class::News, ..same.clone() },
        Message { expires_at, ..same.clone() },
    ] {
        let other = Message { asked: asked(Some("k")), ..other };
        assert_eq!(broker.store.queue_message(other, room(100)).await, Ok(Queueing::KeyTaken(ids[0])));
    }
    // And who else has the same key means something else by it.
    let mut by = asked(Some("k"));
    by.by = "portal".to_owned();
    assert!(matches!(
        broker.store.queue_message(Message { asked: by, ..same.clone() }, room(100)).await,
        Ok(Queueing::Queued(_))
    ));
    // Without one each is a message of its own.
    for _ in 0..2 {
        assert!(matches!(broker.store.queue_message(told("T1", 1, "k"), room(100)).await, Ok(Queueing::Queued(_))));
    }
    assert_eq!(database.rows("select count(*) from wakala.message"), "4");
}

#[tokio::test]
async fn a_terminal_is_told_so_much_of_a_class_within_an_hour() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    for name in ["T1", "T2"] {
        enrol(&broker.store, name, None).await;
        Wire::connect(broker.plain(), true, name, false).await.0.leave().await;
    }
    until(&database, "select count(*) from wakala.session where expiry_s > 0 and not connected", "2").await;
    let limits = Limits { per_hour: [0, 1, 2], ..room(100) };
    let tell = async |name: &str, class, before: u64| {
        let message = Message { class, at: now() - Duration::from_secs(before), ..told(name, 1, "x") };
        broker.store.queue_message(message, limits).await.expect("the database is there")
    };
    assert!(matches!(tell("T1", Class::News, 3000).await, Queueing::Queued(_)));
    assert!(matches!(tell("T1", Class::News, 1000).await, Queueing::Queued(_)));
    let Queueing::TooOften(2, wait) = tell("T1", Class::News, 0).await else { panic!("a third") };
    assert!((590..=600).contains(&wait.as_secs()), "until the first is an hour old: {wait:?}");
    assert!(matches!(tell("T2", Class::News, 0).await, Queueing::Queued(_)), "another terminal");
    assert!(matches!(tell("T1", Class::Configuration, 0).await, Queueing::Queued(_)), "another class");
    assert!(matches!(tell("T1", Class::Configuration, 0).await, Queueing::TooOften(1, _)));
    for _ in 0..3 {
        assert!(matches!(tell("T1", Class::Message, 0).await, Queueing::Queued(_)), "no limit");
    }
    let later = Message { class: Class::News, at: now() + Duration::from_secs(601), ..told("T1", 1, "x") };
    assert!(matches!(broker.store.queue_message(later, limits).await, Ok(Queueing::Queued(_))));
}

/// The door for programs, and a token of one called `portal`.
struct Door {
    address: SocketAddr,
    token: String,
    file: tempfile::NamedTempFile,
}

impl Door {
    fn open(broker: &Broker) -> Self {
        let (token, line) = tokens::draw(&"portal".parse().expect("a name")).expect("drawn");
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        writeln!(file, "{line}").expect("written");
        let address = wakala_sandbox::ports::free_port().expect("a port");
        let http = Http { plain: Some(address), ..Http::new(file.path().to_owned()) };
        let options = telling::Options { news_per_hour: 1, ..telling::Options::default() };
        tokio::spawn(serve(&http, &options, broker.sessions.clone(), None).expect("it opens"));
        Self { address, token: token.to_string(), file }
    }

    /// The status and what is said.
    async fn ask(&self, request: &str, more: &str, body: &[u8]) -> (u16, Value) {
        let head = format!("Authorization: Bearer {}\r\n{more}", self.token);
        self.ask_as(request, &head, body).await
    }

    async fn ask_as(&self, request: &str, head: &str, body: &[u8]) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).await.expect("connected");
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_str(body).expect("JSON"))
    }
}

#[tokio::test]
async fn a_program_tells_a_terminal_something_and_hears_what_became_of_it() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let door = Door::open(&broker);
    let to = "POST /terminals/T1/messages";
    let (status, said) = door.ask(to, "", b"x").await;
    assert_eq!((status, said["status"].as_u64()), (409, Some(409)));
    assert!(said["detail"].as_str().is_some_and(|text| text.contains("has left no session")), "{said}");
    let (mut wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    assert_eq!(wire.subscribe("c/T1", 1).await, 1);
    let (status, said) =
        door.ask(&format!("{to}?expires=2h"), "Idempotency-Key: \"fee-7\"\r\n", "Karo imelipwa".as_bytes()).await;
    assert_eq!(
        (status, &said["became"]["waiting"], &said["queue"]["connected"]),
        (201, &1.into(), &true.into()),
        "{said}"
    );
    assert_eq!((&said["asked_by"], &said["key"], &said["bytes"]), (&"portal".into(), &"fee-7".into(), &13.into()));
    // It is woken, and does not wait for the sweep.
    let (qos, _, id, expiry, text) = wire.message("T1").await;
    assert_eq!((qos, text.as_str(), expiry.is_some_and(|left| left > 7000)), (1, "Karo imelipwa", true));
    let at = said["id"].as_str().expect("an id").to_owned();
    for _ in 0..2 {
        let (status, again) =
            door.ask(&format!("{to}?expires=2h"), "Idempotency-Key: fee-7\r\n", "Karo imelipwa".as_bytes()).await;
        assert_eq!(
            (status, again["id"].as_str(), &again["repeated"]),
            (200, Some(at.as_str()), &true.into()),
            "{again}"
        );
    }
    assert_eq!(door.ask(to, "Idempotency-Key: fee-7\r\n", b"other").await.0, 422);
    wire.silence().await;
    wire.acknowledge(id).await;
    until(&database, "select fate from wakala.told_end", "delivered").await;
    for which in [format!("GET /messages/{at}"), "GET /messages?key=fee-7".to_owned()] {
        let (status, said) = door.ask(&which, "", b"").await;
        assert_eq!((status, &said["copies"][0]["became"]), (200, &"delivered".into()), "{said}");
        assert!(said["copies"][0]["at"].is_string());
    }
    let row = "select asked_by || ' ' || key || ' ' || client || ' ' || became from audit.messages_told";
    assert_eq!(database.rows(row), "portal fee-7 T1 delivered");
    assert_eq!(door.ask(&format!("{to}?class=news"), "", b"n").await.0, 201);
    assert_eq!(door.ask(&format!("{to}?class=news"), "", b"n").await.0, 429);
}

/// The certificate is the listener's, and what is too old for terminals is too old for programs.
#[tokio::test]
async fn programs_come_by_tls_as_the_listener_speaks_it() {
    for (oldest, old_is_spoken) in [(Oldest::Tls12, true), (Oldest::Tls13, false)] {
        let (database, papers) = (Database::new(), Papers::new());
        let broker = Broker::start(&database, Some(Tls { oldest, ..papers.tls(false) })).await;
        let door = Door::open(&broker);
        let at = wakala_sandbox::ports::free_port().expect("a port");
        let http = Http { tls: Some(at), ..Http::new(door.file.path().to_owned()) };
        let credentials = broker.listening.credentials().cloned();
        let options = telling::Options::default();
        tokio::spawn(serve(&http, &options, broker.sessions.clone(), credentials).expect("it opens"));

        let look = async |version| Client::new(&papers, "terminal", version).look(at, &[]).await;
        let ((new, said), (old, _)) = (look("-tls1_3").await, look("-tls1_2").await);
        assert_eq!((new, old), (true, old_is_spoken), "{oldest:?}: {said}");
        let tcp = TcpStream::connect(at).await.expect("it listens");
        let name = rustls::pki_types::ServerName::try_from("localhost").expect("a name");
        let mut tls = papers.connector("terminal").connect(name, tcp).await.expect("a handshake");
        let request = format!(
            "GET /messages?key=none HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            door.token
        );
        tls.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = [0; 12];
        tls.read_exact(&mut answer).await.expect("answered");
        assert_eq!(answer, *b"HTTP/1.1 404");
    }
}

#[tokio::test]
async fn what_a_program_asks_for_in_vain_is_said_and_nothing_is_told() {
    let database = Database::new();
    let broker = Broker::start(&database, None).await;
    broker.enrol("T1").await;
    let (wire, _) = Wire::connect(broker.plain(), true, "T1", false).await;
    let door = Door::open(&broker);
    let long = vec![b'x'; 70_000];
    let cases: [(&str, &str, &[u8], u16, &str); 12] = [
        ("POST /terminals/T9/messages", "", b"x", 404, "there is no terminal T9"),
        ("POST /terminals/%20/messages", "", b"x", 404, "there is no terminal"),
        ("POST /terminals/T1/messages", "", &long, 413, "at most 65"),
        ("POST /terminals/T1/messages?qos=2", "", b"x", 400, "qos=2: right would be"),
        ("POST /terminals/T1/messages?class=spam", "", b"x", 400, "message, configuration or news"),
        ("POST /terminals/T1/messages?expires=0s", "", b"x", 400, "1s to 49710days"),
        ("POST /terminals/T1/messages?topic=a", "", b"x", 400, "no topic"),
        ("POST /terminals/T1/messages?clas=news", "", b"x", 400, "clas"),
        ("POST /terminals/T1/messages", "Idempotency-Key: a b\r\n", b"x", 400, "Idempotency-Key: a key has"),
        ("POST /publish?topic=a", "", b"x", 404, "no general broker"),
        ("GET /messages/7", "", b"", 404, "nothing that this token has asked for"),
        ("GET /", "", b"", 404, "POST /terminals/NAME/messages"),
    ];
    for (request, more, body, wanted, text) in cases {
        let (status, said) = door.ask(request, more, body).await;
        assert_eq!(status, wanted, "{request}: {said}");
        assert!(said["detail"].as_str().is_some_and(|detail| detail.contains(text)), "{request}: {said}");
    }
    let (school, line) = tokens::draw(&"school".parse().expect("a name")).expect("drawn");
    let as_school = format!("Authorization: Bearer {}\r\n", *school);
    for head in ["", "Authorization: Basic eDp5\r\n", "Authorization: Bearer wakala-00\r\n", &as_school] {
        let (status, said) = door.ask_as("POST /terminals/T1/messages", head, b"x").await;
        assert_eq!(status, 401, "{head}: {said}");
    }
    assert_eq!(database.rows("select count(*) from wakala.told"), "0");
    // One's own messages are nobody else's business; and a token counts as soon as its line is there, and no longer.
    let (status, said) = door.ask("POST /terminals/T1/messages", "", b"x").await;
    assert_eq!(status, 201, "{said}");
    std::fs::write(door.file.path(), format!("{line}\n")).expect("written");
    let mine = format!("GET /messages/{}", said["id"].as_str().expect("an id"));
    for _ in 0..100 {
        if door.ask(&mine, "", b"").await.0 == 401 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(door.ask(&mine, "", b"").await.0, 401);
    assert_eq!(door.ask_as(&mine, &as_school, b"").await.0, 404);
    wire.leave().await;
}

#[tokio::test]
async fn in_a_general_broker_a_program_publishes_once_for_each_key() {
    let database = Database::new();
    let options = super::anywhere();
    let broker = Broker::made(database.store().await, options, |deps| {
        deps.open.anonymous = true;
        deps.open.closed = vec!["closed/#".to_owned()];
    })
    .await;
    let door = Door::open(&broker);
    let (mut kept, _) = Wire::connect(broker.plain(), true, "kept", false).await;
    let (mut clean, _) = Wire::connect(broker.plain(), false, "clean", true).await;
    assert_eq!((kept.subscribe("news/+", 1).await, clean.subscribe("news/#", 1).await), (1, 1));
    let ask = "POST /publish?topic=news/all&retain=true&expires=1h";
    let (status, said) = door.ask(ask, "Idempotency-Key: n1\r\n", b"rain").await;
    assert_eq!((status, &said["became"]["waiting"], &said["direct"]), (201, &1.into(), &1.into()), "{said}");
    let (dup, id, text) = kept.any_delivery().await;
    assert_eq!((dup, text.as_str()), (false, "rain"));
    assert_eq!(clean.delivery().await.2, "rain");
    // What was retained since stays.
    assert_eq!(door.ask("POST /publish?topic=news/all&retain=true", "", b"sun").await.0, 201);
    let (status, again) = door.ask(ask, "Idempotency-Key: n1\r\n", b"rain").await;
    assert_eq!((status, &again["id"], &again["repeated"]), (200, &said["id"], &true.into()), "{again}");
    let (mut late, _) = Wire::connect(broker.plain(), false, "late", true).await;
    assert_eq!(late.subscribe("news/all", 1).await, 1);
    assert_eq!(late.delivery().await.2, "sun");
    assert_eq!(database.rows("select convert_from(payload, 'utf8') from wakala.retained"), "sun");
    assert_eq!(door.ask(ask, "Idempotency-Key: n1\r\n", b"snow").await.0, 422);
    kept.acknowledge(id).await;
    until(&database, "select became from audit.messages_told where key = 'n1'", "delivered").await;
    for topic in ["", "a/%23", "%2B", "%24SYS/x"] {
        assert_eq!(door.ask(&format!("POST /publish?topic={topic}"), "", b"x").await.0, 400, "{topic}");
    }
    assert_eq!(door.ask("POST /publish?topic=closed/a", "", b"x").await.0, 403);
    assert_eq!(door.ask("POST /publish?topic=nobody/hears", "", b"x").await.1["became"], serde_json::json!({}));
    assert_eq!(broker.store.tally().await.expect("counted").balance(), 0);
    assert!(broker.store.told_last(Some(terminal("T1")), None, 9).await.expect("asked").is_empty());
    assert_eq!(broker.store.told_last(None, None, 9).await.expect("asked").len(), 3);
}

#[tokio::test]
async fn a_copy_that_finds_no_room_is_not_left_out() {
    let database = Database::new();
    let broker = Broker::made(database.store().await, super::anywhere(), |deps| {
        deps.open.anonymous = true;
        deps.open.queue_max = 1;
    })
    .await;
    let door = Door::open(&broker);
    let (mut away, _) = Wire::connect(broker.plain(), true, "away", false).await;
    assert_eq!(away.subscribe("news", 1).await, 1);
    away.leave().await;
    broker.connected(0).await;
    for (key, wanted) in [("n1", "waiting"), ("n2", "full")] {
        let (status, said) = door.ask("POST /publish?topic=news", &format!("Idempotency-Key: {key}\r\n"), b"x").await;
        assert_eq!(status, 201, "{said}");
        assert_eq!(became(&broker, key).await, wanted);
    }
    assert_eq!(broker.store.tally().await.expect("counted").balance(), 0);
}
