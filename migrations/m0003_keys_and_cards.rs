//! Keys, sealed; cards by token; and what keeps a PIN from being guessed or a request from being replayed.

step!(
    "m0003_keys_and_cards",
    up: r"
create table wakala.key_block (
    name        text        primary key,
    usage       text        not null,
    check_value text        not null,
    sealed      bytea       not null,
    sandbox     boolean     not null,
    created_at  timestamptz not null
);
comment on column wakala.key_block.sealed is 'Encrypted under the master key, which is not in this database.';

create table wakala.card (
    token         bytea    primary key check (octet_length(token) = 16),
    masked        text     not null,
    pvki          smallint not null check (pvki between 0 and 9),
    pvv           text     not null check (pvv ~ '^[0-9]{4}$'),
    blocked       boolean  not null default false,
    sandbox       boolean  not null,
    tries_counted bigint   not null default 0,
    tries_cleared bigint   not null default 0,
    check (tries_cleared between 0 and tries_counted)
) with (fillfactor = 80);
comment on column wakala.card.token is 'Keyed hash of the PAN; the PAN itself is nowhere in this database in clear.';
comment on column wakala.card.tries_counted is 'Raised before a PIN is verified. Tries used: counted less cleared.';

create table wakala.pin_try (
    terminal text   not null,
    key      bytea  not null,
    token    bytea  not null,
    number   bigint null,
    primary key (terminal, key)
);
comment on table wakala.pin_try is 'A repeated request counts no second try.';
comment on column wakala.pin_try.number is 'Which try of the card it was; null when it was refused without asking.';

create table wakala.ksn_seen (
    initial_key_id bytea  primary key check (octet_length(initial_key_id) = 8),
    counter        bigint not null check (counter between 0 and 4294967295),
    terminal       text   not null,
    key            bytea  not null
) with (fillfactor = 50);
comment on table wakala.ksn_seen is 'The highest counter under each initial key, and whose request it was.';

grant select, insert, update on wakala.key_block, wakala.card, wakala.pin_try, wakala.ksn_seen to wakala_service;
grant delete on wakala.key_block, wakala.pin_try to wakala_service;
",
    down: r"
drop table wakala.ksn_seen;
drop table wakala.pin_try;
drop table wakala.card;
drop table wakala.key_block;
"
);
