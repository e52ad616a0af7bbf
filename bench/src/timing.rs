//! Times a closure some times and says how long it took. The median, since a machine that does other things
//! only ever makes a run longer.

use std::time::{Duration, Instant};

/// How long the runs took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The fastest.
    pub min: Duration,
    /// The middle one.
    pub median: Duration,
    /// The slowest.
    pub max: Duration,
}

/// Runs `work` once unmeasured and then `runs` times, 1 or more.
pub fn time<T>(runs: usize, mut work: impl FnMut() -> T) -> Timing {
    std::hint::black_box(work());
    let mut spans: Vec<Duration> = (0..runs.max(1))
        .map(|_| {
            let began = Instant::now();
            std::hint::black_box(work());
            began.elapsed()
        })
        .collect();
    spans.sort_unstable();
    Timing { min: spans[0], median: spans[spans.len() / 2], max: spans[spans.len() - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_as_often_as_asked() {
        let mut runs = 0;
        let timing = time(5, || runs += 1);
        assert_eq!(runs, 6);
        assert!(timing.min <= timing.median && timing.median <= timing.max);
    }
}
