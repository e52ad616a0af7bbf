//! The agent's disk under faults: full, read-only, failing, cut off from power; and the agent killed at its system calls.
//!
//! The modules below bring the faults; what is done, and what must hold afterwards, is the same for all of them
//! ([`lab`]).

mod damaged;
mod full;
mod lab;
mod mounts;
mod places;
mod power;
mod syscalls;
mod trace;
