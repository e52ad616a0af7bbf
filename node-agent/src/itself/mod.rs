//! The agent itself as a component: what runs is this process, starting another version means handing over to it, and
//! healthy is what the controller has acknowledged.
//!
//! Files are switched by `exec` like those of any component. What is special is here: the trial, the guard's marker, and
//! the exit that has this agent's keeper start what lies in its place. Whether to go on or back is decided elsewhere: by the
//! machine, and by the guard, which is never the new agent's code.

pub mod keeper;
pub mod marker;
pub mod trial;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::{OnceCell, watch};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    release::ArtifactRef,
    upgrade::{
        Evidence,
        recover::Reverted,
        step::{Failure, Process},
    },
};

use crate::{
    component::{stack::View, world::OnProgress, world::World},
    config::{ComponentConfig, GuardConfig},
    crash,
    download::{FetchRequest, Fetcher},
    processes::{FileId, Identity, executable},
    transport::{Link, now},
};
use keeper::Keeper;
use marker::{Marker, Markers};

/// The exit status of an agent that has handed over to another version: start what lies in its place.
pub const EXIT_HANDED_OVER: u8 = 79;
/// What a soak time leaves of the guard's deadline, for the start and the report.
const MARGIN: Duration = Duration::from_secs(60);
/// How often a trial that did not get through to the controller is made, and what is waited between: a moment, and then
/// for the controller to be back.
const TRIES: u32 = 3;
const AGAIN: Duration = Duration::from_secs(1);
const RETURN: Duration = Duration::from_secs(20);
/// How long an agent that is to be put back waits for its end.
const CONDEMNED: Duration = Duration::from_secs(60);

/// What all of an agent knows of itself: who keeps it, how it stands with the controller, how it hands over.
#[derive(Clone, Debug)]
pub struct Own {
    /// The directory of the configuration that it runs with.
    pub config_dir: PathBuf,
    /// How it stands with the controller; `None` where there is none.
    pub link: Option<watch::Receiver<Link>>,
    /// Cancelled to end this agent, so that its keeper starts what lies in its place.
    pub hand_over: CancellationToken,
    /// Who starts it again.
    pub keeper: Option<Keeper>,
}

/// The world of the component that is the agent itself.
#[derive(Debug)]
pub struct Itself {
    config: ComponentConfig,
    guard: GuardConfig,
    markers: Markers,
    fetcher: Fetcher,
    own: Own,
    digest: Arc<OnceCell<Digest>>,
    /// Set once the guard was told that the controller has acknowledged this process.
    said: OnceLock<()>,
}

impl Itself {
    /// For the component `config` of the agent whose state is in `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path, config: &ComponentConfig, fetcher: Fetcher, own: Own) -> Self {
        Self {
            config: config.clone(),
            guard: config.guard.clone().unwrap_or_default(),
            markers: Markers::new(state_dir),
            fetcher,
            own,
            digest: Arc::default(),
            said: OnceLock::new(),
        }
    }

    /// SHA-256 of the very file that this process runs, also where that was replaced.
    async fn digest(&self) -> Result<Digest, Reason> {
        let hashed = || async {
            // Opened by the kernel's own name for it, which leads there also after a rename.
            let task = tokio::task::spawn_blocking(|| {
                std::fs::File::open("/proc/self/exe").and_then(crate::shim::hash)
            });
            task.await.map_err(std::io::Error::other)?
        };
        let unreadable = crate::exec::failed(ReasonCode::StageFailed, "read", Path::new("/proc/self/exe"));
        self.digest.get_or_try_init(hashed).await.copied().map_err(unreadable)
    }

    /// Tells the guard, once per process, that the controller has acknowledged this agent: its time begins anew.
    async fn say_reported(&self) {
        if self.said.get().is_some() || !self.markers.is_set() {
            return;
        }
        let Ok(own) = self.digest().await else { return };
        let told = self.markers.change(|marker| {
            if marker.new == own {
                (marker.reported, marker.watched_ms) = (marker.reported.saturating_add(1), 0);
            }
        });
        if told.is_ok() {
            let _ = self.said.set(());
        }
    }

    /// Waits until this agent has a session with the controller, within bounds.
    async fn connected(&self) {
        let Some(mut link) = self.own.link.clone() else { return };
        tokio::time::sleep(AGAIN).await;
        let _ = tokio::time::timeout(RETURN, link.wait_for(|link| link.connected)).await;
    }

    fn unguarded(problem: String) -> Reason {
        Reason::new(ReasonCode::AgentUnguarded).with("problem", problem)
    }
}

impl World for Itself {
    async fn fetch(&self, artifact: ArtifactRef, part: PathBuf, on: OnProgress<'_>) -> Result<(), Reason> {
        let request = FetchRequest { artifact, part_path: part, deadline: None };
        self.fetcher.fetch(request, on).await.map(drop)
    }

    /// Ends this agent unless it is the one that is wanted; then the answer is never given.
    async fn start(&self, digest: Digest, _: View) -> Result<Process, Failure> {
        if self.digest().await? == digest {
            return Ok(self.process().await);
        }
        if let Some(reverted) = self.reverted().filter(|reverted| reverted.digest == digest) {
            return Err(reverted.reason.into());
        }
        if self.own.keeper.is_none() {
            return Err(Self::unguarded("nobody starts this agent again when it ends".to_owned()).into());
        }
        let marker = self.markers.read().ok().flatten();
        if !marker.is_some_and(|marker| [marker.new, marker.old].contains(&digest)) {
            return Err(Self::unguarded("no guard is set for this switch".to_owned()).into());
        }
        tracing::info!(component = %self.config.name, to = %digest.short(), "handing over");
        crash::point("itself.hands-over");
        self.own.hand_over.cancel();
        std::future::pending().await
    }

    /// It ends by itself, when it hands over.
    async fn stop(&self) -> Result<(), Failure> {
        Ok(())
    }

    async fn process(&self) -> Process {
        match self.digest().await {
            Ok(digest) => Process::Running { pid: std::process::id(), digest, stack: None },
            Err(reason) => Process::Down { exit: reason.to_string() },
        }
    }

    async fn reload(&self) -> Result<String, Failure> {
        Ok("nothing is to be told".to_owned())
    }

    /// Whether the controller has acknowledged what this agent has to report.
    async fn probe(&self, _: usize, _beside: bool) -> Result<(), String> {
        let Some(link) = &self.own.link else { return Ok(()) };
        let link = link.borrow().clone();
        match link {
            Link { connected: true, reported: true, .. } => {
                self.say_reported().await;
                Ok(())
            }
            Link { connected: true, .. } => {
                Err("the controller has not acknowledged its report yet".to_owned())
            }
            Link { problem: Some(problem), .. } => Err(format!("no session with the controller: {problem}")),
            _ => Err("no session with the controller yet".to_owned()),
        }
    }

    /// Whether somebody would put this agent back: it runs from its component's place, and is kept.
    async fn ready(&self) -> Result<(), Reason> {
        if self.own.keeper.is_none() {
            return Err(Self::unguarded("nobody starts this agent again when it ends".to_owned()));
        }
        // The very file: one with the same bytes elsewhere would be started again from there.
        let lies = std::fs::symlink_metadata(&self.config.path).ok();
        let lies = lies.as_ref().map(FileId::of);
        if lies.is_some() && lies == executable(std::process::id()) {
            return Ok(());
        }
        let path = self.config.path.display();
        Err(Self::unguarded(format!("it does not run from `{path}`, its component's place")))
    }

    async fn evidence(&self) -> Evidence {
        Evidence { exit: "runs".to_owned(), lines: Vec::new(), probe_results: Vec::new() }
    }

    async fn tail(&self, _: usize) -> Vec<String> {
        Vec::new()
    }

    async fn try_out(&self, program: PathBuf) -> Result<(), Failure> {
        let mut tries = 1;
        let shown = loop {
            match trial::run(&program, &self.own.config_dir).await {
                Ok(shown) => break shown,
                // The controller may be on its way back, as this agent finds out first.
                Err(trial::Failed { unreached: true, .. }) if tries < TRIES => {
                    tries += 1;
                    self.connected().await;
                }
                Err(failed) => return Err(failed.reason.into()),
            }
        };
        tracing::info!(component = %self.config.name, version = shown.version, "the new agent has shown what it can");
        Ok(())
    }

    async fn arm(&self, old: Digest, new: Digest, soak: Duration) -> Result<(), Failure> {
        let failed = |error: std::io::Error| {
            let reason = Reason::new(ReasonCode::GuardNotSet);
            Failure::from(reason.with("problem", format!("its marker can't be written: {error}")))
        };
        let Some(keeper) = &self.own.keeper else {
            return Err(Self::unguarded("nobody starts this agent again when it ends".to_owned()).into());
        };
        // A rollout may ask for a longer soak time than the node's own, which leaves room in the deadline.
        let deadline = self.guard.deadline.max(soak.saturating_add(MARGIN.min(self.guard.deadline / 2)));
        let marker = Marker {
            component: self.config.name.clone(),
            path: self.config.path.clone(),
            old,
            new,
            begun: now(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            starts_max: self.guard.starts,
            memory_max: self.guard.memory_max,
            starts: 0,
            watched_ms: 0,
            reported: 0,
            by: Identity::of(std::process::id()).ok(),
            guard: None,
            put_back: None,
        };
        self.markers.set(&marker).map_err(failed)?;
        crash::point("itself.marked");
        let set = keeper.set_guard(&self.markers).await;
        if set.is_err() {
            // Nothing is switched: there is nothing to be put back.
            let _ = self.markers.clear();
        }
        crash::point("itself.guarded");
        Ok(set?)
    }

    fn watched(&self) -> bool {
        self.markers.is_set()
    }

    fn reverted(&self) -> Option<Reverted> {
        let marker = self.markers.read().ok()??;
        Some(Reverted { digest: marker.new, reason: marker.put_back? })
    }

    fn tidy(&self) -> Result<(), Reason> {
        crash::point("itself.tidies");
        let own = self.digest.get().copied();
        let condemned = |marker: &Marker| marker.put_back.is_some() && Some(marker.new) == own;
        let cleared = self.markers.clear_unless(condemned);
        let path = &self.config.path;
        let failed = crate::exec::failed(ReasonCode::StageFailed, "remove the marker of", path);
        match cleared.map_err(failed)? {
            true => Ok(()),
            false => {
                // The guard is about to end this process; nothing that it has decided is undone or told otherwise.
                std::thread::sleep(CONDEMNED);
                Err(Reason::new(ReasonCode::AgentEnding))
            }
        }
    }
}
