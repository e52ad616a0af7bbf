//! A rollout under way, as the controller records it: its state, its waves, and each node's part.
//!
//! Plain data with the questions that need nothing else; what moves it is `machine`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Spec, WaveSpec};
use crate::{
    digest::Digest,
    id::{NodeId, RolloutId, UpgradeId},
    jvm::{Proof, Standing},
    reason::Reason,
    report::UpgradeReport,
    state::{ComponentState, ReleaseRef},
    time::Time,
    upgrade::{Evidence, Outcome, UpgradeState, interruption::Interruption},
};

/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum State {
    /// Stored, not started.
    Planned,
    /// Waits for a person before the first wave.
    AwaitingApproval,
    /// Under way.
    Running,
    /// A person stopped it for a while.
    Paused,
    /// A budget was exceeded; waits for a person.
    Halted,
    /// Nodes under way are being put back.
    Cancelling,
    /// A linked rollout puts nodes back.
    Reverting,
    /// Every node succeeded or was current.
    Succeeded,
    /// Done within policy, some nodes failed, were skipped or stayed away.
    SucceededWithFailures,
    /// Ended by a person.
    Cancelled,
    /// The nodes are back on their old states.
    Reverted,
    /// Some nodes could not be put back.
    RevertFailed,
}

impl State {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::Planned,
        Self::AwaitingApproval,
        Self::Running,
        Self::Paused,
        Self::Halted,
        Self::Cancelling,
        Self::Reverting,
        Self::Succeeded,
        Self::SucceededWithFailures,
        Self::Cancelled,
        Self::Reverted,
        Self::RevertFailed,
    ];

    /// As people and the wire see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "PLANNED",
            Self::AwaitingApproval => "AWAITING_APPROVAL",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Halted => "HALTED",
            Self::Cancelling => "CANCELLING",
            Self::Reverting => "REVERTING",
            Self::Succeeded => "SUCCEEDED",
            Self::SucceededWithFailures => "SUCCEEDED_WITH_FAILURES",
            Self::Cancelled => "CANCELLED",
            Self::Reverted => "REVERTED",
            Self::RevertFailed => "REVERT_FAILED",
        }
    }

    /// Whether nothing more will happen by itself or by a person.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self >= Self::Succeeded
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Where a wave stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WaveState {
    /// Not begun.
    Pending,
    /// Waits for a person.
    AwaitingApproval,
    /// Under way.
    Running,
    /// Its nodes are done; it is watched.
    Baking,
    /// Done.
    Succeeded,
    /// A budget was exceeded in it.
    Failed,
}

/// One wave of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wave {
    /// Where it stands.
    pub state: WaveState,
    /// As asked for.
    pub spec: WaveSpec,
    /// How many nodes it has.
    pub size: usize,
    /// Why it is there, or what it waits for.
    pub reason: Reason,
    /// When it began.
    pub started: Option<Time>,
    /// Until when it bakes.
    pub bake_end: Option<Time>,
    /// Who approved it.
    pub approver: Option<String>,
}

/// How hard a pause is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PauseStrength {
    /// Start no more nodes.
    StartNoMore,
    /// And stop nodes under way at their next safe point.
    NextSafePoint,
}

/// One node's part in a rollout, as the controller records it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUpgrade {
    /// The node.
    pub node: NodeId,
    /// The wave, 0 for the first.
    pub wave: usize,
    /// Its place within the wave.
    pub position: usize,
    /// The present attempt's id; `None` until the node is told.
    pub id: Option<UpgradeId>,
    /// 1 for the first try, 0 until the node is told.
    pub attempt: u32,
    /// Where it stands.
    pub state: UpgradeState,
    /// Whether the node was silent for longer than the policy bears.
    pub unreachable: bool,
    /// Why it is there.
    pub reason: Reason,
    /// What the node ran before.
    pub from: ComponentState,
    /// What it is to run.
    pub to: ComponentState,
    /// What it was found to run last; `None` until it reported.
    pub current: Option<ComponentState>,
    /// The generation number of its desired state, 0 until the node is told.
    pub generation: u64,
    /// The last report's sequence, 0 before the first.
    pub sequence: u64,
    /// When the node was told.
    pub started: Option<Time>,
    /// When it ended.
    pub ended: Option<Time>,
    /// On failure.
    pub evidence: Option<Evidence>,
    /// The rollout's revision at which it last changed.
    pub revision: u64,
    /// What the node was told last in this rollout.
    #[serde(default)]
    pub told: Told,
    /// Since when the agent is not connected; `None` while it is.
    #[serde(default)]
    pub offline_since: Option<Time>,
    /// Whether the component was unhealthy when its inventory was last heard.
    #[serde(default)]
    pub unhealthy: bool,
    /// Set where something else was found to run after the upgrade had succeeded; counts as a failure.
    #[serde(default)]
    pub drift: Option<Reason>,
    /// Whether a person decided that its failure no longer counts.
    #[serde(default)]
    pub excused: bool,
    /// Whether the controller ended it without the node's word; what the node says later replaces that.
    #[serde(default)]
    pub presumed: bool,
    /// Whether a person permitted a digest that failed on the node before.
    #[serde(default)]
    pub allow_failed_digest: bool,
    /// What the running JVM said of the stack at the end: at most [`PROVED_CLASSES`] classes, old ones first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// What the reload answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload: Option<String>,
    /// How long nothing answered on the node, where the upgrade concerned a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruption: Option<Interruption>,
}

/// So many classes of a proof are kept with an upgrade: it is stored with each of its events. The node's inventory
/// has them all.
pub const PROVED_CLASSES: usize = 100;

/// What a node was told last in a rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// Nothing yet, or nothing since the last attempt ended.
    #[default]
    Nothing,
    /// To go.
    Go,
    /// To go up to the last safe point and wait there.
    Hold,
    /// To stay as it is.
    Stay,
}

impl NodeUpgrade {
    /// Whether the node was ordered and has not ended: it may activate at any moment.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.id.is_some() && matches!(self.state, UpgradeState::Active(_))
    }

    /// Records what the node's agent reported, and says whether anything changed.
    ///
    /// Reports may come twice or late: one of an earlier attempt or with a sequence already seen changes
    /// nothing, and what has ended stays as recorded, unless only the controller had presumed it.
    pub fn record(&mut self, report: &UpgradeReport, now: Time) -> bool {
        if self.id.as_ref() != Some(&report.upgrade) || report.sequence <= self.sequence {
            return false;
        }
        self.sequence = report.sequence;
        if report.current.is_some() {
            self.current.clone_from(&report.current);
        }
        let ended = report.state.outcome();
        match self.state {
            UpgradeState::Active(_) => {}
            UpgradeState::Ended(_) if self.presumed && ended.is_some() => self.presumed = false,
            UpgradeState::Ended(_) => return true,
        }
        if self.state == UpgradeState::Ended(Outcome::Skipped) {
            // A person's decision stands, whatever became of the node.
            return true;
        }
        if let Some(from) = &report.from {
            self.from = from.clone();
        }
        self.state = report.state;
        self.reason = report.reason.clone();
        if report.evidence.is_some() {
            self.evidence.clone_from(&report.evidence);
        }
        if let Some(outcome) = ended {
            self.ended = Some(now);
            self.proof = report.proof.clone().map(bounded);
            self.reload.clone_from(&report.reload);
            self.interruption.clone_from(&report.interruption);
            // These outcomes are themselves the proof of health.
            let healthy = [Outcome::Succeeded, Outcome::RolledBack].contains(&outcome);
            self.unhealthy &= !healthy;
        }
        true
    }

    /// The artifacts that it brings to the node: the base's, where that is another, and those of new patches.
    #[must_use]
    pub fn brings(&self) -> Vec<Digest> {
        self.to.beyond(&self.from)
    }

    /// Whether it ended as it should, and still stands.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        let done = [Outcome::Succeeded, Outcome::AlreadyCurrent].map(UpgradeState::Ended);
        done.contains(&self.state) && self.drift.is_none()
    }

    /// Whether it ended otherwise than it should, so that it can be tried again.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self.state, UpgradeState::Ended(_)) && !self.succeeded()
    }

    /// Whether it waits for its turn.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.id.is_none() && matches!(self.state, UpgradeState::Active(_))
    }
}

/// A proof of which only so many classes are kept.
fn bounded(mut proof: Proof) -> Proof {
    if proof.classes.len() > PROVED_CLASSES {
        proof.classes.sort_by_key(|class| class.standing != Standing::Old);
        proof.classes.truncate(PROVED_CLASSES);
    }
    proof
}

/// Which nodes a revert puts back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RevertScope {
    /// Those of one wave, 0 for the first.
    Wave(usize),
    /// All of the rollout.
    All,
}

/// What becomes of failed nodes when a halted rollout is resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedNodes {
    /// Try them again.
    Retry,
    /// Leave them out.
    Skip,
    /// Put the rollout's nodes back instead of going on.
    Revert,
}

/// A rollout as it is stored: everything but its upgrades, which have rows of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Its id.
    pub id: RolloutId,
    /// What it is to do.
    pub spec: Spec,
    /// SHA-256 of its plan.
    pub plan_digest: Digest,
    /// The release that it installs; `None` for a restore.
    pub release: Option<ReleaseRef>,
    /// `max_unavailable` in nodes, at least one.
    pub max_unavailable: usize,
    /// Where it stands.
    pub state: State,
    /// Why it is there, or what it waits for.
    pub reason: Reason,
    /// Its waves in order.
    pub waves: Vec<Wave>,
    /// Set while it is paused, and how hard.
    pub pause: Option<PauseStrength>,
    /// Set while it is reverting: which nodes.
    pub revert: Option<RevertScope>,
    /// Until when offline nodes get the order when they return; set when it starts, and anew by a retry.
    pub deadline: Option<Time>,
    /// Grows by one with each change of the rollout or of one of its upgrades.
    pub revision: u64,
    /// The revision at which its state or one of its waves' states last changed: its etag.
    pub state_revision: u64,
    /// When it was created.
    pub created: Time,
    /// When it was started.
    pub started: Option<Time>,
    /// When it became terminal.
    pub ended: Option<Time>,
    /// Who created it.
    pub creator: String,
    /// What it is for.
    pub message: String,
    /// Who did the last thing a person did to it.
    pub last_actor: String,
    /// What that person said.
    pub last_message: String,
    /// The rollout that this one rolls back.
    pub reverts: Option<RolloutId>,
    /// The rollout that rolls this one back.
    pub reverted_by: Option<RolloutId>,
    /// Whether running JVMs are patched instead of restarted, where only the stack differs.
    #[serde(default)]
    pub live: bool,
    /// Set from a restore of the controller's store until a person says something: nothing is ordered meanwhile.
    #[serde(default)]
    pub restored: bool,
}

impl Rollout {
    /// Whether it may still change nodes: started and not terminal.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state != State::Planned && !self.state.is_terminal()
    }

    /// What a client sends back to say which state it saw.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("{}.{}", self.state_revision, self.state.as_str().to_ascii_lowercase())
    }
}
