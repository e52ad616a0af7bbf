//! What follows from what is recorded, whatever led to it.
//!
//! Everything here may run at any time and any number of times: it looks at states, never at events.

use std::time::Duration;

use super::{Machine, Turn, command::cancelled, end, upgrade_id};
use crate::{
    id::NodeId,
    reason::{Reason, ReasonCode},
    rollout::{
        Change, NodeUpgrade, OnFailure, RevertScope, State, Told, WaveState,
        budget::{self, silent_at},
        event::{By, Effect, Tell},
        gate,
    },
    time::Time,
    upgrade::{Outcome, Phase, UpgradeState},
};

impl Machine {
    pub(super) fn decide(&mut self, turn: &mut Turn) {
        // After a restore nothing is ordered until a person says so, not even to stand still.
        if !self.rollout.restored {
            self.settle(turn);
        }
        if !self.rollout.is_open() {
            self.explain(turn);
            return;
        }
        self.mark_silence(turn);
        if self.rollout.state == State::Running {
            self.run(turn);
        }
        if matches!(self.rollout.state, State::Cancelling | State::Reverting) {
            self.drain(turn);
        }
        self.explain(turn);
        if let Some(at) = self.wake_at(turn.now) {
            turn.effects.push(Effect::WakeAt(at));
        }
    }

    /// Tells each node that has ended what stands, so that a reconnect never offers it a bad state again.
    fn settle(&mut self, turn: &mut Turn) {
        let unsettled = |u: &NodeUpgrade| {
            matches!(u.state, UpgradeState::Ended(_)) && u.told != Told::Nothing && !u.presumed
        };
        for node in self.nodes(unsettled) {
            let Some(upgrade) = self.upgrades.get(&node) else { continue };
            let told = upgrade.told;
            let tell = match upgrade.state.outcome() {
                _ if self.rollout.state.is_terminal() => None,
                Some(Outcome::RolledBack) => {
                    let proved = upgrade.current.as_ref().unwrap_or(&upgrade.from);
                    Some(Tell::Settle(proved.clone()))
                }
                Some(Outcome::Succeeded | Outcome::AlreadyCurrent | Outcome::Superseded) => None,
                _ if told == Told::Stay => None,
                _ => Some(Tell::Stay),
            };
            let failed = upgrade.state == UpgradeState::Ended(Outcome::RolledBack)
                && upgrade.reason.code != ReasonCode::CancelledAfterSwitch
                && !matches!(self.rollout.spec.change, Change::Restore(_));
            // Of several that came together nobody knows which it was.
            let bad = if failed { upgrade.brings() } else { Vec::new() };
            if let Some(tell) = tell {
                turn.effects.push(Effect::Tell { node: node.clone(), upgrade: None, tell });
            }
            for digest in bad {
                turn.effects.push(Effect::RolledBack { node: node.clone(), digest });
            }
            self.edit(turn, &node, |upgrade| upgrade.told = Told::Nothing);
        }
    }

    fn mark_silence(&mut self, turn: &mut Turn) {
        let policy = &self.rollout.spec.policy;
        let silent = |upgrade: &NodeUpgrade| silent_at(policy, upgrade).is_some_and(|at| at <= turn.now);
        let changed = self.nodes(|upgrade| upgrade.unreachable != silent(upgrade));
        for node in changed {
            self.edit(turn, &node, |upgrade| upgrade.unreachable = !upgrade.unreachable);
        }
    }

    fn run(&mut self, turn: &mut Turn) {
        self.expire(turn);
        if let Some(exceeded) = budget::exceeded(&self.rollout.spec.policy, &self.upgrades) {
            self.trip(turn, exceeded);
            return;
        }
        self.advance(turn);
        self.order(turn);
        let waves = self.rollout.waves.iter().all(|wave| wave.state == WaveState::Succeeded);
        let ended = self.upgrades.values().all(|u| matches!(u.state, UpgradeState::Ended(_)));
        if waves && ended {
            self.complete(turn);
        }
    }

    fn expire(&mut self, turn: &mut Turn) {
        let (policy, deadline, now) = (&self.rollout.spec.policy, self.rollout.deadline, turn.now);
        let nodes = self.nodes(|u| gate::expires_at(policy, deadline, u).is_some_and(|at| at <= now));
        for node in nodes {
            let flying = self.upgrades.get(&node).is_some_and(NodeUpgrade::in_flight);
            if flying {
                self.tell(turn, &node, Tell::Stay);
            }
            self.edit(turn, &node, |upgrade| {
                end(upgrade, Outcome::Expired, Reason::new(ReasonCode::DeadlinePassed), now);
                upgrade.presumed |= flying;
            });
        }
    }

    /// A budget was exceeded: rest, or put back.
    fn trip(&mut self, turn: &mut Turn, exceeded: budget::Exceeded) {
        for wave in &exceeded.waves {
            self.rollout.waves[*wave].state = WaveState::Failed;
        }
        let why = exceeded.reason.message();
        // A revert is not reverted: that would lead back to what was bad.
        let policy = if self.rollout.reverts.is_some() {
            OnFailure::Halt
        } else {
            self.rollout.spec.policy.on_failure
        };
        match policy {
            OnFailure::Halt => self.enter(turn, State::Halted, exceeded.reason),
            OnFailure::RevertAll => self.begin_revert(turn, RevertScope::All, &why),
            OnFailure::RevertWave => {
                let wave = exceeded.waves.last().copied().unwrap_or_default();
                self.begin_revert(turn, RevertScope::Wave(wave), &why);
            }
        }
    }

    /// Opens, bakes and closes waves as far as they go.
    fn advance(&mut self, turn: &Turn) {
        for index in 0..self.rollout.waves.len() {
            let done = self.wave_is_done(index);
            let first = index == 0;
            let wave = &mut self.rollout.waves[index];
            if wave.state == WaveState::Pending {
                wave.state = WaveState::AwaitingApproval;
            }
            if wave.state == WaveState::AwaitingApproval
                && (first || wave.size == 0 || !wave.spec.approval || wave.approver.is_some())
            {
                wave.state = WaveState::Running;
                wave.started = wave.started.or(Some(turn.now));
            }
            if wave.state == WaveState::Running && done {
                wave.state = WaveState::Baking;
                // There is nothing to watch in an empty wave.
                let bake = if wave.size == 0 { Duration::ZERO } else { wave.spec.bake };
                wave.bake_end = Some(turn.now.after(bake));
            }
            if wave.state == WaveState::Baking && wave.bake_end.is_none_or(|at| at <= turn.now) {
                wave.state = WaveState::Succeeded;
            }
            if wave.state != WaveState::Succeeded && !self.later_is_open(index) {
                return;
            }
        }
    }

    /// Whether a later wave is under way already, as this one was opened again by a retry.
    fn later_is_open(&self, index: usize) -> bool {
        self.rollout.waves.iter().skip(index + 1).any(|wave| gate::opened(wave.state))
    }

    fn wave_is_done(&self, index: usize) -> bool {
        let borne = gate::silence(&self.rollout, &self.upgrades).1;
        let done = |u: &NodeUpgrade| matches!(u.state, UpgradeState::Ended(_)) || (u.unreachable && borne);
        self.upgrades.values().filter(|upgrade| upgrade.wave == index).all(done)
    }

    /// Tells as many nodes to go as may be unavailable.
    fn order(&mut self, turn: &mut Turn) {
        let opened: Vec<bool> = self.rollout.waves.iter().map(|wave| gate::opened(wave.state)).collect();
        let ready = |u: &&NodeUpgrade| u.waits() && u.offline_since.is_none() && opened[u.wave];
        let mut waiting: Vec<&NodeUpgrade> = self.upgrades.values().filter(ready).collect();
        if waiting.is_empty() {
            return;
        }
        waiting.sort_unstable_by_key(|upgrade| (upgrade.wave, upgrade.position));
        let limit = self.rollout.max_unavailable;
        let mut count = gate::count(&self.rollout, &self.upgrades);
        let mut chosen = Vec::new();
        for upgrade in waiting {
            if gate::is_down(upgrade) {
                // It counts already, so that telling it makes no further node unavailable.
                if count.in_flight < limit {
                    count.in_flight += 1;
                    count.others -= 1;
                    chosen.push(upgrade.node.clone());
                }
            } else if count.unavailable() < limit {
                count.in_flight += 1;
                chosen.push(upgrade.node.clone());
            }
        }
        for node in chosen {
            self.go(turn, &node);
        }
    }

    fn go(&mut self, turn: &mut Turn, node: &NodeId) {
        let (rollout, now) = (self.rollout.id.clone(), turn.now);
        self.edit(turn, node, |upgrade| {
            upgrade.attempt += 1;
            upgrade.id = Some(upgrade_id(&rollout, node, upgrade.attempt));
            upgrade.sequence = 0;
            upgrade.started = Some(now);
            upgrade.ended = None;
            upgrade.evidence = None;
            upgrade.proof = None;
            upgrade.reload = None;
            upgrade.state = UpgradeState::Active(Phase::Pending);
            upgrade.reason = Reason::new(ReasonCode::WaitingForAgent).since(now);
        });
        self.tell(turn, node, Tell::Go);
    }

    fn complete(&mut self, turn: &Turn) {
        let count = self.upgrades.len();
        let of = |outcome| self.upgrades.values().filter(|u| u.state == UpgradeState::Ended(outcome)).count();
        let succeeded = self.upgrades.values().filter(|upgrade| upgrade.succeeded()).count();
        if succeeded == count {
            let reason = Reason::new(ReasonCode::RolloutSucceeded).with("count", count);
            self.end(turn, State::Succeeded, reason);
            return;
        }
        let (skipped, away) = (of(Outcome::Skipped), of(Outcome::Expired));
        let reason = Reason::new(ReasonCode::RolloutFailures)
            .with("succeeded", succeeded)
            .with("count", count)
            .with("failed", count - succeeded - skipped - away)
            .with("skipped", skipped)
            .with("away", away);
        self.end(turn, State::SucceededWithFailures, reason);
    }

    /// Ends a cancel or a revert once no node is under way; silent ones are not waited for.
    fn drain(&mut self, turn: &mut Turn) {
        self.recall(turn);
        let by = By { actor: self.rollout.last_actor.clone(), message: self.rollout.last_message.clone() };
        let now = turn.now;
        for node in self.nodes(|upgrade| upgrade.in_flight() && upgrade.unreachable) {
            self.edit(turn, &node, |upgrade| {
                end(upgrade, Outcome::Cancelled, cancelled(&by), now);
                upgrade.presumed = true;
            });
        }
        if self.upgrades.values().any(NodeUpgrade::in_flight) {
            return;
        }
        if self.rollout.state == State::Cancelling {
            self.end(turn, State::Cancelled, cancelled(&by));
        } else if self.rollout.reverted_by.is_none() {
            self.put_back(turn);
        }
    }

    fn put_back(&mut self, turn: &mut Turn) {
        let nodes = self.changed_nodes(self.rollout.revert.unwrap_or(RevertScope::All));
        let failed = self.rollback_failed();
        if !nodes.is_empty() {
            turn.effects.push(Effect::StartRevert { nodes });
        } else if failed.is_empty() {
            let why = self.rollout.reason.metadata.get("why").cloned().unwrap_or_default();
            self.end(turn, State::Reverted, Reason::new(ReasonCode::NothingToRevert).with("why", why));
        } else {
            let names: Vec<String> = failed.iter().map(ToString::to_string).collect();
            let reason = Reason::new(ReasonCode::RollingBackFailed).with("count", failed.len());
            self.end(turn, State::RevertFailed, reason.with("nodes", names.join(", ")));
        }
    }

    /// When time alone changes something next.
    fn wake_at(&self, now: Time) -> Option<Time> {
        let policy = &self.rollout.spec.policy;
        let running = self.rollout.state == State::Running;
        let bakes = self.rollout.waves.iter().filter(|w| running && w.state == WaveState::Baking);
        let silences = self.upgrades.values().filter(|u| !u.unreachable).filter_map(|u| silent_at(policy, u));
        let deadline = self.rollout.deadline;
        let expiries =
            self.upgrades.values().filter(|_| running).filter_map(|u| gate::expires_at(policy, deadline, u));
        let times = bakes.filter_map(|wave| wave.bake_end).chain(silences).chain(expiries);
        times.filter(|at| *at > now).min()
    }
}
