//! Which backups to keep: a pure decision over names.

use core::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::Timestamp;

use super::BackupName;

/// How many backups are kept. A backup that any rule keeps is kept, with everything that it builds on; the newest one always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Retention {
    /// The newest so many.
    pub last: usize,
    /// The newest of each of so many days (UTC) that have one.
    pub daily: usize,
    /// The newest of each of so many weeks (from Monday on) that have one.
    pub weekly: usize,
    /// The newest of each of so many months that have one.
    pub monthly: usize,
}

const DAY: u64 = 24 * 60 * 60 * 1_000;

/// The day, week or month of a backup, as text.
fn period(name: &BackupName, form: &str) -> String {
    let made = i64::try_from(name.made).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    made.unwrap_or(Timestamp::MAX).strftime(form).to_string()
}

/// On how many others of `all` a backup builds; a ring of parents ends as well.
fn depth(all: &[BackupName], name: &BackupName) -> usize {
    let above = |name: &&BackupName| {
        let parent = name.parent.as_deref()?;
        all.iter().find(|other| other.id == parent)
    };
    core::iter::successors(Some(name), above).take(all.len()).count()
}

/// Whether a name's time is a day or more after `now` (milliseconds since the Unix epoch): a wrong clock gave it, or somebody else.
#[must_use]
pub fn to_come(name: &BackupName, now: u64) -> bool {
    name.made >= now.saturating_add(DAY)
}

/// Those of `all` that may be removed, oldest first. Of names that build on something that is not there nothing can be
/// restored, and only they themselves are counted. Those [`to_come`] stay, and are nobody's newest.
///
/// ```
/// use stvor_vault::backup::{BackupName, retention::{Retention, superfluous}};
/// let name = |made: u64| BackupName { made, id: format!("{made:016x}"), parent: None };
/// let all = [name(1), name(2), name(3)];
/// let keep_two = Retention { last: 2, ..Retention::default() };
/// assert_eq!(superfluous(&all, keep_two, 3), [name(1)]);
/// ```
#[must_use]
pub fn superfluous(all: &[BackupName], keep: Retention, now: u64) -> Vec<BackupName> {
    let (future, mut newest_first): (Vec<&BackupName>, Vec<&BackupName>) =
        all.iter().partition(|name| to_come(name, now));
    // Names tell whole seconds: of two of one second the one that builds on the other is newer.
    newest_first.sort_by_cached_key(|name| Reverse((name.made, depth(all, name), name.id.clone())));
    let mut kept: BTreeSet<&str> = future.iter().map(|name| name.id.as_str()).collect();
    kept.extend(newest_first.iter().take(keep.last.max(1)).map(|name| name.id.as_str()));
    for (periods, form) in [(keep.daily, "%Y-%m-%d"), (keep.weekly, "%G-W%V"), (keep.monthly, "%Y-%m")] {
        let mut seen = BTreeSet::new();
        for name in &newest_first {
            if seen.len() < periods && seen.insert(period(name, form)) {
                kept.insert(&name.id);
            }
        }
    }
    // What is kept needs its parents. A chain is never longer than the list, and a ring of parents ends as well.
    loop {
        let needed = all.iter().filter(|name| kept.contains(name.id.as_str()));
        let parents: Vec<&str> = needed.filter_map(|name| name.parent.as_deref()).collect();
        let before = kept.len();
        kept.extend(parents);
        if kept.len() == before {
            break;
        }
    }
    let rest = newest_first.into_iter().rev().filter(|name| !kept.contains(name.id.as_str()));
    rest.cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_one_second_the_backup_that_builds_on_the_other_is_newer() {
        for (full, later) in
            [("0000000000000001", "0000000000000002"), ("0000000000000002", "0000000000000001")]
        {
            let of = |id: &str, parent: Option<&str>| BackupName {
                made: 1_000,
                id: id.to_owned(),
                parent: parent.map(str::to_owned),
            };
            let all = [of(full, None), of(later, Some(full))];
            assert!(superfluous(&all, Retention { last: 1, ..Retention::default() }, u64::MAX).is_empty());
        }
    }

    #[test]
    fn names_of_the_future_stay_and_take_no_genuine_ones_place() {
        let all: Vec<_> =
            (0..10).map(|day| name(day, None)).chain([name(5_000, Some(3)), name(6_000, None)]).collect();
        let keep = Retention { last: 2, ..Retention::default() };
        let gone = superfluous(&all, keep, 9 * DAY);
        let days: Vec<_> = gone.iter().map(|name| name.made / DAY).collect();
        assert_eq!(days, [0, 1, 2, 4, 5, 6, 7], "the newest two stay, and what one of the future builds on");
    }

    fn name(day: u64, parent: Option<u64>) -> BackupName {
        BackupName {
            made: day * DAY,
            id: format!("{day:016x}"),
            parent: parent.map(|day| format!("{day:016x}")),
        }
    }

    #[test]
    fn what_is_kept_can_be_restored() {
        // A full one each ten days, the others build on the day before.
        let all: Vec<_> = (0..100).map(|day| name(day, (day % 10 != 0).then(|| day - 1))).collect();
        for keep in [
            Retention::default(),
            Retention { last: 3, ..Retention::default() },
            Retention { last: 1, daily: 7, weekly: 4, monthly: 2 },
            Retention { monthly: 12, ..Retention::default() },
        ] {
            let removed = superfluous(&all, keep, u64::MAX);
            let kept: Vec<_> = all.iter().filter(|name| !removed.contains(name)).collect();
            assert!(kept.iter().any(|name| name.made == 99 * DAY), "the newest");
            for name in &kept {
                let there = |parent: &String| kept.iter().any(|other| other.id == *parent);
                assert!(name.parent.as_ref().is_none_or(there), "{name} needs its parent");
            }
        }
        let weekly = Retention { weekly: 2, ..Retention::default() };
        assert!(superfluous(&all, weekly, u64::MAX).len() >= 70);
        assert!(superfluous(&all, Retention { last: 100, ..Retention::default() }, u64::MAX).is_empty());
        assert!(superfluous(&[], Retention::default(), u64::MAX).is_empty());
    }

    #[test]
    fn a_ring_of_parents_ends() {
        let ring = [name(1, Some(2)), name(2, Some(1)), name(0, None)];
        assert_eq!(superfluous(&ring, Retention::default(), u64::MAX), [name(0, None)]);
    }
}
