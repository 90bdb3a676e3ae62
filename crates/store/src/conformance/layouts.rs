//! Records of layouts that a program does not know: it finds that out before it writes anything.

use super::{Checked, Subject, open, text};
use crate::{ChangeSet, Key, LAYOUTS, Op, Row, Scan, Sealed, Store, StoreError, Table};
use std::sync::Arc;
use stvor_crypto::Secret;
use stvor_keys::IdentityKey;

const NEWER: u32 = LAYOUTS + 1;

fn holder(byte: u8) -> Arc<IdentityKey> {
    Arc::new(IdentityKey::new(&Secret::new([byte; 32])))
}

fn record() -> Key {
    Key::new(Table::Custom, *b"a", *b"b")
}

fn put(value: &[u8]) -> ChangeSet {
    [Op::put(record(), value.to_vec())].into_iter().collect()
}

/// All that these stores hold, with the versions of the rows.
async fn rows(store: &dyn Store, sealed: &Sealed) -> Result<Vec<Row>, String> {
    let mut all = Vec::new();
    for (table, partition) in
        [(Table::Header, b"store".to_vec()), (Table::Custom, sealed.key_on_disk(&record()).partition)]
    {
        all.extend(store.scan(Scan::of(table, partition)).await.map_err(|error| text(&error))?.rows);
    }
    ensure!(store.stats().await.map_err(|error| text(&error))?.rows, all.len() as u64);
    Ok(all)
}

async fn open_as(store: &Arc<dyn Store>, layouts: u32) -> Result<Sealed, String> {
    Sealed::open_as(Arc::clone(store), holder(7), layouts).await.map_err(|error| text(&error))
}

async fn committed(store: &Sealed, value: &[u8]) -> Checked {
    store.commit(put(value)).await.map(|_| ()).map_err(|error| text(&error))
}

async fn holds(store: &Sealed, value: &[u8]) -> Checked {
    let row = store.one(&record()).await.map_err(|error| text(&error))?;
    ensure!(row.map(|row| row.value.expose().to_vec()), Some(value.to_vec()));
    Ok(())
}

fn is_too_new<T>(answer: Result<T, StoreError>) -> Checked {
    match answer {
        Err(StoreError::TooNew { found: NEWER, known: LAYOUTS }) => Ok(()),
        Err(error) => Err(text(&error)),
        Ok(_) => Err("records of newer layouts are not refused".into()),
    }
}

pub(super) async fn a_store_of_newer_layouts_is_refused_and_left_as_it_is(
    subject: &dyn Subject,
    name: &str,
) -> Checked {
    let mut store = open(subject, name).await?;
    let newer = open_as(&store, NEWER).await?;
    committed(&newer, b"newer").await?;
    let before = rows(&*store, &newer).await?;
    if subject.durable() {
        store.close().await.map_err(|error| text(&error))?;
        store = open(subject, name).await?;
    }
    for key in [7, 8] {
        // Whether the key is right or not.
        is_too_new(Sealed::open(Arc::clone(&store), holder(key)).await)?;
        is_too_new(Sealed::info(&*store).await)?;
        is_too_new(Sealed::info_or_empty(&*store).await)?;
    }
    ensure!(rows(&*store, &newer).await?, before);
    holds(&open_as(&store, NEWER).await?, b"newer").await
}

pub(super) async fn the_layouts_of_a_store_are_raised_before_anything_newer_is_written(
    subject: &dyn Subject,
    name: &str,
) -> Checked {
    let store = open(subject, name).await?;
    let older = open_as(&store, LAYOUTS).await?;
    committed(&older, b"older").await?;
    // A look, and a wrong key, raise nothing.
    let before = rows(&*store, &older).await?;
    match Sealed::open_as(Arc::clone(&store), holder(8), NEWER).await {
        Err(StoreError::Key(_)) => {}
        other => return Err(format!("a wrong key is not refused: {other:?}")),
    }
    ensure!(rows(&*store, &older).await?, before);
    committed(&older, b"older still").await?;
    // One that is at work writes nothing more.
    let newer = open_as(&store, NEWER).await?;
    let before = rows(&*store, &older).await?;
    for _ in 0..2 {
        is_too_new(older.commit(put(b"late")).await)?;
        is_too_new(older.enroll(|| put(b"late")).await)?;
        is_too_new(older.check_there().await)?;
    }
    ensure!(rows(&*store, &older).await?, before);
    ensure!(older.is_emptied(), false);
    holds(&newer, b"older still").await?;
    committed(&newer, b"newer").await?;
    // And so on for those after that, one opening beside the other.
    let (newest, same) = (open_as(&store, NEWER + 1).await?, open_as(&store, NEWER + 1).await?);
    committed(&newest, b"newest").await?;
    committed(&same, b"the same").await?;
    match newer.commit(put(b"late")).await {
        Err(StoreError::TooNew { .. }) => {}
        other => return Err(format!("an opening of lower layouts still commits: {other:?}")),
    }
    holds(&newest, b"the same").await
}
