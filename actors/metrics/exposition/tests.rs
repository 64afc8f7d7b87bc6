//! The page is right by the formats' rules, and docs/operators.md says what is on it.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::banks::Load;
use crate::listener::tls::Report;
use crate::metrics::figures::Figures;
use crate::router::Holdings;
use crate::store::figures::PartitionFigures;
use crate::store::tally::Tally;
use crate::supervision::{BranchState, Tree};

/// One in which nothing is missing.
fn snapshot() -> Snapshot {
    let tree = Tree::default();
    tree.set("partitions/0", BranchState::Running);
    let at = time::OffsetDateTime::UNIX_EPOCH;
    let status = Status {
        node: "n \"1\"".to_owned(),
        version: "0.1.0",
        sandbox: false,
        ready: true,
        uptime_seconds: 7,
        sessions: 3,
        tls: Some(Report {
            certificate_until: at,
            revoked: 1,
            lists_until: Some(at),
            resumable: 2,
            reloads: 3,
            failures: 4,
            failure: None,
        }),
        identity: Default::default(),
        broker: Some(Holdings { retained: 1, retained_bytes: 9, subscriptions: 2, clients: 3, kept: 1, arriving: 0 }),
        evacuation: None,
        bounds: Default::default(),
        admitted: Default::default(),
        cores: BTreeMap::from([("c1".to_owned(), Load { signed_on: true, places_free: 64 })]),
        actors: tree.branches(),
    };
    let partitions = vec![PartitionFigures { partition: 0, lag: Some(1), open: 2, in_doubt: 1, parked: 0 }];
    let figures = Arc::new(Figures { tally: Tally::default(), partitions });
    let metrics = Arc::<Metrics>::default();
    let conservation = Conservation::of(&metrics, Some(&figures), 0);
    Snapshot::new(status, metrics, Looked { up: true, figures: Some(figures) }, conservation)
}

/// The families of a page: the name, the type and what is said of it.
fn families(page: &str) -> Vec<(String, String, String)> {
    let lines: Vec<&str> = page.lines().collect();
    let described = lines.windows(2).filter_map(|pair| {
        let help = pair[0].strip_prefix("# HELP ")?;
        let (name, help) = help.split_once(' ').expect("a text");
        let kind = pair[1].strip_prefix(&format!("# TYPE {name} ")).unwrap_or_else(|| panic!("no type of {name}"));
        Some((name.to_owned(), kind.to_owned(), help.to_owned()))
    });
    described.collect()
}

#[test]
fn a_bound_that_was_reached_is_named() {
    let mut snapshot = snapshot();
    let bounds = &mut snapshot.status.bounds;
    (bounds.held, bounds.held_agents, bounds.flapping_addresses, bounds.flapping_ranges) = (2, 3, 4, 5);
    let page = snapshot.write(Format::OpenMetrics).expect("written");
    for (bound, times) in
        [("publishes", 2), ("publishes_of_agent", 3), ("connects_of_address", 4), ("connects_of_range", 5)]
    {
        let sample = format!("wakala_bounds_reached_total{{bound=\"{bound}\"}} {times}\n");
        assert!(page.contains(&sample), "{sample}");
    }
}

/// The rules of `promtool check metrics`, as far as they are about one page.
#[test]
fn each_family_is_described_once_has_samples_and_a_name_that_says_its_unit() {
    for format in [Format::OpenMetrics, Format::Text] {
        let page = snapshot().write(format).expect("written");
        let families = families(&page);
        let names: BTreeSet<&str> = families.iter().map(|(name, ..)| &**name).collect();
        assert_eq!(names.len(), families.len(), "described twice");
        let mut samples = BTreeSet::new();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (sample, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(samples.insert(sample), "twice: {sample}");
        }
        for (name, kind, help) in &families {
            let total = if format == Format::OpenMetrics { "_total" } else { "" };
            let sample = match kind.as_str() {
                "counter" => format!("{name}{total}"),
                "gauge" => name.clone(),
                "histogram" => {
                    assert!(page.contains(&format!("{name}_bucket{{le=\"+Inf\"")), "{name} ends somewhere");
                    format!("{name}_count")
                }
                other => panic!("{name} is a {other}"),
            };
            assert!(
                samples.iter().any(|found| *found == sample || found.starts_with(&format!("{sample}{{"))),
                "no sample of {name}"
            );
            assert!(help.len() > 4 && help.ends_with('.'), "{name}: {help}");
            assert_eq!(name.ends_with("_total"), kind == "counter" && format == Format::Text, "{name}");
            for unit in ["milli", "micro", "_ms", "_kb", "minutes", "percent"] {
                assert!(!name.contains(unit), "{name} is not in a base unit");
            }
        }
        assert_eq!(page.ends_with("# EOF\n"), format == Format::OpenMetrics);
        assert!(page.contains(r#"node="n \"1\"""#), "what is quoted in a label is escaped");
    }
}

#[test]
fn who_asks_for_the_newer_format_has_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    assert_eq!(Format::of(prometheus), Format::OpenMetrics);
    for accept in ["", "*/*", "text/plain", "text/html", "application/openmetrics-text;q=0.1, text/plain;q=0.9"] {
        assert_eq!(Format::of(accept), Format::Text, "{accept}");
    }
}

#[test]
fn the_operators_table_is_what_the_page_says() {
    let page = snapshot().write(Format::Text).expect("written");
    let rows = families(&page).into_iter().map(|(name, kind, help)| {
        let of = page
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_bucket{{")));
        let labels = of.and_then(|line| line.split_once('{')).and_then(|(_, rest)| rest.split_once('}'));
        let labels = labels.map_or("", |(labels, _)| labels).split("\",");
        let labels =
            labels.filter_map(|label| label.split_once('=')).map(|(label, _)| label).filter(|label| *label != "le");
        let labels: Vec<&str> = labels.collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        format!("| `{name}{labels}` | {kind} | {help} |\n")
    });
    let table: String = rows.collect();
    let path = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"));
    let docs = std::fs::read_to_string(path.join("../docs/operators.md")).expect("docs/operators.md");
    assert!(docs.contains(&table), "docs/operators.md should say:\n{table}");
}

/// That there are the metrics, `tests/foreign/test_metrics.py` shows at a node; one that asks for a label that there is not, or
/// for a value of it, is silent for ever.
#[test]
fn the_alerts_ask_for_labels_that_there_are() {
    let page = snapshot().write(Format::Text).expect("written");
    let path = std::path::PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests"));
    let alerts = std::fs::read_to_string(path.join("../config/alerts.yaml")).expect("config/alerts.yaml");
    let word = |text: &str| -> String {
        text.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect()
    };
    let (mut selected, mut named) = (0, 0);
    for asked in alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        for (at, _) in asked.match_indices('{') {
            let start = asked[..at].rfind(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
            let name = &asked[start.map_or(0, |start| start + 1)..at];
            let (selector, _) = asked[at + 1..].split_once('}').expect("an end");
            for (label, values) in selector.split(',').filter_map(|pair| pair.split_once('=')) {
                for value in values.trim_matches(['~', '"']).split('|') {
                    let there = |line: &str| {
                        line.starts_with(&format!("{name}{{")) && line.contains(&format!("{label}=\"{value}\""))
                    };
                    assert!(page.lines().any(there), "{asked}: no sample of {name} with {label}={value}");
                    selected += 1;
                }
            }
        }
        for (at, by) in asked.match_indices("by (") {
            let label = word(&asked[at + by.len()..]);
            let metric = asked[at..].find("wakala_").map(|from| word(&asked[at + from..])).expect("a metric");
            let family = metric.trim_end_matches("_bucket");
            let there = |line: &str| line.starts_with(family) && line.contains(&format!("{label}=\""));
            assert!(page.lines().any(there), "{asked}: no sample of {metric} with {label}");
        }
    }
    for (at, said) in alerts.match_indices("$labels.") {
        let label = word(&alerts[at + said.len()..]);
        assert!(page.contains(&format!("{label}=\"")), "no sample has {label}");
        named += 1;
    }
    assert!(selected >= 4 && named >= 4, "{selected} selected, {named} named: what was read is not what is there");
}
