//! The way forward: from the checks to the commit, one step after the other.

use super::{Machine, activate::gone};
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    release::Kind,
    state::{Base, stack_digest},
    time::Time,
    upgrade::{
        Outcome, Phase,
        policy::Policy,
        preflight::{self, Asked, Verdict as Check},
        record::{Goal, Part},
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
        let live = passage.order.live;
        self.mark(phase, reason_of(phase, &goal, live, &self.policy), now);
        self.first_step(phase, &goal, now);
    }

    /// The step a phase begins with; also where it begins again after a crash.
    pub(super) fn first_step(&mut self, phase: Phase, goal: &Goal, now: Time) {
        match phase {
            Phase::Pending => self.pending(now),
            Phase::Preflight => self.check(goal),
            Phase::Fetching | Phase::Verifying => self.next_part(phase, None, now),
            Phase::Staged => self.enter(Phase::Activating, now),
            Phase::Activating => self.activate(now),
            Phase::Probing => self.watch_new(now),
            Phase::Committing => self.perform(StepKind::Inspect { probe: false }),
            Phase::RollingBack => self.back_begin(),
        }
    }

    fn check(&mut self, goal: &Goal) {
        let live = self.record.passage.as_ref().is_some_and(|passage| passage.order.live);
        let (state, gone) = (goal.state(), gone(&self.record.current, goal.state()));
        let (digest, layers) = (state.artifact(), state.layers.clone());
        let manifest = match &state.base {
            Base::Release(release) => Some(release.manifest),
            Base::Absent | Base::Unmanaged { .. } => None,
        };
        self.perform(StepKind::CheckPreflight { digest, manifest, layers, gone, live });
    }

    /// Fetches or verifies what comes after `done`, or enters the next phase. Each part is looked at again after a
    /// crash; what lies there already is neither fetched nor written again.
    fn next_part(&mut self, phase: Phase, done: Option<Digest>, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        let goal = &passage.order.goal;
        let fetches = goal.fetches();
        let parts = goal.parts(&passage.from);
        let next = match done {
            None => parts.first(),
            Some(done) => parts.iter().skip_while(|part| part.digest != done).nth(1),
        };
        let Some(Part { manifest, digest }) = next.copied() else {
            let base = passage.order.goal.state().artifact() != passage.from.artifact();
            if phase == Phase::Verifying && base && goal.state().stack().is_some() {
                // Only now does the base lie here, so that it can be asked whether the stack fits it.
                let goal = passage.order.goal.clone();
                return self.check(&goal);
            }
            let phase = if phase == Phase::Fetching { Phase::Verifying } else { Phase::Staged };
            return self.enter(phase, now);
        };
        self.perform(match (phase, manifest) {
            (Phase::Fetching, Some(manifest)) if fetches => StepKind::Fetch { manifest, digest },
            (_, Some(manifest)) if fetches => StepKind::Verify { manifest, digest },
            // What nobody can fetch has to lie here.
            _ => StepKind::VerifyKept { digest },
        });
    }

    pub(super) fn forward_answer(&mut self, kind: StepKind, answer: Result<Answer, Failure>, now: Time) {
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => return self.forward_failed(&kind, failure, now),
        };
        match (kind, answer) {
            (StepKind::CheckPreflight { .. }, Answer::Preflight(facts))
                if self.in_phase(Phase::Verifying) =>
            {
                match facts.stack {
                    Ok(_) => self.enter(Phase::Staged, now),
                    Err(reason) => self.fail(reason, now),
                }
            }
            (StepKind::CheckPreflight { .. }, Answer::Preflight(facts)) => self.checked(&facts, now),
            (StepKind::Fetch { digest, .. }, _) => self.next_part(Phase::Fetching, Some(digest), now),
            (StepKind::Verify { manifest, digest }, Answer::Verified(elf)) => {
                match elf.map_or(Ok(()), |elf| elf.check(&self.policy.platform)) {
                    Ok(()) => self.perform(StepKind::Stage { manifest, digest }),
                    Err(reason) => self.fail(reason, now),
                }
            }
            (StepKind::Stage { digest, .. } | StepKind::VerifyKept { digest }, _) => {
                let phase = self.record.passage.as_ref().map_or(Phase::Verifying, |passage| passage.phase);
                self.next_part(phase, Some(digest), now);
            }
            (
                kind @ (StepKind::Backup { .. }
                | StepKind::Trial { .. }
                | StepKind::Arm { .. }
                | StepKind::Swap { .. }
                | StepKind::Remove { .. }
                | StepKind::SwitchStack { .. }),
                _,
            ) => self.switched(&kind, now),
            (StepKind::Stop, _) => self.start_new(now),
            (StepKind::Start { .. } | StepKind::StartBeside { .. }, _) => self.started_new(now),
            (StepKind::Drain, _) => self.taken_over(now),
            (StepKind::PatchLive { .. }, Answer::Proved(proof)) => self.patched_live(proof, now),
            (StepKind::Prove { .. }, Answer::Proved(proof)) => self.proved(proof, now),
            (StepKind::Reload, Answer::Reloaded(answer)) => {
                self.keep_reload(answer);
                self.started_new(now);
            }
            (StepKind::Probe { index, beside }, Answer::Probed(probed)) => {
                let stands = |watch: &Watch| (watch.soaking(), watch.draining());
                let before = self.watch.as_ref().map(stands);
                self.probed(index, beside, &probed, now);
                // What begins beside the old process is a drain, which says so itself.
                if before != self.watch.as_ref().map(stands) && !beside {
                    self.say_watched(now);
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

    fn forward_failed(&mut self, kind: &StepKind, failure: Failure, now: Time) {
        if failure.reason.code == ReasonCode::HandoverUnavailable {
            return self.not_beside(&failure, now);
        }
        self.keep_evidence(failure.evidence.map(|evidence| *evidence));
        let starts = matches!(kind, StepKind::Start { .. } | StepKind::StartBeside { .. });
        // One that ends before the old one was asked to has not stayed either.
        let ended = failure.reason.code == ReasonCode::ProcessExited;
        let blame = ended || (starts && failure.reason.code == ReasonCode::StartFailed);
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
        self.seen.installed = facts.installed;
        self.seen.damaged = facts.damage.is_some();
        let goal = self.record.passage.as_ref().map(|passage| &passage.order.goal);
        if let Some(reason) = goal.and_then(|goal| preflight::refused(goal, facts)) {
            // What somebody changed stays shown as drift of what is recorded.
            return self.fail(reason, now);
        }
        let current = &self.record.current;
        let layers = if facts.damage.is_none() { &facts.layers } else { &current.layers };
        if facts.installed != current.artifact() || stack_digest(layers) != current.stack() {
            // An order on a drifted component: what is there is adopted, so that it can be put back.
            let found = self.state_of(facts.installed, layers);
            self.become_current(found, now);
        }
        if let Ok(alarms) = &facts.stack {
            self.seen.alarms.clone_from(alarms);
        }
        let old_classes = self.old_classes();
        let broken = self.record.last.as_ref().is_some_and(|last| last.outcome == Outcome::RollbackFailed);
        let Some(passage) = &mut self.record.passage else { return };
        passage.from = self.record.current.clone();
        if self.policy.systemd {
            // A unit may have been started and stopped without the agent: it is put back as it was just now.
            passage.ran = facts.process.digest().is_some();
        }
        let goal = passage.order.goal.clone();
        let asked = Asked { goal: &goal, live: passage.order.live, old_classes, broken };
        match preflight::judge(&self.policy, asked, &self.record.current, facts) {
            Check::Fetch if goal.parts(&self.record.current).is_empty() => self.enter(Phase::Staged, now),
            Check::Fetch if goal.fetches() => self.enter(Phase::Fetching, now),
            Check::Fetch => self.enter(Phase::Verifying, now),
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

    pub(super) fn watch_new(&mut self, now: Time) {
        let Some(passage) = &self.record.passage else { return };
        if !self.policy.watched() || passage.order.goal.state().artifact().is_none() {
            self.enter(Phase::Committing, now);
            return;
        }
        let soak = self.policy.soak_for(passage.order.soak);
        self.watch = Some(Watch::new(&self.policy, soak, true, self.judged().pid(), now));
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
        let passage = self.record.passage.as_ref();
        let rolling_back = passage.is_some_and(|passage| passage.phase == Phase::RollingBack);
        let beside = passage.is_some_and(|passage| passage.beside);
        match watch.verdict(now) {
            Verdict::Watching | Verdict::Healthy if beside && watch.soaking() => {
                if self.outstanding.is_none() {
                    self.drain(now);
                }
            }
            Verdict::Watching => {
                if let Some(index) = watch.due(now).filter(|_| self.outstanding.is_none()) {
                    self.perform(StepKind::Probe { index, beside });
                }
            }
            Verdict::Healthy if rolling_back => self.back_healthy(now),
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
}

/// What a phase says of itself when it begins.
fn reason_of(phase: Phase, goal: &Goal, live: bool, policy: &Policy) -> Reason {
    let size = goal.size();
    match phase {
        Phase::Pending => Reason::new(ReasonCode::WaitingForAgent),
        Phase::Preflight => Reason::new(ReasonCode::Checking),
        Phase::Fetching => Reason::new(ReasonCode::Fetching).with("size", size),
        Phase::Verifying => {
            // Nothing is fetched for a state that the node has kept.
            let what = if size == 0 { "the kept files".to_owned() } else { format!("{size} bytes") };
            Reason::new(ReasonCode::Verifying).with("what", what)
        }
        Phase::Staged => Reason::new(ReasonCode::Staged),
        Phase::Activating => {
            let step = match (live, policy.reloads(), policy.supervised) {
                (false, false, _) if policy.handover => {
                    "backs up, switches and starts the new process beside the old one"
                }
                _ if policy.kind == Kind::Agent => "tries the new agent out and hands over to it",
                (true, ..) => "switches the stack and patches the running JVM",
                (_, true, _) => "backs up, switches and has it reloaded",
                (_, _, true) => "backs up, switches and restarts",
                _ => "backs up and switches",
            };
            Reason::new(ReasonCode::Activating).with("step", step)
        }
        Phase::Probing => Watch::passed(0, policy),
        Phase::Committing => Reason::new(ReasonCode::Committing),
        Phase::RollingBack => Reason::new(ReasonCode::PuttingBack),
    }
}
