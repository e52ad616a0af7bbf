//! Counting what can't run here. A skipped test says so where the gate reads it, and never passes silently.

use std::io::Write as _;

/// Says that `test` did not run, and why. `.ci/run` counts these lines.
pub fn skip(test: &str, reason: &str) {
    // Written past the test runner's capture, so that it is seen although the test returns without failing.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
}

/// Whether the long matrices are wanted: `.ci/endure` sets it.
pub fn endure() -> bool {
    std::env::var_os("UPFLEET_ENDURE").is_some()
}
