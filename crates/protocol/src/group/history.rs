//! The changes of a group, a graph: a change names the changes that it builds on, and what a member knows is a set of
//! them that holds all that its elements build on. What follows from such a set stands in `rules`: members who know the same
//! changes agree, in whatever order they came.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use stvor_base::UserId;

use super::change::{Action, Change, ChangeHash, Member};
use super::rules::{Outcome, resolve};

/// A set of places in a history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Set(Vec<u64>);

#[cfg(test)]
thread_local! {
    /// Words of sets that were looked at: what resolving costs.
    pub(super) static LOOKED_AT: core::cell::Cell<usize> = const { core::cell::Cell::new(0) };
}

fn count(words: usize) {
    #[cfg(test)]
    LOOKED_AT.with(|all| all.set(all.get() + words));
    #[cfg(not(test))]
    let _ = words;
}

impl Set {
    pub(crate) fn has(&self, place: usize) -> bool {
        count(1);
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

    pub(super) fn join(&mut self, other: &Self) {
        count(other.0.len());
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    /// What is in both.
    pub(super) fn meet(&self, other: &Self) -> Self {
        count(self.0.len());
        Self(self.0.iter().zip(&other.0).map(|(word, other)| word & other).collect())
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        count(self.0.len());
        let others = other.0.iter().copied().chain(core::iter::repeat(0));
        Self(self.0.iter().zip(others).map(|(word, other)| word & !other).collect())
    }

    /// Whether the other one has all that is in this.
    pub(super) fn is_in(&self, other: &Self) -> bool {
        count(self.0.len());
        let others = other.0.iter().copied().chain(core::iter::repeat(0));
        self.0.iter().zip(others).all(|(word, other)| word & !other == 0)
    }

    /// From the first place to the last.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        count(self.0.len());
        let bits = |(at, word): (usize, &u64)| {
            let word = *word;
            (0..64_usize).filter(move |bit| word >> *bit & 1 == 1).map(move |bit| 64 * at + bit)
        };
        self.0.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(bits)
    }

    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

impl FromIterator<usize> for Set {
    fn from_iter<I: IntoIterator<Item = usize>>(places: I) -> Self {
        let mut set = Self::default();
        places.into_iter().for_each(|place| set.insert(place));
        set
    }
}

pub(super) struct Node {
    pub(super) change: Change,
    /// What it builds on, all the way down.
    pub(super) before: Set,
    /// Of a removal, what builds on it.
    pub(super) after: Set,
}

/// The changes of one group, parents before children.
#[derive(Default)]
pub(crate) struct History {
    nodes: Vec<Node>,
    places: HashMap<ChangeHash, usize>,
    removals: Set,
    /// Those that nothing builds on, in ascending order.
    heads: BTreeSet<ChangeHash>,
    outcome: Outcome,
    /// Bytes of the changes.
    bytes: usize,
}

impl History {
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Bytes of the changes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The version of its changes, which says by what rules they are resolved; `None` without any.
    pub(crate) fn version(&self) -> Option<u8> {
        self.nodes.first().map(|node| node.change.version)
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

    /// Of what is not among `known` and below them, what `users` may be told who are no members: as little as shows them that
    /// they are none, with what that builds on, parents first. Those are the removals of them, or else those that make void
    /// what let them in, or else all removals. Of who is a member with another key the removals alone.
    ///
    /// `known` empty: what they know is not known, and taken for what lets them in.
    pub(crate) fn puts_out(&self, users: &[&UserId], known: &[ChangeHash]) -> impl Iterator<Item = &Change> {
        let known: Vec<ChangeHash> = known.iter().filter(|hash| self.has(hash)).copied().collect();
        let theirs = self.before(&known).unwrap_or_default();
        let mut seen = theirs.clone();
        if known.is_empty() {
            users.iter().for_each(|user| seen.join(&self.below(self.adds_of(user))));
        }
        let own = self.below(self.removals(|user| users.contains(&user)));
        let mut told = own.clone();
        let shows = |told: &Set| {
            let mut all = seen.clone();
            all.join(told);
            let by_it = self.outcome_of(&all);
            users
                .iter()
                .all(|user| self.outcome.members.contains_key(*user) || !by_it.members.contains_key(*user))
        };
        if !shows(&told) {
            // For several of them first without the removal of each: it is for that one.
            told = self.voiding(users);
            if users.len() == 1 || !shows(&told) {
                told.join(&own);
            }
            if !shows(&told) {
                // With all removals and what lets them in nobody is a member who is none with all changes: what else there is
                // lets in somebody else, or is a name.
                told = self.below(self.removals(|_| true));
            }
        }
        self.nodes
            .iter()
            .enumerate()
            .filter(move |(place, _)| told.has(*place) && !theirs.has(*place))
            .map(|(_, node)| &node.change)
    }

    /// These, and what they build on.
    fn below(&self, places: impl IntoIterator<Item = usize>) -> Set {
        let mut all = Set::default();
        for place in places {
            if let Some(node) = self.nodes.get(place) {
                all.join(&node.before);
                all.insert(place);
            }
        }
        all
    }

    fn removals<'a>(&'a self, of: impl Fn(&UserId) -> bool + 'a) -> impl Iterator<Item = usize> + 'a {
        self.nodes.iter().enumerate().filter_map(move |(place, node)| match &node.change.action {
            Action::Remove(user) if of(user) => Some(place),
            _ => None,
        })
    }

    /// The changes that let a user in.
    fn adds_of<'a>(&'a self, user: &'a UserId) -> impl Iterator<Item = usize> + 'a {
        self.nodes.iter().enumerate().filter_map(move |(place, node)| {
            node.change.action.lets_in().iter().any(|member| member.user == *user).then_some(place)
        })
    }

    /// Whether a change, counted or not, let somebody in with this key.
    pub(crate) fn ever_named(&self, member: &Member) -> bool {
        self.nodes.iter().any(|node| node.change.action.lets_in().contains(member))
    }

    /// What may make void whatever let these users in, with what it builds on: the removals, concurrent to that, of who
    /// made it, and of who let those in, and so on.
    fn voiding(&self, users: &[&UserId]) -> Set {
        let mut looked_at: BTreeSet<&UserId> = users.iter().copied().collect();
        let mut left: Vec<&UserId> = looked_at.iter().copied().collect();
        let mut told = Set::default();
        while let Some(user) = left.pop() {
            for add in self.adds_of(user) {
                let Some(node) = self.nodes.get(add) else { continue };
                let author = &node.change.author.user;
                let concurrent = |removal: &usize| {
                    let after = self.nodes.get(*removal).is_some_and(|removal| removal.before.has(add));
                    !after && !node.before.has(*removal)
                };
                told.join(&self.below(self.removals(|gone| gone == author).filter(concurrent)));
                if looked_at.insert(author) {
                    left.push(author);
                }
            }
        }
        told
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
        if !self.put(change, before) {
            self.outcome = resolve(&self.nodes, None);
        }
    }

    /// Takes in changes, parents before children; `None` when the parents of one are not here.
    pub(crate) fn extend(&mut self, changes: Vec<Change>) -> Option<()> {
        let mut resolved = true;
        for change in changes {
            let before = self.before(&change.parents)?;
            resolved &= self.put(change, before);
        }
        if !resolved {
            self.outcome = resolve(&self.nodes, None);
        }
        Some(())
    }

    /// Whether what follows from it is worked out already.
    fn put(&mut self, change: Change, before: Set) -> bool {
        let linear = before.len() == self.nodes.len();
        let place = self.nodes.len();
        self.bytes += change.signed.bytes.len();
        self.places.insert(change.hash, place);
        for parent in &change.parents {
            self.heads.remove(parent);
        }
        self.heads.insert(change.hash);
        for removal in before.meet(&self.removals).iter() {
            if let Some(node) = self.nodes.get_mut(removal) {
                node.after.insert(place);
            }
        }
        if matches!(change.action, Action::Remove(_)) {
            self.removals.insert(place);
        }
        self.nodes.push(Node { change, before, after: Set::default() });
        let Some(Node { change, .. }) = self.nodes.last().filter(|_| linear) else { return false };
        // Nothing is concurrent to it: it stands, and what it says replaces what was.
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
        true
    }
}
