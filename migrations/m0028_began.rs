//! Sessions remember which connection they began with. A message that was found for an earlier one of the same client, and is
//! stored after a clean start has ended that, is not for this one.

step!(
    "m0028_began",
    up: r"
alter table wakala.session add column began bigint not null default 0;
comment on column wakala.session.began is 'The epoch of the connection that it began with.';
",
    down: "alter table wakala.session drop column began;"
);
