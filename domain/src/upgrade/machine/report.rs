//! Ends and reports: how an upgrade is tidied up, and what the controller and the history are told.

use super::Machine;
use crate::{
    digest::Digest,
    id::UpgradeId,
    jvm::Proof,
    order::Generation,
    reason::Reason,
    report::UpgradeReport,
    state::{ComponentState, Layer},
    time::Time,
    upgrade::{
        Evidence, Outcome, Phase, UpgradeState,
        event::Effect,
        history::Entry,
        interruption::Interruption,
        keep,
        record::{Accepted, Changer, End, Finished, Passage},
        step::{Answer, Failure, StepKind},
    },
};

/// How many ended upgrades are remembered.
const MAX_ENDED: usize = 32;

impl Machine {
    /// Decides how the upgrade ends, and tidies up before that is reported.
    pub(super) fn end(&mut self, outcome: Outcome, reason: Reason, now: Time) {
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

    pub(super) fn prune(&mut self) {
        let keep = keep::versions(&self.record, self.seen.process.digest());
        let stacks = keep::stacks(&self.record);
        self.perform(StepKind::Prune { keep, stacks });
    }

    pub(super) fn ending_answer(&mut self, kind: &StepKind, answer: &Result<Answer, Failure>, now: Time) {
        match (kind, answer) {
            (StepKind::Inspect { .. }, Ok(Answer::Inspected(found))) => {
                let state = self.state_of(found.installed, &found.layers);
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
    pub(super) fn finish(&mut self, now: Time) {
        self.abort();
        self.watch = None;
        let Some(mut passage) = self.record.passage.take() else { return };
        // What never came up again was down until now.
        passage.is_up(now);
        let interruption = passage.interruption();
        let Passage { order, from, end, evidence, proof, reload, sequence, .. } = passage;
        let Some(end) = end else { return };
        let ended = Ended {
            upgrade: order.upgrade.clone(),
            generation: order.generation,
            from: Some(from),
            order: Some(order),
            sequence,
            evidence,
            proof,
            reload,
            interruption,
        };
        self.seen.healthy = match end.outcome {
            Outcome::Succeeded | Outcome::RolledBack => true,
            Outcome::RollbackFailed => false,
            _ => self.seen.healthy,
        };
        self.report_end(ended, end.outcome, end.reason, now);
        if std::mem::take(&mut self.claimed) {
            self.effects.push(Effect::Release);
        }
        self.effects.push(Effect::Compact);
    }

    /// Names what is there: the state of just that content, else the base by its digest and the stack as found.
    pub(super) fn state_of(&self, installed: Option<Digest>, layers: &[Layer]) -> ComponentState {
        let found = ComponentState {
            layers: layers.to_vec(),
            ..installed.map_or_else(ComponentState::absent, ComponentState::unmanaged)
        };
        let passage = self.record.passage.iter();
        let named = passage.flat_map(|passage| [&passage.from, passage.order.goal.state()]);
        let known: Vec<&ComponentState> =
            std::iter::once(&self.record.current).chain(named).chain(&self.record.kept).collect();
        if let Some(same) = known.iter().find(|state| state.same_content(&found)) {
            return (*same).clone();
        }
        let base = known.iter().find(|state| installed.is_some() && state.artifact() == installed);
        let base = base.map_or_else(|| found.base.clone(), |state| state.base.clone());
        ComponentState { base, ..found }
    }

    pub(super) fn become_current(&mut self, state: ComponentState, now: Time) {
        let local = self.record.passage.as_ref().is_some_and(|passage| passage.order.upgrade.is_none());
        self.record.changer = if local { Changer::Local } else { Default::default() };
        self.record.changed = Some(now);
        self.record.drift = None;
        self.seen.proof = None;
        self.seen.asked = None;
        keep::advance(&mut self.record, state, self.policy.keep);
        self.effects.push(Effect::Inventory);
    }

    // ---- reports -----------------------------------------------------------------------------------------

    pub(super) fn report(&mut self, note: bool, now: Time) {
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
            interruption: None,
        };
        self.record.outbox.push(report, note);
        self.effects.push(Effect::Report);
    }

    /// Reports an end; also of an upgrade that never got to begin.
    pub(super) fn report_end(&mut self, ended: Ended, outcome: Outcome, reason: Reason, now: Time) {
        let reason = reason.since(now);
        let entry = ended.order.as_ref().map(|order| {
            Box::new(Entry {
                time: now,
                outcome,
                reason: reason.clone(),
                from: ended.from.clone(),
                to: order.goal.state().clone(),
                current: self.record.current.clone(),
                live: order.live,
                interruption: ended.interruption.clone(),
                actor: order.actor.clone(),
                rollout: order.rollout.clone(),
                upgrade: order.upgrade.clone(),
            })
        });
        self.effects.extend(entry.clone().map(Effect::History));
        let upgrade = ended.upgrade.clone();
        self.record.last = Some(Finished { upgrade, outcome, reason: reason.clone(), time: now, entry });
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
            evidence: ended.evidence,
            proof: ended.proof,
            reload: ended.reload,
            interruption: ended.interruption,
        };
        self.record.outbox.push(report, false);
        self.effects.push(Effect::Report);
    }
}

/// Of which upgrade an end is reported.
#[derive(Default)]
pub(super) struct Ended {
    upgrade: Option<UpgradeId>,
    generation: Generation,
    from: Option<ComponentState>,
    /// What it carried out; `None` where nothing is known of it.
    order: Option<Accepted>,
    sequence: u64,
    evidence: Option<Evidence>,
    proof: Option<Proof>,
    reload: Option<String>,
    interruption: Option<Interruption>,
}

impl Ended {
    /// Of an accepted order that never began.
    pub(super) fn unbegun(order: &Accepted) -> Self {
        let (upgrade, generation) = (order.upgrade.clone(), order.generation);
        Self { upgrade, generation, order: Some(order.clone()), ..Self::default() }
    }

    /// Of an upgrade that never came here.
    pub(super) fn unknown(upgrade: Option<UpgradeId>, generation: Generation) -> Self {
        Self { upgrade, generation, ..Self::default() }
    }
}
