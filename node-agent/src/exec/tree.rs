//! Trees on the disk: walking, hashing and copying below one directory without ever being led out of it.
//!
//! Who reads a tree's files may own them, and may put a link where a directory was a moment ago. So everything is opened
//! from an open directory, one name at a time, and no link is followed.

use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::File,
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt as _},
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, mkdirat, openat, readlinkat, statat};
use upfleet_domain::{
    digest::Digest,
    files::{Node, Tree, is_byte_code_cache},
};

use super::files::hash;

/// No tree is deeper.
const MAX_DEPTH: usize = 128;
/// No tree has more entries: four times what a release may have.
const MAX_ENTRIES: usize = 200_000;
/// A file that was changed less than this ago may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What the kernel says of a file; whoever changes the file changes that too.
type Stamp = [i128; 6];

/// Digests of files whose times lie back far enough, so that looking often is cheap.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<HashMap<Stamp, Digest>>);

/// Opens a directory by its path, whose last part is no link.
pub(super) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, DIRECTORY, Mode::empty())?)
}

/// Opens a directory below another; `""` is that itself. With `make`, what is missing is made.
pub(super) fn below(root: &OwnedFd, path: &str, make: bool) -> io::Result<OwnedFd> {
    let mut dir = openat(root, ".", DIRECTORY, Mode::empty())?;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if make {
            match mkdirat(&dir, name, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        dir = openat(&dir, name, DIRECTORY, Mode::empty())?;
    }
    Ok(dir)
}

/// A path's directory and name.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// Opens a regular file in a directory for reading.
pub(super) fn open_file(dir: &OwnedFd, name: impl AsRef<OsStr>) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(dir, name.as_ref(), flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("not a regular file")) }
}

/// Makes a new file in a directory for writing.
pub(super) fn create_file(dir: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?))
}

/// All files of a tree. Byte-code caches, sockets and pipes are passed over: programs make them while they run. With
/// `cache`, only what changed since is read; without, each file is read from the disk.
pub(super) fn walk(root: &Path, cache: Option<&Cache>) -> io::Result<Tree> {
    let old = cache.map(|cache| std::mem::take(&mut *cache.0.lock().unwrap_or_else(PoisonError::into_inner)));
    let mut walk = Walk { tree: Tree::default(), old, new: HashMap::new(), entries: 0, now: now() };
    let result = open_dir(root).and_then(|dir| walk.dir(&dir, "", 0));
    if let Some(cache) = cache {
        *cache.0.lock().unwrap_or_else(PoisonError::into_inner) = walk.new;
    }
    result.map(|()| walk.tree)
}

struct Walk {
    tree: Tree,
    old: Option<HashMap<Stamp, Digest>>,
    new: HashMap<Stamp, Digest>,
    entries: usize,
    now: Duration,
}

impl Walk {
    fn dir(&mut self, dir: &OwnedFd, prefix: &str, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(io::Error::other("its directories are nested too deeply"));
        }
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name == b"." || name == b".." {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(io::Error::other(format!("it has more than {MAX_ENTRIES} files")));
            }
            let path = join(prefix, &String::from_utf8_lossy(&name));
            if is_byte_code_cache(&path) {
                continue;
            }
            match self.entry(dir, OsStr::from_bytes(&name), &path, depth) {
                // Gone since it was listed.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, dir: &OwnedFd, name: &OsStr, path: &str, depth: usize) -> io::Result<()> {
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let node = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let inner = openat(dir, name, DIRECTORY, Mode::empty())?;
                return self.dir(&inner, path, depth + 1);
            }
            FileType::Socket | FileType::Fifo => return Ok(()),
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new())?;
                Node::Link { target: target.to_string_lossy().into_owned() }
            }
            FileType::RegularFile => {
                let digest = self.digest(dir, name, &stat)?;
                Node::File { digest, executable: stat.st_mode & 0o100 != 0 }
            }
            _ => Node::Special,
        };
        self.tree.0.insert(path.to_owned(), node);
        Ok(())
    }

    fn digest(&mut self, dir: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<Digest> {
        let stamp = stamp(stat);
        let known = self.old.as_ref().and_then(|old| old.get(&stamp).copied());
        let digest = match known {
            Some(digest) => digest,
            None => hash(&open_file(dir, name)?)?,
        };
        let changed = Duration::from_secs(u64::try_from(stat.st_ctime).unwrap_or(0));
        if self.old.is_some() && changed + SETTLED < self.now {
            self.new.insert(stamp, digest);
        }
        Ok(digest)
    }
}

fn stamp(stat: &Stat) -> Stamp {
    let nanos = |seconds: i128, nanos: i128| seconds * 1_000_000_000 + nanos;
    let changed = nanos(stat.st_ctime.into(), stat.st_ctime_nsec.into());
    let written = nanos(stat.st_mtime.into(), stat.st_mtime_nsec.into());
    [stat.st_dev.into(), stat.st_ino.into(), stat.st_size.into(), stat.st_mode.into(), changed, written]
}

/// The clock, since the epoch.
pub(super) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// A path below a directory.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

/// The directories of a tree's files, the deepest first, ending with the tree's own.
pub(super) fn directories<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut all: BTreeSet<&str> = BTreeSet::from([""]);
    paths.for_each(|path| all.extend(upfleet_domain::files::parents(path)));
    let mut all: Vec<&str> = all.into_iter().collect();
    all.sort_by_key(|dir| std::cmp::Reverse(if dir.is_empty() { 0 } else { 1 + dir.matches('/').count() }));
    all
}
