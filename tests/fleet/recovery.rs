//! The crash matrix: `kill -9` of a real agent at every crash point, and again in the recovery from that.
//!
//! Normal runs take each point once and a few pairs; `UPFLEET_ENDURE=1` takes every pair and every write to
//! the journal, for good and bad releases. Whatever happens, the node ends in the new version or the old one,
//! what runs is what is recorded, and nothing temporary is left.

use std::sync::Arc;

use tokio::task::JoinSet;
use upfleet_agent::crash::{POINTS, VARIABLE};
use upfleet_api::v1::{UpgradeState, rollout::State, rollout_spec::Change};
use upfleet_domain::digest::Digest;

use crate::support::{Behaviour, Fleet, Node, TestFleet, endure, eventually, eventually_async, script};

const GOOD: &str = "1.1.0";
const BAD: &str = "1.2.0";
/// Cuts made at the same time; most of a cut's time is waiting.
const PARALLEL: usize = 6;
/// An upgrade writes to its journal about so often.
const JOURNAL_WRITES: usize = 16;

/// One cut: where the agent dies, where its recovery dies, and what it was doing.
#[derive(Clone, Debug)]
struct Cut {
    first: String,
    second: Option<String>,
    release: &'static str,
}

impl Cut {
    /// The version that the node must end with, and the rollout's end.
    fn end(&self) -> (&'static str, State) {
        if self.release == GOOD { (GOOD, State::Succeeded) } else { ("1.0.0", State::Halted) }
    }

    fn over(&self, state: State) -> bool {
        state == self.end().1
    }
}

/// Cuts a fresh node and checks how it ends; says whether the first point was reached at all.
async fn cut(fleet: &TestFleet, name: &str, cut: &Cut) -> bool {
    let mut node = fleet.enrolled(name, None).await;
    node.start();
    fleet.api.reach_online(name, true).await;
    fleet.install_base(&format!("name={name}")).await;
    node.kill();

    node.start_with(&[(VARIABLE, &cut.first)]);
    let mut spec = fleet.spec(cut.release);
    spec.selector = format!("name={name}");
    // The same bad release fails on many nodes here, which would quarantine it.
    if let Some(Change::Install(install)) = &mut spec.change {
        install.allow_failed_digest = true;
    }
    let rollout = fleet.api.start(spec).await;
    let reached = dies(fleet, &mut node, &rollout, cut).await;
    if let Some(second) = cut.second.as_ref().filter(|_| reached) {
        node.start_with(&[(VARIABLE, second)]);
        dies(fleet, &mut node, &rollout, cut).await;
    }
    node.start();
    fleet.api.reach(&rollout, cut.end().1).await;
    check(fleet, &node, &rollout, cut).await;
    node.kill();
    reached
}

/// Waits until the agent dies at its point, or the rollout ends because the upgrade does not come by it.
async fn dies(fleet: &TestFleet, node: &mut Node, rollout: &str, cut: &Cut) -> bool {
    let died = eventually_async(&format!("{cut:?}: a crash or the end"), || {
        let ended = node.ended();
        async move {
            if ended {
                return Ok(true);
            }
            let state = fleet.api.rollout(rollout).await.state();
            if cut.over(state) { Ok(false) } else { Err(format!("{state:?}")) }
        }
    })
    .await;
    node.kill();
    died
}

/// What must hold once a node has converged.
async fn check(fleet: &TestFleet, node: &Node, rollout: &str, cut: &Cut) {
    let version = cut.end().0;
    eventually(&format!("{cut:?}: {version} to run"), || {
        node.running().filter(|(running, _)| running == version)
    });
    let on_disk = node.digest().expect("a file is there");
    assert_eq!(on_disk, Digest::of(&script(version, Behaviour::Good)), "{cut:?}");
    eventually_async(&format!("{cut:?}: the record to say what runs"), || async {
        let component = fleet.api.component(&node.name).await.ok_or("no component")?;
        let running = component.running_digest.map(|digest| digest.value).unwrap_or_default();
        if running.as_ref() == on_disk.0 { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    eventually(&format!("{cut:?}: nothing temporary"), || node.leftovers().is_empty().then_some(()));
    let switches = fleet.api.times_entered(rollout, &node.name, UpgradeState::Activating).await;
    assert!(switches <= 1, "{cut:?}: entered ACTIVATING {switches} times");
}

/// Makes all cuts and returns how many were made, and how many reached their first point.
async fn run(cuts: Vec<Cut>) -> (usize, usize) {
    let releases = vec![(GOOD, Behaviour::Good), (BAD, Behaviour::Crashes)];
    let fleet = Arc::new(Fleet { nodes: 0, releases, ..Fleet::default() }.start().await);
    let (mut made, mut reached) = (0, 0);
    let mut waiting = cuts.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < PARALLEL
            && let Some((number, a_cut)) = waiting.next()
        {
            let fleet = Arc::clone(&fleet);
            running.spawn(async move { cut(&fleet, &format!("c{number}"), &a_cut).await });
        }
        let Some(result) = running.join_next().await else { break };
        made += 1;
        reached += usize::from(result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
    }
    (made, reached)
}

/// Every point once; in the long run, points in the journal at each of its writes.
fn points() -> Vec<String> {
    let times = |point: &str| if endure() && point.starts_with("journal.") { JOURNAL_WRITES } else { 1 };
    POINTS.iter().flat_map(|point| (1..=times(point)).map(move |time| format!("{point}:{time}"))).collect()
}

fn cuts(points: impl IntoIterator<Item = String>, release: &'static str) -> Vec<Cut> {
    points.into_iter().map(|first| Cut { first, second: None, release }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn matrix_of_crashes_in_a_good_release() {
    let (made, reached) = run(cuts(points(), GOOD)).await;
    // What only a rollback comes by is reached in the other matrix. None at all: the agent lacks its crash points.
    assert!(reached * 2 > made, "{reached} of {made} points were reached");
    println!("figure: crashes_in_a_good_release {made} cuts, {reached} reached their point, all converged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn matrix_of_crashes_in_a_bad_release() {
    let (made, reached) = run(cuts(points(), BAD)).await;
    assert!(reached * 2 > made, "{reached} of {made} points were reached");
    println!("figure: crashes_in_a_bad_release {made} cuts, {reached} reached their point, all converged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn matrix_of_crashes_in_recovery() {
    let pair = |first: usize, second: usize, release| Cut {
        first: format!("{}:1", POINTS[first % POINTS.len()]),
        second: Some(format!("{}:1", POINTS[second % POINTS.len()])),
        release,
    };
    let count = POINTS.len();
    let pairs: Vec<Cut> = if endure() {
        (0..count * count)
            .flat_map(|n| [GOOD, BAD].map(|release| pair(n / count, n % count, release)))
            .collect()
    } else {
        // A sample that walks both lists at different paces.
        (0..24).map(|n| pair(n * 7 + 3, n * 5 + 1, if n % 2 == 0 { GOOD } else { BAD })).collect()
    };
    let (made, reached) = run(pairs).await;
    println!("figure: crashes_in_recovery {made} cuts, {reached} reached their first point, all converged");
}
