//! What each version kept on the disk and said on the wire, as fixtures under `tests/fixtures/formats/<version>`: both
//! versions of the program read all of them, go on with them, and answer them.
//!
//! A fixture is made once, by the version it is of, and never again: `UPFLEET_BLESS=1 cargo test --test fleet
//! formats::fixtures_of_these_versions` writes those that are missing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use upfleet_agent::identity::Identities;
use upfleet_api::v1::rollout::State;

use crate::support::{
    Behaviour, COMPONENT, Fleet, Node, TestFleet, eventually, next, run, transcript,
    transcript::Line,
    wire::{Between, Recorder},
};

/// Stands in the fixtures for the directory of the node they were taken from.
const PLACE: &str = "/the/node";
/// What happened to the node of each fixture, in this order.
pub const RELEASES: [(&str, Behaviour); 3] =
    [("1.0.0", Behaviour::Good), ("1.1.0", Behaviour::Good), ("1.2.0", Behaviour::Crashes)];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/formats")
}

/// All fixtures, oldest version first.
pub fn all() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// A fleet of this controller with all releases, and nodes that have run nothing yet.
pub async fn fleet(controller: PathBuf) -> TestFleet {
    let program = Some(controller);
    let fleet = Fleet { nodes: 0, base: None, releases: vec![], program, ..Fleet::default() }.start().await;
    for (sequence, (version, behaviour)) in (1..).zip(RELEASES) {
        fleet.api.publish(version, sequence, &crate::support::script(version, behaviour)).await;
    }
    fleet
}

#[tokio::test]
async fn fixtures_of_these_versions() {
    if std::env::var_os("UPFLEET_BLESS").is_some() {
        let own = env!("CARGO_PKG_VERSION");
        bless(own, next::current_agent(), next::current_controller()).await;
        bless(next::VERSION, next::agent(), next::controller()).await;
    }
    for version in [env!("CARGO_PKG_VERSION"), next::VERSION] {
        assert!(all().iter().any(|path| path.ends_with(version)), "there is a fixture of {version}");
    }
}

/// Makes a version's fixture, unless there is one.
async fn bless(version: &str, agent: PathBuf, controller: PathBuf) {
    let to = fixtures().join(version);
    if to.exists() {
        return;
    }
    let mut fleet = fleet(controller).await;
    let mut node = fleet.prepare("n1", "n1");
    node.program = agent;
    node.enroll(&fleet.token().await).success();
    fleet.nodes.push(node);
    let recorder = Recorder::default();
    let between = between(&fleet, Arc::new(recorder.clone())).await;
    fleet.node_mut("n1").start();
    fleet.api.reach_online("n1", true).await;
    for (version, behaviour) in RELEASES {
        let rollout = fleet.api.start(fleet.spec(version)).await;
        let end = if behaviour == Behaviour::Good { State::Succeeded } else { State::Halted };
        fleet.api.reach(&rollout, end).await;
    }
    // Every report is acknowledged, and the order that stands last is there.
    eventually("the session to be quiet", || {
        use upfleet_api::v1::{session_request::Message as Said, session_response::Message as Told};
        let lines = recorder.lines();
        let reports = lines.iter().filter_map(Line::said).filter_map(|said| match said {
            Said::Report(report) => Some((report.upgrade, report.sequence)),
            _ => None,
        });
        let last = reports.last()?;
        let acked = lines.iter().filter_map(Line::told).any(
            |told| matches!(told, Told::ReportAck(ack) if (&ack.upgrade, ack.sequence) == (&last.0, last.1)),
        );
        acked.then_some(())
    });
    let node = fleet.node_mut("n1");
    node.stop();
    drop(between);
    keep(node, &to);
    transcript::write(&to.join("session.jsonl"), &recorder.lines());
}

/// Lets the node's agent go by somebody who stands between it and the controller.
pub async fn between(fleet: &TestFleet, answers: Arc<dyn crate::support::wire::Answers>) -> Between {
    let node = fleet.node("n1");
    let (etc, state) = (node.app("../etc/conf.d/controller.toml"), node.app("../state"));
    let text = fs::read_to_string(&etc).unwrap();
    let table: toml::Table = text.parse().unwrap();
    let controller = table["controller"]["address"].as_str().unwrap().to_owned();
    let between = Between::start(&controller, &fleet.data(), &state, answers).await;
    fs::write(&etc, text.replace(&controller, &between.address)).unwrap();
    between
}

/// Copies what the node has into a fixture, without what is space only.
fn keep(node: &Node, to: &Path) {
    let dir = node.app("..").canonicalize().unwrap();
    fs::create_dir_all(to).unwrap();
    for part in ["state", "app"] {
        run(Command::new("cp").arg("-r").arg(dir.join(part)).arg(to.join(part))).success();
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let mut dirs = vec![to.to_owned()];
    while let Some(dir_of) = dirs.pop() {
        for entry in fs::read_dir(dir_of).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let useless =
                ["lock", "sock", "output.log", "starts"].contains(&name.as_str()) || name.contains("spare");
            if path.is_dir() {
                dirs.push(path);
            } else if useless {
                fs::remove_file(path).unwrap();
            } else if name.ends_with(".journal") {
                let mut bytes = fs::read(&path).unwrap();
                bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
                fs::write(path, bytes).unwrap();
            } else if name == "spec.json" || name == "record.json" {
                // Without the second line, which is the first one's checksum: the place will be another.
                let text = fs::read_to_string(&path).unwrap();
                let line = text.lines().next().unwrap().replace(dir.to_str().unwrap(), PLACE);
                let home = std::env::var("HOME").unwrap_or_default();
                let line = line.replace(&format!("\"{home}\""), "\"/\"");
                fs::write(path, line.replace(boot.trim(), transcript::BOOT)).unwrap();
            }
        }
    }
}

/// A node that has what is in the fixture, with an agent of this program.
fn node_of(fleet: &TestFleet, fixture: &Path, program: &Path, name: &str) -> Node {
    let mut node = fleet.prepare(name, name);
    node.program = program.to_owned();
    let dir = node.app("..").canonicalize().unwrap();
    for part in ["state", "app"] {
        let _ = fs::remove_dir_all(dir.join(part));
        run(Command::new("cp").arg("-r").arg(fixture.join(part)).arg(dir.join(part))).success();
    }
    for file in ["spec.json", "record.json"] {
        let path = dir.join("state/shims").join(COMPONENT).join(file);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace(PLACE, dir.to_str().unwrap())).unwrap();
    }
    node
}

/// How the upgrades of a history ended, oldest first.
pub fn outcomes(history: &str) -> Vec<String> {
    let entries: Vec<serde_json::Value> = serde_json::from_str(history).unwrap();
    let mut entries: Vec<(i64, String)> = entries
        .iter()
        .map(|entry| {
            (entry["time"].as_i64().unwrap_or_default(), entry["outcome"].as_str().unwrap().to_owned())
        })
        .collect();
    entries.sort_by_key(|(time, _)| *time);
    entries.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test]
async fn every_state_directory_is_read_by_both_versions() {
    let fleet = Fleet { nodes: 0, base: None, releases: vec![], ..Fleet::default() }.start().await;
    for fixture in all() {
        let version = fixture.file_name().unwrap().to_str().unwrap().to_owned();
        for (reader, program) in [("current", next::current_agent()), ("next", next::agent())] {
            let what = format!("{version} read by {reader}");
            let mut node = node_of(&fleet, &fixture, &program, &format!("{reader}-{version}"));
            let status = node.run(&["status", "-o", "json"]).json();
            let text = status.to_string();
            assert!(text.contains("1.1.0") && text.contains("1.0.0"), "{what}: {text}");
            let history = node.run(&["history", "-o", "json"]).success();
            assert_eq!(outcomes(&history), ["SUCCEEDED", "SUCCEEDED", "ROLLED_BACK"], "{what}: {history}");
            assert_eq!(Identities::load(&node.app("../state")).unwrap().current().node().as_str(), "n1");
            // It runs again what ran, and goes back to what was kept: shims, manifests and versions are understood.
            node.start();
            eventually(&format!("{what}: 1.1.0"), || node.running().filter(|(runs, _)| runs == "1.1.0"));
            let back = node.run(&["rollback", "--local", COMPONENT, "--to", "1.0.0", "--message", "a test"]);
            assert_eq!(back.code, 0, "{what}: {back:?}");
            eventually(&format!("{what}: 1.0.0"), || node.running().filter(|(runs, _)| runs == "1.0.0"));
            let aside = run(Command::new("find").arg(node.app("../state")).args(["-name", "*.damaged-*"]));
            assert_eq!(aside.success(), "", "{what}: nothing was moved aside");
            node.kill();
        }
    }
}

/// A shim's file of a later major is left to the version that wrote it, and the agent says why the component does not run.
#[tokio::test]
async fn a_shim_s_file_of_a_later_major_is_left_alone() {
    let fleet = Fleet { nodes: 0, base: None, releases: vec![], ..Fleet::default() }.start().await;
    let fixture = fixtures().join(env!("CARGO_PKG_VERSION"));
    let mut node = node_of(&fleet, &fixture, &next::current_agent(), "later");
    let path = node.app("../state/shims").join(COMPONENT).join("spec.json");
    let later = fs::read_to_string(&path).unwrap().replace("\"format\":1", "\"format\":2");
    fs::write(&path, &later).unwrap();
    node.start();
    eventually("the agent to say why", || {
        node.log().contains("has format 2, this version reads up to 1").then_some(())
    });
    let status = node.run(&["status"]);
    assert!(status.out.contains("unhealthy"), "{status:?}");
    assert_eq!(fs::read_to_string(&path).unwrap(), later);
    assert_eq!(node.running(), None);
}

#[tokio::test]
async fn every_transcript_means_what_it_meant() {
    for fixture in all() {
        let lines = transcript::read(&fixture.join("session.jsonl"));
        assert!(lines.iter().filter_map(Line::said).count() > 20, "{}", fixture.display());
        assert!(lines.iter().filter_map(Line::told).count() > 5, "{}", fixture.display());
    }
    // Those of the next version hold what this one does not know.
    let later = transcript::read(&fixtures().join(next::VERSION).join("session.jsonl"));
    let unknown = |line: &Line| line.bytes.windows(18).any(|window| window == b"of a later version");
    assert!(later.iter().all(unknown), "in every message of both sides");
}
