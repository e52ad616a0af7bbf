//! Upfleet's controller and command line.
//!
//! `cli` and `dev` are what people touch; they reach the controller through the generated client only.
//! What `upfleet serve` runs lives in the other modules.

pub mod api;
pub mod auth;
pub mod backup;
pub mod blobs;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod dev;
pub mod engine;
pub mod exit;
pub mod failure;
pub mod files;
pub mod init;
pub mod metrics;
pub mod ops;
pub mod serve;
pub mod sessions;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod version;
