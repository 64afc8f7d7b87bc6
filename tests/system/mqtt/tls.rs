//! Certificates that change while terminals are connected. OpenSSL is the terminal.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixDatagram};
use wakala_node::listener::Tls;
use wakala_node::listener::tls::{Oldest, Report};
use wakala_system_tests::{Database, now, terminal};

use super::certificates::Papers;
use super::ended::Node;
use super::openssl::{Client, Scales, Shook};
use super::wire::Wire;
use super::{Broker, enrol, queue_receipt};

const VERSIONS: [&str; 2] = ["-tls1_3", "-tls1_2"];
/// What DISCONNECT and CONNACK say in MQTT 5: not authorised.
const NOT_AUTHORISED: u8 = 0x87;

const ADMINISTRATIVE_ACTION: u8 = 0x98;
/// What revocation and blocking may take.
const AT_ONCE: Duration = Duration::from_secs(1);

fn report(broker: &Broker) -> Report {
    broker.listening.credentials().expect("TLS").report()
}

/// Waits until the listener says so of its files.
async fn until(broker: &Broker, what: &str, is: impl Fn(&Report) -> bool) {
    for _ in 0..200 {
        if is(&report(broker)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not {what}: {:?}", report(broker));
}

fn at(broker: &Broker) -> std::net::SocketAddr {
    broker.listening.tls.expect("an address")
}

/// That the connection was ended, and how an MQTT 5 client was told; when.
async fn is_out(wire: &mut Wire, v5: bool) -> Instant {
    hears(wire, v5, NOT_AUTHORISED).await
}

/// Waits for the end of a connection, with this reason in MQTT 5; gives the moment.
async fn hears(wire: &mut Wire, v5: bool, reason: u8) -> Instant {
    let heard = wire.receive().await;
    let out = Instant::now();
    if v5 {
        assert_eq!(heard.map(|(first, body)| (first, body[0])), Some((0xE0, reason)));
        assert_eq!(wire.receive().await, None);
    } else {
        assert_eq!(heard, None, "3.1.1 closes");
    }
    out
}

/// The middle of a certificate in PEM: only that certificate has it.
fn middle(pem: &str) -> String {
    pem.lines().nth(4).expect("a line of it").to_owned()
}

/// mosquitto #524, #1677, #1402: to reload them was to restart, or dropped the clients that came with a certificate.
#[tokio::test]
async fn pain_12_certificate_and_crl_are_reloaded_without_dropping_a_session() {
    let database = Database::new();
    let papers = Papers::new();
    let revoked = papers.issue("stolen");
    let broker = Broker::start(&database, Some(papers.tls_with_list())).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    enrol(&broker.store, "T2", Some(revoked.sha256)).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    let mut stays = client.open(at(&broker), true);
    assert_eq!(stays.introduce("T1", false).await, [0, 0]);
    assert_eq!(stays.subscribe("r/T1", 1).await, 1);
    let mut leaves = Client::new(&papers, "stolen", "-tls1_3").open(at(&broker), true);
    assert_eq!(leaves.introduce("T2", true).await, [0, 0]);

    let first = middle(&papers.read("server.pem"));
    let look = Client::new(&papers, "terminal", "-tls1_3");
    let shown = || async { look.look(at(&broker), &["-showcerts"]).await.1 };
    assert!(shown().await.contains(&first));
    papers.issue("server");
    let second = middle(&papers.read("server.pem"));
    until(&broker, "read again", |report| report.reloads > 0 && report.failure.is_none()).await;
    let said = shown().await;
    assert!(said.contains(&second) && !said.contains(&first), "{said}");
    stays.ping().await;
    leaves.ping().await;

    papers.revoke(&[revoked]);
    is_out(&mut leaves, true).await;
    stays.ping().await;
    assert_eq!(report(&broker).revoked, 1);

    // What is wrong with a file is said and counted, and what was in force stays so.
    let (good, key) = (papers.read("server.pem"), papers.read("server.key"));
    for (file, text, why) in [
        ("server.pem", "half a certif", "server.pem: no certificate in PEM"),
        ("server.key", &papers.read("terminal.key"), "server.key: not the key of the certificate in"),
        ("authorities.pem", "", "authorities.pem: no certificate in PEM"),
        ("revoked.pem", "", "revoked.pem: no revocation list in it"),
        ("revoked.pem", &Papers::new().list(&[]).pem().expect("PEM"), "none of the configured authorities signed"),
    ] {
        let (was, before) = (papers.read(file), report(&broker));
        papers.write(file, text);
        until(&broker, why, |report| report.failure.as_ref().is_some_and(|said| said.contains(why))).await;
        assert!(report(&broker).failures > before.failures);
        assert_eq!(report(&broker).revoked, 1, "{file}: the list before it is in force");
        assert!(shown().await.contains(&second), "{file}: the certificate before it is in force");
        stays.ping().await;
        papers.write(file, &was);
        until(&broker, "right again", |report| report.failure.is_none()).await;
    }
    assert_eq!((papers.read("server.pem"), papers.read("server.key")), (good, key));
    queue_receipt(&database, "T1", "after all that");
    broker.sessions.wake("T1");
    assert_eq!(stays.delivery().await, (false, 1, "after all that".to_owned()));
}

/// emqx #9732: who was revoked went on until the broker was restarted.
#[tokio::test]
async fn pain_12_a_revoked_client_is_out_within_a_second_live_and_resumed() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls_with_list())).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    let stays = Client::new(&papers, "terminal", "-tls1_3");
    let mut stays = stays.open(at(&broker), true);
    assert_eq!(stays.introduce("T1", false).await, [0, 0]);
    let mut gone = Vec::new();
    for (n, (version, v5)) in VERSIONS.into_iter().flat_map(|version| [(version, true), (version, false)]).enumerate() {
        let (name, file) = (format!("R{n}"), format!("revoked-{n}"));
        let revoked = papers.issue(&file);
        enrol(&broker.store, &name, Some(revoked.sha256)).await;
        let client = Client::new(&papers, &file, version);
        for shook in [Shook::Full, Shook::Resumed] {
            let mut wire = client.open(at(&broker), v5);
            assert_eq!(wire.introduce(&name, true).await[1], 0);
            assert_eq!(client.shook(), shook, "{version}");
            wire.leave().await;
        }
        let mut live = client.open(at(&broker), v5);
        assert_eq!(live.introduce(&name, true).await[1], 0);
        assert_eq!(client.shook(), Shook::Resumed);

        gone.push(revoked);
        let told = Instant::now();
        papers.revoke(&gone);
        let out = is_out(&mut live, v5).await;
        assert!(out - told < AT_ONCE, "{version}: {:?}", out - told);

        let mut resumed = client.open(at(&broker), v5);
        let code = if v5 { NOT_AUTHORISED } else { 5 };
        assert_eq!(resumed.introduce(&name, true).await, [0, code], "{version}");
        assert_eq!(client.shook(), Shook::Resumed, "rustls let it in, and we did not");
        assert_eq!(resumed.receive().await, None);
        client.forget();
        let mut full = client.open(at(&broker), v5);
        full.say_hello(&name, true).await;
        assert_eq!(full.receive().await, None, "{version}: its certificate is refused");
        stays.ping().await;
    }
    broker.connected(1).await;
}

/// Guests are judged like terminals, also where anybody may connect: a resumed handshake asks nobody for the certificate.
#[tokio::test]
async fn pain_12_a_guest_whose_certificate_is_revoked_is_out_within_a_second_live_and_resumed() {
    let database = Database::new();
    let papers = Papers::new();
    let revoked = papers.issue("guest");
    let tls = papers.tls_with_list();
    let here = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let broker = Broker::tuned(database.store().await, here, Some(tls), |tuned| tuned.open.anonymous = true).await;
    let mut stays = Client::new(&papers, "terminal", "-tls1_3").open(at(&broker), true);
    assert_eq!(stays.introduce("g1", true).await, [0, 0]);
    let client = Client::new(&papers, "guest", "-tls1_3");
    let mut first = client.open(at(&broker), true);
    assert_eq!(first.introduce("g2", true).await, [0, 0]);
    first.leave().await;
    let mut live = client.open(at(&broker), true);
    assert_eq!((live.introduce("g2", true).await, client.shook()), ([0, 0], Shook::Resumed));
    let told = Instant::now();
    papers.revoke(&[revoked]);
    let out = is_out(&mut live, true).await;
    assert!(out - told < AT_ONCE, "{:?}", out - told);
    let mut resumed = client.open(at(&broker), true);
    assert_eq!((resumed.introduce("g2", true).await, client.shook()), ([0, NOT_AUTHORISED], Shook::Resumed));
    stays.ping().await;
}

/// Half a ClientHello, and nothing more.
#[tokio::test]
async fn half_a_handshake_is_put_out_in_time() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    for begun in [&b""[..], &[0x16, 3, 1, 2, 0, 1, 0, 1]] {
        let mut stream = TcpStream::connect(at(&broker)).await.expect("it listens");
        stream.write_all(begun).await.expect("sent");
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_u8()).await.expect("in time");
        assert!(ended.is_err(), "closed without an answer");
    }
}

#[tokio::test]
async fn a_blocked_terminal_is_out_within_a_second_wherever_it_was_blocked() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    for v5 in [true, false] {
        let mut live = client.open(at(&broker), v5);
        assert_eq!(live.introduce("T1", true).await, [0, 0]);
        let told = Instant::now();
        // As `wakala terminals block` does on a machine where no node runs.
        assert_eq!(broker.store.block_terminal(&terminal("T1"), "stolen", "test", now()).await, Ok(true));
        let out = hears(&mut live, v5, ADMINISTRATIVE_ACTION).await;
        assert!(out - told < AT_ONCE, "{:?}", out - told);
        let mut resumed = client.open(at(&broker), v5);
        assert_eq!(resumed.introduce("T1", true).await, [0, if v5 { 0x8A } else { 5 }]);
        assert_eq!(client.shook(), Shook::Resumed);
        assert_eq!(broker.store.unblock_terminal(&terminal("T1"), "test", now()).await, Ok(true));
        broker.sessions.look_for_bans().await.expect("looked");
        client.forget();
    }
    // Without a certificate it is the same.
    broker.enrol("T2").await;
    let (mut plain, _) = Wire::connect(broker.plain(), true, "T2", true).await;
    assert_eq!(broker.store.block_terminal(&terminal("T2"), "stolen", "test", now()).await, Ok(true));
    hears(&mut plain, true, ADMINISTRATIVE_ACTION).await;
}

#[tokio::test]
async fn a_session_ends_with_its_authority_and_not_when_another_one_is_added() {
    let database = Database::new();
    let (papers, others) = (Papers::new(), Papers::new());
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    enrol(&broker.store, "T2", Some(others.terminal.sha256)).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    let mut live = client.open(at(&broker), true);
    assert_eq!(live.introduce("T1", true).await, [0, 0]);

    let (one, another) = (papers.read("ca.pem"), others.read("ca.pem"));
    papers.write("authorities.pem", &format!("{one}{another}"));
    until(&broker, "read again", |report| report.reloads == 1).await;
    live.ping().await;
    // Both trust the server, whose authority is the first.
    others.write("ca.pem", &one);
    let mut stays = Client::new(&others, "terminal", "-tls1_3").open(at(&broker), true);
    assert_eq!(stays.introduce("T2", true).await, [0, 0]);

    papers.write("authorities.pem", &another);
    is_out(&mut live, true).await;
    let mut again = client.open(at(&broker), true);
    again.say_hello("T1", true).await;
    assert_eq!(again.receive().await, None, "it could not resume, and its certificate is under no authority");
    assert_eq!(client.shook(), Shook::Full);
    stays.ping().await;
    broker.connected(1).await;
}

#[tokio::test]
async fn a_session_ends_with_its_certificate_and_is_not_resumed_after_it() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    let short = papers.issue_for("short", Duration::from_secs(3));
    enrol(&broker.store, "T1", Some(short.sha256)).await;
    let client = Client::new(&papers, "short", "-tls1_3");
    let mut live = client.open(at(&broker), true);
    assert_eq!(live.introduce("T1", true).await, [0, 0]);
    live.ping().await;
    is_out(&mut live, true).await;
    let mut resumed = client.open(at(&broker), true);
    assert_eq!(resumed.introduce("T1", true).await, [0, NOT_AUTHORISED]);
    assert_eq!(client.shook(), Shook::Resumed);
}

#[tokio::test]
async fn a_resumed_handshake_with_a_certificate_costs_fewer_bytes_than_a_full_one() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls_with_list())).await;
    enrol(&broker.store, "T1", Some(papers.terminal.sha256)).await;
    let mut scales = Scales::before(at(&broker)).await;
    for version in VERSIONS {
        let client = Client::new(&papers, "terminal", version);
        let mut cost = Vec::new();
        for shook in [Shook::Full, Shook::Resumed, Shook::Resumed] {
            let mut wire = client.open(scales.at, true);
            assert_eq!(wire.introduce("T1", true).await, [0, 0]);
            assert_eq!(client.shook(), shook);
            wire.leave().await;
            cost.push(scales.read().await);
            // A list that is read again takes no session away.
            let reloads = report(&broker).reloads;
            papers.revoke(&[]);
            until(&broker, "read again", |report| report.reloads > reloads).await;
        }
        println!("{version}: connecting and leaving costs {cost:?} bytes: full, resumed, resumed");
        assert!(cost[1] * 3 < cost[0] * 2 && cost[2] * 3 < cost[0] * 2, "{version}: {cost:?}");
        client.forget();
    }
}

#[tokio::test]
async fn a_node_that_is_told_reads_its_files_again_and_goes_on() {
    let database = Database::new();
    let papers = Papers::new();
    enrol(&database.store().await, "T1", None).await;
    // What systemd would be told.
    let notified = UnixDatagram::bind(papers.path("notified")).expect("a socket");
    let (mut node, at) = Node::start_with_tls(&database, &papers.path(""), &papers.path("notified")).await;
    let heard = || async {
        let mut buffer = [0; 256];
        let length = tokio::time::timeout(Duration::from_secs(10), notified.recv(&mut buffer)).await;
        String::from_utf8_lossy(&buffer[..length.expect("in time").expect("a message")]).into_owned()
    };
    assert!(heard().await.contains("READY=1"));
    let (mut stays, _) = Wire::connect(node.mqtt, true, "T1", true).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    let shown = || async { client.look(at, &["-showcerts"]).await.1 };
    let first = middle(&papers.read("server.pem"));
    assert!(shown().await.contains(&first));

    papers.issue("server");
    let second = middle(&papers.read("server.pem"));
    for (key, figures) in
        [("server.key", r#""reloads":1,"failures":0"#), ("terminal.key", r#""reloads":1,"failures":1,"failure":"#)]
    {
        papers.write("server.key", &papers.read(key));
        node.signal("-HUP");
        assert!(heard().await.starts_with("RELOADING=1\nMONOTONIC_USEC="), "systemd sees it begin");
        assert!(heard().await.contains("READY=1"));
        assert!(shown().await.contains(&second));
        let status = node.ask("GET /status").await;
        assert!(status.contains(figures), "{status}");
        stays.ping().await;
    }
    node.signal("-TERM");
    assert_eq!(node.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_client_may_name_the_protocol_and_no_other() {
    let database = Database::new();
    let papers = Papers::new();
    let broker = Broker::start(&database, Some(papers.tls(true))).await;
    let client = Client::new(&papers, "terminal", "-tls1_3");
    let (content, said) = client.look(at(&broker), &["-alpn", "mqtt"]).await;
    assert!(content && said.contains("ALPN protocol: mqtt"), "{said}");
    let (content, said) = client.look(at(&broker), &["-alpn", "http/1.1"]).await;
    assert!(!content && said.contains("No ALPN negotiated"), "{said}");
}

#[tokio::test]
async fn a_version_that_is_too_old_is_not_spoken() {
    let database = Database::new();
    let papers = Papers::new();
    for (oldest, spoken) in [(Oldest::Tls12, [true, true]), (Oldest::Tls13, [true, false])] {
        let broker = Broker::start(&database, Some(Tls { oldest, ..papers.tls(true) })).await;
        // Nor is it when the files have been read again.
        for _ in 0..2 {
            for (version, spoken) in VERSIONS.into_iter().zip(spoken) {
                let (content, said) = Client::new(&papers, "terminal", version).look(at(&broker), &[]).await;
                assert_eq!(content, spoken, "{oldest:?}, {version}: {said}");
            }
            broker.listening.credentials().expect("TLS").reload().expect("read");
        }
    }
}
