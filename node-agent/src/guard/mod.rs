//! The guard of an agent's upgrade: watches a new agent from outside, and puts the old one back.
//!
//! It is run from the last good executable, in a process or unit of its own, for as long as the marker is there. It asks
//! nothing of the new agent: it counts its starts (`count`, which whoever starts the agent calls first), measures its
//! memory, and tries for itself whether the controller can be reached. What follows from that is decided in
//! `upfleet_domain::guard`.

mod count;
mod ward;

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use count::count;
use upfleet_domain::{
    digest::Digest,
    guard::{self, Overdue, Verdict},
    reason::Reason,
    upgrade::step::StepKind,
};
use ward::Standing;
pub use ward::Ward;

use crate::{
    config::Config,
    crash,
    exec::Executor,
    identity::Identities,
    itself::marker::{Marker, Markers},
    processes::Identity,
    transport::{self, Connector},
};

/// How often it looks.
const EVERY: Duration = Duration::from_millis(500);
/// How much watching may be forgotten when the guard is killed.
const NOTED_EVERY: Duration = Duration::from_secs(5);
/// Between two attempts to put the old agent back, and two looks whether it runs.
const PAUSE: Duration = Duration::from_secs(2);

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
/// Where it can't be the one guard. What can't be written later is tried again: nobody else could do this.
pub async fn watch(state_dir: &Path, config_dir: &Path, ward: Ward) -> Result<(), GuardError> {
    let markers = Markers::new(state_dir);
    let dir = state_dir.display().to_string();
    let failed = |source| GuardError::Marker { operation: "lock", dir, source };
    if !markers.is_set() {
        return Ok(());
    }
    let Some(_lock) = markers.become_guard().map_err(failed)? else { return Ok(()) };
    let mut guard = Guard {
        markers,
        config_dir: config_dir.to_owned(),
        ward,
        own: Identity::of(std::process::id()).ok(),
        executor: None,
        watched: Duration::ZERO,
        reached: None,
        looked: Instant::now(),
        noted: Instant::now(),
    };
    guard.run().await;
    Ok(())
}

struct Guard {
    markers: Markers,
    config_dir: PathBuf,
    ward: Ward,
    /// This process, as the marker names it.
    own: Option<Identity>,
    /// Of the agent's file; it remembers what it has hashed.
    executor: Option<Executor>,
    /// How long the present upgrade has been watched.
    watched: Duration,
    /// How long had been watched when the guard's own sessions began to get through.
    reached: Option<Duration>,
    /// When was looked last.
    looked: Instant,
    /// When was written down last how long was watched.
    noted: Instant,
}

impl Guard {
    async fn run(&mut self) {
        let mut known: Option<Marker> = None;
        loop {
            match self.markers.read() {
                Ok(Some(read)) => {
                    let same = known.as_ref().is_some_and(|known| known.is_of(&read));
                    let acknowledged = known.as_ref().is_some_and(|known| known.reported != read.reported);
                    if !same || acknowledged {
                        self.begin(&read);
                    }
                    if read.guard != self.own {
                        self.sign();
                    }
                    known = Some(read);
                }
                Ok(None) => break,
                Err(_) if !self.markers.is_set() => break,
                // Damaged: what is known is enough to go on.
                Err(error) => tracing::error!(%error, "the marker can't be read"),
            }
            match &known {
                Some(marker) if marker.put_back.is_some() => self.put_back(&marker.clone()).await,
                Some(marker) => self.look(&marker.clone()).await,
                None => {}
            }
            tokio::time::sleep(EVERY).await;
        }
        tracing::info!("the upgrade of the agent is over; the guard ends");
    }

    /// Another upgrade, or another process of the new agent that the controller has acknowledged.
    fn begin(&mut self, marker: &Marker) {
        if marker.reported == 0 {
            let (old, new) = (marker.old.short(), marker.new.short());
            tracing::info!(component = %marker.component, %old, %new, "guarding");
        }
        self.executor = Some(marker.executor());
        (self.watched, self.reached) = (Duration::from_millis(marker.watched_ms), None);
        (self.looked, self.noted) = (Instant::now(), Instant::now());
    }

    /// Says in the marker who watches; an old agent waits for that.
    fn sign(&self) {
        let own = self.own.clone();
        match self.markers.change(|marker| marker.guard = own) {
            Ok(_) => crash::point("guard.watches"),
            Err(error) => tracing::error!(%error, "the marker can't be written; it is tried again"),
        }
    }

    async fn look(&mut self, marker: &Marker) {
        // What no look was made in, as while all was frozen, has not been watched.
        let passed = self.looked.elapsed().min(EVERY.saturating_mul(4));
        self.looked = Instant::now();
        // Before the switch there is nothing to be watched.
        if !self.is_switched(marker).await {
            return;
        }
        let process = self.ward.see(&self.markers).await;
        // Nobody is silent while nobody is to run; whatever ends again and again is counted.
        if !matches!(process, Standing::Gone) {
            self.watched += passed;
        }
        let memory = match &process {
            // The old one, on its way out.
            Standing::Runs(process) if Some(process) != marker.by.as_ref() => ward::memory(process),
            _ => None,
        };
        let seen = guard::Seen { memory, watched: self.watched, ..marker.seen() };
        match guard::judge(&marker.rules(), &seen, self.reached, &self.markers.last_words()) {
            Verdict::Watch => {}
            Verdict::Try => self.overdue(marker, &seen).await,
            Verdict::PutBack(reason) => self.decide(marker, reason),
        }
        if self.noted.elapsed() >= NOTED_EVERY {
            self.note(marker);
        }
    }

    async fn is_switched(&self, marker: &Marker) -> bool {
        let (executor, new) = (self.executor.clone(), marker.new);
        let looked = tokio::task::spawn_blocking(move || executor?.inspect().ok()?.installed);
        // What can't be read may have been switched; time passes then.
        looked.await.ok().flatten().is_none_or(|installed| installed == new)
    }

    /// Keeps how long was watched, over the guard's own end.
    fn note(&mut self, marker: &Marker) {
        self.noted = Instant::now();
        let watched = u64::try_from(self.watched.as_millis()).unwrap_or(u64::MAX);
        let noted = self.markers.change(|found| {
            if found.is_of(marker) && found.reported == marker.reported {
                found.watched_ms = watched;
            }
        });
        if let Err(error) = noted {
            tracing::error!(%error, "how long was watched can't be written down");
        }
    }

    async fn overdue(&mut self, marker: &Marker, seen: &guard::Seen) {
        let tried = self.try_controller().await;
        match guard::overdue(&marker.rules(), seen, self.reached, tried.clone()) {
            Overdue::Moved(watched) => {
                let problem = tried.err().unwrap_or_default();
                tracing::warn!(problem, "the controller can't be reached: the deadline moves");
                (self.watched, self.reached) = (watched, None);
            }
            Overdue::Reached(since) => self.reached = Some(since),
            Overdue::PutBack(reason) => self.decide(marker, reason),
        }
    }

    /// A session of the guard's own, which takes no orders. Where there is no controller, none is in trouble.
    async fn try_controller(&self) -> Result<(), String> {
        let config = Config::load(&self.config_dir).map_err(|error| crate::error::chain(&error))?;
        let Some(controller) = config.controller else { return Ok(()) };
        let identities = Identities::load(&config.state_dir).map_err(|error| crate::error::chain(&error))?;
        transport::trial(&Connector::new(controller, identities)).await
    }

    /// The decision is durable before anything follows from it. One that can't be written is come to again.
    fn decide(&self, marker: &Marker, reason: Reason) {
        tracing::error!(%reason, "the old agent is put back");
        let decided = self.markers.change(|found| {
            if found.is_of(marker) && found.put_back.is_none() {
                found.put_back = Some(reason);
            }
        });
        if let Err(error) = decided {
            tracing::error!(%error, "the marker can't be written; it is tried again");
        }
    }

    /// Puts the old agent in its place and has it started; looked at again and again until it has said what became of
    /// it, since a process that can't be found now may be found later.
    async fn put_back(&mut self, marker: &Marker) {
        crash::point("guard.decided");
        let Some(executor) = self.executor.clone() else { return };
        let old = marker.old;
        let restored = tokio::task::spawn_blocking(move || restore(&executor, old)).await;
        match restored {
            Ok(Ok(())) => {
                crash::point("guard.restored");
                self.ward.restart(&self.markers, marker).await;
                crash::point("guard.restarted");
            }
            // A disk that takes nothing now may take it later; nobody else can do this.
            Ok(Err(reason)) => {
                tracing::error!(%reason, "the old agent could not be put back; it is tried again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Puts the old agent's file back; nothing happens where it is there.
///
/// # Errors
/// Where that can't be done.
pub(crate) fn restore(executor: &Executor, old: Digest) -> Result<(), Reason> {
    executor.perform(&StepKind::SwapBack { digest: old }, None).map(drop)
}
