//! What waits for a client is of a class, and each class has its own limits. Receipts are a table of their own, and without one.

step!(
    "m0023_classes",
    up: r"
alter table wakala.message add column class smallint not null default 0 check (class between 0 and 2);
comment on column wakala.message.class is
    '0 a message: what is too much is refused. 1 configuration: the last of its topic stays. 2 news: the oldest goes.';
create unique index message_configuration on wakala.message (client_id, topic) where class = 1;
-- Few: they are deleted when the next connection comes, which must not read a long queue to find them.
create index message_at_most_once on wakala.message (client_id) where qos = 0;
",
    down: r"
drop index wakala.message_at_most_once;
drop index wakala.message_configuration;
alter table wakala.message drop column class;
"
);
