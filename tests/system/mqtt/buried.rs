//! A node that lives and is without its name, for a moment or for longer.

use std::time::Duration;

use super::identity::Hello;
use super::wire::Wire;
use super::{Broker, anywhere, until};
use wakala_system_tests::Database;

/// A node of a general broker that looks often, and does not hold its name yet.
async fn nameless(database: &Database, name: &'static str, dead_after: Option<Duration>) -> Broker {
    Broker::made(database.store().await, anywhere(), move |deps| {
        deps.node = name.to_owned();
        deps.open.anonymous = true;
        deps.open.wills_every = Duration::from_millis(100);
        deps.options.overtaken_every = Duration::from_millis(100);
        if let Some(dead_after) = dead_after {
            deps.options.dead_after = dead_after;
        }
    })
    .await
}

async fn hold(broker: &Broker, name: &str) {
    broker.store.hold_name(name, |why| panic!("{why}")).await.expect("the name is free");
}

fn guest(client: &str, v5: bool, kept: bool) -> Hello<'_> {
    Hello { v5, client, user: None, password: None, will: Some("left"), kept }
}

/// How many names are held.
const HELD: &str = "select count(*) from pg_locks where locktype = 'advisory' and objsubid = 2 \
                    and database = (select oid from pg_database where datname = current_database())";

/// Of this client, in order.
fn history(client: &str) -> String {
    format!(
        "select string_agg(coalesce(why, 'online') || ' @' || node, ', ' order by seq) from wakala.presence \
         where client_id = '{client}'"
    )
}

/// The locks are gone with a restart of Postgres, and each node takes its own again at its next look.
#[tokio::test]
async fn a_node_that_is_without_its_name_for_a_moment_is_not_taken_for_dead() {
    let database = Database::new();
    let (lives, other) = (nameless(&database, "n1", None).await, nameless(&database, "n2", None).await);
    for (broker, name) in [(&lives, "n1"), (&other, "n2")] {
        hold(broker, name).await;
    }
    let (mut wire, code) = guest("kept", true, true).at(&lives).await;
    assert_eq!(code, 0);
    let cut = HELD.replace("count(*)", "count(pg_terminate_backend(pid, 5000))");
    assert_eq!(database.rows(&cut), "2", "two names were held");
    // With time to spare: a look of the other one locks a name that is free, too.
    let mut tries = 0;
    while database.rows(HELD) != "2" {
        tries += 1;
        assert!(tries < 200, "both take their names again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(database.rows(&history("kept")), "online @n1");
    assert_eq!(database.rows("select count(*) from wakala.will where due_at is null"), "1");
    assert_eq!(database.rows("select connected from wakala.session"), "t");
    wire.ping().await;
}

/// Its end has been told, and its will is sent: only a later connection can put that right.
#[tokio::test]
async fn who_is_connected_to_a_node_that_was_taken_for_dead_is_made_to_come_back() {
    let database = Database::new();
    let buried = nameless(&database, "n1", None).await;
    let mut wires = Vec::new();
    // Of a session that was to end with its connection nothing is left.
    for (client, v5, kept) in [("kept", true, true), ("three", false, true), ("clean", true, false)] {
        let (wire, code) = guest(client, v5, kept).at(&buried).await;
        assert_eq!(code, 0);
        wires.push((wire, v5));
    }
    // Nothing is stored of this one, and nobody says that it died.
    let (mut unstored, _) = Wire::connect(buried.plain(), true, "unstored", true).await;
    let other = nameless(&database, "n2", Some(Duration::ZERO)).await;
    hold(&other, "n2").await;
    for (wire, v5) in &mut wires {
        let ended = wire.receive().await.map(|(first, body)| (first, body[0]));
        assert_eq!(ended, v5.then_some((0xE0, 0x80)));
    }
    unstored.ping().await;
    hold(&buried, "n1").await;
    until(&database, "select count(*) from wakala.will", "0").await;
    for (client, v5, kept) in [("kept", true, true), ("three", false, true), ("clean", true, false)] {
        let (mut wire, code) = guest(client, v5, kept).at(&buried).await;
        assert_eq!(code, 0);
        // Some looks later it is there still.
        tokio::time::sleep(Duration::from_millis(500)).await;
        wire.ping().await;
        until(&database, &history(client), "online @n1, its node died @n1, online @n1").await;
    }
}
