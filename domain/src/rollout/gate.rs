//! Gates: how many nodes count as unavailable, what holds a wave, and when a silent node is given up.
//!
//! Only questions; what follows from the answers is the machine's.

use std::collections::BTreeMap;

use super::{NodeUpgrade, Policy, Rollout, Told, WaveState};
use crate::{
    id::NodeId,
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

/// Who is unavailable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// Told to go and not ended: each may activate at any moment.
    pub in_flight: usize,
    /// Unhealthy, silent beyond the silence budget, or ended without the node's word.
    pub others: usize,
    /// Silent and not under way.
    pub silent: usize,
}

impl Count {
    pub(super) fn unavailable(self) -> usize {
        self.in_flight + self.others
    }
}

pub(super) fn count(rollout: &Rollout, upgrades: &BTreeMap<NodeId, NodeUpgrade>) -> Count {
    let mut count = Count::default();
    for upgrade in upgrades.values() {
        if upgrade.in_flight() {
            count.in_flight += 1;
        } else if upgrade.unreachable && still_wanted(upgrade) {
            count.silent += 1;
        } else if is_down(upgrade) {
            count.others += 1;
        }
    }
    // Nodes that a policy expects to stay away are no reason to hold back the others.
    count.others += count.silent.saturating_sub(silence_budget(rollout, upgrades.len()));
    count
}

/// Whether a node counts as unavailable without being under way or silent.
pub(super) fn is_down(upgrade: &NodeUpgrade) -> bool {
    unresolved(upgrade) || (upgrade.unhealthy && still_wanted(upgrade))
}

/// Whether a node that was told to go may be doing so still, although nothing of it is recorded as under way.
fn unresolved(upgrade: &NodeUpgrade) -> bool {
    !upgrade.unreachable && (upgrade.presumed || (upgrade.waits() && upgrade.told == Told::Stay))
}

/// Whether nobody has given the node up.
fn still_wanted(upgrade: &NodeUpgrade) -> bool {
    let given_up = [Outcome::Expired, Outcome::Skipped, Outcome::Cancelled].map(UpgradeState::Ended);
    !upgrade.excused && !given_up.contains(&upgrade.state)
}

pub(super) fn silence_budget(rollout: &Rollout, planned: usize) -> usize {
    rollout.spec.policy.silence_budget.of(planned)
}

/// Whether a wave's nodes may be ordered.
pub(super) fn opened(state: WaveState) -> bool {
    !matches!(state, WaveState::Pending | WaveState::AwaitingApproval)
}

/// How many nodes of opened waves are silent and not done, and whether they are borne.
pub(super) fn silence(rollout: &Rollout, upgrades: &BTreeMap<NodeId, NodeUpgrade>) -> (usize, bool) {
    let open = |wave: usize| rollout.waves.get(wave).is_some_and(|wave| opened(wave.state));
    let silent = upgrades
        .values()
        .filter(|u| u.unreachable && matches!(u.state, UpgradeState::Active(_)) && open(u.wave))
        .count();
    (silent, silent <= silence_budget(rollout, upgrades.len()))
}

/// When a silent node is given up: `None` while it is connected or has ended.
pub(super) fn expires_at(policy: &Policy, deadline: Option<Time>, upgrade: &NodeUpgrade) -> Option<Time> {
    let UpgradeState::Active(phase) = upgrade.state else { return None };
    let (since, deadline) = (upgrade.offline_since?, deadline?);
    // A node that has begun is given the whole time that makes it silent; one that has not is not waited for
    // longer than the policy gives to offline nodes at all.
    let begun = upgrade.in_flight() && phase != Phase::Pending;
    let patience =
        if begun { policy.silence_after } else { policy.silence_after.min(policy.offline_deadline) };
    Some(deadline.max(since.after(patience)))
}
