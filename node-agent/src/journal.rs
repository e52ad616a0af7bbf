//! The journal of one component: what must be known after a crash, whatever was going on.
//!
//! A file of fixed header and append-only records, each the whole [`Record`] with its length and checksum. The last
//! intact one counts. Space is allocated ahead, in the file and in a spare one beside it, so that a full disk does not
//! keep an agent from writing down a rollback, however long that takes: where the file has no room left, the last
//! record begins the spare one, and both exchange their names. It knows nothing of what the records mean.
//!
//! Layout, integers little-endian: `UPFLEETJ`, format `u16` major and `u16` minor, `u32` 1 where the file had its first record when it
//! got its name, else 0; then per record length `u32`,
//! CRC-32 `u32` of length and payload, payload in JSON. Zeros follow up to the allocated end.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, FallocateFlags, IFlags, RenameFlags, ioctl_getflags, ioctl_setflags, renameat_with};
use upfleet_domain::{
    id::ComponentId,
    reason::{Reason, ReasonCode},
    upgrade::record::Record,
};

use crate::{
    crash, damage,
    fault::{self, Fault},
    formats::{self, JOURNAL, Number},
};

const MAGIC: &[u8; 8] = b"UPFLEETJ";
const HEADER: u64 = 16;
/// Space kept allocated beyond the records, and at least in the spare file: some hundred transitions, and more than the
/// longest record has.
const RESERVE: u64 = 512 * 1024;
/// Beyond this many bytes of records the journal is compacted.
const COMPACT_AT: u64 = 1024 * 1024;

/// An open journal. One writer only.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    end: u64,
    allocated: u64,
    /// Whether its name is known to outlast a power failure; until then no record in it does.
    named: bool,
    /// Whether the kernel could not write it to the disk. It may have dropped what it could not write and say nothing of
    /// it the next time, so nothing more is trusted to this file.
    failed: bool,
}

/// What opening a journal gave.
#[derive(Debug)]
pub struct Opened {
    /// Ready to append.
    pub journal: Journal,
    /// The last intact record; `None` in a new journal.
    pub record: Option<Record>,
    /// Set where an unreadable journal was moved aside.
    pub damage: Option<Reason>,
}

/// Why a journal can't be used. An operator of the node can mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The disk or its permissions.
    #[error("could not {operation} journal `{path}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A newer agent wrote it.
    #[error("journal `{path}` has format {found}, this version reads up to {}", JOURNAL.number)]
    TooNew {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: Number,
    },
}

impl JournalError {
    /// As people and the controller see it.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Io { operation, path, source } => Reason::new(ReasonCode::StageFailed)
                .with("operation", operation)
                .with("path", path.display())
                .with("problem", source),
            Self::TooNew { path, found } => Reason::new(ReasonCode::StateTooNew)
                .with("path", path.display())
                .with("found", found)
                .with("known", JOURNAL.number),
        }
    }
}

impl Journal {
    /// Opens the journal of `component` in `dir`, creating it where there is none. A torn tail is cut; a journal
    /// that is damaged before its tail is moved aside as `<name>.damaged-<n>`, and a new one begun.
    ///
    /// # Errors
    /// Where the disk fails, or a newer agent wrote it.
    pub fn open(dir: &Path, component: &ComponentId) -> Result<Opened, JournalError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(at("make the directory of", dir))?;
        let path = dir.join(format!("{component}.journal"));
        let opened = Self::find(&path, component)?;
        if let Err(error) = provide(&path) {
            tracing::debug!(path = %path.display(), %error, "no space ahead for the journal");
        }
        Ok(opened)
    }

    fn find(path: &Path, component: &ComponentId) -> Result<Opened, JournalError> {
        if fault::is(Fault::OlderFormat) {
            return Err(JournalError::TooNew { path: path.to_owned(), found: JOURNAL.number });
        }
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let journal = create(path, None).map_err(at("create", path))?;
                return Ok(Opened { journal, record: None, damage: None });
            }
            // Something else in its place is moved aside like damage.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => Vec::new(),
            Err(error) => return Err(at("read", path)(error)),
        };
        let path = path.to_owned();
        match scan(&bytes) {
            Scan::TooNew(found) => Err(JournalError::TooNew { path, found }),
            Scan::Damaged => {
                let aside = damage::move_aside(&path).map_err(at("move aside", &path))?;
                let journal = create(&path, None).map_err(at("create", &path))?;
                let damage = Reason::new(ReasonCode::JournalDamaged)
                    .with("component", component)
                    .with("path", aside.display());
                Ok(Opened { journal, record: None, damage: Some(damage) })
            }
            Scan::Intact { end, record } => {
                let allocated = bytes.len() as u64;
                let journal = reopen(&path, end, allocated).map_err(at("open", &path))?;
                Ok(Opened { journal, record: record.map(|record| *record), damage: None })
            }
        }
    }

    /// The last intact record, for looking only: nothing is created, cut or moved.
    #[must_use]
    pub fn peek(dir: &Path, component: &ComponentId) -> Option<Record> {
        let bytes = std::fs::read(dir.join(format!("{component}.journal"))).ok()?;
        match scan(&bytes) {
            Scan::Intact { record, .. } => record.map(|record| *record),
            Scan::Damaged | Scan::TooNew(_) => None,
        }
    }

    /// Makes `record` durable. When this returns without error it will be there after any crash.
    ///
    /// # Errors
    /// Where the disk fails; then nothing that depends on it may be done.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        crash::point("journal.append.before");
        let frame = frame(record).map_err(at("encode for", &self.path))?;
        let length = frame.len() as u64;
        if self.failed || self.end + length > COMPACT_AT || !self.has_room(length) {
            match create(&self.path, Some(record)) {
                Ok(journal) => *self = journal,
                Err(error) if self.failed => return Err(at("write", &self.path)(error)),
                // There may be just enough room.
                Err(error) => self.not_renewed(&error),
            }
        }
        self.write(&frame).map_err(at("write", &self.path))?;
        crash::point("journal.append.after");
        Ok(())
    }

    /// Whether so many bytes more have their space, which is allocated where there is some left.
    fn has_room(&mut self, length: u64) -> bool {
        let end = self.end + length;
        if end + RESERVE / 2 <= self.allocated {
            return true;
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, end + RESERVE) {
            Ok(()) => self.allocated = end + RESERVE,
            // A file system that can't allocate ahead can still write.
            Err(rustix::io::Errno::OPNOTSUPP) => return true,
            Err(_) => {}
        }
        end <= self.allocated
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let end = self.end + frame.len() as u64;
        if cfg!(feature = "crash-points") {
            self.file.write_all_at(&frame[..frame.len() / 2], self.end)?;
            crash::point("journal.append.torn");
        }
        self.file.write_all_at(frame, self.end)?;
        self.file.sync_data().inspect_err(|_| self.failed = true)?;
        if !self.named {
            sync_dir(&self.path)?;
            self.named = true;
        }
        self.end = end;
        self.allocated = self.allocated.max(end);
        Ok(())
    }

    /// Replaces the records by the last one. Failing to do so is no error: the journal stays as it is. Once
    /// the name has passed to the new file, that one is written on, whatever becomes of the rest.
    pub fn compact(&mut self, record: &Record) {
        crash::point("journal.compact.before");
        match create(&self.path, Some(record)) {
            Ok(journal) => *self = journal,
            Err(error) => self.not_renewed(&error),
        }
        crash::point("journal.compact.after");
    }

    fn not_renewed(&self, error: &io::Error) {
        tracing::debug!(path = %self.path.display(), %error, "journal not compacted");
    }
}

/// Where the journals of the agent with this state directory lie.
#[must_use]
pub fn dir(state_dir: &Path) -> PathBuf {
    state_dir.join("journals")
}

/// The last record of a component's journal, read without touching the file: for a look from outside, also
/// while the agent writes it. `None` where there is no journal, or no intact record in it.
///
/// # Errors
/// Where the disk fails, or a newer agent wrote it.
pub fn read(dir: &Path, component: &ComponentId) -> Result<Option<Record>, JournalError> {
    let path = dir.join(format!("{component}.journal"));
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at("read", &path)(error)),
    };
    match scan(&bytes) {
        Scan::TooNew(found) => Err(JournalError::TooNew { path, found }),
        Scan::Damaged => Ok(None),
        Scan::Intact { record, .. } => Ok(record.map(|record| *record)),
    }
}

/// Whether this version can go on with a component's journal. Touches nothing; an agent that writes it meanwhile does no
/// harm.
///
/// # Errors
/// Where the disk fails, or its records are damaged or none that this version knows.
pub fn check(dir: &Path, component: &ComponentId) -> Result<(), JournalError> {
    let path = dir.join(format!("{component}.journal"));
    match std::fs::read(&path).map(|bytes| scan(&bytes)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(at("read", &path)(error)),
        Ok(Scan::Intact { .. }) => Ok(()),
        Ok(Scan::TooNew(found)) => Err(JournalError::TooNew { path, found }),
        Ok(Scan::Damaged) => {
            let problem =
                io::Error::other("its records are damaged, or written as this version does not know");
            Err(at("read", &path)(problem))
        }
    }
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}

fn spare(path: &Path) -> PathBuf {
    path.with_extension("journal-spare")
}

/// Opens the spare file; made anew, it is never copied on write, since that would take space.
fn open_spare(path: &Path) -> io::Result<File> {
    damage::clear_directory(&spare(path))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(spare(path))?;
    if file.metadata()?.len() == 0
        && let Ok(flags) = ioctl_getflags(&file)
    {
        // Only one file system knows of it.
        let _ = ioctl_setflags(&file, flags | IFlags::NOCOW);
    }
    Ok(file)
}

/// Sees to it that there is a spare file with space.
fn provide(path: &Path) -> io::Result<()> {
    let provided = || -> io::Result<()> {
        let file = open_spare(path)?;
        if file.metadata()?.len() >= RESERVE {
            return Ok(());
        }
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE)?;
        file.sync_all()?;
        sync_dir(path)
    };
    provided().inspect_err(|_| drop(std::fs::remove_file(spare(path))))
}

/// Writes a journal with one record or none into the spare file, and lets that have the journal's name. What had it
/// before is the spare file then, and keeps its space.
fn create(path: &Path, record: Option<&Record>) -> io::Result<Journal> {
    let mut bytes = Vec::from(MAGIC.as_slice());
    bytes.extend(JOURNAL.number.packed().to_le_bytes());
    bytes.extend(u32::from(record.is_some()).to_le_bytes());
    if let Some(record) = record {
        bytes.extend(frame(record)?);
    }
    let end = bytes.len() as u64;
    // What could not be written whole, or to the disk, is not tried again on the same file.
    let filled = fill(path, &bytes).inspect_err(|_| drop(std::fs::remove_file(spare(path))));
    let (file, allocated) = filled?;
    crash::point("journal.compact.written");
    if !path.exists() || renameat_with(CWD, spare(path), CWD, path, RenameFlags::EXCHANGE).is_err() {
        // The first of its kind, or a file system that can't exchange.
        std::fs::rename(spare(path), path)?;
        let _ = provide(path);
    }
    let named = sync_dir(path).is_ok();
    Ok(Journal { path: path.to_owned(), file, end, allocated, named, failed: false })
}

/// The spare file with these bytes, on the disk, and how much space it has.
fn fill(path: &Path, bytes: &[u8]) -> io::Result<(File, u64)> {
    let (mut file, end) = (open_spare(path)?, bytes.len() as u64);
    let present = file.metadata()?.len();
    let wanted = present.max(end + RESERVE);
    let allocated = match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, wanted) {
        Ok(()) => wanted,
        // A file system that can't allocate ahead can still write.
        Err(rustix::io::Errno::OPNOTSUPP) => present.max(end),
        // The disk is full: what it has must do.
        Err(_) if end <= present => present,
        Err(error) => return Err(error.into()),
    };
    let mut old = Vec::new();
    file.read_to_end(&mut old)?;
    let mut bytes = bytes.to_vec();
    if let Some(last) = old.iter().rposition(|byte| *byte != 0) {
        bytes.resize(bytes.len().max(last + 1), 0);
    }
    file.write_all_at(&bytes, 0)?;
    file.sync_all()?;
    Ok((file, allocated))
}

fn reopen(path: &Path, end: u64, allocated: u64) -> io::Result<Journal> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut rest = Vec::new();
    io::Seek::seek(&mut &file, io::SeekFrom::Start(end))?;
    (&file).read_to_end(&mut rest)?;
    if rest.iter().any(|byte| *byte != 0) {
        // Half a record lies there; the next one must not end in its remains.
        file.write_all_at(&vec![0; rest.len()], end)?;
        file.sync_data()?;
    }
    // The agent that was here last may have ended before it knew that the name is on the disk.
    Ok(Journal { path: path.to_owned(), file, end, allocated, named: false, failed: false })
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("a journal lies in a directory"))?;
    File::open(dir)?.sync_all()
}

fn frame(record: &Record) -> io::Result<Vec<u8>> {
    let payload = formats::encode(record)?;
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    bytes.extend(length);
    bytes.extend(checksum(length, &payload).to_le_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

enum Scan {
    Intact { end: u64, record: Option<Box<Record>> },
    Damaged,
    TooNew(Number),
}

fn scan(bytes: &[u8]) -> Scan {
    let Some(header) = bytes.get(..HEADER as usize).filter(|header| header.starts_with(MAGIC)) else {
        return Scan::Damaged;
    };
    let format = Number::unpacked(u32::from_le_bytes([header[8], header[9], header[10], header[11]]));
    if format.major > JOURNAL.number.major {
        return Scan::TooNew(format);
    }
    let mut end = HEADER as usize;
    let mut last = None;
    while let Some(payload) = record_at(bytes, end) {
        last = Some(payload);
        end += 8 + payload.len();
    }
    let rest = &bytes[end..];
    let written = rest.iter().any(|byte| *byte != 0);
    // A tear is at the very end. An intact record behind a broken one means that something else happened, and
    // so does a broken first one, unless the journal began without it.
    let lost = last.is_none() && header[12] == 1;
    let behind = || (1..rest.len()).any(|offset| record_at(rest, offset).is_some());
    if !JOURNAL.reads(format) || lost || (written && behind()) {
        return Scan::Damaged;
    }
    match last.map(serde_json::from_slice) {
        None => Scan::Intact { end: end as u64, record: None },
        Some(Ok(record)) => Scan::Intact { end: end as u64, record: Some(Box::new(record)) },
        // Intact, and yet nothing that this version knows: whoever wrote it does.
        Some(Err(_)) if format > JOURNAL.number => Scan::TooNew(format),
        Some(Err(_)) => Scan::Damaged,
    }
}

/// The payload of an intact record at `offset`.
fn record_at(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let head = bytes.get(offset..offset + 8)?;
    let length = [head[0], head[1], head[2], head[3]];
    let size = u32::from_le_bytes(length) as usize;
    let payload = bytes.get(offset + 8..offset.checked_add(8)?.checked_add(size)?)?;
    // Every payload is a JSON object; that makes the search for one cheap.
    if payload.first() != Some(&b'{') {
        return None;
    }
    let sum = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    (checksum(length, payload) == sum).then_some(payload)
}

#[cfg(test)]
mod tests;
