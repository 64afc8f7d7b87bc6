//! MQTT sessions, their subscriptions, and what is queued for them apart from receipts.

step!(
    "m0008_sessions",
    up: r"
create table wakala.session (
    client_id       text        primary key,
    epoch           bigint      not null default 0,
    node            text        null,
    connected       boolean     not null default false,
    next_seq        bigint      not null default 1 check (next_seq > 0),
    expiry_s        bigint      not null default 0 check (expiry_s >= 0),
    expires_at      timestamptz null,
    sent_seq        bigint      null default 0,
    created_at      timestamptz not null,
    connected_at    timestamptz null,
    disconnected_at timestamptz null
) with (fillfactor = 50);
comment on column wakala.session.epoch is 'The fence of a takeover: raised by every connection.';
comment on column wakala.session.sent_seq is 'How far the queue was sent; null while nobody can say: a connection lives, or its node died.';
comment on column wakala.session.next_seq is 'Drawn by whoever queues for the client: the row stays locked until the commit, so seq order is commit order.';

create table wakala.subscription (
    client_id  text     not null references wakala.session on delete cascade,
    filter     text     not null,
    qos        smallint not null check (qos between 0 and 2),
    options    smallint not null default 0,
    identifier integer  null check (identifier between 1 and 268435455),
    primary key (client_id, filter)
);

create table wakala.message (
    client_id  text        not null references wakala.session on delete cascade,
    seq        bigint      not null,
    topic      text        not null,
    qos        smallint    not null check (qos between 0 and 2),
    retain     boolean     not null default false,
    payload    bytea       not null,
    properties bytea       null,
    expires_at timestamptz null,
    at         timestamptz not null,
    primary key (client_id, seq)
);
comment on table wakala.message is 'Queued for a persistent session; deleted at its acknowledgement. Receipts have a table of their own.';

grant select, insert, update, delete on wakala.session, wakala.subscription, wakala.message to wakala_service;
",
    down: r"
drop table wakala.message;
drop table wakala.subscription;
drop table wakala.session;
"
);
