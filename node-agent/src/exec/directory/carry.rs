//! Carrying over: what belongs to the node, and what is to be kept of local changes, goes from the version in place into
//! the one that takes it, just before the switch. The version in place is only read.

use std::{collections::BTreeSet, fs::File, io, os::fd::OwnedFd, path::Path};

use rustix::fs::{AtFlags, renameat, symlinkat, unlinkat};
use upfleet_domain::{
    files::{Node, OnLocalChange, Tree, judge, matches_any},
    reason::{Reason, ReasonCode},
};

use super::{Directory, There, stage::set_time};
use crate::{
    crash,
    exec::{
        files::failed,
        meta,
        record::Record,
        tree::{below, create_file, directories, open_dir, open_file, split, walk},
    },
};

/// A file on its way, beside its place.
const TEMPORARY: &str = ".upfleet-carried.tmp";

impl Directory {
    /// Makes `dir`, the directory of `record`, ready to take the place of what is there now, and says how it is recorded
    /// from now on.
    pub(super) fn carry(
        &self,
        there: Option<&There>,
        mut record: Record,
        dir: &Path,
    ) -> Result<Record, Reason> {
        let fresh = record.rule.take();
        let Some(there) = there else { return Ok(record) };
        let kept = match fresh {
            Some(rule) => judge(rule, &there.changes())?,
            // An earlier state comes back as it was.
            None => Vec::new(),
        };
        let node_owned =
            union(there.record.as_ref().map_or(&[], |record| &record.preserve), &record.preserve);
        let carried = |path: &String| matches_any(&node_owned, path) || kept.contains(path);
        let copies = || there.tree.0.iter().filter(|(path, _)| carried(path));
        let fail = |error| failed(ReasonCode::SwapFailed, "carry local files into", dir)(error);
        self.intend(&mut record, there, &kept, fresh)?;
        let present = walk(dir, None).map_err(fail)?;
        let (from, to) = (open_dir(&there.real).map_err(fail)?, open_dir(dir).map_err(fail)?);
        let mut touched = BTreeSet::new();
        for (path, node) in copies() {
            if present.0.get(path) != Some(node) && copy(&from, &to, path, node).map_err(fail)? {
                touched.insert(path.as_str());
                crash::point("switch.carried");
            }
        }
        // What the node has removed since stays removed, unless the release brings it for the first time.
        let stale = present.0.keys().filter(|path| {
            matches_any(&node_owned, path)
                && !there.tree.0.contains_key(*path)
                && !(fresh.is_some() && record.tree.0.contains_key(*path))
        });
        for path in stale {
            let (parent, name) = split(path);
            below(&to, parent, false)
                .and_then(|parent| Ok(unlinkat(&parent, name, AtFlags::empty())?))
                .map_err(fail)?;
            touched.insert(path);
        }
        settle_directories(&from, &to, &touched, &record).map_err(fail)?;
        remember(&mut record, there, kept, node_owned);
        Ok(record)
    }

    /// Writes down what is about to be carried over, so that a crash in its middle leaves no version that looks damaged.
    fn intend(
        &self,
        record: &mut Record,
        there: &There,
        kept: &[String],
        fresh: Option<OnLocalChange>,
    ) -> Result<(), Reason> {
        let nodes = kept.iter().filter_map(|path| Some((path.clone(), there.tree.0.get(path)?.clone())));
        let intended = Tree(nodes.collect());
        let before = record.carrying.take().unwrap_or_default();
        if before.0.keys().any(|path| !intended.0.contains_key(path)) {
            // The release's file was replaced by one that is not to be kept any more.
            return Err(Reason::new(ReasonCode::RollbackTargetDamaged)
                .with("state", record.digest.short())
                .with("actual", "files carried over by an attempt that was interrupted")
                .with("expected", record.digest));
        }
        if intended.0.is_empty() {
            return Ok(());
        }
        let intent = Record { carrying: Some(intended), rule: fresh, ..record.clone() };
        intent.write(&self.place).map_err(failed(ReasonCode::SwapFailed, "record", &self.place.path))
    }
}

fn union(one: &[String], other: &[String]) -> Vec<String> {
    let all: BTreeSet<&String> = one.iter().chain(other).collect();
    all.into_iter().cloned().collect()
}

/// What was kept is no drift from now on, but still a change of what the release had.
fn remember(record: &mut Record, there: &There, kept: Vec<String>, node_owned: Vec<String>) {
    record.preserve = node_owned;
    if !kept.is_empty() && record.released.is_none() {
        record.released = Some(record.tree.clone());
    }
    for path in kept {
        if let Some(node) = there.tree.0.get(&path) {
            record.tree.0.insert(path, node.clone());
        }
    }
}

/// Copies one file or link as it is. `false` for what can't be copied.
fn copy(from: &OwnedFd, to: &OwnedFd, path: &str, node: &Node) -> io::Result<bool> {
    let (parent, name) = split(path);
    let source = below(from, parent, false)?;
    let target = below(to, parent, true)?;
    match unlinkat(&target, TEMPORARY, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match node {
        Node::File { .. } => {
            let mut old = open_file(&source, name)?;
            let mut new = create_file(&target, TEMPORARY)?;
            io::copy(&mut old, &mut new)?;
            meta::copy(&old, &new).map_err(|(_, error)| error)?;
            let time = old.metadata()?.modified()?;
            set_time(&new, time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default())?;
            new.sync_all()?;
        }
        Node::Link { target: points } => symlinkat(points.as_str(), &target, TEMPORARY)?,
        Node::Special => return Ok(false),
    }
    renameat(&target, TEMPORARY, &target, name)?;
    Ok(true)
}

/// Directories that came with what was carried are as they were; all names go to the disk.
fn settle_directories(
    from: &OwnedFd,
    to: &OwnedFd,
    touched: &BTreeSet<&str>,
    record: &Record,
) -> io::Result<()> {
    if touched.is_empty() {
        return Ok(());
    }
    let released: BTreeSet<&str> =
        directories(record.tree.0.keys().map(String::as_str)).into_iter().collect();
    for dir in directories(touched.iter().copied()) {
        let target = File::from(below(to, dir, false)?);
        if !released.contains(dir) {
            let source = File::from(below(from, dir, false)?);
            meta::copy(&source, &target).map_err(|(_, error)| error)?;
        }
        target.sync_all()?;
    }
    Ok(())
}
