//! A store in memory that remembers every commit, so that it can be put back to any of them, and can end at one as a killed
//! process would.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use stvor::Timestamp;
use stvor::store::{
    ChangeSet, Key, MemoryStore, Op, Page, Row, RowValue, Scan, Stats, Store, StoreError, StoreFacts,
    StorePlace, StoreProvider, Table,
};

#[derive(Debug)]
struct Reel {
    store: Mutex<Arc<MemoryStore>>,
    commits: Mutex<Vec<ChangeSet<RowValue>>>,
    /// So many more commits succeed.
    left: AtomicUsize,
    shared: bool,
    /// The next commit that changes this table is answered by nobody in time.
    late: Mutex<Option<(Table, bool)>>,
    /// Those that were not, and may land still.
    aside: Mutex<Vec<ChangeSet<RowValue>>>,
    /// It goes away with the next of those.
    leaves: AtomicBool,
    /// It answers nothing but that it can not be reached.
    away: AtomicBool,
}

#[derive(Debug, Clone)]
pub struct Tape(Arc<Reel>);

impl Tape {
    pub fn new(shared: bool) -> Self {
        Self(Arc::new(Reel {
            store: Mutex::default(),
            commits: Mutex::default(),
            left: AtomicUsize::new(usize::MAX),
            shared,
            late: Mutex::default(),
            aside: Mutex::default(),
            leaves: AtomicBool::default(),
            away: AtomicBool::default(),
        }))
    }

    /// How many commits there are.
    pub fn len(&self) -> usize {
        self.0.commits.lock().unwrap().len()
    }

    /// Puts the store back to what it was after the first `commits`, and lets it live.
    pub async fn rewind(&self, commits: usize) {
        let kept = {
            let mut all = self.0.commits.lock().unwrap();
            all.truncate(commits);
            all.clone()
        };
        let fresh = MemoryStore::default();
        for changes in kept {
            fresh.commit(changes).await.unwrap();
        }
        *self.0.store.lock().unwrap() = Arc::new(fresh);
        self.0.left.store(usize::MAX, Ordering::SeqCst);
    }

    /// The sort keys of the rows that are in a table.
    pub async fn rows(&self, table: Table) -> Vec<Vec<u8>> {
        let put = |op: &Op<RowValue>| match op {
            Op::Put { key, .. } if key.table == table => Some(key.clone()),
            _ => None,
        };
        let keys: BTreeSet<Key> = {
            let commits = self.0.commits.lock().unwrap();
            commits.iter().flat_map(|changes| &changes.ops).filter_map(put).collect()
        };
        let keys: Vec<Key> = keys.into_iter().collect();
        let rows = self.store().get(&keys).await.unwrap();
        rows.into_iter().flatten().map(|row| row.key.sort).collect()
    }

    /// Lets `commits` more succeed and no others.
    pub fn end_after(&self, commits: usize) {
        self.0.left.store(commits, Ordering::SeqCst);
    }

    /// Whether a commit was refused since.
    pub fn is_over(&self) -> bool {
        self.0.left.load(Ordering::SeqCst) == 0
    }

    /// Gives the next commit that changes `table` up, as after a deadline.
    pub fn give_up(&self, table: Table) {
        *self.0.late.lock().unwrap() = Some((table, false));
    }

    /// The same, and no question is answered from then on until it comes back.
    pub fn give_up_and_leave(&self, table: Table) {
        self.0.leaves.store(true, Ordering::SeqCst);
        self.give_up(table);
    }

    /// Answers again.
    pub fn come_back(&self) {
        self.0.away.store(false, Ordering::SeqCst);
    }

    fn answers(&self) -> Result<(), StoreError> {
        match self.0.away.load(Ordering::SeqCst) {
            true => Err(StoreError::Unreachable { server: "tape".into(), reason: "it is away".into() }),
            false => Ok(()),
        }
    }

    /// Applies the next commit that changes `table`, and answers as if nobody knew.
    pub fn apply_unheard(&self, table: Table) {
        *self.0.late.lock().unwrap() = Some((table, true));
    }

    /// Lets what was given up land; whether the store took it.
    pub async fn land(&self) -> bool {
        let aside = core::mem::take(&mut *self.0.aside.lock().unwrap());
        let mut landed = false;
        for changes in aside {
            landed |= Store::commit(self, changes).await.is_ok();
        }
        landed
    }

    fn store(&self) -> Arc<MemoryStore> {
        Arc::clone(&self.0.store.lock().unwrap())
    }
}

#[async_trait]
impl StoreProvider for Tape {
    fn facts(&self) -> StoreFacts {
        StoreFacts { kind: "tape", durable: true, shared: self.0.shared, atomic: true, local: false }
    }

    async fn open(&self, _: &StorePlace) -> Result<Arc<dyn Store>, StoreError> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Store for Tape {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.answers()?;
        self.store().get(keys).await
    }

    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        self.answers()?;
        self.store().scan(scan).await
    }

    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        self.answers()?;
        let take = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        if self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return Err(StoreError::Closed);
        }
        let unheard = {
            let mut late = self.0.late.lock().unwrap();
            let changed = |(table, _): &mut (Table, bool)| changes.ops.iter().any(|op| op.table() == *table);
            late.take_if(changed).map(|(_, lands)| lands)
        };
        let nobody_knows = || Err(StoreError::Timeout { call: "commit", after: core::time::Duration::ZERO });
        if unheard == Some(false) {
            self.0.aside.lock().unwrap().push(changes);
            self.0.away.store(self.0.leaves.swap(false, Ordering::SeqCst), Ordering::SeqCst);
            return nobody_knows();
        }
        // One at a time, so that the record has the order of the store.
        let mut commits = self.0.commits.lock().unwrap();
        let store = self.store();
        let done = futures::executor::block_on(store.commit(changes.clone()));
        if done.is_ok() {
            commits.push(changes);
        }
        if unheard.is_some() { nobody_knows() } else { done }
    }

    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.store().sweep(now, limit).await
    }

    async fn stats(&self) -> Result<Stats, StoreError> {
        self.store().stats().await
    }

    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
