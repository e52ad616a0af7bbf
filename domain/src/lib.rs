//! Upfleet's decisions.
//!
//! Everything here is pure: no sockets, files, clock, environment or source of randomness. Times, ids and
//! seeds come in as arguments; effects go out as data (`Step`s, orders) that the agent and the controller
//! carry out. That lets both machines run side by side in a simulation, and lets a test say what would
//! happen at any instant.
//!
//! The vocabulary: a **release** is an immutable manifest that moves one **component** of a **node**
//! forward; what a component runs is its **state** (a base and ordered layers); one node's passage from a
//! state to another is an **upgrade**; one change on many nodes is a **rollout** with a **plan** of
//! **waves**. Everything that waits or has failed carries a [`reason::Reason`].

pub mod backoff;
pub mod bundle;
pub mod digest;
pub mod files;
pub mod guard;
pub mod id;
pub mod jvm;
pub mod labels;
pub mod order;
pub mod patch;
pub mod reason;
pub mod release;
pub mod report;
pub mod rollout;
pub mod state;
pub mod time;
pub mod token;
pub mod upgrade;
