//! Staging: verified bytes get the metadata of what they will replace, and their place among the versions.

use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::{
    FirstInstall, Place,
    files::{failed, hash, hash_file, make_store, open, sync_dir},
    meta,
};
use crate::crash;

/// `is_patch`: a patch's jar, which replaces nothing.
pub(super) fn stage(
    place: &Place,
    first: &FirstInstall,
    digest: &Digest,
    is_patch: bool,
) -> Result<(), Reason> {
    let (part, version) = (place.part(digest), place.version(digest));
    make_store(place).map_err(failed(ReasonCode::StageFailed, "create", &place.store))?;
    if !part.exists() {
        let found = hash_file(&version).map_err(failed(ReasonCode::StageFailed, "read", &version))?;
        expect(found, digest)?;
        return named(place);
    }
    let file = open(&part).map_err(failed(ReasonCode::StageFailed, "open", &part))?;
    let give = if is_patch { meta::give_jar } else { meta::give };
    give(&file, place, first)
        .map_err(|(operation, error)| failed(ReasonCode::StageFailed, operation, &part)(error))?;
    crash::point("stage.metadata");
    // An error of fsync is final for this file: the kernel may have dropped the pages that it could not write.
    file.sync_all().map_err(failed(ReasonCode::StageFailed, "write to the disk", &part))?;
    crash::point("stage.synced");
    let file = open(&part).map_err(failed(ReasonCode::StageFailed, "open", &part))?;
    expect(hash(&file).map_err(failed(ReasonCode::StageFailed, "read back", &part))?, digest)?;
    std::fs::rename(&part, &version).map_err(failed(ReasonCode::StageFailed, "rename", &part))?;
    crash::point("stage.renamed");
    named(place)
}

/// Makes the version's new name durable, also where a crash came between the rename and this.
fn named(place: &Place) -> Result<(), Reason> {
    for dir in [place.versions(), place.incoming()] {
        sync_dir(&dir).map_err(failed(ReasonCode::StageFailed, "write to the disk", &dir))?;
    }
    Ok(())
}

fn expect(found: Digest, digest: &Digest) -> Result<(), Reason> {
    if found == *digest {
        return Ok(());
    }
    Err(Reason::new(ReasonCode::DigestMismatch)
        .with("actual", found)
        .with("expected", digest)
        .with("source", "the node's disk"))
}
