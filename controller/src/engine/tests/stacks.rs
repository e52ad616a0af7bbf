//! Patch stacks, bases with stacks and live patches over the engine.

use upfleet_domain::{
    digest::Digest,
    id::Version,
    order::Target,
    patch::{BaseRange, Fix, Live, PatchSpec, PatchedClass},
    release::{ArtifactRef, FORMAT, Kind, Manifest},
    rollout::StackChange,
    state::{Base, ReleaseRef},
};

use super::*;

/// Patch `number`: a class of its own and a fix of its own.
fn patch(number: u32) -> Manifest {
    let class = PatchedClass {
        name: format!("com.acme.C{number}"),
        accepts: vec![Digest::of(b"base")],
        parent: Some(Digest::of(b"base")),
        patched: Digest::of(&number.to_be_bytes()),
        major: 52,
    };
    let spec = PatchSpec {
        number,
        base: BaseRange { to_sequence: Some(1), ..BaseRange::default() },
        fixes: vec![Fix { id: format!("FIX-{number}"), text: String::new() }],
        classes: vec![class],
        removed: vec![],
        resources: vec![],
        requires: vec![],
        supersedes: vec![],
        module: None,
        live: Live { possible: true, problems: vec![] },
        needs_restart: false,
    };
    let kind = Kind::Patch;
    Manifest { kind, patch: Some(spec), ..binary(&format!("p{number}"), u64::from(number)) }
}

fn binary(version: &str, sequence: u64) -> Manifest {
    let artifact = ArtifactRef {
        platform: platform(),
        sha256: Digest::of(version.as_bytes()),
        md5: None,
        size: 1,
        sources: vec![],
        encodings: vec![],
    };
    Manifest {
        format: FORMAT,
        component: "web".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: vec![],
        patch: None,
        files: None,
    }
}

fn base() -> ComponentState {
    let manifest = binary("1.0.0", 1);
    ComponentState::release(ReleaseRef {
        component: manifest.component.clone(),
        version: manifest.version.clone(),
        sequence: 1,
        manifest: Digest::of(&manifest.to_bytes()),
        artifact: manifest.artifacts[0].sha256,
    })
}

async fn world(fates: &[Fate]) -> World {
    World::running(&base(), vec![binary("1.0.0", 1), patch(1), patch(2)], fates).await
}

fn versions(names: &[&str]) -> Vec<Version> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn stack(apply: &[&str], live: bool) -> RolloutChange {
    RolloutChange::Stack(StackChange { apply: versions(apply), live, ..StackChange::default() })
}

async fn change(world: &World, change: RolloutChange, policy: Policy) -> RolloutId {
    let mut wish = wish(policy);
    wish.spec.change = change;
    let id = world.rollouts.create(&anna(), wish, None).await.unwrap().rollout.unwrap().id;
    world.rollouts.command(&anna(), command(&id, "start"), Event::Start).await.unwrap();
    id
}

fn numbers(state: &ComponentState) -> Vec<u32> {
    state.layers.iter().map(|layer| layer.number).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_is_rolled_out_changed_and_rolled_back_and_history_keeps_it_all() {
    let world = world(&[Fate::Good; 3]).await;
    let engine = engine(&world);
    let first = change(&world, stack(&["p1", "p2"], false), policy(&[1, 9], 2)).await;
    let ended = world.until(&first, State::is_terminal).await;
    assert_eq!((ended.state, ended.live), (State::Succeeded, false), "{}", ended.reason);
    assert!(world.agents.installed().values().all(|state| numbers(state) == [2, 1]));
    let order = world.agents.orders().remove(0);
    assert_eq!((order.target, order.live), (Target::Stack(base().base), false));
    let node: NodeId = "n00".parse().unwrap();
    let row = world.store.upgrade(&first, &node).await.unwrap().unwrap();
    assert_eq!(row.proof.map(|proof| proof.classes.len()), Some(2));

    let remove = RolloutChange::Stack(StackChange { remove: vec![2], ..StackChange::default() });
    let second = change(&world, remove, policy(&[9], 3)).await;
    assert_eq!(world.until(&second, State::is_terminal).await.state, State::Succeeded);
    assert!(world.agents.installed().values().all(|state| numbers(state) == [1]));
    let back = world.rollouts.roll_back(&anna(), &second, "", false, None).await.unwrap();
    let back = back.rollout.unwrap().id;
    assert_eq!(world.until(&back, State::is_terminal).await.state, State::Succeeded);
    assert!(world.agents.installed().values().all(|state| numbers(state) == [2, 1]));

    let all = world.store.history(&node, None, &crate::store::Page::ALL).await.unwrap().rows;
    let found: Vec<_> = all.iter().map(|entry| (numbers(&entry.from), numbers(&entry.to))).collect();
    assert_eq!(found.len(), 3, "{all:?}");
    assert!(found.contains(&(vec![], vec![2, 1])) && found.contains(&(vec![2, 1], vec![1])));
    assert!(found.contains(&(vec![1], vec![2, 1])));
    assert!(all.iter().all(|entry| entry.actor == "users/anna" && entry.rollout.is_some()));
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_rollout_is_live_and_so_is_its_way_back() {
    let world = world(&[Fate::Good; 2]).await;
    let engine = engine(&world);
    let id = change(&world, stack(&["p1"], true), policy(&[9], 2)).await;
    let ended = world.until(&id, State::is_terminal).await;
    assert_eq!((ended.state, ended.live), (State::Succeeded, true), "{}", ended.reason);
    let back = world.rollouts.roll_back(&anna(), &id, "", false, None).await.unwrap().rollout.unwrap();
    assert!(back.live);
    assert_eq!(world.until(&back.id, State::is_terminal).await.state, State::Succeeded);
    assert!(world.agents.installed().values().all(|state| *state == base()));
    let orders = world.agents.orders();
    assert!(orders.iter().all(|order| order.live), "{orders:?}");
    assert!(orders.iter().any(|order| order.target == Target::Restore(base())));
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_patch_that_rolls_back_on_three_nodes_is_quarantined_and_its_base_is_not() {
    let world = world(&[Fate::Bad; 3]).await;
    let engine = engine(&world);
    let all = upfleet_domain::rollout::Budget { limit: NodeCount::Percent(100), minimum_sample: 1 };
    let bears = Policy { budgets: [(upfleet_domain::rollout::Cause::Probe, all)].into(), ..policy(&[9], 3) };
    let id = change(&world, stack(&["p1"], false), bears).await;
    assert_eq!(world.until(&id, State::is_terminal).await.state, State::SucceededWithFailures);
    let nodes = |name: &'static [u8]| {
        let store = world.store.clone();
        async move { store.quarantine(&Digest::of(name)).await.unwrap().map(|record| record.nodes.len()) }
    };
    assert_eq!((nodes(b"p1").await, nodes(b"1.0.0").await), (Some(3), None));
    let mut again = wish(policy(&[9], 3));
    again.spec.change = stack(&["p1"], false);
    let plan = world.rollouts.plan(&again).await.unwrap();
    assert_eq!(plan.excluded[0].1.code, ReasonCode::ReleaseQuarantined);
    engine.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_base_with_its_stack_goes_and_comes_back_together() {
    let world = world(&[Fate::Good; 2]).await;
    let engine = engine(&world);
    let id = change(&world, stack(&["p1"], false), policy(&[9], 2)).await;
    world.until(&id, State::is_terminal).await;

    // The base does not have the fix, and the patch is not for it.
    let lost = world.rollouts.create(&anna(), wish(policy(&[9], 2)), None).await.unwrap_err();
    assert_eq!(lost.code, ReasonCode::FixLost);
    assert!(lost.message().contains("on n00, n01"), "{lost}");
    let waived = RolloutChange::BaseWithStack {
        version: "2.0.0".parse().unwrap(),
        apply: vec![],
        waive_fixes: vec!["FIX-1".into()],
        allow_downgrade: false,
        allow_failed_digest: false,
    };
    let id = change(&world, waived, policy(&[9], 2)).await;
    assert_eq!(world.until(&id, State::is_terminal).await.state, State::Succeeded);
    assert!(world.agents.installed().values().all(|state| *state == new()));
    let back = world.rollouts.roll_back(&anna(), &id, "", false, None).await.unwrap().rollout.unwrap();
    assert_eq!(world.until(&back.id, State::is_terminal).await.state, State::Succeeded);
    let installed = world.agents.installed();
    assert!(installed.values().all(|state| state.base == base().base && numbers(state) == [1]));
    assert!(matches!(world.agents.orders().last().unwrap().target, Target::Restore(_)));
    assert!(matches!(installed.values().next().unwrap().base, Base::Release(_)));
    engine.shutdown_background();
}
