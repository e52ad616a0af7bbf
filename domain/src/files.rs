//! Directory releases: what a tree of files is, and what may be done about local changes to it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

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
