//! Tests with real processes: the agent's own binary, and small programs as components.

mod hostile;
mod shim;
mod support;
