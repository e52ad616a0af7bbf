//! Who is connected now, and how to reach them. Nothing here outlives the connections.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, broadcast, broadcast::error::RecvError, mpsc};
use tokio_util::sync::CancellationToken;
use upfleet_domain::{
    id::{NodeId, UpgradeId},
    reason::Reason,
};

use super::{Clones, logs::Query, manifests::Manifests};
use crate::{
    ca::Ca,
    clock::Clock,
    store::{Change, Notice, Store},
};

/// Byte progress of an upgrade; never stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The node.
    pub node: NodeId,
    /// The upgrade.
    pub upgrade: UpgradeId,
    /// Bytes fetched.
    pub fetched: u64,
    /// Bytes to fetch.
    pub total: u64,
}

/// How to reach one open session.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) number: u64,
    pub(super) instance: String,
    /// Woken when the node's orders may have changed.
    pub(super) wake: Arc<Notify>,
    /// Takes questions for a component's output.
    pub(super) queries: mpsc::Sender<Box<Query>>,
    pub(super) end: End,
}

/// Ends a session with a reason.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    pub(super) token: CancellationToken,
    reason: Arc<Mutex<Option<Reason>>>,
}

impl End {
    pub(super) fn with(&self, reason: Reason) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.token.cancel();
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Default)]
struct Tables {
    next: u64,
    open: HashMap<NodeId, Handle>,
    progress: HashMap<NodeId, Progress>,
    clones: Clones,
}

struct Shared {
    store: Arc<dyn Store>,
    ca: Arc<Ca>,
    clock: Clock,
    tables: Mutex<Tables>,
    progress: broadcast::Sender<Progress>,
    manifests: Manifests,
    /// Held for reading while what an agent said is recorded.
    gate: Arc<tokio::sync::RwLock<()>>,
    /// Opening and closing of one node's sessions are written in the order they happen.
    turns: Vec<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
}

/// What became of a new session.
pub(super) enum Admission {
    /// It serves the node; the handle of a session that it displaced is ended already.
    Serves,
    /// Two processes use the node's key in turn; the other session is ended already.
    Clone,
}

/// How often the nodes that are connected are recorded as seen.
const SEEN: Duration = Duration::from_secs(60);
/// Byte progress that a slow watcher may lag behind before it misses some.
const PROGRESS_BACKLOG: usize = 1024;

/// The open sessions of one controller. Clones share them.
#[derive(Clone)]
pub struct Sessions(Arc<Shared>);

impl Sessions {
    /// No sessions yet. `stop` ends all that will be opened.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, ca: Arc<Ca>, clock: Clock, stop: CancellationToken) -> Self {
        let (progress, _) = broadcast::channel(PROGRESS_BACKLOG);
        let turns = (0..64).map(|_| tokio::sync::Mutex::new(())).collect();
        let (tables, manifests) = (Mutex::default(), Manifests::default());
        let gate = Arc::default();
        Self(Arc::new(Shared { store, ca, clock, tables, progress, manifests, gate, turns, stop }))
    }

    /// Wakes sessions as the store changes and records who is connected, until stopped.
    pub async fn run(self) {
        let mut notices = self.store().subscribe();
        let mut seen = tokio::time::interval(SEEN);
        loop {
            tokio::select! {
                () = self.0.stop.cancelled() => return,
                notice = notices.recv() => match notice {
                    Ok(Notice::Desired { node }) => self.wake(&node),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => self.wake_all(),
                    Err(RecvError::Closed) => return,
                },
                _ = seen.tick() => self.record_seen().await,
            }
        }
    }

    /// Byte progress from now on; a slow receiver misses some.
    #[must_use]
    pub fn progress(&self) -> broadcast::Receiver<Progress> {
        self.0.progress.subscribe()
    }

    /// The newest byte progress of a connected node.
    #[must_use]
    pub fn progress_of(&self, node: &NodeId) -> Option<Progress> {
        self.tables().progress.get(node).cloned()
    }

    /// How many agents are connected.
    #[must_use]
    pub fn count(&self) -> usize {
        self.tables().open.len()
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }

    /// Through it passes all that agents say; whoever holds it for writing has the store to himself.
    #[must_use]
    pub fn gate(&self) -> Arc<tokio::sync::RwLock<()>> {
        self.0.gate.clone()
    }

    pub(super) fn manifests(&self) -> &Manifests {
        &self.0.manifests
    }

    pub(super) fn ca(&self) -> &Ca {
        &self.0.ca
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Cancelled once the controller stops.
    pub(crate) fn stopped(&self) -> CancellationToken {
        self.0.stop.clone()
    }

    /// Waits for the turn to open or close a session of `node`.
    pub(super) async fn turn(&self, node: &NodeId) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        node.hash(&mut hasher);
        let index = usize::try_from(hasher.finish() % self.0.turns.len() as u64).unwrap_or(0);
        self.0.turns[index].lock().await
    }

    pub(super) fn number(&self) -> u64 {
        let mut tables = self.tables();
        tables.next += 1;
        tables.next
    }

    /// Lists a session; the one before it is displaced, or both end as clones.
    pub(super) fn admit(&self, node: &NodeId, handle: Handle) -> Admission {
        let mut tables = self.tables();
        let Some(older) = tables.open.get(node).cloned() else {
            tables.open.insert(node.clone(), handle);
            return Admission::Serves;
        };
        let now = self.0.clock.now();
        if tables.clones.displaced(node, &older.instance, &handle.instance, now) {
            tables.open.remove(node);
            older.end.with(super::session::clone_suspected(node));
            return Admission::Clone;
        }
        tables.open.insert(node.clone(), handle);
        older.end.with(super::session::displaced(node));
        Admission::Serves
    }

    /// Removes a session; false where another has displaced it.
    pub(super) fn dismiss(&self, node: &NodeId, number: u64) -> bool {
        let mut tables = self.tables();
        if tables.open.get(node).is_none_or(|handle| handle.number != number) {
            return false;
        }
        tables.open.remove(node);
        tables.progress.remove(node);
        true
    }

    pub(super) fn handle(&self, node: &NodeId) -> Option<Handle> {
        self.tables().open.get(node).cloned()
    }

    pub(super) fn publish(&self, progress: Progress) {
        self.tables().progress.insert(progress.node.clone(), progress.clone());
        // Nobody watching is no failure.
        let _ = self.0.progress.send(progress);
    }

    fn wake(&self, node: &NodeId) {
        if let Some(handle) = self.tables().open.get(node) {
            handle.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        self.tables().open.values().for_each(|handle| handle.wake.notify_one());
    }

    async fn record_seen(&self) {
        let now = self.0.clock.now();
        let nodes: Vec<_> = self.tables().open.keys().map(|node| (node.clone(), now)).collect();
        if nodes.is_empty() {
            return;
        }
        if let Err(error) = self.store().commit(vec![Change::SeeNodes(nodes)]).await {
            tracing::warn!(%error, "could not record which nodes are connected");
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each change is whole within one call: a panic elsewhere leaves nothing half done.
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
