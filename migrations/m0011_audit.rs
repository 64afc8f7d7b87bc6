//! What auditors read: views with names of the trade, amounts in whole units, times in UTC. The auditor's role reads
//! these and nothing else; no view shows a hash, a sealed value or a key.

step!(
    "m0011_audit",
    up: r"
-- ISO 4217: how many decimals a currency has.
create function audit.amount(minor numeric, currency text) returns numeric language sql immutable as $$
    select case
        when currency in ('BIF', 'CLP', 'DJF', 'GNF', 'ISK', 'JPY', 'KMF', 'KRW', 'PYG', 'RWF', 'UGX', 'VND', 'VUV',
                          'XAF', 'XOF', 'XPF') then minor::numeric(18, 0)
        when currency in ('BHD', 'IQD', 'JOD', 'KWD', 'LYD', 'OMR', 'TND') then (minor / 1000)::numeric(18, 3)
        else (minor / 100)::numeric(18, 2)
    end
$$;

create view audit.journal as
    select e.id as entry, e.transaction, e.phase, e.at at time zone 'UTC' as at_utc, p.line, a.name as account,
           a.currency, case when p.minor > 0 then audit.amount(p.minor, a.currency) end as debit,
           case when p.minor < 0 then audit.amount(-p.minor, a.currency) end as credit
    from ledger.entry e
    left join ledger.posting p on p.entry_id = e.id
    left join ledger.account a on a.id = p.account_id;
comment on view audit.journal is 'Every entry with its lines, in the order of entry and line. A voided entry has none.';

create view audit.trial_balance as
    select a.name as account, a.kind, a.owner, a.currency,
           audit.amount(coalesce(sum(p.minor) filter (where p.minor > 0), 0), a.currency) as debits,
           audit.amount(coalesce(-sum(p.minor) filter (where p.minor < 0), 0), a.currency) as credits,
           audit.amount(coalesce(sum(p.minor), 0), a.currency) as balance
    from ledger.account a
    left join (select p.account_id, p.minor from ledger.posting p join ledger.entry e on e.id = p.entry_id
               where e.phase = 'posted') p on p.account_id = a.id
    group by a.id;
comment on view audit.trial_balance is 'Posted entries by account; balances sum to zero in every currency.';

create view audit.agent_float as
    select a.owner as agent, a.currency, audit.amount(b.posted, a.currency) as posted,
           audit.amount(b.reserved, a.currency) as reserved, audit.amount(b.floor, a.currency) as floor,
           audit.amount(b.posted - b.reserved - b.floor, a.currency) as free
    from ledger.float_balance b join ledger.account a on a.id = b.account_id;
comment on view audit.agent_float is 'What agents have, what of it is held, and what they may still pay in.';

create view audit.agent_statement as
    select a.owner as agent, a.currency, e.at at time zone 'UTC' as at_utc, t.terminal, t.kind, t.rrn,
           audit.amount(-p.minor, a.currency) as amount,
           audit.amount(-sum(p.minor) over (partition by a.id order by e.id), a.currency) as balance, e.transaction
    from ledger.posting p
    join ledger.entry e on e.id = p.entry_id and e.phase = 'posted'
    join ledger.account a on a.id = p.account_id and a.kind = 'float'
    left join wakala.transaction t on t.id = e.transaction;
comment on view audit.agent_statement is 'The posted lines of each float with the balance after each.';

create view audit.transactions as
    select t.id as transaction, t.terminal, t.agent, t.core, t.kind, t.currency,
           audit.amount(t.amount, t.currency) as amount, t.card_masked as card, t.state, t.code, t.authorisation,
           lpad(t.stan::text, 6, '0') as stan, t.rrn, t.reversals, t.asked_at at time zone 'UTC' as asked_at_utc,
           t.sent_at at time zone 'UTC' as sent_at_utc, t.updated_at at time zone 'UTC' as updated_at_utc
    from wakala.transaction t;
comment on view audit.transactions is 'Every transaction, its card masked.';

create view audit.in_doubt as
    select * from audit.transactions where state = 'IN_DOUBT';
comment on view audit.in_doubt is 'Transactions whose answer is outstanding; a reversal is under way.';

create view audit.settlement_by_core as
    select t.core, t.currency, (t.updated_at at time zone 'UTC')::date as day_utc, t.kind, count(*) as transactions,
           audit.amount(sum(t.amount), t.currency) as amount
    from wakala.transaction t where t.state = 'APPROVED'
    group by t.core, t.currency, day_utc, t.kind;
comment on view audit.settlement_by_core is 'Approved transactions by core, day and kind.';

create view audit.receipts_undelivered as
    select r.terminal, r.answers as transaction, case r.stage when 0 then 'notice' else 'receipt' end as stage,
           r.at at time zone 'UTC' as at_utc, r.copies
    from wakala.receipt r where r.delivered_at is null and r.withdrawn_at is null;
comment on view audit.receipts_undelivered is 'What waits for its terminal.';

create view audit.late_answers as
    select l.transaction, l.answer, l.code, l.at at time zone 'UTC' as at_utc from wakala.late_answer l;
comment on view audit.late_answers is 'What cores said when it changed nothing any more.';

create view audit.terminals as
    select t.id as terminal, t.agent, t.core, t.sandbox, t.enrolled_at at time zone 'UTC' as enrolled_at_utc,
           t.blocked_at at time zone 'UTC' as blocked_at_utc, t.blocked_why
    from wakala.terminal t;
comment on view audit.terminals is 'Who may connect.';

grant select on all tables in schema audit to wakala_auditor;
",
    down: r"
drop view audit.terminals;
drop view audit.late_answers;
drop view audit.receipts_undelivered;
drop view audit.settlement_by_core;
drop view audit.in_doubt;
drop view audit.transactions;
drop view audit.agent_statement;
drop view audit.agent_float;
drop view audit.trial_balance;
drop view audit.journal;
drop function audit.amount(numeric, text);
"
);
