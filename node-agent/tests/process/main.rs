//! Tests with real processes: the agent's own binary, and small programs as components.

#![expect(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

mod crash;
mod disk;
mod files;
mod files_crash;
mod files_support;
mod handover;
mod handover_crash;
mod handover_limits;
mod hostile;
mod inputs;
mod releases;
mod shim;
mod stack_crash;
mod support;
mod systemd;
mod units;
mod world;
