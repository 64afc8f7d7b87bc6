//! Accounts, entries, postings. Only the balance rows of accounts with a floor are ever updated: a settlement
//! account's balance is the sum of its postings, for one hot row would cost more than two thirds of the throughput.

step!(
    "m0009_ledger",
    up: r"
create table ledger.account (
    id       bigint generated always as identity primary key,
    name     text not null unique,
    kind     text not null check (kind in ('float', 'settlement')),
    owner    text not null,
    currency text not null check (currency ~ '^[A-Z]{3}$'),
    check (name = kind || ':' || owner || ':' || currency)
);
comment on column ledger.account.owner is 'The agent of a float, the core of a settlement account.';

create table ledger.float_balance (
    account_id bigint primary key references ledger.account,
    posted     bigint not null default 0,
    reserved   bigint not null default 0 check (reserved >= 0),
    floor      bigint not null default 0,
    constraint float_covered check (posted - reserved >= floor)
) with (fillfactor = 50);
comment on column ledger.float_balance.posted is 'What the bank owes the agent, minor units: the posted entries of the account, credits positive.';
comment on column ledger.float_balance.reserved is 'Held for deposits that are under way.';
comment on column ledger.float_balance.floor is 'How low posted less reserved may go; below zero it is a credit line. Set by the owner of the schema.';

create table ledger.entry (
    id          bigint generated always as identity primary key,
    transaction uuid        not null,
    phase       text        not null check (phase in ('pending', 'posted', 'voided')),
    at          timestamptz not null,
    xact        xid8        not null default pg_current_xact_id(),
    unique (transaction, phase)
);
-- Resolved once: posted or voided, never both.
create unique index entry_resolved_once on ledger.entry (transaction) where phase <> 'pending';
comment on column ledger.entry.xact is 'The database transaction that made it; nothing is added to it later.';

create table ledger.posting (
    entry_id   bigint   not null references ledger.entry,
    line       smallint not null check (line > 0),
    account_id bigint   not null references ledger.account,
    minor      bigint   not null check (minor <> 0),
    primary key (entry_id, line)
);
create index posting_of_account on ledger.posting (account_id, entry_id);
comment on column ledger.posting.minor is 'Minor units; debit positive, credit negative.';

grant select, insert on ledger.account, ledger.entry, ledger.posting to wakala_service;
grant select, insert (account_id), update (posted, reserved) on ledger.float_balance to wakala_service;
",
    down: r"
drop table ledger.posting;
drop table ledger.entry;
drop table ledger.float_balance;
drop table ledger.account;
"
);
