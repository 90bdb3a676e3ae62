//! Stores by their providers: places, several openings of one store, marks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::SystemRandom;
use stvor_keys::{KeyHolder, Keyfile};
use stvor_store::{
    ChangeSet, Key, MemoryStore, MemoryStores, OpenKey, Sealed, SqliteStores, Store, StorePlace,
    StoreProvider, Table, destroy_at, open_adapter, open_at,
};

fn put(name: &[u8]) -> ChangeSet {
    let mut changes = ChangeSet::new();
    changes.put(Key::new(Table::Custom, *b"a", name), b"value".to_vec());
    changes
}

fn place(user: &str) -> StorePlace {
    StorePlace::new("wss://relay.example:443", "app", user)
}

/// Opens one store eight times at once; every opening sees what every other wrote, and no two share a version.
async fn open_at_once(open: impl AsyncFn() -> Sealed) {
    let openings = futures::future::join_all((0..8).map(|_| open())).await;
    let first = &openings[0];
    let mut versions = Vec::new();
    for (number, opening) in (0_u8..).zip(&openings) {
        assert_eq!(opening.id(), first.id());
        versions.push(opening.commit(put(&[number])).await.unwrap());
    }
    for number in 0..8 {
        let key = Key::new(Table::Custom, *b"a", [number]);
        assert_eq!(first.one(&key).await.unwrap().unwrap().value.expose(), b"value");
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_open_a_fresh_store_at_once_share_one_header_and_no_epoch() {
    let directory = tempfile::tempdir().unwrap();
    let adapter: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let keyfile = directory.path().join("deep/key");
    open_at_once(async || {
        let key = OpenKey::Keyfile(keyfile.clone());
        open_adapter(Arc::clone(&adapter), key, None).await.unwrap().store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_store_takes_a_holder_that_was_given() {
    let directory = tempfile::tempdir().unwrap();
    let key = Keyfile::create(&directory.path().join("key"), &mut SystemRandom::new()).unwrap();
    let holder: Arc<dyn KeyHolder> = Arc::new(key);
    let adapter: Arc<dyn Store> = Arc::new(MemoryStore::new());
    open_at_once(async || {
        let key = OpenKey::Holder(Arc::clone(&holder));
        open_adapter(Arc::clone(&adapter), key, None).await.unwrap().store
    })
    .await;
    let wrong = OpenKey::Passphrase(stvor_crypto::SecretBytes::from_slice(b"passphrase"));
    let error = open_adapter(adapter, wrong, None).await.expect_err("another kind of key");
    assert_eq!(error.code(), "KEY_REQUIRED");
}

#[tokio::test]
async fn a_durable_store_without_a_directory_asks_for_a_key() {
    let adapter: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let error = open_adapter(Arc::clone(&adapter), OpenKey::Default, None).await.expect_err("no key");
    assert!(error.to_string().contains("passphrase"), "{error}");
    assert!(adapter.stats().await.is_err(), "an adapter that could not be opened is closed");
}

#[tokio::test]
async fn users_of_one_provider_are_apart_and_one_can_be_removed() {
    let root = tempfile::tempdir().unwrap();
    let [alice, bob] = ["alice", "bob"].map(|user| place(user).in_directory(root.path().join(user)));
    for place in [&alice, &bob] {
        let opened = open_at(&SqliteStores, place, OpenKey::Default).await.unwrap();
        assert!(opened.notice.is_some(), "a keyfile was made for {}", place.user);
        opened.store.commit(put(place.user.as_bytes())).await.unwrap();
        opened.store.close().await.unwrap();
    }
    destroy_at(&SqliteStores, &alice).await.unwrap();
    assert!(!alice.default_keyfile().unwrap().exists());
    let opened = open_at(&SqliteStores, &bob, OpenKey::Default).await.unwrap();
    let row = opened.store.one(&Key::new(Table::Custom, *b"a", *b"bob")).await.unwrap();
    assert_eq!(row.unwrap().value.expose(), b"value");
}

#[tokio::test]
async fn what_memory_lacks_is_found() {
    let found = MemoryStores.findings().await.unwrap();
    assert_eq!(found.iter().map(|finding| finding.code).collect::<Vec<_>>(), ["store_not_durable"]);
    assert!(SqliteStores.findings().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_marks_of_one_name_one_passes_until_it_expires() {
    let store = Arc::new(Sealed::in_memory().unwrap());
    let at = Timestamp::from_millis;
    let marked = async |name: &'static [u8], now: u64| {
        let marks = (0..1_000).map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store.check_and_mark((Table::ReplayMark, name), at(now), at(now + 300_000)).await.unwrap()
            })
        });
        futures::future::join_all(marks).await.into_iter().filter(|passed| *passed.as_ref().unwrap()).count()
    };
    assert_eq!(marked(b"one", 1_000).await, 1);
    assert_eq!(marked(b"one", 300_999).await, 0);
    assert_eq!(marked(b"two", 1_000).await, 1);
    assert_eq!(marked(b"one", 301_000).await, 1);
    // A clock that jumps back finds the mark still there.
    assert_eq!(marked(b"one", 5).await, 0);
}

/// A database has one opening at a time: copies come from many tasks of it, and from the opening after it.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_thousand_copies_at_a_database_exactly_one_is_marked_also_when_it_is_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let bob = place("bob").in_directory(directory.path());
    let (now, until) = (Timestamp::from_millis(1_000), Timestamp::from_millis(301_000));
    for expected in [1, 0] {
        let store = Arc::new(open_at(&SqliteStores, &bob, OpenKey::Default).await.unwrap().store);
        let marks = (0..1_000).map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                store.check_and_mark((Table::ReplayMark, b"one message"), now, until).await.unwrap()
            })
        });
        let passed = futures::future::join_all(marks).await;
        assert_eq!(passed.into_iter().filter(|passed| *passed.as_ref().unwrap()).count(), expected);
        store.close().await.unwrap();
    }
}
