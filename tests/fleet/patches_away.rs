//! Patches where something is missing: no controller, or an agent or a controller that dies in the middle.

use std::path::Path;

use upfleet_agent::crash::VARIABLE;
use upfleet_api::v1::{StackChange, UpgradeState, rollout::State, rollout_spec::Change};

use crate::support::{Shops, apply, eventually, eventually_async};

#[tokio::test]
async fn a_site_without_connection_is_patched_from_a_file_and_held() {
    let Some(mut shops) = Shops::start("a_site_without_connection", 1, "").await else { return };
    shops.patch_to(1, "new", "old", &["--fix", "SHOP-1"]);
    let file = shops.fleet.dir().join("site.bundle");
    let name = file.to_str().unwrap();
    shops.fleet.cli(&["release", "export", "app@p1", name]).success();
    shops.fleet.kill_controller();
    shops.fleet.node("n1").run(&["apply", name, "--message", "by hand"]).success();
    assert_eq!(shops.says("n1").0, "new");
    let pid = shops.pid("n1");
    shops.fleet.start_controller().await;
    shops.fleet.api.reach_online("n1", true).await;
    eventually_async("what was done to be known", || async {
        let component = shops.fleet.api.component("n1").await.ok_or("no component")?;
        let stack = shops.stack("n1").await;
        let known = component.hold.is_some() && component.changer == "local" && stack == ["1"];
        if known { Ok(()) } else { Err(format!("{component:?}")) }
    })
    .await;
    // It orders nothing until somebody releases it.
    let none = || Change::Stack(StackChange { none: true, ..Default::default() });
    if let Ok(rollout) = shops.fleet.api.create(shops.spec(none())).await {
        assert!(shops.fleet.api.upgrades(&rollout.name).await.is_empty(), "a held node is left out");
        shops.fleet.cli(&["rollout", "cancel", rollout.name.trim_start_matches("rollouts/"), "--yes"]);
    }
    assert_eq!((shops.pid("n1"), shops.says("n1").0), (pid, "new".to_owned()));
    shops.fleet.cli(&["node", "release", "n1", "app"]).success();
    eventually_async("the hold to be lifted", || async {
        let component = shops.fleet.api.component("n1").await.ok_or("no component")?;
        if component.hold.is_none() { Ok(()) } else { Err("held".to_owned()) }
    })
    .await;
    shops.run(none()).await;
    assert_eq!(shops.says("n1").0, "old");
}

/// The agent dies at `point` of a change of the stack, the controller with it; both come back.
async fn dies_at(test: &str, point: &str, live: bool) {
    let Some(mut shops) = Shops::start(test, 1, "").await else { return };
    shops.patch_to(1, "new", "old", &["--fix", "SHOP-1"]);
    let pid = shops.pid("n1");
    shops.fleet.node_mut("n1").kill();
    shops.fleet.node_mut("n1").start_with(&[(VARIABLE, &format!("{point}:1"))]);
    let rollout = shops.begin(Change::Stack(StackChange { live, ..apply(&["p1"]) })).await;
    eventually("the agent to die", || shops.fleet.node_mut("n1").ended().then_some(()));
    shops.fleet.kill_controller();
    shops.fleet.node_mut("n1").kill();
    shops.fleet.node_mut("n1").start();
    shops.fleet.start_controller().await;
    shops.fleet.api.reach(&rollout, State::Succeeded).await;
    assert_eq!(shops.says("n1").0, "new");
    assert_eq!(shops.stack("n1").await, ["1"]);
    assert_eq!(shops.pid("n1") == pid, live);
    assert_eq!(shops.fleet.api.upgrade(&rollout, "n1").await.state(), UpgradeState::Succeeded);
    assert_eq!(shops.fleet.node("n1").leftovers(), Vec::<&Path>::new());
}

#[tokio::test]
async fn an_agent_and_a_controller_that_die_in_a_switch_of_the_stack_converge() {
    dies_at("an_agent_and_a_controller_that_die", "stack.switched", false).await;
}

#[tokio::test]
async fn an_agent_and_a_controller_that_die_in_a_live_patch_converge() {
    dies_at("an_agent_and_a_controller_that_die", "step.patch-live.after", true).await;
}
