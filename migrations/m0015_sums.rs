//! The sums of new entries are checked without reading the ledger: the same rule as before, but the entries' numbers come as
//! an array. Joined with the new rows, Postgres walked the whole primary key of the postings beside them at every commit,
//! from some ten thousand entries on; an array leaves it no such way.

step!(
    "m0015_sums",
    up: r"
-- Looks at the whole entry and not at the new rows alone, so that a second statement cannot unbalance the first.
create or replace function ledger.check_postings() returns trigger language plpgsql as $$
declare
    touched bigint[] := array(select distinct entry_id from added);
    wrong   record;
begin
    select e.id, e.transaction, e.phase into wrong
        from ledger.entry e
        where e.id = any(touched) and e.xact <> pg_current_xact_id() limit 1;
    if found then
        raise exception 'entry % (% of %) is of an earlier database transaction', wrong.id, wrong.phase, wrong.transaction
            using errcode = 'restrict_violation';
    end if;
    select e.id, e.transaction, e.phase into wrong
        from ledger.entry e
        where e.id = any(touched) and e.phase = 'voided' limit 1;
    if found then
        raise exception 'entry % (voided of %) takes no postings', wrong.id, wrong.transaction
            using errcode = 'check_violation';
    end if;
    select p.entry_id, a.currency, sum(p.minor) as total into wrong
        from ledger.posting p join ledger.account a on a.id = p.account_id
        where p.entry_id = any(touched)
        group by p.entry_id, a.currency having sum(p.minor) <> 0 limit 1;
    if found then
        raise exception 'entry % sums to % % and not to zero', wrong.entry_id, wrong.total, wrong.currency
            using errcode = 'check_violation';
    end if;
    return null;
end $$;
",
    down: r"
create or replace function ledger.check_postings() returns trigger language plpgsql as $$
declare
    wrong record;
begin
    select e.id, e.transaction, e.phase into wrong
        from ledger.entry e
        where e.id in (select entry_id from added) and e.xact <> pg_current_xact_id() limit 1;
    if found then
        raise exception 'entry % (% of %) is of an earlier database transaction', wrong.id, wrong.phase, wrong.transaction
            using errcode = 'restrict_violation';
    end if;
    select e.id, e.transaction, e.phase into wrong
        from ledger.entry e
        where e.id in (select entry_id from added) and e.phase = 'voided' limit 1;
    if found then
        raise exception 'entry % (voided of %) takes no postings', wrong.id, wrong.transaction
            using errcode = 'check_violation';
    end if;
    select p.entry_id, a.currency, sum(p.minor) as total into wrong
        from ledger.posting p join ledger.account a on a.id = p.account_id
        where p.entry_id in (select entry_id from added)
        group by p.entry_id, a.currency having sum(p.minor) <> 0 limit 1;
    if found then
        raise exception 'entry % sums to % % and not to zero', wrong.entry_id, wrong.total, wrong.currency
            using errcode = 'check_violation';
    end if;
    return null;
end $$;
"
);
