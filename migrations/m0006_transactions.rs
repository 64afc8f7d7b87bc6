//! Transactions, the numbers by which cores know them, and what cores said too late or out of the blue.

step!(
    "m0006_transactions",
    up: r"
create table wakala.transaction (
    id            uuid        primary key,
    partition     smallint    not null,
    terminal      text        not null,
    agent         text        not null,
    core          text        not null,
    key           bytea       not null check (octet_length(key) = 16),
    fingerprint   bytea       not null check (octet_length(fingerprint) = 32),
    kind          text        not null check (kind in ('WITHDRAWAL', 'DEPOSIT')),
    amount        bigint      not null check (amount > 0),
    currency      text        not null check (currency ~ '^[A-Z]{3}$'),
    card_token    bytea       not null,
    card_masked   text        not null,
    card_sealed   bytea       not null,
    card_expiry   smallint    not null,
    ksn           bytea       null check (octet_length(ksn) = 12),
    state         text        not null
                  check (state in ('ACCEPTED', 'SENT', 'IN_DOUBT', 'APPROVED', 'DECLINED', 'REVERSED')),
    asked_at      timestamptz not null,
    stan          integer     null check (stan between 1 and 999999),
    rrn           text        null,
    sent_at       timestamptz null,
    due           timestamptz null,
    reversals     integer     not null check (reversals >= 0),
    code          text        null,
    authorisation text        null,
    updated_at    timestamptz not null,
    unique (terminal, key),
    check ((stan is null) = (rrn is null) and (stan is null) = (sent_at is null)),
    -- Nothing was ever sent without the numbers that a reversal names (law 5).
    check (state not in ('SENT', 'IN_DOUBT', 'APPROVED', 'REVERSED') or stan is not null),
    check ((due is null) = (state in ('APPROVED', 'DECLINED', 'REVERSED')))
) with (fillfactor = 70);
create index transaction_open on wakala.transaction (partition) where state in ('ACCEPTED', 'SENT', 'IN_DOUBT');
create index transaction_by_rrn on wakala.transaction (rrn) where rrn is not null;
create index transaction_by_time on wakala.transaction using brin (asked_at);
comment on column wakala.transaction.amount is 'Minor units of the currency.';
comment on column wakala.transaction.card_sealed is 'The PAN under a key of the HSM; opened by the core''s adapter alone.';
comment on column wakala.transaction.card_expiry is 'YYMM.';
comment on column wakala.transaction.due is 'When something is to be done if nothing happens first.';

create sequence wakala.stan as integer minvalue 1 maxvalue 999999 cycle cache 1;
comment on sequence wakala.stan is 'System trace audit numbers, ISO 8583 data element 11.';

create table wakala.late_answer (
    id          bigint generated always as identity primary key,
    transaction uuid        not null,
    answer      text        not null,
    code        text        null,
    at          timestamptz not null
);
create index late_answer_of_transaction on wakala.late_answer (transaction);
comment on table wakala.late_answer is 'What a core said of a transaction when it changed nothing any more.';

create table wakala.unmatched_answer (
    id      bigint generated always as identity primary key,
    core    text        not null,
    at      timestamptz not null,
    summary jsonb       not null
);
comment on table wakala.unmatched_answer is 'Answers that match nothing in flight; without card data.';

grant select, insert, update on wakala.transaction to wakala_service;
grant usage on sequence wakala.stan to wakala_service;
grant select, insert on wakala.late_answer, wakala.unmatched_answer to wakala_service;
",
    down: r"
drop table wakala.unmatched_answer;
drop table wakala.late_answer;
drop sequence wakala.stan;
drop table wakala.transaction;
"
);
