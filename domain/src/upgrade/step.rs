//! Steps: what an executor is told to do, and what it answers.
//!
//! A step is closed and serialisable: it names a component and digests, never a path or a command. That
//! is what lets it stand in a journal and be done again after a crash.

use serde::{Deserialize, Serialize};

use super::{Evidence, preflight, recover};
use crate::{digest::Digest, id::ComponentId, jvm::Proof, reason::Reason, state::Layer};

/// One action on one component. Each is idempotent: done twice it does no more than done once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The component.
    pub component: ComponentId,
    /// What to do.
    pub kind: StepKind,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    /// Gather what [`preflight::judge`] decides on.
    CheckPreflight {
        /// What is to be installed; `None` for a removal.
        digest: Option<Digest>,
        /// The manifest that describes it, where there is one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        manifest: Option<Digest>,
        /// The stack that is to be in force, highest number first.
        #[serde(default)]
        layers: Vec<Layer>,
        /// Layers that are in force and are not to be any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<Layer>,
        /// Whether the running JVM is to be patched instead of restarted.
        #[serde(default)]
        live: bool,
    },
    /// Get an artifact's bytes into the incoming directory, resuming where an earlier attempt stopped.
    Fetch {
        /// The manifest that says where from.
        manifest: Digest,
        /// The artifact.
        digest: Digest,
    },
    /// Hash the fetched bytes as they lie on the disk, and look whether they are what the manifest says: an
    /// executable's header, an archive's entries, a patch's classes.
    Verify {
        /// The manifest that describes them.
        manifest: Digest,
        /// What they must be.
        digest: Digest,
    },
    /// Put the verified bytes among the versions, with the metadata they need or unpacked, by the manifest's kind.
    Stage {
        /// The manifest that describes them.
        manifest: Digest,
        /// The artifact.
        digest: Digest,
    },
    /// Check that a kept version is what its name says.
    VerifyKept {
        /// The version.
        digest: Digest,
    },
    /// Keep what is installed now among the versions.
    Backup {
        /// What must be installed.
        digest: Digest,
    },
    /// Have a new agent show on this node that it starts, reads what this one has written, and gets through to the
    /// controller.
    Trial {
        /// The version.
        digest: Digest,
    },
    /// Set the guard on the switch to a new agent: what puts the old one back unless the new one reports.
    Arm {
        /// The agent that runs: what is put back.
        old: Digest,
        /// The agent that is switched in.
        new: Digest,
        /// How long the new one is watched once it has reported, in milliseconds.
        soak_ms: u64,
    },
    /// Put a version in the component's place.
    Swap {
        /// The version.
        digest: Digest,
    },
    /// Put a kept version back in the component's place.
    SwapBack {
        /// The version.
        digest: Digest,
    },
    /// Take the component's file away.
    Remove {
        /// What it must be; a file that is something else is somebody's and stays. `None` removes nothing.
        digest: Option<Digest>,
    },
    /// Make this stack the one that the next start uses: one atomic switch. No layers: the application alone.
    SwitchStack {
        /// The stack, highest number first.
        layers: Vec<Layer>,
    },
    /// The same on the way back.
    SwitchStackBack {
        /// The stack, highest number first.
        layers: Vec<Layer>,
    },
    /// Bring the running JVM to exactly this stack, all classes or none, and let its next start use it too.
    PatchLive {
        /// The stack, highest number first.
        layers: Vec<Layer>,
        /// Layers that were in force until now and are not any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<Layer>,
    },
    /// Ask the running JVM which classes are in force.
    Prove {
        /// What should be, highest number first.
        layers: Vec<Layer>,
        /// Layers that were in force until now and are not any more.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<Layer>,
    },
    /// Tell whoever uses the component's files that they have changed.
    Reload,
    /// End the component's process.
    Stop,
    /// Start the component's process, unless one of that digest runs.
    Start {
        /// What it must be started from.
        digest: Digest,
        /// The stack it must be started with, highest number first.
        #[serde(default)]
        layers: Vec<Layer>,
    },
    /// Start a process beside the one that runs, on the same sockets, unless just that stands there already.
    StartBeside {
        /// What it must be started from.
        digest: Digest,
        /// The stack it must be started with, highest number first.
        #[serde(default)]
        layers: Vec<Layer>,
    },
    /// Let the process beside take the place of the one that runs, and that one finish and end.
    Drain,
    /// End the process beside the one that runs, which stays.
    Dismiss,
    /// Run one probe once.
    Probe {
        /// Which of the component's probes, from 0.
        index: usize,
        /// Of the process beside the one that runs.
        #[serde(default)]
        beside: bool,
    },
    /// Look at what is installed, kept and running.
    Inspect {
        /// Also run each probe once.
        probe: bool,
    },
    /// Remove what is temporary, and versions and stacks that nothing names.
    Prune {
        /// The versions that something names.
        keep: Vec<Digest>,
        /// The stacks that something names. The one in force stays anyway.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stacks: Vec<Vec<Layer>>,
    },
}

impl StepKind {
    /// The step's name as people and logs see it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::CheckPreflight { .. } => "check",
            Self::Fetch { .. } => "fetch",
            Self::Verify { .. } => "verify",
            Self::Stage { .. } => "stage",
            Self::VerifyKept { .. } => "verify kept",
            Self::Backup { .. } => "back up",
            Self::Trial { .. } => "try out",
            Self::Arm { .. } => "set the guard",
            Self::Swap { .. } => "switch",
            Self::SwapBack { .. } => "put back",
            Self::Remove { .. } => "remove",
            Self::SwitchStack { .. } => "switch the stack",
            Self::SwitchStackBack { .. } => "put the stack back",
            Self::PatchLive { .. } => "patch live",
            Self::Prove { .. } => "prove",
            Self::Reload => "reload",
            Self::Stop => "stop",
            Self::Start { .. } => "start",
            Self::StartBeside { .. } => "start beside",
            Self::Drain => "drain",
            Self::Dismiss => "dismiss",
            Self::Probe { .. } => "probe",
            Self::Inspect { .. } => "inspect",
            Self::Prune { .. } => "prune",
        }
    }

    /// The step as it is written into the journal, in words that an agent without handover reads as well: it would
    /// start or stop the process instead, which is what it has to do about one that stands beside.
    #[must_use]
    pub fn recorded(&self) -> Self {
        match self {
            Self::StartBeside { digest, layers } => Self::Start { digest: *digest, layers: layers.clone() },
            Self::Drain | Self::Dismiss => Self::Stop,
            other => other.clone(),
        }
    }

    /// Whether it can be left in the middle without harm: it waits for the outside rather than the disk.
    #[must_use]
    pub fn abortable(&self) -> bool {
        matches!(
            self,
            Self::Fetch { .. }
                | Self::Probe { .. }
                | Self::CheckPreflight { .. }
                | Self::Inspect { .. }
                | Self::Prove { .. }
                // Whoever keeps the processes goes on by itself, and takes the opposite order as well.
                | Self::Drain
                | Self::Dismiss
        )
    }
}

/// What runs of a component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Process {
    /// The component has no process of its own, or none was ever started.
    NotRun,
    /// A process runs.
    Running {
        /// Its process id.
        pid: u32,
        /// SHA-256 of what it was started from.
        digest: Digest,
        /// The stack it was started with, or brought to since; see [`crate::state::stack_digest`]. `None` for none.
        #[serde(default)]
        stack: Option<Digest>,
    },
    /// None runs, though one should: it ended or is between two restarts.
    Down {
        /// How the last one ended, e.g. `exit status 1`.
        exit: String,
    },
}

impl Process {
    /// SHA-256 of what runs.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Running { digest, .. } => Some(*digest),
            Self::NotRun | Self::Down { .. } => None,
        }
    }

    /// The stack that it runs with.
    #[must_use]
    pub fn stack(&self) -> Option<Digest> {
        match self {
            Self::Running { stack, .. } => *stack,
            Self::NotRun | Self::Down { .. } => None,
        }
    }

    /// The process id of what runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self {
            Self::Running { pid, .. } => Some(*pid),
            Self::NotRun | Self::Down { .. } => None,
        }
    }
}

/// What a step found or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is done.
    Done,
    /// Of [`StepKind::CheckPreflight`].
    Preflight(preflight::Facts),
    /// Of [`StepKind::Verify`]: what the ELF header says, if there is one.
    Verified(Option<preflight::Elf>),
    /// Of [`StepKind::Start`] and [`StepKind::StartBeside`].
    Started(Process),
    /// Of [`StepKind::Probe`].
    Probed(Probed),
    /// Of [`StepKind::Inspect`].
    Inspected(recover::Found),
    /// Of [`StepKind::PatchLive`] and [`StepKind::Prove`]; `None` where there is no JVM to ask.
    Proved(Option<Proof>),
    /// Of [`StepKind::Reload`]: what was answered.
    Reloaded(String),
}

/// One run of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// `Err` says what is wrong.
    pub result: Result<(), String>,
    /// What ran at that moment.
    pub process: Process,
    /// Where it failed: what the process left behind.
    pub evidence: Option<Evidence>,
    /// Whether a process that was asked to finish has not ended yet.
    pub draining: bool,
}

/// Why a step could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The cause.
    pub reason: Reason,
    /// What the process left behind, where one was concerned.
    pub evidence: Option<Box<Evidence>>,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { reason, evidence: None }
    }
}
