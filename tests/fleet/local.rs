//! What a person does on the node itself, with the controller away.

use upfleet_api::v1::rollout::State;

use crate::support::{COMPONENT, Fleet, eventually, eventually_async};

#[tokio::test]
async fn a_local_rollback_works_without_the_controller_and_holds() {
    let mut fleet = Fleet::default().start().await;
    fleet.install("1.1.0").await;
    fleet.kill_controller();
    let status = fleet.node("n1").run(&["status"]);
    assert_eq!(status.code, 0, "{status:?}");
    assert!(status.out.contains("1.1.0"), "{status:?}");
    let back = fleet.node("n1").run(&["rollback", "--local", COMPONENT, "--message", "pager, 03:12"]);
    assert_eq!(back.code, 0, "{back:?}");
    eventually("the old version to run", || {
        fleet.node("n1").running().filter(|(version, _)| version == "1.0.0")
    });
    // The controller returns and learns of it, and its order for 1.1.0 is not offered again.
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    eventually_async("the hold to be known", || async {
        let component = fleet.api.component("n1").await.ok_or("no component")?;
        component.hold.map(|_| ()).ok_or_else(|| "not held".to_owned())
    })
    .await;
    assert_eq!(fleet.api.component("n1").await.unwrap().changer, "local");
    assert_eq!(fleet.node("n1").running().unwrap().0, "1.0.0");
    // A held component takes no orders…
    let created = fleet.api.create(fleet.spec("1.1.0")).await;
    if let Ok(rollout) = created {
        assert!(fleet.api.upgrades(&rollout.name).await.is_empty(), "a held node is left out, with a reason");
        fleet.cli(&["rollout", "cancel", rollout.name.trim_start_matches("rollouts/"), "--yes"]);
    }
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.1.0", "1.0.0"]);
    // …until an operator releases it.
    fleet.cli(&["node", "release", "n1", COMPONENT]).success();
    eventually_async("the hold to be lifted", || async {
        let component = fleet.api.component("n1").await.ok_or("no component")?;
        if component.hold.is_none() { Ok(()) } else { Err("held".to_owned()) }
    })
    .await;
    let name = fleet.api.start(fleet.spec("1.1.0")).await;
    fleet.api.reach(&name, State::Succeeded).await;
}

#[tokio::test]
async fn a_component_survives_its_agent() {
    let mut fleet = Fleet::default().start().await;
    let before = eventually("the component to run", || fleet.node("n1").running());
    fleet.node_mut("n1").kill();
    fleet.api.reach_online("n1", false).await;
    assert_eq!(fleet.node("n1").running(), Some(before.clone()));
    fleet.node_mut("n1").start();
    fleet.api.reach_online("n1", true).await;
    assert_eq!(fleet.node("n1").running(), Some(before), "the same process, known again");
    assert_eq!(fleet.node("n1").starts().len(), 1);
}

#[tokio::test]
async fn the_agent_explains_itself_without_a_controller() {
    let mut fleet = Fleet::default().start().await;
    fleet.kill_controller();
    for arguments in [&["status"][..], &["check-config"], &["diagnostics"]] {
        let output = fleet.node("n1").run(arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        assert!(!output.out.is_empty(), "{arguments:?}");
    }
    fleet.node("n1").configure("pth = \"/x\"", "");
    let refused = fleet.node("n1").run(&["check-config"]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("pth") || refused.out.contains("pth"), "names the key: {refused:?}");
}
