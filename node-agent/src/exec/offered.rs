//! Bytes that a person at the node brought: copied beside the component, where a fetch finds them. What uses them
//! verifies them like anything fetched.

use std::{
    fs::{DirBuilder, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    Place,
    files::{failed, make_store, open, remove_if_there, sync_dir},
};

/// Copies an artifact's bytes from `source`, so that it need not be fetched. Blocks.
///
/// # Errors
/// [`ReasonCode::DigestMismatch`] where they are others; where they can't be read or written.
pub fn offer(place: &Place, digest: &Digest, source: &Path) -> Result<(), Reason> {
    let dir = place.offered();
    let (path, temporary) = (dir.join(digest.to_string()), dir.join(format!("{digest}.tmp")));
    let copied = || -> io::Result<Digest> {
        make_store(place)?;
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut from = open(source)?;
        let mut to =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 * 1024]);
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            to.write_all(&buffer[..read])?;
        }
        to.sync_all()?;
        Ok(Digest(hasher.finalize().into()))
    };
    let found = copied().map_err(failed(ReasonCode::StageFailed, "copy", source))?;
    let named = || -> io::Result<()> {
        if found == *digest {
            std::fs::rename(&temporary, &path)?;
        } else {
            remove_if_there(&temporary)?;
        }
        sync_dir(&dir)
    };
    named().map_err(failed(ReasonCode::StageFailed, "rename", &temporary))?;
    if found == *digest {
        return Ok(());
    }
    let reason = Reason::new(ReasonCode::DigestMismatch).with("actual", found).with("expected", digest);
    Err(reason.with("source", source.display()))
}

/// Moves offered bytes to where fetched ones arrive. Says whether there were any.
pub(super) fn take(place: &Place, digest: &Digest) -> Result<bool, Reason> {
    let offered = place.offered().join(digest.to_string());
    match std::fs::rename(&offered, place.part(digest)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(ReasonCode::StageFailed, "rename", &offered)(error)),
    }
}

/// Removes what was offered and not used.
pub(super) fn forget(place: &Place) {
    // What can't be removed now is removed after the next upgrade.
    let _ = std::fs::remove_dir_all(place.offered());
}
