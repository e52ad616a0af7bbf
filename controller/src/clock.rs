//! The one place that reads the clock. Tests set it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use upfleet_domain::time::Time;

/// The time of day: the system's, or one that a test sets. Clones share it.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// Set by hand, in milliseconds since 1970.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// A clock that stands at `time`.
    #[must_use]
    pub fn manual(time: Time) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(time.0)))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            }
            Self::Manual(millis) => Time(millis.load(Ordering::SeqCst)),
        }
    }

    /// Sets a clock that is set by hand; does nothing to the system's.
    pub fn set(&self, time: Time) {
        if let Self::Manual(millis) = self {
            millis.store(time.0, Ordering::SeqCst);
        }
    }
}

/// A time as people read it, e.g. `2026-01-02T03:04:05Z`.
#[must_use]
pub fn rfc3339(time: Time) -> String {
    let millis = u64::try_from(time.0).unwrap_or(0);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_millis(millis)).to_string()
}
