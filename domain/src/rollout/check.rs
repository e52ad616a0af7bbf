//! The linter of rollouts: what must hold of each one at any time, as data.
//!
//! Used by the tests after every step and by debug builds of the controller. It changes nothing.

use super::{State, WaveState, gate, machine::Machine};
use crate::upgrade::UpgradeState;

/// One thing that must hold.
pub struct Invariant {
    /// What, for people.
    pub name: &'static str,
    holds: fn(&Machine) -> bool,
}

/// All of them.
pub const INVARIANTS: &[Invariant] = &[
    Invariant { name: "nothing was ordered before the start", holds: nothing_before_start },
    Invariant { name: "nodes are ordered in opened waves only", holds: ordered_in_opened_waves },
    Invariant { name: "no more nodes are under way than may be unavailable", holds: within_bound },
    Invariant { name: "a terminal rollout has no upgrade under way", holds: terminal_is_terminal },
    Invariant { name: "an end has its time, and nothing else has", holds: ends_have_times },
    Invariant { name: "waves open in order", holds: waves_in_order },
    Invariant { name: "an attempt has an id derived from it", holds: attempts_have_ids },
    Invariant { name: "only a paused rollout has a pause", holds: pause_belongs },
    Invariant { name: "every node and wave is counted once", holds: sizes_agree },
];

/// The names of those that do not hold.
#[must_use]
pub fn check(machine: &Machine) -> Vec<&'static str> {
    INVARIANTS
        .iter()
        .filter(|invariant| !(invariant.holds)(machine))
        .map(|invariant| invariant.name)
        .collect()
}

fn nothing_before_start(machine: &Machine) -> bool {
    let before = matches!(machine.rollout.state, State::Planned | State::AwaitingApproval);
    !before || machine.upgrades.values().all(|upgrade| upgrade.attempt == 0)
}

fn ordered_in_opened_waves(machine: &Machine) -> bool {
    let opened = |wave: usize| gate::opened(machine.rollout.waves[wave].state);
    machine.upgrades.values().all(|upgrade| upgrade.attempt == 0 || opened(upgrade.wave))
}

fn within_bound(machine: &Machine) -> bool {
    gate::count(&machine.rollout, &machine.upgrades).in_flight <= machine.rollout.max_unavailable
}

fn terminal_is_terminal(machine: &Machine) -> bool {
    let active = machine.upgrades.values().any(|u| matches!(u.state, UpgradeState::Active(_)));
    !(machine.rollout.state.is_terminal() && active)
}

fn ends_have_times(machine: &Machine) -> bool {
    let rollout = machine.rollout.state.is_terminal() == machine.rollout.ended.is_some();
    rollout && machine.upgrades.values().all(|u| u.state.outcome().is_some() == u.ended.is_some())
}

fn waves_in_order(machine: &Machine) -> bool {
    let waves = &machine.rollout.waves;
    let first_closed = waves.iter().position(|wave| !gate::opened(wave.state)).unwrap_or(waves.len());
    waves[first_closed..].iter().skip(1).all(|wave| wave.state == WaveState::Pending)
}

fn attempts_have_ids(machine: &Machine) -> bool {
    machine.upgrades.values().all(|upgrade| {
        let derived = super::machine::upgrade_id(&machine.rollout.id, &upgrade.node, upgrade.attempt);
        upgrade.id.as_ref().is_none_or(|id| *id == derived && upgrade.attempt > 0)
    })
}

fn pause_belongs(machine: &Machine) -> bool {
    machine.rollout.pause.is_some() == (machine.rollout.state == State::Paused)
}

fn sizes_agree(machine: &Machine) -> bool {
    machine.rollout.waves.iter().enumerate().all(|(index, wave)| {
        machine.upgrades.values().filter(|upgrade| upgrade.wave == index).count() == wave.size
    })
}
