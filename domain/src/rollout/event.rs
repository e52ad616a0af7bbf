//! What can happen to a rollout, and what its machine asks for in answer.

use serde::{Deserialize, Serialize};

use super::{FailedNodes, PauseStrength, State};
use crate::{
    digest::Digest,
    id::{NodeId, RolloutId, UpgradeId},
    reason::Reason,
    report::UpgradeReport,
    state::ComponentState,
    time::Time,
    upgrade::Phase,
};

/// Who did something, and what for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// E.g. `users/anna`.
    pub actor: String,
    /// What they said, perhaps nothing.
    pub message: String,
}

/// What is known of a node besides its upgrade.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Since when its agent is not connected; `None` while it is.
    pub offline_since: Option<Time>,
    /// Whether the component is installed and its probe does not pass.
    pub unhealthy: bool,
    /// Set while something else runs than was recorded.
    pub drift: Option<Reason>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A person starts the rollout.
    Start(By),
    /// A person approves what waits; `wave` (0 for the first) must be that, where given.
    Approve {
        /// The wave meant.
        wave: Option<usize>,
        /// Who.
        by: By,
    },
    /// A person pauses the rollout, or a paused one harder.
    Pause {
        /// How hard.
        strength: PauseStrength,
        /// Who.
        by: By,
    },
    /// A person resumes the rollout.
    Resume {
        /// What becomes of the failed nodes; required after a halt.
        failed: Option<FailedNodes>,
        /// With a retry: also digests that failed on a node before.
        allow_failed_digest: bool,
        /// Who.
        by: By,
    },
    /// A person ends the rollout for good.
    Cancel(By),
    /// A person has failed nodes tried again; all where the list is empty.
    Retry {
        /// Which.
        nodes: Vec<NodeId>,
        /// Also digests that failed on a node before.
        allow_failed_digest: bool,
        /// Who.
        by: By,
    },
    /// A person leaves a node out of the rest.
    Skip {
        /// Which.
        node: NodeId,
        /// Who.
        by: By,
    },
    /// A person has all nodes put back.
    RollBack(By),
    /// A node is no longer part of the fleet.
    Retired(NodeId),
    /// An agent reported.
    Report {
        /// The node.
        node: NodeId,
        /// What it said.
        report: Box<UpgradeReport>,
    },
    /// An agent came, went, or said how its component is.
    Presence {
        /// The node.
        node: NodeId,
        /// What is known now.
        presence: Presence,
    },
    /// The linked rollout that puts nodes back was stored.
    RevertStarted(RolloutId),
    /// The linked rollout that puts nodes back ended so.
    RevertEnded(State),
    /// None of the nodes that a revert should put back can be.
    RevertImpossible(Reason),
    /// The controller's store was restored from a backup: nothing is ordered until a person says so.
    Restored,
    /// Time has passed, or rows have changed in the store.
    Tick,
}

impl Event {
    /// Whether it is what a person asks for, which may be refused.
    #[must_use]
    pub fn is_command(&self) -> bool {
        match self {
            Self::Start(_)
            | Self::Approve { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Cancel(_)
            | Self::Retry { .. }
            | Self::Skip { .. }
            | Self::RollBack(_) => true,
            Self::Retired(_)
            | Self::Report { .. }
            | Self::Presence { .. }
            | Self::RevertStarted(_)
            | Self::RevertEnded(_)
            | Self::RevertImpossible(_)
            | Self::Restored
            | Self::Tick => false,
        }
    }
}

/// What a node is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tell {
    /// Go to the planned state.
    Go,
    /// Go, but wait before this phase.
    HoldBefore(Phase),
    /// Go on after a hold.
    Continue,
    /// Stay: what is under way is undone, what is finished stands.
    Stay,
    /// The state that the node proved is what it should run.
    Settle(ComponentState),
}

/// What is to be done. All effects of a step are stored in one transaction with its outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write the node's next desired state, with the next generation.
    Tell {
        /// The node.
        node: NodeId,
        /// The upgrade it begins or steers; `None` where no report is expected.
        upgrade: Option<UpgradeId>,
        /// What.
        tell: Tell,
    },
    /// Plan, store and start the linked rollout that puts these nodes back, then say `RevertStarted`.
    StartRevert {
        /// The nodes that the rollout changed.
        nodes: Vec<NodeId>,
    },
    /// A digest rolled back on a node; the controller quarantines it when that happened on several.
    RolledBack {
        /// The node.
        node: NodeId,
        /// The digest.
        digest: Digest,
    },
    /// Say `Tick` at that time.
    WakeAt(Time),
}
