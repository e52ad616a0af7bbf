//! A byte rate, shared by all downloads of the agent.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use tokio::time::Instant;

/// Bytes up to this span's worth may come at once after a pause.
const BURST: Duration = Duration::from_millis(250);

/// A token bucket, kept as the time at which it would be full again.
pub(super) struct Limiter {
    bytes_per_second: Option<u64>,
    paid_until: Mutex<Option<Instant>>,
}

impl Limiter {
    /// `None` is no limit.
    pub(super) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { bytes_per_second: bytes_per_second.filter(|rate| *rate > 0), paid_until: Mutex::new(None) }
    }

    /// The rate, if there is one.
    pub(super) fn rate(&self) -> Option<u64> {
        self.bytes_per_second
    }

    /// Waits until `bytes` more may be taken.
    pub(super) async fn take(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        #[expect(clippy::cast_precision_loss, reason = "a rate is far below 2^52")]
        let cost = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let now = Instant::now();
        let until = {
            let mut paid_until = self.paid_until.lock().unwrap_or_else(PoisonError::into_inner);
            let from = paid_until.unwrap_or(now).max(now);
            *paid_until.insert(from + cost)
        };
        tokio::time::sleep_until(until.checked_sub(BURST).unwrap_or(now)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_over_all_takers() {
        let limiter = Limiter::new(Some(1000));
        let began = Instant::now();
        let half = async {
            for _ in 0..50 {
                limiter.take(100).await;
            }
        };
        tokio::join!(half, async {
            for _ in 0..50 {
                limiter.take(100).await;
            }
        });
        let taken = began.elapsed();
        assert!((Duration::from_millis(9700)..Duration::from_millis(10_100)).contains(&taken), "{taken:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_rate_nothing_waits() {
        let began = Instant::now();
        Limiter::new(None).take(usize::MAX).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
