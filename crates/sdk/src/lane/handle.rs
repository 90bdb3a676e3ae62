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
use crate::executor::{Pressure, Room, Share};
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
    /// The peer's device list and rotations, or why there are none.
    Rotations(Result<Box<Bundles>>),
    /// The same of a peer who was met by their own first word.
    Earlier(Result<Box<Bundles>>),
    /// The answer to a trust question.
    Decision(TrustDecision),
    /// Something for the peer as a member of a group.
    Post(Arc<Post>),
    Command(Command),
}

impl Work {
    /// Bytes of an order of the application, which counts until a lane takes it, a message until it is in the outbox; `None` for what the client itself hands over,
    /// which is bounded elsewhere.
    pub(super) fn weight(&self) -> Option<usize> {
        match self {
            Self::Send(request) => Some(request.content.as_bytes().len()),
            Self::Command(command) => Some(command.weight()),
            Self::Wake | Self::Post(_) | Self::Decision(_) => None,
            Self::Bundle(_) | Self::Rotations(_) | Self::Earlier(_) => None,
        }
    }

    /// Whether it may go into the reserve where there is no room.
    fn may_use_reserve(&self) -> bool {
        matches!(self, Self::Command(command) if command.judges())
    }

    /// Whether it was answered.
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::Wake | Self::Post(_) | Self::Decision(_) => false,
            Self::Bundle(_) | Self::Rotations(_) | Self::Earlier(_) => false,
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
    /// The caller named the timeout: it ends the waiting for a person, too.
    pub(crate) own_timeout: bool,
    /// Told when the message is in the outbox, or why it is not.
    pub(crate) reply: Answer<Result<()>>,
    /// What it takes up until then: a lane that takes it may have to hold it.
    pub(crate) room: Option<Arc<Room>>,
}

/// The way to a lane.
pub(crate) struct LaneHandle {
    mail: mpsc::Sender<Mail>,
    work: mpsc::UnboundedSender<Order>,
    /// Sends that are not in the outbox yet plus messages that are not accepted.
    pub(super) depth: Arc<AtomicUsize>,
    /// The room for orders in `work`.
    queue: Arc<Queue>,
    /// The latest delivery that is to be acknowledged, and the connection that brought it.
    delivered: Mutex<Option<(u64, MessageId)>>,
    /// How much was handed over.
    handed: AtomicU64,
    /// How much the lane had taken when it last came to rest; `BUSY` if it has something to do.
    stand: Arc<Stand>,
}

/// An order in the queue of a lane, with the room that it takes up there.
pub(super) struct Order {
    work: Work,
    room: Option<Room>,
}

/// What a lane hands to itself.
impl From<Work> for Order {
    fn from(work: Work) -> Self {
        Self { work, room: None }
    }
}

#[cfg(test)]
impl Order {
    pub(super) fn into_work(self) -> Work {
        self.work
    }
}

/// What of a lane's queue both its handle and its task look at.
pub(super) struct Queue {
    share: Share,
    /// A wake-up is in the queue: another would say nothing new.
    woken: AtomicBool,
    /// The peer announced itself since the lane last asked.
    came: AtomicBool,
    /// Something of the peer's was opened elsewhere since then.
    heard: AtomicBool,
}

impl Queue {
    /// Whether a caller waits for room in it.
    pub(super) fn is_waited_for(&self) -> bool {
        self.share.is_waited_for()
    }

    /// Whether the peer announced itself since this was last asked.
    pub(super) fn has_come(&self) -> bool {
        self.came.swap(false, Ordering::AcqRel)
    }

    /// Whether something of the peer's was opened elsewhere since this was last asked.
    pub(super) fn was_heard(&self) -> bool {
        self.heard.swap(false, Ordering::AcqRel)
    }

    /// A lane takes an order out of its queue.
    pub(super) fn take(&self, order: Order) -> Work {
        let Order { mut work, room } = order;
        match &mut work {
            Work::Wake => self.woken.store(false, Ordering::Release),
            Work::Send(request) => request.room = room.map(Arc::new),
            _ => {}
        }
        work
    }
}

/// An order for which there is no room just now.
pub(crate) struct Waits {
    pub(crate) work: Work,
    pub(crate) bytes: usize,
    pub(crate) why: Error,
    /// Where the room would be.
    queue: Arc<Queue>,
}

impl Waits {
    /// Waits for room, then hands the order to `queue`.
    pub(crate) async fn for_room(self, queue: impl FnOnce(Work, Room) -> Result<()>) -> Result<()> {
        let Self { work, bytes, queue: lane, .. } = self;
        lane.share.wait(bytes, |room| queue(work, room)).await
    }
}

/// A lane that has something to do.
pub(super) const BUSY: u64 = u64::MAX;

/// How far a lane is.
pub(super) struct Stand {
    /// What was taken when it had nothing left to do, or [`BUSY`].
    pub(super) rested: AtomicU64,
    /// How much of what was handed over it has taken: it is committed, or left where it was.
    pub(super) taken: AtomicU64,
}

impl LaneHandle {
    /// Whether this is the way to the lane with this depth.
    pub(crate) fn is_of(&self, depth: &Arc<AtomicUsize>) -> bool {
        Arc::ptr_eq(&self.depth, depth)
    }

    /// Its name among all lanes that ever were of this peer, and how much was handed over to it so far.
    pub(crate) fn handed(&self) -> (Arc<AtomicUsize>, u64) {
        (Arc::clone(&self.depth), self.handed.load(Ordering::Relaxed))
    }

    /// Whether the lane has taken as much of what was handed over to it.
    pub(crate) fn has_taken(&self, handed: u64) -> bool {
        self.stand.taken.load(Ordering::Acquire) >= handed
    }

    /// Whether the lane can go without anything being lost. Right as long as nothing is handed over meanwhile.
    pub(crate) fn is_idle(&self) -> bool {
        self.stand.rested.load(Ordering::Acquire) == self.handed.load(Ordering::Relaxed)
            && !self.queue.share.is_waited_for()
    }

    /// The latest message that the connection `generation` delivered.
    pub(crate) fn delivered(&self, generation: u64) -> Option<MessageId> {
        let latest = *self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
        latest.filter(|(by, _)| *by == generation).map(|(_, message)| message)
    }

    pub(crate) fn mail(&self, mail: Mail) -> Result<()> {
        if let Mail::Deliver(deliver, session) = &mail
            && !deliver.ephemeral
        {
            let latest = Some((session.generation, deliver.msg_id));
            *self.delivered.lock().unwrap_or_else(PoisonError::into_inner) = latest;
        }
        // The credit window and the send window together are smaller than the queue: only a relay that ignores them
        // fills it.
        self.mail
            .try_send(mail)
            .map_err(|_| Error::relay_protocol("it sends more than the window allows"))?;
        self.handed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The peer announced itself at a relay that keeps nothing. However often it does, that is one thing to do.
    pub(crate) fn came(&self) {
        self.queue.came.store(true, Ordering::Release);
        let _ = self.work(Work::Wake);
    }

    /// A message of the peer's to a group was opened. The lane has nothing to do for that.
    pub(crate) fn heard(&self) {
        self.queue.heard.store(true, Ordering::Release);
    }

    /// Hands work over; an order of the application only if there is room for it.
    pub(crate) fn work(&self, work: Work) -> Result<()> {
        self.offer(work)?.map_or(Ok(()), |waits| Err(waits.why))
    }

    /// As [`work`](Self::work); gives an order back for which there is no room.
    pub(crate) fn offer(&self, work: Work) -> Result<Option<Waits>> {
        if matches!(work, Work::Wake) && self.queue.woken.swap(true, Ordering::AcqRel) {
            return Ok(None);
        }
        let Some(bytes) = work.weight() else { return self.hand_over(work, None).map(|()| None) };
        let share = &self.queue.share;
        let found = match share.try_room(bytes) {
            Err(why) if work.may_use_reserve() => share.try_reserve().ok_or(why),
            found => found,
        };
        match found {
            Ok(room) => self.hand_over(work, Some(room)).map(|()| None),
            Err(why) => Ok(Some(Waits { work, bytes, why, queue: Arc::clone(&self.queue) })),
        }
    }

    /// Queues work that has its room.
    pub(crate) fn hand_over(&self, work: Work, room: Option<Room>) -> Result<()> {
        if matches!(work, Work::Send(_)) {
            let limit = self.queue.share.max_pending();
            if self.depth.load(Ordering::Relaxed) >= limit {
                return Err(ErrorKind::QuotaExceeded {
                    what: format!("{limit} messages of this conversation wait to be accepted"),
                }
                .into());
            }
            self.depth.fetch_add(1, Ordering::Relaxed);
        }
        self.work.send(Order { work, room }).map_err(|_| Error::not_ready("it is closed"))?;
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
    let stand = Arc::new(Stand { rested: AtomicU64::new(BUSY), taken: AtomicU64::new(0) });
    let queue = Arc::new(Queue {
        share: Share::new(pressure),
        woken: AtomicBool::new(false),
        came: AtomicBool::new(false),
        heard: AtomicBool::new(false),
    });
    let handle = LaneHandle {
        mail,
        work,
        depth: Arc::clone(&depth),
        queue: Arc::clone(&queue),
        delivered: Mutex::default(),
        handed: AtomicU64::new(0),
        stand: Arc::clone(&stand),
    };
    let task = async move {
        let Some(core) = core.upgrade() else { return };
        let lane = Lane::fresh(Arc::clone(&core), peer.clone(), (Arc::clone(&depth), me));
        let mut ends = (mail_end, work_end);
        let ran = AssertUnwindSafe(lane.run(&mut ends, (&queue, &stand))).catch_unwind().await;
        if ran.is_err() {
            drop(ends);
            core.lane_crashed(&peer, &depth);
        }
    };
    (handle, task)
}
