//! What operators and programs tell terminals, and what became of it: who asked, under which key, and how each copy ended. It
//! outlives the message itself, which is deleted when it is delivered. A node of the version before writes no ends until it is
//! restarted.

step!(
    "m0029_messages_told",
    up: r"
create table wakala.told (
    id         uuid        primary key,
    asked_by   text        not null check (asked_by <> ''),
    key        text        null,
    terminal   text        null,
    topic      text        not null,
    class      smallint    not null check (class between 0 and 2),
    qos        smallint    not null check (qos between 0 and 2),
    retain     boolean     not null,
    bytes      integer     not null check (bytes >= 0),
    digest     bytea       not null check (length(digest) = 32),
    at         timestamptz not null,
    expires_at timestamptz null,
    direct     integer     not null default 0 check (direct >= 0),
    unique (asked_by, key)
);
comment on table wakala.told is 'Messages that operators and programs had for terminals, or published in a general broker.';
comment on column wakala.told.key is 'Whoever asks again under the same key has the same message.';
comment on column wakala.told.terminal is 'Null where it was published on a topic, to whoever subscribed.';
comment on column wakala.told.class is 'As of wakala.message.';
comment on column wakala.told.digest is 'SHA-256 of the payload: the same key is for the same message.';
comment on column wakala.told.direct is 'Copies that were handed to whoever was connected and are not stored: no more is known of them.';
create index told_at on wakala.told (at);
create index told_terminal on wakala.told (terminal, class, at) where terminal is not null;

create table wakala.told_end (
    told      uuid        not null references wakala.told on delete cascade,
    client_id text        not null,
    seq       bigint      not null,
    fate      text        not null,
    at        timestamptz not null default now(),
    primary key (told, client_id, seq)
);
comment on table wakala.told_end is
    'How a copy ended, written in the commit that deletes its row of wakala.message. Until then it waits there.';

alter table wakala.message add column told uuid null;
comment on column wakala.message.told is 'Whose end is to be known: wakala.told.';
create index message_told on wakala.message (told) where told is not null;

create view audit.messages_told as
    select t.id as message, t.at at time zone 'UTC' as at_utc, t.asked_by, t.key, t.terminal, t.topic,
           case t.class when 0 then 'message' when 1 then 'configuration' else 'news' end as class, t.qos, t.bytes,
           t.expires_at at time zone 'UTC' as expires_at_utc, t.direct, c.client_id as client,
           c.fate as became, c.at at time zone 'UTC' as ended_at_utc
    from wakala.told t
    left join (select told, client_id, fate, at from wakala.told_end
               union all
               select told, client_id, 'waiting', null from wakala.message where told is not null) c on c.told = t.id;
comment on view audit.messages_told is
    'What terminals were told, by whom, and what became of it: a row for each client that it was for, and one without where nobody was to have it stored.';

grant select, insert, delete on wakala.told, wakala.told_end to wakala_service;
grant select on audit.messages_told to wakala_auditor;
",
    down: r"
drop view audit.messages_told;
drop index wakala.message_told;
alter table wakala.message drop column told;
drop table wakala.told_end;
drop table wakala.told;
"
);
