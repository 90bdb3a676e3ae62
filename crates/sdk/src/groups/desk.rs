//! Where lanes and the application hand things to the task that keeps groups, and where it hands things to lanes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use stvor_base::{Address, ContentId, GroupId, KeyBytes, MessageId, Timestamp, UserId};
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_protocol::group::Member;
use stvor_store::{ChangeSet, Op, Scan, Sealed, Table};
use tokio::sync::{Notify, mpsc, oneshot};

use super::rows::{self, MailRow, PostKind};
use super::{GroupInfo, MemberReceipt};
use crate::content::Content;
use crate::core::random;
use crate::error::{Error, Result};
use crate::executor::{Pressure, Room, Share};
use crate::instances::InstanceId;
use crate::limits;

type Answer<T> = oneshot::Sender<Result<T>>;

/// What a message to a group takes up until it is in the outbox, and of what.
pub(crate) type GroupRoom = (Room, Arc<Share>);

/// What the application asks of a group.
pub(crate) enum Ask {
    Add(Vec<Member>),
    Remove(UserId),
    Leave,
    Rename(String),
}

/// What the task that keeps groups is asked to do.
pub(crate) enum Order {
    Create(String, Vec<Member>, Answer<GroupId>),
    Change(GroupId, Ask, Answer<()>),
    /// Its room is free again once it is answered.
    Send(GroupId, (ContentId, Content), GroupRoom, Answer<()>),
    Info(GroupId, Answer<GroupInfo>),
    List(Answer<Vec<GroupInfo>>),
    /// Contents of a member were read.
    MarkRead(GroupId, (UserId, Vec<ContentId>), Answer<()>),
    /// How far a message of ours came.
    Receipts(GroupId, ContentId, Answer<Vec<MemberReceipt>>),
    /// We are not in it any more, and want to see nothing of it.
    Delete(GroupId, Answer<()>),
    /// Answered when the mail that is here was looked at.
    Settled(Answer<()>),
    /// Gives up our sender keys, which an old copy of the store would use a second time.
    Renew(Answer<()>),
    /// A user's key handed over to another one: whoever has the old one may have our sender keys.
    Moved(UserId),
    /// Every post of a body went out.
    Sent(u64),
}

/// Bytes that go to many members, once in the store and once in memory.
pub(crate) struct Body {
    pub(super) seq: u64,
    pub(crate) bytes: SecretBytes,
    left: AtomicUsize,
    /// Another instance has posts of it, too: its row stays until it expires.
    elsewhere: AtomicBool,
}

/// A body on its way to one member's device.
pub(crate) struct Post {
    pub(crate) seq: u64,
    pub(crate) to: Address,
    /// Only to this identity.
    pub(crate) key: KeyBytes,
    pub(crate) kind: PostKind,
    pub(crate) body: Arc<Body>,
    pub(crate) created_at: Timestamp,
    home: Weak<OpenPosts>,
}

/// A post that goes with whoever had it, by a fault, before a lane committed it, comes back.
impl Drop for Post {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        if !home.numbers().contains(&self.seq) {
            return;
        }
        let again = Self {
            seq: self.seq,
            to: self.to.clone(),
            key: self.key,
            kind: self.kind,
            body: Arc::clone(&self.body),
            created_at: self.created_at,
            home: self.home.clone(),
        };
        locked(&home.back).push(again);
        home.came.notify_one();
    }
}

/// Posts that no lane has committed.
#[derive(Default)]
struct OpenPosts {
    /// Their numbers.
    numbers: Mutex<HashSet<u64>>,
    /// Those of them that came back.
    back: Mutex<Vec<Post>>,
    /// There is something for the task.
    came: Notify,
}

impl OpenPosts {
    fn numbers(&self) -> MutexGuard<'_, HashSet<u64>> {
        locked(&self.numbers)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mail that waits to be judged.
#[derive(Default)]
struct Held {
    of: HashMap<UserId, usize>,
    /// Senders of whom nothing more is taken for now.
    crowded: HashSet<UserId>,
    /// Nothing more is taken of anybody.
    refused: bool,
}

/// The desk.
pub(crate) struct Desk {
    shared: bool,
    /// Makes the numbers of instances that share a store different.
    salt: u64,
    orders: mpsc::Sender<Order>,
    /// The room for messages to each group, while some wait.
    shares: Mutex<HashMap<GroupId, Weak<Share>>>,
    mail: AtomicU64,
    waiting: AtomicUsize,
    held: Mutex<Held>,
    /// There is room again after mail was refused.
    room_again: AtomicBool,
    /// Rows that were judged in faults, and in how many.
    faults: Mutex<HashMap<u64, u32>>,
    posts: AtomicU64,
    /// Messages to all up to this post were written anew and are not sent as they are.
    void: AtomicU64,
    bodies: AtomicU64,
    open: Arc<OpenPosts>,
    /// Another instance ended, or this one receives from now on.
    changed: AtomicBool,
}

/// Of whom mail is, and how much.
fn senders(rows: &[stvor_store::Record]) -> HashMap<UserId, usize> {
    let mut of = HashMap::new();
    for row in rows.iter().filter_map(|row| MailRow::decode(row.value.expose()).ok()) {
        *of.entry(row.from.user).or_default() += 1;
    }
    of
}

async fn last(store: &Sealed, table: Table, partition: &[u8]) -> Result<u64> {
    let newest =
        store.scan(Scan::of(table, partition).newest_first().limit(1)).await.map_err(Error::passed)?;
    let sort = newest.rows.first().and_then(|row| row.key.sort.as_slice().try_into().ok());
    Ok(sort.map_or(0, u64::from_be_bytes))
}

/// Counts down, and after a fault that left a count too low not through zero: nothing would have room for ever.
fn less(counter: &AtomicUsize, count: usize) {
    let down = |now: usize| Some(now.saturating_sub(count));
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, down);
}

impl Desk {
    /// Reads where the numbers stand.
    pub(crate) async fn open(store: &Sealed, shared: bool) -> Result<(Self, mpsc::Receiver<Order>)> {
        let (orders, taken) = mpsc::channel(limits::GROUP_ORDERS);
        let rows = store
            .scan_all(Scan::of(Table::Group, rows::MAIL), 2 * limits::MAX_GROUP_MAIL)
            .await
            .map_err(Error::passed)?;
        let desk = Self {
            shared,
            salt: u64::from(u32::from_be_bytes(random(&mut SystemRandom::new())?) >> 12),
            orders,
            shares: Mutex::default(),
            mail: AtomicU64::new(last(store, Table::Group, rows::MAIL).await?),
            waiting: AtomicUsize::new(rows.len()),
            held: Mutex::new(Held { of: senders(&rows), ..Held::default() }),
            room_again: AtomicBool::new(false),
            faults: Mutex::default(),
            posts: AtomicU64::new(last(store, Table::Outbox, rows::POSTS).await?),
            void: AtomicU64::new(0),
            bodies: AtomicU64::new(last(store, Table::Outbox, rows::BODIES).await?),
            open: Arc::default(),
            changed: AtomicBool::new(false),
        };
        Ok((desk, taken))
    }

    /// The room for messages to a group: it is there as long as somebody has it, or waits for it.
    pub(crate) fn share(&self, id: GroupId, all: &Arc<Pressure>) -> Arc<Share> {
        let mut shares = locked(&self.shares);
        if let Some(share) = shares.get(&id).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share::new(Arc::clone(all)));
        shares.insert(id, Arc::downgrade(&share));
        share
    }

    /// Asks the task and waits for its answer.
    pub(super) async fn ask<T>(&self, order: impl FnOnce(Answer<T>) -> Order) -> Result<T> {
        let closed = || Error::not_ready("it was closed");
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Reads how much mail waits and which number was the last: before this instance receives.
    pub(crate) async fn count(&self, store: &Sealed) -> Result<()> {
        let rows = store.scan_all(Scan::of(Table::Group, rows::MAIL), 2 * limits::MAX_GROUP_MAIL);
        let rows = rows.await.map_err(Error::passed)?;
        let last = rows.last().and_then(|row| row.key.sort.as_slice().try_into().ok());
        self.mail.fetch_max(last.map_or(0, u64::from_be_bytes), Ordering::Relaxed);
        self.waiting.store(rows.len(), Ordering::Relaxed);
        *locked(&self.held) = Held { of: senders(&rows), ..Held::default() };
        // The numbers of mail may have been given anew.
        locked(&self.faults).clear();
        Ok(())
    }

    /// There is something for the task.
    pub(super) async fn came(&self) {
        self.open.came.notified().await;
    }

    /// The task looks again at what waits.
    pub(crate) fn look_again(&self) {
        self.open.came.notify_one();
    }

    /// This instance receives from now on, or another one ended: what it left is taken over.
    pub(crate) fn take_over(&self) {
        self.changed.store(true, Ordering::Relaxed);
        self.look_again();
    }

    /// Whether it is so, once.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.swap(false, Ordering::Relaxed)
    }

    /// The posts that are on their way to lanes of this instance.
    pub(super) fn open_numbers(&self) -> HashSet<u64> {
        self.open.numbers().clone()
    }

    /// How many are.
    pub(super) fn open_posts(&self) -> usize {
        self.open.numbers().len()
    }

    /// Posts are on their way to lanes.
    pub(super) fn open_all(&self, posts: &[Post]) {
        self.open.numbers().extend(posts.iter().map(|post| post.seq));
    }

    /// Posts that came back by a fault, in their order.
    pub(super) fn take_back(&self) -> Vec<Post> {
        let mut back = core::mem::take(&mut *locked(&self.open.back));
        back.sort_by_key(|post| post.seq);
        back
    }

    /// A fault came while these rows were judged together: one of them may be the cause.
    pub(super) fn suspect(&self, rows: &[u64]) {
        let mut faults = locked(&self.faults);
        for row in rows {
            let count = faults.entry(*row).or_insert(0);
            *count = count.saturating_add(1);
        }
    }

    /// In how many faults a row was judged.
    pub(super) fn faults(&self, row: u64) -> u32 {
        locked(&self.faults).get(&row).copied().unwrap_or(0)
    }

    /// The next number of a row. Instances that share a store number by the time, and not from the same place in a
    /// millisecond: that two take one number is rare, and noticed, for a row is only ever inserted.
    fn number(&self, sequence: &AtomicU64, now: Timestamp) -> u64 {
        let least = if self.shared { now.as_millis().saturating_mul(1 << 20) | self.salt } else { 0 };
        let next = |last: u64| last.saturating_add(1).max(least);
        let last = sequence.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last)));
        next(last.unwrap_or_default())
    }

    /// A user's key handed over to another one. Best effort, beside whatever the caller does.
    pub(crate) async fn moved(&self, user: UserId) {
        let _ = self.orders.send(Order::Moved(user)).await;
    }

    /// Returns when the mail of groups that is here was looked at: it is judged, or waits for something.
    pub(crate) async fn settled(&self) -> Result<()> {
        self.ask(Order::Settled).await
    }

    /// Gives up our sender keys, and returns when that is durable.
    pub(crate) async fn renew_chains(&self) -> Result<()> {
        self.ask(Order::Renew).await
    }

    /// The number of the newest post.
    pub(super) fn last_post(&self) -> u64 {
        self.posts.load(Ordering::Relaxed)
    }

    /// Posts are numbered from here on.
    pub(super) fn raise_posts(&self, last: u64) {
        self.posts.fetch_max(last, Ordering::Relaxed);
    }

    /// Messages to all up to this post were written anew.
    pub(super) fn void(&self, last: u64) {
        self.void.fetch_max(last, Ordering::Relaxed);
    }

    /// Whether a post was written anew and is not sent as it is.
    pub(crate) fn is_void(&self, post: &Post) -> bool {
        post.kind == PostKind::ToAll && post.seq <= self.void.load(Ordering::Relaxed)
    }

    /// Whether mail of groups can be kept. If not it stays at the relay. What came over a session has twice the room of what
    /// anybody may have sent.
    pub(crate) fn has_room(&self, proven: bool) -> bool {
        let room = if proven { limits::MAX_GROUP_MAIL } else { limits::MAX_GROUP_MAIL / 2 };
        let fits = self.waiting.load(Ordering::Relaxed) < room;
        if !fits {
            locked(&self.held).refused = true;
        }
        fits
    }

    /// Whether a sender has room for more beside `coming` of theirs. If not, their mail stays at the relay, and so does what
    /// comes after it until half of theirs is judged.
    pub(crate) fn has_room_of(&self, from: &UserId, coming: usize) -> bool {
        let mut held = locked(&self.held);
        let of = held.of.get(from).copied().unwrap_or(0);
        let fits = of + coming < limits::MAX_GROUP_MAIL_OF_ONE && !held.crowded.contains(from);
        if !fits {
            held.crowded.insert(from.clone());
        }
        fits
    }

    /// Whether there is room again after mail was refused, once.
    pub(super) fn has_room_again(&self) -> bool {
        self.room_again.swap(false, Ordering::Relaxed)
    }

    /// Puts mail into a change set; tell [`Self::mailed`] once it is committed.
    pub(crate) fn put_mail(&self, row: &MailRow, changes: &mut ChangeSet) {
        let seq = self.mail.fetch_add(1, Ordering::Relaxed) + 1;
        changes.put(rows::mail(seq), row.encode());
    }

    /// Mail was committed.
    pub(crate) fn mailed(&self, from: &UserId, count: usize) {
        if count > 0 {
            self.waiting.fetch_add(count, Ordering::Relaxed);
            *locked(&self.held).of.entry(from.clone()).or_default() += count;
            self.look_again();
        }
    }

    /// Mail was judged and is gone: its numbers, and whose it was as far as that could be read.
    pub(super) fn judged(&self, mail: &[(u64, Option<UserId>)]) {
        if mail.is_empty() {
            return;
        }
        less(&self.waiting, mail.len());
        {
            let mut faults = locked(&self.faults);
            if !faults.is_empty() {
                faults.retain(|row, _| !mail.iter().any(|(judged, _)| judged == row));
            }
        }
        let mut held = locked(&self.held);
        let held = &mut *held;
        for from in mail.iter().filter_map(|(_, from)| from.as_ref()) {
            let Some(of) = held.of.get_mut(from) else { continue };
            *of = of.saturating_sub(1);
            if *of == 0 {
                held.of.remove(from);
            }
        }
        let before = (held.crowded.len(), held.refused);
        let many = limits::MAX_GROUP_MAIL_OF_ONE / 2;
        held.crowded.retain(|from| held.of.get(from).is_some_and(|of| *of > many));
        held.refused &= self.waiting.load(Ordering::Relaxed) > limits::MAX_GROUP_MAIL / 4;
        if before != (held.crowded.len(), held.refused) {
            self.room_again.store(true, Ordering::Relaxed);
        }
    }

    /// Keeps a body in a change set.
    pub(super) fn body(&self, bytes: SecretBytes, now: Timestamp, changes: &mut ChangeSet) -> Arc<Body> {
        let seq = self.number(&self.bodies, now);
        changes.push(Op::insert(rows::body(seq), bytes.duplicate()).expiring(now + limits::KEEP_SENT));
        Arc::new(Body { seq, bytes, left: AtomicUsize::new(0), elsewhere: AtomicBool::new(false) })
    }

    pub(super) fn stored_body(seq: u64, bytes: SecretBytes) -> Arc<Body> {
        Arc::new(Body { seq, bytes, left: AtomicUsize::new(0), elsewhere: AtomicBool::new(false) })
    }

    /// A post of a body under a number of its own.
    pub(super) fn post(
        &self,
        (to, key): (Address, KeyBytes),
        (body, kind): (&Arc<Body>, PostKind),
        (now, owner): (Timestamp, Option<InstanceId>),
        changes: &mut ChangeSet,
    ) -> Post {
        let seq = self.number(&self.posts, now);
        let row = rows::PostRow { to, key, kind, body: body.seq, created_at: now, owner };
        changes.push(Op::insert(rows::post(seq), row.encode()).expiring(now + limits::KEEP_SENT));
        self.stored_post(seq, row, body)
    }

    pub(super) fn stored_post(&self, seq: u64, row: rows::PostRow, body: &Arc<Body>) -> Post {
        let rows::PostRow { to, key, kind, created_at, .. } = row;
        body.left.fetch_add(1, Ordering::Relaxed);
        let home = Arc::downgrade(&self.open);
        Post { seq, to, key, kind, body: Arc::clone(body), created_at, home }
    }

    /// Another instance saw to a post.
    pub(crate) fn posted_elsewhere(&self, post: &Post) {
        post.body.elsewhere.store(true, Ordering::Relaxed);
        self.posted(post);
    }

    /// A lane committed a post: from here on it is the lane's.
    pub(crate) fn posted(&self, post: &Post) {
        self.open.numbers().remove(&post.seq);
        let last = post.body.left.fetch_sub(1, Ordering::Relaxed) == 1;
        if last && !post.body.elsewhere.load(Ordering::Relaxed) {
            // If there is no room the row expires by itself.
            let _ = self.orders.try_send(Order::Sent(post.body.seq));
        }
    }

    /// The name of mail that came over no relay.
    pub(crate) fn no_id() -> MessageId {
        MessageId::from_bytes([0; 16])
    }
}
