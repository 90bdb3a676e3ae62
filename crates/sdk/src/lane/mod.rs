//! One conversation: one task for each local device and peer. All session work on a conversation happens here, one step
//! after the other, so no two encryptions can take one key. What queues up while a commit runs shares the next one.

mod again;
mod claim;
mod commands;
#[cfg(test)]
mod flood;
mod following;
mod guarded;
mod handle;
mod incoming;
mod loading;
mod opening;
mod outgoing;
mod posts;
mod repairs;
mod step;
#[cfg(test)]
mod strangers;
mod unopened;

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use stvor_base::{Address, ContentId, MessageId, Timestamp};
use stvor_crypto::SystemRandom;
use stvor_protocol::{
    Context, Conversation, PrekeyBundle, RetryRequest, RotationChain, TrustDecision, TrustQuestion,
};
use stvor_store::RowVersion;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::core::Core;
use crate::error::Error;
use crate::events::{DeliveryState, Event};
use crate::groups::Post;
use crate::limits;
use crate::rows::{LaneRow, PendingBody, Place, SealedSend};
use crate::transport::session::{SendRoom, Session};

use self::again::Again;
use self::claim::Claim;
pub use self::commands::Unsealed;
pub(crate) use self::commands::{Adopted, Command, GivingUp};
pub(crate) use self::handle::{Answer, LaneHandle, Mail, SendRequest, Work, new};
use self::handle::{BUSY, Order, Queue, Stand};
use self::incoming::Source;
pub(crate) use self::opening::{of_protocol, read_bundle};
pub(crate) use self::outgoing::kind_of;
use self::step::Step;
use self::unopened::Unopened;

/// A message that is encrypted and not accepted.
struct Sealed {
    queued: u64,
    body: PendingBody,
    send: SealedSend,
    created_at: Timestamp,
    /// The connection that it was last sent on; 0 for none.
    sent_in: u64,
    /// Another instance sealed it and sends it: this one does so only if that one does not.
    foreign: bool,
}

/// A message that is in the outbox and not encrypted.
struct Waiting {
    queued: u64,
    place: Place,
    created_at: Timestamp,
}

/// A message to someone whom the relay may not know: it is in no outbox yet.
#[derive(Clone)]
struct Held {
    request: SendRequest,
    deadline: Instant,
}

/// The task's side of a conversation.
struct Lane {
    core: Arc<Core>,
    peer: Address,
    depth: Arc<AtomicUsize>,
    me: mpsc::WeakUnboundedSender<Order>,
    rng: SystemRandom,
    /// `None` after a commit failed: nothing that memory holds need be what the store holds.
    conversation: Option<Conversation>,
    row: LaneRow,
    /// Of the lane's row as it was read or written last; `None` if there is none. Every commit of a shared store expects
    /// it, so what memory holds of a conversation is what the store holds whenever something is committed.
    version: Option<RowVersion>,
    /// The epoch of instances in which the lane was read.
    seen_epoch: u64,
    /// A commit was given up, and may have been applied.
    in_doubt: bool,
    /// The last turn could not read the store, which may be there again: what the lane has to do shows only then.
    away: bool,
    /// Of the store, when the lane was read.
    incarnation: u64,
    /// When another instance was last found to have changed the conversation.
    moved_at: Option<Instant>,
    /// What the turn was given, while it may have to be taken again.
    again: Option<Again>,
    /// The turn is not taken again.
    last_try: bool,
    /// The mail of the turn was judged one by one; what else was in it is taken again.
    apart: bool,
    sealed: VecDeque<Sealed>,
    waiting: VecDeque<Waiting>,
    held: Vec<Held>,
    /// What goes to the peer as a member of groups; each has a row until a commit has it.
    posts: VecDeque<Arc<Post>>,
    /// Pending rows whose messages were accepted, to be removed with the next commit.
    accepted: Vec<u64>,
    /// A bundle is on its way.
    fetching: bool,
    /// No bundle is asked for before this.
    fetch_after: Instant,
    /// Bundles that could not be used, in a row.
    unusable: u32,
    /// What is asked for only tells whether there is one that can.
    looks: bool,
    /// There is, as was seen: the next question is for that one.
    changed: bool,
    /// None is asked for before this only to tell the peer of our present identity.
    tell_after: Instant,
    /// What is asked for is the device list without prekeys.
    devices_only: bool,
    /// That list may be written to: the next question is for prekeys.
    devices_known: bool,
    bundle: Option<FoundBundle>,
    /// A trust question is open; mail that it is about waits for the answer.
    asking: bool,
    /// The last one that the application was asked.
    question: Option<TrustQuestion>,
    /// The relay is asked whether the peer's key handed over to another; mail from that waits for the answer.
    looking: bool,
    /// It is not asked again before this.
    rotations_after: Instant,
    /// How often it was asked and did not answer.
    rotations_tries: u32,
    /// The newest mail that waits that the question and the last answer are about.
    rotations_asked: u64,
    rotations_told: u64,
    decision: Option<TrustDecision>,
    /// Answers that came while the store could not be read.
    late_decision: Option<TrustDecision>,
    /// Mail that waits for no answer any more is not judged before this.
    parked_after: Instant,
    /// Messages that failed and are to be asked for again.
    requests: VecDeque<RetryRequest>,
    requests_after: Instant,
    /// Messages that a trust policy refused: asked for again once a person accepts the identity.
    refused: Vec<RetryRequest>,
    /// Looks in vain for the prekeys of a stranger.
    stranger_tries: u32,
    /// The application asked for a fresh session.
    rehandshake: bool,
    due_since: Option<Instant>,
    /// Whether what is owed to the peer is counted as unaccepted.
    owing: bool,
    /// The peer's keys were looked for in vain.
    unreached: bool,
    paused_until: Option<Instant>,
    /// Refusals since the relay last accepted something.
    refusals: u32,
    /// Refusals since then that were answered by sending again at once.
    answers: u32,
    /// The last gap that was answered, and when.
    last_gap: Option<(u64, Instant)>,
    /// Until then refusals may be echoes of that gap; then what looked like one is sent again.
    doubted_until: Option<Instant>,
    /// The connection that had no room for what is to be sent.
    wants_room: Option<Arc<Session>>,
    /// Messages that are judged in the commit that is being made.
    judging: Vec<MessageId>,
    /// Messages that were being judged in faults, and in how many.
    suspects: HashMap<MessageId, u32>,
    /// Mail that found no room, the first of each connection: the relay is asked to hold the peer back.
    held_back: Vec<(Arc<Session>, MessageId)>,
    /// A turn left something for the next for want of room in its commit.
    more: bool,
    /// What was acknowledged without having been opened.
    unopened: Unopened,
    /// The peer announced itself at a relay that keeps nothing.
    came: bool,
    /// Nothing is sent again for that before this: anybody can repeat what was announced.
    came_after: Instant,
    /// When something was last sent or accepted.
    progress_at: Instant,
    active_at: Instant,
}

/// Prekeys of the peer, and the rotations that came with them.
#[derive(Clone)]
struct FoundBundle {
    bundle: PrekeyBundle,
    chain: Option<RotationChain>,
}

/// What became of a turn.
enum Taken {
    /// All of it was taken.
    Done,
    /// What was not taken was refused.
    Refused,
    /// Another instance changed the conversation meanwhile: nothing was stored, and the turn is to be taken again.
    Moved,
}

/// Why a turn can not go on.
enum Stop {
    /// As [`Taken::Moved`].
    Moved,
    /// The store can not be read.
    Failed(Error),
}

impl Lane {
    fn fresh(
        core: Arc<Core>,
        peer: Address,
        (depth, me): (Arc<AtomicUsize>, mpsc::WeakUnboundedSender<Order>),
    ) -> Self {
        let now = Instant::now();
        let suspects = core.revival.suspects(&peer);
        let incarnation = core.store.incarnation();
        Self {
            core,
            peer,
            depth,
            me,
            rng: SystemRandom::new(),
            conversation: None,
            row: LaneRow::default(),
            version: None,
            seen_epoch: 0,
            in_doubt: false,
            away: false,
            incarnation,
            moved_at: None,
            again: None,
            last_try: true,
            apart: false,
            sealed: VecDeque::new(),
            waiting: VecDeque::new(),
            held: Vec::new(),
            posts: VecDeque::new(),
            accepted: Vec::new(),
            fetching: false,
            fetch_after: now,
            unusable: 0,
            looks: false,
            changed: false,
            tell_after: now,
            devices_only: false,
            devices_known: false,
            bundle: None,
            asking: false,
            question: None,
            looking: false,
            rotations_after: now,
            rotations_tries: 0,
            rotations_asked: 0,
            rotations_told: 0,
            decision: None,
            late_decision: None,
            parked_after: now,
            requests: VecDeque::new(),
            requests_after: now,
            refused: Vec::new(),
            stranger_tries: 0,
            rehandshake: false,
            due_since: None,
            owing: false,
            unreached: false,
            paused_until: None,
            refusals: 0,
            answers: 0,
            last_gap: None,
            doubted_until: None,
            wants_room: None,
            judging: Vec::new(),
            suspects,
            held_back: Vec::new(),
            more: false,
            unopened: Unopened::default(),
            came: false,
            came_after: now,
            progress_at: now,
            active_at: now,
        }
    }

    async fn run(
        mut self,
        (mail, work): &mut (mpsc::Receiver<Mail>, mpsc::UnboundedReceiver<Order>),
        (queue, stand): (&Queue, &Stand),
    ) {
        if let Err(error) = self.reload().await {
            self.core.hub.emit(Event::StoreFailing { code: error.code() });
        }
        let stop = self.core.stop.clone();
        let (mut letters, mut orders, mut queued) = (Vec::new(), Vec::new(), Vec::new());
        let (mut taken, mut claim) = (0, Claim::default());
        loop {
            let deadline = self.next_deadline();
            claim.want(self.wants_room.as_ref());
            let mut room = None;
            tokio::select! {
                () = stop.cancelled() => break,
                count = mail.recv_many(&mut letters, limits::LANE_BATCH) => if count == 0 { break },
                count = work.recv_many(&mut queued, limits::LANE_BATCH) => if count == 0 { break },
                found = claim.room() => {
                    // Without room that connection is gone; the lane is told of the next.
                    self.wants_room = None;
                    room = found;
                }
                () = tokio::time::sleep_until(deadline) => {
                    // Once it is closed, the name may be that of another lane.
                    let idle = || !mail.is_closed() && mail.is_empty() && work.is_empty();
                    if queue.is_waited_for() {
                        self.active_at = Instant::now();
                    } else if self.may_sleep() && self.core.retire_lane(&self.peer, idle) {
                        break;
                    }
                }
            }
            // Room that came meanwhile is used in this turn.
            if room.is_none()
                && let Some(found) = claim.room().now_or_never()
            {
                self.wants_room = None;
                room = found;
            }
            // What is there of the other kind shares the commit.
            while letters.len() < limits::LANE_BATCH {
                match mail.try_recv() {
                    Ok(letter) => letters.push(letter),
                    Err(_) => break,
                }
            }
            while queued.len() < limits::LANE_BATCH {
                match work.try_recv() {
                    Ok(order) => queued.push(order),
                    Err(_) => break,
                }
            }
            orders.extend(queued.drain(..).map(|order| queue.take(order)));
            self.came |= queue.has_come();
            if queue.was_heard() {
                self.unopened.opened();
            }
            // What the lane hands to itself was handed over by nobody.
            let own = |order: &&Work| {
                matches!(order, Work::Bundle(_) | Work::Rotations(_) | Work::Earlier(_) | Work::Decision(_))
            };
            let handed = letters.len() + orders.len() - orders.iter().filter(own).count();
            if handed > 0 {
                self.active_at = Instant::now();
            }
            taken += u64::try_from(handed).unwrap_or(0);
            self.turn(&mut letters, &mut orders, room).await;
            // After the ACKs of what there was room for.
            for (session, message) in self.held_back.drain(..) {
                self.core.left.hold(&self.peer, session.generation, || session.hold(message));
            }
            stand.taken.store(taken, Ordering::Release);
            stand.rested.store(if self.is_idle() { taken } else { BUSY }, Ordering::Release);
        }
    }

    /// Takes everything that came, in one commit, then sends what can be sent.
    async fn turn(
        &mut self,
        letters: &mut Vec<Mail>,
        orders: &mut Vec<Work>,
        room: Option<(Arc<Session>, SendRoom)>,
    ) {
        let mut tries = 0;
        loop {
            self.more = false;
            let mut current = self.be_current(orders).await;
            if let Err(error) = &current
                && self.mend(orders, error).await
            {
                current = self.be_current(orders).await;
            }
            self.away = current.as_ref().is_err_and(Error::passes);
            if let Err(error) = current {
                self.refuse(letters, orders, &error);
                return;
            }
            orders.extend(self.late_decision.take().map(Work::Decision));
            self.note(&*letters, &*orders);
            self.last_try = tries >= limits::TURN_TRIES;
            self.judging.clear();
            match self.take(letters, orders).await {
                Taken::Done => break,
                Taken::Refused => return,
                Taken::Moved => {}
            }
            tries += 1;
            self.bring_back(letters, orders);
            if core::mem::take(&mut self.apart) {
                letters.clear();
            } else {
                self.step_aside(tries).await;
            }
        }
        self.again = None;
        if self.conversation.is_none() {
            // The commit failed: what memory holds is in no store and must not reach the wire.
            return;
        }
        self.fetch_if_needed();
        self.resend_to_comer(Instant::now());
        self.resend_doubted(Instant::now());
        self.resend_unanswered();
        self.transmit(room);
    }

    /// Takes everything that came and commits it.
    async fn take(&mut self, letters: &mut Vec<Mail>, orders: &mut Vec<Work>) -> Taken {
        let mut step = Step::new(self.row.clone());
        let mut mail = VecDeque::from(core::mem::take(letters));
        let mut alone = false;
        while let Some(next) = mail.front() {
            let apart = core::mem::replace(&mut alone, self.is_suspect(next)) || alone;
            if (step.is_full() || apart && !self.judging.is_empty())
                && let Err(stop) = self.next_step(&mut step, (&mail, &*orders)).await
            {
                letters.extend(mail);
                return self.stopped(stop, letters, orders);
            }
            let Some(letter) = mail.pop_front() else { break };
            self.take_mail(letter, &mut step).await;
        }
        if alone && let Err(stop) = self.next_step(&mut step, (&mail, &*orders)).await {
            return self.stopped(stop, letters, orders);
        }
        self.show_all(&mut step).await;
        let mut work = VecDeque::from(core::mem::take(orders));
        while !work.is_empty() {
            if step.is_full()
                && let Err(stop) = self.next_step(&mut step, (&mail, &work)).await
            {
                orders.extend(work);
                return self.stopped(stop, letters, orders);
            }
            let Some(order) = work.pop_front() else { break };
            self.take_work(order, &mut step).await;
        }
        // A decision lets mail in that waited for it.
        self.judge_parked(&mut step).await;
        self.show_all(&mut step).await;
        self.expire(&mut step).await;
        self.release_held(&mut step);
        self.fill(&mut step).await;
        self.fill_posts(&mut step);
        self.ask_again(&mut step);
        self.flush_receipts(&mut step);
        if self.commit(step).await {
            return Taken::Moved;
        }
        self.judged();
        Taken::Done
    }

    /// Commits a step that is full and begins another, for which `rest` is left.
    async fn next_step<'a>(
        &mut self,
        step: &mut Step,
        rest: (impl IntoIterator<Item = &'a Mail>, impl IntoIterator<Item = &'a Work>),
    ) -> Result<(), Stop> {
        self.show_all(step).await;
        let full = core::mem::replace(step, Step::new(LaneRow::default()));
        if self.commit(full).await {
            return Err(Stop::Moved);
        }
        self.judged();
        if self.conversation.is_none() {
            self.reload().await.map_err(Stop::Failed)?;
        }
        self.note(rest.0, rest.1);
        step.row = self.row.clone();
        Ok(())
    }

    /// A turn ends before everything was taken.
    fn stopped(&mut self, stop: Stop, letters: &mut Vec<Mail>, orders: &mut Vec<Work>) -> Taken {
        match stop {
            Stop::Moved => Taken::Moved,
            Stop::Failed(error) => {
                self.refuse(letters, orders, &error);
                Taken::Refused
            }
        }
    }

    /// The store can not be read: whoever waits is told, mail stays at the relay.
    fn refuse(&mut self, letters: &mut Vec<Mail>, orders: &mut Vec<Work>, error: &Error) {
        self.core.hub.emit(Event::StoreFailing { code: error.code() });
        // Nothing of it is taken again, and what it took up is free.
        self.again = None;
        for letter in letters.drain(..) {
            if let Mail::Deliver(_, session) = letter {
                self.core.leave(&self.peer, session.generation);
            }
        }
        for order in orders.drain(..) {
            match order {
                Work::Send(request) => {
                    self.depth.fetch_sub(1, Ordering::Relaxed);
                    request.reply.send(Err(error.clone()));
                }
                Work::Command(command) => command.refuse(error.clone()),
                Work::Bundle(_) => self.fetching = false,
                Work::Rotations(_) => self.looking = false,
                Work::Decision(decision) => self.late_decision = Some(decision),
                Work::Post(post) => self.take_post(post),
                Work::Wake | Work::Earlier(_) => {}
            }
        }
    }

    async fn take_mail(&mut self, mail: Mail, step: &mut Step) {
        match mail {
            Mail::Deliver(deliver, session) => self.receive(deliver, Source::Relay(session), step).await,
            Mail::Accepted(id) => self.accept(id, step),
            Mail::Refused(nack) => self.refused(&nack, step).await,
        }
    }

    async fn take_work(&mut self, work: Work, step: &mut Step) {
        match work {
            Work::Wake => {}
            Work::Post(post) => self.take_post(post),
            Work::Send(request) => self.take_send(request, step).await,
            Work::Bundle(result) => self.take_bundle(result, step).await,
            Work::Rotations(result) => self.take_rotations(result, step),
            Work::Earlier(result) => self.take_earlier(result, step),
            Work::Decision(decision) => self.take_decision(decision, step),
            Work::Command(command) => self.take_command(command, step).await,
        }
    }

    fn next_deadline(&self) -> Instant {
        let now = Instant::now();
        if self.conversation.is_none() {
            // The store could not be read: it is tried again, but not without a pause.
            return now + limits::BACKOFF_FIRST;
        }
        if self.more {
            return now;
        }
        let idle = self.active_at + limits::LANE_IDLE;
        let mut deadline = if idle > now || self.may_sleep() { idle } else { now + limits::LANE_IDLE };
        let mut sooner = |at: Instant| deadline = deadline.min(at.max(now + Duration::from_millis(1)));
        let ends = |held: &&Held| !self.asking || held.request.own_timeout;
        if let Some(held) = self.held.iter().filter(ends).map(|held| held.deadline).min()
            && !self.fetching
        {
            sooner(held);
        }
        if !(self.asking || self.looking) && self.core.parked.has(&self.peer) {
            sooner(self.parked_after);
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
            if self.came {
                sooner(self.came_after);
            }
            if let Some(until) = self.doubted_until {
                sooner(until);
            }
        }
        if let Some(until) = self.paused_until {
            sooner(until);
        }
        if !(self.fetching || self.asking) {
            if self.wants_session() {
                sooner(self.fetch_due());
            }
            if !self.requests.is_empty() {
                sooner(self.requests_due());
            }
        }
        deadline
    }

    fn may_sleep(&self) -> bool {
        if self.away && self.conversation.is_none() {
            return false;
        }
        // Who is to be told of our identity is tried again after a while, if there is room for that.
        let rests = self.is_at_rest() && self.unopened.is_none();
        self.active_at.elapsed() >= limits::LANE_IDLE && rests && !self.announces()
    }

    /// Whether the lane would do nothing but wait for orders.
    fn is_idle(&self) -> bool {
        self.conversation.is_some() && !self.rehandshake && self.is_at_rest()
    }

    fn is_at_rest(&self) -> bool {
        self.sealed.is_empty()
            && self.waiting.is_empty()
            && self.held.is_empty()
            && self.posts.is_empty()
            && !self.core.parked.has(&self.peer)
            && self.accepted.is_empty()
            && !self.owes()
            && (!self.announces() || self.unreached)
            // What is to be asked of a stranger is in the store, and comes to mind with their next mail.
            && (self.requests.is_empty() || self.is_stranger())
            && !self.fetching
            && !self.asking
            && !self.looking
    }

    /// Hands something to this lane's own queue from a task of its own; after a fault in that `instead`.
    fn post_later(&self, work: impl Future<Output = Work> + Send + 'static, instead: Work) {
        let me = self.me.clone();
        let stop = self.core.stop.clone();
        self.core.tasks.spawn(async move {
            tokio::select! {
                work = AssertUnwindSafe(work).catch_unwind() => {
                    let work = work.unwrap_or_else(|_| {
                        tracing::error!("a question of a conversation met a fault in the program");
                        instead
                    });
                    if let Some(me) = me.upgrade() {
                        let _ = me.send(work.into());
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

/// Also when a fault ends it: nothing of it is counted any more, and whoever waits is told.
impl Drop for Lane {
    fn drop(&mut self) {
        let messages = self.own_sealed() + self.waiting.len() + usize::from(self.owing);
        if std::thread::panicking() {
            self.core.revival.suspect(&self.peer, &self.judging);
            // Posts go back to where they came from, and stay counted.
            self.core.settle(messages);
        } else {
            self.core.settle(messages + self.posts.len());
        }
        for held in self.held.drain(..) {
            held.request.reply.send(Err(Error::not_ready("it was closed")));
        }
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
mod tests;
