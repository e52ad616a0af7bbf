//! Removes what nobody will ask for: uploads given up, and bytes that no record names.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use upfleet_domain::digest::Digest;

use super::{Blobs, Inner, Result, blocking, io, list};

/// An upload that nothing was written to for so long is given up; bytes without a record are kept so long,
/// because their record may be on its way.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Uploads given up.
    pub uploads: usize,
    /// Artifacts that no record named.
    pub artifacts: usize,
}

impl Blobs {
    /// Removes uploads given up, and artifacts that are not in `named`, once they are a day old at `now`.
    ///
    /// # Errors
    /// [`super::BlobError::Io`] where the disk refuses; what was removed before stays removed.
    pub async fn collect(&self, named: HashSet<Digest>, now: SystemTime) -> Result<Collected> {
        let inner = self.0.clone();
        blocking(move || collect(&inner, &named, now)).await
    }
}

fn collect(inner: &Arc<Inner>, named: &HashSet<Digest>, now: SystemTime) -> Result<Collected> {
    let mut collected = Collected::default();
    let incoming = inner.root.join("incoming");
    for entry in std::fs::read_dir(&incoming).map_err(io("list", &incoming))? {
        let path = entry.map_err(io("list", &incoming))?.path();
        let digest = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        // Whoever uploads it now holds the claim; it is not given up.
        let claim = digest.map(|digest: Digest| inner.claim(digest));
        if !matches!(claim, Some(Err(_))) && abandoned(&path, now) {
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
            collected.uploads += 1;
        }
    }
    for (digest, path) in list(&inner.root)? {
        if named.contains(&digest) {
            continue;
        }
        let Ok(_claim) = inner.claim(digest) else { continue };
        if abandoned(&path, now) {
            inner.remove(digest)?;
            collected.artifacts += 1;
        }
    }
    Ok(collected)
}

fn abandoned(path: &Path, now: SystemTime) -> bool {
    let written = path.metadata().and_then(|meta| meta.modified());
    written.is_ok_and(|written| now.duration_since(written).is_ok_and(|age| age > ABANDONED))
}
