//! The agent's core killed before and after each step that only a handover has, and in the recovery from that: it ends
//! with the new process or with the old one, which was never stopped; and nobody was without an answer.
//!
//! A child (this test binary once more, see [`harness`]) drives the component, as in `crash.rs`.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{
        self, Exclusives, Outgoing, Shared,
        stack::View,
        world::{Node, OnProgress, World},
    },
    config::{ComponentConfig, FetchConfig},
    crash::{HANDOVER_POINTS, VARIABLE},
    download::Fetcher,
    journal::Journal,
    platform::node_platform,
    processes::descendants,
    shim::spec::{self, RECORD, Record as ShimRecord},
    supervise::{Supervisor, shim_dir},
};
use upfleet_domain::{
    digest::Digest,
    order::{DesiredState, Generation, Target},
    reason::Reason,
    release::ArtifactRef,
    upgrade::{
        Evidence, Outcome,
        record::Record,
        step::{Failure, Process},
    },
};

use super::{
    handover::{SERVER, python},
    support::AGENT,
    systemd::support::{Release, release},
};

const DIR: &str = "UPFLEET_HANDOVER_DIR";
const ORDER: &str = "UPFLEET_HANDOVER_ORDER";

fn config(dir: &Path) -> ComponentConfig {
    let text = format!(
        "name = \"shop\"\npath = {:?}\n[run]\nmode = \"supervised\"\nactivate = \"handover\"\n\
         [[run.socket]]\nname = \"unix\"\nlisten = {:?}\n[health]\nsoak = \"30ms\"\nstart_deadline = \"50s\"\n\
         [[probe]]\ntype = \"notify\"\ninterval = \"20ms\"\nfailures = 5000\n",
        dir.join("shop"),
        dir.join("sock"),
    );
    toml::from_str(&text).unwrap()
}

fn supervisor(dir: &Path) -> Supervisor {
    Supervisor::with_program(&dir.join("state"), &config(dir), Path::new(AGENT))
}

/// The server under another name; the bad one ends at once.
fn program(name: &str) -> Release {
    let python = python().expect("looked for before");
    let ends = if name == "bad" { "import sys; sys.exit(3)\n" } else { "" };
    let text = format!("#!{python}\nVERSION = {name:?}\n{ends}{SERVER}");
    release(name, if name == "one" { 1 } else { 2 }, text.into_bytes())
}

/// The agent's real world, but that bytes come from where the test has them.
struct Local {
    node: Node,
}

impl World for Local {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let all = ["one", "two", "bad"].map(program);
        let release = all.iter().find(|one| one.reference.artifact == artifact.sha256).unwrap();
        std::fs::write(part, &release.bytes).unwrap();
        Ok(())
    }
    async fn start(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        self.node.start(digest, stack).await
    }
    async fn stop(&self) -> Result<(), Failure> {
        self.node.stop().await
    }
    async fn start_beside(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        self.node.start_beside(digest, stack).await
    }
    async fn drain(&self) -> Result<(), Failure> {
        self.node.drain().await
    }
    async fn dismiss(&self) -> Result<(), Failure> {
        self.node.dismiss().await
    }
    async fn beside(&self) -> Option<Process> {
        self.node.beside().await
    }
    async fn process(&self) -> Process {
        self.node.process().await
    }
    async fn reload(&self) -> Result<String, Failure> {
        self.node.reload().await
    }
    async fn probe(&self, index: usize, beside: bool) -> Result<(), String> {
        self.node.probe(index, beside).await
    }
    async fn evidence(&self) -> Evidence {
        self.node.evidence().await
    }
    async fn tail(&self, lines: usize) -> Vec<String> {
        self.node.tail(lines).await
    }
}

/// The child: orders a release, again if it was ordered before, and stays until the upgrade has ended.
#[test]
fn harness() {
    let (Ok(dir), Ok(name)) = (std::env::var(DIR), std::env::var(ORDER)) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(drive(Path::new(&dir), &name));
}

async fn drive(dir: &Path, name: &str) {
    let (state, config) = (dir.join("state"), config(dir));
    let fetcher = Fetcher::new(&FetchConfig::default(), None);
    let node = Node::with_supervisor(&state, &config, fetcher, Path::new(AGENT), supervisor(dir));
    let (sender, mut outgoing) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&state, &config, Local { node }, shared);
    let release = program(name);
    let desired = DesiredState {
        component: config.name.clone(),
        generation: Generation { epoch: 1, number: release.reference.sequence },
        rollout: None,
        upgrade: Some(name.parse().unwrap()),
        target: Target::Install(release.reference.clone()),
        layers: vec![],
        live: false,
        hold_before: None,
        not_after: None,
        allow_downgrade: false,
        allow_failed_digest: false,
        soak: None,
        trace: String::new(),
        actor: String::new(),
    };
    handle.order(desired, Some(release.manifest), vec![], None).await.unwrap();
    loop {
        let snapshot = handle.snapshot().await.unwrap();
        let ours = snapshot.inventory.upgrade.as_ref().is_some_and(|upgrade| upgrade.as_str() == name);
        if ours && snapshot.inventory.upgrade_state.is_some_and(|state| state.outcome().is_some()) {
            break;
        }
        let _: Option<Outgoing> =
            tokio::time::timeout(Duration::from_millis(50), outgoing.recv()).await.unwrap_or(None);
    }
    shutdown.cancel();
    drop(outgoing);
    task.await.unwrap();
}

/// A component in a directory of its own; its shim and what it runs end with this value.
struct Place(TempDir);

impl Place {
    fn path(&self) -> &Path {
        self.0.path()
    }

    fn record(&self) -> Record {
        let name = "shop".parse().unwrap();
        Journal::peek(&self.path().join("state/journals"), &name).unwrap_or_else(|| Record::new(name))
    }

    fn shim(&self) -> Option<ShimRecord> {
        let dir = shim_dir(&self.path().join("state"), &"shop".parse().unwrap());
        spec::read::<ShimRecord>(&dir.join(RECORD)).ok()
    }

    /// What runs, and what stands beside it.
    fn runs(&self) -> (Option<(u32, Digest)>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let both = runtime.block_on(supervisor(self.path()).both()).unwrap();
        (both.current.running().map(|info| (info.pid, info.digest)), both.beside.is_some())
    }

    fn begin(&self, name: &str, point: Option<&str>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "handover_crash::harness", "--nocapture"]);
        command.env(DIR, self.path()).env(ORDER, name).env_remove(VARIABLE);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(point) = point {
            command.env(VARIABLE, point);
        }
        command.spawn().unwrap()
    }

    /// Runs a child; true where it was killed at `point`.
    fn child(&self, name: &str, point: Option<&str>) -> bool {
        let running = self.begin(name, point);
        self.end(running, name, point)
    }

    fn end(&self, mut running: Child, name: &str, point: Option<&str>) -> bool {
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = running.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                running.kill().unwrap();
                running.wait().unwrap();
                panic!("{name} did not end; point {point:?}; {:?}", self.record().passage);
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let killed = status.signal() == Some(9);
        assert!(killed || status.success(), "{status}: {name} at {point:?}: {:?}", self.record());
        killed
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shim) = self.shim().and_then(|record| record.shim) {
            let left = descendants(shim.pid);
            let _ = shim.signal(Signal::KILL);
            for process in left {
                let _ = process.signal(Signal::KILL);
            }
        }
    }
}

/// Some deaths, then a run to the end. Returns how often it died.
fn series(name: &str, deaths: &[&str]) -> usize {
    let about = format!("{name} after {deaths:?}");
    let place = Place(tempfile::tempdir().unwrap());
    assert!(!place.child("one", None));
    let (before, _) = place.runs();
    let died = deaths.iter().filter(|point| place.child(name, Some(point))).count();
    assert!(!place.child(name, None), "without a crash point nobody dies");
    let record = place.record();
    let last = record.last.as_ref().expect("an upgrade ended");
    let (runs, beside) = place.runs();
    assert!(record.passage.is_none() && !beside, "{about}: {record:?}");
    let digest = program(if name == "bad" { "one" } else { name }).reference.artifact;
    assert_eq!(record.current.artifact(), Some(digest), "{about}: {last:?}");
    assert_eq!(runs.map(|(_, digest)| digest), Some(digest), "{about}");
    let cost = last.entry.as_ref().and_then(|entry| entry.interruption.as_ref());
    if name == "bad" {
        assert_eq!(last.outcome, Outcome::RolledBack, "{about}: {}", last.reason);
        assert_eq!(runs, before, "{about}: the old process was touched");
        assert_eq!(cost, None, "{about}");
    } else {
        assert_eq!(last.outcome, Outcome::Succeeded, "{about}: {}", last.reason);
        assert!(cost.is_some_and(|cost| cost.handed_over && cost.down_ms == 0), "{about}: {cost:?}");
    }
    died
}

#[test]
fn killed_around_each_step_of_a_handover_it_ends_old_or_new() {
    if python().is_none() {
        return super::files::skipped("killed_around_each_step_of_a_handover", "there is no python3");
    }
    let all = std::env::var_os("UPFLEET_ENDURE").is_some();
    let (mut runs, mut died) = (0, 0);
    for point in HANDOVER_POINTS {
        // Nothing is drained of a bad release, and nothing dismissed of a good one.
        let bad = !point.contains("drain");
        let good = !point.contains("dismiss");
        for name in
            [("two", good), ("bad", bad)].into_iter().filter(|(_, comes)| *comes).map(|(name, _)| name)
        {
            let again: &[&str] = if all { HANDOVER_POINTS } else { &["step.inspect.after"] };
            for second in again {
                runs += 1;
                let deaths = series(name, &[&format!("{point}:1"), &format!("{second}:1")]);
                assert!(deaths > 0, "{name} never came to {point}");
                died += deaths;
            }
        }
    }
    println!("figure: handover_crash_series {runs}, {died} deaths, 0 ended between");
}

/// The shim is killed while two processes run, and its sockets with it: the next one ends what was left, and the upgrade
/// ends with one of the two versions running, alone.
#[test]
fn a_shim_killed_in_the_midst_of_a_handover_costs_a_restart_and_no_state() {
    if python().is_none() {
        return super::files::skipped("a_shim_killed_in_the_midst_of_a_handover", "there is no python3");
    }
    let place = Place(tempfile::tempdir().unwrap());
    assert!(!place.child("one", None));
    let child = place.begin("two", None);
    let deadline = Instant::now() + Duration::from_secs(60);
    let killed = loop {
        let shim = place.shim().and_then(|record| record.shim).expect("a shim has begun");
        // Two processes are there, whoever is whose.
        if descendants(shim.pid).len() > 1 {
            break shim.signal(Signal::KILL);
        }
        assert!(Instant::now() < deadline, "nothing was started beside: {:?}", place.record());
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(killed);
    assert!(!place.end(child, "two", None));
    let record = place.record();
    let last = record.last.as_ref().expect("an upgrade ended");
    assert!([Outcome::Succeeded, Outcome::RolledBack].contains(&last.outcome), "{last:?}");
    let (runs, beside) = place.runs();
    assert_eq!((runs.map(|(_, digest)| digest), beside), (record.current.artifact(), false), "{last:?}");
    let shim = place.shim().and_then(|record| record.shim).unwrap();
    assert_eq!(descendants(shim.pid).len(), 1);
}
