//! The file that shows every key is true, and a wrong key is answered with what would be right.

use std::io::Write as _;

use super::*;

mod identity;

fn shown() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests")).join("../config/wakala.toml")
}

/// What is wrong with a file of this text, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(text.as_bytes()).expect("written");
    let name = file.path().display().to_string();
    let Err(Error(faults)) = Config::load(Some(file.path()), &[]) else { panic!("it is right: {text}") };
    faults.into_iter().map(|fault| fault.replace(&name, "FILE")).collect()
}

#[test]
fn the_shown_configuration_is_the_default() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let shown: toml::Table = text.parse().expect("TOML");
    let mut default = toml::Table::try_from(Config::default()).expect("defaults are TOML");
    // One core is shown, for there is no default one.
    let core = toml::Value::try_from(banks::Options::default()).expect("defaults are TOML");
    default["cores"] = toml::Value::Table([("sandbox".to_owned(), core)].into_iter().collect());
    assert_eq!(shown, default);
}

/// What is shown in comments from this line on.
fn commented(text: &str, from: &str) -> toml::Table {
    let lines = text.lines().skip_while(|line| !line.contains(from));
    let lines = lines.take_while(|line| line.starts_with("#   ")).map(|line| line.trim_start_matches('#').trim());
    lines.collect::<Vec<_>>().join("\n").parse().expect("TOML")
}

/// There is no TLS by default, for there are no files. What is shown of it in comments is true all the same.
#[test]
fn the_shown_tls_is_the_default() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let shown = commented(&text, "[listener.tls]");
    let shown: listener::Tls = shown["listener"]["tls"].clone().try_into().expect("a TLS listener");
    let default = listener::Tls::new("0.0.0.0:8883".parse().expect("an address"), shown.files.clone());
    assert_eq!(shown, default);
    assert!(shown.files.client_authorities.is_some() && shown.files.revoked.is_some());
}

/// No network counts as one by default. What is shown of it in a comment is true all the same.
#[test]
fn the_shown_range_is_right_and_shows_every_key() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let shown = text.lines().find_map(|line| line.strip_prefix("#   ranges = ")).expect("an example");
    let file = format!("[listener.bounds]\nranges = {shown}");
    let of = |file: &str| -> listener::Options {
        let table: toml::Table = file.parse().expect("TOML");
        table["listener"].clone().try_into().expect("a listener")
    };
    let ranges = of(&file).bounds.ranges;
    assert_eq!(toml::Value::try_from(&ranges).expect("TOML").to_string(), toml_of(shown), "every key");
    let short = file.replace(", known_every = \"30s\"", "");
    assert!(short.len() < file.len() && of(&short).bounds.ranges == ranges, "with its default");
}

fn toml_of(value: &str) -> String {
    let table: toml::Table = format!("value = {value}").parse().expect("TOML");
    table["value"].to_string()
}

#[test]
fn what_is_wrong_with_a_range_is_said() {
    let range = |text: &str| format!("{{ network = \"10.20.0.0/16\", connects_burst = 9, {text} }}");
    let said = |ranges: &[String]| faults(&format!("[listener.bounds]\nranges = [{}]", ranges.join(", "))).remove(0);
    let right = range("connects_every = \"50ms\"");
    let twice = said(&[right.clone(), right.clone()]);
    assert_eq!(twice, "FILE: listener.bounds.ranges: 10.20.0.0/16 is there twice");
    let none = said(&[range("connects_every = \"0s\"")]);
    assert!(none.ends_with("10.20.0.0/16: connects_every must be longer than no time"), "{none}");
    let short = said(&[range("connects_every = \"1s\", known_every = \"1ms\"")]);
    assert!(short.ends_with("10.20.0.0/16: known_every must be at least 1s"), "{short}");
    let many: Vec<String> = (0..65).map(|n| right.replace("10.20", &format!("10.{n}"))).collect();
    assert!(said(&many).ends_with("listener.bounds.ranges: 65 networks; there may be 64"));
    let bits = said(&[right.replace("10.20.0.0", "10.20.1.0")]);
    assert!(
        bits.contains("listener.bounds.ranges.0.network: ") && bits.contains("right would be 10.20.0.0/16"),
        "{bits}"
    );
    let fewer = said(&[range("known_every = \"30s\"")]);
    assert!(fewer.contains("listener.bounds.ranges.0") && fewer.contains("connects_every"), "{fewer}");
    let other = right.replace("connects_burst", "connects");
    assert_eq!(
        faults(&format!("[listener.bounds]\nranges = [{other}]\n[node]\nnaem = 1")).len(),
        2,
        "nothing is hidden"
    );
}

#[test]
fn the_shown_websocket_is_the_default() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let lines = text.lines().skip_while(|line| !line.contains("[listener.websocket]"));
    let lines = lines.take_while(|line| line.starts_with("#   ")).map(|line| line.trim_start_matches('#').trim());
    let mut shown: toml::Table = lines.collect::<Vec<_>>().join("\n").parse().expect("TOML");
    let shown = shown["listener"].as_table_mut().and_then(|listener| listener.remove("websocket"));
    let shown = shown.expect("a listener").as_table().cloned().expect("a table");
    let both: listener::WebSocket = shown.clone().try_into().expect("a listener for WebSocket");
    let default = listener::WebSocket { plain: both.plain, tls: both.tls, ..listener::WebSocket::default() };
    assert_eq!(toml::Table::try_from(default).expect("TOML"), shown, "every key, with its default");
}

#[test]
fn the_shown_door_for_programs_is_the_default() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let shown = commented(&text, "[telling.http]")["telling"]["http"].clone();
    let http: telling::http::Http = shown.clone().try_into().expect("a door");
    let default =
        telling::http::Http { plain: http.plain, tls: http.tls, ..telling::http::Http::new(http.tokens.clone()) };
    assert_eq!(toml::Value::try_from(default).expect("TOML"), shown, "every key, with its default");
}

#[test]
fn what_is_wrong_with_the_door_for_programs_is_said() {
    let said = |text: &str| faults(&format!("[telling.http]\ntokens = \"t\"\n{text}\n"));
    assert!(said("").remove(0).ends_with("telling.http.plain: neither `plain` nor `tls` has an address"));
    let of_plain = "telling.http.plain: 10.0.0.1:1 is not loopback, and tokens could be read on the way; use `tls`";
    assert!(said("plain = \"10.0.0.1:1\"").remove(0).ends_with(of_plain));
    let of_tls = "telling.http.tls: needs listener.tls, whose certificate it shows";
    assert!(said("tls = \"127.0.0.1:0\"").remove(0).ends_with(of_tls));
    let text = said("plain = \"127.0.0.1:0\"\nconnections_max = 0").remove(0);
    assert!(text.ends_with("telling.http.connections_max: must be at least 1"), "{text}");
}

#[test]
fn what_is_wrong_with_a_websocket_is_said() {
    let said = |text: &str| faults(&format!("[listener.websocket]\n{text}\n"));
    let at = "plain = \"127.0.0.1:0\"\n";
    assert_eq!(said(""), ["listener.websocket.plain: neither `plain` nor `tls` has an address"]);
    let of_tls = "listener.websocket.tls: needs listener.tls, whose files it uses";
    assert!(said("tls = \"127.0.0.1:0\"").remove(0).ends_with(of_tls));
    for path in ["mqtt", "", "/a?b", "/a b"] {
        let text = said(&format!("{at}path = {path:?}")).remove(0);
        assert!(
            text.ends_with(&format!("listener.websocket.path: {path:?} is not a path; right would be \"/mqtt\"")),
            "{text}"
        );
    }
    for origin in ["portal.bank.example", "https://", "https://portal.bank.example/", "*"] {
        let text = said(&format!("{at}origins = [{origin:?}]")).remove(0);
        assert!(text.contains(&format!("listener.websocket.origins: {origin:?} is not an origin")), "{text}");
    }
    let text = said(&format!("{at}head_bytes_max = 0")).remove(0);
    assert!(text.ends_with("listener.websocket.head_bytes_max: must be at least 1"), "{text}");
}

#[test]
fn the_files_of_tls_are_found_beside_the_configuration_and_read_when_asked() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("wakala.toml");
    let text =
        "[listener.tls]\naddress = \"127.0.0.1:0\"\n[listener.tls.files]\ncertificate = \"server.pem\"\nkey = \"/k\"\n";
    std::fs::write(&file, text).expect("written");
    let config = Config::load(Some(&file), &[]).expect("it is right but for the files").resolved(Some(&file));
    let tls = config.listener.tls.as_ref().expect("TLS");
    assert_eq!(tls.files.certificate, folder.path().join("server.pem"));
    assert_eq!(tls.files.key, Path::new("/k"));
    let Err(Error(faults)) = config.check_secret_files() else { panic!("there are no such files") };
    assert!(
        faults[0].starts_with("listener.tls.files: ") && faults[0].contains("server.pem: No such file"),
        "{faults:?}"
    );
    std::fs::write(&file, format!("{text}revoked = \"r\"\n")).expect("written");
    let Err(Error(faults)) = Config::load(Some(&file), &[]) else { panic!("nobody could have signed it") };
    assert!(faults[0].ends_with("listener.tls.files.revoked: needs client_authorities, which must have signed it"));
}

#[test]
fn every_key_is_explained() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let lines: Vec<&str> = text.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let is_key = !line.starts_with('#') && !line.starts_with('[') && !line.trim().is_empty();
        if is_key {
            let before = at.checked_sub(1).map_or("", |before| lines[before]);
            assert!(before.starts_with('#'), "config/wakala.toml:{}: no word about {line}", at + 1);
        }
    }
}

#[test]
fn a_wrong_key_is_named_with_what_may_have_been_meant() {
    assert_eq!(faults("[node]\nnaem = \"x\""), ["FILE: node: unknown key naem; did you mean name?"]);
    assert_eq!(faults("[nodes]\nname = \"x\""), ["FILE: unknown key nodes; did you mean node?"]);
    let far = faults("[node]\nzzzzzz = 1").remove(0);
    assert_eq!(far, "FILE: node: unknown key zzzzzz; known here: name, sandbox, drain");
}

#[test]
fn a_wrong_value_is_named_with_its_key() {
    let fault = faults("[partitions]\nlease = \"ten\"").remove(0);
    assert!(fault.starts_with("FILE: partitions.lease: "), "{fault}");
    let fault = faults("[partitions]\nbatch_max = \"many\"").remove(0);
    assert!(
        fault.starts_with("FILE: partitions.batch_max: ")
            && fault.ends_with("found string \"many\"; right would be a whole number"),
        "{fault}"
    );
    let fault = faults("[log]\nkind = \"nats\"").remove(0);
    assert!(fault.starts_with("FILE: log.kind: ") && fault.contains("postgres"), "{fault}");
    let fault = faults("[admin]\naddress = \"0.0.0.0:8830\"").remove(0);
    let said = "is not loopback; use 127.0.0.1, or say admin.beyond_loopback = true as well";
    assert_eq!(*fault, format!("FILE: admin.address: 0.0.0.0:8830 {said}"));
    assert!(
        Config::load(None, &["admin.address=0.0.0.0:1".to_owned(), "admin.beyond_loopback=true".to_owned()]).is_ok()
    );
    let fault = faults("[partitions]\nlease = \"1s\"\nrenew = \"3s\"").remove(0);
    assert!(fault.starts_with("FILE: partitions.renew: must be at most half"), "{fault}");
    let log = |copies, min| {
        format!("[log]\nkind = \"kafka\"\n[log.kafka]\nreplication_factor = {copies}\nmin_insync_replicas = {min}")
    };
    let fault = faults(&log(2, 1)).remove(0);
    assert!(fault.starts_with("FILE: log.kafka.min_insync_replicas: must be at least 2 where there are"), "{fault}");
    let fault = faults(&format!("{}\n[receipts]\nsweep = \"0s\"", log(1, 1))).remove(0);
    assert!(fault.starts_with("FILE: receipts.sweep"), "of one copy one is enough: {fault}");
    let fault = faults("[partitions]\nreversal_first = \"0s\"").remove(0);
    assert_eq!(fault, "FILE: partitions.reversal_first: must be at least 1ms");
    let fault = faults("[receipts]\nsweep = \"0s\"").remove(0);
    assert_eq!(fault, "FILE: receipts.sweep: must be at least 1ms");
    assert_eq!(faults("[node]\ndrain = \"0s\"\n[receipts]\nsweep = \"0s\"").len(), 1, "a drain may be none");
    for elsewhere in ["[\"\"]".to_owned(), "[\"a b\"]".to_owned(), format!("[\"{}\"]", "a".repeat(1025))] {
        let fault = faults(&format!("[listener]\nelsewhere = {elsewhere}")).remove(0);
        assert!(fault.starts_with("FILE: listener.elsewhere: right would be"), "{fault}");
    }
    let fault = faults("[cores.mwanga]\ndialect = \"nowhere.toml\"").remove(0);
    assert!(fault.starts_with("FILE: cores.mwanga.dialect: ") && fault.contains("nowhere.toml"), "{fault}");
}

#[test]
fn a_broker_for_anybody_has_no_bank() {
    let bank = ["cores.b.dialect=x", "cores.b.address=127.0.0.1:1", "open.anonymous=true"].map(str::to_owned);
    let said = Config::load(None, &bank).map(|_| ()).map_err(|Error(faults)| faults.concat());
    assert!(said.as_ref().is_err_and(|said| said.contains("--set: open.anonymous: ")), "{said:?}");
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/open.toml");
    let open = Config::load(Some(&profile), &[]).expect("the profile is right");
    assert!(open.open.anonymous && open.listener.plain.is_some_and(|address| address.ip().is_loopback()));
}

#[test]
fn no_count_may_be_zero_but_those_that_mean_it() {
    let whole = serde_json::to_value(Config::default()).expect("JSON");
    let mut counts = Vec::new();
    named(&whole, "", &mut counts);
    assert!(counts.len() > 30, "{counts:?}");
    for key in counts {
        let zero = Config::load(None, &[format!("{key}=0")]).map(|_| ()).map_err(|Error(faults)| faults.concat());
        match MAY_BE_ZERO.iter().any(|may| key.ends_with(may)) {
            true => assert!(zero.is_ok(), "{key}: {zero:?}"),
            false => assert!(zero.as_ref().is_err_and(|said| said.contains(&key)), "{key}: {zero:?}"),
        }
    }
    assert_eq!(faults("[listener]\nbacklog = -1"), ["FILE: listener.backlog: must be at least 1"]);
    assert_eq!(faults("[cores.a]\nin_flight = 0\ndialect = \"/\"").len(), 2);
}

fn named(value: &serde_json::Value, key: &str, counts: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            fields.iter().for_each(|(name, value)| named(value, &format!("{key}.{name}"), counts));
        }
        serde_json::Value::Number(_) => counts.push(key.trim_start_matches('.').to_owned()),
        _ => {}
    }
}

#[test]
fn an_address_that_is_none_is_said_without_its_password() {
    let said = faults("[database]\nurl = \"postgres://w:hunter2@db:port/x\"\nowner_url = \"hunter2\"");
    assert_eq!(said.len(), 2);
    assert!(
        said[0].starts_with("FILE: database.url: not the address") && !said.concat().contains("hunter2"),
        "{said:?}"
    );
    let said = faults("[database]\nurl = \"postgres://w:hunter2@db/x\n");
    assert!(said[0].starts_with("FILE: TOML parse error at line 2") && !said.concat().contains("hunter2"), "{said:?}");
    let said = faults("database = \"postgres://w:hunter2@db/x\"\nkeys.master = \"hunter2\"");
    assert!(said.len() == 2 && !said.concat().contains("hunter2"), "{said:?}");
    let config = Config::load(None, &["database.url=postgres://w:hunter2@db/x".to_owned()]).expect("right");
    let shown = serde_json::to_string(&config.shown()).expect("JSON");
    assert!(!shown.contains("hunter2") && shown.contains("postgres://w:***@db/x"), "{shown}");
}

#[test]
fn several_faults_are_said_at_once() {
    assert_eq!(faults("[admin]\naddress = \"0.0.0.0:1\"\n[partitions]\nbatch_max = 0\nopen_max = 0").len(), 3);
}

#[test]
fn a_keep_alive_is_told_in_whole_seconds() {
    assert_eq!(faults("[sessions]\nkeep_alive_max = \"999ms\"").len(), 1);
    Config::load(None, &["sessions.keep_alive_max=\"1s\"".to_owned()]).expect("right");
}

#[test]
fn what_cannot_be_read_hides_nothing_else() {
    let said = faults(
        "[nodes]\nname = \"a\"\n[database]\nurll = \"x\"\npool_size = \"many\"\n[partitions]\nlease = \"5 bananas\"\n\
         [log]\nkind = \"nats\"\n[keys]\nmaster = \"x\"\n[listener]\nplain = \"here\"\n[cores]\na = 1",
    );
    for (at, right) in [
        ("FILE: unknown key nodes; ", "did you mean node?"),
        ("FILE: database: unknown key urll; ", "did you mean url?"),
        ("FILE: database.pool_size: found string \"many\"; ", "right would be a whole number"),
        ("FILE: partitions.lease: ", "bananas"),
        ("FILE: log.kind: \"nats\" is none of: ", "postgres, kafka"),
        ("FILE: keys.master: right would be one way: ", "environment"),
        ("FILE: listener.plain: ", "127.0.0.1:1883"),
        ("FILE: cores.a: right would be ", "a section with keys of its own"),
    ] {
        assert!(said.iter().any(|line| line.starts_with(at) && line.contains(right)), "{at}: {said:#?}");
    }
    assert_eq!(said.len(), 8, "{said:#?}");
}

#[test]
fn a_core_without_a_port_is_found() {
    for address in ["", "nope", "nope:", ":8583", "nope:0", "nope:65536"] {
        let said = faults(&format!("[cores.a]\naddress = {address:?}\ndialect = \"/\"")).remove(0);
        assert!(said.starts_with("FILE: cores.a.address: ") && said.contains("right would be"), "{said}");
    }
    assert!(is_host_and_port("[::1]:8583") && is_host_and_port("core.bank.example:1"));
}

#[test]
fn a_file_that_is_not_there_says_so() {
    let Err(Error(faults)) = Config::load(Some(Path::new("/nowhere/wakala.toml")), &[]) else { panic!("loaded") };
    assert_eq!(faults, ["/nowhere/wakala.toml: there is no such file"]);
    let Err(Error(faults)) = Config::load(Some(Path::new("/")), &[]) else { panic!("loaded") };
    assert_eq!(faults, ["/: it is not a file"]);
}

#[test]
fn a_variable_replaces_the_files_way_to_the_master_key() {
    let variables = Figment::from(("keys.master.file", "/run/master.key"));
    let config: Config = over(Some(&shown()), variables).extract().expect("one way");
    assert_eq!(config.keys.master, soft_hsm::Source::File("/run/master.key".into()));
    let config: Config = over(Some(&shown()), Figment::new()).extract().expect("one way");
    assert_eq!(config.keys.master, soft_hsm::Source::default());
}

#[test]
fn a_flag_replaces_the_variables_way_to_the_master_key() {
    let variables = || Figment::from(("keys.master.file", "/run/master.key"));
    for flag in ["keys.master={environment=\"M\"}", "keys.master.environment=M"] {
        let above = flags_over(variables(), &[flag.to_owned()]).expect("right");
        let config: Config = over(Some(&shown()), above).extract().expect("one way");
        assert_eq!(config.keys.master, soft_hsm::Source::Environment("M".into()));
    }
    let above = flags_over(variables(), &["keys.masters=x".to_owned()]).expect("right");
    assert!(above.find_value("keys.master.file").is_ok());
}

#[test]
fn two_ways_to_the_master_key_are_one_too_many() {
    for text in ["{ credential = 'a', file = '/b' }", "{}", "{ fil = '/b' }"] {
        let found = faults(&format!("[keys]\nmaster = {text}\n"));
        assert!(found.len() == 1 && found[0].contains("keys.master"), "{found:?}");
    }
}

#[test]
fn a_flag_goes_over_the_file_and_is_named_when_it_is_wrong() {
    let load = |flag: &str| Config::load(Some(&shown()), &[flag.to_owned()]);
    let config = load("partitions.batch_max=7").expect("right");
    assert_eq!((config.partitions.batch_max, config.partitions.open_max), (7, 4096));
    let wrong = |flag| load(flag).map(|_| ()).expect_err("wrong").0.remove(0);
    let said = "is not loopback; use 127.0.0.1, or say admin.beyond_loopback = true as well";
    assert_eq!(wrong("admin.address=0.0.0.0:1"), format!("--set: admin.address: 0.0.0.0:1 {said}"));
    assert!(
        wrong("partitions.lease=ten").starts_with("--set: partitions.lease: "),
        "{}",
        wrong("partitions.lease=ten")
    );
    assert!(wrong("node.naem=x").ends_with("unknown key naem; did you mean name?"));
    assert!(wrong("node.name").contains("right would be"));
    assert_eq!(wrong("node=x"), "--set: node: right would be a section with keys of its own");
}
