//! Whether a node can take an upgrade, judged from facts before anything is touched.

use serde::{Deserialize, Serialize};

use super::{policy::Policy, record::Goal, step::Process};
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    release::Platform,
    state::{ComponentState, Layer},
};

/// What a check found on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of what is installed.
    pub installed: Option<Digest>,
    /// Length of what is installed in bytes; what a backup needs where links can't be made.
    pub installed_size: u64,
    /// What runs.
    pub process: Process,
    /// The directory the component lies in.
    pub path: String,
    /// Bytes free there for the agent.
    pub available: u64,
    /// Bytes of the new artifact that lie there already.
    pub fetched: u64,
    /// Whether a backup is a link and takes no space.
    pub links: bool,
    /// What the agent may not do there, if anything.
    pub forbidden: Option<Reason>,
    /// The stack that the next start uses, highest number first.
    pub layers: Vec<Layer>,
    /// Whether the wanted stack fits what is there: found by the digests of the application's own classes and by how its
    /// JVM is started. `Ok` where no stack is wanted.
    pub stack: Result<(), Reason>,
    /// Files of the component that were changed on the node since they were installed.
    pub changes: Vec<String>,
    /// What the probes say of what runs now; `None` where there is nothing to probe.
    pub baseline: Option<Result<(), String>>,
}

/// What can follow from the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on and fetch.
    Fetch,
    /// The bytes are in place already, but something else runs: restart only.
    Restart,
    /// All is as ordered.
    AlreadyCurrent,
    /// It can't be done.
    Stop(Reason),
}

/// Judges the facts.
#[must_use]
pub fn judge(policy: &Policy, goal: &Goal, current: &ComponentState, facts: &Facts) -> Verdict {
    if let Goal::Install { unfit: Some(reason), .. } = goal {
        return Verdict::Stop(reason.clone());
    }
    let wanted = goal.state().artifact();
    if facts.installed == wanted {
        let running = !policy.supervised || facts.process.digest() == wanted;
        return if running { Verdict::AlreadyCurrent } else { Verdict::Restart };
    }
    if let Some(reason) = &facts.forbidden {
        return Verdict::Stop(reason.clone());
    }
    if let Some(reason) = disk(goal, facts) {
        return Verdict::Stop(reason);
    }
    match &facts.baseline {
        Some(Err(problem)) if policy.require_healthy_baseline && current.artifact().is_some() => {
            Verdict::Stop(Reason::new(ReasonCode::BaselineUnhealthy).with("problem", problem))
        }
        _ => Verdict::Fetch,
    }
}

/// Room for what is still to be fetched, for a backup that can't be a link, and for the journal.
fn disk(goal: &Goal, facts: &Facts) -> Option<Reason> {
    const SPARE: u64 = 64 * 1024;
    let backup = if facts.links { 0 } else { facts.installed_size };
    let needed = goal.size().saturating_sub(facts.fetched).saturating_add(backup);
    if needed == 0 || facts.available >= needed.saturating_add(SPARE) {
        return None;
    }
    let reason = Reason::new(ReasonCode::DiskFull).with("path", &facts.path);
    Some(reason.with("available", facts.available).with("needed", needed.saturating_add(SPARE)))
}

/// What an ELF header says about where a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elf {
    /// Whether it is a 64-bit program.
    pub wide: bool,
    /// Whether it is little-endian.
    pub little: bool,
    /// `e_machine`.
    pub machine: u16,
}

/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
/// `e_machine` of AArch64.
const EM_AARCH64: u16 = 183;

impl Elf {
    /// Reads the header from a file's first bytes; `None` where it is no ELF file (a jar or a script is fine).
    #[must_use]
    pub fn parse(head: &[u8]) -> Option<Self> {
        let magic = head.get(..4)?;
        if magic != b"\x7fELF" {
            return None;
        }
        let little = *head.get(5)? == 1;
        let machine = [*head.get(18)?, *head.get(19)?];
        let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
        Some(Self { wide: *head.get(4)? == 2, little, machine })
    }

    /// Whether it runs on `platform`.
    ///
    /// # Errors
    /// [`ReasonCode::PlatformMismatch`] where it does not. An architecture this code does not know is let through.
    pub fn check(self, platform: &Platform) -> Result<(), Reason> {
        let expected = match platform.arch.as_str() {
            "amd64" => EM_X86_64,
            "arm64" => EM_AARCH64,
            _ => return Ok(()),
        };
        if self.wide && self.little && self.machine == expected {
            return Ok(());
        }
        let is = match self.machine {
            EM_X86_64 => "amd64".to_owned(),
            EM_AARCH64 => "arm64".to_owned(),
            other => format!("ELF machine {other}"),
        };
        Err(Reason::new(ReasonCode::PlatformMismatch)
            .with("platform", platform)
            .with("problem", format!("the file is a program for {is}")))
    }
}
