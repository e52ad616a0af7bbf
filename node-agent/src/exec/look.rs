//! Looking: what is installed and kept, how much room there is, and what the agent may do. Leaves no trace.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
};

use rustix::fs::{StatVfsMountFlags, statvfs};
use upfleet_domain::{
    digest::Digest,
    files::Changes,
    reason::{Reason, ReasonCode},
};

use super::{
    Lying, Place,
    backup::linkless,
    files::{failed, hash_file, make_store, remove_if_there, unless_full},
};

/// What a check before an upgrade found on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked {
    /// SHA-256 of what is installed.
    pub installed: Option<Digest>,
    /// Its length in bytes.
    pub installed_size: u64,
    /// Bytes free for the agent.
    pub available: u64,
    /// Bytes of the wanted artifacts that lie there already.
    pub fetched: u64,
    /// Whether a backup is a link.
    pub links: bool,
    /// What the agent may not do, if anything.
    pub forbidden: Option<Reason>,
    /// What differs in an installed directory from the version that was put there.
    pub changes: Changes,
}

/// A hash, and what the kernel said of the file when it was made. Whoever changes a file changes that too.
#[derive(Clone, Debug)]
pub(super) struct Known {
    stamp: [i128; 6],
    digest: Digest,
}

fn stamp(path: &Path) -> Option<[i128; 6]> {
    let m = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (changed, written) = (nanos(m.ctime(), m.ctime_nsec()), nanos(m.mtime(), m.mtime_nsec()));
    Some([m.dev().into(), m.ino().into(), m.size().into(), m.mode().into(), changed, written])
}

/// Digests of what is installed and, by name, of what is kept.
pub(super) fn inspect(place: &Place, known: &Mutex<Option<Known>>) -> Result<Lying, Reason> {
    let stamp = stamp(&place.path);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let same = known.as_ref().filter(|known| Some(known.stamp) == stamp);
    let installed = match same {
        Some(known) => Some(known.digest),
        None => installed(place)?,
    };
    *known = stamp.zip(installed).map(|(stamp, digest)| Known { stamp, digest });
    let versions = place.versions();
    let entries = match std::fs::read_dir(&versions) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Lying { installed, ..Lying::default() });
        }
        Err(error) => return Err(failed(ReasonCode::StageFailed, "read", &versions)(error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let kept = names.filter_map(|name| name.parse().ok()).collect();
    Ok(Lying { installed, kept, ..Lying::default() })
}

/// `None` also for what is no regular file; [`look`] says so before anything is done about it.
fn installed(place: &Place) -> Result<Option<Digest>, Reason> {
    let path = &place.path;
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            hash_file(path).map(Some).map_err(failed(ReasonCode::StageFailed, "read", path))
        }
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(ReasonCode::StageFailed, "read", path)(error)),
    }
}

pub(super) fn look(place: &Place, wanted: &[Digest], runs: bool) -> Result<Looked, Reason> {
    let installed = installed(place)?;
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let lies = |digest: &Digest| {
        let in_place = if installed == Some(*digest) { size(&place.path) } else { 0 };
        in_place.max(size(&place.part(digest))).max(size(&place.version(digest)))
    };
    let fetched = wanted.iter().map(lies).sum();
    let space = statvfs(&place.parent).map_err(io::Error::from);
    let space = space.map_err(failed(ReasonCode::StageFailed, "read", &place.parent))?;
    let (forbidden, links) = match trial(place, installed.is_some()) {
        Ok(links) => (None, links),
        Err(reason) => (Some(reason), true),
    };
    let noexec = runs && space.f_flag.contains(StatVfsMountFlags::NOEXEC);
    let noexec = noexec.then(|| {
        let reason = Reason::new(ReasonCode::NotPermitted).with("operation", "run");
        let reason = reason.with("path", place.path.display());
        reason.with("problem", "the file system is mounted noexec")
    });
    Ok(Looked {
        installed,
        installed_size: size(&place.path),
        available: space.f_bavail.saturating_mul(space.f_frsize),
        fetched,
        links,
        forbidden: forbidden.or(noexec),
        changes: Changes::default(),
    })
}

/// Tries what an upgrade will do: a store on the same file system, a file beside the component, a link. Says
/// whether links can be made.
fn trial(place: &Place, installed: bool) -> Result<bool, Reason> {
    let forbidden = |operation| failed(ReasonCode::NotPermitted, operation, &place.path);
    let special = std::fs::symlink_metadata(&place.path).is_ok_and(|metadata| !metadata.is_file());
    if special {
        let error = io::Error::other(
            "it is a symbolic link or no regular file; give the component the path of a file",
        );
        return Err(forbidden("replace")(error));
    }
    make_store(place).map_err(failed(ReasonCode::NotPermitted, "create", &place.store))?;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    let same = device(&place.parent).and_then(|parent| Ok(parent == device(&place.versions())?));
    if !same.map_err(forbidden("look at"))? {
        return Err(forbidden("link")(io::ErrorKind::CrossesDevices.into()));
    }
    let temporary = &place.temporary;
    let tried = || -> io::Result<()> {
        let stored = place.versions().join(".trial.tmp");
        for path in [temporary, &stored] {
            remove_if_there(path)?;
        }
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&stored)?;
        // A mount of its own is another file system to a rename, whatever its device says.
        let moved = std::fs::rename(&stored, temporary);
        for path in [temporary, &stored] {
            remove_if_there(path)?;
        }
        moved
    };
    unless_full(tried()).map_err(failed(ReasonCode::NotPermitted, "write beside", &place.path))?;
    if !installed {
        return Ok(true);
    }
    match std::fs::hard_link(&place.path, temporary) {
        Ok(()) => remove_if_there(temporary).map_err(forbidden("remove a link to")),
        Err(error) if linkless(&error) => Ok(false),
        Err(error) => unless_full(Err(error)).map(|()| true).map_err(forbidden("link")),
    }
}
