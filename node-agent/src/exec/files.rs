//! What the steps share: opening without following links, hashing from the disk, syncing, and saying what failed.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use rustix::fs::{Advice, OFlags, statvfs};
use sha2::{Digest as _, Sha256};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::Place;

/// Opens a regular file for reading. A symbolic link is not followed: nobody may lead the agent elsewhere.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// SHA-256 of a file as it lies on the disk, as far as the kernel can be asked to look there.
///
/// # Errors
/// Where it can't be read, or is no regular file.
pub fn hash_file(path: &Path) -> io::Result<Digest> {
    hash(&open(path)?)
}

pub(super) fn hash(mut file: &File) -> io::Result<Digest> {
    // Only clean pages are dropped, so this reads the disk where the file was synced before.
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest(hasher.finalize().into())),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the store's directories, for the agent alone.
pub(super) fn make_store(place: &Place) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for dir in [place.incoming(), place.versions()] {
        if !dir.is_dir() {
            builder.create(&dir)?;
            for parent in dir.ancestors().skip(1).take_while(|above| above.starts_with(&place.parent)) {
                sync_dir(parent)?;
            }
        }
    }
    Ok(())
}

/// Lets others pass through a directory to what they know the name of; they can't list it.
pub(super) fn open_way(dir: &Path) -> io::Result<()> {
    let mode = std::fs::metadata(dir)?.permissions().mode();
    if mode & 0o011 == 0o011 {
        return Ok(());
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode & 0o7777 | 0o011))
}

/// Removes a file that may not be there.
pub(super) fn remove_if_there(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the link `path` to `target`: another name of the link `kept`, which takes no space, where that leads there.
pub(super) fn relink(kept: &Path, target: &Path, path: &Path) -> io::Result<()> {
    if std::fs::read_link(kept).is_ok_and(|found| found == target) && std::fs::hard_link(kept, path).is_ok() {
        return Ok(());
    }
    symlink(target, path)
}

/// A trial that only found the disk full: how much room there has to be is judged elsewhere, and a way back needs none.
pub(super) fn unless_full(trial: io::Result<()>) -> io::Result<()> {
    match trial {
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            Ok(())
        }
        trial => trial,
    }
}

/// Says what failed: which operation on which file, with a clear text for what people meet most.
pub(crate) fn failed(
    code: ReasonCode,
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> Reason {
    let (at, path) = (path.to_owned(), path.display().to_string());
    move |error| {
        if let io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded = error.kind() {
            let full = full(&at).with("operation", operation);
            return full.with("problem", problem(&error));
        }
        let code = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ReasonCode::NotPermitted,
            _ => code,
        };
        let reason = Reason::new(code).with("operation", operation).with("path", path);
        reason.with("problem", problem(&error))
    }
}

/// What is said where a file system took no more, for bytes or for names.
fn full(path: &Path) -> Reason {
    let space = path.ancestors().find_map(|above| statvfs(above).ok());
    let available = space.as_ref().map_or(0, |space| space.f_bavail.saturating_mul(space.f_frsize));
    let names = space.is_some_and(|space| space.f_files > 0 && space.f_favail == 0);
    let reason = Reason::new(ReasonCode::DiskFull).with("path", path.display());
    reason.with("available", available).with("needed", if names { "free inodes" } else { "more" })
}

fn problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "the file system is mounted read-only".to_owned(),
        io::ErrorKind::CrossesDevices => "it lies on another file system (a bind mount?)".to_owned(),
        io::ErrorKind::ExecutableFileBusy => "the file is open for writing or runs".to_owned(),
        io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        io::ErrorKind::QuotaExceeded => "the disk quota is used up".to_owned(),
        io::ErrorKind::ResourceBusy => "it is a mount point or in use".to_owned(),
        _ => error.to_string(),
    }
}
