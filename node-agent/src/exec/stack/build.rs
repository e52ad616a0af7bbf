//! Building a set and switching to it: a directory beside the others, written and read back, renamed into place, and
//! then the link. Everything up to the link's rename changes nothing that a start uses.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use upfleet_domain::reason::{Reason, ReasonCode};

use super::{Content, LINK, STACK, SetFiles, read};
use crate::{
    crash,
    exec::{
        Place,
        backup::linkless,
        files::{failed, make_store, relink, remove_if_there, sync_dir},
    },
};

/// Makes `set` the stack that the next start uses; `None` for the application alone.
///
/// # Errors
/// Why it could not be done. The next start then uses what it would have used before.
pub fn switch(place: &Place, set: Option<&SetFiles>) -> Result<(), Reason> {
    let link = place.current_stack();
    let wrong = |operation| failed(ReasonCode::SwapFailed, operation, &link);
    let Some(set) = set else {
        if remove_if_there(&link).map_err(wrong("remove"))? {
            crash::point("stack.unlinked");
            sync_dir(&place.stacks()).map_err(wrong("write to the disk"))?;
        }
        return Ok(());
    };
    if read::verify(&set.dir).is_err() {
        build(place, set).map_err(failed(ReasonCode::StageFailed, "write", &set.dir))?;
        read::verify(&set.dir)?;
    }
    crash::point("stack.built");
    let name = set.dir.file_name().unwrap_or_default();
    if fs::read_link(&link).is_ok_and(|found| found == Path::new(name)) {
        return sync_dir(&place.stacks()).map_err(wrong("write to the disk"));
    }
    let temporary = place.stacks().join(".current");
    remove_if_there(&temporary).map_err(wrong("remove"))?;
    relink(&set.dir.join(LINK), Path::new(name), &temporary).map_err(wrong("link"))?;
    crash::point("stack.linked");
    fs::rename(&temporary, &link).map_err(wrong("rename to"))?;
    crash::point("stack.switched");
    sync_dir(&place.stacks()).map_err(wrong("write to the disk"))
}

fn build(place: &Place, set: &SetFiles) -> io::Result<()> {
    make_store(place)?;
    let stacks = place.stacks();
    // The JVM may be another user's: it may go through, and read what is in a set, and list nothing else.
    for dir in [place.parent.join(".upfleet"), place.store.clone()] {
        let mode = fs::metadata(&dir)?.permissions().mode();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode | 0o011))?;
    }
    for (dir, mode) in [(&stacks, 0o755), (&place.journal(), 0o700)] {
        DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    }
    let name = set.dir.file_name().unwrap_or_default().to_string_lossy();
    let temporary = stacks.join(format!(".{name}"));
    remove_tree(&temporary)?;
    DirBuilder::new().mode(0o755).create(&temporary)?;
    for file in &set.files {
        let path = temporary.join(&file.name);
        match &file.content {
            Content::Bytes(bytes) => write(&path, bytes)?,
            Content::Version(digest) => link(&place.version(digest), &path)?,
        }
    }
    symlink(name.as_ref(), temporary.join(LINK))?;
    write(&temporary.join(STACK), &set.description)?;
    sync_dir(&temporary)?;
    crash::point("stack.written");
    if set.dir.exists() {
        // It is damaged, or this is not reached. A process that has its files open keeps them.
        let aside = stacks.join(format!(".damaged-{name}"));
        remove_tree(&aside)?;
        fs::rename(&set.dir, &aside)?;
        remove_tree(&aside)?;
    }
    fs::rename(&temporary, &set.dir)?;
    sync_dir(&stacks)?;
    sync_dir(&place.store)
}

fn write(path: &PathBuf, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn link(version: &Path, path: &PathBuf) -> io::Result<()> {
    match fs::hard_link(version, path) {
        Err(error) if linkless(&error) => write(path, &fs::read(version)?),
        linked => linked,
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
