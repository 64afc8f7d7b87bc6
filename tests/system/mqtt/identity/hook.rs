//! Another program is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::task::JoinSet;
use wakala_node::listener::identity::HookOptions;
use wakala_system_tests::{Database, terminal};

use super::server::{Does, Server};
use super::*;
use crate::mqtt::certificates::Papers;
use crate::mqtt::{PASSWORD, enrol};

const YES: &str = r#"{"result":"allow"}"#;
const NO: &str = r#"{"result":"deny"}"#;

fn answers(text: &str) -> Does {
    Does::Answers(text.to_owned())
}

/// A broker that asks there.
async fn asking(database: &Database, url: String, change: impl FnOnce(&mut HookOptions)) -> Broker {
    let mut hook = HookOptions { url, within: Duration::from_secs(1), ..HookOptions::default() };
    change(&mut hook);
    broker(database, |options, _| options.hook = Some(hook)).await
}

#[tokio::test]
async fn it_is_told_who_comes_and_says_what_he_may() {
    let database = Database::new();
    let server = Server::start(answers(
        r#"{"result":"allow","ttl":600,"publish":["up/%u/%c"],"subscribe":["down/%c/#","$SYS/#"]}"#,
    ))
    .await;
    let secret = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(secret.path(), "Bearer s3cret\n").expect("written");
    let broker = asking(&database, server.url(), |hook| hook.authorization = Some(secret.path().to_owned())).await;
    let (mut wire, code) = hello("d1", "asha", "kanga \"7\" \\ ñ").at(&broker).await;
    assert_eq!(code, 0);
    let (head, body) = server.last();
    assert!(head.starts_with("post /mqtt http/1.1\r\n") && head.contains("authorization: bearer s3cret"), "{head}");
    let wanted = r#"{"client":"d1","username":"asha","password":"kanga \"7\" \\ ñ","address":"127.0.0.1",
        "certificate":null,"protocol":"5"}"#;
    assert_eq!(body, json(wanted));
    for (topic, told) in [("up/asha/d1", 0), ("up/asha/d2", NOT_AUTHORISED), ("down/d1/x", NOT_AUTHORISED)] {
        assert_eq!(published(&mut wire, topic).await, told, "{topic}");
    }
    // What the broker itself tells comes last: it has kept some of it.
    for (filter, told) in [("down/d1/#", 1), ("$share/g/down/d1/+", 1), ("down/#", 0x87), ("#", 0x87), ("$SYS/#", 1)] {
        assert_eq!(wire.subscribe(filter, 1).await, told, "{filter}");
    }
    // What is known is not asked again, and whoever is another is another question.
    wire.cut();
    assert_eq!((hello("d1", "asha", "kanga \"7\" \\ ñ").code(&broker).await, server.asked()), (0, 1));
    let three = Hello { v5: false, ..hello("d1", "asha", "kanga \"7\" \\ ñ") };
    assert_eq!((three.code(&broker).await, server.asked()), (0, 2));
    assert_eq!(server.last().1["protocol"], "3.1.1");
    // Where one name ends and the next begins is not the client's to choose.
    let apart = [("d1", "ashak", "anga"), ("d1", "asha", "kanga"), ("d1a", "sha", "kanga")];
    for (at, (client, user, password)) in apart.into_iter().enumerate() {
        assert_eq!((hello(client, user, password).code(&broker).await, server.asked()), (0, 3 + at));
    }
    let bare = Hello { user: None, password: None, ..hello("", "", "") };
    assert_eq!(bare.code(&broker).await, 0);
    assert_eq!((&server.last().1["username"], &server.last().1["client"]), (&Value::Null, &Value::from("")));
}

/// emqx #18218: limits by client identifier were passed with random ones. Here with a password that the hook takes.
#[tokio::test]
async fn pain_13_one_password_under_random_client_ids_does_not_pass_the_limit() {
    let database = Database::new();
    let server = Server::start(answers(YES)).await;
    let hook = HookOptions { url: server.url(), ..HookOptions::default() };
    let broker = broker(&database, |options, _| {
        options.hook = Some(hook);
        options.bounds.address_connects_burst = 5;
        options.bounds.address_connects_every = Duration::from_secs(600);
    })
    .await;
    for _ in 0..8 {
        assert_eq!(hello("asha", "asha", "kanga").code(&broker).await, 0, "the hook vouches for this name");
    }
    for n in 0..8 {
        let told = if n < 5 { 0 } else { 0x9F };
        assert_eq!(hello(&format!("random-{n}"), "asha", "kanga").code(&broker).await, told, "{n}");
    }
    for client in ["random-0", ""] {
        assert_eq!(hello(client, "asha", "kanga").code(&broker).await, 0x9F, "{client:?}");
    }
    assert_eq!(hello("asha", "asha", "kanga").code(&broker).await, 0, "known there");
    assert_eq!(broker.sessions.bounds_report().flapping_addresses, 5);
}

/// A password may come without a user name (MQTT 5, 3.1.2.9).
#[tokio::test]
async fn a_guess_without_a_user_name_is_a_guess() {
    let database = Database::new();
    let server = Server::start(answers(NO)).await;
    let hook = HookOptions { url: server.url(), ..HookOptions::default() };
    let broker = broker(&database, |options, _| {
        options.hook = Some(hook);
        options.bounds.wrong_per_client_max = 3;
    })
    .await;
    for n in 0..6 {
        let password = n.to_string();
        let hello = Hello { user: None, ..hello("d1", "", &password) };
        let told = if n < 3 { 0x86 } else { 0x9F };
        assert_eq!(hello.code(&broker).await, told, "{n}");
    }
    assert_eq!(broker.sessions.bounds_report().wrong_passwords, 3);
}

#[tokio::test]
async fn a_will_and_a_kept_subscription_are_within_the_rights_of_now() {
    let database = Database::new();
    let server =
        Server::start(answers(r#"{"result":"allow","ttl":0,"publish":["up/%c"],"subscribe":["down/#"]}"#)).await;
    let broker = asking(&database, server.url(), |_| ()).await;
    for (will, told) in [("up/d1", 0), ("up/d2", NOT_AUTHORISED), ("$SYS/x", NOT_AUTHORISED)] {
        assert_eq!(Hello { will: Some(will), ..hello("d1", "u", "p") }.code(&broker).await, told, "{will}");
    }
    let kept = Hello { kept: true, ..hello("d9", "u", "p") };
    let (mut wire, _) = kept.at(&broker).await;
    assert_eq!((wire.subscribe("down/#", 1).await, wire.subscribe("down/d9", 1).await), (1, 1));
    wire.cut();
    server.now(answers(r#"{"result":"allow","ttl":0,"publish":["down/d1/x","down/d9"],"subscribe":["down/%c"]}"#));
    let (mut again, code) = kept.at(&broker).await;
    assert_eq!(code, 0);
    assert_eq!(database.rows("select filter from wakala.subscription where client_id = 'd9'"), "down/d9");
    let (mut other, _) = hello("d1", "u", "p").at(&broker).await;
    assert_eq!((published(&mut other, "down/d1/x").await, published(&mut other, "down/d9").await), (0, 0));
    assert_eq!(again.delivery().await.2, "x");
    again.silence().await;
}

#[tokio::test]
async fn a_decision_holds_for_its_time_and_no_means_no() {
    let database = Database::new();
    let server = Server::start(answers(NO)).await;
    let broker = asking(&database, server.url(), |hook| hook.denied_for = Duration::from_millis(700)).await;
    let guest = hello("d1", "asha", "wrong");
    assert_eq!((guest.code(&broker).await, server.asked()), (DENIED, 1));
    let three = Hello { v5: false, ..hello("d2", "asha", "wrong") };
    assert_eq!((three.code(&broker).await, server.asked()), (4, 2));
    server.now(answers(YES));
    assert_eq!((guest.code(&broker).await, server.asked()), (DENIED, 2), "it is known, and not asked");
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!((guest.code(&broker).await, server.asked()), (0, 3));
}

#[tokio::test]
async fn terminals_are_judged_by_their_own_row() {
    let database = Database::new();
    let server = Server::start(answers(YES)).await;
    let broker = asking(&database, server.url(), |_| ()).await;
    broker.enrol("T1").await;
    enrol(&broker.store, "T2", Some([7; 32])).await;
    let _ = database.rows("update wakala.terminal set password_hash = null where id = 'T2'");
    assert_eq!(hello("T1", "T1", PASSWORD).code(&broker).await, 0);
    for (client, user, password, told) in [
        ("T1", "T1", "wrong", DENIED),
        // An enrolled terminal's name is nobody else's.
        ("T1", "guest", "p", DENIED),
        ("T2", "T2", "p", DENIED),
        ("T2", "guest", "p", DENIED),
        ("", "T2", "p", DENIED),
        ("guest", "T1", PASSWORD, WRONG_NAME),
    ] {
        assert_eq!(hello(client, user, password).code(&broker).await, told, "{client} {user}");
    }
    assert_eq!(server.asked(), 0);
    assert_eq!((hello("guest", "T2", "p").code(&broker).await, server.asked()), (0, 1), "a guest of that user name");

    let broker = asking(&database, server.url(), |hook| hook.terminals = true).await;
    let (mut wire, code) = hello("T2", "T2", "p").at(&broker).await;
    assert_eq!(code, 0, "the hook may vouch for it here");
    assert_eq!((published(&mut wire, "q/T2").await, broker.taken.texts().len()), (0, 1), "it is a terminal");
    assert_eq!((published(&mut wire, "up/x").await, wire.subscribe("r/T1", 1).await), (0x87, 0x87));
    for hello in
        [hello("T1", "T1", "wrong"), hello("T1", "guest", "p"), Hello { password: None, ..hello("T1", "T1", "") }]
    {
        assert_eq!(hello.code(&broker).await, DENIED, "it has a password, and is judged by that");
    }
    assert_eq!(
        broker.store.block_terminal(&terminal("T2"), "stolen", "test", wakala_system_tests::now()).await,
        Ok(true)
    );
    assert_eq!(hello("T2", "T2", "p").code(&broker).await, 0x8A);
}

#[tokio::test]
async fn what_is_no_answer_lets_nobody_in_and_is_not_asked_for_ever() {
    let database = Database::new();
    let elsewhere = Server::start(answers(YES)).await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let refused = taken.local_addr().expect("its address");
    drop(taken);
    for does in [
        Some(Does::Fails(500)),
        Some(Does::Fails(403)),
        Some(Does::Redirects(elsewhere.at)),
        Some(answers("yes")),
        Some(answers(r#"{"result":"allow","publish":["a#"]}"#)),
        Some(answers(&format!(r#"{{"result":"allow","x":"{}"}}"#, "x".repeat(20_000)))),
        None,
    ] {
        let server = Server::start(does.clone().unwrap_or(Does::Hangs)).await;
        let url = if does.is_some() { server.url() } else { format!("http://{refused}/") };
        let broker = asking(&database, url, |hook| {
            hook.breaker_after = 3;
            hook.breaker = Duration::from_millis(600);
        })
        .await;
        for n in 0..6 {
            assert_eq!(hello(&format!("d{n}"), "u", "p").code(&broker).await, UNAVAILABLE, "{does:?}");
        }
        let three = Hello { v5: false, ..hello("d7", "u", "p") };
        assert_eq!(three.code(&broker).await, 3, "{does:?}");
        assert_eq!(server.asked(), if does.is_some() { 3 } else { 0 }, "{does:?}: the breaker is open");
        if does.is_some() {
            server.now(answers(YES));
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_eq!(hello("d1", "u", "p").code(&broker).await, 0, "{does:?}: it is tried again");
        }
    }
    assert_eq!(elsewhere.asked(), 0, "a password went where it was not to go");
}

#[tokio::test]
async fn many_with_one_question_ask_it_once() {
    let database = Database::new();
    let server = Server::start(Does::Hangs).await;
    let broker = asking(&database, server.url(), |hook| hook.within = Duration::from_secs(20)).await;
    let (mut clients, at) = (JoinSet::new(), broker.plain());
    for _ in 0..20 {
        clients.spawn(async move { hello("d1", "u", "p").to(at).await.1 });
    }
    while server.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.asked(), 1);
    clients.abort_all();
}

/// vernemq #556, #612, #2072: every CONNECT waited for the webhook, and nobody got in any more.
#[tokio::test]
async fn pain_10_a_hook_that_hangs_in_a_storm_of_guests_delays_no_terminal() {
    const WITHIN: Duration = Duration::from_secs(5);
    let database = Database::new();
    let server = Server::start(Does::Hangs).await;
    let broker = asking(&database, server.url(), |hook| {
        hook.at_once = 8;
        hook.waiting_max = 64;
        hook.breaker = Duration::from_secs(2);
        hook.within = WITHIN;
    })
    .await;
    broker.enrol("T1").await;
    let (mut guests, at) = (JoinSet::new(), broker.plain());
    for n in 0..500 {
        guests.spawn(async move {
            let guest = Hello { v5: n % 2 == 0, ..hello("", "", "p") };
            let (client, began) = (format!("guest-{n}"), Instant::now());
            let code = Hello { client: &client, user: Some(&client), ..guest }.to(at).await.1;
            (guest.v5, code, began.elapsed())
        });
    }
    while server.asked() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // While the hook hangs, terminals come and go; much less than guests may wait.
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let began = Instant::now();
        let (wire, code) = hello("T1", "T1", PASSWORD).at(&broker).await;
        slowest = slowest.max(began.elapsed());
        assert_eq!(code, 0);
        wire.leave().await;
    }
    let (mut at_once, mut told) = (0, std::collections::BTreeMap::<(bool, u8), usize>::new());
    while let Some(guest) = guests.join_next().await {
        let (v5, code, waited) = guest.expect("no panic");
        *told.entry((v5, code)).or_default() += 1;
        at_once += usize::from(waited < WITHIN * 9 / 10);
    }
    println!("told {told:?}, {at_once} at once; the slowest terminal took {slowest:?}; {} questions", server.asked());
    let codes: Vec<_> = told.keys().copied().collect();
    assert!(codes.iter().all(|code| [(true, BUSY), (true, UNAVAILABLE), (false, 3)].contains(code)), "{told:?}");
    assert!(at_once >= 300, "{at_once} of 500 did not wait");
    assert!(server.asked() <= 8 + 8, "{} questions", server.asked());
    assert!(slowest < WITHIN / 2, "{slowest:?}");

    server.now(answers(YES));
    let began = Instant::now();
    while hello("guest-1", "guest-1", "p").code(&broker).await != 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "it does not recover");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn whoever_was_let_in_before_is_let_in_while_it_is_away_if_so_configured() {
    let database = Database::new();
    for stale in [false, true] {
        let server = Server::start(answers(r#"{"result":"allow","ttl":0,"publish":["up/%c"]}"#)).await;
        let broker = asking(&database, server.url(), |hook| {
            hook.stale_for = stale.then_some(Duration::from_secs(3600));
            hook.breaker_after = 2;
        })
        .await;
        assert_eq!(hello("d1", "u", "p").code(&broker).await, 0);
        server.now(Does::Fails(503));
        for _ in 0..5 {
            let (mut wire, code) = hello("d1", "u", "p").at(&broker).await;
            assert_eq!(code, if stale { 0 } else { UNAVAILABLE });
            if stale {
                assert_eq!(published(&mut wire, "up/d2").await, NOT_AUTHORISED, "with the rights that it had");
            }
        }
        assert_eq!(hello("d1", "u", "another password").code(&broker).await, UNAVAILABLE);
    }
}

#[tokio::test]
async fn it_may_say_when_a_session_is_to_end() {
    let database = Database::new();
    let server = Server::start(answers(r#"{"result":"allow","session":2}"#)).await;
    let broker = asking(&database, server.url(), |_| ()).await;
    let (mut wire, code) = hello("d1", "u", "p").at(&broker).await;
    let began = Instant::now();
    assert_eq!(code, 0);
    assert_eq!(sent_away(&mut wire).await, 0xA0, "maximum connect time");
    assert!((1_500..6_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn over_tls_it_is_asked_only_if_its_certificate_is_right() {
    let database = Database::new();
    let (papers, others) = (Papers::new(), Papers::new());
    let pem = |file: &str| std::fs::read(papers.path(file)).expect("it is there");
    let certificate = CertificateDer::from_pem_slice(&pem("server.pem")).expect("PEM");
    let key = PrivateKeyDer::from_pem_slice(&pem("server.key")).expect("PEM");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor: tokio_rustls::TlsAcceptor = Arc::new(config.expect("its key")).into();
    let server = Server::with(answers(YES), Some(acceptor)).await;
    for (papers, told) in [(&others, UNAVAILABLE), (&papers, 0)] {
        let url = format!("https://localhost:{}/mqtt", server.at.port());
        let broker = asking(&database, url, |hook| {
            hook.authorities = Some(papers.path("ca.pem").into());
            hook.within = Duration::from_secs(5);
        })
        .await;
        assert_eq!(hello("d1", "u", "p").code(&broker).await, told);
    }
    assert_eq!(server.asked(), 1);
}
