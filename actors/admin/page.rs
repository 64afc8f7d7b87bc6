//! The node at a glance, for a browser: what `/status` says, drawn anew every few seconds. There is no script in it, and nothing
//! is loaded from elsewhere: it works on a server without a way out.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::cli::status::{branches, text};

/// A browser runs nothing on this page, whatever a name in it says, and loads nothing.
pub(super) const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'";

const STYLE: &str = "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:64em;padding:0 1em}\
    h1{margin:0}h2{margin:1.5em 0 .3em;font-size:1.1em}table{border-collapse:collapse}\
    th,td{text-align:left;vertical-align:top;padding:.15em 1.2em .15em 0;border-bottom:1px solid #8884}\
    th{font-weight:600}td{font-variant-numeric:tabular-nums}.wrong{color:#c00;font-weight:700}";

/// Draws a status, as `/status` gives it.
pub(super) fn draw(status: &Value) -> Markup {
    let (node, up) = (text(&status["node"]), Duration::from_secs(status["uptime_seconds"].as_u64().unwrap_or(0)));
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                meta http-equiv="refresh" content="5";
                title { (node) " · Wakala" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (node) }
                p {
                    @if status["ready"] == true { "ready" } @else { span.wrong { "NOT READY" } }
                    @if status["sandbox"] == true { " · " span.wrong { "SANDBOX" } }
                    " · up " (humantime::format_duration(up)) " · " (text(&status["sessions"])) " connected · version "
                    (text(&status["version"]))
                }
                (copies(&status["conservation"]))
                @for (name, title) in SECTIONS {
                    @if let Some(values) = status[name].as_object().filter(|values| !values.is_empty()) {
                        h2 { (title) }
                        (table(values))
                    }
                }
                (actors(&status["actors"]))
                p { a href="sessions" { "sessions" } " · " a href="metrics" { "metrics" } " · " a href="status" { "all of this as JSON" } }
            }
        }
    }
}

const SECTIONS: [(&str, &str); 7] = [
    ("evacuation", "Clients are sent elsewhere"),
    ("cores", "Core banking systems"),
    ("admitted", "Connects"),
    ("broker", "General broker"),
    ("bounds", "Bounds"),
    ("tls", "TLS"),
    ("identity", "Tokens and hook"),
];

/// What became of each copy of a message. One that nobody knows of is the worst that this page can say.
fn copies(conservation: &Value) -> Markup {
    const COLUMNS: [&str; 5] = ["addressed", "delivered", "expired", "waiting", "balance"];
    html! {
        h2 { "Copies of messages" }
        table {
            tr { th {} @for column in COLUMNS { th { (column) } } th { "refused" } }
            @for (side, are) in [("stored", "stored, of all nodes"), ("direct", "not stored")] {
                @if let Some(of) = conservation[side].as_object() {
                    tr {
                        th { (are) }
                        @for column in COLUMNS {
                            @let wrong = column == "balance" && of.get(column).is_some_and(|balance| *balance != 0);
                            td.wrong[wrong] { (of.get(column).map_or_else(String::new, text)) }
                        }
                        td { @if let Some(refused) = of.get("refused").and_then(Value::as_object) { (table(refused)) } }
                    }
                }
            }
        }
    }
}

fn table(values: &serde_json::Map<String, Value>) -> Markup {
    html! {
        table {
            @for (name, value) in values {
                tr {
                    th { (name.replace('_', " ")) }
                    td {
                        @match value.as_object() {
                            Some(inner) => (table(inner)),
                            None => (text(value)),
                        }
                    }
                }
            }
        }
    }
}

/// The tree: each branch, how often it was restarted, and what it says of itself.
fn actors(actors: &Value) -> Markup {
    html! {
        h2 { "Actors" }
        table {
            tr { @for column in ["branch", "state", "restarts", "panics", "says", "last panic"] { th { (column) } } }
            @for (path, branch) in branches(actors) {
                tr {
                    th { (path) }
                    @for column in ["state", "restarts", "panics", "note", "last_panic"] {
                        @let wrong = matches!(column, "restarts" | "panics") && branch[column] != 0;
                        td.wrong[wrong] { (branch.get(column).map_or_else(String::new, text)) }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Value {
        json!({ "node": "n1", "version": "0.1.0", "ready": true, "sandbox": false, "uptime_seconds": 61, "sessions": 7,
            "conservation": { "stored": { "addressed": 3, "delivered": 3, "expired": 0, "waiting": 0, "balance": 0, "refused": {} } },
            "cores": { "cbs": { "signed_on": true, "places_free": 4 } },
            "actors": { "banks/cbs": { "state": "running", "restarts": 0, "panics": 0 } } })
    }

    #[test]
    fn a_node_that_is_well_shows_nothing_in_red() {
        let page = draw(&status()).into_string();
        for said in ["<h1>n1</h1>", "up 1m 1s", "7 connected", "places free", "banks/cbs"] {
            assert!(page.contains(said), "{said}: {page}");
        }
        assert!(!page.contains("class=\"wrong\""), "{page}");
    }

    #[test]
    fn what_is_wrong_is_in_red() {
        for (pointer, wrong) in [
            ("/ready", json!(false)),
            ("/sandbox", json!(true)),
            ("/conservation/stored/balance", json!(-1)),
            ("/actors/banks~1cbs/restarts", json!(2)),
        ] {
            let mut status = status();
            *status.pointer_mut(pointer).expect("it is there") = wrong;
            assert_eq!(draw(&status).into_string().matches("class=\"wrong\"").count(), 1, "{pointer}");
        }
    }

    #[test]
    fn a_name_is_no_markup() {
        let mut status = status();
        status["actors"] = json!({ "<script>alert(1)</script>": { "state": "\"><b>", "restarts": 0, "panics": 0 } });
        let page = draw(&status).into_string();
        assert!(!page.contains("<script>") && !page.contains("<b>"), "{page}");
    }
}
