//! As which one of a session's PUBRECs that of a delivery came: PUBRELs keep that order also on the next connection
//! [MQTT-4.6.0-4]. A node of an older program stores none, and what it released goes first.

step!(
    "m0034_received",
    up: r"
alter table wakala.message add column received_nth bigint null;
comment on column wakala.message.received_nth is 'QoS 2: as which one of the session its PUBREC came. Null before that, or from an older program.';
",
    down: "alter table wakala.message drop column received_nth;"
);
