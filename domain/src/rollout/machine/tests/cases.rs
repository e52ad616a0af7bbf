//! Single cases: what each rule of a rollout does, one by one.

use std::time::Duration;

use super::*;
use crate::rollout::{Policy, WaveSpec};

const GOOD: Fate = Fate::Good;

fn wave(size: u32) -> WaveSpec {
    WaveSpec { size: NodeCount::Count(size), approval: false, bake: Duration::ZERO }
}

fn policy(waves: &[u32]) -> Policy {
    let waves = waves.iter().map(|size| wave(*size)).collect();
    Policy { waves, max_unavailable: NodeCount::Count(2), ..Policy::default() }
}

fn started(policy: Policy, fates: &[Fate]) -> World {
    let mut world = World::new(policy, fates, 1);
    world.put(Event::Start(by())).unwrap();
    world
}

fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn outcome(world: &World, name: &str) -> Option<Outcome> {
    world.machine.upgrades[&node(name)].state.outcome()
}

fn expect(world: &World, state: State, code: ReasonCode) {
    let rollout = &world.machine.rollout;
    assert_eq!((rollout.state, rollout.reason.code), (state, code), "{}", rollout.reason);
    assert!(!rollout.reason.message().contains('?'), "{}", rollout.reason);
}

fn resume(failed: Option<FailedNodes>) -> Event {
    Event::Resume { failed, allow_failed_digest: true, by: by() }
}

#[test]
fn waves_are_done_in_order_and_end_well() {
    let mut world = started(policy(&[1, 9]), &[GOOD; 5]);
    assert_eq!(world.told.len(), 1, "the canary alone");
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
    assert!(world.nodes.values().all(|node| node.swaps.len() == 1 && node.installed == state("2")));
}

#[test]
fn an_approval_is_waited_for_and_must_be_for_what_waits() {
    let mut asks = policy(&[1, 9]);
    asks.approval = true;
    asks.waves[1].approval = true;
    let mut world = started(asks, &[GOOD; 3]);
    expect(&world, State::AwaitingApproval, ReasonCode::AwaitingApproval);
    assert!(world.told.is_empty());
    world.put(Event::Approve { wave: None, by: by() }).unwrap();
    world.quiesce();
    expect(&world, State::Running, ReasonCode::AwaitingApproval);
    assert_eq!(world.machine.rollout.waves[1].state, WaveState::AwaitingApproval);
    let late = world.put(Event::Approve { wave: Some(0), by: by() }).unwrap_err();
    assert_eq!(late.code, ReasonCode::IllegalTransition);
    world.put(Event::Approve { wave: Some(1), by: by() }).unwrap();
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
    assert_eq!(world.machine.rollout.waves[1].approver.as_deref(), Some("users/anna"));
}

#[test]
fn a_wave_bakes_before_the_next_and_drift_in_it_is_a_failure() {
    let mut bakes = policy(&[1, 9]);
    bakes.waves[0].bake = Duration::from_secs(60);
    let mut world = started(bakes, &[GOOD; 3]);
    world.quiesce();
    expect(&world, State::Running, ReasonCode::WaveBaking);
    world.pass(59);
    assert_eq!(world.told.len(), 1);
    let drift = Some(Reason::new(ReasonCode::Drifted).with("actual", "x").with("recorded", "y"));
    let presence = Presence { offline_since: None, unhealthy: false, drift };
    world.put(Event::Presence { node: node("n00"), presence }).unwrap();
    expect(&world, State::Halted, ReasonCode::BudgetExceeded);
    assert_eq!(outcome(&world, "n00"), Some(Outcome::Succeeded), "what was recorded stands");
}

#[test]
fn a_bad_canary_halts_and_resuming_must_say_what_becomes_of_it() {
    let mut world = started(policy(&[1, 9]), &[Fate::Bad, GOOD, GOOD]);
    world.quiesce();
    expect(&world, State::Halted, ReasonCode::BudgetExceeded);
    assert_eq!(world.told.len(), 2, "the order, and what the node proved");
    assert_eq!(world.told[1].2, Tell::Settle(state("1")));
    assert_eq!(world.put(resume(None)).unwrap_err().code, ReasonCode::FailedNodesUndecided);
    world.put(resume(Some(FailedNodes::Skip))).unwrap();
    world.quiesce();
    expect(&world, State::SucceededWithFailures, ReasonCode::RolloutFailures);
    assert_eq!(outcome(&world, "n00"), Some(Outcome::RolledBack));
}

#[test]
fn only_the_failed_nodes_are_tried_again() {
    let mut world = started(policy(&[1, 9]), &[Fate::Bad, GOOD]);
    world.quiesce();
    world.put(resume(Some(FailedNodes::Skip))).unwrap();
    world.quiesce();
    world.nodes.get_mut(&node("n00")).unwrap().fate = GOOD;
    let nodes = vec![node("n00")];
    let wrong = Event::Retry { nodes: vec![node("n01")], allow_failed_digest: true, by: by() };
    assert_eq!(world.put(wrong).unwrap_err().code, ReasonCode::InvalidArgument);
    world.put(Event::Retry { nodes, allow_failed_digest: true, by: by() }).unwrap();
    assert_eq!(world.machine.rollout.state, State::Running);
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
    assert_eq!(world.machine.upgrades[&node("n00")].attempt, 2);
    assert_eq!(world.nodes[&node("n01")].swaps.len(), 1);
}

#[test]
fn a_halt_can_put_back_what_succeeded() {
    for (on_failure, expected) in [(OnFailure::RevertWave, 0), (OnFailure::RevertAll, 1)] {
        let reverts = Policy { on_failure, ..policy(&[1, 9]) };
        let mut world = started(reverts, &[GOOD, Fate::Bad, GOOD]);
        world.quiesce();
        let canary = world.reverted.iter().filter(|id| **id == node("n00")).count();
        assert_eq!(canary, expected, "{on_failure:?}");
        if world.machine.rollout.state == State::Reverting {
            expect(&world, State::Reverting, ReasonCode::RevertingIn);
            world.put(Event::RevertEnded(State::Succeeded)).unwrap();
            expect(&world, State::Reverted, ReasonCode::Reverted);
        }
    }
}

#[test]
fn a_revert_that_fails_says_so_and_is_not_reverted() {
    let mut world =
        started(Policy { on_failure: OnFailure::RevertAll, ..policy(&[1, 9]) }, &[GOOD, Fate::Bad]);
    world.quiesce();
    world.put(Event::RevertEnded(State::SucceededWithFailures)).unwrap();
    expect(&world, State::RevertFailed, ReasonCode::RevertFailed);
    let mut revert = World::new(Policy { on_failure: OnFailure::RevertAll, ..policy(&[9]) }, &[Fate::Bad], 1);
    revert.machine.rollout.reverts = Some("r-0".parse().unwrap());
    revert.put(Event::Start(by())).unwrap();
    revert.quiesce();
    assert_eq!(revert.machine.rollout.state, State::Halted);
}

#[test]
fn a_cancel_recalls_those_under_way_and_keeps_the_rest_as_it_is() {
    let mut world = started(policy(&[9]), &[GOOD; 4]);
    let first = node("n00");
    for _ in 0..4 {
        world.node_obeys(&first);
        world.node_advances(&first);
    }
    world.put(Event::Cancel(by())).unwrap();
    assert_eq!(world.machine.rollout.state, State::Cancelling);
    world.quiesce();
    expect(&world, State::Cancelled, ReasonCode::Cancelled);
    assert_eq!(outcome(&world, "n00"), Some(Outcome::RolledBack));
    assert_eq!(outcome(&world, "n03"), Some(Outcome::Cancelled));
    assert!(world.nodes.values().all(|node| node.installed == state("1")));
}

#[test]
fn a_pause_stops_new_nodes_or_at_the_safe_point() {
    let mut world = started(policy(&[9]), &[GOOD; 4]);
    world.put(Event::Pause { strength: PauseStrength::StartNoMore, by: by() }).unwrap();
    world.quiesce();
    expect(&world, State::Paused, ReasonCode::Paused);
    assert_eq!(world.nodes.values().filter(|node| node.installed == state("2")).count(), 2);
    world.put(resume(None)).unwrap();
    world.put(Event::Pause { strength: PauseStrength::NextSafePoint, by: by() }).unwrap();
    world.quiesce();
    assert_eq!(world.nodes.values().filter(|node| node.installed == state("2")).count(), 2);
    world.put(resume(None)).unwrap();
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
}

#[test]
fn silent_nodes_within_their_budget_hold_nothing_and_expire_in_the_end() {
    let budget = Policy { silence_budget: NodeCount::Count(1), ..policy(&[2, 9]) };
    let mut world = World::new(budget, &[GOOD; 4], 1);
    world.set_online(&node("n00"), false);
    world.put(Event::Start(by())).unwrap();
    world.quiesce();
    assert_eq!(world.machine.rollout.waves[0].state, WaveState::Running, "not silent yet");
    world.pass(301);
    world.quiesce();
    expect(&world, State::Running, ReasonCode::RolloutOffline);
    assert_eq!(world.machine.upgrades[&node("n00")].reason.code, ReasonCode::Offline);
    world.pass(72 * 3600);
    expect(&world, State::SucceededWithFailures, ReasonCode::RolloutFailures);
    assert_eq!(outcome(&world, "n00"), Some(Outcome::Expired));
}

#[test]
fn silent_nodes_beyond_their_budget_hold_the_wave_with_a_reason() {
    let mut world = World::new(policy(&[2, 9]), &[GOOD; 4], 1);
    world.set_online(&node("n00"), false);
    world.put(Event::Start(by())).unwrap();
    world.pass(301);
    world.quiesce();
    expect(&world, State::Running, ReasonCode::SilenceExceeded);
    world.put(Event::Skip { node: node("n00"), by: by() }).unwrap();
    world.quiesce();
    expect(&world, State::SucceededWithFailures, ReasonCode::RolloutFailures);
}

#[test]
fn a_node_that_returns_gets_the_order() {
    let mut world = World::new(Policy { silence_budget: NodeCount::Count(1), ..policy(&[9]) }, &[GOOD; 2], 1);
    world.set_online(&node("n01"), false);
    world.put(Event::Start(by())).unwrap();
    world.pass(301);
    world.quiesce();
    world.set_online(&node("n01"), true);
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
}

#[test]
fn unhealthy_nodes_count_as_unavailable() {
    let one = Policy { max_unavailable: NodeCount::Count(1), ..policy(&[9]) };
    let mut world = World::new(one, &[GOOD; 3], 1);
    let presence = Presence { offline_since: None, unhealthy: true, drift: None };
    world.put(Event::Presence { node: node("n02"), presence: presence.clone() }).unwrap();
    world.put(Event::Start(by())).unwrap();
    let told: Vec<&NodeId> = world.told.iter().map(|(node, ..)| node).collect();
    assert_eq!(told, [&node("n02")], "only the one that is down already");
    expect(&world, State::Running, ReasonCode::RolloutRunning);
    world.put(Event::Skip { node: node("n02"), by: by() }).unwrap();
    world.quiesce();
    assert_eq!(outcome(&world, "n01"), Some(Outcome::Succeeded));
}

#[test]
fn a_late_word_replaces_what_was_presumed() {
    let mut world = started(policy(&[9]), &[GOOD; 1]);
    let id = node("n00");
    (0..4).for_each(|_| {
        world.node_obeys(&id);
        world.node_advances(&id);
    });
    world.set_online(&id, false);
    world.pass(80 * 3600);
    assert_eq!(outcome(&world, "n00"), Some(Outcome::Expired));
    world.set_online(&id, true);
    world.quiesce();
    assert_eq!(outcome(&world, "n00"), Some(Outcome::Succeeded), "the node's word counts");
    assert_eq!(world.machine.rollout.state, State::SucceededWithFailures);
}

#[test]
fn a_retired_node_is_left_out() {
    let mut world = started(policy(&[9]), &[GOOD; 2]);
    world.put(Event::Retired(node("n00"))).unwrap();
    world.quiesce();
    assert_eq!(outcome(&world, "n00"), Some(Outcome::Skipped));
    expect(&world, State::SucceededWithFailures, ReasonCode::RolloutFailures);
}

#[test]
fn after_a_restore_nothing_is_ordered_until_a_person_says_so() {
    let mut world = started(policy(&[9]), &[GOOD, Fate::Bad, GOOD]);
    world.node_obeys(&node("n01"));
    world.put(Event::Restored).unwrap();
    // The orders are forgotten with the store, but what was begun goes on by itself.
    world.forget_orders();
    let told = world.told.len();
    world.quiesce();
    expect(&world, State::Paused, ReasonCode::RestoredFromBackup);
    assert_eq!((world.told.len(), outcome(&world, "n01")), (told, Some(Outcome::RolledBack)));
    world.put(resume(Some(FailedNodes::Skip))).unwrap();
    assert!(world.told[told..].iter().any(|(id, _, tell)| *id == node("n00") && *tell == Tell::Continue));
    world.quiesce();
    expect(&world, State::SucceededWithFailures, ReasonCode::RolloutFailures);
}

#[test]
fn ids_of_attempts_are_derived() {
    let (rollout, long) = ("r-1".parse().unwrap(), "n".repeat(63).parse().unwrap());
    assert_eq!(upgrade_id(&rollout, &node("web-01"), 2).as_str(), "r-1.web-01.2");
    let far = format!("r{}", "x".repeat(62)).parse().unwrap();
    assert!(upgrade_id(&far, &long, 1).as_str().starts_with("u-"));
}

#[test]
fn a_revert_about_to_start_waits_for_a_person_after_a_restore() {
    let mut world = World::new(policy(&[9]), &[GOOD; 2], 1);
    world.machine.rollout.reverts = Some("r-first".parse().unwrap());
    world.put(Event::Restored).unwrap();
    expect(&world, State::AwaitingApproval, ReasonCode::AwaitingApproval);
    world.pass(60);
    assert!(world.told.is_empty());
    world.put(Event::Approve { wave: None, by: by() }).unwrap();
    world.quiesce();
    expect(&world, State::Succeeded, ReasonCode::RolloutSucceeded);
}

#[test]
fn a_halted_rollout_orders_nothing_after_a_restore_either() {
    let mut world = started(policy(&[9]), &[Fate::Bad, Fate::Bad]);
    // Restored before the engine has seen how the nodes ended.
    world.put(Event::Pause { strength: PauseStrength::StartNoMore, by: by() }).unwrap();
    world.machine.rollout.state = State::Halted;
    world.machine.rollout.pause = None;
    world.put(Event::Restored).unwrap();
    let told = world.told.len();
    for name in ["n00", "n01"] {
        let upgrade = world.machine.upgrades.get_mut(&node(name)).unwrap();
        upgrade.state = UpgradeState::Ended(Outcome::RolledBack);
        upgrade.ended = Some(Time(1));
    }
    world.put(Event::Tick).unwrap();
    assert_eq!(world.told.len(), told, "{:?}", world.told);
    world.put(resume(Some(FailedNodes::Skip))).unwrap();
    assert_eq!(world.told.len(), told + 2, "what stands is told once a person has spoken");
}
