//! The reason for every wait: of the rollout, of each wave, of each node.
//!
//! Reasons are made anew from the state after each step; one that says the same keeps its `since`.

use super::{Machine, Turn};
use crate::{
    reason::{Reason, ReasonCode},
    rollout::{NodeUpgrade, State, WaveState, gate},
    upgrade::UpgradeState,
};

impl Machine {
    pub(super) fn explain(&mut self, turn: &mut Turn) {
        self.explain_nodes(turn);
        self.explain_waves(turn);
        if let Some(reason) = self.rollout_reason() {
            replace(&mut self.rollout.reason, reason, turn);
        }
    }

    /// Only of nodes that wait for their turn; those under way and those that ended speak for themselves.
    fn explain_nodes(&mut self, turn: &mut Turn) {
        let started = self.rollout.is_open();
        let opened: Vec<bool> = self.rollout.waves.iter().map(|wave| gate::opened(wave.state)).collect();
        let why = |upgrade: &NodeUpgrade| match upgrade.offline_since {
            _ if !started => ReasonCode::RolloutPlanned,
            _ if !opened[upgrade.wave] => ReasonCode::WavePending,
            Some(_) => ReasonCode::Offline,
            None => ReasonCode::WaitingForOrder,
        };
        for node in self.nodes(|upgrade| upgrade.waits() && upgrade.reason.code != why(upgrade)) {
            let (now, deadline) = (turn.now, self.rollout.deadline);
            self.edit(turn, &node, |upgrade| {
                let code = why(upgrade);
                let reason = Reason::new(code).since(now);
                upgrade.reason = match code {
                    ReasonCode::WavePending => reason.with("wave", upgrade.wave),
                    ReasonCode::Offline => reason.until(deadline),
                    _ => reason,
                };
            });
        }
    }

    fn explain_waves(&mut self, turn: &Turn) {
        for index in 0..self.rollout.waves.len() {
            let reason = self.wave_reason(index);
            replace(&mut self.rollout.waves[index].reason, reason, turn);
        }
    }

    fn wave_reason(&self, index: usize) -> Reason {
        let wave = &self.rollout.waves[index];
        match wave.state {
            WaveState::Pending if index == 0 => Reason::new(ReasonCode::RolloutPlanned),
            WaveState::Pending => Reason::new(ReasonCode::WavePending).with("wave", index),
            WaveState::AwaitingApproval => {
                Reason::new(ReasonCode::AwaitingApproval).with("what", format!("wave {}", index + 1))
            }
            WaveState::Running => self.progress(index),
            WaveState::Baking => Reason::new(ReasonCode::WaveBaking).until(wave.bake_end),
            WaveState::Succeeded => Reason::new(ReasonCode::WaveSucceeded),
            WaveState::Failed => Reason::new(ReasonCode::WaveFailed),
        }
    }

    fn progress(&self, index: usize) -> Reason {
        let rows = || self.upgrades.values().filter(|upgrade| upgrade.wave == index);
        let busy = rows().filter(|upgrade| upgrade.in_flight()).count();
        let left = rows().filter(|upgrade| upgrade.waits()).count();
        let ready = rows().any(|upgrade| upgrade.waits() && upgrade.offline_since.is_none());
        let count = gate::count(&self.rollout, &self.upgrades);
        let (silent, borne) = gate::silence(&self.rollout, &self.upgrades);
        if ready && count.others > 0 && count.unavailable() >= self.rollout.max_unavailable {
            return Reason::new(ReasonCode::MaxUnavailable)
                .with("unavailable", count.unavailable())
                .with("limit", self.rollout.max_unavailable);
        }
        if busy == 0 && !ready && !borne {
            let limit = self.rollout.spec.policy.silence_budget;
            return Reason::new(ReasonCode::SilenceExceeded)
                .with("silent", silent)
                .with("limit", limit)
                .until(self.rollout.deadline);
        }
        Reason::new(ReasonCode::WaveRunning).with("busy", busy).with("left", left)
    }

    /// `None` where the reason was given when the state was entered.
    fn rollout_reason(&self) -> Option<Reason> {
        let rollout = &self.rollout;
        let flying = || self.upgrades.values().filter(|upgrade| upgrade.in_flight()).count();
        match rollout.state {
            State::Running => Some(self.running_reason()),
            State::Cancelling => Some(rollout.reason.clone().with("count", flying())),
            State::Reverting => Some(match &rollout.reverted_by {
                Some(by) => Reason::new(ReasonCode::RevertingIn).with("rollout", by),
                None => rollout.reason.clone().with("count", flying()),
            }),
            _ => None,
        }
    }

    fn running_reason(&self) -> Reason {
        let waves = &self.rollout.waves;
        let at = waves.iter().position(|wave| wave.state != WaveState::Succeeded);
        let Some(at) = at else {
            let active = |upgrade: &&NodeUpgrade| matches!(upgrade.state, UpgradeState::Active(_));
            let count = self.upgrades.values().filter(active).count();
            let reason = Reason::new(ReasonCode::RolloutOffline).with("count", count);
            return reason.until(self.rollout.deadline);
        };
        match waves[at].reason.code {
            // What holds the wave holds the rollout.
            ReasonCode::AwaitingApproval
            | ReasonCode::MaxUnavailable
            | ReasonCode::SilenceExceeded
            | ReasonCode::WaveBaking => waves[at].reason.clone(),
            _ => Reason::new(ReasonCode::RolloutRunning).with("wave", at + 1).with("waves", waves.len()),
        }
    }
}

fn replace(place: &mut Reason, reason: Reason, turn: &Turn) {
    let since = if place.code == reason.code { place.since } else { None };
    *place = Reason { since: since.or(Some(turn.now)), ..reason };
}
