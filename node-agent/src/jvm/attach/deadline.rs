//! How long something may take, and waiting within that. For the helper's single thread, which may sleep.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::Failure;

/// The first pause between two looks.
pub const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Until when something may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    begun: Instant,
    at: Instant,
}

impl Deadline {
    /// From now on.
    pub fn after(limit: Duration) -> Self {
        let begun = Instant::now();
        Self { begun, at: begun + limit }
    }

    /// The earlier of this one and `limit` from now.
    pub fn or_after(self, limit: Duration) -> Self {
        let begun = Instant::now();
        Self { begun, at: self.at.min(begun + limit) }
    }

    /// What is left, never nothing: the system takes that for no limit.
    pub fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
    }

    /// Whether it is over.
    pub fn passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// How long it was from the beginning, for a sentence.
    pub fn seconds(self) -> u64 {
        self.at.duration_since(self.begun).as_secs()
    }

    /// What is said when it is over.
    pub fn failure(self) -> Failure {
        Failure::Timeout { seconds: self.seconds() }
    }

    /// Waits `pause`, which grows, unless the time is over.
    pub fn sleep(self, pause: &mut Duration) -> bool {
        if self.passed() {
            return false;
        }
        thread::sleep(*pause);
        *pause = (*pause * 2).min(LONGEST_PAUSE);
        true
    }
}
