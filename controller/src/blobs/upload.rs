//! Uploads: written aside, hashed on the way, made durable, then named.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::atomic::Ordering,
};

use bytes::Bytes;
use md5::Md5;
use sha2::{Digest as _, Sha256};
use upfleet_domain::digest::{Digest, Md5Digest};

use super::{BlobError, Blobs, Claim, PIECE, Result, blocking, guard, io, sync_dir};

/// What was uploaded, durable and named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// SHA-256.
    pub digest: Digest,
    /// MD5, for people who compare with older tools.
    pub md5: Md5Digest,
    /// Length in bytes.
    pub size: u64,
}

/// An upload under way. Dropped without a commit, it can be resumed where it stood.
pub struct Upload {
    /// `None` while a call is under way, and for good after one that failed.
    state: Option<State>,
    digest: Digest,
}

struct State {
    claim: Claim,
    file: File,
    sha256: Sha256,
    md5: Md5,
    /// Bytes hashed and written.
    offset: u64,
    /// Bytes announced.
    size: u64,
}

impl Blobs {
    /// How far an upload came: where to resume it. 0 where nothing was stored.
    ///
    /// # Errors
    /// [`BlobError::Io`] where the directory can't be read.
    pub async fn upload_offset(&self, digest: Digest) -> Result<u64> {
        let part = self.0.part(digest);
        blocking(move || length(&part)).await
    }

    /// Opens an upload at `offset`: 0 begins anew, else it must be where the upload stands.
    ///
    /// An artifact that is there already can be uploaded again; that mends a damaged one.
    ///
    /// # Errors
    /// [`BlobError::Busy`] where another stream uploads it, [`BlobError::WrongOffset`], [`BlobError::WrongSize`]
    /// for a size of 0 or a longer upload, [`BlobError::Limit`], [`BlobError::Io`].
    pub async fn upload(&self, digest: Digest, size: u64, offset: u64) -> Result<Upload> {
        let limits = self.0.limits;
        if size > limits.artifact {
            return Err(BlobError::Limit { what: "the artifact's size in bytes", limit: limits.artifact });
        }
        if self.total().saturating_add(size) > limits.total {
            return Err(BlobError::Limit { what: "the size of all artifacts in bytes", limit: limits.total });
        }
        if guard(&self.0.claimed).len() >= limits.uploads {
            let limit = limits.uploads as u64;
            return Err(BlobError::Limit { what: "the number of uploads at once", limit });
        }
        let claim = self.0.claim(digest)?;
        let state = blocking(move || State::open(claim, size, offset)).await?;
        Ok(Upload { state: Some(state), digest })
    }
}

impl Upload {
    /// Where it stands, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.state.as_ref().map_or(0, |state| state.offset)
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`BlobError::WrongSize`] beyond the announced size, and then nothing of the upload is kept;
    /// [`BlobError::Io`] where the disk refuses. No call succeeds after a failed one: open it again.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let mut state = self.state.take().ok_or(BlobError::Busy(self.digest))?;
        let state = blocking(move || state.write(&bytes).map(|()| state)).await?;
        self.state = Some(state);
        Ok(())
    }

    /// Ends it: the bytes are checked, made durable and named.
    ///
    /// # Errors
    /// [`BlobError::WrongSize`] where bytes are missing; it can be resumed then. [`BlobError::WrongDigest`] where
    /// they are others than announced; nothing is kept then.
    pub async fn commit(mut self) -> Result<Uploaded> {
        let state = self.state.take().ok_or(BlobError::Busy(self.digest))?;
        blocking(move || state.commit()).await
    }
}

impl State {
    fn open(claim: Claim, size: u64, offset: u64) -> Result<Self> {
        if size == 0 {
            return Err(BlobError::WrongSize { expected: 1, actual: 0 });
        }
        let path = claim.inner.part(claim.digest);
        room(&claim, size.saturating_sub(offset))?;
        let open =
            File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let mut file = open.map_err(io("open", &path))?;
        if offset == 0 {
            file.set_len(0).map_err(io("truncate", &path))?;
        }
        let stands = length(&path)?;
        if stands != offset {
            return Err(BlobError::WrongOffset { expected: stands, actual: offset });
        }
        let (mut sha256, mut md5) = (Sha256::new(), Md5::new());
        // Hashes what is there; this also leaves the file at its end.
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).map_err(io("read", &path))?;
            if read == 0 {
                break;
            }
            sha256.update(&piece[..read]);
            md5.update(&piece[..read]);
        }
        Ok(Self { claim, file, sha256, md5, offset, size })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.claim.inner.part(self.claim.digest);
        let offset = self.offset + bytes.len() as u64;
        if offset > self.size {
            let _ = std::fs::remove_file(&path);
            return Err(BlobError::WrongSize { expected: self.size, actual: offset });
        }
        self.file.write_all(bytes).map_err(io("write", &path))?;
        self.sha256.update(bytes);
        self.md5.update(bytes);
        self.offset = offset;
        Ok(())
    }

    fn commit(self) -> Result<Uploaded> {
        let (inner, digest) = (&self.claim.inner, self.claim.digest);
        let (part, path) = (inner.part(digest), inner.path(digest));
        if self.offset != self.size {
            return Err(BlobError::WrongSize { expected: self.size, actual: self.offset });
        }
        let actual = Digest(self.sha256.finalize().into());
        if actual != digest {
            std::fs::remove_file(&part).map_err(io("remove", &part))?;
            return Err(BlobError::WrongDigest { expected: digest, actual });
        }
        self.file.sync_all().map_err(io("sync", &part))?;
        let replaced = length(&path)?;
        std::fs::rename(&part, &path).map_err(io("rename", &part))?;
        sync_dir(&inner.root)?;
        sync_dir(&inner.root.join("incoming"))?;
        inner.total.fetch_add(self.size, Ordering::Relaxed);
        inner.total.fetch_sub(replaced, Ordering::Relaxed);
        Ok(Uploaded { digest, md5: Md5Digest(self.md5.finalize().into()), size: self.size })
    }
}

/// The length of a file, 0 where it is not there.
fn length(path: &Path) -> Result<u64> {
    match path.metadata() {
        Ok(meta) => Ok(meta.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io("read", path)(error)),
    }
}

/// Refuses what would fill the disk that the database shares.
fn room(claim: &Claim, needed: u64) -> Result<()> {
    let root = &claim.inner.root;
    let disk = rustix::fs::statvfs(root).map_err(|error| io("read", root)(error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < needed.saturating_add(claim.inner.limits.reserve) {
        return Err(io("store an artifact in", root)(std::io::ErrorKind::StorageFull.into()));
    }
    Ok(())
}
