//! Everything that is counted, named and written as Prometheus reads it: OpenMetrics 1.0.0, or the older text format 0.0.4.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::counts::Histogram;
use super::figures::{Conservation, Looked};
use super::process::Process;
use super::wire::{self, Direction};
use super::{Copies, Metrics};
use crate::admin::Status;

/// The two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// The one that whoever asks likes better (RFC 9110 §12.5.1). Nothing said is the older one, for people.
    #[must_use]
    pub fn of(accept: &str) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let format = match parts.next() {
                Some("application/openmetrics-text") => Self::OpenMetrics,
                Some("text/plain" | "text/*" | "*/*") => Self::Text,
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
            if weight > best.1 {
                best = (format, weight);
            }
        }
        best.0
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// What is so at one moment.
#[derive(Debug)]
pub struct Snapshot {
    status: Status,
    metrics: Arc<Metrics>,
    looked: Looked,
    conservation: Conservation,
    process: Process,
}

impl Snapshot {
    #[must_use]
    pub fn new(status: Status, metrics: Arc<Metrics>, looked: Looked, conservation: Conservation) -> Self {
        Self { status, metrics, looked, conservation, process: Process::look() }
    }

    /// # Errors
    /// None that occurs: it writes to memory.
    pub fn write(self, format: Format) -> Result<String, fmt::Error> {
        let (mut registry, mut page) = (Registry::default(), String::new());
        registry.register_collector(Box::new(self));
        text::encode(&mut page, &registry)?;
        Ok(match format {
            Format::OpenMetrics => page,
            Format::Text => older(&page),
        })
    }
}

/// The older format from the newer: there a counter's family has the name that its samples have.
fn older(page: &str) -> String {
    let mut lines = page.lines().peekable();
    let mut written = String::with_capacity(page.len() + page.len() / 8);
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            continue;
        }
        let counter = |line: &str| line.starts_with("# TYPE ") && line.ends_with(" counter");
        let total =
            if line.starts_with("# HELP ") { lines.peek().is_some_and(|next| counter(next)) } else { counter(line) };
        let mut words = line.splitn(4, ' ');
        if let (true, Some(hash), Some(what), Some(name), Some(rest)) =
            (total, words.next(), words.next(), words.next(), words.next())
        {
            written.extend([hash, " ", what, " ", name, "_total ", rest]);
        } else {
            written.push_str(line);
        }
        written.push('\n');
    }
    written
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let page = &mut Page(encoder);
        self.node(page)?;
        self.connections(page)?;
        self.bounds(page)?;
        packets(page)?;
        self.broker(page)?;
        self.conservation(page)?;
        self.switch(page)?;
        self.store(page)?;
        self.tls(page)?;
        self.actors(page)?;
        self.process(page)
    }
}

type Written = Result<(), fmt::Error>;

struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn family<T>(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = T>,
        write: impl Fn(&mut MetricEncoder<'_>, T) -> Written,
    ) -> Written {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        samples.into_iter().try_for_each(|sample| write(&mut family, sample))
    }

    fn counter(&mut self, name: &str, help: &str, count: u64) -> Written {
        self.family(MetricType::Counter, name, help, [count], |family, count| counter(family, &count))
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl IntoIterator<Item = (L, u64)>,
    ) -> Written {
        self.family(MetricType::Counter, name, help, counts, |family, (labels, count)| {
            counter(&mut family.encode_family(&labels)?, &count)
        })
    }

    fn gauge(&mut self, name: &str, help: &str, value: Option<f64>) -> Written {
        self.family(MetricType::Gauge, name, help, value, |family, value| family.encode_gauge(&value))
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> Written {
        self.family(MetricType::Gauge, name, help, values, |family, (labels, value)| {
            family.encode_family(&labels)?.encode_gauge(&value)
        })
    }

    fn histograms<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (L, &'h Histogram)>,
    ) -> Written {
        self.family(MetricType::Histogram, name, help, histograms, |family, (labels, histogram)| {
            let (sum, count, buckets) = histogram.read();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }
}

fn counter(family: &mut MetricEncoder<'_>, count: &u64) -> Written {
    family.encode_counter::<NoLabelSet, _, f64>(count, None)
}

/// The format has no other numbers.
#[expect(clippy::cast_precision_loss, reason = "nobody reads a gauge to sixteen digits")]
fn float(number: impl TryInto<i64>) -> f64 {
    number.try_into().unwrap_or(i64::MAX) as f64
}

impl Snapshot {
    fn node(&self, page: &mut Page<'_>) -> Written {
        let status = &self.status;
        let build = [(vec![("version", status.version.to_owned()), ("node", status.node.clone())], 1.0)];
        page.gauges("wakala_build_info", "The program's version and the node's name.", build)?;
        page.gauge("wakala_ready", "1 when terminals may be sent here.", Some(float(u8::from(status.ready))))?;
        page.gauge("wakala_uptime_seconds", "Since the node started.", Some(float(status.uptime_seconds)))
    }

    fn connections(&self, page: &mut Page<'_>) -> Written {
        let (connections, status) = (&self.metrics.connections, &self.status);
        let transports = [
            ("plain", &connections.plain),
            ("tls", &connections.tls),
            ("ws", &connections.websocket),
            ("wss", &connections.websocket_tls),
        ];
        page.counters(
            "wakala_connections",
            "Connections that were taken, by transport.",
            transports.map(|(transport, count)| ([("transport", transport)], count.get())),
        )?;
        let ended = [("crowded", &connections.crowded), ("slow", &connections.slow), ("unread", &connections.unread)];
        page.counters(
            "wakala_connections_ended_early",
            "Connections closed before a CONNECT was read: too many strangers or from a banned address, none in time, none that can be read.",
            ended.map(|(reason, count)| ([("reason", reason)], count.get())),
        )?;
        page.counter("wakala_connects_accepted", "CONNECTs that were accepted.", connections.sessions.get())?;
        page.counters(
            "wakala_connects_refused",
            "CONNECTs that were refused, by the CONNACK's reason code.",
            connections.refused().map(|(reason, count)| ([("reason", reason)], count)),
        )?;
        page.gauge("wakala_sessions_connected", "Clients that are connected here.", Some(float(status.sessions)))?;
        let kept = status.broker.as_ref().map(|broker| float(broker.kept));
        page.gauge("wakala_sessions_kept", "Guests' sessions that outlive their connection.", kept)
    }

    fn bounds(&self, page: &mut Page<'_>) -> Written {
        let (bounds, admitted) = (&self.status.bounds, &self.status.admitted);
        page.gauge("wakala_connects_waiting", "CONNECTs that wait for their session.", Some(float(admitted.waiting)))?;
        let ends = [
            ("opened", admitted.opened),
            ("busy", admitted.busy),
            ("gone", admitted.gone),
            ("failed", admitted.failed),
        ];
        page.counters(
            "wakala_connects_waited",
            "What became of CONNECTs whose session is stored; busy: told to come again, failed: the database did not do it.",
            ends.map(|(result, count)| ([("result", result)], count)),
        )?;
        page.counter("wakala_opening_commits", "Commits that opened sessions, many at once.", admitted.batches)?;
        page.gauge("wakala_bans", "Bans in force.", Some(float(bounds.bans)))?;
        let reached = [
            ("ban_of_address", bounds.banned_addresses),
            ("ban", bounds.banned),
            ("ban_of_session", bounds.ended),
            ("strangers_of_address", bounds.crowded),
            ("connects_of_client", bounds.flapping),
            ("connects_of_address", bounds.flapping_addresses),
            ("connects_of_range", bounds.flapping_ranges),
            ("wrong_password", bounds.wrong_passwords),
            ("unread_password", bounds.unverified),
            ("publishes", bounds.held),
            ("publishes_of_agent", bounds.held_agents),
            ("late_packet", bounds.late),
        ];
        page.counters(
            "wakala_bounds_reached",
            "Times that somebody was kept out, ended or left unread, by the bound that was reached.",
            reached.map(|(bound, count)| ([("bound", bound)], count)),
        )
    }

    fn broker(&self, page: &mut Page<'_>) -> Written {
        let (metrics, broker) = (&self.metrics, self.status.broker.as_ref());
        page.counter(
            "wakala_messages_published",
            "Messages of clients, and wills, that were sent on their way to subscribers.",
            metrics.published.get(),
        )?;
        page.counter(
            "wakala_messages_unmatched",
            "Of them, those to whose topic nobody subscribed.",
            metrics.unmatched.get(),
        )?;
        page.counter(
            "wakala_publishes_refused",
            "PUBLISH packets of clients on topics to which they have no right.",
            metrics.unauthorised.get(),
        )?;
        page.counter("wakala_wills_sent", "Wills that were sent.", metrics.wills.get())?;
        page.counter(
            "wakala_retained_refused",
            "Messages that were not retained: open.retained_max, open.retained_bytes_max.",
            metrics.unretained.get(),
        )?;
        page.counter(
            "wakala_presence_untold",
            "Who came and went, not told to subscribers: presence.waiting_max.",
            metrics.presence_untold.get(),
        )?;
        page.gauge(
            "wakala_retained_messages",
            "Topics that have a retained message.",
            broker.map(|broker| float(broker.retained)),
        )?;
        page.gauge(
            "wakala_retained_bytes",
            "What retained messages take in memory.",
            broker.map(|broker| float(broker.retained_bytes)),
        )?;
        page.gauge(
            "wakala_subscriptions",
            "Subscriptions of guests, of those that are away too.",
            broker.map(|broker| float(broker.subscriptions)),
        )?;
        page.histograms(
            "wakala_durable_latency_seconds",
            "From the arrival of a PUBLISH that is stored to when it is durable, and PUBACK or PUBREC may go out.",
            [
                ([("what", "publish")], &metrics.durable_publishes.0),
                ([("what", "request")], &metrics.durable_requests.0),
            ],
        )
    }

    fn conservation(&self, page: &mut Page<'_>) -> Written {
        let Conservation { direct, stored, requests, receipts } = &self.conservation;
        copies(page, "stored", "Copies that are stored, of all nodes", stored.as_ref())?;
        copies(page, "direct", "Copies that are not stored", Some(direct))?;
        let balances = [
            ("direct", Some(direct.balance)),
            ("stored", stored.as_ref().map(|copies| copies.balance)),
            ("requests", Some(requests.balance)),
            ("receipts", receipts.as_ref().map(super::super::store::tally::Receipts::balance)),
        ];
        page.gauges(
            "wakala_conservation_balance",
            "What is neither waiting nor accounted for. 0 when quiet; of stored copies and receipts, always.",
            balances.into_iter().filter_map(|(of, balance)| Some(([("of", of)], float(balance?)))),
        )
    }

    fn switch(&self, page: &mut Page<'_>) -> Written {
        let Conservation { requests, receipts, .. } = &self.conservation;
        page.counter("wakala_requests_arrived", "Requests of terminals, each try.", requests.arrived)?;
        let ends = [("admitted", requests.admitted), ("refused", requests.refused), ("withheld", requests.withheld)];
        page.counters(
            "wakala_requests",
            "What became of requests; withheld: the log, the database or the HSM was away, and there was no PUBACK.",
            ends.map(|(result, count)| ([("result", result)], count)),
        )?;
        page.counters(
            "wakala_telling_answers",
            "What programs were answered that had something to tell terminals, by the status of HTTP.",
            self.metrics.telling.answers().map(|(status, count)| ([("status", status)], count)),
        )?;
        page.gauge(
            "wakala_requests_under_way",
            "Requests on their way into the log.",
            Some(float(requests.under_way)),
        )?;
        let receipt = |pick: fn(&crate::store::tally::Receipts) -> u64| receipts.as_ref().map(pick);
        let made = [
            (
                "wakala_receipts_created",
                "Receipts and notices, each time that one is queued. Of all nodes.",
                receipt(|r| r.created),
            ),
            (
                "wakala_receipts_delivered",
                "Receipts and notices that were acknowledged. Of all nodes.",
                receipt(|r| r.delivered),
            ),
            ("wakala_receipts_withdrawn", "Notices that a receipt overtook. Of all nodes.", receipt(|r| r.withdrawn)),
        ];
        for (name, help, count) in made {
            page.family(MetricType::Counter, name, help, count, |family, count| counter(family, &count))?;
        }
        page.gauge(
            "wakala_receipts_waiting",
            "Receipts and notices that wait for their terminal. Of all nodes.",
            receipt(|r| r.waiting).map(float),
        )?;
        let pins = &self.metrics.pins;
        let pins = [
            ("correct", &pins.correct),
            ("wrong", &pins.wrong),
            ("malformed", &pins.malformed),
            ("fault", &pins.faults),
        ];
        page.counters(
            "wakala_pin_verifications",
            "PINs that the HSM was asked about; fault: it did not answer.",
            pins.map(|(result, count)| ([("result", result)], count.get())),
        )?;
        self.partitions(page)?;
        let cores = || self.status.cores.iter();
        page.gauges(
            "wakala_core_signed_on",
            "1 when the core's link is up and signed on; 0 also while its breaker is open.",
            cores().map(|(core, load)| ([("core", core.clone())], float(u8::from(load.signed_on)))),
        )?;
        page.gauges(
            "wakala_core_places_free",
            "Requests more that the core may have in flight.",
            cores().map(|(core, load)| ([("core", core.clone())], float(load.places_free))),
        )
    }

    fn partitions(&self, page: &mut Page<'_>) -> Written {
        let all = || self.looked.figures.iter().flat_map(|figures| &figures.partitions);
        let label = |number: i16| [("partition", number.to_string())];
        page.gauges(
            "wakala_partition_lag_records",
            "Records of the log in Postgres that are not decided yet. Of all nodes.",
            all().filter_map(|each| Some((label(each.partition), float(each.lag?)))),
        )?;
        page.gauges(
            "wakala_transactions_open",
            "Transactions that are not at their end, those in doubt too. Of all nodes.",
            all().map(|each| (label(each.partition), float(each.open))),
        )?;
        page.gauges(
            "wakala_transactions_in_doubt",
            "Transactions of which nobody knows what the core did. Of all nodes.",
            all().map(|each| (label(each.partition), float(each.in_doubt))),
        )?;
        page.gauges(
            "wakala_records_parked",
            "Records that could not be decided and lie in wakala.parked. Of all nodes.",
            all().map(|each| (label(each.partition), float(each.parked))),
        )
    }

    fn store(&self, page: &mut Page<'_>) -> Written {
        let batches = self.metrics.batches.all();
        page.gauge(
            "wakala_database_up",
            "1 when the database answered this very question.",
            Some(float(u8::from(self.looked.up))),
        )?;
        page.histograms(
            "wakala_commit_size",
            "Things in one commit, by what is stored.",
            batches.iter().map(|(batch, figures)| ([("batch", *batch)], &figures.sizes)),
        )?;
        page.histograms(
            "wakala_commit_duration_seconds",
            "How long a commit took, with all its tries, by what is stored.",
            batches.iter().map(|(batch, figures)| ([("batch", *batch)], &figures.seconds)),
        )?;
        page.counters(
            "wakala_commits_failed",
            "Commits that failed, or of which nobody heard, by what is stored.",
            batches.iter().map(|(batch, figures)| ([("batch", *batch)], figures.failed.get())),
        )
    }

    fn tls(&self, page: &mut Page<'_>) -> Written {
        let report = self.status.tls.as_ref();
        let handshakes = [("done", wire::SHAKEN.get()), ("failed", wire::UNSHAKEN.get())];
        page.counters(
            "wakala_tls_handshakes",
            "TLS handshakes, resumed ones too.",
            handshakes.map(|(result, count)| ([("result", result)], count)),
        )?;
        page.counter(
            "wakala_tls_resumptions",
            "TLS connections that went on with the keys of an earlier one.",
            wire::RESUMED.get(),
        )?;
        page.gauge(
            "wakala_tls_certificate_expiry_timestamp_seconds",
            "The end of the server's certificate.",
            report.map(|report| float(report.certificate_until.unix_timestamp())),
        )?;
        page.gauge(
            "wakala_tls_revocation_list_expiry_timestamp_seconds",
            "When the first revocation list should have been replaced.",
            report.and_then(|report| report.lists_until).map(|until| float(until.unix_timestamp())),
        )?;
        page.gauge(
            "wakala_tls_revoked_certificates",
            "Certificates that the lists revoke.",
            report.map(|report| float(report.revoked)),
        )?;
        page.gauge(
            "wakala_tls_resumable_connections",
            "TLS connections that may be resumed.",
            report.map(|report| float(report.resumable)),
        )?;
        let reads = report.map(|report| [("done", report.reloads), ("failed", report.failures)]);
        page.counters(
            "wakala_tls_file_reloads",
            "How often changed files were read again, and how often in vain.",
            reads.into_iter().flatten().map(|(result, count)| ([("result", result)], count)),
        )
    }

    fn actors(&self, page: &mut Page<'_>) -> Written {
        let mut rooms: std::collections::BTreeMap<&str, (u64, u64)> = std::collections::BTreeMap::new();
        for (path, branch) in &self.status.actors {
            let room = rooms.entry(path.split('/').next().unwrap_or(path)).or_default();
            room.0 += branch.restarts;
            room.1 += branch.panics;
        }
        page.counters(
            "wakala_actor_restarts",
            "Actors that were started again, by room.",
            rooms.iter().map(|(room, (restarts, _))| ([("room", *room)], *restarts)),
        )?;
        page.counters(
            "wakala_actor_panics",
            "Actors that panicked, by room.",
            rooms.iter().map(|(room, (_, panics))| ([("room", *room)], *panics)),
        )
    }

    fn process(&self, page: &mut Page<'_>) -> Written {
        let process = &self.process;
        let cpu = process.cpu_s;
        page.family(
            MetricType::Counter,
            "process_cpu_seconds",
            "User and system CPU time.",
            cpu,
            |family, seconds| family.encode_counter::<NoLabelSet, _, f64>(&seconds, None),
        )?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory that is resident.", process.resident_bytes),
            ("process_virtual_memory_bytes", "Memory that is mapped.", process.virtual_bytes),
            ("process_open_fds", "File descriptors that are open.", process.open_fds),
            ("process_max_fds", "File descriptors that may be open.", process.max_fds),
            ("process_threads", "Threads.", process.threads),
        ] {
            page.gauge(name, help, value.map(float))?;
        }
        Ok(())
    }
}

fn packets(page: &mut Page<'_>) -> Written {
    let directions: [(&str, &'static Direction); 2] = [("received", &wire::RECEIVED), ("sent", &wire::SENT)];
    let kinds = || {
        directions.into_iter().flat_map(|(direction, flows)| {
            flows
                .kinds()
                .map(move |(kind, packets, bytes)| ([("direction", direction), ("type", kind)], packets, bytes))
        })
    };
    page.counters("wakala_packets", "MQTT packets, by type.", kinds().map(|(labels, packets, _)| (labels, packets)))?;
    page.counters(
        "wakala_packet_bytes",
        "Bytes of MQTT packets, headers included, before TLS.",
        kinds().map(|(labels, _, bytes)| (labels, bytes)),
    )?;
    let publishes = directions.into_iter().flat_map(|(direction, flows)| {
        let numbered = ["0", "1", "2"].into_iter().zip(flows.publishes());
        numbered.map(move |(qos, count)| ([("direction", direction), ("qos", qos)], count))
    });
    page.counters("wakala_publishes", "PUBLISH packets, by QoS.", publishes)?;
    page.counters(
        "wakala_publish_payload_bytes",
        "Bytes of the payloads of PUBLISH packets.",
        directions.map(|(direction, flows)| ([("direction", direction)], flows.payload_bytes())),
    )
}

/// One side of the law of conservation.
fn copies(page: &mut Page<'_>, side: &str, are: &str, copies: Option<&Copies>) -> Written {
    let name = |what: &str| format!("wakala_{side}_copies_{what}");
    type Pick = fn(&Copies) -> u64;
    let counts: [(&str, &str, Pick); 3] = [
        ("addressed", "addressed to subscribers", |copies| copies.addressed),
        ("delivered", "delivered", |copies| copies.delivered),
        ("expired", "over before they were delivered", |copies| copies.expired),
    ];
    for (what, were, pick) in counts {
        let help = format!("{are}: {were}.");
        page.family(MetricType::Counter, &name(what), &help, copies.map(pick), |family, count| {
            counter(family, &count)
        })?;
    }
    let refused = copies.iter().flat_map(|copies| &copies.refused);
    page.counters(
        &name("refused"),
        &format!("{are}: ended otherwise, by reason."),
        refused.map(|(reason, count)| ([("reason", reason.clone())], *count)),
    )?;
    page.gauge(&name("waiting"), &format!("{are}: waiting."), copies.map(|copies| float(copies.waiting)))
}

#[cfg(test)]
mod tests;
