//! Whole fleets: real controllers and real agents as processes, driven through the command line and the API.
//!
//! One binary for all of it, since each test binary links everything again. Must not reach beyond loopback.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod bad_agents;
mod bad_releases;
mod bytes;
mod clock;
mod controller;
mod damage;
mod dev;
mod files;
mod formats;
mod handover;
mod identity;
mod interop;
mod itself;
mod itself_fleet;
mod itself_kills;
mod itself_units;
mod itself_unlucky;
mod liars;
mod local;
mod network;
mod network_floods;
mod network_lines;
mod outcomes;
mod packages;
mod patches;
mod patches_away;
mod python;
mod recovery;
mod replaced;
mod replay;
mod requests;
mod rollouts;
mod services;
mod store;
mod support;
mod systemd;
mod units;
