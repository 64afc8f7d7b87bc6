//! Who owns a partition, how far its records are worked off, and the records that are not followed.

step!(
    "m0005_partitions",
    up: r#"
create table wakala.partition_owner (
    partition   smallint    primary key check (partition >= 0),
    node        text        null,
    epoch       bigint      not null default 0,
    position    bigint      not null default 0,
    lease_until timestamptz null,
    check ((node is null) = (lease_until is null))
) with (fillfactor = 20);
comment on column wakala.partition_owner.epoch is 'The fence: raised whenever an owner loads. A write under an older one changes no row.';
comment on column wakala.partition_owner.position is 'The offset of the next record to be read; moves in the commit of the work.';

create table wakala.node (
    name    text        primary key,
    seen_at timestamptz not null
);
comment on table wakala.node is 'Who shares the partitions; whoever was not seen for a lease does not count.';

create table wakala.parked (
    partition smallint    not null,
    "offset"  bigint      not null,
    why       text        not null,
    at        timestamptz not null,
    primary key (partition, "offset")
);
comment on table wakala.parked is 'Records that are not followed, for an operator to see.';

create table wakala.suspect (
    partition smallint not null,
    "offset"  bigint   not null,
    attempts  integer  not null,
    primary key (partition, "offset")
);
comment on table wakala.suspect is 'How often a record was begun. One that kills its partition again and again is parked.';

grant select, insert, update on wakala.partition_owner to wakala_service;
grant select, insert, update, delete on wakala.node to wakala_service;
grant select, insert on wakala.parked to wakala_service;
grant select, insert, update, delete on wakala.suspect to wakala_service;
"#,
    down: r"
drop table wakala.suspect;
drop table wakala.parked;
drop table wakala.node;
drop table wakala.partition_owner;
"
);
