//! Reads: hashed before the first byte is served, then by range.

use std::{
    fs::File,
    io::{IoSliceMut, Read},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use sha2::{Digest as _, Sha256};
use upfleet_domain::digest::Digest;

use super::{BlobError, Blobs, PIECE, Reader, Result, Stamp, blocking, guard, io, pieces::Pieces};

/// An artifact open for reading. It stays readable where it is deleted meanwhile.
#[derive(Clone, Debug)]
pub struct Blob {
    file: Arc<File>,
    path: PathBuf,
    size: u64,
    pieces: Pieces,
    reader: Option<Reader>,
}

impl Blobs {
    /// Opens an artifact. The whole file is hashed first, unless that was done since it last changed and since
    /// this process began; readers of the same artifact wait for one to do it.
    ///
    /// # Errors
    /// [`BlobError::Missing`], [`BlobError::Damaged`] where its bytes are others, [`BlobError::Io`].
    pub async fn read(&self, digest: Digest) -> Result<Blob> {
        let path = self.0.path(digest);
        let verified = self.0.verified(digest);
        let mut verified = verified.lock_owned().await;
        let known = *verified;
        let pieces = self.0.pieces.clone();
        let opened = blocking(move || open(digest, &path, known, pieces)).await;
        if matches!(opened, Err(BlobError::Missing(_))) {
            // Whoever asks for what is not there must not fill the memory with its digests.
            guard(&self.0.verified).remove(&digest);
        }
        let (blob, stamp) = opened?;
        *verified = stamp;
        Ok(blob)
    }
}

fn open(digest: Digest, path: &Path, known: Option<Stamp>, pieces: Pieces) -> Result<(Blob, Option<Stamp>)> {
    let file = File::open(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => BlobError::Missing(digest),
        _ => io("open", path)(error),
    })?;
    let stamp = Stamp::of(&file.metadata().map_err(io("read", path))?);
    if known != Some(stamp) && hash(&file, path)? != digest {
        return Err(BlobError::Damaged(digest));
    }
    let blob = Blob { file: Arc::new(file), path: path.to_owned(), size: stamp.size, pieces, reader: None };
    Ok((blob, stamp.settled().then_some(stamp)))
}

fn hash(mut file: &File, path: &Path) -> Result<Digest> {
    let mut sha256 = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let read = file.read(&mut piece).map_err(io("read", path))?;
        if read == 0 {
            return Ok(Digest(sha256.finalize().into()));
        }
        sha256.update(&piece[..read]);
    }
}

impl Blob {
    /// The same, whose pieces are on their way to `reader`.
    #[must_use]
    pub fn read_by(self, reader: Reader) -> Self {
        Self { reader: Some(reader), ..self }
    }

    /// Length in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads from `offset`, up to `length` bytes and never more than [`PIECE`]; less at the end and where many
    /// read at once, nothing at the end. Waits while readers hold all the memory there is for them.
    ///
    /// # Errors
    /// [`BlobError::Range`] after the end, [`BlobError::Io`] where the disk refuses.
    pub async fn read_at(&self, offset: u64, length: u64) -> Result<Bytes> {
        let size = self.size;
        let left = size.checked_sub(offset).ok_or(BlobError::Range { offset, size })?;
        let length = usize::try_from(length.min(left)).unwrap_or(PIECE);
        if length == 0 {
            return Ok(Bytes::new());
        }
        let mut piece = self.pieces.take(length, self.reader.as_ref()).await;
        if self.read_cached(piece.bytes(), offset) {
            return Ok(piece.done());
        }
        let blob = self.clone();
        blocking(move || {
            blob.file.read_exact_at(piece.bytes(), offset).map_err(io("read", &blob.path))?;
            Ok(piece.done())
        })
        .await
    }

    /// Whether all of it lay in the kernel's cache: then it costs no thread.
    fn read_cached(&self, piece: &mut [u8], offset: u64) -> bool {
        let length = piece.len();
        let read = preadv2(&self.file, &mut [IoSliceMut::new(piece)], offset, ReadWriteFlags::NOWAIT);
        read == Ok(length)
    }
}
