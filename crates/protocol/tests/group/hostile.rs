//! Members who forge the past: they build changes on whatever they once knew, and leave out what they like.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use proptest::prelude::*;
use stvor_crypto::SystemRandom;
use stvor_protocol::Identity;
use stvor_protocol::group::{Action, Change, Group, Member, SignedChangeIn};

use super::model::{NOW, app, identity};

/// The first one makes the group and is honest: builds on everything that there is.
const NAMES: [&str; 6] = ["zoe", "bob", "cat", "dan", "eve", "abe"];

fn identities() -> &'static [Identity] {
    static ALL: OnceLock<Vec<Identity>> = OnceLock::new();
    ALL.get_or_init(|| NAMES.iter().map(|name| identity(name)).collect())
}

/// What somebody does, and on what: so many of the changes, without one of them and what builds on it.
#[derive(Debug, Clone)]
struct Deed {
    by: usize,
    about: usize,
    what: u8,
    first: Option<prop::sample::Index>,
    without: Option<prop::sample::Index>,
}

fn deed() -> impl Strategy<Value = Deed> {
    let index = any::<prop::sample::Index>;
    (0..NAMES.len(), 0..NAMES.len(), 0_u8..7, prop::option::of(index()), prop::option::weighted(0.4, index()))
        .prop_map(|(by, about, what, first, without)| Deed { by, about, what, first, without })
}

fn read(change: &SignedChangeIn) -> Change {
    change.clone().validate(&app()).unwrap()
}

/// Everything that a change builds on.
fn below(change: &Change, all: &[Change]) -> BTreeSet<[u8; 32]> {
    let mut found: BTreeSet<[u8; 32]> = change.parents().iter().copied().collect();
    for other in all.iter().rev() {
        if found.contains(other.hash()) {
            found.extend(other.parents());
        }
    }
    found
}

fn view(by: &'static Identity, all: &[Change], chosen: impl Fn(&Change) -> bool) -> Group {
    let group = all.first().unwrap().group();
    let mut view = Group::join(by, group);
    for change in all.iter().filter(|change| chosen(change)) {
        let _ = view.apply(change.clone()).unwrap();
    }
    view
}

fn made(deed: &Deed, all: &[Change]) -> Option<Change> {
    let by = &identities()[deed.by];
    let honest = deed.by == 0;
    let first = deed.first.filter(|_| !honest).map_or(all.len(), |index| index.index(all.len()) + 1);
    let known = &all[..first];
    let without = deed.without.filter(|_| !honest).map(|index| *known[index.index(known.len())].hash());
    let left_out = |change: &Change| {
        without.is_some_and(|gone| *change.hash() == gone || below(change, known).contains(&gone))
    };
    let mut group = view(by, known, |change| change.parents().is_empty() || !left_out(change));
    let who = &identities()[deed.about];
    let action = match deed.what {
        0..=2 if honest && deed.about == 0 => return None,
        0..=2 => Action::Remove(who.user().clone()),
        3..=5 => Action::Add(vec![Member { user: who.user().clone(), key: *who.user_key() }]),
        _ => Action::Rename(format!("by {}", deed.by)),
    };
    let (made, _) = group.change(by, (action, NOW), &mut SystemRandom::new()).ok()?;
    Some(read(&made.change))
}

/// What the changes come to when they arrive in an order of their own: parents first, else by these weights.
fn outcome(all: &[Change], weights: &[u32]) -> (Vec<Member>, String, [u8; 32]) {
    let mut group = Group::join(&identities()[0], all[0].group());
    let mut left: Vec<usize> = (0..all.len()).collect();
    left.sort_by_key(|place| weights[place % weights.len()].rotate_left(u32::try_from(*place).unwrap()));
    while !left.is_empty() {
        let next = left.iter().position(|place| all[*place].parents().iter().all(|hash| group.knows(hash)));
        let place = left.remove(next.unwrap());
        let _ = group.apply(all[place].clone()).unwrap();
    }
    (group.members().collect(), group.name().to_owned(), *group.state())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Whatever members forge: in whatever order changes come, all agree; and whom the most senior member puts out is out
    /// until somebody who knows of it lets them in again.
    #[test]
    fn nobody_undoes_what_a_more_senior_member_did(
        deeds in prop::collection::vec(deed(), 1..28),
        weights in prop::collection::vec(any::<u32>(), 32),
    ) {
        let zoe = &identities()[0];
        let (group, first) = Group::create(zoe, "g", NOW, &mut SystemRandom::new()).unwrap();
        let mut all = vec![read(&first.change)];
        drop(group);
        for about in [1, 2] {
            let deed = Deed { by: 0, about, what: 3, first: None, without: None };
            all.extend(made(&deed, &all));
        }
        for deed in &deeds {
            all.extend(made(deed, &all));
        }
        let (members, name, state) = outcome(&all, &[0]);
        for turn in 0..4_usize {
            let again = outcome(&all, &weights[turn * 8..][..8]);
            prop_assert_eq!(&again, &(members.clone(), name.clone(), state));
        }
        let names = |change: &Change, wanted: &Identity| match change.action() {
            Action::Remove(user) => user == wanted.user(),
            _ => false,
        };
        for removal in all.iter().filter(|change| change.author().user == *zoe.user()) {
            let Action::Remove(gone) = removal.action() else { continue };
            let base = below(removal, &all);
            let was_out = all.iter().any(|change| base.contains(change.hash()) && names(change, zoe));
            let back = all.iter().any(|change| {
                let adds = match change.action() {
                    Action::Add(members) => members.iter().any(|member| member.user == *gone),
                    _ => false,
                };
                adds && below(change, &all).contains(removal.hash())
            });
            if !was_out && !back {
                prop_assert!(members.iter().all(|member| member.user != *gone), "{gone} is back");
            }
        }
    }
}
