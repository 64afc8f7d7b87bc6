//! Who published what is retained: a subscription that wants no local messages is not sent its client's own [MQTT-3.8.3-3]. A node of
//! an older program that replaces a message leaves the name of who retained the one before.

step!(
    "m0033_retained_publishers",
    up: r"
alter table wakala.retained add column publisher text null;
comment on column wakala.retained.publisher is 'The client that published it. Null when it was no client, or before that was kept.';
",
    down: "alter table wakala.retained drop column publisher;"
);
