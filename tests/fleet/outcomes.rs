//! Every way in which one node's upgrade ends, with real processes.

use std::fs;

use upfleet_api::v1::{UpgradeState, component_state::Base, rollout::State};

use crate::support::{Behaviour, COMPONENT, Fleet, TestFleet, eventually, eventually_async, padded, script};

/// The version that the controller believes `node` runs; `unmanaged` or `absent` where it is no release.
async fn current(fleet: &TestFleet, node: &str) -> String {
    let component = fleet.api.component(node).await.expect("the node has the component");
    match component.current.and_then(|state| state.base) {
        Some(Base::Release(release)) => release.version,
        Some(Base::Unmanaged(_)) => "unmanaged".to_owned(),
        Some(Base::Absent(_)) => "absent".to_owned(),
        None => "nothing said".to_owned(),
    }
}

/// What runs, what lies at the path, and what the controller has recorded are one and the same.
async fn settled(fleet: &TestFleet, node: &str, recorded: &str, running: &str) {
    eventually("the version to run", || fleet.node(node).running().filter(|(version, _)| version == running));
    eventually_async("the controller to know", || async {
        let seen = current(fleet, node).await;
        if seen == recorded { Ok(()) } else { Err(seen) }
    })
    .await;
    let component = fleet.api.component(node).await.unwrap();
    let on_disk = fleet.node(node).digest().unwrap();
    assert_eq!(component.running_digest.unwrap().value.as_ref(), on_disk.0);
    assert_eq!(fleet.node(node).leftovers(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn succeeded() {
    let fleet = Fleet::default().start().await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let rollout = fleet.install("1.1.0").await;
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.1.0"]);
    // Each state of the way was entered once, and recorded.
    for state in [
        UpgradeState::Preflight,
        UpgradeState::Fetching,
        UpgradeState::Verifying,
        UpgradeState::Staged,
        UpgradeState::Activating,
        UpgradeState::Probing,
        UpgradeState::Committing,
        UpgradeState::Succeeded,
    ] {
        assert_eq!(fleet.api.times_entered(&rollout, "n1", state).await, 1, "{state:?}");
    }
}

#[tokio::test]
async fn already_current() {
    let fleet = Fleet::default().start().await;
    fleet.install("1.1.0").await;
    // Another version with the very same bytes: the name says nothing, the digest does.
    fleet.api.publish("1.1.1", 9, &script("1.1.0", Behaviour::Good)).await;
    let rollout = fleet.api.start(fleet.spec("1.1.1")).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::AlreadyCurrent).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    settled(&fleet, "n1", "1.1.1", "1.1.0").await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.1.0"]);
}

#[tokio::test]
async fn a_file_from_before_is_adopted_and_can_be_gone_back_to() {
    let before = script("0.9.0", Behaviour::Good);
    let fleet = Fleet { base: None, initial: Some(before.clone()), ..Fleet::default() }.start().await;
    assert_eq!(current(&fleet, "n1").await, "unmanaged");
    let rollout = fleet.install("1.1.0").await;
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
    let back = fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]);
    assert_eq!(back.code, 0, "{back:?}");
    assert_eq!(fs::read(fleet.node("n1").component()).unwrap(), before);
    assert_eq!(current(&fleet, "n1").await, "unmanaged");
}

#[tokio::test]
async fn failed_unchanged() {
    let fleet = Fleet { base: Some(Behaviour::UnhealthyWhereToldSo), ..Fleet::default() }.start().await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let before = fleet.node("n1").digest();
    fs::write(fleet.node("n1").app("unhealthy"), "").unwrap();
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::FailedUnchanged).await;
    assert_eq!(upgrade.reason.unwrap().code, "BASELINE_UNHEALTHY");
    fleet.api.reach(&rollout, State::Halted).await;
    assert_eq!(fleet.node("n1").digest(), before);
    assert_eq!(fleet.node("n1").starts(), ["1.0.0"]);
    assert_eq!(fleet.api.times_entered(&rollout, "n1", UpgradeState::Activating).await, 0);
}

#[tokio::test]
async fn rolled_back() {
    let fleet = Fleet { releases: vec![("1.2.0", Behaviour::Crashes)], ..Fleet::default() }.start().await;
    let rollout = fleet.api.start(fleet.spec("1.2.0")).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    let evidence = upgrade.evidence.expect("a failed process leaves evidence");
    assert!(evidence.exit.contains('7'), "{}", evidence.exit);
    assert!(evidence.lines.iter().any(|line| line.contains("cannot bind")), "{:?}", evidence.lines);
    let halted = fleet.api.reach(&rollout, State::Halted).await;
    assert!(!halted.reason.unwrap().message.is_empty());
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let wait = fleet.cli(&["rollout", "wait", rollout.trim_start_matches("rollouts/")]);
    assert_eq!(wait.code, 3, "{wait:?}");
}

#[tokio::test]
async fn rollback_failed() {
    let fleet = Fleet { releases: vec![("1.1.0", Behaviour::UnhealthyWhereToldSo)], ..Fleet::default() }
        .start()
        .await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let kept = fleet.node("n1").digest().unwrap();
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().soak = Some(pbjson_types::Duration { seconds: 5, nanos: 0 });
    let rollout = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Probing).await;
    // The only way back is damaged, then it is needed.
    let version = fleet.node("n1").app(&format!(".upfleet/{COMPONENT}/versions/{kept}"));
    fs::write(&version, "damaged").unwrap();
    fs::write(fleet.node("n1").app("unhealthy"), "").unwrap();
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RollbackFailed).await;
    assert_eq!(upgrade.reason.unwrap().code, "ROLLBACK_TARGET_DAMAGED");
    let wait = fleet.cli(&["rollout", "wait", rollout.trim_start_matches("rollouts/")]);
    assert_eq!(wait.code, 4, "{wait:?}");
    assert!(wait.out.contains("n1") || wait.err.contains("n1"), "names the node: {wait:?}");
}

#[tokio::test]
async fn refused() {
    let mut fleet = Fleet::default().start().await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    fleet.node_mut("n1").kill();
    // The component is taken out of the node's own configuration while the controller still counts on it.
    let path = fleet.dir().join("n1/etc/agent.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&format!("name = \"{COMPONENT}\""), "name = \"other\"")).unwrap();
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    fleet.node_mut("n1").start();
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Refused).await;
    assert_eq!(upgrade.reason.unwrap().code, "UNKNOWN_COMPONENT");
    fleet.api.reach(&rollout, State::Halted).await;
}

#[tokio::test]
async fn expired() {
    let mut fleet = Fleet { nodes: 2, ..Fleet::default() }.start().await;
    fleet.node_mut("n2").kill();
    fleet.api.reach_online("n2", false).await;
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.offline_deadline = Some(pbjson_types::Duration { seconds: 3, nanos: 0 });
    policy.silence_budget = Some(crate::support::count(1));
    let rollout = fleet.api.start(spec).await;
    let upgrade = fleet.api.reach_upgrade(&rollout, "n2", UpgradeState::Expired).await;
    assert_eq!(upgrade.reason.unwrap().code, "DEADLINE_PASSED");
    fleet.api.reach(&rollout, State::SucceededWithFailures).await;
    let wait = fleet.cli(&["rollout", "wait", rollout.trim_start_matches("rollouts/")]);
    assert_eq!(wait.code, 8, "{wait:?}");
    // The order is gone: a node that comes back later is left alone.
    fleet.node_mut("n2").start();
    fleet.api.reach_online("n2", true).await;
    assert_eq!(current(&fleet, "n2").await, "1.0.0");
}

#[tokio::test]
async fn cancelled_before_the_switch() {
    let mut fleet = Fleet { nodes: 2, ..Fleet::default() }.start().await;
    fleet.node_mut("n1").kill();
    fleet.node_mut("n2").kill();
    fleet.api.reach_online("n1", false).await;
    fleet.api.reach_online("n2", false).await;
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    let cancel = fleet.cli(&["rollout", "cancel", &id, "--yes", "--message", "wrong day"]);
    assert!([0, 7].contains(&cancel.code), "{cancel:?}");
    fleet.api.reach(&rollout, State::Cancelled).await;
    for upgrade in fleet.api.upgrades(&rollout).await {
        assert_eq!(upgrade.state(), UpgradeState::Cancelled, "{}", upgrade.node);
    }
    let wait = fleet.cli(&["rollout", "wait", &id]);
    assert_eq!(wait.code, 7, "{wait:?}");
    // Coming back after the cancellation changes nothing.
    fleet.node_mut("n1").start();
    fleet.api.reach_online("n1", true).await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
}

#[tokio::test]
async fn cancelled_after_the_switch() {
    let fleet =
        Fleet { releases: vec![("1.1.0", Behaviour::HealthyWhenToldSo)], ..Fleet::default() }.start().await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Probing).await;
    fleet.cli(&["rollout", "cancel", rollout.trim_start_matches("rollouts/"), "--yes"]);
    let upgrade = fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    assert_eq!(upgrade.reason.unwrap().code, "CANCELLED_AFTER_SWITCH");
    fleet.api.reach(&rollout, State::Cancelled).await;
    let (states, _) = fleet.api.states_seen(&rollout).await;
    assert!(states.contains(&State::Cancelling), "{states:?}");
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
}

#[tokio::test]
async fn first_install_and_back_to_absent() {
    let fleet = Fleet { base: None, ..Fleet::default() }.start().await;
    assert_eq!(current(&fleet, "n1").await, "absent");
    let rollout = fleet.install("1.1.0").await;
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
    let back = fleet.cli(&["rollout", "rollback", rollout.trim_start_matches("rollouts/"), "--yes"]);
    assert_eq!(back.code, 0, "{back:?}");
    eventually("the component to be gone", || fleet.node("n1").digest().is_none().then_some(()));
    eventually("its process to end", || fleet.node("n1").running().is_none().then_some(()));
    assert_eq!(current(&fleet, "n1").await, "absent");
}

#[tokio::test]
async fn a_failed_first_install_leaves_nothing() {
    let fleet =
        Fleet { base: None, releases: vec![("1.2.0", Behaviour::Crashes)], ..Fleet::default() }.start().await;
    let rollout = fleet.api.start(fleet.spec("1.2.0")).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    assert_eq!(fleet.node("n1").digest(), None);
    assert_eq!(fleet.node("n1").running(), None);
}

#[tokio::test]
async fn a_failed_digest_is_not_tried_again_unless_somebody_says_so() {
    let fleet = Fleet { releases: vec![("1.1.0", Behaviour::UnhealthyWhereToldSo)], ..Fleet::default() }
        .start()
        .await;
    fs::write(fleet.node("n1").app("unhealthy"), "").unwrap();
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::RolledBack).await;
    fleet.api.reach(&rollout, State::Halted).await;
    // What was wrong with the node is mended; the digest is still marked.
    fs::remove_file(fleet.node("n1").app("unhealthy")).unwrap();
    fleet.cli(&["rollout", "retry", &id]);
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Refused).await;
    fleet.api.reach(&rollout, State::Halted).await;
    let retry = fleet.cli(&["rollout", "retry", &id, "--allow-failed-digest"]);
    assert_eq!(retry.code, 0, "{retry:?}");
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
}

/// A fleet whose nodes take some seconds to fetch the release 1.1.0, which is published here.
async fn slow() -> TestFleet {
    let fleet =
        Fleet { fetch: "rate_limit = \"512KiB\"", releases: Vec::new(), ..Fleet::default() }.start().await;
    fleet.api.publish("1.1.0", 2, &padded("1.1.0", Behaviour::Good, 3 << 20)).await;
    fleet
}

#[tokio::test]
async fn cancelled_at_the_last_safe_point() {
    let fleet = slow().await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Fetching).await;
    fleet.cli(&["rollout", "pause", &id, "--hard"]).success();
    // It goes on as far as it can without touching anything, says what it waits for, and waits.
    eventually_async("the node to wait at STAGED", || async {
        let upgrade = fleet.api.upgrade(&rollout, "n1").await;
        let code = upgrade.reason.as_ref().map(|reason| reason.code.clone()).unwrap_or_default();
        let held = upgrade.state() == UpgradeState::Staged && code == "HELD_BEFORE";
        if held { Ok(()) } else { Err(format!("{:?} {code}", upgrade.state())) }
    })
    .await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0"]);
    fleet.cli(&["rollout", "cancel", &id, "--yes"]);
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Cancelled).await;
    fleet.api.reach(&rollout, State::Cancelled).await;
    settled(&fleet, "n1", "1.0.0", "1.0.0").await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0"]);
}

#[tokio::test]
async fn a_hard_pause_is_resumed_from_the_safe_point() {
    let fleet = slow().await;
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    let id = rollout.trim_start_matches("rollouts/").to_owned();
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Fetching).await;
    fleet.cli(&["rollout", "pause", &id, "--hard"]).success();
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Staged).await;
    fleet.api.reach(&rollout, State::Paused).await;
    fleet.cli(&["rollout", "resume", &id]).success();
    fleet.api.reach(&rollout, State::Succeeded).await;
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
    assert_eq!(
        fleet.api.times_entered(&rollout, "n1", UpgradeState::Fetching).await,
        1,
        "nothing was fetched twice"
    );
}

#[tokio::test]
async fn an_order_that_was_given_up_is_not_taken_up_by_a_returning_node() {
    let mut fleet = slow().await;
    fleet.api.publish("1.2.0", 3, &script("1.2.0", Behaviour::Good)).await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().silence_after = Some(pbjson_types::Duration { seconds: 1, nanos: 0 });
    let first = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&first, "n1", UpgradeState::Fetching).await;
    // The agent dies in the middle; a person gives up on the rollout and starts the next one.
    fleet.node_mut("n1").kill();
    fleet.api.reach_online("n1", false).await;
    fleet.cli(&["rollout", "cancel", first.trim_start_matches("rollouts/"), "--yes"]);
    fleet.api.reach(&first, State::Cancelled).await;
    let second = fleet.api.start(fleet.spec("1.2.0")).await;
    // Its journal still holds the first order, the controller a cancellation of it and a newer one.
    fleet.node_mut("n1").start();
    fleet.api.reach(&second, State::Succeeded).await;
    fleet.api.reach_upgrade(&first, "n1", UpgradeState::Cancelled).await;
    settled(&fleet, "n1", "1.2.0", "1.2.0").await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.2.0"]);
}

#[tokio::test]
async fn superseded() {
    let mut fleet = slow().await;
    fleet.api.publish("1.2.0", 3, &script("1.2.0", Behaviour::Good)).await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().approval = true;
    let first = fleet.api.start(spec).await;
    fleet.api.reach(&first, State::AwaitingApproval).await;
    let backup = fleet.dir().join("backup");
    fleet.backup(&backup);
    // What happens from here on, the restored controller will not know: the node is fetching 1.1.0.
    fleet.cli(&["rollout", "approve", first.trim_start_matches("rollouts/")]).success();
    fleet.api.reach_upgrade(&first, "n1", UpgradeState::Fetching).await;
    fleet.kill_controller();
    fleet.restore(&backup);
    fleet.start_controller().await;
    fleet.api.reach_online("n1", true).await;
    fleet.cli(&["rollout", "cancel", first.trim_start_matches("rollouts/"), "--yes"]);
    fleet.api.reach(&first, State::Cancelled).await;
    // Its order for 1.2.0 ends the one that it has forgotten.
    fleet.install("1.2.0").await;
    settled(&fleet, "n1", "1.2.0", "1.2.0").await;
    assert_eq!(fleet.node("n1").starts(), ["1.0.0", "1.2.0"]);
    assert!(fleet.node("n1").log().contains("SUPERSEDED"), "the agent says how the first one ended");
}

#[tokio::test]
async fn a_fetch_goes_on_where_it_stopped() {
    let mut fleet = slow().await;
    let rollout = fleet.api.start(fleet.spec("1.1.0")).await;
    fleet.api.reach_upgrade(&rollout, "n1", UpgradeState::Fetching).await;
    let arrived = |fleet: &TestFleet| {
        let parts = fleet.node("n1").leftovers();
        let part = parts.into_iter().find(|path| path.extension().is_some_and(|end| end == "part"))?;
        fs::metadata(part).ok().map(|part| part.len()).filter(|length| *length > 0)
    };
    eventually("some bytes to be there", || arrived(&fleet));
    fleet.node_mut("n1").kill();
    let before = arrived(&fleet).expect("what came stays");
    fleet.node_mut("n1").start();
    let new = upfleet_domain::digest::Digest::of(&padded("1.1.0", Behaviour::Good, 3 << 20));
    eventually("the new version to be in place", || {
        if let Some(now) = arrived(&fleet) {
            assert!(now >= before, "{now} of {before} bytes: it began anew");
        }
        fleet.node("n1").digest().filter(|digest| *digest == new)
    });
    fleet.api.reach(&rollout, State::Succeeded).await;
    settled(&fleet, "n1", "1.1.0", "1.1.0").await;
}
