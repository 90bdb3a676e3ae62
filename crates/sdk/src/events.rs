//! What happens to a client, as a typed stream.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::Stream;
use stvor_base::{ContentId, GroupId, Suite, UserId};
use tokio::sync::broadcast;
use tokio_util::sync::ReusableBoxFuture;

use crate::limits;

/// How far a message of ours came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DeliveryState {
    /// In the outbox of this device; it survives a crash and can only wait.
    Queued,
    /// At the relay, durable, or already with the recipient's device.
    Accepted,
    /// The recipient's device decrypted and stored it, and said so end to end.
    Delivered,
    /// The recipient's application said that it was read.
    Read,
    /// Given up: expired or refused for good. [`crate::Event::DeliveryFailed`] says why.
    Failed,
}

impl DeliveryState {
    /// `queued`, `accepted`, `delivered`, `read` or `failed`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Accepted => "accepted",
            Self::Delivered => "delivered",
            Self::Read => "read",
            Self::Failed => "failed",
        }
    }
}

impl core::fmt::Display for DeliveryState {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// Whether the client talks with its relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// Dialling or logging in.
    Connecting,
    /// Logged in; mail that waited at the relay is coming in.
    CatchingUp,
    /// Logged in, nothing waits.
    Online,
    /// Not connected; the client tries again by itself.
    Offline,
    /// The relay refused this client for good (the code of the error); it does not try again.
    Failed(&'static str),
    /// Closed by the application.
    Closed,
}

impl ConnectionState {
    /// `connecting`, `catching_up`, `online`, `offline`, `failed` or `closed`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::CatchingUp => "catching_up",
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Failed(_) => "failed",
            Self::Closed => "closed",
        }
    }

    /// Whether frames can be sent.
    #[must_use]
    pub fn is_connected(self) -> bool {
        matches!(self, Self::Online | Self::CatchingUp)
    }
}

/// Something that happened. Messages are not events: they come through [`crate::Client::messages`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Logged in at the relay.
    Connected,
    /// The connection is gone; the next attempt starts after a wait.
    Reconnecting {
        /// Attempts since the connection was last up, from 1.
        attempt: u32,
        /// The wait.
        after: Duration,
    },
    /// The relay can not be reached or refused this client.
    Offline {
        /// The code of the error.
        code: &'static str,
    },
    /// Mail that waited at the relay is coming in.
    CatchingUp,
    /// All mail that waited is in, but for that of senders who have filled their share of the inbox.
    CaughtUp,
    /// Another connection of this device took over. This client does not reconnect.
    Superseded,
    /// This device is connected with its keys in another store: one of the two is a copy. Told to both: the one that is refused
    /// keeps trying, the one that is connected stays so. If nobody you know has the other, somebody has your keys: rotate the
    /// identity.
    CloneDetected,
    /// On a store that several processes share: from now on this one receives what comes from the relay, or another one
    /// does. All of them send, and all get messages from the inbox.
    Receiving {
        /// Whether it is this one.
        here: bool,
    },
    /// The relay restarts soon; the client reconnects by itself.
    RelayDraining,
    /// A user shows another identity than the pinned one.
    IdentityChanged {
        /// Who.
        peer: UserId,
        /// Whether the policy let the new identity replace the pinned one.
        accepted: bool,
    },
    /// A user's identity handed over to another one, by statements that the old one signed. The pin followed; whoever compared
    /// safety numbers has to compare them again, for they are others.
    IdentityRotated {
        /// Who.
        peer: UserId,
        /// SHA-256 of the old user key in hexadecimal.
        old: String,
        /// SHA-256 of the new one.
        new: String,
        /// Whether the old one was verified; the new one is not.
        was_verified: bool,
    },
    /// Somebody shows an identity that its user rotated away from: an old copy of it is in use, or the relay gives out an old
    /// one. It was refused.
    IdentitySuperseded {
        /// Whose.
        peer: UserId,
    },
    /// An old key of a user handed over to two different identities, so somebody else has that key. The one that was followed
    /// first counts; until a person names another one, none is taken.
    IdentityForked {
        /// Whose.
        peer: UserId,
        /// SHA-256 of the user key that counts, in hexadecimal.
        pinned: String,
        /// SHA-256 of the other one.
        shown: String,
    },
    /// The prekeys of a user are of another suite of primitives than this identity: nothing can be agreed on, nothing is sent in a
    /// weaker way, and sends fail with `SUITE_MISMATCH`. Told once for each user, not with each message.
    SuiteMismatch {
        /// Who.
        peer: UserId,
        /// Our suite.
        ours: Suite,
        /// The one that they show.
        theirs: Suite,
    },
    /// A message could not be decrypted. It changed nothing.
    MessageUndecryptable {
        /// Who sent it, as the relay says.
        peer: UserId,
        /// Why.
        code: &'static str,
        /// Whether the sender was asked to send it again.
        repair_requested: bool,
    },
    /// A message that failed before came again and is in the inbox.
    Repaired {
        /// Who sent it.
        peer: UserId,
        /// The message.
        id: ContentId,
    },
    /// Messages of ours came further.
    Receipt {
        /// To whom they were.
        peer: UserId,
        /// Which ones.
        ids: Vec<ContentId>,
        /// How far.
        state: DeliveryState,
    },
    /// A session with a peer started or was replaced.
    SessionStarted {
        /// With whom.
        peer: UserId,
    },
    /// Few one-time prekeys are left at the relay; new ones are on their way.
    PrekeysLow {
        /// How many are left.
        remaining: u32,
    },
    /// New prekeys are at the relay.
    PrekeysUploaded {
        /// How many one-time prekeys.
        count: u32,
    },
    /// The data directory is an old copy. With [`crate::RollbackPolicy::Ask`], and where the relay has no proof of it, nothing
    /// is sent until [`crate::Client::recover_from_rollback`]; else the client starts over by itself, and
    /// [`Event::RollbackRecovered`] follows.
    RollbackDetected {
        /// The highest send counter that the relay saw.
        relay: u64,
        /// The highest in the store.
        own: u64,
    },
    /// Mail for this device expired at the relay, or was dropped there, before it was fetched: conversations may lack messages.
    /// Who sent them is not told; their senders never got a receipt. Told once for each loss.
    MailLost,
    /// Sessions, sender keys and one-time prekeys of the old copy are given up, and messages go out again.
    RollbackRecovered,
    /// The relay told a send counter of this device with a proof that this device did not make. Nothing follows from it but
    /// that the relay, or what it keeps, is not to be relied on.
    CounterForged {
        /// What it told.
        relay: u64,
    },
    /// The relay does not take messages for a peer just now (a full mailbox, a quota, a limit); they stay in the outbox
    /// and are tried again.
    SendDelayed {
        /// To whom they are.
        peer: UserId,
        /// Why.
        code: &'static str,
        /// When the next attempt is.
        retry_after: Duration,
    },
    /// A message was given up.
    DeliveryFailed {
        /// To whom it was.
        peer: UserId,
        /// The message.
        id: ContentId,
        /// Why.
        code: &'static str,
    },
    /// A new store is sealed by a keyfile that was made beside it: who copies both can read it.
    KeyfileCreated {
        /// Where the keyfile is.
        path: PathBuf,
    },
    /// The app is set up for development: what [`crate::AppBuilder::production`] would refuse. Told once for each app.
    DevelopmentMode {
        /// All of it.
        findings: Vec<crate::Finding>,
    },
    /// The relay is a minimal one: it keeps nothing and answers for nothing. Messages wait here until the receiver's device has
    /// them. Told once.
    RelayNotDurable,
    /// The server of the store is set otherwise than when the app was set up: what [`crate::AppBuilder::production`] would refuse
    /// now. The client goes on. Looked at daily and after each log-in.
    StoreWeakened {
        /// What is weak and was not before.
        findings: Vec<crate::Finding>,
    },
    /// Commits to the store fail (a full disk, for example), or something in it can not be read. Nothing that was
    /// acknowledged is lost; but with `STORE_EMPTIED` the store itself is, and the client ends.
    StoreFailing {
        /// The code of the error.
        code: &'static str,
    },
    /// A conversation met a fault in the program (a panic). Nothing that was stored is lost; it is begun afresh after a wait,
    /// and all others go on.
    ConversationFailed {
        /// With whom.
        peer: UserId,
        /// Faults in a row.
        attempt: u32,
        /// The wait.
        retry_after: Duration,
    },
    /// A conversation goes on after a fault.
    ConversationRevived {
        /// With whom.
        peer: UserId,
    },
    /// A task of the client (`connection`, `groups`, `inbox`, `recovery`, `upkeep`) met a fault in the program and is begun afresh
    /// after a wait.
    TaskFailed {
        /// Which one.
        task: &'static str,
        /// Faults in a row.
        attempt: u32,
        /// The wait.
        retry_after: Duration,
    },
    /// More than half of the room for calls that wait is used ([`crate::Executor`]). Told again after less than a quarter was, and
    /// once a second at most.
    QueuePressure {
        /// Calls that wait for their conversation.
        queued: usize,
        /// Calls that wait for room.
        waiting: usize,
        /// How many may be queued.
        limit: usize,
    },
    /// Calls were refused with `BACKPRESSURE`. Told once a second at most.
    CallsRejected {
        /// Whom the last one was for: a user, or the id of a group as if it were one.
        peer: UserId,
        /// How many since this was last told, whomever they were for.
        calls: u64,
    },
    /// We are in a group that we were not in before.
    GroupJoined {
        /// Which one.
        group: GroupId,
        /// Who made the change.
        by: UserId,
    },
    /// A group has other members, or another name.
    GroupChanged {
        /// Which one.
        group: GroupId,
        /// Who made the change.
        by: UserId,
        /// Who is in it now and was not before.
        joined: Vec<UserId>,
        /// Who is not in it any more.
        gone: Vec<UserId>,
        /// What it is called now.
        name: String,
    },
    /// We are not in a group any more.
    GroupLeft {
        /// Which one.
        group: GroupId,
        /// Who made the change.
        by: UserId,
    },
    /// A user shows another identity than the one under which they are a member of a group: nothing of the group goes to
    /// them until they are added anew.
    GroupMemberUnknown {
        /// Who.
        peer: UserId,
    },
    /// Messages of a member wait for a key that has not come; the member is asked for it, and for the messages. Should it
    /// never come, [`Event::MessageUndecryptable`] tells so.
    SenderKeyMissing {
        /// Whose messages they are.
        peer: UserId,
        /// How many more of them wait.
        messages: usize,
    },
    /// Messages of ours to a group came further, with one of its members.
    GroupReceipt {
        /// In which group.
        group: GroupId,
        /// Who has them.
        peer: UserId,
        /// Which ones.
        ids: Vec<ContentId>,
        /// How far.
        state: DeliveryState,
    },
    /// This listener was too slow and missed events.
    Lagged {
        /// How many.
        missed: u64,
    },
}

impl Event {
    /// Whether it says that somebody is, or may be, another than before, or than we can speak with: whoever listens first is to know.
    fn is_of_identity(&self) -> bool {
        matches!(
            self,
            Self::IdentityChanged { .. }
                | Self::IdentityRotated { .. }
                | Self::IdentitySuperseded { .. }
                | Self::IdentityForked { .. }
                | Self::SuiteMismatch { .. }
        )
    }

    /// The name of the event in snake case.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Reconnecting { .. } => "reconnecting",
            Self::Offline { .. } => "offline",
            Self::CatchingUp => "catching_up",
            Self::CaughtUp => "caught_up",
            Self::Superseded => "superseded",
            Self::CloneDetected => "clone_detected",
            Self::Receiving { .. } => "receiving",
            Self::RelayDraining => "relay_draining",
            Self::IdentityChanged { .. } => "identity_changed",
            Self::IdentityRotated { .. } => "identity_rotated",
            Self::IdentitySuperseded { .. } => "identity_superseded",
            Self::IdentityForked { .. } => "identity_forked",
            Self::SuiteMismatch { .. } => "suite_mismatch",
            Self::MessageUndecryptable { .. } => "message_undecryptable",
            Self::Repaired { .. } => "repaired",
            Self::Receipt { .. } => "receipt",
            Self::SessionStarted { .. } => "session_started",
            Self::PrekeysLow { .. } => "prekeys_low",
            Self::PrekeysUploaded { .. } => "prekeys_uploaded",
            Self::RollbackDetected { .. } => "rollback_detected",
            Self::MailLost => "mail_lost",
            Self::RollbackRecovered => "rollback_recovered",
            Self::CounterForged { .. } => "counter_forged",
            Self::SendDelayed { .. } => "send_delayed",
            Self::DeliveryFailed { .. } => "delivery_failed",
            Self::KeyfileCreated { .. } => "keyfile_created",
            Self::DevelopmentMode { .. } => "development_mode",
            Self::RelayNotDurable => "relay_not_durable",
            Self::StoreWeakened { .. } => "store_weakened",
            Self::StoreFailing { .. } => "store_failing",
            Self::ConversationFailed { .. } => "conversation_failed",
            Self::ConversationRevived { .. } => "conversation_revived",
            Self::TaskFailed { .. } => "task_failed",
            Self::QueuePressure { .. } => "queue_pressure",
            Self::CallsRejected { .. } => "calls_rejected",
            Self::GroupJoined { .. } => "group_joined",
            Self::GroupChanged { .. } => "group_changed",
            Self::GroupLeft { .. } => "group_left",
            Self::GroupMemberUnknown { .. } => "group_member_unknown",
            Self::SenderKeyMissing { .. } => "sender_key_missing",
            Self::GroupReceipt { .. } => "group_receipt",
            Self::Lagged { .. } => "lagged",
        }
    }
}

/// Where events come from inside the client.
#[derive(Debug)]
pub(crate) struct Hub(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None` once the client is closed.
    sender: Option<broadcast::Sender<Event>>,
    /// What happened before anybody could listen: the first listener is told.
    early: VecDeque<Event>,
    /// What was said of identities then and found no room any more.
    missed: u64,
}

impl Inner {
    /// Keeps what was said of somebody's identity for the first listener, each of it once and the newest if it is too much.
    fn keep(&mut self, event: Event) {
        self.early.retain(|other| *other != event);
        self.early.push_back(event);
        if self.early.iter().filter(|event| event.is_of_identity()).count() > limits::MAX_EARLY_IDENTITIES
            && let Some(oldest) = self.least()
        {
            self.early.remove(oldest);
            self.missed += 1;
        }
    }

    /// What was said of identities that may be forgotten first. Anybody can have many users of another suite write to us: they push out
    /// nothing that has to be judged.
    fn least(&self) -> Option<usize> {
        let suites = self.early.iter().position(|event| matches!(event, Event::SuiteMismatch { .. }));
        suites.or_else(|| self.early.iter().position(Event::is_of_identity))
    }
}

impl Hub {
    pub(crate) fn new() -> Self {
        let sender = Some(broadcast::Sender::new(limits::EVENT_BUFFER));
        Self(Mutex::new(Inner { sender, early: VecDeque::new(), missed: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn emit(&self, event: Event) {
        tracing::debug!(event = event.name());
        let mut inner = self.lock();
        let unheard = inner.sender.as_ref().and_then(|sender| sender.send(event).err());
        // Nobody listening is fine, but for what somebody has to judge.
        if let Some(broadcast::error::SendError(event)) = unheard
            && event.is_of_identity()
        {
            inner.keep(event);
        }
    }

    /// An event of the opening, which nobody can listen to yet.
    pub(crate) fn emit_early(&self, event: Event) {
        self.lock().early.push_back(event);
    }

    /// An event that somebody should see: whoever listens, or the first one who will.
    pub(crate) fn emit_to_first(&self, event: Event) {
        let heard = self.lock().sender.as_ref().is_some_and(|sender| sender.receiver_count() > 0);
        if heard {
            return self.emit(event);
        }
        // One of a kind is kept: whoever listens never, is told no more the more often it happens.
        let early = &mut self.lock().early;
        early.retain(|other| other.name() != event.name());
        early.push_back(event);
    }

    pub(crate) fn subscribe(&self) -> Events {
        let mut inner = self.lock();
        let mut early = core::mem::take(&mut inner.early);
        let missed = core::mem::take(&mut inner.missed);
        if missed > 0 {
            early.push_front(Event::Lagged { missed });
        }
        let receiver = match &inner.sender {
            Some(sender) => sender.subscribe(),
            // The sender of a fresh channel is gone at once: the stream ends.
            None => broadcast::channel(1).1,
        };
        Events { early, pending: ReusableBoxFuture::new(step(receiver)) }
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.lock().sender = None;
    }
}

type Step = (Result<Event, broadcast::error::RecvError>, broadcast::Receiver<Event>);

async fn step(mut receiver: broadcast::Receiver<Event>) -> Step {
    (receiver.recv().await, receiver)
}

/// Events from the moment of [`crate::Client::events`] on. Each listener gets every event; one that is more than 1,024
/// behind gets [`Event::Lagged`] and goes on with the newest.
pub struct Events {
    early: VecDeque<Event>,
    pending: ReusableBoxFuture<'static, Step>,
}

impl Events {
    /// The next event; `None` after the client closed.
    pub async fn next(&mut self) -> Option<Event> {
        futures::StreamExt::next(self).await
    }
}

impl Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.early.pop_front() {
            return Poll::Ready(Some(event));
        }
        let (result, receiver) = match self.pending.poll(context) {
            Poll::Ready(step) => step,
            Poll::Pending => return Poll::Pending,
        };
        self.pending.set(step(receiver));
        Poll::Ready(match result {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Event::Lagged { missed }),
            Err(broadcast::error::RecvError::Closed) => None,
        })
    }
}

impl core::fmt::Debug for Events {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Events")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_how_much_it_missed() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        for _ in 0..=limits::EVENT_BUFFER {
            hub.emit(Event::Connected);
        }
        assert_eq!(events.next().await, Some(Event::Lagged { missed: 1 }));
        assert_eq!(events.next().await, Some(Event::Connected));
    }

    #[tokio::test]
    async fn what_is_said_of_identities_waits_for_the_first_listener_and_is_bounded() {
        let hub = Hub::new();
        let rotated = |number: usize| Event::IdentityRotated {
            peer: UserId::new(&format!("peer{number}")).unwrap(),
            old: "old".to_owned(),
            new: "new".to_owned(),
            was_verified: true,
        };
        let changed = Event::IdentityChanged { peer: UserId::new("bob").unwrap(), accepted: false };
        let forgotten = Event::Connected;
        for event in [rotated(1), changed.clone(), forgotten, changed.clone(), rotated(2)] {
            hub.emit(event);
        }
        let mut first = hub.subscribe();
        for event in [rotated(1), changed.clone(), rotated(2)] {
            assert_eq!(first.next().await, Some(event));
        }
        // Who comes later was told of by nobody, and nobody is told of anything twice.
        hub.emit(changed.clone());
        let mut second = hub.subscribe();
        hub.emit(rotated(3));
        assert_eq!(first.next().await, Some(changed.clone()));
        assert_eq!(second.next().await, Some(rotated(3)));

        let hub = Hub::new();
        hub.emit_to_first(Event::MailLost);
        for number in 0..=limits::MAX_EARLY_IDENTITIES {
            hub.emit(rotated(number));
        }
        let mut late = hub.subscribe();
        assert_eq!(late.next().await, Some(Event::Lagged { missed: 1 }));
        assert_eq!(late.next().await, Some(Event::MailLost));
        assert_eq!(late.next().await, Some(rotated(1)));

        let hub = Hub::new();
        hub.emit(changed.clone());
        let (ours, theirs) = (Suite::P256, Suite::X25519);
        for number in 0..2 * limits::MAX_EARLY_IDENTITIES {
            let peer = UserId::new(&format!("stranger{number}")).unwrap();
            hub.emit(Event::SuiteMismatch { peer, ours, theirs });
        }
        let mut late = hub.subscribe();
        assert!(matches!(late.next().await, Some(Event::Lagged { .. })));
        assert_eq!(late.next().await, Some(changed), "users of another suite push out nothing else");
    }

    #[tokio::test]
    async fn the_stream_ends_with_the_client() {
        let hub = Hub::new();
        let mut events = hub.subscribe();
        hub.emit(Event::Connected);
        hub.close();
        assert_eq!(events.next().await, Some(Event::Connected));
        assert_eq!(events.next().await, None);
    }
}
