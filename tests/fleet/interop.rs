//! Agents and controllers one version apart, in both directions. The whole suite in both directions is in `.ci/endure`.

use std::{collections::BTreeMap, path::PathBuf};

use upfleet_agent::crash::VARIABLE;
use upfleet_api::v1::{StackChange, Standing, UpgradeState, rollout::State, rollout_spec::Change};

use crate::support::{
    Behaviour, Fleet, Node, Shops, TestFleet, apply, eventually, eventually_async, next, upgrade_states,
};

/// A fleet of this controller whose nodes `n2` and `n4` have agents of the next version.
async fn mixed(controller: PathBuf) -> TestFleet {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Crashes)];
    let program = Some(controller);
    let mut fleet = Fleet { nodes: 0, releases, program, ..Fleet::default() }.start().await;
    for name in ["n1", "n2", "n3", "n4"] {
        let index = fleet.add_node(name, None).await;
        fleet.nodes[index].program = if index % 2 == 1 { next::agent() } else { next::current_agent() };
        fleet.nodes[index].start();
        fleet.api.reach_online(name, true).await;
    }
    fleet.install_base("*").await;
    fleet
}

/// Another controller on the same data.
pub async fn replace(fleet: &mut TestFleet, controller: PathBuf) {
    fleet.stop_controller().await;
    fleet.program = controller;
    fleet.start_controller().await;
}

/// Waits until `node` runs `version`.
fn runs(node: &Node, version: &str) -> u32 {
    eventually(&format!("{} to run {version}", node.name), || {
        node.running().filter(|(runs, _)| runs == version).map(|(_, pid)| pid)
    })
}

async fn a_mixed_fleet(controller: PathBuf) {
    let fleet = mixed(controller).await;
    let mut versions = BTreeMap::new();
    for node in &fleet.nodes {
        versions.insert(node.name.clone(), fleet.api.node(&node.name).await.facts["agent_version"].clone());
    }
    let (own, later) = (env!("CARGO_PKG_VERSION"), next::VERSION);
    assert_eq!(versions.into_values().collect::<Vec<_>>(), [own, later, own, later]);

    let rollout = fleet.install("1.1.0").await;
    assert!(fleet.nodes.iter().all(|node| runs(node, "1.1.0") > 0));
    // A bad version is put back by whichever agent has the canary.
    let bad = fleet.api.start(fleet.spec("1.2.0")).await;
    fleet.api.reach(&bad, State::Halted).await;
    let states = upgrade_states(&fleet.api.upgrades(&bad).await);
    assert!(states.values().any(|state| *state == UpgradeState::RolledBack), "{states:?}");
    assert!(fleet.nodes.iter().all(|node| runs(node, "1.1.0") > 0));
    fleet.cli(&["rollout", "cancel", bad.trim_start_matches("rollouts/"), "--yes"]);
    fleet.api.reach(&bad, State::Cancelled).await;
    fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]).success();
    assert!(fleet.nodes.iter().all(|node| runs(node, "1.0.0") > 0));
    for node in &fleet.nodes {
        // It is the same state, whoever wrote it down, and whoever tells it.
        let component = fleet.api.component(&node.name).await.unwrap();
        assert_eq!(component.running_digest.unwrap().value.as_ref(), node.digest().unwrap().0);
        assert_eq!(component.kept.len(), 2, "{}: {:?}", node.name, component.kept);
        assert_eq!(component.alarms, [], "{}", node.name);
    }
}

#[tokio::test]
async fn a_mixed_fleet_under_the_current_controller() {
    a_mixed_fleet(next::current_controller()).await;
}

#[tokio::test]
async fn a_mixed_fleet_under_the_next_controller() {
    a_mixed_fleet(next::controller()).await;
}

/// The agent of one version goes on with what the other has written, up and down again: nothing is moved aside, the
/// process stays, and what either kept can be gone back to.
#[tokio::test]
async fn an_agent_goes_on_with_the_state_of_the_other_version() {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)];
    let mut fleet = Fleet { nodes: 0, releases, ..Fleet::default() }.start().await;
    for (name, first, second) in [
        ("up", next::current_agent(), next::agent()),
        // Its shim is of the next version, and outlives that.
        ("down", next::agent(), next::current_agent()),
    ] {
        let index = fleet.add_node(name, None).await;
        let only = format!("name={name}");
        take(&mut fleet, index, first.clone()).await;
        fleet.install_base(&only).await;
        install(&fleet, &only, "1.1.0").await;
        let pid = runs(&fleet.nodes[index], "1.1.0");
        let before = fleet.api.component(name).await.unwrap();
        for program in [&second, &first, &second] {
            take(&mut fleet, index, program.clone()).await;
            let now = fleet.api.component(name).await.unwrap();
            assert_eq!((now.current, now.kept), (before.current.clone(), before.kept.clone()));
            assert_eq!((now.drift, now.alarms), (None, vec![]));
            assert_eq!(runs(&fleet.nodes[index], "1.1.0"), pid, "the same process");
        }
        let rollout = install(&fleet, &only, "1.2.0").await;
        take(&mut fleet, index, first).await;
        fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]).success();
        runs(&fleet.nodes[index], "1.1.0");
        let history = fleet.nodes[index].run(&["history", "-o", "json"]).success();
        let ended = history.matches("SUCCEEDED").count();
        assert!(ended >= 3, "both have written it, and either reads all of it: {history}");
    }
}

/// What one version's agent was in the middle of when it died, the other one's ends.
#[tokio::test]
async fn an_upgrade_begun_by_one_version_is_ended_by_the_other() {
    let fleet = Fleet { nodes: 0, ..Fleet::default() }.start().await;
    for (count, point) in
        ["journal.append.after:4", "switch.renamed", "journal.append.torn:6"].iter().enumerate()
    {
        for (other, first, second) in [
            ("next", next::current_agent(), next::agent()),
            ("current", next::agent(), next::current_agent()),
        ] {
            let name = format!("{other}-{count}");
            let mut node = fleet.enrolled(&name, None).await;
            node.program = first;
            node.start();
            fleet.api.reach_online(&name, true).await;
            let only = format!("name={name}");
            fleet.install_base(&only).await;
            node.kill();
            node.start_with(&[(VARIABLE, point)]);
            let mut spec = fleet.spec("1.1.0");
            spec.selector = only;
            let rollout = fleet.api.start(spec).await;
            eventually(&format!("the agent of {name} to die at {point}"), || node.ended().then_some(()));
            node.kill();
            node.program = second;
            node.start();
            fleet.api.reach(&rollout, State::Succeeded).await;
            runs(&node, "1.1.0");
            assert_eq!(fleet.api.component(&name).await.unwrap().alarms, [], "{name} at {point}");
        }
    }
}

/// A patch of a Java application through agents of both versions, live, and taken back.
#[tokio::test]
async fn a_patch_goes_to_agents_of_both_versions() {
    let Some(mut shops) = Shops::start("a_patch_goes_to_agents_of_both_versions", 2, "").await else {
        return;
    };
    let other =
        if std::env::var_os("UPFLEET_TEST_AGENT").is_some() { next::current_agent() } else { next::agent() };
    take(&mut shops.fleet, 1, other.clone()).await;
    shops.patch_to(1, "new", "new", &["--fix", "SHOP-1"]);
    let live = StackChange { live: true, ..apply(&["p1"]) };
    let rollout = shops.run(Change::Stack(live)).await;
    for node in ["n1", "n2"] {
        assert_eq!(shops.says(node), ("new".to_owned(), "new".to_owned()));
        let proof = shops.fleet.api.upgrade(&rollout, node).await.proof.expect("a stack is proved");
        assert!(proof.classes.iter().all(|class| class.standing() != Standing::Unspecified));
    }
    // The one's set of patches is in force for the other, too.
    let pid = shops.pid("n1");
    take(&mut shops.fleet, 0, other).await;
    let known = shops.fleet.api.component("n1").await.unwrap();
    assert_eq!((shops.pid("n1"), known.drift, known.alarms), (pid, None, vec![]));
    let back = Change::Stack(StackChange { none: true, live: true, ..Default::default() });
    shops.run(back).await;
    for node in ["n1", "n2"] {
        assert_eq!(shops.says(node), ("old".to_owned(), "old".to_owned()));
    }
}

/// Stops the node's agent and starts another program in its place.
async fn take(fleet: &mut TestFleet, index: usize, program: PathBuf) {
    let name = fleet.nodes[index].name.clone();
    fleet.nodes[index].stop();
    fleet.nodes[index].program = program.clone();
    fleet.nodes[index].start();
    let version = if program == next::agent() { next::VERSION } else { env!("CARGO_PKG_VERSION") };
    eventually_async(&format!("{name} to be heard of as {version}"), || async {
        let node = fleet.api.node(&name).await;
        let said = node.facts.get("agent_version").cloned().unwrap_or_default();
        if node.online && said == version { Ok(()) } else { Err(format!("{said}, online {}", node.online)) }
    })
    .await;
}

/// Rolls `version` out to those that `selector` names.
async fn install(fleet: &TestFleet, selector: &str, version: &str) -> String {
    let mut spec = fleet.spec(version);
    spec.selector = selector.to_owned();
    let name = fleet.api.start(spec).await;
    fleet.api.reach(&name, State::Succeeded).await;
    name
}
