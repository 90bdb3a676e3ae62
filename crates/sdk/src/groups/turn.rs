//! What one step of the task that keeps groups writes, and what follows once it is durable.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stvor_base::{Address, ContentId, GroupId, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::group::Member;
use stvor_protocol::{Effects, Plaintext};
use stvor_store::{ChangeSet, Expect, Op, RowVersion, StoreError, Table};
use tokio::time::Instant;

use super::actor::{Actor, Listed};
use super::desk::{Body, Post};
use super::rows::{GroupRow, PostKind};
use super::waiting::{Asked, Came};
use super::{device_of, rows};
use crate::core::random;
use crate::error::Error;
use crate::events::Event;
use crate::inbox::Arrival;
use crate::lane::Work;
use crate::limits;

/// One commit in the making. Dropped without it, nothing happened, but groups in memory have moved on and are to be
/// loaded again: [`Actor::forget`].
#[derive(Default)]
pub(super) struct Turn {
    pub(super) effects: Effects,
    pub(super) changes: ChangeSet,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) marks: HashSet<(Address, ContentId)>,
    pub(super) events: Vec<Event>,
    pub(super) posts: Vec<Post>,
    /// Mail that is judged.
    pub(super) done: Vec<(u64, Option<UserId>)>,
    /// What waits for these may go on after this.
    pub(super) came: BTreeSet<Came>,
    /// Groups that this turn reads or changes. Each has a row; on a store that is shared its version stands for all of the
    /// group, our chain included: whoever uses the group writes it, so no two instances ever use the same state.
    pub(super) touched: BTreeSet<GroupId>,
    /// Groups that were not there before.
    pub(super) new: BTreeMap<GroupId, GroupRow>,
    /// Contents of members that are stored by this, to be told to whom they are of.
    pub(super) received: Vec<(Member, ContentId)>,
    /// Whose messages were opened.
    pub(super) opened: BTreeSet<Address>,
    /// What is told to users who are out: counted once it is durable.
    pub(super) told: Vec<Asked>,
}

/// Why a commit failed.
pub(super) enum Failure {
    /// Another process took some of it.
    Taken,
    /// Another instance changed a group meanwhile: nothing was stored, and the turn is to be taken again.
    Moved,
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Taken | Failure::Moved => {
                Self::not_ready("another process changed the store at the same time: try again")
            }
            Failure::Other(error) => error,
        }
    }
}

impl Turn {
    /// Mail is done with.
    pub(super) fn judged(&mut self, seq: u64, from: Option<&UserId>) {
        self.changes.delete(rows::mail(seq));
        self.done.push((seq, from.cloned()));
    }

    /// Whether mail is.
    pub(super) fn is_judged(&self, seq: u64) -> bool {
        self.done.iter().any(|(done, _)| *done == seq)
    }

    /// The groups that memory may have wrong if this is not committed.
    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.touched.iter().chain(self.new.keys()).copied().collect()
    }
}

impl Actor {
    /// Puts a body and a post of it for each member into a turn.
    pub(super) fn post(
        &self,
        (bytes, kind): (SecretBytes, PostKind),
        members: impl IntoIterator<Item = Member>,
        turn: &mut Turn,
    ) {
        let mut members =
            members.into_iter().filter(|member| member.user != self.core.address.user).peekable();
        if members.peek().is_none() {
            return;
        }
        let now = self.core.now();
        let owner = self.core.instances.is_shared().then(|| self.core.instances.id());
        let body: Arc<Body> = self.core.groups.body(bytes, now, &mut turn.changes);
        for member in members {
            let to = (device_of(&member.user), member.key);
            let post = self.core.groups.post(to, (&body, kind), (now, owner), &mut turn.changes);
            turn.posts.push(post);
        }
    }

    /// Whether more may be put on its way to members.
    pub(super) fn may_post(&self, more: usize) -> bool {
        self.core.groups.open_posts() + more <= limits::MAX_POSTS
    }

    /// Says what was received, or read, one message for each sender.
    pub(super) fn tell_received(&self, read: bool, turn: &mut Turn) {
        let mut of = BTreeMap::new();
        for (Member { user, key }, id) in core::mem::take(&mut turn.received) {
            of.entry((user, key)).or_insert_with(Vec::new).push(id);
        }
        let kind = if read { PostKind::Read } else { PostKind::Delivered };
        for ((user, key), ids) in of {
            let member = Member { user, key };
            for batch in ids.chunks(limits::RECEIPT_BATCH) {
                if self.may_post(turn.posts.len() + 1) {
                    // The id of the receipt itself is the lane's to give.
                    let body = Plaintext::receipt(ContentId::from_bytes([0; 16]), read, batch).body;
                    self.post((body, kind), [member.clone()], turn);
                }
            }
        }
    }

    /// Memory may hold what the store does not: it is read again before it is used.
    pub(super) fn forget(&mut self, groups: &[GroupId]) {
        for id in groups {
            self.groups.remove(id);
            self.listed.remove(id);
        }
        self.joining.clear();
        self.waiting.all_again();
        self.loaded = false;
    }

    /// What a commit of a shared store begins with.
    fn fenced(&self, turn: &Turn) -> ChangeSet {
        let mut changes = ChangeSet::new();
        if !self.core.instances.is_shared() {
            return changes;
        }
        changes.push(self.core.instances.fence());
        for id in &turn.touched {
            let Some(Listed { row, version }) = self.listed.get(id) else { continue };
            let expected = Expect::Version(*version);
            changes.push(Op::put(rows::group(*id), row.encode()).expecting(expected));
        }
        changes
    }

    /// Writes a turn, whole or not at all, and then lets everybody know.
    pub(super) async fn commit(&mut self, mut turn: Turn) -> Result<(), Failure> {
        if turn.effects.is_empty() && turn.changes.is_empty() && turn.new.is_empty() {
            // What mail that waits on tells of other mail is in no store.
            turn.came.iter().for_each(|what| self.waiting.came(what));
            return Ok(());
        }
        let shared = self.core.instances.is_shared();
        let mut changes = self.fenced(&turn);
        for (id, row) in &turn.new {
            changes.insert(rows::group(*id), row.encode());
        }
        changes.append(core::mem::take(&mut turn.changes));
        if !shared {
            changes.put(crate::keys::meta("counter"), self.core.counter().to_be_bytes().to_vec());
        }
        let written =
            crate::records::write(&self.core.store, &mut changes, core::mem::take(&mut turn.effects));
        let tables: Vec<Table> = changes.ops.iter().map(Op::table).collect();
        let committed = match written {
            Ok(()) => match self.core.store.commit_in(self.incarnation, changes).await {
                Ok(version) => Ok(version),
                Err(StoreError::Conflict { op }) => Err(self.met(tables.get(op).copied()).await),
                Err(other) => Err(Failure::Other(Error::passed(other))),
            },
            Err(error) => Err(Failure::Other(error)),
        };
        match committed {
            Ok(version) => {
                self.committed(turn, version);
                Ok(())
            }
            Err(failure) => {
                turn.arrivals.clear();
                if let Failure::Other(error) = &failure {
                    self.in_doubt |= ["STORE_TIMEOUT", "STORE_UNCERTAIN"].contains(&error.code());
                    self.core.hub.emit(Event::StoreFailing { code: error.code() });
                }
                self.forget(&turn.groups());
                Err(failure)
            }
        }
    }

    /// A commit met a row of this table that it did not expect.
    async fn met(&mut self, table: Option<Table>) -> Failure {
        if !self.core.instances.is_shared() {
            return Failure::Taken;
        }
        match table {
            Some(Table::ReplayMark | Table::ContentId) => return Failure::Taken,
            // Declared gone.
            Some(Table::Meta) => {
                self.core.stop_receiving();
                self.core.instances.hurry();
            }
            Some(Table::Inbox) => {
                if let Err(error) = self.core.inbox.count().await {
                    tracing::warn!(code = error.code(), "the inbox could not be counted");
                }
            }
            _ => {}
        }
        crate::metrics::moved();
        Failure::Moved
    }

    fn committed(&mut self, turn: Turn, version: RowVersion) {
        let Turn { arrivals, events, posts, done, came, touched, new, told, opened, .. } = turn;
        let now = Instant::now();
        told.into_iter().for_each(|what| self.asks.count(what, now));
        if self.core.instances.is_shared() {
            for id in touched {
                if let Some(listed) = self.listed.get_mut(&id) {
                    listed.version = version;
                }
            }
        }
        self.listed.extend(new.into_iter().map(|(id, row)| (id, Listed { row, version })));
        for (seq, _) in &done {
            self.waiting.remove(*seq);
            self.unjudged.remove(*seq);
        }
        self.core.groups.judged(&done);
        opened.iter().for_each(|peer| self.core.heard(peer));
        if self.core.groups.has_room_again() {
            self.core.inbox.room_again.notify_one();
        }
        came.iter().for_each(|what| self.waiting.came(what));
        let received = arrivals.len();
        self.core.inbox.arrived(arrivals);
        for event in events {
            self.core.hub.emit(event);
        }
        self.hand_over(posts);
        // The recorder is the application's: what it does must find nothing half done.
        crate::metrics::received(received);
    }

    /// Whether a turn that another instance came before is taken again; after a random pause, so that they do not meet again.
    pub(super) async fn once_more(&mut self, tries: &mut u32) -> bool {
        if *tries >= limits::TURN_TRIES {
            return false;
        }
        *tries += 1;
        let bound = Duration::from_millis(1 << (*tries).min(16)).min(limits::TURN_PAUSE);
        let part = random(&mut self.rng).map_or(u32::MAX / 2, u32::from_be_bytes);
        tokio::time::sleep(bound.mul_f64(f64::from(part) / f64::from(u32::MAX))).await;
        true
    }

    /// Hands posts to the lanes. What no lane takes just now is tried again.
    pub(super) fn hand_over(&mut self, posts: Vec<Post>) {
        self.take_back();
        self.core.groups.open_all(&posts);
        self.core.unaccepted.fetch_add(posts.len(), Ordering::Relaxed);
        self.backlog.extend(posts.into_iter().map(Arc::new));
        self.work_off();
    }

    /// Posts that came back by a fault are older than what waits.
    fn take_back(&mut self) {
        for post in self.core.groups.take_back().into_iter().rev() {
            self.backlog.push_front(Arc::new(post));
        }
    }

    /// Tries what no lane took. Of a member whose lane takes nothing all posts wait, in their order, and hold up nobody
    /// else's.
    pub(super) fn work_off(&mut self) {
        self.take_back();
        let mut passed_over = HashSet::new();
        let mut kept = VecDeque::new();
        while let Some(post) = self.backlog.pop_front() {
            if passed_over.contains(&post.to)
                || self.core.work(&post.to, Work::Post(Arc::clone(&post))).is_err()
            {
                if passed_over.len() >= limits::MAX_PASSED_OVER && !passed_over.contains(&post.to) {
                    self.backlog.push_front(post);
                    break;
                }
                passed_over.insert(post.to.clone());
                kept.push_back(post);
            }
        }
        kept.append(&mut self.backlog);
        self.backlog = kept;
    }

    pub(super) fn not_found(&self, group: GroupId) -> Error {
        crate::error::ErrorKind::GroupNotFound { group }.into()
    }
}
