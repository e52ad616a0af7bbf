//! The controller dies, or comes back knowing less than its fleet.

use std::{fs, time::Duration};

use upfleet_api::v1::{self, UpgradeState, rollout::State};

use crate::support::{Behaviour, Fleet, TestFleet, count, endure, eventually, eventually_async};

/// A small generator, so that a run's kills can be repeated by its seed.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Rolls out while the controller is killed `kills` times at seeded moments; each node must be swapped once.
async fn kill_during_a_rollout(seed: u64, kills: usize) {
    let mut fleet = Fleet { nodes: 3, ..Fleet::default() }.start().await;
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().waves = vec![
        v1::WaveSpec { size: Some(count(1)), ..Default::default() },
        v1::WaveSpec { size: Some(count(2)), ..Default::default() },
    ];
    let mut seeded = Seeded(seed);
    let name = fleet.api.start(spec).await;
    for _ in 0..kills {
        // The moment is what is being tried; whatever the machine's speed makes of it must be right.
        tokio::time::sleep(Duration::from_millis(seeded.next(400))).await;
        fleet.kill_controller();
        tokio::time::sleep(Duration::from_millis(seeded.next(100))).await;
        fleet.start_controller().await;
    }
    fleet.api.reach(&name, State::Succeeded).await;
    for node in &fleet.nodes {
        assert_eq!(node.starts(), ["1.0.0", "1.1.0"], "seed {seed}: {} was swapped once", node.name);
        let entered = fleet.api.times_entered(&name, &node.name, UpgradeState::Activating).await;
        assert_eq!(entered, 1, "seed {seed}: {}", node.name);
    }
}

#[tokio::test]
async fn matrix_of_controller_kills() {
    // 5 kills in a normal run, 50 in the long one, over rollouts of their own.
    let rollouts = if endure() { 25 } else { 2 };
    let kills = if endure() { 2 } else { 3 };
    for seed in 0..rollouts {
        kill_during_a_rollout(seed, kills).await;
    }
    println!(
        "figure: controller_kills {} kills in {rollouts} rollouts, each node swapped once",
        rollouts as usize * kills
    );
}

#[tokio::test]
async fn a_restored_backup_orders_nothing_until_a_person_says_so() {
    let mut fleet = Fleet {
        nodes: 5,
        releases: vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)],
        ..Fleet::default()
    }
    .start()
    .await;
    // A rollout is open at the time of the backup: a second wave that waits for a person.
    let mut spec = fleet.spec("1.1.0");
    spec.policy.as_mut().unwrap().waves = vec![
        v1::WaveSpec { size: Some(count(2)), ..Default::default() },
        v1::WaveSpec { size: Some(count(3)), approval: true, ..Default::default() },
    ];
    let name = fleet.api.start(spec).await;
    eventually_async("the first wave to be done", || async {
        let rollout = fleet.api.rollout(&name).await;
        if rollout.waves[0].state() == v1::wave::State::Succeeded {
            Ok(())
        } else {
            Err(format!("{:?}", rollout.waves[0]))
        }
    })
    .await;
    let backup = fleet.dir().join("backup");
    fleet.backup(&backup);
    // Meanwhile the fleet moves on: the rollout finishes, and another one follows.
    fleet.cli(&["rollout", "approve", name.trim_start_matches("rollouts/")]).success();
    fleet.api.reach(&name, State::Succeeded).await;
    fleet.install("1.2.0").await;
    let starts: Vec<_> = fleet.nodes.iter().map(|node| node.starts()).collect();

    fleet.kill_controller();
    fleet.restore(&backup);
    fleet.start_controller().await;
    for number in 1..=5 {
        fleet.api.reach_online(&format!("n{number}"), true).await;
    }
    assert_eq!(fleet.api.rollout(&name).await.state(), State::Paused);
    // Every agent has been heard, and every component runs on untouched.
    eventually_async("the fleet to be known as it is", || async {
        for number in 1..=5 {
            let component = fleet.api.component(&format!("n{number}")).await.ok_or("no component")?;
            let running = component.running_digest.map(|digest| digest.value).unwrap_or_default();
            if running.as_ref() != fleet.nodes[number - 1].digest().unwrap().0 {
                return Err(format!("n{number} is not known yet"));
            }
        }
        Ok(())
    })
    .await;
    let after: Vec<_> = fleet.nodes.iter().map(|node| node.starts()).collect();
    assert_eq!(after, starts, "nothing was ordered");
    still_works(&fleet, &name).await;
}

/// A person says what becomes of the old rollout, and the controller orders again.
async fn still_works(fleet: &TestFleet, old: &str) {
    let cancel = v1::CancelRolloutRequest { name: old.to_owned(), ..Default::default() };
    fleet.api.client.rollouts().cancel_rollout(cancel).await.unwrap();
    fleet.api.reach(old, State::Cancelled).await;
    let bytes = crate::support::script("1.3.0", Behaviour::Good);
    fleet.api.publish("1.3.0", 9, &bytes).await;
    fleet.install("1.3.0").await;
    for node in &fleet.nodes {
        eventually("1.3.0 to run", || node.running().filter(|(version, _)| version == "1.3.0"));
    }
}

#[tokio::test]
async fn a_store_replaced_by_hand_raises_an_alarm_instead_of_ordering() {
    let mut fleet = Fleet {
        nodes: 2,
        releases: vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Good)],
        ..Fleet::default()
    }
    .start()
    .await;
    fleet.kill_controller();
    let data = fleet.data();
    let copy = fleet.dir().join("copy");
    assert!(std::process::Command::new("cp").arg("-r").arg(&data).arg(&copy).status().unwrap().success());
    fleet.start_controller().await;
    fleet.install("1.1.0").await;
    fleet.install("1.2.0").await;
    fleet.kill_controller();
    // No `upfleet restore`: the epoch is what it was.
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    fleet.start_controller().await;
    eventually_async("the alarm", || async {
        let node = fleet.api.node("n1").await;
        let code = node.reason.map(|reason| reason.code).unwrap_or_default();
        if code == "CONTROLLER_BEHIND" { Ok(()) } else { Err(format!("reason {code:?}")) }
    })
    .await;
    for node in &fleet.nodes {
        assert_eq!(node.running().unwrap().0, "1.2.0");
        assert_eq!(node.starts(), ["1.0.0", "1.1.0", "1.2.0"]);
    }
}
