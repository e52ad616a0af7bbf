//! A fleet of real agents upgrades itself by a rollout to the next version and back, again and again, with rollouts of
//! another component in between. Nothing that the agents look after notices.
//!
//! `UPFLEET_ENDURE=1`: twenty nodes, twenty times; else three nodes, once.

use std::{
    fs,
    time::{Duration, Instant},
};

use upfleet_api::v1::{self, WaveSpec, rollout::State};

use crate::support::{AGENT, Fleet, TestFleet, count, endure, itself, next, within_async};

/// How long one rollout may take. It takes some seconds on a quiet machine.
const LIMIT: Duration = Duration::from_secs(600);
const NEXT: &str = "0.2.0";

/// Waits for the end of a rollout; says how long that took.
async fn ends(fleet: &TestFleet, rollout: &str, began: Instant) -> Duration {
    within_async(LIMIT, &format!("{rollout} to succeed"), || async {
        let state = fleet.api.rollout(rollout).await.state();
        if state == State::Succeeded { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    began.elapsed()
}

/// A rollout to all nodes at once.
fn spec(fleet: &TestFleet, component: &str, version: &str) -> v1::RolloutSpec {
    let mut spec = fleet.spec_of(component, version);
    spec.policy.as_mut().unwrap().waves = vec![WaveSpec { size: Some(count(1000)), ..Default::default() }];
    spec
}

/// The private memory of all agents, in MiB.
fn memory(fleet: &TestFleet) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.split_whitespace().next()?.parse().ok()
    };
    fleet.nodes.iter().filter_map(|node| of(node.own_agent())).sum::<u64>() / 1024
}

/// Every node runs what lies there, and nothing else is left.
async fn at_rest(fleet: &TestFleet, what: &str) {
    within_async(LIMIT, what, || async {
        for node in &fleet.nodes {
            let (strays, runs) = (itself::strays(node), itself::runs_installed(node));
            if !strays.is_empty() || !runs || itself::marker(node).exists() {
                return Err(format!("{}: {strays:?}, runs what lies there: {runs}", node.name));
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fleet_upgrades_itself_and_goes_back_again_and_again() {
    let (nodes, rounds) = if endure() { (20, 20) } else { (3, 1) };
    let mut fleet = Fleet { nodes: 0, releases: vec![], ..Fleet::default() }.start().await;
    let current = itself::current(fleet.dir());
    for number in 1..=nodes {
        let index = fleet.add_node(&format!("n{number}"), None).await;
        fleet.nodes[index].be_itself(&current, "");
        fleet.nodes[index].start_supervised();
    }
    for node in &fleet.nodes {
        fleet.api.reach_online(&node.name, true).await;
    }
    fleet.install_base("*").await;
    let bytes = fs::read(itself::stripped(&next::agent(), &fleet.dir().join("agent-next"))).unwrap();
    let new = fleet.api.publish_agent(NEXT, 2, &bytes).await;
    let old = itself::installed(&fleet.nodes[0]);
    let memory_before = memory(&fleet);
    let (mut slowest, mut all) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=rounds {
        let running: Vec<_> = fleet.nodes.iter().map(|node| node.running()).collect();
        let rollout = fleet.api.start(spec(&fleet, AGENT, NEXT)).await;
        let there = ends(&fleet, &rollout, Instant::now()).await;
        at_rest(&fleet, &format!("round {round}: there")).await;
        for node in &fleet.nodes {
            assert_eq!(itself::installed(node), Some(new), "round {round}");
        }
        let request = v1::RollBackRolloutRequest { name: rollout, ..Default::default() };
        let began = Instant::now();
        let back = fleet.api.client.rollouts().roll_back_rollout(request).await.unwrap().into_inner();
        let back = ends(&fleet, &back.rollout.unwrap().name, began).await;
        at_rest(&fleet, &format!("round {round}: back")).await;
        for (node, running) in fleet.nodes.iter().zip(&running) {
            assert_eq!(itself::installed(node), old, "round {round}");
            assert!(
                running.is_some() && node.running() == *running,
                "round {round}: {running:?} was touched"
            );
        }
        // Another component in between, by the agent that came back.
        let version = format!("1.{round}.0");
        let script = crate::support::script(&version, crate::support::Behaviour::Good);
        fleet.api.publish(&version, 100 + round, &script).await;
        let rollout = fleet.api.start(spec(&fleet, crate::support::COMPONENT, &version)).await;
        ends(&fleet, &rollout, Instant::now()).await;
        println!("round {round}: there {:.1} s, back {:.1} s", there.as_secs_f64(), back.as_secs_f64());
        (slowest, all) = (slowest.max(there).max(back), all + there + back);
    }
    at_rest(&fleet, "the end").await;
    let mean = all.as_secs_f64() / f64::from(u32::try_from(2 * rounds).unwrap());
    println!(
        "figure: agents_of_a_fleet {nodes} nodes, {rounds} times there and back, mean {mean:.1} s per rollout, slowest {:.1} s, memory of all agents {memory_before} MiB before and {} MiB after, no process left, no component touched",
        slowest.as_secs_f64(),
        memory(&fleet)
    );
}
