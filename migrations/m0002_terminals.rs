//! Who may connect. A terminal is never deleted, for its transactions name it; it is blocked.

step!(
    "m0002_terminals",
    up: r"
create table wakala.terminal (
    id                 text        primary key,
    agent              text        not null,
    core               text        not null,
    password_hash      text        null,
    certificate_sha256 bytea       null unique check (octet_length(certificate_sha256) = 32),
    blocked_at         timestamptz null,
    blocked_why        text        null,
    sandbox            boolean     not null,
    enrolled_at        timestamptz not null,
    -- One that has neither could never prove who it is.
    check (password_hash is not null or certificate_sha256 is not null),
    check ((blocked_at is null) = (blocked_why is null))
);
create index terminal_of_agent on wakala.terminal (agent);
comment on column wakala.terminal.password_hash is 'Argon2id, PHC string.';
comment on column wakala.terminal.sandbox is 'Refused by a node that is not in sandbox mode.';

grant select, insert, update on wakala.terminal to wakala_service;
",
    down: r"drop table wakala.terminal;"
);
