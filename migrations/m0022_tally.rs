//! What became of copies of messages, counted in the commits in which it became of them.

step!(
    "m0022_tally",
    up: r"
create table wakala.tally (
    what   text   not null,
    copies bigint not null check (copies > 0)
);
comment on table wakala.tally is
    'Every commit that queues or ends copies of messages adds what it did, so nothing is locked and nothing is miscounted, whatever dies. The node sums rows up from time to time. docs/operators.md has the law.';
insert into wakala.tally select 'addressed', count(*) from wakala.message having count(*) > 0;
insert into wakala.tally select 'receipt_created', count(*) from wakala.receipt
    where delivered_at is null and withdrawn_at is null having count(*) > 0;

grant select, insert, delete on wakala.tally to wakala_service;
",
    down: r"drop table wakala.tally;"
);
