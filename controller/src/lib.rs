//! Upfleet's controller and command line.
//!
//! `cli` and `dev` are what people touch; they reach the controller through the generated client only.
//! What `upfleet serve` runs lives in the other modules.

pub mod cli;
pub mod exit;
pub mod store;
