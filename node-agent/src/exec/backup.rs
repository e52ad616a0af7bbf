//! Backing up: what is installed gets a second name among the versions. A link where that is possible, so that
//! neither keeping nor putting back takes space.

use std::{fs::OpenOptions, io, os::unix::fs::OpenOptionsExt as _, path::Path};

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    Place,
    files::{failed, hash_file, make_store, open, remove_if_there, sync_dir},
    meta,
};
use crate::crash;

pub(super) fn back_up(place: &Place, digest: &Digest) -> Result<(), Reason> {
    let path = &place.path;
    let version = place.version(digest);
    let installed = hash_file(path).map_err(failed(ReasonCode::StageFailed, "read", path))?;
    if installed != *digest {
        let reason = Reason::new(ReasonCode::Drifted).with("actual", installed);
        return Err(reason.with("recorded", digest));
    }
    make_store(place).map_err(failed(ReasonCode::StageFailed, "create", &place.store))?;
    let dir = place.versions();
    let named = || sync_dir(&dir).map_err(failed(ReasonCode::StageFailed, "write to the disk", &dir));
    if hash_file(&version).is_ok_and(|kept| kept == *digest) {
        // Perhaps renamed just before a crash: its name must be on the disk before another takes its place.
        return named();
    }
    let temporary = place.versions().join(format!(".{digest}.tmp"));
    remove_if_there(&temporary).map_err(failed(ReasonCode::StageFailed, "remove", &temporary))?;
    let file = open(path).map_err(failed(ReasonCode::StageFailed, "open", path))?;
    // What somebody else installed may not be on the disk yet.
    file.sync_all().map_err(failed(ReasonCode::StageFailed, "write to the disk", path))?;
    match std::fs::hard_link(path, &temporary) {
        Ok(()) => {}
        // Linking to others' files may be forbidden (fs.protected_hardlinks); reading them is not.
        Err(error) if linkless(&error) => copy(path, &temporary, digest)?,
        Err(error) => return Err(failed(ReasonCode::StageFailed, "link", path)(error)),
    }
    crash::point("backup.linked");
    std::fs::rename(&temporary, &version).map_err(failed(ReasonCode::StageFailed, "rename", &temporary))?;
    crash::point("backup.renamed");
    named()
}

pub(super) fn linkless(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::TooManyLinks, io::ErrorKind::Unsupported];
    kinds.contains(&error.kind())
}

fn copy(path: &Path, to: &Path, digest: &Digest) -> Result<(), Reason> {
    let copied = || -> io::Result<()> {
        let mut old = open(path)?;
        let mut new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut old, &mut new)?;
        meta::copy(&old, &new).map_err(|(_, error)| error)?;
        new.sync_all()
    };
    copied().map_err(failed(ReasonCode::StageFailed, "copy", path))?;
    match hash_file(to) {
        Ok(found) if found == *digest => Ok(()),
        Ok(_) => Err(failed(ReasonCode::StageFailed, "copy", path)(io::Error::other("the copy differs"))),
        Err(error) => Err(failed(ReasonCode::StageFailed, "read back", to)(error)),
    }
}
