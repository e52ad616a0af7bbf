//! The memory of pieces on their way to readers: bounded for all of them together, so that slow readers, however
//! many, hold no more than that.
//!
//! A piece counts until its last clone is dropped, which is when the connection has encrypted it. Where others wait
//! for memory, who has held a piece for long is cut.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    PIECE, guard,
    readers::{Held, Holding, Reader},
};

/// Bytes of all pieces together.
const BUDGET: usize = 64 * 1024 * 1024;
/// Where many read at once, a piece gets smaller, so that more of them fit: down to this.
const LEAST: usize = 16 * 1024;
/// No piece takes a larger part of what is free than one of so many.
const SHARE: usize = 64;
/// Buffers that are kept for the next pieces, so that their memory need not be cleared again.
const SPARE: usize = 4;
/// Who has held a piece for so long takes as good as nothing: 1 MiB at 17 KiB a second.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often whoever waits for memory looks for such readers.
const LOOK: Duration = Duration::from_secs(5);

/// See the module. Clones share the memory.
#[derive(Clone)]
pub(super) struct Pieces {
    free: Arc<Semaphore>,
    held: Held,
    patience: Duration,
    look: Duration,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl fmt::Debug for Pieces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pieces").field("free", &self.free.available_permits()).finish_non_exhaustive()
    }
}

impl Default for Pieces {
    fn default() -> Self {
        let free = Arc::new(Semaphore::new(BUDGET));
        Self { free, held: Held::default(), patience: PATIENCE, look: LOOK, spare: Arc::default() }
    }
}

impl Pieces {
    /// Waits for memory of up to `wanted` bytes, and never more than [`PIECE`].
    pub(super) async fn take(&self, wanted: usize, reader: Option<&Reader>) -> Filling {
        let share = (self.free.available_permits() / SHARE).max(LEAST);
        let length = wanted.min(PIECE).min(share);
        // Large buffers are all of one size, so that they can be used again; what is counted is what they take.
        let room = if length > PIECE / 2 { PIECE } else { length };
        let permit = self.permit(room).await;
        let buffer = if room == PIECE { guard(&self.spare).pop() } else { None };
        let buffer = buffer.unwrap_or_else(|| vec![0; room]);
        let holding = reader.map(|reader| self.held.list(reader.clone()));
        Filling(Owned { buffer, length, pieces: self.clone(), _holding: holding, _permit: permit })
    }

    async fn permit(&self, room: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from(room).expect("a piece is far below 4 GiB");
        let mut permit = pin!(self.free.clone().acquire_many_owned(permits));
        loop {
            match tokio::time::timeout(self.look, &mut permit).await {
                Ok(permit) => return permit.expect("the semaphore is never closed"),
                Err(_) => drop(self.cut(self.patience)),
            }
        }
    }

    /// Cuts readers that have held a piece for so long; says how many connections those were.
    pub(super) fn cut(&self, patience: Duration) -> usize {
        self.held.cut(patience)
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
    _holding: Option<Holding>,
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

    use tokio_util::sync::CancellationToken;

    use super::{super::readers::Readers, *};

    #[tokio::test]
    async fn slow_readers_together_hold_no_more_than_the_budget() {
        let pieces = Pieces::default();
        let mut held = Vec::new();
        while pieces.held() + LEAST <= BUDGET {
            held.push(pieces.take(usize::MAX, None).await.done());
        }
        assert!(held.len() > 300, "pieces get smaller: {}", held.len());
        assert_eq!(held.iter().map(|piece| room(piece.len())).sum::<usize>(), pieces.held());
        let waiting = pieces.take(LEAST, None);
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

    /// What a piece takes.
    fn room(length: usize) -> usize {
        if length > PIECE / 2 { PIECE } else { length }
    }

    #[tokio::test]
    async fn a_piece_is_counted_as_what_it_takes() {
        let pieces = Pieces::default();
        for length in [1, LEAST, PIECE / 2, PIECE / 2 + 1, PIECE - 1, PIECE] {
            let piece = pieces.take(length, None).await;
            assert_eq!((piece.0.buffer.len(), pieces.held()), (room(length), room(length)), "{length}");
            assert_eq!(piece.done().len(), length);
        }
    }

    /// A reader that takes nothing, and one that waits for the memory it holds.
    #[tokio::test]
    async fn who_waits_ends_those_who_hold_for_long() {
        let soon = Duration::from_millis(5);
        let pieces = Pieces { patience: soon, look: soon, ..Pieces::default() };
        let cut = CancellationToken::new();
        let reader = Readers::default().enter("nodes/a", 1, cut.clone()).unwrap();
        let mut held = Vec::new();
        while pieces.held() + LEAST <= BUDGET {
            held.push(pieces.take(usize::MAX, Some(&reader)).await.done());
        }
        // As its connection does.
        let ended = tokio::spawn(async move {
            cut.cancelled().await;
            drop(held);
        });
        let waiting = tokio::time::timeout(Duration::from_secs(10), pieces.take(LEAST, None));
        assert_eq!(waiting.await.expect("served").done().len(), LEAST);
        ended.await.unwrap();
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
        let mut first = pieces.take(PIECE, None).await;
        first.bytes().fill(7);
        drop(first.done());
        let second = pieces.take(PIECE - 1, None).await;
        assert_eq!(second.done().len(), PIECE - 1);
    }
}
