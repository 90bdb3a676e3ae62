//! Openings that were cut short, stores that were tampered with from outside, and several names for one store.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use rusqlite::Connection;
use std::path::Path;
use std::sync::Arc;
use stvor_base::ErrorCode;
use stvor_crypto::SystemRandom;
use stvor_keys::{Keyfile, Passphrase, PassphraseCost};
use stvor_store::{
    ChangeSet, Key, MemoryStore, Notice, Op, OpenKey, RowValue, RowVersion, Scan, Sealed, SqliteStore, Store,
    Table, default_keyfile, open,
};

fn key(sort: u64) -> Key {
    Key::new(Table::Custom, *b"a", sort.to_be_bytes())
}

fn put(sort: u64) -> ChangeSet {
    [Op::put(key(sort), b"value".to_vec())].into_iter().collect()
}

async fn filled(path: &Path) {
    let store = open(path, OpenKey::Default).await.unwrap().store;
    store.commit(put(1)).await.unwrap();
    store.close().await.unwrap();
}

async fn code(path: &Path) -> &'static str {
    open(path, OpenKey::Default).await.expect_err("refused").code()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_opening_that_died_before_it_made_the_keyfile_is_made_whole_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    // What is on disk when a process dies after the database was made: no row in it.
    SqliteStore::open(&path).await.unwrap().close().await.unwrap();
    let opened = open(&path, OpenKey::Default).await.unwrap();
    assert_eq!(opened.notice, Some(Notice::KeyfileCreated { path: default_keyfile(&path) }));
    opened.store.commit(put(1)).await.unwrap();
}

#[tokio::test]
async fn an_opening_that_died_after_it_made_the_keyfile_goes_on_with_that_one_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    SqliteStore::open(&path).await.unwrap().close().await.unwrap();
    Keyfile::create(&default_keyfile(&path), &mut SystemRandom::new()).unwrap();
    let made = std::fs::read(default_keyfile(&path)).unwrap();
    let opened = open(&path, OpenKey::Default).await.unwrap();
    // Nobody was told of it before.
    assert_eq!(opened.notice, Some(Notice::KeyfileCreated { path: default_keyfile(&path) }));
    assert_eq!(std::fs::read(default_keyfile(&path)).unwrap(), made);
    opened.store.close().await.unwrap();
    assert_eq!(open(&path, OpenKey::Default).await.unwrap().notice, None);
}

#[tokio::test]
async fn an_opening_that_died_while_it_made_the_database_leaves_nothing_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    for suffix in [".new", ".new-wal", ".new-journal"] {
        std::fs::write(format!("{}{suffix}", path.display()), b"half").unwrap();
    }
    filled(&path).await;
    assert_eq!(names(directory.path()), ["s.db", "s.db.key", "s.db.lock"]);
}

#[tokio::test]
async fn a_draft_of_the_keyfile_that_a_crash_left_goes_with_the_next_opening_and_with_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    // A process that dies between giving the keyfile its name and removing the draft leaves the key under both names.
    let draft = directory.path().join("s.db.key.new-0123456789abcdef");
    let leave = || std::fs::hard_link(default_keyfile(&path), &draft).unwrap();
    leave();
    open(&path, OpenKey::Default).await.unwrap();
    assert!(!draft.exists());
    leave();
    let other = directory.path().join("t.db.key.new-0123456789abcdef");
    std::fs::write(&other, b"of another store").unwrap();
    stvor_store::destroy(&path).await.unwrap();
    assert_eq!(
        names(directory.path()),
        ["t.db.key.new-0123456789abcdef"],
        "the key is gone, and nothing else"
    );
}

#[tokio::test]
async fn destroying_what_is_not_there_is_done_already() {
    let directory = tempfile::tempdir().unwrap();
    stvor_store::destroy(directory.path().join("s.db")).await.unwrap();
    stvor_store::destroy(directory.path().join("none/s.db")).await.unwrap();
    assert_eq!(names(directory.path()), Vec::<String>::new());
}

#[tokio::test]
async fn a_link_to_a_store_is_the_store_with_its_lock_and_key_and_is_destroyed_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let link = directory.path().join("link.db");
    filled(&path).await;
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let held = open(&path, OpenKey::Default).await.unwrap();
    assert_eq!(code(&link).await, "STORE_LOCKED", "two writers would use one key twice");
    drop(held);
    let store = open(&link, OpenKey::Default).await.unwrap().store;
    assert!(store.one(&key(1)).await.unwrap().is_some());
    store.close().await.unwrap();
    stvor_store::destroy(&link).await.unwrap();
    assert_eq!(names(directory.path()), ["link.db"]);
}

#[tokio::test]
async fn a_store_without_its_header_is_damaged_and_no_key_is_made_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    std::fs::remove_file(default_keyfile(&path)).unwrap();
    let database = Connection::open(&path).unwrap();
    database.execute("DELETE FROM rows WHERE tbl = 0", []).unwrap();
    drop(database);
    assert_eq!(code(&path).await, "STORE_EMPTIED");
    assert!(!default_keyfile(&path).exists(), "one would stand where the right one is to be restored");
}

/// A sealed store over memory whose epoch row is as given, and the result of opening it.
async fn with_epoch(bytes: Option<Vec<u8>>) -> Result<Sealed, &'static str> {
    let directory = tempfile::tempdir().unwrap();
    let holder = Arc::new(Keyfile::create(&directory.path().join("k"), &mut SystemRandom::new()).unwrap());
    let below = Arc::new(MemoryStore::new());
    Sealed::open(below.clone(), holder.clone()).await.unwrap();
    let name = Key::new(Table::Header, *b"store", *b"epoch");
    let op = match bytes {
        Some(bytes) => Op::put(name, RowValue { bytes, version: RowVersion(1) }),
        None => Op::delete(name),
    };
    below.commit([op].into_iter().collect()).await.unwrap();
    Sealed::open(below, holder).await.map_err(|error| error.code())
}

#[tokio::test]
async fn the_last_epoch_opens_the_one_after_it_does_not_and_none_begins_anew() {
    let last = u32::MAX >> 1;
    let store = with_epoch(Some((last - 1).to_be_bytes().to_vec())).await.unwrap();
    let version = store.commit(put(1)).await.unwrap();
    assert_eq!(version.0 >> 32, u64::from(last));
    assert!(version.0 <= u64::MAX >> 1, "it fits a signed number");
    assert!(store.one(&key(1)).await.unwrap().is_some());
    assert_eq!(with_epoch(Some(last.to_be_bytes().to_vec())).await.unwrap_err(), "STORE_LIMIT");
    for damaged in [Some((last + 1).to_be_bytes().to_vec()), Some(vec![0; 3]), Some(vec![0; 5]), None] {
        assert_eq!(with_epoch(damaged.clone()).await.err(), Some("STORE_CORRUPT"), "{damaged:?}");
    }
}

#[tokio::test]
async fn triggers_and_views_in_the_file_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    for (make, remove) in [
        ("CREATE TRIGGER t BEFORE UPDATE ON rows BEGIN SELECT RAISE(IGNORE); END", "DROP TRIGGER t"),
        ("CREATE VIEW v AS SELECT 1", "DROP VIEW v"),
    ] {
        Connection::open(&path).unwrap().execute_batch(make).unwrap();
        assert_eq!(code(&path).await, "STORE_CORRUPT", "{make}");
        Connection::open(&path).unwrap().execute_batch(remove).unwrap();
        open(&path, OpenKey::Default).await.unwrap();
    }
}

#[tokio::test]
async fn a_row_longer_than_any_of_ours_is_damage_and_is_not_loaded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    let read = async || {
        let store = open(&path, OpenKey::Default).await.unwrap().store;
        let one = store.one(&key(1)).await.map(|_| ()).map_err(|error| error.code());
        let page = store.scan(Scan::of(Table::Custom, *b"a")).await.map(|_| ()).map_err(|error| error.code());
        (one, page)
    };
    assert_eq!(read().await, (Ok(()), Ok(())));
    let grow = |column: &str, bytes: usize| {
        let sql = format!("UPDATE rows SET {column} = zeroblob({bytes}) WHERE tbl = 64");
        Connection::open(&path).unwrap().execute(&sql, []).unwrap();
    };
    grow("value", stvor_store::limits::MAX_VALUE);
    assert_eq!(read().await, (Err("ROW_TAMPERED"), Err("ROW_TAMPERED")));
    grow("value", stvor_store::limits::MAX_VALUE + 1);
    assert_eq!(read().await, (Err("STORE_CORRUPT"), Err("STORE_CORRUPT")));
    grow("value", 20_000_000);
    assert_eq!(read().await, (Err("STORE_CORRUPT"), Err("STORE_CORRUPT")));
    grow("value", 40);
    grow("sort", stvor_store::limits::MAX_KEY_PART + 1);
    assert_eq!(read().await.1, Err("STORE_CORRUPT"));
}

#[tokio::test]
async fn a_reader_outside_this_program_does_not_make_a_store_look_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    let outside = Connection::open(&path).unwrap();
    outside.execute_batch("BEGIN").unwrap();
    let _: i64 = outside.query_row("SELECT count(*) FROM rows", [], |row| row.get(0)).unwrap();
    // What it must not see yet has to stay in the journal, and the database file shorter than it will be.
    store.commit([Op::put(key(2), vec![7; 200_000])].into_iter().collect()).await.unwrap();
    store.close().await.unwrap();
    assert!(std::fs::metadata(&path).unwrap().len() < 200_000);
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    assert_eq!(store.one(&key(2)).await.unwrap().unwrap().value.len(), 200_000);
    drop(outside);
}

#[tokio::test]
async fn a_writer_whose_lock_file_was_removed_stops_and_the_next_one_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let first = open(&path, OpenKey::Default).await.unwrap().store;
    first.commit(put(1)).await.unwrap();
    std::fs::remove_file(directory.path().join("s.db.lock")).unwrap();
    let second = open(&path, OpenKey::Default).await.unwrap().store;
    assert_eq!(first.commit(put(2)).await.unwrap_err().code(), "STORE_IO");
    second.commit(put(3)).await.unwrap();
    first.close().await.unwrap();
    assert_eq!(code(&path).await, "STORE_LOCKED", "the second still has it");
    assert!(second.one(&key(2)).await.unwrap().is_none());
    assert!(second.one(&key(3)).await.unwrap().is_some());
}

#[tokio::test]
async fn an_opening_with_the_wrong_key_leaves_the_lock_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    let good = std::fs::read(default_keyfile(&path)).unwrap();
    std::fs::write(default_keyfile(&path), [1; 32]).unwrap();
    for _ in 0..3 {
        assert_eq!(code(&path).await, "WRONG_KEY");
    }
    std::fs::write(default_keyfile(&path), good).unwrap();
    open(&path, OpenKey::Default).await.unwrap();
}

#[tokio::test]
async fn a_store_can_change_from_a_keyfile_to_a_passphrase_and_the_keyfile_opens_it_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    filled(&path).await;
    let store = open(&path, OpenKey::Default).await.unwrap().store;
    let cheap = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    let phrase = || stvor_store::SecretBytes::from_slice(b"correct horse");
    store.rewrap(Arc::new(Passphrase::new(phrase()).unwrap().with_cost(cheap).unwrap())).await.unwrap();
    store.close().await.unwrap();
    assert_eq!(code(&path).await, "KEY_REQUIRED");
    let store = open(&path, OpenKey::Passphrase(phrase())).await.unwrap().store;
    assert!(store.one(&key(1)).await.unwrap().is_some());
}
