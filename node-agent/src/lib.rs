//! The node agent: carries out upgrades on its node, and reports.
//!
//! `run` joins the parts; `component` owns each component's upgrades; `transport` is the only part that
//! sees the wire; `exec` and `supervise` touch the node and import no network code.

pub mod cli;
pub mod component;
pub mod config;
pub mod crash;
pub mod damage;
pub mod download;
pub mod enroll;
pub mod error;
pub mod exec;
pub mod fault;
pub mod formats;
pub mod guard;
pub mod identity;
pub mod itself;
pub mod journal;
pub mod jvm;
pub mod local;
pub mod notify;
pub mod platform;
pub mod probe;
pub mod processes;
pub mod reload;
pub mod run;
pub mod shim;
pub mod supervise;
pub mod supervised;
pub mod transport;

#[cfg(test)]
mod testing;
