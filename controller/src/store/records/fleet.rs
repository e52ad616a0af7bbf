//! Nodes, what runs on them and what should.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId},
    jvm::Jvm,
    order::{DesiredState, Generation, HoldOrder},
    reason::Reason,
    release::Platform,
    report::ComponentInventory,
    state::ComponentState,
    time::Time,
    upgrade::UpgradeState,
};

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NodeState {
    /// Takes part in rollouts.
    Active,
    /// Kept out of new plans.
    Cordoned,
    /// Cut off: two processes used its key.
    Suspended,
    /// Gone for good.
    Retired,
}

impl NodeState {
    /// As stored and as people see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "ACTIVE",
            Self::Cordoned => "CORDONED",
            Self::Suspended => "SUSPENDED",
            Self::Retired => "RETIRED",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The open session of a node's agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Random per agent process.
    pub instance_id: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// When it was opened.
    pub since: Time,
}

/// A machine of the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name.
    pub id: NodeId,
    /// New with each enrollment.
    pub uid: String,
    /// For selectors.
    pub labels: BTreeMap<String, String>,
    /// Where it is in its life.
    pub state: NodeState,
    /// Why it is cordoned or suspended.
    pub reason: Option<Reason>,
    /// What its programs are built for; `None` until its agent said so.
    pub platform: Option<Platform>,
    /// What its agent told about the machine.
    pub facts: BTreeMap<String, String>,
    /// When it enrolled.
    pub created: Time,
    /// When its certificate expires.
    pub cert_expires: Option<Time>,
    /// The open session. Written by the session changes only, never by [`super::super::Change::PutNode`].
    #[serde(skip)]
    pub session: Option<SessionRecord>,
    /// When its agent was last heard. Written by the session changes only.
    #[serde(skip)]
    pub last_seen: Option<Time>,
    /// Grows with each `PutNode`; not with sessions. Set by the store.
    #[serde(skip)]
    pub revision: u64,
}

impl NodeRecord {
    /// Whether its agent is connected.
    #[must_use]
    pub fn online(&self) -> bool {
        self.session.is_some()
    }
}

/// What one component of one node is and runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentRecord {
    /// The node.
    pub node: NodeId,
    /// What the agent said last.
    pub inventory: ComponentInventory,
    /// Who ordered what it runs, e.g. `users/anna`, or `local`.
    pub changed_by: String,
    /// The rollout that put it there.
    pub rollout: Option<RolloutId>,
    /// Grows with each change of this row. Set by the store.
    #[serde(skip)]
    pub revision: u64,
}

impl ComponentRecord {
    /// The component.
    #[must_use]
    pub fn component(&self) -> &ComponentId {
        &self.inventory.component
    }
}

/// The JVMs of one node, as its agent said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JvmsRecord {
    /// The node.
    pub node: NodeId,
    /// Its JVMs, by process id.
    pub jvms: Vec<Jvm>,
}

/// One change of a component of a node that ended, also on the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// The component.
    pub component: ComponentId,
    /// When it ended.
    pub time: Time,
    /// What it ran before.
    pub from: ComponentState,
    /// What it was to run.
    pub to: ComponentState,
    /// How it ended.
    pub state: UpgradeState,
    /// Why.
    pub reason: Reason,
    /// The rollout; `None` for a change on the node itself.
    pub rollout: Option<RolloutId>,
    /// Who ordered it, or `local`.
    pub actor: String,
}

/// How the nodes that have a component stand, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ComponentCount {
    /// The component.
    pub component: String,
    /// Nodes where something else runs than was recorded.
    pub drifted: u64,
    /// Nodes where something deserves a look.
    pub alarmed: u64,
    /// Classes that run old code, over all nodes.
    pub old_classes: u64,
}

/// An agent's refusal of a desired state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The generation refused.
    pub generation: Generation,
    /// Why.
    pub reason: Reason,
}

/// What one component of one node should run, and what its agent said to that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredRecord {
    /// The node.
    pub node: NodeId,
    /// The component.
    pub component: ComponentId,
    /// The newest order; `None` where only a hold was ordered.
    pub desired: Option<DesiredState>,
    /// The newest hold order.
    pub hold: Option<HoldOrder>,
    /// The highest generation that the agent has made durable.
    pub acked: Generation,
    /// The highest hold generation that the agent has made durable.
    pub hold_acked: u64,
    /// The newest refusal; cleared by a newer order.
    pub nack: Option<Refusal>,
}

impl DesiredRecord {
    /// The generation of the newest order, zero where there is none.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.desired.as_ref().map(|desired| desired.generation).unwrap_or_default()
    }
}
