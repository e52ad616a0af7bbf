//! Fetches an artifact's bytes into a `.part` file, resumed where it stopped, hashed while it is written.
//!
//! Sources are tried in the manifest's order, then the controller's own store. What a source gives is bounded
//! by the manifest and believed only by its SHA-256. Nothing here puts a file into use: the `.part` file is
//! hashed again, as it lies on the disk, before that.

mod body;
mod controller;
mod https;
mod limit;
mod part;
pub mod policy;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf, sync::Arc};

use tokio::time::Instant;
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    reason::Reason,
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
    /// MD5 of all bytes, for people who compare with older tools.
    pub md5: Md5Digest,
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

struct Shared {
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
        let policy = policy::Policy {
            allowed_hosts: config.allowed_hosts.clone(),
            allow_loopback: config.allow_loopback,
        };
        Self(Arc::new(Shared {
            https: https::Client::new(config, policy.clone()),
            limiter: limit::Limiter::new(config.rate_limit),
            policy,
            controller,
        }))
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
        sources::Fetch::begin(&self.0, request, on).await?.run().await
    }
}
