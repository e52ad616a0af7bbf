//! The upgrade machine of one component: what happens in, what is to be done out.
//!
//! [`Machine::step`] is pure. The caller makes the record durable before it carries out the effects, so that
//! whatever a step does was announced in the journal first. This file holds the machine's parts and deals
//! events out; `orders`, `forward`, `back` and `resume` hold what follows from them.

mod back;
mod forward;
mod orders;
mod resume;
#[cfg(test)]
mod tests;

use super::{
    Evidence, Outcome, Phase, UpgradeState,
    event::{Effect, Event},
    keep,
    policy::Policy,
    record::{Accepted, End, Finished, Passage, Record},
    soak::Watch,
    step::{Answer, Failure, Process, Step, StepKind},
};
use crate::{
    digest::Digest,
    id::UpgradeId,
    order::Generation,
    reason::Reason,
    report::{ComponentInventory, UpgradeReport},
    state::ComponentState,
    time::Time,
};
use std::time::Duration;

/// How often a step of a rollback or an inspection is tried before it is given up.
const MAX_TRIES: u32 = 3;
/// How long to wait before such a step is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many failed digests are remembered; the oldest is forgotten first.
const MAX_FAILED: usize = 64;
/// How many ended upgrades are remembered.
const MAX_ENDED: usize = 32;

/// One component: its record, and what is known of it only while the agent runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    policy: Policy,
    record: Record,
    seen: Seen,
    watch: Option<Watch>,
    outstanding: Option<(u64, Step)>,
    tickets: u64,
    /// The first inspection since the start is done.
    ready: bool,
    claimed: bool,
    retry_at: Option<Time>,
    effects: Vec<Effect>,
}

/// What was seen last on the node. Not recorded: it can be seen again.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    process: Process,
    healthy: bool,
}

impl Machine {
    /// A machine for what a journal holds. It does nothing before [`Event::Started`].
    #[must_use]
    pub fn new(policy: Policy, record: Record) -> Self {
        Self {
            policy,
            record,
            seen: Seen { process: Process::NotRun, healthy: false },
            watch: None,
            outstanding: None,
            tickets: 0,
            ready: false,
            claimed: false,
            retry_at: None,
            effects: Vec::new(),
        }
    }

    /// Takes in what happened and says what is to be done, in order, once [`Machine::record`] is durable.
    #[must_use]
    pub fn step(mut self, event: Event, now: Time) -> (Self, Vec<Effect>) {
        match event {
            Event::Started => self.started(now),
            Event::Order(offer) => self.order(&offer, now),
            Event::Hold(order) => self.hold(&order, now),
            Event::LocalRollback { to, message } => self.local_rollback(to, &message, now),
            Event::LocalApply { .. } => {
                let reason = Reason::new(crate::reason::ReasonCode::KindUnsupported).with("kind", "patch");
                self.effects.push(Effect::Answer(Err(reason)));
            }
            Event::Done { ticket, answer } => self.done(ticket, answer, now),
            Event::Note { ticket, reason } => self.note(ticket, reason, now),
            Event::Claim(answer) => self.claim_answered(answer, now),
            Event::Tick => self.tick(now),
            Event::Look => self.look(),
            Event::ReportAcked { upgrade, sequence } => self.record.outbox.acked(&upgrade, sequence),
            Event::Configured(policy) => {
                self.policy = *policy;
                self.effects.push(Effect::Inventory);
            }
        }
        self.begin_next(now);
        let effects = std::mem::take(&mut self.effects);
        (self, effects)
    }

    /// What is to be durable before the effects are carried out.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The policy it follows.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// When [`Event::Tick`] is due.
    #[must_use]
    pub fn wake_at(&self) -> Option<Time> {
        let idle = self.outstanding.is_none();
        let watch = self.watch.as_ref().filter(|_| idle && self.watching()).map(Watch::wake_at);
        let retry = self.retry_at.filter(|_| idle);
        let passage = self.record.passage.as_ref();
        let deadline = passage.map(|passage| passage.deadline);
        let pending = passage.filter(|passage| passage.phase == Phase::Pending && passage.end.is_none());
        let not_after = pending.and_then(|passage| passage.order.not_after);
        [watch, retry, deadline, not_after].into_iter().flatten().min()
    }

    /// What an upgrade under way waits for or does, else how the last one ended.
    #[must_use]
    pub fn reason(&self) -> Option<Reason> {
        let Some(passage) = &self.record.passage else {
            return self.record.last.as_ref().map(|last| last.reason.clone());
        };
        let live = self.watch.as_ref().filter(|_| passage.phase == Phase::Probing && passage.held.is_none());
        let reason = live.map_or_else(|| passage.reason.clone(), |watch| watch.reason(&self.policy));
        Some(reason.since(passage.since).until(Some(passage.deadline)))
    }

    /// What the controller is told of the component.
    #[must_use]
    pub fn inventory(&self) -> ComponentInventory {
        let record = &self.record;
        let upgrade = record.upgrade();
        ComponentInventory {
            component: record.component.clone(),
            current: record.current.clone(),
            previous: record.kept.first().cloned(),
            kept: record.kept.clone(),
            kept_digests: keep::kept_digests(record),
            running: self.seen.process.digest(),
            healthy: self.seen.healthy,
            hold: record.hold.clone(),
            drift: record.drift.clone(),
            generation: record.generation,
            hold_generation: record.hold_generation,
            upgrade: upgrade.map(|(id, _)| id.clone()),
            upgrade_state: upgrade.map(|(_, state)| state),
            run_mode: if self.policy.supervised { "supervised" } else { "none" }.to_owned(),
            pid: self.seen.process.pid(),
            changed: record.changed,
            changer: record.changer.as_str().to_owned(),
            failed: record.failed.clone(),
            proof: None,
            alarms: Vec::new(),
            patchable: false,
        }
    }

    // ---- steps -------------------------------------------------------------------------------------------

    /// Has a step performed. Steps that touch the node are written into the passage: the intent.
    fn perform(&mut self, kind: StepKind) {
        self.abort();
        self.retry_at = None;
        self.tickets += 1;
        let step = Step { component: self.record.component.clone(), kind };
        let fleeting = matches!(step.kind, StepKind::Probe { .. } | StepKind::Inspect { .. });
        if let Some(passage) = self.record.passage.as_mut().filter(|_| !fleeting) {
            passage.doing = Some(step.clone());
        }
        self.outstanding = Some((self.tickets, step.clone()));
        self.effects.push(Effect::Perform { ticket: self.tickets, step });
    }

    fn abort(&mut self) {
        if let Some((ticket, _)) = self.outstanding.take() {
            self.effects.push(Effect::Abort { ticket });
        }
    }

    fn inspect(&mut self, probe: bool) {
        self.perform(StepKind::Inspect { probe });
    }

    fn look(&mut self) {
        if self.ready && self.record.passage.is_none() && self.outstanding.is_none() {
            self.inspect(true);
        }
    }

    fn done(&mut self, ticket: u64, answer: Result<Answer, Failure>, now: Time) {
        let Some((_, step)) = self.outstanding.take_if(|(expected, _)| *expected == ticket) else { return };
        match &answer {
            Ok(Answer::Started(process)) => self.seen.process = process.clone(),
            Ok(Answer::Probed(probed)) => self.seen.process = probed.process.clone(),
            Ok(Answer::Inspected(found)) => self.seen.process = found.process.clone(),
            _ => {}
        }
        if !self.ready {
            self.resume(answer, now);
            return;
        }
        let Some(passage) = &self.record.passage else {
            self.idle_answer(step.kind, answer, now);
            return;
        };
        if passage.end.is_some() {
            self.ending_answer(&step.kind, &answer, now);
        } else if passage.phase == Phase::RollingBack {
            self.back_answer(step.kind, answer, now);
        } else {
            self.forward_answer(step.kind, answer, now);
        }
    }

    fn note(&mut self, ticket: u64, reason: Reason, now: Time) {
        let expected = self.outstanding.as_ref().map(|(ticket, _)| *ticket);
        if expected == Some(ticket) {
            self.say(reason, now);
        }
    }

    // ---- the passage -------------------------------------------------------------------------------------

    /// Enters a phase: stamps it, reports it. The caller then has its first step performed.
    fn mark(&mut self, phase: Phase, reason: Reason, now: Time) {
        let policy = &self.policy;
        let Some(passage) = &mut self.record.passage else { return };
        passage.phase = phase;
        passage.since = now;
        passage.deadline = now.after(policy.limit(phase, policy.soak_for(passage.order.soak)));
        passage.reason = reason;
        passage.held = None;
        passage.tries = 0;
        passage.doing = None;
        self.watch = None;
        self.report(false, now);
    }

    /// Changes the reason within a phase.
    fn say(&mut self, reason: Reason, now: Time) {
        let Some(passage) = &mut self.record.passage else { return };
        passage.reason = reason;
        self.report(true, now);
    }

    /// Decides how the upgrade ends, and tidies up before that is reported.
    fn end(&mut self, outcome: Outcome, reason: Reason, now: Time) {
        self.watch = None;
        let limit = self.policy.deadlines.ending;
        let Some(passage) = &mut self.record.passage else { return };
        passage.end = Some(End { outcome, reason });
        passage.deadline = now.after(limit);
        passage.held = None;
        if outcome == Outcome::RollbackFailed {
            // What is installed now is in doubt; the record must say what is found.
            self.inspect(false);
        } else {
            self.prune();
        }
    }

    fn prune(&mut self) {
        let keep = keep::versions(&self.record, self.seen.process.digest());
        self.perform(StepKind::Prune { keep });
    }

    fn ending_answer(&mut self, kind: &StepKind, answer: &Result<Answer, Failure>, now: Time) {
        match (kind, answer) {
            (StepKind::Inspect { .. }, Ok(Answer::Inspected(found))) => {
                let state = self.state_of(found.installed);
                if !state.same_content(&self.record.current) {
                    self.become_current(state, now);
                }
                self.prune();
            }
            (StepKind::Inspect { .. }, _) => self.prune(),
            // Old versions that could not be removed are removed with the next upgrade.
            _ => self.finish(now),
        }
    }

    /// The upgrade is over: its one terminal report, and room for the next.
    fn finish(&mut self, now: Time) {
        self.abort();
        self.watch = None;
        let Some(passage) = self.record.passage.take() else { return };
        let Passage { order, from, end, evidence, sequence, .. } = passage;
        let Some(end) = end else { return };
        let ended =
            Ended { upgrade: order.upgrade, generation: order.generation, from: Some(from), sequence };
        self.seen.healthy = match end.outcome {
            Outcome::Succeeded | Outcome::RolledBack => true,
            Outcome::RollbackFailed => false,
            _ => self.seen.healthy,
        };
        self.report_end(ended, end.outcome, end.reason, evidence, now);
        if std::mem::take(&mut self.claimed) {
            self.effects.push(Effect::Release);
        }
        self.effects.push(Effect::Compact);
    }

    /// Names what is installed by its digest.
    fn state_of(&self, installed: Option<Digest>) -> ComponentState {
        let Some(digest) = installed else { return ComponentState::absent() };
        let passage = self.record.passage.iter();
        let named = passage.flat_map(|passage| [&passage.from, passage.order.goal.state()]);
        let mut known = std::iter::once(&self.record.current).chain(named).chain(&self.record.kept);
        let same = known.find(|state| state.artifact() == Some(digest)).cloned();
        same.unwrap_or_else(|| ComponentState::unmanaged(digest))
    }

    fn become_current(&mut self, state: ComponentState, now: Time) {
        let local = self.record.passage.as_ref().is_some_and(|passage| passage.order.upgrade.is_none());
        self.record.changer = if local { super::record::Changer::Local } else { Default::default() };
        self.record.changed = Some(now);
        self.record.drift = None;
        keep::advance(&mut self.record, state, self.policy.keep);
        self.effects.push(Effect::Inventory);
    }

    // ---- reports -----------------------------------------------------------------------------------------

    fn report(&mut self, note: bool, now: Time) {
        self.effects.push(Effect::Inventory);
        let running = self.seen.process.digest();
        let Some(passage) = &mut self.record.passage else { return };
        let Some(upgrade) = passage.order.upgrade.clone() else { return };
        passage.sequence += 1;
        let rolling_back = passage.phase == Phase::RollingBack;
        let report = UpgradeReport {
            upgrade,
            component: self.record.component.clone(),
            sequence: passage.sequence,
            generation: passage.order.generation,
            state: UpgradeState::Active(passage.phase),
            reason: passage.reason.clone().since(now).until(Some(passage.deadline)),
            time: now,
            from: Some(passage.from.clone()),
            current: Some(self.record.current.clone()),
            running,
            evidence: passage.evidence.clone().filter(|_| rolling_back),
            proof: None,
            reload: None,
        };
        self.record.outbox.push(report, note);
        self.effects.push(Effect::Report);
    }

    /// Reports an end; also of an upgrade that never got to begin.
    fn report_end(
        &mut self,
        ended: Ended,
        outcome: Outcome,
        reason: Reason,
        evidence: Option<Evidence>,
        now: Time,
    ) {
        let reason = reason.since(now);
        let last = Finished { upgrade: ended.upgrade.clone(), outcome, reason: reason.clone(), time: now };
        self.record.last = Some(last);
        self.effects.push(Effect::Inventory);
        let Some(upgrade) = ended.upgrade else { return };
        self.record.ended.push(upgrade.clone());
        let surplus = self.record.ended.len().saturating_sub(MAX_ENDED);
        self.record.ended.drain(..surplus);
        let report = UpgradeReport {
            upgrade,
            component: self.record.component.clone(),
            sequence: ended.sequence + 1,
            generation: ended.generation,
            state: UpgradeState::Ended(outcome),
            reason,
            time: now,
            from: ended.from,
            current: Some(self.record.current.clone()),
            running: self.seen.process.digest(),
            evidence,
            proof: None,
            reload: None,
        };
        self.record.outbox.push(report, false);
        self.effects.push(Effect::Report);
    }
}

/// Of which upgrade an end is reported.
struct Ended {
    upgrade: Option<UpgradeId>,
    generation: Generation,
    from: Option<ComponentState>,
    sequence: u64,
}

impl Ended {
    /// Of an accepted order that never began.
    fn unbegun(order: &Accepted) -> Self {
        Self { upgrade: order.upgrade.clone(), generation: order.generation, from: None, sequence: 0 }
    }
}
