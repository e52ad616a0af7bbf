//! An upgrade of the agent that is unlucky: the controller is away while it is switched, or what the guard wrote down is
//! damaged. Nobody is put back because the controller is away, and everybody who has to be is in spite of the damage.

use std::{fs, os::unix::fs::FileExt as _, time::Duration};

use rustix::process::{Signal, kill_process};
use upfleet_api::v1::{UpgradeState, rollout::State};

use crate::{
    itself_kills::{direct, directions, pid_of, start, taken},
    support::{
        AGENT, Fleet, TestFleet,
        bad_agents::{self, Bad, Where},
        eventually, itself, within_async,
    },
};

const LIMIT: Duration = Duration::from_secs(90);

/// One node, whose agent was upgraded to `bytes` up to the moment before it hands over; there it is stopped.
async fn before_it_hands_over(bytes: impl Fn(&TestFleet) -> Vec<u8>) -> (TestFleet, String, u32) {
    let mut fleet = Fleet { nodes: 0, releases: vec![], ..Fleet::default() }.start().await;
    let index = fleet.add_node("n1", None).await;
    let current = itself::current(fleet.dir());
    let node = &mut fleet.nodes[index];
    node.be_itself(&current, "deadline = \"12s\"");
    fs::create_dir(directions(node)).unwrap();
    start(node);
    fleet.api.reach_online("n1", true).await;
    fleet.install_base("*").await;
    let bytes = bytes(&fleet);
    fleet.api.publish_agent("9.1.0", 2, &bytes).await;
    direct(&fleet.nodes[index], "itself.hands-over\n");
    let rollout = fleet.api.start(fleet.spec_of(AGENT, "9.1.0")).await;
    let stopped = eventually("the old agent to hand over", || taken(&fleet.nodes[index], 0));
    (fleet, rollout, stopped)
}

fn go_on(stopped: u32) {
    kill_process(pid_of(stopped), Signal::CONT).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_put_back_because_the_controller_is_away() {
    let (mut fleet, rollout, stopped) =
        before_it_hands_over(|fleet| itself::variant(fleet.dir(), "9.1.0")).await;
    let component = fleet.node("n1").running();
    let new = itself::installed(fleet.node("n1"));
    fleet.kill_controller();
    go_on(stopped);
    // More than once: what was extended is extended again.
    eventually("the deadline to move twice", || {
        (fleet.node("n1").log().matches("the deadline moves").count() >= 2).then_some(())
    });
    assert!(itself::marker(fleet.node("n1")).exists(), "the watch goes on");
    assert_eq!(itself::installed(fleet.node("n1")), new);
    fleet.start_controller().await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    let node = fleet.node("n1");
    eventually("the watch to end", || {
        (!itself::marker(node).exists() && itself::strays(node).is_empty()).then_some(())
    });
    assert!(itself::runs_installed(node) && itself::installed(node) == new);
    assert_eq!(node.running(), component, "the component was touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_bad_agent_is_put_back_though_the_notes_are_damaged() {
    let (fleet, rollout, stopped) = before_it_hands_over(|fleet| {
        bad_agents::bytes(&bad_agents::agent(fleet.dir()), fleet.dir(), Bad::Hangs, Where::Run, "9.1.0")
    })
    .await;
    let (node, component) = (fleet.node("n1"), fleet.node("n1").running());
    go_on(stopped);
    let new =
        eventually("the new agent to be started", || node.find_own_agent().filter(|pid| *pid != stopped));
    // Overwritten in place, as a disk does it.
    let notes = node.dir().join("state/itself");
    for (name, damage) in [("marker.json", [0_u8; 64]), ("child.json", [b'x'; 64])] {
        fs::OpenOptions::new().write(true).open(notes.join(name)).unwrap().write_all_at(&damage, 0).unwrap();
    }
    assert_eq!(node.find_own_agent(), None, "nobody can read it any more");
    within_async(LIMIT, "the old agent to be back", || async {
        let state = fleet.api.upgrade(&rollout, "n1").await.state();
        if state == UpgradeState::RolledBack { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    eventually("the watch to end", || {
        (!itself::marker(node).exists() && itself::strays(node).is_empty()).then_some(())
    });
    assert!(itself::runs_installed(node) && node.own_agent() != new);
    assert_eq!(node.running(), component, "the component was touched");
}
