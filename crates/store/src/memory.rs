//! Rows in memory: for tests and for apps that want nothing on disk.

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_get, check_sweep};
use crate::change::{ChangeSet, Key, Op};
use crate::narrow::Changed;
use crate::{StoreError, limits};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use stvor_base::Timestamp;

/// A value and when it is to be swept.
pub(crate) type Kept = (RowValue, Option<Timestamp>);
type Rows = BTreeMap<Key, Kept>;

/// A [`Store`] that lives as long as the process. It holds sealed bytes like any other.
pub struct MemoryStore(Mutex<Option<Rows>>);

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self(Mutex::new(Some(Rows::new())))
    }

    fn with<T>(&self, run: impl FnOnce(&mut Rows) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // `apply` restores the map itself, so a panic elsewhere leaves no half-applied change set behind.
        let mut rows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        run(rows.as_mut().ok_or(StoreError::Closed)?)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl core::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

/// What to write back if the change set fails: keys with what stood there before, newest last.
type Undo = Vec<(Key, Option<Kept>)>;

fn apply(rows: &mut Rows, changes: ChangeSet<RowValue>) -> Result<Undo, StoreError> {
    let mut undo = Undo::new();
    for (index, op) in changes.ops.into_iter().enumerate() {
        if !step(rows, op, &mut undo) {
            take_back(rows, undo);
            return Err(StoreError::Conflict { op: index });
        }
    }
    Ok(undo)
}

fn take_back(rows: &mut Rows, undo: Undo) {
    for (key, before) in undo.into_iter().rev() {
        match before {
            Some(row) => rows.insert(key, row),
            None => rows.remove(&key),
        };
    }
}

/// How each of several change sets was judged, and what those that hold change, row by row.
pub(crate) type Staged = (Vec<Result<(), StoreError>>, Vec<Changed>);

/// What stands above this store where it is the memory of another one.
impl MemoryStore {
    /// Judges change sets one after the other, each on top of those before it, and changes nothing.
    pub(crate) fn stage(&self, sets: Vec<ChangeSet<RowValue>>) -> Result<Staged, StoreError> {
        self.with(|rows| {
            let mut undo = Undo::new();
            let judged = sets.into_iter().map(|set| apply(rows, set).map(|more| undo.extend(more))).collect();
            let touched: BTreeSet<Key> = undo.iter().map(|(key, _)| key.clone()).collect();
            let changes =
                touched.into_iter().map(|key| Changed { row: rows.get(&key).cloned(), key }).collect();
            take_back(rows, undo);
            Ok((judged, changes))
        })
    }

    /// Carries out what [`MemoryStore::stage`] found.
    pub(crate) fn settle(&self, changes: Vec<Changed>) -> Result<(), StoreError> {
        self.with(|rows| {
            for Changed { key, row } in changes {
                match row {
                    Some(row) => rows.insert(key, row),
                    None => rows.remove(&key),
                };
            }
            Ok(())
        })
    }

    /// Puts rows back that were read.
    pub(crate) fn restore(&self, found: Vec<(Key, Kept)>) -> Result<(), StoreError> {
        self.with(|rows| {
            rows.extend(found);
            Ok(())
        })
    }

    /// The rows from a key to before another one.
    pub(crate) fn copy(&self, from: &Key, before: Option<&Key>) -> Result<Vec<(Key, Kept)>, StoreError> {
        self.with(|rows| {
            let before = before.map_or(Bound::Unbounded, Bound::Excluded);
            let range = rows.range((Bound::Included(from), before));
            Ok(range.map(|(key, row)| (key.clone(), row.clone())).collect())
        })
    }

    /// At most `limit` rows that are to be swept, oldest expiry first.
    pub(crate) fn doomed(&self, now: Timestamp, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.with(|rows| Ok(doomed(rows, now, limit)))
    }

    /// Every later call is [`StoreError::Closed`].
    pub(crate) fn shut(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn doomed(rows: &Rows, now: Timestamp, limit: usize) -> Vec<Key> {
    let mut doomed: Vec<(Timestamp, &Key)> = rows
        .iter()
        .filter_map(|(key, (_, expires))| Some(((*expires)?, key)))
        .filter(|(expires, _)| *expires <= now)
        .collect();
    doomed.sort();
    doomed.truncate(limit);
    doomed.into_iter().map(|(_, key)| key.clone()).collect()
}

fn step(rows: &mut Rows, op: Op<RowValue>, undo: &mut Undo) -> bool {
    match op {
        Op::Put { key, value, expires, expect } => {
            if !expect.holds(rows.get(&key).map(|(found, _)| found.version)) {
                return false;
            }
            let before = rows.insert(key.clone(), (value, expires));
            undo.push((key, before));
        }
        Op::Delete { key, expect } => {
            if !expect.holds(rows.get(&key).map(|(found, _)| found.version)) {
                return false;
            }
            if let Some(before) = rows.remove(&key) {
                undo.push((key, Some(before)));
            }
        }
        Op::Check { key, expect } => return expect.holds(rows.get(&key).map(|(found, _)| found.version)),
        Op::DeletePartition { table, partition } => {
            remove_all(rows, undo, |key| key.table == table && key.partition == partition);
        }
        Op::DeleteTable { table } => remove_all(rows, undo, |key| key.table == table),
    }
    true
}

fn remove_all(rows: &mut Rows, undo: &mut Undo, doomed: impl Fn(&Key) -> bool) {
    undo.extend(rows.extract_if(.., |key, _| doomed(key)).map(|(key, row)| (key, Some(row))));
}

fn row(key: &Key, (value, expires): &Kept) -> Row {
    Row { key: key.clone(), value: value.clone(), expires: *expires }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        check_get(keys)?;
        self.with(|rows| Ok(keys.iter().map(|key| rows.get(key).map(|found| row(key, found))).collect()))
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        scan.check()?;
        self.with(|rows| {
            let key = |sort: &[u8]| Key::new(scan.table, scan.partition.as_slice(), sort);
            let from = Bound::Included(key(scan.from.as_deref().unwrap_or_default()));
            let before = match &scan.before {
                Some(sort) if scan.from.as_ref().is_some_and(|from| from >= sort) => {
                    return Ok(Page { rows: Vec::new(), more: false });
                }
                Some(sort) => Bound::Excluded(key(sort)),
                // No sort key is longer, so nothing of this partition is past it.
                None => Bound::Excluded(key(&[u8::MAX; limits::MAX_KEY_PART + 1])),
            };
            let range = rows.range((from, before));
            let ordered: Box<dyn Iterator<Item = _>> =
                if scan.reverse { Box::new(range.rev()) } else { Box::new(range) };
            let mut page = Page { rows: Vec::new(), more: false };
            let mut bytes = 0;
            for (key, found) in ordered {
                bytes += found.0.bytes.len();
                if page.rows.len() == scan.limit || (bytes > limits::MAX_SCAN_BYTES && !page.rows.is_empty())
                {
                    page.more = true;
                    break;
                }
                page.rows.push(row(key, found));
            }
            Ok(page)
        })
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        check_commit(&changes)?;
        self.with(|rows| apply(rows, changes).map(|_| ()))
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.with(|rows| {
            let doomed = doomed(rows, now, limit);
            for key in &doomed {
                rows.remove(key);
            }
            Ok(doomed.len())
        })
    }

    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        check_sweep(limit)?;
        self.with(|rows| {
            let from = after.map_or(Bound::Unbounded, |key| Bound::Excluded(key.clone()));
            let mut page = Page { rows: Vec::new(), more: false };
            let mut bytes = 0;
            for (key, found) in rows.range((from, Bound::Unbounded)) {
                bytes += found.0.bytes.len();
                if page.rows.len() == limit || (bytes > limits::MAX_SCAN_BYTES && !page.rows.is_empty()) {
                    page.more = true;
                    break;
                }
                page.rows.push(row(key, found));
            }
            Ok(page)
        })
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.with(|rows| {
            let bytes = rows
                .iter()
                .map(|(key, (value, _))| (key.partition.len() + key.sort.len() + value.bytes.len()) as u64)
                .sum();
            Ok(Stats { rows: rows.len() as u64, value_bytes: bytes, disk_bytes: bytes })
        })
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.shut();
        Ok(())
    }
}
