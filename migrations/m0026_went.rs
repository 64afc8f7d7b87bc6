//! Connections that begin again or end: their presence is written for all of a statement at once. Ten thousand that are cut
//! together are ended in batches of hundreds, and a trigger for each row was half of what that took.

step!(
    "m0026_went",
    up: r"
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
drop trigger came_or_went on wakala.session;
create trigger came_or_went after update on wakala.session referencing old table as was new table as made
    for each statement execute function wakala.note_changed_presence();
",
    down: r"
drop trigger came_or_went on wakala.session;
drop function wakala.note_changed_presence();
create trigger came_or_went after update of connected, epoch on wakala.session for each row
    when (old.connected <> new.connected or old.epoch <> new.epoch) execute function wakala.note_presence();
"
);
