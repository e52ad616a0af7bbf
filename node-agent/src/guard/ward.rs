//! Whom a guard watches: the agent's process, as its parent or systemd knows it, and how it is made to start again.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::{
    itself::{
        keeper::PARENT,
        marker::{Marker, Markers},
    },
    processes::{Identity, all, executable, executable_path, stat},
    supervise::own_unit,
};

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// Who starts the agent.
#[derive(Clone, Debug)]
pub enum Ward {
    /// A parent, which writes down what it has started.
    Child,
    /// A unit of systemd's.
    Unit(String),
}

/// What is known of the agent's process.
pub(super) enum Standing {
    /// It runs.
    Runs(Identity),
    /// None runs.
    Gone,
    /// Nobody says.
    Unknown,
}

impl Ward {
    /// The agent's process.
    pub(super) async fn see(&self, markers: &Markers) -> Standing {
        let process = match self {
            Self::Child => markers.child().filter(Identity::is_running).or_else(sibling),
            Self::Unit(unit) => match own_unit::main_pid(unit).await {
                Ok(pid) => pid.and_then(|pid| Identity::of(pid).ok()),
                Err(problem) => {
                    tracing::warn!(unit, problem, "systemd can't be asked about the agent's unit");
                    return Standing::Unknown;
                }
            },
        };
        process.filter(Identity::is_running).map_or(Standing::Gone, Standing::Runs)
    }

    /// Ends the agent unless it is the old one, and sees that it is started. Done again, it does nothing to an old one
    /// that runs; but one that was to hand over and has not ended is not coming back.
    pub(super) async fn restart(&self, markers: &Markers, marker: &Marker) {
        match self.see(markers).await {
            Standing::Unknown => return,
            Standing::Gone => {}
            Standing::Runs(process) => {
                let runs = std::fs::File::open(executable_path(process.pid)).and_then(crate::shim::hash);
                if runs.is_ok_and(|runs| runs == marker.old) && Some(&process) != marker.by.as_ref() {
                    return;
                }
                let _ = process.signal(Signal::KILL);
                let deadline = Instant::now() + GONE;
                while process.is_running() && Instant::now() < deadline {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
        }
        let Self::Unit(unit) = self else { return };
        if let Err(problem) = own_unit::start(unit).await {
            tracing::error!(unit, problem, "the agent's unit could not be started; it is tried again");
        }
    }
}

/// The agent by its place among the processes, where what its parent wrote down of it can't be read: the other child of
/// this guard's parent. One that counts a start is of the executable that this guard is of.
fn sibling() -> Option<Identity> {
    let own = std::process::id();
    let parent = std::env::var(PARENT).ok()?.parse::<u32>().ok()?;
    let (own_parent, guard) = (stat(own).ok()?.parent, executable(own));
    let mut agents = all().into_iter().filter(|(pid, stat)| {
        let child = *pid != own && stat.parent == parent && stat.is_running();
        child && (executable(*pid) != guard || !is_guard(*pid))
    });
    let (pid, _) = agents.next().filter(|_| own_parent == parent)?;
    Identity::of(pid).ok()
}

fn is_guard(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"guard")
}

/// How much memory of its own a process takes, in bytes; what was swapped out is taken as well.
pub(super) fn memory(process: &Identity) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
    let of = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((of("RssAnon:")? + of("VmSwap:").unwrap_or(0)).saturating_mul(1024))
}
