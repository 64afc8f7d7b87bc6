//! Tokens, the hook and guests, as the configuration has them.

use super::*;
use crate::listener::identity::{HookOptions, JwtOptions};

/// Neither is there by default. What is shown of them in comments is true all the same, but for the files.
#[test]
fn the_shown_ways_are_the_defaults() {
    let text = std::fs::read_to_string(shown()).expect("config/wakala.toml");
    let shown = commented(&text, "[listener.jwt]");
    let jwt: JwtOptions = shown["listener"]["jwt"].clone().try_into().expect("tokens");
    assert!(jwt.keys.is_some() && jwt.secret.is_some() && jwt.issuer.is_some());
    assert_eq!(JwtOptions { keys: None, secret: None, issuer: None, ..jwt }, JwtOptions::default());
    let hook: HookOptions = shown["listener"]["hook"].clone().try_into().expect("a hook");
    assert!(hook.authorities.is_some() && hook.authorization.is_some() && hook.stale_for.is_some());
    let bare = HookOptions { authorities: None, authorization: None, stale_for: None, ..hook };
    assert_eq!(bare, HookOptions::default());
    let keys = |options: &toml::Value| options.as_table().map_or(0, toml::Table::len);
    let default = |options: Result<toml::Value, _>| options.map_or(0, |options: toml::Value| keys(&options));
    let (jwt, hook) = (toml::Value::try_from(JwtOptions::default()), toml::Value::try_from(HookOptions::default()));
    assert_eq!(keys(&shown["listener"]["jwt"]), default(jwt) + 3, "all of them are shown");
    assert_eq!(keys(&shown["listener"]["hook"]), default(hook) + 3, "all of them are shown");
}

#[test]
fn every_way_is_for_somebody_and_nobody_is_asked_in_vain() {
    let hook = "listener.hook.url=http://127.0.0.1:1/";
    let keys = "listener.jwt.keys=k.jwks";
    for (flags, key, said) in [
        (&["open.guests=true"][..], "open.guests", "who else"),
        (&[hook], "listener.hook", "for nobody"),
        (&[keys], "listener.jwt", "for nobody"),
        (&[hook, "open.anonymous=true"], "open.anonymous", "nobody is asked"),
        (&["open.guests=true", "listener.jwt.leeway=1s"], "listener.jwt", "needs `keys`"),
        (&[keys, "open.guests=true", "listener.jwt.algorithms=[]"], "listener.jwt.algorithms", "must have one"),
        (&["listener.jwt.secret=s", "open.guests=true"], "listener.jwt.algorithms", "must have \"HS256\""),
        (&[hook, "open.guests=true", "listener.hook.waiting_max=4096"], "listener.hook.waiting_max", "keep others out"),
        (&[hook, "open.guests=true", "listener.hook.known_max=0"], "listener.hook.known_max", "at least 1"),
        (&["open.templates_max=1", "open.publish=[\"a\", \"b\"]"], "open.templates_max", "less than"),
    ] {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let Err(Error(faults)) = Config::load(None, &flags) else { panic!("{flags:?} is right") };
        let found = faults.iter().any(|fault| fault.contains(&format!("{key}: ")) && fault.contains(said));
        assert!(found, "{flags:?}: {faults:?}");
    }
    for right in [
        &[hook, "open.guests=true"][..],
        &[hook, "listener.hook.terminals=true"],
        &[keys, "open.guests=true", hook, "listener.jwt.leeway=0s"],
        &[keys, "listener.jwt.terminals=true"],
        &["listener.jwt.secret=s", "listener.jwt.algorithms=[\"HS256\"]", "open.guests=true"],
    ] {
        let flags: Vec<String> = right.iter().map(|&flag| flag.to_owned()).collect();
        let said = Config::load(None, &flags).map(|_| ()).map_err(|Error(faults)| faults);
        assert_eq!(said, Ok(()), "{right:?}");
    }
}

#[test]
fn passwords_go_nowhere_in_the_clear() {
    for (url, right) in [
        ("http://127.0.0.1:8840/mqtt", true),
        ("http://localhost/", true),
        ("http://[::1]:80/x", true),
        ("http://10.0.0.1/", false),
        ("http://127.0.0.1.example/", false),
        ("https://id.bank.example/", false),
        ("https://u:hunter2@127.0.0.1/", false),
        ("ftp://127.0.0.1/", false),
        ("127.0.0.1:8840", false),
        ("", false),
    ] {
        let flags = [format!("listener.hook.url={url:?}"), "open.guests=true".to_owned()];
        let loaded = Config::load(None, &flags).map(|_| ()).map_err(|Error(faults)| faults.concat());
        assert_eq!(loaded.is_ok(), right, "{url}: {loaded:?}");
        assert!(loaded.err().is_none_or(|said| said.contains("listener.hook.url: ") && !said.contains("hunter2")));
    }
    let https = ["listener.hook={url=\"https://h/\", authorities=\"ca.pem\"}", "open.guests=true"].map(str::to_owned);
    assert!(Config::load(None, &https).is_ok());
}

#[test]
fn topics_that_are_no_templates_are_said() {
    let fault = faults("[open]\npublish = [\"a/#/b\"]").remove(0);
    assert!(fault.starts_with("FILE: open.publish") && fault.contains("whole levels"), "{fault}");
}

#[test]
fn keys_of_tokens_are_found_beside_the_configuration_and_read_when_asked() {
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("wakala.toml");
    let secret = "s".repeat(31);
    std::fs::write(folder.path().join("s"), format!("{secret}\n")).expect("written");
    let text = "open.guests = true\n[listener.jwt]\nsecret = \"s\"\nalgorithms = [\"HS256\"]\n";
    std::fs::write(&file, text).expect("written");
    let config = Config::load(Some(&file), &[]).expect("it is right but for the files").resolved(Some(&file));
    let said = || config.check_secret_files().map_err(|Error(faults)| faults.concat());
    let too_short = said().expect_err("31 bytes and a line's end");
    assert!(too_short.starts_with("listener.jwt: ") && too_short.contains("at least 32 bytes"), "{too_short}");
    std::fs::write(folder.path().join("s"), format!("{secret} \r\n")).expect("written");
    assert_eq!(said(), Ok(()), "the space is one of its bytes");
    std::fs::remove_file(folder.path().join("s")).expect("removed");
    assert!(said().is_err_and(|said| said.contains("No such file")));
}
