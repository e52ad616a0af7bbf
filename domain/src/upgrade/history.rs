//! The history of a component: one entry for each upgrade that ended there. It survives rollbacks. Data only.

use serde::{Deserialize, Serialize};

use super::{Outcome, interruption::Interruption};
use crate::{
    id::{RolloutId, UpgradeId},
    reason::Reason,
    state::ComponentState,
    time::Time,
};

/// An upgrade that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, by the node's clock.
    pub time: Time,
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// What the component ran before; `None` for an upgrade that never began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ComponentState>,
    /// Where it was to lead.
    pub to: ComponentState,
    /// What the component ran afterwards.
    pub current: ComponentState,
    /// Whether the running JVM was to be patched instead of restarted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
    /// How long nothing answered, where it concerned a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<Interruption>,
    /// Who ordered it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub actor: String,
    /// The rollout that ordered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutId>,
    /// The upgrade; `None` for an order of a person at the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeId>,
}
