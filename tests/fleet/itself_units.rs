//! The agent upgrades itself where systemd keeps it: the units of `dist/systemd`, run by a faked manager.

use std::{
    fs,
    time::{Duration, Instant},
};

use upfleet_api::v1::{self, UpgradeState, rollout::State};

use crate::support::{
    AGENT, Fleet, TestFleet, eventually, itself,
    own_units::{GUARD, Given, Keeper, UNIT, keep},
    skip, within_async,
};

const SHORT: Given =
    Given { deadline: Duration::from_secs(20), soak: Duration::from_millis(500), memory: 512 };

/// Nodes whose agents systemd keeps, with a running component each.
async fn fleet(names: &[String], given: Given) -> Option<(TestFleet, Vec<Keeper>)> {
    let mut fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    let mut keepers = Vec::new();
    for name in names {
        let index = fleet.add_node(name, None).await;
        let program = itself::current(fleet.dir());
        keepers.push(keep(&fleet.nodes[index], &fleet.dir().join(name), &program, given)?);
    }
    for name in names {
        fleet.api.reach_online(name, true).await;
    }
    fleet.install_base("*").await;
    Some((fleet, keepers))
}

async fn one(test: &str, given: Given) -> Option<(TestFleet, Keeper)> {
    let made = fleet(&["n1".to_owned()], given).await;
    if made.is_none() {
        skip(test, "there is no dbus-daemon");
    }
    made.map(|(fleet, mut keepers)| (fleet, keepers.remove(0)))
}

/// The component's process on a node.
fn component(fleet: &TestFleet, node: &str) -> u32 {
    fleet.node(node).running().expect("the component runs").1
}

fn spec(fleet: &TestFleet, version: &str, node: &str) -> v1::RolloutSpec {
    v1::RolloutSpec { selector: format!("name={node}"), ..fleet.spec_of(AGENT, version) }
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
    let hangs = format!(
        "#!/bin/sh\ncase \" $* \" in *' trial '*) exec {} \"$@\";; esac\nexec sleep 3600\n",
        real.display()
    );
    fleet.api.publish_agent("9.2.0", 3, hangs.as_bytes()).await;
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.2.0")).await;
    eventually("the new one to run", || {
        let arguments = fs::read(format!("/proc/{}/cmdline", keeper.agent())).ok()?;
        arguments.starts_with(b"sleep").then_some(())
    });
    keeper.loses_power();
    let begun = Instant::now();
    keeper.boots();
    let reason = rolled_back(&fleet, &rollout, "n1", SHORT.deadline + Duration::from_secs(30)).await;
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
