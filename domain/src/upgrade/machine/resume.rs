//! After a start: what the journal says meets what lies on the disk.

use super::{Machine, RETRY_AFTER};
use crate::{
    reason::{Reason, ReasonCode},
    time::Time,
    upgrade::{
        Outcome, Phase,
        event::Effect,
        record::Passage,
        recover::{self, Found, Recovery},
        step::{Answer, Failure},
    },
};

/// Whether it stood where the new process is watched.
fn phase_watches(passage: &Passage) -> bool {
    passage.phase == Phase::Probing && passage.end.is_none()
}

impl Machine {
    /// The agent has started: look before anything is touched.
    pub(super) fn started(&mut self, now: Time) {
        let policy = &self.policy;
        if let Some(passage) = &mut self.record.passage {
            // The time in which no agent ran is nobody's fault; waiting for an order goes on as it was.
            let soak = policy.soak_for(passage.order.soak);
            let limit = match (passage.phase, passage.held) {
                (Phase::Activating | Phase::Probing | Phase::Committing, Some(_)) => policy.deadlines.staged,
                (phase, _) => policy.limit(phase, soak),
            };
            if passage.phase != Phase::Pending && (passage.held.is_none() || passage.touched) {
                passage.deadline = now.after(limit);
            }
        }
        self.inspect(false);
    }

    /// The first inspection's answer. Where it failed it is made again; deadlines still run.
    pub(super) fn resume(&mut self, answer: Result<Answer, Failure>, now: Time) {
        let Ok(Answer::Inspected(found)) = answer else {
            self.retry_at = Some(now.after(RETRY_AFTER));
            return;
        };
        self.ready = true;
        if !self.record.adopted {
            self.record.adopted = true;
            self.record.current = recover::adopt(&found);
            // After a journal was lost: the ways back are still ways back, and are not to be pruned.
            self.record.kept = recover::adopt_kept(&found);
            // After a journal was lost: a process of just that file is one the agent had started.
            self.record.started = found.installed.is_some() && found.process.digest() == found.installed;
        }
        self.effects.push(Effect::Inventory);
        let Some(passage) = &self.record.passage else {
            self.notice(&found, now);
            self.start_recorded(&found);
            // Whether it is healthy is said at once, not only when it is looked at next.
            self.look();
            return;
        };
        if !self.policy.exclusive_with.is_empty() && passage.phase != Phase::Pending {
            self.effects.push(Effect::Claim { take: true });
        }
        let recovery = recover::decide(passage, &found, &self.policy);
        self.recover(recovery, &found, now);
    }

    fn recover(&mut self, recovery: Recovery, found: &Found, now: Time) {
        let Some(passage) = &mut self.record.passage else { return };
        passage.beside = found.beside.is_some();
        // It took over while nobody could write that down: a stop would have been written before it was made.
        let new_runs = passage.ran && self.policy.runs(&found.process, passage.order.goal.state());
        if self.policy.handover
            && phase_watches(passage)
            && new_runs
            && passage.reached
            && passage.down_ms.is_none()
        {
            passage.handed_over = true;
        }
        let phase = passage.phase;
        let goal = passage.order.goal.clone();
        let waits = matches!(
            recovery,
            Recovery::Restart | Recovery::Verify | Recovery::Staged | Recovery::Probe | Recovery::Commit
        );
        if passage.held.is_some() && waits {
            return;
        }
        passage.held = None;
        if recovery == Recovery::RollBack {
            passage.end = None;
        }
        match recovery {
            Recovery::End => {
                if let Some(end) = passage.end.clone() {
                    self.end(end.outcome, end.reason, now);
                }
            }
            Recovery::Leave => {
                let reason = recover::drift(&self.record, &self.policy, found)
                    .unwrap_or_else(|| Reason::new(ReasonCode::Drifted));
                self.record.drift = Some(reason.clone());
                self.end(Outcome::FailedUnchanged, reason, now);
            }
            Recovery::Restart => self.first_step(phase, &goal, now),
            Recovery::Fetch if phase == Phase::Fetching => self.first_step(phase, &goal, now),
            Recovery::Fetch => self.enter(Phase::Fetching, now),
            Recovery::Verify | Recovery::Staged | Recovery::Activate => self.first_step(phase, &goal, now),
            Recovery::Restarting => {
                if phase == Phase::Committing {
                    self.mark(Phase::Probing, Reason::new(ReasonCode::Probing), now);
                }
                self.put_into_force(now);
            }
            Recovery::Restack => self.restack(now),
            Recovery::Probe if phase == Phase::Probing => self.first_step(phase, &goal, now),
            Recovery::Probe => self.enter(Phase::Probing, now),
            Recovery::Commit => self.first_step(phase, &goal, now),
            Recovery::RollBack if phase == Phase::RollingBack => self.back_begin(),
            Recovery::RollBack => match found.reverted_from(goal.state()) {
                // Whoever watched the new agent knows better than what is found afterwards.
                Some(reason) => self.roll_back(reason.clone(), true, now),
                None => {
                    let reason = recover::drift(&self.record, &self.policy, found)
                        .unwrap_or_else(|| Reason::new(ReasonCode::Drifted));
                    self.roll_back(reason, false, now);
                }
            },
        }
    }
}
