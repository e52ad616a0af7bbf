//! What to do after a start: what the journal says against what lies on the disk, as one pure table.

use super::{
    Outcome, Phase,
    policy::Policy,
    record::{Passage, Record},
    step::Process,
};
use crate::{
    digest::Digest,
    files,
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{ComponentState, Layer, stack_digest},
};

/// What an inspection found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// SHA-256 of what is installed; `None` where nothing is.
    pub installed: Option<Digest>,
    /// The stack that the next start uses, highest number first; empty where there is none.
    pub layers: Vec<Layer>,
    /// What is wrong with that stack's files, if anything; then `layers` says nothing.
    pub damage: Option<Reason>,
    /// The versions that lie on the node, by name; they are hashed again before they are used.
    pub kept: Vec<Digest>,
    /// What differs in an installed directory from the version that was put there, each path with what became of it.
    pub changes: Vec<String>,
    /// Those of them that are known to be patches: nothing that could be put in the component's place.
    pub patches: Vec<Digest>,
    /// What runs.
    pub process: Process,
    /// What stands beside it, where anything does.
    pub beside: Option<Process>,
    /// What the probes say, where they were asked and there are any.
    pub health: Option<Result<(), String>>,
    /// Of the agent itself: whether an upgrade of it is under watch.
    pub watched: bool,
    /// Of the agent itself: what its guard took out of its place, if it did.
    pub reverted: Option<Reverted>,
}

/// A new agent that its guard has put away again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reverted {
    /// SHA-256 of the agent that was put away.
    pub digest: Digest,
    /// Why.
    pub reason: Reason,
}

impl Found {
    /// Why the state of `goal` can't be reached any more, where a guard has decided so.
    #[must_use]
    pub fn reverted_from(&self, goal: &ComponentState) -> Option<&Reason> {
        let reverted = self.reverted.as_ref()?;
        (Some(reverted.digest) == goal.artifact()).then_some(&reverted.reason)
    }
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
    /// The new base is in place, its stack is not: switch that.
    Restack,
    /// The new version is in place but does not run, or nobody knows whether it does: restart, patch live or reload.
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
    let reverted = passage.touched && found.reverted_from(passage.order.goal.state()).is_some();
    match &passage.end {
        // The guard was faster than the last step of the commit.
        Some(end) if reverted && end.outcome == Outcome::Succeeded => return Recovery::RollBack,
        Some(_) => return Recovery::End,
        None => {}
    }
    let (from, goal) = (&passage.from, &passage.order.goal);
    let to = goal.state();
    // A damaged stack is none that anybody ordered.
    let stack = found.damage.is_none().then(|| stack_digest(&found.layers));
    let (old_base, new_base) = (found.installed == from.artifact(), found.installed == to.artifact());
    let (old_stack, new_stack) = (stack == Some(from.stack()), stack == Some(to.stack()));
    let (old_in_place, new_in_place) = (old_base && old_stack, new_base && new_stack);
    let lies = |digest: &Digest| found.kept.contains(digest) || found.installed == Some(*digest);
    let staged = goal.parts(from).iter().all(|part| lies(&part.digest));
    let runs = policy.runs(&found.process, to);
    // A process says what it was started from, but not whether it was told of new files.
    let told = policy.supervised && policy.kind != Kind::Files;
    let certain = told || !(passage.order.live || policy.reloads() || policy.supervised);
    // A process beside the one that runs is always a new one.
    let stands = found.beside.as_ref().is_some_and(|beside| policy.runs(beside, to));
    match passage.phase {
        Phase::RollingBack => Recovery::RollBack,
        _ if reverted => Recovery::RollBack,
        _ if !passage.touched && !old_in_place => Recovery::Leave,
        Phase::Pending | Phase::Preflight => Recovery::Restart,
        Phase::Fetching => Recovery::Fetch,
        Phase::Verifying | Phase::Staged if !staged && goal.fetches() => Recovery::Fetch,
        Phase::Verifying => Recovery::Verify,
        Phase::Staged => Recovery::Staged,
        Phase::Activating | Phase::Probing if new_in_place && stands => Recovery::Probe,
        // The same bytes before and after: only the process tells how far it went.
        Phase::Activating if new_in_place && runs && certain => Recovery::Probe,
        Phase::Activating if new_in_place && !old_in_place => Recovery::Restarting,
        Phase::Activating if old_in_place && staged => Recovery::Activate,
        Phase::Activating if new_base && old_stack && staged => Recovery::Restack,
        Phase::Probing if new_in_place && runs => Recovery::Probe,
        Phase::Probing if new_in_place => Recovery::Restarting,
        Phase::Committing if new_in_place && runs => Recovery::Commit,
        Phase::Committing if new_in_place => Recovery::Restarting,
        Phase::Activating | Phase::Probing | Phase::Committing => Recovery::RollBack,
    }
}

/// Whether what was found differs from what is recorded, while no upgrade is under way.
#[must_use]
pub fn drift(record: &Record, policy: &Policy, found: &Found) -> Option<Reason> {
    let current = &record.current;
    let recorded = current.artifact();
    let name = |digest: Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |d| d.to_string());
    let drifted = |actual: String, recorded: String| {
        Reason::new(ReasonCode::Drifted).with("actual", actual).with("recorded", recorded)
    };
    if found.installed != recorded {
        if let Some(reason) = files::changed(&found.changes).filter(|_| recorded.is_some()) {
            return Some(reason);
        }
        return Some(drifted(name(found.installed), name(recorded)));
    }
    if let Some(damage) = &found.damage {
        return Some(damage.clone());
    }
    if stack_digest(&found.layers) != current.stack() {
        return Some(drifted(patches(&found.layers), patches(&current.layers)));
    }
    let running = found.process.digest().filter(|_| policy.supervised)?;
    if policy.runs_artifact() && Some(running) != recorded {
        return Some(drifted(name(Some(running)), name(recorded)));
    }
    let another = |digest: Option<Digest>| digest.map_or_else(|| "no patches".to_owned(), of_stack);
    (found.process.stack() != current.stack())
        .then(|| drifted(another(found.process.stack()), patches(&current.layers)))
}

fn of_stack(digest: Digest) -> String {
    format!("stack {}", digest.short())
}

/// A stack as people see it, e.g. `patch 10,9 (stack 9f2c3a)`.
fn patches(layers: &[Layer]) -> String {
    let active = layers.iter().filter(|layer| !layer.retired);
    let numbers: Vec<String> = active.map(|layer| layer.number.to_string()).collect();
    match stack_digest(layers) {
        Some(digest) => format!("patch {} ({})", numbers.join(","), of_stack(digest)),
        None => "no patches".to_owned(),
    }
}

/// What a component is taken to be that nothing is recorded of: what lies there, by its digest.
#[must_use]
pub fn adopt(found: &Found) -> ComponentState {
    let base = found.installed.map_or_else(ComponentState::absent, ComponentState::unmanaged);
    ComponentState { layers: found.layers.clone(), ..base }
}

/// What is taken to be kept of a component that nothing is recorded of: the versions that lie there. In which
/// order they were current nobody knows any more.
#[must_use]
pub fn adopt_kept(found: &Found) -> Vec<ComponentState> {
    let mut kept: Vec<Digest> = found.kept.clone();
    let of_stack = |digest: &Digest| found.layers.iter().any(|layer| layer.release.artifact == *digest);
    kept.retain(|digest| {
        Some(*digest) != found.installed && !found.patches.contains(digest) && !of_stack(digest)
    });
    kept.sort_unstable();
    kept.into_iter().map(ComponentState::unmanaged).collect()
}
