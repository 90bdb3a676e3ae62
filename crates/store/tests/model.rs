//! Random operations against a map, on both adapters, through the seal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use stvor_base::Timestamp;
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::Keyfile;
use stvor_store::{
    ChangeSet, Expect, Key, MemoryStore, Op, Scan, Sealed, SqliteStore, Store, StoreError, Table,
};

const TABLES: [Table; 2] = [Table::Session, Table::Outbox];

#[derive(Debug, Clone, Copy)]
enum Guard {
    Any,
    Absent,
    Present,
    Current,
    Stale,
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, Vec<u8>, Option<u64>, Guard),
    Delete(u8, Guard),
    DeletePartition(u8),
    DeleteTable(u8),
}

#[derive(Debug, Clone)]
enum Act {
    Commit(Vec<Step>),
    Sweep(u64, usize),
    Scan(u8, u8, u8, usize, bool),
    Reopen,
}

/// Two tables, two partitions, four sort keys.
fn key(slot: u8) -> Key {
    Key::new(TABLES[usize::from(slot & 1)], [(slot >> 1) & 1], [(slot >> 2) & 3])
}

fn steps() -> impl Strategy<Value = Step> {
    let guard = prop_oneof![
        4 => Just(Guard::Any), 2 => Just(Guard::Absent), 2 => Just(Guard::Present),
        4 => Just(Guard::Current), 1 => Just(Guard::Stale)
    ];
    let value = proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        8 => (any::<u8>(), value, proptest::option::of(0_u64..20), guard.clone())
            .prop_map(|(slot, value, expires, guard)| Step::Put(slot, value, expires, guard)),
        3 => (any::<u8>(), guard).prop_map(|(slot, guard)| Step::Delete(slot, guard)),
        1 => any::<u8>().prop_map(Step::DeletePartition),
        1 => any::<u8>().prop_map(Step::DeleteTable),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => proptest::collection::vec(steps(), 1..6).prop_map(Act::Commit),
        1 => (0_u64..20, 1_usize..4).prop_map(|(now, limit)| Act::Sweep(now, limit)),
        4 => (any::<u8>(), 0_u8..5, 0_u8..5, 1_usize..5, any::<bool>())
            .prop_map(|(slot, from, before, limit, reverse)| Act::Scan(slot, from, before, limit, reverse)),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 1..30)
}

#[derive(Debug, Clone, PartialEq)]
struct Known {
    value: Vec<u8>,
    expires: Option<Timestamp>,
    /// The commit that wrote it; the store's version of that commit is looked up.
    commit: usize,
}

type Model = BTreeMap<Key, Known>;

/// What the model says of a change set: the new map, or the index that conflicts.
fn judge(model: &Model, steps: &[Step], commit: usize) -> Result<Model, usize> {
    let mut next = model.clone();
    for (index, step) in steps.iter().enumerate() {
        if let Step::Put(slot, _, _, guard) | Step::Delete(slot, guard) = step {
            let now = next.get(&key(*slot));
            // The expected version is that of the row before the change set.
            let before = model.get(&key(*slot));
            let holds = match guard {
                Guard::Any => true,
                Guard::Absent => now.is_none(),
                Guard::Present => now.is_some(),
                Guard::Current => now.is_some() && now.map(|row| row.commit) == before.map(|row| row.commit),
                Guard::Stale => false,
            };
            if !holds {
                return Err(index);
            }
        }
        match step {
            Step::Put(slot, value, expires, _) => {
                let expires = expires.map(Timestamp::from_millis);
                next.insert(key(*slot), Known { value: value.clone(), expires, commit });
            }
            Step::Delete(slot, _) => {
                next.remove(&key(*slot));
            }
            Step::DeletePartition(slot) => {
                let Key { table, partition, .. } = key(*slot);
                next.retain(|key, _| key.table != table || key.partition != partition);
            }
            Step::DeleteTable(slot) => next.retain(|row, _| row.table != key(*slot).table),
        }
    }
    Ok(next)
}

fn changes(steps: &[Step], current: impl Fn(&Key) -> Expect) -> ChangeSet {
    let expect = |slot: u8, guard: Guard| match guard {
        Guard::Any => Expect::Any,
        Guard::Absent => Expect::Absent,
        Guard::Present => Expect::Present,
        Guard::Current => current(&key(slot)),
        Guard::Stale => Expect::Version(stvor_store::RowVersion(1)),
    };
    let op = |step: &Step| match step {
        Step::Put(slot, value, expires, guard) => Op::put(key(*slot), SecretBytes::from_slice(value))
            .expecting(expect(*slot, *guard))
            .expiring(expires.map(Timestamp::from_millis)),
        Step::Delete(slot, guard) => Op::delete(key(*slot)).expecting(expect(*slot, *guard)),
        Step::DeletePartition(slot) => {
            let Key { table, partition, .. } = key(*slot);
            Op::DeletePartition { table, partition }
        }
        Step::DeleteTable(slot) => Op::DeleteTable { table: key(*slot).table },
    };
    steps.iter().map(op).collect()
}

async fn run(acts: Vec<Act>, durable: bool) {
    let directory = tempfile::tempdir().unwrap();
    let holder = Arc::new(Keyfile::create(&directory.path().join("k"), &mut SystemRandom::new()).unwrap());
    let memory = Arc::new(MemoryStore::new());
    let reopen = async || {
        let below: Arc<dyn Store> = match durable {
            true => Arc::new(SqliteStore::open(directory.path().join("s.db")).await.unwrap()),
            false => memory.clone(),
        };
        Sealed::open(below, holder.clone()).await.unwrap()
    };
    let mut store = reopen().await;
    let mut model = Model::new();
    let mut versions = Vec::new();
    for act in acts {
        match act {
            Act::Commit(steps) => {
                let current = |key: &Key| {
                    let version = model.get(key).map(|row| versions[row.commit]);
                    Expect::Version(version.unwrap_or(stvor_store::RowVersion(1)))
                };
                let expected = judge(&model, &steps, versions.len());
                match (store.commit(changes(&steps, current)).await, expected) {
                    (Ok(version), Ok(next)) => {
                        versions.push(version);
                        model = next;
                    }
                    (Err(StoreError::Conflict { op }), Err(index)) => assert_eq!(op, index),
                    (got, expected) => panic!("{got:?} but expected {expected:?}"),
                }
            }
            Act::Sweep(now, limit) => {
                let swept = store.sweep(Timestamp::from_millis(now), limit).await.unwrap();
                // Which of several that expired at one moment go first is the adapter's choice: ask it.
                let mut gone = Vec::new();
                for (key, row) in &model {
                    if store.one(key).await.unwrap().is_none() {
                        gone.push((key.clone(), row.expires));
                    }
                }
                let due = |row: &Known| row.expires.is_some_and(|at| at.as_millis() <= now);
                assert_eq!(swept, model.values().filter(|row| due(row)).count().min(limit));
                assert_eq!(gone.len(), swept);
                for (key, _) in &gone {
                    assert!(due(&model[key]));
                    model.remove(key);
                }
                let latest = gone.iter().filter_map(|(_, at)| *at).max();
                assert!(model.values().filter(|row| due(row)).all(|row| row.expires >= latest));
            }
            Act::Scan(slot, from, before, limit, reverse) => {
                let Key { table, partition, .. } = key(slot);
                let mut expected: Vec<(&Key, &Known)> = model
                    .iter()
                    .filter(|(key, _)| key.table == table && key.partition == partition)
                    .filter(|(key, _)| key.sort >= vec![from] && key.sort < vec![before])
                    .collect();
                if reverse {
                    expected.reverse();
                }
                let scan =
                    Scan { reverse, ..Scan::of(table, partition).from([from]).before([before]).limit(limit) };
                let page = store.scan(scan).await.unwrap();
                assert_eq!(page.more, expected.len() > limit);
                expected.truncate(limit);
                let found: Vec<_> = page.rows.iter().map(|row| (&row.key, row.value.expose())).collect();
                let expected: Vec<_> =
                    expected.iter().map(|(key, row)| (*key, row.value.as_slice())).collect();
                assert_eq!(found, expected);
            }
            Act::Reopen => {
                if durable {
                    store.close().await.unwrap();
                }
                store = reopen().await;
            }
        }
        for slot in 0..16 {
            let found = store.one(&key(slot)).await.unwrap();
            let found = found.map(|row| (row.value.expose().to_vec(), row.expires, row.version));
            let known = model.get(&key(slot));
            assert_eq!(found, known.map(|row| (row.value.clone(), row.expires, versions[row.commit])));
        }
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_memory_store_does_what_a_map_does(acts in acts()) {
        block_on(run(acts, false));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_sqlite_store_does_what_a_map_does(acts in acts()) {
        block_on(run(acts, true));
    }
}
