//! Time: retries, deadlines, and what follows where they pass.

use super::Machine;
use crate::{
    reason::{Reason, ReasonCode},
    time::Time,
    upgrade::{Outcome, Phase},
};

impl Machine {
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
            (Phase::Activating | Phase::Committing, None) => self.give_up(reason, false, now),
            _ => self.end(Outcome::FailedUnchanged, reason, now),
        }
    }
}
