//! What is looked for again and again is found by its time or its node, however many rows wait for something else.

step!(
    "m0013_due",
    up: r"
create index session_connected on wakala.session (node) where connected;
create index session_expiring on wakala.session (expires_at) where not connected and expiry_s > 0;
create index message_expiring on wakala.message (expires_at) where expires_at is not null;
",
    down: r"
drop index wakala.message_expiring;
drop index wakala.session_expiring;
drop index wakala.session_connected;
"
);
