//! The executor of a directory: the same steps as for a file, on trees. A version is a directory of the store; switching
//! is one rename of a link, or one exchange of two names.
//!
//! What is installed is told by the record whose directory lies there. If somebody has changed it, it is named by the
//! digest of what it is now, so that it can be put back like any other state.

mod carry;
mod look;
mod prune;
mod stage;
mod switch;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use upfleet_domain::{
    digest::Digest,
    files::{Changes, FilesSpec, Tree},
    reason::{Reason, ReasonCode},
    release::Manifest,
    upgrade::step::{Answer, StepKind},
};

use super::{
    FirstInstall, Looked, Lying, Place,
    files::{failed, make_store, open_way, sync_dir},
    hash_file,
    record::{Record, Store, inode, names},
    tree::{Cache, walk},
};
use crate::{config::SwapMode, crash};
pub use verify::unpacked;

/// How a component's directory is treated.
#[derive(Clone, Debug)]
pub struct DirectoryRules {
    /// How it is switched.
    pub swap: SwapMode,
    /// Mode, owner and group of its files.
    pub first: FirstInstall,
    /// Whether a program in it is executed, rather than read by another.
    pub executes: bool,
}

/// Performs the steps on a directory.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    place: Place,
    rules: DirectoryRules,
    cache: Arc<Cache>,
}

/// What lies in the component's place.
struct There {
    /// The directory, where no link leads any further.
    real: PathBuf,
    tree: Tree,
    digest: Digest,
    /// The version that was put there, whatever became of it.
    record: Option<Record>,
}

impl There {
    fn changes(&self) -> Changes {
        self.record.as_ref().map(|record| record.local(&self.tree)).unwrap_or_default()
    }
}

impl Directory {
    pub(super) fn new(place: Place, rules: DirectoryRules) -> Self {
        Self { place, rules, cache: Arc::default() }
    }

    pub(super) fn perform(&self, step: &StepKind, release: Option<&Manifest>) -> Result<Answer, Reason> {
        let spec = release.and_then(|release| release.files.as_ref());
        match step {
            StepKind::Verify { digest, .. } => self.verify(digest, needed(spec)?),
            StepKind::Stage { digest, .. } => self.stage(digest, needed(spec)?),
            StepKind::VerifyKept { digest } => self.verify_kept(digest),
            StepKind::Backup { digest } => self.back_up(digest),
            StepKind::Swap { digest } | StepKind::SwapBack { digest } => self.put_in_place(digest),
            StepKind::Remove { digest } => self.remove(*digest),
            StepKind::Prune { keep, .. } => self.prune(keep),
            _ => Err(super::no_step(step, &self.place)),
        }?;
        Ok(match step {
            StepKind::Verify { .. } => Answer::Verified(None),
            _ => Answer::Done,
        })
    }

    /// What files are given.
    pub(super) fn first(&self) -> &FirstInstall {
        &self.rules.first
    }

    pub(super) fn prepare(&self) -> Result<(), Reason> {
        make_store(&self.place).and_then(|()| make_trees(&self.place)).map_err(failed(
            ReasonCode::StageFailed,
            "create",
            &self.place.store,
        ))?;
        if self.rules.swap == SwapMode::Link {
            // Whoever reads the component's files comes by here. Names are digests, and can't be listed.
            for dir in [
                self.place.store.parent().unwrap_or(&self.place.store),
                &self.place.store,
                &self.place.versions(),
            ] {
                open_way(dir).map_err(failed(ReasonCode::StageFailed, "let others pass through", dir))?;
            }
        }
        Ok(())
    }

    pub(super) fn inspect(&self) -> Result<Lying, Reason> {
        let store = self.load()?;
        let there = self.there(&store, true)?;
        let installed = there.as_ref().map(|there| there.digest);
        let kept = store.records.iter().filter(|record| store.locate(record).is_some());
        let mut kept: Vec<Digest> = kept.map(|record| record.digest).collect();
        // A version that somebody changed where it is in place is not kept any more.
        if let Some(record) = there.as_ref().and_then(|there| there.record.as_ref()) {
            kept.retain(|digest| *digest != record.digest || Some(*digest) == installed);
        }
        kept.extend(self.jars()?);
        let drift = there.as_ref().and_then(|there| Some(there.record.as_ref()?.drift(&there.tree)));
        Ok(Lying { installed, kept, changes: drift.unwrap_or_default() })
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        let jar = || hash_file(&self.place.version(digest)).is_ok_and(|found| found == *digest);
        self.intact(digest).is_ok_and(|intact| intact.is_some()) || jar()
    }

    pub(super) fn look(&self, wanted: &[Digest], runs: bool) -> Result<Looked, Reason> {
        look::look(self, wanted, runs)
    }

    // ---- what lies there ---------------------------------------------------------------------------------

    fn load(&self) -> Result<Store, Reason> {
        Store::load(&self.place).map_err(failed(ReasonCode::StageFailed, "read", &self.place.store))
    }

    /// The real directory in the component's place: itself, or the version that our link names.
    fn real(&self) -> io::Result<Option<PathBuf>> {
        let path = &self.place.path;
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(metadata) if metadata.is_dir() => Ok(Some(path.clone())),
            Ok(metadata) if metadata.is_symlink() => {
                let target = self.place.parent.join(std::fs::read_link(path)?);
                let ours = target.parent() == Some(&self.place.versions()) && inode(&target)?.is_some();
                Ok(ours.then_some(target))
            }
            Ok(_) => Ok(None),
        }
    }

    /// What lies in place. With `quick`, files whose times have not changed are not read again.
    fn there(&self, store: &Store, quick: bool) -> Result<Option<There>, Reason> {
        let fail = |error| failed(ReasonCode::StageFailed, "read", &self.place.path)(error);
        let Some(real) = self.real().map_err(fail)? else { return Ok(None) };
        let tree = walk(&real, quick.then_some(&*self.cache)).map_err(fail)?;
        let inode = std::fs::metadata(&real).map_err(fail)?.ino();
        let same = |record: &&Record| record.drift(&tree).is_empty();
        let claims: Vec<&Record> = store.of_inode(inode).collect();
        let by_content = || store.records.iter().find(same);
        let record = claims.iter().copied().find(|record| same(record)).or(claims.first().copied());
        let record = record.or_else(by_content).cloned();
        let preserve = record.as_ref().map_or(&[][..], |record| &record.preserve);
        let digest = match &record {
            Some(record) if record.drift(&tree).is_empty() => record.digest,
            _ => tree.digest(preserve),
        };
        Ok(Some(There { real, tree, digest, record }))
    }

    /// Patches that lie among the versions.
    fn jars(&self) -> Result<Vec<Digest>, Reason> {
        let dir = self.place.versions();
        let names = names(&dir).map_err(failed(ReasonCode::StageFailed, "read", &dir))?;
        let files = names
            .into_iter()
            .filter(|(_, path)| std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()));
        Ok(files.filter_map(|(name, _)| name.parse().ok()).collect())
    }

    /// A version that lies in the store or in place and is what its record says, read from the disk.
    fn intact(&self, digest: &Digest) -> Result<Option<(Record, PathBuf)>, Reason> {
        let store = self.load()?;
        let Some(record) = store.record(digest) else { return Ok(None) };
        let Some(path) = store.locate(record) else { return Ok(None) };
        let found = walk(path, None).map_err(failed(ReasonCode::StageFailed, "read", path))?;
        Ok(record.drift(&found).is_empty().then(|| (record.clone(), path.to_owned())))
    }

    /// A name in the store that nothing has yet.
    fn free(&self, digest: &Digest) -> PathBuf {
        let first = self.place.version(digest);
        let names = std::iter::once(first.clone())
            .chain((2u32..).map(|number| self.place.versions().join(format!("{digest}-{number}"))));
        names.into_iter().find(|path| std::fs::symlink_metadata(path).is_err()).unwrap_or(first)
    }

    // ---- steps -------------------------------------------------------------------------------------------

    /// Whatever is in place gets a record, so that it can be put back. Takes no space: it stays where it is.
    fn back_up(&self, digest: &Digest) -> Result<(), Reason> {
        self.prepare()?;
        self.settle()?;
        let store = self.load()?;
        let there = self.there(&store, false)?;
        let actual = there.as_ref().map(|there| there.digest);
        let Some(there) = there.filter(|there| there.digest == *digest) else {
            let actual = actual.map_or_else(|| "nothing".to_owned(), |actual| actual.to_string());
            return Err(Reason::new(ReasonCode::Drifted).with("actual", actual).with("recorded", digest));
        };
        let fail = |error| failed(ReasonCode::StageFailed, "record", &self.place.path)(error);
        let inode = std::fs::metadata(&there.real).map_err(fail)?.ino();
        let known = there.record.as_ref().filter(|record| record.digest == *digest);
        let mut record = match (known, &there.record) {
            (Some(known), _) => known.clone(),
            // What somebody made of a version remembers what that was: its changes are still changes.
            (None, Some(changed)) => Record {
                digest: *digest,
                inode,
                released: Some(changed.released.clone().unwrap_or_else(|| changed.tree.clone())),
                tree: there.tree.clone(),
                preserve: changed.preserve.clone(),
                rule: None,
                carrying: None,
                time: changed.time,
            },
            (None, None) => Record {
                digest: *digest,
                inode,
                tree: there.tree.clone(),
                released: None,
                preserve: Vec::new(),
                rule: None,
                carrying: None,
                time: 0,
            },
        };
        if known.is_none() || record.inode != inode {
            record.inode = inode;
            sync_tree(&there.real).map_err(failed(
                ReasonCode::StageFailed,
                "write to the disk",
                &there.real,
            ))?;
            record.write(&self.place).map_err(fail)?;
            crash::point("backup.recorded");
        }
        // The version that was changed is not there any more as it was.
        for other in store.of_inode(inode).filter(|other| other.digest != *digest) {
            other.remove(&self.place).map_err(fail)?;
        }
        Ok(())
    }

    fn remove(&self, digest: Option<Digest>) -> Result<(), Reason> {
        self.settle()?;
        let store = self.load()?;
        let Some(there) = self.there(&store, false)? else { return Ok(()) };
        if Some(there.digest) != digest {
            let recorded = digest.map_or_else(|| "nothing".to_owned(), |digest| digest.to_string());
            return Err(Reason::new(ReasonCode::Drifted)
                .with("actual", there.digest)
                .with("recorded", recorded));
        }
        let path = &self.place.path;
        let removed = if there.real == *path {
            std::fs::rename(path, self.free(&there.digest))
        } else {
            std::fs::remove_file(path)
        };
        removed.map_err(failed(ReasonCode::SwapFailed, "remove", path))?;
        crash::point("remove.unlinked");
        for dir in [&self.place.versions(), &self.place.parent] {
            sync_dir(dir).map_err(failed(ReasonCode::SwapFailed, "write to the disk", dir))?;
        }
        Ok(())
    }
}

fn needed(spec: Option<&FilesSpec>) -> Result<&FilesSpec, Reason> {
    let missing = || Reason::new(ReasonCode::ManifestInvalid).with("problem", "it names no files");
    spec.ok_or_else(missing)
}

fn make_trees(place: &Place) -> io::Result<()> {
    let trees = place.trees();
    if !trees.is_dir() {
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&trees)?;
        sync_dir(&place.store)?;
    }
    Ok(())
}

/// Makes all of a directory durable, whoever wrote it.
fn sync_tree(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(std::fs::File::open(path)?)?)
}
