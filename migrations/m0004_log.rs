//! The log inside Postgres. The head row of a partition is locked by whoever appends, so offsets have no gaps and a
//! reader that sees an offset sees all before it.

step!(
    "m0004_log",
    up: r#"
create table wakala.log_head (
    partition   smallint primary key check (partition >= 0),
    next_offset bigint   not null default 0 check (next_offset >= 0)
) with (fillfactor = 20);
comment on table wakala.log_head is 'Updated by every append: most of its page is left free, so that the updates stay in it.';

create table wakala.log_record (
    partition smallint    not null,
    "offset"  bigint      not null,
    terminal  text        not null,
    bytes     bytea       not null,
    at        timestamptz not null,
    primary key (partition, "offset")
);

grant select, insert, update on wakala.log_head to wakala_service;
grant select, insert on wakala.log_record to wakala_service;
"#,
    down: r"
drop table wakala.log_record;
drop table wakala.log_head;
"
);
