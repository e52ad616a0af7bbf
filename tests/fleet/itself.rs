//! The agent upgrades itself: by a rollout like any other, under guard, and nobody whom it looks after notices.

use std::path::Path;

use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::support::{AGENT, Fleet, TestFleet, eventually, itself};

/// A fleet of nodes whose agents run under a parent, with a running component each.
async fn fleet(nodes: usize) -> TestFleet {
    let mut fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    for number in 1..=nodes {
        let index = fleet.add_node(&format!("n{number}"), None).await;
        fleet.nodes[index].be_itself(&itself::current(fleet.dir()), "");
        fleet.nodes[index].start_supervised();
    }
    for node in &fleet.nodes {
        fleet.api.reach_online(&node.name, true).await;
    }
    fleet.install_base("*").await;
    fleet
}

fn shim_of(fleet: &TestFleet, node: &str) -> u32 {
    fleet.node(node).running().expect("the component runs").1
}

#[tokio::test]
async fn a_new_agent_takes_over_and_nobody_notices() {
    let fleet = fleet(2).await;
    let before = [shim_of(&fleet, "n1"), shim_of(&fleet, "n2")];
    let agents = [fleet.node("n1").own_agent(), fleet.node("n2").own_agent()];
    fleet.api.publish_agent("9.1.0", 2, &itself::variant(fleet.dir(), "9.1.0")).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    for (index, node) in ["n1", "n2"].into_iter().enumerate() {
        assert_eq!(shim_of(&fleet, node), before[index], "the component was not touched");
        assert_ne!(fleet.node(node).own_agent(), agents[index]);
        assert!(!marker(&fleet, node).exists(), "acknowledged");
    }
    // What it looks after is upgraded by the new one.
    fleet.install("1.1.0").await;
    // And back by hand.
    let back = fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]);
    assert_eq!(back.code, 0, "{back:?}");
}

fn marker(fleet: &TestFleet, node: &str) -> std::path::PathBuf {
    fleet.dir().join(node).join("state/itself/marker.json")
}

#[tokio::test]
async fn an_agent_that_can_t_show_what_it_can_is_not_switched_in() {
    let fleet = fleet(1).await;
    let before = fleet.node("n1").own_agent();
    fleet.api.publish_agent("9.1.0", 2, b"#!/bin/sh\necho 'no libfoo.so.9' >&2\nexit 127\n").await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::FailedUnchanged).await;
    let reason = upgrade.reason.unwrap();
    assert!(reason.code == "AGENT_TRIAL_FAILED" && reason.message.contains("no libfoo.so.9"), "{reason:?}");
    assert_eq!(fleet.node("n1").own_agent(), before, "the same process");
}

#[tokio::test]
async fn an_agent_that_ends_at_once_is_put_back() {
    let fleet = fleet(1).await;
    let before = shim_of(&fleet, "n1");
    let bad = faked(&itself::current(fleet.dir()), "echo 'cannot open shared object' >&2; exit 1");
    fleet.api.publish_agent("9.1.0", 2, &bad).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    let reason = upgrade.reason.unwrap();
    assert!(reason.message.contains("started 3 times"), "{reason:?}");
    assert!(reason.message.contains("saying `cannot open shared object`"), "{reason:?}");
    assert_eq!(shim_of(&fleet, "n1"), before);
    eventually("the watch to end", || (!marker(&fleet, "n1").exists()).then_some(()));
}

/// An agent that shows what the real one can, and then does something else.
fn faked(real: &Path, run: &str) -> Vec<u8> {
    let real = real.display();
    format!("#!/bin/sh\ncase \" $* \" in *' trial '*) exec {real} \"$@\";; esac\n{run}\n").into_bytes()
}
