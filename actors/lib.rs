//! Wakala commits and acts here.

pub mod ports;
pub mod supervision;
