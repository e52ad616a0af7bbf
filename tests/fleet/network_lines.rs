//! Lines that lose packets, are slow, or are half open, and peers that do not read.
//!
//! Real processes in network namespaces. Every upgrade must finish, go on where it stopped, and fetch little twice.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinSet;
use upfleet_api::v1::rollout::State;

use crate::{
    network::{fleet_in, node_at, spec_for},
    support::{
        Behaviour, TestFleet, endure,
        netns::{Network, Way},
        padded, within_async,
    },
};

/// The longest that a bad line may take; nothing takes that long when it works.
const PATIENCE: Duration = Duration::from_secs(900);
/// Longer than any connection lives through, and than a download waits for its next byte.
const BREAK: Duration = Duration::from_secs(40);

#[derive(Clone, Copy, Debug)]
enum Line {
    /// So many packets of a hundred get lost, both ways.
    Lossy(u32),
    /// As `tc` writes rates.
    Slow(&'static str),
}

/// An upgrade over that line.
#[derive(Clone, Copy, Debug)]
struct Case {
    line: Line,
    size: usize,
    /// Whether the way is cut for a while in the middle of the download.
    cut: bool,
}

struct Figures {
    case: Case,
    took: Duration,
    /// Bytes that arrived, with all headers, over those of the artifact.
    ratio: f64,
    /// How often the download went on anew.
    resumed: usize,
}

async fn upgrade_over(fleet: &TestFleet, network: &Network, spoke: usize, case: Case) -> Figures {
    // What is to be cut has to last long enough.
    let fetch = if case.cut { "rate_limit = \"1MiB\"" } else { "" };
    let node = node_at(fleet, network, spoke, fetch, None).await;
    let version = format!("2.{spoke}.0");
    fleet.api.publish(&version, 10 + spoke as u64, &padded(&version, Behaviour::Good, case.size)).await;
    match case.line {
        Line::Lossy(percent) => network.lose(spoke, percent),
        Line::Slow(rate) => network.slow_down(spoke, rate),
    }
    let (before, began) = (network.arrived(spoke), Instant::now());
    let rollout = fleet.api.start(spec_for(fleet, &node, &version)).await;
    if case.cut {
        within_async(PATIENCE, "a third of the bytes", || async {
            let arrived = network.arrived(spoke) - before;
            if arrived > case.size as u64 / 3 { Ok(()) } else { Err(arrived.to_string()) }
        })
        .await;
        network.cut(spoke, Way::ToAgent);
        // What is tried is a silence of this length.
        tokio::time::sleep(BREAK).await;
        network.heal(spoke);
        if let Line::Lossy(percent) = case.line {
            network.lose(spoke, percent);
        }
    }
    within_async(PATIENCE, &format!("{case:?} to succeed"), || async {
        let state = fleet.api.rollout(&rollout).await.state();
        assert_ne!(state, State::Halted, "{case:?}: {:?}", fleet.api.upgrades(&rollout).await);
        if state == State::Succeeded { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    #[expect(clippy::cast_precision_loss, reason = "a few MiB")]
    let ratio = (network.arrived(spoke) - before) as f64 / case.size as f64;
    assert_eq!(node.starts(), ["1.0.0", version.as_str()], "{case:?}");
    let resumed = node.log().matches("fetch is tried again").count();
    Figures { case, took: began.elapsed(), ratio, resumed }
}

fn cases() -> Vec<Case> {
    let case = |line, size, cut| Case { line, size, cut };
    if !endure() {
        return vec![case(Line::Lossy(5), 1 << 20, false), case(Line::Slow("4mbit"), 2 << 20, false)];
    }
    vec![
        case(Line::Lossy(1), 16 << 20, true),
        case(Line::Lossy(5), 16 << 20, true),
        case(Line::Lossy(10), 16 << 20, true),
        case(Line::Lossy(30), 2 << 20, false),
        case(Line::Slow("1mbit"), 12 << 20, true),
    ]
}

#[tokio::test]
async fn matrix_of_bad_lines() {
    let cases = cases();
    let Some(network) = Network::enter("matrix_of_bad_lines", cases.len()) else { return };
    let fleet = fleet_in(&network).await;
    let (fleet, network) = (Arc::new(fleet), Arc::new(network));
    let mut running = JoinSet::new();
    for (spoke, case) in cases.into_iter().enumerate() {
        let (fleet, network) = (Arc::clone(&fleet), Arc::clone(&network));
        running.spawn(async move { upgrade_over(&fleet, &network, spoke, case).await });
    }
    while let Some(result) = running.join_next().await {
        let Figures { case, took, ratio, resumed } =
            result.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let name = match case.line {
            Line::Lossy(percent) => format!("loss_{percent}"),
            Line::Slow(rate) => format!("line_{rate}"),
        };
        println!(
            "figure: network_{name} {} KiB in {:.0} s, {ratio:.3} times the bytes arrived, headers included; resumed {resumed} times",
            case.size >> 10,
            took.as_secs_f64()
        );
        // Where a third is lost, TCP itself sends much of what arrived again.
        let most = if matches!(case.line, Line::Lossy(30)) { 1.2 } else { 1.1 };
        assert!(ratio <= most, "{case:?}: {ratio} times the bytes");
        assert!(!case.cut || resumed > 0, "{case:?} was not cut");
    }
}

#[tokio::test]
async fn half_open_connections_are_replaced() {
    let Some(network) = Network::enter("half_open_connections_are_replaced", 3) else { return };
    let mut fleet = fleet_in(&network).await;
    let mut nodes = Vec::new();
    for spoke in 0..3 {
        nodes.push(node_at(&fleet, &network, spoke, "", None).await);
    }
    // The agent goes and its end is lost; the controller has half a connection when the next one comes.
    network.cut(0, Way::ToController);
    nodes[0].kill();
    nodes[0].start();
    network.heal(0);
    let rollout = fleet.api.start(spec_for(&fleet, &nodes[0], "1.1.0")).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    // The controller goes and its end is lost; the agent has half a connection when the next one comes.
    network.cut(1, Way::ToAgent);
    fleet.kill_controller();
    fleet.start_controller().await;
    network.heal(1);
    fleet.api.reach_online("s1", true).await;
    let rollout = fleet.api.start(spec_for(&fleet, &nodes[1], "1.1.0")).await;
    fleet.api.reach(&rollout, State::Succeeded).await;
    // An agent that reads no more is as good as gone, however well its kernel answers.
    fleet.api.reach_online("s2", true).await;
    let pid = Pid::from_raw(i32::try_from(nodes[2].agent()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let moment = Instant::now();
    let rollout = fleet.api.start(spec_for(&fleet, &nodes[2], "1.1.0")).await;
    within_async(Duration::from_secs(30), "the frozen agent to be found", || async {
        if fleet.api.node("s2").await.online { Err("online".to_owned()) } else { Ok(()) }
    })
    .await;
    println!("figure: network_frozen found within {:.1} s", moment.elapsed().as_secs_f64());
    kill_process(pid, Signal::CONT).unwrap();
    fleet.api.reach(&rollout, State::Succeeded).await;
}
