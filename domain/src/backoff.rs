//! How long to wait before trying again: exponential, with full jitter.
//!
//! Full jitter (anything from nothing to the bound) spreads a fleet that lost its controller at one moment
//! better than a fixed part plus a random part. The seed comes from outside; nothing here is random by itself.

use std::time::Duration;

/// How waits grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The bound of the first wait.
    pub base: Duration,
    /// No wait is longer.
    pub cap: Duration,
}

impl Backoff {
    /// For sessions and downloads: half a second at first, a minute at most.
    pub const NETWORK: Self = Self { base: Duration::from_millis(500), cap: Duration::from_secs(60) };

    /// The longest wait before attempt `attempt`, counted from 0.
    #[must_use]
    pub fn bound(&self, attempt: u32) -> Duration {
        let factor = 1_u32.checked_shl(attempt).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// The wait before attempt `attempt`: evenly spread from zero to [`Backoff::bound`], the same for the
    /// same `seed` and `attempt`.
    #[must_use]
    pub fn delay(&self, attempt: u32, seed: u64) -> Duration {
        let bound = u64::try_from(self.bound(attempt).as_nanos()).unwrap_or(u64::MAX);
        let random = mix(seed.wrapping_add(u64::from(attempt).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        // The upper half of the product is `random` scaled to 0..=bound, without the bias of a remainder.
        let scaled = (u128::from(random) * (u128::from(bound) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(bound))
    }
}

/// The finalizer of SplitMix64: each bit of the seed changes half of the bits of the result.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_double_up_to_the_cap() {
        let check = |attempt, millis| {
            assert_eq!(Backoff::NETWORK.bound(attempt), Duration::from_millis(millis), "{attempt}");
        };
        check(0, 500);
        check(1, 1000);
        check(6, 32_000);
        check(7, 60_000);
        check(31, 60_000);
        check(u32::MAX, 60_000);
    }

    proptest! {
        #[test]
        fn waits_stay_within_their_bound(attempt: u32, seed: u64) {
            let delay = Backoff::NETWORK.delay(attempt, seed);
            prop_assert!(delay <= Backoff::NETWORK.bound(attempt));
            prop_assert_eq!(delay, Backoff::NETWORK.delay(attempt, seed));
        }
    }

    #[test]
    fn waits_are_spread_over_the_whole_bound() {
        let quarters = (0..4000).fold([0; 4], |mut counts, seed| {
            let delay = Backoff::NETWORK.delay(7, seed);
            counts[(delay.as_millis() / 15_001) as usize] += 1;
            counts
        });
        assert!(quarters.iter().all(|count| (800..1200).contains(count)), "{quarters:?}");
    }
}
