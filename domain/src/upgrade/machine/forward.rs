//! The way forward: from the checks to the commit, one step after the other.

use super::{MAX_FAILED, Machine};
use crate::{
    reason::{Reason, ReasonCode},
    state::ComponentState,
    time::Time,
    upgrade::{
        Outcome, Phase,
        policy::Policy,
        preflight,
        preflight::Verdict as Check,
        record::Goal,
        recover::Found,
        soak::{Verdict, Watch},
        step::{Answer, Failure, StepKind},
    },
};

impl Machine {
    /// Enters a phase of the way forward, or waits before it where the order says so.
    pub(super) fn enter(&mut self, phase: Phase, now: Time) {
        let staged = self.policy.deadlines.staged;
        let Some(passage) = &mut self.record.passage else { return };
        let begins = phase == Phase::Preflight && passage.order.hold_before == Some(Phase::Pending);
        if passage.order.hold_before == Some(phase) || begins {
            passage.held = Some(phase);
            passage.doing = None;
            if passage.phase != Phase::Pending {
                passage.deadline = now.after(staged);
            }
            self.watch = None;
            self.say(Reason::new(ReasonCode::HeldBefore).with("phase", phase), now);
            return;
        }
        let goal = passage.order.goal.clone();
        self.mark(phase, reason_of(phase, &goal, &self.policy), now);
        self.first_step(phase, &goal, now);
    }

    /// The step a phase begins with; also where it begins again after a crash.
    pub(super) fn first_step(&mut self, phase: Phase, goal: &Goal, now: Time) {
        let to = goal.state().artifact();
        match (phase, goal, to) {
            (Phase::Pending, ..) => self.pending(now),
            (Phase::Preflight, ..) => self.perform(StepKind::CheckPreflight {
                digest: to,
                layers: goal.state().layers.clone(),
                live: false,
            }),
            (Phase::Fetching, Goal::Install { state, .. }, Some(digest)) => match manifest(state) {
                Some(manifest) => self.perform(StepKind::Fetch { manifest, digest }),
                None => self.fail(Reason::new(ReasonCode::UntrustedManifest).with("problem", "none"), now),
            },
            (Phase::Verifying, Goal::Install { state, .. }, Some(digest)) => match manifest(state) {
                Some(manifest) => self.perform(StepKind::Verify { manifest, digest }),
                None => self.fail(Reason::new(ReasonCode::UntrustedManifest).with("problem", "none"), now),
            },
            (Phase::Verifying, Goal::Restore { .. }, Some(digest)) => {
                self.perform(StepKind::VerifyKept { digest });
            }
            (Phase::Fetching | Phase::Verifying, ..) => self.enter(Phase::Staged, now),
            (Phase::Staged, ..) => self.enter(Phase::Activating, now),
            (Phase::Activating, ..) => self.activate(),
            (Phase::Probing, ..) => self.watch_new(now),
            (Phase::Committing, ..) => self.perform(StepKind::Inspect { probe: false }),
            (Phase::RollingBack, ..) => self.back_begin(),
        }
    }

    fn activate(&mut self) {
        let Some(passage) = &self.record.passage else { return };
        match passage.from.artifact() {
            Some(digest) => self.perform(StepKind::Backup { digest }),
            // What somebody put there since the checks has no backup, and must not be written over.
            None => self.perform(StepKind::Inspect { probe: false }),
        }
    }

    /// A first install: the place must be as empty as it was when it was checked.
    fn empty_still(&mut self, found: &Found, now: Time) {
        match found.installed {
            None => self.switch(),
            Some(actual) => {
                let reason = Reason::new(ReasonCode::Drifted).with("actual", actual);
                self.give_up(reason.with("recorded", "nothing"), false, now);
            }
        }
    }

    /// The point of no unnoticed return.
    fn switch(&mut self) {
        let Some(passage) = &mut self.record.passage else { return };
        passage.touched = true;
        match passage.order.goal.state().artifact() {
            Some(digest) => self.perform(StepKind::Swap { digest }),
            None => {
                let digest = passage.from.artifact();
                self.perform(StepKind::Remove { digest });
            }
        }
    }

    pub(super) fn forward_answer(&mut self, kind: StepKind, answer: Result<Answer, Failure>, now: Time) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.forward_failed(&kind, failure, now),
        };
        match (kind, answer) {
            (StepKind::CheckPreflight { .. }, Answer::Preflight(facts)) => self.checked(&facts, now),
            (StepKind::Fetch { .. }, _) => self.enter(Phase::Verifying, now),
            (StepKind::Verify { manifest, digest }, Answer::Verified(elf)) => {
                match elf.map_or(Ok(()), |elf| elf.check(&self.policy.platform)) {
                    Ok(()) => self.perform(StepKind::Stage { manifest, digest }),
                    Err(reason) => self.fail(reason, now),
                }
            }
            (StepKind::Stage { .. } | StepKind::VerifyKept { .. }, _) => self.enter(Phase::Staged, now),
            (StepKind::Backup { .. }, _) => self.switch(),
            (StepKind::Swap { .. } | StepKind::Remove { .. }, _) if self.policy.supervised => {
                self.perform(StepKind::Stop);
            }
            (StepKind::Swap { .. } | StepKind::Remove { .. }, _) => self.enter(Phase::Probing, now),
            (StepKind::Stop, _) => self.start_new(now),
            (StepKind::Start { .. }, _) => self.started_new(now),
            (StepKind::Probe { index }, Answer::Probed(probed)) => {
                if let Some(watch) = &mut self.watch {
                    let soaking = watch.soaking();
                    watch.note(&self.policy, index, &probed, now);
                    let begins = !soaking && watch.soaking();
                    let reason = watch.reason(&self.policy);
                    if begins {
                        self.say(reason, now);
                    }
                }
                self.watch_on(now);
            }
            (StepKind::Inspect { .. }, Answer::Inspected(found)) if self.in_phase(Phase::Activating) => {
                self.empty_still(&found, now);
            }
            (StepKind::Inspect { .. }, Answer::Inspected(found)) if self.in_phase(Phase::Committing) => {
                self.prove(&found, now);
            }
            (kind, _) => {
                let reason = Reason::new(ReasonCode::StageFailed).with("operation", kind.as_str());
                self.give_up(reason.with("problem", "the executor gave another step's answer"), false, now);
            }
        }
    }

    fn in_phase(&self, phase: Phase) -> bool {
        self.record.passage.as_ref().is_some_and(|passage| passage.phase == phase)
    }

    fn start_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        match passage.order.goal.state().artifact() {
            Some(digest) => self.perform(StepKind::Start { digest, layers: Vec::new() }),
            None => self.started_new(now),
        }
    }

    fn started_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let removal = passage.order.goal.state().artifact().is_none();
        self.record.started = self.policy.supervised && !removal;
        match passage.phase {
            // Restarted in the middle of watching: the watch begins again.
            Phase::Probing => self.watch_new(now),
            _ => self.enter(Phase::Probing, now),
        }
    }

    fn forward_failed(&mut self, kind: &StepKind, failure: Failure, now: Time) {
        self.keep_evidence(failure.evidence.map(|evidence| *evidence));
        let blame = matches!(kind, StepKind::Start { .. }) && failure.reason.code == ReasonCode::StartFailed;
        self.give_up(failure.reason, blame, now);
    }

    /// Ends or rolls back, by whether anything was touched.
    pub(super) fn give_up(&mut self, reason: Reason, blame: bool, now: Time) {
        match &self.record.passage {
            Some(passage) if passage.touched => self.roll_back(reason, blame, now),
            _ => self.fail(reason, now),
        }
    }

    /// Ends with nothing touched.
    pub(super) fn fail(&mut self, reason: Reason, now: Time) {
        let refused = reason.code == ReasonCode::SourceNotAllowed;
        let outcome = if refused { Outcome::Refused } else { Outcome::FailedUnchanged };
        self.end(outcome, reason, now);
    }

    fn checked(&mut self, facts: &preflight::Facts, now: Time) {
        self.seen.process = facts.process.clone();
        if facts.installed != self.record.current.artifact() {
            // An order on a drifted component: what is there is adopted, so that it can be put back.
            let found = self.state_of(facts.installed);
            self.become_current(found, now);
        }
        let Some(passage) = &mut self.record.passage else { return };
        passage.from = self.record.current.clone();
        let goal = passage.order.goal.clone();
        match preflight::judge(&self.policy, &goal, &self.record.current, facts) {
            Check::Fetch => match goal {
                Goal::Install { .. } => self.enter(Phase::Fetching, now),
                Goal::Restore { .. } => self.enter(Phase::Verifying, now),
            },
            Check::Restart => self.enter(Phase::Staged, now),
            Check::AlreadyCurrent => {
                let state = goal.state().clone();
                let digest = state.artifact().map_or_else(|| "nothing".to_owned(), |d| d.to_string());
                if self.record.current != state {
                    self.become_current(state, now);
                }
                let reason = Reason::new(ReasonCode::AlreadyCurrent).with("digest", digest);
                self.end(Outcome::AlreadyCurrent, reason, now);
            }
            Check::Stop(reason) => self.fail(reason, now),
        }
    }

    // ---- watching ----------------------------------------------------------------------------------------

    fn watch_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        if !self.policy.watched() || passage.order.goal.state().artifact().is_none() {
            self.enter(Phase::Committing, now);
            return;
        }
        let soak = self.policy.soak_for(passage.order.soak);
        self.watch = Some(Watch::new(&self.policy, soak, true, self.seen.process.pid(), now));
        self.watch_on(now);
    }

    /// Whether the present phase is one that watches.
    pub(super) fn watching(&self) -> bool {
        self.record.passage.as_ref().is_some_and(|passage| {
            let phase = matches!(passage.phase, Phase::Probing | Phase::RollingBack);
            phase && passage.end.is_none() && passage.held.is_none()
        })
    }

    pub(super) fn watch_on(&mut self, now: Time) {
        let Some(watch) = self.watch.as_ref().filter(|_| self.watching()) else { return };
        let rolling_back =
            self.record.passage.as_ref().is_some_and(|passage| passage.phase == Phase::RollingBack);
        match watch.verdict(now) {
            Verdict::Watching => {
                if let Some(index) = watch.due(now).filter(|_| self.outstanding.is_none()) {
                    self.perform(StepKind::Probe { index });
                }
            }
            Verdict::Healthy if rolling_back => self.rolled_back(now),
            Verdict::Failed(_) if rolling_back => self.back_unhealthy(now),
            Verdict::Healthy => self.enter(Phase::Committing, now),
            Verdict::Failed(reason) => {
                let evidence = watch.evidence();
                self.keep_evidence(Some(evidence));
                self.roll_back(reason, true, now);
            }
        }
    }

    pub(super) fn keep_evidence(&mut self, evidence: Option<crate::upgrade::Evidence>) {
        if let (Some(passage), Some(evidence)) = (&mut self.record.passage, evidence) {
            passage.evidence = Some(evidence);
        }
    }

    // ---- the commit --------------------------------------------------------------------------------------

    /// The last word has what really lies there and really runs.
    fn prove(&mut self, found: &Found, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let goal = passage.order.goal.state().clone();
        let to = goal.artifact();
        let running = found.process.digest();
        let actual = if found.installed == to { running } else { found.installed };
        let proved = found.installed == to && (!self.policy.supervised || running == to);
        let name = |digest: Option<crate::digest::Digest>| {
            digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string())
        };
        if !proved {
            let reason = Reason::new(ReasonCode::ProofMismatch).with("actual", name(actual));
            self.roll_back(reason.with("expected", name(to)), false, now);
            return;
        }
        self.become_current(goal, now);
        self.record.failed.retain(|failed| Some(*failed) != to);
        self.end(Outcome::Succeeded, Reason::new(ReasonCode::Healthy).with("digest", name(to)), now);
    }

    /// Remembers a digest as one that rolled back here.
    pub(super) fn blame(&mut self, state: &ComponentState) {
        let Some(digest) = state.artifact() else { return };
        self.record.failed.retain(|failed| *failed != digest);
        self.record.failed.push(digest);
        let surplus = self.record.failed.len().saturating_sub(MAX_FAILED);
        self.record.failed.drain(..surplus);
    }
}

fn manifest(state: &ComponentState) -> Option<crate::digest::Digest> {
    match &state.base {
        crate::state::Base::Release(release) => Some(release.manifest),
        _ => None,
    }
}

/// What a phase says of itself when it begins.
fn reason_of(phase: Phase, goal: &Goal, policy: &Policy) -> Reason {
    let size = goal.size();
    match phase {
        Phase::Pending => Reason::new(ReasonCode::WaitingForAgent),
        Phase::Preflight => Reason::new(ReasonCode::Checking),
        Phase::Fetching => Reason::new(ReasonCode::Fetching).with("size", size),
        Phase::Verifying => Reason::new(ReasonCode::Verifying).with("size", size),
        Phase::Staged => Reason::new(ReasonCode::Staged),
        Phase::Activating => {
            Reason::new(ReasonCode::Activating).with("step", "backs up, switches and restarts")
        }
        Phase::Probing => Watch::passed(0, policy),
        Phase::Committing => Reason::new(ReasonCode::Committing),
        Phase::RollingBack => Reason::new(ReasonCode::PuttingBack),
    }
}
