//! The service says what it books, and nothing that the database says of it: the number of a row, and which database
//! transaction made it. With a right to all columns it could choose both (`overriding system value`).

step!(
    "m0016_ledger_columns",
    up: r"
revoke insert on ledger.account, ledger.entry from wakala_service;
grant insert (name, kind, owner, currency) on ledger.account to wakala_service;
grant insert (transaction, phase, at) on ledger.entry to wakala_service;
",
    down: r"
grant insert on ledger.account, ledger.entry to wakala_service;
"
);
