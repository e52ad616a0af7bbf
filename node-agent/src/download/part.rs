//! The `.part` file: written by one thread of its own and hashed by others, so that neither disk nor hash holds
//! up the network.
//!
//! The file is locked while it is written: after a cancelled download the next one waits for the last write.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use upfleet_domain::{
    digest::{Digest, Md5Digest},
    reason::{Reason, ReasonCode},
};

use super::{Fetched, hash::Hashing};

/// Chunks that may wait for the disk: what a kill loses of them is fetched again.
const QUEUE: usize = 1;
/// What lies there already is read in pieces of this size.
const PIECE: usize = 256 * 1024;

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
    /// beginning and are thrown away. MD5 costs more than all else: it is made only where somebody compares it.
    pub(super) async fn open(path: &Path, size: u64, with_md5: bool) -> Result<Self, Reason> {
        let (commands, receiver) = mpsc::channel(QUEUE);
        let (opened, length) = oneshot::channel();
        let file = path.to_owned();
        let thread = tokio::task::spawn_blocking(move || {
            let mut writer = Writer::open(&file, size, with_md5)?;
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
    with_md5: bool,
    /// `None` once the digests were asked for.
    hashing: Option<Hashing>,
    length: u64,
}

impl Writer {
    fn open(path: &Path, size: u64, with_md5: bool) -> io::Result<Self> {
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
        let hashing = Some(Hashing::start(with_md5)?);
        let mut writer = Self { file, with_md5, hashing, length: 0 };
        if writer.file.metadata()?.len() > size {
            writer.reset()?;
        }
        loop {
            let mut piece = vec![0; PIECE];
            let read = writer.file.read(&mut piece)?;
            if read == 0 {
                return Ok(writer);
            }
            piece.truncate(read);
            writer.hash(&piece.into())?;
        }
    }

    fn serve(&mut self, mut commands: mpsc::Receiver<Command>) -> io::Result<()> {
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Write(chunk) => {
                    // First the disk: what lies there survives a kill.
                    self.file.write_all(&chunk)?;
                    self.hash(&chunk)?;
                }
                Command::Reset(answer) => {
                    self.reset()?;
                    let _ = answer.send(());
                }
                Command::Finish(answer) => {
                    self.file.sync_all()?;
                    let _ = answer.send(self.digests()?);
                }
            }
        }
        Ok(())
    }

    fn hash(&mut self, chunk: &Bytes) -> io::Result<()> {
        self.length += chunk.len() as u64;
        match &mut self.hashing {
            Some(hashing) => hashing.add(chunk),
            None => Err(io::Error::other("bytes came after the digests were made")),
        }
    }

    fn reset(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hashing = Some(Hashing::start(self.with_md5)?);
        self.length = 0;
        Ok(())
    }

    fn digests(&mut self) -> io::Result<Fetched> {
        let hashing = self.hashing.take().ok_or_else(|| io::Error::other("the digests were made already"))?;
        let (sha256, md5) = hashing.finish()?;
        Ok(Fetched { sha256: Digest(sha256), md5: md5.map(Md5Digest), size: self.length })
    }
}
