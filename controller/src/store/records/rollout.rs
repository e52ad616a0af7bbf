//! Rollouts as they are stored, and the events from which watches resume.

use upfleet_domain::{
    id::{NodeId, RolloutId},
    rollout::Rollout,
    time::Time,
    upgrade::UpgradeState,
};

/// A rollout without its upgrades and its plan, which have rows of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolloutRecord {
    /// The rollout. The store sets its `revision` and `state_revision`.
    pub rollout: Rollout,
    /// The store's epoch when it was written last. Set by the store.
    pub epoch: u64,
    /// The controller that drives it; `None` where there is only one.
    pub lease_holder: Option<String>,
    /// Grows by one with each `PutRollout` only, unlike `revision`: the precondition of the next. Set by the
    /// store.
    pub version: u64,
}

impl RolloutRecord {
    /// A record that was not stored yet.
    #[must_use]
    pub fn new(rollout: Rollout) -> Self {
        Self { rollout, epoch: 0, lease_holder: None, version: 0 }
    }
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The rollout or its waves. The snapshot is a [`Rollout`].
    Rollout,
    /// One node's upgrade. The snapshot is a [`upfleet_domain::rollout::NodeUpgrade`].
    Upgrade {
        /// The node.
        node: NodeId,
        /// The state before; `None` for the row's first.
        previous: Option<UpgradeState>,
    },
}

/// One change of a rollout, numbered without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// The rollout.
    pub rollout: RolloutId,
    /// The rollout's revision after the change.
    pub revision: u64,
    /// When.
    pub time: Time,
    /// What changed.
    pub kind: EventKind,
    /// How it looked after the change.
    pub snapshot: serde_json::Value,
}
