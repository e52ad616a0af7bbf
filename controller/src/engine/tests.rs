//! The engine over a real store, among simulated agents; and killed at fifty points of a rollout.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::runtime::{Builder, Runtime};
use upfleet_domain::{
    id::UpgradeId,
    reason::ReasonCode,
    rollout::{
        Change as RolloutChange, FailedNodes, NodeCount, OnFailure, Policy, Restore, Spec, State, WaveSpec,
        event::Event,
    },
    state::ComponentState,
    upgrade::Outcome,
};

use super::*;
use crate::{
    auth::{Principal, Role},
    engine::tests::agents::*,
};

mod agents;
mod stacks;

fn anna() -> Principal {
    Principal::User { user: "anna".parse().unwrap(), role: Role::Operator }
}

fn policy(waves: &[u32], max_unavailable: u32) -> Policy {
    let wave = |size: &u32| WaveSpec { size: NodeCount::Count(*size), approval: false, bake: Duration::ZERO };
    let max_unavailable = NodeCount::Count(max_unavailable);
    Policy { waves: waves.iter().map(wave).collect(), max_unavailable, ..Policy::default() }
}

fn wish(policy: Policy) -> Wish {
    let change = RolloutChange::Install {
        version: "2.0.0".parse().unwrap(),
        allow_downgrade: false,
        allow_failed_digest: false,
    };
    let spec = Spec { component: "web".parse().unwrap(), selector: "*".into(), change, policy, seed: 1 };
    Wish { spec, message: "CHG-1".into(), expected: None }
}

fn command<'c>(id: &'c RolloutId, action: &'c str) -> Command<'c> {
    Command { id, etag: "", action, message: "because" }
}

/// Creates and starts a rollout.
async fn roll_out(world: &World, policy: Policy) -> RolloutId {
    let created = world.rollouts.create(&anna(), wish(policy), None).await.unwrap();
    let id = created.rollout.unwrap().id;
    world.rollouts.command(&anna(), command(&id, "start"), Event::Start).await.unwrap();
    id
}

/// An engine on a runtime of its own, so that it can be killed with everything it spawned.
fn engine(world: &World) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let engine = Engine::new(world.store.clone(), world.clock.clone(), None, CancellationToken::new());
    runtime.spawn(engine.run());
    runtime
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_runs_to_its_end() {
    let world = World::new(&[Fate::Good; 5]).await;
    let engine = engine(&world);
    let id = roll_out(&world, policy(&[1, 9], 2)).await;
    let rollout = world.until(&id, State::is_terminal).await;
    assert_eq!(rollout.state, State::Succeeded, "{}", rollout.reason);
    assert!(world.agents.most_down() <= 2);
    assert!(world.agents.swaps().values().all(|swaps| swaps.len() == 1));
    assert_eq!(rollout.last_actor, "users/anna");
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_canary_halts_and_is_never_offered_again() {
    let world = World::new(&[Fate::Bad, Fate::Bad, Fate::Bad]).await;
    let engine = engine(&world);
    let id = roll_out(&world, policy(&[1, 9], 2)).await;
    let rollout = world.until(&id, |state| state == State::Halted).await;
    assert_eq!(rollout.reason.code, ReasonCode::BudgetExceeded);
    let canary = world.agents.swaps().into_keys().next().unwrap();
    let desired = world.store.desired(&canary).await.unwrap().remove(0).desired.unwrap();
    assert_eq!(desired.target, upfleet_domain::order::Target::Restore(old()));
    assert_eq!(desired.upgrade, None);

    let skip = |by| Event::Resume { failed: Some(FailedNodes::Skip), allow_failed_digest: false, by };
    world.rollouts.command(&anna(), command(&id, "resume"), skip).await.unwrap();
    world.until(&id, |state| state == State::Halted).await;
    // Three nodes in all: the digest is quarantined, and another rollout of it is refused.
    world.rollouts.command(&anna(), command(&id, "cancel"), Event::Cancel).await.unwrap();
    world.until(&id, State::is_terminal).await;
    let release = world.store.quarantine(&new().artifact().unwrap()).await.unwrap();
    assert_eq!(release.map(|record| record.nodes.len()), Some(3));
    let reason = world.rollouts.create(&anna(), wish(policy(&[9], 2)), None).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::EmptyPlan);
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_is_a_linked_rollout_and_ends_the_first() {
    let world = World::new(&[Fate::Good, Fate::Good, Fate::Bad, Fate::Bad, Fate::Bad]).await;
    let engine = engine(&world);
    let id = roll_out(&world, Policy { on_failure: OnFailure::RevertAll, ..policy(&[9], 5) }).await;
    let rollout = world.until(&id, State::is_terminal).await;
    assert_eq!(rollout.state, State::Reverted, "{}", rollout.reason);
    assert!(world.agents.installed().values().all(|state| *state == old()));
    if let Some(linked) = rollout.reverted_by {
        let linked = world.rollouts.rollout(&linked).await.unwrap();
        assert_eq!((linked.state, linked.reverts.as_ref()), (State::Succeeded, Some(&id)));
        assert_eq!(linked.spec.change, RolloutChange::Restore(Restore::BeforeRollout(id)));
    }
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revert_that_had_to_leave_a_node_out_has_failed() {
    let world = World::new(&[Fate::Good, Fate::Good, Fate::Bad]).await;
    let reverts = Policy { on_failure: OnFailure::RevertAll, ..policy(&[9], 3) };
    let id = world.rollouts.create(&anna(), wish(reverts), None).await.unwrap().rollout.unwrap().id;
    let mut node = world.store.node(&"n00".parse().unwrap()).await.unwrap().unwrap();
    node.state = crate::store::NodeState::Cordoned;
    let expected = crate::store::Expected::Any;
    world.store.commit(vec![crate::store::Change::PutNode { node, expected }]).await.unwrap();
    world.rollouts.command(&anna(), command(&id, "start"), Event::Start).await.unwrap();
    let engine = engine(&world);
    let rollout = world.until(&id, State::is_terminal).await;
    assert_eq!(rollout.state, State::RevertFailed, "{}", rollout.reason);
    let installed = world.agents.installed();
    assert_eq!((&installed[&"n00".parse().unwrap()], &installed[&"n01".parse().unwrap()]), (&new(), &old()));
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rolling_an_open_rollout_back_twice_by_one_request_is_once() {
    let world = World::new(&[Fate::Good; 2]).await;
    let id = roll_out(&world, Policy { approval: true, ..policy(&[9], 1) }).await;
    world
        .rollouts
        .command(&anna(), command(&id, "approve"), |by| Event::Approve { wave: None, by })
        .await
        .unwrap();
    let body = upfleet_api::v1::RollBackRolloutRequest { name: "x".into(), ..Default::default() };
    let once =
        crate::ops::Once::of("RollBackRollout", "9f2c3a1e-0000-4000-8000-000000000002", &body).unwrap();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let done = world.rollouts.roll_back(&anna(), &id, "", false, once.as_ref()).await.unwrap();
        answers.push(done.rollout.unwrap().id);
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(
        world.store.audit(None, &crate::store::Page::ALL).await.unwrap().rows[0].action,
        "rollout.rollback"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_rollout_is_rolled_back() {
    let world = World::new(&[Fate::Good; 3]).await;
    let engine = engine(&world);
    let id = roll_out(&world, policy(&[9], 3)).await;
    world.until(&id, State::is_terminal).await;
    let dry = world.rollouts.roll_back(&anna(), &id, "", true, None).await.unwrap();
    assert_eq!((dry.rollout, dry.plan.upgrades.len()), (None, 3));
    let done = world.rollouts.roll_back(&anna(), &id, "", false, None).await.unwrap();
    let linked = done.rollout.unwrap();
    let ended = world.until(&linked.id, State::is_terminal).await;
    assert_eq!(ended.state, State::Succeeded, "{}", ended.reason);
    assert!(world.agents.installed().values().all(|state| *state == old()));
    let original = world.rollouts.rollout(&id).await.unwrap();
    assert_eq!((original.state, original.reverted_by), (State::Succeeded, Some(linked.id)));
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_say_why_and_change_nothing() {
    let world = World::new(&[Fate::Good; 3]).await;
    let rollouts = &world.rollouts;
    let plan = rollouts.plan(&wish(policy(&[9], 1))).await.unwrap();
    let expected = Wish { expected: Some(plan.digest), ..wish(policy(&[9], 1)) };
    let first = rollouts.create(&anna(), expected.clone(), None).await.unwrap().rollout.unwrap().id;
    let second = rollouts.create(&anna(), wish(policy(&[9], 1)), None).await.unwrap().rollout.unwrap().id;
    let stale = Command { etag: "0.nothing", ..command(&first, "start") };
    let reason = rollouts.command(&anna(), stale, Event::Start).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::EtagMismatch);
    rollouts.command(&anna(), command(&first, "start"), Event::Start).await.unwrap();
    let reason = rollouts.command(&anna(), command(&second, "start"), Event::Start).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::ConcurrentRollout);
    let reason = rollouts.create(&anna(), expected, None).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::PlanChanged);
    assert!(reason.message().contains("in rollout"), "{reason}");
    let nobody = "r-none".parse().unwrap();
    let reason = rollouts.command(&anna(), command(&nobody, "start"), Event::Start).await.unwrap_err();
    assert_eq!(reason.code, ReasonCode::NotFound);
}

/// Agents that never fall silent, and an engine with five steps to do after each of their words.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_among_many_words_is_still_commanded() {
    let world = World::new(&[Fate::Good]).await;
    let id = world.rollouts.create(&anna(), wish(policy(&[9], 1)), None).await.unwrap().rollout.unwrap().id;
    let (gate, left) = (Arc::new(tokio::sync::RwLock::new(())), Arc::new(AtomicUsize::new(5)));
    let rollouts = world.rollouts.clone().gated(gate.clone());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (gate, left) = (gate.clone(), left.clone());
        tasks.spawn(async move {
            loop {
                let _passes = gate.read().await;
                left.store(5, Ordering::SeqCst);
                tokio::task::yield_now().await;
            }
        });
    }
    let (store, of) = (world.store.clone(), id.clone());
    tasks.spawn(async move {
        loop {
            if left.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
                continue;
            }
            let record = store.rollout(&of).await.unwrap().unwrap();
            let expected = crate::store::Expected::Revision(record.version);
            let time = upfleet_domain::time::Time(1);
            let step = crate::store::Change::PutRollout { rollout: Box::new(record), expected, time };
            let _ = store.commit(vec![step]).await;
            let _ = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        }
    });
    let started = rollouts.command(&anna(), command(&id, "start"), Event::Start).await;
    assert!(started.is_ok(), "{started:?}");
    tasks.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_twice_is_one_rollout() {
    let world = World::new(&[Fate::Good; 2]).await;
    let body = upfleet_api::v1::CreateRolloutRequest { message: "x".into(), ..Default::default() };
    let id = "9f2c3a1e-0000-4000-8000-000000000001";
    let once = crate::ops::Once::of("CreateRollout", id, &body).unwrap();
    let anna = anna();
    let create = || world.rollouts.create(&anna, wish(policy(&[9], 1)), once.as_ref());
    let (one, two) = (create().await.unwrap(), create().await.unwrap());
    assert_eq!(one.rollout, two.rollout);
    assert_eq!(one.plan, two.plan);
}

/// Killed at one point after another of the same rollout, the engine ends it as if nothing had happened. Six nodes in
/// every run, 200 in the long matrices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_killed_at_fifty_points_ends_where_it_would_have_ended() {
    let long = std::env::var_os("UPFLEET_ENDURE").is_some();
    let (nodes, waves, bound) = if long { (200, [10, 60, 999], 20) } else { (6, [1, 2, 9], 2) };
    let mut kills = 0;
    for point in 1..=50 {
        let world = World::new(&vec![Fate::Good; nodes]).await;
        let mut notices = world.store.subscribe();
        let mut running = engine(&world);
        let id = roll_out(&world, policy(&waves, bound)).await;
        let mut heard = 0;
        // As many changes lie between two points as there are nodes to a wave of the small fleet.
        let at = point * (nodes / 6);
        while !world.rollouts.rollout(&id).await.unwrap().state.is_terminal() {
            if let Ok(Ok(Notice::Rollout { .. })) =
                tokio::time::timeout(Duration::from_secs(5), notices.recv()).await
            {
                heard += 1;
            }
            // Twice: the second time perhaps while the next one takes over.
            if heard == at || heard == at + 3 {
                std::mem::replace(&mut running, engine(&world)).shutdown_background();
                heard += 1;
                kills += 1;
            }
        }
        let rollout = world.rollouts.rollout(&id).await.unwrap();
        assert_eq!(rollout.state, State::Succeeded, "killed at {point}: {}", rollout.reason);
        assert!(world.agents.most_down() <= bound as usize, "killed at {point}");
        let swaps = world.agents.swaps();
        assert_eq!(swaps.len(), nodes, "killed at {point}");
        assert!(swaps.values().all(|ids: &Vec<UpgradeId>| ids.len() == 1), "killed at {point}: {swaps:?}");
        running.shutdown_background();
    }
    println!(
        "figure: engine_kills {kills} kills at 50 points of rollouts over {nodes} simulated nodes, 0 duplicate installs, at most {bound} down"
    );
}
