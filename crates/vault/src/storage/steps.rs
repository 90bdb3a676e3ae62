//! Steps of SQLite: what a search may take is counted in them, as no clock decides what is answered.

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use rusqlite::Connection;

/// Steps between two looks at how many there were. A page of the index takes about four.
const TICK: u16 = 64;

#[derive(Debug)]
struct Count {
    taken: AtomicU64,
    /// The most that were taken at once, which is more than there are in the end where some are forgiven.
    peak: AtomicU64,
    most: AtomicU64,
}

/// Steps that a connection took, and how many it may.
#[derive(Debug)]
pub(super) struct Steps(Arc<Count>);

impl Steps {
    /// Counts those of a connection.
    pub(super) fn of(connection: &mut Connection) -> rusqlite::Result<Self> {
        let count = Arc::new(Count {
            taken: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            most: AtomicU64::new(u64::MAX),
        });
        let counted = Arc::clone(&count);
        let look = move || {
            let before = counted.taken.fetch_add(TICK.into(), Ordering::Relaxed);
            counted.peak.fetch_max(before + u64::from(TICK), Ordering::Relaxed);
            before >= counted.most.load(Ordering::Relaxed)
        };
        connection.progress_handler(TICK.into(), Some(look))?;
        Ok(Self(count))
    }

    /// Does `work` in at most `most` steps beside those that it forgets; it is interrupted where it takes more. Notes how many it needs.
    pub(super) fn within<T>(&self, most: u64, taken: &mut Vec<u64>, work: impl FnOnce() -> T) -> T {
        let Self(count) = self;
        count.taken.store(0, Ordering::Relaxed);
        count.peak.store(0, Ordering::Relaxed);
        count.most.store(most, Ordering::Relaxed);
        let done = work();
        count.most.store(u64::MAX, Ordering::Relaxed);
        taken.push(count.peak.load(Ordering::Relaxed));
        done
    }

    /// Forgets steps that something else bounds.
    pub(super) fn forgive(&self, steps: u64) {
        let taken = self.0.taken.load(Ordering::Relaxed);
        self.0.taken.store(taken.saturating_sub(steps), Ordering::Relaxed);
    }
}
