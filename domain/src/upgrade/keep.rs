//! Which states and versions are kept. What is current, running, the way back, or named by an upgrade
//! under way is never given up.

use super::record::Record;
use crate::{
    digest::Digest,
    state::{Base, ComponentState, Layer},
};

/// Makes `new` the current state; the old one becomes the newest kept one.
pub fn advance(record: &mut Record, new: ComponentState, keep: usize) {
    let old = std::mem::replace(&mut record.current, new);
    if !old.same_content(&record.current) {
        record.kept.insert(0, old);
    }
    let current = record.current.clone();
    let mut seen: Vec<ComponentState> = vec![current];
    record.kept.retain(|state| {
        let new = !seen.iter().any(|other| other.same_content(state));
        seen.push(state.clone());
        new
    });
    record.kept.truncate(keep.max(1));
}

/// The digests of versions that may not be removed. `running` is what the process was started from.
#[must_use]
pub fn versions(record: &Record, running: Option<Digest>) -> Vec<Digest> {
    let passage = record.passage.iter().flat_map(|passage| {
        let goal = passage.order.goal.state();
        // What is being given up need not stay, unless it is one of the states named otherwise.
        let wanted = passage.end.is_none().then_some(goal);
        [Some(&passage.from), wanted, passage.back.as_ref().map(|back| &back.to)].into_iter().flatten()
    });
    let next = record.next.iter().map(|order| order.goal.state());
    let states = std::iter::once(&record.current).chain(&record.kept).chain(passage).chain(next);
    let mut digests: Vec<Digest> = states.flat_map(artifacts).chain(running).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// The stacks that may not be removed.
#[must_use]
pub fn stacks(record: &Record) -> Vec<Vec<Layer>> {
    let passage = record.passage.iter().flat_map(|passage| {
        [Some(&passage.from), passage.back.as_ref().map(|back| &back.to)].into_iter().flatten()
    });
    let states = std::iter::once(&record.current).chain(&record.kept).chain(passage);
    let mut stacks: Vec<Vec<Layer>> = Vec::new();
    for state in states.filter(|state| state.stack().is_some()) {
        if !stacks.contains(&state.layers) {
            stacks.push(state.layers.clone());
        }
    }
    stacks
}

/// The digests that an inventory lists as kept: those of the current and the kept states.
#[must_use]
pub fn kept_digests(record: &Record) -> Vec<Digest> {
    let states = std::iter::once(&record.current).chain(&record.kept);
    let mut digests: Vec<Digest> = states.flat_map(artifacts).collect();
    digests.sort_unstable();
    digests.dedup();
    digests
}

/// The states to put back, in the order in which they are tried: the one before, then older ones. A
/// component is only ever removed where it was not there before.
#[must_use]
pub fn ways_back(kept: &[ComponentState], from: &ComponentState) -> Vec<ComponentState> {
    let older = kept.iter().filter(|state| state.base != Base::Absent && !state.same_content(from));
    std::iter::once(from).chain(older).cloned().collect()
}

fn artifacts(state: &ComponentState) -> Vec<Digest> {
    state.artifact().into_iter().chain(state.layers.iter().map(|layer| layer.release.artifact)).collect()
}
