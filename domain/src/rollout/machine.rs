//! The rollout machine: what happens next, given what is recorded, what has happened, and the time.
//!
//! A step first notes the event (a person's command in `command`, a node's word here) and then decides anew
//! from the recorded state alone (`decide`), so that a step lost or done twice makes no difference. It does
//! nothing itself: effects are data, stored together with the state that asked for them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    Change, NodeUpgrade, Plan, Restore, Rollout, Spec, State, Told, Wave, WaveState,
    event::{By, Effect, Event, Presence, Tell},
    table,
};
use crate::{
    id::{NodeId, RolloutId, UpgradeId},
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    state::Base,
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

mod command;
mod decide;
mod explain;

/// A rollout with its upgrades. Written and read again between any two steps, it goes on unchanged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The rollout.
    pub rollout: Rollout,
    /// Each planned node's part.
    pub upgrades: BTreeMap<NodeId, NodeUpgrade>,
}

/// What a step did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// What is to be done.
    pub effects: Vec<Effect>,
    /// The upgrades that changed, with the revision that each had before.
    pub upgrades: BTreeMap<NodeId, u64>,
    /// Whether the rollout itself changed.
    pub rollout: bool,
}

/// How a rollout comes into being.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Its id.
    pub id: RolloutId,
    /// Who, and what for.
    pub by: By,
    /// The rollout that it rolls back.
    pub reverts: Option<RolloutId>,
}

/// A step under way.
struct Turn {
    now: Time,
    effects: Vec<Effect>,
    changed: BTreeSet<NodeId>,
}

impl Machine {
    /// A planned rollout.
    #[must_use]
    pub fn planned(spec: Spec, plan: &Plan, origin: Origin, now: Time) -> Self {
        let reason = Reason::new(ReasonCode::RolloutPlanned).since(now);
        let mut waves: Vec<Wave> = spec.policy.waves.iter().map(|wave| empty_wave(*wave, &reason)).collect();
        let mut upgrades = BTreeMap::new();
        for planned in &plan.upgrades {
            let wave = &mut waves[planned.wave];
            let mut upgrade = waiting(planned, wave.size, &reason);
            upgrade.offline_since = (!planned.online).then_some(now);
            wave.size += 1;
            upgrades.insert(planned.node.clone(), upgrade);
        }
        let rollout = Rollout {
            id: origin.id,
            plan_digest: plan.digest,
            release: plan.release.clone(),
            max_unavailable: plan.max_unavailable,
            state: State::Planned,
            reason,
            waves,
            pause: None,
            revert: None,
            deadline: None,
            revision: 1,
            state_revision: 1,
            created: now,
            started: None,
            ended: None,
            creator: origin.by.actor.clone(),
            message: origin.by.message,
            last_actor: origin.by.actor,
            last_message: String::new(),
            reverts: origin.reverts,
            reverted_by: None,
            live: plan.live,
            restored: false,
            spec,
        };
        Self { rollout, upgrades }
    }

    /// Takes an event and decides. The machine comes back as it was where a person's command is refused.
    ///
    /// # Errors
    /// `ILLEGAL_TRANSITION`, `FAILED_NODES_UNDECIDED`, `NOT_FOUND` or `INVALID_ARGUMENT` where a person asked
    /// for what can't be done now.
    pub fn step(self, event: Event, now: Time) -> (Self, Result<Outcomes, Reason>) {
        self.step_all(vec![event], now)
    }

    /// As [`Self::step`] for events that came together; decides once. One refusal refuses all.
    ///
    /// # Errors
    /// As [`Self::step`].
    pub fn step_all(self, events: Vec<Event>, now: Time) -> (Self, Result<Outcomes, Reason>) {
        // Only commands are refused, and they change nothing before they are; one copy serves them, and only where
        // something else comes along. A copy of ten thousand upgrades costs more than the step itself.
        let before = self.rollout.clone();
        let kept = (events.len() > 1 && events.iter().any(Event::is_command)).then(|| self.clone());
        let mut machine = self;
        let mut turn = Turn { now, effects: Vec::new(), changed: BTreeSet::new() };
        for event in events {
            if let Err(reason) = machine.note(event, &mut turn) {
                let machine = kept.unwrap_or(Self { rollout: before, upgrades: machine.upgrades });
                return (machine, Err(reason));
            }
        }
        machine.decide(&mut turn);
        let outcomes = machine.number(&before, turn);
        (machine, Ok(outcomes))
    }

    fn note(&mut self, event: Event, turn: &mut Turn) -> Result<(), Reason> {
        match event {
            Event::Report { node, report } => {
                let now = turn.now;
                self.edit(turn, &node, |upgrade| {
                    upgrade.record(&report, now);
                });
            }
            Event::Presence { node, presence } => self.presence(turn, &node, &presence),
            Event::Retired(node) => self.retired(turn, &node),
            Event::RevertStarted(id) => self.rollout.reverted_by = Some(id),
            Event::RevertEnded(state) => self.revert_ended(turn, state),
            Event::RevertImpossible(reason) if self.rollout.state == State::Reverting => {
                self.end(turn, State::RevertFailed, reason);
            }
            Event::Restored => self.restored(turn),
            Event::Tick | Event::RevertImpossible(_) => {}
            command => return self.command(command, turn),
        }
        Ok(())
    }

    fn presence(&mut self, turn: &mut Turn, node: &NodeId, presence: &Presence) {
        let open = self.rollout.is_open();
        self.edit(turn, node, |upgrade| {
            upgrade.offline_since = presence.offline_since;
            upgrade.unreachable &= presence.offline_since.is_some();
            upgrade.unhealthy = presence.unhealthy;
            // Once counted, a drift counts until a person decides: it may well come and go.
            if open && upgrade.succeeded() && presence.drift.is_some() {
                upgrade.drift.clone_from(&presence.drift);
            }
        });
    }

    fn retired(&mut self, turn: &mut Turn, node: &NodeId) {
        let (now, by) =
            (turn.now, By { actor: "the controller".into(), message: "the node was retired".into() });
        self.edit(turn, node, |upgrade| {
            if matches!(upgrade.state, UpgradeState::Active(_)) {
                end(upgrade, Outcome::Skipped, skipped(&by), now);
            }
            // It never comes back, so nothing that it may be doing counts any more.
            upgrade.presumed = false;
            upgrade.told = Told::Nothing;
            upgrade.excused = !upgrade.succeeded();
            upgrade.unhealthy = false;
            upgrade.offline_since = None;
            upgrade.unreachable = false;
        });
    }

    fn revert_ended(&mut self, turn: &Turn, state: State) {
        if self.rollout.state != State::Reverting || self.rollout.reverted_by.is_none() {
            return;
        }
        let by = self.rollout.reverted_by.iter().map(ToString::to_string).collect::<String>();
        if state == State::Succeeded && self.rollback_failed().is_empty() {
            self.end(turn, State::Reverted, Reason::new(ReasonCode::Reverted).with("rollout", by));
        } else {
            self.end(turn, State::RevertFailed, Reason::new(ReasonCode::RevertFailed).with("rollout", by));
        }
    }

    fn restored(&mut self, turn: &mut Turn) {
        // Orders from before mean nothing, so whoever was told to go is told again by whoever resumes.
        for node in self.nodes(|upgrade| upgrade.in_flight() && upgrade.told != Told::Nothing) {
            self.edit(turn, &node, |upgrade| upgrade.told = Told::Hold);
        }
        let reason = Reason::new(ReasonCode::RestoredFromBackup);
        self.rollout.restored = !self.rollout.state.is_terminal();
        match self.rollout.state {
            State::Running => {
                self.rollout.pause = Some(super::PauseStrength::StartNoMore);
                self.enter(turn, State::Paused, reason);
            }
            State::Paused => self.rollout.reason = reason.since(turn.now),
            State::Cancelling => self.enter(turn, State::Halted, reason),
            // A revert that would start by itself waits for a person like all others.
            State::Planned if self.rollout.reverts.is_some() => {
                self.rollout.started = Some(turn.now);
                let what = "the rollout, as the controller was restored from a backup";
                let reason = Reason::new(ReasonCode::AwaitingApproval).with("what", what);
                self.enter(turn, State::AwaitingApproval, reason);
            }
            State::Reverting if self.rollout.reverted_by.is_none() => {
                self.rollout.revert = None;
                self.enter(turn, State::Halted, reason);
            }
            _ => {}
        }
    }

    /// Changes one upgrade, and notes that where it really changed. Unknown nodes are passed over.
    fn edit(&mut self, turn: &mut Turn, node: &NodeId, change: impl FnOnce(&mut NodeUpgrade)) {
        if let Some(upgrade) = self.upgrades.get_mut(node) {
            let before = upgrade.clone();
            change(upgrade);
            if *upgrade != before {
                turn.changed.insert(node.clone());
            }
        }
    }

    fn tell(&mut self, turn: &mut Turn, node: &NodeId, tell: Tell) {
        let told = match &tell {
            Tell::Go | Tell::Continue => Told::Go,
            Tell::HoldBefore(_) => Told::Hold,
            Tell::Stay => Told::Stay,
            Tell::Settle(_) => Told::Nothing,
        };
        let mut upgrade = None;
        self.edit(turn, node, |row| {
            row.told = told;
            upgrade.clone_from(&row.id);
        });
        let upgrade = upgrade.filter(|_| !matches!(tell, Tell::Settle(_)));
        turn.effects.push(Effect::Tell { node: node.clone(), upgrade, tell });
    }

    fn enter(&mut self, turn: &Turn, state: State, reason: Reason) {
        debug_assert!(table::permits(self.rollout.state, state), "{} to {state}", self.rollout.state);
        self.rollout.state = state;
        self.rollout.reason = reason.since(turn.now);
    }

    fn end(&mut self, turn: &Turn, state: State, reason: Reason) {
        self.enter(turn, state, reason);
        self.rollout.ended = Some(turn.now);
        self.rollout.pause = None;
    }

    fn rollback_failed(&self) -> Vec<NodeId> {
        let failed = |upgrade: &&NodeUpgrade| upgrade.state == UpgradeState::Ended(Outcome::RollbackFailed);
        self.upgrades.values().filter(failed).map(|upgrade| upgrade.node.clone()).collect()
    }

    /// Gives revisions to what changed.
    fn number(&mut self, before: &Rollout, turn: Turn) -> Outcomes {
        let states =
            |rollout: &Rollout| -> Vec<WaveState> { rollout.waves.iter().map(|w| w.state).collect() };
        let mut upgrades = BTreeMap::new();
        for node in turn.changed {
            self.rollout.revision += 1;
            if let Some(upgrade) = self.upgrades.get_mut(&node) {
                upgrades.insert(node, upgrade.revision);
                upgrade.revision = self.rollout.revision;
            }
        }
        let revision = self.rollout.revision;
        let rollout = Rollout { revision, ..before.clone() } != self.rollout;
        if rollout {
            self.rollout.revision += 1;
        }
        if before.state != self.rollout.state || states(before) != states(&self.rollout) {
            self.rollout.state_revision = self.rollout.revision;
        }
        Outcomes { effects: turn.effects, upgrades, rollout }
    }

    /// What a node is told, as its next desired state.
    #[must_use]
    pub fn desired(
        &self,
        node: &NodeId,
        upgrade: Option<UpgradeId>,
        tell: &Tell,
        generation: Generation,
        now: Time,
    ) -> Option<DesiredState> {
        let row = self.upgrades.get(node)?;
        let rollout = &self.rollout;
        let go = || target(&rollout.spec.change, row);
        let (target, hold_before) = match tell {
            Tell::Go | Tell::Continue => (go(), None),
            Tell::HoldBefore(phase) => (go(), Some(*phase)),
            Tell::Stay => (Target::Stay, None),
            Tell::Settle(state) => (Target::Restore(state.clone()), None),
        };
        // A kept state names its layers itself.
        let layers = match &target {
            Target::Install(_) | Target::Stack(_) => row.to.layers.clone(),
            Target::Restore(_) | Target::Stay => Vec::new(),
        };
        let live = rollout.live && !matches!(target, Target::Stay);
        Some(DesiredState {
            component: rollout.spec.component.clone(),
            generation,
            rollout: Some(rollout.id.clone()),
            upgrade,
            target,
            layers,
            live,
            hold_before,
            // An order given after the deadline still has the time that silence takes to be begun.
            not_after: rollout.deadline.map(|at| at.max(now.after(rollout.spec.policy.silence_after))),
            allow_downgrade: rollout.spec.change.allows_downgrade(),
            allow_failed_digest: rollout.spec.change.allows_failed() || row.allow_failed_digest,
            soak: rollout.spec.policy.soak,
            trace: String::new(),
            actor: rollout.last_actor.clone(),
        })
    }

    /// The spec of the linked rollout that puts nodes back: no canary, the same bounds, and failures are
    /// borne, as stopping halfway would leave more nodes on the bad state.
    #[must_use]
    pub fn revert_spec(&self) -> Spec {
        let spec = &self.rollout.spec;
        let all = super::NodeCount::Percent(100);
        let mut policy = spec.policy.clone();
        policy.waves = vec![super::WaveSpec { size: all, approval: false, bake: std::time::Duration::ZERO }];
        let borne = super::Budget { limit: all, minimum_sample: 0 };
        policy.budgets = super::Cause::ALL.into_iter().map(|cause| (cause, borne)).collect();
        policy.on_failure = super::OnFailure::Halt;
        policy.approval = false;
        let change = Change::Restore(Restore::BeforeRollout(self.rollout.id.clone()));
        // Which nodes is said by what the rollout changed, whatever their labels are by now.
        Spec { change, policy, selector: "*".to_owned(), ..spec.clone() }
    }

    /// The nodes that a revert puts back: those that the rollout changed.
    #[must_use]
    pub fn changed_nodes(&self, scope: super::RevertScope) -> Vec<NodeId> {
        let within = |upgrade: &&NodeUpgrade| match scope {
            super::RevertScope::All => true,
            super::RevertScope::Wave(wave) => upgrade.wave == wave,
        };
        let done = |upgrade: &&NodeUpgrade| upgrade.state == UpgradeState::Ended(Outcome::Succeeded);
        self.upgrades.values().filter(within).filter(done).map(|upgrade| upgrade.node.clone()).collect()
    }
}

/// The id of an attempt: derived, so that a repeated step orders the same upgrade and not a second one.
#[must_use]
pub fn upgrade_id(rollout: &RolloutId, node: &NodeId, attempt: u32) -> UpgradeId {
    UpgradeId::new(format!("{rollout}.{node}.{attempt}")).unwrap_or_else(|_| {
        let digest = crate::digest::Digest::of(format!("{rollout}.{node}").as_bytes());
        UpgradeId::new(format!("u-{digest}.{attempt}")).expect("77 characters of the permitted ones")
    })
}

/// What a node that may go is told to go to.
fn target(change: &Change, row: &NodeUpgrade) -> Target {
    match (change, &row.to.base) {
        (Change::Stack(_), base) => Target::Stack(base.clone()),
        // The base is there already: only the stack differs, and no release has to be fetched for it.
        (Change::Install { .. } | Change::BaseWithStack { .. }, base @ Base::Release(_))
            if row.from.base == *base && row.from.layers != row.to.layers =>
        {
            Target::Stack(base.clone())
        }
        (Change::Install { .. } | Change::BaseWithStack { .. }, Base::Release(release)) => {
            Target::Install(release.clone())
        }
        _ => Target::Restore(row.to.clone()),
    }
}

fn empty_wave(spec: super::WaveSpec, reason: &Reason) -> Wave {
    let reason = reason.clone();
    Wave { state: WaveState::Pending, spec, size: 0, reason, started: None, bake_end: None, approver: None }
}

fn waiting(planned: &super::PlannedUpgrade, position: usize, reason: &Reason) -> NodeUpgrade {
    NodeUpgrade {
        node: planned.node.clone(),
        wave: planned.wave,
        position,
        id: None,
        attempt: 0,
        state: UpgradeState::Active(Phase::Pending),
        unreachable: false,
        reason: reason.clone(),
        from: planned.from.clone(),
        to: planned.to.clone(),
        current: None,
        generation: 0,
        sequence: 0,
        started: None,
        ended: None,
        evidence: None,
        revision: 1,
        told: Told::Nothing,
        offline_since: None,
        unhealthy: false,
        drift: None,
        excused: false,
        presumed: false,
        allow_failed_digest: false,
        proof: None,
        reload: None,
        interruption: None,
    }
}

fn end(upgrade: &mut NodeUpgrade, outcome: Outcome, reason: Reason, now: Time) {
    upgrade.state = UpgradeState::Ended(outcome);
    upgrade.reason = reason.since(now);
    upgrade.ended = Some(now);
}

fn skipped(by: &By) -> Reason {
    Reason::new(ReasonCode::Skipped).with("actor", &by.actor).with("message", &by.message)
}

#[cfg(test)]
mod tests;
