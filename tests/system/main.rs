//! Wakala's parts against their real neighbours.

mod admission;
mod decisions;
mod pins;
mod schema;
