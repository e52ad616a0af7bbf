//! The store on SQLite: one connection writes, four read.
//!
//! WAL with `synchronous=FULL`: what was answered survives a power cut. The SQL is common to SQLite and
//! PostgreSQL; what is not stays in `mod.rs` and `writer.rs`.

mod batch;
mod bulk;
mod content;
mod error;
mod fleet;
mod history;
mod identity;
mod read;
mod read_content;
mod read_fleet;
mod read_rollout;
mod rollout;
mod schema;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use schema::migrate;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{broadcast, mpsc};

use super::{Notice, Result, StoreError};

/// The database's file name in the data directory.
pub const FILE: &str = "upfleet.db";
/// The file in the data directory whose lock says that a controller uses it.
pub(crate) const LOCK: &str = "upfleet.lock";
/// How many connections read at once.
const READERS: u32 = 4;
/// How long a write waits for a lock that another process holds, e.g. a backup.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many notices a receiver may lag before it must read everything again.
const NOTICES: usize = 4096;
/// How many batches may wait for the writer; more callers wait in line.
const QUEUE: usize = 1024;

/// The store on SQLite.
pub struct SqliteStore {
    readers: SqlitePool,
    writer: SqlitePool,
    queue: mpsc::Sender<writer::Job>,
    notices: broadcast::Sender<Notice>,
    /// Held for as long as the store is open, so that two controllers never share a data directory.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the store in a data directory, creating or migrating it.
    ///
    /// # Errors
    /// [`StoreError::TooNew`] where a newer version wrote it, [`StoreError::Unavailable`] where another
    /// process has it open or the disk refuses.
    pub async fn open(data: &Path) -> Result<Self> {
        let lock = lock(data)?;
        Self::open_with(&data.join(FILE), Some(lock), BUSY_TIMEOUT).await
    }

    /// Opens the store that a controller has used before. An empty one is never made in its place: it would know nothing
    /// of what was revoked, and nothing of what runs.
    ///
    /// # Errors
    /// [`StoreError::Broken`] where it is missing or damaged; otherwise as [`SqliteStore::open`].
    pub async fn open_existing(data: &Path) -> Result<Self> {
        let path = data.join(FILE);
        let broken = |problem: String| StoreError::Broken { problem };
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() && found.len() > 0 => {}
            Ok(_) => return Err(broken(format!("`{}` is empty or no file", path.display()))),
            Err(error) => return Err(broken(format!("`{}`: {error}", path.display()))),
        }
        let store = Self::open(data).await?;
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&store.readers).await?;
        if found != "ok" {
            store.close().await;
            return Err(broken(format!("`{}`: {found}", path.display())));
        }
        Ok(store)
    }

    /// A store in memory, gone when it is dropped. For tests.
    ///
    /// # Errors
    /// Where SQLite fails.
    pub async fn memory() -> Result<Self> {
        let options = SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
        let pool = pool(1).connect_with(options).await?;
        migrate(&pool, Path::new(":memory:")).await?;
        Ok(Self::start(pool.clone(), pool, None))
    }

    /// Opens a database file that no controller uses, without taking a lock. For restores.
    pub(crate) async fn open_unlocked(path: &Path) -> Result<Self> {
        Self::open_with(path, None, BUSY_TIMEOUT).await
    }

    async fn open_with(path: &Path, lock: Option<File>, busy: Duration) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(busy);
        create_private(path)?;
        let writer = pool(1).connect_with(options.clone()).await?;
        migrate(&writer, path).await?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self::start(writer, readers, lock))
    }

    fn start(writer: SqlitePool, readers: SqlitePool, lock: Option<File>) -> Self {
        let (notices, _) = broadcast::channel(NOTICES);
        let (queue, jobs) = mpsc::channel(QUEUE);
        tokio::spawn(writer::run(writer.clone(), jobs, notices.clone()));
        Self { readers, writer, queue, notices, _lock: lock }
    }

    /// Writes what waits, then closes. Later calls answer [`StoreError::Unavailable`].
    pub async fn close(&self) {
        let (answer, done) = tokio::sync::oneshot::channel();
        if self.queue.send(writer::Job::Close { answer }).await.is_ok() {
            // The writer ends after its answer; where it is gone already, there is nothing to wait for.
            let _ = done.await;
        }
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

fn unavailable(operation: &'static str, problem: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { operation, problem: problem.to_string() }
}

/// Takes the lock of a data directory; it is released when the file is dropped.
///
/// # Errors
/// [`StoreError::Unavailable`] where another process holds it.
pub(crate) fn lock(data: &Path) -> Result<File> {
    let path = data.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| unavailable("open", format!("`{}`: {error}", path.display())))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(unavailable("open", format!("another controller uses `{}`", data.display())))
        }
        Err(TryLockError::Error(error)) => Err(unavailable("open", error)),
    }
}

/// Creates the database's file readable by its owner only, before SQLite would create it for all.
fn create_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path);
    file.map(drop).map_err(|error| unavailable("open", format!("`{}`: {error}", path.display())))
}

/// Copies a database into a new file, also while a controller writes to it.
///
/// # Errors
/// Where it can't be read, or the copy not be written.
pub(crate) async fn snapshot(path: &Path, copy: &Path) -> Result<()> {
    let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
    let pool = pool(1).connect_with(options).await?;
    let copied = sqlx::query("VACUUM INTO $1").bind(copy.display().to_string()).execute(&pool).await;
    pool.close().await;
    copied?;
    Ok(())
}

/// Where the database of a data directory lies.
#[must_use]
pub fn path(data: &Path) -> PathBuf {
    data.join(FILE)
}
