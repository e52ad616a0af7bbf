//! What to do after a start: what the journal says against what lies on the disk, as one pure table.

use super::{
    Phase,
    policy::Policy,
    record::{Goal, Passage, Record},
    step::Process,
};
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    state::{ComponentState, Layer},
};

/// What an inspection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// SHA-256 of what is installed; `None` where nothing is.
    pub installed: Option<Digest>,
    /// The stack that the next start uses, highest number first; empty where there is none.
    pub layers: Vec<Layer>,
    /// The versions that lie on the node, by name; they are hashed again before they are used.
    pub kept: Vec<Digest>,
    /// What differs in an installed directory from the version that was put there, each path with what became of it.
    pub changes: Vec<String>,
    /// What runs.
    pub process: Process,
    /// What the probes say, where they were asked and there are any.
    pub health: Option<Result<(), String>>,
}

/// What to do about an upgrade that was under way when the agent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing is touched: begin again with the checks.
    Restart,
    /// Nothing is touched and somebody else changed what is installed: stop.
    Leave,
    /// Fetch again, resuming.
    Fetch,
    /// Everything needed lies there: hash it once more.
    Verify,
    /// Staged: wait or go on as before.
    Staged,
    /// The old version is in place: switch from the beginning.
    Activate,
    /// The new version is in place but does not run: restart.
    Restarting,
    /// The new version is in place and runs: watch it from the beginning.
    Probe,
    /// The new version was trusted already: finish.
    Commit,
    /// Put the old version back, from the beginning of that.
    RollBack,
    /// The outcome was decided: tidy up and report it.
    End,
}

/// Where an interrupted upgrade goes on.
#[must_use]
pub fn decide(passage: &Passage, found: &Found, policy: &Policy) -> Recovery {
    if passage.end.is_some() {
        return Recovery::End;
    }
    let to = passage.order.goal.state().artifact();
    let old_in_place = found.installed == passage.from.artifact();
    let new_in_place = found.installed == to;
    let staged = to.is_none_or(|digest| found.kept.contains(&digest) || new_in_place);
    let runs = !policy.supervised || found.process.digest() == to;
    match passage.phase {
        Phase::RollingBack => Recovery::RollBack,
        _ if !passage.touched && !old_in_place => Recovery::Leave,
        Phase::Pending | Phase::Preflight => Recovery::Restart,
        Phase::Fetching => Recovery::Fetch,
        Phase::Verifying | Phase::Staged if !staged && fetches(&passage.order.goal) => Recovery::Fetch,
        Phase::Verifying => Recovery::Verify,
        Phase::Staged => Recovery::Staged,
        // The same bytes before and after: only the process tells how far it went.
        Phase::Activating if new_in_place && runs => Recovery::Probe,
        Phase::Activating if new_in_place && !old_in_place => Recovery::Restarting,
        Phase::Activating if old_in_place && staged => Recovery::Activate,
        Phase::Probing if new_in_place && runs => Recovery::Probe,
        Phase::Probing if new_in_place => Recovery::Restarting,
        Phase::Committing if new_in_place && runs => Recovery::Commit,
        Phase::Committing if new_in_place => Recovery::Restarting,
        Phase::Activating | Phase::Probing | Phase::Committing => Recovery::RollBack,
    }
}

fn fetches(goal: &Goal) -> bool {
    matches!(goal, Goal::Install { .. })
}

/// Whether what was found differs from what is recorded, while no upgrade is under way.
#[must_use]
pub fn drift(record: &Record, policy: &Policy, found: &Found) -> Option<Reason> {
    let recorded = record.current.artifact();
    let name = |digest: Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |d| d.to_string());
    let drifted = |actual: Option<Digest>| {
        Reason::new(ReasonCode::Drifted).with("actual", name(actual)).with("recorded", name(recorded))
    };
    if found.installed != recorded {
        return Some(drifted(found.installed));
    }
    match found.process.digest() {
        Some(running) if policy.supervised && Some(running) != recorded => Some(drifted(Some(running))),
        _ => None,
    }
}

/// What a component is taken to be that nothing is recorded of: what lies there, by its digest.
#[must_use]
pub fn adopt(found: &Found) -> ComponentState {
    found.installed.map_or_else(ComponentState::absent, ComponentState::unmanaged)
}

/// What is taken to be kept of a component that nothing is recorded of: the versions that lie there. In which
/// order they were current nobody knows any more.
#[must_use]
pub fn adopt_kept(found: &Found) -> Vec<ComponentState> {
    let mut kept: Vec<Digest> = found.kept.clone();
    kept.retain(|digest| Some(*digest) != found.installed);
    kept.sort_unstable();
    kept.into_iter().map(ComponentState::unmanaged).collect()
}
