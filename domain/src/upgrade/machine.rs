//! The upgrade machine of one component: what happens in, what is to be done out.
//!
//! [`Machine::step`] is pure. The caller makes the record durable before it carries out the effects, so that
//! whatever a step does was announced in the journal first. This file holds the machine's parts and deals
//! events out; the files below hold what follows from them.

mod activate;
mod back;
mod beside;
mod commit;
mod forward;
mod idle;
mod local;
mod orders;
mod report;
mod resume;
#[cfg(test)]
mod tests;
mod time;

use super::{
    Phase,
    event::{Effect, Event},
    keep,
    policy::Policy,
    record::Record,
    soak::Watch,
    step::{Answer, Failure, Process, Step, StepKind},
};
use crate::{digest::Digest, jvm::Proof, reason::Reason, report::ComponentInventory, time::Time};
use std::time::Duration;

/// How often a step of a rollback or an inspection is tried before it is given up.
const MAX_TRIES: u32 = 3;
/// How long to wait before such a step is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How many failed digests are remembered; the oldest is forgotten first.
const MAX_FAILED: usize = 64;

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
    /// What stands beside it.
    beside: Option<Process>,
    installed: Option<Digest>,
    /// Whether the stack in force has files that are not what they were.
    damaged: bool,
    healthy: bool,
    /// What the running JVM last said of the stack.
    proof: Option<Proof>,
    /// When which process was asked last.
    asked: Option<(Time, Option<u32>)>,
    /// What deserves a look although nothing has drifted.
    alarms: Vec<Reason>,
}

impl Machine {
    /// A machine for what a journal holds. It does nothing before [`Event::Started`].
    #[must_use]
    pub fn new(policy: Policy, record: Record) -> Self {
        Self {
            policy,
            record,
            seen: Seen {
                process: Process::NotRun,
                beside: None,
                installed: None,
                damaged: false,
                healthy: false,
                proof: None,
                asked: None,
                alarms: Vec::new(),
            },
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
            Event::LocalApply { offer, message } => self.local_apply(&offer, &message, now),
            Event::Done { ticket, answer } => self.done(ticket, *answer, now),
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
        let watched = passage.phase == Phase::Probing && passage.held.is_none();
        let live = self.watch.as_ref().filter(|_| watched);
        let reason = live.map_or_else(|| passage.reason.clone(), |watch| watch.reason(&self.policy));
        Some(reason.since(passage.since).until(Some(passage.deadline)))
    }

    /// When what is watched will have been healthy for its soak time; `None` where nothing healthy is watched.
    #[must_use]
    pub fn soaked_at(&self) -> Option<Time> {
        let probing = self.record.passage.as_ref().is_some_and(|passage| passage.phase == Phase::Probing);
        self.watch.as_ref().filter(|_| probing).and_then(Watch::soaked_at)
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
            run_mode: self.policy.run_mode().to_owned(),
            pid: self.seen.process.pid(),
            changed: record.changed,
            changer: record.changer.as_str().to_owned(),
            failed: record.failed.clone(),
            proof: self.seen.proof.clone(),
            alarms: self.seen.alarms.clone(),
            patchable: self.policy.patchable,
        }
    }

    // ---- steps -------------------------------------------------------------------------------------------

    /// Has a step performed. Steps that touch the node are written into the passage: the intent.
    fn perform(&mut self, kind: StepKind) {
        self.abort();
        self.retry_at = None;
        self.tickets += 1;
        let step = Step { component: self.record.component.clone(), kind };
        let fleeting =
            matches!(step.kind, StepKind::Probe { .. } | StepKind::Inspect { .. } | StepKind::Prove { .. });
        if let Some(passage) = self.record.passage.as_mut().filter(|_| !fleeting) {
            passage.doing = Some(Step { kind: step.kind.recorded(), ..step.clone() });
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

    fn done(&mut self, ticket: u64, answer: Result<Answer, Failure>, now: Time) {
        let Some((_, step)) = self.outstanding.take_if(|(expected, _)| *expected == ticket) else { return };
        match &answer {
            Ok(Answer::Started(process)) => self.saw(&step.kind, process),
            Ok(Answer::Probed(probed)) => self.saw(&step.kind, &probed.process),
            Ok(Answer::Inspected(found)) => {
                self.seen.process = found.process.clone();
                self.seen.beside.clone_from(&found.beside);
                self.seen.installed = found.installed;
                self.seen.damaged = found.damage.is_some();
            }
            Ok(Answer::Proved(proof)) => self.saw_proof(proof.clone(), now),
            _ => {}
        }
        if !self.ready {
            self.resume(answer, now);
            return;
        }
        let Some(passage) = &self.record.passage else {
            self.idle_answer(&step.kind, answer, now);
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

    /// What a step says of the process that it was about.
    fn saw(&mut self, kind: &StepKind, process: &Process) {
        match kind {
            StepKind::StartBeside { .. } | StepKind::Probe { beside: true, .. } => {
                self.seen.beside = Some(process.clone());
            }
            _ => self.seen.process = process.clone(),
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
}
