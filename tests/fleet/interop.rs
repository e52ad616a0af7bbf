//! Agents and controllers one version apart, in both directions. The whole suite in both directions is in `.ci/endure`.

use upfleet_api::v1::rollout::State;

use crate::support::{Behaviour, Fleet, TestFleet, next};

/// A fleet whose nodes `n2` and `n4` have agents of the next version.
async fn mixed(controller: std::path::PathBuf) -> TestFleet {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Crashes)];
    let mut fleet = Fleet { nodes: 0, base: None, releases, ..Fleet::default() }.start().await;
    fleet.kill_controller();
    fleet.program = controller;
    fleet.start_controller().await;
    for name in ["n1", "n2", "n3", "n4"] {
        let index = fleet.add_node(name, None).await;
        if index % 2 == 1 {
            fleet.nodes[index].program = next::agent();
        }
        fleet.nodes[index].start();
        fleet.api.reach_online(name, true).await;
    }
    fleet
}

#[tokio::test]
async fn a_mixed_fleet_says_which_versions_it_has() {
    let fleet = mixed(next::wanted_controller()).await;
    let versions = |name: &'static str| async { fleet.api.node(name).await.facts["agent_version"].clone() };
    assert_eq!(versions("n1").await, env!("CARGO_PKG_VERSION"));
    assert_eq!(versions("n2").await, next::VERSION);
    fleet.install("1.1.0").await;
    let name = fleet.api.start(fleet.spec("1.2.0")).await;
    fleet.api.reach(&name, State::Halted).await;
}
