//! JVMs of this node: finding them, attaching to them, patching them while they run, and asking what is in force.
//!
//! Touches processes that are not the agent's own, so it never signals one that is not a JVM ready for it, acts
//! in a child with the JVM's own user, and opens nothing below another mount namespace through a link.

pub mod attach;
pub mod discover;
pub mod facts;
pub mod helper;
pub mod java;
pub mod launch;
pub mod live;
pub mod lookup;
pub mod namespace;
pub mod originals;
pub mod patcher;
pub mod process;
pub mod proof;
pub mod report;
pub mod request;
pub mod started;
pub mod workspace;

pub use attach::{Reply, Target};
pub use discover::inventory;
pub use patcher::{Change, Patcher};
pub use workspace::{Source, Workspace};
