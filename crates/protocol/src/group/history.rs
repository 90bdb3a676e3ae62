//! The changes of a group and what follows from them.
//!
//! A change names the changes that it builds on, so the changes of a group are a graph, and what a member knows is a set
//! of them that holds all that its elements build on. Membership and name are functions of that set alone: members who
//! know the same changes agree, in whatever order they came.
//!
//! 1. Removals are looked at in ascending order of their hashes. One that is not void by then makes void every concurrent
//!    change by whom it removes. (Concurrent: neither builds on the other.)
//! 2. A change *stands* if it is not void and its author is a member by the standing changes that it builds on.
//! 3. A user is a member if a standing change adds them that builds on every standing removal of them. Of several such
//!    changes those count that no other one builds on, and of these the one with the smallest hash gives the key.
//! 4. The name is that of the standing creation or rename that no other one builds on; of several the one with the
//!    smallest hash.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use stvor_base::{KeyBytes, UserId};

use super::change::{Action, Change, ChangeHash};

/// A set of places in a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set(Vec<u64>);

impl Set {
    pub(crate) fn has(&self, place: usize) -> bool {
        self.0.get(place / 64).is_some_and(|word| word >> (place % 64) & 1 == 1)
    }

    pub(crate) fn insert(&mut self, place: usize) {
        if self.0.len() <= place / 64 {
            self.0.resize(place / 64 + 1, 0);
        }
        if let Some(word) = self.0.get_mut(place / 64) {
            *word |= 1 << (place % 64);
        }
    }

    fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

struct Node {
    change: Change,
    /// What it builds on, all the way down.
    before: Set,
}

/// What follows from a set of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) members: BTreeMap<UserId, KeyBytes>,
    pub(crate) name: String,
}

/// The changes of one group, parents before children.
#[derive(Default)]
pub(crate) struct History {
    nodes: Vec<Node>,
    places: HashMap<ChangeHash, usize>,
    /// Those that nothing builds on, in ascending order.
    heads: BTreeSet<ChangeHash>,
    outcome: Outcome,
}

impl History {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn has(&self, hash: &ChangeHash) -> bool {
        self.places.contains_key(hash)
    }

    pub(crate) fn outcome(&self) -> &Outcome {
        &self.outcome
    }

    pub(crate) fn changes(&self) -> impl Iterator<Item = &Change> {
        self.nodes.iter().map(|node| &node.change)
    }

    /// The changes that nothing builds on, in ascending order of their hashes.
    pub(crate) fn heads(&self) -> Vec<ChangeHash> {
        self.heads.iter().copied().collect()
    }

    pub(crate) fn epoch_of(&self, hashes: &[ChangeHash]) -> Option<u64> {
        let of = |hash| self.places.get(hash).and_then(|place| self.nodes.get(*place));
        hashes.iter().filter_map(of).map(|node| node.change.epoch).max()
    }

    /// What a change with these parents builds on; `None` when one of them is not here.
    pub(crate) fn before(&self, parents: &[ChangeHash]) -> Option<Set> {
        let mut before = Set::default();
        for parent in parents {
            let place = *self.places.get(parent)?;
            before.join(&self.nodes.get(place)?.before);
            before.insert(place);
        }
        Some(before)
    }

    /// The changes that are not among `known` and below them, parents first.
    pub(crate) fn beyond(&self, known: &[ChangeHash]) -> impl Iterator<Item = &Change> {
        let known: Vec<ChangeHash> = known.iter().filter(|hash| self.has(hash)).copied().collect();
        let before = self.before(&known).unwrap_or_default();
        self.nodes
            .iter()
            .enumerate()
            .filter(move |(place, _)| !before.has(*place))
            .map(|(_, node)| &node.change)
    }

    /// What follows from the changes in `before`, which holds all that its elements build on.
    pub(crate) fn outcome_of(&self, before: &Set) -> Cow<'_, Outcome> {
        if before.len() == self.nodes.len() {
            return Cow::Borrowed(&self.outcome);
        }
        Cow::Owned(resolve(&self.nodes, Some(before)))
    }

    /// Takes in a change whose parents are here.
    pub(crate) fn push(&mut self, change: Change, before: Set) {
        let linear = before.len() == self.nodes.len();
        let place = self.nodes.len();
        self.places.insert(change.hash, place);
        for parent in &change.parents {
            self.heads.remove(parent);
        }
        self.heads.insert(change.hash);
        self.nodes.push(Node { change, before });
        if linear {
            // Nothing is concurrent to it: it stands, and what it says replaces what was.
            let Some(Node { change, .. }) = self.nodes.last() else { return };
            match &change.action {
                Action::Create { name, members, .. } => {
                    self.outcome.name.clone_from(name);
                    self.outcome.members.extend(members.iter().map(|m| (m.user.clone(), m.key)));
                }
                Action::Add(members) => {
                    self.outcome.members.extend(members.iter().map(|m| (m.user.clone(), m.key)));
                }
                Action::Remove(user) => {
                    self.outcome.members.remove(user);
                }
                Action::Rename(name) => self.outcome.name.clone_from(name),
            }
        } else {
            self.outcome = resolve(&self.nodes, None);
        }
    }
}

fn resolve(nodes: &[Node], within: Option<&Set>) -> Outcome {
    let inside = |place: &usize| within.is_none_or(|within| within.has(*place));
    let places: Vec<usize> = (0..nodes.len()).filter(inside).collect();
    let void = void(nodes, &places);
    // What each user's membership follows from, so far.
    let mut adds: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
    let mut removals: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
    let mut names = Vec::new();
    for &place in &places {
        let Some(node) = nodes.get(place) else { continue };
        let author = &node.change.author.user;
        let stands = !void.has(place)
            && (node.change.parents.is_empty()
                || key_of(nodes, (adds.get(author), removals.get(author)), (author, Some(&node.before)))
                    == Some(&node.change.author_key));
        if !stands {
            continue;
        }
        match &node.change.action {
            Action::Create { members, .. } => {
                names.push(place);
                members.iter().for_each(|member| adds.entry(&member.user).or_default().push(place));
            }
            Action::Add(members) => {
                members.iter().for_each(|member| adds.entry(&member.user).or_default().push(place));
            }
            Action::Remove(user) => removals.entry(user).or_default().push(place),
            Action::Rename(_) => names.push(place),
        }
    }
    let members = adds
        .iter()
        .filter_map(|(user, added)| {
            let key = key_of(nodes, (Some(added), removals.get(user)), (user, None))?;
            Some(((*user).clone(), *key))
        })
        .collect();
    let name = latest(nodes, &names).and_then(|place| match &nodes.get(place)?.change.action {
        Action::Create { name, .. } | Action::Rename(name) => Some(name.clone()),
        _ => None,
    });
    Outcome { members, name: name.unwrap_or_default() }
}

/// Rule 1.
fn void(nodes: &[Node], places: &[usize]) -> Set {
    let mut removals: Vec<(&ChangeHash, usize, &UserId)> = places
        .iter()
        .filter_map(|place| match &nodes.get(*place)?.change {
            Change { hash, action: Action::Remove(user), .. } => Some((hash, *place, user)),
            _ => None,
        })
        .collect();
    removals.sort_unstable();
    let mut void = Set::default();
    for (_, removal, user) in removals {
        if void.has(removal) {
            continue;
        }
        for &place in places {
            let by_them = nodes.get(place).is_some_and(|node| node.change.author.user == *user);
            if by_them && concurrent(nodes, place, removal) {
                void.insert(place);
            }
        }
    }
    void
}

fn concurrent(nodes: &[Node], a: usize, b: usize) -> bool {
    let below = |low: usize, high: usize| nodes.get(high).is_some_and(|node| node.before.has(low));
    a != b && !below(a, b) && !below(b, a)
}

/// Rule 3: the key of a member, by the standing changes that `view` names, as far as `within` holds them.
fn key_of<'a>(
    nodes: &'a [Node],
    (adds, removals): (Option<&Vec<usize>>, Option<&Vec<usize>>),
    (user, within): (&UserId, Option<&Set>),
) -> Option<&'a KeyBytes> {
    let inside = |place: &&usize| within.is_none_or(|within| within.has(**place));
    let removals: Vec<usize> = removals.into_iter().flatten().filter(inside).copied().collect();
    let survives = |add: &&usize| {
        nodes.get(**add).is_some_and(|node| removals.iter().all(|place| node.before.has(*place)))
    };
    let adds: Vec<usize> = adds.into_iter().flatten().filter(inside).filter(survives).copied().collect();
    let place = latest(nodes, &adds)?;
    match &nodes.get(place)?.change.action {
        Action::Create { members, .. } | Action::Add(members) => {
            members.iter().find(|member| member.user == *user).map(|member| &member.key)
        }
        _ => None,
    }
}

/// Of those that no other one builds on, the one with the smallest hash.
fn latest(nodes: &[Node], places: &[usize]) -> Option<usize> {
    let topmost = |place: &&usize| {
        !places.iter().any(|other| nodes.get(*other).is_some_and(|node| node.before.has(**place)))
    };
    places.iter().filter(topmost).min_by_key(|place| nodes.get(**place).map(|node| node.change.hash)).copied()
}
