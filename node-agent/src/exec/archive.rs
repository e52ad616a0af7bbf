//! Archives: what is in a tar, a gzipped tar or a zip (a jar is one), read under strict rules and never written here.
//!
//! An archive that two programs could read differently is refused, not interpreted: only regular files and directories,
//! plain names, none twice, sizes within what was said beforehand, nothing hidden between or after the entries.

mod bytes;
#[cfg(test)]
pub(super) mod samples;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, Read, Seek as _},
    path::Path,
};

use flate2::bufread::GzDecoder;
use upfleet_domain::{
    digest::Digest,
    files::{name_problem, parents},
    reason::{Reason, ReasonCode},
};

use super::files::{failed, open};

/// How much an archive may hold, known before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most regular files.
    pub files: usize,
    /// The most bytes of all files together, unpacked.
    pub bytes: u64,
}

/// A regular file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its path, checked: relative and plain.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// Why an archive is not read to its end.
#[derive(Debug)]
pub enum Fault {
    /// It breaks a rule.
    Hostile {
        /// The entry, escaped; empty for the archive as a whole.
        entry: String,
        /// Which rule.
        problem: String,
    },
    /// Its bytes are not what was said of them.
    Reason(Reason),
    /// The disk.
    Io(io::Error),
}

impl Fault {
    fn hostile(entry: &str, problem: impl Into<String>) -> Self {
        Self::Hostile { entry: entry.escape_debug().take(200).collect(), problem: problem.into() }
    }

    /// As a reason; `path` is the archive.
    pub fn reason(self, path: &Path) -> Reason {
        match self {
            Self::Hostile { entry, problem } => {
                let entry = if entry.is_empty() { "the archive as a whole".to_owned() } else { entry };
                Reason::new(ReasonCode::ArchiveHostile).with("entry", entry).with("problem", problem)
            }
            Self::Reason(reason) => reason,
            Self::Io(error) => failed(ReasonCode::StageFailed, "read", path)(error),
        }
    }
}

impl From<io::Error> for Fault {
    /// What a decoder finds wrong with its input is the archive's fault, the rest is the disk's.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => {
                Self::hostile("", format!("it is damaged or cut off: {error}"))
            }
            _ => Self::Io(error),
        }
    }
}

/// What is done with each regular file: its bytes are all there to be read, and checked by the reader's end.
pub type Visit<'a> = &'a mut dyn FnMut(&Member, &mut dyn Read) -> Result<(), Fault>;

/// Reads the archive at `path`, whatever of the three formats it is, and shows `visit` each regular file in order.
///
/// # Errors
/// [`Fault`]; what `visit` has seen until then is to be thrown away.
pub fn read(path: &Path, limits: Limits, visit: Visit<'_>) -> Result<(), Fault> {
    let mut file = open(path)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    let mut gate = Gate::new(limits);
    match magic.get(..2) {
        Some(b"PK") => zip::read(&file, &mut gate, visit),
        Some([0x1f, 0x8b]) => {
            let mut decoder = GzDecoder::new(BufReader::with_capacity(64 * 1024, file));
            tar::read(&mut decoder, &mut gate, visit)?;
            let mut rest: BufReader<File> = decoder.into_inner();
            if rest.fill_buf()?.is_empty() { Ok(()) } else { Err(Fault::hostile("", "bytes follow its end")) }
        }
        _ => tar::read(&mut BufReader::with_capacity(64 * 1024, file), &mut gate, visit),
    }
}

/// The regular files of an archive with their digests, by path: for jars, whose entries a manifest names by class.
///
/// # Errors
/// [`ReasonCode::ArchiveHostile`] with the entry and the rule; an error of the disk.
pub fn list(path: &Path, limits: Limits) -> Result<BTreeMap<String, (Member, Digest)>, Reason> {
    let mut found = BTreeMap::new();
    let mut visit = |member: &Member, bytes: &mut dyn Read| {
        let digest = bytes::digest(bytes)?;
        found.insert(member.path.clone(), (member.clone(), digest));
        Ok(())
    };
    read(path, limits, &mut visit).map_err(|fault| fault.reason(path))?;
    Ok(found)
}

pub(super) use bytes::Hashing;

/// What an entry may be, given those before it.
struct Gate {
    limits: Limits,
    files: usize,
    members: usize,
    bytes: u64,
    seen: BTreeMap<String, Seen>,
}

#[derive(Clone, Copy, PartialEq)]
enum Seen {
    File,
    /// Named by an entry of its own.
    Directory,
    /// Only the parent of one.
    Parent,
}

impl Gate {
    fn new(limits: Limits) -> Self {
        Self { limits, files: 0, members: 0, bytes: 0, seen: BTreeMap::new() }
    }

    /// A name as text.
    fn name<'a>(&self, raw: &'a [u8]) -> Result<&'a str, Fault> {
        std::str::from_utf8(raw)
            .map_err(|_| Fault::hostile(&String::from_utf8_lossy(raw), "its name is not UTF-8"))
    }

    /// Lets a regular file in.
    fn file(&mut self, path: &str, size: u64, executable: bool) -> Result<Member, Fault> {
        self.enter(path, Seen::File)?;
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.files > self.limits.files {
            return Err(Fault::hostile(path, format!("it has more than {} files", self.limits.files)));
        }
        if self.bytes > self.limits.bytes {
            return Err(Fault::hostile(
                path,
                format!("its files have more than {} bytes", self.limits.bytes),
            ));
        }
        Ok(Member { path: path.to_owned(), size, executable })
    }

    /// Lets a directory in, whose name comes without its last `/`.
    fn directory(&mut self, path: &str, size: u64) -> Result<(), Fault> {
        if size != 0 {
            return Err(Fault::hostile(path, "it is a directory with content"));
        }
        self.enter(path, Seen::Directory)
    }

    fn enter(&mut self, path: &str, kind: Seen) -> Result<(), Fault> {
        self.members += 1;
        if self.members > self.limits.files.saturating_mul(2).saturating_add(64) {
            return Err(Fault::hostile(path, "it has too many entries"));
        }
        if let Some(problem) = name_problem(path) {
            return Err(Fault::hostile(path, problem));
        }
        match (self.seen.get(path), kind) {
            (None, _) | (Some(Seen::Parent), Seen::Directory) => {}
            (Some(Seen::File), Seen::File) | (Some(Seen::Directory), Seen::Directory) => {
                return Err(Fault::hostile(path, "it is there twice"));
            }
            _ => return Err(Fault::hostile(path, "it is both a file and a directory")),
        }
        for parent in parents(path) {
            match self.seen.get(parent) {
                Some(Seen::File) => return Err(Fault::hostile(path, "it lies below a file")),
                Some(_) => {}
                None => drop(self.seen.insert(parent.to_owned(), Seen::Parent)),
            }
        }
        self.seen.insert(path.to_owned(), kind);
        Ok(())
    }
}
