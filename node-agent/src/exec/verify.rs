//! Verifying: bytes on the disk against the digest in their name. Nothing is written.

use std::io;

use upfleet_domain::{
    digest::Digest,
    patch::PatchSpec,
    reason::{Reason, ReasonCode},
    upgrade::preflight::Elf,
};

use super::{
    Place, elf,
    files::{failed, hash_file, remove_if_there},
    patch_jar,
};

/// Hashes what was fetched, or what is kept already under that digest, and reads its ELF header.
pub(super) fn fetched(place: &Place, digest: &Digest) -> Result<Option<Elf>, Reason> {
    let (part, version) = (place.part(digest), place.version(digest));
    // A step that is done again after a crash finds the bytes staged already; what an aborted download left
    // beside them is not the artifact.
    if part.exists() && hash_file(&version).is_ok_and(|kept| kept == *digest) {
        remove_if_there(&part).map_err(failed(ReasonCode::StageFailed, "remove", &part))?;
    }
    let path = if part.exists() { part } else { version };
    let found = hash_file(&path).map_err(failed(ReasonCode::StageFailed, "read", &path))?;
    if found != *digest {
        let _ = std::fs::remove_file(&path);
        return Err(Reason::new(ReasonCode::DigestMismatch)
            .with("actual", found)
            .with("expected", digest)
            .with("source", "the node's disk"));
    }
    elf(&path).map_err(failed(ReasonCode::StageFailed, "read", &path))
}

/// Whether a kept version, or what is installed, is still what was kept.
pub(super) fn kept(place: &Place, digest: &Digest) -> Result<(), Reason> {
    let path = place.version(digest);
    let found = hash_file(&path);
    if found.as_ref().is_ok_and(|found| found == digest)
        || hash_file(&place.path).is_ok_and(|installed| installed == *digest)
    {
        return Ok(());
    }
    let actual = match found {
        Ok(found) => found.to_string(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "nothing: it is gone".to_owned(),
        Err(error) => format!("nothing: {error}"),
    };
    Err(Reason::new(ReasonCode::RollbackTargetDamaged)
        .with("state", digest.short())
        .with("actual", actual)
        .with("expected", digest))
}

/// Whether what was fetched is the jar that a patch's manifest describes.
pub(super) fn patch(place: &Place, digest: &Digest, spec: &PatchSpec) -> Result<(), Reason> {
    let part = place.part(digest);
    patch_jar::verify(&(if part.exists() { part } else { place.version(digest) }), spec)
}
