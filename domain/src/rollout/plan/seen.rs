//! What deserves a second look in a plan, counted over its nodes. It decides nothing.

use std::collections::BTreeMap;

use super::{NodeFacts, WARNS_OF_AGENTS};
use crate::{
    reason::Reason,
    rollout::{Change, Spec},
    state::{Base, ComponentState},
};

/// Counts of what is planned.
#[derive(Default)]
pub(super) struct Seen {
    offline: usize,
    unhealthy: usize,
    drifted: usize,
    unmanaged: usize,
    /// Nodes whose JVM warns on its output of agents that are loaded while it runs.
    pub(super) warns_of_agents: usize,
    /// What the stacks come to that is no fault, by its sentence.
    notes: BTreeMap<String, usize>,
}

impl Seen {
    pub(super) fn note(&mut self, node: &NodeFacts, from: &ComponentState) {
        self.offline += usize::from(!node.online);
        self.unmanaged += usize::from(matches!(from.base, Base::Unmanaged { .. }));
        if let Some(inventory) = &node.component {
            self.unhealthy += usize::from(!inventory.healthy && inventory.current.base != Base::Absent);
            self.drifted += usize::from(inventory.drift.is_some());
        }
    }

    pub(super) fn notes(&mut self, notes: &[Reason]) {
        for note in notes {
            *self.notes.entry(note.message()).or_default() += 1;
        }
    }

    pub(super) fn warn(
        &self,
        spec: &Spec,
        total: usize,
        max_unavailable: usize,
        live: bool,
        warnings: &mut Vec<String>,
    ) {
        let borne = spec.policy.silence_budget.of(total);
        if self.offline > 0 {
            warnings.push(format!(
                "{} of {total} nodes are not connected; they get the order when they return, and {borne} may stay silent without holding a wave",
                self.offline
            ));
        }
        let mut count = |count: usize, what: &str| {
            if count > 0 {
                warnings.push(format!("{count} of {total} nodes {what}"));
            }
        };
        count(self.unhealthy, "are unhealthy now; a change on top would hide what is broken");
        count(self.drifted, "run something else than was recorded");
        count(self.unmanaged, "run a file that was there before Upfleet; it is kept, and a way back to it");
        let warns = format!(
            "run Java {WARNS_OF_AGENTS} or later, which warns on the application's output of agents loaded while it runs"
        );
        count(self.warns_of_agents, &warns);
        for (note, nodes) in &self.notes {
            warnings.push(format!("on {nodes} of {total} nodes: {note}"));
        }
        // A live patch makes no node unavailable.
        if total > 1 && max_unavailable >= total && !live {
            warnings.push(format!("all {total} nodes may be unavailable at once"));
        }
        if total > 1 && spec.policy.waves.len() < 2 && !matches!(spec.change, Change::Restore(_)) {
            warnings.push("there is only one wave, so no canary".to_owned());
        }
    }
}
