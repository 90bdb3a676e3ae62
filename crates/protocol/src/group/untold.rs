//! Users whose membership hangs on a change that does not name them.
//!
//! A change goes to everybody who is a member before or after it *by what its author knows*. Concurrent changes move others:
//! whoever was let in by a change that becomes void, or comes back because a removal does, is known to no author. Some
//! members tell them, and who is put out tells those who are out with them; and whoever is out and writes all the same is answered.

use std::collections::BTreeMap;

use stvor_base::{KeyBytes, UserId};

use super::change::{Action, ChangeHash, Member, SignedChangeIn};
use super::{Applied, Group, limits};

/// Who came in or is out by a change without being named by it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Untold {
    /// Members who were none before: they are to be told all changes.
    pub joined: Vec<Member>,
    /// Users who are no members, and may take themselves for such: they are to be told what [`Group::puts_out`] says.
    pub out: Vec<Member>,
}

type Members = BTreeMap<UserId, KeyBytes>;

impl Untold {
    pub(super) fn of((by, action): (&Member, &Action), old: &Members, new: &Members) -> Self {
        let member = |(user, key): (&UserId, &KeyBytes)| Member { user: user.clone(), key: *key };
        let added = action.lets_in();
        let joined = new
            .iter()
            .filter(|(user, key)| old.get(*user) != Some(*key))
            .map(member)
            .filter(|member| !added.contains(member));
        let gone = old.iter().filter(|(user, _)| !new.contains_key(*user)).map(member);
        // Who is a member with another key is told by that one. And who makes a change takes themselves for a member.
        let named = added.iter().chain([by]).filter(|member| !new.contains_key(&member.user));
        let mut out: Vec<Member> = gone.chain(named.cloned()).collect();
        if let Action::Remove(user) = action {
            out.retain(|member| member.user != *user);
        }
        out.sort_by(|a, b| a.user.cmp(&b.user));
        out.dedup();
        Self { joined: joined.collect(), out }
    }

    pub(super) fn without(mut self, user: &UserId) -> Self {
        self.joined.retain(|member| member.user != *user);
        self.out.retain(|member| member.user != *user);
        self
    }
}

impl Group {
    /// Whom it is ours to tell. Of all members the first three by name tell everybody, so that one is enough who is there, and in
    /// a large group few say the same. And whoever is put out by a change tells those who are out with them: it may be that no
    /// member ever learns of the change that let these in.
    #[must_use]
    pub fn ours_to_tell(&self, applied: &Applied) -> Untold {
        let mut first = self.history.outcome().members.keys().take(limits::MAX_TELLERS);
        if first.any(|user| *user == self.own) {
            applied.untold.clone()
        } else if applied.gone.contains(&self.own) {
            Untold { joined: Vec::new(), out: applied.untold.out.clone() }
        } else {
            Untold::default()
        }
    }

    /// Whether a user with this key was let in by a change that is here, whether it counts or not, and is no member.
    #[must_use]
    pub fn has_lost(&self, member: &Member) -> bool {
        self.key_of(&member.user).is_none() && self.history.ever_named(member)
    }

    /// As [`Self::beyond`], for users who are no members: as little as shows them that they are none, and what that builds on.
    /// What the group became after that is not for them. Empty for whom no change lets in or removes.
    #[must_use]
    pub fn puts_out(&self, users: &[&UserId], known: &[ChangeHash]) -> Vec<SignedChangeIn> {
        self.history.puts_out(users, known).map(|change| change.signed.clone()).collect()
    }
}
