//! Who is kept out, with the reason, by whom and until when. A ban that was lifted or is over stays, for auditors; that a
//! terminal is blocked is a ban like the others.

step!(
    "m0024_bans",
    up: r"
create table wakala.ban (
    id        bigint      generated always as identity primary key,
    kind      text        not null check (kind in ('client', 'certificate', 'network', 'user')),
    subject   text        not null check (length(subject) between 1 and 256),
    why       text        not null,
    banned_by text        not null,
    since     timestamptz not null,
    until     timestamptz null check (until > since),
    lifted_at timestamptz null,
    lifted_by text        null,
    check ((lifted_at is null) = (lifted_by is null))
);
comment on column wakala.ban.subject is 'Terminal or client identifier; SHA-256 in hexadecimal digits; address or CIDR; user name.';
comment on column wakala.ban.until is 'Null is for ever.';
-- Every node asks again and again which are in force.
create index ban_in_force on wakala.ban ((coalesce(until, 'infinity'::timestamptz)), id) where lifted_at is null;
create index ban_of on wakala.ban (kind, subject, id);

create function wakala.refuse_to_rewrite() returns trigger language plpgsql as $$
begin
    raise exception 'a ban that was lifted stays as it is' using errcode = 'restrict_violation';
end $$;
create trigger lifted_once before update on wakala.ban
    for each row when (old.lifted_at is not null) execute function wakala.refuse_to_rewrite();

insert into wakala.ban (kind, subject, why, banned_by, since)
    select 'client', id, blocked_why, 'wakala terminals block', blocked_at
    from wakala.terminal where blocked_at is not null order by blocked_at;

drop view audit.terminals;
drop index wakala.terminal_blocked;
alter table wakala.terminal drop column blocked_at, drop column blocked_why;
create view audit.terminals as
    select t.id as terminal, t.agent, t.core, t.sandbox, t.enrolled_at at time zone 'UTC' as enrolled_at_utc,
           (select b.since at time zone 'UTC' from wakala.ban b where b.kind = 'client' and b.subject = t.id
            and b.lifted_at is null and coalesce(b.until, 'infinity') > now() order by b.id limit 1) as blocked_at_utc,
           (select b.why from wakala.ban b where b.kind = 'client' and b.subject = t.id
            and b.lifted_at is null and coalesce(b.until, 'infinity') > now() order by b.id limit 1) as blocked_why
    from wakala.terminal t;
comment on view audit.terminals is 'Who may connect.';

create view audit.bans as
    select id as ban, kind, subject, why, banned_by, since at time zone 'UTC' as since_utc,
           until at time zone 'UTC' as until_utc, lifted_at at time zone 'UTC' as lifted_at_utc, lifted_by
    from wakala.ban;
comment on view audit.bans is 'Who was kept out, for what reason, by whom, since when and until when.';

grant select, insert, update (lifted_at, lifted_by) on wakala.ban to wakala_service;
grant select on audit.terminals, audit.bans to wakala_auditor;
",
    down: r"
drop view audit.bans;
drop view audit.terminals;
alter table wakala.terminal
    add column blocked_at timestamptz null,
    add column blocked_why text null,
    add check ((blocked_at is null) = (blocked_why is null));
update wakala.terminal t set blocked_at = b.since, blocked_why = b.why
    from (
        select distinct on (subject) subject, since, why from wakala.ban
        where kind = 'client' and lifted_at is null and coalesce(until, 'infinity') > now() order by subject, id
    ) b
    where b.subject = t.id;
create index terminal_blocked on wakala.terminal (id) where blocked_at is not null;
create view audit.terminals as
    select t.id as terminal, t.agent, t.core, t.sandbox, t.enrolled_at at time zone 'UTC' as enrolled_at_utc,
           t.blocked_at at time zone 'UTC' as blocked_at_utc, t.blocked_why
    from wakala.terminal t;
comment on view audit.terminals is 'Who may connect.';
grant select on audit.terminals to wakala_auditor;
drop table wakala.ban;
drop function wakala.refuse_to_rewrite();
"
);
