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

/// What the membership of a user follows from.
#[derive(Default, PartialEq, Eq)]
struct Facts {
    adds: Set,
    removals: Set,
}

impl Facts {
    fn within(&self, before: &Set) -> Self {
        Self { adds: self.adds.meet(before), removals: self.removals.meet(before) }
    }
}

/// The smaller, the more senior.
type Rank<'a> = (u64, &'a UserId);

struct View<'a> {
    nodes: &'a [Node],
    /// The changes that are looked at, parents before children.
    places: Vec<usize>,
    /// What lets a user in, the smallest epoch first.
    lets_in: BTreeMap<&'a UserId, Vec<usize>>,
    by: BTreeMap<&'a UserId, Set>,
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
            view.by.entry(&node.change.author.user).or_default().insert(place);
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
        for adds in view.lets_in.values_mut() {
            adds.sort_by_key(|add| nodes.get(*add).map(|node| node.change.epoch));
        }
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
        let first = self.lets_in.get(author)?.iter().find(counts)?;
        Some((self.nodes.get(*first)?.change.epoch, author))
    }

    /// The changes by a user that are concurrent to a removal.
    fn concurrent(&self, user: &UserId, removal: usize) -> Vec<usize> {
        let (Some(by), Some(node)) = (self.by.get(user), self.nodes.get(removal)) else { return Vec::new() };
        let others = by.without(&node.before).without(&node.after);
        others.iter().filter(|place| *place != removal).collect()
    }

    fn void_by_hash(&mut self) {
        let hash = |place: usize| self.nodes.get(place).map(|node| node.change.hash);
        let mut removals = self.removals.clone();
        removals.sort_by_key(|(place, _)| hash(*place));
        for (removal, user) in removals {
            if self.void.has(removal) {
                continue;
            }
            for place in self.concurrent(user, removal) {
                self.void.insert(place);
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
        let mut counting: BTreeMap<&UserId, Set> = BTreeMap::new();
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
            counting.entry(user).or_default().insert(removal);
            let mut lets_in = false;
            for place in self.concurrent(user, removal) {
                let junior = !self.void.has(place) && self.rank(place).is_none_or(|other| other > rank);
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
    fn made_by_a_member(&self, removal: usize, counting: &BTreeMap<&UserId, Set>) -> bool {
        let Some(node) = self.nodes.get(removal) else { return false };
        let author = &node.change.author.user;
        let adds: Set = self.lets_in.get(author).into_iter().flatten().copied().collect();
        let removals = counting.get(author).cloned().unwrap_or_default();
        let facts = Facts { adds: adds.without(&self.void), removals };
        self.key_of(author, &facts.within(&node.before)) == Some(&node.change.author_key)
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
        let mut of: BTreeMap<&UserId, Facts> = BTreeMap::new();
        // What followed for the last change of each author: for most of their changes it is the same.
        let mut last: BTreeMap<&UserId, (Facts, Option<&KeyBytes>)> = BTreeMap::new();
        let mut names = Vec::new();
        for &place in &self.places {
            let Some(node) = self.nodes.get(place).filter(|_| !self.void.has(place)) else { continue };
            let author = &node.change.author.user;
            if !node.change.parents.is_empty() {
                let facts = of.get(author).map(|facts| facts.within(&node.before)).unwrap_or_default();
                let key = match last.get(author) {
                    Some((same, key)) if *same == facts => *key,
                    _ => {
                        let key = self.key_of(author, &facts);
                        last.insert(author, (facts, key));
                        key
                    }
                };
                if key != Some(&node.change.author_key) {
                    continue;
                }
            }
            match &node.change.action {
                Action::Create { members, .. } => {
                    names.push(place);
                    members.iter().for_each(|member| of.entry(&member.user).or_default().adds.insert(place));
                }
                Action::Add(members) => {
                    members.iter().for_each(|member| of.entry(&member.user).or_default().adds.insert(place));
                }
                Action::Remove(user) => of.entry(user).or_default().removals.insert(place),
                Action::Rename(_) => names.push(place),
            }
        }
        let key_of = |(user, facts): (&&UserId, &Facts)| Some(((*user).clone(), *self.key_of(user, facts)?));
        let members = of.iter().filter_map(key_of).collect();
        let name = self.latest(&names).and_then(|place| match &self.nodes.get(place)?.change.action {
            Action::Create { name, .. } | Action::Rename(name) => Some(name.clone()),
            _ => None,
        });
        Outcome { members, name: name.unwrap_or_default() }
    }

    /// Rule 3: the key of a member.
    fn key_of(&self, user: &UserId, facts: &Facts) -> Option<&'a KeyBytes> {
        // Who builds on something stands behind it.
        let last = facts.removals.iter().next_back();
        let survives = |add: &usize| {
            last.is_none_or(|last| *add > last)
                && self.nodes.get(*add).is_some_and(|node| facts.removals.is_in(&node.before))
        };
        let adds: Vec<usize> = facts.adds.iter().filter(survives).collect();
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
    use super::super::history::LOOKED_AT;
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

    /// Words of sets that one change among so many may cost, for each of them and for each 64 of them.
    fn affordable(changes: usize) -> usize {
        32 * changes * changes.div_ceil(64)
    }

    #[test]
    fn what_a_change_costs_does_not_rise_with_how_often_its_author_was_put_out_and_let_in() {
        let (mallory, second) = (identity("mallory"), identity("second"));
        let mut rng = SystemRandom::new();
        let (mut group, _) = Group::create(&mallory, "g", NOW, &mut rng).unwrap();
        let add = || Action::Add(vec![member(&second)]);
        let _ = group.change(&mallory, (add(), NOW), &mut rng).unwrap();
        for _ in 0..100 {
            for action in [Action::Remove(second.user().clone()), add()] {
                let _ = group.change(&mallory, (action, NOW), &mut rng).unwrap();
            }
        }
        let mut base =
            Base { group: group.id(), epoch: group.epoch() + 1, parents: group.heads(), version: Some(2) };
        // First beside one another, then each on the one before and beside the others.
        for number in 0..200 {
            let change = made(&second, &base, Action::Rename(number.to_string()));
            if number >= 100 {
                (base.epoch, base.parents) = (change.epoch + 1, vec![change.hash]);
            }
            LOOKED_AT.set(0);
            assert!(group.apply(change).unwrap().new);
            let (cost, changes) = (LOOKED_AT.get(), group.changes().count());
            assert!(cost <= affordable(changes), "{cost} words at {changes} changes");
        }
        assert_eq!(group.size(), 2);
    }

    #[test]
    fn what_a_change_costs_does_not_rise_with_removals_and_additions_beside_one_another() {
        let (mallory, second) = (identity("mallory"), identity("second"));
        let mut rng = SystemRandom::new();
        let (mut group, _) = Group::create(&mallory, "g", NOW, &mut rng).unwrap();
        let add = || Action::Add(vec![member(&second)]);
        let _ = group.change(&mallory, (add(), NOW), &mut rng).unwrap();
        let next = |group: &Group| Base {
            group: group.id(),
            epoch: group.epoch() + 1,
            parents: group.heads(),
            version: Some(2),
        };
        for action in [Action::Remove(second.user().clone()), add()] {
            let base = next(&group);
            for number in 0..100 {
                let mut rng = SystemRandom::new();
                let at = Timestamp::from_millis(NOW.as_millis() + number);
                let change = Change::sign(&mallory, &base, (action.clone(), at), &mut rng).unwrap();
                assert!(group.apply(change).unwrap().new);
            }
            while group.heads().len() > 1 {
                let _ = group.change(&mallory, (Action::Rename("g".into()), NOW), &mut rng).unwrap();
            }
        }
        let mut base = next(&group);
        for number in 0..100 {
            let change = made(&second, &base, Action::Rename(number.to_string()));
            if number > 0 {
                (base.epoch, base.parents) = (change.epoch + 1, vec![change.hash]);
            }
            LOOKED_AT.set(0);
            assert!(group.apply(change).unwrap().new);
            let (cost, changes) = (LOOKED_AT.get(), group.changes().count());
            assert!(cost <= affordable(changes), "{cost} words at {changes} changes");
        }
        assert_eq!(group.size(), 2);
    }

    #[test]
    fn additions_beside_one_another_pass_the_bound_of_members_and_then_nobody_is_let_in_before_some_are_out()
    {
        let ann = identity("ann");
        let mut rng = SystemRandom::new();
        let (mut group, _) = Group::create(&ann, "g", NOW, &mut rng).unwrap();
        let base = Base { group: group.id(), epoch: 1, parents: group.heads(), version: Some(2) };
        let named = |number: usize| Member {
            user: UserId::new(&format!("user-{number:05}")).unwrap(),
            key: *ann.user_key(),
        };
        for first in (0..1_152).step_by(128) {
            let change = made(&ann, &base, Action::Add((first..first + 128).map(named).collect()));
            assert!(group.apply(change).unwrap().new);
        }
        assert_eq!(group.size(), 1_153);
        let one_more = || (Action::Add(vec![named(9_999)]), NOW);
        let full = group.change(&ann, one_more(), &mut rng).unwrap_err();
        assert!(matches!(full, ProtocolError::GroupFull { what: "members", .. }));
        for number in 0..154 {
            let _ = group.change(&ann, (Action::Remove(named(number).user), NOW), &mut rng).unwrap();
        }
        let _ = group.change(&ann, one_more(), &mut rng).unwrap();
        assert_eq!(group.size(), 1_000);
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
