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
