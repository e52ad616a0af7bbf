//! Manifests, stored durably before an order is acknowledged, so that an upgrade can go on without the
//! controller. What is read back is verified again: only a `VerifiedRelease` is obeyed.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use upfleet_domain::{
    digest::Digest,
    id::ComponentId,
    reason::{Reason, ReasonCode},
    release::VerifiedRelease,
    state::{Base, ComponentState},
    upgrade::record::Record,
};

use super::ManifestBytes;
use crate::crash;

/// The manifests of one component.
#[derive(Clone, Debug)]
pub(super) struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    pub(super) fn new(state_dir: &Path, component: &ComponentId) -> Self {
        Self { dir: state_dir.join("manifests").join(component.as_str()) }
    }

    /// Makes a manifest durable.
    pub(super) fn store(&self, digest: &Digest, manifest: &ManifestBytes) -> Result<(), Reason> {
        crash::point("manifest.store.before");
        let path = self.dir.join(digest.to_string());
        let stored = || -> io::Result<()> {
            if std::fs::read(&path).is_ok_and(|bytes| bytes == manifest.bytes) {
                return Ok(());
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            let temporary = path.with_extension("tmp");
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&manifest.bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        stored().map_err(|error| {
            let reason = Reason::new(ReasonCode::StageFailed).with("operation", "write");
            reason.with("path", path.display()).with("problem", error)
        })?;
        crash::point("manifest.store.after");
        Ok(())
    }

    /// Reads a stored manifest, verified anew.
    pub(super) fn load(&self, digest: &Digest) -> Result<VerifiedRelease, Reason> {
        let bytes = std::fs::read(self.dir.join(digest.to_string())).map_err(|error| {
            let problem = format!("it is not on the node: {error}");
            Reason::new(ReasonCode::UntrustedManifest).with("problem", problem)
        })?;
        VerifiedRelease::parse(&bytes, *digest, &[])
    }

    /// Removes what no state, upgrade or waiting order names.
    pub(super) fn prune(&self, record: &Record) {
        let goals = record.passage.iter().map(|passage| passage.order.goal.state());
        let goals = goals.chain(record.next.iter().map(|order| order.goal.state()));
        let states = std::iter::once(&record.current).chain(&record.kept).chain(goals);
        let named: Vec<String> = states.filter_map(manifest).map(|digest| digest.to_string()).collect();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let known = entry.file_name().to_str().is_some_and(|name| named.iter().any(|kept| kept == name));
            if !known {
                // What can't be removed now is removed after the next upgrade.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn manifest(state: &ComponentState) -> Option<Digest> {
    match &state.base {
        Base::Release(release) => Some(release.manifest),
        Base::Absent | Base::Unmanaged { .. } => None,
    }
}
