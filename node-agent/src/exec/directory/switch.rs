//! Switching, forward and back: one rename of a link, or one exchange of two names. Whoever looks up the component's path
//! at any moment finds the old version or the new one, complete.

use std::{
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
};

use super::Directory;
use crate::{
    config::SwapMode,
    crash,
    exec::{
        files::{failed, relink, remove_if_there, sync_dir},
        record::{LINK, Store, inode, names},
    },
};

impl Directory {
    pub(super) fn put_in_place(&self, digest: &Digest) -> Result<(), Reason> {
        self.prepare()?;
        self.settle()?;
        let store = self.load()?;
        let there = self.there(&store, true)?;
        if there.as_ref().is_some_and(|there| there.digest == *digest) {
            // Done before: only its durability is still open.
            return self.synced();
        }
        let Some((record, dir)) = self.intact(digest)? else {
            return Err(self.damaged(&store, digest));
        };
        let before = record.clone();
        let record = self.carry(there.as_ref(), record, &dir)?;
        if record != before {
            record.write(&self.place).map_err(failed(ReasonCode::SwapFailed, "record", &self.place.store))?;
        }
        crash::point("switch.recorded");
        let path = &self.place.path;
        match self.rules.swap {
            SwapMode::Link => self.link(&dir),
            SwapMode::Exchange => exchange_or_move(&dir, path),
        }
        .map_err(failed(ReasonCode::SwapFailed, "switch", path))?;
        crash::point("switch.renamed");
        self.synced()?;
        self.settle()
    }

    fn damaged(&self, store: &Store, digest: &Digest) -> Reason {
        let located = store.record(digest).and_then(|record| store.locate(record));
        let actual = if located.is_some() { "other files" } else { "nothing: it is gone" };
        Reason::new(ReasonCode::RollbackTargetDamaged)
            .with("state", digest.short())
            .with("actual", actual)
            .with("expected", digest)
    }

    /// The link gets another target in one rename; a real directory in its place goes where the link was made.
    pub(super) fn link(&self, dir: &Path) -> io::Result<()> {
        let (path, temporary) = (&self.place.path, &self.place.temporary);
        // A relative target, so that the component can be moved together with its store.
        let target = dir.strip_prefix(&self.place.parent).unwrap_or(dir);
        // It only saves space for a way back: a file system that is full, or has no hard links, switches all the same.
        if let Err(error) = self.keep_link() {
            tracing::debug!(path = %path.display(), %error, "no link is kept for the way back");
        }
        remove_if_there(temporary)?;
        relink(&self.kept_link(dir), target, temporary)?;
        crash::point("switch.linked");
        if inode(path)?.is_some() { exchange(temporary, path) } else { std::fs::rename(temporary, path) }
    }

    /// Where the link to a version is kept, so that putting that back takes no space: a long link takes some.
    fn kept_link(&self, dir: &Path) -> PathBuf {
        let name = dir.file_name().unwrap_or_default().to_string_lossy();
        self.place.trees().join(format!("{name}{LINK}"))
    }

    /// Keeps a link to what is in place: the very link, or for a real directory one to where it will lie.
    fn keep_link(&self) -> io::Result<()> {
        let path = &self.place.path;
        let Some(real) = self.real()? else { return Ok(()) };
        let kept = if real == *path {
            let store = Store::load(&self.place)?;
            let Some(record) = inode(path)?.and_then(|inode| store.of_inode(inode).next()) else {
                return Ok(());
            };
            let dir = self.free(&record.digest);
            let kept = self.kept_link(&dir);
            remove_if_there(&kept)?;
            symlink(dir.strip_prefix(&self.place.parent).unwrap_or(&dir), kept)
        } else {
            std::fs::hard_link(path, self.kept_link(&real))
        };
        match kept {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            kept => kept,
        }
    }

    fn synced(&self) -> Result<(), Reason> {
        for dir in [&self.place.versions(), &self.place.parent] {
            sync_dir(dir).map_err(failed(ReasonCode::SwapFailed, "write to the disk", dir))?;
        }
        Ok(())
    }

    /// Tidies up what an exchange left: directories get their names in the store, links that were exchanged go. Where a
    /// crash came in between, this is done by the next step.
    pub(super) fn settle(&self) -> Result<(), Reason> {
        let settled = || -> io::Result<()> {
            let temporary = &self.place.temporary;
            let store = Store::load(&self.place)?;
            let real = self.real()?;
            match inode(temporary)? {
                None => drop(remove_if_there(temporary)?),
                Some(inode) => {
                    let Some(record) = store.of_inode(inode).next() else {
                        let problem = format!("`{}` is not the agent's; move it away", temporary.display());
                        return Err(io::Error::other(problem));
                    };
                    std::fs::rename(temporary, self.free(&record.digest))?;
                }
            }
            for (name, path) in
                names(&self.place.versions())?.into_iter().filter(|(name, _)| !name.starts_with('.'))
            {
                let Some(inode) = inode(&path)? else {
                    if std::fs::symlink_metadata(&path)?.is_symlink() {
                        remove_if_there(&path)?;
                    }
                    continue;
                };
                let named = |digest: &Digest| name.starts_with(&digest.to_string());
                let mut claims = store.of_inode(inode).peekable();
                let wrong =
                    claims.peek().is_some() && !store.of_inode(inode).any(|record| named(&record.digest));
                // A directory that the link names keeps its name as long as it does.
                if let Some(record) = claims.next().filter(|_| wrong && real.as_deref() != Some(&path)) {
                    std::fs::rename(&path, self.free(&record.digest))?;
                }
            }
            Ok(())
        };
        settled().map_err(failed(ReasonCode::SwapFailed, "tidy up beside", &self.place.path))
    }
}

/// A version takes the component's path; what was there takes the version's name.
fn exchange_or_move(dir: &Path, path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => exchange(dir, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => std::fs::rename(dir, path),
        Err(error) => Err(error),
    }
}

pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?)
}
