//! Manifests that went out lately: a rollout sends the same few to every node, and bytes named by their digest never
//! change.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use upfleet_api::convert::ManifestBytes;
use upfleet_domain::{digest::Digest, reason::Reason};

use crate::{failure::internal, store::Store};

/// How many are kept: those of a few rollouts with their stacks. Each is at most 1 MiB, and mostly far less.
const KEPT: usize = 16;

/// The newest ones.
#[derive(Debug, Default)]
pub struct Manifests(Mutex<VecDeque<(Digest, Arc<ManifestBytes>)>>);

impl Manifests {
    /// The manifest of that digest, where it was published.
    ///
    /// # Errors
    /// What the store says.
    pub async fn get(&self, store: &dyn Store, digest: &Digest) -> Result<Option<ManifestBytes>, Reason> {
        if let Some(known) = self.known(digest) {
            return Ok(Some(ManifestBytes::clone(&known)));
        }
        let Some(found) = store.release_by_manifest(digest).await.map_err(internal)? else { return Ok(None) };
        let manifest = ManifestBytes { bytes: found.manifest, signatures: found.signatures };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| known != digest);
        kept.push_back((*digest, Arc::new(manifest.clone())));
        if kept.len() > KEPT {
            kept.pop_front();
        }
        Ok(Some(manifest))
    }

    fn known(&self, digest: &Digest) -> Option<Arc<ManifestBytes>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == digest).map(|(_, manifest)| manifest.clone())
    }
}
