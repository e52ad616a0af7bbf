//! What an agent tells the controller: transitions of upgrades, and what its components run.

use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    id::{ComponentId, UpgradeId},
    jvm::Proof,
    order::Generation,
    reason::Reason,
    state::ComponentState,
    time::Time,
    upgrade::{Evidence, UpgradeState, interruption::Interruption},
};

/// One transition of an upgrade. Delivered at least once, recorded once, by `(upgrade, sequence)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeReport {
    /// The upgrade.
    pub upgrade: UpgradeId,
    /// The component.
    pub component: ComponentId,
    /// 1 for the upgrade's first report, one more for each further.
    pub sequence: u64,
    /// The generation of the desired state it belongs to.
    pub generation: Generation,
    /// The state entered, or stayed in where only the reason changed.
    pub state: UpgradeState,
    /// Why.
    pub reason: Reason,
    /// When, by the node's clock.
    pub time: Time,
    /// What the component ran before.
    pub from: Option<ComponentState>,
    /// What the component runs now.
    pub current: Option<ComponentState>,
    /// SHA-256 of what the running process was started from.
    pub running: Option<Digest>,
    /// On failure.
    pub evidence: Option<Evidence>,
    /// What the running JVM says of the stack, where there is one; with the end of an upgrade.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// What the reload answered, where there is one; with the end of an upgrade.
    #[serde(default)]
    pub reload: Option<String>,
    /// How long nothing answered, where the upgrade concerned a process; with its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<Interruption>,
}

/// What one component of a node is and runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentInventory {
    /// The component.
    pub component: ComponentId,
    /// What it runs.
    pub current: ComponentState,
    /// What it ran before.
    pub previous: Option<ComponentState>,
    /// Earlier states that can be restored, newest first.
    pub kept: Vec<ComponentState>,
    /// Digests of complete artifacts that lie on the node.
    pub kept_digests: Vec<Digest>,
    /// SHA-256 of what the running process was started from.
    pub running: Option<Digest>,
    /// Whether its probe passes.
    pub healthy: bool,
    /// Set while it is held.
    pub hold: Option<Reason>,
    /// Set while something else runs than was recorded.
    pub drift: Option<Reason>,
    /// The desired state accepted last.
    pub generation: Generation,
    /// The generation of the last hold order that was carried out.
    pub hold_generation: u64,
    /// The upgrade it is in or was in last.
    pub upgrade: Option<UpgradeId>,
    /// That upgrade's state.
    pub upgrade_state: Option<UpgradeState>,
    /// `supervised`, `systemd` or `none`.
    pub run_mode: String,
    /// Process id of what runs.
    pub pid: Option<u32>,
    /// When `current` came into force.
    pub changed: Option<Time>,
    /// `controller`, or `local` for a local rollback.
    pub changer: String,
    /// Digests that rolled back here and are not tried again.
    pub failed: Vec<Digest>,
    /// What the running JVM last said of the stack.
    #[serde(default)]
    pub proof: Option<Proof>,
    /// What deserves a look although nothing has drifted: a replaced jar, a class cache, changed files.
    #[serde(default)]
    pub alarms: Vec<Reason>,
    /// Whether it takes patches: its configuration says how its JVM is started.
    #[serde(default)]
    pub patchable: bool,
}

impl ComponentInventory {
    /// Whether the agent knows which process is the component's, so that its absence says something.
    #[must_use]
    pub fn has_process(&self) -> bool {
        matches!(self.run_mode.as_str(), "supervised" | "systemd")
    }
}
