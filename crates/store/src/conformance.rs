//! What every [`Store`] must do, as checks to run on one of your own: [`run`], and [`run_shared`] where several processes
//! may have one store open.
//!
//! ```
//! use std::sync::Arc;
//! use stvor_store::{MemoryStore, Store, StoreError, conformance};
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl conformance::Subject for Memory {
//!     async fn open(&self, _name: &str) -> Result<Arc<dyn Store>, StoreError> {
//!         Ok(Arc::new(MemoryStore::new()))
//!     }
//!     fn durable(&self) -> bool {
//!         false
//!     }
//! }
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let passed = conformance::run(&Memory).await?;
//! assert!(passed > 8);
//! # Ok::<(), conformance::Failure>(())
//! # }).unwrap();
//! ```

use crate::{ChangeSet, Expect, Key, Op, Row, RowValue, RowVersion, Scan, Store, StoreError, Table, limits};
use async_trait::async_trait;
use std::sync::Arc;
use stvor_base::Timestamp;

/// An adapter under test.
#[async_trait]
pub trait Subject: Sync {
    /// Opens the store of this name: empty the first time; if [`Subject::durable`], with what it held when it was closed
    /// the next time.
    async fn open(&self, name: &str) -> Result<Arc<dyn Store>, StoreError>;

    /// Whether what was committed outlives a close.
    fn durable(&self) -> bool;
}

/// A promise that was not kept.
#[derive(Debug, thiserror::Error)]
#[error("{check}: {what}")]
pub struct Failure {
    /// Which check.
    pub check: &'static str,
    /// What was seen.
    pub what: String,
}

type Checked = Result<(), String>;

macro_rules! ensure {
    ($left:expr, $right:expr) => {{
        let (left, right) = (&$left, &$right);
        if left != right {
            let place = concat!(file!(), ":", line!());
            return Err(format!("{place}: {} is {left:?}, expected {right:?}", stringify!($left)));
        }
    }};
}

mod layouts;
mod presence;
mod shared;
mod walk;

pub use shared::run_shared;

macro_rules! checks {
    ($($check:path),* $(,)?) => {
        /// Runs every check, each on a store of its own, and returns how many there were.
        ///
        /// # Errors
        /// The first promise that was not kept.
        pub async fn run(subject: &dyn Subject) -> Result<usize, Failure> {
            let mut passed = 0;
            $(
                let name = stringify!($check).rsplit(':').next().unwrap_or_default().trim();
                $check(subject, name).await.map_err(|what| Failure { check: name, what })?;
                passed += 1;
            )*
            Ok(passed)
        }
    };
}

checks!(
    a_commit_is_read_back,
    a_failed_change_set_changes_nothing,
    expectations_are_judged_in_order,
    one_of_two_concurrent_inserts_wins,
    one_of_many_concurrent_updates_wins,
    a_read_sees_one_moment,
    scans_are_ordered_and_paged,
    deletions_of_many_rows_keep_their_bounds,
    expired_rows_are_swept_in_batches,
    limits_hold_at_n_and_n_plus_one,
    a_page_ends_at_its_bytes,
    presence::a_check_is_judged_in_order_and_changes_nothing,
    presence::a_change_set_that_expects_the_header_is_refused_without_it,
    presence::the_header_goes_between_commits_and_never_within_one,
    layouts::a_store_of_newer_layouts_is_refused_and_left_as_it_is,
    layouts::the_layouts_of_a_store_are_raised_before_anything_newer_is_written,
    walk::a_walk_gives_every_row_once,
    a_closed_store_refuses,
    what_was_committed_is_there_after_reopening,
);

fn text(error: &StoreError) -> String {
    stvor_base::ErrorCode::render(error)
}

async fn open(subject: &dyn Subject, name: &str) -> Result<Arc<dyn Store>, String> {
    subject.open(name).await.map_err(|error| text(&error))
}

fn key(partition: &str, sort: u64) -> Key {
    Key::new(Table::Custom, partition, sort.to_be_bytes())
}

fn value(bytes: &[u8], version: u64) -> RowValue {
    RowValue { bytes: bytes.to_vec(), version: RowVersion(version) }
}

fn set<const N: usize>(ops: [Op<RowValue>; N]) -> ChangeSet<RowValue> {
    ops.into_iter().collect()
}

async fn commit(store: &dyn Store, changes: ChangeSet<RowValue>) -> Checked {
    store.commit(changes).await.map_err(|error| text(&error))
}

async fn conflict(store: &dyn Store, changes: ChangeSet<RowValue>) -> Result<usize, String> {
    match store.commit(changes).await {
        Err(StoreError::Conflict { op }) => Ok(op),
        other => Err(format!("expected a conflict, got {other:?}")),
    }
}

async fn one(store: &dyn Store, key: Key) -> Result<Option<Row>, String> {
    let mut rows = store.get(&[key]).await.map_err(|error| text(&error))?;
    ensure!(rows.len(), 1);
    Ok(rows.pop().flatten())
}

async fn bytes(store: &dyn Store, key: Key) -> Result<Option<Vec<u8>>, String> {
    Ok(one(store, key).await?.map(|row| row.value.bytes))
}

async fn scan(store: &dyn Store, scan: Scan) -> Result<(Vec<u64>, bool), String> {
    let page = store.scan(scan).await.map_err(|error| text(&error))?;
    let number = |row: &Row| row.key.sort.as_slice().try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
    Ok((page.rows.iter().map(number).collect(), page.more))
}

async fn a_commit_is_read_back(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let at = Timestamp::from_millis(77);
    let put = Op::put(key("a", 1), value(b"one", 5)).expiring(at);
    commit(&*store, set([put, Op::put(key("a", 2), value(b"", u64::MAX >> 1))])).await?;
    let row = Row { key: key("a", 1), value: value(b"one", 5), expires: Some(at) };
    ensure!(one(&*store, key("a", 1)).await?, Some(row));
    ensure!(one(&*store, key("a", 2)).await?.map(|row| row.value), Some(value(b"", u64::MAX >> 1)));
    ensure!(one(&*store, key("b", 1)).await?, None);
    commit(&*store, set([Op::put(key("a", 1), value(b"two", 6))])).await?;
    let row = Row { key: key("a", 1), value: value(b"two", 6), expires: None };
    ensure!(one(&*store, key("a", 1)).await?, Some(row));
    let both = store.get(&[key("a", 2), key("none", 0), key("a", 1)]).await.map_err(|error| text(&error))?;
    let found: Vec<_> = both.iter().map(|row| row.as_ref().map(|row| row.value.version.0)).collect();
    ensure!(found, vec![Some(u64::MAX >> 1), None, Some(6)]);
    let stats = store.stats().await.map_err(|error| text(&error))?;
    ensure!(stats.rows, 2);
    ensure!(stats.value_bytes, 2 * 9 + 3);
    commit(&*store, set([])).await
}

async fn a_failed_change_set_changes_nothing(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    commit(&*store, set([Op::put(key("a", 1), value(b"one", 1)), Op::put(key("b", 1), value(b"keep", 1))]))
        .await?;
    let failing = set([
        Op::put(key("a", 1), value(b"changed", 2)),
        Op::put(key("a", 2), value(b"new", 2)),
        Op::DeletePartition { table: Table::Custom, partition: b"b".to_vec() },
        Op::delete(key("a", 1)),
        Op::insert(key("a", 2), value(b"again", 2)),
        Op::DeleteTable { table: Table::Custom },
    ]);
    ensure!(conflict(&*store, failing).await?, 4);
    ensure!(bytes(&*store, key("a", 1)).await?, Some(b"one".to_vec()));
    ensure!(bytes(&*store, key("a", 2)).await?, None);
    ensure!(bytes(&*store, key("b", 1)).await?, Some(b"keep".to_vec()));
    Ok(())
}

async fn expectations_are_judged_in_order(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let put = |version, expect| Op::put(key("a", 1), value(b"x", version)).expecting(expect);
    let delete = |expect| Op::delete(key("a", 1)).expecting(expect);
    ensure!(conflict(&*store, set([put(1, Expect::Present)])).await?, 0);
    ensure!(conflict(&*store, set([put(1, Expect::Version(RowVersion(0)))])).await?, 0);
    ensure!(conflict(&*store, set([delete(Expect::Present)])).await?, 0);
    commit(&*store, set([delete(Expect::Absent), delete(Expect::Any)])).await?;
    let chain = set([
        put(1, Expect::Absent),
        put(2, Expect::Version(RowVersion(1))),
        put(3, Expect::Present),
        delete(Expect::Version(RowVersion(3))),
        put(4, Expect::Absent),
    ]);
    commit(&*store, chain).await?;
    ensure!(one(&*store, key("a", 1)).await?.map(|row| row.value.version), Some(RowVersion(4)));
    ensure!(conflict(&*store, set([put(5, Expect::Version(RowVersion(3)))])).await?, 0);
    ensure!(conflict(&*store, set([put(5, Expect::Any), put(6, Expect::Absent)])).await?, 1);
    ensure!(conflict(&*store, set([delete(Expect::Version(RowVersion(5)))])).await?, 0);
    ensure!(conflict(&*store, set([delete(Expect::Absent)])).await?, 0);
    ensure!(one(&*store, key("a", 1)).await?.map(|row| row.value.version), Some(RowVersion(4)));
    Ok(())
}

/// Runs commits at the same time; how many were applied.
async fn race(store: &Arc<dyn Store>, sets: Vec<ChangeSet<RowValue>>) -> Result<usize, String> {
    race_over(sets.into_iter().map(|changes| (Arc::clone(store), changes)).collect()).await
}

async fn race_over(sets: Vec<(Arc<dyn Store>, ChangeSet<RowValue>)>) -> Result<usize, String> {
    let mut tasks = tokio::task::JoinSet::new();
    for (store, changes) in sets {
        tasks.spawn(async move { store.commit(changes).await });
    }
    let mut applied = 0;
    while let Some(result) = tasks.join_next().await {
        match result.map_err(|error| error.to_string())? {
            Ok(()) => applied += 1,
            Err(StoreError::Conflict { op: 0 }) => {}
            Err(error) => return Err(text(&error)),
        }
    }
    Ok(applied)
}

async fn one_of_two_concurrent_inserts_wins(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    for round in 0..50 {
        let insert = |who: &[u8]| {
            set([Op::insert(key("a", round), value(who, 1)), Op::put(key("winner", round), value(who, 1))])
        };
        ensure!(race(&store, vec![insert(b"1"), insert(b"2")]).await?, 1);
        ensure!(bytes(&*store, key("a", round)).await?, bytes(&*store, key("winner", round)).await?);
    }
    Ok(())
}

async fn one_of_many_concurrent_updates_wins(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    commit(&*store, set([Op::put(key("a", 0), value(b"x", 1))])).await?;
    for round in 1..=20_u64 {
        let update = |_| {
            let expected = Expect::Version(RowVersion(round));
            set([Op::put(key("a", 0), value(b"x", round + 1)).expecting(expected)])
        };
        ensure!(race(&store, (0..8).map(update).collect()).await?, 1);
    }
    ensure!(one(&*store, key("a", 0)).await?.map(|row| row.value.version), Some(RowVersion(21)));
    Ok(())
}

async fn a_read_sees_one_moment(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let both = |version: u64| {
        set([0, 1].map(|sort| Op::put(key("a", sort), value(&version.to_be_bytes(), version))))
    };
    commit(&*store, both(1)).await?;
    let writer = Arc::clone(&store);
    let writing = tokio::spawn(async move {
        for version in 2..100 {
            writer.commit(both(version)).await?;
        }
        Ok::<_, StoreError>(())
    });
    while !writing.is_finished() {
        let rows = store.get(&[key("a", 0), key("a", 1)]).await.map_err(|error| text(&error))?;
        let versions: Vec<_> = rows.into_iter().flatten().map(|row| row.value.version).collect();
        ensure!(versions.len(), 2);
        ensure!(versions.first(), versions.last());
        let page = store.scan(Scan::of(Table::Custom, *b"a")).await.map_err(|error| text(&error))?;
        let versions: Vec<_> = page.rows.into_iter().map(|row| row.value.version).collect();
        ensure!(versions.len(), 2);
        ensure!(versions.first(), versions.last());
        tokio::task::yield_now().await;
    }
    writing.await.map_err(|error| error.to_string())?.map_err(|error| text(&error))
}

async fn scans_are_ordered_and_paged(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let numbers = [3_u64, 256, 1, 70_000, 2];
    commit(&*store, numbers.map(|sort| Op::put(key("a", sort), value(b"x", 1))).into_iter().collect())
        .await?;
    let other = Key::new(Table::Meta, *b"a", 9_u64.to_be_bytes());
    commit(&*store, set([Op::put(key("b", 5), value(b"x", 1)), Op::put(other, value(b"x", 1))])).await?;
    let all = || Scan::of(Table::Custom, *b"a");
    let be = u64::to_be_bytes;
    ensure!(scan(&*store, all()).await?, (vec![1, 2, 3, 256, 70_000], false));
    ensure!(scan(&*store, all().newest_first()).await?, (vec![70_000, 256, 3, 2, 1], false));
    ensure!(scan(&*store, all().limit(5)).await?, (vec![1, 2, 3, 256, 70_000], false));
    ensure!(scan(&*store, all().limit(4)).await?, (vec![1, 2, 3, 256], true));
    ensure!(scan(&*store, all().after(be(256)).limit(2)).await?, (vec![70_000], false));
    ensure!(scan(&*store, all().from(be(256))).await?, (vec![256, 70_000], false));
    ensure!(scan(&*store, all().from(be(2)).before(be(256))).await?, (vec![2, 3], false));
    ensure!(scan(&*store, all().newest_first().before(be(256)).limit(2)).await?, (vec![3, 2], true));
    ensure!(scan(&*store, all().from(be(4)).before(be(4))).await?, (vec![], false));
    ensure!(scan(&*store, all().from(be(9)).before(be(4))).await?, (vec![], false));
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"none")).await?, (vec![], false));
    Ok(())
}

async fn deletions_of_many_rows_keep_their_bounds(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let other = Key::new(Table::Meta, *b"a", *b"");
    let rows = [key("a", 1), key("a", 2), key("ab", 1), key("", 1), other.clone()];
    commit(&*store, rows.map(|key| Op::put(key, value(b"x", 1))).into_iter().collect()).await?;
    commit(&*store, set([Op::DeletePartition { table: Table::Custom, partition: b"a".to_vec() }])).await?;
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?, (vec![], false));
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"ab")).await?, (vec![1], false));
    commit(&*store, set([Op::DeleteTable { table: Table::Custom }])).await?;
    ensure!(one(&*store, key("ab", 1)).await?, None);
    ensure!(one(&*store, key("", 1)).await?, None);
    ensure!(bytes(&*store, other).await?, Some(b"x".to_vec()));
    Ok(())
}

async fn expired_rows_are_swept_in_batches(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let expiring = |sort: u64| Op::put(key("a", sort), value(b"x", 1)).expiring(Timestamp::from_millis(sort));
    commit(&*store, (1..=10).map(expiring).collect()).await?;
    commit(&*store, set([Op::put(key("a", 0), value(b"x", 1))])).await?;
    let sweep = async |now, limit| {
        store.sweep(Timestamp::from_millis(now), limit).await.map_err(|error| text(&error))
    };
    ensure!(sweep(0, 10).await?, 0);
    ensure!(sweep(7, 4).await?, 4);
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?.0, vec![0, 5, 6, 7, 8, 9, 10]);
    ensure!(sweep(7, 4).await?, 3);
    ensure!(sweep(7, 4).await?, 0);
    commit(&*store, set([Op::put(key("a", 8), value(b"x", 2))])).await?;
    ensure!(sweep(u64::MAX, 4).await?, 2);
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?.0, vec![0, 8]);
    Ok(())
}

async fn refused(store: &dyn Store, changes: ChangeSet<RowValue>) -> Checked {
    match store.commit(changes).await {
        Err(StoreError::Limit { .. }) => Ok(()),
        other => Err(format!("expected a refusal, got {other:?}")),
    }
}

async fn limits_hold_at_n_and_n_plus_one(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let large = vec![7; limits::MAX_VALUE + 1];
    let fits = large.get(1..).unwrap_or_default();
    commit(&*store, set([Op::put(key("a", 1), value(fits, 1))])).await?;
    ensure!(bytes(&*store, key("a", 1)).await?, Some(fits.to_vec()));
    refused(&*store, set([Op::put(key("a", 2), value(&large, 1))])).await?;
    let part = |length| vec![255; length];
    let long = Key::new(Table::Custom, part(limits::MAX_KEY_PART), part(limits::MAX_KEY_PART));
    commit(&*store, set([Op::put(long.clone(), value(b"x", 1))])).await?;
    ensure!(bytes(&*store, long.clone()).await?, Some(b"x".to_vec()));
    let page = store.scan(Scan::of(Table::Custom, part(limits::MAX_KEY_PART))).await;
    ensure!(page.map_err(|error| text(&error))?.rows.len(), 1);
    for (partition, sort) in [(limits::MAX_KEY_PART + 1, 1), (1, limits::MAX_KEY_PART + 1)] {
        let key = Key::new(Table::Custom, part(partition), part(sort));
        refused(&*store, set([Op::put(key.clone(), value(b"x", 1))])).await?;
        refused(&*store, set([Op::delete(key)])).await?;
    }
    let deletes = |count: u64| (0..count).map(|sort| Op::delete(key("a", sort + 9))).collect();
    commit(&*store, deletes(limits::MAX_OPS as u64)).await?;
    refused(&*store, deletes(limits::MAX_OPS as u64 + 1)).await?;
    let page = store.scan(Scan::of(Table::Custom, *b"a").limit(limits::MAX_SCAN + 1)).await;
    ensure!(matches!(page, Err(StoreError::Limit { .. })), true);
    let rows = store.get(&vec![key("a", 1); limits::MAX_GET + 1]).await;
    ensure!(matches!(rows, Err(StoreError::Limit { .. })), true);
    Ok(())
}

async fn a_page_ends_at_its_bytes(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    let fit = (limits::MAX_SCAN_BYTES / limits::MAX_VALUE) as u64;
    let large = vec![7; limits::MAX_VALUE];
    for sort in 0..=fit {
        commit(&*store, set([Op::put(key("a", sort), value(&large, 1))])).await?;
    }
    let all = || Scan::of(Table::Custom, *b"a");
    ensure!(scan(&*store, all()).await?, ((0..fit).collect(), true));
    ensure!(scan(&*store, all().after((fit - 1).to_be_bytes())).await?, (vec![fit], false));
    Ok(())
}

async fn a_closed_store_refuses(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    store.close().await.map_err(|error| text(&error))?;
    store.close().await.map_err(|error| text(&error))?;
    let put = set([Op::put(key("a", 1), value(b"x", 1))]);
    ensure!(matches!(store.commit(put).await, Err(StoreError::Closed)), true);
    ensure!(matches!(store.get(&[key("a", 1)]).await, Err(StoreError::Closed)), true);
    ensure!(matches!(store.scan(Scan::of(Table::Custom, *b"a")).await, Err(StoreError::Closed)), true);
    ensure!(matches!(store.sweep(Timestamp::default(), 1).await, Err(StoreError::Closed)), true);
    ensure!(matches!(store.stats().await, Err(StoreError::Closed)), true);
    Ok(())
}

async fn what_was_committed_is_there_after_reopening(subject: &dyn Subject, name: &str) -> Checked {
    if !subject.durable() {
        return Ok(());
    }
    let store = open(subject, name).await?;
    for round in 0..3 {
        commit(&*store, set([Op::put(key("a", round), value(b"x", 1))])).await?;
    }
    store.close().await.map_err(|error| text(&error))?;
    drop(store);
    let store = open(subject, name).await?;
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?, (vec![0, 1, 2], false));
    Ok(())
}
