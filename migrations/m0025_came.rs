//! Sessions that are made by their first connection: their presence is written for all of a statement at once.

step!(
    "m0025_came",
    up: r"
create function wakala.note_new_presence() returns trigger language plpgsql as $$
begin
    insert into wakala.presence (client_id, epoch, online, at, node, connection)
    select client_id, epoch, true, coalesce(connected_at, now()), node, connection
    from made where connected order by client_id;
    return null;
end $$;
drop trigger came on wakala.session;
create trigger came after insert on wakala.session referencing new table as made
    for each statement execute function wakala.note_new_presence();
",
    down: r"
drop trigger came on wakala.session;
drop function wakala.note_new_presence();
create trigger came after insert on wakala.session for each row
    when (new.connected) execute function wakala.note_presence();
"
);
