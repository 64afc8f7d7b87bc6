//! Three rooms with three doors: what the node works with, the ledger it may only add to, the views auditors read.
//! Everything else in this database is closed to everybody but its owner.

step!(
    "m0001_schemas",
    up: r"
create schema wakala;
create schema ledger;
create schema audit;

revoke all on schema public from public;
grant usage on schema public, wakala, ledger to wakala_service;
grant usage on schema audit to wakala_auditor;

comment on schema wakala is 'What the node works with.';
comment on schema ledger is 'Double entry. Rows are inserted, never changed.';
comment on schema audit is 'Views for auditors.';
",
    down: r"
drop schema audit;
drop schema ledger;
drop schema wakala;
grant usage on schema public to public;
"
);
