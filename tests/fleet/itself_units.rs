//! The agent upgrades itself where systemd keeps it: the units of `dist/systemd`, run by a faked manager.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinSet;
use upfleet_api::v1::{self, UpgradeState, rollout::State};

use crate::support::{
    AGENT, Fleet, Node, TestFleet,
    bad_agents::{self, Bad, Where},
    count, endure, eventually, itself,
    own_units::{GUARD, Given, Keeper, UNIT, keep},
    skip, within_async,
};

/// What a node is given beyond the guard's deadline until all is as it was.
const BEYOND: Duration = Duration::from_secs(30);

const SHORT: Given =
    Given { deadline: Duration::from_secs(20), soak: Duration::from_millis(500), memory: 512 };

/// A node whose agent systemd keeps, with a running component.
async fn node(fleet: &TestFleet, name: &str, given: Given) -> Option<(Node, Keeper)> {
    let node = fleet.enrolled(name, None).await;
    let keeper = keep(&node, &fleet.dir().join(name), &itself::current(fleet.dir()), given)?;
    fleet.api.reach_online(name, true).await;
    fleet.install_base(&format!("name={name}")).await;
    Some((node, keeper))
}

/// A fleet of one such node; `None`, and said so, where that can't be.
async fn one(test: &str, given: Given) -> Option<(TestFleet, Keeper)> {
    let mut fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    let made = node(&fleet, "n1", given).await;
    if made.is_none() {
        skip(test, "there is no dbus-daemon");
    }
    made.map(|(node, keeper)| {
        fleet.nodes.push(node);
        (fleet, keeper)
    })
}

/// The component's process on a node.
fn component(fleet: &TestFleet, node: &str) -> u32 {
    fleet.node(node).running().expect("the component runs").1
}

/// A rollout of the agent to one node.
fn spec(fleet: &TestFleet, version: &str, node: &str) -> v1::RolloutSpec {
    let mut spec = v1::RolloutSpec { selector: format!("name={node}"), ..fleet.spec_of(AGENT, version) };
    spec.policy.as_mut().unwrap().waves =
        vec![v1::WaveSpec { size: Some(count(1000)), ..Default::default() }];
    spec
}

#[tokio::test]
async fn under_systemd_a_new_agent_takes_over_and_nobody_notices() {
    let Some((fleet, keeper)) = one("under_systemd_a_new_agent_takes_over_and_nobody_notices", SHORT).await
    else {
        return;
    };
    let (before, agent) = (component(&fleet, "n1"), keeper.agent());
    let new = itself::variant(fleet.dir(), "9.1.0");
    fleet.api.publish_agent("9.1.0", 2, &new).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    assert!(keeper.runs(&new) && keeper.agent() != agent);
    assert_eq!(component(&fleet, "n1"), before, "the component was not touched");
    keeper.settles();
    let calls = keeper.systemd.calls();
    assert_eq!(
        calls.iter().filter(|call| **call == format!("StartUnit {GUARD}")).count(),
        1,
        "the agent had its guard started: {calls:?}"
    );
    let standing = keeper.systemd.standing(UNIT);
    assert_eq!((standing.restarts, standing.active, standing.result), (1, "active", "success"));

    // What it looks after is upgraded by the new one; and back by hand, which is guarded as well.
    fleet.install("1.1.0").await;
    let before = component(&fleet, "n1");
    let back = fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]);
    assert_eq!(back.code, 0, "{back:?}");
    let old = fs::read(itself::current(fleet.dir())).unwrap();
    eventually("the version before to run", || keeper.runs(&old).then_some(()));
    keeper.settles();
    assert_eq!(component(&fleet, "n1"), before);
}

/// Without a guard nothing is switched.
#[tokio::test]
async fn under_systemd_an_agent_whose_guard_can_t_be_started_stays() {
    let name = "under_systemd_an_agent_whose_guard_can_t_be_started_stays";
    let Some((fleet, keeper)) = one(name, SHORT).await else { return };
    let agent = keeper.agent();
    keeper.systemd.mask(GUARD);
    fleet.api.publish_agent("9.1.0", 2, &itself::variant(fleet.dir(), "9.1.0")).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::FailedUnchanged).await;
    let reason = upgrade.reason.unwrap();
    assert!(reason.code == "GUARD_NOT_SET" && reason.message.contains("masked"), "{reason:?}");
    assert_eq!(keeper.agent(), agent, "the same process");
    assert!(!keeper.marker().exists());
}

/// The node loses its power while a new agent is under watch, twice: once with one that is good, and once with one that
/// never reports.
#[tokio::test]
async fn under_systemd_a_reboot_in_the_middle_changes_nothing() {
    let name = "under_systemd_a_reboot_in_the_middle_changes_nothing";
    let Some((fleet, keeper)) = one(name, SHORT).await else { return };
    let good = itself::variant(fleet.dir(), "9.1.0");
    fleet.api.publish_agent("9.1.0", 2, &good).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    eventually("the watch to begin", || keeper.marker().exists().then_some(()));
    keeper.loses_power();
    assert!(keeper.marker().exists());
    keeper.boots();
    assert_eq!(keeper.systemd.standing(GUARD).active, "active", "its condition holds");
    fleet.api.reach(&rollout, State::Succeeded).await;
    assert!(keeper.runs(&good));
    keeper.settles();

    let real = itself::current(fleet.dir());
    let hangs = bad_agents::bytes(&real, fleet.dir(), Bad::Hangs, Where::Run, "9.2.0");
    fleet.api.publish_agent("9.2.0", 3, &hangs).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.2.0")).await;
    eventually("the new one to run", || keeper.runs(&hangs).then_some(()));
    keeper.loses_power();
    let begun = Instant::now();
    keeper.boots();
    let reason = rolled_back(&fleet, &rollout, "n1", SHORT.deadline + BEYOND).await;
    println!("back after {:?}: {}", begun.elapsed(), reason.message);
    assert!(reason.message.contains("did not report to the controller within 20 s"), "{reason:?}");
    assert!(keeper.runs(&good));
    keeper.settles();
    eventually("the component to run again", || fleet.node("n1").running());
}

/// Waits until the node has said that it is back on the old version, and why.
async fn rolled_back(fleet: &TestFleet, rollout: &str, node: &str, limit: Duration) -> v1::Reason {
    let what = format!("{node} to be back");
    let upgrade = within_async(limit, &what, || async {
        let upgrade = fleet.api.upgrade(rollout, node).await;
        if upgrade.state() == UpgradeState::RolledBack { Ok(upgrade) } else { Err(format!("{upgrade:?}")) }
    });
    upgrade.await.reason.unwrap()
}

/// How the matrix is timed: what a new agent is given, when the late crash comes, and how often each is tried.
fn times(bad: Bad) -> (Given, u64) {
    // Those two are healthy at first: the soak time is what they fail in.
    let late = matches!(bad, Bad::CrashesLater(_) | Bad::FillsMemory);
    let (deadline, soak, rounds) = if endure() { (60, 30, 5) } else { (12, 5, 1) };
    let soak = if late { Duration::from_secs(soak) } else { SHORT.soak };
    (Given { deadline: Duration::from_secs(deadline), soak, memory: 200 }, rounds)
}

/// One bad agent that has passed its trial: how long it took until the node was as before.
async fn put_back(
    fleet: &TestFleet,
    (node, keeper): (&Node, &Keeper),
    (bad, sequence): (Bad, u64),
    given: Given,
) -> Duration {
    let what = format!("{bad:?} on {}", node.name);
    let (old, component) = (itself::installed(node).unwrap(), node.running().expect("the component runs"));
    let version = format!("9.{sequence}.0");
    let real = bad_agents::agent(fleet.dir());
    let bytes = bad_agents::bytes(&real, &fleet.dir().join("lost"), bad, Where::Run, &version);
    fleet.api.publish_agent(&version, sequence, &bytes).await;
    let begun = Instant::now();
    let rollout = fleet.api.start(spec(fleet, &version, &node.name)).await;
    let said = rolled_back(fleet, &rollout, &node.name, given.deadline + BEYOND).await;
    let took = begun.elapsed();
    println!("{what}: {} ({} ms)", said.message, took.as_millis());
    let expected = bad_agents::put_back_for(bad);
    assert!(expected.iter().any(|words| said.message.contains(words)), "{what}: {said:?}");
    assert_eq!(itself::installed(node), Some(old), "{what}");
    assert_eq!(node.running(), Some(component), "{what}: the component was touched");
    keeper.settles();
    let standing = keeper.systemd.standing(UNIT);
    assert_eq!((standing.active, standing.sub), ("active", "running"), "{what}");
    fleet.api.reach(&rollout, State::Halted).await;
    fleet.cli(&["rollout", "cancel", rollout.trim_start_matches("rollouts/"), "--yes"]);
    fleet.api.reach(&rollout, State::Cancelled).await;
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_systemd_each_bad_agent_is_put_back_in_time() {
    let fleet = Arc::new(Fleet { nodes: 0, ..Fleet::default() }.start().await);
    // Made once, before many want it.
    itself::current(fleet.dir());
    let later = Duration::from_secs(if endure() { 20 } else { 2 });
    let mut running = JoinSet::new();
    for (number, bad) in (1_u64..).zip(bad_agents::all(later)) {
        let fleet = Arc::clone(&fleet);
        running.spawn(async move {
            let (given, rounds) = times(bad);
            let (node, keeper) = node(&fleet, &format!("b{number}"), given).await?;
            let mut longest = Duration::ZERO;
            for round in 1..=rounds {
                let sequence = 100 * round + number;
                let took = put_back(&fleet, (&node, &keeper), (bad, sequence), given).await;
                longest = longest.max(took);
            }
            Some((bad, given, rounds, longest))
        });
    }
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let Some((bad, given, rounds, longest)) = ended else {
            return skip("under_systemd_each_bad_agent_is_put_back_in_time", "there is no dbus-daemon");
        };
        println!(
            "figure: bad_agent_systemd_{} put back {rounds} of {rounds} times, at the latest after {:.1} s (deadline {} s)",
            bad.name(),
            longest.as_secs_f64(),
            given.deadline.as_secs()
        );
    }
}
