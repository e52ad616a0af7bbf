//! The crash matrix: the agent's core is killed at each of its crash points, and again in the recovery from that.
//!
//! A child process (this test binary once more, see [`harness`]) drives a component with the real journal, files,
//! shim and process. After each series of deaths one more child runs to the end; then the component is complete and
//! old or new, what runs is what is recorded, and nothing temporary is left. `UPFLEET_ENDURE=1` walks every pair of
//! points.

use std::{
    collections::BTreeSet,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{
        self, Exclusives, ManifestBytes, Outgoing, Shared,
        stack::View,
        world::{OnProgress, World},
    },
    config::ComponentConfig,
    crash::{POINTS, VARIABLE},
    exec::hash_file,
    journal::Journal,
    platform::node_platform,
    supervise::{Launch, ProcessStateInfo, Supervisor},
};
use upfleet_domain::{
    digest::Digest,
    order::{DesiredState, Generation, Target},
    reason::Reason,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    state::ReleaseRef,
    upgrade::{
        Evidence, Outcome,
        record::Record,
        step::{Failure, Process},
    },
};

use super::support::AGENT;

/// Names the directory of the component in a child.
const DIR: &str = "UPFLEET_HARNESS_DIR";
/// Names the release to order in a child.
const ORDER: &str = "UPFLEET_HARNESS_ORDER";

/// The releases a child can order: the program's bytes begin with another program, so that both kinds are real.
const RELEASES: [(&str, u64, &str); 3] =
    [("one", 1, "/bin/sleep"), ("two", 2, "/bin/sleep"), ("bad", 2, "/bin/false")];

fn config(dir: &Path) -> ComponentConfig {
    let text = format!(
        "name = \"app\"\npath = {:?}\n[run]\nmode = \"supervised\"\ncommand = [\"{{path}}\", \"1000\"]\n[health]\n\
         soak = \"30ms\"\nstart_deadline = \"20s\"\n[[probe]]\ntype = \"process\"\ninterval = \"10ms\"\n",
        dir.join("app")
    );
    toml::from_str(&text).unwrap()
}

fn supervisor(dir: &Path) -> Supervisor {
    Supervisor::with_program(&dir.join("state"), &config(dir), Path::new(AGENT))
}

fn bytes(name: &str) -> Vec<u8> {
    let (_, _, program) = RELEASES.into_iter().find(|(known, ..)| *known == name).unwrap();
    // What follows an executable's own bytes is of no concern to the kernel.
    [std::fs::read(program).unwrap(), name.as_bytes().to_vec()].concat()
}

fn release(name: &str) -> (ReleaseRef, ManifestBytes) {
    let (_, sequence, _) = RELEASES.into_iter().find(|(known, ..)| *known == name).unwrap();
    let bytes = bytes(name);
    let platform = Platform { arch: "any".to_owned(), ..node_platform() };
    let artifact = ArtifactRef {
        platform,
        sha256: Digest::of(&bytes),
        md5: None,
        size: bytes.len() as u64,
        sources: vec![],
        encodings: vec![],
    };
    let manifest = Manifest {
        format: FORMAT,
        component: "app".parse().unwrap(),
        version: name.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: Vec::new(),
        patch: None,
        files: None,
    };
    let text = manifest.to_bytes();
    let release = ReleaseRef {
        component: manifest.component,
        version: manifest.version,
        sequence,
        manifest: Digest::of(&text),
        artifact: Digest::of(&bytes),
    };
    (release, ManifestBytes { bytes: text, signatures: vec![] })
}

/// The real process and probe; bytes come from where the test has them.
struct Local {
    config: ComponentConfig,
    supervisor: Supervisor,
}

impl World for Local {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let all = RELEASES.into_iter().map(|(name, ..)| bytes(name));
        let bytes = all.into_iter().find(|bytes| Digest::of(bytes) == artifact.sha256).unwrap();
        std::fs::write(part, bytes).unwrap();
        Ok(())
    }

    async fn start(&self, digest: Digest, _: View) -> Result<Process, Failure> {
        let started = self.supervisor.start(&Launch::of(&self.config, Some(digest))).await;
        let info = started.map_err(|fault| Failure::from(fault.reason))?;
        Ok(Process::Running { pid: info.pid, digest: info.digest, stack: None })
    }

    async fn stop(&self) -> Result<(), Failure> {
        self.supervisor.stop().await.map_err(|fault| Failure::from(fault.reason))
    }

    async fn process(&self) -> Process {
        match self.supervisor.process().await {
            Ok(ProcessStateInfo::Running(info)) => {
                Process::Running { pid: info.pid, digest: info.digest, stack: None }
            }
            Ok(state) => match state.last_exit() {
                Some(exit) => Process::Down { exit: exit.to_string() },
                None => Process::NotRun,
            },
            Err(_) => Process::NotRun,
        }
    }

    async fn reload(&self) -> Result<String, Failure> {
        Ok("told".to_owned())
    }

    async fn probe(&self, _: usize, _beside: bool) -> Result<(), String> {
        self.supervisor.process().await.map_err(|fault| fault.to_string())?.up().map(drop)
    }

    async fn evidence(&self) -> Evidence {
        Evidence::default()
    }

    async fn tail(&self, _: usize) -> Vec<String> {
        Vec::new()
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
    let config = config(dir);
    let world = Local { supervisor: supervisor(dir), config: config.clone() };
    let (sender, mut outgoing) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&dir.join("state"), &config, world, shared);
    let (release, manifest) = release(name);
    let number = if name == "one" { 1 } else { 2 };
    let desired = DesiredState {
        component: config.name.clone(),
        generation: Generation { epoch: 1, number },
        rollout: None,
        upgrade: Some(name.parse().unwrap()),
        target: Target::Install(release),
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
    handle.order(desired, Some(manifest), vec![], None).await.unwrap();
    // Every report and inventory is a moment to look whether it is over.
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

/// Runs a child; true where it was killed at `point`.
fn child(dir: &Path, name: &str, point: Option<&str>) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::harness", "--nocapture"]).env(DIR, dir).env(ORDER, name);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).env_remove(VARIABLE);
    if let Some(point) = point {
        command.env(VARIABLE, point);
    }
    let mut running = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let status = loop {
        if let Some(status) = running.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            running.kill().unwrap();
            panic!("{name} did not end; point {point:?}; {:?}", record(dir).passage);
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let killed = status.signal() == Some(9);
    assert!(killed || status.success(), "{status}: {name} at {point:?}: {:?}", record(dir));
    killed
}

fn record(dir: &Path) -> Record {
    let name = "app".parse().unwrap();
    Journal::peek(&dir.join("state/journals"), &name).unwrap_or_else(|| Record::new(name))
}

/// One series: some deaths, then a run to the end. Returns the points that were really died at.
fn series(setting: Setting, deaths: &[&str]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    setting.prepare(path);
    let name = setting.order();
    let died: Vec<String> = deaths
        .iter()
        .filter(|point| child(path, name, Some(point)))
        .map(|point| (*point).to_owned())
        .collect();
    assert!(!child(path, name, None), "without a crash point nobody dies");
    check(path, setting, deaths);
    died
}

const SETTINGS: [Setting; 5] =
    [Setting::Good, Setting::Bad, Setting::BadFirst, Setting::Adopted, Setting::BadAdopted];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Good,
    Bad,
    BadFirst,
    Adopted,
    BadAdopted,
}

impl Setting {
    /// Brings the component to where the upgrade begins.
    fn prepare(self, dir: &Path) {
        match self {
            Self::BadFirst => {}
            Self::Good | Self::Bad => assert!(!child(dir, "one", None)),
            Self::Adopted | Self::BadAdopted => {
                std::fs::write(dir.join("app"), bytes("one")).unwrap();
                std::fs::set_permissions(dir.join("app"), std::fs::Permissions::from_mode(0o750)).unwrap();
            }
        }
    }

    fn order(self) -> &'static str {
        match self {
            Self::Good | Self::Adopted => "two",
            Self::Bad | Self::BadFirst | Self::BadAdopted => "bad",
        }
    }

    /// How it ends: the outcome, what is installed, and whether that runs.
    fn ends(self) -> (Outcome, Option<Digest>, bool) {
        let digest = |name| Some(Digest::of(&bytes(name)));
        match self {
            Self::Good | Self::Adopted => (Outcome::Succeeded, digest("two"), true),
            Self::Bad => (Outcome::RolledBack, digest("one"), true),
            Self::BadFirst => (Outcome::RolledBack, None, false),
            // The agent did not run it before, so it does not run it now.
            Self::BadAdopted => (Outcome::RolledBack, digest("one"), false),
        }
    }
}

fn check(dir: &Path, setting: Setting, deaths: &[&str]) {
    let about = format!("{setting:?} after {deaths:?}");
    let record = record(dir);
    let (outcome, digest, runs) = setting.ends();
    assert!(record.passage.is_none() && record.next.is_none(), "{about}: {record:?}");
    assert_eq!(record.last.as_ref().map(|last| last.outcome), Some(outcome), "{about}: {:?}", record.last);
    assert_eq!(record.current.artifact(), digest, "{about}");
    assert_eq!(hash_file(&dir.join("app")).ok(), digest, "{about}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let supervisor = supervisor(dir);
    let running = runtime.block_on(async {
        let state = supervisor.process().await;
        let _ = supervisor.shutdown().await;
        state.ok().and_then(|state| state.running().map(|info| info.digest))
    });
    assert_eq!(running, digest.filter(|_| runs), "{about}: what runs is what is recorded");
    let ends = record.outbox.reports().filter(|report| report.upgrade.as_str() == setting.order());
    assert_eq!(ends.filter(|report| report.state.outcome().is_some()).count(), 1, "{about}");
    let left = temporary(dir);
    assert!(left.is_empty(), "{about}: left {left:?}");
}

/// What should not lie there any more.
fn temporary(dir: &Path) -> Vec<PathBuf> {
    let names = |path: PathBuf| -> Vec<PathBuf> {
        std::fs::read_dir(path).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let beside = names(dir.to_owned()).into_iter().filter(|path| path.to_string_lossy().ends_with("-tmp"));
    let state = ["state/journals", "state/manifests/app"].into_iter().flat_map(|at| names(dir.join(at)));
    let state = state.filter(|path| path.to_string_lossy().ends_with("tmp"));
    let versions = names(dir.join(".upfleet/app/versions")).into_iter();
    let versions = versions
        .filter(|path| hash_file(path).unwrap().to_string() != path.file_name().unwrap().to_string_lossy());
    beside.chain(state).chain(names(dir.join(".upfleet/app/incoming"))).chain(versions).collect()
}

/// Runs many series, two at a time, and returns the points that were died at.
fn walk(all: Vec<(Setting, Vec<String>)>) -> BTreeSet<String> {
    let (queue, reached) = (Mutex::new(all.into_iter()), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap().next();
                    let Some((setting, deaths)) = next else { return };
                    let deaths: Vec<&str> = deaths.iter().map(String::as_str).collect();
                    let died = series(setting, &deaths);
                    reached.lock().unwrap().extend(died);
                }
            });
        }
    });
    reached.into_inner().unwrap()
}

#[test]
fn killed_at_every_point_it_ends_old_or_new() {
    let mut all = Vec::new();
    for setting in SETTINGS {
        all.extend(POINTS.iter().map(|point| (setting, vec![format!("{point}:1")])));
    }
    // Each transition is a record: dying around each of them.
    for count in 2..=12 {
        for setting in [Setting::Good, Setting::Bad] {
            all.push((setting, vec![format!("journal.append.torn:{count}")]));
        }
    }
    let runs = all.len();
    let reached = walk(all);
    let missing: Vec<_> = POINTS.iter().filter(|point| !reached.contains(&format!("{point}:1"))).collect();
    assert!(missing.is_empty(), "never died at {missing:?}");
    println!("{runs} series, died at {} different moments", reached.len());
}

#[test]
fn killed_again_in_the_recovery_it_ends_old_or_new() {
    let again: Vec<&str> = if std::env::var_os("UPFLEET_ENDURE").is_some() {
        POINTS.to_vec()
    } else {
        vec!["step.inspect.after", "journal.append.torn"]
    };
    let firsts = if again.len() > 2 {
        POINTS.to_vec()
    } else {
        vec![
            "stage.renamed",
            "backup.renamed",
            "switch.linked",
            "switch.renamed",
            "step.stop.after",
            "step.start.after",
            "prune.some",
        ]
    };
    let mut all = Vec::new();
    for setting in [Setting::Good, Setting::Bad] {
        for first in &firsts {
            all.extend(
                again.iter().map(|second| (setting, vec![format!("{first}:1"), format!("{second}:1")])),
            );
        }
    }
    let runs = all.len();
    walk(all);
    println!("{runs} series of two deaths");
}
