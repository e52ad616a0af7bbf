//! Looking before an upgrade: what is installed and changed, how much room there is, and what the agent may do. Leaves no
//! trace.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::Path,
};

use rustix::fs::{StatVfsMountFlags, statvfs};
use upfleet_domain::{
    digest::Digest,
    reason::{Reason, ReasonCode},
    release::MAX_ARTIFACT_BYTES,
};

use super::{Directory, switch::exchange};
use crate::{
    config::SwapMode,
    exec::{
        Looked,
        files::{failed, remove_if_there, unless_full},
        meta,
        record::inode,
    },
};

pub(super) fn look(directory: &Directory, wanted: &[Digest], runs: bool) -> Result<Looked, Reason> {
    let place = &directory.place;
    let store = directory.load()?;
    let there = directory.there(&store, true)?;
    let part = |digest: &Digest| std::fs::metadata(place.part(digest)).map_or(0, |metadata| metadata.len());
    // What lies there unpacked is not measured: nothing of it is fetched, however long it is.
    let lies = |digest: &Digest| if directory.has(digest) { MAX_ARTIFACT_BYTES } else { part(digest) };
    let fetched = wanted.iter().map(lies).fold(0, u64::saturating_add);
    let space = statvfs(&place.parent).map_err(io::Error::from);
    let space = space.map_err(failed(ReasonCode::StageFailed, "read", &place.parent))?;
    let noexec = runs && directory.rules.executes && space.f_flag.contains(StatVfsMountFlags::NOEXEC);
    let noexec = noexec.then(|| {
        let reason = Reason::new(ReasonCode::NotPermitted).with("operation", "run a program of");
        reason.with("path", place.path.display()).with("problem", "the file system is mounted noexec")
    });
    Ok(Looked {
        installed: there.as_ref().map(|there| there.digest),
        installed_size: 0,
        available: space.f_bavail.saturating_mul(space.f_frsize),
        fetched,
        // What is in place stays where it is until the switch moves it.
        links: true,
        forbidden: trial(directory).err().or(noexec),
        changes: there.map(|there| there.changes()).unwrap_or_default(),
    })
}

/// Tries what an upgrade will do: a store on the same file system, files of the right owner, a switch.
fn trial(directory: &Directory) -> Result<(), Reason> {
    let place = &directory.place;
    let forbidden = |operation| failed(ReasonCode::NotPermitted, operation, &place.path);
    special(directory)?;
    directory.prepare()?;
    directory.settle()?;
    let device = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.dev());
    let present = directory.real().map_err(forbidden("look at"))?.unwrap_or_else(|| place.parent.clone());
    let devices =
        || Ok::<_, io::Error>([device(&place.parent)?, device(&place.versions())?, device(&present)?]);
    let [parent, versions, present] = devices().map_err(forbidden("look at"))?;
    if parent != versions || parent != present {
        return Err(forbidden("switch")(io::ErrorKind::CrossesDevices.into()));
    }
    let temporary = &place.temporary;
    let tried = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
        let given = meta::Owner::find(&directory.rules.first).and_then(|owner| owner.give(&file));
        remove_if_there(temporary)?;
        given
    };
    unless_full(tried()).map_err(failed(ReasonCode::NotPermitted, "write beside", &place.path))?;
    let real = inode(&place.path).map_err(forbidden("look at"))?.is_some();
    if real || directory.rules.swap == SwapMode::Exchange {
        unless_full(try_exchange(&place.versions())).map_err(|error| {
            let text = format!("its file system can't exchange two names ({error}); use swap = \"link\" and no real directory");
            forbidden("exchange")(io::Error::new(io::ErrorKind::Unsupported, text))
        })?;
    }
    Ok(())
}

/// Refuses what is no directory and no link of the agent's own.
fn special(directory: &Directory) -> Result<(), Reason> {
    let path = &directory.place.path;
    let refuse = |text: &str| {
        Err(failed(ReasonCode::NotPermitted, "replace", path)(io::Error::other(text.to_owned())))
    };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() && directory.real().is_ok_and(|real| real.is_none()) => refuse(
            "it is a symbolic link that is not the agent's; put the directory itself there, or remove the link",
        ),
        Ok(metadata) if !metadata.is_dir() && !metadata.is_symlink() => {
            refuse("it is no directory; give the component the path of one, or set kind = \"binary\"")
        }
        _ => Ok(()),
    }
}

fn try_exchange(versions: &Path) -> io::Result<()> {
    let (one, other) = (versions.join(".try-1"), versions.join(".try-2"));
    for file in [&one, &other] {
        super::prune::remove_tree(file)?;
    }
    // Empty files, which take less than directories do.
    let make = |path| OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map(drop);
    let exchanged = make(&one).and_then(|()| make(&other)).and_then(|()| exchange(&one, &other));
    for file in [&one, &other] {
        remove_if_there(file)?;
    }
    exchanged
}
