//! Drivers for the ports, one per file. `main.rs` alone chooses among them.

pub mod iso8583_tcp;
pub mod soft_hsm;
