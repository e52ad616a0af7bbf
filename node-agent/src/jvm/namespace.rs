//! Files as a JVM sees them, opened from outside without ever leaving its root directory.
//!
//! What lies below another process's root belongs to that process and may be made to deceive: a symbolic link
//! there, followed by the agent, would lead into the node's own files. So nothing is opened by a path of the
//! kernel's `/proc/PID/root/…`: the root is opened once, and everything below it relative to that descriptor.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2};

/// The directory that HotSpot uses for its socket, whatever `java.io.tmpdir` says.
pub const TMP: &str = "/tmp";

/// Whether symbolic links below the root are followed. They never lead out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// None is: for whatever is written, and for what must be what its name says.
    Refused,
    /// They are, within the root: for files that the JVM itself was told to read.
    Within,
}

/// The root directory of a process.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// That of a process.
    ///
    /// # Errors
    /// Where the process is gone or may not be looked into.
    pub fn of(pid: u32) -> io::Result<Self> {
        Ok(Self(directory_behind(&format!("/proc/{pid}/root"))?))
    }

    /// The temporary directory that the JVM uses.
    ///
    /// # Errors
    /// Where there is none, or it is a symbolic link.
    pub fn tmp(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(openat2(&self.0, TMP, flags, Mode::empty(), resolve(Links::Refused))?)
    }

    /// A regular file, to be read.
    ///
    /// # Errors
    /// Where it can't be read or is no regular file.
    pub fn open(&self, path: &str, links: Links) -> io::Result<File> {
        // Without waiting: a named pipe would hold its reader for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        regular(openat2(&self.0, path, flags, Mode::empty(), resolve(links))?)
    }

    /// What lies at a path, without opening it.
    ///
    /// # Errors
    /// Where nothing does, or it can't be looked at.
    pub fn look(&self, path: &str, links: Links) -> io::Result<Stat> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        Ok(fstat(openat2(&self.0, path, flags, Mode::empty(), resolve(links))?)?)
    }

    /// The content of a regular file, where it has at most `max` bytes.
    ///
    /// # Errors
    /// Where it can't be read, is no regular file, or is larger.
    pub fn read(&self, path: &str, max: u64, links: Links) -> io::Result<Vec<u8>> {
        at_most(self.open(path, links)?, max)
    }
}

fn resolve(links: Links) -> ResolveFlags {
    let strict = match links {
        Links::Refused => ResolveFlags::NO_SYMLINKS,
        Links::Within => ResolveFlags::empty(),
    };
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | strict
}

/// The working directory of a process.
///
/// # Errors
/// Where the process is gone or may not be looked into.
pub fn working_directory(pid: u32) -> io::Result<OwnedFd> {
    directory_behind(&format!("/proc/{pid}/cwd"))
}

/// The kernel's own links are the one kind that is followed: they lead to where the process really is.
fn directory_behind(link: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(CWD, link, flags, Mode::empty())?)
}

/// Opens `name`, a plain name, in `dir`; neither it nor anything else is followed.
///
/// # Errors
/// Those of the system; `ELOOP` for a symbolic link.
pub fn open_in(dir: BorrowedFd<'_>, name: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve)?)
}

/// What `name` in `dir` is, without opening it; a symbolic link is itself.
///
/// # Errors
/// Those of the system.
pub fn look(dir: BorrowedFd<'_>, name: &str) -> io::Result<(OwnedFd, Stat)> {
    let found = open_in(dir, name, OFlags::PATH, Mode::empty())?;
    let stat = fstat(&found)?;
    Ok((found, stat))
}

/// What kind of file it is.
#[must_use]
pub fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Reads a regular file of at most `max` bytes.
///
/// # Errors
/// Where it can't be read, is no regular file, or is larger.
pub fn read_file(file: OwnedFd, max: u64) -> io::Result<Vec<u8>> {
    at_most(regular(file)?, max)
}

fn regular(file: OwnedFd) -> io::Result<File> {
    let stat = fstat(file.as_fd())?;
    if kind(&stat) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(File::from(file))
}

fn at_most(file: File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(dir: &std::path::Path) -> Root {
        Root(directory_behind(dir.to_str().unwrap()).unwrap())
    }

    #[test]
    fn links_lead_nowhere_or_at_most_to_the_inside() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("tmp")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(inside.join("plain"), "plain").unwrap();
        symlink("/plain", inside.join("link")).unwrap();
        symlink("../secret", inside.join("out")).unwrap();
        symlink(dir.path().join("secret"), inside.join("absolute")).unwrap();
        let root = root(&inside);
        assert_eq!(root.read("/plain", 9, Links::Refused).unwrap(), b"plain");
        assert_eq!(root.read("link", 9, Links::Within).unwrap(), b"plain");
        assert!(root.read("link", 9, Links::Refused).is_err());
        for name in ["out", "absolute", "../secret", "tmp"] {
            assert!(root.read(name, 9, Links::Within).is_err(), "{name}");
        }
        assert!(root.read("plain", 4, Links::Refused).is_err(), "too large");
        root.tmp().unwrap();
        std::fs::remove_dir(inside.join("tmp")).unwrap();
        symlink(dir.path(), inside.join("tmp")).unwrap();
        assert!(root.tmp().is_err());
    }

    #[test]
    fn a_pipe_does_not_hold_its_reader() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(CWD, dir.path().join("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        assert!(root(dir.path()).read("pipe", 9, Links::Refused).is_err());
    }
}
