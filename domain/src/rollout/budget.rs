//! Failure budgets: which failures count as what, and when they are too many.

use std::collections::BTreeMap;

use super::{Budget, Cause, NodeCount, NodeUpgrade, Policy};
use crate::{
    id::NodeId,
    reason::{Reason, ReasonCode},
    time::Time,
    upgrade::{Outcome, UpgradeState},
};

impl Cause {
    /// All of them, gravest first: the first exceeded one is told.
    pub const ALL: [Self; 4] = [Self::RollbackFailed, Self::Probe, Self::PreflightRefused, Self::FetchVerify];

    /// As people see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FetchVerify => "fetch and verify",
            Self::PreflightRefused => "preflight and refusal",
            Self::Probe => "probe",
            Self::RollbackFailed => "rollback failed",
        }
    }
}

/// What an upgrade's end counts as; `None` for no failure, and for one that a person has decided on.
#[must_use]
pub fn cause(upgrade: &NodeUpgrade) -> Option<Cause> {
    if upgrade.excused {
        return None;
    }
    let UpgradeState::Ended(outcome) = upgrade.state else { return None };
    match outcome {
        Outcome::RollbackFailed => Some(Cause::RollbackFailed),
        Outcome::RolledBack if upgrade.reason.code == ReasonCode::CancelledAfterSwitch => None,
        Outcome::RolledBack => Some(Cause::Probe),
        Outcome::Refused => Some(Cause::PreflightRefused),
        Outcome::FailedUnchanged => Some(unchanged(&upgrade.reason)),
        Outcome::Succeeded | Outcome::AlreadyCurrent => upgrade.drift.as_ref().map(|_| Cause::Probe),
        Outcome::Cancelled | Outcome::Superseded | Outcome::Expired | Outcome::Skipped => None,
    }
}

fn unchanged(reason: &Reason) -> Cause {
    use ReasonCode as R;
    let fetch = [
        R::FetchFailed,
        R::SizeMismatch,
        R::DigestMismatch,
        R::WrongCopy,
        R::Md5Mismatch,
        R::StageFailed,
        R::SourceNotAllowed,
    ];
    let phase = reason.metadata.get("phase").map(String::as_str);
    let fetching = reason.code == R::PhaseTimedOut && matches!(phase, Some("FETCHING" | "VERIFYING"));
    if fetching || fetch.contains(&reason.code) { Cause::FetchVerify } else { Cause::PreflightRefused }
}

/// A budget that was exceeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The waves with such failures, in order.
    pub waves: Vec<usize>,
    /// Told to people.
    pub reason: Reason,
}

/// The gravest exceeded budget, over the nodes attempted. A node under way has not been attempted yet: it
/// would make the failures before it look fewer than they are.
#[must_use]
pub fn exceeded(policy: &Policy, upgrades: &BTreeMap<NodeId, NodeUpgrade>) -> Option<Exceeded> {
    let attempted = upgrades.values().filter(|u| u.attempt > 0 && u.state.outcome().is_some()).count();
    Cause::ALL.into_iter().find_map(|kind| {
        let failed: Vec<&NodeUpgrade> =
            upgrades.values().filter(|upgrade| cause(upgrade) == Some(kind)).collect();
        let budget = policy.budgets.get(&kind).copied().unwrap_or(Budget::NONE);
        if !budget.is_exceeded(failed.len(), attempted) {
            return None;
        }
        let first = failed.iter().min_by_key(|upgrade| (upgrade.ended, upgrade.wave, upgrade.position))?;
        let why = first.drift.as_ref().unwrap_or(&first.reason);
        let mut waves: Vec<usize> = failed.iter().map(|upgrade| upgrade.wave).collect();
        waves.sort_unstable();
        waves.dedup();
        let reason = Reason::new(ReasonCode::BudgetExceeded)
            .with("failed", failed.len())
            .with("attempted", attempted)
            .with("cause", kind.as_str())
            .with("limit", budget.limit)
            .with("node", &first.node)
            .with("first", why);
        Some(Exceeded { waves, reason })
    })
}

impl Budget {
    /// Bears no failure.
    pub const NONE: Self = Self { limit: NodeCount::Count(0), minimum_sample: 0 };

    /// Whether `failed` of `attempted` are too many. A percentage is exact here, not rounded, and says nothing
    /// before the minimum sample was attempted.
    #[must_use]
    pub fn is_exceeded(self, failed: usize, attempted: usize) -> bool {
        match self.limit {
            NodeCount::Count(limit) => failed > limit as usize,
            NodeCount::Percent(percent) => {
                let sampled = attempted >= (self.minimum_sample as usize).max(1);
                sampled && failed * 100 > attempted * percent as usize
            }
        }
    }
}

/// When an upgrade that is not done counts as silent, if its node stays away.
pub(super) fn silent_at(policy: &Policy, upgrade: &NodeUpgrade) -> Option<Time> {
    upgrade.offline_since.map(|since| since.after(policy.silence_after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_than_the_limit_is_too_many() {
        let check = |limit, sample, failed, attempted, expected: bool| {
            let budget = Budget { limit, minimum_sample: sample };
            assert_eq!(budget.is_exceeded(failed, attempted), expected, "{budget:?} {failed}/{attempted}");
        };
        check(NodeCount::Count(0), 0, 0, 1, false);
        check(NodeCount::Count(0), 0, 1, 1, true);
        check(NodeCount::Count(2), 0, 2, 2, false);
        check(NodeCount::Percent(10), 0, 1, 9, true);
        check(NodeCount::Percent(10), 0, 1, 10, false);
        check(NodeCount::Percent(10), 20, 10, 19, false);
        check(NodeCount::Percent(10), 20, 3, 20, true);
        check(NodeCount::Percent(100), 0, 9, 9, false);
    }
}
