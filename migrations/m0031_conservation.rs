//! The law of conservation for whoever reads SQL and not metrics.

step!(
    "m0031_conservation",
    up: r"
create view audit.conservation as
    select case when what like 'receipt\_%' then 'receipts' else 'messages' end as copies_of,
           regexp_replace(what, '^receipt_', '') as became, sum(copies)::bigint as copies
    from (select what, copies from wakala.tally
          union all select 'waiting', count(*) from wakala.message
          union all select 'receipt_waiting', count(*) from wakala.receipt
              where delivered_at is null and withdrawn_at is null) each
    group by 1, 2;
comment on view audit.conservation is
    'What became of all copies of messages that are stored, and of receipts: addressed (created) is the sum of all others.';
grant select on audit.conservation to wakala_auditor;
",
    down: r"drop view audit.conservation;"
);
