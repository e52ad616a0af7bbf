//! Bad agents on a node that Upfleet itself keeps (`run --supervised`): each is put back in time, with a reason, and nobody
//! whom the agent looks after notices. The same under systemd is told elsewhere.
//!
//! `UPFLEET_ENDURE=1` does each five times with the deadline of a minute.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use upfleet_api::v1::{RolloutSpec, Upgrade, UpgradeState, WaveSpec, rollout::State};
use upfleet_domain::digest::Digest;

use crate::support::{
    AGENT, Fleet, Node, TestFleet,
    bad_agents::{self, Bad, Where},
    count, endure, eventually, itself, within_async,
};

/// What a node is given beyond the guard's deadline until all is as it was.
const BEYOND: Duration = Duration::from_secs(30);
/// Until when whatever is waited for must have come; what is promised has a limit of its own.
const LIMIT: Duration = Duration::from_secs(180);

/// How it is timed: the guard's deadline, when the late crash comes, and the soak time that it comes in.
struct Times {
    deadline: Duration,
    later: Duration,
    soak: &'static str,
    rounds: u64,
}

fn times() -> Times {
    if endure() {
        let (deadline, later) = (Duration::from_secs(60), Duration::from_secs(20));
        Times { deadline, later, soak: "30s", rounds: 5 }
    } else {
        let (deadline, later) = (Duration::from_secs(12), Duration::from_secs(2));
        Times { deadline, later, soak: "5s", rounds: 1 }
    }
}

/// A node whose agent keeps itself, with a running component.
async fn node(fleet: &TestFleet, name: &str, times: &Times, bad: Bad) -> Node {
    let mut node = fleet.enrolled(name, None).await;
    let deadline = times.deadline.as_secs();
    let guard = format!("deadline = \"{deadline}s\"\nmemory_max = \"200MiB\"");
    node.be_itself(&itself::current(fleet.dir()), &guard);
    // Those two are healthy at first.
    if matches!(bad, Bad::CrashesLater(_) | Bad::FillsMemory) {
        node.soak_itself(times.soak);
    }
    node.start_supervised();
    fleet.api.reach_online(name, true).await;
    fleet.install_base(&format!("name={name}")).await;
    node
}

/// A rollout of the agent to one node.
fn spec(fleet: &TestFleet, node: &Node, version: &str) -> RolloutSpec {
    let mut spec = fleet.spec_of(AGENT, version);
    spec.selector = format!("name={}", node.name);
    spec.policy.as_mut().unwrap().waves = vec![WaveSpec { size: Some(count(1000)), ..Default::default() }];
    spec
}

/// Rolls a release of the agent out to one node and waits for an end of it; returns the rollout, too.
async fn roll(fleet: &TestFleet, node: &Node, version: &str) -> (String, Upgrade) {
    let rollout = fleet.api.start(spec(fleet, node, version)).await;
    let ended = ended(fleet, node, &rollout, version).await;
    (rollout, ended)
}

async fn ended(fleet: &TestFleet, node: &Node, rollout: &str, version: &str) -> Upgrade {
    within_async(LIMIT, &format!("{} to end with {version}", node.name), || async {
        let upgrade = fleet.api.upgrade(rollout, &node.name).await;
        let ends = [
            UpgradeState::Succeeded,
            UpgradeState::RolledBack,
            UpgradeState::RollbackFailed,
            UpgradeState::FailedUnchanged,
            UpgradeState::Refused,
        ];
        if ends.contains(&upgrade.state()) { Ok(upgrade) } else { Err(format!("{:?}", upgrade.state())) }
    })
    .await
}

/// Ends a rollout that is halted, so that its node is free.
async fn give_up(fleet: &TestFleet, rollout: &str) {
    fleet.api.reach(rollout, State::Halted).await;
    fleet.cli(&["rollout", "cancel", rollout.trim_start_matches("rollouts/"), "--yes"]);
    fleet.api.reach(rollout, State::Cancelled).await;
}

fn reason(upgrade: &Upgrade) -> String {
    upgrade.reason.as_ref().map_or_else(String::new, |reason| format!("{} {}", reason.code, reason.message))
}

/// One bad agent that has passed its trial: how long it took until the node was as before.
async fn put_back(fleet: &TestFleet, node: &Node, bad: Bad, round: u64, times: &Times) -> Duration {
    let what = format!("{bad:?} on {}, round {round}", node.name);
    let (old, component) = (itself::installed(node).unwrap(), node.running().expect("the component runs"));
    let version = format!("9.{round}.0-{}", node.name);
    let dir = fleet.dir().join("lost");
    let agent = bad_agents::agent(fleet.dir());
    let bytes = bad_agents::bytes(&agent, &dir, bad, Where::Run, &version);
    fleet.api.publish_agent(&version, sequence(node, 2 * round), &bytes).await;

    let rollout = fleet.api.start(spec(fleet, node, &version)).await;
    let took = back_in_time(node, times, old, &what).await;
    let upgrade = ended(fleet, node, &rollout, &version).await;
    assert_eq!(upgrade.state(), UpgradeState::RolledBack, "{what}: {}", reason(&upgrade));
    let said = reason(&upgrade);
    assert!(bad_agents::put_back_for(bad).iter().any(|words| said.contains(words)), "{what}: {said}");
    assert_eq!(itself::installed(node), Some(old), "{what}");
    assert_eq!(node.running().as_ref(), Some(&component), "{what}: the component was touched");
    at_rest(node, &what);

    // It is not tried again.
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    fleet.api.reach(&rollout, State::Halted).await;
    fleet.cli(&["rollout", "retry", &id]);
    fleet.api.reach_upgrade(&rollout, &node.name, UpgradeState::Refused).await;
    assert_eq!(itself::installed(node), Some(old), "{what}");
    give_up(fleet, &rollout).await;

    // A good one is taken all the same.
    let version = format!("9.{round}.1-{}", node.name);
    let good = itself::variant(fleet.dir(), &version);
    let digest = fleet.api.publish_agent(&version, sequence(node, 2 * round + 1), &good).await;
    let (_, upgrade) = roll(fleet, node, &version).await;
    assert_eq!(upgrade.state(), UpgradeState::Succeeded, "{what}: {}", reason(&upgrade));
    assert_eq!(itself::installed(node), Some(digest), "{what}");
    assert_eq!(node.running(), Some(component), "{what}: the component was touched");
    at_rest(node, &what);
    took
}

/// From the marker's being set: how long until the old agent runs again, which must be in time.
async fn back_in_time(node: &Node, times: &Times, old: Digest, what: &str) -> Duration {
    within_async(LIMIT, &format!("{what}: the marker"), || async {
        itself::marker(node).exists().then_some(()).ok_or_else(String::new)
    })
    .await;
    let before = node.find_own_agent();
    let began = Instant::now();
    within_async(LIMIT, &format!("{what}: the old agent"), || async {
        let other = node.find_own_agent().filter(|pid| Some(*pid) != before);
        let back = other.is_some() && itself::runs_installed(node) && itself::lies(node, old);
        back.then_some(()).ok_or_else(|| format!("{other:?}"))
    })
    .await;
    let took = began.elapsed();
    let limit = times.deadline + BEYOND;
    assert!(took < limit, "{what}: back after {took:?}, not within {limit:?}");
    took
}

/// Releases of one component have sequences of their own; these nodes share a component's name.
fn sequence(node: &Node, number: u64) -> u64 {
    let node: u64 = node.name.trim_start_matches('b').parse().unwrap();
    1000 * (number + 1) + node
}

/// Nobody watches any more, and one agent runs: the one that lies there.
fn at_rest(node: &Node, what: &str) {
    eventually(&format!("{what}: one parent and its agent alone"), || {
        let strays = itself::strays(node);
        (strays.is_empty() && itself::runs_installed(node)).then_some(())
    });
    assert!(!itself::marker(node).exists(), "{what}: the marker is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_bad_agent_is_put_back_in_time() {
    let times = times();
    let fleet = std::sync::Arc::new(Fleet { nodes: 0, ..Fleet::default() }.start().await);
    let times = std::sync::Arc::new(times);
    // Made once, before many want it.
    itself::current(fleet.dir());
    let mut running = JoinSet::new();
    for (number, bad) in bad_agents::all(times.later).into_iter().enumerate() {
        let (fleet, times) = (std::sync::Arc::clone(&fleet), std::sync::Arc::clone(&times));
        running.spawn(async move {
            let node = node(&fleet, &format!("b{number}"), &times, bad).await;
            let mut longest = Duration::ZERO;
            for round in 1..=times.rounds {
                longest = longest.max(put_back(&fleet, &node, bad, round, &times).await);
            }
            (bad, longest)
        });
    }
    let (deadline, rounds) = (times.deadline.as_secs(), times.rounds);
    while let Some(ended) = running.join_next().await {
        let (bad, longest) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let name = bad.name();
        let longest = longest.as_secs_f64();
        println!(
            "figure: bad_agent_{name} put back {rounds} of {rounds} times, at the latest after {longest:.1} s (deadline {deadline} s)"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_agent_that_fails_in_its_trial_is_never_switched_in() {
    let times = times();
    let fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    let node = node(&fleet, "b1", &times, Bad::Exits).await;
    let (agent, component) = (node.own_agent(), node.running());
    let own = bad_agents::agent(fleet.dir());
    for (number, bad) in (1..).zip(bad_agents::all(times.later)) {
        // A trial is over before much memory is taken; two need its whole minute.
        if bad == Bad::FillsMemory || matches!(bad, Bad::Hangs | Bad::NoConnection) && !endure() {
            continue;
        }
        let version = format!("9.{number}.0");
        let bytes = bad_agents::bytes(&own, fleet.dir(), bad, Where::Trial, &version);
        fleet.api.publish_agent(&version, number + 1, &bytes).await;
        let (rollout, upgrade) = roll(&fleet, &node, &version).await;
        assert_eq!(upgrade.state(), UpgradeState::FailedUnchanged, "{bad:?}: {}", reason(&upgrade));
        assert_eq!((node.own_agent(), node.running()), (agent, component.clone()), "{bad:?}");
        at_rest(&node, &format!("{bad:?}"));
        give_up(&fleet, &rollout).await;
    }
}
