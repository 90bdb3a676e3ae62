//! What one step of the task that keeps groups writes, and what follows once it is durable.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use stvor_base::{Address, ContentId, GroupId};
use stvor_protocol::Effects;
use stvor_protocol::group::Member;
use stvor_store::{ChangeSet, StoreError};

use super::actor::Actor;
use super::desk::{Body, Post};
use super::{device_of, rows};
use crate::error::Error;
use crate::events::Event;
use crate::inbox::Arrival;
use crate::lane::Work;
use crate::limits;
use crate::rows::PeerRow;

/// One commit in the making. Dropped without it, nothing happened, but groups in memory have moved on and are to be
/// loaded again.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) effects: Effects,
    pub(super) changes: ChangeSet,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) marks: HashSet<(Address, ContentId)>,
    pub(super) events: Vec<Event>,
    pub(super) posts: Vec<Post>,
    pub(super) peers: Vec<PeerRow>,
    /// Mail that is judged.
    pub(super) done: Vec<u64>,
    /// What waits may go on after this.
    pub(super) progress: bool,
}

/// Why a commit failed.
pub(super) enum Failure {
    /// Another process took some of it.
    Conflict,
    Other(Error),
}

impl Turn {
    /// Messages of one sender that it puts into the inbox.
    pub(super) fn arrivals_of(&self, from: &stvor_base::UserId) -> usize {
        self.arrivals.iter().filter(|arrival| arrival.pointer.peer.user == *from).count()
    }

    /// Mail is done with.
    pub(super) fn judged(&mut self, seq: u64) {
        self.changes.delete(rows::mail(seq));
        self.done.push(seq);
    }
}

impl Actor {
    /// Puts a body and a post of it for each member into a turn.
    pub(super) fn post(
        &self,
        (bytes, blob): (stvor_crypto::SecretBytes, bool),
        members: impl IntoIterator<Item = Member>,
        turn: &mut Turn,
    ) {
        let mut members =
            members.into_iter().filter(|member| member.user != self.core.address.user).peekable();
        if members.peek().is_none() {
            return;
        }
        let now = self.core.now();
        let body: Arc<Body> = self.core.groups.body(bytes, now, &mut turn.changes);
        for member in members {
            let to = (device_of(&member.user), member.key);
            turn.posts.push(self.core.groups.post(to, (&body, blob), now, &mut turn.changes));
        }
    }

    /// Whether more may be put on its way to members.
    pub(super) fn may_post(&self, more: usize) -> bool {
        self.core.groups.open_posts.load(Ordering::Relaxed) + more <= limits::MAX_POSTS
    }

    /// Writes a turn, whole or not at all, and then lets everybody know.
    pub(super) async fn commit(&mut self, turn: Turn) -> Result<(), Failure> {
        let Turn { effects, mut changes, arrivals, marks: _, events, posts, peers, done, progress } = turn;
        if effects.is_empty() && changes.is_empty() {
            return Ok(());
        }
        let counter = self.core.counter();
        changes.put(crate::keys::meta("counter"), counter.to_be_bytes().to_vec());
        let written = crate::records::write(&mut changes, effects);
        let committed = match written {
            Ok(()) => self.core.store.commit(changes).await.map(|_| ()).map_err(|error| match error {
                StoreError::Conflict { .. } => Failure::Conflict,
                other => Failure::Other(Error::passed(other)),
            }),
            Err(error) => Err(Failure::Other(error)),
        };
        if let Err(failure) = committed {
            self.core.inbox.give_back(arrivals.iter().map(|arrival| arrival.seq));
            if let Failure::Other(error) = &failure {
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
            }
            self.loaded = false;
            return Err(failure);
        }
        for seq in &done {
            self.parked.remove(seq);
        }
        self.core.groups.judged(done.len());
        if progress {
            self.parked.values_mut().for_each(|parked| parked.again = true);
        }
        for peer in peers {
            self.core.remember_peer(peer);
        }
        crate::metrics::received(arrivals.len());
        self.core.inbox.arrived(arrivals);
        for event in events {
            self.core.hub.emit(event);
        }
        self.hand_over(posts);
        Ok(())
    }

    /// Hands posts to the lanes. What no lane takes just now is tried again.
    pub(super) fn hand_over(&mut self, posts: Vec<Post>) {
        self.core.groups.open_posts.fetch_add(posts.len(), Ordering::Relaxed);
        self.core.unaccepted.fetch_add(posts.len(), Ordering::Relaxed);
        self.backlog.extend(posts.into_iter().map(Arc::new));
        self.work_off();
    }

    /// Tries what no lane took. One lane's posts keep their order.
    pub(super) fn work_off(&mut self) {
        while let Some(post) = self.backlog.front() {
            if self.core.work(&post.to, Work::Post(Arc::clone(post))).is_err() {
                return;
            }
            self.backlog.pop_front();
        }
    }

    pub(super) fn not_found(&self, group: GroupId) -> Error {
        crate::error::ErrorKind::GroupNotFound { group }.into()
    }
}
