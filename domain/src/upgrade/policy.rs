//! What a component's configuration says about its upgrades, and the defaults.

use std::time::Duration;

use super::{Phase, step::Process};
use crate::{
    id::ComponentId,
    release::{Kind, Platform},
    state::ComponentState,
};

/// How many earlier states are kept beside the current one.
pub const KEEP: usize = 3;
/// How long a new version may take to become healthy.
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a healthy new version is watched before it is trusted.
pub const SOAK: Duration = Duration::from_secs(10);
/// How often an idle component's JVM is asked which classes are in force.
pub const PROVE_EVERY: Duration = Duration::from_secs(60);

/// One probe's thresholds. What it asks is the agent's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePolicy {
    /// From one run to the next.
    pub interval: Duration,
    /// Consecutive passes until it counts as healthy; at least 1.
    pub successes: u32,
    /// Consecutive failures until it counts as unhealthy again; at least 1.
    pub failures: u32,
}

impl Default for ProbePolicy {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), successes: 2, failures: 3 }
    }
}

/// How long each phase may take before it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Waiting to begin, where the order says nothing: a week.
    pub pending: Duration,
    /// Checks ask the disk and the probes only: 2 minutes.
    pub preflight: Duration,
    /// 64 GiB over 25 Mbit/s take six hours.
    pub fetching: Duration,
    /// Hashing and copying metadata: 30 minutes for the largest artifact on a slow disk.
    pub verifying: Duration,
    /// Waiting for the order to go on: a day. What is staged can be fetched again.
    pub staged: Duration,
    /// Switching and restarting, beyond the process' own time to stop: 2 minutes.
    pub activating: Duration,
    /// Beyond the time to become healthy and the soak time: 1 minute.
    pub probing: Duration,
    /// Removing old versions: 5 minutes.
    pub committing: Duration,
    /// Putting back, beyond the times to stop and to become healthy: 5 minutes.
    pub rolling_back: Duration,
    /// Tidying up once the outcome is known: 1 minute; then it is reported untidied.
    pub ending: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(n * 60);
        Self {
            pending: minutes(7 * 24 * 60),
            preflight: minutes(2),
            fetching: minutes(6 * 60),
            verifying: minutes(30),
            staged: minutes(24 * 60),
            activating: minutes(2),
            probing: minutes(1),
            committing: minutes(5),
            rolling_back: minutes(5),
            ending: minutes(1),
        }
    }
}

/// What a component's configuration says about its upgrades.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the node's programs are built for.
    pub platform: Platform,
    /// What kind of releases it takes.
    pub kind: Kind,
    /// Earlier states to keep; at least 1, since the way back is one of them.
    pub keep: usize,
    /// Whether an order may lower the sequence.
    pub allow_downgrade: bool,
    /// Components that may not be upgraded at the same time.
    pub exclusive_with: Vec<ComponentId>,
    /// Whether the agent runs a process for it.
    pub supervised: bool,
    /// Whether that process is a systemd unit's: whether it runs is then the node's operator's decision as well.
    pub systemd: bool,
    /// Whether it takes patches: its configuration says how its JVM is started.
    pub patchable: bool,
    /// Whether its running JVM may be patched.
    pub live: bool,
    /// Whether somebody is to be told when its files have changed.
    pub reload: bool,
    /// Whether a person at the node may apply a release from a file.
    pub allow_local_apply: bool,
    /// How often the running JVM is asked which classes are in force, while nothing else happens.
    pub prove_every: Duration,
    /// Whether an unhealthy component is left alone.
    pub require_healthy_baseline: bool,
    /// Its probes, in the order of the configuration.
    pub probes: Vec<ProbePolicy>,
    /// Whether one passing probe is enough; otherwise all have to pass.
    pub any_probe: bool,
    /// How long it is watched once healthy; an order can lengthen it.
    pub soak: Duration,
    /// How long it may take to become healthy.
    pub start_deadline: Duration,
    /// How long its process may take to stop.
    pub stop_timeout: Duration,
    /// Whether a new process is started beside the old one and takes over once it is healthy.
    pub handover: bool,
    /// How long the old process of a handover may take to finish what it has begun.
    pub drain_timeout: Duration,
    /// How long each phase may take.
    pub deadlines: Deadlines,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            platform: Platform { os: "linux".to_owned(), arch: "amd64".to_owned() },
            kind: Kind::Binary,
            keep: KEEP,
            allow_downgrade: false,
            exclusive_with: Vec::new(),
            supervised: true,
            systemd: false,
            patchable: false,
            live: false,
            reload: false,
            allow_local_apply: false,
            prove_every: PROVE_EVERY,
            require_healthy_baseline: true,
            probes: vec![ProbePolicy::default()],
            any_probe: false,
            soak: SOAK,
            start_deadline: START_DEADLINE,
            stop_timeout: Duration::from_secs(10),
            handover: false,
            drain_timeout: Duration::from_secs(30),
            deadlines: Deadlines::default(),
        }
    }
}

impl Policy {
    /// How long `phase` may take with the order's `soak`.
    #[must_use]
    pub fn limit(&self, phase: Phase, soak: Duration) -> Duration {
        let limits = &self.deadlines;
        match phase {
            Phase::Pending => limits.pending,
            Phase::Preflight => limits.preflight,
            Phase::Fetching => limits.fetching,
            Phase::Verifying => limits.verifying,
            Phase::Staged => limits.staged,
            Phase::Activating => limits.activating.saturating_add(self.stop_timeout),
            Phase::Probing => {
                // Beside the old process, and again without it.
                let healthy =
                    if self.handover { self.start_deadline.saturating_mul(2) } else { self.start_deadline };
                let healthy = limits.probing.saturating_add(healthy);
                healthy.saturating_add(soak).saturating_add(self.drain())
            }
            Phase::Committing => limits.committing,
            Phase::RollingBack => {
                let healthy = limits.rolling_back.saturating_add(self.stop_timeout);
                let healthy = healthy.saturating_add(self.start_deadline);
                // One is dismissed and one drained, and where the old version does not get well beside the new one it
                // is started alone.
                let beside = if self.handover { self.start_deadline } else { Duration::ZERO };
                healthy.saturating_add(beside).saturating_add(self.drain()).saturating_add(self.drain())
            }
        }
    }

    /// How long the old process of a handover may take to end, killing included.
    fn drain(&self) -> Duration {
        const KILL: Duration = Duration::from_secs(20);
        if self.handover { self.drain_timeout.saturating_add(KILL) } else { Duration::ZERO }
    }

    /// Who runs it, as the inventory says it.
    #[must_use]
    pub fn run_mode(&self) -> &'static str {
        match (self.systemd, self.supervised) {
            (true, _) => "systemd",
            (_, true) => "supervised",
            _ => "none",
        }
    }

    /// The soak time for an order that asks for at least `asked`.
    #[must_use]
    pub fn soak_for(&self, asked: Option<Duration>) -> Duration {
        self.soak.max(asked.unwrap_or(Duration::ZERO))
    }

    /// Whether the component's process is started from the artifact itself, so that its digest tells which version
    /// runs. Of a directory it does not.
    #[must_use]
    pub fn runs_artifact(&self) -> bool {
        self.supervised && matches!(self.kind, Kind::Binary | Kind::Agent)
    }

    /// Whether a process that runs is told of new files instead of being restarted.
    #[must_use]
    pub fn reloads(&self) -> bool {
        self.reload && (!self.supervised || self.kind == Kind::Files)
    }

    /// Whether what runs is just that state, as far as a process tells. Where the agent runs none, nothing
    /// contradicts.
    #[must_use]
    pub fn runs(&self, process: &Process, state: &ComponentState) -> bool {
        match state.artifact() {
            _ if !self.supervised => true,
            None => process.digest().is_none(),
            Some(artifact) => process.digest().is_some_and(|running| {
                (!self.runs_artifact() || running == artifact) && process.stack() == state.stack()
            }),
        }
    }

    /// Whether there is anything to watch: a process or a probe.
    #[must_use]
    pub fn watched(&self) -> bool {
        !self.probes.is_empty()
    }
}
