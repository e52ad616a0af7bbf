//! Fetches an artifact's bytes into a `.part` file, resumed where it stopped, hashed while it is written.
//!
//! Sources are tried in the manifest's order, then the controller's own store. What a source gives is bounded
//! by the manifest and believed only by its SHA-256. Nothing here puts a file into use: the `.part` file is
//! hashed again, as it lies on the disk, before that.

mod apart;
mod body;
mod controller;
mod hash;
mod https;
mod limit;
mod message;
mod part;
pub mod policy;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use upfleet_domain::{
    backoff::Backoff,
    digest::{Digest, Md5Digest},
    reason::{Reason, ReasonCode},
    release::ArtifactRef,
};

use crate::{config::FetchConfig, transport::Connector};

/// What to fetch, and where to put it.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// Digest, length and sources, from a verified manifest.
    pub artifact: ArtifactRef,
    /// The file to write. What lies there already is taken for the artifact's beginning.
    pub part_path: PathBuf,
    /// When to give up; the caller's own limit where it is `None`.
    pub deadline: Option<Instant>,
}

/// What was fetched: it has the manifest's length and SHA-256, and its MD5 where it carries one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 of all bytes.
    pub sha256: Digest,
    /// MD5 of all bytes, where the manifest carries one.
    pub md5: Option<Md5Digest>,
    /// Length in bytes.
    pub size: u64,
}

/// How it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes of the artifact are there.
    Bytes(u64),
    /// An attempt failed; [`FetchRetrying`](upfleet_domain::reason::ReasonCode::FetchRetrying) says how.
    Retrying(Reason),
}

/// Fetches artifacts. All downloads of an agent share one, and with it the byte rate. Cheap to clone.
#[derive(Clone)]
pub struct Fetcher(Arc<Shared>);

/// How long sources are waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// A source that gives nothing for so long is given up for this attempt.
    stall: Duration,
    /// The waits before the next attempt; progress begins them anew.
    backoff: Backoff,
    /// How long a source is watched before its rate is judged.
    window: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { stall: seconds(30), backoff: Backoff::NETWORK, window: seconds(60) }
    }
}

/// What was said of a download and not heard yet; then the download waits.
const SAID: usize = 16;

struct Shared {
    patience: Patience,
    policy: policy::Policy,
    https: https::Client,
    limiter: limit::Limiter,
    controller: Option<Connector>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("policy", &self.0.policy).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher that obeys `config`, with the controller's store as the last source of each artifact.
    #[must_use]
    pub fn new(config: &FetchConfig, controller: Option<Connector>) -> Self {
        Self::with_patience(config, controller, Patience::default())
    }

    fn with_patience(config: &FetchConfig, controller: Option<Connector>, patience: Patience) -> Self {
        let policy = policy::Policy {
            allowed_hosts: config.allowed_hosts.clone(),
            allow_loopback: config.allow_loopback,
        };
        Self(Arc::new(Shared {
            https: https::Client::new(config, policy.clone()),
            limiter: limit::Limiter::new(config.rate_limit),
            patience,
            policy,
            controller,
        }))
    }

    /// Reads an artifact from the controller's store and throws it away: what line, TLS and protocol give without
    /// disk and digests. For benchmarks.
    ///
    /// # Errors
    /// `FETCH_FAILED` at the first trouble.
    pub async fn discard(&self, artifact: ArtifactRef) -> Result<(), Reason> {
        let (shared, digest) = (self.0.clone(), artifact.sha256);
        let read =
            apart::run(move || async move { controller::discard(shared.controller.clone(), artifact).await });
        read.await.unwrap_or_else(|| Err("it panicked".to_owned())).map_err(|problem| {
            Reason::new(ReasonCode::FetchFailed)
                .with("digest", digest)
                .with("attempts", 1)
                .with("problem", problem)
        })
    }

    /// Fetches, and tells `on` how it goes. To cancel, drop the future: what was fetched stays in the `.part`
    /// file, and the next call goes on from there.
    ///
    /// # Errors
    /// `SIZE_MISMATCH`, `DIGEST_MISMATCH` or `MD5_MISMATCH` where no source gave the right bytes (the `.part`
    /// file is emptied then), `SOURCE_NOT_ALLOWED` where policy leaves none, `DISK_FULL` or `STAGE_FAILED` where
    /// it can't be written, else `FETCH_FAILED`.
    pub async fn fetch(
        &self,
        request: FetchRequest,
        on: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Fetched, Reason> {
        let (told, mut heard) = mpsc::channel(SAID);
        let (shared, digest) = (self.0.clone(), request.artifact.sha256);
        let fetching =
            apart::run(
                move || async move { sources::Fetch::begin(&shared, request, told).await?.run().await },
            );
        tokio::pin!(fetching);
        let fetched = loop {
            tokio::select! {
                biased;
                Some(progress) = heard.recv() => on(progress),
                fetched = &mut fetching => break fetched,
            }
        };
        while let Ok(progress) = heard.try_recv() {
            on(progress);
        }
        fetched.unwrap_or_else(|| {
            let reason = Reason::new(ReasonCode::FetchFailed).with("digest", digest).with("attempts", 0);
            Err(reason
                .with("problem", "there was no thread for it, or it panicked; the agent's log says which"))
        })
    }
}
