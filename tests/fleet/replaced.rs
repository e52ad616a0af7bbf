//! The controller is replaced by one of another version while a rollout runs: in order and by kill -9, up and down.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use upfleet_api::v1::{self, UpgradeState, rollout::State, watch_rollout_response::Change};

use crate::{
    interop::replace,
    support::{Behaviour, Fleet, TestFleet, count, eventually, eventually_async, next},
};

const NODES: usize = 6;
/// How many nodes may be down at once.
const AT_ONCE: u32 = 2;

/// Six nodes in the waves 1, 2 and 3; the new version is healthy where and when the test says so.
async fn begin() -> (TestFleet, String) {
    let releases = vec![("1.1.0", Behaviour::HealthyWhenToldSo)];
    let program = Some(next::current_controller());
    let fleet = Fleet { nodes: NODES, releases, program, ..Fleet::default() }.start().await;
    for node in &fleet.nodes {
        node.be_patient();
    }
    let mut fleet = fleet;
    for index in 0..NODES {
        fleet.nodes[index].stop();
        fleet.nodes[index].start();
    }
    for node in &fleet.nodes {
        fleet.api.reach_online(&node.name, true).await;
    }
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.max_unavailable = Some(count(AT_ONCE));
    policy.waves =
        [1, 2, 3].map(|size| v1::WaveSpec { size: Some(count(size)), ..Default::default() }).to_vec();
    let rollout = fleet.api.start(spec).await;
    (fleet, rollout)
}

/// Waits until so many nodes have begun the new version.
fn begun(fleet: &TestFleet, nodes: usize) {
    eventually(&format!("{nodes} nodes in the new version"), || {
        let begun = fleet.nodes.iter().filter(|node| node.starts().iter().any(|version| version == "1.1.0"));
        (begun.count() == nodes).then_some(())
    });
}

/// Lets the new version be healthy on every node that has begun it.
fn let_it_be_healthy(fleet: &TestFleet) {
    for node in fleet.nodes.iter().filter(|node| node.starts().len() > 1) {
        std::fs::write(node.app("healthy"), "").unwrap();
    }
}

/// How many nodes were down at the same time at most, wave by wave; and how often each entered `ACTIVATING`.
async fn bounds(fleet: &TestFleet, rollout: &str) -> (usize, BTreeMap<String, usize>) {
    let down = |state: UpgradeState| {
        matches!(state, UpgradeState::Activating | UpgradeState::Probing | UpgradeState::RollingBack)
    };
    let (mut states, mut most, mut entered) = (BTreeMap::new(), 0, BTreeMap::new());
    for change in fleet.api.history(rollout).await {
        let before = change.previous_state();
        if let Some(Change::Upgrade(upgrade)) = change.change {
            let (node, state) = (upgrade.node.clone(), upgrade.state());
            if state == UpgradeState::Activating && before != state {
                *entered.entry(node.clone()).or_default() += 1;
            }
            states.insert(node, state);
            most = most.max(states.values().filter(|state| down(**state)).count());
        }
    }
    (most, entered)
}

/// Puts another controller in the place of the one that runs, and waits until all agents are back.
async fn put(fleet: &mut TestFleet, controller: PathBuf, in_order: bool) {
    let began = Instant::now();
    if in_order {
        fleet.stop_controller().await;
        let took = began.elapsed();
        println!("stopped in {took:?}");
        assert!(took < Duration::from_secs(5), "it waits for nobody's connection: {took:?}");
    } else {
        fleet.kill_controller();
    }
    fleet.program = controller;
    fleet.start_controller().await;
    for node in &fleet.nodes {
        fleet.api.reach_online(&node.name, true).await;
    }
    println!("all agents are back after {:?}, in order: {in_order}", began.elapsed());
}

/// The waits that the agents chose before they connected again, in milliseconds, and why they had to.
fn waits(fleet: &TestFleet) -> Vec<(u64, String)> {
    let mut waits = Vec::new();
    for node in &fleet.nodes {
        for line in node.log().lines().filter(|line| line.contains("no session with the controller")) {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            waits.push((line["retry_ms"].as_u64().unwrap(), line["problem"].as_str().unwrap().to_owned()));
        }
    }
    waits
}

#[tokio::test]
async fn a_rollout_goes_on_under_the_next_controller_and_back() {
    let (current, later) = (next::current_controller(), next::controller());
    let (mut fleet, rollout) = begin().await;
    // In each wave: replaced in the middle, once in order and once by kill -9.
    for (done, (first, second)) in [(1, (&later, &current)), (3, (&later, &current)), (5, (&later, &current))]
    {
        begun(&fleet, done);
        put(&mut fleet, first.clone(), done != 3).await;
        assert_eq!(fleet.api.rollout(&rollout).await.state(), State::Running);
        put(&mut fleet, second.clone(), done == 3).await;
        let_it_be_healthy(&fleet);
    }
    begun(&fleet, NODES);
    put(&mut fleet, later, true).await;
    let_it_be_healthy(&fleet);
    fleet.api.reach(&rollout, State::Succeeded).await;
    let (most, entered) = bounds(&fleet, &rollout).await;
    assert!(most <= AT_ONCE as usize, "{most} nodes were down at once");
    assert_eq!(entered.len(), NODES);
    assert!(entered.values().all(|times| *times == 1), "{entered:?}");
    for node in &fleet.nodes {
        assert_eq!(node.starts(), ["1.0.0", "1.1.0"], "{} was swapped once", node.name);
    }
    // The controller said that it stops, and nobody came back at the same moment.
    let waits = waits(&fleet);
    let told: Vec<u64> = waits
        .iter()
        .filter(|(_, why)| why.contains("the controller is stopping"))
        .map(|(wait, _)| *wait)
        .collect();
    assert!(told.len() >= 2 * NODES, "{waits:?}");
    assert!(told.iter().any(|wait| wait.abs_diff(told[0]) > 20), "full jitter: {told:?}");
    println!(
        "figure: controller_replaced 7 times in one rollout of {NODES} nodes, each node swapped once, {most} down at once"
    );
}

/// A later store that this version can't use is refused with what to do, and both ways out lead on.
#[tokio::test]
async fn a_controller_that_can_t_use_the_later_store_says_what_to_do() {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)];
    let program = Some(next::current_controller());
    let mut fleet = Fleet { releases, program, ..Fleet::default() }.start().await;
    let backup = fleet.dir().join("backup");
    fleet.backup(&backup);
    fleet.set_environment(vec![("UPFLEET_NEXT_STORE_IS_MAJOR", "1".to_owned())]);
    replace(&mut fleet, next::controller()).await;
    fleet.install("1.1.0").await;
    fleet.stop_controller().await;
    fleet.program = next::current_controller();
    let refused = fleet.try_start_controller().await.unwrap_err();
    assert!(refused.contains("start the newer version again"), "{refused}");
    assert!(refused.contains("upfleet restore"), "{refused}");
    // Nothing was touched: the newer one goes on.
    fleet.program = next::controller();
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    fleet.stop_controller().await;
    // And the backup from before leads back; what runs, runs on.
    fleet.program = next::current_controller();
    fleet.restore(&backup);
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    eventually_async("the fleet to be known as it is", || async {
        let component = fleet.api.component("n1").await.ok_or("no component")?;
        let running = component.running_digest.map(|digest| digest.value).unwrap_or_default();
        if running.as_ref() == fleet.nodes[0].digest().unwrap().0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    assert_eq!(fleet.nodes[0].running().unwrap().0, "1.1.0");
    fleet.install("1.2.0").await;
}
