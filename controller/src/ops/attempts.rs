//! Bounds guessing: after some failures an origin has to wait.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use upfleet_domain::{
    reason::{Reason, ReasonCode},
    time::Time,
};

/// So many failures …
const FAILURES: u32 = 5;
/// … within so many milliseconds, and the origin waits until they are over.
const WINDOW_MILLIS: i64 = 60_000;
/// Origins remembered; the oldest are forgotten beyond it.
const ORIGINS: usize = 10_000;

/// Failed attempts by origin.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<IpAddr, (u32, Time)>>);

impl Attempts {
    /// Whether an origin may try.
    ///
    /// # Errors
    /// `TOO_MANY_ATTEMPTS`.
    pub fn check(&self, origin: IpAddr, now: Time) -> Result<(), Reason> {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match failures.get(&origin) {
            Some((count, since)) if *count >= FAILURES && now.0 - since.0 < WINDOW_MILLIS => {
                Err(Reason::new(ReasonCode::TooManyAttempts).with("address", origin))
            }
            _ => Ok(()),
        }
    }

    /// An attempt failed.
    pub fn failed(&self, origin: IpAddr, now: Time) {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failures.retain(|_, (_, since)| now.0 - since.0 < WINDOW_MILLIS);
        if failures.len() >= ORIGINS
            && let Some(oldest) = failures.iter().min_by_key(|(_, (_, since))| *since).map(|(ip, _)| *ip)
        {
            failures.remove(&oldest);
        }
        let (count, _) = failures.entry(origin).or_insert((0, now));
        *count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_minute_and_the_origin_waits() {
        let attempts = Attempts::default();
        let (bad, good) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for second in 0..5 {
            assert!(attempts.check(bad, Time(second * 1000)).is_ok());
            attempts.failed(bad, Time(second * 1000));
        }
        assert_eq!(attempts.check(bad, Time(5000)).unwrap_err().code, ReasonCode::TooManyAttempts);
        assert!(attempts.check(good, Time(5000)).is_ok());
        assert!(attempts.check(bad, Time(60_000)).is_ok(), "a minute after the first");
    }
}
