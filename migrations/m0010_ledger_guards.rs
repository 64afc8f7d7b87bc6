//! The ledger's rules, kept by the database itself: zero sums, phases in order, nothing added to an entry of an earlier
//! transaction, nothing changed, nothing deleted. The grants say the last three too; the triggers bind the owner as
//! well, who would have to drop them first and be seen doing it.

step!(
    "m0010_ledger_guards",
    up: r"
create function ledger.refuse() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is only added to: % on %.% refused', tg_op, tg_table_schema, tg_table_name
        using errcode = 'restrict_violation';
end $$;

create trigger only_added_to before update or delete or truncate on ledger.account
    for each statement execute function ledger.refuse();
create trigger only_added_to before update or delete or truncate on ledger.entry
    for each statement execute function ledger.refuse();
create trigger only_added_to before update or delete or truncate on ledger.posting
    for each statement execute function ledger.refuse();
create trigger only_updated before delete or truncate on ledger.float_balance
    for each statement execute function ledger.refuse();

-- Looks at the whole entry and not at the new rows alone, so that a second statement cannot unbalance the first.
create function ledger.check_postings() returns trigger language plpgsql as $$
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
create trigger balanced after insert on ledger.posting
    referencing new table as added for each statement execute function ledger.check_postings();

create function ledger.check_entries() returns trigger language plpgsql as $$
declare
    wrong record;
begin
    select a.transaction, a.phase into wrong from added a where a.xact <> pg_current_xact_id() limit 1;
    if found then
        raise exception 'the % entry of % names another database transaction', wrong.phase, wrong.transaction
            using errcode = 'restrict_violation';
    end if;
    select a.transaction, a.phase into wrong from added a
        where a.phase <> 'pending' and not exists
            (select from ledger.entry p where p.transaction = a.transaction and p.phase = 'pending') limit 1;
    if found then
        raise exception 'the % entry of % has no pending one before it', wrong.phase, wrong.transaction
            using errcode = 'check_violation';
    end if;
    return null;
end $$;
create trigger in_order after insert on ledger.entry
    referencing new table as added for each statement execute function ledger.check_entries();

-- At the commit, when the postings have followed their entry.
create function ledger.check_whole() returns trigger language plpgsql as $$
begin
    if new.phase <> 'voided' and not exists (select from ledger.posting where entry_id = new.id) then
        raise exception 'entry % (% of %) has no postings', new.id, new.phase, new.transaction
            using errcode = 'check_violation';
    end if;
    return null;
end $$;
create constraint trigger whole after insert on ledger.entry
    deferrable initially deferred for each row execute function ledger.check_whole();
",
    down: r"
drop trigger whole on ledger.entry;
drop trigger in_order on ledger.entry;
drop trigger balanced on ledger.posting;
drop trigger only_updated on ledger.float_balance;
drop trigger only_added_to on ledger.posting;
drop trigger only_added_to on ledger.entry;
drop trigger only_added_to on ledger.account;
drop function ledger.check_whole();
drop function ledger.check_entries();
drop function ledger.check_postings();
drop function ledger.refuse();
"
);
