//! Manifests, stored durably before an order is acknowledged, so that an upgrade can go on without the
//! controller. What is read back is verified again: only a `VerifiedRelease` is obeyed.

use std::{
    collections::BTreeMap,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use upfleet_domain::{
    digest::Digest,
    id::ComponentId,
    reason::{Reason, ReasonCode},
    release::{Kind, VerifiedRelease},
    state::{Base, ComponentState, Layer},
    upgrade::record::Record,
};

use super::{
    ManifestBytes,
    stack::{Patch, View},
};
use crate::{crash, damage, exec::failed};

/// The releases of a component whose manifests lie on the node, each verified anew; what can't be is left out.
#[must_use]
pub fn known_releases(state_dir: &Path, component: &ComponentId) -> Vec<VerifiedRelease> {
    let manifests = Manifests::new(state_dir, component);
    let entries = std::fs::read_dir(&manifests.dir).into_iter().flatten().flatten();
    let digests = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Digest>().ok());
    digests.filter_map(|digest| manifests.load(&digest).ok()).collect()
}

/// The manifests of one component.
#[derive(Clone, Debug)]
pub(super) struct Manifests {
    dir: PathBuf,
    /// The artifacts of those that were read and are of patches, by manifest.
    read: Arc<Mutex<BTreeMap<Digest, Vec<Digest>>>>,
}

impl Manifests {
    pub(super) fn new(state_dir: &Path, component: &ComponentId) -> Self {
        Self { dir: state_dir.join("manifests").join(component.as_str()), read: Arc::default() }
    }

    /// Makes a manifest durable.
    pub(super) fn store(&self, digest: &Digest, manifest: &ManifestBytes) -> Result<(), Reason> {
        crash::point("manifest.store.before");
        let path = self.dir.join(digest.to_string());
        let temporary = path.with_extension("tmp");
        let stored = || -> io::Result<()> {
            if std::fs::read(&path).is_ok_and(|bytes| bytes == manifest.bytes) {
                return Ok(());
            }
            DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
            damage::clear_directory(&path)?;
            damage::clear_directory(&temporary)?;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&manifest.bytes)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        stored().inspect_err(|_| drop(std::fs::remove_file(&temporary))).map_err(failed(
            ReasonCode::StageFailed,
            "write",
            &path,
        ))?;
        crash::point("manifest.store.after");
        Ok(())
    }

    /// Reads a stored manifest, verified anew.
    pub(super) fn load(&self, digest: &Digest) -> Result<VerifiedRelease, Reason> {
        let path = self.dir.join(digest.to_string());
        let bytes = std::fs::read(&path).map_err(|error| {
            let problem = format!("it is not on the node: {error}");
            Reason::new(ReasonCode::UntrustedManifest).with("problem", problem)
        })?;
        if Digest::of(&bytes) != *digest {
            // Never obeyed; the next order that names it brings it again.
            let _ = damage::move_aside(&path);
        }
        VerifiedRelease::parse(&bytes, *digest, &[])
    }

    /// A stack with what its manifests say; jars are where `jar` says. A layer that is not in force may be without.
    pub(super) fn view(
        &self,
        layers: &[Layer],
        gone: &[Layer],
        jar: impl Fn(&Digest) -> PathBuf,
    ) -> Result<View, Reason> {
        let patch = |layer: &Layer| -> Result<Patch, Reason> {
            let release = self.load(&layer.release.manifest)?;
            let missing =
                || Reason::new(ReasonCode::PatchInvalid).with("problem", "its manifest describes no patch");
            let spec = release.manifest().patch.clone().ok_or_else(missing)?;
            Ok(Patch { layer: layer.clone(), spec, jar: jar(&layer.release.artifact) })
        };
        let known = |layer: &&Layer| !layer.retired || self.load(&layer.release.manifest).is_ok();
        let layers = layers.iter().filter(known).map(patch).collect::<Result<_, _>>()?;
        Ok(View { layers, gone: gone.iter().filter_map(|layer| patch(layer).ok()).collect() })
    }

    /// The artifacts of patches whose manifests lie here. Each manifest is read once.
    pub(super) fn patches(&self) -> Vec<Digest> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Digest>().ok());
        let names: Vec<Digest> = names.collect();
        read.retain(|name, _| names.contains(name));
        for name in names {
            read.entry(name).or_insert_with(|| {
                let release = self.load(&name).ok().filter(|release| release.manifest().kind == Kind::Patch);
                let artifacts = release.iter().flat_map(|release| &release.manifest().artifacts);
                artifacts.map(|artifact| artifact.sha256).collect()
            });
        }
        read.values().flatten().copied().collect()
    }

    /// Removes what no state, upgrade or waiting order names.
    pub(super) fn prune(&self, record: &Record) {
        let goals = record.passage.iter().map(|passage| passage.order.goal.state());
        let goals = goals.chain(record.next.iter().map(|order| order.goal.state()));
        let froms = record.passage.iter().map(|passage| &passage.from);
        let states = std::iter::once(&record.current).chain(&record.kept).chain(froms).chain(goals);
        let named: Vec<String> = states.flat_map(manifests).map(|digest| digest.to_string()).collect();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            // What was moved aside is an alarm; a person removes it.
            let stays = |name: &str| name.contains(damage::MARK) || named.iter().any(|kept| kept == name);
            if !entry.file_name().to_str().is_some_and(stays) {
                // What can't be removed now is removed after the next upgrade.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn manifests(state: &ComponentState) -> Vec<Digest> {
    let base = match &state.base {
        Base::Release(release) => Some(release.manifest),
        Base::Absent | Base::Unmanaged { .. } => None,
    };
    base.into_iter().chain(state.layers.iter().map(|layer| layer.release.manifest)).collect()
}
