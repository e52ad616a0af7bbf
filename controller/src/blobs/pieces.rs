//! The memory of pieces on their way to readers: bounded for all of them together, so that slow readers, however
//! many, hold no more than that.
//!
//! A piece counts until its last clone is dropped, which is when the connection has encrypted it.

use std::{
    fmt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{PIECE, guard};

/// Bytes of all pieces together.
const BUDGET: usize = 64 * 1024 * 1024;
/// Where many read at once, a piece gets smaller, so that more of them fit: down to this.
const LEAST: usize = 16 * 1024;
/// No piece takes a larger part of what is free than one of so many.
const SHARE: usize = 64;
/// Buffers that are kept for the next pieces, so that their memory need not be cleared again.
const SPARE: usize = 4;

/// See the module. Clones share the memory.
#[derive(Clone)]
pub(super) struct Pieces {
    free: Arc<Semaphore>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("free", &self.free.available_permits()).finish_non_exhaustive()
    }
}

impl Default for Pieces {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(BUDGET)), spare: Arc::default() }
    }
}

impl Pieces {
    /// Waits for memory of up to `wanted` bytes, and never more than [`PIECE`].
    pub(super) async fn take(&self, wanted: usize) -> Filling {
        let share = (self.free.available_permits() / SHARE).max(LEAST);
        let length = wanted.min(PIECE).min(share);
        let permits = u32::try_from(length).expect("a piece is far below 4 GiB");
        let permit = self.free.clone().acquire_many_owned(permits).await;
        let permit = permit.expect("the semaphore is never closed");
        let buffer = if length > PIECE / 2 { guard(&self.spare).pop() } else { None };
        let buffer = buffer.unwrap_or_else(|| vec![0; if length > PIECE / 2 { PIECE } else { length }]);
        Filling(Owned { buffer, length, pieces: self.clone(), _permit: permit })
    }

    /// Bytes that are held now.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        BUDGET - self.free.available_permits()
    }
}

/// Memory that is being filled.
pub(super) struct Filling(Owned);

impl Filling {
    /// All of it; it may hold what an earlier piece left.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let length = self.0.length;
        &mut self.0.buffer[..length]
    }

    /// The piece, once it is filled.
    pub(super) fn done(self) -> Bytes {
        Bytes::from_owner(self.0)
    }
}

struct Owned {
    buffer: Vec<u8>,
    length: usize,
    pieces: Pieces,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        if buffer.len() == PIECE {
            let mut spare = guard(&self.pieces.spare);
            if spare.len() < SPARE {
                spare.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use super::*;

    #[tokio::test]
    async fn slow_readers_together_hold_no_more_than_the_budget() {
        let pieces = Pieces::default();
        let mut held = Vec::new();
        while pieces.held() + LEAST <= BUDGET {
            held.push(pieces.take(usize::MAX).await.done());
        }
        assert!(held.len() > 300, "pieces get smaller: {}", held.len());
        assert_eq!(held.iter().map(Bytes::len).sum::<usize>(), pieces.held());
        let waiting = pieces.take(LEAST);
        tokio::pin!(waiting);
        assert!(is_pending(&mut waiting).await, "the next one waits");
        let clone = held[0].clone();
        held.clear();
        assert_eq!(pieces.held(), clone.len() + LEAST, "a clone holds on; the next one has its own");
        drop(clone);
        assert_eq!(waiting.await.done().len(), LEAST);
        assert_eq!(pieces.held(), 0);
        assert!(guard(&pieces.spare).len() <= SPARE);
    }

    async fn is_pending(future: &mut (impl Future + Unpin)) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = tokio::task::yield_now() => true,
        }
    }

    #[tokio::test]
    async fn what_an_earlier_piece_left_is_not_shown() {
        let pieces = Pieces::default();
        let mut first = pieces.take(PIECE).await;
        first.bytes().fill(7);
        drop(first.done());
        let second = pieces.take(PIECE - 1).await;
        assert_eq!(second.done().len(), PIECE - 1);
    }
}
