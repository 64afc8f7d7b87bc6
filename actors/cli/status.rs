//! `wakala status`: asks a running node over its admin port.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use super::{Output, table};

/// # Errors
/// When no node answers there.
pub async fn run(address: SocketAddr, output: Output) -> anyhow::Result<()> {
    let status = get(address, "/status").await?;
    output.print(|| drawing(&status), &status)
}

pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Value> {
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let mut answer = client.get(format!("http://{address}{path}")).send().await.map_err(|error| {
        anyhow::anyhow!("no node answers at {address} ({error}); is it running, and is admin.address the same?")
    })?;
    let body = answer.body().await.map_err(|error| anyhow::anyhow!("{error}"))?;
    serde_json::from_slice(&body)
        .ok()
        .filter(|status: &Value| answer.status().is_success() && status["actors"].is_object())
        .ok_or_else(|| anyhow::anyhow!("what answers at {address} is no node of Wakala; is admin.address the node's?"))
}

/// Has the node that runs here look at once who is banned: how many connections it ended, or nothing if none answers.
pub async fn look_for_bans(address: SocketAddr) -> Option<u64> {
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let mut answer = client.post(format!("http://{address}/bans/look")).send().await.ok()?;
    let answer: Value = serde_json::from_slice(&answer.body().await.ok()?).ok()?;
    answer["ended"].as_u64()
}

/// Has the node that runs here look at once which traces there are: how many it carries out, or nothing if none answers.
pub async fn look_for_traces(address: SocketAddr) -> Option<u64> {
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let mut answer = client.post(format!("http://{address}/traces/look")).send().await.ok()?;
    let answer: Value = serde_json::from_slice(&answer.body().await.ok()?).ok()?;
    answer["carried_out"].as_u64()
}

/// Has a terminal's session look at its queue, if a node runs here and has one.
pub async fn wake(address: SocketAddr, terminal: &str) -> bool {
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let answer = client.post(format!("http://{address}/terminals/{terminal}/wake")).send().await;
    answer.is_ok_and(|answer| answer.status().is_success())
}

/// A text as it is, and anything else as JSON has it.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn tls(tls: &serde_json::Map<String, Value>) -> String {
    format!(
        "TLS · certificate until {} · {} revoked{} · read again {} times, {} times in vain{}",
        text(&tls["certificate_until"]),
        text(&tls["revoked"]),
        tls.get("lists_until").map_or_else(String::new, |until| format!(", list until {}", text(until))),
        text(&tls["reloads"]),
        text(&tls["failures"]),
        tls.get("failure").map_or_else(String::new, |why| format!(" · NOT RIGHT: {}", text(why))),
    )
}

/// Of tokens and the hook, where there are such.
fn identity(identity: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let files = |of: &Value| {
        let wrong = of.get("failure").map_or_else(String::new, |why| format!(" · NOT RIGHT: {}", text(why)));
        format!("files read again {} times, {} times in vain{wrong}", text(&of["reloads"]), text(&of["failures"]))
    };
    if let Some(jwt) = identity.get("jwt") {
        lines.push(format!("tokens · {} keys · {}", text(&jwt["keys"]), files(jwt)));
    }
    if let Some(hook) = identity.get("hook") {
        let count = |what: &str| text(&hook[what]);
        lines.push(format!(
            "hook · {}asked {} times, {} in vain · {} known ({} beyond their time) · turned away: {} too many, {} while it was away · \
             {} wait · {}",
            if hook["open"] == Value::Bool(true) { "DOES NOT ANSWER · " } else { "" },
            count("asked"),
            count("failed"),
            count("known"),
            count("stale"),
            count("full"),
            count("shut"),
            count("waiting"),
            files(hook),
        ));
    }
    lines
}

/// The tree's branches, in an order for people: partition 10 comes after partition 2.
pub(crate) fn branches(actors: &Value) -> Vec<(&String, &Value)> {
    let mut branches: Vec<(&String, &Value)> = actors.as_object().into_iter().flatten().collect();
    branches.sort_by_cached_key(|(path, _)| {
        let parts = path.split('/').map(|part| (part.parse::<u64>().unwrap_or(0), part.to_owned()));
        parts.collect::<Vec<_>>()
    });
    branches
}

fn drawing(status: &Value) -> String {
    let mut lines = vec![format!(
        "{} {} · {}{} · up {} · {} terminals connected",
        text(&status["node"]),
        text(&status["version"]),
        if status["ready"] == Value::Bool(true) { "ready" } else { "not ready" },
        if status["sandbox"] == Value::Bool(true) { " · SANDBOX" } else { "" },
        humantime::format_duration(Duration::from_secs(status["uptime_seconds"].as_u64().unwrap_or(0))),
        text(&status["sessions"]),
    )];
    if status["evacuation"].is_object() {
        lines.push(super::evacuate::progress(status));
    }
    lines.extend(status["tls"].as_object().map(tls));
    lines.extend(identity(&status["identity"]));
    lines.extend(conservation(status));
    if let Some(bounds) = status["bounds"].as_object() {
        let count = |what: &str| text(&bounds[what]);
        let flapping = ["flapping", "flapping_addresses", "flapping_ranges"];
        let too_often: u64 = flapping.iter().filter_map(|of| bounds[*of].as_u64()).sum();
        lines.push(format!(
            "bounds · {} bans · refused: {} banned, {} too often, {} unverified · closed: {} from banned addresses, {} crowded, {} late · held {} times, {} for their agent",
            count("bans"),
            count("banned"),
            too_often,
            count("unverified"),
            count("banned_addresses"),
            count("crowded"),
            count("late"),
            count("held"),
            count("held_agents"),
        ));
    }
    if let Some(admitted) = status["admitted"].as_object() {
        let count = |what: &str| text(&admitted[what]);
        lines.push(format!(
            "connects · {} wait · {} opened in {} commits · {} told to come again · {} gone meanwhile · {} failed",
            count("waiting"),
            count("opened"),
            count("batches"),
            count("busy"),
            count("gone"),
            count("failed"),
        ));
    }
    for (core, load) in status["cores"].as_object().into_iter().flatten() {
        let standing = if load["signed_on"] == Value::Bool(true) { "signed on" } else { "not signed on" };
        lines.push(format!("core {core} · {standing} · {} places free", text(&load["places_free"])));
    }
    let rows = branches(&status["actors"]).into_iter().map(|(path, branch)| {
        let depth = path.matches('/').count();
        [
            format!("{}{}", "  ".repeat(depth), path.rsplit('/').next().unwrap_or(path)),
            text(&branch["state"]),
            text(&branch["restarts"]),
            text(&branch["panics"]),
            branch.get("note").map_or_else(String::new, text),
            branch.get("last_panic").map_or_else(String::new, text),
        ]
    });
    lines.push(table(["actor", "state", "restarts", "panics", "says", "last panic"], rows));
    lines.join("\n")
}

/// What a general broker holds, and what became of each copy of a message.
fn conservation(status: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(broker) = status["broker"].as_object() {
        let [clients, kept, subscriptions, retained] =
            ["clients", "kept", "subscriptions", "retained"].map(|of| &broker[of]);
        lines.push(format!(
            "broker · {clients} clients, {kept} kept · {subscriptions} subscriptions · {retained} retained"
        ));
    }
    for (side, are) in [("direct", "not stored"), ("stored", "stored")] {
        let copies = &status["conservation"][side];
        if copies["addressed"].as_u64().unwrap_or(0) == 0 {
            continue;
        }
        let refused = copies["refused"].as_object().into_iter().flatten();
        let refused =
            refused.filter(|(_, count)| count.as_u64() != Some(0)).map(|(why, count)| format!("{count} {why}"));
        let refused: Vec<String> = refused.collect();
        lines.push(format!(
            "copies, {are} · {} addressed = {} delivered + {} expired + {} refused{} + {} waiting{}",
            copies["addressed"],
            copies["delivered"],
            copies["expired"],
            copies["refused"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum::<u64>(),
            if refused.is_empty() { String::new() } else { format!(" ({})", refused.join(", ")) },
            copies["waiting"],
            match copies["balance"].as_i64() {
                Some(0) | None => String::new(),
                Some(off) => format!(" · OFF BY {off}"),
            },
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_copies_is_one_line_and_says_when_it_is_off() {
        let copies = |balance: i64| {
            serde_json::json!({ "addressed": 10, "delivered": 5, "expired": 1, "waiting": 1, "balance": balance,
                "refused": { "away": 0, "full": 2, "too_large": 1 } })
        };
        let status = serde_json::json!({ "conservation": { "direct": copies(0), "stored": copies(-1) } });
        let line = "10 addressed = 5 delivered + 1 expired + 3 refused (2 full, 1 too_large) + 1 waiting";
        assert_eq!(
            conservation(&status),
            [format!("copies, not stored · {line}"), format!("copies, stored · {line} · OFF BY -1")]
        );
    }
}
