//! What a store that several processes may have open at a time must do beyond that.

use super::{Checked, Failure, Subject, bytes, commit, key, one, open, race_over, set, text, value};
use crate::{ChangeSet, Expect, Op, RowValue, RowVersion, Store, StoreError};
use std::sync::Arc;

/// Openings of one store that work at a time.
const OPENINGS: usize = 4;

/// Runs every check of stores that are [`shared`](crate::StoreFacts::shared), each on a store of its own that is opened
/// four times, and returns how many there were.
///
/// # Errors
/// The first promise that was not kept.
pub async fn run_shared(subject: &dyn Subject) -> Result<usize, Failure> {
    macro_rules! checks {
        ($($check:ident),* $(,)?) => {{
            let mut passed = 0;
            $(
                let name = stringify!($check);
                $check(subject, name).await.map_err(|what| Failure { check: name, what })?;
                passed += 1;
            )*
            Ok(passed)
        }};
    }
    checks!(
        openings_see_each_other,
        one_of_many_inserts_over_openings_wins,
        no_update_over_openings_is_lost,
        of_a_thousand_copies_over_openings_one_passes,
        opposite_orders_over_openings_do_not_lock_up,
    )
}

type Openings = Vec<Arc<dyn Store>>;

async fn openings(subject: &dyn Subject, name: &str) -> Result<Openings, String> {
    let mut openings = Vec::with_capacity(OPENINGS);
    for _ in 0..OPENINGS {
        openings.push(open(subject, name).await?);
    }
    Ok(openings)
}

async fn close(openings: Openings) -> Checked {
    for opening in openings {
        opening.close().await.map_err(|error| text(&error))?;
    }
    Ok(())
}

async fn openings_see_each_other(subject: &dyn Subject, name: &str) -> Checked {
    let all = openings(subject, name).await?;
    for (number, opening) in (0_u64..).zip(&all) {
        commit(&**opening, set([Op::put(key("a", number), value(b"x", number))])).await?;
        for other in &all {
            if one(&**other, key("a", number)).await?.map(|row| row.value.version) != Some(RowVersion(number))
            {
                return Err("an opening does not see what another committed".into());
            }
        }
    }
    close(all).await
}

async fn one_of_many_inserts_over_openings_wins(subject: &dyn Subject, name: &str) -> Checked {
    let all = openings(subject, name).await?;
    let first = all.first().ok_or("no openings")?;
    for round in 0..20 {
        let insert = |who: u8| {
            set([
                Op::insert(key("a", round), value(&[who], 1)),
                Op::put(key("winner", round), value(&[who], 1)),
            ])
        };
        let sets = (0_u8..).zip(&all).map(|(who, opening)| (Arc::clone(opening), insert(who))).collect();
        let won = race_over(sets).await?;
        if won != 1 {
            return Err(format!("{won} of {OPENINGS} inserts of one row passed"));
        }
        if bytes(&**first, key("a", round)).await? != bytes(&**first, key("winner", round)).await? {
            return Err("a change set that lost left a row".into());
        }
    }
    close(all).await
}

/// Adds one to a number in a row, however often others are faster.
async fn add_one(store: &dyn Store) -> Checked {
    loop {
        let row = one(store, key("a", 0)).await?.ok_or("the row is gone")?;
        let RowVersion(version) = row.value.version;
        let update =
            Op::put(key("a", 0), value(b"x", version + 1)).expecting(Expect::Version(row.value.version));
        match store.commit(set([update])).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Conflict { op: 0 }) => {}
            Err(error) => return Err(text(&error)),
        }
    }
}

async fn no_update_over_openings_is_lost(subject: &dyn Subject, name: &str) -> Checked {
    const EACH: u64 = 15;
    let all = openings(subject, name).await?;
    let first = all.first().ok_or("no openings")?;
    commit(&**first, set([Op::put(key("a", 0), value(b"x", 0))])).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for opening in &all {
        let opening = Arc::clone(opening);
        tasks.spawn(async move {
            for _ in 0..EACH {
                add_one(&*opening).await?;
            }
            Ok::<_, String>(())
        });
    }
    while let Some(added) = tasks.join_next().await {
        added.map_err(|error| error.to_string())??;
    }
    let sum = one(&**first, key("a", 0)).await?.map(|row| row.value.version.0);
    if sum != Some(EACH * OPENINGS as u64) {
        return Err(format!("{} additions became {sum:?}", EACH * OPENINGS as u64));
    }
    close(all).await
}

async fn of_a_thousand_copies_over_openings_one_passes(subject: &dyn Subject, name: &str) -> Checked {
    let all = openings(subject, name).await?;
    let copies = all.iter().cycle().take(1_000).map(|opening| {
        let mark: ChangeSet<RowValue> = set([Op::insert(key("mark", 7), value(b"", 1))]);
        (Arc::clone(opening), mark)
    });
    let passed = race_over(copies.collect()).await?;
    if passed != 1 {
        return Err(format!("{passed} of 1000 copies passed"));
    }
    close(all).await
}

async fn opposite_orders_over_openings_do_not_lock_up(subject: &dyn Subject, name: &str) -> Checked {
    let all = openings(subject, name).await?;
    for round in 0..20 {
        let put = |sort: u64| Op::put(key("a", sort), value(b"x", round));
        let sets = all.iter().enumerate().map(|(number, opening)| {
            let ops = if number % 2 == 0 { [put(1), put(2), put(3)] } else { [put(3), put(2), put(1)] };
            (Arc::clone(opening), set(ops))
        });
        let applied = race_over(sets.collect()).await?;
        if applied != OPENINGS {
            return Err(format!("{applied} of {OPENINGS} change sets were applied"));
        }
    }
    close(all).await
}
