//! The fleet simulator and the figures of docs/performance.md, each a command beside its peer.
//!
//! Everything here speaks to the controller as a third party would, over the generated API and as processes of their
//! own. Nothing here is used by the product, and nothing here reaches into it.

pub mod agents;
pub mod api;
pub mod bytes;
pub mod child;
pub mod controller;
pub mod fleet;
pub mod group;
pub mod load;
pub mod peers;
pub mod report;
pub mod rows;
pub mod sim;
pub mod timing;
pub mod tls;
pub mod usage;

/// Says, past the test runner's capture, that a test could not run here and why.
#[cfg(test)]
pub(crate) fn skipped(test: &str, reason: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "skipped: {test}: {reason}");
}
