//! What the edge asks before a request enters the log, and says after a PIN was verified: one call for many requests.
//!
//! Functions, because each must see what the one before it in the same call has changed. Their locks are taken in one order
//! everywhere (key serial numbers by identifier, then cards by token), so that two nodes wait for each other, never in a
//! circle.

step!(
    "m0012_admission",
    up: r"
alter table wakala.pin_try
    add column digest bytea       not null check (octet_length(digest) = 16),
    add column at     timestamptz not null;
create index pin_try_at on wakala.pin_try (at);
comment on table wakala.pin_try is 'Requests that the edge let in. A repetition, byte for byte, counts no second try.';
comment on column wakala.pin_try.number is
    'Which try of the card it was. Null: no PIN was looked at. 0: looked at, no PIN found, and given back.';
comment on column wakala.pin_try.digest is 'Which bytes these were: others under the same key are another try.';

create function wakala.admit(
    node_sandbox boolean, tries_max bigint, taken_in timestamptz,
    terminals text[], keys bytea[], digests bytea[], initial_key_ids bytea[], counters bigint[],
    tokens bytea[], pins boolean[]
) returns table (place bigint, replayed boolean, pvki smallint, pvv text, number bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    asked   record;
    earlier record;
    let_in  boolean[];
begin
    for asked in
        select * from unnest(terminals, keys, digests, initial_key_ids, counters) with ordinality
            as a (terminal, key, digest, initial_key_id, counter, at_place)
        order by a.initial_key_id, a.at_place
    loop
        -- This row is the lock, also where the condition says no: whoever repeats the request elsewhere at the same time
        -- waits here, and then finds below which try it was.
        insert into wakala.ksn_seen as seen (initial_key_id, counter, terminal, key)
        values (asked.initial_key_id, asked.counter, asked.terminal, asked.key)
        on conflict (initial_key_id) do update
            set counter = excluded.counter, terminal = excluded.terminal, key = excluded.key
            where seen.counter < excluded.counter
               or (seen.counter = excluded.counter and seen.terminal = excluded.terminal and seen.key = excluded.key);
        let_in[asked.at_place] := found or exists (
            select from wakala.pin_try t
            where t.terminal = asked.terminal and t.key = asked.key and t.digest = asked.digest);
    end loop;

    for asked in
        select * from unnest(terminals, keys, digests, tokens, pins) with ordinality
            as a (terminal, key, digest, token, pin, at_place)
        order by a.token, a.at_place
    loop
        place := asked.at_place;
        replayed := not let_in[asked.at_place];
        pvki := null;
        pvv := null;
        number := null;
        if not replayed then
            select c.pvki, c.pvv into pvki, pvv from wakala.card c
            where c.token = asked.token and not c.blocked and c.sandbox = node_sandbox;

            select t.number, t.digest into earlier from wakala.pin_try t
            where t.terminal = asked.terminal and t.key = asked.key;
            if found and earlier.digest = asked.digest and earlier.number is distinct from 0 then
                number := earlier.number;
            else
                if asked.pin then
                    update wakala.card c set tries_counted = c.tries_counted + 1
                    where c.token = asked.token and not c.blocked and c.sandbox = node_sandbox
                      and c.tries_counted - c.tries_cleared < tries_max
                    returning c.tries_counted into number;
                end if;
                insert into wakala.pin_try as t (terminal, key, token, number, digest, at)
                values (asked.terminal, asked.key, asked.token, number, asked.digest, taken_in)
                on conflict (terminal, key) do update
                    set token = excluded.token, number = excluded.number, digest = excluded.digest, at = excluded.at;
            end if;
        end if;
        return next;
    end loop;
end $$;
comment on function wakala.admit is
    'Refuses key counters that were used, finds cards, and counts a try for each PIN before anybody looks at it.';

create function wakala.settle_tries(
    terminals text[], keys bytea[], tokens bytea[], numbers bigint[], correct boolean[]
) returns void
language plpgsql as $$
declare
    tried record;
begin
    for tried in
        select * from unnest(terminals, keys, tokens, numbers, correct)
            as a (terminal, key, token, number, correct)
        order by a.token
    loop
        perform from wakala.card c where c.token = tried.token for update;
        if tried.correct then
            update wakala.card c set tries_cleared = tried.number
            where c.token = tried.token and c.tries_cleared < tried.number;
        else
            update wakala.pin_try t set number = 0
            where t.terminal = tried.terminal and t.key = tried.key and t.number = tried.number;
            if found then
                update wakala.card c set tries_cleared = c.tries_cleared + 1
                where c.token = tried.token and c.tries_cleared < tried.number;
            end if;
        end if;
    end loop;
end $$;
comment on function wakala.settle_tries is
    'After a correct PIN no try up to its own counts any more; a block without a PIN in it gives its try back.';

revoke all on function wakala.admit, wakala.settle_tries from public;
grant execute on function wakala.admit, wakala.settle_tries to wakala_service;
",
    down: r"
drop function wakala.settle_tries;
drop function wakala.admit;
drop index wakala.pin_try_at;
alter table wakala.pin_try drop column at, drop column digest;
"
);
