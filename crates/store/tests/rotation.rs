//! Changing what opens a store, and replacing the data key that its rows are sealed under.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::{KeyHolder, Keyfile, Passphrase, PassphraseCost};
use stvor_store::{
    ChangeSet, Key, MemoryStore, Op, Page, PostgresStores, RedisStores, Row, RowValue, RowVersion, Scan,
    Sealed, SqliteStore, Stats, Store, StoreError, StorePlace, StoreProvider, Table,
};
use stvor_testkit::{Postgres, Redis};

/// A store that fails after some commits, as a process that is killed does.
#[derive(Debug)]
struct Mortal(Arc<dyn Store>, AtomicUsize);

#[async_trait]
impl Store for Mortal {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Row>>, StoreError> {
        self.0.get(keys).await
    }
    async fn scan(&self, scan: Scan) -> Result<Page<Row>, StoreError> {
        self.0.scan(scan).await
    }
    async fn commit(&self, changes: ChangeSet<RowValue>) -> Result<(), StoreError> {
        if self.1.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(StoreError::Closed);
        }
        self.0.commit(changes).await
    }
    async fn sweep(&self, now: Timestamp, limit: usize) -> Result<usize, StoreError> {
        self.0.sweep(now, limit).await
    }
    async fn walk(&self, after: Option<&Key>, limit: usize) -> Result<Page<Row>, StoreError> {
        self.0.walk(after, limit).await
    }
    async fn stats(&self) -> Result<Stats, StoreError> {
        self.0.stats().await
    }
    async fn close(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn keyfile(directory: &Path, name: &str) -> Arc<dyn KeyHolder> {
    let path = directory.join(name);
    if path.exists() {
        return Arc::new(Keyfile::read(&path).unwrap());
    }
    Arc::new(Keyfile::create(&path, &mut SystemRandom::new()).unwrap())
}

const TABLES: [Table; 3] = [Table::Session, Table::History, Table::Custom];

fn key(table: Table, number: u64) -> Key {
    Key::new(table, format!("peer {}", number % 7).into_bytes(), number.to_be_bytes())
}

async fn fill(store: &Sealed, count: u64) {
    for table in TABLES {
        let mut changes = ChangeSet::new();
        for number in 0..count {
            let value = format!("{table:?} {number}").into_bytes();
            let expires = (number % 3 == 0).then_some(Timestamp::from_millis(1 << 40));
            changes.push(Op::put(key(table, number), value).expiring(expires));
        }
        store.commit(changes).await.unwrap();
    }
}

async fn check(store: &Sealed, count: u64) {
    for table in TABLES {
        for number in 0..count {
            let row = store.one(&key(table, number)).await.unwrap().unwrap();
            assert_eq!(row.value.expose(), format!("{table:?} {number}").as_bytes());
            assert_eq!(row.expires.is_some(), number % 3 == 0);
        }
    }
}

async fn sealed(below: &Arc<dyn Store>) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let page = below.walk(rows.last().map(|row| &row.key), 100).await.unwrap();
        rows.extend(page.rows);
        if !page.more {
            return rows;
        }
    }
}

#[tokio::test]
async fn every_row_is_sealed_anew_and_reads_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(directory.path().join("s.db")).await.unwrap();
    for below in [Arc::new(MemoryStore::new()) as Arc<dyn Store>, Arc::new(sqlite)] {
        let holder = keyfile(directory.path(), "key");
        let store = Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap();
        fill(&store, 150).await;
        let before = sealed(&below).await;
        let mut last = 0;
        store.rotate(Arc::clone(&holder), |at| last = at.done).await.unwrap();
        assert!(last >= 450);
        let after = sealed(&below).await;
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            assert_eq!((&before.key, before.expires), (&after.key, after.expires));
            // Whose store it is stands in the clear, and stays.
            let is_anchor = before.key == Key::new(Table::Header, *b"store", *b"anchor");
            assert_eq!(before.value.bytes == after.value.bytes, is_anchor, "{:?}", before.key);
        }
        check(&store, 150).await;
        let info = Sealed::info(below.as_ref()).await.unwrap().unwrap();
        assert_eq!((info.rotations, info.rotating, store.rotating().await.unwrap()), (1, false, false));
        // A row from before does not open any more: the key that sealed it is gone.
        let old = before.iter().find(|row| row.key.table == Table::Custom).unwrap();
        let put = Op::put(old.key.clone(), old.value.clone()).expiring(old.expires);
        below.commit([put].into_iter().collect()).await.unwrap();
        let reopened = Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap();
        let mut tampered = 0;
        for number in 0..150 {
            match reopened.one(&key(Table::Custom, number)).await {
                Err(StoreError::Tampered { .. }) => tampered += 1,
                found => assert!(found.unwrap().is_some()),
            }
        }
        assert_eq!(tampered, 1);
        fill(&reopened, 150).await;
        reopened.rotate(holder, |_| {}).await.unwrap();
        check(&reopened, 150).await;
        assert_eq!(Sealed::info(below.as_ref()).await.unwrap().unwrap().rotations, 2);
    }
}

#[tokio::test]
async fn a_rotation_that_dies_after_any_commit_loses_nothing_and_is_gone_on_with() {
    let directory = tempfile::tempdir().unwrap();
    let holder = keyfile(directory.path(), "key");
    // 450 rows: the header, three batches, the header again.
    for commits in 0..8 {
        let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let store = Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap();
        fill(&store, 150).await;
        drop(store);
        // One commit for the epoch of the opening.
        let mortal = Arc::new(Mortal(Arc::clone(&below), AtomicUsize::new(commits + 1)));
        let dying = Sealed::open(mortal, Arc::clone(&holder)).await.unwrap();
        let died = dying.rotate(Arc::clone(&holder), |_| {}).await;
        let rotating = Sealed::info(below.as_ref()).await.unwrap().unwrap().rotating;
        assert_eq!(rotating, died.is_err() && commits > 0, "{commits}");
        let store = Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap();
        check(&store, 150).await;
        store.rotate(Arc::clone(&holder), |_| {}).await.unwrap();
        check(&store, 150).await;
        drop(store);
        let store = Sealed::open(below, Arc::clone(&holder)).await.unwrap();
        assert!(!store.rotating().await.unwrap());
        check(&store, 150).await;
    }
}

#[tokio::test]
async fn the_wrong_holder_is_an_error_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let store = Sealed::open(Arc::clone(&below), keyfile(directory.path(), "right")).await.unwrap();
    fill(&store, 10).await;
    let before = sealed(&below).await;
    let wrong = store.rotate(keyfile(directory.path(), "wrong"), |_| {}).await.unwrap_err();
    assert_eq!(wrong.code(), "WRONG_KEY");
    assert_eq!(sealed(&below).await, before);
    assert!(!store.rotating().await.unwrap());
}

#[tokio::test]
async fn another_holder_opens_the_store_in_the_middle_of_a_rotation_and_after_it() {
    let directory = tempfile::tempdir().unwrap();
    let (first, second) = (keyfile(directory.path(), "first"), keyfile(directory.path(), "second"));
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let store = Sealed::open(Arc::clone(&below), Arc::clone(&first)).await.unwrap();
    fill(&store, 150).await;
    drop(store);
    let mortal = Arc::new(Mortal(Arc::clone(&below), AtomicUsize::new(3)));
    let dying = Sealed::open(mortal, Arc::clone(&first)).await.unwrap();
    assert!(dying.rotate(Arc::clone(&first), |_| {}).await.is_err());
    let store = Sealed::open(Arc::clone(&below), Arc::clone(&first)).await.unwrap();
    assert!(store.rotating().await.unwrap());
    store.rewrap(Arc::clone(&second)).await.unwrap();
    drop(store);
    assert_eq!(Sealed::open(Arc::clone(&below), first).await.unwrap_err().code(), "WRONG_KEY");
    let store = Sealed::open(Arc::clone(&below), Arc::clone(&second)).await.unwrap();
    check(&store, 150).await;
    store.rotate(second, |_| {}).await.unwrap();
    check(&store, 150).await;
}

#[tokio::test]
async fn commits_beside_a_rotation_are_all_kept() {
    let directory = tempfile::tempdir().unwrap();
    let holder = keyfile(directory.path(), "key");
    let sqlite = SqliteStore::open(directory.path().join("s.db")).await.unwrap();
    let store = Arc::new(Sealed::open(Arc::new(sqlite), Arc::clone(&holder)).await.unwrap());
    fill(&store, 300).await;
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in 0..300_u64 {
                let row = key(TABLES[number as usize % 3], number);
                store.commit([Op::put(row, b"newer".to_vec())].into_iter().collect()).await.unwrap();
            }
        })
    };
    store.rotate(Arc::clone(&holder), |_| {}).await.unwrap();
    writer.await.unwrap();
    for number in 0..300_u64 {
        let row = store.one(&key(TABLES[number as usize % 3], number)).await.unwrap().unwrap();
        assert_eq!(row.value.expose(), b"newer");
    }
}

#[tokio::test]
async fn a_header_of_a_newer_format_is_refused_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let holder = keyfile(directory.path(), "key");
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap();
    let name = Key::new(Table::Header, *b"store", *b"header");
    let row = below.get(core::slice::from_ref(&name)).await.unwrap().pop().flatten().unwrap();
    let mut bytes = row.value.bytes;
    bytes.truncate(bytes.len() - 16);
    bytes[8..10].copy_from_slice(&(stvor_store::FORMAT + 1).to_be_bytes());
    let sum = stvor_crypto::kdf::sha256(&[&bytes]);
    bytes.extend_from_slice(&sum[..16]);
    let put = Op::put(name, RowValue { bytes, version: RowVersion(0) });
    below.commit([put].into_iter().collect()).await.unwrap();
    let before = sealed(&below).await;
    assert_eq!(Sealed::open(Arc::clone(&below), holder).await.unwrap_err().code(), "STORE_TOO_NEW");
    assert_eq!(sealed(&below).await, before);
}

#[tokio::test]
async fn a_store_of_version_1_can_be_rotated() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("v1.db");
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1.db");
    std::fs::copy(fixture, &path).unwrap();
    let phrase = || SecretBytes::from_slice(b"fixture passphrase");
    let cheap = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    let holder: Arc<dyn KeyHolder> = Arc::new(Passphrase::new(phrase()).unwrap().with_cost(cheap).unwrap());
    let sqlite = SqliteStore::open(&path).await.unwrap();
    let store = Sealed::open(Arc::new(sqlite), Arc::clone(&holder)).await.unwrap();
    let tag = store.tag(Table::Peer, b"bob");
    store.rotate(holder, |_| {}).await.unwrap();
    assert_eq!(store.tag(Table::Peer, b"bob"), tag, "names stay where they are");
    let page = store.scan(Scan::of(Table::Session, *b"peer@example.com")).await.unwrap();
    assert_eq!(page.rows.len(), 3);
}

/// Stores at servers of their own, which end with the value.
async fn served() -> (Option<Postgres>, Option<Redis>, Vec<Box<dyn StoreProvider>>) {
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let mut stores: Vec<Box<dyn StoreProvider>> = Vec::new();
    if let Some(server) = &postgres {
        stores.push(Box::new(PostgresStores::new(&server.database().unwrap().url).unwrap()));
    }
    if let Some(server) = &redis {
        stores.push(Box::new(RedisStores::new(&server.url()).unwrap()));
    }
    (postgres, redis, stores)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_on_a_server_are_sealed_anew_while_they_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let (_postgres, _redis, all) = served().await;
    for stores in all {
        let holder = keyfile(directory.path(), "key");
        let below = stores.open(&StorePlace::new("ws://relay", "app", "bob")).await.unwrap();
        let store = Arc::new(Sealed::open(Arc::clone(&below), Arc::clone(&holder)).await.unwrap());
        fill(&store, 150).await;
        let before = sealed(&below).await;
        let writer = tokio::spawn({
            let store = Arc::clone(&store);
            async move {
                for number in 150..300 {
                    let put = Op::put(key(Table::Custom, number), b"new".to_vec());
                    store.commit([put].into_iter().collect()).await.unwrap();
                }
            }
        });
        store.rotate(Arc::clone(&holder), |_| {}).await.unwrap();
        writer.await.unwrap();
        check(&store, 150).await;
        let after = sealed(&below).await;
        assert_eq!(after.len(), before.len() + 150);
        let kept = |row: &&Row| row.key.table != Table::Header;
        for row in before.iter().filter(kept) {
            assert!(after.iter().all(|other| other.value.bytes != row.value.bytes), "sealed anew");
        }
        let again = Sealed::open(Arc::clone(&below), holder).await.unwrap();
        check(&again, 150).await;
        assert_eq!(again.one(&key(Table::Custom, 299)).await.unwrap().unwrap().value.expose(), b"new");
        below.close().await.unwrap();
    }
}

#[tokio::test]
async fn who_enrolled_before_a_rotation_stops_it_and_who_comes_too_late_has_to_open_again() {
    let directory = tempfile::tempdir().unwrap();
    let holder = keyfile(directory.path(), "key");
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let open = || Sealed::open(Arc::clone(&below), Arc::clone(&holder));
    let (first, second) = (open().await.unwrap(), open().await.unwrap());
    let entry =
        |number| move || [Op::insert(key(Table::Meta, number), b"here".to_vec())].into_iter().collect();
    first.enroll(entry(1)).await.unwrap();
    // Between the look and the rotation somebody comes.
    let alone = async { second.enroll(entry(2)).await.map(|_| ()) };
    let refused = first.rotate_alone(Arc::clone(&holder), alone, |_| {}).await.unwrap_err();
    assert_eq!(refused.code(), "STORE_CONFLICT");
    assert!(!first.rotating().await.unwrap());
    let others = async { Err(StoreError::InUse { others: 1 }) };
    let refused = first.rotate_alone(Arc::clone(&holder), others, |_| {}).await.unwrap_err();
    assert_eq!(refused.code(), "STORE_IN_USE");
    assert_eq!(Sealed::info(below.as_ref()).await.unwrap().unwrap().rotations, 0);

    first.rotate_alone(Arc::clone(&holder), async { Ok(()) }, |_| {}).await.unwrap();
    let before = sealed(&below).await;
    assert_eq!(second.enroll(entry(3)).await.unwrap_err().code(), "STORE_KEYS_REPLACED");
    assert_eq!(sealed(&below).await, before, "nothing was written under the old key");
    let again = open().await.unwrap();
    again.enroll(entry(3)).await.unwrap();
    first.enroll(entry(4)).await.unwrap();
    assert!(again.one(&key(Table::Meta, 2)).await.unwrap().is_some());
}

/// An opening takes its time over a passphrase, and another process replaces the data key meanwhile.
#[tokio::test]
async fn who_read_the_header_before_a_rotation_seals_nothing_after_it_under_the_key_before() {
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let cheap = PassphraseCost { memory_kib: 4_096, iterations: 1, parallelism: 1 };
    let phrase = Passphrase::new(SecretBytes::from_slice(b"of many bytes")).unwrap();
    let holder: Arc<dyn KeyHolder> = Arc::new(phrase.with_cost(cheap).unwrap());
    let open = || Sealed::open(Arc::clone(&below), Arc::clone(&holder));
    let store = open().await.unwrap();
    fill(&store, 10).await;
    let mut opening = core::pin::pin!(open());
    assert!(futures::poll!(opening.as_mut()).is_pending(), "it has read the header");
    store.rotate(Arc::clone(&holder), |_| {}).await.unwrap();
    assert_eq!(opening.await.unwrap_err().code(), "STORE_KEYS_REPLACED");
    check(&open().await.unwrap(), 10).await;
}
