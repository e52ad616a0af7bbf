//! What whole-fleet tests are made of: processes, releases, a client, and waiting. Asserts nothing itself.

mod api;
pub mod bad_agents;
#[path = "../../../node-agent/src/testing/cutter.rs"]
#[expect(dead_code, reason = "the agent's own tests want more of it")]
pub mod cutter;
mod fleet;
pub mod itself;
pub mod java;
mod lifeline;
pub mod load;
pub mod mirror;
pub mod netns;
pub mod next;
mod node;
pub mod own_units;
mod process;
mod program;
mod shops;
mod skip;
pub mod transcript;
mod wait;
pub mod wire;

pub use api::{Api, manifest, upgrade_states};
pub use fleet::{Fleet, TestFleet, count};
pub use itself::AGENT;
pub use node::Node;
pub use process::{Program, binary, run};
pub use program::{Behaviour, COMPONENT, padded, script};
pub use shops::{Shops, apply};
pub use skip::{endure, skip};
pub use wait::{eventually, eventually_async, within_async};
