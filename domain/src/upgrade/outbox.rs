//! The reports that the controller has not acknowledged yet, within bounds.

use serde::{Deserialize, Serialize};

use crate::{id::UpgradeId, report::UpgradeReport};

/// How many reports are kept at most.
pub const MAX_REPORTS: usize = 256;

/// Unacknowledged reports, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outbox {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    report: UpgradeReport,
    /// Only the reason changed; the first to go when space is short.
    #[serde(default)]
    note: bool,
}

impl Outbox {
    /// Adds a report. Beyond [`MAX_REPORTS`] the oldest note goes; where there is none, the oldest report
    /// that ends no upgrade; an upgrade's end goes last of all.
    pub fn push(&mut self, report: UpgradeReport, note: bool) {
        self.entries.push(Entry { report, note });
        while self.entries.len() > MAX_REPORTS {
            let ends = |entry: &Entry| entry.report.state.outcome().is_some();
            let note = self.entries.iter().position(|entry| entry.note);
            let passing = || self.entries.iter().position(|entry| !ends(entry));
            let oldest = note.or_else(passing).unwrap_or(0);
            self.entries.remove(oldest);
        }
    }

    /// Forgets what is recorded: all of `upgrade` up to `sequence`.
    pub fn acked(&mut self, upgrade: &UpgradeId, sequence: u64) {
        self.entries.retain(|entry| entry.report.upgrade != *upgrade || entry.report.sequence > sequence);
    }

    /// What is left to send, oldest first.
    pub fn reports(&self) -> impl DoubleEndedIterator<Item = &UpgradeReport> {
        self.entries.iter().map(|entry| &entry.report)
    }

    /// How many are left to send.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is left to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
