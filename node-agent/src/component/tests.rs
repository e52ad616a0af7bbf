//! The actor on real files, with a world that answers at once.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    digest::Digest,
    order::{DesiredState, Generation, Target},
    reason::{Reason, ReasonCode},
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    state::{ComponentState, ReleaseRef},
    upgrade::{
        Evidence, Outcome,
        step::{Failure, Process},
    },
};

use super::{
    Exclusives, Handle, ManifestBytes, Outgoing, Shared,
    stack::View,
    start,
    world::{OnProgress, World},
};
use crate::{config::ComponentConfig, exec::hash_file};

/// A world without processes: it runs what it is told to, and finds `sick` bytes unhealthy.
#[derive(Clone)]
struct Toy(Arc<Toys>);

struct Toys {
    path: PathBuf,
    bytes: Mutex<Vec<Vec<u8>>>,
    runs: Mutex<Option<(u32, Digest)>>,
    sick: Mutex<Vec<Digest>>,
}

impl World for Toy {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let all = self.0.bytes.lock().unwrap().clone();
        let found = all.into_iter().find(|bytes| Digest::of(bytes) == artifact.sha256);
        let bytes = found.ok_or_else(|| Reason::new(ReasonCode::FetchFailed))?;
        std::fs::write(part, bytes).unwrap();
        Ok(())
    }

    async fn start(&self, digest: Digest, _: View) -> Result<Process, Failure> {
        assert_eq!(hash_file(&self.0.path).unwrap(), digest);
        let mut runs = self.0.runs.lock().unwrap();
        let pid = runs.map_or(1, |(pid, _)| pid + 1);
        *runs = Some((pid, digest));
        Ok(Process::Running { pid, digest, stack: None })
    }

    async fn stop(&self) -> Result<(), Failure> {
        *self.0.runs.lock().unwrap() = None;
        Ok(())
    }

    async fn process(&self) -> Process {
        let runs = *self.0.runs.lock().unwrap();
        runs.map_or(Process::NotRun, |(pid, digest)| Process::Running { pid, digest, stack: None })
    }

    async fn reload(&self) -> Result<String, Failure> {
        Ok("told".to_owned())
    }

    async fn probe(&self, _: usize, _beside: bool) -> Result<(), String> {
        let runs = *self.0.runs.lock().unwrap();
        match runs {
            Some((_, digest)) if self.0.sick.lock().unwrap().contains(&digest) => Err("sick".to_owned()),
            Some(_) => Ok(()),
            None => Err("does not run".to_owned()),
        }
    }

    async fn evidence(&self) -> Evidence {
        Evidence { lines: vec!["last words".to_owned()], ..Evidence::default() }
    }

    async fn tail(&self, _: usize) -> Vec<String> {
        vec!["a line".to_owned()]
    }
}

struct Bench {
    dir: tempfile::TempDir,
    toy: Toy,
    handle: Handle,
    outgoing: mpsc::Receiver<Outgoing>,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

fn platform() -> Platform {
    Platform { os: "linux".to_owned(), arch: "amd64".to_owned() }
}

fn launch(dir: &Path, toy: &Toy) -> (Handle, JoinHandle<()>, mpsc::Receiver<Outgoing>, CancellationToken) {
    let config = format!(
        "name = \"web\"\npath = {:?}\n[run]\nmode = \"supervised\"\n[health]\nsoak = \"20ms\"\nstart_deadline = \
         \"500ms\"\n[[probe]]\ntype = \"process\"\ninterval = \"5ms\"\n",
        dir.join("app")
    );
    let config: ComponentConfig = toml::from_str(&config).unwrap();
    let (sender, outgoing) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = start(&dir.join("state"), &config, toy.clone(), shared);
    (handle, task, outgoing, shutdown)
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let toys = Toys {
            path: dir.path().join("app"),
            bytes: Mutex::default(),
            runs: Mutex::default(),
            sick: Mutex::default(),
        };
        let toy = Toy(Arc::new(toys));
        let (handle, task, outgoing, shutdown) = launch(dir.path(), &toy);
        Self { dir, toy, handle, outgoing, task, shutdown }
    }

    fn release(&self, bytes: &[u8], n: u64) -> (ReleaseRef, ManifestBytes) {
        self.toy.0.bytes.lock().unwrap().push(bytes.to_vec());
        let manifest = Manifest {
            format: FORMAT,
            component: "web".parse().unwrap(),
            version: format!("1.0.{n}").parse().unwrap(),
            sequence: n,
            kind: Kind::Binary,
            notes: String::new(),
            artifacts: vec![ArtifactRef {
                platform: platform(),
                sha256: Digest::of(bytes),
                md5: None,
                size: bytes.len() as u64,
                sources: vec![],
                encodings: vec![],
            }],
            fixes: Vec::new(),
            patch: None,
            files: None,
        };
        let bytes_of = manifest.to_bytes();
        let release = ReleaseRef {
            component: manifest.component,
            version: manifest.version,
            sequence: n,
            manifest: Digest::of(&bytes_of),
            artifact: Digest::of(bytes),
        };
        (release, ManifestBytes { bytes: bytes_of, signatures: vec![] })
    }

    async fn order(&mut self, n: u64, target: Target, manifest: Option<ManifestBytes>) -> Result<(), Reason> {
        let desired = DesiredState {
            component: "web".parse().unwrap(),
            generation: Generation { epoch: 1, number: n },
            rollout: None,
            upgrade: Some(format!("u{n}").parse().unwrap()),
            target,
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
        self.handle.order(desired, manifest, vec![], None).await.map(drop).map_err(|nacked| nacked.reason)
    }

    async fn install(&mut self, n: u64, bytes: &[u8]) {
        let (release, manifest) = self.release(bytes, n);
        self.order(n, Target::Install(release), Some(manifest)).await.unwrap();
    }

    /// The end of upgrade `u<n>`, within ten seconds.
    async fn end(&mut self, n: u64) -> (Outcome, Option<Evidence>) {
        let name = format!("u{n}");
        let wait = async {
            loop {
                match self.outgoing.recv().await.expect("the actor runs") {
                    Outgoing::Report(report) if report.upgrade.as_str() == name => {
                        if let Some(outcome) = report.state.outcome() {
                            return (outcome, report.evidence);
                        }
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("it ends in time")
    }

    async fn restart(&mut self) {
        self.restart_after(|| {}).await;
    }

    async fn restart_after(&mut self, meanwhile: impl FnOnce()) {
        self.shutdown.cancel();
        (&mut self.task).await.unwrap();
        meanwhile();
        (self.handle, self.task, self.outgoing, self.shutdown) = launch(self.dir.path(), &self.toy);
    }

    fn installed(&self) -> Vec<u8> {
        std::fs::read(&self.toy.0.path).unwrap_or_default()
    }

    fn files(&self) -> Vec<String> {
        let store = self.dir.path().join(".upfleet/web");
        let names = ["incoming", "versions"].into_iter().flat_map(|dir| {
            std::fs::read_dir(store.join(dir)).into_iter().flatten().map(|entry| entry.unwrap().file_name())
        });
        names.map(|name| name.into_string().unwrap()).collect()
    }
}

#[tokio::test]
async fn installs_upgrades_and_puts_back() {
    let mut bench = Bench::new();
    bench.install(1, b"one").await;
    assert_eq!(bench.end(1).await.0, Outcome::Succeeded);
    bench.install(2, b"two").await;
    assert_eq!(bench.end(2).await.0, Outcome::Succeeded);
    assert_eq!((bench.installed(), bench.files().len()), (b"two".to_vec(), 2));
    bench.toy.0.sick.lock().unwrap().push(Digest::of(b"three"));
    bench.install(3, b"three").await;
    let (outcome, evidence) = bench.end(3).await;
    assert_eq!(outcome, Outcome::RolledBack);
    let evidence = evidence.unwrap();
    assert_eq!(evidence.lines, ["last words"]);
    assert!(evidence.probe_results.iter().any(|line| line.contains("sick")), "{evidence:?}");
    assert_eq!((bench.installed(), bench.files().len()), (b"two".to_vec(), 2));
    let one = ComponentState::release(bench.release(b"one", 1).0);
    bench.order(4, Target::Restore(one), None).await.unwrap();
    assert_eq!(bench.end(4).await.0, Outcome::Succeeded);
    assert_eq!(bench.installed(), b"one");
    let inventory = bench.handle.snapshot().await.unwrap().inventory;
    assert_eq!(inventory.running, Some(Digest::of(b"one")));
    assert_eq!(inventory.failed, [Digest::of(b"three")]);
}

#[tokio::test]
async fn only_the_named_manifest_is_obeyed() {
    let mut bench = Bench::new();
    let (release, mut manifest) = bench.release(b"one", 1);
    manifest.bytes.push(b'\n');
    let refused = bench.order(1, Target::Install(release.clone()), Some(manifest)).await.unwrap_err();
    assert_eq!(refused.code, ReasonCode::UntrustedManifest);
    let refused = bench.order(1, Target::Install(release), None).await.unwrap_err();
    assert_eq!(refused.code, ReasonCode::UntrustedManifest);
    assert_eq!(bench.installed(), b"");
}

#[tokio::test]
async fn unacknowledged_reports_outlive_the_agent() {
    let mut bench = Bench::new();
    bench.install(1, b"one").await;
    bench.end(1).await;
    bench.restart().await;
    let reports = bench.handle.snapshot().await.unwrap().reports;
    let last = reports.last().unwrap().clone();
    assert_eq!(last.state.outcome(), Some(Outcome::Succeeded));
    bench.handle.report_acked(last.upgrade, last.sequence).await;
    assert!(bench.handle.snapshot().await.unwrap().reports.is_empty());
    bench.restart().await;
    assert!(bench.handle.snapshot().await.unwrap().reports.is_empty());
}

#[tokio::test]
async fn a_damaged_journal_is_said_and_the_node_inspected() {
    let mut bench = Bench::new();
    bench.install(1, b"one").await;
    bench.end(1).await;
    let path = bench.dir.path().join("state/journals/web.journal");
    bench.restart_after(|| std::fs::write(&path, b"garbage").unwrap()).await;
    let mut inventory = bench.handle.snapshot().await.unwrap().inventory;
    for _ in 0..200 {
        if inventory.current != ComponentState::absent() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        inventory = bench.handle.snapshot().await.unwrap().inventory;
    }
    assert_eq!(inventory.current, ComponentState::unmanaged(Digest::of(b"one")));
    assert_eq!(inventory.drift.unwrap().code, ReasonCode::JournalDamaged);
}

#[tokio::test]
async fn nothing_stays_of_an_order_that_was_refused() {
    let mut bench = Bench::new();
    bench.install(2, b"two").await;
    assert_eq!(bench.end(2).await.0, Outcome::Succeeded);
    for n in 10..20 {
        let (release, manifest) = bench.release(format!("{n}").as_bytes(), n);
        bench.order(1, Target::Install(release), Some(manifest)).await.unwrap_err();
    }
    let manifests = bench.dir.path().join("state/manifests/web");
    // The last answer leaves the actor just before it tidies up.
    bench.handle.snapshot().await.unwrap();
    assert_eq!(std::fs::read_dir(manifests).unwrap().count(), 1);
}
