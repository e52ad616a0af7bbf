//! The one place that reads the clock. Tests set it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use upfleet_domain::time::Time;

/// A clock that differs by more from what has passed was set, and is not followed while the controller runs.
const STEP: i64 = 60_000;

/// The time of day: the system's, or one that a test sets. Clones share it.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The system's.
    #[default]
    System,
    /// The system's as it was at the start, and what has passed since: deadlines of rollouts must not pass because
    /// somebody sets the clock. Small corrections are followed.
    Steady(Arc<Steady>),
    /// Set by hand, in milliseconds since 1970.
    Manual(Arc<AtomicI64>),
}

/// See [`Clock::Steady`].
#[derive(Debug)]
pub struct Steady {
    wall: fn() -> Time,
    passed: fn() -> i64,
    /// The time of day at no time passed, corrected in small steps.
    base: AtomicI64,
    /// By how much the system's clock was set, in milliseconds; 0 while it agrees.
    step: AtomicI64,
}

impl Steady {
    fn new(wall: fn() -> Time, passed: fn() -> i64) -> Self {
        Self { wall, passed, base: AtomicI64::new(wall().0 - passed()), step: AtomicI64::new(0) }
    }

    fn now(&self) -> Time {
        let base = self.base.load(Ordering::SeqCst);
        let (wall, passed) = ((self.wall)().0, (self.passed)());
        let own = base.saturating_add(passed);
        let off = wall.saturating_sub(own);
        if off.abs() < STEP {
            // Whoever reads the clock at the same time has corrected it already: twice would be too much.
            let _ = self.base.compare_exchange(base, base + off, Ordering::SeqCst, Ordering::SeqCst);
            self.tell(0);
            return Time(wall);
        }
        self.tell(off);
        Time(own)
    }

    /// Says once that the clock was set.
    fn tell(&self, off: i64) {
        let before = self.step.swap(off, Ordering::SeqCst);
        if off != 0 && before.abs_diff(off) > STEP.unsigned_abs() {
            tracing::error!(
                step_seconds = off / 1000,
                "the system's clock was set; the controller goes on by what has passed. Set the clock right, or \
                 restart the controller to follow it"
            );
        } else if off == 0 && before != 0 {
            tracing::info!("the system's clock agrees again");
        }
    }
}

impl Clock {
    /// The system's clock as of now, and what passes.
    #[must_use]
    pub fn steady() -> Self {
        Self::Steady(Arc::new(Steady::new(wall, passed)))
    }

    /// A clock that stands at `time`.
    #[must_use]
    pub fn manual(time: Time) -> Self {
        Self::Manual(Arc::new(AtomicI64::new(time.0)))
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        match self {
            Self::System => wall(),
            Self::Steady(steady) => steady.now(),
            Self::Manual(millis) => Time(millis.load(Ordering::SeqCst)),
        }
    }

    /// By how much the system's clock was set since the start, in milliseconds; 0 where it is followed.
    #[must_use]
    pub fn step(&self) -> i64 {
        match self {
            Self::Steady(steady) => {
                steady.now();
                steady.step.load(Ordering::SeqCst)
            }
            Self::System | Self::Manual(_) => 0,
        }
    }

    /// Sets a clock that is set by hand; does nothing to the system's.
    pub fn set(&self, time: Time) {
        if let Self::Manual(millis) = self {
            millis.store(time.0, Ordering::SeqCst);
        }
    }
}

fn wall() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// Milliseconds since the boot, also those in which the machine slept.
fn passed() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.saturating_mul(1000).saturating_add(now.tv_nsec / 1_000_000)
}

/// A time as people read it, e.g. `2026-01-02T03:04:05Z`.
#[must_use]
pub fn rfc3339(time: Time) -> String {
    let millis = u64::try_from(time.0).unwrap_or(0);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + std::time::Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, atomic::AtomicBool};

    use super::*;

    static WALL: AtomicI64 = AtomicI64::new(0);
    static PASSED: AtomicI64 = AtomicI64::new(0);
    const YEAR: i64 = 365 * 86_400_000;

    /// One second passes, and the system's clock is set by `step` in it.
    fn second(clock: &Clock, step: i64) -> i64 {
        let before = clock.now().0;
        PASSED.fetch_add(1000, Ordering::SeqCst);
        WALL.fetch_add(1000 + step, Ordering::SeqCst);
        clock.now().0 - before
    }

    #[test]
    fn small_steps_are_followed_and_big_ones_are_not() {
        WALL.store(50 * YEAR, Ordering::SeqCst);
        let read = || Time(WALL.load(Ordering::SeqCst));
        let clock = Clock::Steady(Arc::new(Steady::new(read, || PASSED.load(Ordering::SeqCst))));
        assert_eq!(second(&clock, 0), 1000);
        assert_eq!((second(&clock, 1000), second(&clock, -1000)), (2000, 0));
        for step in [-300_000, -YEAR, 10 * YEAR] {
            assert_eq!(second(&clock, step), 1000, "{step}");
            assert_eq!(clock.step(), step);
            assert_eq!(second(&clock, -step), 1000, "it is set right again");
            assert_eq!(clock.step(), 0);
        }
        assert_eq!(clock.now(), read());
    }

    /// One reads the clock between another's two looks at it: as threads do, but always.
    #[test]
    fn those_who_read_at_once_correct_it_once() {
        static CLOCK: OnceLock<Steady> = OnceLock::new();
        static BESIDE: AtomicBool = AtomicBool::new(false);
        let read = || {
            if BESIDE.swap(false, Ordering::SeqCst) {
                CLOCK.get().unwrap().now();
            }
            Time(if CLOCK.get().is_some() { 1000 } else { 0 })
        };
        let clock = CLOCK.get_or_init(|| Steady::new(read, || 0));
        BESIDE.store(true, Ordering::SeqCst);
        assert_eq!(clock.now(), Time(1000));
        assert_eq!(clock.base.load(Ordering::SeqCst), 1000);
    }
}
