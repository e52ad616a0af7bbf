//! What happened to simulated agents: counters, and moments where a benchmark asks for them.

use std::{
    ops::AddAssign,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

/// A moment in an agent's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The controller greeted it.
    Online,
    /// An order to install or patch something reached it.
    Ordered,
    /// The controller said that the first report of an upgrade is stored.
    Recorded,
    /// The controller said that the end of an upgrade is stored.
    Ended,
    /// An agent reports that its upgrade was rolled back.
    RolledBack,
}

/// Counters of all agents of a process.
#[derive(Debug, Default)]
pub struct Stats {
    connected: AtomicI64,
    connects: AtomicU64,
    failures: AtomicU64,
    refusals: AtomicU64,
    displaced: AtomicU64,
    orders: AtomicU64,
    reports: AtomicU64,
    recorded: AtomicU64,
    succeeded: AtomicU64,
    rolled_back: AtomicU64,
    downloaded: AtomicU64,
    renewals: AtomicU64,
    marking: AtomicBool,
    marks: Mutex<Vec<(Mark, Instant)>>,
}

/// A copy of the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Sessions open now.
    pub connected: i64,
    /// Sessions opened so far.
    pub connects: u64,
    /// Connections that did not come about, or ended without being asked to; each is tried again.
    pub failures: u64,
    /// Sessions that the controller refused for who the agent is: none should be.
    pub refusals: u64,
    /// Sessions that another one of the same node displaced: none should be.
    pub displaced: u64,
    /// Orders received.
    pub orders: u64,
    /// Reports sent, those sent again included.
    pub reports: u64,
    /// Reports that the controller has stored.
    pub recorded: u64,
    /// Upgrades that succeeded.
    pub succeeded: u64,
    /// Upgrades that were rolled back.
    pub rolled_back: u64,
    /// Bytes of artifacts fetched and verified.
    pub downloaded: u64,
    /// Certificates renewed.
    pub renewals: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.connected += other.connected;
        self.connects += other.connects;
        self.failures += other.failures;
        self.refusals += other.refusals;
        self.displaced += other.displaced;
        self.orders += other.orders;
        self.reports += other.reports;
        self.recorded += other.recorded;
        self.succeeded += other.succeeded;
        self.rolled_back += other.rolled_back;
        self.downloaded += other.downloaded;
        self.renewals += other.renewals;
    }
}

/// What is counted one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Connected,
    Closed,
    Failed,
    Refused,
    Displaced,
    Ordered,
    Reported,
    Recorded,
    Succeeded,
    RolledBack,
    Renewed,
}

impl Stats {
    pub(super) fn count(&self, what: Count) {
        let counter = match what {
            Count::Connected => {
                self.connected.fetch_add(1, Relaxed);
                &self.connects
            }
            Count::Closed => {
                self.connected.fetch_sub(1, Relaxed);
                return;
            }
            Count::Failed => &self.failures,
            Count::Refused => &self.refusals,
            Count::Displaced => &self.displaced,
            Count::Ordered => &self.orders,
            Count::Reported => &self.reports,
            Count::Recorded => &self.recorded,
            Count::Succeeded => &self.succeeded,
            Count::RolledBack => &self.rolled_back,
            Count::Renewed => &self.renewals,
        };
        counter.fetch_add(1, Relaxed);
    }

    pub(super) fn fetched(&self, bytes: u64) {
        self.downloaded.fetch_add(bytes, Relaxed);
    }

    pub(super) fn mark(&self, mark: Mark) {
        if self.marking.load(Relaxed) {
            self.marks.lock().unwrap_or_else(PoisonError::into_inner).push((mark, Instant::now()));
        }
    }

    /// Begins to note moments anew.
    pub fn note(&self) {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.marking.store(true, Relaxed);
    }

    /// Milliseconds from `began` to each moment of one kind that was noted.
    #[must_use]
    pub fn millis(&self, of: Mark, began: Instant) -> Vec<f64> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |at: &Instant| at.saturating_duration_since(began).as_secs_f64() * 1e3;
        marks.iter().filter(|(mark, _)| *mark == of).map(|(_, at)| since(at)).collect()
    }

    /// How many moments of one kind were noted.
    #[must_use]
    pub fn noted(&self, of: Mark) -> usize {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.iter().filter(|(mark, _)| *mark == of).count()
    }

    /// The counters now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            connected: self.connected.load(Relaxed),
            connects: self.connects.load(Relaxed),
            failures: self.failures.load(Relaxed),
            refusals: self.refusals.load(Relaxed),
            displaced: self.displaced.load(Relaxed),
            orders: self.orders.load(Relaxed),
            reports: self.reports.load(Relaxed),
            recorded: self.recorded.load(Relaxed),
            succeeded: self.succeeded.load(Relaxed),
            rolled_back: self.rolled_back.load(Relaxed),
            downloaded: self.downloaded.load(Relaxed),
            renewals: self.renewals.load(Relaxed),
        }
    }
}
