//! The engine: drives each open rollout by what the store says.
//!
//! One task per open rollout reads what changed, puts it to the pure machine, and commits the machine's new
//! state together with all that it asks for in one batch; only then do sessions see it. Nothing is kept that
//! a restart would miss: whoever starts the engine anew goes on where the store stands. It speaks to no agent
//! and knows no wire types.

mod commit;
mod driver;
mod fleet;
mod load;
mod operations;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, broadcast::error::RecvError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use upfleet_domain::id::{NodeId, RolloutId};

use crate::{
    clock::Clock,
    store::{Notice, Store},
};

pub use operations::{Command, Created, Rollouts, Wish};

/// After so long without a notice the engine looks for open rollouts again, in case one was missed.
const SWEEP: Duration = Duration::from_secs(30);

/// What one driver is woken for.
#[derive(Default)]
struct Wake {
    notify: Notify,
    /// Nodes that changed since the driver looked.
    nodes: Mutex<Nodes>,
    /// The linked rollout that the driver waits for.
    linked: Mutex<Option<RolloutId>>,
}

/// Which nodes to look at.
#[derive(Debug, Default)]
struct Nodes {
    all: bool,
    some: BTreeSet<NodeId>,
}

impl Wake {
    fn node(&self, node: &NodeId) {
        lock(&self.nodes).some.insert(node.clone());
        self.notify.notify_one();
    }

    fn everything(&self) {
        lock(&self.nodes).all = true;
        self.notify.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panicking driver leaves plain data behind; it is read anew anyway.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drives rollouts. Clones share the same drivers.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    clock: Clock,
    stop: CancellationToken,
    /// The name under which this controller holds leases; `None` where there is only one.
    holder: Option<String>,
    drivers: Mutex<BTreeMap<RolloutId, Arc<Wake>>>,
    tasks: TaskTracker,
    /// When this engine began: nodes not heard since then are given the time to come back.
    began: upfleet_domain::time::Time,
    /// Somebody asks whether the engine's loop lives; it says so.
    asked: Notify,
    answered: Notify,
}

impl Engine {
    /// An engine that is not running yet. `stop` ends it and its drivers.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, clock: Clock, holder: Option<String>, stop: CancellationToken) -> Self {
        let began = clock.now();
        let (drivers, tasks) = (Mutex::default(), TaskTracker::new());
        let (asked, answered) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { store, clock, stop, holder, drivers, tasks, began, asked, answered }))
    }

    /// Returns once the engine's loop has come round; never where it does not run.
    pub async fn answers(&self) {
        // Listens before it asks, so that no answer is missed.
        let answered = self.0.answered.notified();
        self.0.asked.notify_one();
        answered.await;
    }

    /// Follows the store until stopped, then waits for the drivers to come to rest.
    pub async fn run(self) {
        let mut notices = self.0.store.subscribe();
        self.sweep().await;
        let mut sweeps = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                () = self.0.stop.cancelled() => break,
                () = self.0.asked.notified() => self.0.answered.notify_waiters(),
                _ = sweeps.tick() => self.sweep().await,
                notice = notices.recv() => match notice {
                    Ok(notice) => self.notice(&notice).await,
                    Err(RecvError::Lagged(_)) => {
                        self.wake_all();
                        self.sweep().await;
                    }
                    Err(RecvError::Closed) => break,
                },
            }
        }
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    async fn notice(&self, notice: &Notice) {
        match notice {
            Notice::Rollout { id } => {
                let known = self.wake(id);
                if !known {
                    self.look_at(id).await;
                }
            }
            Notice::Node { id } => {
                lock(&self.0.drivers).values().for_each(|wake| wake.node(id));
            }
            _ => {}
        }
    }

    /// Wakes the rollout's driver and those that wait for the rollout; says whether it has one.
    fn wake(&self, id: &RolloutId) -> bool {
        let drivers = lock(&self.0.drivers);
        for wake in drivers.values().filter(|wake| lock(&wake.linked).as_ref() == Some(id)) {
            wake.notify.notify_one();
        }
        drivers.get(id).inspect(|wake| wake.notify.notify_one()).is_some()
    }

    fn wake_all(&self) {
        lock(&self.0.drivers).values().for_each(|wake| wake.everything());
    }

    /// Starts drivers for rollouts that have none.
    async fn sweep(&self) {
        match self.0.store.open_rollouts().await {
            Ok(rollouts) => {
                for record in rollouts.iter().filter(|record| driver::is_driven(record, &self.0.holder)) {
                    self.drive(&record.rollout.id);
                }
            }
            Err(error) => tracing::warn!(%error, "could not look for open rollouts; tries again"),
        }
    }

    async fn look_at(&self, id: &RolloutId) {
        match self.0.store.rollout(id).await {
            Ok(Some(record)) if driver::is_driven(&record, &self.0.holder) => self.drive(id),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, rollout = %id, "could not read a rollout; tries again"),
        }
    }

    fn drive(&self, id: &RolloutId) {
        let mut drivers = lock(&self.0.drivers);
        if drivers.contains_key(id) {
            return;
        }
        let wake = Arc::new(Wake::default());
        wake.everything();
        drivers.insert(id.clone(), wake.clone());
        let (engine, id) = (self.clone(), id.clone());
        self.0.tasks.spawn(async move {
            // A panic in one driver must not take the others along: the task ends, the next sweep starts it anew.
            let driver = driver::Driver::new(engine.0.clone(), id.clone(), wake);
            let ended = tokio::spawn(driver.run()).await;
            lock(&engine.0.drivers).remove(&id);
            match ended {
                Ok(()) => engine.look_again(&id).await,
                // Not at once: what made it fail is still there.
                Err(error) => {
                    tracing::error!(rollout = %id, %error, "a rollout's driver failed; it is started again");
                }
            }
        });
    }

    /// A rollout may have become open between its driver's last look and its end.
    async fn look_again(&self, id: &RolloutId) {
        if !self.0.stop.is_cancelled() {
            let open = self.0.store.rollout(id).await.ok().flatten();
            if open.is_some_and(|record| driver::is_driven(&record, &self.0.holder)) {
                self.drive(id);
            }
        }
    }
}

#[cfg(test)]
mod tests;
