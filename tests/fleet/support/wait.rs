//! Waiting for a condition with a bounded deadline: the only way these tests wait.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// Long enough for anything a test waits for on a busy machine; nothing takes that long when it works.
pub const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(25);

/// Polls until `condition` gives a value.
///
/// # Panics
/// With `what` once `SOON` has passed.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(began.elapsed() < SOON, "waited {SOON:?} for: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// The same for conditions that ask over the network. `Err` says what was seen last, for the panic's text.
pub async fn eventually_async<T, F: Future<Output = Result<T, String>>>(
    what: &str,
    condition: impl FnMut() -> F,
) -> T {
    within_async(SOON, what, condition).await
}

/// The same with a deadline of its own: for what is promised within a time, or takes long on a bad line.
pub async fn within_async<T, F: Future<Output = Result<T, String>>>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        let seen = match condition().await {
            Ok(value) => return value,
            Err(seen) => seen,
        };
        assert!(began.elapsed() < limit, "waited {limit:?} for: {what}; last seen: {seen}");
        // What takes seconds is asked for less often: many tests wait at the same time.
        let pause = if began.elapsed() < Duration::from_secs(3) { PAUSE } else { 8 * PAUSE };
        tokio::time::sleep(pause).await;
    }
}
