//! Stores that are emptied, torn or exchanged under an opening, on every adapter; and openings with a wrong key, which write
//! nothing.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::SystemRandom;
use stvor_keys::Keyfile;
use stvor_store::{
    ChangeSet, Key, LAYOUTS, MemoryStore, Op, OpenKey, PostgresStores, RedisStores, RowValue, Scan, Sealed,
    SqliteStore, Store, StoreError, StorePlace, StoreProvider, Table, default_keyfile, open, open_at,
};
use stvor_testkit::{Postgres, Redis, RedisCluster};

fn place() -> StorePlace {
    StorePlace::new("wss://relay.example:443", "app", "bob")
}

fn key(sort: u64) -> Key {
    Key::new(Table::Custom, *b"a", sort.to_be_bytes())
}

fn put(sort: u64) -> ChangeSet {
    [Op::put(key(sort), b"value".to_vec())].into_iter().collect()
}

fn header_rows() -> ChangeSet<RowValue> {
    [Op::DeleteTable { table: Table::Header }].into_iter().collect()
}

fn one_of_the_header(sort: &[u8]) -> ChangeSet<RowValue> {
    [Op::delete(Key::new(Table::Header, *b"store", sort))].into_iter().collect()
}

fn everything() -> ChangeSet<RowValue> {
    Table::ALL.map(|table| Op::DeleteTable { table }).into_iter().collect()
}

/// Servers to keep alive, and openings of one place on them.
struct Kind {
    _server: Box<dyn Any>,
    name: &'static str,
    stores: Box<dyn StoreProvider>,
}

fn servers() -> Vec<Kind> {
    let mut kinds = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let stores = Box::new(PostgresStores::new(&server.database().unwrap().url).unwrap());
        kinds.push(Kind { _server: Box::new(server), name: "postgres", stores });
    }
    if let Some(server) = Redis::start().unwrap() {
        let stores = Box::new(RedisStores::new(&server.url()).unwrap());
        kinds.push(Kind { _server: Box::new(server), name: "redis", stores });
    }
    kinds
}

fn holder(directory: &Path) -> Arc<Keyfile> {
    let path = directory.join("key");
    Arc::new(match path.exists() {
        true => Keyfile::read(&path).unwrap(),
        false => Keyfile::create(&path, &mut SystemRandom::new()).unwrap(),
    })
}

/// An adapter by name, and what keeps its server.
type Adapter = (&'static str, Arc<dyn Store>, Box<dyn Any>);

/// A provider, and what tells all that its server holds.
type Subject<'server> = (Box<dyn StoreProvider>, Box<dyn Fn() -> String + 'server>);

/// Every adapter, each with an empty store.
async fn adapters(directory: &Path) -> Vec<Adapter> {
    let sqlite: Arc<dyn Store> = Arc::new(SqliteStore::open(directory.join("s.db")).await.unwrap());
    let mut all: Vec<Adapter> =
        vec![("memory", Arc::new(MemoryStore::new()), Box::new(())), ("sqlite", sqlite, Box::new(()))];
    for kind in servers() {
        let store = kind.stores.open(&place()).await.unwrap();
        all.push((kind.name, store, Box::new(kind)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_into_a_store_that_lost_its_header_and_none_is_begun_there() {
    let directory = tempfile::tempdir().unwrap();
    let holder = holder(directory.path());
    for (name, below, _server) in adapters(directory.path()).await {
        for lost in [header_rows(), everything(), one_of_the_header(b"header"), one_of_the_header(b"anchor")]
        {
            let whole = lost == everything();
            let store = Sealed::open(Arc::clone(&below), holder.clone()).await.unwrap();
            store.commit(put(1)).await.unwrap();
            below.commit(lost).await.unwrap();
            let rows = below.stats().await.unwrap().rows;
            let sets = futures::future::join_all((2..10).map(|sort| store.commit(put(sort)))).await;
            for set in sets {
                assert_eq!(set.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            }
            let left = below.stats().await.unwrap().rows;
            assert!(left <= rows + 1, "{name}: a note is left at most: {left} rows of {rows}");
            // It says so at once from now on, also to who only reads.
            assert!(store.is_emptied());
            store.emptied().await;
            assert_eq!(store.one(&key(1)).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            let scan = store.scan(Scan::of(Table::Custom, *b"a")).await;
            assert_eq!(scan.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            assert_eq!(store.check_there().await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            assert_eq!(store.rewrap(holder.clone()).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            assert_eq!(store.enroll(|| put(3)).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
            let again = Sealed::open(Arc::clone(&below), holder.clone()).await;
            match again {
                // Only the row that names the store was gone: whose it is the header says.
                Ok(again) => drop(again.one(&key(1)).await.unwrap().unwrap()),
                Err(error) => assert_eq!(error.code(), "STORE_EMPTIED", "{name}"),
            }
            assert!(!whole || below.stats().await.unwrap().rows == 1, "{name}: nobody made one anew");
            // Who meant it clears the place.
            below.commit(everything()).await.unwrap();
        }
        below.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_writes_nothing_into_another_store_in_the_same_place() {
    let directory = tempfile::tempdir().unwrap();
    let holder = holder(directory.path());
    for (name, below, _server) in adapters(directory.path()).await {
        let first = Sealed::open(Arc::clone(&below), holder.clone()).await.unwrap();
        first.commit(put(1)).await.unwrap();
        below.commit(everything()).await.unwrap();
        let second = Sealed::open(Arc::clone(&below), holder.clone()).await.unwrap();
        second.commit(put(2)).await.unwrap();
        assert_eq!(first.commit(put(3)).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
        // The one that is there now goes on, and has no note of an emptying in it.
        second.commit(put(4)).await.unwrap();
        assert_eq!(second.stats().await.unwrap().rows, 3 + 2, "{name}");
        below.close().await.unwrap();
    }
}

/// One opening slept while another removed the store, as after an account was deleted: the place is free for the next one.
#[tokio::test(flavor = "multi_thread")]
async fn who_slept_while_a_store_was_removed_leaves_its_place_free() {
    let directory = tempfile::tempdir().unwrap();
    let holder = holder(directory.path());
    for kind in servers() {
        let name = kind.name;
        let open = async || {
            let below = kind.stores.open(&place()).await.unwrap();
            Sealed::open(Arc::clone(&below), holder.clone()).await
        };
        let (slept, second) = (open().await.unwrap(), open().await.unwrap());
        second.commit(put(1)).await.unwrap();
        second.close().await.unwrap();
        kind.stores.destroy(&place()).await.unwrap();
        assert_eq!(slept.commit(put(2)).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
        assert_eq!(
            slept.stats().await.unwrap().rows,
            1,
            "{name}: the note of who removed it, and nothing else"
        );
        // Removed once more, by who does not know of it: as before.
        kind.stores.destroy(&place()).await.unwrap();
        let third = open().await.unwrap();
        assert!(third.one(&key(1)).await.unwrap().is_none(), "{name}");
        third.commit(put(3)).await.unwrap();
        assert_eq!(third.stats().await.unwrap().rows, 3 + 1, "{name}: the note is gone");
        // What was begun there since is guarded like any other: also the one that slept says so where it is emptied.
        third.adapter().commit(everything()).await.unwrap();
        assert_eq!(third.commit(put(4)).await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
        assert_eq!(open().await.unwrap_err().code(), "STORE_EMPTIED", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_before_that_has_no_anchor_gets_one_and_is_guarded_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let (holder, below) = (holder(directory.path()), Arc::new(MemoryStore::new()));
    Sealed::open(below.clone(), holder.clone()).await.unwrap().commit(put(1)).await.unwrap();
    below.commit(one_of_the_header(b"anchor")).await.unwrap();
    let (first, second) = tokio::join!(
        Sealed::open(below.clone(), holder.clone()),
        Sealed::open(below.clone(), holder.clone()),
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    first.commit(put(2)).await.unwrap();
    second.commit(put(3)).await.unwrap();
    below.commit(header_rows()).await.unwrap();
    assert_eq!(second.commit(put(4)).await.unwrap_err().code(), "STORE_EMPTIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_lost_some_of_the_keys_of_a_store_is_damaged_and_takes_nothing() {
    let Some(server) = Redis::start().unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let holder = holder(directory.path());
    let stores = RedisStores::new(&server.url()).unwrap();
    let find = |name: &str| server.cli(&["keys", &format!("*:{name}")]).unwrap().trim().to_owned();
    for (lost, says) in [("rows", "STORE_EMPTIED"), ("order", "STORE_CORRUPT"), ("meta", "STORE_CORRUPT")] {
        let below = stores.open(&place()).await.unwrap();
        let store = Sealed::open(Arc::clone(&below), holder.clone()).await.unwrap();
        store.commit(put(1)).await.unwrap();
        // As an eviction does: keys of the server, not rows of ours.
        server.cli(&["del", &find(lost)]).unwrap();
        for _ in 0..2 {
            assert_eq!(store.commit(put(2)).await.unwrap_err().code(), says, "{lost}");
        }
        if lost == "order" {
            let scan = store.scan(Scan::of(Table::Custom, *b"a")).await;
            assert_eq!(scan.unwrap_err().code(), says, "rows that are there are not told to be none");
        }
        below.close().await.unwrap();
        let below = stores.open(&place()).await.unwrap();
        let again = Sealed::open(Arc::clone(&below), holder.clone()).await;
        if lost == "meta" {
            // Its rows are whole, and who opens it anew waits for no answer.
            let again = again.unwrap();
            assert!(
                again.one(&key(1)).await.unwrap().is_some() && again.one(&key(2)).await.unwrap().is_none()
            );
            again.commit(put(3)).await.unwrap();
            let walked = below.walk(None, 100).await.unwrap().rows;
            let held =
                |row: &stvor_store::Row| row.key.partition.len() + row.key.sort.len() + row.value.bytes.len();
            assert_eq!(
                below.stats().await.unwrap().value_bytes,
                walked.iter().map(held).sum::<usize>() as u64
            );
        } else {
            let again = again.unwrap_err();
            assert!(["STORE_EMPTIED", "STORE_CORRUPT"].contains(&again.code()), "{lost}: {again}");
        }
        server.cli(&["flushall"]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_master_of_a_cluster_that_lost_everything_empties_its_stores_and_no_others() {
    let Some(cluster) = RedisCluster::start().unwrap() else { return };
    let directory = tempfile::tempdir().unwrap();
    let holder = holder(directory.path());
    let stores = RedisStores::new(&cluster.urls()[0]).unwrap();
    let mut opened = Vec::new();
    for user in 0..12 {
        let place = StorePlace::new("wss://relay.example:443", "app", format!("user-{user}"));
        let store = Sealed::open(stores.open(&place).await.unwrap(), holder.clone()).await.unwrap();
        store.commit(put(1)).await.unwrap();
        opened.push(store);
    }
    // Its functions too, as after a restart without persistence.
    cluster.nodes[0].cli(&["flushall"]).unwrap();
    cluster.nodes[0].cli(&["function", "flush"]).unwrap();
    let (mut emptied, mut whole) = (0, 0);
    for store in &opened {
        match store.commit(put(2)).await {
            Ok(_) => {
                assert!(store.one(&key(1)).await.unwrap().is_some());
                whole += 1;
            }
            Err(error) => {
                assert_eq!(error.code(), "STORE_EMPTIED");
                emptied += 1;
            }
        }
    }
    assert!(emptied > 0 && whole > 0, "{emptied} emptied, {whole} whole");
}

/// What stands in a SQLite store's files.
fn files(path: &Path) -> (Vec<u8>, Option<Vec<u8>>) {
    // An empty journal is none: SQLite removes it with the last connection.
    let journal = std::fs::read(path.with_extension("db-wal")).ok().filter(|bytes| !bytes.is_empty());
    (std::fs::read(path).unwrap(), journal)
}

#[tokio::test]
async fn a_wrong_key_changes_no_byte_of_a_sqlite_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    store.commit(put(1)).await.unwrap();
    store.close().await.unwrap();
    let good = std::fs::read(default_keyfile(&path)).unwrap();
    std::fs::write(default_keyfile(&path), [1; 32]).unwrap();
    let before = files(&path);
    for _ in 0..2 {
        assert_eq!(open(&path, OpenKey::Default).await.unwrap_err().code(), "WRONG_KEY");
        assert!(files(&path) == before, "the files are as they were");
    }
    // One of an older version is migrated with the right key only.
    let database = Connection::open(&path).unwrap();
    database.execute_batch("PRAGMA user_version = 0;").unwrap();
    database.close().unwrap();
    let before = files(&path);
    assert_eq!(open(&path, OpenKey::Default).await.unwrap_err().code(), "WRONG_KEY");
    assert!(files(&path) == before, "the files are as they were");
    std::fs::write(default_keyfile(&path), good).unwrap();
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    assert!(store.one(&key(1)).await.unwrap().is_some());
    store.close().await.unwrap();
}

/// Stores at servers, and what tells all that those hold.
fn dumped<'server>(
    postgres: Option<&'server Postgres>,
    redis: Option<&'server Redis>,
) -> Vec<Subject<'server>> {
    let mut subjects: Vec<Subject<'_>> = Vec::new();
    if let Some(server) = postgres {
        let database = server.database().unwrap();
        let stores = Box::new(PostgresStores::new(&database.url).unwrap());
        // Each dump has a key of its own in two lines.
        let dump = move || {
            let dump = server.dump(&database.name).unwrap();
            dump.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
        };
        subjects.push((stores, Box::new(dump)));
    }
    if let Some(server) = redis {
        let dump = || {
            let mut all = String::new();
            let mut keys: Vec<String> =
                server.cli(&["keys", "*"]).unwrap().lines().map(str::to_owned).collect();
            keys.sort();
            for key in keys {
                // Not `DUMP`: the fields of a hash have no order, and reading can change that in which they are given.
                let hash = server.cli(&["type", &key]).unwrap().trim() == "hash";
                let values = match hash {
                    true => server.cli(&["--no-raw", "hgetall", &key]).unwrap(),
                    false => server.cli(&["--no-raw", "zrange", &key, "0", "-1", "withscores"]).unwrap(),
                };
                let values: Vec<&str> =
                    values.lines().filter_map(|line| Some(line.split_once(") ")?.1)).collect();
                let mut pairs: Vec<_> = values.chunks(2).collect();
                if hash {
                    pairs.sort();
                }
                all += &format!("{key} {pairs:?}\n");
            }
            all
        };
        subjects.push((Box::new(RedisStores::new(&server.url()).unwrap()), Box::new(dump)));
    }
    subjects
}

#[tokio::test]
async fn a_wrong_key_changes_nothing_on_a_server_and_neither_does_a_look() {
    let directory = tempfile::tempdir().unwrap();
    let (right, wrong) = (directory.path().join("right"), directory.path().join("wrong"));
    Keyfile::create(&wrong, &mut SystemRandom::new()).unwrap();
    let with = |path: &Path| OpenKey::Keyfile(path.to_owned());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    let subjects = dumped(postgres.as_ref(), redis.as_ref());
    for (stores, dump) in &subjects {
        let kind = stores.facts().kind;
        // Who only looks at a place makes nothing there.
        let empty = dump();
        let below = stores.open(&place()).await.unwrap();
        assert_eq!(Sealed::info(below.as_ref()).await.unwrap(), None);
        assert_eq!(below.stats().await.unwrap().rows, 0);
        assert_eq!(below.scan(Scan::of(Table::Custom, *b"a")).await.unwrap().rows, []);
        assert_eq!(below.walk(None, 10).await.unwrap().rows, []);
        below.close().await.unwrap();
        assert_eq!(dump(), empty, "{kind}");

        let store = open_at(&**stores, &place(), with(&right)).await.unwrap().store;
        store.commit(put(1)).await.unwrap();
        store.close().await.unwrap();
        let before = dump();
        assert_ne!(before, empty);
        assert_eq!(open_at(&**stores, &place(), with(&wrong)).await.unwrap_err().code(), "WRONG_KEY");
        assert_eq!(dump(), before, "{kind}");
    }
}

/// Layouts that no program has yet.
const NEWER: u32 = LAYOUTS + 1;

#[tokio::test]
async fn a_sqlite_store_of_newer_layouts_is_refused_and_no_byte_of_it_changes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let below: Arc<dyn Store> = Arc::new(SqliteStore::open(&path).await.unwrap());
    let key = Arc::new(Keyfile::create(&default_keyfile(&path), &mut SystemRandom::new()).unwrap());
    let store = Sealed::open_as(below, key, NEWER).await.unwrap();
    store.commit(put(1)).await.unwrap();
    store.close().await.unwrap();
    let before = files(&path);
    for key in [OpenKey::Default, OpenKey::Passphrase(b"a wrong one".to_vec().into())] {
        assert_eq!(open(&path, key).await.unwrap_err().code(), "STORE_TOO_NEW");
        assert!(files(&path) == before, "the files are as they were");
    }
}

#[tokio::test]
async fn a_store_of_newer_layouts_on_a_server_is_refused_and_nothing_there_changes() {
    let directory = tempfile::tempdir().unwrap();
    let key = holder(directory.path());
    let (postgres, redis) = (Postgres::start().unwrap(), Redis::start().unwrap());
    for (stores, dump) in &dumped(postgres.as_ref(), redis.as_ref()) {
        let below = stores.open(&place()).await.unwrap();
        let store = Sealed::open_as(below, key.clone(), NEWER).await.unwrap();
        store.commit(put(1)).await.unwrap();
        store.close().await.unwrap();
        let before = dump();
        let opened = open_at(&**stores, &place(), OpenKey::Holder(key.clone())).await;
        let kind = stores.facts().kind;
        assert_eq!(opened.unwrap_err().code(), "STORE_TOO_NEW", "{kind}");
        assert_eq!(dump(), before, "{kind}");
    }
}

/// A server that is put back to before the raise would let an older program in, beside records of the newer layouts.
#[tokio::test]
async fn who_goes_on_with_a_store_that_was_put_back_raises_its_layouts_again() {
    let directory = tempfile::tempdir().unwrap();
    let key = holder(directory.path());
    let below: Arc<dyn Store> = Arc::new(MemoryStore::new());
    drop(Sealed::open(Arc::clone(&below), key.clone()).await.unwrap());
    let copy = below.walk(None, 100).await.unwrap().rows;
    let newer = Sealed::open_as(Arc::clone(&below), key.clone(), NEWER).await.unwrap().shared(true);
    newer.commit(put(1)).await.unwrap();
    let rows = copy.into_iter().map(|row| Op::put(row.key, row.value));
    below.commit(everything().ops.into_iter().chain(rows).collect()).await.unwrap();
    newer.commit(put(2)).await.unwrap();
    assert_eq!(Sealed::open(below, key).await.unwrap_err().code(), "STORE_TOO_NEW");
}

#[tokio::test]
async fn sweeping_a_place_where_no_store_was_made_removes_nothing() {
    for kind in servers() {
        let store = kind.stores.open(&place()).await.unwrap();
        assert_eq!(store.sweep(Timestamp::from_millis(9), 10).await.unwrap(), 0, "{}", kind.name);
        assert!(!matches!(store.stats().await, Err(StoreError::Corrupt { .. })));
        store.close().await.unwrap();
    }
}
