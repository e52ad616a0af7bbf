//! What persons ask of a rollout, and when they may not.
//!
//! A command is checked whole before it changes anything.

use super::{Machine, Turn, end, skipped};
use crate::{
    id::NodeId,
    reason::{Reason, ReasonCode},
    rollout::{
        FailedNodes, NodeUpgrade, PauseStrength, RevertScope, State, Told, WaveState, budget,
        event::{By, Event, Tell},
    },
    upgrade::{Outcome, Phase, UpgradeState},
};

impl Machine {
    pub(super) fn command(&mut self, event: Event, turn: &mut Turn) -> Result<(), Reason> {
        let by = match event {
            Event::Start(by) => self.start(turn, by)?,
            Event::Approve { wave, by } => self.approve(turn, wave, by)?,
            Event::Pause { strength, by } => self.pause(turn, strength, by)?,
            Event::Resume { failed, allow_failed_digest, by } => {
                self.resume(turn, failed, allow_failed_digest)?;
                by
            }
            Event::Cancel(by) => self.cancel(turn, by)?,
            Event::Retry { nodes, allow_failed_digest, by } => {
                self.retry(turn, &nodes, allow_failed_digest)?;
                by
            }
            Event::Skip { node, by } => self.skip(turn, &node, by)?,
            Event::RollBack(by) => {
                self.allow(&[State::Running, State::Paused, State::Halted], "rolled back")?;
                self.begin_revert(turn, RevertScope::All, "a person asked for it");
                by
            }
            _ => return Ok(()),
        };
        self.rollout.restored = false;
        self.rollout.last_actor = by.actor;
        self.rollout.last_message = by.message;
        Ok(())
    }

    fn start(&mut self, turn: &Turn, by: By) -> Result<By, Reason> {
        self.allow(&[State::Planned], "started")?;
        let policy = &self.rollout.spec.policy;
        let approval = policy.approval || policy.waves.first().is_some_and(|wave| wave.approval);
        self.rollout.started = Some(turn.now);
        self.rollout.deadline = Some(turn.now.after(policy.offline_deadline));
        if approval {
            let reason = Reason::new(ReasonCode::AwaitingApproval).with("what", "the rollout");
            self.enter(turn, State::AwaitingApproval, reason);
        } else {
            self.enter(turn, State::Running, Reason::new(ReasonCode::RolloutRunning));
        }
        Ok(by)
    }

    fn approve(&mut self, turn: &Turn, wave: Option<usize>, by: By) -> Result<By, Reason> {
        let waits = match self.rollout.state {
            State::AwaitingApproval => Some(0),
            State::Running => self.rollout.waves.iter().position(|w| w.state == WaveState::AwaitingApproval),
            _ => None,
        };
        let waits = waits.filter(|index| wave.is_none_or(|meant| meant == *index));
        let index = waits.ok_or_else(|| {
            let what = wave.map_or_else(|| "approved".to_owned(), |w| format!("approved for wave {}", w + 1));
            self.illegal(&what)
        })?;
        if let Some(wave) = self.rollout.waves.get_mut(index) {
            wave.approver = Some(by.actor.clone());
        }
        if self.rollout.state == State::AwaitingApproval {
            // The offline deadline counts from when nodes can be ordered.
            let deadline = turn.now.after(self.rollout.spec.policy.offline_deadline);
            self.rollout.deadline = Some(deadline);
            self.enter(turn, State::Running, Reason::new(ReasonCode::RolloutRunning));
        }
        Ok(by)
    }

    fn pause(&mut self, turn: &mut Turn, strength: PauseStrength, by: By) -> Result<By, Reason> {
        self.allow(&[State::Running, State::Paused], "paused")?;
        if self.rollout.state == State::Running {
            let reason =
                Reason::new(ReasonCode::Paused).with("actor", &by.actor).with("message", &by.message);
            self.enter(turn, State::Paused, reason);
        }
        let harder = strength == PauseStrength::NextSafePoint;
        if self.rollout.pause.is_none() || harder {
            self.rollout.pause = Some(strength);
        }
        if harder {
            let before_switch = |u: &NodeUpgrade| {
                u.told == Told::Go && matches!(u.state, UpgradeState::Active(p) if p < Phase::Activating)
            };
            for node in self.nodes(|u| u.in_flight() && before_switch(u)) {
                self.tell(turn, &node, Tell::HoldBefore(Phase::Activating));
            }
        }
        Ok(by)
    }

    fn resume(&mut self, turn: &mut Turn, failed: Option<FailedNodes>, allow: bool) -> Result<(), Reason> {
        self.allow(&[State::Paused, State::Halted], "resumed")?;
        let nodes = self.nodes(|upgrade| budget::cause(upgrade).is_some());
        if failed.is_none() && self.rollout.state == State::Halted && !nodes.is_empty() {
            return Err(Reason::new(ReasonCode::FailedNodesUndecided).with("count", nodes.len()));
        }
        match failed {
            Some(FailedNodes::Revert) => {
                self.begin_revert(turn, RevertScope::All, "a person asked for it");
                return Ok(());
            }
            Some(FailedNodes::Retry) => self.reset(turn, &nodes, allow),
            Some(FailedNodes::Skip) => {
                for node in &nodes {
                    self.edit(turn, node, |upgrade| upgrade.excused = true);
                }
            }
            None => {}
        }
        self.run_again(turn);
        Ok(())
    }

    /// RUNNING again: nodes that were held go on, waves that failed are open.
    fn run_again(&mut self, turn: &mut Turn) {
        if self.rollout.state != State::Running {
            self.enter(turn, State::Running, Reason::new(ReasonCode::RolloutRunning));
        }
        self.rollout.pause = None;
        self.rollout.ended = None;
        for wave in &mut self.rollout.waves {
            if wave.state == WaveState::Failed {
                wave.state = WaveState::Running;
            }
        }
        for node in self.nodes(|upgrade| upgrade.in_flight() && upgrade.told == Told::Hold) {
            self.tell(turn, &node, Tell::Continue);
        }
    }

    fn cancel(&mut self, turn: &mut Turn, by: By) -> Result<By, Reason> {
        use State as S;
        self.allow(&[S::Planned, S::AwaitingApproval, S::Running, S::Paused, S::Halted], "cancelled")?;
        let reason = cancelled(&by);
        self.rollout.pause = None;
        self.drop_waiting(turn, &reason);
        if matches!(self.rollout.state, S::Planned | S::AwaitingApproval) {
            self.end(turn, S::Cancelled, reason);
        } else {
            let cancelling = Reason::new(ReasonCode::Cancelling).with("actor", &by.actor);
            self.enter(turn, S::Cancelling, cancelling);
            self.recall(turn);
        }
        Ok(by)
    }

    /// Nodes that were told nothing stay as they are.
    pub(super) fn drop_waiting(&mut self, turn: &mut Turn, reason: &Reason) {
        let now = turn.now;
        for node in self.nodes(NodeUpgrade::waits) {
            self.edit(turn, &node, |upgrade| end(upgrade, Outcome::Cancelled, reason.clone(), now));
        }
    }

    /// Nodes under way are told to stay.
    pub(super) fn recall(&mut self, turn: &mut Turn) {
        for node in self.nodes(|upgrade| upgrade.in_flight() && upgrade.told != Told::Stay) {
            self.tell(turn, &node, Tell::Stay);
        }
    }

    pub(super) fn begin_revert(&mut self, turn: &mut Turn, scope: RevertScope, why: &str) {
        let reason = Reason::new(ReasonCode::RevertWaits).with("why", why);
        self.rollout.revert = Some(scope);
        self.rollout.pause = None;
        self.drop_waiting(turn, &Reason::new(ReasonCode::CancelledByOrder));
        self.enter(turn, State::Reverting, reason);
        self.recall(turn);
    }

    fn retry(&mut self, turn: &mut Turn, nodes: &[NodeId], allow: bool) -> Result<(), Reason> {
        use State as S;
        self.allow(&[S::Running, S::Paused, S::Halted, S::SucceededWithFailures], "retried")?;
        for node in nodes {
            let upgrade = self.upgrades.get(node).ok_or_else(|| unknown(node))?;
            if !upgrade.retryable() {
                let problem = format!("{node} is {}, which is no failure", upgrade.state);
                return Err(invalid("nodes", &problem));
            }
        }
        // A node that a person left out comes back only by its name.
        let all =
            |u: &NodeUpgrade| u.retryable() && !u.excused && u.state != UpgradeState::Ended(Outcome::Skipped);
        let chosen = if nodes.is_empty() { self.nodes(all) } else { nodes.to_vec() };
        if chosen.is_empty() {
            return Err(invalid("nodes", "no node has failed"));
        }
        self.reset(turn, &chosen, allow);
        if self.rollout.state != S::Paused {
            self.run_again(turn);
        }
        Ok(())
    }

    /// Makes nodes wait for another attempt, and opens their waves again.
    fn reset(&mut self, turn: &mut Turn, nodes: &[NodeId], allow_failed_digest: bool) {
        let now = turn.now;
        let reason = Reason::new(ReasonCode::WaitingForOrder).since(now);
        for node in nodes {
            self.edit(turn, node, |upgrade| {
                upgrade.id = None;
                upgrade.state = UpgradeState::Active(Phase::Pending);
                upgrade.reason = reason.clone();
                // A node of which only silence is known may still be at the last attempt; see `gate::unresolved`.
                upgrade.told = if upgrade.presumed { Told::Stay } else { Told::Nothing };
                upgrade.ended = None;
                upgrade.drift = None;
                upgrade.excused = false;
                upgrade.presumed = false;
                upgrade.allow_failed_digest = allow_failed_digest;
            });
            let wave = self.upgrades.get(node).and_then(|upgrade| self.rollout.waves.get_mut(upgrade.wave));
            if let Some(wave) = wave
                && matches!(wave.state, WaveState::Succeeded | WaveState::Baking | WaveState::Failed)
            {
                wave.state = WaveState::Running;
                wave.bake_end = None;
            }
        }
        self.rollout.deadline = Some(now.after(self.rollout.spec.policy.offline_deadline));
    }

    fn skip(&mut self, turn: &mut Turn, node: &NodeId, by: By) -> Result<By, Reason> {
        let upgrade = self.upgrades.get(node).ok_or_else(|| unknown(node))?;
        if self.rollout.state.is_terminal() || upgrade.succeeded() {
            return Err(self.illegal(&format!("changed by skipping {node}, which is {}", upgrade.state)));
        }
        self.skip_node(turn, node, &by);
        Ok(by)
    }

    fn skip_node(&mut self, turn: &mut Turn, node: &NodeId, by: &By) {
        let Some(upgrade) = self.upgrades.get(node) else { return };
        let (flying, now) = (upgrade.in_flight(), turn.now);
        if flying && upgrade.told != Told::Stay {
            self.tell(turn, node, Tell::Stay);
        }
        self.edit(turn, node, |upgrade| {
            if matches!(upgrade.state, UpgradeState::Active(_)) {
                end(upgrade, Outcome::Skipped, skipped(by), now);
                upgrade.presumed = flying;
            }
            upgrade.excused = true;
        });
    }

    fn allow(&self, states: &[State], action: &str) -> Result<(), Reason> {
        if states.contains(&self.rollout.state) { Ok(()) } else { Err(self.illegal(action)) }
    }

    fn illegal(&self, action: &str) -> Reason {
        Reason::new(ReasonCode::IllegalTransition).with("state", self.rollout.state).with("action", action)
    }

    /// The nodes of chosen upgrades.
    pub(super) fn nodes(&self, choose: impl Fn(&NodeUpgrade) -> bool) -> Vec<NodeId> {
        self.upgrades.values().filter(|upgrade| choose(upgrade)).map(|u| u.node.clone()).collect()
    }
}

pub(super) fn cancelled(by: &By) -> Reason {
    Reason::new(ReasonCode::Cancelled).with("actor", &by.actor).with("message", &by.message)
}

fn unknown(node: &NodeId) -> Reason {
    Reason::new(ReasonCode::NotFound).with("what", "upgrade of node").with("name", node)
}

fn invalid(field: &str, problem: &str) -> Reason {
    Reason::new(ReasonCode::InvalidArgument).with("field", field).with("problem", problem)
}
