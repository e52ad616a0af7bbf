//! What an agent's report makes of an upgrade's row. Pure.

use upfleet_domain::{report::UpgradeReport, rollout::NodeUpgrade, time::Time};

/// Takes a report into its row. The caller has checked that its sequence is new.
pub(super) fn apply(row: &mut NodeUpgrade, report: &UpgradeReport, time: Time) {
    // Whoever reports is there.
    row.unreachable = false;
    row.offline_since = None;
    row.record(report, time);
}
