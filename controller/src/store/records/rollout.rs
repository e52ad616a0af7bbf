//! Rollouts as they are stored, and the events from which watches resume.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use upfleet_domain::{
    id::{ComponentId, NodeId, RolloutId},
    rollout::State,
    time::Time,
    upgrade::UpgradeState,
};

/// The rollout machine's own state, opaque to the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RolloutDoc(pub serde_json::Value);

impl RolloutDoc {
    /// Writes `value`.
    ///
    /// # Errors
    /// Where it has no JSON form.
    pub fn new<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::to_value(value).map(Self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// Where it is no `T`.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.0)
    }
}

/// A rollout without its upgrades and its plan, which have rows of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// Its id.
    pub id: RolloutId,
    /// The component it changes.
    pub component: ComponentId,
    /// Where it stands; the same as in `doc`, for queries.
    pub state: State,
    /// The machine's state.
    pub doc: RolloutDoc,
    /// What it is for.
    pub message: String,
    /// Who created it.
    pub creator: String,
    /// When.
    pub created: Time,
    /// The rollout that this one rolls back.
    pub reverts: Option<RolloutId>,
    /// The rollout that rolls this one back.
    pub reverted_by: Option<RolloutId>,
    /// Who did the last thing a person did to it.
    #[serde(default)]
    pub last_actor: String,
    /// The store's epoch when it was written last.
    #[serde(skip)]
    pub epoch: u64,
    /// The controller that drives it; `None` where there is only one.
    #[serde(skip)]
    pub lease_holder: Option<String>,
    /// Grows by exactly one with each change of the rollout or of one of its upgrades. Set by the store.
    #[serde(skip)]
    pub revision: u64,
    /// Grows by one with each `PutRollout` only; the etag. Set by the store.
    #[serde(skip)]
    pub version: u64,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The rollout or its waves. The snapshot is a [`RolloutRecord`].
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
