//! A component that a unit of the faked systemd runs, driven by orders through the agent's real world.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use upfleet_agent::{
    component::{
        self, Exclusives, Handle, ManifestBytes, Outgoing, Shared,
        stack::View,
        world::{Node, OnProgress, World},
    },
    config::{ComponentConfig, FetchConfig},
    download::Fetcher,
    platform::node_platform,
    supervise::{ProcessStateInfo, Supervisor},
};
use upfleet_domain::{
    digest::Digest,
    order::{DesiredState, Generation, Target},
    reason::Reason,
    release::{ArtifactRef, FORMAT, Kind, Manifest, Platform},
    report::{ComponentInventory, UpgradeReport},
    state::ReleaseRef,
    upgrade::{
        Evidence, Outcome,
        step::{Failure, Process},
    },
};

use super::fake::FakeSystemd;
use crate::support::AGENT;

/// The component's unit.
pub const UNIT: &str = "shop.service";

/// Says past the capture that a test did not run; `None` where there is no bus to be had.
pub fn systemd(test: &str) -> Option<FakeSystemd> {
    let fake = FakeSystemd::start();
    if fake.is_none() {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "skipped: systemd::{test}: there is no dbus-daemon");
    }
    fake
}

/// A release: the name is its version, the bytes begin with a real program and end with the name.
#[derive(Clone, Debug)]
pub struct Release {
    pub reference: ReleaseRef,
    pub manifest: ManifestBytes,
    pub bytes: Vec<u8>,
}

/// A release whose program is a copy of another.
pub fn program(version: &str, sequence: u64, program: &str) -> Release {
    // What follows an executable's own bytes is of no concern to the kernel.
    release(version, sequence, [std::fs::read(program).unwrap(), version.as_bytes().to_vec()].concat())
}

/// A release whose program is a shell script.
pub fn script(version: &str, sequence: u64, text: &str) -> Release {
    release(version, sequence, format!("#!/bin/sh\n# {version}\n{text}\n").into_bytes())
}

pub fn release(version: &str, sequence: u64, bytes: Vec<u8>) -> Release {
    let artifact = ArtifactRef {
        platform: Platform { arch: "any".to_owned(), ..node_platform() },
        sha256: Digest::of(&bytes),
        md5: None,
        size: bytes.len() as u64,
        sources: vec![],
        encodings: vec![],
    };
    let manifest = Manifest {
        format: FORMAT,
        component: "shop".parse().unwrap(),
        version: version.parse().unwrap(),
        sequence,
        kind: Kind::Binary,
        notes: String::new(),
        artifacts: vec![artifact],
        fixes: Vec::new(),
        patch: None,
        files: None,
    };
    let text = manifest.to_bytes();
    let reference = ReleaseRef {
        component: manifest.component,
        version: manifest.version,
        sequence,
        manifest: Digest::of(&text),
        artifact: Digest::of(&bytes),
    };
    Release { reference, manifest: ManifestBytes { bytes: text, signatures: vec![] }, bytes }
}

/// The agent's real world, but that bytes come from where the test has them.
pub struct Local {
    node: Node,
    releases: Vec<Release>,
}

impl World for Local {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, _: OnProgress<'_>) -> Result<(), Reason> {
        let release = self.releases.iter().find(|one| one.reference.artifact == artifact.sha256).unwrap();
        std::fs::write(part, &release.bytes).unwrap();
        Ok(())
    }
    async fn start(&self, digest: Digest, stack: View) -> Result<Process, Failure> {
        self.node.start(digest, stack).await
    }
    async fn stop(&self) -> Result<(), Failure> {
        self.node.stop().await
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
    async fn ready(&self) -> Result<(), Reason> {
        self.node.ready().await
    }
    async fn evidence(&self) -> Evidence {
        self.node.evidence().await
    }
    async fn tail(&self, lines: usize) -> Vec<String> {
        self.node.tail(lines).await
    }
}

/// The component's configuration; its path is `shop` in `dir`.
pub fn config(dir: &Path, more: &str) -> ComponentConfig {
    let text = format!(
        "name = \"shop\"\npath = {:?}\n[run]\nmode = \"systemd\"\nunit = \"{UNIT}\"\nstop_timeout = \"200ms\"\n\
         drop_in_dir = {:?}\n[health]\nsoak = \"100ms\"\nstart_deadline = \"20s\"\n[[probe]]\ntype = \"systemd\"\n\
         interval = \"20ms\"\n[[probe]]\ntype = \"process\"\ninterval = \"20ms\"\n{more}",
        dir.join("shop"),
        dir.join("units"),
    );
    toml::from_str(&text).unwrap()
}

/// The unit's file, with these further lines.
pub fn unit(dir: &Path, more: &str) -> String {
    format!("[Service]\nExecStart={} 1000\n{more}\n", dir.join("shop").display())
}

/// Starts the component's actor over systemd at `address`; at the system's bus where none is given.
pub fn begin(dir: &Path, config: &ComponentConfig, address: Option<&str>, releases: &[Release]) -> Running {
    let state = dir.join("state");
    let supervisor = Supervisor::build(&state, config, Path::new(AGENT), address);
    let fetcher = Fetcher::new(&FetchConfig::default(), None);
    let node = Node::with_supervisor(&state, config, fetcher, Path::new(AGENT), supervisor.clone());
    let world = Local { node, releases: releases.to_vec() };
    let (sender, outgoing) = mpsc::channel(1024);
    let shutdown = CancellationToken::new();
    let shared = Shared {
        platform: node_platform(),
        outgoing: sender,
        exclusives: Exclusives::default(),
        shutdown: shutdown.clone(),
    };
    let (handle, task) = component::start(&state, config, world, shared);
    Running { handle, task, outgoing, shutdown, supervisor }
}

/// An agent's core with the one component.
pub struct Running {
    pub handle: Handle,
    task: JoinHandle<()>,
    outgoing: mpsc::Receiver<Outgoing>,
    shutdown: CancellationToken,
    pub supervisor: Supervisor,
}

impl Running {
    /// Orders a release.
    pub async fn order(&self, release: &Release, upgrade: &str, number: u64) {
        let desired = DesiredState {
            component: release.reference.component.clone(),
            generation: Generation { epoch: 1, number },
            rollout: None,
            upgrade: Some(upgrade.parse().unwrap()),
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
    }

    /// Waits until an upgrade has ended.
    pub async fn end_of(&mut self, upgrade: &str) -> UpgradeReport {
        self.report(|report| report.upgrade.as_str() == upgrade && report.state.outcome().is_some()).await
    }

    /// Waits for a report.
    pub async fn report(&mut self, wanted: impl Fn(&UpgradeReport) -> bool) -> UpgradeReport {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            let snapshot = self.handle.snapshot().await.unwrap();
            if let Some(report) = snapshot.reports.into_iter().find(&wanted) {
                return report;
            }
            assert!(tokio::time::Instant::now() < deadline, "no such report: {:?}", snapshot.reason);
            // Every report and inventory is a moment to look.
            let _ = tokio::time::timeout(Duration::from_millis(20), self.outgoing.recv()).await;
        }
    }

    pub async fn inventory(&self) -> ComponentInventory {
        self.handle.snapshot().await.unwrap().inventory
    }

    /// Ends the agent's core. The unit goes on.
    pub async fn end(self) {
        self.shutdown.cancel();
        drop(self.outgoing);
        self.task.await.unwrap();
    }
}

/// A faked systemd, a directory, and an agent's core on them.
pub struct Shop {
    pub fake: FakeSystemd,
    pub dir: TempDir,
    pub config: ComponentConfig,
    pub releases: Vec<Release>,
    pub agent: Running,
    orders: u64,
}

impl Shop {
    /// With these further lines of the unit and of the component; nothing is installed.
    pub fn new(fake: FakeSystemd, lines: &str, more: &str, releases: &[Release]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fake.install(UNIT, &unit(dir.path(), lines));
        let mut config = config(dir.path(), more);
        config.run.drop_in_dir = fake.units_dir();
        let agent = begin(dir.path(), &config, Some(&fake.address()), releases);
        Self { fake, dir, config, releases: releases.to_vec(), agent, orders: 0 }
    }

    /// Orders one of the releases, and says under which name.
    pub async fn order(&mut self, index: usize) -> String {
        self.orders += 1;
        let name = format!("upgrade-{}", self.orders);
        self.agent.order(&self.releases[index].clone(), &name, self.orders).await;
        name
    }

    /// Orders one of the releases and expects an outcome.
    pub async fn expect(&mut self, index: usize, outcome: Outcome) -> UpgradeReport {
        let name = self.order(index).await;
        let report = self.agent.end_of(&name).await;
        assert_eq!(report.state.outcome(), Some(outcome), "{report:?}");
        report
    }

    /// Ends the agent's core and starts another: an agent that was restarted.
    pub async fn restart_agent(self) -> Self {
        let Self { fake, dir, config, releases, agent, orders } = self;
        agent.end().await;
        let agent = begin(dir.path(), &config, Some(&fake.address()), &releases);
        Self { fake, dir, config, releases, agent, orders }
    }

    /// What runs is a release, as the kernel, systemd and the agent say it.
    pub async fn runs(&self, index: usize) {
        let wanted = self.releases[index].reference.artifact;
        let standing = self.fake.standing(UNIT);
        assert_eq!((standing.active, standing.sub), ("active", "running"), "{standing:?}");
        let state = self.agent.supervisor.process().await.unwrap();
        let ProcessStateInfo::Running(info) = state else { panic!("{state:?}") };
        assert_eq!((info.pid, info.digest), (standing.main_pid, wanted));
        let inventory = self.agent.inventory().await;
        assert_eq!((inventory.current.artifact(), inventory.run_mode.as_str()), (Some(wanted), "systemd"));
        assert_eq!(inventory.drift, None);
    }
}
