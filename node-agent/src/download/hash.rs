//! Digests beside each other and beside the write, each on a thread of its own: one after the other they would
//! bound an agent, on two cores already.
//!
//! The bytes are shared, never copied; a short queue bounds what is held.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
    thread::{Builder, JoinHandle},
};

use bytes::Bytes;
use md5::{Digest, Md5};
use sha2::Sha256;

/// Chunks that may wait for a digest. All chunks that are held are shared with the others' queues.
const QUEUE: usize = 2;

/// SHA-256, and MD5 where it is wanted, of the same bytes.
pub(super) struct Hashing {
    sha256: Hasher<Sha256>,
    md5: Option<Hasher<Md5>>,
}

impl Hashing {
    /// Begins anew.
    pub(super) fn start(with_md5: bool) -> io::Result<Self> {
        let md5 = if with_md5 { Some(Hasher::start("md5")?) } else { None };
        Ok(Self { sha256: Hasher::start("sha256")?, md5 })
    }

    /// Adds bytes; waits while the queues are full.
    pub(super) fn add(&mut self, chunk: &Bytes) -> io::Result<()> {
        if let Some(md5) = &mut self.md5 {
            md5.add(chunk.clone())?;
        }
        self.sha256.add(chunk.clone())
    }

    /// Waits for the digests of all that was added: SHA-256, and MD5 where it was wanted.
    pub(super) fn finish(self) -> io::Result<([u8; 32], Option<[u8; 16]>)> {
        let sha256 = self.sha256.finish()?.into();
        let md5 = self.md5.map(Hasher::finish).transpose()?.map(Into::into);
        Ok((sha256, md5))
    }
}

struct Hasher<D> {
    chunks: SyncSender<Bytes>,
    thread: JoinHandle<D>,
}

impl<D: Digest + Send + 'static> Hasher<D> {
    fn start(name: &str) -> io::Result<Self> {
        let (chunks, receiver) = sync_channel::<Bytes>(QUEUE);
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            let mut digest = D::new();
            receiver.iter().for_each(|chunk| digest.update(&chunk));
            digest
        })?;
        Ok(Self { chunks, thread })
    }

    fn add(&mut self, chunk: Bytes) -> io::Result<()> {
        self.chunks.send(chunk).map_err(|_| ended())
    }

    fn finish(self) -> io::Result<sha2::digest::Output<D>> {
        drop(self.chunks);
        Ok(self.thread.join().map_err(|_| ended())?.finalize())
    }
}

fn ended() -> io::Error {
    io::Error::other("a digest's thread ended")
}
