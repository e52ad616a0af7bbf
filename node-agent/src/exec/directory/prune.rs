//! Pruning: what is temporary goes, and versions that nothing names. What is in place stays, whatever the step says.

use std::{io, path::Path};

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::Directory;
use crate::{
    crash,
    exec::{
        files::{failed, remove_if_there},
        record::{LINK, Store, inode, names},
    },
};

impl Directory {
    pub(super) fn prune(&self, keep: &[Digest]) -> Result<(), Reason> {
        self.settle()?;
        let pruned = || -> io::Result<()> {
            for (_, path) in names(&self.place.incoming())? {
                remove_if_there(&path)?;
            }
            crash::point("prune.some");
            let real = self.real()?;
            let present = real.as_deref().map(inode).transpose()?.flatten();
            let store = Store::load(&self.place)?;
            let stays = |digest: &Digest, inode: u64| keep.contains(digest) || Some(inode) == present;
            for record in store.records.iter().filter(|record| !stays(&record.digest, record.inode)) {
                record.remove(&self.place)?;
            }
            let kept = store.records.iter().filter(|record| stays(&record.digest, record.inode));
            let kept: Vec<&Path> = kept.filter_map(|record| store.locate(record)).collect();
            for (name, path) in names(&self.place.versions())? {
                let jar = || name.parse().is_ok_and(|digest| keep.contains(&digest)) && !path.is_dir();
                if !kept.contains(&path.as_path()) && real.as_deref() != Some(&path) && !jar() {
                    remove_tree(&path)?;
                }
            }
            for (name, path) in names(&self.place.trees())? {
                let gone = |version: &str| !self.place.versions().join(version).exists();
                if name.starts_with('.') || name.strip_suffix(LINK).is_some_and(gone) {
                    remove_if_there(&path)?;
                }
            }
            Ok(())
        };
        pruned().map_err(failed(ReasonCode::StageFailed, "remove old versions from", &self.place.store))
    }
}

/// Removes a directory, a file or a link that may not be there. Links are not followed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
