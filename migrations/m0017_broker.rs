//! What a general broker keeps besides: messages with their properties, QoS 2 exchanges, wills, retained messages.

step!(
    "m0017_broker",
    up: r"
alter table wakala.message
    add column released    boolean   not null default false,
    add column identifiers integer[] not null default '{}';
comment on column wakala.message.released is 'QoS 2: the client has it, and a PUBREL is owed or was sent.';
comment on column wakala.message.identifiers is 'Of the subscriptions that it matched.';
comment on column wakala.message.properties is 'As a PUBLISH of MQTT 5 has them on the wire.';

create table wakala.received (
    client_id text    not null references wakala.session on delete cascade,
    packet_id integer not null check (packet_id between 1 and 65535),
    primary key (client_id, packet_id)
);
comment on table wakala.received is 'QoS 2: publishes of clients that were taken and not released.';

create table wakala.will (
    client_id  text        not null references wakala.session on delete cascade,
    epoch      bigint      not null,
    topic      text        not null,
    qos        smallint    not null check (qos between 0 and 2),
    retain     boolean     not null,
    payload    bytea       not null,
    properties bytea       null,
    -- Of the message, from when it is sent.
    expiry_s   bigint      null check (expiry_s >= 0),
    delay_s    bigint      not null check (delay_s >= 0),
    due_at     timestamptz null,
    primary key (client_id, epoch)
);
create index will_due on wakala.will (due_at) where due_at is not null;
comment on column wakala.will.due_at is 'Null while its connection lives. Whoever sends it deletes the row in the same commit.';

create table wakala.retained (
    topic      text        primary key,
    qos        smallint    not null check (qos between 0 and 2),
    payload    bytea       not null,
    properties bytea       null,
    expires_at timestamptz null,
    at         timestamptz not null
);
create index retained_expires on wakala.retained (expires_at) where expires_at is not null;

-- Clients that are not enrolled have a session only while it lasts, so their epochs must not begin anew.
create sequence wakala.guest_epoch;

grant select, insert, update, delete on wakala.received, wakala.will, wakala.retained to wakala_service;
grant usage on sequence wakala.guest_epoch to wakala_service;
",
    down: r"
drop sequence wakala.guest_epoch;
drop table wakala.retained;
drop table wakala.will;
drop table wakala.received;
alter table wakala.message drop column identifiers, drop column released;
"
);
