//! ACTIVATING: what is switched, in which order, and how what runs is brought to it.

use super::Machine;
use crate::{
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{ComponentState, Layer},
    time::Time,
    upgrade::{Phase, record::Passage, recover::Found, step::StepKind},
};

/// What is done to the files on the way from one state to another: first the base, then its stack. Only a base that
/// changes is touched, and only a stack that changes or is damaged.
pub(super) fn switches(from: &ComponentState, to: &ComponentState, damaged: bool) -> Vec<StepKind> {
    let mut steps = Vec::new();
    let base = from.artifact() != to.artifact();
    if base {
        steps.push(match from.artifact() {
            Some(digest) => StepKind::Backup { digest },
            // What somebody put there since the checks has no backup, and must not be written over.
            None => StepKind::Inspect { probe: false },
        });
        steps.push(match to.artifact() {
            Some(digest) => StepKind::Swap { digest },
            None => StepKind::Remove { digest: from.artifact() },
        });
    }
    // A stack may depend on the base: on how the application's jar is started.
    if damaged || from.layers != to.layers || (base && !to.layers.is_empty()) {
        steps.push(StepKind::SwitchStack { layers: to.layers.clone() });
    }
    steps
}

/// The layers in force in `before` whose bytes are not in force in `after`, on the same base. On another one there is
/// nothing to be rid of: its JVM is a new one, and the originals that those patches name are not its own.
pub(super) fn gone(before: &ComponentState, after: &ComponentState) -> Vec<Layer> {
    if before.artifact() != after.artifact() {
        return Vec::new();
    }
    let stays = |layer: &Layer| after.active().any(|other| other.release.artifact == layer.release.artifact);
    before.active().filter(|layer| !stays(layer)).cloned().collect()
}

impl Machine {
    /// The first step of ACTIVATING.
    pub(super) fn activate(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let steps = self.steps(passage);
        self.switch(steps.into_iter().next(), now);
    }

    /// All that is done to the files, in order. A new agent has to show first what it can, under guard.
    fn steps(&self, passage: &Passage) -> Vec<StepKind> {
        let goal = passage.order.goal.state();
        let mut steps = switches(&passage.from, goal, self.seen.damaged);
        if self.policy.kind == Kind::Agent
            && let (Some(old), Some(new)) = (passage.from.artifact(), goal.artifact())
            && old != new
        {
            let soak = self.policy.soak_for(passage.order.soak);
            let soak_ms = u64::try_from(soak.as_millis()).unwrap_or(u64::MAX);
            steps.splice(1..1, [StepKind::Trial { digest: new }, StepKind::Arm { old, new, soak_ms }]);
        }
        steps
    }

    /// The base is in place and its stack is not: goes on there.
    pub(super) fn restack(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let layers = passage.order.goal.state().layers.clone();
        self.switch(Some(StepKind::SwitchStack { layers }), now);
    }

    /// A step on the files is done: the next one, or what runs is brought to it.
    pub(super) fn switched(&mut self, done: &StepKind, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let next = self.steps(passage).into_iter().skip_while(|step| step != done).nth(1);
        self.switch(next, now);
    }

    fn switch(&mut self, step: Option<StepKind>, now: Time) {
        let Some(step) = step else { return self.put_into_force(now) };
        let looks = matches!(step, StepKind::Inspect { .. } | StepKind::Trial { .. } | StepKind::Arm { .. });
        if !looks && !matches!(step, StepKind::Backup { .. }) {
            self.touch();
        }
        self.perform(step);
    }

    /// The point of no unnoticed return.
    fn touch(&mut self) {
        if let Some(passage) = &mut self.record.passage {
            passage.touched = true;
        }
    }

    /// A first install: the place must be as empty as it was when it was checked.
    pub(super) fn empty_still(&mut self, found: &Found, now: Time) {
        match found.installed {
            None => self.switched(&StepKind::Inspect { probe: false }, now),
            Some(actual) => {
                let reason = Reason::new(ReasonCode::Drifted).with("actual", actual);
                self.give_up(reason.with("recorded", "nothing"), false, now);
            }
        }
    }

    /// The files are as they should be: what runs is patched, told to reload, or restarted.
    pub(super) fn put_into_force(&mut self, now: Time) {
        self.touch();
        let Some(passage) = &self.record.passage else { return };
        let goal = passage.order.goal.state().clone();
        let runs = self.seen.process.digest().is_some();
        let same_base = goal.artifact().is_some() && passage.from.artifact() == goal.artifact();
        let step = if passage.order.live && same_base && (runs || !self.policy.supervised) {
            StepKind::PatchLive { layers: goal.layers.clone(), gone: gone(&passage.from, &goal) }
        } else if self.policy.reloads() && (!self.policy.supervised || (runs && goal.artifact().is_some())) {
            StepKind::Reload
        } else if self.policy.supervised {
            return match goal.artifact() {
                Some(digest) if self.can_stand_beside() => {
                    let layers = goal.layers.clone();
                    self.start_beside(digest, layers);
                }
                _ => self.stop_running(now),
            };
        } else {
            return self.enter(Phase::Probing, now);
        };
        if let Some(passage) = &mut self.record.passage {
            passage.reached = true;
        }
        self.perform(step);
    }

    pub(super) fn start_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let goal = passage.order.goal.state();
        match goal.artifact() {
            Some(digest) => {
                let layers = goal.layers.clone();
                self.perform(StepKind::Start { digest, layers });
            }
            None => self.started_new(now),
        }
    }

    pub(super) fn started_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let removal = passage.order.goal.state().artifact().is_none();
        self.record.started = self.policy.supervised && !removal;
        match passage.phase {
            // Restarted in the middle of watching: the watch begins again.
            Phase::Probing => self.watch_new(now),
            _ => self.enter(Phase::Probing, now),
        }
    }

    /// What the reload answered is part of the result.
    pub(super) fn keep_reload(&mut self, answer: String) {
        /// How much of an answer is kept, in characters.
        const MOST: usize = 500;
        if let Some(passage) = &mut self.record.passage {
            passage.reload = Some(answer.chars().take(MOST).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::Digest, state::ReleaseRef};

    fn release(version: &str) -> ReleaseRef {
        ReleaseRef {
            component: "app".parse().unwrap(),
            version: version.parse().unwrap(),
            sequence: 1,
            manifest: Digest::of(version.as_bytes()),
            artifact: Digest::of(version.as_bytes()),
        }
    }

    fn state(base: &str, numbers: &[u32]) -> ComponentState {
        let mut state = ComponentState::release(release(base));
        let layer = |number: &u32| Layer {
            number: *number,
            release: release(&format!("p{number}")),
            retired: false,
            contains: vec![],
        };
        state.layers = numbers.iter().map(layer).collect();
        state
    }

    #[test]
    fn what_is_gone_is_gone_from_the_same_base() {
        let numbers = |before: &ComponentState, after: &ComponentState| -> Vec<u32> {
            gone(before, after).iter().map(|layer| layer.number).collect()
        };
        assert_eq!(numbers(&state("1", &[10, 9]), &state("1", &[9])), [10]);
        assert_eq!(numbers(&state("1", &[9]), &state("1", &[10, 9])), [0; 0]);
        // A new base has other originals than those that the patches of the old one know.
        assert_eq!(numbers(&state("1", &[10, 9]), &state("2", &[])), [0; 0]);
    }
}
