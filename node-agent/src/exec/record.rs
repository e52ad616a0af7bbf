//! What is remembered of each version of a directory: which files were put there, and which directory it is.
//!
//! A record lies beside the versions, as `trees/<digest>.json`, and is written before the version gets its name. It
//! finds its directory by inode, so that an exchange that a crash cut off from its tidying up is understood.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use upfleet_domain::{
    digest::Digest,
    files::{Changes, OnLocalChange, Tree},
};

use super::{
    Place,
    files::{remove_if_there, sync_dir},
};

/// One version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The artifact's digest, or the tree's own where no release gave it.
    pub(super) digest: Digest,
    /// Of its directory.
    pub(super) inode: u64,
    /// What lies there if nobody changed it.
    pub(super) tree: Tree,
    /// What the release had, where that is something else: changes that were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) released: Option<Tree>,
    /// What belongs to the node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) preserve: Vec<String>,
    /// Until it is in place for the first time: what is to become of local changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rule: Option<OnLocalChange>,
    /// What is being carried over into it: each path has what the release brought, or this already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) carrying: Option<Tree>,
    /// Seconds since the epoch that its files were given as their time; no other version has the same.
    #[serde(default)]
    pub(super) time: u64,
}

impl Record {
    /// What differs from what was put there.
    pub(super) fn drift(&self, found: &Tree) -> Changes {
        let Some(carrying) = &self.carrying else {
            return Changes::between(&self.tree, found, &self.preserve);
        };
        let mut found = found.clone();
        for (path, node) in carrying.0.iter() {
            if found.0.get(path) == Some(node) {
                match self.tree.0.get(path) {
                    Some(released) => drop(found.0.insert(path.clone(), released.clone())),
                    None => drop(found.0.remove(path)),
                }
            }
        }
        Changes::between(&self.tree, &found, &self.preserve)
    }

    /// What differs from what the release had.
    pub(super) fn local(&self, found: &Tree) -> Changes {
        Changes::between(self.released.as_ref().unwrap_or(&self.tree), found, &self.preserve)
    }

    /// Writes it, durably.
    pub(super) fn write(&self, place: &Place) -> io::Result<()> {
        let dir = place.trees();
        let path = dir.join(format!("{}.json", self.digest));
        let temporary = dir.join(format!(".{}.json.tmp", self.digest));
        remove_if_there(&temporary)?;
        let bytes = crate::formats::encode(self).map_err(io::Error::other)?;
        let mut file = std::fs::File::create_new(&temporary)?;
        io::Write::write_all(&mut file, &bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        sync_dir(&dir)
    }

    /// Forgets it.
    pub(super) fn remove(&self, place: &Place) -> io::Result<()> {
        remove_if_there(&place.trees().join(format!("{}.json", self.digest)))?;
        sync_dir(&place.trees())
    }
}

/// What the name of a kept link ends with, among the records.
pub(super) const LINK: &str = ".link";

/// All versions that are remembered, and the directories that lie in the store.
#[derive(Clone, Debug, Default)]
pub(super) struct Store {
    pub(super) records: Vec<Record>,
    /// Directories that can be versions, by inode.
    pub(super) dirs: Vec<(u64, PathBuf)>,
}

impl Store {
    /// Reads it. What can't be read as a record is no record; its version is then not known to be kept.
    pub(super) fn load(place: &Place) -> io::Result<Self> {
        let mut store = Self::default();
        for (name, path) in names(&place.trees())? {
            let Some(digest) = name.strip_suffix(".json").and_then(|name| name.parse::<Digest>().ok()) else {
                continue;
            };
            let record = std::fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes));
            if let Ok(Ok(record)) = record
                && record.digest == digest
            {
                store.records.push(record);
            }
        }
        for (name, path) in names(&place.versions())? {
            if !name.starts_with('.') {
                store.dirs.extend(inode(&path)?.map(|inode| (inode, path)));
            }
        }
        // What an exchange left there is a version on its way into the store.
        store.dirs.extend(inode(&place.temporary)?.map(|inode| (inode, place.temporary.clone())));
        store.dirs.extend(inode(&place.path)?.map(|inode| (inode, place.path.clone())));
        Ok(store)
    }

    /// The record of a version.
    pub(super) fn record(&self, digest: &Digest) -> Option<&Record> {
        self.records.iter().find(|record| record.digest == *digest)
    }

    /// Where a version lies.
    pub(super) fn locate(&self, record: &Record) -> Option<&Path> {
        let by_inode = self.dirs.iter().find(|(inode, _)| *inode == record.inode);
        // Restored from a backup, directories have other inodes; their names are then what is left.
        let by_name = || {
            let named =
                |path: &Path| path.file_name().is_some_and(|name| *name == *record.digest.to_string());
            let free = |inode: u64| self.records.iter().all(|other| other.inode != inode);
            self.dirs.iter().find(|(inode, path)| named(path) && free(*inode))
        };
        by_inode.or_else(by_name).map(|(_, path)| path.as_path())
    }

    /// The records that claim a directory.
    pub(super) fn of_inode(&self, inode: u64) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.inode == inode)
    }
}

/// The inode of a real directory; `None` for everything else.
pub(super) fn inode(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir().then(|| metadata.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The entries of a directory by name; none where it is not there.
pub(super) fn names(dir: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        names.extend(entry.file_name().into_string().ok().map(|name| (name, entry.path())));
    }
    names.sort();
    Ok(names)
}
