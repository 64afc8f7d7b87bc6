//! `wakala traces`: what was kept of clients' packets, and `wakala tap --keep`, which begins it.

use std::time::Duration;

use anyhow::{bail, ensure};
use serde_json::{Value, json};
use wakala::id::ClientId;

use super::sessions::whoami;
use super::{Output, rfc3339, table};
use crate::config::Config;
use crate::ports::Clock;
use crate::store::traces::{Beginning, NewTrace, Said, Told, Trace};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show traces, the newest first
    List {
        /// Only of this client
        #[arg(long)]
        client: Option<String>,
        /// Only those that have not ended
        #[arg(long)]
        open: bool,
        /// Only those before this number
        #[arg(long)]
        before: Option<i64>,
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// Show what a trace has kept, in the order in which it was stored
    ///
    /// A page of at most --limit rows; the last line says how to see the next. An arrow to the left is what the client said.
    /// The digest of a payload tells payloads apart as long as one node looks without a break. What wakala knows of a
    /// transaction that is named here: wakala txn show.
    Show {
        /// Its number
        trace: i64,
        /// Only what is after this row (the first column)
        #[arg(long, default_value_t = 0)]
        after: i32,
        /// At most so many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },
    /// End a trace. What it has kept stays
    Stop {
        /// Its number
        trace: i64,
    },
}

/// # Errors
/// When the database is away, or there is no such trace.
pub async fn run(command: Command, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let store = super::store(&config.database).await?;
    match command {
        Command::List { client, open, before, limit } => {
            let client = client.map(|client| ClientId::new(&client)).transpose()?;
            let traces = store.traces(client, !open, before, limit).await?;
            let values: Vec<Value> = traces.iter().map(value).collect();
            output.print(|| list(&traces), &values)
        }
        Command::Show { trace, after, limit } => {
            let found = store.traces(None, true, trace.checked_add(1), 1).await?;
            let Some(found) = found.into_iter().find(|found| found.id == trace) else {
                bail!("there is no trace {trace}");
            };
            let rows = store.trace_rows_after(trace, after, limit).await?;
            let mut shown = value(&found);
            shown["packets"] = rows.iter().map(row_value).collect();
            output.print(|| drawing(&found, &rows, limit), &shown)
        }
        Command::Stop { trace } => {
            let stopped = store.stop_trace(trace, &whoami(), clock.now()).await?;
            ensure!(stopped, "there is no trace {trace} that has not ended");
            let _ = super::status::look_for_traces(config.admin.address).await;
            output.print(|| format!("trace {trace} has ended"), &json!({ "trace": trace, "stopped": true }))
        }
    }
}

/// What a trace is to be.
pub(super) struct Asked {
    pub(super) client: ClientId,
    pub(super) why: String,
    pub(super) lasts: Duration,
    pub(super) packets: Option<u64>,
}

/// Begins a trace, and says its number.
pub(super) async fn begin(asked: Asked, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let (store, now, tap) = (super::store(&config.database).await?, clock.now(), &config.tap);
    let Asked { client, why, lasts, packets } = asked;
    let until = now + lasts.max(Duration::from_secs(1)).min(tap.trace_for_max);
    let packets = packets.map_or(tap.trace_rows_max, |packets| u32::try_from(packets).unwrap_or(u32::MAX));
    let rows_max = packets.clamp(1, tap.trace_rows_max);
    let new = NewTrace { client: client.clone(), who: whoami(), why, begun_at: now, until, rows_max };
    let Beginning::Begun(trace) = store.begin_trace(new, tap.traces_max).await? else {
        bail!(
            "there are {} traces already (tap.traces_max): wakala traces list --open; wakala traces stop",
            tap.traces_max
        );
    };
    let within = match super::status::look_for_traces(config.admin.address).await {
        Some(_) => String::new(),
        None => format!(
            "; no node answers at {} (admin.address), and those that run begin within {}",
            config.admin.address,
            humantime::format_duration(tap.traces_every)
        ),
    };
    let text = format!(
        "trace {trace}: {client}, until {} or {rows_max} packets{within}\nwakala traces show {trace}; wakala traces stop {trace}",
        rfc3339(until)
    );
    let value = json!({ "trace": trace, "client": client.as_str(), "until": rfc3339(until), "rows_max": rows_max });
    output.print(|| text, &value)
}

fn value(trace: &Trace) -> Value {
    json!({
        "trace": trace.id, "client": trace.client, "who": trace.who, "why": trace.why,
        "begun_at": rfc3339(trace.begun_at), "until": rfc3339(trace.until), "rows": trace.rows,
        "rows_max": trace.rows_max, "lost": trace.lost, "looks": trace.looks,
        "ended_at": trace.ended.as_ref().map(|(at, _)| rfc3339(*at)),
        "ended_why": trace.ended.as_ref().map(|(_, why)| why),
    })
}

/// A row as a program reads it: what `wakala tap --json` says, and where it was seen.
pub(super) fn row_value(row: &Told) -> Value {
    let mut value = match &row.said {
        Said::Packet { way, what, transaction } => {
            let mut value = serde_json::to_value(what).unwrap_or_default();
            value["way"] = json!(way);
            if let Some(transaction) = transaction {
                value["transaction"] = json!(transaction);
            }
            value
        }
        Said::Lost(lost) => json!({ "lost": lost }),
    };
    value["trace"] = json!(row.trace);
    value["nth"] = json!(row.nth);
    value["at"] = json!(rfc3339(row.at));
    value["node"] = json!(row.node);
    value["look"] = json!(row.look);
    value
}

/// A row as a person reads it, without its number.
pub(super) fn row_text(row: &Told) -> String {
    let at = rfc3339(row.at);
    match &row.said {
        Said::Packet { way, what, transaction } => {
            let arrow = if way == "in" { "<-" } else { "->" };
            let about = transaction.map_or_else(String::new, |transaction| format!(", transaction {transaction}"));
            format!("{at} {arrow} {what}{about}")
        }
        Said::Lost(lost) => format!("{at} -- {lost} packets are missing here: they came faster than they were stored"),
    }
}

fn standing(trace: &Trace) -> String {
    match &trace.ended {
        Some((at, why)) => format!("ended {}: {why}", rfc3339(*at)),
        None => format!("until {}", rfc3339(trace.until)),
    }
}

fn list(traces: &[Trace]) -> String {
    let rows = traces.iter().map(|trace| {
        let (rows, lost, at) = (trace.rows.to_string(), trace.lost.to_string(), rfc3339(trace.begun_at));
        let client = trace.client.escape_debug().to_string();
        [trace.id.to_string(), client, at, rows, lost, trace.who.clone(), standing(trace), trace.why.clone()]
    });
    let head = ["trace", "client", "begun", "rows", "lost", "who", "stands", "why"];
    format!("{}\n{} traces", table(head, rows), traces.len())
}

fn drawing(trace: &Trace, rows: &[Told], limit: u32) -> String {
    let client = trace.client.escape_debug();
    let mut lines = vec![
        format!("trace {} of {client}, begun {} by {}: {}", trace.id, rfc3339(trace.begun_at), trace.who, trace.why),
        format!("{} rows, {} packets lost, {}", trace.rows, trace.lost, standing(trace)),
    ];
    let mut look = None;
    for row in rows {
        if look != Some(row.look) {
            look = Some(row.look);
            lines.push(format!("       {} looks (look {})", row.node, row.look));
        }
        lines.push(format!("{:>6} {}", row.nth, row_text(row)));
    }
    if let Some(last) = rows.last().filter(|_| u32::try_from(rows.len()).is_ok_and(|count| count == limit)) {
        lines.push(format!("there may be more: wakala traces show {} --after {}", trace.id, last.nth));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use wakala::id::TransactionId;
    use wakala::session::redacted::Summary;
    use wakala::time::Time;

    use super::*;

    const AT: Time = Time::from_millis(1_795_224_225_000);

    fn trace() -> Trace {
        Trace {
            id: 3,
            client: "T1".to_owned(),
            who: "asha".to_owned(),
            why: "asks twice".to_owned(),
            begun_at: AT,
            until: AT + Duration::from_secs(60),
            ended: None,
            looks: 2,
            rows: 3,
            rows_max: 10,
            lost: 4,
        }
    }

    fn row(nth: i32, look: i32, said: Said) -> Told {
        Told { trace: 3, nth, look, node: format!("n{look}"), at: AT, said }
    }

    #[test]
    fn a_trace_is_drawn_with_who_looked_and_what_is_missing() {
        let transaction = Some(TransactionId(uuid::Uuid::from_u128(7)));
        let rows = [
            row(1, 1, Said::Packet { way: "in".to_owned(), what: Summary::PingReq, transaction }),
            row(2, 1, Said::Lost(4)),
            row(3, 2, Said::Packet { way: "out".to_owned(), what: Summary::PingResp, transaction: None }),
        ];
        assert_eq!(
            drawing(&trace(), &rows, 3),
            "trace 3 of T1, begun 2026-11-21T01:23:45Z by asha: asks twice\n\
             3 rows, 4 packets lost, until 2026-11-21T01:24:45Z\n\
             \x20      n1 looks (look 1)\n\
             \x20    1 2026-11-21T01:23:45Z <- PINGREQ, transaction 00000000-0000-0000-0000-000000000007\n\
             \x20    2 2026-11-21T01:23:45Z -- 4 packets are missing here: they came faster than they were stored\n\
             \x20      n2 looks (look 2)\n\
             \x20    3 2026-11-21T01:23:45Z -> PINGRESP\n\
             there may be more: wakala traces show 3 --after 3"
        );
        assert!(!drawing(&trace(), &rows, 4).contains("more"));
        let value = row_value(&rows[0]);
        assert_eq!((value["packet"].as_str(), value["way"].as_str()), (Some("PINGREQ"), Some("in")));
        assert_eq!(value["transaction"], "00000000-0000-0000-0000-000000000007");
        assert_eq!(row_value(&rows[1])["lost"], 4);
    }

    #[test]
    fn a_list_says_how_each_stands() {
        let ended = Trace { ended: Some((AT, "stopped by juma".to_owned())), ..trace() };
        let text = list(&[trace(), ended]);
        assert!(text.contains("until 2026-11-21T01:24:45Z") && text.ends_with("2 traces"), "{text}");
        assert!(text.contains("ended 2026-11-21T01:23:45Z: stopped by juma"), "{text}");
    }
}
