//! A will remembers the node that its connection was to, which sends it: what is not stored for a subscriber reaches those of that
//! node alone. The session forgets its node at the end of the connection, and a delay begins there. Nodes of an older program know
//! nothing of it: wills that they keep are anybody's, as all were.

step!(
    "m0032_will_nodes",
    up: r"
alter table wakala.will add column node text null;
comment on column wakala.will.node is 'Who sends it: the node of its connection. Null when that is dead: then anybody does.';
",
    down: "alter table wakala.will drop column node;"
);
