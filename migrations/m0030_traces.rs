//! Traces: what a client sent and was sent while an operator wanted it kept. What is stored of a packet is what he may see of it,
//! and no payload. A row names the transaction that its packet is about, which need not be there: a request may be refused.

step!(
    "m0030_traces",
    up: r"
create table wakala.trace (
    id        bigint      generated always as identity primary key,
    client_id text        not null check (octet_length(client_id) between 1 and 256),
    who       text        not null,
    why       text        not null,
    begun_at  timestamptz not null,
    until     timestamptz not null check (until > begun_at),
    rows_max  integer     not null check (rows_max > 0),
    looks     integer     not null default 0,
    rows      integer     not null default 0 check (rows <= rows_max),
    lost      bigint      not null default 0,
    ended_at  timestamptz null,
    ended_why text        null,
    check ((ended_at is null) = (ended_why is null))
);
comment on column wakala.trace.who is 'As the machine names whoever typed it.';
comment on column wakala.trace.looks is 'How often a node has taken it up, in each of its lives once.';
comment on column wakala.trace.lost is 'Packets that are missing, as far as that is known.';
-- Every node asks again and again which there are.
create index trace_open on wakala.trace (id) where ended_at is null;
create index trace_ended on wakala.trace (ended_at) where ended_at is not null;

create table wakala.trace_row (
    trace       bigint      not null references wakala.trace on delete cascade,
    nth         integer     not null,
    look        integer     not null,
    made        bigint      not null,
    node        text        not null,
    at          timestamptz not null,
    way         text        null check (way in ('in', 'out')),
    what        jsonb       null,
    transaction uuid        null,
    lost        bigint      null,
    primary key (trace, nth),
    unique (trace, look, made),
    check (num_nonnulls(what, lost) = 1 and (what is null) = (way is null))
);
comment on table wakala.trace_row is 'A packet, or how many are missing at this place.';
comment on column wakala.trace_row.made is 'Of this look; what is stored again when nobody knows whether it was is there once.';
create index trace_row_of on wakala.trace_row (transaction) where transaction is not null;

create view audit.traces as
    select t.id as trace, t.client_id as client, t.who, t.why, t.begun_at at time zone 'UTC' as begun_at_utc,
           t.until at time zone 'UTC' as until_utc, t.ended_at at time zone 'UTC' as ended_at_utc, t.ended_why,
           t.rows, t.lost
    from wakala.trace t;
comment on view audit.traces is 'What operators had kept of clients'' packets: who, whose, why, and for how long.';

create view audit.traced_packets as
    select r.trace, t.client_id as client, r.nth, r.at at time zone 'UTC' as at_utc, r.node, r.way,
           r.what ->> 'packet' as packet, r.what, r.lost, r.transaction, x.state, x.rrn
    from wakala.trace_row r
    join wakala.trace t on t.id = r.trace
    left join wakala.transaction x on x.id = r.transaction;
comment on view audit.traced_packets is 'The packets of traces without payloads, each with the transaction that it is about.';

grant select, insert, delete on wakala.trace, wakala.trace_row to wakala_service;
grant update (looks, rows, lost, ended_at, ended_why) on wakala.trace to wakala_service;
grant select on audit.traces, audit.traced_packets to wakala_auditor;
",
    down: r"
drop view audit.traced_packets;
drop view audit.traces;
drop table wakala.trace_row;
drop table wakala.trace;
"
);
