//! The `.part` file: written and hashed by one thread of its own, so that neither disk nor hash holds up the
//! network.
//!
//! The file is locked while it is written: after a cancelled download the next one waits for the last write.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    reason::{Reason, ReasonCode},
};

use super::Fetched;

/// Chunks that may wait for the disk.
const QUEUE: usize = 8;

enum Command {
    Write(Bytes),
    Reset(oneshot::Sender<()>),
    Finish(oneshot::Sender<Fetched>),
}

/// The file as the download sees it.
pub(super) struct Part {
    path: PathBuf,
    size: u64,
    length: u64,
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<io::Result<()>>,
}

impl Part {
    /// Opens or makes the file, and hashes what lies there. More than `size` bytes can't be the artifact's
    /// beginning and are thrown away.
    pub(super) async fn open(path: &Path, size: u64) -> Result<Self, Reason> {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (opened, length) = oneshot::channel();
        let file = path.to_owned();
        let thread = tokio::task::spawn_blocking(move || {
            let mut writer = Writer::open(&file, size)?;
            // Nobody waits any more where the download was cancelled.
            let _ = opened.send(writer.length);
            writer.serve(receiver)
        });
        let mut part = Self { path: path.to_owned(), size, length: 0, commands, thread };
        match length.await {
            Ok(length) => part.length = length,
            Err(_) => return Err(part.failure().await),
        }
        Ok(part)
    }

    /// How many bytes are there.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Appends. The caller sees to it that it never gets longer than the artifact.
    pub(super) async fn write(&mut self, chunk: Bytes) -> Result<(), Reason> {
        self.length += chunk.len() as u64;
        self.tell(Command::Write(chunk)).await
    }

    /// Throws away what is there; it is gone when this returns.
    pub(super) async fn reset(&mut self) -> Result<(), Reason> {
        self.length = 0;
        let (answer, done) = oneshot::channel();
        self.tell(Command::Reset(answer)).await?;
        match done.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Waits until all is on the disk, and returns what it is.
    pub(super) async fn finish(&mut self) -> Result<Fetched, Reason> {
        let (answer, fetched) = oneshot::channel();
        self.tell(Command::Finish(answer)).await?;
        match fetched.await {
            Ok(fetched) => Ok(fetched),
            Err(_) => Err(self.failure().await),
        }
    }

    async fn tell(&mut self, command: Command) -> Result<(), Reason> {
        if self.commands.send(command).await.is_err() {
            return Err(self.failure().await);
        }
        Ok(())
    }

    /// Why the thread ended.
    async fn failure(&mut self) -> Reason {
        let error = match (&mut self.thread).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => io::Error::other("the writer ended"),
        };
        let path = self.path.display();
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            let needed = self.size.saturating_sub(self.length);
            return Reason::new(ReasonCode::DiskFull)
                .with("path", path)
                .with("available", 0)
                .with("needed", needed);
        }
        Reason::new(ReasonCode::StageFailed)
            .with("operation", "write")
            .with("path", path)
            .with("problem", error)
    }
}

struct Writer {
    file: File,
    sha256: Sha256,
    md5: Md5,
    length: u64,
}

impl Writer {
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        // The directory is the agent's own; a link in it would be somebody's trap.
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow)
            .open(path)?;
        file.lock()?;
        let mut writer = Self { file, sha256: Sha256::new(), md5: Md5::new(), length: 0 };
        if writer.file.metadata()?.len() > size {
            writer.reset()?;
        }
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let read = writer.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(writer);
            }
            writer.hash(&buffer[..read]);
        }
    }

    fn serve(&mut self, mut commands: mpsc::Receiver<Command>) -> io::Result<()> {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Write(chunk) => {
                    self.file.write_all(&chunk)?;
                    self.hash(&chunk);
                }
                Command::Reset(answer) => {
                    self.reset()?;
                    let _ = answer.send(());
                }
                Command::Finish(answer) => {
                    self.file.sync_all()?;
                    let _ = answer.send(self.digests());
                }
            }
        }
        Ok(())
    }

    fn hash(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.update(bytes);
        self.length += bytes.len() as u64;
    }

    fn reset(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.sha256, self.md5, self.length) = (Sha256::new(), Md5::new(), 0);
        Ok(())
    }

    fn digests(&self) -> Fetched {
        Fetched {
            sha256: Digest(self.sha256.clone().finalize().into()),
            md5: Md5Digest(self.md5.clone().finalize().into()),
            size: self.length,
        }
    }
}
