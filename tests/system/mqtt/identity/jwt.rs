//! Tokens as passwords.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rcgen::{KeyPair, SigningKey as _};
use wakala::token::Algorithm;
use wakala_node::listener::identity::JwtOptions;
use wakala_node::store::bans::NewBan;
use wakala_system_tests::{Database, now, terminal};

use super::*;
use crate::mqtt::PASSWORD;
use crate::mqtt::presence::heard;

/// Who issues tokens: a key of Ed25519 with a name.
struct Issuer {
    kid: &'static str,
    key: KeyPair,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        Self { kid, key: KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key") }
    }

    fn jwk(&self) -> String {
        let x = BASE64.encode(self.key.public_key_raw());
        format!(r#"{{"kty":"OKP","crv":"Ed25519","use":"sig","kid":"{}","x":"{x}"}}"#, self.kid)
    }

    fn token(&self, claims: &str) -> String {
        let header = format!(r#"{{"alg":"EdDSA","typ":"JWT","kid":"{}"}}"#, self.kid);
        let signed = format!("{}.{}", BASE64.encode(header), BASE64.encode(claims));
        let signature = self.key.sign(signed.as_bytes()).expect("signed");
        format!("{signed}.{}", BASE64.encode(signature))
    }

    /// For this name and so many seconds, with these claims besides.
    fn names(&self, name: &str, seconds: i64, more: &str) -> String {
        let exp = i64::try_from(now_s()).expect("a date") + seconds;
        self.token(&format!(r#"{{"sub":"{name}","exp":{exp}{more}}}"#))
    }
}

fn write_set(file: &Path, issuers: &[&Issuer]) {
    let keys: Vec<String> = issuers.iter().map(|issuer| issuer.jwk()).collect();
    std::fs::write(file, format!(r#"{{"keys":[{}]}}"#, keys.join(","))).expect("written");
}

/// A broker that takes tokens by the keys of this file.
async fn taking(
    database: &Database,
    keys: &Path,
    change: impl FnOnce(&mut JwtOptions, &mut router::Options),
) -> Broker {
    let mut jwt = JwtOptions { keys: Some(keys.to_owned()), leeway: Duration::ZERO, ..JwtOptions::default() };
    broker(database, |options, open| {
        change(&mut jwt, open);
        options.jwt = Some(jwt);
    })
    .await
}

/// Who has proved who it is and no more sees what guests publish, and not what the broker says of itself and of them.
#[tokio::test]
async fn a_guest_to_whom_nothing_is_granted_sees_every_topic_but_the_servers() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let broker = taking(&database, file.path(), |_, _| {}).await;
    let (mut wire, code) = hello("d1", "", &issuer.names("d1", 60, "")).at(&broker).await;
    assert_eq!((code, published(&mut wire, "any/topic").await == NOT_AUTHORISED), (0, false));
    for (filter, told) in
        [("#", 1), ("$share/g/#", 1), ("$SYS/#", 0x87), ("$SYS/presence/+", 0x87), ("$share/g/$SYS/#", 0x87)]
    {
        assert_eq!(wire.subscribe(filter, 1).await, told, "{filter}");
    }
}

#[tokio::test]
async fn a_guest_is_who_its_token_names_and_may_what_it_says() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let broker = taking(&database, file.path(), |_, open| {
        open.publish = vec![wakala::session::Template::new("usual/%c").expect("a template")];
        open.closed = vec!["up/d1/closed".to_owned()];
        open.templates_max = 2;
    })
    .await;
    let topics = r#","publish":["up/%c/#"],"subscribe":"down/%u/+""#;
    let token = issuer.names("d1", 60, topics);
    // Whatever its user name is: nobody vouches for that.
    for user in ["d1", "admin", ""] {
        let (mut wire, code) = hello("d1", user, &token).at(&broker).await;
        assert_eq!(code, 0);
        for (topic, may) in [("up/d1/x", true), ("up/d2/x", false), ("usual/d1", false), ("up/d1/closed", false)] {
            assert_eq!(published(&mut wire, topic).await == NOT_AUTHORISED, !may, "{user} {topic}");
        }
        for (filter, told) in [("down/d1/+", 1), ("down/admin/+", 0x87), ("down/d1/#", 0x87), ("#", 0x87)] {
            assert_eq!(wire.subscribe(filter, 1).await, told, "{user} {filter}");
        }
    }
    let (mut wire, code) = hello("d2", "d2", &issuer.names("d2", 60, "")).at(&broker).await;
    assert_eq!((code, published(&mut wire, "usual/d2").await == NOT_AUTHORISED), (0, false));
    assert_eq!((published(&mut wire, "usual/d1").await, wire.subscribe("#", 1).await), (NOT_AUTHORISED, 1));
    // A client without a name is given the token's.
    let mut wire = Wire::open(broker.plain(), true).await;
    wire.send(&hello("", "", &issuer.names("d3", 60, "")).packet()).await;
    let (_, body) = wire.receive().await.expect("a CONNACK");
    assert!(body[1] == 0 && body.windows(5).any(|window| window == [0x12, 0, 2, b'd', b'3']), "{body:?}");

    let other = Issuer::new("k1");
    let unsigned = format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), BASE64.encode(r#"{"sub":"d1","exp":9e9}"#));
    for (what, client, password, told) in [
        ("another's name", "d2", token.clone(), WRONG_NAME),
        ("expired", "d1", issuer.names("d1", -1, ""), DENIED),
        ("for ever", "d1", issuer.token(r#"{"sub":"d1"}"#), DENIED),
        ("forged", "d1", other.names("d1", 60, ""), DENIED),
        ("unsigned", "d1", unsigned, DENIED),
        ("no template", "d1", issuer.names("d1", 60, r##","publish":["a#"]"##), NOT_AUTHORISED),
        ("too many templates", "d1", issuer.names("d1", 60, r#","publish":["a","b","c"]"#), NOT_AUTHORISED),
        ("a name with U+0000", "", issuer.names("d\\u0000", 60, ""), DENIED),
        ("no token", "d1", "kanga".to_owned(), DENIED),
    ] {
        assert_eq!(hello(client, "d1", &password).code(&broker).await, told, "{what}");
        let three = if told == WRONG_NAME {
            2
        } else if told == DENIED {
            4
        } else {
            5
        };
        assert_eq!(Hello { v5: false, ..hello(client, "d1", &password) }.code(&broker).await, three, "{what}");
    }
}

#[tokio::test]
async fn a_guest_that_is_banned_does_not_get_in_by_leaving_its_name_to_its_token() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let broker = taking(&database, file.path(), |jwt, _| jwt.terminals = true).await;
    broker.enrol("T1").await;
    for name in ["d1", "T1"] {
        let subject = wakala::ban::Subject::new("client", name).expect("a subject");
        let ban = NewBan { subject, why: "test".into(), by: "tester".into(), since: now(), until: None };
        broker.store.ban(ban, 10).await.expect("banned");
    }
    broker.sessions.look_for_bans().await.expect("looked");
    for (name, told) in [("d1", 0x8A), ("T1", 0x8A), ("d2", 0)] {
        let token = issuer.names(name, 60, "");
        assert_eq!(hello("", "", &token).code(&broker).await, told, "{name}");
        assert_eq!(hello("", "anybody", &token).code(&broker).await, told, "{name}");
    }
    assert_eq!(database.rows("select count(*) from wakala.presence"), "0", "no session was opened that is stored");
    assert_eq!(broker.sessions.bounds_report().banned, 2, "the terminal is known by its row");
}

#[tokio::test]
async fn a_terminal_inherits_nothing_of_a_guest_that_had_its_name() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let broker = taking(&database, file.path(), |_, _| ()).await;
    let tokens = ["T1", "T2", "d1"].map(|name| issuer.names(name, 60, ""));
    let (mut other, _) = hello("d1", "", &tokens[2]).at(&broker).await;
    let (mut away, _) = Hello { kept: true, ..hello("T1", "", &tokens[0]) }.at(&broker).await;
    let (mut live, _) = Hello { kept: true, will: Some("wills"), ..hello("T2", "", &tokens[1]) }.at(&broker).await;
    assert_eq!((away.subscribe("news/#", 1).await, live.subscribe("news/#", 1).await), (1, 1));
    assert_eq!(other.subscribe("wills", 0).await, 0);
    away.leave().await;
    broker.connected(2).await;
    assert_eq!(published(&mut other, "news/1").await, 0);
    let left = "select (select count(*) from wakala.subscription), (select count(*) from wakala.message where client_id = 'T1'), \
                (select count(*) from wakala.will where due_at is null)";
    assert_eq!(database.rows(left), "2|1|1");
    for name in ["T1", "T2"] {
        broker.enrol(name).await;
    }
    assert_eq!(database.rows(left), "0|0|0");
    let told = "select why from wakala.presence where client_id = 'T2' and not online";
    assert_eq!(database.rows(told), "enrolled as a terminal");
    // The guest that is connected goes.
    assert_eq!(live.receive().await.map(|(first, _)| first), Some(0x32), "what was sent to it before");
    assert_eq!(sent_away(&mut live).await, 0x8E);
    let (first, body) = other.receive().await.expect("its will");
    assert!(first == 0x30 && body.ends_with(b"gone"), "{body:?}");
    broker.connected(1).await;
    for name in ["T1", "T2"] {
        let (mut wire, connack) = Wire::connect(broker.plain(), true, name, false).await;
        assert_eq!(connack, [0, 0], "{name}: no session is present");
        let before = broker.store.tally().await.expect("the database is there");
        published(&mut other, "news/2").await;
        wire.silence().await;
        if name == "T2" {
            let after = broker.store.tally().await.expect("the database is there");
            assert_eq!(format!("{before:?}"), format!("{after:?}"), "nobody subscribes");
        }
    }
}

#[tokio::test]
async fn a_session_ends_with_its_token() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let broker = taking(&database, file.path(), |_, _| ()).await;
    let (short, long) = (issuer.names("d1", 3, ""), issuer.names("d2", 60, ""));
    let (mut stays, _) = hello("d2", "", &long).at(&broker).await;
    let (mut wire, code) = hello("d1", "", &short).at(&broker).await;
    let (mut three, code_3) = Hello { v5: false, ..hello("d3", "", &issuer.names("d3", 3, "")) }.at(&broker).await;
    assert_eq!((code, code_3), (0, 0));
    let began = Instant::now();
    assert_eq!(sent_away(&mut wire).await, 0xA0, "maximum connect time");
    assert_eq!((wire.receive().await, three.receive().await), (None, None));
    assert!((1_500..6_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(hello("d1", "", &short).code(&broker).await, DENIED);
    stays.ping().await;
}

#[tokio::test]
async fn an_enrolled_terminal_may_come_with_a_token_where_that_is_configured() {
    let database = Database::new();
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let token = issuer.names("T1", 60, r##","publish":["#"],"subscribe":["#"]"##);
    let broker = taking(&database, file.path(), |_, _| ()).await;
    broker.enrol("T1").await;
    assert_eq!(hello("T1", "T1", &token).code(&broker).await, NOT_AUTHORISED, "a guest has no terminal's name");
    assert_eq!(hello("T1", "T1", PASSWORD).code(&broker).await, 0);

    let broker = taking(&database, file.path(), |jwt, open| {
        jwt.terminals = true;
        open.guests = false;
    })
    .await;
    let (mut wire, code) = hello("T1", "T1", &token).at(&broker).await;
    assert_eq!((code, published(&mut wire, "q/T1").await, broker.taken.texts().len()), (0, 0, 1));
    assert_eq!(
        (published(&mut wire, "q/T2").await, wire.subscribe("r/T2", 1).await),
        (0x87, 0x87),
        "its own topics only"
    );
    assert_eq!(hello("d1", "", &issuer.names("d1", 60, "")).code(&broker).await, NOT_AUTHORISED, "no guests here");
    assert_eq!(hello("T1", "T1", PASSWORD).code(&broker).await, 0);
    assert_eq!(
        broker.store.block_terminal(&terminal("T1"), "stolen", "test", wakala_system_tests::now()).await,
        Ok(true)
    );
    assert_eq!(hello("T1", "T1", &token).code(&broker).await, 0x8A);
}

/// Where the operator has it told; else they are no guest's business.
#[tokio::test]
async fn a_guest_may_hear_which_terminals_are_there() {
    let (issuer, file) = (Issuer::new("k1"), tempfile::NamedTempFile::new().expect("a file"));
    write_set(file.path(), &[&issuer]);
    let token = issuer.names("portal", 60, r##","subscribe":["$SYS/presence/#"]"##);
    for tell_terminals in [true, false] {
        let database = Database::new();
        let jwt = JwtOptions { keys: Some(file.path().to_owned()), leeway: Duration::ZERO, ..JwtOptions::default() };
        let options = listener::Options { jwt: Some(jwt), ..crate::mqtt::anywhere() };
        let broker = Broker::made(database.store().await, options, |deps| {
            (deps.open.guests, deps.presence.tell_terminals) = (true, tell_terminals);
        })
        .await;
        broker.enrol("T1").await;
        let (before, code) = hello("T1", "T1", PASSWORD).at(&broker).await;
        let (mut portal, of_portal) = Hello { v5: false, ..hello("portal", "", &token) }.at(&broker).await;
        assert_eq!((code, of_portal, portal.subscribe("$SYS/presence/#", 1).await), (0, 0, 1));
        let mut told = async || {
            let mut said = Vec::new();
            while let Ok(heard) = tokio::time::timeout(Duration::from_millis(500), heard(&mut portal)).await {
                said.push(heard);
            }
            said.retain(|(_, client, _)| client == "T1");
            said.iter().map(|(retained, _, said)| (*retained, said["online"] == true)).collect::<Vec<_>>()
        };
        drop(before);
        let went = told().await;
        let (mut after, _) = hello("T1", "T1", PASSWORD).at(&broker).await;
        after.ping().await;
        let wanted = [vec![(true, true), (false, false)], vec![(false, true)]];
        assert_eq!([went, told().await], if tell_terminals { wanted } else { [vec![], vec![]] });
    }
}

#[tokio::test]
async fn keys_change_while_clients_are_connected() {
    let database = Database::new();
    let (old, new) = (Issuer::new("old"), Issuer::new("new"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    write_set(file.path(), &[&old]);
    let broker = taking(&database, file.path(), |_, _| ()).await;
    let (of_old, of_new) = (old.names("d1", 600, ""), new.names("d2", 600, ""));
    let codes =
        || async { (hello("d1", "", &of_old).code(&broker).await, hello("d2", "", &of_new).code(&broker).await) };
    let until = async |wanted| {
        let began = Instant::now();
        while codes().await != wanted {
            assert!(began.elapsed() < Duration::from_secs(10), "not {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert_eq!(codes().await, (0, DENIED));
    let report = || broker.listening.identity()().and_then(|report| report.jwt).expect("tokens are taken");
    write_set(file.path(), &[&old, &new]);
    until((0, 0)).await;
    assert_eq!((report().keys, report().files.reloads), (2, 1));
    // What is wrong changes nothing; being told reads at once.
    std::fs::write(file.path(), r#"{"keys":[]}"#).expect("written");
    broker.listening.reload().await;
    assert_eq!((codes().await, report().files.failures > 0), ((0, 0), true));
    write_set(file.path(), &[&new]);
    broker.listening.reload().await;
    assert_eq!((codes().await, report().keys), ((DENIED, 0), 1));
}

fn openssl(arguments: &[&str]) {
    let run = Command::new("openssl").args(arguments).output().expect("openssl");
    assert!(run.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
}

/// r and s of a signature in DER, 32 bytes each (RFC 7518 §3.4).
fn r_and_s(der: &[u8]) -> Vec<u8> {
    let (mut at, mut both) = (2, Vec::new());
    for _ in 0..2 {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let number: Vec<u8> = number.iter().copied().skip_while(|&byte| byte == 0).collect();
        both.extend(vec![0; 32 - number.len()]);
        both.extend(number);
        at += 2 + length;
    }
    both
}

#[tokio::test]
async fn what_openssl_signs_is_taken_by_its_public_key_in_pem() {
    let database = Database::new();
    let folder = tempfile::tempdir().expect("a directory");
    let path = |file: &str| folder.path().join(file).to_string_lossy().into_owned();
    let (key, public, text, signature) = (path("key.pem"), path("public.pem"), path("text"), path("signature"));
    let ways: [(&str, Algorithm, &[&str], &[&str]); 3] = [
        (
            "RS256",
            Algorithm::RS256,
            &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            &["dgst", "-sha256", "-sign"],
        ),
        (
            "ES256",
            Algorithm::ES256,
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            &["dgst", "-sha256", "-sign"],
        ),
        ("EdDSA", Algorithm::EdDsa, &["-algorithm", "ED25519"], &["pkeyutl", "-sign", "-rawin", "-inkey"]),
    ];
    for (alg, algorithm, kind, sign) in ways {
        openssl(&[&["genpkey", "-out", &key][..], kind].concat());
        openssl(&["pkey", "-in", &key, "-pubout", "-out", &public]);
        let claims = format!(r#"{{"sub":"d1","exp":{}}}"#, now_s() + 60);
        let signed = format!("{}.{}", BASE64.encode(format!(r#"{{"alg":"{alg}"}}"#)), BASE64.encode(claims));
        std::fs::write(&text, &signed).expect("written");
        let input: &[&str] = if alg == "EdDSA" { &["-in", &text] } else { &[&text] };
        openssl(&[sign, &[&key, "-out", &signature], input].concat());
        let bytes = std::fs::read(&signature).expect("signed");
        let bytes = if alg == "ES256" { r_and_s(&bytes) } else { bytes };
        let token = format!("{signed}.{}", BASE64.encode(bytes));
        let broker = taking(&database, Path::new(&public), |jwt, _| jwt.algorithms = vec![algorithm]).await;
        assert_eq!(hello("d1", "", &token).code(&broker).await, 0, "{alg}");
        let spoilt = token.replacen('.', "A.", 1);
        assert_eq!(hello("d1", "", &spoilt).code(&broker).await, DENIED, "{alg}");
    }
}

/// Both ways together: what is meant to be a token is not the hook's to judge.
#[tokio::test]
async fn a_token_that_is_not_taken_is_not_sent_to_the_hook() {
    use super::server::{Does, Server};
    let database = Database::new();
    let (issuer, other) = (Issuer::new("k1"), Issuer::new("k1"));
    let file = tempfile::NamedTempFile::new().expect("a file");
    write_set(file.path(), &[&issuer]);
    let server = Server::start(Does::Answers(r#"{"result":"allow"}"#.to_owned())).await;
    let broker = broker(&database, |options, _| {
        options.jwt = Some(JwtOptions { keys: Some(file.path().to_owned()), ..JwtOptions::default() });
        options.hook = Some(wakala_node::listener::identity::HookOptions { url: server.url(), ..Default::default() });
    })
    .await;
    assert_eq!(hello("d1", "", &other.names("d1", 60, "")).code(&broker).await, DENIED);
    assert_eq!((hello("d1", "", &issuer.names("d1", 60, "")).code(&broker).await, server.asked()), (0, 0));
    assert_eq!((hello("d1", "u", "kanga").code(&broker).await, server.asked()), (0, 1));
}
