//! Switching, forward and back: a version gets the component's name in one rename. Takes no space.

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    Place,
    files::{failed, hash_file, remove_if_there, sync_dir},
};
use crate::crash;

pub(super) fn put_in_place(place: &Place, digest: &Digest) -> Result<(), Reason> {
    let (path, version, temporary) = (&place.path, place.version(digest), &place.temporary);
    let synced = || {
        sync_dir(&place.parent).map_err(failed(ReasonCode::SwapFailed, "write to the disk", &place.parent))
    };
    if hash_file(path).is_ok_and(|installed| installed == *digest) {
        // Done before: only its durability is still open.
        return synced();
    }
    let found = hash_file(&version).map_err(failed(ReasonCode::SwapFailed, "read", &version))?;
    if found != *digest {
        return Err(Reason::new(ReasonCode::RollbackTargetDamaged)
            .with("state", digest.short())
            .with("actual", found)
            .with("expected", digest));
    }
    remove_if_there(temporary).map_err(failed(ReasonCode::SwapFailed, "remove", temporary))?;
    std::fs::hard_link(&version, temporary).map_err(failed(ReasonCode::SwapFailed, "link", &version))?;
    crash::point("switch.linked");
    std::fs::rename(temporary, path).map_err(failed(ReasonCode::SwapFailed, "rename to", path))?;
    crash::point("switch.renamed");
    synced()
}
