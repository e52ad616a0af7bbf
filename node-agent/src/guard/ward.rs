//! Whom a guard watches: the agent's process, as its parent or systemd knows it, and how it is made to start again.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use upfleet_domain::digest::Digest;

use crate::{
    itself::{keeper::PARENT, marker::Markers},
    processes::{Identity, all, executable, executable_path, stat},
    supervise::own_unit,
};

/// How long a process that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How often a start that systemd did not take is asked for again.
const TRIES: u32 = 30;

/// Who starts the agent.
#[derive(Clone, Debug)]
pub enum Ward {
    /// A parent, which writes down what it has started.
    Child,
    /// A unit of systemd's.
    Unit(String),
}

impl Ward {
    /// How much memory the agent takes, in bytes.
    pub async fn memory(&self, markers: &Markers) -> Option<u64> {
        let process = self.process(markers).await?;
        let text = std::fs::read_to_string(format!("/proc/{}/status", process.pid)).ok()?;
        // What was swapped out is taken as well.
        let of = |key: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().next()?.parse().ok()
        };
        Some((of("RssAnon:")? + of("VmSwap:").unwrap_or(0)).saturating_mul(1024))
    }

    /// Ends the agent unless it is the one of that digest, and sees that it is started.
    pub async fn restart(&self, markers: &Markers, wanted: Digest) {
        if let Some(process) = self.process(markers).await {
            let runs = std::fs::File::open(executable_path(process.pid)).and_then(crate::shim::hash);
            if runs.is_ok_and(|runs| runs == wanted) {
                return;
            }
            let _ = process.signal(Signal::KILL);
            let deadline = Instant::now() + GONE;
            while process.is_running() && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let Self::Unit(unit) = self else { return };
        for _ in 0..TRIES {
            match own_unit::start(unit).await {
                Ok(()) => return,
                Err(problem) => tracing::error!(unit, problem, "the agent's unit could not be started"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// The agent's process, if it runs.
    async fn process(&self, markers: &Markers) -> Option<Identity> {
        let process = match self {
            Self::Child => markers.child().filter(Identity::is_running).or_else(sibling)?,
            Self::Unit(unit) => Identity::of(own_unit::main_pid(unit).await.ok()??).ok()?,
        };
        process.is_running().then_some(process)
    }
}

/// The agent by its place among the processes, where what its parent wrote down of it can't be read: the other child of
/// this guard's parent. One that counts a start is of the executable that this guard is of.
fn sibling() -> Option<Identity> {
    let own = std::process::id();
    let parent = std::env::var(PARENT).ok()?.parse::<u32>().ok()?;
    let (own_parent, guard) = (stat(own).ok()?.parent, executable(own));
    let children =
        all().into_iter().filter(|(pid, stat)| *pid != own && stat.parent == parent && stat.is_running());
    let mut agents = children.filter(|(pid, _)| executable(*pid) != guard || !is_guard(*pid));
    let (pid, _) = agents.next().filter(|_| own_parent == parent)?;
    Identity::of(pid).ok()
}

fn is_guard(pid: u32) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).any(|word| word == b"guard")
}
