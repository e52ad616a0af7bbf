//! Agents' sessions: what should run goes out, what runs comes in.
//!
//! A session decides nothing about rollouts: it follows the store and writes to it. What is kept here is only
//! what ends with the connections: who is connected, byte progress, and who displaced whom lately.

mod clones;
mod hub;
mod inbound;
mod logs;
mod manifests;
mod node;
mod orders;
mod session;

pub use clones::Clones;
pub use hub::{Progress, Sessions};
pub use logs::Part;
pub use node::edit_node;
pub use session::{Outgoing, serve};
