//! Who came and went, in order, and what operators did to sessions.
//!
//! A trigger writes it, in the commit that opens or ends a session: whoever does that, in whatever batch, cannot forget it,
//! and it costs no commit. The session's row is locked until then, so the order of a client's rows is that of its
//! connections.

step!(
    "m0019_presence",
    up: r"
alter table wakala.session
    add column connection jsonb null,
    add column ended_why  text  null;
comment on column wakala.session.connection is 'Of the latest connection: address, protocol, keep-alive, certificate.';
comment on column wakala.session.ended_why is 'Why the latest connection that ended did.';

create table wakala.presence (
    id         bigint      generated always as identity primary key,
    client_id  text        not null,
    epoch      bigint      not null,
    online     boolean     not null,
    seq        bigint      not null generated always as (epoch * 2 + case when online then 0 else 1 end) stored,
    at         timestamptz not null,
    node       text        null,
    why        text        null,
    connection jsonb       null,
    xact       xid8        not null default pg_current_xact_id(),
    unique (client_id, seq)
);
comment on table wakala.presence is 'An outbox: one row for the beginning of each connection, one for its end.';
comment on column wakala.presence.seq is 'Order of a client''s events: of its connections, and in each the beginning before the end.';
comment on column wakala.presence.xact is 'Whoever reads on from a place takes rows below pg_snapshot_xmin(pg_current_snapshot()) only, by xact and id: none with a lower one comes any more.';

create function wakala.note_presence() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' and old.connected and (new.epoch <> old.epoch or not new.connected) then
        insert into wakala.presence (client_id, epoch, online, at, node, why)
        values (old.client_id, old.epoch, false,
                coalesce(case when new.connected then new.connected_at else new.disconnected_at end, now()), old.node,
                case when new.connected then 'taken over' else coalesce(new.ended_why, 'unknown') end);
    end if;
    if new.connected and (tg_op = 'INSERT' or not old.connected or new.epoch <> old.epoch) then
        insert into wakala.presence (client_id, epoch, online, at, node, connection)
        values (new.client_id, new.epoch, true, coalesce(new.connected_at, now()), new.node, new.connection);
    end if;
    return null;
end $$;
create trigger came after insert on wakala.session for each row
    when (new.connected) execute function wakala.note_presence();
create trigger came_or_went after update of connected, epoch on wakala.session for each row
    when (old.connected <> new.connected or old.epoch <> new.epoch) execute function wakala.note_presence();

create table wakala.admin_action (
    id        bigint      generated always as identity primary key,
    at        timestamptz not null,
    what      text        not null check (what in ('kick', 'tap')),
    client_id text        not null,
    epoch     bigint      null,
    node      text        not null,
    who       text        not null,
    why       text        not null,
    done_at   timestamptz null,
    outcome   text        null
);
create index admin_action_owed on wakala.admin_action (node) where what = 'kick' and done_at is null;
create index admin_action_of on wakala.admin_action (client_id, id);
comment on column wakala.admin_action.epoch is 'Of a kick: the connection that is meant, so that the next one is spared.';
comment on column wakala.admin_action.who is 'As the machine names whoever typed it.';

create view audit.admin_actions as
    select a.at at time zone 'UTC' as at_utc, a.what, a.client_id as client, a.node, a.who, a.why,
           a.done_at at time zone 'UTC' as done_at_utc, a.outcome
    from wakala.admin_action a;
comment on view audit.admin_actions is 'What operators did to sessions: connections ended, packets looked at (without payloads).';

grant select, insert, delete on wakala.presence to wakala_service;
grant select, insert on wakala.admin_action to wakala_service;
grant update (done_at, outcome) on wakala.admin_action to wakala_service;
grant select on audit.admin_actions to wakala_auditor;
",
    down: r"
drop view audit.admin_actions;
drop table wakala.admin_action;
drop trigger came_or_went on wakala.session;
drop trigger came on wakala.session;
drop function wakala.note_presence();
drop table wakala.presence;
alter table wakala.session drop column ended_why, drop column connection;
"
);
