//! Every state of a rollout and of a wave, and everything a person can do to a rollout, with real processes.

use std::{collections::BTreeSet, fs};

use pbjson_types::Duration;
use upfleet_api::v1::{
    self, FailedNodes, OnFailure, UpgradeState, WaveSpec, rollout::State, watch_rollout_response::Change,
    wave,
};

use crate::support::{
    Behaviour, Fleet, TestFleet, count, eventually, eventually_async, script, upgrade_states,
};

fn wave(size: u32) -> WaveSpec {
    WaveSpec { size: Some(count(size)), ..Default::default() }
}

fn id(rollout: &str) -> &str {
    rollout.trim_start_matches("rollouts/")
}

#[tokio::test]
async fn waves_approval_and_bake() {
    let fleet = Fleet { nodes: 3, ..Fleet::default() }.start().await;
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.approval = true;
    policy.waves = vec![
        WaveSpec { bake: Some(Duration { seconds: 1, nanos: 0 }), ..wave(1) },
        WaveSpec { approval: true, ..wave(2) },
    ];
    let created = fleet.api.create(spec).await.unwrap();
    assert_eq!(created.state(), State::Planned);
    let name = created.name;
    fleet.api.begin(&name).await;
    fleet.api.reach(&name, State::AwaitingApproval).await;
    assert!(fleet.nodes.iter().all(|node| node.starts() == ["1.0.0"]), "nothing before the approval");
    assert_eq!(fleet.cli(&["rollout", "wait", id(&name)]).code, 6);
    fleet.cli(&["rollout", "approve", id(&name)]).success();
    // The canary alone, then the second wave waits for a person.
    eventually_async("the second wave to wait", || async {
        let rollout = fleet.api.rollout(&name).await;
        let states: Vec<_> = rollout.waves.iter().map(v1::Wave::state).collect();
        if states == [wave::State::Succeeded, wave::State::AwaitingApproval] {
            Ok(())
        } else {
            Err(format!("{states:?}"))
        }
    })
    .await;
    let upgraded = fleet.nodes.iter().filter(|node| node.starts().contains(&"1.1.0".to_owned())).count();
    assert_eq!(upgraded, 1);
    fleet.cli(&["rollout", "approve", id(&name), "--message", "canary looks good"]).success();
    fleet.api.reach(&name, State::Succeeded).await;
    let (states, waves) = fleet.api.states_seen(&name).await;
    assert!(
        states.is_superset(&BTreeSet::from([State::AwaitingApproval, State::Running, State::Succeeded])),
        "{states:?}"
    );
    let every = BTreeSet::from([
        wave::State::Pending,
        wave::State::Running,
        wave::State::Baking,
        wave::State::AwaitingApproval,
        wave::State::Succeeded,
    ]);
    assert!(waves.is_superset(&every), "{waves:?}");
    assert_eq!(fleet.cli(&["rollout", "wait", id(&name)]).code, 0);
}

#[tokio::test]
async fn a_bad_release_stops_at_the_canary() {
    let fleet =
        Fleet { nodes: 3, releases: vec![("1.2.0", Behaviour::Crashes)], ..Fleet::default() }.start().await;
    let name = fleet.api.start(fleet.spec("1.2.0")).await;
    let halted = fleet.api.reach(&name, State::Halted).await;
    assert_eq!(halted.waves[0].state(), wave::State::Failed);
    let states = upgrade_states(&fleet.api.upgrades(&name).await);
    assert_eq!(states.values().filter(|state| **state == UpgradeState::RolledBack).count(), 1, "{states:?}");
    assert_eq!(states.values().filter(|state| **state == UpgradeState::Pending).count(), 2, "{states:?}");
    let tried = fleet.nodes.iter().filter(|node| node.starts().contains(&"1.2.0".to_owned())).count();
    assert_eq!(tried, 1);
    // Resuming must say what becomes of the failed node.
    assert_ne!(fleet.cli(&["rollout", "resume", id(&name)]).code, 0);
    fleet.cli(&["rollout", "cancel", id(&name), "--yes"]);
    fleet.api.reach(&name, State::Cancelled).await;
}

/// A rollout on three nodes one by one in which the last node fails, with what follows then.
async fn fails_at_the_end(fleet: &TestFleet, waves: &[u32], then: OnFailure) -> (String, Vec<String>) {
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.waves = waves.iter().map(|size| wave(*size)).collect();
    policy.max_unavailable = Some(count(1));
    policy.on_failure = then.into();
    // The order of nodes within a wave is the planner's; whichever comes last fails.
    let name = fleet.api.create(spec).await.unwrap().name;
    let upgrades = fleet.api.upgrades(&name).await;
    let nodes: Vec<_> = upgrades.iter().map(|upgrade| id_of_node(&upgrade.node)).collect();
    fs::write(fleet.node(nodes.last().unwrap()).app("unhealthy"), "").unwrap();
    fleet.api.begin(&name).await;
    (name, nodes)
}

fn id_of_node(name: &str) -> String {
    name.trim_start_matches("nodes/").to_owned()
}

async fn three() -> TestFleet {
    let releases = vec![("1.1.0", Behaviour::UnhealthyWhereToldSo)];
    Fleet { nodes: 3, releases, ..Fleet::default() }.start().await
}

fn runs(fleet: &TestFleet, node: &str, version: &str) {
    eventually(&format!("{node} to run {version}"), || {
        fleet.node(node).running().filter(|(running, _)| running == version)
    });
}

#[tokio::test]
async fn revert_all_puts_every_node_back() {
    let fleet = three().await;
    let (name, nodes) = fails_at_the_end(&fleet, &[1, 2], OnFailure::RevertAll).await;
    let reverted = fleet.api.reach(&name, State::Reverted).await;
    assert!(reverted.reverted_by.starts_with("rollouts/"), "{}", reverted.reverted_by);
    for node in &nodes {
        runs(&fleet, node, "1.0.0");
    }
    let (states, waves) = fleet.api.states_seen(&name).await;
    assert!(states.contains(&State::Reverting), "{states:?}");
    assert!(waves.contains(&wave::State::Failed), "{waves:?}");
    assert_eq!(fleet.cli(&["rollout", "wait", id(&name)]).code, 3);
}

#[tokio::test]
async fn revert_wave_leaves_the_waves_before_it() {
    let fleet = three().await;
    let (name, nodes) = fails_at_the_end(&fleet, &[1, 2], OnFailure::RevertWave).await;
    fleet.api.reach(&name, State::Reverted).await;
    runs(&fleet, &nodes[0], "1.1.0");
    runs(&fleet, &nodes[1], "1.0.0");
    runs(&fleet, &nodes[2], "1.0.0");
}

#[tokio::test]
async fn a_revert_that_fails_calls_a_person() {
    let fleet = three().await;
    let (name, nodes) = fails_at_the_end(&fleet, &[3], OnFailure::RevertAll).await;
    fleet.api.reach_upgrade(&name, &nodes[0], UpgradeState::Succeeded).await;
    // The first node's way back is damaged before the last one fails.
    let kept = upfleet_domain::digest::Digest::of(&script("1.0.0", Behaviour::Good));
    fs::write(fleet.node(&nodes[0]).app(&format!(".upfleet/app/versions/{kept}")), "damaged").unwrap();
    fleet.api.reach(&name, State::RevertFailed).await;
    let wait = fleet.cli(&["rollout", "wait", id(&name)]);
    assert_eq!(wait.code, 4, "{wait:?}");
    // It runs on, on the version that is whole.
    runs(&fleet, &nodes[0], "1.1.0");
    runs(&fleet, &nodes[1], "1.0.0");
}

#[tokio::test]
async fn pause_starts_no_more_nodes() {
    let fleet =
        Fleet { nodes: 2, releases: vec![("1.1.0", Behaviour::HealthyWhenToldSo)], ..Fleet::default() }
            .start()
            .await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().waves = vec![wave(1), wave(1)];
    let name = fleet.api.start(spec).await;
    let canary = fleet.api.upgrades(&name).await[0].node.trim_start_matches("nodes/").to_owned();
    fleet.api.reach_upgrade(&name, &canary, UpgradeState::Probing).await;
    fleet.cli(&["rollout", "pause", id(&name)]).success();
    fleet.api.reach(&name, State::Paused).await;
    // The node under way finishes; the other is not begun.
    for node in &fleet.nodes {
        fs::write(node.app("healthy"), "").unwrap();
    }
    fleet.api.reach_upgrade(&name, &canary, UpgradeState::Succeeded).await;
    assert_eq!(fleet.api.rollout(&name).await.state(), State::Paused);
    assert_eq!(fleet.cli(&["rollout", "wait", id(&name)]).code, 6);
    let other = fleet.nodes.iter().find(|node| node.name != canary).unwrap();
    assert_eq!(other.starts(), ["1.0.0"]);
    fleet.cli(&["rollout", "resume", id(&name)]).success();
    fleet.api.reach(&name, State::Succeeded).await;
}

#[tokio::test]
async fn retry_tries_only_the_failed() {
    let fleet =
        Fleet { nodes: 3, releases: vec![("1.1.0", Behaviour::UnhealthyWhereToldSo)], ..Fleet::default() }
            .start()
            .await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().waves = vec![wave(3)];
    spec.policy.as_mut().unwrap().max_unavailable = Some(count(3));
    fs::write(fleet.node("n2").app("unhealthy"), "").unwrap();
    let name = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&name, "n1", UpgradeState::Succeeded).await;
    fleet.api.reach_upgrade(&name, "n3", UpgradeState::Succeeded).await;
    fleet.api.reach_upgrade(&name, "n2", UpgradeState::RolledBack).await;
    fleet.api.reach(&name, State::Halted).await;
    fs::remove_file(fleet.node("n2").app("unhealthy")).unwrap();
    let retry = fleet.cli(&["rollout", "retry", id(&name), "--allow-failed-digest"]);
    assert_eq!(retry.code, 0, "{retry:?}");
    fleet.api.reach(&name, State::Succeeded).await;
    assert_eq!(fleet.api.upgrade(&name, "n2").await.attempt, 2);
    for node in ["n1", "n3"] {
        assert_eq!(fleet.api.times_entered(&name, node, UpgradeState::Activating).await, 1, "{node}");
    }
}

#[tokio::test]
async fn resuming_with_skip_leaves_the_failed_node_out() {
    let fleet =
        Fleet { nodes: 3, releases: vec![("1.1.0", Behaviour::UnhealthyWhereToldSo)], ..Fleet::default() }
            .start()
            .await;
    let created = fleet.api.create(fleet.spec("1.1.0")).await.unwrap();
    let canary = fleet.api.upgrades(&created.name).await[0].node.trim_start_matches("nodes/").to_owned();
    fs::write(fleet.node(&canary).app("unhealthy"), "").unwrap();
    let name = created.name;
    fleet.api.begin(&name).await;
    fleet.api.reach(&name, State::Halted).await;
    let resume = v1::ResumeRolloutRequest {
        name: name.clone(),
        failed_nodes: FailedNodes::Skip.into(),
        message: "its disk is being replaced".to_owned(),
        ..Default::default()
    };
    fleet.api.client.rollouts().resume_rollout(resume).await.unwrap();
    fleet.api.reach(&name, State::SucceededWithFailures).await;
    assert_eq!(fleet.cli(&["rollout", "wait", id(&name)]).code, 8);
    let healthy = fleet.nodes.iter().filter(|node| node.name != canary);
    for node in healthy {
        eventually("the new version to run", || node.running().filter(|(version, _)| version == "1.1.0"));
    }
}

#[tokio::test]
async fn a_person_can_leave_a_node_out() {
    let mut fleet = Fleet { nodes: 2, ..Fleet::default() }.start().await;
    fleet.node_mut("n2").kill();
    fleet.api.reach_online("n2", false).await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().waves = vec![wave(2)];
    let name = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&name, "n1", UpgradeState::Succeeded).await;
    fleet.cli(&["rollout", "skip", id(&name), "n2", "--message", "retired tomorrow"]).success();
    fleet.api.reach_upgrade(&name, "n2", UpgradeState::Skipped).await;
    fleet.api.reach(&name, State::SucceededWithFailures).await;
}

#[tokio::test]
async fn an_offline_node_gets_the_order_when_it_returns() {
    let mut fleet = Fleet { nodes: 2, ..Fleet::default() }.start().await;
    fleet.node_mut("n2").kill();
    fleet.api.reach_online("n2", false).await;
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.silence_budget = Some(count(1));
    policy.silence_after = Some(Duration { seconds: 1, nanos: 0 });
    let name = fleet.api.start(spec).await;
    fleet.api.reach_upgrade(&name, "n1", UpgradeState::Succeeded).await;
    eventually_async("the overlay to show", || async {
        let waiting = fleet.api.upgrade(&name, "n2").await;
        assert_eq!(waiting.state(), UpgradeState::Pending);
        if waiting.unreachable { Ok(()) } else { Err("reachable".to_owned()) }
    })
    .await;
    fleet.node_mut("n2").start();
    fleet.api.reach_upgrade(&name, "n2", UpgradeState::Succeeded).await;
    fleet.api.reach(&name, State::Succeeded).await;
}

#[tokio::test]
async fn a_rollout_is_rolled_back_by_a_linked_one() {
    let fleet = Fleet { nodes: 3, ..Fleet::default() }.start().await;
    let name = fleet.install("1.1.0").await;
    let request = v1::RollBackRolloutRequest {
        name: name.clone(),
        message: "wrong prices".to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        ..Default::default()
    };
    let back = fleet
        .api
        .client
        .rollouts()
        .roll_back_rollout(request.clone())
        .await
        .unwrap()
        .into_inner()
        .rollout
        .unwrap();
    assert_eq!(back.reverts, name);
    // The same request again is the same rollout.
    let again =
        fleet.api.client.rollouts().roll_back_rollout(request).await.unwrap().into_inner().rollout.unwrap();
    assert_eq!(again.name, back.name);
    fleet.api.reach(&back.name, State::Succeeded).await;
    assert_eq!(fleet.api.rollout(&name).await.reverted_by, back.name);
    for node in &fleet.nodes {
        eventually("the old version to run", || node.running().filter(|(version, _)| version == "1.0.0"));
    }
}

#[tokio::test]
async fn a_kept_state_is_restored_by_name() {
    let fleet = Fleet {
        nodes: 1,
        releases: vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)],
        ..Fleet::default()
    }
    .start()
    .await;
    fleet.install("1.1.0").await;
    fleet.install("1.2.0").await;
    // Going back to what a node has kept is no downgrade, and fetches nothing.
    let mut spec = fleet.spec("1.1.0");
    spec.change = Some(v1::rollout_spec::Change::Restore(v1::RestoreChange {
        target: Some(v1::restore_change::Target::Release("releases/app@1.1.0".to_owned())),
    }));
    let name = fleet.api.start(spec).await;
    fleet.api.reach(&name, State::Succeeded).await;
    assert_eq!(fleet.api.times_entered(&name, "n1", UpgradeState::Fetching).await, 0);
    eventually("1.1.0 to run", || fleet.node("n1").running().filter(|(version, _)| version == "1.1.0"));
}

#[tokio::test]
async fn never_more_than_max_unavailable() {
    let fleet = Fleet { nodes: 5, ..Fleet::default() }.start().await;
    let mut spec = fleet.spec("1.1.0");
    let policy = spec.policy.as_mut().unwrap();
    policy.waves = vec![wave(5)];
    policy.max_unavailable = Some(count(2));
    let name = fleet.api.start(spec).await;
    fleet.api.reach(&name, State::Succeeded).await;
    let mut busy = BTreeSet::new();
    for change in fleet.api.history(&name).await {
        if let Some(Change::Upgrade(upgrade)) = change.change {
            let under_change = [UpgradeState::Activating, UpgradeState::Probing, UpgradeState::RollingBack]
                .contains(&upgrade.state());
            if under_change {
                busy.insert(upgrade.node)
            } else {
                busy.remove(&upgrade.node)
            };
            assert!(busy.len() <= 2, "{busy:?}");
        }
    }
}
