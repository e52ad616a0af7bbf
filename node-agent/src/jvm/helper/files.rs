//! The child's work on directories in a JVM's temporary directory. Acts relative to one open descriptor only.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, mkdirat, unlinkat};

use super::{
    Piece, Subject,
    child::{still, unreadable},
};
use crate::jvm::{
    attach::Failure,
    namespace::{Root, TMP, kind, look, open_in, read_file},
    workspace::PREFIX,
};

/// After how many seconds a directory that an agent left behind is removed by the next one.
const STALE: i64 = 3600;
/// How deep a directory may be nested that is removed. The agent makes flat ones.
const DEPTH: u32 = 8;

/// The JVM's temporary directory.
pub fn tmp(subject: &Subject) -> Result<OwnedFd, Failure> {
    let root = Root::of(subject.identity.pid).map_err(|error| unreadable(subject, &error))?;
    let tmp = root.tmp().map_err(|error| Failure::Files(format!("its {TMP} can't be used: {error}")))?;
    still(subject)?;
    Ok(tmp)
}

/// Makes the directory `dir` with files of these names; their bytes come from `input`, one after the other.
pub fn create(
    tmp: &OwnedFd,
    dir: &str,
    subject: &Subject,
    pieces: &[Piece],
    input: impl Read,
) -> Result<(), Failure> {
    plain(dir)?;
    remove_stale(tmp, subject);
    mkdirat(tmp, dir, Mode::RWXU).map_err(|error| refused(dir, &error.into()))?;
    fill(tmp, dir, subject, pieces, input).inspect_err(|_| {
        let _ = remove(tmp, dir);
    })
}

fn fill(
    tmp: &OwnedFd,
    dir: &str,
    subject: &Subject,
    pieces: &[Piece],
    mut input: impl Read,
) -> Result<(), Failure> {
    let made = open_dir(tmp.as_fd(), dir).map_err(|error| refused(dir, &error))?;
    let stat = fstat(&made).map_err(|error| refused(dir, &error.into()))?;
    if stat.st_uid != subject.uid {
        return Err(Failure::Files(format!("{TMP}/{dir} belongs to user {}", stat.st_uid)));
    }
    for piece in pieces {
        plain(&piece.name)?;
        write(made.as_fd(), piece, &mut input).map_err(|error| refused(&piece.name, &error))?;
    }
    Ok(())
}

fn write(dir: BorrowedFd<'_>, piece: &Piece, input: &mut impl Read) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = File::from(open_in(dir, &piece.name, flags, Mode::RUSR | Mode::WUSR)?);
    let copied = io::copy(&mut input.take(piece.length), &mut file)?;
    if copied == piece.length { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// The bytes of a file of the directory `dir`; `None` where it is not there.
pub fn read(tmp: &OwnedFd, dir: &str, name: &str, max: u64) -> Result<Option<Vec<u8>>, Failure> {
    plain(dir)?;
    plain(name)?;
    let open = || {
        let dir = open_dir(tmp.as_fd(), dir)?;
        read_file(open_in(dir.as_fd(), name, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?, max)
    };
    match open() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Files(format!("{TMP}/{dir}/{name} can't be read: {error}"))),
    }
}

/// Removes the directory `dir` with all that is in it; one that is not there is fine.
pub fn remove(tmp: &OwnedFd, dir: &str) -> Result<(), Failure> {
    plain(dir)?;
    match remove_in(tmp.as_fd(), dir, DEPTH) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Failure::Files(format!("{TMP}/{dir} can't be removed: {error}")))
        }
        _ => Ok(()),
    }
}

fn remove_in(parent: BorrowedFd<'_>, name: &str, depth: u32) -> io::Result<()> {
    let dir = open_dir(parent, name)?;
    for entry in entries(&dir)? {
        let is_dir = look(dir.as_fd(), &entry).is_ok_and(|(_, stat)| kind(&stat) == FileType::Directory);
        if is_dir && depth > 0 {
            remove_in(dir.as_fd(), &entry, depth - 1)?;
        } else {
            unlinkat(&dir, &*entry, AtFlags::empty())?;
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn entries(dir: &OwnedFd) -> io::Result<Vec<String>> {
    let names = Dir::read_from(dir)?.filter_map(Result::ok);
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| name != "." && name != "..").collect())
}

/// Removes what an agent that was killed has left of this JVM's user, an hour later.
fn remove_stale(tmp: &OwnedFd, subject: &Subject) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    // The directory may be large and unreadable to others; what can't be listed is left.
    let Ok(listed) = open_in(tmp.as_fd(), ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) else {
        return;
    };
    for name in entries(&listed).unwrap_or_default().iter().filter(|name| name.starts_with(PREFIX)) {
        let stale = |(_, stat): (OwnedFd, rustix::fs::Stat)| {
            stat.st_uid == subject.uid && now.saturating_sub(stat.st_mtime) > STALE
        };
        if look(tmp.as_fd(), name).is_ok_and(stale) {
            let _ = remove(tmp, name);
        }
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    open_in(parent, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
}

/// Names come from the agent itself; that they are plain is checked all the same.
fn plain(name: &str) -> Result<(), Failure> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(Failure::Helper(format!("`{name}` is not a plain name")));
    }
    Ok(())
}

fn refused(name: &str, error: &io::Error) -> Failure {
    Failure::Files(format!("nothing can be written to its {TMP}: `{name}`: {error}"))
}
