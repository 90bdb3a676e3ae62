//! One conversation: one task for each local device and peer. All session work on a conversation happens here, one step
//! after the other, so no two encryptions can take one key. What queues up while a commit runs shares the next one.

mod commands;
mod incoming;
mod opening;
mod outgoing;
mod step;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use stvor_base::{Address, ContentId, MessageId, Timestamp};
use stvor_crypto::SystemRandom;
use stvor_protocol::{Context, Conversation, PrekeyBundle, RetryRequest, TrustDecision};
use stvor_store::{Scan, Table};
use stvor_wire::server::{Bundles, Deliver, Nack};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::content::Content;
use crate::core::Core;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{DeliveryState, Event};
use crate::keys;
use crate::limits;
use crate::records;
use crate::rows::{LaneRow, PendingBody, PendingRow, Place, SealedSend};
use crate::transport::session::{SendRoom, Session};

pub(crate) use self::commands::Command;
pub use self::commands::Unsealed;
pub(crate) use self::opening::{of_protocol, read_bundle};
use self::step::Step;

/// What the connection hands to a lane.
pub(crate) enum Mail {
    Deliver(Box<Deliver>, Arc<Session>),
    Accepted(MessageId),
    Refused(Box<Nack>),
}

/// What the client hands to a lane.
pub(crate) enum Work {
    /// Something changed: the connection, or the client is closing.
    Wake,
    Send(SendRequest),
    /// The peer's bundles, or why there are none.
    Bundle(Result<Box<Bundles>>),
    /// The answer to a trust question.
    Decision(TrustDecision),
    Command(Command),
}

/// A message of the application.
pub(crate) struct SendRequest {
    pub(crate) id: ContentId,
    pub(crate) content: Content,
    pub(crate) timeout: Duration,
    /// Told when the message is in the outbox, or why it is not.
    pub(crate) reply: oneshot::Sender<Result<()>>,
}

/// The way to a lane.
pub(crate) struct LaneHandle {
    mail: mpsc::Sender<Mail>,
    work: mpsc::UnboundedSender<Work>,
    /// Sends that are not in the outbox yet plus messages that are not accepted: what bounds `work`.
    depth: Arc<AtomicUsize>,
    /// How much was handed over.
    handed: AtomicU64,
    /// How much the lane had taken when it last came to rest; `BUSY` if it has something to do.
    rested: Arc<AtomicU64>,
}

/// A lane that has something to do.
const BUSY: u64 = u64::MAX;

impl LaneHandle {
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
        if matches!(work, Work::Send(_)) {
            if self.depth.load(Ordering::Relaxed) >= limits::MAX_PENDING {
                return Err(ErrorKind::QuotaExceeded {
                    what: format!(
                        "{} messages of this conversation wait to be accepted",
                        limits::MAX_PENDING
                    ),
                }
                .into());
            }
            self.depth.fetch_add(1, Ordering::Relaxed);
        }
        self.work.send(work).map_err(|_| Error::not_ready("it is closed"))?;
        self.handed.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A message that is encrypted and not accepted.
struct Sealed {
    queued: u64,
    body: PendingBody,
    send: SealedSend,
    created_at: Timestamp,
    /// The connection that it was last sent on; 0 for none.
    sent_in: u64,
}

/// A message that is in the outbox and not encrypted.
struct Waiting {
    queued: u64,
    place: Place,
    created_at: Timestamp,
}

/// A message to someone whom the relay may not know: it is in no outbox yet.
struct Held {
    request: SendRequest,
    deadline: Instant,
}

/// The task's side of a conversation.
struct Lane {
    core: Arc<Core>,
    peer: Address,
    depth: Arc<AtomicUsize>,
    me: mpsc::WeakUnboundedSender<Work>,
    rng: SystemRandom,
    /// `None` after a commit failed: nothing that memory holds need be what the store holds.
    conversation: Option<Conversation>,
    row: LaneRow,
    sealed: VecDeque<Sealed>,
    waiting: VecDeque<Waiting>,
    held: Vec<Held>,
    /// Pending rows whose messages were accepted, to be removed with the next commit.
    accepted: Vec<u64>,
    /// A bundle is on its way.
    fetching: bool,
    /// No bundle is asked for before this.
    fetch_after: Instant,
    bundle: Option<PrekeyBundle>,
    /// A trust question is open; mail waits for the answer.
    asking: bool,
    decision: Option<TrustDecision>,
    held_mail: VecDeque<(Box<Deliver>, Arc<Session>)>,
    /// Messages that failed and are to be asked for again.
    requests: VecDeque<RetryRequest>,
    requests_after: Instant,
    /// Messages that a trust policy refused: asked for again once a person accepts the identity.
    refused: Vec<RetryRequest>,
    /// The application asked for a fresh session.
    rehandshake: bool,
    due_since: Option<Instant>,
    /// Whether the receipts owed are counted as unaccepted.
    owing: bool,
    paused_until: Option<Instant>,
    /// Refusals since the relay last accepted something.
    refusals: u32,
    /// The last gap that was answered, and when.
    last_gap: Option<(u64, Instant)>,
    /// The connection that had no room for what is to be sent.
    wants_room: Option<Arc<Session>>,
    /// When something was last sent or accepted.
    progress_at: Instant,
    active_at: Instant,
}

/// A lane that is not running yet: its handle and its task.
pub(crate) fn new(core: Weak<Core>, peer: Address) -> (LaneHandle, impl Future<Output = ()> + Send) {
    let (mail, mail_end) = mpsc::channel(limits::LANE_QUEUE);
    let (work, work_end) = mpsc::unbounded_channel();
    let depth = Arc::new(AtomicUsize::new(0));
    let me = work.downgrade();
    let rested = Arc::new(AtomicU64::new(BUSY));
    let handle = LaneHandle {
        mail,
        work,
        depth: Arc::clone(&depth),
        handed: AtomicU64::new(0),
        rested: Arc::clone(&rested),
    };
    let task = async move {
        let Some(core) = core.upgrade() else { return };
        let lane = Lane::fresh(core, peer, (depth, me));
        lane.run((mail_end, work_end), &rested).await;
    };
    (handle, task)
}

impl Lane {
    fn fresh(
        core: Arc<Core>,
        peer: Address,
        (depth, me): (Arc<AtomicUsize>, mpsc::WeakUnboundedSender<Work>),
    ) -> Self {
        let now = Instant::now();
        Self {
            core,
            peer,
            depth,
            me,
            rng: SystemRandom::new(),
            conversation: None,
            row: LaneRow::default(),
            sealed: VecDeque::new(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            accepted: Vec::new(),
            fetching: false,
            fetch_after: now,
            bundle: None,
            asking: false,
            decision: None,
            held_mail: VecDeque::new(),
            requests: VecDeque::new(),
            requests_after: now,
            refused: Vec::new(),
            rehandshake: false,
            due_since: None,
            owing: false,
            paused_until: None,
            refusals: 0,
            last_gap: None,
            wants_room: None,
            progress_at: now,
            active_at: now,
        }
    }

    async fn run(
        mut self,
        (mut mail, mut work): (mpsc::Receiver<Mail>, mpsc::UnboundedReceiver<Work>),
        rested: &AtomicU64,
    ) {
        if let Err(error) = self.reload().await {
            self.core.hub.emit(Event::StoreFailing { code: error.code() });
        }
        let stop = self.core.stop.clone();
        let (mut letters, mut orders) = (Vec::new(), Vec::new());
        let mut taken = 0;
        loop {
            let deadline = self.next_deadline();
            let wants_room = self.wants_room.clone();
            let mut room = None;
            tokio::select! {
                () = stop.cancelled() => break,
                count = mail.recv_many(&mut letters, limits::LANE_BATCH) => if count == 0 { break },
                count = work.recv_many(&mut orders, limits::LANE_BATCH) => if count == 0 { break },
                found = find_room(wants_room) => {
                    // Without room that connection is gone; the lane is told of the next.
                    self.wants_room = None;
                    room = found;
                }
                () = tokio::time::sleep_until(deadline) => {
                    // Once it is closed, the name may be that of another lane.
                    let idle = || !mail.is_closed() && mail.is_empty() && work.is_empty();
                    if self.may_sleep() && self.core.retire_lane(&self.peer, idle) {
                        break;
                    }
                }
            }
            // What is there of the other kind shares the commit.
            while letters.len() < limits::LANE_BATCH {
                match mail.try_recv() {
                    Ok(letter) => letters.push(letter),
                    Err(_) => break,
                }
            }
            while orders.len() < limits::LANE_BATCH {
                match work.try_recv() {
                    Ok(order) => orders.push(order),
                    Err(_) => break,
                }
            }
            if !(letters.is_empty() && orders.is_empty()) {
                self.active_at = Instant::now();
            }
            // What the lane hands to itself was handed over by nobody.
            let own = |order: &&Work| matches!(order, Work::Bundle(_) | Work::Decision(_));
            let handed = letters.len() + orders.len() - orders.iter().filter(own).count();
            taken += u64::try_from(handed).unwrap_or(0);
            self.turn(&mut letters, &mut orders, room).await;
            rested.store(if self.is_idle() { taken } else { BUSY }, Ordering::Release);
        }
        self.core.settle(self.sealed.len() + self.waiting.len() + usize::from(self.owing));
        for held in self.held.drain(..) {
            let _ = held.request.reply.send(Err(Error::not_ready("it was closed")));
        }
    }

    /// Reads what the lane left in the store, in the place of what memory holds: at the start, and after a commit failed.
    /// On an error nothing changes but that the conversation is not loaded.
    async fn reload(&mut self) -> Result<()> {
        self.conversation = None;
        let core = Arc::clone(&self.core);
        let store = &core.store;
        let row = match store.one(&keys::lane(store, &self.peer)).await.map_err(Error::passed)? {
            Some(row) => LaneRow::decode(row.value.expose()).map_err(Error::passed)?.1,
            None => LaneRow::default(),
        };
        let rows = store
            .scan_all(Scan::of(Table::Outbox, keys::pending_of(&self.peer)), 2 * limits::MAX_PENDING)
            .await
            .map_err(Error::passed)?;
        let (mut sealed, mut waiting) = (Vec::new(), VecDeque::new());
        for pending in rows {
            let queued = pending.key.sort.as_slice().try_into().map(u64::from_be_bytes);
            let queued = queued.map_err(|_| Error::passed(stvor_base::codec::CodecError::Length))?;
            if self.accepted.contains(&queued) {
                // The relay has it; its row goes with the next commit.
                continue;
            }
            let pending = PendingRow::decode(pending.value.expose()).map_err(Error::passed)?;
            let PendingRow { body, sealed: send, created_at } = pending;
            match (send, body) {
                (Some(send), body) => {
                    let sent_in = self.sent_in(&send);
                    sealed.push(Sealed { queued, body, send, created_at, sent_in });
                }
                (None, PendingBody::Message(place)) => {
                    waiting.push_back(Waiting { queued, place, created_at });
                }
                (None, PendingBody::Control) => {}
            }
        }
        // Lane numbers are the order of sealing, whatever the order of queueing was.
        sealed.sort_by_key(|one| (one.send.lane_epoch != row.epoch, one.send.lane));
        let (requests, refused) = Self::stored_requests(&core, &self.peer).await?;
        let conversation = self.stored_conversation().await?;
        let before = self.count_pending();
        (self.row, self.sealed, self.waiting) = (row, sealed.into(), waiting);
        (self.requests, self.refused) = (requests.into(), refused);
        let after = self.count_pending();
        // Added first: nobody is to see nothing pending in between.
        self.depth.fetch_add(after.0, Ordering::Relaxed);
        self.depth.fetch_sub(before.0, Ordering::Relaxed);
        self.core.unaccepted.fetch_add(after.1, Ordering::Relaxed);
        self.core.settle(before.1);
        self.due_since = (!self.row.due.is_empty()).then(Instant::now);
        self.count_owing();
        self.conversation = Some(conversation);
        Ok(())
    }

    /// Messages of the application that are not accepted, and everything that is not.
    fn count_pending(&self) -> (usize, usize) {
        let messages = self.sealed.iter().filter(|one| one.body != PendingBody::Control).count();
        (messages + self.waiting.len(), self.sealed.len() + self.waiting.len())
    }

    /// The connection that exactly this was last sent on; 0 for none.
    fn sent_in(&self, send: &SealedSend) -> u64 {
        let id = |send: &SealedSend| (send.msg_id, send.lane_epoch, send.lane);
        self.sealed.iter().find(|one| id(&one.send) == id(send)).map_or(0, |one| one.sent_in)
    }

    /// Receipts that are owed count as one thing that waits to be sent, so that closing waits for them.
    fn count_owing(&mut self) {
        let owing = !self.row.due.is_empty();
        match (self.owing, owing) {
            (false, true) => {
                self.core.unaccepted.fetch_add(1, Ordering::Relaxed);
            }
            (true, false) => self.core.settle(1),
            _ => {}
        }
        self.owing = owing;
    }

    async fn stored_conversation(&mut self) -> Result<Conversation> {
        let wanted = Conversation::keys(&self.peer);
        let rows = records::load(&self.core.store, &wanted, &stvor_protocol::Effects::new()).await?;
        Conversation::load(&self.core.identity, &self.peer, &rows).map_err(Error::passed)
    }

    /// Takes everything that came, in one commit, then sends what can be sent.
    async fn turn(
        &mut self,
        letters: &mut Vec<Mail>,
        orders: &mut Vec<Work>,
        room: Option<(Arc<Session>, SendRoom)>,
    ) {
        if self.conversation.is_none()
            && let Err(error) = self.reload().await
        {
            self.refuse(letters, orders, &error);
            return;
        }
        let mut step = Step::new(self.row.clone());
        for letter in letters.drain(..) {
            self.take_mail(letter, &mut step).await;
        }
        self.show_all(&mut step).await;
        for order in orders.drain(..) {
            self.take_work(order, &mut step).await;
        }
        // A decision lets mail in that waited for it.
        self.show_all(&mut step).await;
        self.expire(&mut step).await;
        self.release_held(&mut step);
        self.fill(&mut step).await;
        self.ask_again(&mut step);
        self.flush_receipts(&mut step);
        self.commit(step).await;
        if self.conversation.is_none() {
            // The commit failed: what memory holds is in no store and must not reach the wire.
            return;
        }
        self.fetch_if_needed();
        self.resend_unanswered();
        self.transmit(room);
    }

    /// The store can not be read: whoever waits is told, mail stays at the relay.
    fn refuse(&mut self, letters: &mut Vec<Mail>, orders: &mut Vec<Work>, error: &Error) {
        self.core.hub.emit(Event::StoreFailing { code: error.code() });
        if letters.drain(..).any(|letter| matches!(letter, Mail::Deliver(..))) {
            self.core.kick_soon();
        }
        for order in orders.drain(..) {
            match order {
                Work::Send(request) => {
                    self.depth.fetch_sub(1, Ordering::Relaxed);
                    let _ = request.reply.send(Err(error.clone()));
                }
                Work::Command(command) => command.refuse(error.clone()),
                Work::Bundle(_) => self.fetching = false,
                Work::Wake | Work::Decision(_) => {}
            }
        }
    }

    async fn take_mail(&mut self, mail: Mail, step: &mut Step) {
        match mail {
            Mail::Deliver(deliver, session) => self.receive(deliver, session, step).await,
            Mail::Accepted(id) => self.accept(id, step),
            Mail::Refused(nack) => self.refused(&nack, step).await,
        }
    }

    async fn take_work(&mut self, work: Work, step: &mut Step) {
        match work {
            Work::Wake => {}
            Work::Send(request) => self.take_send(request, step).await,
            Work::Bundle(result) => self.take_bundle(result, step).await,
            Work::Decision(decision) => self.take_decision(decision, step).await,
            Work::Command(command) => self.take_command(command, step).await,
        }
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        if self.conversation.is_none() {
            // The store could not be read: it is tried again, but not without a pause.
            return now + limits::BACKOFF_FIRST;
        }
        let idle = self.active_at + limits::LANE_IDLE;
        let mut deadline = if idle > now || self.may_sleep() { idle } else { now + limits::LANE_IDLE };
        let mut sooner = |at: Instant| deadline = deadline.min(at.max(now + Duration::from_millis(1)));
        if let Some(held) = self.held.iter().map(|held| held.deadline).min()
            && !(self.fetching || self.asking)
        {
            sooner(held);
        }
        // What follows needs somebody to send to: the connection's return is told.
        if self.core.session().is_none() || self.core.rollback().is_some() {
            return deadline;
        }
        if let Some(since) = self.due_since
            && self.may_flush(0)
        {
            sooner(since + limits::RECEIPT_DELAY);
        }
        if !self.sealed.is_empty() {
            sooner(self.progress_at + limits::RESEND_AFTER);
        }
        if let Some(until) = self.paused_until {
            sooner(until);
        }
        if !(self.fetching || self.asking) {
            if self.wants_session() {
                sooner(self.fetch_after);
            }
            if !self.requests.is_empty() {
                sooner(self.requests_due());
            }
        }
        deadline
    }

    fn may_sleep(&self) -> bool {
        self.active_at.elapsed() >= limits::LANE_IDLE && self.is_at_rest()
    }

    /// Whether the lane would do nothing but wait for orders.
    fn is_idle(&self) -> bool {
        self.conversation.is_some() && !self.rehandshake && self.is_at_rest()
    }

    fn is_at_rest(&self) -> bool {
        self.sealed.is_empty()
            && self.waiting.is_empty()
            && self.held.is_empty()
            && self.held_mail.is_empty()
            && self.accepted.is_empty()
            && self.row.due.is_empty()
            && self.requests.is_empty()
            && !self.fetching
            && !self.asking
    }

    /// Hands something to this lane's own queue from a task of its own.
    fn post_later(&self, work: impl Future<Output = Work> + Send + 'static) {
        let me = self.me.clone();
        let stop = self.core.stop.clone();
        self.core.tasks.spawn(async move {
            tokio::select! {
                work = work => {
                    if let Some(me) = me.upgrade() {
                        let _ = me.send(work);
                    }
                }
                () = stop.cancelled() => {}
            }
        });
    }

    fn emit_states(&self, places: &[ContentId], state: DeliveryState) {
        if places.is_empty() {
            return;
        }
        for id in places {
            self.core.watchers.advance(*id, state);
        }
        self.core.hub.emit(Event::Receipt { peer: self.peer.user.clone(), ids: places.to_vec(), state });
    }
}

/// Waits for room on a connection; for ever if none is wanted. `None` when the connection ended.
async fn find_room(wanted: Option<Arc<Session>>) -> Option<(Arc<Session>, SendRoom)> {
    match wanted {
        Some(session) => session.room().await.ok().map(|room| (session, room)),
        None => core::future::pending().await,
    }
}

/// What the protocol is to know of this client.
pub(crate) fn context(core: &Core) -> Context<'_> {
    Context {
        identity: &core.identity,
        policy: stvor_protocol::TrustPolicy { first: core.config.trust, mismatch: core.config.mismatch },
        padding: pad,
        now: core.now(),
    }
}

/// The bucket of a blob; what fits none is refused by its size before.
fn pad(size: usize) -> usize {
    stvor_wire::padding::bucket_for(size).unwrap_or(size)
}

#[cfg(test)]
mod tests {
    use stvor_base::{DeviceId, UserId};

    use super::*;
    use crate::{App, ConnectOptions};

    /// The lane of a client whose relay is not there, with a message that waits.
    async fn offline(client: &crate::Client) -> (Lane, mpsc::UnboundedReceiver<Work>) {
        let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let (work, orders) = mpsc::unbounded_channel();
        let depth = Arc::new(AtomicUsize::new(1));
        let mut lane = Lane::fresh(Arc::clone(client.core()), peer, (depth, work.downgrade()));
        lane.reload().await.unwrap();
        let (reply, committed) = oneshot::channel();
        let id = ContentId::from_bytes([1; 16]);
        let request = SendRequest { id, content: "hello?".into(), timeout: Duration::ZERO, reply };
        lane.turn(&mut Vec::new(), &mut vec![Work::Send(request)], None).await;
        committed.await.unwrap().unwrap();
        (lane, orders)
    }

    async fn offline_client() -> crate::Client {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let app = app.in_memory().open().await.unwrap();
        let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
        app.connect_with("alice", options).await.unwrap()
    }

    #[tokio::test]
    async fn a_lane_that_can_do_nothing_rests() {
        let client = offline_client().await;
        let (mut lane, _orders) = offline(&client).await;
        let past = Instant::now().checked_sub(2 * limits::LANE_IDLE).unwrap();
        let rest = |lane: &Lane| lane.next_deadline().saturating_duration_since(Instant::now());
        let a_while = Duration::from_millis(500);
        lane.active_at = past;
        assert!(!lane.may_sleep());
        assert!(rest(&lane) > a_while, "a message waits for the connection");
        lane.paused_until = Some(past);
        assert!(rest(&lane) > a_while, "the relay's pause is over, but it is not there");
        lane.due_since = Some(past);
        assert!(rest(&lane) > a_while, "a receipt waits");
        lane.conversation = None;
        assert!(rest(&lane) > a_while, "the store failed");
    }

    #[tokio::test]
    async fn what_a_failed_commit_was_to_change_is_as_the_store_has_it() {
        let client = offline_client().await;
        let (mut lane, _orders) = offline(&client).await;
        let pending =
            |lane: &Lane| (lane.count_pending(), lane.depth.load(Ordering::Relaxed), client.pending());
        assert_eq!(pending(&lane), ((1, 1), 1, 1));
        // As the store has it: a message that was sealed under the lane's first number.
        let mut step = Step::new(lane.row.clone());
        let send = lane.number(vec![7; 64], &mut step).unwrap();
        let sent = (send.msg_id, send.lane_epoch, send.lane);
        lane.push_sealed_control(send, &mut step);
        lane.commit(step).await;
        lane.sealed[0].sent_in = 3;
        assert_eq!(pending(&lane), ((1, 2), 1, 2));

        let mut step = Step::new(lane.row.clone());
        lane.renumber(&mut step).await;
        let (reply, deleted) = oneshot::channel();
        lane.take_work(Work::Command(Command::Delete(reply)), &mut step).await;
        step.broken = Some(Error::not_ready("the test wants it"));
        lane.commit(step).await;
        deleted.await.unwrap().unwrap_err();
        assert!(lane.conversation.is_none(), "nothing is sent before the lane was read again");
        lane.turn(&mut Vec::new(), &mut Vec::new(), None).await;
        assert_eq!(pending(&lane), ((1, 2), 1, 2));
        let one = &lane.sealed[0];
        assert_eq!((one.send.msg_id, one.send.lane_epoch, one.send.lane), sent);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_idle_lane_makes_room_for_a_new_one_and_a_busy_one_does_not() {
        let client = offline_client().await;
        let core = client.core();
        let peer = |name: String| Address::new(UserId::new(&name).unwrap(), DeviceId::FIRST);
        for number in 1..limits::MAX_LANES {
            core.work(&peer(format!("idle{number}")), Work::Wake).unwrap();
        }
        let (reply, _) = oneshot::channel();
        let id = ContentId::from_bytes([1; 16]);
        let request = SendRequest { id, content: "hello?".into(), timeout: Duration::ZERO, reply };
        core.work(&peer("busy".into()), Work::Send(request)).unwrap();
        let room = async {
            while core.work(&peer("late".into()), Work::Wake).is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(limits::LANE_IDLE / 2, room).await.expect("an idle lane goes");
        assert!(core.has_lane(&peer("busy".into())) && core.has_lane(&peer("late".into())));
    }

    #[tokio::test]
    async fn the_10_001st_message_that_waits_is_refused() {
        let peer = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        let (handle, task) = new(Weak::new(), peer);
        let send = || {
            let (reply, _) = oneshot::channel();
            let id = ContentId::from_bytes([1; 16]);
            handle.work(Work::Send(SendRequest { id, content: "x".into(), timeout: Duration::ZERO, reply }))
        };
        for _ in 0..limits::MAX_PENDING {
            send().unwrap();
        }
        assert_eq!(send().unwrap_err().code(), "QUOTA_EXCEEDED");
        handle.depth.fetch_sub(1, Ordering::Relaxed);
        send().unwrap();
        drop(task);
    }

    #[tokio::test]
    async fn one_busy_lane_more_than_may_be_awake_is_refused() {
        let client = offline_client().await;
        let core = client.core();
        let wake = |number: usize| {
            let peer = Address::new(UserId::new(&format!("peer{number}")).unwrap(), DeviceId::FIRST);
            core.work(&peer, Work::Wake)
        };
        // None of them gets to run: this test never waits.
        for number in 0..limits::MAX_LANES {
            wake(number).unwrap();
        }
        assert_eq!(wake(limits::MAX_LANES).unwrap_err().code(), "CLIENT_NOT_READY");
        wake(0).unwrap();
    }

    #[tokio::test]
    async fn of_the_failures_of_one_peer_the_oldest_goes_first() {
        let client = offline_client().await;
        let (mut lane, _orders) = offline(&client).await;
        let request = |number: usize| {
            let mut message = [0; 16];
            message[..8].copy_from_slice(&(number as u64).to_be_bytes());
            RetryRequest { message: MessageId::from_bytes(message), blob_hash: [0; 32] }
        };
        for number in 0..limits::MAX_FAILURES_OF_ONE {
            let mut step = Step::new(lane.row.clone());
            lane.remember_request(request(number), "DECRYPT", &mut step);
            lane.commit(step).await;
        }
        lane.reload().await.unwrap();
        assert_eq!(lane.requests.len(), limits::MAX_FAILURES_OF_ONE);
        let mut step = Step::new(lane.row.clone());
        lane.remember_request(request(limits::MAX_FAILURES_OF_ONE), "DECRYPT", &mut step);
        lane.commit(step).await;
        lane.reload().await.unwrap();
        assert_eq!(lane.requests.len(), limits::MAX_FAILURES_OF_ONE);
        assert_eq!(lane.requests[0].message, request(1).message);
    }
}
