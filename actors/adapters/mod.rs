//! Drivers for the ports, one per file. `main.rs` alone chooses among them.

pub mod iso8583_tcp;
pub mod kafka;
pub mod postgres_log;
pub mod soft_hsm;
