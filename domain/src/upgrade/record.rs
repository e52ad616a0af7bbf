//! What an agent remembers of a component: the journal's payload. Data only; the machine changes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Evidence, Outcome, Phase, UpgradeState, history::Entry, outbox::Outbox, step::Step};
use crate::{
    digest::Digest,
    id::{ComponentId, RolloutId, UpgradeId},
    jvm::Proof,
    order::Generation,
    reason::Reason,
    state::{Base, ComponentState},
    time::Time,
};

/// Who brought the current state about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Changer {
    /// An order of the controller.
    #[default]
    Controller,
    /// A person at the node: a rollback, or a release from a file.
    Local,
}

impl Changer {
    /// As on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Controller => "controller",
            Self::Local => "local",
        }
    }
}

/// All that is remembered of one component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The component.
    pub component: ComponentId,
    /// What it runs, as recorded.
    pub current: ComponentState,
    /// Whether `current` was ever compared with the node: false until the first inspection adopts what is there.
    pub adopted: bool,
    /// Whether the agent has started a process for it; after a reboot it is started again.
    #[serde(default)]
    pub started: bool,
    /// Earlier states, newest first.
    #[serde(default)]
    pub kept: Vec<ComponentState>,
    /// When `current` came into force.
    pub changed: Option<Time>,
    /// Who brought it about.
    #[serde(default)]
    pub changer: Changer,
    /// The desired state accepted last.
    pub generation: Generation,
    /// Set while it is held.
    pub hold: Option<Reason>,
    /// The last hold order carried out.
    #[serde(default)]
    pub hold_generation: u64,
    /// Digests that rolled back here, oldest first.
    #[serde(default)]
    pub failed: Vec<Digest>,
    /// Set while something else is installed or runs than `current` says.
    pub drift: Option<Reason>,
    /// The upgrade under way.
    pub passage: Option<Passage>,
    /// The accepted order that waits for the upgrade under way to end.
    pub next: Option<Accepted>,
    /// The upgrade that ended last.
    pub last: Option<Finished>,
    /// The last upgrades that ended here, oldest first: none of them begins again.
    #[serde(default)]
    pub ended: Vec<UpgradeId>,
    /// Reports that the controller has not acknowledged.
    #[serde(default)]
    pub outbox: Outbox,
}

impl Record {
    /// Nothing is known of the component yet.
    #[must_use]
    pub fn new(component: ComponentId) -> Self {
        Self {
            component,
            current: ComponentState::absent(),
            adopted: false,
            started: false,
            kept: Vec::new(),
            changed: None,
            changer: Changer::default(),
            generation: Generation::default(),
            hold: None,
            hold_generation: 0,
            failed: Vec::new(),
            drift: None,
            passage: None,
            next: None,
            last: None,
            ended: Vec::new(),
            outbox: Outbox::default(),
        }
    }

    /// The upgrade it is in or was in last, and where that stands.
    #[must_use]
    pub fn upgrade(&self) -> Option<(&UpgradeId, UpgradeState)> {
        if let Some(passage) = &self.passage {
            let id = passage.order.upgrade.as_ref()?;
            return Some((id, UpgradeState::Active(passage.phase)));
        }
        let last = self.last.as_ref()?;
        Some((last.upgrade.as_ref()?, UpgradeState::Ended(last.outcome)))
    }
}

/// Where an upgrade leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// To a release whose bytes may have to be fetched.
    Install {
        /// The state to reach: the release, with the stack it carries.
        state: ComponentState,
        /// The artifacts' lengths in bytes, together.
        size: u64,
        /// Why the release is not for this node, if so.
        unfit: Option<Reason>,
    },
    /// To a stack on the base that must be there, whose patches may have to be fetched.
    Stack {
        /// The state to reach.
        state: ComponentState,
        /// The artifacts' lengths in bytes, together.
        size: u64,
        /// Why one of them is not for this node, if so.
        unfit: Option<Reason>,
    },
    /// Back to a kept state.
    Restore {
        /// The state to reach.
        state: ComponentState,
    },
}

impl Goal {
    /// The state to reach.
    #[must_use]
    pub fn state(&self) -> &ComponentState {
        match self {
            Self::Install { state, .. } | Self::Stack { state, .. } | Self::Restore { state } => state,
        }
    }

    /// How many bytes may have to be fetched.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Install { size, .. } | Self::Stack { size, .. } => *size,
            Self::Restore { .. } => 0,
        }
    }

    /// Why it is not for this node, if so.
    #[must_use]
    pub fn unfit(&self) -> Option<&Reason> {
        match self {
            Self::Install { unfit, .. } | Self::Stack { unfit, .. } => unfit.as_ref(),
            Self::Restore { .. } => None,
        }
    }

    /// Whether artifacts of it may be fetched; otherwise all of them must lie on the node.
    #[must_use]
    pub fn fetches(&self) -> bool {
        !matches!(self, Self::Restore { .. })
    }

    /// What it needs beyond the base that is in place in `from`, base first: each artifact with the manifest that
    /// describes it, where there is one.
    #[must_use]
    pub fn parts(&self, from: &ComponentState) -> Vec<Part> {
        let state = self.state();
        let base = match &state.base {
            Base::Release(release) => {
                Some(Part { manifest: Some(release.manifest), digest: release.artifact })
            }
            Base::Unmanaged { digest } => Some(Part { manifest: None, digest: *digest }),
            Base::Absent => None,
        };
        let layers = state.active().map(|layer| &layer.release);
        let layers =
            layers.map(|release| Part { manifest: Some(release.manifest), digest: release.artifact });
        let mut parts: Vec<Part> = Vec::new();
        for part in base.into_iter().filter(|part| Some(part.digest) != from.artifact()).chain(layers) {
            if parts.iter().all(|known| known.digest != part.digest) {
                parts.push(part);
            }
        }
        parts
    }
}

/// One artifact that a state needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The manifest that describes it; `None` for a file from before Upfleet.
    pub manifest: Option<Digest>,
    /// The artifact.
    pub digest: Digest,
}

/// An order that the agent has accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Its place in the order of orders.
    pub generation: Generation,
    /// The rollout that ordered it.
    pub rollout: Option<RolloutId>,
    /// The upgrade; `None` for an order of a person at the node.
    pub upgrade: Option<UpgradeId>,
    /// Where it leads.
    pub goal: Goal,
    /// Bring the running JVM to it instead of restarting it.
    #[serde(default)]
    pub live: bool,
    /// Wait before entering this phase for a further order.
    pub hold_before: Option<Phase>,
    /// Expires unless begun by then.
    pub not_after: Option<Time>,
    /// Watch at least so long.
    pub soak: Option<Duration>,
    /// Permit a lower sequence.
    #[serde(default)]
    pub allow_downgrade: bool,
    /// Try a digest that failed here before.
    #[serde(default)]
    pub allow_failed_digest: bool,
    /// W3C trace context.
    #[serde(default)]
    pub trace: String,
    /// Who ordered it.
    #[serde(default)]
    pub actor: String,
}

/// An upgrade under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// The order it carries out.
    pub order: Accepted,
    /// The state it began from.
    pub from: ComponentState,
    /// Whether the agent ran a process of it then; only what it ran before is started again by a rollback.
    #[serde(default)]
    pub ran: bool,
    /// Where it stands.
    pub phase: Phase,
    /// Since when it stands there.
    pub since: Time,
    /// When that is given up.
    pub deadline: Time,
    /// What it waits for or does.
    pub reason: Reason,
    /// The step that was begun: the intent, recorded before the deed.
    pub doing: Option<Step>,
    /// The phase before which it waits for a further order.
    pub held: Option<Phase>,
    /// Whether anything was switched; from then on the only ways out are commit and rollback.
    pub touched: bool,
    /// Whether what runs was reached, or may have been: stopped, patched or told to reload.
    #[serde(default)]
    pub reached: bool,
    /// Whether a process stands, or may stand, beside the one that runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// Whether a process took over from another.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub handed_over: bool,
    /// Why none did, although the configuration says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_handover: Option<Reason>,
    /// Since when nothing is known to answer, because the process was asked to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Time>,
    /// How long nothing was known to answer before that, in milliseconds; `None` where no process was ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down_ms: Option<u64>,
    /// Where it is being rolled back to.
    pub back: Option<Back>,
    /// How it will end once it is tidied up.
    pub end: Option<End>,
    /// What the failed process left behind.
    pub evidence: Option<Evidence>,
    /// What the running JVM said of the stack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What the reload answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<String>,
    /// Reports made so far.
    pub sequence: u64,
    /// How often the present step has failed.
    #[serde(default)]
    pub tries: u32,
}

/// A rollback under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Back {
    /// The state that is put back.
    pub to: ComponentState,
    /// Why.
    pub why: Reason,
    /// Whether the new version is to blame, so that its digest is not tried again.
    pub blame: bool,
}

/// A decided end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
}

/// An upgrade that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The upgrade; `None` for an order of a person at the node.
    pub upgrade: Option<UpgradeId>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// When.
    pub time: Time,
    /// What is written of it into the history; `None` where an earlier version wrote this record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<Box<Entry>>,
}
