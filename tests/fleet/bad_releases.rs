//! A release that fails, in eight ways: rolled back in time, with the way named, and not tried again.

use std::{
    fs,
    net::TcpListener,
    task::Poll,
    time::{Duration, Instant},
};

use upfleet_api::v1::{self, UpgradeState, rollout::State};
use upfleet_domain::digest::Digest;

use crate::support::{Fleet, TestFleet, endure, eventually};

/// How a release fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Exits,
    Hangs,
    CrashLoop,
    UnhealthyLater,
    PortClosed,
    EatsMemory,
    WrongArchitecture,
    MissingLibrary,
}

const WAYS: [Way; 8] = [
    Way::Exits,
    Way::Hangs,
    Way::CrashLoop,
    Way::UnhealthyLater,
    Way::PortClosed,
    Way::EatsMemory,
    Way::WrongArchitecture,
    Way::MissingLibrary,
];

/// How long a version may take to be healthy, and how long it is watched then, in milliseconds.
const START_DEADLINE: u64 = 4_000;
const SOAK: u64 = 1_500;
/// The longest from the order to the old version again: the deadline, and the five seconds that are promised beyond.
const LIMIT: Duration = Duration::from_millis(START_DEADLINE + SOAK + 5_000);

impl Way {
    /// What a person is told.
    fn says(self) -> &'static str {
        match self {
            Self::Exits => "saying `cannot bind: address in use`",
            Self::Hangs => "not healthy within 4000 ms",
            Self::CrashLoop => "saying `lost my queue`",
            Self::UnhealthyLater => "probe failed",
            Self::PortClosed => "127.0.0.1",
            Self::EatsMemory => "saying `MemoryError`",
            Self::WrongArchitecture => "the file is a program for arm64",
            Self::MissingLibrary => "error while loading shared libraries: libq.so.6",
        }
    }

    /// Whether it is found out before anything is touched.
    fn found_early(self) -> bool {
        self == Self::WrongArchitecture
    }

    /// The bytes of a release. `run` makes each different.
    fn bytes(self, run: u64, port: u16) -> Vec<u8> {
        let probe = match self {
            Self::Hangs => "echo 'still loading' >&2; exit 1",
            Self::UnhealthyLater => "[ ! -e \"$DIR/late\" ]; exit $?",
            _ => "exit 0",
        };
        let main = match self {
            Self::Exits => "echo 'cannot bind: address in use' >&2; exit 7",
            Self::CrashLoop => "sleep 0.4; echo 'lost my queue' >&2; exit 3",
            Self::UnhealthyLater => "( sleep 0.6; : >\"$DIR/late\" ) & serve",
            Self::EatsMemory => "exec python3 -c 'a=[]\nwhile True: a.append(bytearray(1<<24))'",
            Self::WrongArchitecture | Self::MissingLibrary => return self.program(run),
            // What it prints is there to be seen.
            Self::Hangs | Self::PortClosed => "echo 'loading the index'; serve_nothing",
        };
        script(&format!("{self:?} {run}"), probe, main, port)
    }

    /// A real program, spoilt.
    fn program(self, run: u64) -> Vec<u8> {
        let mut bytes = fs::read("/bin/sleep").unwrap();
        if self == Self::WrongArchitecture {
            bytes[18..20].copy_from_slice(&183_u16.to_le_bytes());
        } else {
            let name = b"libc.so.6\0";
            let at = bytes.windows(name.len()).position(|window| window == name).expect("sleep needs libc");
            bytes[at + 3] = b'q';
        }
        bytes.extend(run.to_le_bytes());
        bytes
    }
}

/// A program with a probe and a port; `serve` accepts on it.
fn script(version: &str, probe: &str, main: &str, port: u16) -> Vec<u8> {
    format!(
        "#!/bin/sh\n# {version}\nDIR=$(dirname \"$0\")\nif [ \"$1\" = probe ]; then {probe}; fi\n\
         echo \"{version} $$\" >>\"$DIR/starts\"\n\
         serve() {{ exec python3 -c 'import socket,time\ns=socket.socket()\n\
         s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\ns.bind((\"127.0.0.1\",{port}))\ns.listen(64)\n\
         while True: s.accept()[0].close()'; }}\n\
         serve_nothing() {{ trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done; }}\n{main}\n"
    )
    .into_bytes()
}

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Eight nodes, one for each way, that run a good version with an open port.
async fn fleet() -> (TestFleet, Vec<u16>) {
    let mut fleet = Fleet { nodes: 0, base: None, releases: Vec::new(), ..Fleet::default() }.start().await;
    let ports: Vec<u16> = WAYS.iter().map(|_| free_port()).collect();
    for (way, port) in WAYS.iter().zip(&ports) {
        let good = script("1.0.0", "exit 0", "serve", *port);
        let index = fleet.add_node(&name(*way), Some(&good)).await;
        let config = fleet.nodes[index].app("../etc/agent.toml");
        let text = fs::read_to_string(&config).unwrap();
        let tcp = format!(
            "[[component.probe]]\ntype = \"tcp\"\naddress = \"127.0.0.1:{port}\"\ninterval = \"100ms\"\nsuccesses = 1\nfailures = 3\n\n[component.health]"
        );
        let memory = if *way == Way::EatsMemory { "memory_max = \"256MiB\"\n" } else { "" };
        let text = text
            .replace("soak = \"200ms\"", &format!("soak = \"{SOAK}ms\""))
            .replace("start_deadline = \"8s\"", &format!("start_deadline = \"{START_DEADLINE}ms\""))
            .replace("restart_delay = \"50ms\"", &format!("restart_delay = \"1s\"\n{memory}"))
            // A node whose release is a bare program is not asked by it, nor by a port.
            .replace("[component.health]", &tcp);
        fs::write(&config, text).unwrap();
        fleet.nodes[index].start();
    }
    for node in &fleet.nodes {
        fleet.api.reach_online(&node.name, true).await;
    }
    // What was there before becomes a release that runs: then there is a version to go back to.
    for (sequence, (way, port)) in (1..).zip(WAYS.iter().zip(&ports)) {
        let version = format!("1.0.{sequence}");
        fleet.api.publish(&version, sequence, &script(&version, "exit 0", "serve", *port)).await;
        let rollout = fleet.api.start(spec(&fleet, &version, *way)).await;
        fleet.api.reach(&rollout, State::Succeeded).await;
    }
    (fleet, ports)
}

fn name(way: Way) -> String {
    format!("{way:?}").to_lowercase()
}

fn spec(fleet: &TestFleet, version: &str, way: Way) -> v1::RolloutSpec {
    let mut spec = fleet.spec(version);
    spec.selector = format!("name={}", name(way));
    spec
}

/// A release that failed: its rollout, the upgrade's end, and how long that took from the order on.
type Failed = (String, v1::Upgrade, Duration);

/// Rolls one bad release out, until the node has said how it ended.
async fn fails(fleet: &TestFleet, way: Way, run: u64, port: u16) -> Failed {
    let sequence = 100 + run * 10 + WAYS.iter().position(|other| *other == way).unwrap() as u64;
    let version = format!("2.{run}.{sequence}");
    fleet.api.publish(&version, sequence, &way.bytes(run, port)).await;
    let rollout = fleet.api.start(spec(fleet, &version, way)).await;
    let begun = Instant::now();
    let end = if way.found_early() { UpgradeState::FailedUnchanged } else { UpgradeState::RolledBack };
    let upgrade = fleet.api.reach_upgrade(&rollout, &name(way), end).await;
    (rollout, upgrade, begun.elapsed())
}

/// What the node, the reason and the rollout have to be after it.
async fn judge(fleet: &TestFleet, way: Way, before: Option<Digest>, failed: Failed) {
    let (rollout, upgrade, took) = failed;
    let node = fleet.node(&name(way));
    let reason = upgrade.reason.clone().unwrap_or_default();
    println!("{way:?}: {} ({} ms)", reason.message, took.as_millis());
    assert!(reason.message.contains(way.says()), "{way:?}: {}", reason.message);
    assert!(took < LIMIT, "{way:?}: {took:?}");
    assert_eq!(node.digest(), before, "{way:?}");
    let halted = fleet.api.reach(&rollout, State::Halted).await;
    assert!(!halted.reason.unwrap_or_default().message.is_empty(), "{way:?}");
    if !way.found_early() {
        let lines = upgrade.evidence.unwrap_or_default().lines;
        assert!(!lines.is_empty() || way == Way::UnhealthyLater, "{way:?}: no last lines");
        not_again(fleet, way, &rollout).await;
    }
    fleet.cli(&["rollout", "cancel", rollout.trim_start_matches("rollouts/"), "--yes"]);
    eventually(&format!("{way:?}: the old version to run"), || {
        node.running().filter(|(running, _)| running.starts_with("1.0."))
    });
}

/// All of them at once.
async fn join_all<T>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in waiting.iter_mut().zip(&mut done) {
            if done.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(context)
            {
                *done = Some(value);
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// The same digest is refused, unless somebody says so.
async fn not_again(fleet: &TestFleet, way: Way, rollout: &str) {
    let node = fleet.node(&name(way));
    let starts = node.starts().len();
    fleet.cli(&["rollout", "retry", rollout.trim_start_matches("rollouts/")]);
    let upgrade = fleet.api.reach_upgrade(rollout, &node.name, UpgradeState::Refused).await;
    assert_eq!(upgrade.reason.unwrap_or_default().code, "FAILED_DIGEST", "{way:?}");
    assert_eq!(node.starts().len(), starts, "{way:?}: no second try");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matrix_of_releases_that_fail_in_eight_ways() {
    let runs = if endure() { 5 } else { 2 };
    let (fleet, ports) = fleet().await;
    let mut slowest = Duration::ZERO;
    for run in 0..runs {
        let nodes = WAYS.map(|way| fleet.node(&name(way)));
        nodes.iter().for_each(|node| drop(fs::remove_file(node.app("late"))));
        let before = nodes.map(|node| node.digest());
        let all = WAYS.iter().zip(&ports).map(|(way, port)| fails(&fleet, *way, run, *port));
        let all = join_all(all).await;
        for ((way, before), failed) in WAYS.into_iter().zip(before).zip(all) {
            slowest = slowest.max(failed.2);
            judge(&fleet, way, before, failed).await;
        }
    }
    println!(
        "figure: bad_releases {} of {} in 8 ways rolled back or left unchanged; slowest {} ms, deadline {} ms and 5 s",
        runs * 8,
        runs * 8,
        slowest.as_millis(),
        START_DEADLINE + SOAK
    );
}
