//! Time that only moves when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stvor_base::Timestamp;

/// A clock that stands still until a test moves it. Clones show the same time.
///
/// ```
/// use std::time::Duration;
/// use stvor_base::Timestamp;
/// use stvor_testkit::VirtualClock;
/// let clock = VirtualClock::at(Timestamp::from_millis(10_000));
/// let seen_elsewhere = clock.clone();
/// clock.advance(Duration::from_secs(5));
/// assert_eq!(seen_elsewhere.now().as_millis(), 15_000);
/// clock.set_back(Duration::from_secs(60));
/// assert_eq!(seen_elsewhere.now().as_millis(), 0);
/// ```
#[derive(Clone, Debug)]
pub struct VirtualClock(Arc<AtomicU64>);

impl VirtualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn at(start: Timestamp) -> Self {
        Self(Arc::new(AtomicU64::new(start.as_millis())))
    }

    /// The time it shows.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.0.load(Ordering::SeqCst))
    }

    /// Moves it forward by `span` (whole milliseconds) and returns the new time.
    pub fn advance(&self, span: Duration) -> Timestamp {
        self.change(|now| now + span)
    }

    /// Moves it back by `span`, as an administrator or a bad time server would; it stops at the epoch.
    pub fn set_back(&self, span: Duration) -> Timestamp {
        self.change(|now| now - span)
    }

    fn change(&self, step: impl Fn(Timestamp) -> Timestamp) -> Timestamp {
        let mut seen = self.0.load(Ordering::SeqCst);
        loop {
            let next = step(Timestamp::from_millis(seen));
            match self.0.compare_exchange(seen, next.as_millis(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return next,
                Err(other) => seen = other,
            }
        }
    }
}
