//! Stores that earlier versions wrote open in this one. A fixture is never made again: a new format gets a new one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::path::{Path, PathBuf};
use stvor_base::Timestamp;
use stvor_store::{
    ChangeSet, Key, Op, OpenKey, PostgresStores, RedisStores, Scan, Sealed, StorePlace, StoreProvider, Table,
    open, open_at,
};
use stvor_testkit::{Postgres, Redis};

const PHRASE: &[u8] = b"fixture passphrase";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn copied(name: &str, directory: &Path) -> PathBuf {
    let path = directory.join(name);
    std::fs::copy(fixture(name), &path).unwrap();
    path
}

fn contents() -> ChangeSet {
    let mut changes = ChangeSet::new();
    for table in Table::ALL.into_iter().filter(|table| *table != Table::Header) {
        for sort in 0..3_u64 {
            let value = format!("{table:?} {sort}").into_bytes();
            let key = Key::new(table, *b"peer@example.com", sort.to_be_bytes());
            changes.push(Op::put(key, value).expiring((sort == 2).then_some(Timestamp::from_millis(1_000))));
        }
    }
    changes
}

async fn check(store: &Sealed) {
    check_all_but(store, &[Table::Header]).await;
}

/// Tables that a version did not have yet are empty in its stores.
async fn check_all_but(store: &Sealed, absent: &[Table]) {
    for table in Table::ALL.into_iter().filter(|table| !absent.contains(table)) {
        let page = store.scan(Scan::of(table, *b"peer@example.com")).await.unwrap();
        assert_eq!(page.rows.len(), 3, "{table:?}");
        for (sort, row) in page.rows.iter().enumerate() {
            assert_eq!(row.value.expose(), format!("{table:?} {sort}").as_bytes());
            assert_eq!(row.expires, (sort == 2).then_some(Timestamp::from_millis(1_000)));
        }
    }
    let tag = std::fs::read_to_string(fixture("v1.tag")).unwrap();
    assert_eq!(hex(&store.tag(Table::Peer, b"bob")), tag.trim());
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn a_store_of_version_1_opens_with_its_passphrase_and_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = copied("v1.db", directory.path());
    let store = open(&path, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap().store;
    check_all_but(&store, &[Table::Header, Table::Log]).await;
    store.commit(contents()).await.unwrap();
    store.close().await.unwrap();
    let store = open(&path, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap().store;
    check(&store).await;
}

#[tokio::test]
async fn a_store_of_version_2_whose_data_key_was_replaced_opens_with_its_passphrase_and_can_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = copied("v2.db", directory.path());
    let store = open(&path, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap().store;
    let info = Sealed::info(store.adapter().as_ref()).await.unwrap().unwrap();
    assert_eq!((info.rotations, info.rotating), (1, false));
    check(&store).await;
    store.commit(contents()).await.unwrap();
    check(&store).await;
}

/// Opens what version 1 left on a server, reads it, and writes to it.
async fn go_on_at(stores: &dyn StoreProvider) {
    let place = StorePlace::new("wss://relay.example:443", "app", "bob");
    let open = async || {
        let opened = open_at(stores, &place, OpenKey::Passphrase(PHRASE.to_vec().into())).await;
        opened.unwrap().store
    };
    let store = open().await;
    check_all_but(&store, &[Table::Header, Table::Log]).await;
    store.commit(contents()).await.unwrap();
    store.close().await.unwrap();
    let store = open().await;
    check(&store).await;
    assert!(store.sweep(Timestamp::from_millis(1_000), 1_000).await.unwrap() > 0);
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_store_of_version_1_on_a_server_opens_with_its_passphrase_and_can_be_written() {
    let text = |name| std::fs::read_to_string(fixture(name)).unwrap();
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        server.sql(&database.name, &text("postgres-v1.sql")).unwrap();
        go_on_at(&PostgresStores::new(&database.url).unwrap()).await;
        // A migration that was released is never altered: the next one would find another one than it looks for.
        let fresh = server.database().unwrap();
        let place = StorePlace::new("wss://relay.example:443", "app", "bob");
        let stores = PostgresStores::new(&fresh.url).unwrap();
        open_at(&stores, &place, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap();
        let first = "SELECT version, name, checksum FROM stvor_migrations WHERE version = 1";
        assert_eq!(server.sql(&fresh.name, first).unwrap(), server.sql(&database.name, first).unwrap());
    }
    if let Some(server) = Redis::start().unwrap() {
        server.cli(&["eval", &text("redis-v1.lua"), "0"]).unwrap();
        go_on_at(&RedisStores::new(&server.url()).unwrap()).await;
    }
}

/// Made `v2.db` of `v1.db`.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn write_the_second_fixture() {
    let path = fixture("v2.db");
    assert!(!path.exists(), "a released fixture is not made again");
    std::fs::copy(fixture("v1.db"), &path).unwrap();
    let store = open(&path, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap().store;
    let holder =
        stvor_store::key_holder(OpenKey::Passphrase(PHRASE.to_vec().into()), None, false).await.unwrap();
    store.rotate(holder, |_| {}).await.unwrap();
    store.commit(contents()).await.unwrap();
    store.close().await.unwrap();
    std::fs::remove_file(fixture("v2.db.lock")).unwrap();
}

/// Made `v1.db`; kept for the day that a version 2 needs its own.
#[tokio::test]
#[ignore = "writes a fixture"]
async fn write_the_fixture() {
    let path = fixture("v1.db");
    assert!(!path.exists(), "a released fixture is not made again");
    let store = open(&path, OpenKey::Passphrase(PHRASE.to_vec().into())).await.unwrap().store;
    store.commit(contents()).await.unwrap();
    std::fs::write(fixture("v1.tag"), hex(&store.tag(Table::Peer, b"bob")) + "\n").unwrap();
    store.close().await.unwrap();
    std::fs::remove_file(fixture("v1.db.lock")).unwrap();
}
