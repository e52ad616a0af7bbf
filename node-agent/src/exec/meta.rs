//! Metadata: mode, owner, extended attributes and capabilities pass from what is replaced to what replaces it.

use std::{
    fs::File,
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
};

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

use super::{Place, files::open};

/// What the file of a first install is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstInstall {
    /// Permission bits.
    pub mode: u32,
    /// Owner by name or number; the agent's own user where `None`.
    pub owner: Option<String>,
    /// Group by name or number.
    pub group: Option<String>,
}

/// Gives `file` the metadata of what is installed, or of a first install. On failure it says at what.
pub(super) fn give(
    file: &File,
    place: &Place,
    first: &FirstInstall,
) -> Result<(), (&'static str, io::Error)> {
    match open(&place.path) {
        Ok(old) => copy(&old, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => begin(file, first),
        Err(error) => Err(("read the metadata for", error)),
    }
}

/// Gives a patch's jar what lets those read it who read what is installed: owner, group and the bits for reading and
/// writing, and nothing that would let anybody do more. Of a directory, those of a first install.
pub(super) fn give_jar(
    file: &File,
    place: &Place,
    first: &FirstInstall,
) -> Result<(), (&'static str, io::Error)> {
    let installed = std::fs::symlink_metadata(&place.path).ok().filter(std::fs::Metadata::is_file);
    let Some(old) = installed else {
        return begin(file, &FirstInstall { mode: first.mode & 0o666, ..first.clone() });
    };
    let present = file.metadata().map_err(|error| ("read the metadata of", error))?;
    if (old.uid(), old.gid()) != (present.uid(), present.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid())).map_err(|error| ("change the owner of", error))?;
    }
    let mode = std::fs::Permissions::from_mode(old.mode() & 0o666);
    file.set_permissions(mode).map_err(|error| ("change the mode of", error))
}

/// Owner first, since changing it clears bits of the mode; then the mode; then attributes, since changing the
/// owner drops capabilities.
pub(super) fn copy(old: &File, new: &File) -> Result<(), (&'static str, io::Error)> {
    let metadata = old.metadata().map_err(|error| ("read the metadata for", error))?;
    let present = new.metadata().map_err(|error| ("read the metadata of", error))?;
    if (metadata.uid(), metadata.gid()) != (present.uid(), present.gid()) {
        fchown(new, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(|error| ("change the owner of", error))?;
    }
    let mode = std::fs::Permissions::from_mode(metadata.mode() & 0o7777);
    new.set_permissions(mode).map_err(|error| ("change the mode of", error))?;
    attributes(old, new).map_err(|error| ("set extended attributes of", error))
}

fn begin(file: &File, first: &FirstInstall) -> Result<(), (&'static str, io::Error)> {
    let owner = Owner::find(first).map_err(|error| ("find the owner of", error))?;
    owner.give(file).map_err(|error| ("change the owner of", error))?;
    let mode = std::fs::Permissions::from_mode(first.mode & 0o7777);
    file.set_permissions(mode).map_err(|error| ("change the mode of", error))
}

/// Owner and group by number, where they are to be given.
pub(super) struct Owner {
    user: Option<u32>,
    group: Option<u32>,
}

impl Owner {
    /// Looks up what is configured.
    pub(super) fn find(first: &FirstInstall) -> io::Result<Self> {
        let lookup =
            |name: &Option<String>, table: &str| name.as_ref().map(|name| number(name, table)).transpose();
        Ok(Self { user: lookup(&first.owner, "/etc/passwd")?, group: lookup(&first.group, "/etc/group")? })
    }

    /// Gives a file or directory to them.
    pub(super) fn give(&self, file: &File) -> io::Result<()> {
        if self.user.is_none() && self.group.is_none() {
            return Ok(());
        }
        fchown(file, self.user, self.group)
    }
}

/// The number of a user or group, from a table whose lines are `name:…:number:…`.
pub(crate) fn number(name: &str, table: &str) -> io::Result<u32> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let text = std::fs::read_to_string(table)?;
    let line = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = line.into_iter().find(|fields| fields.first() == Some(&name));
    let number = found.and_then(|fields| fields.get(2)?.parse().ok());
    number.ok_or_else(|| io::Error::other(format!("`{name}` is not in {table}")))
}

fn attributes(old: &File, new: &File) -> io::Result<()> {
    let names = match list(old) {
        Ok(names) => names,
        // A file system without extended attributes has none to keep.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let value = get(old, name)?;
        // What the kernel or the directory gave already (a security label, say) need not be set again.
        if get(new, name).is_ok_and(|present| present == value) {
            continue;
        }
        fsetxattr(new, name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

fn list(file: &File) -> io::Result<Vec<u8>> {
    let mut names = vec![0; 64 * 1024];
    let length = flistxattr(file, &mut names)?;
    names.truncate(length);
    Ok(names)
}

fn get(file: &File, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0; 64 * 1024];
    let length = fgetxattr(file, name, &mut value)?;
    value.truncate(length);
    Ok(value)
}
