use super::*;
use crate::{Op, Table};
use core::task::{Context, Poll, Waker};
use stvor_base::ErrorCode;

fn key(sort: u64) -> Key {
    Key::new(Table::Custom, *b"a", sort.to_be_bytes())
}

fn put(sort: u64) -> ChangeSet<RowValue> {
    let value = RowValue { bytes: vec![7], version: crate::RowVersion(sort) };
    [Op::put(key(sort), value)].into_iter().collect()
}

async fn there(store: &SqliteStore, sort: u64) -> bool {
    store.get(&[key(sort)]).await.unwrap().remove(0).is_some()
}

/// Lets a future hand in what it hands in.
fn begin<F: Future>(future: &mut core::pin::Pin<Box<F>>) {
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Pending));
}

/// A store whose writer waits until the connection that comes with it lets go.
async fn held_up(path: &Path) -> (SqliteStore, Connection) {
    let store = SqliteStore::open(path).await.unwrap();
    let outside = Connection::open(path).unwrap();
    outside.execute_batch("BEGIN IMMEDIATE").unwrap();
    (store, outside)
}

#[tokio::test]
async fn one_commit_more_than_the_queue_holds_waits_for_room_and_is_not_handed_in() {
    let directory = tempfile::tempdir().unwrap();
    let (store, outside) = held_up(&directory.path().join("s.db")).await;
    let most = limits::MAX_QUEUE_BYTES / limits::QUEUE_UNIT_BYTES;
    let mut waiting: Vec<_> = (1..=most as u64).map(|sort| Box::pin(store.commit(put(sort)))).collect();
    for commit in &mut waiting {
        assert!(store.room.available_permits() > 0);
        begin(commit);
    }
    assert_eq!(store.room.available_permits(), 0);
    let mut dropped = Box::pin(store.commit(put(9_998)));
    begin(&mut dropped);
    let mut patient = Box::pin(store.commit(put(9_999)));
    begin(&mut patient);
    drop(dropped);
    outside.execute_batch("ROLLBACK").unwrap();
    for commit in waiting {
        commit.await.unwrap();
    }
    patient.await.unwrap();
    assert!(there(&store, most as u64).await && there(&store, 9_999).await);
    assert!(!there(&store, 9_998).await, "it went away before there was room for it");
    assert_eq!(store.room.available_permits(), most);
}

#[tokio::test]
async fn a_commit_that_was_handed_in_is_applied_when_its_future_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let (store, outside) = held_up(&directory.path().join("s.db")).await;
    let mut commit = Box::pin(store.commit(put(1)));
    begin(&mut commit);
    drop(commit);
    outside.execute_batch("ROLLBACK").unwrap();
    // The queue is in order: what is acknowledged after it was handed in after it.
    store.commit(put(2)).await.unwrap();
    assert!(there(&store, 1).await);
}

#[tokio::test]
async fn closing_finishes_what_was_handed_in_and_everybody_who_closes_waits_for_the_lock_to_be_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let (store, outside) = held_up(&path).await;
    let mut commits: Vec<_> = (1..=20).map(|sort| Box::pin(store.commit(put(sort)))).collect();
    commits.iter_mut().for_each(begin);
    let mut first = Box::pin(store.close());
    begin(&mut first);
    let second = async {
        let closed = store.close().await;
        drop(SqliteStore::open(&path).await.unwrap());
        closed
    };
    let release = async {
        tokio::task::yield_now().await;
        outside.execute_batch("ROLLBACK").unwrap();
    };
    let (first, second, ()) = tokio::join!(first, second, release);
    first.unwrap();
    second.unwrap();
    for commit in commits {
        commit.await.unwrap();
    }
    let store = SqliteStore::open(&path).await.unwrap();
    assert!(there(&store, 1).await && there(&store, 20).await);
}

#[tokio::test]
async fn a_dropped_closing_leaves_a_store_that_closes_when_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.db");
    let (store, outside) = held_up(&path).await;
    let mut commit = Box::pin(store.commit(put(1)));
    begin(&mut commit);
    let mut closing = Box::pin(store.close());
    begin(&mut closing);
    drop(closing);
    outside.execute_batch("ROLLBACK").unwrap();
    commit.await.unwrap();
    drop(store);
    assert!(there(&SqliteStore::open(&path).await.unwrap(), 1).await);
}

#[tokio::test]
async fn a_tool_that_keeps_the_database_locked_is_a_lock_and_not_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let (store, outside) = held_up(&directory.path().join("s.db")).await;
    let error = store.commit(put(1)).await.unwrap_err();
    assert_eq!(error.code(), "STORE_LOCKED");
    assert!(error.retryable());
    outside.execute_batch("ROLLBACK").unwrap();
    store.commit(put(1)).await.unwrap();
}

#[tokio::test]
async fn an_expiry_that_sql_cannot_hold_is_refused_and_the_latest_one_is_not_swept() {
    let directory = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::open(directory.path().join("s.db")).await.unwrap();
    for store in [&sqlite as &dyn Store, &crate::MemoryStore::new()] {
        let with = |millis| {
            let value = RowValue { bytes: vec![7], version: crate::RowVersion(1) };
            let op = Op::put(key(1), value).expiring(Timestamp::from_millis(millis));
            store.commit([op].into_iter().collect())
        };
        let latest = limits::LATEST_EXPIRY.as_millis();
        with(latest).await.unwrap();
        assert_eq!(store.sweep(Timestamp::from_millis(latest - 1), 1).await.unwrap(), 0);
        assert_eq!(
            store.get(&[key(1)]).await.unwrap()[0].as_ref().unwrap().expires,
            Some(limits::LATEST_EXPIRY)
        );
        assert_eq!(with(latest + 1).await.unwrap_err().code(), "STORE_LIMIT");
    }
}
