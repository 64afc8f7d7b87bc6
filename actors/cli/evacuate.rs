//! `wakala evacuate`: sends a node's clients to others, a few in each second, before it is stopped or because it has too many.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use super::Output;
use super::sessions::whoami;
use super::status::{get, text};
use crate::admin::ASKED_BY;
use crate::sessions::evacuation::Evacuate;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Clients that are sent away within a second, at most
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    per_second: u32,
    /// How many stay. With 0 nobody is let in any more, and the node is not ready, until --call-off or a restart
    #[arg(long, default_value_t = 0, value_name = "CLIENTS")]
    down_to: usize,
    /// How long it is waited for terminals with a transaction in flight, once nobody else is left to be sent
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Do not wait until it is done: wakala status shows how far it is
    #[arg(long)]
    detach: bool,
    /// End it: whoever is still here stays, and others are let in again
    #[arg(long, conflicts_with_all = ["per_second", "down_to", "wait", "detach"])]
    call_off: bool,
}

/// # Errors
/// When no node answers, or it was called off meanwhile.
pub async fn run(arguments: Arguments, admin: SocketAddr, output: Output) -> anyhow::Result<()> {
    let Arguments { per_second, down_to, wait, detach, call_off } = arguments;
    let http = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let url = format!("http://{admin}/evacuation");
    let asked = if call_off { http.delete(&url) } else { http.post(&url) };
    let wanted = Evacuate { per_second, down_to, wait_s: wait.as_secs() };
    let asked = asked.insert_header((ASKED_BY, whoami())).send_json(&wanted).await;
    let answer = asked.map_err(|error| anyhow::anyhow!("no node answers at {admin} ({error}); is it running?"))?;
    if call_off {
        ensure!(answer.status().is_success(), "no clients are being sent elsewhere; nothing was done");
        return output.print(|| "called off: whoever is here stays".to_owned(), &json!({ "called_off": true }));
    }
    ensure!(answer.status().is_success(), "the node at {admin} did not take it: {}", answer.status());
    loop {
        let status = get(admin, "/status").await?;
        let evacuation = &status["evacuation"];
        // Of one that leaves some of them here nothing stays when it is done.
        let done = evacuation["done"] == Value::Bool(true) || evacuation.is_null();
        if evacuation.is_null() && status["sessions"].as_u64() > u64::try_from(down_to).ok() {
            bail!("it was called off; {} clients are here", text(&status["sessions"]));
        }
        if done || detach {
            let value = json!({ "sessions": status["sessions"], "done": done, "sent": evacuation["sent"] });
            return output.print(|| sentence(&status, done, down_to), &value);
        }
        // A person wants to see that it goes on, and a program only what came of it.
        if !output.json {
            let _ = writeln!(std::io::stderr(), "{}", progress(&status));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// How far it is, for people.
pub(super) fn progress(status: &Value) -> String {
    let (here, evacuation) = (text(&status["sessions"]), &status["evacuation"]);
    let waited_for = match evacuation["waited_for"].as_u64() {
        None | Some(0) => String::new(),
        Some(count) => format!(" · {count} wait for a receipt"),
    };
    let (sent, down_to) = (text(&evacuation["sent"]), text(&evacuation["down_to"]));
    format!("sending clients elsewhere · {here} here, {down_to} are to stay · {sent} sent{waited_for}")
}

fn sentence(status: &Value, done: bool, down_to: usize) -> String {
    match (done, down_to) {
        (false, _) => progress(status),
        (true, 0) => {
            "no client is here, and none is let in: the node may be stopped (or wakala evacuate --call-off)".to_owned()
        }
        (true, _) if status["sessions"] == 1 => "1 client is here".to_owned(),
        (true, _) => format!("{} clients are here", text(&status["sessions"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_how_far_it_is() {
        let status =
            json!({ "sessions": 7, "evacuation": { "sent": 3, "down_to": 0, "waited_for": 2, "done": false } });
        let text = "sending clients elsewhere · 7 here, 0 are to stay · 3 sent · 2 wait for a receipt";
        assert_eq!(sentence(&status, false, 0), text);
        assert!(sentence(&status, true, 0).contains("may be stopped"));
        assert_eq!(sentence(&status, true, 7), "7 clients are here");
    }
}
