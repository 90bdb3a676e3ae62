//! A walk through all rows.

use super::{Checked, Subject, commit, open, text, value};
use crate::{ChangeSet, Key, Op, StoreError, Table};
use std::collections::BTreeSet;

pub(super) async fn a_walk_gives_every_row_once(subject: &dyn Subject, name: &str) -> Checked {
    let store = open(subject, name).await?;
    match store.walk(None, 1).await {
        Err(StoreError::Unsupported { .. }) => return Ok(()),
        other => other.map_err(|error| text(&error))?,
    };
    let mut changes = ChangeSet::new();
    let mut wanted = BTreeSet::new();
    for table in [Table::Header, Table::History, Table::Custom] {
        for part in [&b""[..], b"a", b"ab", b"b", &[0xff; 32]] {
            for sort in [&b""[..], b"\0", b"x", b"\xff"] {
                let key = Key::new(table, part, sort);
                wanted.insert(key.clone());
                changes.push(Op::put(key, value(&[1; 100], 1)));
            }
        }
    }
    commit(&*store, changes).await?;
    for step in [1, 7, 1_000] {
        let mut keys: Vec<Key> = Vec::new();
        loop {
            let page = store.walk(keys.last(), step).await.map_err(|error| text(&error))?;
            ensure!(page.rows.len() <= step && !page.rows.is_empty(), true);
            keys.extend(page.rows.into_iter().map(|row| row.key));
            if !page.more {
                break;
            }
        }
        ensure!(keys.len(), wanted.len());
        ensure!(keys.into_iter().collect::<BTreeSet<_>>(), wanted);
    }
    // The row that a walk goes on after need not be there any more.
    let first = store.walk(None, 1).await.map_err(|error| text(&error))?.rows;
    let gone = first.first().map(|row| row.key.clone()).ok_or("a walk of rows that are there found none")?;
    commit(&*store, [Op::delete(gone.clone())].into_iter().collect()).await?;
    let rest = store.walk(Some(&gone), 1_000).await.map_err(|error| text(&error))?;
    ensure!(rest.rows.len(), wanted.len() - 1);
    ensure!(store.walk(None, 0).await.is_err_and(|error| matches!(error, StoreError::Limit { .. })), true);
    Ok(())
}
