//! A server that is put back to an older state under openings that go on: a failover to a replica that lagged, a dump that was
//! restored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::sync::Arc;
use stvor_base::ErrorCode as _;
use stvor_store::{
    ChangeSet, Key, Op, OpenKey, PostgresStores, RedisStores, RowValue, RowVersion, Sealed, SecretBytes,
    StorePlace, StoreProvider, Table, open_at,
};
use stvor_testkit::{Postgres, Redis};

fn place() -> StorePlace {
    StorePlace::new("wss://relay.example:443", "app", "bob")
}

fn key(sort: u64) -> Key {
    Key::new(Table::Custom, *b"rows", sort.to_be_bytes())
}

fn row(number: u64) -> ChangeSet<RowValue> {
    let value = RowValue { bytes: vec![7; 50], version: RowVersion(number) };
    [Op::insert(key(number), value)].into_iter().collect()
}

/// A server with stores, and how it loses what it acknowledged since it was told to keep a copy.
struct Server {
    stores: Arc<dyn StoreProvider>,
    keep: Box<dyn Fn()>,
    put_back: Box<dyn Fn()>,
    empty: Box<dyn Fn()>,
}

fn servers() -> Vec<Server> {
    let mut servers = Vec::new();
    if let Some(server) = Postgres::start().unwrap() {
        let database = server.database().unwrap();
        let (server, name) = (Arc::new(server), database.name);
        let act = |act: fn(&Postgres, &str)| -> Box<dyn Fn()> {
            let (server, name) = (Arc::clone(&server), name.clone());
            Box::new(move || act(&server, &name))
        };
        servers.push(Server {
            stores: Arc::new(PostgresStores::new(&database.url).unwrap()),
            keep: act(|server, name| server.keep_stores(name).unwrap()),
            put_back: act(|server, name| server.put_stores_back(name).unwrap()),
            empty: act(|server, name| drop(server.sql(name, "TRUNCATE stvor_rows, stvor_writers").unwrap())),
        });
    }
    if let Some(server) = Redis::start().unwrap() {
        let server = Arc::new(server);
        let act = |act: fn(&Redis)| -> Box<dyn Fn()> {
            let server = Arc::clone(&server);
            Box::new(move || act(&server))
        };
        servers.push(Server {
            stores: Arc::new(RedisStores::new(&server.url()).unwrap()),
            keep: act(|server| server.keep_stores().unwrap()),
            put_back: act(|server| server.put_stores_back().unwrap()),
            empty: act(|server| drop(server.cli(&["flushall"]).unwrap())),
        });
    }
    servers
}

#[tokio::test]
async fn whose_commits_are_gone_commits_nothing_more_before_the_caller_knows() {
    for server in servers() {
        let kind = server.stores.facts().kind;
        let (one, other) =
            (server.stores.open(&place()).await.unwrap(), server.stores.open(&place()).await.unwrap());
        one.commit(row(1)).await.unwrap();
        other.commit(row(2)).await.unwrap();
        (server.keep)();
        one.commit(row(3)).await.unwrap();
        (server.put_back)();
        // Nothing of the other opening is lost.
        other.commit(row(4)).await.unwrap();
        for number in [5, 6] {
            // Whatever it expects of rows.
            assert_eq!(one.commit(row(4)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
            assert_eq!(one.commit(row(number)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
        }
        assert_eq!(one.get(&[key(3), key(5)]).await.unwrap(), [None, None], "{kind}");
        one.accept_put_back();
        one.commit(row(5)).await.unwrap();
        assert_eq!(one.commit(row(4)).await.unwrap_err().code(), "STORE_CONFLICT", "{kind}");
        // It is held to that again.
        (server.put_back)();
        assert_eq!(one.commit(row(6)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
        one.accept_put_back();
        one.commit(row(6)).await.unwrap();
    }
}

#[tokio::test]
async fn an_opening_of_which_the_copy_knows_nothing_is_told_too() {
    for server in servers() {
        let kind = server.stores.facts().kind;
        server.stores.open(&place()).await.unwrap().commit(row(1)).await.unwrap();
        (server.keep)();
        let late = server.stores.open(&place()).await.unwrap();
        late.commit(row(2)).await.unwrap();
        (server.put_back)();
        // Many at once: those that follow the first one of a group, too.
        let many = futures::future::join_all((3..30).map(|number| late.commit(row(number)))).await;
        assert!(many.into_iter().all(|one| one.unwrap_err().code() == "STORE_PUT_BACK"), "{kind}");
        late.accept_put_back();
        late.commit(row(3)).await.unwrap();
    }
}

fn put(number: u64) -> ChangeSet {
    let mut changes = ChangeSet::new();
    changes.put(key(number), b"value".to_vec());
    changes
}

async fn sealed(server: &Server) -> Sealed {
    let key = OpenKey::Passphrase(SecretBytes::from_slice(b"a passphrase for tests"));
    open_at(server.stores.as_ref(), &place(), key).await.unwrap().store
}

#[tokio::test]
async fn what_was_read_before_is_committed_no_more() {
    for server in servers() {
        let kind = server.stores.facts().kind;
        let store = sealed(&server).await;
        store.commit(put(1)).await.unwrap();
        (server.keep)();
        let read = store.incarnation();
        store.commit_in(read, put(2)).await.unwrap();
        (server.put_back)();
        assert_eq!(store.commit_in(read, put(3)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
        store.put_back().await;
        assert_eq!(store.commit(put(3)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
        store.accept_put_back().await;
        assert_eq!(store.commit_in(read, put(3)).await.unwrap_err().code(), "STORE_PUT_BACK", "{kind}");
        assert!(store.one(&key(3)).await.unwrap().is_none());
        store.commit_in(store.incarnation(), put(3)).await.unwrap();
        assert!(!store.is_emptied());
    }
}

#[tokio::test]
async fn a_server_that_was_emptied_is_not_one_that_was_put_back() {
    for server in servers() {
        let store = sealed(&server).await;
        store.commit(put(1)).await.unwrap();
        (server.empty)();
        let kind = server.stores.facts().kind;
        assert_eq!(store.commit(put(2)).await.unwrap_err().code(), "STORE_EMPTIED", "{kind}");
        assert!(store.is_emptied());
        // And so says the next start.
        let key = OpenKey::Passphrase(SecretBytes::from_slice(b"a passphrase for tests"));
        let again = open_at(server.stores.as_ref(), &place(), key).await;
        assert_eq!(again.unwrap_err().code(), "STORE_EMPTIED", "{kind}");
    }
}
