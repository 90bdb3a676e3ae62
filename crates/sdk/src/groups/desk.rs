//! Where lanes and the application hand things to the task that keeps groups, and where it hands things to lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use stvor_base::{Address, ContentId, GroupId, KeyBytes, MessageId, Timestamp, UserId};
use stvor_crypto::SecretBytes;
use stvor_protocol::group::Member;
use stvor_store::{ChangeSet, Op, Scan, Sealed, Table};
use tokio::sync::{Notify, mpsc, oneshot};

use super::GroupInfo;
use super::rows::{self, MailRow};
use crate::content::Content;
use crate::error::{Error, Result};
use crate::limits;

type Answer<T> = oneshot::Sender<Result<T>>;

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
    Send(GroupId, (ContentId, Content), Answer<()>),
    Info(GroupId, Answer<GroupInfo>),
    List(Answer<Vec<GroupInfo>>),
    /// Gives up our sender keys, which an old copy of the store would use a second time.
    Renew(Answer<()>),
    /// Every post of a body went out.
    Sent(u64),
}

/// Bytes that go to many members, once in the store and once in memory.
pub(crate) struct Body {
    pub(super) seq: u64,
    pub(crate) bytes: SecretBytes,
    left: AtomicUsize,
}

/// A body on its way to one member's device.
pub(crate) struct Post {
    pub(crate) seq: u64,
    pub(crate) to: Address,
    /// Only to this identity.
    pub(crate) key: KeyBytes,
    /// Whether it is a message to all, which goes as it is.
    pub(crate) blob: bool,
    pub(crate) body: Arc<Body>,
    pub(crate) created_at: Timestamp,
}

/// The desk.
pub(crate) struct Desk {
    /// The store is shared: one task would have to keep its groups for all instances, and there is none.
    shared: bool,
    orders: mpsc::Sender<Order>,
    /// Lanes committed mail.
    pub(super) came: Notify,
    mail: AtomicU64,
    waiting: AtomicUsize,
    posts: AtomicU64,
    /// Messages to all up to this post were written anew and are not sent as they are.
    void: AtomicU64,
    bodies: AtomicU64,
    /// Posts that no lane has committed.
    pub(super) open_posts: AtomicUsize,
}

async fn last(store: &Sealed, table: Table, partition: &[u8]) -> Result<u64> {
    let newest =
        store.scan(Scan::of(table, partition).newest_first().limit(1)).await.map_err(Error::passed)?;
    let sort = newest.rows.first().and_then(|row| row.key.sort.as_slice().try_into().ok());
    Ok(sort.map_or(0, u64::from_be_bytes))
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
            orders,
            came: Notify::new(),
            mail: AtomicU64::new(last(store, Table::Group, rows::MAIL).await?),
            waiting: AtomicUsize::new(rows.len()),
            posts: AtomicU64::new(last(store, Table::Outbox, rows::POSTS).await?),
            void: AtomicU64::new(0),
            bodies: AtomicU64::new(last(store, Table::Outbox, rows::BODIES).await?),
            open_posts: AtomicUsize::new(0),
        };
        Ok((desk, taken))
    }

    /// Asks the task and waits for its answer.
    pub(super) async fn ask<T>(&self, order: impl FnOnce(Answer<T>) -> Order) -> Result<T> {
        let closed = || Error::not_ready("it was closed");
        if self.shared {
            return Err(Error::config(
                "groups are not kept in a store that several processes share; open this user on a store of one process",
            ));
        }
        let (reply, answer) = oneshot::channel();
        self.orders.send(order(reply)).await.map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Gives up our sender keys, and returns when that is durable.
    pub(crate) async fn renew_chains(&self) -> Result<()> {
        // There are no groups in a store that is shared.
        if self.shared { Ok(()) } else { self.ask(Order::Renew).await }
    }

    /// The number of the newest post.
    pub(super) fn last_post(&self) -> u64 {
        self.posts.load(Ordering::Relaxed)
    }

    /// Messages to all up to this post were written anew.
    pub(super) fn void(&self, last: u64) {
        self.void.fetch_max(last, Ordering::Relaxed);
    }

    /// Whether a post was written anew and is not sent as it is.
    pub(crate) fn is_void(&self, post: &Post) -> bool {
        post.blob && post.seq <= self.void.load(Ordering::Relaxed)
    }

    /// Whether mail of groups can be kept. If not it stays at the relay.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) < limits::MAX_GROUP_MAIL
    }

    /// Puts mail into a change set; tell [`Self::mailed`] once it is committed.
    pub(crate) fn put_mail(&self, row: &MailRow, changes: &mut ChangeSet) {
        let seq = self.mail.fetch_add(1, Ordering::Relaxed) + 1;
        changes.put(rows::mail(seq), row.encode());
    }

    /// Mail was committed.
    pub(crate) fn mailed(&self, count: usize) {
        if count > 0 {
            self.waiting.fetch_add(count, Ordering::Relaxed);
            self.came.notify_one();
        }
    }

    /// Mail was judged and is gone.
    pub(super) fn judged(&self, count: usize) {
        self.waiting.fetch_sub(count, Ordering::Relaxed);
    }

    /// Keeps a body in a change set.
    pub(super) fn body(&self, bytes: SecretBytes, now: Timestamp, changes: &mut ChangeSet) -> Arc<Body> {
        let seq = self.bodies.fetch_add(1, Ordering::Relaxed) + 1;
        changes.push(Op::put(rows::body(seq), bytes.duplicate()).expiring(now + limits::KEEP_SENT));
        Arc::new(Body { seq, bytes, left: AtomicUsize::new(0) })
    }

    pub(super) fn stored_body(seq: u64, bytes: SecretBytes) -> Arc<Body> {
        Arc::new(Body { seq, bytes, left: AtomicUsize::new(0) })
    }

    /// A post of a body under a number of its own.
    pub(super) fn post(
        &self,
        (to, key): (Address, KeyBytes),
        (body, blob): (&Arc<Body>, bool),
        now: Timestamp,
        changes: &mut ChangeSet,
    ) -> Post {
        let seq = self.posts.fetch_add(1, Ordering::Relaxed) + 1;
        let row = rows::PostRow { to: to.clone(), key, blob, body: body.seq, created_at: now };
        changes.push(Op::put(rows::post(seq), row.encode()).expiring(now + limits::KEEP_SENT));
        Self::stored_post(seq, row, body)
    }

    pub(super) fn stored_post(seq: u64, row: rows::PostRow, body: &Arc<Body>) -> Post {
        let rows::PostRow { to, key, blob, created_at, .. } = row;
        body.left.fetch_add(1, Ordering::Relaxed);
        Post { seq, to, key, blob, body: Arc::clone(body), created_at }
    }

    /// A lane committed a post: from here on it is the lane's.
    pub(crate) fn posted(&self, post: &Post) {
        self.open_posts.fetch_sub(1, Ordering::Relaxed);
        if post.body.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            // If there is no room the row expires by itself.
            let _ = self.orders.try_send(Order::Sent(post.body.seq));
        }
    }

    /// The name of mail that came over no relay.
    pub(crate) fn no_id() -> MessageId {
        MessageId::from_bytes([0; 16])
    }
}
