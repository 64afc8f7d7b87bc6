//! Wakala commits and acts here.

pub mod ports;
pub mod store;
pub mod supervision;
