//! A directory component driven by the real actor: releases as tars, and a world with real reloads and processes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{
        self, Exclusives, Handle, ManifestBytes, Outgoing, Shared,
        stack::View,
        world::{OnProgress, World},
    },
    config::{ComponentConfig, RunMode},
    platform::node_platform,
    reload::{self, ReloadContext},
    supervise::{Launch, ProcessStateInfo, Supervisor},
};
use upfleet_domain::{
    digest::Digest,
    files::{FileEntry, FilesSpec, OnLocalChange},
    order::{DesiredState, Generation, Target},
    reason::Reason,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    report::UpgradeReport,
    state::ReleaseRef,
    upgrade::{
        Evidence, Outcome,
        step::{Failure, Process},
    },
};

use super::support::AGENT;

/// A directory release: its manifest's reference and bytes, and its artifact.
pub struct Release {
    /// As an order names it.
    pub reference: ReleaseRef,
    /// What is sent along with the order.
    pub manifest: ManifestBytes,
    /// The archive.
    pub artifact: Vec<u8>,
}

/// Makes a release of these files. What begins with `bin/` may be executed.
pub fn release(
    sequence: u64,
    files: &[(&str, &str)],
    on_local_change: OnLocalChange,
    preserve: &[&str],
) -> Release {
    let entries = files.iter().map(|(path, text)| FileEntry {
        path: (*path).to_owned(),
        digest: Digest::of(text.as_bytes()),
        size: text.len() as u64,
        executable: path.starts_with("bin/"),
    });
    let preserve = preserve.iter().map(|text| (*text).to_owned()).collect();
    let spec = FilesSpec::build(entries, on_local_change, preserve).unwrap();
    let artifact = tar(files);
    let manifest = Manifest {
        format: FORMAT,
        component: "site".parse().unwrap(),
        version: format!("{sequence}.0").parse().unwrap(),
        sequence,
        kind: Kind::Files,
        notes: String::new(),
        artifacts: vec![ArtifactRef {
            platform: Platform { arch: "any".to_owned(), ..node_platform() },
            sha256: Digest::of(&artifact),
            md5: None,
            size: artifact.len() as u64,
            sources: vec![],
            encodings: vec![],
        }],
        fixes: Vec::new(),
        patch: None,
        files: Some(spec),
    };
    let bytes = manifest.to_bytes();
    let reference = ReleaseRef {
        component: manifest.component,
        version: manifest.version,
        sequence,
        manifest: Digest::of(&bytes),
        artifact: Digest::of(&artifact),
    };
    Release { reference, manifest: ManifestBytes { bytes, signatures: vec![] }, artifact }
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (path, text) in files {
        let mut head = [0u8; 512];
        head[..path.len()].copy_from_slice(path.as_bytes());
        let mode = if path.starts_with("bin/") { 0o755 } else { 0o644 };
        head[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
        head[124..135].copy_from_slice(format!("{:011o}", text.len()).as_bytes());
        head[156] = b'0';
        head[257..265].copy_from_slice(b"ustar\x0000");
        head[148..156].fill(b' ');
        let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
        head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        bytes.extend(head);
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// The world of a directory: bytes from the test, real processes, real reloads; a file `bad` in it makes it unhealthy.
pub struct Local {
    config: ComponentConfig,
    supervisor: Supervisor,
    artifacts: Vec<Vec<u8>>,
}

impl World for Local {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let bytes = self.artifacts.iter().find(|bytes| Digest::of(bytes) == artifact.sha256).unwrap();
        fs::write(part, bytes).unwrap();
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
        let Some(reload) = &self.config.reload else { return Ok(String::new()) };
        let process = self.supervisor.process().await.map_err(|fault| fault.to_string());
        let process = process.and_then(|state| state.up());
        let context = ReloadContext { path: self.config.path.clone(), process };
        Ok(reload::run(reload, &context).await?)
    }

    async fn probe(&self, _: usize, _beside: bool) -> Result<(), String> {
        if self.config.path.join("bad").exists() { Err("it is bad".to_owned()) } else { Ok(()) }
    }

    async fn evidence(&self) -> Evidence {
        Evidence::default()
    }

    async fn tail(&self, _: usize) -> Vec<String> {
        Vec::new()
    }
}

/// A component `site` in a directory, driven by orders.
pub struct Site {
    handle: Handle,
    task: JoinHandle<()>,
    outgoing: mpsc::Receiver<Outgoing>,
    shutdown: CancellationToken,
    dir: PathBuf,
    config: ComponentConfig,
    orders: u64,
}

impl Site {
    /// Starts the actor of a component whose path is `site` in `dir`, with these further lines of its configuration.
    pub fn start(dir: &Path, lines: &str, releases: &[&Release]) -> Self {
        let config = config(dir, lines);
        let supervisor = Supervisor::with_program(&dir.join("state"), &config, Path::new(AGENT));
        let artifacts = releases.iter().map(|release| release.artifact.clone()).collect();
        let world = Local { supervisor, config: config.clone(), artifacts };
        let (sender, outgoing) = mpsc::channel(1024);
        let shutdown = CancellationToken::new();
        let shared = Shared {
            platform: node_platform(),
            outgoing: sender,
            exclusives: Exclusives::default(),
            shutdown: shutdown.clone(),
        };
        let (handle, task) = component::start(&dir.join("state"), &config, world, shared);
        Self { handle, task, outgoing, shutdown, dir: dir.to_owned(), config, orders: 0 }
    }

    /// Orders a release, and returns the report of how that ended.
    pub async fn upgrade(&mut self, release: &Release) -> UpgradeReport {
        self.orders += 1;
        let name = format!("upgrade-{}", self.orders);
        self.order(release, &name, self.orders).await
    }

    /// The same under a name and number of its own.
    pub async fn order(&mut self, release: &Release, name: &str, number: u64) -> UpgradeReport {
        let desired = DesiredState {
            component: "site".parse().unwrap(),
            generation: Generation { epoch: 1, number },
            rollout: None,
            upgrade: Some(name.parse().unwrap()),
            target: Target::Install(release.reference.clone()),
            layers: vec![],
            live: false,
            hold_before: None,
            not_after: None,
            allow_downgrade: true,
            allow_failed_digest: true,
            soak: None,
            trace: String::new(),
            actor: String::new(),
        };
        self.handle.order(desired, Some(release.manifest.clone()), vec![], None).await.unwrap();
        loop {
            let snapshot = self.handle.snapshot().await.unwrap();
            let mut reports = snapshot.reports.into_iter();
            let ended =
                reports.find(|report| report.upgrade.as_str() == name && report.state.outcome().is_some());
            if let Some(report) = ended {
                return report;
            }
            // Every report and inventory is a moment to look whether it is over.
            let next = self.outgoing.recv();
            let _ = tokio::time::timeout(Duration::from_millis(50), next).await;
        }
    }

    /// Orders a release and expects an outcome.
    pub async fn expect(&mut self, release: &Release, outcome: Outcome) -> UpgradeReport {
        let report = self.upgrade(release).await;
        assert_eq!(report.state.outcome(), Some(outcome), "{report:?}");
        report
    }

    /// What the component is.
    pub async fn inventory(&self) -> upfleet_domain::report::ComponentInventory {
        self.handle.snapshot().await.unwrap().inventory
    }

    /// Ends the actor, and with it the component's process.
    pub async fn end(self) {
        self.shutdown.cancel();
        drop(self.outgoing);
        self.task.await.unwrap();
        if self.config.run.mode == RunMode::Supervised {
            let state = self.dir.join("state");
            Supervisor::with_program(&state, &self.config, Path::new(AGENT)).shutdown().await.unwrap();
        }
    }
}

/// The configuration of the component whose path is `site` in `dir`.
pub fn config(dir: &Path, lines: &str) -> ComponentConfig {
    let path = dir.join("site");
    let text = format!("name = \"site\"\npath = {path:?}\nkind = \"files\"\n{lines}");
    toml::from_str(&text).unwrap()
}
