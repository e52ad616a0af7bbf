//! JVMs: what runs on a node, how patches get into it, and what it says is in force.
//!
//! Pure: command lines, environments and manifests come in as texts that others have read.

pub mod command;
mod facts;
pub mod manifest;
pub mod mechanism;
pub mod rewrite;
pub mod words;

pub use facts::*;
