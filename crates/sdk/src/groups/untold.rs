//! Telling users that they are no members (any more), or are, by a change whose author could not know of them.
//!
//! Whoever was let in by a change that is void by a concurrent one would take themselves for a member for ever. Some members
//! tell them when they learn of both changes, in the same commit; and whoever is out and writes as a member is answered, so
//! that it ends also when that is lost. Nobody is told anything who was not let in by a change that is here, with the key that
//! it goes to; of what is told nothing is later than what put them out. Who asks is answered by their name: they know the
//! group's id, and what puts them out says nothing else.

use stvor_base::{GroupId, UserId};
use stvor_crypto::kdf::sha256;
use stvor_protocol::group::{ChangeHash, Group as State, Member, Untold, bodies_of};
use tokio::time::Instant;

use super::actor::Actor;
use super::rows::PostKind;
use super::turn::Turn;
use super::waiting::Asked;

impl Actor {
    /// Tells those of whom a change moves without naming them whom it is ours to tell. On whoever made the change it counts how many:
    /// past the bound, and where no room is left for posts, they are answered when they write.
    pub(super) fn tell_untold(&mut self, group: &State, (untold, by): (&Untold, &UserId), turn: &mut Turn) {
        if untold.joined.is_empty() && untold.out.is_empty() {
            return;
        }
        let id = group.id();
        let mut may = |member: &&Member, turn: &mut Turn| {
            let to = sha256(&[member.user.as_str().as_bytes(), &member.key]);
            self.may_tell(Asked(by.clone(), [b"moved ".as_slice(), id.as_bytes(), &to].concat()), turn)
        };
        // Changes that came with this one may have moved them again: who is out by now is introduced to nothing.
        let is_in = |member: &&Member| group.admits(&member.user, &member.key);
        let is_out = |member: &&Member| group.key_of(&member.user).is_none();
        let joined: Vec<Member> =
            untold.joined.iter().filter(is_in).filter(|member| may(member, turn)).cloned().collect();
        let out: Vec<Member> =
            untold.out.iter().filter(is_out).filter(|member| may(member, turn)).cloned().collect();
        if !joined.is_empty() {
            self.introduce(group, joined, turn);
        }
        // Each by themselves: what put one out later is none of the business of who was out before.
        for member in out {
            let bodies = bodies_of(id, group.puts_out(&[&member.user], &[]));
            if self.may_post(turn.posts.len() + bodies.len()) {
                for body in bodies {
                    self.post((body, PostKind::Content), [member.clone()], turn);
                }
            }
        }
    }

    /// Somebody wrote as a member who is none. If they were let in once they are told what put them out, once an hour.
    pub(super) fn answer_who_is_out(
        &mut self,
        ghost: &Member,
        (id, known): (GroupId, &[ChangeHash]),
        turn: &mut Turn,
    ) {
        let asked = Asked(ghost.user.clone(), [b"out ".as_slice(), id.as_bytes()].concat());
        let there = self.groups.get(&id).is_some_and(|group| group.is_member() && group.has_lost(ghost));
        if !there || !self.may_tell(asked, turn) {
            return;
        }
        let changes = self.groups.get(&id).map(|group| group.puts_out(&[&ghost.user], known));
        for body in bodies_of(id, changes.unwrap_or_default()) {
            self.post((body, PostKind::Content), [ghost.clone()], turn);
        }
    }

    /// As [`Self::answer_who_is_out`], of whichever groups they were let into: what came names none that we could read. All
    /// groups are looked through once an hour for one user.
    pub(super) fn answer_everywhere(&mut self, ghost: &Member, turn: &mut Turn) {
        if !self.may_tell(Asked(ghost.user.clone(), b"out".to_vec()), turn) {
            return;
        }
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for id in groups {
            self.answer_who_is_out(ghost, (id, &[]), turn);
        }
    }

    fn may_tell(&mut self, what: Asked, turn: &mut Turn) -> bool {
        let may = !turn.told.contains(&what)
            && self.may_post(turn.posts.len() + 1)
            && self.asks.may_once(&what, Instant::now());
        if may {
            turn.told.push(what);
        }
        may
    }
}
