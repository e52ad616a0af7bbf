//! Directory releases: what a tree of files is, and what may be done about local changes to it.
//!
//! Who builds a release makes one [`FileEntry`] for each regular file (path with `/`, SHA-256, length, whether its owner may
//! execute it), hands them to [`FilesSpec::build`], which sorts and checks them and leaves byte-code caches out, and
//! then packs exactly the files of [`FilesSpec::entries`], in that order, into a `.tar.gz`: no entries for directories,
//! modes 0644 and 0755, owner 0, times 0, so that equal directories make equal bytes. Links are refused, not followed.

mod glob;
mod name;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeSet;

pub use name::{MAX_PATH_BYTES, is_byte_code_cache, name_problem};
use serde::{Deserialize, Serialize};
pub use tree::{Changes, Node, Tree, changed, matches_any};

use crate::{digest::Digest, reason::Reason};

/// The most files that a directory release has.
pub const MAX_FILES: usize = 50_000;
/// The most bytes that they have together: 64 GiB.
pub const MAX_TREE_BYTES: u64 = 64 << 30;
/// The most patterns of preserved paths.
const MAX_PATTERNS: usize = 64;

/// What to do with a file that somebody changed on the node since it was installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnLocalChange {
    /// The upgrade stops before anything is touched.
    #[default]
    Refuse,
    /// The changed file is carried over into the new version.
    Keep,
    /// The release's file takes its place; the changed one stays in the kept version.
    Overwrite,
}

/// One file of a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path below the directory, with `/`; never absolute, never with `.` or `..`.
    pub path: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// Whether it may be executed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub executable: bool,
}

/// The `files` section of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesSpec {
    /// Every file, by path. What is not named here is not there after the switch.
    pub entries: Vec<FileEntry>,
    /// What to do about local changes.
    #[serde(default)]
    pub on_local_change: OnLocalChange,
    /// Paths, with `*` within a name and `**` across directories, that belong to the node: carried over as they are,
    /// neither counted as local changes nor removed, e.g. `local/**`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preserve: Vec<String>,
}

impl FilesSpec {
    /// Puts a section together for a publisher: sorted by path, byte-code caches left out, checked.
    ///
    /// # Errors
    /// What [`FilesSpec::check`] finds.
    pub fn build(
        entries: impl IntoIterator<Item = FileEntry>,
        on_local_change: OnLocalChange,
        preserve: Vec<String>,
    ) -> Result<Self, String> {
        let mut entries: Vec<FileEntry> =
            entries.into_iter().filter(|entry| !is_byte_code_cache(&entry.path)).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let spec = Self { entries, on_local_change, preserve };
        spec.check()?;
        Ok(spec)
    }

    /// Whether it can be obeyed: plain names, none twice, none below a file, within bounds.
    ///
    /// # Errors
    /// A sentence for the publisher that names the entry.
    pub fn check(&self) -> Result<(), String> {
        if self.entries.is_empty() {
            return Err("`files` names no file".to_owned());
        }
        if self.entries.len() > MAX_FILES {
            return Err(format!("`files` names {} files, at most {MAX_FILES} are taken", self.entries.len()));
        }
        let mut paths = BTreeSet::new();
        let mut total: u64 = 0;
        for entry in &self.entries {
            let path = entry.path.as_str();
            if let Some(problem) = name_problem(path) {
                return Err(format!("`files` names `{}`: {problem}", path.escape_debug()));
            }
            if is_byte_code_cache(path) {
                return Err(format!(
                    "`files` names `{path}`, a byte-code cache: leave it out, the node makes its own"
                ));
            }
            if !paths.insert(path) {
                return Err(format!("`files` names `{path}` twice"));
            }
            total = total.saturating_add(entry.size);
        }
        if total > MAX_TREE_BYTES {
            return Err(format!("its files have {total} bytes, at most {MAX_TREE_BYTES} are taken"));
        }
        for path in &paths {
            if let Some(file) = parents(path).find(|parent| paths.contains(parent)) {
                return Err(format!("`files` names `{path}` below `{file}`, which is a file"));
            }
        }
        if self.preserve.len() > MAX_PATTERNS {
            return Err(format!("`preserve` has {} patterns, at most {MAX_PATTERNS}", self.preserve.len()));
        }
        for pattern in &self.preserve {
            if let Some(problem) = glob::problem(pattern) {
                return Err(format!("`preserve` has the pattern `{}`: {problem}", pattern.escape_debug()));
            }
        }
        Ok(())
    }

    /// The length of all files in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.entries.iter().fold(0, |total, entry| total.saturating_add(entry.size))
    }

    /// The entry of a path. The entries need not be sorted.
    #[must_use]
    pub fn entry(&self, path: &str) -> Option<&FileEntry> {
        self.entries.iter().find(|entry| entry.path == path)
    }
}

/// The directories that a path lies in, the nearest first.
pub fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').map(|(at, _)| &path[..at])
}

/// What is carried over into a new version of the files that were changed on the node, or why there is to be none.
///
/// What was changed or added is kept; what is missing comes back with the release.
///
/// # Errors
/// [`crate::reason::ReasonCode::LocalChanges`] where the release says to refuse.
pub fn judge(rule: OnLocalChange, changes: &Changes) -> Result<Vec<String>, Reason> {
    match rule {
        _ if changes.is_empty() => Ok(Vec::new()),
        OnLocalChange::Refuse => changed(&changes.list(usize::MAX)).map_or_else(|| Ok(Vec::new()), Err),
        OnLocalChange::Keep => Ok(changes.changed.iter().chain(&changes.added).cloned().collect()),
        OnLocalChange::Overwrite => Ok(Vec::new()),
    }
}
