//! The crash matrix: `kill -9` of a real agent at every crash point, and again in the recovery from that.
//!
//! Normal runs take each point once and a few pairs; `UPFLEET_ENDURE=1` takes every pair, for good and bad
//! releases. Whatever happens, the node ends in the new version or the old one, what runs is what is
//! recorded, and nothing temporary is left.

use upfleet_agent::crash::POINTS;
use upfleet_api::v1::{self, UpgradeState, rollout::State};

use crate::support::{Behaviour, Fleet, TestFleet, endure, eventually, eventually_async, script};

/// One cut: where the agent dies, where its recovery dies, and what it was doing.
#[derive(Clone, Copy, Debug)]
struct Cut {
    first: &'static str,
    second: Option<&'static str>,
    release: &'static str,
}

/// Cuts a fresh node and checks how it ends; says whether the first point was reached at all.
async fn cut(fleet: &mut TestFleet, number: usize, cut: Cut) -> bool {
    let name = format!("c{number}");
    let index = fleet.add_node(&name, Some(&script("1.0.0", Behaviour::Good))).await;
    fleet.nodes[index].start();
    fleet.api.reach_online(&name, true).await;
    eventually("the old version to run", || fleet.nodes[index].running());
    fleet.nodes[index].kill();

    fleet.nodes[index].start_with(&[("UPFLEET_CRASH_AT", cut.first)]);
    let mut spec = fleet.spec(cut.release);
    spec.selector = format!("name={name}");
    let rollout = fleet.api.start(spec).await;
    let ended = |state: State| matches!(state, State::Succeeded | State::Halted);
    // Either the agent dies at the point, or the upgrade does not come by it and ends as usual.
    let reached = loop {
        if fleet.nodes[index].ended() {
            break true;
        }
        if ended(fleet.api.rollout(&rollout).await.state()) {
            break false;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    fleet.nodes[index].kill();
    if let Some(second) = cut.second.filter(|_| reached) {
        fleet.nodes[index].start_with(&[("UPFLEET_CRASH_AT", second)]);
        while !fleet.nodes[index].ended() && !ended(fleet.api.rollout(&rollout).await.state()) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        fleet.nodes[index].kill();
    }
    fleet.nodes[index].start();
    let (state, version) = match cut.release {
        "1.1.0" => (State::Succeeded, "1.1.0"),
        _ => (State::Halted, "1.0.0"),
    };
    fleet.api.reach(&rollout, state).await;
    check(fleet, index, &rollout, version, cut).await;
    fleet.nodes[index].kill();
    if state == State::Halted {
        let cancel = v1::CancelRolloutRequest { name: rollout.clone(), ..Default::default() };
        fleet.api.client.rollouts().cancel_rollout(cancel).await.unwrap();
    }
    fleet.api.client.nodes().retire_node(v1::RetireNodeRequest { name: format!("nodes/{name}"), ..Default::default() }).await.unwrap();
    reached
}

/// What must hold once a node has converged.
async fn check(fleet: &TestFleet, index: usize, rollout: &str, version: &str, cut: Cut) {
    let node = &fleet.nodes[index];
    eventually(&format!("{cut:?}: {version} to run"), || node.running().filter(|(running, _)| running == version));
    let on_disk = node.digest().expect("a file is there");
    let expected = script(version, if version == "1.0.0" || cut.release == "1.1.0" { Behaviour::Good } else { Behaviour::Crashes });
    assert_eq!(on_disk, upfleet_domain::digest::Digest::of(&expected), "{cut:?}");
    eventually_async(&format!("{cut:?}: the record to say what runs"), || async {
        let component = fleet.api.component(&node.name).await.ok_or("no component")?;
        let running = component.running_digest.map(|digest| digest.value).unwrap_or_default();
        if running.as_ref() == on_disk.0 { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    eventually(&format!("{cut:?}: nothing temporary"), || node.leftovers().is_empty().then_some(()));
    // Each version is started again at most by what restarts it, never swapped in twice.
    let switches = fleet.api.times_entered(rollout, &node.name, UpgradeState::Activating).await;
    assert!(switches <= 1, "{cut:?}: entered ACTIVATING {switches} times");
}

async fn run(cuts: impl IntoIterator<Item = Cut>) -> (usize, usize) {
    let releases = vec![("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Crashes)];
    let mut fleet = Fleet { nodes: 0, releases, ..Fleet::default() }.start().await;
    let (mut done, mut reached) = (0, 0);
    for a_cut in cuts {
        reached += usize::from(cut(&mut fleet, done, a_cut).await);
        done += 1;
    }
    (done, reached)
}

#[tokio::test]
async fn matrix_of_crashes_in_a_good_release() {
    let cuts = POINTS.iter().map(|point| Cut { first: point, second: None, release: "1.1.0" });
    let (done, reached) = run(cuts).await;
    println!("figure: crashes_good {reached} of {done} points reached, {done} converged");
}

#[tokio::test]
async fn matrix_of_crashes_in_a_bad_release() {
    let every = usize::from(!endure()) * 2 + 1;
    let cuts = POINTS.iter().step_by(every).map(|point| Cut { first: point, second: None, release: "1.2.0" });
    let (done, reached) = run(cuts).await;
    println!("figure: crashes_bad {reached} of {done} points reached, {done} converged");
}

#[tokio::test]
async fn matrix_of_crashes_in_recovery() {
    // Every pair takes hours; in a normal run a sample that walks both lists at different paces.
    let pairs: Vec<Cut> = if endure() {
        POINTS
            .iter()
            .flat_map(|first| POINTS.iter().map(move |second| (*first, *second)))
            .flat_map(|(first, second)| {
                ["1.1.0", "1.2.0"].map(|release| Cut { first, second: Some(second), release })
            })
            .collect()
    } else {
        (0..6)
            .map(|step| Cut {
                first: POINTS[(step * 7 + 3) % POINTS.len()],
                second: Some(POINTS[(step * 5 + 1) % POINTS.len()]),
                release: if step % 2 == 0 { "1.1.0" } else { "1.2.0" },
            })
            .collect()
    };
    let (done, reached) = run(pairs).await;
    println!("figure: crashes_in_recovery {reached} of {done} first points reached, {done} converged");
}
