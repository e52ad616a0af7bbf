//! The way back: verify what was kept, put it in place, restart it, see that it is healthy. And time.

use super::{MAX_TRIES, Machine, RETRY_AFTER};
use crate::{
    reason::{Reason, ReasonCode},
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
        let Some(passage) = self.record.passage.as_ref() else { return };
        let Some(back) = passage.back.as_ref() else { return };
        match back.to.artifact() {
            Some(digest) => self.perform(StepKind::VerifyKept { digest }),
            // Only what this upgrade installed is taken away again.
            None => {
                let digest = passage.order.goal.state().artifact();
                self.perform(StepKind::Remove { digest });
            }
        }
    }

    pub(super) fn back_answer(&mut self, kind: StepKind, answer: Result<Answer, Failure>, now: Time) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.back_failed(kind, failure, now),
        };
        let to = self.back_digest();
        match (kind, answer) {
            (StepKind::VerifyKept { digest }, _) => self.perform(StepKind::SwapBack { digest }),
            (StepKind::SwapBack { .. } | StepKind::Remove { .. }, _) => {
                self.perform(StepKind::Inspect { probe: false });
            }
            (StepKind::Inspect { .. }, Answer::Inspected(found)) => self.back_in_place(&found, now),
            (StepKind::Stop, _) => match to {
                Some(digest) if self.ran() => self.perform(StepKind::Start { digest, layers: Vec::new() }),
                _ => self.rolled_back(now),
            },
            (StepKind::Start { .. }, _) => self.watch_old(now),
            (StepKind::Probe { index }, Answer::Probed(probed)) => {
                if let Some(watch) = &mut self.watch {
                    watch.note(&self.policy, index, &probed, now);
                }
                self.watch_on(now);
            }
            // An answer of another step: try the phase again from its beginning.
            _ => self.back_retry(Reason::new(ReasonCode::StageFailed), now),
        }
    }

    fn ran(&self) -> bool {
        self.record.passage.as_ref().is_some_and(|passage| passage.ran)
    }

    fn back_digest(&self) -> Option<crate::digest::Digest> {
        let back = self.record.passage.as_ref().and_then(|passage| passage.back.as_ref());
        back.and_then(|back| back.to.artifact())
    }

    /// The file is back. A process that was never stopped, or was restarted before a crash, is left alone.
    fn back_in_place(&mut self, found: &Found, now: Time) {
        let to = self.back_digest();
        let running = found.process.digest();
        if !self.policy.supervised || (to.is_some() && running == to) {
            self.watch_old(now);
        } else {
            self.perform(StepKind::Stop);
        }
    }

    fn watch_old(&mut self, now: Time) {
        if !self.policy.watched() || self.back_digest().is_none() {
            self.rolled_back(now);
            return;
        }
        let pid = self.seen.process.pid();
        self.watch = Some(Watch::new(&self.policy, Duration::ZERO, false, pid, now));
        self.watch_on(now);
    }

    fn back_failed(&mut self, kind: StepKind, failure: Failure, now: Time) {
        let damaged = matches!(kind, StepKind::VerifyKept { .. });
        if damaged && failure.reason.code == ReasonCode::RollbackTargetDamaged {
            self.further_back(failure.reason, now);
        } else {
            self.back_retry(failure.reason, now);
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
            self.blame(&goal);
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

    // ---- time --------------------------------------------------------------------------------------------

    pub(super) fn tick(&mut self, now: Time) {
        let retry = self.retry_at.is_some_and(|at| at <= now) && self.outstanding.is_none();
        if retry {
            self.retry_at = None;
        }
        if retry && !self.ready {
            self.inspect(false);
        }
        let Some(passage) = &self.record.passage else { return };
        let not_after = passage.order.not_after.filter(|_| passage.phase == Phase::Pending);
        if passage.end.is_some() {
            if passage.deadline <= now {
                self.unready();
                self.finish(now);
            }
        } else if passage.deadline <= now || not_after.is_some_and(|limit| limit <= now) {
            self.unready();
            self.timed_out(now);
        } else if retry && self.ready && passage.phase == Phase::RollingBack {
            self.back_begin();
        } else if self.ready {
            self.watch_on(now);
        }
    }

    /// An inspection that does not answer is not waited for beyond the deadline.
    fn unready(&mut self) {
        if !self.ready {
            self.abort();
            self.ready = true;
        }
    }

    fn timed_out(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let (phase, held) = (passage.phase, passage.held);
        let limit = format!("{} ms", passage.deadline.since(passage.since).as_millis());
        let reason = Reason::new(ReasonCode::PhaseTimedOut).with("phase", phase).with("limit", limit);
        match (phase, held) {
            (Phase::Pending, _) => self.expire(now),
            (Phase::RollingBack, _) => self.end(Outcome::RollbackFailed, reason, now),
            // The controller's silence is never a reason to roll back: what is switched goes on without it.
            (Phase::Activating | Phase::Probing | Phase::Committing, Some(next)) => {
                if let Some(passage) = &mut self.record.passage {
                    passage.order.hold_before = None;
                }
                self.enter(next, now);
            }
            (Phase::Probing, None) => self.roll_back(reason, true, now),
            (Phase::Activating | Phase::Committing, None) => self.roll_back(reason, false, now),
            _ => self.end(Outcome::FailedUnchanged, reason, now),
        }
    }
}
