//! The clock of a client, which tests replace.

use stvor_base::Timestamp;

/// Tells the time. The client never asks the system directly, so that a test can set its clock back.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The clock of the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::system()
    }
}

/// What tests that set a clock back share.
#[cfg(test)]
pub(crate) mod testing {
    use core::sync::atomic::{AtomicU64, Ordering};
    use core::time::Duration;

    use stvor_base::Timestamp;

    use super::Clock;

    /// A clock that is behind by so many milliseconds.
    pub(crate) struct Behind(pub(crate) AtomicU64);

    impl Clock for Behind {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(Timestamp::system().as_millis() - self.0.load(Ordering::Relaxed))
        }
    }

    /// What comes of it, if that is within half a minute.
    pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(30), what).await.expect("it happens in time")
    }
}
