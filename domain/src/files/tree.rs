//! A tree as it was found or recorded, its digest, and what differs between two. Reads no file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{FilesSpec, glob, is_byte_code_cache};
use crate::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

/// How many names a reason lists.
const LISTED: usize = 20;

/// What lies at one path of a tree. Directories are not counted: a tree is its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// A regular file.
    File {
        /// SHA-256 of its bytes.
        digest: Digest,
        /// Whether its owner may execute it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        executable: bool,
    },
    /// A symbolic link; no release has one, but somebody's directory may.
    Link {
        /// Where it points, as it is written.
        target: String,
    },
    /// A device or what else is no file.
    Special,
}

/// The files of a directory by their path below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tree(pub BTreeMap<String, Node>);

impl Tree {
    /// A tree's name where no release gave it one: SHA-256 over its paths, kinds and digests. What `except` matches is
    /// left out, and so are byte-code caches.
    #[must_use]
    pub fn digest(&self, except: &[String]) -> Digest {
        let mut hasher = Sha256::new();
        hasher.update(b"upfleet tree 1\n");
        for (path, node) in self.counted(except) {
            let line = match node {
                Node::File { digest, executable } => format!("file {digest} {executable} {path}\0"),
                Node::Link { target } => format!("link {path}\0{target}\0"),
                Node::Special => format!("special {path}\0"),
            };
            hasher.update(line.as_bytes());
        }
        Digest(hasher.finalize().into())
    }

    fn counted<'a>(&'a self, except: &'a [String]) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.0.iter().filter(|(path, _)| counts(path, except))
    }
}

impl From<&FilesSpec> for Tree {
    fn from(spec: &FilesSpec) -> Self {
        let node =
            |entry: &super::FileEntry| Node::File { digest: entry.digest, executable: entry.executable };
        Self(spec.entries.iter().map(|entry| (entry.path.clone(), node(entry))).collect())
    }
}

/// Whether a path is compared at all.
fn counts(path: &str, preserve: &[String]) -> bool {
    !is_byte_code_cache(path) && !matches_any(preserve, path)
}

/// Whether one of the patterns means `path`.
#[must_use]
pub fn matches_any(patterns: &[String], path: &str) -> bool {
    patterns.iter().any(|pattern| glob::matches(pattern, path))
}

/// What differs between what was installed and what lies there, each list in the order of the paths.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Other bytes, another kind, or executable where it was not.
    pub changed: Vec<String>,
    /// Not there any more.
    pub missing: Vec<String>,
    /// There, though nothing installed it.
    pub added: Vec<String>,
}

impl Changes {
    /// From what was installed to what was found. Preserved paths and byte-code caches do not count.
    #[must_use]
    pub fn between(installed: &Tree, found: &Tree, preserve: &[String]) -> Self {
        let mut changes = Self::default();
        for (path, node) in installed.counted(preserve) {
            match found.0.get(path) {
                None => changes.missing.push(path.clone()),
                Some(other) if other != node => changes.changed.push(path.clone()),
                Some(_) => {}
            }
        }
        let new = found.counted(preserve).filter(|(path, _)| !installed.0.contains_key(*path));
        changes.added = new.map(|(path, _)| path.clone()).collect();
        changes
    }

    /// Whether nothing differs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    /// How many paths differ.
    #[must_use]
    pub fn count(&self) -> usize {
        self.changed.len() + self.missing.len() + self.added.len()
    }

    /// For people: each path with what became of it, changed ones first, at most `limit` of them.
    #[must_use]
    pub fn list(&self, limit: usize) -> Vec<String> {
        let each = |word: &'static str, paths: &'_ [String]| -> Vec<String> {
            paths.iter().map(|path| format!("{path} ({word})")).collect()
        };
        let mut all = each("changed", &self.changed);
        all.extend(each("missing", &self.missing));
        all.extend(each("added", &self.added));
        all.truncate(limit);
        all
    }
}

/// The reason for a list of changed files, with the first names; `None` where there are none.
#[must_use]
pub fn changed(list: &[String]) -> Option<Reason> {
    let first = list.first()?;
    let reason = Reason::new(ReasonCode::LocalChanges).with("count", list.len()).with("first", first);
    Some(reason.with("files", list.iter().take(LISTED).cloned().collect::<Vec<_>>().join(", ")))
}
