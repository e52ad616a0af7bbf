//! The way back: verify what was kept, put base and stack in place together, bring what runs to them, see that it is
//! healthy.

use super::{MAX_TRIES, Machine, RETRY_AFTER, activate::gone, commit::brief};
use crate::{
    digest::Digest,
    jvm::Proof,
    reason::{Reason, ReasonCode},
    state::{ComponentState, stack_digest},
    time::Time,
    upgrade::{
        Outcome, Phase, keep,
        record::Back,
        recover::Found,
        soak::Watch,
        step::{Answer, Failure, StepKind},
    },
};
use std::time::Duration;

impl Machine {
    /// Begins to put the old state back. `blame` means that the new version is at fault.
    pub(super) fn roll_back(&mut self, why: Reason, blame: bool, now: Time) {
        self.abort();
        let Some(passage) = &mut self.record.passage else { return };
        let to = passage.from.clone();
        let reason = Reason::new(ReasonCode::PuttingBack).with("from", &to).with("why", &why);
        let reason = reason.with("cause", why.code);
        passage.touched = true;
        passage.back = Some(Back { to, why, blame });
        self.mark(Phase::RollingBack, reason, now);
        self.back_begin();
    }

    /// The first step of putting back; also where it begins again after a crash.
    pub(super) fn back_begin(&mut self) {
        if let Some(step) = self.back_steps().into_iter().next() {
            self.perform(step);
        }
    }

    /// What is done to the files, in order: all is looked at before anything is put back, base and stack together.
    fn back_steps(&self) -> Vec<StepKind> {
        let Some(passage) = self.record.passage.as_ref() else { return Vec::new() };
        let Some(Back { to, .. }) = &passage.back else { return Vec::new() };
        let goal = passage.order.goal.state();
        let base = to.artifact() != goal.artifact() || self.seen.installed != to.artifact();
        let of_stacks = [&passage.from, goal, to];
        let mut steps = Vec::new();
        if base {
            steps.extend(to.artifact().map(|digest| StepKind::VerifyKept { digest }));
        }
        for digest in to.active().map(|layer| layer.release.artifact) {
            let step = StepKind::VerifyKept { digest };
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        match to.artifact() {
            Some(digest) if base => steps.push(StepKind::SwapBack { digest }),
            // Only what this upgrade installed is taken away again.
            None if base => steps.push(StepKind::Remove { digest: goal.artifact() }),
            _ => {}
        }
        if self.seen.damaged || of_stacks.iter().any(|state| !state.layers.is_empty()) {
            steps.push(StepKind::SwitchStackBack { layers: to.layers.clone() });
        }
        if passage.beside {
            // Only now, since whatever happens to the process that stays, it can be started again.
            steps.push(StepKind::Dismiss);
        }
        steps.push(StepKind::Inspect { probe: false });
        steps
    }

    fn back_next(&mut self, done: &StepKind, now: Time) {
        match self.back_steps().into_iter().skip_while(|step| step != done).nth(1) {
            Some(step) => self.perform(step),
            None => self.back_retry(Reason::new(ReasonCode::StageFailed), now),
        }
    }

    pub(super) fn back_answer(&mut self, kind: StepKind, answer: Result<Answer, Failure>, now: Time) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.back_failed(&kind, failure, now),
        };
        match (kind, answer) {
            (
                kind @ (StepKind::VerifyKept { .. }
                | StepKind::SwapBack { .. }
                | StepKind::Remove { .. }
                | StepKind::SwitchStackBack { .. }),
                _,
            ) => self.back_next(&kind, now),
            (StepKind::Inspect { .. }, Answer::Inspected(found)) => self.back_in_place(&found, now),
            (StepKind::PatchLive { .. }, Answer::Proved(proof)) => {
                match proof.as_ref().and_then(Proof::old) {
                    Some(old) => self.back_unpatched(old, now),
                    None => self.watch_old(now),
                }
            }
            (StepKind::Reload, Answer::Reloaded(answer)) => {
                self.keep_reload(answer);
                self.watch_old(now);
            }
            (StepKind::Stop, _) => self.start_old(now),
            (StepKind::Start { .. } | StepKind::StartBeside { .. }, _) => self.watch_old(now),
            (StepKind::Drain, _) => self.taken_over(now),
            (StepKind::Dismiss, _) => {
                self.dismissed();
                self.perform(StepKind::Inspect { probe: false });
            }
            (StepKind::Probe { index, beside }, Answer::Probed(probed)) => {
                self.probed(index, beside, &probed, now);
                self.watch_on(now);
            }
            (StepKind::Prove { .. }, Answer::Proved(proof)) => self.back_proved(proof, now),
            // An answer of another step: try the phase again from its beginning.
            _ => self.back_retry(Reason::new(ReasonCode::StageFailed), now),
        }
    }

    /// The files are back: is what runs? A process that was never reached, or was restarted before a crash, is left
    /// alone.
    fn back_in_place(&mut self, found: &Found, now: Time) {
        if let Some(passage) = self.record.passage.as_mut().filter(|_| found.beside.is_some()) {
            // A restart of the agent may not have seen it at once.
            passage.beside = true;
            let reason = Reason::new(ReasonCode::StopFailed);
            return self.back_retry(reason.with("problem", "another process still stands beside it"), now);
        }
        let Some(passage) = self.record.passage.as_ref() else { return };
        let Some(Back { to, .. }) = &passage.back else { return };
        let base = found.installed == to.artifact() || to.artifact().is_none();
        let stack = stack_digest(&found.layers);
        if !base || found.damage.is_some() || stack != to.stack() {
            let name =
                |digest: Option<Digest>| digest.map_or_else(|| "nothing".to_owned(), |d| d.to_string());
            let (actual, expected) = match base {
                true => (stack, to.stack()),
                false => (found.installed, to.artifact()),
            };
            let reason = Reason::new(ReasonCode::ProofMismatch).with("actual", name(actual));
            return self.back_retry(reason.with("expected", name(expected)), now);
        }
        let goal = passage.order.goal.state();
        let runs = found.process.digest().is_some() || !self.policy.supervised;
        let same_base = to.artifact().is_some() && to.artifact() == goal.artifact();
        if passage.order.live && passage.reached && same_base && runs {
            let (layers, gone) = (to.layers.clone(), gone(goal, to));
            self.perform(StepKind::PatchLive { layers, gone });
        } else if self.policy.reloads() && runs && (to.artifact().is_some() || !self.policy.supervised) {
            match passage.reached {
                true => self.perform(StepKind::Reload),
                false => self.watch_old(now),
            }
        } else if self.runs_old(found, to) && to.artifact().is_some() {
            self.watch_old(now);
        } else if self.policy.supervised {
            match to.artifact().filter(|_| passage.ran) {
                Some(digest) if self.can_stand_beside() => {
                    let layers = to.layers.clone();
                    self.start_beside(digest, layers);
                }
                _ => self.stop_running(now),
            }
        } else {
            self.watch_old(now);
        }
    }

    /// Whether what runs is the old version. A program that is started from a directory does not tell, so it counts
    /// only where it was not restarted.
    fn runs_old(&self, found: &Found, to: &ComponentState) -> bool {
        let reached = self.record.passage.as_ref().is_some_and(|passage| passage.reached);
        let tells = self.policy.runs_artifact() || !self.policy.supervised || !reached;
        tells && self.policy.runs(&found.process, to)
    }

    /// Only what the agent ran before is started again.
    fn start_old(&mut self, now: Time) {
        let Some(passage) = self.record.passage.as_ref() else { return };
        let Some(Back { to, .. }) = &passage.back else { return };
        match to.artifact() {
            Some(digest) if passage.ran => {
                let layers = to.layers.clone();
                self.perform(StepKind::Start { digest, layers });
            }
            _ => self.rolled_back(now),
        }
    }

    fn watch_old(&mut self, now: Time) {
        let back = self.record.passage.as_ref().and_then(|passage| passage.back.as_ref());
        let removed = back.is_none_or(|back| back.to.artifact().is_none());
        if removed {
            self.rolled_back(now);
        } else if self.policy.watched() {
            let pid = self.judged().pid();
            self.watch = Some(Watch::new(&self.policy, Duration::ZERO, false, pid, now));
            self.watch_on(now);
        } else {
            self.back_healthy(now);
        }
    }

    /// What was put back is healthy. Where it has patches, the running JVM is asked for them.
    pub(super) fn back_healthy(&mut self, now: Time) {
        self.watch = None;
        let Some(passage) = self.record.passage.as_ref() else { return };
        let Some(Back { to, .. }) = &passage.back else { return };
        let runs = self.seen.process.digest().is_some() || !self.policy.supervised;
        if self.policy.patchable && to.stack().is_some() && runs {
            let (layers, gone) = (to.layers.clone(), gone(passage.order.goal.state(), to));
            self.perform(StepKind::Prove { layers, gone });
        } else {
            self.rolled_back(now);
        }
    }

    /// A proof of the opposite is a failure. A JVM that says nothing may have been silent before as well: its files
    /// and its probes are right.
    fn back_proved(&mut self, proof: Option<Proof>, now: Time) {
        let old = proof.as_ref().and_then(Proof::old);
        if let Some(passage) = &mut self.record.passage {
            passage.proof = proof.map(brief);
        }
        let back = self.record.passage.as_ref().and_then(|passage| passage.back.as_ref());
        match (old, back) {
            (Some(old), Some(back)) => {
                let reason = Reason::new(ReasonCode::RollbackUnhealthy).with("from", &back.to);
                self.end(Outcome::RollbackFailed, reason.with("problem", old), now);
            }
            _ => self.rolled_back(now),
        }
    }

    fn back_failed(&mut self, kind: &StepKind, failure: Failure, now: Time) {
        let reason = failure.reason;
        match kind {
            StepKind::VerifyKept { .. } if reason.code == ReasonCode::RollbackTargetDamaged => {
                self.further_back(reason, now);
            }
            StepKind::PatchLive { .. } => self.back_unpatched(reason, now),
            // Whatever hinders it beside the other one: stopping and starting is the way that needs least.
            StepKind::StartBeside { .. } | StepKind::Drain => self.stop_running(now),
            StepKind::Prove { .. } => self.back_proved(None, now),
            _ => self.back_retry(reason, now),
        }
    }

    /// The running JVM can't be brought back. Where the agent runs it, a restart does.
    fn back_unpatched(&mut self, reason: Reason, now: Time) {
        if self.policy.supervised {
            self.stop_running(now);
        } else if reason.code == ReasonCode::JvmGone {
            // Nothing runs any more that would have to be brought back.
            self.watch_old(now);
        } else {
            self.back_retry(reason, now);
        }
    }

    /// A kept copy is damaged: the next older one takes its place, or a person has to.
    fn further_back(&mut self, damage: Reason, now: Time) {
        let Some(passage) = &mut self.record.passage else { return };
        let ways = keep::ways_back(&self.record.kept, &passage.from);
        let Some(back) = &mut passage.back else { return };
        let position = ways.iter().position(|state| state.same_content(&back.to));
        match position.and_then(|position| ways.get(position + 1)) {
            Some(older) => {
                back.to = older.clone();
                let why = damage.to_string();
                self.say(Reason::new(ReasonCode::PuttingBack).with("from", older).with("why", why), now);
                self.back_begin();
            }
            None => self.end(Outcome::RollbackFailed, damage, now),
        }
    }

    fn back_retry(&mut self, reason: Reason, now: Time) {
        let Some(passage) = &mut self.record.passage else { return };
        passage.tries += 1;
        if passage.tries < MAX_TRIES {
            self.retry_at = Some(now.after(RETRY_AFTER));
            return;
        }
        let from = passage.back.as_ref().map(|back| back.to.to_string()).unwrap_or_default();
        let failed = Reason::new(ReasonCode::RollbackStepFailed).with("from", from).with("problem", &reason);
        self.end(Outcome::RollbackFailed, failed.with("cause", reason.code), now);
    }

    pub(super) fn back_unhealthy(&mut self, now: Time) {
        if self.record.passage.as_ref().is_some_and(|passage| passage.beside) {
            // It may need what the other process holds: once more, alone.
            self.watch = None;
            return self.stop_running(now);
        }
        let Some(back) = self.record.passage.as_ref().and_then(|passage| passage.back.as_ref()) else {
            return;
        };
        let problem = self.watch.as_ref().map_or("", Watch::problem).to_owned();
        let reason = Reason::new(ReasonCode::RollbackUnhealthy).with("from", &back.to);
        self.end(Outcome::RollbackFailed, reason.with("problem", problem), now);
    }

    pub(super) fn rolled_back(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let (from, goal) = (passage.from.clone(), passage.order.goal.state().clone());
        let passage_ran = passage.ran;
        let Some(Back { to, why, blame }) = passage.back.clone() else { return };
        if blame {
            self.blame(&goal, &from);
        }
        self.record.started = passage_ran && to.artifact().is_some();
        let reason = if !to.same_content(&from) {
            let reason = Reason::new(ReasonCode::RolledBackFurther).with("from", &from);
            reason.with("older", &to).with("why", &why).with("cause", why.code)
        } else if why.code == ReasonCode::CancelledAfterSwitch {
            why
        } else {
            let reason = Reason::new(ReasonCode::RolledBack).with("from", &from);
            reason.with("why", &why).with("cause", why.code)
        };
        if !to.same_content(&self.record.current) {
            self.become_current(to.clone(), now);
            // The damaged copy is no way back any more.
            self.record.kept.retain(|state| !state.same_content(&from));
        }
        self.end(Outcome::RolledBack, reason, now);
    }
}
