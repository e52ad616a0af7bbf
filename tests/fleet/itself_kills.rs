//! An upgrade of the agent that is cut at each of its steps: the old agent, the new one, the guard or the parent is killed
//! there, or everything is, as by a reboot. Whatever happens, the node ends with one agent that runs: the new one,
//! committed, or the old one, reported; nobody watches any more, and the component runs.
//!
//! `UPFLEET_ENDURE=1` walks every step with every victim, for a good and a bad agent, and pairs of them; normal runs take
//! a sample.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use upfleet_agent::{crash::DIRECTED, processes};
use upfleet_api::v1::{UpgradeState, WaveSpec, rollout_spec::Change};
use upfleet_domain::digest::Digest;

use crate::support::{
    AGENT, Fleet, Node, TestFleet,
    bad_agents::{self, Bad, Where},
    count, endure, itself, within_async,
};

/// Steps that every upgrade comes to, in order, whatever becomes of it.
const STEPS: [&str; 13] = [
    "step.try-out.before",
    "step.try-out.after",
    "step.set-the-guard.before",
    "itself.marked",
    "guard.watches",
    "itself.guarded",
    "step.set-the-guard.after",
    "switch.linked",
    "switch.renamed",
    "step.switch.after",
    "step.start.before",
    "itself.hands-over",
    "guard.counts",
];
/// Those of a new agent that is acknowledged.
const FORWARD: [&str; 4] = ["step.probe.before", "itself.tidies", "step.prune.before", "step.prune.after"];
/// Those of one that is put back.
const BACK: [&str; 5] =
    ["guard.counted", "guard.decided", "guard.restored", "guard.restarted", "itself.tidies"];
const GOOD: &str = "9.1.0";
const BAD: &str = "9.2.0";
const PARALLEL: usize = 4;
/// The guard's deadline, and until when a node must have converged: beyond the promise, since the machine is shared.
const DEADLINE: &str = "12s";
const LIMIT: Duration = Duration::from_secs(90);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// Whoever came to the step.
    Itself,
    Agent,
    Guard,
    Parent,
    /// A reboot: everything of the node, also its components.
    Everything,
}

const VICTIMS: [Victim; 5] =
    [Victim::Itself, Victim::Agent, Victim::Guard, Victim::Parent, Victim::Everything];

#[derive(Clone, Debug)]
struct Cut {
    at: Vec<(&'static str, Victim)>,
    release: &'static str,
}

pub(super) fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("no process has the number 0")
}

fn kill(pid: u32) {
    let _ = kill_process(pid_of(pid), Signal::KILL);
}

/// Where a node's crash points are directed from.
pub(super) fn directions(node: &Node) -> PathBuf {
    node.dir().join("directed")
}

/// From now on these steps are stopped at, one by one.
pub(super) fn direct(node: &Node, lines: &str) {
    fs::write(directions(node).join("points.tmp"), lines).unwrap();
    fs::rename(directions(node).join("points.tmp"), directions(node).join("points")).unwrap();
}

pub(super) fn start(node: &mut Node) {
    let directed = directions(node).display().to_string();
    node.start_supervised_with(&[(DIRECTED, &directed)]);
}

/// Which process has come to the step `line`, if one has and is stopped there.
pub(super) fn taken(node: &Node, line: usize) -> Option<u32> {
    let pid = fs::read_to_string(directions(node).join(format!("taken-{line}"))).ok()?.trim().parse().ok()?;
    // It has said so before it stops.
    processes::stat(pid).is_ok_and(|stat| stat.state == 'T').then_some(pid)
}

/// Kills whom the cut says, while `stopped` is stopped; that one goes on afterwards.
fn strike(node: &mut Node, victim: Victim, stopped: u32) {
    match victim {
        Victim::Itself => kill(stopped),
        Victim::Agent => {
            if let Some(agent) = node.find_own_agent() {
                kill(agent);
            }
        }
        Victim::Guard => {
            let guards = itself::processes_of(node).into_iter().filter(|(_, line)| line.contains(" guard "));
            guards.for_each(|(pid, _)| kill(pid));
        }
        Victim::Parent => node.kill(),
        Victim::Everything => {
            node.kill();
            while let Some(pid) = of_node(node.dir()).first() {
                kill(*pid);
                std::thread::yield_now();
            }
        }
    }
    let _ = kill_process(pid_of(stopped), Signal::CONT);
    if node.ended() {
        start(node);
    }
}

/// Every process that works in the node's directory or was started with a name in it.
fn of_node(dir: &Path) -> Vec<u32> {
    let text = dir.display().to_string() + "/";
    let belongs = |pid: u32| {
        let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cwd.is_ok_and(|cwd| cwd.starts_with(dir)) || String::from_utf8_lossy(&line).contains(&text)
    };
    let running = processes::all().into_iter().filter(|(_, stat)| stat.is_running());
    running.map(|(pid, _)| pid).filter(|pid| belongs(*pid)).collect()
}

/// Makes a fresh node and cuts it; says how many steps were come to, and whether it ended with the new agent.
async fn cut(fleet: &TestFleet, name: &str, cut: &Cut, digest: Digest) -> (usize, bool) {
    let mut node = fleet.enrolled(name, None).await;
    node.be_itself(&itself::current(fleet.dir()), &format!("deadline = \"{DEADLINE}\""));
    fs::create_dir(directions(&node)).unwrap();
    start(&mut node);
    fleet.api.reach_online(name, true).await;
    fleet.install_base(&format!("name={name}")).await;
    let (old, component) = (itself::installed(&node).unwrap(), node.running());

    let lines: String = cut.at.iter().map(|(point, _)| format!("{point}\n")).collect();
    direct(&node, &lines);
    let mut spec = fleet.spec_of(AGENT, cut.release);
    spec.selector = format!("name={name}");
    spec.policy.as_mut().unwrap().waves = vec![WaveSpec { size: Some(count(1000)), ..Default::default() }];
    if let Some(Change::Install(install)) = &mut spec.change {
        install.allow_failed_digest = true;
    }
    let rollout = fleet.api.start(spec).await;
    let mut reached = 0;
    for (line, (_, victim)) in cut.at.iter().enumerate() {
        let came = within_async(LIMIT, &format!("{cut:?}: step {line}, or the end"), || async {
            if let Some(pid) = taken(&node, line) {
                return Ok(Some(pid));
            }
            let state = fleet.api.upgrade(&rollout, name).await.state();
            if over(state) { Ok(None) } else { Err(format!("{state:?}")) }
        })
        .await;
        let Some(pid) = came else { break };
        strike(&mut node, *victim, pid);
        reached += 1;
    }
    // Whoever comes to the other steps later must not stop there.
    fs::remove_file(directions(&node).join("points")).unwrap();
    let new = converges(fleet, &mut node, &rollout, cut, (old, digest)).await;
    if cut.at.iter().all(|(_, victim)| *victim != Victim::Everything) {
        assert_eq!(node.running(), component, "{cut:?}: the component was touched");
    }
    (reached, new)
}

fn over(state: UpgradeState) -> bool {
    let ends = [
        UpgradeState::Succeeded,
        UpgradeState::RolledBack,
        UpgradeState::RollbackFailed,
        UpgradeState::FailedUnchanged,
    ];
    ends.contains(&state)
}

/// Waits until the node is as it must be, and says whether with the new agent.
async fn converges(
    fleet: &TestFleet,
    node: &mut Node,
    rollout: &str,
    cut: &Cut,
    (old, new): (Digest, Digest),
) -> bool {
    let name = node.name.clone();
    let result = tokio::time::timeout(LIMIT + Duration::from_secs(10), async {
        within_async(LIMIT, &format!("{cut:?} on {name}: the node to converge"), || {
            let (strays, runs) = (itself::strays(node), itself::runs_installed(node));
            let marked = itself::marker(node).exists();
            let lies = [old, new].map(|digest| itself::lies(node, digest));
            let component = node.running().is_some();
            let name = name.clone();
            async move {
                let upgrade = fleet.api.upgrade(rollout, &name).await;
                let state = upgrade.state();
                let expected = if state == UpgradeState::Succeeded { new } else { old };
                let components = fleet.api.node(&name).await.components;
                let own = components.into_iter().find(|component| component.component == AGENT);
                let recorded = own.and_then(|own| own.running_digest).is_some_and(|digest| *digest.value == expected.0);
                let there = lies[usize::from(state == UpgradeState::Succeeded)];
                let right = over(state) && state != UpgradeState::RollbackFailed && there;
                if right && recorded && runs && component && strays.is_empty() && !marked {
                    Ok(state == UpgradeState::Succeeded)
                } else {
                    let reason = upgrade.reason.map(|reason| reason.message).unwrap_or_default();
                    Err(format!(
                        "{state:?} ({reason}), file right {right}, recorded {recorded}, runs what lies there {runs}, component {component}, marker {marked}, {strays:?}"
                    ))
                }
            }
        })
        .await
    })
    .await;
    result.unwrap_or_else(|_| panic!("{cut:?}: it hangs"))
}

/// Makes all cuts, some at a time: how many were made, how many steps were come to, how many ended with the new agent.
async fn run(cuts: Vec<Cut>) -> (usize, usize, usize) {
    let fleet = Arc::new(Fleet { nodes: 0, releases: vec![], ..Fleet::default() }.start().await);
    let agent = itself::current(fleet.dir());
    let good = fleet.api.publish_agent(GOOD, 2, &itself::variant(fleet.dir(), GOOD)).await;
    let bytes = bad_agents::bytes(&agent, fleet.dir(), Bad::Exits, Where::Run, BAD);
    let bad = fleet.api.publish_agent(BAD, 3, &bytes).await;
    let (mut made, mut reached, mut forward) = (0, 0, 0);
    let mut waiting = cuts.into_iter().enumerate();
    let mut running = JoinSet::new();
    loop {
        while running.len() < PARALLEL
            && let Some((number, a_cut)) = waiting.next()
        {
            let fleet = Arc::clone(&fleet);
            let digest = if a_cut.release == GOOD { good } else { bad };
            running.spawn(async move {
                let ended = cut(&fleet, &format!("k{number}"), &a_cut, digest).await;
                (a_cut, ended)
            });
        }
        let Some(result) = running.join_next().await else { break };
        let (a_cut, (came, new)) =
            result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        assert!(!new || a_cut.release == GOOD, "{a_cut:?}: a bad agent was committed");
        if came < a_cut.at.len() {
            println!("not come to: {a_cut:?} after {came}");
        }
        made += 1;
        reached += usize::from(came > 0);
        forward += usize::from(new);
    }
    (made, reached, forward)
}

/// Every step with every victim.
fn matrix() -> Vec<Cut> {
    let of = |release, steps: Vec<&'static str>| {
        steps
            .into_iter()
            .flat_map(move |step| VICTIMS.map(|victim| Cut { at: vec![(step, victim)], release }))
    };
    let good = of(GOOD, STEPS.into_iter().chain(FORWARD).collect());
    let bad = of(BAD, STEPS[10..].iter().copied().chain(BACK).collect());
    good.chain(bad).collect()
}

/// Every step after every other one that can come after it, with victims that walk at paces of their own.
fn pairs() -> Vec<Cut> {
    let mut cuts = Vec::new();
    for (release, steps) in
        [(GOOD, [&STEPS[..], &FORWARD[..]].concat()), (BAD, [&STEPS[10..], &BACK[..]].concat())]
    {
        for (first, a) in steps.iter().enumerate() {
            for (second, b) in steps.iter().enumerate().skip(first) {
                let one = VICTIMS[(first + 2 * second) % VICTIMS.len()];
                let other = VICTIMS[(3 * first + second + 1) % VICTIMS.len()];
                cuts.push(Cut { at: vec![(*a, one), (*b, other)], release });
            }
        }
    }
    cuts
}

/// Every so many of them, from where the seed says.
fn sample(cuts: Vec<Cut>, wanted: usize) -> Vec<Cut> {
    let seed = std::env::var("UPFLEET_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_usize);
    let pace = (cuts.len() / wanted).max(1);
    cuts.into_iter().skip(seed % pace).step_by(pace).collect()
}

/// Some of a matrix: `UPFLEET_PART` of `1/4` is the first of four parts.
fn part(cuts: Vec<Cut>) -> Vec<Cut> {
    let part = std::env::var("UPFLEET_PART").unwrap_or_default();
    let Some((which, of)) = part.split_once('/') else { return cuts };
    let (which, of): (usize, usize) = (which.parse().unwrap(), of.parse().unwrap());
    cuts.into_iter().skip(which - 1).step_by(of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_at_each_step_of_the_switch_over() {
    let cuts = if endure() { part(matrix()) } else { sample(matrix(), 8) };
    let (made, reached, forward) = run(cuts).await;
    assert!(reached * 2 > made, "{reached} of {made} steps were come to");
    println!(
        "figure: agent_cut_once {made} cuts, {reached} came to their step, all converged, {forward} with the new agent"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_at_two_steps_of_the_switch_over() {
    let cuts = if endure() { part(pairs()) } else { sample(pairs(), 4) };
    let (made, reached, forward) = run(cuts).await;
    assert!(reached * 2 > made, "{reached} of {made} steps were come to");
    println!(
        "figure: agent_cut_twice {made} cuts, {reached} came to a step, all converged, {forward} with the new agent"
    );
}
