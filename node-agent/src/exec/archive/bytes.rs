//! Readers that hash or count what passes through them.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use upfleet_domain::digest::Digest;

/// Hashes what is read through it.
pub(in crate::exec) struct Hashing<'a> {
    inner: &'a mut dyn Read,
    hasher: Sha256,
}

impl<'a> Hashing<'a> {
    pub(in crate::exec) fn new(inner: &'a mut dyn Read) -> Self {
        Self { inner, hasher: Sha256::new() }
    }

    /// The digest of what was read.
    pub(in crate::exec) fn digest(self) -> Digest {
        Digest(self.hasher.finalize().into())
    }
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

/// SHA-256 of the rest of a reader.
pub(super) fn digest(reader: &mut dyn Read) -> io::Result<Digest> {
    let mut hashing = Hashing::new(reader);
    io::copy(&mut hashing, &mut io::sink())?;
    Ok(hashing.digest())
}

/// CRC-32 of what is read through it, and how much that was.
pub(super) struct Checked<R> {
    inner: R,
    hasher: crc32fast::Hasher,
    length: u64,
}

impl<R: Read> Checked<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: crc32fast::Hasher::new(), length: 0 }
    }

    /// CRC-32, length, and the reader below.
    pub(super) fn finish(self) -> (u32, u64, R) {
        (self.hasher.finalize(), self.length, self.inner)
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..read]);
        self.length += read as u64;
        Ok(read)
    }
}
