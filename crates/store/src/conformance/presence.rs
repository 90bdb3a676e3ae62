//! Expecting a row without changing it: how the sealing layer makes sure that its header is still there.

use super::{Checked, Subject, bytes, commit, conflict, key, one, open, race, scan, set, text, value};
use crate::{ChangeSet, Expect, Key, Op, RowValue, RowVersion, Scan, Table, limits};

fn header() -> Key {
    Key::new(Table::Header, *b"store", *b"anchor")
}

fn present() -> Op<RowValue> {
    Op::check(header(), Expect::Version(RowVersion(7)))
}

pub(super) async fn a_check_is_judged_in_order_and_changes_nothing(
    subject: &dyn Subject,
    name: &str,
) -> Checked {
    let store = open(subject, name).await?;
    let check = |expect| Op::check(key("a", 1), expect);
    commit(&*store, set([check(Expect::Absent), check(Expect::Any)])).await?;
    ensure!(conflict(&*store, set([check(Expect::Present)])).await?, 0);
    let chain = set([
        check(Expect::Absent),
        Op::put(key("a", 1), value(b"one", 3)),
        check(Expect::Present),
        check(Expect::Version(RowVersion(3))),
        Op::put(key("a", 1), value(b"two", 4)),
        check(Expect::Version(RowVersion(4))),
    ]);
    commit(&*store, chain).await?;
    commit(&*store, set([check(Expect::Version(RowVersion(4)))])).await?;
    ensure!(one(&*store, key("a", 1)).await?.map(|row| row.value), Some(value(b"two", 4)));
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?, (vec![1], false));
    let stale = set([Op::put(key("a", 2), value(b"x", 5)), check(Expect::Version(RowVersion(3)))]);
    ensure!(conflict(&*store, stale).await?, 1);
    let removed = set([Op::delete(key("a", 1)), check(Expect::Present)]);
    ensure!(conflict(&*store, removed).await?, 1);
    let emptied =
        set([Op::DeleteTable { table: Table::Custom }, check(Expect::Absent), check(Expect::Present)]);
    ensure!(conflict(&*store, emptied).await?, 2);
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?, (vec![1], false));
    ensure!(store.stats().await.map_err(|error| text(&error))?.rows, 1);
    Ok(())
}

pub(super) async fn a_change_set_that_expects_the_header_is_refused_without_it(
    subject: &dyn Subject,
    name: &str,
) -> Checked {
    let store = open(subject, name).await?;
    let guarded = |sort: u64| set([present(), Op::put(key("a", sort), value(b"x", 1))]);
    ensure!(conflict(&*store, guarded(1)).await?, 0);
    ensure!(store.stats().await.map_err(|error| text(&error))?.rows, 0);
    commit(&*store, set([Op::insert(header(), value(b"id", 7))])).await?;
    commit(&*store, guarded(1)).await?;
    // It comes on top of what a change set may have.
    let most = (0..limits::MAX_OPS as u64).map(|sort| Op::delete(key("none", sort)));
    commit(&*store, core::iter::once(present()).chain(most).collect()).await?;
    // Another store stands where the one was that was opened.
    commit(&*store, set([Op::put(header(), value(b"other", 8))])).await?;
    ensure!(conflict(&*store, guarded(2)).await?, 0);
    commit(&*store, set([Op::DeleteTable { table: Table::Header }])).await?;
    ensure!(conflict(&*store, guarded(2)).await?, 0);
    ensure!(scan(&*store, Scan::of(Table::Custom, *b"a")).await?, (vec![1], false));
    // What does not expect it is taken as ever.
    commit(&*store, set([Op::put(key("b", 1), value(b"x", 1))])).await?;
    ensure!(bytes(&*store, key("b", 1)).await?, Some(b"x".to_vec()));
    Ok(())
}

pub(super) async fn the_header_goes_between_commits_and_never_within_one(
    subject: &dyn Subject,
    name: &str,
) -> Checked {
    let store = open(subject, name).await?;
    for round in 0..10_u64 {
        commit(&*store, set([Op::put(header(), value(b"id", 7))])).await?;
        let part = round.to_string();
        let guarded = |sort: u64| set([present(), Op::insert(key(&part, sort), value(b"x", 1))]);
        let mut sets: Vec<ChangeSet<RowValue>> = (0..16).map(guarded).collect();
        sets.insert(8, set([Op::delete(header())]));
        let applied = race(&store, sets).await?;
        let (there, _) = scan(&*store, Scan::of(Table::Custom, part.as_bytes())).await?;
        ensure!(applied, there.len() + 1);
        ensure!(conflict(&*store, guarded(99)).await?, 0);
    }
    Ok(())
}
