//! The way to a lane: what is handed to it, and how much of it.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt;
use stvor_base::{Address, ContentId, MessageId};
use stvor_protocol::TrustDecision;
use stvor_wire::server::{Bundles, Deliver, Nack};
use tokio::sync::{mpsc, oneshot};

use super::{Command, Lane};
use crate::content::Content;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::groups::Post;
use crate::limits;
use crate::transport::session::Session;

/// Where the answer to a request goes, once. Clones are one place: a turn that may have to be taken again keeps one.
pub(crate) struct Answer<T>(Arc<Mutex<Option<oneshot::Sender<T>>>>);

impl<T> Clone for Answer<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> From<oneshot::Sender<T>> for Answer<T> {
    fn from(sender: oneshot::Sender<T>) -> Self {
        Self(Arc::new(Mutex::new(Some(sender))))
    }
}

impl<T> Answer<T> {
    /// Answers, if nobody did yet and somebody waits.
    pub(crate) fn send(&self, value: T) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            drop(sender.send(value));
        }
    }

    /// Whether the answer was given.
    pub(crate) fn is_answered(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_closed(&self) -> bool {
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sender.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

/// What the connection hands to a lane.
#[derive(Clone)]
pub(crate) enum Mail {
    Deliver(Box<Deliver>, Arc<Session>),
    Accepted(MessageId),
    Refused(Box<Nack>),
}

/// What the client hands to a lane.
#[derive(Clone)]
pub(crate) enum Work {
    /// Something changed: the connection, or the client is closing.
    Wake,
    Send(SendRequest),
    /// The peer's bundles, or why there are none.
    Bundle(Result<Box<Bundles>>),
    /// The answer to a trust question.
    Decision(TrustDecision),
    /// Something for the peer as a member of a group.
    Post(Arc<Post>),
    Command(Command),
}

impl Work {
    /// Bytes of an order of the application, which counts until a lane takes it; `None` for what the client itself hands over,
    /// which is bounded elsewhere.
    pub(super) fn weight(&self) -> Option<usize> {
        match self {
            Self::Send(request) => Some(request.content.as_bytes().len()),
            Self::Command(command) => Some(command.weight()),
            Self::Wake | Self::Post(_) | Self::Bundle(_) | Self::Decision(_) => None,
        }
    }

    /// Whether it was answered.
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Wake | Self::Post(_) | Self::Bundle(_) | Self::Decision(_) => false,
            Self::Send(request) => request.reply.is_answered(),
            Self::Command(command) => command.is_answered(),
        }
    }
}

/// A message of the application.
#[derive(Clone)]
pub(crate) struct SendRequest {
    pub(crate) id: ContentId,
    pub(crate) content: Content,
    pub(crate) timeout: Duration,
    /// Told when the message is in the outbox, or why it is not.
    pub(crate) reply: Answer<Result<()>>,
}

/// The way to a lane.
pub(crate) struct LaneHandle {
    mail: mpsc::Sender<Mail>,
    work: mpsc::UnboundedSender<Work>,
    /// Sends that are not in the outbox yet plus messages that are not accepted.
    pub(super) depth: Arc<AtomicUsize>,
    /// Orders in `work`.
    queue: Arc<Queue>,
    /// How much was handed over.
    handed: AtomicU64,
    /// How much the lane had taken when it last came to rest; `BUSY` if it has something to do.
    rested: Arc<AtomicU64>,
}

/// What waits in all lanes of a client, as long as no lane has taken it.
#[derive(Default)]
pub(crate) struct Pressure {
    orders: AtomicUsize,
    bytes: AtomicUsize,
}

#[cfg(test)]
impl Pressure {
    /// How many orders wait, and their bytes.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.orders.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What waits in one lane.
pub(super) struct Queue {
    all: Arc<Pressure>,
    orders: AtomicUsize,
    bytes: AtomicUsize,
    /// A wake-up is in the queue: another would say nothing new.
    woken: AtomicBool,
}

impl Queue {
    fn new(all: Arc<Pressure>) -> Self {
        Self { all, orders: AtomicUsize::new(0), bytes: AtomicUsize::new(0), woken: AtomicBool::new(false) }
    }

    /// Counts an order of the application, if there is room for it.
    fn reserve(&self, bytes: usize) -> Result<()> {
        let bounds = [
            (&self.orders, 1, limits::MAX_QUEUED_OF_ONE, "orders wait for this conversation"),
            (&self.all.orders, 1, limits::MAX_QUEUED, "orders wait for conversations"),
            (&self.all.bytes, bytes, limits::MAX_QUEUED_BYTES, "bytes wait for conversations"),
        ];
        for (done, (counter, more, limit, what)) in bounds.into_iter().enumerate() {
            let add = |now: usize| now.checked_add(more).filter(|sum| *sum <= limit);
            if counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err() {
                for (counter, more, ..) in bounds.into_iter().take(done) {
                    counter.fetch_sub(more, Ordering::Relaxed);
                }
                return Err(ErrorKind::Backpressure { what, limit }.into());
            }
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// A lane takes an order out of its queue.
    pub(super) fn took(&self, order: &Work) {
        match order.weight() {
            Some(bytes) => {
                self.orders.fetch_sub(1, Ordering::Relaxed);
                self.all.orders.fetch_sub(1, Ordering::Relaxed);
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
                self.all.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
            None if matches!(order, Work::Wake) => self.woken.store(false, Ordering::Release),
            None => {}
        }
    }
}

/// The lane ended with orders in its queue.
impl Drop for Queue {
    fn drop(&mut self) {
        self.all.orders.fetch_sub(*self.orders.get_mut(), Ordering::Relaxed);
        self.all.bytes.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// A lane that has something to do.
pub(super) const BUSY: u64 = u64::MAX;

impl LaneHandle {
    /// Whether this is the way to the lane with this depth.
    pub(crate) fn is_of(&self, depth: &Arc<AtomicUsize>) -> bool {
        Arc::ptr_eq(&self.depth, depth)
    }

    /// Whether the lane can go without anything being lost. Right as long as nothing is handed over meanwhile.
    pub(crate) fn is_idle(&self) -> bool {
        self.rested.load(Ordering::Acquire) == self.handed.load(Ordering::Relaxed)
    }

    pub(crate) fn mail(&self, mail: Mail) -> Result<()> {
        // The credit window and the send window together are smaller than the queue: only a relay that ignores them
        // fills it.
        self.mail
            .try_send(mail)
            .map_err(|_| Error::relay_protocol("it sends more than the window allows"))?;
        self.handed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn work(&self, work: Work) -> Result<()> {
        if matches!(work, Work::Wake) && self.queue.woken.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        if matches!(work, Work::Send(_)) && self.depth.load(Ordering::Relaxed) >= limits::MAX_PENDING {
            return Err(ErrorKind::QuotaExceeded {
                what: format!("{} messages of this conversation wait to be accepted", limits::MAX_PENDING),
            }
            .into());
        }
        if let Some(bytes) = work.weight() {
            self.queue.reserve(bytes)?;
        }
        if matches!(work, Work::Send(_)) {
            self.depth.fetch_add(1, Ordering::Relaxed);
        }
        self.work.send(work).map_err(|_| Error::not_ready("it is closed"))?;
        self.handed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A lane that is not running yet: its handle and its task.
pub(crate) fn new(
    core: Weak<Core>,
    peer: Address,
    pressure: Arc<Pressure>,
) -> (LaneHandle, impl Future<Output = ()> + Send) {
    let (mail, mail_end) = mpsc::channel(limits::LANE_QUEUE);
    let (work, work_end) = mpsc::unbounded_channel();
    let depth = Arc::new(AtomicUsize::new(0));
    let me = work.downgrade();
    let rested = Arc::new(AtomicU64::new(BUSY));
    let queue = Arc::new(Queue::new(pressure));
    let handle = LaneHandle {
        mail,
        work,
        depth: Arc::clone(&depth),
        queue: Arc::clone(&queue),
        handed: AtomicU64::new(0),
        rested: Arc::clone(&rested),
    };
    let task = async move {
        let Some(core) = core.upgrade() else { return };
        let lane = Lane::fresh(Arc::clone(&core), peer.clone(), (Arc::clone(&depth), me));
        let mut ends = (mail_end, work_end);
        let ran = AssertUnwindSafe(lane.run(&mut ends, (&queue, &rested))).catch_unwind().await;
        if ran.is_err() {
            drop(ends);
            core.lane_crashed(&peer, &depth);
        }
    };
    (handle, task)
}
