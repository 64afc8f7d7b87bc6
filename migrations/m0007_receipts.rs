//! The receipt row is the queue: a terminal that connects is sent what is undelivered, in the order of `seq`.

step!(
    "m0007_receipts",
    up: r"
create table wakala.receipt (
    answers      uuid        not null,
    stage        smallint    not null check (stage in (0, 1)),
    terminal     text        not null,
    seq          bigint      not null,
    envelope     bytea       not null,
    at           timestamptz not null,
    delivered_at timestamptz null,
    withdrawn_at timestamptz null,
    copies       integer     not null default 0,
    primary key (answers, stage),
    -- A receipt is never taken back; a notice is, when the receipt is there before it was delivered.
    check (withdrawn_at is null or stage = 0)
) with (fillfactor = 70);
-- Two deliveries with one number would be one packet identifier for two messages.
create unique index receipt_undelivered on wakala.receipt (terminal, seq)
    where delivered_at is null and withdrawn_at is null;
comment on column wakala.receipt.stage is '0 the PENDING notice, 1 the receipt.';
comment on column wakala.receipt.seq is 'Drawn from the session of the terminal; order of delivery.';
comment on column wakala.receipt.envelope is 'The bytes that go out, once and for all.';
comment on column wakala.receipt.copies is 'How often it was given again after it had been delivered.';

grant select, insert on wakala.receipt to wakala_service;
-- The bytes are not among what may change.
grant update (seq, delivered_at, withdrawn_at, copies) on wakala.receipt to wakala_service;
",
    down: r"drop table wakala.receipt;"
);
