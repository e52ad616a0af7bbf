//! Staging: a verified archive becomes a directory of the store, with modes, owners and times, all of it on the disk and
//! read back before it gets its name.

use std::{fs::File, io, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use rustix::fs::{Timespec, Timestamps, futimens};
use upfleet_domain::{
    digest::Digest,
    files::{FilesSpec, Tree, judge},
    reason::{Reason, ReasonCode},
};

use super::{Directory, verify::unpack};
use crate::{
    crash,
    exec::{
        FirstInstall,
        archive::{Fault, Hashing},
        files::{failed, remove_if_there, sync_dir},
        meta,
        record::{Record, Store, inode},
        tree::{below, create_file, directories, now, open_dir, split, walk},
    },
};

impl Directory {
    pub(super) fn stage(&self, digest: &Digest, spec: &FilesSpec) -> Result<(), Reason> {
        self.prepare()?;
        self.settle()?;
        let store = self.load()?;
        if let Some(there) = self.there(&store, false)?
            && there.digest != *digest
        {
            judge(spec.on_local_change, &there.changes())?;
            if there.record.as_ref().is_some_and(|record| record.digest == *digest) {
                // It is the version that is staged anew: what became of it has another name from now on.
                self.back_up(&there.digest)?;
            }
        }
        let store = self.load()?;
        let part = self.place.part(digest);
        if self.has(digest) {
            remove_if_there(&part).map_err(failed(ReasonCode::StageFailed, "remove", &part))?;
            return self.named();
        }
        self.discard(&store, digest)?;
        let temporary = self.place.versions().join(format!(".{digest}.tmp"));
        let fail = |operation| failed(ReasonCode::StageFailed, operation, &temporary);
        super::prune::remove_tree(&temporary).map_err(fail("remove"))?;
        std::fs::create_dir(&temporary).map_err(fail("create"))?;
        // A time that no other version has: whoever caches by time and length sees the difference.
        let newest = store.records.iter().map(|record| record.time + 1).max().unwrap_or(0);
        let time = now().as_secs().max(newest);
        self.fill(&temporary, &part, spec, time)?;
        crash::point("stage.unpacked");
        self.finish(&temporary, spec).map_err(fail("write"))?;
        crash::point("stage.synced");
        let tree = Tree::from(spec);
        let found = walk(&temporary, None).map_err(fail("read back"))?;
        if found != tree {
            return Err(Reason::new(ReasonCode::DigestMismatch)
                .with("actual", found.digest(&[]))
                .with("expected", tree.digest(&[]))
                .with("source", "the node's disk"));
        }
        let inode = inode(&temporary).map_err(fail("read back"))?.unwrap_or_default();
        let record = Record {
            digest: *digest,
            inode,
            tree,
            released: None,
            preserve: spec.preserve.clone(),
            rule: Some(spec.on_local_change),
            carrying: None,
            time,
        };
        record.write(&self.place).map_err(failed(ReasonCode::StageFailed, "record", &self.place.store))?;
        crash::point("stage.recorded");
        std::fs::rename(&temporary, self.free(digest)).map_err(fail("rename"))?;
        crash::point("stage.renamed");
        self.named()?;
        remove_if_there(&part).map_err(failed(ReasonCode::StageFailed, "remove", &part))?;
        Ok(())
    }

    /// Makes the version's name durable.
    fn named(&self) -> Result<(), Reason> {
        let dir = self.place.versions();
        sync_dir(&dir).map_err(failed(ReasonCode::StageFailed, "write to the disk", &dir))
    }

    /// What is kept under that digest is not what it was: it goes, unless it is what is in place.
    fn discard(&self, store: &Store, digest: &Digest) -> Result<(), Reason> {
        let Some(record) = store.record(digest) else { return Ok(()) };
        let Some(path) = store.locate(record) else { return Ok(()) };
        let fail = |error| failed(ReasonCode::StageFailed, "remove", path)(error);
        let real = self.real().map_err(fail)?;
        if real.as_deref() == Some(path) {
            // It is named by what became of it from now on, and is backed up under that name before the switch.
            return Ok(());
        }
        record.remove(&self.place).map_err(fail)?;
        super::prune::remove_tree(path).map_err(fail)
    }

    fn fill(&self, temporary: &Path, part: &Path, spec: &FilesSpec, time: u64) -> Result<(), Reason> {
        let fail = |error| failed(ReasonCode::StageFailed, "unpack into", temporary)(error);
        let root = open_dir(temporary).map_err(fail)?;
        let owner = meta::Owner::find(&self.rules.first).map_err(fail)?;
        unpack(part, spec, &mut |entry, bytes| {
            let (dir, name) = split(&entry.path);
            let mut file = create_file(&below(&root, dir, true)?, name)?;
            let mut hashing = Hashing::new(bytes);
            io::copy(&mut hashing, &mut file)?;
            dress(&file, &owner, file_mode(&self.rules.first, entry.executable), time).map_err(Fault::Io)?;
            Ok(hashing.digest())
        })
    }

    /// Directories get their mode and owner once they are full, the deepest first, and all goes to the disk.
    fn finish(&self, temporary: &Path, spec: &FilesSpec) -> io::Result<()> {
        let root = open_dir(temporary)?;
        let owner = meta::Owner::find(&self.rules.first)?;
        let mode = directory_mode(&self.rules.first);
        for entry in &spec.entries {
            let (dir, name) = split(&entry.path);
            crate::exec::tree::open_file(&below(&root, dir, false)?, name)?.sync_all()?;
        }
        for dir in directories(spec.entries.iter().map(|entry| entry.path.as_str())) {
            let dir = File::from(below(&root, dir, false)?);
            owner.give(&dir)?;
            dir.set_permissions(std::fs::Permissions::from_mode(mode))?;
            dir.sync_all()?;
        }
        Ok(())
    }
}

/// Owner first, since changing it clears bits of the mode; times last, since all else changes them.
pub(super) fn dress(file: &File, owner: &meta::Owner, mode: u32, time: u64) -> io::Result<()> {
    owner.give(file)?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    set_time(file, Duration::from_secs(time))
}

pub(super) fn set_time(file: &File, time: Duration) -> io::Result<()> {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let time = Timespec { tv_sec: seconds, tv_nsec: time.subsec_nanos().into() };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

/// The component's mode, without the right to execute what is no program.
pub(super) fn file_mode(first: &FirstInstall, executable: bool) -> u32 {
    if executable { first.mode & 0o777 | 0o100 } else { first.mode & 0o666 }
}

/// The component's mode, and whoever may read may also enter.
pub(super) fn directory_mode(first: &FirstInstall) -> u32 {
    first.mode & 0o777 | (first.mode & 0o444) >> 2 | 0o700
}
