//! The seam that adapters implement. What passes through it is sealed: adapters see ciphertext, keyed hashes and
//! counters.

use crate::change::{ChangeSet, Key, RowVersion, check_part};
use crate::{StoreError, Table, limits};
use async_trait::async_trait;
use stvor_base::Timestamp;

/// A value as an adapter stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowValue {
    /// Sealed bytes, at most [`limits::MAX_VALUE`].
    pub bytes: Vec<u8>,
    /// The write that made them, chosen by the sealing layer, stored and returned with them.
    pub version: RowVersion,
}

/// A row as an adapter stores it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it stands.
    pub key: Key,
    /// Sealed bytes and version.
    pub value: RowValue,
    /// From when on sweeps remove it.
    pub expires: Option<Timestamp>,
}

/// Which rows of a partition to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The table.
    pub table: Table,
    /// The partition.
    pub partition: Vec<u8>,
    /// Only rows whose sort key is at or after this one.
    pub from: Option<Vec<u8>>,
    /// Only rows whose sort key is before this one.
    pub before: Option<Vec<u8>>,
    /// At most so many rows, 1 to [`limits::MAX_SCAN`].
    pub limit: usize,
    /// Greatest sort key first.
    pub reverse: bool,
}

impl Scan {
    /// Every row of a partition, smallest sort key first, a page of [`limits::MAX_SCAN`].
    #[must_use]
    pub fn of(table: Table, partition: impl Into<Vec<u8>>) -> Self {
        Self {
            table,
            partition: partition.into(),
            from: None,
            before: None,
            limit: limits::MAX_SCAN,
            reverse: false,
        }
    }

    /// Only rows at or after this sort key.
    #[must_use]
    pub fn from(mut self, sort: impl Into<Vec<u8>>) -> Self {
        self.from = Some(sort.into());
        self
    }

    /// Only rows after this sort key: the next page after a row.
    #[must_use]
    pub fn after(self, sort: impl Into<Vec<u8>>) -> Self {
        let mut next = sort.into();
        next.push(0);
        self.from(next)
    }

    /// Only rows before this sort key: the next page of a reverse scan.
    #[must_use]
    pub fn before(mut self, sort: impl Into<Vec<u8>>) -> Self {
        self.before = Some(sort.into());
        self
    }

    /// At most so many rows a page.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Greatest sort key first.
    #[must_use]
    pub fn newest_first(mut self) -> Self {
        self.reverse = true;
        self
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        check_part(&self.partition)?;
        if self.limit == 0 || self.limit > limits::MAX_SCAN {
            return Err(StoreError::Limit { what: "the rows of a page", limit: limits::MAX_SCAN });
        }
        // `after` appends a byte to a sort key of full length.
        let longest = limits::MAX_KEY_PART + 1;
        if [&self.from, &self.before].into_iter().flatten().any(|bound| bound.len() > longest) {
            return Err(StoreError::Limit { what: "the bound of a scan in bytes", limit: longest });
        }
        Ok(())
    }
}

/// A page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<R> {
    /// The rows, in order.
    pub rows: Vec<R>,
    /// Whether rows of the range follow the last one.
    pub more: bool,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Rows in all tables.
    pub rows: u64,
    /// Bytes of keys and sealed values.
    pub value_bytes: u64,
    /// Bytes that the store takes where it is kept (files, or memory).
    pub disk_bytes: u64,
}

/// A place that keeps rows. The sealing layer [`Sealed`](crate::Sealed) stands above it.
///
/// What every adapter promises, and `conformance` checks:
/// - `commit` applies all of a change set, in order, or nothing; it returns only when the changes are as durable as the
///   adapter can make them. Expectations are judged with the operations before them in the set applied.
/// - one `get` and one page of a `scan` see the store at one moment between commits.
/// - what a `commit` acknowledged is seen by every later read.
/// - limits are refused before anything is done.
/// - dropping the future of a `commit` leaves it either applied or not, never half. It may be applied later still, as may one that
///   was answered by [`StoreError::Timeout`] or [`StoreError::Uncertain`]: the sealing layer finds that out, or makes it void.
#[async_trait]
pub trait Store: core::fmt::Debug + Send + Sync + 'static {
    /// The rows under `keys` (at most [`limits::MAX_GET`]), in the order asked, `None` where there is none.
    ///
    /// # Errors
    /// [`StoreError::Limit`], [`StoreError::Closed`], or what the adapter met.
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError>;

    /// One page of rows. A page holds at most [`limits::MAX_SCAN_BYTES`] of values and at least one row if the range
    /// has one.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError>;

    /// Applies a change set, whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] with the index of the first operation whose expectation did not hold;
    /// [`StoreError::Full`]; [`StoreError::PutBack`] from an adapter that can tell that the store lacks what it acknowledged
    /// to this opening, for every commit until [`Store::accept_put_back`]; as [`Store::get`].
    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError>;

    /// Removes at most `limit` (1 to [`limits::MAX_SCAN`]) rows whose expiry is at or before `now`, oldest expiry
    /// first. Returns how many.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError>;

    /// Rows of all tables in an order of the adapter's own that never changes, those after `after` (which need not be there
    /// any more): at most `limit` (1 to [`limits::MAX_SCAN`]), and as few as [`Store::scan`] gives for their size. Rows that are
    /// written while a walk is under way may be in it or not; all others are in it once.
    ///
    /// An adapter that can not do this keeps the default; the data key of its stores can not be replaced.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`]; as [`Store::get`].
    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        let _ = (after, limit);
        Err(StoreError::Unsupported { what: "walking through all rows" })
    }

    /// The caller knows that the store was put back: this opening goes on with what is there. An adapter that never says
    /// [`StoreError::PutBack`] keeps the default.
    fn accept_put_back(&self) {}

    /// How much is stored.
    ///
    /// # Errors
    /// As [`Store::get`].
    async fn stats(&self) -> Result<Stats, StoreError>;

    /// Finishes what was handed in, then lets go of files and locks. Every later call is [`StoreError::Closed`];
    /// closing twice is not an error.
    ///
    /// # Errors
    /// What the adapter met while it finished.
    async fn close(&self) -> Result<(), StoreError>;
}

pub(crate) fn check_get(keys: &[Key]) -> Result<(), StoreError> {
    if keys.len() > limits::MAX_GET {
        return Err(StoreError::Limit { what: "the keys of one read", limit: limits::MAX_GET });
    }
    keys.iter().try_for_each(Key::check)
}

pub(crate) fn check_commit(changes: &ChangeSet<RowValue>) -> Result<(), StoreError> {
    for op in &changes.ops {
        if matches!(op, crate::Op::Put { expires: Some(at), .. } if *at > limits::LATEST_EXPIRY) {
            return Err(StoreError::Limit { what: "an expiry in milliseconds", limit: usize::MAX >> 1 });
        }
    }
    changes.check(limits::MAX_VALUE, |value| value.bytes.len())
}

pub(crate) fn check_sweep(limit: usize) -> Result<(), StoreError> {
    if limit == 0 || limit > limits::MAX_SCAN {
        return Err(StoreError::Limit { what: "the rows of one sweep", limit: limits::MAX_SCAN });
    }
    Ok(())
}
