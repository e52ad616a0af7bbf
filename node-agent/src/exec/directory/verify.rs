//! Verifying: an archive against the manifest before anything is unpacked, and versions against their records.

use std::{collections::BTreeMap, io, io::Read, path::Path};

use rustix::fs::statvfs;
use upfleet_domain::{
    digest::Digest,
    files::{FileEntry, FilesSpec},
    reason::{Reason, ReasonCode},
};

use super::Directory;
use crate::exec::{
    archive::{self, Fault, Hashing, Limits, Member},
    files::{failed, hash_file, remove_if_there},
    tree::walk,
};

/// What a file takes on the disk at most beside its bytes.
const PER_FILE: u64 = 8192;

/// Bytes that the files of a release take at most, once they are unpacked.
#[must_use]
pub fn unpacked(spec: &FilesSpec) -> u64 {
    spec.size().saturating_add(PER_FILE.saturating_mul(spec.entries.len() as u64))
}

impl Directory {
    pub(super) fn verify(&self, digest: &Digest, spec: &FilesSpec) -> Result<(), Reason> {
        let part = self.place.part(digest);
        if self.has(digest) {
            // A step that is done again, or what an aborted download left.
            remove_if_there(&part).map_err(failed(ReasonCode::StageFailed, "remove", &part))?;
            return Ok(());
        }
        let found = hash_file(&part).map_err(failed(ReasonCode::StageFailed, "read", &part))?;
        if found != *digest {
            let _ = std::fs::remove_file(&part);
            return Err(Reason::new(ReasonCode::DigestMismatch)
                .with("actual", found)
                .with("expected", digest)
                .with("source", "the node's disk"));
        }
        unpack(&part, spec, &mut |_, bytes| {
            let mut hashing = Hashing::new(bytes);
            io::copy(&mut hashing, &mut io::sink())?;
            Ok(hashing.digest())
        })?;
        self.room(spec)
    }

    /// Whether the unpacked files have room.
    fn room(&self, spec: &FilesSpec) -> Result<(), Reason> {
        let dir = self.place.versions();
        let space = statvfs(&dir).map_err(io::Error::from);
        let space = space.map_err(failed(ReasonCode::StageFailed, "read", &dir))?;
        let available = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = unpacked(spec);
        if available >= needed {
            return Ok(());
        }
        let reason = Reason::new(ReasonCode::DiskFull).with("path", self.place.path.display());
        Err(reason.with("available", available).with("needed", needed))
    }

    pub(super) fn verify_kept(&self, digest: &Digest) -> Result<(), Reason> {
        let jar = self.place.version(digest);
        if hash_file(&jar).is_ok_and(|found| found == *digest) {
            return Ok(());
        }
        let store = self.load()?;
        let damaged = |actual: String| {
            Err(Reason::new(ReasonCode::RollbackTargetDamaged)
                .with("state", digest.short())
                .with("actual", actual)
                .with("expected", digest))
        };
        let located = store.record(digest).and_then(|record| Some((record, store.locate(record)?)));
        let Some((record, path)) = located else {
            // What is in place needs no record to be put back where it lies.
            let there = self.there(&store, false)?;
            let same = there.is_some_and(|there| there.digest == *digest);
            return if same { Ok(()) } else { damaged("nothing: it is gone".to_owned()) };
        };
        match walk(path, None) {
            Ok(found) => {
                let drift = record.drift(&found);
                let names = || drift.list(3).join(", ");
                if drift.is_empty() { Ok(()) } else { damaged(format!("other files: {}", names())) }
            }
            Err(error) => damaged(format!("nothing: {error}")),
        }
    }
}

/// What is done with each file: its bytes are consumed, and their digest is the answer.
pub(super) type Take<'a> = &'a mut dyn FnMut(&FileEntry, &mut dyn Read) -> Result<Digest, Fault>;

/// Reads an archive against the manifest: every entry is named there with its length and digest, and every file that is
/// named is there.
pub(super) fn unpack(part: &Path, spec: &FilesSpec, take: Take<'_>) -> Result<(), Reason> {
    let mut expected: BTreeMap<&str, &FileEntry> =
        spec.entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let limits = Limits { files: spec.entries.len(), bytes: spec.size() };
    let mut visit = |member: &Member, bytes: &mut dyn Read| {
        let hostile =
            |problem: &str| Fault::Hostile { entry: member.path.clone(), problem: problem.to_owned() };
        let entry =
            expected.remove(member.path.as_str()).ok_or_else(|| hostile("the manifest does not name it"))?;
        if entry.size != member.size {
            return Err(hostile("its length is not the manifest's"));
        }
        let digest = take(entry, bytes)?;
        if digest == entry.digest {
            return Ok(());
        }
        Err(Fault::Reason(
            Reason::new(ReasonCode::DigestMismatch)
                .with("actual", digest)
                .with("expected", entry.digest)
                .with("source", format!("`{}` of the archive", entry.path)),
        ))
    };
    archive::read(part, limits, &mut visit).map_err(|fault| fault.reason(part))?;
    match expected.keys().next() {
        None => Ok(()),
        Some(missing) => Err(Reason::new(ReasonCode::ArchiveHostile)
            .with("entry", missing)
            .with("problem", "the manifest names it, the archive does not have it")),
    }
}
