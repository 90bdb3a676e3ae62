//! Rows in memory: for tests and for apps that want nothing on disk.

use crate::adapter::{Page, Row, RowValue, Scan, Stats, Store, check_commit, check_get, check_sweep};
use crate::change::{ChangeSet, Key, Op};
use crate::{StoreError, limits};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use stvor_base::Timestamp;

type Rows = BTreeMap<Key, (RowValue, Option<Timestamp>)>;

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
type Undo = Vec<(Key, Option<(RowValue, Option<Timestamp>)>)>;

fn apply(rows: &mut Rows, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
    let mut undo = Undo::new();
    for (index, op) in changes.ops.into_iter().enumerate() {
        if !step(rows, op, &mut undo) {
            for (key, before) in undo.into_iter().rev() {
                match before {
                    Some(row) => rows.insert(key, row),
                    None => rows.remove(&key),
                };
            }
            return Err(StoreError::Conflict { op: index });
        }
    }
    Ok(())
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

fn row(key: &Key, (value, expires): &(RowValue, Option<Timestamp>)) -> Row {
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
        self.with(|rows| apply(rows, changes))
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        check_sweep(limit)?;
        self.with(|rows| {
            let mut doomed: Vec<(Timestamp, Key)> = rows
                .iter()
                .filter_map(|(key, (_, expires))| Some(((*expires)?, key.clone())))
                .filter(|(expires, _)| *expires <= now)
                .collect();
            doomed.sort();
            doomed.truncate(limit);
            for (_, key) in &doomed {
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
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }
}
