//! What follows from a set of changes: who is a member, and the name. A function of the set alone.
//!
//! The **seniority** of the author of a change is the epoch of the first change that lets them in, that is not void and
//! that the change builds on, and then their name: the smaller is the more senior. Who lets somebody in is more senior
//! than they are, so nobody can give what they do not have, and no bytes that an author chooses count.
//!
//! 1. Removals are looked at in the order of their authors' seniority. One that is not void by then, and whose author is
//!    a member by what it builds on as far as that is not void, *counts*: it makes void every concurrent change by whom
//!    it removes, if that change's author is less senior. (Concurrent: neither builds on the other.) One that does not
//!    count is void. Void is, too, what somebody made who by what it builds on was let in by void changes only.
//! 2. A change *stands* if it is not void and its author is a member by the standing changes that it builds on.
//! 3. A user is a member if a standing change adds them that builds on every standing removal of them. Of several such
//!    changes those count that no other one builds on, and of these the one by the most senior author gives the key; of
//!    those by one author the one with the smallest hash.
//! 4. The name is that of the standing creation or rename that no other one builds on; of several as for keys.
//!
//! So nothing that somebody makes once a more senior member has put them out undoes it, whatever they let in before.
//!
//! Groups whose creation is of version 1 follow the rule of their time: removals are looked at in the order of their
//! hashes, each that is not void by then makes void every concurrent change by whom it removes, and of several keys and
//! names the smallest hash counts.

use core::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use stvor_base::{KeyBytes, UserId};

use super::change::{Action, ChangeHash};
use super::history::{Node, Set};

/// What follows from a set of changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) members: BTreeMap<UserId, KeyBytes>,
    pub(crate) name: String,
}

/// The smaller, the more senior.
type Rank<'a> = (u64, &'a UserId);

struct View<'a> {
    nodes: &'a [Node],
    /// The changes that are looked at, parents before children.
    places: Vec<usize>,
    lets_in: BTreeMap<&'a UserId, Vec<usize>>,
    by: BTreeMap<&'a UserId, Vec<usize>>,
    removals: Vec<(usize, &'a UserId)>,
    void: Set,
    by_hash: bool,
}

/// What follows from the changes in `within`, which holds all that its elements build on; from all without it.
pub(super) fn resolve(nodes: &[Node], within: Option<&Set>) -> Outcome {
    let mut view = View::of(nodes, within);
    if view.by_hash {
        view.void_by_hash();
    } else {
        view.void_by_seniority();
    }
    view.outcome()
}

impl<'a> View<'a> {
    fn of(nodes: &'a [Node], within: Option<&Set>) -> Self {
        let inside = |place: &usize| within.is_none_or(|within| within.has(*place));
        let places: Vec<usize> = (0..nodes.len()).filter(inside).collect();
        let by_hash = nodes.first().is_some_and(|node| node.change.version == 1);
        let mut view = Self {
            nodes,
            places: Vec::new(),
            lets_in: BTreeMap::new(),
            by: BTreeMap::new(),
            removals: Vec::new(),
            void: Set::default(),
            by_hash,
        };
        for &place in &places {
            let Some(node) = nodes.get(place) else { continue };
            view.by.entry(&node.change.author.user).or_default().push(place);
            match &node.change.action {
                Action::Create { members, .. } | Action::Add(members) => {
                    for member in members {
                        view.lets_in.entry(&member.user).or_default().push(place);
                    }
                }
                Action::Remove(user) => view.removals.push((place, user)),
                Action::Rename(_) => {}
            }
        }
        view.places = places;
        view
    }

    /// How senior the author of a change is by what it builds on; `None` for somebody whom nothing lets in that counts.
    fn rank(&self, place: usize) -> Option<Rank<'a>> {
        let node = self.nodes.get(place)?;
        let author = &node.change.author.user;
        if node.change.parents.is_empty() {
            return Some((0, author));
        }
        let counts = |add: &&usize| node.before.has(**add) && !self.void.has(**add);
        let epoch_of = |add: &usize| self.nodes.get(*add).map(|node| node.change.epoch);
        let first = self.lets_in.get(author)?.iter().filter(counts).filter_map(epoch_of).min()?;
        Some((first, author))
    }

    fn concurrent(&self, a: usize, b: usize) -> bool {
        let below = |low: usize, high: usize| self.nodes.get(high).is_some_and(|node| node.before.has(low));
        a != b && !below(a, b) && !below(b, a)
    }

    fn void_by_hash(&mut self) {
        let hash = |place: usize| self.nodes.get(place).map(|node| node.change.hash);
        let mut removals = self.removals.clone();
        removals.sort_by_key(|(place, _)| hash(*place));
        for (removal, user) in removals {
            if self.void.has(removal) {
                continue;
            }
            for place in self.by.get(user).cloned().unwrap_or_default() {
                if self.concurrent(place, removal) {
                    self.void.insert(place);
                }
            }
        }
    }

    /// Rule 1.
    fn void_by_seniority(&mut self) {
        let hash = |place: usize| self.nodes.get(place).map(|node| node.change.hash);
        let mut queue: BinaryHeap<Reverse<(Rank<'a>, Option<ChangeHash>, usize)>> = self
            .removals
            .iter()
            .filter_map(|(place, _)| Some(Reverse((self.rank(*place)?, hash(*place), *place))))
            .collect();
        let of: BTreeMap<usize, &'a UserId> = self.removals.iter().copied().collect();
        let mut counting: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
        while let Some(Reverse((rank, hash, removal))) = queue.pop() {
            if self.void.has(removal) {
                continue;
            }
            match self.rank(removal) {
                Some(now) if now == rank => {}
                // What let the author in first became void meanwhile: they are less senior than it seemed.
                Some(now) => {
                    queue.push(Reverse((now, hash, removal)));
                    continue;
                }
                None => {
                    self.void.insert(removal);
                    continue;
                }
            }
            let Some(user) = of.get(&removal).copied() else { continue };
            if !self.made_by_a_member(removal, &counting) {
                self.void.insert(removal);
                continue;
            }
            counting.entry(user).or_default().push(removal);
            let mut lets_in = false;
            for place in self.by.get(user).cloned().unwrap_or_default() {
                let junior = !self.void.has(place)
                    && self.concurrent(place, removal)
                    && self.rank(place).is_none_or(|other| other > rank);
                if junior {
                    self.void.insert(place);
                    lets_in |= self
                        .nodes
                        .get(place)
                        .is_some_and(|node| matches!(node.change.action, Action::Add(_)));
                }
            }
            if lets_in {
                self.spread();
            }
        }
    }

    /// Whether the author of a removal is a member by what it builds on, as far as that is known by now.
    fn made_by_a_member(&self, removal: usize, counting: &BTreeMap<&UserId, Vec<usize>>) -> bool {
        let Some(node) = self.nodes.get(removal) else { return false };
        let author = &node.change.author.user;
        let adds: Vec<usize> = self
            .lets_in
            .get(author)
            .into_iter()
            .flatten()
            .filter(|add| !self.void.has(**add))
            .copied()
            .collect();
        self.key_of((Some(&adds), counting.get(author)), (author, Some(&node.before)))
            == Some(&node.change.author_key)
    }

    /// What was made by those whom only void changes let in is void.
    fn spread(&mut self) {
        for index in 0..self.places.len() {
            let Some(&place) = self.places.get(index) else { return };
            if !self.void.has(place) && self.rank(place).is_none() {
                self.void.insert(place);
            }
        }
    }

    /// Rules 2 to 4.
    fn outcome(&self) -> Outcome {
        // What each user's membership follows from, so far.
        let mut adds: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
        let mut removals: BTreeMap<&UserId, Vec<usize>> = BTreeMap::new();
        let mut names = Vec::new();
        for &place in &self.places {
            let Some(node) = self.nodes.get(place) else { continue };
            let author = &node.change.author.user;
            let stands = !self.void.has(place)
                && (node.change.parents.is_empty()
                    || self.key_of((adds.get(author), removals.get(author)), (author, Some(&node.before)))
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
                let key = self.key_of((Some(added), removals.get(user)), (user, None))?;
                Some(((*user).clone(), *key))
            })
            .collect();
        let name = self.latest(&names).and_then(|place| match &self.nodes.get(place)?.change.action {
            Action::Create { name, .. } | Action::Rename(name) => Some(name.clone()),
            _ => None,
        });
        Outcome { members, name: name.unwrap_or_default() }
    }

    /// Rule 3: the key of a member by these changes, as far as `within` holds them.
    fn key_of(
        &self,
        (adds, removals): (Option<&Vec<usize>>, Option<&Vec<usize>>),
        (user, within): (&UserId, Option<&Set>),
    ) -> Option<&'a KeyBytes> {
        let inside = |place: &&usize| within.is_none_or(|within| within.has(**place));
        let removals: Vec<usize> = removals.into_iter().flatten().filter(inside).copied().collect();
        let survives = |add: &&usize| {
            self.nodes.get(**add).is_some_and(|node| removals.iter().all(|place| node.before.has(*place)))
        };
        let adds: Vec<usize> = adds.into_iter().flatten().filter(inside).filter(survives).copied().collect();
        let place = self.latest(&adds)?;
        match &self.nodes.get(place)?.change.action {
            Action::Create { members, .. } | Action::Add(members) => {
                members.iter().find(|member| member.user == *user).map(|member| &member.key)
            }
            _ => None,
        }
    }

    /// Of those that no other one builds on, the one by the most senior author, and then with the smallest hash.
    fn latest(&self, places: &[usize]) -> Option<usize> {
        if let [one] = places {
            return Some(*one);
        }
        let mut below = Set::default();
        for node in places.iter().filter_map(|place| self.nodes.get(*place)) {
            below.join(&node.before);
        }
        let order = |place: &usize| {
            let rank = if self.by_hash { None } else { self.rank(*place) };
            (rank, self.nodes.get(*place).map(|node| node.change.hash))
        };
        places.iter().filter(|place| !below.has(**place)).min_by_key(|place| order(place)).copied()
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{Address, AppId, DeviceId, GroupId, Timestamp};
    use stvor_crypto::SystemRandom;

    use super::super::change::{Base, Change, Member};
    use super::super::{Action, Group};
    use super::*;
    use crate::{Identity, ProtocolError};

    const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

    fn identity(name: &str) -> Identity {
        let address = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
        Identity::create(&AppId::new("test").unwrap(), &address, NOW, &mut SystemRandom::new()).unwrap().0
    }

    fn member(identity: &Identity) -> Member {
        Member { user: identity.user().clone(), key: *identity.user_key() }
    }

    fn made(by: &Identity, base: &Base, action: Action) -> Change {
        Change::sign(by, base, (action, NOW), &mut SystemRandom::new()).unwrap()
    }

    /// A group as it was made before seniority counted, with two members.
    fn old_group(ann: &Identity, bob: &Identity, nonce: u8) -> Vec<Change> {
        let first = Base { group: GroupId::from_bytes([0; 16]), epoch: 0, parents: vec![], version: Some(1) };
        let action = Action::Create {
            name: "old".into(),
            members: vec![member(ann), member(bob)],
            nonce: [nonce; 16],
        };
        let create = made(ann, &first, action);
        let next = || Base {
            group: create.group,
            epoch: 1,
            parents: vec![create.hash],
            version: create.version.into(),
        };
        let by_ann = made(ann, &next(), Action::Remove(bob.user().clone()));
        let by_bob = made(bob, &next(), Action::Remove(ann.user().clone()));
        vec![create, by_ann, by_bob]
    }

    #[test]
    fn a_group_of_version_1_keeps_the_rule_of_hashes() {
        let (ann, bob) = (identity("ann"), identity("bob"));
        let (mut first, mut second) = (false, false);
        for nonce in 0..64 {
            let changes = old_group(&ann, &bob, nonce);
            let by_ann = changes[1].hash < changes[2].hash;
            let winner = if by_ann { "ann" } else { "bob" };
            let mut group = Group::join(&ann, changes[0].group);
            for change in changes {
                assert!(group.apply(change).unwrap().new);
            }
            let users: Vec<UserId> = group.members().map(|member| member.user).collect();
            assert_eq!(users, [UserId::new(winner).unwrap()]);
            first |= by_ann;
            second |= !by_ann;
        }
        assert!(first && second);
    }

    #[test]
    fn a_group_takes_changes_of_its_own_version_only_and_makes_such() {
        let (ann, bob) = (identity("ann"), identity("bob"));
        let changes = old_group(&ann, &bob, 7);
        let mut group = Group::join(&ann, changes[0].group);
        let base = Base { group: group.id(), epoch: 1, parents: vec![changes[0].hash], version: Some(2) };
        let _ = group.apply(changes[0].clone()).unwrap();
        let newer = made(&ann, &base, Action::Rename("new".into()));
        assert!(matches!(group.apply(newer), Err(ProtocolError::BadChange(_))));
        let (made, _) =
            group.change(&ann, (Action::Rename("new".into()), NOW), &mut SystemRandom::new()).unwrap();
        assert_eq!((made.change.bytes[0], group.name()), (1, "new"));
        let (_, made) = Group::create(&ann, "fresh", NOW, &mut SystemRandom::new()).unwrap();
        assert_eq!(made.change.bytes[0], 2);
    }
}
