//! The way between controller and agent is cut without a word to either, in each phase of an upgrade, in each direction.
//!
//! Real processes in network namespaces. Both sides must notice within 30 seconds, the agent must go on with its
//! upgrade meanwhile, and everything must converge once the way is whole again.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use upfleet_agent::crash::STOP_VARIABLE;
use upfleet_api::v1::{UpgradeState, rollout::State, rollout_spec::Change};

use crate::support::{
    Behaviour, COMPONENT, Fleet, Node, TestFleet, endure, eventually_async,
    netns::{HUB, Network, Way},
    padded, script, within_async,
};

/// What is promised.
const NOTICED: Duration = Duration::from_secs(30);
const BASE: &str = "1.0.0";
const GOOD: &str = "1.1.0";
const UNHEALTHY: &str = "1.2.0";
const HEALTHY_LATER: &str = "1.3.0";

/// A cut while the upgrade is in this phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    phase: UpgradeState,
    way: Way,
}

impl Cut {
    fn release(&self) -> &'static str {
        match self.phase {
            UpgradeState::RollingBack => UNHEALTHY,
            UpgradeState::Probing => HEALTHY_LATER,
            _ => GOOD,
        }
    }

    /// The version that the node must end with, and the rollout's end.
    fn end(&self) -> (&'static str, State) {
        match self.phase {
            UpgradeState::RollingBack => (BASE, State::Halted),
            _ => (self.release(), State::Succeeded),
        }
    }

    /// Where the agent is stopped for the moment of the cut; the other phases last long enough by themselves.
    fn point(&self) -> Option<&'static str> {
        match self.phase {
            UpgradeState::Preflight => Some("step.check.before"),
            UpgradeState::Verifying => Some("step.verify.before"),
            UpgradeState::Activating => Some("step.switch.before"),
            UpgradeState::Committing => Some("step.prune.before"),
            UpgradeState::RollingBack => Some("step.put-back.before"),
            _ => None,
        }
    }

    /// Whether the agent has all that it needs in order to finish by itself. One that is held for a further order gets
    /// it where only its own words are lost.
    fn finishes_alone(&self) -> bool {
        use UpgradeState as U;
        match self.phase {
            U::Verifying | U::Activating | U::Probing | U::Committing | U::RollingBack => true,
            U::Staged => self.way == Way::ToController,
            _ => false,
        }
    }
}

/// The eight phases in which an agent works, and the one before.
const PHASES: [UpgradeState; 9] = [
    UpgradeState::Pending,
    UpgradeState::Preflight,
    UpgradeState::Fetching,
    UpgradeState::Verifying,
    UpgradeState::Staged,
    UpgradeState::Activating,
    UpgradeState::Probing,
    UpgradeState::Committing,
    UpgradeState::RollingBack,
];

/// How long each side took to notice.
#[derive(Clone, Copy, Debug)]
struct Noticed {
    controller: Duration,
    agent: Duration,
}

/// A fleet in a network, with releases for all phases and no node yet.
pub async fn fleet_in(network: &Network) -> TestFleet {
    let _ = network;
    let fleet =
        Fleet { nodes: 0, base: None, releases: Vec::new(), address: HUB, ..Fleet::default() }.start().await;
    fleet.api.publish(BASE, 1, &script(BASE, Behaviour::Good)).await;
    fleet.api.publish(GOOD, 2, &padded(GOOD, Behaviour::Good, 3 << 20)).await;
    fleet.api.publish(UNHEALTHY, 3, &script(UNHEALTHY, Behaviour::UnhealthyWhereToldSo)).await;
    fleet.api.publish(HEALTHY_LATER, 4, &script(HEALTHY_LATER, Behaviour::HealthyWhenToldSo)).await;
    fleet
}

/// A node at that spoke which runs the base; its agent stops at `point` in what comes next.
pub async fn node_at(
    fleet: &TestFleet,
    network: &Network,
    spoke: usize,
    fetch: &str,
    point: Option<&str>,
) -> Node {
    let name = format!("s{spoke}");
    let mut node = fleet.enrolled_in(&name, network.spoke(spoke)).await;
    node.configure("", fetch);
    node.be_patient();
    node.start();
    fleet.api.reach_online(&name, true).await;
    fleet.install_base(&format!("name={name}")).await;
    if let Some(point) = point {
        node.kill();
        fleet.api.reach_online(&name, false).await;
        node.start_with(&[(STOP_VARIABLE, point)]);
        fleet.api.reach_online(&name, true).await;
    }
    node
}

/// A rollout of `version` to that node alone, which shows a silent node soon.
pub fn spec_for(fleet: &TestFleet, node: &Node, version: &str) -> upfleet_api::v1::RolloutSpec {
    let mut spec = fleet.spec(version);
    spec.selector = format!("name={}", node.name);
    let policy = spec.policy.as_mut().unwrap();
    policy.silence_after = Some(pbjson_types::Duration { seconds: 1, nanos: 0 });
    // The same release fails on two nodes here, which would quarantine it.
    if let Some(Change::Install(install)) = &mut spec.change {
        install.allow_failed_digest = true;
    }
    spec
}

fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn go_on(node: &Node) {
    let pid = Pid::from_raw(i32::try_from(node.agent()).unwrap()).unwrap();
    kill_process(pid, Signal::CONT).unwrap();
}

/// Starts the rollout and cuts the way when the upgrade is in the phase; returns the rollout and the moment.
async fn reach_and_cut(
    fleet: &TestFleet,
    network: &Network,
    node: &Node,
    spoke: usize,
    cut: Cut,
) -> (String, Instant) {
    let created = fleet.api.create(spec_for(fleet, node, cut.release())).await.unwrap().name;
    let id = created.trim_start_matches("rollouts/").to_owned();
    if cut.phase == UpgradeState::Pending {
        network.cut(spoke, cut.way);
        let moment = Instant::now();
        fleet.api.begin(&created).await;
        return (created, moment);
    }
    fleet.api.begin(&created).await;
    match cut.phase {
        UpgradeState::Fetching => {
            eventually_async(&format!("{cut:?}: some bytes"), || async {
                let part =
                    node.leftovers().into_iter().find(|path| path.extension().is_some_and(|e| e == "part"));
                let length = part.and_then(|part| fs::metadata(part).ok()).map_or(0, |part| part.len());
                if length > 0 { Ok(()) } else { Err("none".to_owned()) }
            })
            .await;
        }
        UpgradeState::Staged => {
            fleet.api.reach_upgrade(&created, &node.name, UpgradeState::Fetching).await;
            fleet.cli(&["rollout", "pause", &id, "--hard"]).success();
            fleet.api.reach_upgrade(&created, &node.name, UpgradeState::Staged).await;
        }
        UpgradeState::Probing => {
            fleet.api.reach_upgrade(&created, &node.name, UpgradeState::Probing).await;
        }
        _ => {
            let pid = node.agent();
            eventually_async(&format!("{cut:?}: the agent at its point"), || async move {
                if state_of(pid) == Some('T') { Ok(()) } else { Err("it runs".to_owned()) }
            })
            .await;
        }
    }
    network.cut(spoke, cut.way);
    let moment = Instant::now();
    match cut.phase {
        UpgradeState::Probing => fs::write(node.app("healthy"), "").unwrap(),
        UpgradeState::Staged => {
            fleet.cli(&["rollout", "resume", &id]).success();
        }
        _ if cut.point().is_some() => go_on(node),
        _ => {}
    }
    (created, moment)
}

/// Waits until both sides have noticed.
async fn noticed(fleet: &TestFleet, node: &Node, rollout: &str, moment: Instant) -> (Duration, Duration) {
    let limit = NOTICED + Duration::from_secs(30);
    let controller = async {
        within_async(limit, "the controller to notice", || async {
            if fleet.api.node(&node.name).await.online { Err("online".to_owned()) } else { Ok(()) }
        })
        .await;
        let took = moment.elapsed();
        within_async(limit, "the upgrade to be shown as unreachable", || async {
            let upgrade = fleet.api.upgrade(rollout, &node.name).await;
            // Where only the way to the agent is cut, the upgrade's end may have arrived before the silence.
            let ended = upgrade.state() == UpgradeState::Succeeded;
            if upgrade.unreachable || ended { Ok(()) } else { Err(format!("{:?}", upgrade.state())) }
        })
        .await;
        took
    };
    let said = lost(node);
    let agent = async {
        within_async(limit, "the agent to notice", || async {
            if lost(node) > said { Ok(()) } else { Err("connected".to_owned()) }
        })
        .await;
        moment.elapsed()
    };
    tokio::join!(controller, agent)
}

/// How often the agent said that it has no session.
fn lost(node: &Node) -> usize {
    node.log().matches("no session with the controller").count()
}

/// One cut, from a fresh node to a fleet that goes on.
async fn run_cut(fleet: &TestFleet, network: &Network, spoke: usize, cut: Cut) -> Noticed {
    let slow = matches!(cut.phase, UpgradeState::Fetching | UpgradeState::Staged);
    let fetch = if slow { "rate_limit = \"512KiB\"" } else { "" };
    let node = node_at(fleet, network, spoke, fetch, cut.point()).await;
    if cut.phase == UpgradeState::RollingBack {
        fs::write(node.app("unhealthy"), "").unwrap();
    }
    let (rollout, moment) = reach_and_cut(fleet, network, &node, spoke, cut).await;
    if cut.phase == UpgradeState::RollingBack {
        fs::remove_file(node.app("unhealthy")).unwrap();
    }
    let (controller, agent) = noticed(fleet, &node, &rollout, moment).await;
    let (version, state) = cut.end();
    if cut.finishes_alone() {
        runs(&node, version, &format!("{cut:?}: goes on without the controller")).await;
    } else if cut.phase != UpgradeState::Fetching {
        // Of a fetch, the rest may be on this side of the cut already.
        assert_eq!(node.starts(), [BASE], "{cut:?}");
    }
    network.heal(spoke);
    fleet.api.reach(&rollout, state).await;
    fleet.api.reach_online(&node.name, true).await;
    runs(&node, version, &format!("{cut:?}: the end")).await;
    eventually_async(&format!("{cut:?}: the record to say what runs"), || async {
        let component = fleet.api.component(&node.name).await.ok_or("no component")?;
        let running = component.running_digest.map(|digest| digest.value).unwrap_or_default();
        if running.as_ref() == node.digest().ok_or("no file")?.0 {
            Ok(())
        } else {
            Err(format!("{running:?}"))
        }
    })
    .await;
    if version != BASE {
        assert_eq!(node.starts(), [BASE, version], "{cut:?}: switched once");
    }
    Noticed { controller, agent }
}

async fn runs(node: &Node, version: &str, what: &str) {
    eventually_async(&format!("{what}: {version} of {COMPONENT} to run"), || async {
        match node.running() {
            Some((running, _)) if running == version => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn matrix_of_network_cuts() {
    let all: Vec<Cut> =
        PHASES.into_iter().flat_map(|phase| Way::BOTH.map(|way| Cut { phase, way })).collect();
    // A normal run takes a few that differ most; all of them wait at the same time.
    let cuts: Vec<Cut> = if endure() { all } else { [5, 8, 11, 16].into_iter().map(|n| all[n]).collect() };
    let Some(network) = Network::enter("matrix_of_network_cuts", cuts.len()) else { return };
    let fleet = fleet_in(&network).await;
    let (fleet, network) = (Arc::new(fleet), Arc::new(network));
    let mut running = JoinSet::new();
    for (spoke, cut) in cuts.iter().copied().enumerate() {
        let (fleet, network) = (Arc::clone(&fleet), Arc::clone(&network));
        running.spawn(async move { (cut, run_cut(&fleet, &network, spoke, cut).await) });
    }
    let (mut controller, mut agent) = (Duration::ZERO, Duration::ZERO);
    let mut done = 0;
    while let Some(result) = running.join_next().await {
        let (cut, noticed) = result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        println!("{cut:?}: {noticed:?}");
        controller = controller.max(noticed.controller);
        agent = agent.max(noticed.agent);
        done += 1;
    }
    assert!(controller <= NOTICED && agent <= NOTICED, "{controller:?}, {agent:?}");
    println!(
        "figure: network_cuts {done} of {} cuts converged; noticed by the controller within {:.1} s, by the agent within {:.1} s",
        cuts.len(),
        controller.as_secs_f64(),
        agent.as_secs_f64()
    );
}
