//! A session's rows whose PUBREL is owed are read first, before the pages of its other rows [MQTT-4.6.0-4].

step!(
    "m0035_owed",
    up: "create index message_released on wakala.message (client_id) where released;",
    down: "drop index wakala.message_released;"
);
