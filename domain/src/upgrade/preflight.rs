//! Whether a node can take an upgrade, judged from facts before anything is touched.

use serde::{Deserialize, Serialize};

use super::{policy::Policy, record::Goal, step::Process};
use crate::{
    digest::Digest,
    files,
    reason::{Reason, ReasonCode},
    release::{Kind, Platform},
    state::{ComponentState, Layer, stack_digest},
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
    /// Bytes of the wanted artifacts that lie there already.
    pub fetched: u64,
    /// Whether a backup is a link and takes no space.
    pub links: bool,
    /// Bytes that the wanted artifact takes beside itself when it is unpacked; 0 where it is not, or lies there so.
    pub unpacked: u64,
    /// What the agent may not do there, if anything.
    pub forbidden: Option<Reason>,
    /// The stack that the next start uses, highest number first.
    pub layers: Vec<Layer>,
    /// What is wrong with that stack's files, if anything; then `layers` says nothing.
    pub damage: Option<Reason>,
    /// Whether the wanted stack fits what is there: found by the digests of the application's own classes and by how its
    /// JVM is started; with what deserves a look. `Ok` where no stack is wanted.
    pub stack: Result<Vec<Reason>, Reason>,
    /// Files of the component that were changed on the node since they were installed, and that the wanted release
    /// neither keeps nor overwrites.
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

/// What is asked for, beside the facts.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Where the upgrade leads.
    pub goal: &'a Goal,
    /// Whether the running JVM is to be patched instead of restarted.
    pub live: bool,
    /// Whether the running JVM is known to have other classes in force than recorded.
    pub old_classes: bool,
    /// Whether the last upgrade could not be put back: what is there is broken, and a further order is to mend it.
    pub broken: bool,
}

/// Judges the facts.
#[must_use]
pub fn judge(policy: &Policy, asked: Asked<'_>, current: &ComponentState, facts: &Facts) -> Verdict {
    let goal = asked.goal;
    if let Some(reason) = goal.unfit() {
        return Verdict::Stop(reason.clone());
    }
    let wanted = goal.state();
    let same_base = facts.installed == wanted.artifact();
    let same_stack = facts.damage.is_none() && stack_digest(&facts.layers) == wanted.stack();
    if let Err(reason) = base(goal, asked.live, facts.installed) {
        return Verdict::Stop(reason);
    }
    if same_base && same_stack {
        let current = policy.runs(&facts.process, wanted) && !asked.old_classes;
        return if current { Verdict::AlreadyCurrent } else { restart(policy, asked, facts) };
    }
    if let Some(reason) = &facts.forbidden {
        return Verdict::Stop(reason.clone());
    }
    if let Some(reason) = disk(goal, facts) {
        return Verdict::Stop(reason);
    }
    if let Err(reason) = &facts.stack {
        return Verdict::Stop(reason.clone());
    }
    if let Some(reason) = refused(goal, facts) {
        return Verdict::Stop(reason);
    }
    let patched = !same_stack || wanted.stack().is_some();
    if patched && let Verdict::Stop(reason) = in_force(policy, asked) {
        return Verdict::Stop(reason);
    }
    // What is damaged has to be put right while it is unhealthy: that is why it is.
    let mends = asked.broken || facts.damage.is_some() && wanted.same_content(current);
    match &facts.baseline {
        _ if mends => Verdict::Fetch,
        Some(Err(problem)) if policy.require_healthy_baseline && current.artifact().is_some() => {
            Verdict::Stop(Reason::new(ReasonCode::BaselineUnhealthy).with("problem", problem))
        }
        _ => Verdict::Fetch,
    }
}

/// Whether a release refuses to replace files that were changed on the node. A kept state is never refused for that: what
/// was changed is kept as a state of its own.
#[must_use]
pub fn refused(goal: &Goal, facts: &Facts) -> Option<Reason> {
    let changes = Some(facts.changes.as_slice()).filter(|_| matches!(goal, Goal::Install { .. }));
    changes.and_then(files::changed)
}

/// Whether the base is the one that the goal builds on.
///
/// # Errors
/// [`ReasonCode::WrongBase`] where patches are for another one, [`ReasonCode::LiveImpossible`] where the base would
/// change under a running JVM.
pub fn base(goal: &Goal, live: bool, installed: Option<Digest>) -> Result<(), Reason> {
    let wanted = goal.state();
    let on_nothing = matches!(goal, Goal::Stack { .. }) && wanted.artifact().is_none();
    if installed == wanted.artifact() && !on_nothing {
        return Ok(());
    }
    let name = |digest: Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |d| d.to_string());
    if matches!(goal, Goal::Stack { .. }) {
        let expected = if on_nothing { "a release".to_owned() } else { name(wanted.artifact()) };
        let reason = Reason::new(ReasonCode::WrongBase).with("expected", expected);
        return Err(reason.with("actual", name(installed)));
    }
    if live {
        let number = wanted.active().next().map_or(0, |layer| layer.number);
        let reason = Reason::new(ReasonCode::LiveImpossible).with("number", number);
        return Err(reason.with("problem", "the base changes with it"));
    }
    Ok(())
}

/// Whether there is a way to bring what runs to another stack.
fn in_force(policy: &Policy, asked: Asked<'_>) -> Verdict {
    if policy.supervised || policy.reloads() || asked.live {
        return Verdict::Restart;
    }
    let problem = "the component has run mode none and no [component.reload]";
    Verdict::Stop(Reason::new(ReasonCode::RestartNeeded).with("problem", problem))
}

/// Whether what is in place already may be brought into force. A unit that its operator has stopped, or that can't be
/// started, is left as it is.
fn restart(policy: &Policy, asked: Asked<'_>, facts: &Facts) -> Verdict {
    if policy.systemd || policy.kind == Kind::Agent {
        if let Some(reason) = &facts.forbidden {
            return Verdict::Stop(reason.clone());
        }
        if let Some(Err(problem)) = facts.baseline.as_ref().filter(|_| policy.require_healthy_baseline) {
            return Verdict::Stop(Reason::new(ReasonCode::BaselineUnhealthy).with("problem", problem));
        }
    }
    in_force(policy, asked)
}

/// Room for what is still to be fetched and what that unpacks to, for a backup that can't be a link, and for the journal.
fn disk(goal: &Goal, facts: &Facts) -> Option<Reason> {
    const SPARE: u64 = 64 * 1024;
    let backup = if facts.links { 0 } else { facts.installed_size };
    let needed =
        goal.size().saturating_sub(facts.fetched).saturating_add(facts.unpacked).saturating_add(backup);
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
