//! The guard of an agent's upgrade: watches a new agent from outside, and puts the old one back.
//!
//! It is run from the last good executable, in a process or unit of its own, for as long as the marker is there. It asks
//! nothing of the new agent: it counts its starts (`count`, which whoever starts the agent calls first), measures its
//! memory, and tries for itself whether the controller can be reached. What follows from that is decided in
//! `upfleet_domain::guard`.

mod count;
mod ward;

use std::{
    path::Path,
    time::{Duration, Instant},
};

pub use count::count;
use upfleet_domain::{
    guard::{self, Verdict},
    reason::Reason,
    upgrade::step::StepKind,
};
pub use ward::Ward;

use crate::{
    config::Config,
    crash,
    identity::Identities,
    itself::marker::{Marker, Markers},
    processes::Identity,
    transport::{self, Connector},
};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(500);
/// How much watching may be forgotten when the guard is killed.
const NOTED_EVERY: Duration = Duration::from_secs(5);

/// Why a guard can't watch.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The marker can't be read or written.
    #[error("could not {operation} the marker of the agent's upgrade in `{dir}`")]
    Marker {
        /// What was tried.
        operation: &'static str,
        /// The agent's state directory.
        dir: String,
        /// Why not.
        source: std::io::Error,
    },
}

/// Watches the agent whose state is in `state_dir` until its upgrade is over: acknowledged, or put back. Another guard
/// that watches already is left to it.
///
/// # Errors
/// Where the marker can't be read or written.
pub async fn watch(state_dir: &Path, config_dir: &Path, ward: Ward) -> Result<(), GuardError> {
    let markers = Markers::new(state_dir);
    let failed = |operation: &'static str| {
        let dir = state_dir.display().to_string();
        move |source| GuardError::Marker { operation, dir, source }
    };
    if !markers.is_set() {
        return Ok(());
    }
    let Some(_lock) = markers.become_guard().map_err(failed("lock"))? else { return Ok(()) };
    let own = Identity::of(std::process::id()).ok();
    let marker = markers.change(|marker| marker.guard.clone_from(&own)).map_err(failed("write"))?;
    let Some(marker) = marker else { return Ok(()) };
    crash::point("guard.watches");
    tracing::info!(component = %marker.component, old = %marker.old.short(), new = %marker.new.short(), "guarding");
    Guard {
        markers,
        config_dir: config_dir.to_owned(),
        ward,
        own,
        reached: None,
        begun: Instant::now(),
        noted: marker.watched_ms,
    }
    .run(marker)
    .await
    .map_err(failed("write"))
}

struct Guard {
    markers: Markers,
    config_dir: std::path::PathBuf,
    ward: Ward,
    /// This process, as the marker names it.
    own: Option<Identity>,
    /// Whether the controller could be reached when that was tried last, if it was.
    reached: Option<bool>,
    /// When the watch went on.
    begun: Instant,
    /// How long had been watched then, in milliseconds.
    noted: u64,
}

impl Guard {
    async fn run(mut self, mut marker: Marker) -> std::io::Result<()> {
        loop {
            if marker.put_back.is_some() {
                return self.put_back(&marker).await;
            }
            // Before the switch there is nothing to be watched.
            if self.is_switched(&marker).await {
                let watched =
                    self.noted + u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
                marker.watched_ms = watched;
                let memory = self.ward.memory(&self.markers).await;
                let seen = guard::Seen { memory, ..marker.seen() };
                match guard::judge(&marker.rules(), &seen, &self.markers.last_words()) {
                    Verdict::Watch => self.early(&marker).await,
                    Verdict::Try => self.overdue(&marker).await?,
                    Verdict::PutBack(reason) => self.decide(reason)?,
                }
                if self.begun.elapsed() >= NOTED_EVERY {
                    self.note(marker.watched_ms)?;
                }
            } else {
                self.begun = Instant::now();
            }
            tokio::time::sleep(EVERY).await;
            match self.markers.read() {
                Ok(Some(read)) if read.guard == self.own => marker = read,
                // An old agent that was started anew has set it once more, and waits until somebody watches.
                Ok(Some(read)) => {
                    let own = self.own.clone();
                    self.noted = read.watched_ms;
                    self.begun = Instant::now();
                    let changed = self.markers.change(|marker| marker.guard = own)?;
                    let Some(changed) = changed else { return Ok(()) };
                    marker = changed;
                }
                Ok(None) => {
                    tracing::info!("the new agent was acknowledged; the guard ends");
                    return Ok(());
                }
                // Removed, or damaged: what is known is enough to go on.
                Err(_) if !self.markers.is_set() => return Ok(()),
                Err(error) => tracing::error!(%error, "the marker can't be read"),
            }
        }
    }

    async fn is_switched(&self, marker: &Marker) -> bool {
        let (executor, new) = (marker.executor(), marker.new);
        let looked = tokio::task::spawn_blocking(move || executor.inspect().ok()?.installed);
        // What can't be read may have been switched; time passes then.
        looked.await.ok().flatten().is_none_or(|installed| installed == new)
    }

    /// Keeps how long was watched, over the guard's own end.
    fn note(&mut self, watched_ms: u64) -> std::io::Result<()> {
        (self.begun, self.noted) = (Instant::now(), watched_ms);
        self.markers.change(|marker| marker.watched_ms = watched_ms).map(drop)
    }

    /// Tries the controller once, some time before the deadline.
    async fn early(&mut self, marker: &Marker) {
        let due = guard::before_the_deadline(&marker.rules());
        if self.reached.is_none() && marker.seen().watched >= due {
            self.reached = Some(self.try_controller().await.is_ok());
        }
    }

    async fn overdue(&mut self, marker: &Marker) -> std::io::Result<()> {
        let tried = self.try_controller().await;
        if tried.is_ok() && self.reached == Some(false) {
            // It has just come back: the new agent, which may be waiting before it tries again, is given its time.
            tracing::info!("the controller can be reached again: the deadline begins anew");
            self.reached = None;
            return self.note(0);
        }
        self.reached = Some(tried.is_ok());
        match guard::overdue(&marker.rules(), tried.clone()) {
            Ok(watched) => {
                let problem = tried.err().unwrap_or_default();
                tracing::warn!(problem, "the controller can't be reached: the deadline moves");
                self.note(u64::try_from(watched.as_millis()).unwrap_or(u64::MAX))
            }
            Err(reason) => self.decide(reason),
        }
    }

    /// A session of the guard's own, which takes no orders.
    async fn try_controller(&self) -> Result<(), String> {
        let config = Config::load(&self.config_dir).map_err(|error| crate::error::chain(&error))?;
        let controller = config.controller.ok_or("the node is not enrolled")?;
        let identities = Identities::load(&config.state_dir).map_err(|error| crate::error::chain(&error))?;
        transport::trial(&Connector::new(controller, identities)).await
    }

    /// The decision is durable before anything follows from it.
    fn decide(&self, reason: Reason) -> std::io::Result<()> {
        tracing::error!(%reason, "the old agent is put back");
        self.markers.change(|marker| marker.put_back = Some(reason)).map(drop)
    }

    async fn put_back(&self, marker: &Marker) -> std::io::Result<()> {
        crash::point("guard.decided");
        loop {
            match restore(marker) {
                Ok(()) => break,
                // A disk that takes nothing now may take it later; nobody else can do this.
                Err(reason) => {
                    tracing::error!(%reason, "the old agent could not be put back; it is tried again")
                }
            }
            tokio::time::sleep(NOTED_EVERY).await;
            if !self.markers.is_set() {
                return Ok(());
            }
        }
        crash::point("guard.restored");
        self.ward.restart(&self.markers, marker.old).await;
        crash::point("guard.restarted");
        // Until the old agent has said what became of it: whoever keeps it would only start another guard. What still
        // runs of the new one is looked for again, since a process that can't be found now may be found later.
        let mut looked = Instant::now();
        while self.markers.is_set() {
            tokio::time::sleep(EVERY).await;
            if looked.elapsed() >= NOTED_EVERY {
                self.ward.restart(&self.markers, marker.old).await;
                looked = Instant::now();
            }
        }
        Ok(())
    }
}

/// Puts the old agent's file back; nothing happens where it is there.
///
/// # Errors
/// Where that can't be done.
pub(crate) fn restore(marker: &Marker) -> Result<(), Reason> {
    marker.executor().perform(&StepKind::SwapBack { digest: marker.old }, None).map(drop)
}
