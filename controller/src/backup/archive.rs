//! The backup's file: named entries one after another, and at the end a hash over all before it.
//!
//! Each entry is a line of JSON and its bytes. Nothing that is read is believed before the last line was checked;
//! whoever unpacks does so aside.

use std::{
    fs::{DirBuilder, File},
    io::{BufRead, BufReader, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest as _, Sha256};
use upfleet_domain::digest::Digest;

use super::{BackupError, Result, io};

/// The number of this format.
pub(super) const FORMAT: u32 = 1;
/// The longest line, in bytes: bounds what is read before it is believed.
const MAX_LINE: u64 = 64 * 1024;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    /// Always `backup`.
    pub upfleet: String,
    /// The format's number.
    pub format: u32,
}

/// Before each file's bytes, or last of all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    File { path: String, size: u64 },
    End { files: u64, sha256: Digest },
}

/// Writes an archive aside and names it when it is whole.
pub(super) struct Writer {
    out: BufWriter<File>,
    path: PathBuf,
    temporary: PathBuf,
    sha256: Sha256,
    files: u64,
    bytes: u64,
}

impl Writer {
    /// Begins an archive that only its owner can read: it holds the CA's key.
    pub fn create(path: &Path) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let temporary = path.with_file_name(name);
        // A leftover, or what somebody else put there, keeps its mode and its readers: it is not written to.
        if temporary.symlink_metadata().is_ok() {
            std::fs::remove_file(&temporary).map_err(io("remove", &temporary))?;
        }
        let file = File::options().create_new(true).write(true).mode(0o600).open(&temporary);
        let out = BufWriter::with_capacity(1 << 20, file.map_err(io("create", &temporary))?);
        let mut writer =
            Self { out, path: path.to_owned(), temporary, sha256: Sha256::new(), files: 0, bytes: 0 };
        writer.line(&Header { upfleet: "backup".to_owned(), format: FORMAT })?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sha256.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(io("write", &self.temporary))
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line).expect("lines are plain data with string keys");
        bytes.push(b'\n');
        self.write(&bytes)
    }

    /// Adds a file under a name.
    pub fn add(&mut self, name: &str, source: &Path) -> Result<()> {
        let file = File::open(source).map_err(io("open", source))?;
        let size = file.metadata().map_err(io("read", source))?.len();
        self.line(&Line::File { path: name.to_owned(), size })?;
        let mut left = file.take(size);
        let mut piece = vec![0; 1 << 20];
        let mut added = 0;
        loop {
            let read = left.read(&mut piece).map_err(io("read", source))?;
            if read == 0 {
                break;
            }
            added += read as u64;
            self.write(&piece[..read])?;
        }
        if added != size {
            let error = std::io::Error::other("it became shorter meanwhile");
            return Err(io("read", source)(error));
        }
        self.files += 1;
        Ok(())
    }

    /// Makes it durable and gives it its name. Returns its length in bytes.
    pub fn finish(mut self) -> Result<u64> {
        let sha256 = Digest(self.sha256.clone().finalize().into());
        self.line(&Line::End { files: self.files, sha256 })?;
        self.out.flush().map_err(io("write", &self.temporary))?;
        self.out.get_ref().sync_all().map_err(io("sync", &self.temporary))?;
        std::fs::rename(&self.temporary, &self.path).map_err(io("rename", &self.temporary))?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(io("sync", parent))?;
        Ok(self.bytes)
    }
}

struct Reader {
    input: BufReader<File>,
    path: PathBuf,
    sha256: Sha256,
}

impl Reader {
    fn damaged(&self, problem: impl ToString) -> BackupError {
        BackupError::Damaged { path: self.path.clone(), problem: problem.to_string() }
    }

    fn line<T: DeserializeOwned>(&mut self) -> Result<(T, Vec<u8>)> {
        let mut bytes = Vec::new();
        let read = (&mut self.input).take(MAX_LINE).read_until(b'\n', &mut bytes);
        read.map_err(io("read", &self.path))?;
        if bytes.last() != Some(&b'\n') {
            return Err(self.damaged("it ends too early"));
        }
        let line = serde_json::from_slice(&bytes).map_err(|error| self.damaged(error))?;
        Ok((line, bytes))
    }

    fn copy(&mut self, size: u64, target: &Path) -> Result<()> {
        let file = File::options().create_new(true).write(true).mode(0o600).open(target);
        let mut file = file.map_err(io("create", target))?;
        let mut piece = vec![0; 1 << 20];
        let mut left = size;
        while left > 0 {
            let want = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = self.input.read(&mut piece[..want]).map_err(io("read", &self.path))?;
            if read == 0 {
                return Err(self.damaged("it ends too early"));
            }
            self.sha256.update(&piece[..read]);
            file.write_all(&piece[..read]).map_err(io("write", target))?;
            left -= read as u64;
        }
        file.sync_all().map_err(io("sync", target))
    }
}

/// Unpacks an archive into an empty directory; on an error what lies there must not be used. Returns the names.
pub(super) fn unpack(path: &Path, into: &Path) -> Result<Vec<String>> {
    let file = File::open(path).map_err(io("open", path))?;
    let mut reader = Reader { input: BufReader::new(file), path: path.to_owned(), sha256: Sha256::new() };
    let (header, bytes) = reader.line::<Header>().map_err(|error| match error {
        BackupError::Damaged { path, .. } => BackupError::NotABackup { path },
        other => other,
    })?;
    reader.sha256.update(&bytes);
    if header.upfleet != "backup" {
        return Err(BackupError::NotABackup { path: path.to_owned() });
    }
    if header.format > FORMAT {
        let (path, found) = (path.display().to_string(), header.format);
        return Err(crate::store::StoreError::TooNew { path, found, known: FORMAT }.into());
    }
    let mut names = Vec::new();
    loop {
        let (line, bytes) = reader.line::<Line>()?;
        match line {
            Line::File { path: name, size } => {
                reader.sha256.update(&bytes);
                let target =
                    inside(into, &name).ok_or_else(|| reader.damaged(format!("it names `{name}`")))?;
                let parent = target.parent().unwrap_or(into);
                let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
                made.map_err(io("create", parent))?;
                reader.copy(size, &target)?;
                names.push(name);
            }
            Line::End { files, sha256 } => {
                let actual = Digest(reader.sha256.clone().finalize().into());
                if files != names.len() as u64 || sha256 != actual {
                    return Err(reader.damaged(format!("its SHA-256 is {actual}, not {sha256}")));
                }
                return Ok(names);
            }
        }
    }
}

/// The path of an entry; `None` where it would leave the directory or is none of a data directory's.
fn inside(into: &Path, name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let mut parts = path.components().filter_map(|part| part.as_os_str().to_str());
    let first = parts.next()?;
    let depth = parts.count();
    let known = match first {
        super::DATABASE | super::CONFIGURATION => depth == 0,
        "ca" | "tls" | "artifacts" => depth == 1,
        _ => false,
    };
    (plain && known).then(|| into.join(path))
}
