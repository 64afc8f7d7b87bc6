//! The log in Apache Kafka, for several nodes.
//!
//! The producer is idempotent and waits for all replicas in sync; what it reports as delivered is what PUBACK may say.
//! Each reader is a consumer of its own, assigned to its partition at the position that Postgres holds: there is no
//! consumer group, no rebalance and no offset in Kafka. Who reads is decided by leases in Postgres.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset as At, TopicPartitionList};
use serde::{Deserialize, Serialize};
use wakala::id::{Offset, PartitionNo, TerminalId};

use crate::ports::{Log, LogError, Logged, Reader, Wait};

/// The log in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `host:port`, separated by commas; a few of the brokers are enough.
    pub brokers: String,
    /// The topic of the requests. Made when it is missing.
    pub topic: String,
    /// Its partitions. A topic that has another number is refused.
    pub partitions: u16,
    /// Copies of each record, for a topic that is made.
    pub replication_factor: u8,
    /// Copies that must be written before a record counts, for a topic that is made. Of several copies two at least; a
    /// topic for which one is enough is refused.
    pub min_insync_replicas: u8,
    /// How long Kafka keeps records, for a topic that is made. Longer than any outage of the database.
    #[serde(with = "humantime_serde")]
    pub retention: Duration,
    /// The largest record, in bytes.
    pub record_max_bytes: usize,
    /// How long to gather records for one request to a broker.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// How long a record may be on its way in; then its append fails, and the terminal asks again.
    #[serde(with = "humantime_serde")]
    pub delivery_timeout: Duration,
    /// How long a broker may take for one request.
    #[serde(with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Records that may be on their way in; the next one is refused.
    pub producer_queue_max: u32,
    /// The same, in bytes.
    pub producer_queue_max_bytes: usize,
    /// What each reader fetches ahead, in bytes.
    pub reader_queue_max_bytes: usize,
    /// How long a broker may hold a fetch back when it has nothing.
    #[serde(with = "humantime_serde")]
    pub fetch_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            topic: "wakala.requests".to_owned(),
            partitions: 12,
            replication_factor: 3,
            min_insync_replicas: 2,
            retention: Duration::from_secs(7 * 24 * 3600),
            record_max_bytes: 64 * 1024,
            linger: Duration::from_millis(1),
            delivery_timeout: Duration::from_secs(20),
            request_timeout: Duration::from_secs(5),
            producer_queue_max: 20_000,
            producer_queue_max_bytes: 32 * 1024 * 1024,
            reader_queue_max_bytes: 4 * 1024 * 1024,
            fetch_wait: Duration::from_millis(500),
        }
    }
}

/// Sends the library's own log where ours goes.
#[derive(Clone, Copy, Debug)]
struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!(facility, message, "kafka");
            }
            RDKafkaLogLevel::Warning => tracing::info!(facility, message, "kafka"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, message, "kafka");
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Context {}

/// See the module's text.
pub struct KafkaLog {
    options: Options,
    /// Replaced when it met an error after which an idempotent producer may not go on.
    producer: Arc<RwLock<FutureProducer<Context>>>,
}

impl std::fmt::Debug for KafkaLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaLog").field("options", &self.options).finish_non_exhaustive()
    }
}

impl KafkaLog {
    /// Connects, and makes the topic when it is missing.
    ///
    /// # Errors
    /// [`LogError::Away`] when no broker answers, [`LogError::Broken`] when the topic has another number of partitions, or
    /// several copies of a record of which one may be alone when it counts.
    pub async fn open(options: &Options) -> Result<Self, LogError> {
        let found = match shape_of(options).await? {
            None => {
                make_topic(options).await?;
                wait_for_topic(options).await?
            }
            Some(found) => found,
        };
        let topic = &options.topic;
        if found.partitions != usize::from(options.partitions) {
            let why =
                format!("topic {topic} has {} partitions, and {} are configured", found.partitions, options.partitions);
            return Err(LogError::Broken { position: Offset(0), why });
        }
        if found.copies < 2 {
            tracing::warn!(
                topic,
                "Kafka keeps one copy of each record: what is acknowledged is lost with its broker's disk"
            );
        } else if in_sync_min(options).await? < 2 {
            let why = format!(
                "topic {topic} has {} copies of each record, and one of them is enough to acknowledge it, which is lost with \
                 that broker: set its min.insync.replicas to 2",
                found.copies
            );
            return Err(LogError::Broken { position: Offset(0), why });
        }
        let producer = Arc::new(RwLock::new(new_producer(options)?));
        Ok(Self { options: options.clone(), producer })
    }
}

impl Log for KafkaLog {
    fn partitions(&self) -> u16 {
        self.options.partitions
    }

    fn append(
        &self,
        partition: PartitionNo,
        terminal: &TerminalId,
        record: Vec<u8>,
    ) -> Wait<'static, Result<Offset, LogError>> {
        let (found, max) = (record.len(), self.options.record_max_bytes);
        if found > max {
            return Box::pin(async move { Err(LogError::TooLarge { found, max }) });
        }
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner).clone();
        let to = FutureRecord::to(&self.options.topic)
            .partition(i32::from(partition.0))
            .key(terminal.as_str())
            .payload(&record);
        // Not `send`: its wait for room in the queue would be a second queue, without a bound.
        let delivery = match producer.send_result(to) {
            Ok(delivery) => delivery,
            Err((error, _)) => {
                self.replace_if_fatal(&producer);
                return Box::pin(async move { Err(append_error(&error, found, max)) });
            }
        };
        let (options, shared) = (self.options.clone(), Arc::clone(&self.producer));
        Box::pin(async move {
            match delivery.await {
                Ok(Ok(delivered)) => Ok(Offset(delivered.offset)),
                Ok(Err((error, _))) => {
                    replace_if_fatal(&options, &shared, &producer);
                    Err(append_error(&error, found, max))
                }
                Err(_) => Err(LogError::Away("the producer is gone".to_owned())),
            }
        })
    }

    fn read(&self, partition: PartitionNo, from: Offset) -> Result<Box<dyn Reader>, LogError> {
        if partition.0 >= self.options.partitions {
            let why = format!("there is no partition {partition}");
            return Err(LogError::Broken { position: from, why });
        }
        // The library has meanings of its own for numbers below zero.
        if from.0 < 0 {
            return Err(LogError::Broken { position: from, why: "a log begins at 0".to_owned() });
        }
        let consumer: StreamConsumer<Context> =
            reader_config(&self.options).create_with_context(Context).map_err(|error| away(&error))?;
        let mut assigned = TopicPartitionList::new();
        assigned
            .add_partition_offset(&self.options.topic, i32::from(partition.0), At::Offset(from.0))
            .and_then(|()| consumer.assign(&assigned))
            .map_err(|error| away(&error))?;
        Ok(Box::new(KafkaReader {
            consumer: Some(Arc::new(consumer)),
            topic: self.options.topic.clone(),
            partition: i32::from(partition.0),
            position: from.0,
            timeout: self.options.request_timeout,
            checked: false,
        }))
    }
}

impl KafkaLog {
    fn replace_if_fatal(&self, producer: &FutureProducer<Context>) {
        replace_if_fatal(&self.options, &self.producer, producer);
    }
}

/// After a fatal error an idempotent producer takes nothing more; a new one has a new identity. What was on its way is
/// told as an error, and asked again.
fn replace_if_fatal(options: &Options, shared: &RwLock<FutureProducer<Context>>, failed: &FutureProducer<Context>) {
    let Some((code, reason)) = failed.client().fatal_error() else { return };
    let mut current = shared.write().unwrap_or_else(PoisonError::into_inner);
    if current.client().fatal_error().is_none() {
        return;
    }
    tracing::error!(%code, reason, "the producer met a fatal error and is replaced");
    match new_producer(options) {
        Ok(new) => *current = new,
        Err(error) => tracing::error!(%error, "no new producer"),
    }
}

struct KafkaReader {
    /// `None` when dropped.
    consumer: Option<Arc<StreamConsumer<Context>>>,
    topic: String,
    partition: i32,
    /// The next record to be read.
    position: i64,
    timeout: Duration,
    /// The position was found to be one of this log.
    checked: bool,
}

impl Drop for KafkaReader {
    fn drop(&mut self) {
        // Closing a consumer waits for its threads, which an arbiter must not.
        let consumer = self.consumer.take();
        std::thread::spawn(move || drop(consumer));
    }
}

impl Reader for KafkaReader {
    fn next(&mut self, max: usize) -> Wait<'_, Result<Vec<Logged>, LogError>> {
        Box::pin(async move {
            let Some(consumer) = self.consumer.clone() else {
                return Err(LogError::Away("the reader is closed".to_owned()));
            };
            self.check(&consumer).await?;
            let mut read = Vec::new();
            let first = consumer.recv().await.map_err(|error| self.read_error(&error))?;
            self.take(&first, &mut read)?;
            while read.len() < max {
                match consumer.recv().now_or_never() {
                    Some(Ok(message)) => self.take(&message, &mut read)?,
                    // It comes again with the next read; what was read is not lost for it.
                    Some(Err(error)) => {
                        tracing::debug!(%error, "kafka, between two records");
                        break;
                    }
                    None => break,
                }
            }
            Ok(read)
        })
    }
}

impl KafkaReader {
    fn take(&mut self, message: &BorrowedMessage<'_>, read: &mut Vec<Logged>) -> Result<(), LogError> {
        if message.offset() < self.position {
            let why = format!("record {} came after {}", message.offset(), self.position - 1);
            return Err(LogError::Broken { position: Offset(self.position), why });
        }
        self.position = message.offset() + 1;
        let bytes = message.payload().unwrap_or_default().to_vec();
        read.push(Logged { offset: Offset(message.offset()), bytes });
        Ok(())
    }

    /// Kafka would wait in silence for an offset to come that the log has not reached: a topic that was made again.
    async fn check(&mut self, consumer: &Arc<StreamConsumer<Context>>) -> Result<(), LogError> {
        if self.checked {
            return Ok(());
        }
        let (asked, topic) = (Arc::clone(consumer), self.topic.clone());
        let (partition, timeout) = (self.partition, self.timeout);
        let asking = tokio::task::spawn_blocking(move || asked.fetch_watermarks(&topic, partition, timeout));
        let (low, high) = match asking.await {
            Ok(found) => found.map_err(|error| self.read_error(&error))?,
            Err(error) => return Err(LogError::Away(error.to_string())),
        };
        if !(low..=high).contains(&self.position) {
            let why = format!("partition {partition} of {} has the records from {low} to before {high}", self.topic);
            return Err(LogError::Broken { position: Offset(self.position), why });
        }
        self.checked = true;
        Ok(())
    }

    fn read_error(&self, error: &KafkaError) -> LogError {
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::BadMessage,
            ) => LogError::Broken { position: Offset(self.position), why: error.to_string() },
            _ => away(error),
        }
    }
}

fn away(error: &KafkaError) -> LogError {
    LogError::Away(error.to_string())
}

fn append_error(error: &KafkaError, found: usize, max: usize) -> LogError {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => LogError::TooLarge { found, max },
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownPartition) => {
            LogError::Broken { position: Offset(0), why: error.to_string() }
        }
        _ => away(error),
    }
}

/// Room for what a broker adds to a record.
const OVERHEAD_BYTES: usize = 1024;

fn config(options: &Options) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &options.brokers)
        .set("client.id", "wakala")
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", "10000")
        .set("reconnect.backoff.max.ms", "2000")
        .set("retry.backoff.ms", "50")
        .set("message.max.bytes", (options.record_max_bytes + OVERHEAD_BYTES).max(16 * 1024).to_string())
        .set_log_level(RDKafkaLogLevel::Warning);
    config
}

fn new_producer(options: &Options) -> Result<FutureProducer<Context>, LogError> {
    let producer = config(options)
        .set("acks", "all")
        // No record twice or out of order because the client tried again; sets retries and requests in flight.
        .set("enable.idempotence", "true")
        .set("linger.ms", options.linger.as_millis().to_string())
        .set("delivery.timeout.ms", options.delivery_timeout.as_millis().to_string())
        .set("request.timeout.ms", options.request_timeout.as_millis().to_string())
        .set("queue.buffering.max.messages", options.producer_queue_max.to_string())
        .set("queue.buffering.max.kbytes", (options.producer_queue_max_bytes / 1024).max(1).to_string())
        .create_with_context(Context);
    producer.map_err(|error| away(&error))
}

fn reader_config(options: &Options) -> ClientConfig {
    let mut config = config(options);
    config
        // The library wants a name for it; nobody ever joins it.
        .set("group.id", "wakala-has-no-group")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // A position that is gone is for an operator, not for a guess.
        .set("auto.offset.reset", "error")
        .set("allow.auto.create.topics", "false")
        .set("isolation.level", "read_committed")
        .set("check.crcs", "true")
        .set("queued.min.messages", "200")
        .set("queued.max.messages.kbytes", (options.reader_queue_max_bytes / 1024).max(1).to_string())
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.wait.max.ms", options.fetch_wait.as_millis().to_string());
    config
}

/// What a topic is made of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    partitions: usize,
    /// Of each record, in the partition that has fewest.
    copies: usize,
}

/// None when there is no such topic.
async fn shape_of(options: &Options) -> Result<Option<Shape>, LogError> {
    let (config, topic, timeout) = (reader_config(options), options.topic.clone(), options.request_timeout);
    let asking = tokio::task::spawn_blocking(move || {
        let asked: BaseConsumer<Context> = config.create_with_context(Context)?;
        // All topics: asking for one by name could make it.
        let metadata = asked.fetch_metadata(None, timeout)?;
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        let partitions = found.map(|found| found.partitions()).filter(|partitions| !partitions.is_empty());
        Ok::<_, KafkaError>(partitions.map(|partitions| {
            let copies = partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0);
            Shape { partitions: partitions.len(), copies }
        }))
    });
    asking.await.map_err(|error| LogError::Away(error.to_string()))?.map_err(|error| away(&error))
}

/// How many copies there must be before a record of the topic counts, wherever that is configured.
async fn in_sync_min(options: &Options) -> Result<u32, LogError> {
    const KEY: &str = "min.insync.replicas";
    let admin: AdminClient<Context> = config(options).create_with_context(Context).map_err(|error| away(&error))?;
    let patience = AdminOptions::new().request_timeout(Some(options.request_timeout));
    let asked = [ResourceSpecifier::Topic(&options.topic)];
    let mut why = String::new();
    for _ in 0..20 {
        let told = admin.describe_configs(&asked, &patience).await.map_err(|error| away(&error))?;
        why = match told.first() {
            Some(Ok(topic)) => match topic.get(KEY).and_then(|entry| entry.value.as_ref()?.parse().ok()) {
                Some(min) => return Ok(min),
                None => format!("it is not among {} entries", topic.entries.len()),
            },
            Some(Err(code)) => code.to_string(),
            None => "no answer".to_owned(),
        };
        // A broker may hear of a new topic later than the one that made it.
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Err(LogError::Away(format!("topic {}: Kafka does not say its {KEY}: {why}", options.topic)))
}

async fn make_topic(options: &Options) -> Result<(), LogError> {
    let admin: AdminClient<Context> = config(options).create_with_context(Context).map_err(|error| away(&error))?;
    let settings: BTreeMap<&str, String> = [
        ("cleanup.policy", "delete".to_owned()),
        ("min.insync.replicas", options.min_insync_replicas.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        ("retention.ms", options.retention.as_millis().to_string()),
        ("max.message.bytes", (options.record_max_bytes + OVERHEAD_BYTES).to_string()),
    ]
    .into();
    let copies = TopicReplication::Fixed(i32::from(options.replication_factor));
    let topic = settings
        .iter()
        .fold(NewTopic::new(&options.topic, i32::from(options.partitions), copies), |topic, (key, value)| {
            topic.set(key, value)
        });
    let patience = AdminOptions::new().operation_timeout(Some(options.request_timeout));
    let made = admin.create_topics([&topic], &patience).await.map_err(|error| away(&error))?;
    for result in made {
        match result {
            // Another node was faster.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(LogError::Away(format!("topic {topic} could not be made: {code}"))),
        }
    }
    Ok(())
}

/// A broker may hear of a new topic later than the one that made it.
async fn wait_for_topic(options: &Options) -> Result<Shape, LogError> {
    for _ in 0..20 {
        match shape_of(options).await? {
            None => tokio::time::sleep(Duration::from_millis(250)).await,
            Some(found) => return Ok(found),
        }
    }
    Err(LogError::Away(format!("topic {} was made and does not appear", options.topic)))
}
