//! What a commit changes.

use crate::{StoreError, Table, limits};
use stvor_base::Timestamp;

/// Where a row stands.
///
/// In the hands of the SDK the partition is a name in clear (a peer, a session); in the hands of an adapter it is a
/// keyed hash of it. The sort key is stored in clear in both, so it holds counters, random ids or
/// [tags](crate::Sealed::tag), never a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The kind of row.
    pub table: Table,
    /// Rows that are scanned and deleted together; at most [`limits::MAX_KEY_PART`] bytes.
    pub partition: Vec<u8>,
    /// The order within a partition, byte by byte; at most [`limits::MAX_KEY_PART`] bytes.
    pub sort: Vec<u8>,
}

impl Key {
    /// A key of its three parts.
    #[must_use]
    pub fn new(table: Table, partition: impl Into<Vec<u8>>, sort: impl Into<Vec<u8>>) -> Self {
        Self { table, partition: partition.into(), sort: sort.into() }
    }

    pub(crate) fn check(&self) -> Result<(), StoreError> {
        check_part(&self.partition).and_then(|()| check_part(&self.sort))
    }
}

pub(crate) fn check_part(part: &[u8]) -> Result<(), StoreError> {
    if part.len() > limits::MAX_KEY_PART {
        return Err(StoreError::Limit { what: "a part of a row key in bytes", limit: limits::MAX_KEY_PART });
    }
    Ok(())
}

/// Which write of a row this is. Each commit has a version that no other commit of the same store had; later commits
/// of one opening have greater ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowVersion(pub u64);

/// What must be true of a row for the change set to apply, after the operations that stand before it in the same set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Expect {
    /// Anything.
    #[default]
    Any,
    /// There is no such row.
    Absent,
    /// There is such a row.
    Present,
    /// The row is there and this write of it is the latest.
    Version(RowVersion),
}

impl Expect {
    /// Whether a row whose latest version is `found` (`None`: there is no row) is what was expected.
    #[must_use]
    pub fn holds(self, found: Option<RowVersion>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => found.is_none(),
            Self::Present => found.is_some(),
            Self::Version(version) => found == Some(version),
        }
    }
}

/// One operation. `V` is the value: a secret for the SDK, a [`RowValue`](crate::RowValue) for an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Op<V> {
    /// Writes a row.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: V,
        /// From when on a sweep removes the row; `None`: never. Until it is swept the row is there.
        expires: Option<Timestamp>,
        /// What must hold before.
        expect: Expect,
    },
    /// Removes a row if it is there.
    Delete {
        /// Where.
        key: Key,
        /// What must hold before.
        expect: Expect,
    },
    /// Changes nothing: says what must be true of a row.
    Check {
        /// Where.
        key: Key,
        /// What must hold.
        expect: Expect,
    },
    /// Removes every row of a partition.
    DeletePartition {
        /// The table.
        table: Table,
        /// The partition.
        partition: Vec<u8>,
    },
    /// Removes every row of a table.
    DeleteTable {
        /// The table.
        table: Table,
    },
}

impl<V> Op<V> {
    /// Writes a row, whether it is there or not.
    pub fn put(key: Key, value: impl Into<V>) -> Self {
        Self::Put { key, value: value.into(), expires: None, expect: Expect::Any }
    }

    /// Writes a row that must not be there yet; else the commit is a [`StoreError::Conflict`].
    pub fn insert(key: Key, value: impl Into<V>) -> Self {
        Self::Put { key, value: value.into(), expires: None, expect: Expect::Absent }
    }

    /// Removes a row; that it is not there is no error.
    #[must_use]
    pub fn delete(key: Key) -> Self {
        Self::Delete { key, expect: Expect::Any }
    }

    /// Says what must be true of a row, and changes nothing.
    #[must_use]
    pub fn check(key: Key, expect: Expect) -> Self {
        Self::Check { key, expect }
    }

    /// The same operation with an expectation. Deletions of many rows have none and stay as they are.
    #[must_use]
    pub fn expecting(mut self, expected: Expect) -> Self {
        if let Self::Put { expect, .. } | Self::Delete { expect, .. } | Self::Check { expect, .. } = &mut self
        {
            *expect = expected;
        }
        self
    }

    /// The same operation, its row to be removed by sweeps from `at` on. Only a put has a row to remove.
    #[must_use]
    pub fn expiring(mut self, at: impl Into<Option<Timestamp>>) -> Self {
        if let Self::Put { expires, .. } = &mut self {
            *expires = at.into();
        }
        self
    }

    /// The table that the operation touches.
    #[must_use]
    pub fn table(&self) -> Table {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Check { key, .. } => key.table,
            Self::DeletePartition { table, .. } | Self::DeleteTable { table } => *table,
        }
    }
}

/// What one commit changes: all of it or nothing, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a change set does nothing until it is committed"]
pub struct ChangeSet<V = crate::SecretBytes> {
    /// The operations, applied in this order.
    pub ops: Vec<Op<V>>,
}

impl<V> Default for ChangeSet<V> {
    fn default() -> Self {
        Self { ops: Vec::new() }
    }
}

impl<V> ChangeSet<V> {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an operation.
    pub fn push(&mut self, op: Op<V>) -> &mut Self {
        self.ops.push(op);
        self
    }

    /// Appends [`Op::put`].
    pub fn put(&mut self, key: Key, value: impl Into<V>) -> &mut Self {
        self.push(Op::put(key, value))
    }

    /// Appends [`Op::insert`].
    pub fn insert(&mut self, key: Key, value: impl Into<V>) -> &mut Self {
        self.push(Op::insert(key, value))
    }

    /// Appends [`Op::delete`].
    pub fn delete(&mut self, key: Key) -> &mut Self {
        self.push(Op::delete(key))
    }

    /// Appends [`Op::DeletePartition`].
    pub fn delete_partition(&mut self, table: Table, partition: impl Into<Vec<u8>>) -> &mut Self {
        self.push(Op::DeletePartition { table, partition: partition.into() })
    }

    /// Appends [`Op::DeleteTable`].
    pub fn delete_table(&mut self, table: Table) -> &mut Self {
        self.push(Op::DeleteTable { table })
    }

    /// Appends the operations of another change set.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.ops.extend(other.ops);
        self
    }

    /// How many operations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Refuses what is past a limit. `size` tells the bytes of a value, `max` the most that one may have.
    pub(crate) fn check(&self, max: usize, size: impl Fn(&V) -> usize) -> Result<(), StoreError> {
        // What the sealing layer checks of its own header comes on top of what its caller hands in.
        let own = |op: &&Op<V>| matches!(op, Op::Check { key, .. } if key.table == Table::Header);
        if self.ops.len() - self.ops.iter().filter(own).count() > limits::MAX_OPS {
            return Err(StoreError::Limit { what: "operations in a change set", limit: limits::MAX_OPS });
        }
        let mut total = 0_usize;
        for op in &self.ops {
            match op {
                Op::Put { key, value, .. } => {
                    key.check()?;
                    let size = size(value);
                    if size > max {
                        return Err(StoreError::Limit { what: "a value in bytes", limit: max });
                    }
                    total = total.saturating_add(size + key.partition.len() + key.sort.len());
                }
                Op::Delete { key, .. } | Op::Check { key, .. } => {
                    key.check()?;
                    total = total.saturating_add(key.partition.len() + key.sort.len());
                }
                Op::DeletePartition { partition, .. } => check_part(partition)?,
                Op::DeleteTable { .. } => {}
            }
        }
        if total > limits::MAX_CHANGE_BYTES {
            return Err(StoreError::Limit { what: "a change set in bytes", limit: limits::MAX_CHANGE_BYTES });
        }
        Ok(())
    }
}

impl<V> FromIterator<Op<V>> for ChangeSet<V> {
    fn from_iter<I: IntoIterator<Item = Op<V>>>(ops: I) -> Self {
        Self { ops: ops.into_iter().collect() }
    }
}

impl<V> Extend<Op<V>> for ChangeSet<V> {
    fn extend<I: IntoIterator<Item = Op<V>>>(&mut self, ops: I) {
        self.ops.extend(ops);
    }
}
