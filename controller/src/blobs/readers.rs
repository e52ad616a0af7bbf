//! Who reads artifacts now: so many at once under one name, and none that holds pieces for long while others wait.
//!
//! A reader whose stream may not flow is asked for nothing and wakes nobody, so that nothing of its own would end it:
//! it is its connection that is cut. Pieces say by themselves how long they have been held.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{BlobError, Result, guard};

/// Counts readers by name. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers(Arc<Mutex<HashMap<String, usize>>>);

impl Readers {
    /// Counts one more in, until it and all pieces on their way to it are gone.
    pub(super) fn enter(&self, name: &str, limit: usize, cut: CancellationToken) -> Result<Reader> {
        let mut counts = guard(&self.0);
        let count = counts.entry(name.to_owned()).or_default();
        if *count >= limit {
            return Err(BlobError::Limit { what: "the number of downloads at once", limit: limit as u64 });
        }
        *count += 1;
        drop(counts);
        Ok(Reader(Arc::new(Entry { readers: self.clone(), name: name.to_owned(), cut })))
    }
}

#[derive(Debug)]
struct Entry {
    readers: Readers,
    name: String,
    /// Cuts its connection.
    cut: CancellationToken,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut counts = guard(&self.readers.0);
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

/// One that reads. Clones are the same reader.
#[derive(Clone, Debug)]
pub struct Reader(Arc<Entry>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    held: HashMap<u64, (Instant, Reader)>,
}

/// The pieces that readers hold, with when each was given. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Held(Arc<Mutex<Table>>);

impl Held {
    /// Lists a piece until what is returned is dropped.
    pub(super) fn list(&self, reader: Reader) -> Holding {
        let mut table = guard(&self.0);
        let id = table.next;
        table.next += 1;
        table.held.insert(id, (Instant::now(), reader));
        drop(table);
        Holding { held: self.clone(), id }
    }

    /// Cuts the connection of each reader that has held a piece for so long; says how many connections those were.
    pub(super) fn cut(&self, patience: Duration) -> usize {
        let table = guard(&self.0);
        let slow = table.held.values().filter(|(since, _)| since.elapsed() >= patience);
        let slow: Vec<Reader> = slow.map(|(_, reader)| reader.clone()).collect();
        drop(table);
        let mut cut = 0;
        for Reader(reader) in slow.iter().filter(|reader| !reader.0.cut.is_cancelled()) {
            tracing::warn!(reader = reader.name, "a reader that takes nothing is cut: others wait");
            reader.cut.cancel();
            cut += 1;
        }
        cut
    }
}

/// Keeps a piece listed.
#[derive(Debug)]
pub(super) struct Holding {
    held: Held,
    id: u64,
}

impl Drop for Holding {
    fn drop(&mut self) {
        // The reader is dropped after the lock: it may be the last of its name.
        let gone = guard(&self.held.0).held.remove(&self.id);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_name_has_so_many_readers_until_their_pieces_are_gone() {
        let (readers, held) = (Readers::default(), Held::default());
        let enter = |name| readers.enter(name, 2, CancellationToken::new());
        let (first, second) = (enter("nodes/a").unwrap(), enter("nodes/a").unwrap());
        assert!(matches!(enter("nodes/a"), Err(BlobError::Limit { limit: 2, .. })));
        assert!(enter("nodes/b").is_ok(), "the others have their own");
        let piece = held.list(first);
        drop(second);
        let second = enter("nodes/a").unwrap();
        assert!(enter("nodes/a").is_err(), "a reader counts while a piece is on its way to it");
        drop((piece, second));
        assert!(guard(&readers.0).is_empty());
    }

    #[test]
    fn who_holds_a_piece_for_long_is_cut_and_nobody_else() {
        let (readers, held) = (Readers::default(), Held::default());
        let enter = || {
            let cut = CancellationToken::new();
            (readers.enter("nodes/a", 9, cut.clone()).unwrap(), cut)
        };
        let ((slow, slow_cut), (idle, idle_cut)) = (enter(), enter());
        let piece = held.list(slow);
        drop(held.list(idle));
        assert_eq!(held.cut(Duration::from_secs(60)), 0, "not yet");
        assert_eq!(held.cut(Duration::ZERO), 1);
        assert!(slow_cut.is_cancelled() && !idle_cut.is_cancelled());
        assert_eq!(held.cut(Duration::ZERO), 0, "once");
        drop(piece);
    }
}
