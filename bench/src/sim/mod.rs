//! The fleet simulator: many agents in one process that speak the real protocol, each over a TLS connection and with a
//! certificate of its own. Nothing is installed: an upgrade walks its states in the time that it is told to take.

mod agent;
mod component;
mod download;
mod roster;
mod stats;
#[cfg(test)]
mod tests;

pub use agent::{Behaviour, Fleet};
pub use component::{Component, Pace};
pub use roster::{Identity, Roster};
pub use stats::{Counts, Mark, Stats};
