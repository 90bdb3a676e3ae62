//! How long to wait before the next attempt: full jitter between nothing and an exponentially growing bound, so that
//! clients that lost one relay together do not come back together. The first retry is quick.

use std::time::Duration;

use crate::limits;

/// The longest that a relay can ask a client to stay away.
pub(crate) const LONGEST_FLOOR: Duration = limits::BACKOFF_LONGEST.saturating_mul(5);

/// Attempts since the connection was last up.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// The connection is up: start over with the next loss.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The wait before the next attempt. `jitter` is uniform in 0..=u32::MAX; `floor` is what the relay asked for.
    pub(crate) fn next(&mut self, jitter: u32, floor: Duration) -> Duration {
        let bound = match self.attempts {
            0 => limits::BACKOFF_FIRST / 4,
            n => (limits::BACKOFF_FIRST * 2_u32.saturating_pow(n.min(16) - 1)).min(limits::BACKOFF_LONGEST),
        };
        self.attempts = self.attempts.saturating_add(1);
        let wait = bound.mul_f64(f64::from(jitter) / f64::from(u32::MAX));
        wait.max(floor.min(LONGEST_FLOOR))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_minute_and_start_over() {
        let mut backoff = Backoff::default();
        let mut most = |jitter| backoff.next(jitter, Duration::ZERO);
        assert_eq!(most(u32::MAX), Duration::from_millis(250));
        assert_eq!(most(u32::MAX), Duration::from_secs(1));
        assert_eq!(most(u32::MAX), Duration::from_secs(2));
        assert_eq!(most(0), Duration::ZERO);
        for _ in 0..100 {
            assert!(most(u32::MAX) <= Duration::from_secs(60));
        }
        assert_eq!(backoff.attempts(), 104);
        backoff.reset();
        assert_eq!(backoff.next(u32::MAX, Duration::ZERO), Duration::from_millis(250));
    }

    #[test]
    fn the_relays_wish_is_a_floor_with_a_bound() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0, Duration::from_secs(9)), Duration::from_secs(9));
        assert_eq!(backoff.next(0, Duration::from_secs(86_400)), Duration::from_secs(300));
    }
}
