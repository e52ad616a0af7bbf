//! Rollouts: one change of one component on the nodes that a selector names.
//!
//! This file holds the nouns of a rollout as asked for and as planned; `record` holds those of one under way.
//! The planner (`plan`), the gates (`gate`), the machine (`machine`) and the linter of its states (`check`)
//! decide; nothing here does I/O.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

pub mod budget;
pub mod check;
pub mod event;
mod gate;
pub mod machine;
pub mod plan;
mod record;
pub mod table;

pub use record::*;

use crate::{
    digest::Digest,
    id::{ComponentId, NodeId, RolloutId, Version},
    reason::Reason,
    state::{ComponentState, ReleaseRef},
};

/// A number of nodes, or a part of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeCount {
    /// So many nodes.
    Count(u32),
    /// So many percent, rounded up; 1 to 100.
    Percent(u32),
}

impl NodeCount {
    /// How many of `total` that is.
    #[must_use]
    pub fn of(self, total: usize) -> usize {
        match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => (total * percent as usize).div_ceil(100),
        }
    }
}

impl fmt::Display for NodeCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Nodes done together, as asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaveSpec {
    /// How many nodes; the last wave takes all that are left.
    pub size: NodeCount,
    /// Wait for a person before this wave.
    pub approval: bool,
    /// How long the wave is watched once its nodes are done.
    pub bake: Duration,
}

/// What failed, as budgets count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The bytes could not be had or were wrong.
    FetchVerify,
    /// The node said no before anything was touched.
    PreflightRefused,
    /// The new version was unhealthy and put back, or drifted afterwards.
    Probe,
    /// Putting back failed.
    RollbackFailed,
}

/// How many failures of a cause are borne; one more halts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// The limit. Percent is of the nodes attempted.
    pub limit: NodeCount,
    /// A percentage counts only once so many nodes were attempted.
    pub minimum_sample: u32,
}

/// What to do when a budget is exceeded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// Start no more nodes and rest until a person decides.
    #[default]
    Halt,
    /// Put the wave's nodes back.
    RevertWave,
    /// Put all nodes of the rollout back.
    RevertAll,
}

/// How a rollout proceeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The waves in order; never empty.
    pub waves: Vec<WaveSpec>,
    /// How many nodes may be unavailable at once.
    pub max_unavailable: NodeCount,
    /// Failures borne per cause; a missing cause bears none.
    pub budgets: BTreeMap<Cause, Budget>,
    /// How many nodes may stay silent without holding a wave.
    pub silence_budget: NodeCount,
    /// What to do when a budget is exceeded.
    pub on_failure: OnFailure,
    /// How long offline nodes get the order when they return.
    pub offline_deadline: Duration,
    /// After how long without a word a node counts as silent.
    pub silence_after: Duration,
    /// Wait for a person before the first wave.
    pub approval: bool,
    /// Watch each node at least so long.
    pub soak: Option<Duration>,
}

impl Default for Policy {
    /// One node, then the rest; a tenth unavailable at most; nothing borne; halt.
    fn default() -> Self {
        let wave = |size| WaveSpec { size, approval: false, bake: Duration::ZERO };
        Self {
            waves: vec![wave(NodeCount::Count(1)), wave(NodeCount::Percent(100))],
            max_unavailable: NodeCount::Percent(10),
            budgets: BTreeMap::new(),
            silence_budget: NodeCount::Count(0),
            on_failure: OnFailure::Halt,
            offline_deadline: Duration::from_secs(72 * 3600),
            silence_after: Duration::from_secs(300),
            approval: false,
            soak: None,
        }
    }
}

/// What a rollout changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Install a release.
    Install {
        /// The release by name, `component@version`.
        version: Version,
        /// Permit a lower sequence.
        allow_downgrade: bool,
        /// Try a digest that failed before or is quarantined.
        allow_failed_digest: bool,
    },
    /// Change the patch stack.
    Stack(StackChange),
    /// Install a release with exactly the stack that is named; both are rolled back together.
    BaseWithStack {
        /// The release's version.
        version: Version,
        /// Patch releases of the component, in any order. What is in a node's stack and not named leaves it.
        apply: Vec<Version>,
        /// Fixes that may be lost, by id.
        waive_fixes: Vec<String>,
        /// Permit a lower sequence.
        allow_downgrade: bool,
        /// Try digests that failed before or are quarantined.
        allow_failed_digest: bool,
    },
    /// Go back to a kept state.
    Restore(Restore),
}

impl Change {
    /// The base release that it names.
    #[must_use]
    pub fn base(&self) -> Option<&Version> {
        match self {
            Self::Install { version, .. } | Self::BaseWithStack { version, .. } => Some(version),
            Self::Stack(_) | Self::Restore(_) => None,
        }
    }

    /// The patch releases that it names.
    #[must_use]
    pub fn patches(&self) -> &[Version] {
        match self {
            Self::Stack(change) => &change.apply,
            Self::BaseWithStack { apply, .. } => apply,
            Self::Install { .. } | Self::Restore(_) => &[],
        }
    }

    /// Whether digests that failed on a node before, or are quarantined, may be tried.
    #[must_use]
    pub fn allows_failed(&self) -> bool {
        match self {
            Self::Install { allow_failed_digest, .. } | Self::BaseWithStack { allow_failed_digest, .. } => {
                *allow_failed_digest
            }
            Self::Stack(change) => change.allow_failed_digest,
            Self::Restore(_) => false,
        }
    }

    /// Whether a lower sequence is permitted.
    #[must_use]
    pub fn allows_downgrade(&self) -> bool {
        match self {
            Self::Install { allow_downgrade, .. } | Self::BaseWithStack { allow_downgrade, .. } => {
                *allow_downgrade
            }
            Self::Stack(_) | Self::Restore(_) => false,
        }
    }
}

/// A change of a patch stack: removals first, then what is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackChange {
    /// Patch releases to put on, by version.
    pub apply: Vec<Version>,
    /// Numbers to take off.
    pub remove: Vec<u32>,
    /// Go back to this number.
    pub to_number: Option<u32>,
    /// Take all off.
    pub none: bool,
    /// Patch the running JVMs instead of restarting them.
    pub live: bool,
    /// Remove also what another is built on, and record that it is still contained.
    pub contained: bool,
    /// Try digests that failed before or are quarantined.
    pub allow_failed_digest: bool,
}

/// Which kept state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restore {
    /// The one before the current.
    Previous,
    /// A release, where the node has kept it.
    Release(Version),
    /// The state that each node proved before a rollout.
    BeforeRollout(RolloutId),
}

/// What a rollout is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// The component.
    pub component: ComponentId,
    /// The nodes, as a label selector.
    pub selector: String,
    /// The change.
    pub change: Change,
    /// How to proceed.
    pub policy: Policy,
    /// Orders nodes within waves.
    pub seed: u64,
}

/// One node's change in a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedUpgrade {
    /// The node.
    pub node: NodeId,
    /// What it runs.
    pub from: ComponentState,
    /// What it will run.
    pub to: ComponentState,
    /// The wave, 0 for the first.
    pub wave: usize,
    /// Whether its agent was connected when the plan was made. Not part of the digest.
    pub online: bool,
}

/// Frozen waves, with a reason for each node left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The upgrades, by wave and order within it.
    pub upgrades: Vec<PlannedUpgrade>,
    /// The nodes left out.
    pub excluded: Vec<(NodeId, Reason)>,
    /// What deserves a second look.
    pub warnings: Vec<String>,
    /// `max_unavailable` in nodes, at least one.
    pub max_unavailable: usize,
    /// The release that is installed, where it is the same for all.
    pub release: Option<ReleaseRef>,
    /// Whether running JVMs are patched instead of restarted.
    #[serde(default)]
    pub live: bool,
    /// SHA-256 over what the plan does: the same fleet, spec and seed give the same digest.
    pub digest: Digest,
}
