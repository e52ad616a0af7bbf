//! The handover: a new process beside the old one, the drain once it is healthy, the dismissal where it is not, and the
//! measured time in which nothing answered where a process is stopped and started instead.
//!
//! Until the drain the old process is never asked to end. What the drain has begun only another handover, or a stop
//! and a start, takes back.

use super::Machine;
use crate::{
    digest::Digest,
    state::Layer,
    time::Time,
    upgrade::{
        Phase,
        interruption::Interruption,
        record::Passage,
        step::{Failure, Probed, Process, StepKind},
    },
};

impl Passage {
    /// What the upgrade cost, where it concerned a process.
    #[must_use]
    pub fn interruption(&self) -> Option<Interruption> {
        let touched = self.handed_over || self.down_ms.is_some();
        touched.then(|| Interruption {
            handed_over: self.handed_over,
            down_ms: self.down_ms.unwrap_or(0),
            why: self.no_handover.clone(),
        })
    }

    /// A process was asked to end, and from now on nothing is known to answer.
    fn goes_down(&mut self, now: Time) {
        self.stopped.get_or_insert(now);
        self.down_ms.get_or_insert(0);
    }

    /// Something answers again.
    pub(super) fn is_up(&mut self, now: Time) {
        if let Some(since) = self.stopped.take() {
            let down = u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
            self.down_ms = Some(self.down_ms.unwrap_or(0).saturating_add(down));
        }
    }
}

impl Machine {
    /// Whether a process can be started beside the one that runs, as far as is known before it is tried.
    pub(super) fn can_stand_beside(&self) -> bool {
        self.policy.handover && self.seen.process.digest().is_some()
    }

    /// Starts a process beside the one that runs.
    pub(super) fn start_beside(&mut self, digest: Digest, layers: Vec<Layer>) {
        if let Some(passage) = &mut self.record.passage {
            // From here on something may stand beside, and is dismissed on any way back.
            passage.beside = true;
        }
        self.perform(StepKind::StartBeside { digest, layers });
    }

    /// Ends what runs.
    pub(super) fn stop_running(&mut self, now: Time) {
        let runs = self.seen.process.digest().is_some();
        if let Some(passage) = &mut self.record.passage {
            passage.beside = false;
            passage.reached = true;
            // What has taken over and is gone was nowhere measured yet.
            if runs || passage.handed_over {
                passage.goes_down(now);
            }
        }
        self.perform(StepKind::Stop);
    }

    /// What runs can't have another process beside it: it is stopped and started, and the result says why.
    pub(super) fn not_beside(&mut self, failure: &Failure, now: Time) {
        if let Some(passage) = &mut self.record.passage {
            passage.no_handover = Some(failure.reason.clone());
        }
        self.stop_running(now);
    }

    /// The new process has passed its probes: it takes the old one's place, which is asked to finish.
    pub(super) fn drain(&mut self, now: Time) {
        if let Some(passage) = &mut self.record.passage {
            // From here on the old process is asked to end.
            passage.reached = true;
        }
        if let Some(watch) = &mut self.watch {
            watch.takes_over(now);
        }
        self.say_watched(now);
        self.perform(StepKind::Drain);
    }

    /// Reports what the watch on a new process waits for.
    pub(super) fn say_watched(&mut self, now: Time) {
        let probing = self.record.passage.as_ref().is_some_and(|passage| passage.phase == Phase::Probing);
        if let Some(watch) = self.watch.as_ref().filter(|_| probing) {
            self.say(watch.reason(&self.policy), now);
        }
    }

    /// The old process was asked to finish; the new one is the component's, and is watched meanwhile.
    pub(super) fn taken_over(&mut self, now: Time) {
        if let Some(process) = self.seen.beside.take() {
            self.seen.process = process;
        }
        if let Some(passage) = &mut self.record.passage {
            passage.beside = false;
            passage.handed_over = true;
        }
        self.record.started = true;
        self.watch_on(now);
    }

    /// Takes in the answer of a probe, and what it says of the time in which nobody answers: that ends with the first
    /// pass of a healthy process's slowest probe, and begins anew where what has taken over is gone.
    pub(super) fn probed(&mut self, index: usize, beside: bool, probed: &Probed, now: Time) {
        let Some(watch) = &mut self.watch else { return };
        watch.note(&self.policy, index, probed, now);
        let since = watch.answers_since();
        let gone = !beside && self.policy.supervised && probed.process.digest().is_none();
        if let Some(passage) = &mut self.record.passage {
            if gone && passage.reached && passage.ran {
                passage.goes_down(now);
            } else if let Some(since) = since {
                passage.is_up(since);
            }
        }
    }

    /// Nothing stands beside any more.
    pub(super) fn dismissed(&mut self) {
        self.seen.beside = None;
        if let Some(passage) = &mut self.record.passage {
            passage.beside = false;
        }
    }

    /// The process that is judged: the one beside, or the one that runs.
    pub(super) fn judged(&self) -> &Process {
        let beside = self.record.passage.as_ref().is_some_and(|passage| passage.beside);
        self.seen.beside.as_ref().filter(|_| beside).unwrap_or(&self.seen.process)
    }

    /// While no upgrade is under way nothing stands beside: what a lost journal has left there is ended.
    pub(super) fn dismiss_stray(&mut self) {
        let stray = self.record.passage.is_none() && self.seen.beside.is_some();
        if stray && self.outstanding.is_none() {
            self.seen.beside = None;
            self.perform(StepKind::Dismiss);
        }
    }
}
