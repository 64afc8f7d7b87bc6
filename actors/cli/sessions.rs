//! `wakala sessions`: who is connected, who was, and how each stands.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;
use serde_json::{Value, json};
use wakala::id::ClientId;
use wakala::session::Subscription;

use super::{Output, rfc3339, table};
use crate::config::Config;
use crate::ports::Clock;
use crate::sessions::Here;
use crate::store::Store;
use crate::store::presence::Came;
use crate::store::standing::{Action, COUNTED, Class, Kept, Standing, Wanted};

/// Sessions are stored in Postgres, whatever node holds their connections; how a connection stands at this moment (in flight,
/// address) is asked of the node at admin.address. Where no node answers there, what is stored is shown. In a general
/// broker, sessions that end with their connection are not stored: they are known to their node alone.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Show sessions, by name
    ///
    /// A page of at most --limit; the last line says how to see the next. The column "waits" counts receipts and messages in
    /// the queue (up to 1000 of each), "in flight" those that were sent and are not acknowledged. "Since" is when the
    /// connection began, or when it was last seen.
    ///
    ///   wakala sessions list --connected --node wakala-2
    ///   wakala sessions list --prefix shop-17- --json
    #[command(verbatim_doc_comment)]
    List(List),
    /// Show one session: connection, subscriptions, will, queue by class, and when it came and went
    Show {
        /// Its client identifier; a terminal's name
        client: String,
        /// At most so many lines of its history
        #[arg(long, default_value_t = 10)]
        events: u32,
    },
    /// Show when a client came and went, and why; latest first
    ///
    /// Kept for presence.keep. An end stands after its beginning and before the next beginning, at whatever nodes they were.
    Events {
        /// Its client identifier
        client: String,
        /// Only those before this one (the column "seq")
        #[arg(long)]
        before: Option<i64>,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// End a client's connection. Its session stays, and it may connect again at once
    ///
    /// An MQTT 5 client hears DISCONNECT 0x98 (administrative action); a will is sent. At another node than the one at
    /// admin.address it takes up to sessions.blocked_every. Who did it, and why, is recorded (`wakala sessions show`,
    /// audit.admin_actions). To keep a terminal out: wakala terminals block. Exit 1 if it is not connected.
    Kick {
        /// Its client identifier
        client: String,
        /// Recorded, for whoever asks later
        #[arg(long, value_parser = super::terminals::reason)]
        why: String,
    },
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only those connected
    #[arg(long, conflicts_with = "away")]
    connected: bool,
    /// Only those not connected
    #[arg(long)]
    away: bool,
    /// Only those that outlive their connection
    #[arg(long)]
    kept: bool,
    /// Only those connected to this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Only those whose name begins like this
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only those after this name
    #[arg(long, value_name = "CLIENT", default_value = "")]
    after: String,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
}

/// # Errors
/// When the database is away, or there is no such session.
pub async fn run(command: Command, config: &Config, clock: &dyn Clock, output: Output) -> anyhow::Result<()> {
    let store = super::store(&config.database).await?;
    let admin = config.admin.address;
    match command {
        Command::List(wanted) => list(wanted, &store, admin, output).await,
        Command::Show { client, events } => show(&named(&client)?, events, &store, admin, output).await,
        Command::Events { client, before, limit } => {
            let found = store.presence(&named(&client)?, before, limit).await?;
            let values: Vec<Value> = found.iter().map(came_value).collect();
            output.print(|| history(&found), &values)
        }
        Command::Kick { client, why } => kick(&named(&client)?, &why, &store, config, clock, output).await,
    }
}

fn named(client: &str) -> anyhow::Result<ClientId> {
    ClientId::new(client).map_err(|error| anyhow::anyhow!("{error}"))
}

/// What a node says of its connections.
#[derive(Debug, Deserialize)]
struct Answer {
    node: String,
    sessions: Vec<Here>,
}

/// None where no node answers.
async fn ask(admin: SocketAddr, query: &[(&str, &str)]) -> Option<Answer> {
    let client = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let asked = client.get(format!("http://{admin}/sessions")).query(&query).ok()?;
    let body = asked.send().await.ok()?.body().limit(16 * 1024 * 1024).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// One line of a list: what is stored, what the node says, or both.
struct Row {
    client: String,
    stored: Option<Standing>,
    here: Option<(String, Here)>,
}

impl Row {
    fn connected(&self) -> bool {
        self.here.is_some() || self.stored.as_ref().is_some_and(|stored| stored.connected)
    }

    fn node(&self) -> Option<&str> {
        let here = self.here.as_ref().map(|(node, _)| node.as_str());
        here.or_else(|| self.stored.as_ref()?.node.as_deref())
    }

    fn since(&self) -> String {
        let at = self.stored.as_ref().and_then(|s| if s.connected { s.connected_at } else { s.disconnected_at });
        at.map_or_else(String::new, rfc3339)
    }

    fn connection(&self) -> Option<&crate::store::presence::Connection> {
        self.here.as_ref().map(|(_, here)| &here.connection).or_else(|| self.stored.as_ref()?.connection.as_ref())
    }

    fn expiry(&self) -> String {
        let stored = self.stored.as_ref().map(|stored| u64::try_from(stored.expiry_s).unwrap_or(0));
        match self.here.as_ref().map(|(_, here)| u64::from(here.expiry_s)).or(stored) {
            None | Some(0) => "with the connection".to_owned(),
            Some(seconds) => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
        }
    }

    fn waits(&self) -> String {
        match self.stored.as_ref().map(|stored| stored.waiting) {
            Some(waiting) if waiting >= COUNTED => format!("{COUNTED} or more"),
            Some(waiting) => waiting.to_string(),
            None => self.here.as_ref().map_or_else(String::new, |(_, here)| here.held.to_string()),
        }
    }

    fn value(&self) -> Value {
        let stored = self.stored.as_ref();
        json!({
            "client": self.client, "connected": self.connected(), "node": self.node(),
            "connected_at": stored.and_then(|s| s.connected_at).map(rfc3339),
            "last_seen": stored.and_then(|s| s.disconnected_at).map(rfc3339),
            "ended_why": stored.and_then(|s| s.ended_why.as_deref()),
            "connection": self.connection(), "enrolled": stored.is_some_and(|s| s.enrolled), "stored": stored.is_some(),
            "epoch": self.here.as_ref().map(|(_, here)| here.epoch).or_else(|| stored.map(|s| s.epoch.0)),
            "waiting": stored.map(|s| s.waiting), "in_flight": self.here.as_ref().map(|(_, here)| here.in_flight),
            "in_memory": self.here.as_ref().map(|(_, here)| here.held),
            "expiry_s": self.here.as_ref().map(|(_, here)| i64::from(here.expiry_s)).or_else(|| stored.map(|s| s.expiry_s)),
            "expires_at": stored.and_then(|s| s.expires_at).map(rfc3339),
        })
    }
}

async fn list(list: List, store: &Store, admin: SocketAddr, output: Output) -> anyhow::Result<()> {
    let wanted = Wanted {
        after: list.after.clone(),
        prefix: list.prefix.clone(),
        connected: (list.connected || list.away).then_some(list.connected),
        kept: list.kept,
        node: list.node.clone(),
        limit: list.limit,
    };
    let stored = store.standings(wanted).await?;
    let limit = list.limit.to_string();
    let query = [("prefix", &*list.prefix), ("after", &*list.after), ("limit", &*limit)];
    let answer = ask(admin, &query).await;
    let answered = answer.is_some();
    let (rows, next) = merged(stored, answer, &list);
    let values: Vec<Value> = rows.iter().map(Row::value).collect();
    let text = || {
        let head = [
            "client",
            "",
            "since",
            "node",
            "address",
            "protocol",
            "carrier",
            "keep-alive",
            "waits",
            "in flight",
            "expiry",
        ];
        let mut lines = vec![table(head, rows.iter().map(cells)), format!("{} sessions", rows.len())];
        if let Some(next) = &next {
            lines.push(format!("there may be more: --after {}", next.escape_debug()));
        }
        if !answered {
            lines.push(format!("no node answers at {admin} (admin.address): only what is stored is shown"));
        }
        lines.join("\n")
    };
    output.print(text, &json!({ "sessions": values, "next": next, "node_answered": answered }))
}

/// What is stored and what the node says, by name, as far as both were asked; and how far that is, where there may be more: a page
/// may have few rows, or none, when most of those who were asked for are others.
fn merged(stored: Vec<Standing>, answer: Option<Answer>, list: &List) -> (Vec<Row>, Option<String>) {
    let limit = usize::try_from(list.limit).unwrap_or(usize::MAX);
    // Of those who are away, or at another node, this one says nothing.
    let concerns = |answer: &Answer| !list.away && list.node.as_ref().is_none_or(|node| *node == answer.node);
    let answer = answer.filter(concerns);
    let (node, here) = answer.map_or_else(Default::default, |answer| (answer.node, answer.sessions));
    // Beyond the end of a full page nobody was asked.
    let ends = |full: bool, last: Option<&str>| if full { last.map(str::to_owned) } else { None };
    let stored_to = ends(stored.len() >= limit, stored.last().map(|s| s.client.as_str()));
    let here_to = ends(here.len() >= limit, here.last().map(|here| here.client.as_str()));
    let until = [stored_to, here_to].into_iter().flatten().min();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for stored in stored {
        let client = stored.client.as_str().to_owned();
        rows.insert(client.clone(), Row { client, stored: Some(stored), here: None });
    }
    for here in here.into_iter().filter(|here| !list.kept || here.expiry_s > 0) {
        let client = here.client.clone();
        rows.entry(client.clone()).or_insert(Row { client, stored: None, here: None }).here =
            Some((node.clone(), here));
    }
    let asked = |row: &Row| until.as_ref().is_none_or(|until| row.client <= *until);
    let mut rows: Vec<Row> = rows.into_values().filter(asked).collect();
    let cut = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| cut).map(|row| row.client.clone());
    (rows, last.or(until))
}

fn cells(row: &Row) -> [String; 11] {
    let connection = row.connection().cloned().unwrap_or_default();
    let keep_alive = humantime::format_duration(Duration::from_secs(connection.keep_alive_s)).to_string();
    [
        row.client.escape_debug().to_string(),
        if row.connected() { "connected" } else { "away" }.to_owned(),
        row.since(),
        row.node().unwrap_or_default().to_owned(),
        connection.address,
        connection.protocol,
        connection.carrier,
        if connection.keep_alive_s > 0 { keep_alive } else { String::new() },
        row.waits(),
        row.here.as_ref().map_or_else(String::new, |(_, here)| here.in_flight.to_string()),
        row.expiry(),
    ]
}

async fn show(client: &ClientId, events: u32, store: &Store, admin: SocketAddr, output: Output) -> anyhow::Result<()> {
    let stored = store.standing(client).await?;
    let answer = ask(admin, &[("client", client.as_str())]).await;
    let here = answer.and_then(|answer| Some((answer.node, answer.sessions.into_iter().next()?)));
    let came = store.presence(client, None, events).await?;
    if stored.is_none() && here.is_none() && came.is_empty() {
        bail!("there is no session {client}, and none is remembered; wakala sessions list");
    }
    let (subscriptions, classes, wills) = store.belongings(client).await?;
    let actions = store.actions(client, events).await?;
    let row = Row { client: client.as_str().to_owned(), stored, here };
    let mut value = row.value();
    value["subscriptions"] = subscriptions.iter().map(subscription_value).collect();
    value["queue"] = classes.iter().map(class_value).collect();
    value["wills"] = wills.iter().map(will_value).collect();
    value["events"] = came.iter().map(came_value).collect();
    value["actions"] = actions.iter().map(action_value).collect();
    output.print(|| shown(&row, &subscriptions, &classes, &wills, &came, &actions), &value)
}

fn subscription_value(subscription: &Subscription) -> Value {
    let options = subscription.options;
    json!({
        "filter": &*subscription.filter, "qos": options.qos as u8, "no_local": options.no_local,
        "retain_as_published": options.retain_as_published, "retain_handling": options.retain_handling as u8,
        "identifier": subscription.identifier.map(std::num::NonZeroU32::get),
    })
}

fn class_value(class: &Class) -> Value {
    json!({ "class": class.name, "rows": class.rows, "bytes": class.bytes, "oldest": rfc3339(class.oldest) })
}

fn will_value(will: &Kept) -> Value {
    json!({
        "topic": will.topic, "qos": will.qos, "retain": will.retain, "bytes": will.bytes, "delay_s": will.delay_s,
        "due_at": will.due_at.map(rfc3339),
    })
}

fn came_value(came: &Came) -> Value {
    json!({
        "seq": came.seq, "epoch": came.epoch.0, "online": came.online, "at": rfc3339(came.at), "node": came.node,
        "why": came.why, "connection": came.connection,
    })
}

fn action_value(action: &Action) -> Value {
    json!({
        "at": rfc3339(action.at), "what": action.what, "node": action.node, "who": action.who, "why": action.why,
        "done_at": action.done_at.map(rfc3339), "outcome": action.outcome,
    })
}

fn history(found: &[Came]) -> String {
    let rows = found.iter().map(|came| {
        let how = came.connection.as_ref().map(|c| format!("from {}, {}, {}", c.address, c.protocol, c.carrier));
        [
            rfc3339(came.at),
            if came.online { "came" } else { "went" }.to_owned(),
            came.node.clone().unwrap_or_default(),
            came.why.clone().or(how).unwrap_or_default(),
            came.seq.to_string(),
        ]
    });
    table(["at", "", "node", "", "seq"], rows)
}

fn shown(
    row: &Row,
    subscriptions: &[Subscription],
    classes: &[Class],
    wills: &[Kept],
    came: &[Came],
    actions: &[Action],
) -> String {
    let [name, state, since, node, address, protocol, carrier, keep_alive, waits, in_flight, expiry] = cells(row);
    let mut facts = vec![
        ["state".to_owned(), format!("{state} since {since}")],
        ["node".to_owned(), node],
        ["from".to_owned(), format!("{address}, {protocol}, {carrier}, keep-alive {keep_alive}")],
        ["ends".to_owned(), expiry],
        ["waits".to_owned(), waits],
        ["in flight".to_owned(), in_flight],
    ];
    let ended = row.stored.as_ref().filter(|stored| !stored.connected).and_then(|stored| stored.ended_why.clone());
    facts.extend(ended.map(|why| ["ended".to_owned(), why]));
    facts.extend(wills.iter().map(|will| {
        let due =
            will.due_at.map_or_else(|| "while it is connected".to_owned(), |at| format!("sent at {}", rfc3339(at)));
        ["will".to_owned(), format!("{} QoS {}, {} bytes, {due}", will.topic.escape_debug(), will.qos, will.bytes)]
    }));
    let mut parts = vec![table([name.as_str(), ""], facts.into_iter().filter(|[_, fact]| !fact.is_empty()))];
    if !subscriptions.is_empty() {
        let rows =
            subscriptions.iter().map(|s| [s.filter.escape_debug().to_string(), (s.options.qos as u8).to_string()]);
        parts.push(table(["subscribed to", "QoS"], rows));
    }
    if !classes.is_empty() {
        let rows = classes.iter().map(|c| [c.name.clone(), c.rows.to_string(), c.bytes.to_string(), rfc3339(c.oldest)]);
        parts.push(table(["waiting", "rows", "bytes", "oldest"], rows));
    }
    if !came.is_empty() {
        parts.push(history(came));
    }
    if !actions.is_empty() {
        let rows = actions.iter().map(|action| {
            let outcome = action.outcome.clone().unwrap_or_else(|| "not done yet".to_owned());
            [rfc3339(action.at), action.what.to_owned(), action.who.clone(), action.why.clone(), outcome]
        });
        parts.push(table(["operators", "what", "who", "why", ""], rows));
    }
    parts.join("\n\n")
}

/// Who types, as the machine says.
pub(super) fn whoami() -> String {
    let said = ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
    said.filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

/// Ends a client's connection at the node of the admin port: whether there was one, or nothing if no node answers.
pub(super) async fn kick_here(admin: SocketAddr, client: &str, why: &str) -> Option<bool> {
    let http = awc::Client::builder().timeout(Duration::from_secs(5)).finish();
    let query = [("client", client), ("who", &whoami()), ("why", why)];
    let asked = http.post(format!("http://{admin}/sessions/kick")).query(&query).ok()?;
    let answer = asked.insert_header((crate::admin::ASKED_BY, "kick")).send().await;
    answer.ok().map(|answer| answer.status().is_success())
}

async fn kick(
    client: &ClientId,
    why: &str,
    store: &Store,
    config: &Config,
    clock: &dyn Clock,
    output: Output,
) -> anyhow::Result<()> {
    let kicked = kick_here(config.admin.address, client.as_str(), why).await;
    if kicked == Some(true) {
        let value = json!({ "client": client.as_str(), "kicked": true, "here": true });
        return output.print(|| format!("{client}: its connection was ended"), &value);
    }
    let stored = store.standing(client).await?;
    let Some((stored, node)) = stored.filter(|stored| stored.connected).and_then(|s| Some((s.clone(), s.node?))) else {
        let answered = if kicked.is_some() { "" } else { ", and no node answers at admin.address" };
        bail!("{client} is not connected{answered}; nothing was done");
    };
    let action = Action {
        at: clock.now(),
        what: "kick",
        client: client.clone(),
        epoch: Some(stored.epoch),
        node: node.clone(),
        who: whoami(),
        why: why.to_owned(),
        done_at: None,
        outcome: None,
    };
    store.record_action(action).await?;
    let within = humantime::format_duration(config.sessions.blocked_every);
    let value = json!({ "client": client.as_str(), "kicked": true, "here": false, "node": node });
    output.print(|| format!("{client}: connected to {node}, which ends it within {within}"), &value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wakala::id::Epoch;

    fn stored(name: &str) -> Standing {
        Standing {
            client: ClientId::new(name).expect("short"),
            epoch: Epoch(1),
            enrolled: false,
            connected: true,
            node: Some("n1".to_owned()),
            connected_at: None,
            disconnected_at: None,
            ended_why: None,
            connection: None,
            expiry_s: 60,
            expires_at: None,
            waiting: 1000,
        }
    }

    fn here(name: &str) -> Here {
        let connection = Default::default();
        Here { client: name.to_owned(), epoch: 1, connection, in_flight: 2, held: 3, expiry_s: 0 }
    }

    fn page(limit: u32, away: bool, kept: bool) -> List {
        let (prefix, after) = (String::new(), String::new());
        List { connected: false, away, kept, node: None, prefix, after, limit }
    }

    fn merge(stored_names: &[&str], here_names: &[&str], list: &List) -> (Vec<String>, Option<String>) {
        let answer = Answer { node: "n1".to_owned(), sessions: here_names.iter().map(|name| here(name)).collect() };
        let (rows, next) = merged(stored_names.iter().map(|name| stored(name)).collect(), Some(answer), list);
        (rows.into_iter().map(|row| row.client).collect(), next)
    }

    fn names(stored_names: &[&str], here_names: &[&str], list: &List) -> Vec<String> {
        merge(stored_names, here_names, list).0
    }

    #[actix_rt::test]
    async fn nobody_who_answers_is_not_nobody_connected() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address");
        drop(taken);
        assert_eq!(kick_here(address, "T1", "a test").await, None);
    }

    #[test]
    fn what_is_stored_and_what_is_connected_are_one_list() {
        assert_eq!(names(&["a", "c"], &["b", "c"], &page(10, false, false)), ["a", "b", "c"]);
        assert_eq!(names(&["a"], &["b"], &page(10, true, false)), ["a"]);
        assert_eq!(names(&["a"], &["b"], &page(10, false, true)), ["a"], "a clean one is not kept");
    }

    #[test]
    fn a_full_page_ends_where_nobody_was_asked_further() {
        // Of the stored ones nothing is known beyond b, so what is connected beyond it belongs to the next page.
        assert_eq!(names(&["a", "b"], &["c", "d"], &page(2, false, false)), ["a", "b"]);
        assert_eq!(names(&["a", "z"], &["c", "d"], &page(2, false, false)), ["a", "c"]);
    }

    #[test]
    fn a_page_without_those_who_were_asked_for_is_not_the_last() {
        let next = |name: &str| Some(name.to_owned());
        let at = |node: &str| List { node: Some(node.to_owned()), ..page(2, false, false) };
        // They are connected here and nothing else, so they keep nobody from the list who is away or elsewhere.
        assert_eq!(
            merge(&["a", "y"], &["b", "c"], &page(2, true, false)),
            (vec!["a".to_owned(), "y".to_owned()], next("y"))
        );
        assert_eq!(merge(&["a"], &["b", "c"], &page(2, true, false)), (vec!["a".to_owned()], None));
        assert_eq!(merge(&["y"], &["b", "c"], &at("n2")), (vec!["y".to_owned()], None));
        // What is connected here beyond c is not known yet.
        assert_eq!(merge(&["y"], &["b", "c"], &at("n1")), (vec!["b".to_owned(), "c".to_owned()], next("c")));
        assert_eq!(merge(&["y"], &["b", "c"], &page(2, false, true)), (vec![], next("c")));
        assert_eq!(
            merge(&["a", "y"], &["b"], &page(2, false, false)),
            (vec!["a".to_owned(), "b".to_owned()], next("b"))
        );
    }

    #[test]
    fn a_row_says_what_both_know() {
        let row = Row { client: "c".to_owned(), stored: Some(stored("c")), here: Some(("n1".to_owned(), here("c"))) };
        assert_eq!((row.waits().as_str(), row.expiry().as_str()), ("1000 or more", "with the connection"));
        assert_eq!(row.value()["in_flight"], 2);
    }
}
