//! Where a dev fleet lies: a directory per fleet below a private one per user.
//!
//! A lock tells the living from the dead. A directory goes when its fleet ends; after kill -9 a small janitor
//! process removes it, and what a janitor could not remove is removed when the next fleet begins.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::cli::failure::{Failure, Result};

/// So long the janitor waits for others to let go of a directory.
const JANITOR_PATIENCE: Duration = Duration::from_secs(10);
const LOCK: &str = "lock";
const PIDS: &str = "pids";

/// One dev fleet's directory.
#[derive(Debug)]
pub(super) struct Place {
    root: PathBuf,
    keep: bool,
    /// Held as long as the fleet lives.
    _lock: File,
}

impl Place {
    /// Makes a directory: `keep`, or a new temporary one.
    pub(super) fn new(keep: Option<&Path>) -> Result<Self> {
        let root = match keep {
            Some(path) => std::path::absolute(path).map_err(|error| Failure::io("find", path, &error))?,
            None => {
                let base = base()?;
                clean_dead(&base);
                // Short: the path of a socket has at most 107 bytes.
                base.join(format!("{:x}", std::process::id()))
            }
        };
        make(&root).map_err(|error| Failure::io("create", &root, &error))?;
        if keep.is_some() && root.join("controller").exists() {
            return Err(Failure::usage(format!("`{}` holds a dev fleet already", root.display()))
                .hint("give another directory to --keep, or remove it"));
        }
        let lock = File::create(root.join(LOCK)).map_err(|error| Failure::io("create", &root, &error))?;
        lock.try_lock()
            .map_err(|_| Failure::usage(format!("`{}` is in use by another fleet", root.display())))?;
        let place = Self { root, keep: keep.is_some(), _lock: lock };
        for directory in [PIDS, "releases", "logs"] {
            place.directory(directory)?;
        }
        Ok(place)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn is_kept(&self) -> bool {
        self.keep
    }

    /// Makes a directory in it.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        make(&path).map_err(|error| Failure::io("create", &path, &error))?;
        Ok(path)
    }

    /// Notes a process, for `upfleet dev chaos`.
    pub(super) fn note_pid(&self, name: &str, pid: u32) {
        // Only chaos reads it; without it, it says that there is no such process.
        let _ = fs::write(self.root.join(PIDS).join(name), pid.to_string());
    }

    /// Removes the directory, unless it is to be kept.
    pub(super) fn remove(&self) {
        if !self.keep {
            let _ = fs::remove_dir_all(&self.root);
        }
    }
}

/// The processes of fleets that live now: name and pid.
pub(super) fn living_processes() -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for root in fs::read_dir(base()?).into_iter().flatten().flatten() {
        if !is_dead(&root.path()) {
            for pid in fs::read_dir(root.path().join(PIDS)).into_iter().flatten().flatten() {
                let text = fs::read_to_string(pid.path()).unwrap_or_default();
                if let Ok(number) = text.trim().parse() {
                    found.push((pid.file_name().to_string_lossy().into_owned(), number));
                }
            }
        }
    }
    Ok(found)
}

/// Waits for the end of the lifeline on standard input, then removes the directory once all have let go.
pub(super) fn clean_after_the_lifeline(root: &Path) {
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    super::context::forget(root);
    let begun = Instant::now();
    // Processes that are ending may still write; a directory that stays away is the sign that they are gone.
    while begun.elapsed() < JANITOR_PATIENCE {
        let was_there = root.exists();
        let _ = fs::remove_dir_all(root);
        std::thread::sleep(Duration::from_millis(200));
        if !was_there && !root.exists() {
            return;
        }
    }
}

/// The private directory of this user's fleets.
fn base() -> Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    // Who sets TMPDIR says where temporary things go.
    let usual = std::env::var_os("TMPDIR").is_none();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_dir());
    let base = match runtime.filter(|_| usual) {
        Some(runtime) => runtime.join("upfleet-dev"),
        None => std::env::temp_dir().join(format!("upfleet-dev-{uid}")),
    };
    make(&base).map_err(|error| Failure::io("create", &base, &error))?;
    // Not through a link: what lies in there is removed, and anybody can make links in a directory for all.
    let meta = fs::symlink_metadata(&base).map_err(|error| Failure::io("read", &base, &error))?;
    if meta.uid() != uid || !meta.is_dir() {
        return Err(Failure::usage(format!("`{}` belongs to another user", base.display()))
            .hint("set TMPDIR or XDG_RUNTIME_DIR to a directory of yours"));
    }
    Ok(base)
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes what fleets that were killed left behind.
fn clean_dead(base: &Path) {
    for root in fs::read_dir(base).into_iter().flatten().flatten() {
        if is_dead(&root.path()) {
            let _ = fs::remove_dir_all(root.path());
        }
    }
}

/// Whether nobody holds a directory's lock. One without a lock is being made or removed right now.
fn is_dead(root: &Path) -> bool {
    File::open(root.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_are_told_from_the_living() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("one");
        let place = Place::new(Some(&root)).unwrap();
        assert!(!is_dead(&root));
        clean_dead(base.path());
        assert!(root.exists());
        drop(place);
        assert!(is_dead(&root));
        clean_dead(base.path());
        assert!(!root.exists());
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("one");
        let _place = Place::new(Some(&root)).unwrap();
        assert!(Place::new(Some(&root)).is_err());
    }
}
