//! What an agent's report makes of an upgrade's row. Pure.

use upfleet_domain::{report::UpgradeReport, rollout::NodeUpgrade, time::Time};

/// Takes a report into its row. The caller has checked that its sequence is new.
///
/// An upgrade that has ended stays ended as recorded, and only what the node runs is taken over; but where the
/// controller had only presumed the end, the node's word replaces it.
pub(super) fn apply(row: &mut NodeUpgrade, report: &UpgradeReport, time: Time) {
    row.sequence = report.sequence;
    row.unreachable = false;
    row.offline_since = None;
    if report.current.is_some() {
        row.current.clone_from(&report.current);
    }
    if row.state.outcome().is_some() && !row.presumed {
        return;
    }
    row.presumed = false;
    row.state = report.state;
    row.reason = report.reason.clone();
    if let Some(from) = &report.from {
        row.from = from.clone();
    }
    if report.evidence.is_some() {
        row.evidence.clone_from(&report.evidence);
    }
    row.ended = report.state.outcome().map(|_| time);
}
