//! Wakala's parts against their real neighbours.

mod decisions;
mod schema;
