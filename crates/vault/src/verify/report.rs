//! What a verification tells: its report, and how far it is.

use core::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Problems that are listed; more are only counted.
const MAX_PROBLEMS: usize = 100;

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where.
    pub place: String,
    /// How it shows.
    pub reason: String,
}

/// What verification found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Events that were read.
    pub events: u64,
    /// Memories that were read.
    pub memories: u64,
    /// The size of the newest checkpoint outside the database, if there is one.
    pub outside: Option<u64>,
    /// Events whose rows were archived and removed: their hashes were read, and the archive shows what they say.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed: u64,
    /// Removed events are all before this one.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub removed_before: u64,
    /// What is wrong; nothing if all is well.
    pub problems: Vec<Problem>,
    /// Problems that are not listed.
    pub more_problems: u64,
    /// Contents that were opened, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What verification found, in numbers: what everybody may know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether nothing is wrong.
    pub sound: bool,
    /// Events that were read.
    pub events: u64,
    /// Memories that were read.
    pub memories: u64,
    /// Seconds since they were read.
    pub age: u64,
}

/// How far a verification is; another thread may look.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// Rows that were read, and rows in all (0 before that is known).
    #[must_use]
    pub fn now(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }

    pub(crate) fn add(&self, rows: usize) {
        self.done.fetch_add(rows as u64, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, rows: u64) {
        self.total.fetch_add(rows, Ordering::Relaxed);
    }
}

impl Report {
    pub(super) fn add(&mut self, place: impl Into<String>, reason: impl Into<String>) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { place: place.into(), reason: reason.into() });
        } else {
            self.more_problems += 1;
        }
    }
}
