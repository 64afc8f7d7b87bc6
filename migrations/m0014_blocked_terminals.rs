//! Every node asks again and again which of the terminals that it serves are blocked. Few are, of all that are enrolled.

step!(
    "m0014_blocked_terminals",
    up: r"create index terminal_blocked on wakala.terminal (id) where blocked_at is not null;",
    down: r"drop index wakala.terminal_blocked;"
);
