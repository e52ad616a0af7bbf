//! A whole controller over loopback, with agents that are played: real TLS, real store, no processes.

mod agents;
mod bytes;
mod calls;
mod certificates;
mod enroll;
mod liars;
mod logs;
mod patches;
mod support;
