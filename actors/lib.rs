//! Wakala commits and acts here.

pub mod adapters;
pub mod bank;
pub mod banks;
pub mod edge;
pub mod ports;
pub mod store;
pub mod supervision;
pub mod terminal;
