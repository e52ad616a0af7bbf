//! The artifact store: immutable bytes in a directory, each file named by the SHA-256 of its bytes.
//!
//! A file gets its name only after its bytes were hashed and are durable, so that a name never lies; and it is
//! hashed again before it is first served, so that damage is never passed on. Which artifacts there should be is
//! the store's to know, not this module's.

mod collect;
mod error;
mod pieces;
mod read;
mod readers;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    collections::{HashMap, HashSet},
    fs::{DirBuilder, File, Metadata},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use tokio_util::sync::CancellationToken;
use upfleet_domain::{digest::Digest, release::MAX_ARTIFACT_BYTES};

pub use collect::Collected;
pub use error::BlobError;
use error::io;
pub use read::Blob;
pub use readers::Reader;
pub use upload::{Upload, Uploaded};

/// What a read or write gives.
pub type Result<T, E = BlobError> = std::result::Result<T, E>;

/// The largest piece that is read or written at once, in bytes.
pub const PIECE: usize = 1024 * 1024;

/// How much may be stored.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest artifact, in bytes.
    pub artifact: u64,
    /// All artifacts together, in bytes.
    pub total: u64,
    /// How many uploads may be under way at once.
    pub uploads: usize,
    /// How many bytes must stay free on the file system, which the database shares.
    pub reserve: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { artifact: MAX_ARTIFACT_BYTES, total: u64::MAX, uploads: 16, reserve: 64 * 1024 * 1024 }
    }
}

/// What tells that a file is still the one that was hashed: any write changes its change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self { inode: meta.ino(), size: meta.len(), changed: (meta.ctime(), meta.ctime_nsec()) }
    }

    /// Whether a write from now on would change it. Change times are coarse: a write within the same tick of
    /// the kernel leaves none, so that a stamp as young as that proves nothing.
    fn settled(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = i128::from(self.changed.0) * 1_000_000_000 + i128::from(self.changed.1);
        now.as_nanos().cast_signed() - changed > 100_000_000
    }
}

/// The stamp with which a digest was last verified; its lock lets one reader hash while others wait.
type Verified = Arc<tokio::sync::Mutex<Option<Stamp>>>;

struct Inner {
    root: PathBuf,
    limits: Limits,
    /// Digests that are being uploaded or deleted.
    claimed: Mutex<HashSet<Digest>>,
    verified: Mutex<HashMap<Digest, Verified>>,
    /// Bytes of all artifacts.
    total: AtomicU64,
    pieces: pieces::Pieces,
    readers: readers::Readers,
}

/// The artifact store. Clones share it.
#[derive(Clone)]
pub struct Blobs(Arc<Inner>);

impl Blobs {
    /// Opens the store in a directory, which is made where it is missing.
    ///
    /// # Errors
    /// [`BlobError::Io`] where the directory can't be made or read.
    pub fn open(root: &Path, limits: Limits) -> Result<Self> {
        let incoming = root.join("incoming");
        let make = DirBuilder::new().recursive(true).mode(0o700).create(&incoming);
        make.map_err(io("create", &incoming))?;
        let mut total = 0;
        for (_, path) in list(root)? {
            total += path.metadata().map_err(io("read", &path))?.len();
        }
        Ok(Self(Arc::new(Inner {
            root: root.to_owned(),
            limits,
            claimed: Mutex::default(),
            verified: Mutex::default(),
            total: AtomicU64::new(total),
            pieces: pieces::Pieces::default(),
            readers: readers::Readers::default(),
        })))
    }

    /// The length of an artifact; `None` where it is not there.
    ///
    /// # Errors
    /// [`BlobError::Io`] where the directory can't be read.
    pub async fn size(&self, digest: Digest) -> Result<Option<u64>> {
        let path = self.0.path(digest);
        blocking(move || match path.metadata() {
            Ok(meta) => Ok(Some(meta.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io("read", &path)(error)),
        })
        .await
    }

    /// Bytes of all artifacts.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.total.load(Ordering::Relaxed)
    }

    /// One more reader under a name, of which there may be `limit` at once. `cut` is cancelled where it takes nothing
    /// while others wait.
    ///
    /// # Errors
    /// [`BlobError::Limit`] where there are as many.
    pub fn reader(&self, name: &str, limit: usize, cut: CancellationToken) -> Result<Reader> {
        self.0.readers.enter(name, limit, cut)
    }

    /// Cuts readers that have held a piece for so long, as whoever waits for memory does.
    #[cfg(test)]
    pub(crate) fn cut(&self, patience: std::time::Duration) -> usize {
        self.0.pieces.cut(patience)
    }

    /// Bytes of all pieces on their way to readers.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.0.pieces.held()
    }

    /// Removes an artifact's bytes. The store's record must be gone before. Readers under way finish.
    ///
    /// # Errors
    /// [`BlobError::Busy`] where it is being uploaded, [`BlobError::Io`] where the disk refuses. That it is not
    /// there is no error.
    pub async fn delete(&self, digest: Digest) -> Result<()> {
        let claim = self.0.claim(digest)?;
        blocking(move || claim.inner.remove(digest)).await
    }
}

impl Inner {
    fn path(&self, digest: Digest) -> PathBuf {
        self.root.join(digest.to_string())
    }

    fn part(&self, digest: Digest) -> PathBuf {
        self.root.join("incoming").join(format!("{digest}.part"))
    }

    fn claim(self: &Arc<Self>, digest: Digest) -> Result<Claim> {
        if !guard(&self.claimed).insert(digest) {
            return Err(BlobError::Busy(digest));
        }
        Ok(Claim { inner: self.clone(), digest })
    }

    fn verified(&self, digest: Digest) -> Verified {
        guard(&self.verified).entry(digest).or_default().clone()
    }

    /// Removes a file by its digest; the caller holds the claim.
    fn remove(&self, digest: Digest) -> Result<()> {
        let path = self.path(digest);
        let Ok(meta) = path.metadata() else { return Ok(()) };
        std::fs::remove_file(&path).map_err(io("remove", &path))?;
        sync_dir(&self.root)?;
        self.total.fetch_sub(meta.len(), Ordering::Relaxed);
        guard(&self.verified).remove(&digest);
        Ok(())
    }
}

/// The right to write one digest; given back when it is dropped.
struct Claim {
    inner: Arc<Inner>,
    digest: Digest,
}

impl Drop for Claim {
    fn drop(&mut self) {
        guard(&self.inner.claimed).remove(&self.digest);
    }
}

/// The sets behind these locks are whole after each call, so that a panic elsewhere spoils nothing.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io("sync", path))
}

/// The artifacts in a directory; whatever has no digest for a name is passed over.
fn list(root: &Path) -> Result<Vec<(Digest, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).map_err(io("list", root))? {
        let path = entry.map_err(io("list", root))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Ok(digest) = name.parse() {
            found.push((digest, path));
        }
    }
    Ok(found)
}
