//! Presence is written by the statements that open and end sessions. A trigger for each statement was called for every other
//! change of a session's row too, also for its next place in the queue, with every message. A node of the version before writes none
//! from here on until it is restarted.

step!(
    "m0027_told",
    up: r"
drop trigger came on wakala.session;
drop trigger came_or_went on wakala.session;
drop function wakala.note_new_presence();
drop function wakala.note_changed_presence();
drop function wakala.note_presence();
",
    down: r"
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
create function wakala.note_new_presence() returns trigger language plpgsql as $$
begin
    insert into wakala.presence (client_id, epoch, online, at, node, connection)
    select client_id, epoch, true, coalesce(connected_at, now()), node, connection
    from made where connected order by client_id;
    return null;
end $$;
create trigger came after insert on wakala.session referencing new table as made
    for each statement execute function wakala.note_new_presence();
create function wakala.note_changed_presence() returns trigger language plpgsql as $$
begin
    insert into wakala.presence (client_id, epoch, online, at, node, why, connection)
    select was.client_id, told.* from was join made using (client_id)
    cross join lateral (
        select was.epoch, false as online,
            coalesce(case when made.connected then made.connected_at else made.disconnected_at end, now()), was.node,
            case when made.connected then 'taken over' else coalesce(made.ended_why, 'unknown') end, null::jsonb
        where was.connected and (made.epoch <> was.epoch or not made.connected)
        union all
        select made.epoch, true, coalesce(made.connected_at, now()), made.node, null, made.connection
        where made.connected and (not was.connected or made.epoch <> was.epoch)
    ) told
    order by was.client_id, told.online;
    return null;
end $$;
create trigger came_or_went after update on wakala.session referencing old table as was new table as made
    for each statement execute function wakala.note_changed_presence();
"
);
