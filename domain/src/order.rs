//! Desired state: what the controller wants of one component of one node, and when an agent may refuse it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    id::{ComponentId, RolloutId, UpgradeId},
    reason::{Reason, ReasonCode},
    state::{Base, ComponentState, Layer, ReleaseRef},
    time::Time,
    upgrade::Phase,
};

/// Orders desired states: the epoch is raised when a backup is restored, the generation with each order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// The controller's epoch.
    pub epoch: u64,
    /// Counts orders for one node and component within an epoch.
    pub number: u64,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Install a release.
    Install(ReleaseRef),
    /// Put the order's stack of patches on the base that must be there.
    Stack(Base),
    /// Go back to a kept state.
    Restore(ComponentState),
    /// Stay as it is: what is under way and not finished is undone, what is finished stands.
    Stay,
}

/// What one component of one node should run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredState {
    /// The component.
    pub component: ComponentId,
    /// Its place in the order of orders.
    pub generation: Generation,
    /// The rollout that ordered it.
    pub rollout: Option<RolloutId>,
    /// The upgrade that this begins or steers; `None` where no report is expected.
    pub upgrade: Option<UpgradeId>,
    /// What to do.
    pub target: Target,
    /// For `Install` and `Stack`: the patches over the base, highest number first.
    #[serde(default)]
    pub layers: Vec<Layer>,
    /// Bring the running JVM to it instead of restarting it, where only the stack differs.
    #[serde(default)]
    pub live: bool,
    /// Wait before entering this phase for a further order.
    pub hold_before: Option<Phase>,
    /// An agent that has not begun by then lets it expire.
    pub not_after: Option<Time>,
    /// Permit a lower sequence, where the configuration permits it too.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Try a digest that failed here before.
    #[serde(default)]
    pub allow_failed_digest: bool,
    /// Watch at least so long.
    pub soak: Option<Duration>,
    /// W3C trace context.
    #[serde(default)]
    pub trace: String,
    /// Who ordered it.
    #[serde(default)]
    pub actor: String,
}

/// A person's order to hold or release a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldOrder {
    /// True holds, false releases.
    pub hold: bool,
    /// Grows with each hold order for one node and component.
    pub generation: u64,
    /// Why.
    pub message: String,
    /// Who.
    pub actor: String,
}

/// Whether an agent that accepted `kept` last may accept `offered`.
///
/// The same generation again is accepted (a lost message costs nothing); a lower one never is.
///
/// # Errors
/// [`ReasonCode::StaleGeneration`] where `offered` is lower.
pub fn accept(kept: Generation, offered: Generation) -> Result<(), Reason> {
    if offered >= kept {
        return Ok(());
    }
    Err(Reason::new(ReasonCode::StaleGeneration)
        .with("offered", format!("{}/{}", offered.epoch, offered.number))
        .with("kept", format!("{}/{}", kept.epoch, kept.number)))
}
