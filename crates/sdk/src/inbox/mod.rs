//! Messages that the application has not consumed.
//!
//! There is one inbox and one cursor, and both are in the store: a row for each message that is not consumed, written
//! by the commit that decrypted it and removed when the application is done with it. Memory holds a window of them.

mod acks;
mod again;
mod claims;
mod late;
mod message;
mod stream;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stvor_base::{Timestamp, UserId};
use stvor_store::{RowVersion, Scan, Sealed, Table};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::AbortOnDropHandle;

pub(crate) use self::message::Consumed;
pub use self::message::Message;
pub use self::stream::Messages;
use crate::error::{Error, Result};
use crate::instances::Instances;
use crate::keys;
use crate::limits;
use crate::rows::{FOREVER, MessageRow, PointerRow};

#[derive(Default)]
struct State {
    /// In memory, not handed out.
    ready: VecDeque<Message>,
    /// Rows up to this one are in memory, handed out, in flight or gone.
    loaded_to: u64,
    /// The last number given.
    last: u64,
    /// Numbers given to commits that have not ended: only their end brings them into memory.
    in_flight: HashMap<u64, UserId>,
    /// Numbers of commits that reported a failure after the window had gone by: what they were for may be stored all the same.
    passed_over: BTreeSet<u64>,
    /// Numbers of such commits that the window has not reached and nobody has looked for: what is found of them counts from then on.
    given_back: BTreeSet<u64>,
    /// A page is being read, and what was committed beyond the window meanwhile.
    loading: bool,
    late: BTreeMap<u64, Message>,
    /// Messages that are not consumed.
    waiting: usize,
    /// Those of them that were taken into memory, whose rows are in the store.
    present: HashSet<u64>,
    /// What each stream handed out last and did not settle.
    handed: HashMap<u64, Message>,
    next_stream: u64,
    /// How many of them each sender has.
    shares: HashMap<UserId, usize>,
    /// Senders whose mail was refused because they had their share.
    crowded: HashSet<UserId>,
    /// Mail was refused for want of room.
    refused: bool,
    /// Why rows were skipped, until it is told.
    unreadable: Option<&'static str>,
    closed: bool,
    /// What this instance took of a shared inbox and has in memory or handed out: numbers and the versions of their
    /// claims. A row that names this instance and is not here was taken by a claim whose end nobody saw: it is taken again.
    claims: HashMap<u64, RowVersion>,
    /// The newest claim, and the newest of those that were lost: a claim after that one that is not among `claims` any more
    /// was consumed.
    newest: Option<RowVersion>,
    lost_to: Option<RowVersion>,
    /// How often this instance was declared gone.
    losses: u64,
    /// What streams are done with and the channel had no room for.
    behind: Vec<Consumed>,
}

impl State {
    /// One more message of a sender waits.
    fn comes(&mut self, from: &UserId) {
        self.waiting += 1;
        *self.shares.entry(from.clone()).or_default() += 1;
    }

    /// A message of a sender does not wait any more.
    fn leaves(&mut self, from: &UserId) {
        self.waiting = self.waiting.saturating_sub(1);
        if let Some(share) = self.shares.get_mut(from) {
            *share = share.saturating_sub(1);
            if *share == 0 {
                self.shares.remove(from);
            }
        }
    }

    /// The window comes to these, and finds what is stored.
    fn leave_to_window(&mut self, seqs: impl IntoIterator<Item = u64>) {
        self.given_back.extend(seqs);
        while self.given_back.len() > limits::MAX_GIVEN_BACK {
            self.given_back.pop_first();
        }
    }

    fn offer(&mut self, message: Message) {
        self.present.insert(message.seq);
        self.ready.push_back(message);
    }
}

/// The inbox of one client.
pub(crate) struct Inbox {
    store: Arc<Sealed>,
    instances: Arc<Instances>,
    /// Where reading goes on: a stream may be asked outside of any runtime.
    runtime: tokio::runtime::Handle,
    state: Mutex<State>,
    changed: Notify,
    loading: tokio::sync::Mutex<()>,
    acker: mpsc::Sender<Consumed>,
    limit: AtomicUsize,
    /// There is room again after mail was refused.
    pub(crate) room_again: Notify,
    skipped: Notify,
    /// Something was given back.
    gave_back: Notify,
    /// Something is behind.
    fell_behind: Notify,
    /// Held by whoever reads rows of messages that came and writes them again, until they are written: on a store of one
    /// process. On a shared one versions are expected instead.
    pub(crate) rows: Arc<tokio::sync::Mutex<()>>,
}

/// A place that is given back when this is dropped, by a fault in the program too: no place is taken for ever.
pub(crate) struct Reserved {
    /// `None` once the message is there.
    inbox: Option<Arc<Inbox>>,
    seq: u64,
}

impl Reserved {
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The message is there.
    fn taken(mut self) -> u64 {
        self.inbox = None;
        self.seq
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(inbox) = &self.inbox {
            inbox.give_back(self.seq);
        }
    }
}

/// A message that a commit puts into the inbox. Dropped when that failed, or nobody knows what became of it.
pub(crate) struct Arrival {
    pub(crate) reserved: Reserved,
    pub(crate) pointer: PointerRow,
    pub(crate) row: MessageRow,
}

/// Whether what a store met may be over when it is asked again.
fn passes(error: &Error) -> bool {
    error.retryable() || error.code() == "STORE_UNCERTAIN"
}

impl Inbox {
    /// Reads how much waits.
    pub(crate) async fn open(
        store: Arc<Sealed>,
        instances: Arc<Instances>,
    ) -> Result<(Arc<Self>, mpsc::Receiver<Consumed>)> {
        let (acker, consumed) = mpsc::channel(limits::LANE_QUEUE);
        let inbox = Self {
            store,
            instances,
            runtime: tokio::runtime::Handle::current(),
            state: Mutex::default(),
            changed: Notify::new(),
            loading: tokio::sync::Mutex::new(()),
            acker,
            limit: AtomicUsize::new(limits::MAX_INBOX),
            room_again: Notify::new(),
            skipped: Notify::new(),
            gave_back: Notify::new(),
            fell_behind: Notify::new(),
            rows: Arc::default(),
        };
        if inbox.instances.receives() {
            inbox.count().await?;
        }
        Ok((Arc::new(inbox), consumed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for one more of a sender beside `coming` of theirs. If not, the mail stays at the relay, and so
    /// does what comes after it until a quarter is free: then a fresh connection brings all of it, in its order. One
    /// sender has a quarter of the room, so that one who floods leaves room for others.
    pub(crate) fn has_room(&self, from: &UserId, coming: usize) -> bool {
        let mut state = self.lock();
        let share = state.shares.get(from).copied().unwrap_or(0);
        if share + coming >= self.share() || state.crowded.contains(from) {
            state.crowded.insert(from.clone());
            return false;
        }
        let room = !state.refused && state.waiting + coming < self.limit();
        state.refused |= !room;
        room
    }

    /// Messages of one sender that wait at most.
    fn share(&self) -> usize {
        self.limit() / limits::INBOX_SHARES
    }

    /// Messages that wait at most.
    fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    /// A small inbox is filled sooner.
    #[cfg(test)]
    pub(crate) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// Waits until a row was skipped because it can not be read; the code of why.
    pub(crate) async fn skipped(&self) -> &'static str {
        loop {
            self.skipped.notified().await;
            if let Some(code) = self.lock().unreadable.take() {
                return code;
            }
        }
    }

    /// A place for one more message.
    pub(crate) fn reserve(self: &Arc<Self>, from: &UserId) -> Reserved {
        let mut state = self.lock();
        state.last += 1;
        state.comes(from);
        let seq = state.last;
        state.in_flight.insert(seq, from.clone());
        Reserved { inbox: Some(Arc::clone(self)), seq }
    }

    /// The commit of a reserved place failed, or nobody knows what became of it.
    fn give_back(&self, seq: u64) {
        let passed_over = {
            let mut state = self.lock();
            let Some(from) = state.in_flight.remove(&seq) else { return };
            state.leaves(&from);
            if self.instances.is_shared() {
                return;
            }
            if state.loading || seq <= state.loaded_to {
                state.passed_over.insert(seq)
            } else {
                state.leave_to_window([seq]);
                false
            }
        };
        self.gave_back.notify_one();
        if passed_over {
            self.changed.notify_waiters();
        }
    }

    /// The commit of reserved places is durable.
    pub(crate) fn arrived(&self, arrivals: Vec<Arrival>) {
        if arrivals.is_empty() {
            return;
        }
        // Before the lock, which whoever gives a place back takes, too.
        let arrivals: Vec<_> = arrivals
            .into_iter()
            .map(|Arrival { reserved, pointer, row }| (reserved.taken(), pointer, row))
            .collect();
        {
            let mut state = self.lock();
            for (seq, pointer, row) in arrivals {
                state.in_flight.remove(&seq);
                if self.instances.is_shared() {
                    // Whoever is first takes it out of the store.
                    continue;
                }
                let message = self.message((seq, None), pointer, row);
                if state.loading && state.loaded_to < seq {
                    // The page that is being read may or may not hold the row: its end decides.
                    state.late.insert(seq, message);
                } else {
                    Self::admit(&mut state, message);
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// Takes a durable message into memory if its turn has come; if not, it waits in the store.
    fn admit(state: &mut State, message: Message) {
        let seq = message.seq;
        if state.loaded_to < seq {
            let next =
                state.loaded_to + 1 == seq || (state.ready.is_empty() && Self::nothing_between(state, seq));
            if !next || state.ready.len() >= limits::INBOX_PAGE {
                return;
            }
            state.loaded_to = seq;
        }
        state.offer(message);
    }

    /// Whether every number between the window and `seq` belongs to a commit that has not ended.
    fn nothing_between(state: &State, seq: u64) -> bool {
        (state.loaded_to + 1..seq).all(|other| state.in_flight.contains_key(&other))
    }

    fn message(
        &self,
        (seq, claim): (u64, Option<RowVersion>),
        pointer: PointerRow,
        row: MessageRow,
    ) -> Message {
        Message {
            id: pointer.place.id,
            group: pointer.group,
            from: pointer.peer.user,
            device: pointer.peer.device,
            content: row.content,
            sent_at: row.sent_at,
            received_at: Timestamp::from_millis(pointer.place.order),
            verified: row.verified,
            seq,
            claim,
            keep: row.keep,
            acker: self.acker.clone(),
        }
    }

    /// The next message; `None` after the client closed.
    async fn take(self: Arc<Self>) -> Result<Option<Message>> {
        if self.instances.is_shared() {
            return Ok(self.take_claimed().await);
        }
        loop {
            let changed = self.changed.notified();
            let behind = {
                let mut state = self.lock();
                // What was passed over is older.
                if state.passed_over.is_empty()
                    && let Some(message) = state.ready.pop_front()
                {
                    return Ok(Some(message));
                }
                if state.closed {
                    return Ok(None);
                }
                state.loaded_to < state.last || !state.passed_over.is_empty()
            };
            if behind {
                // In a task of its own: a stream that nobody asks any further while it reads must not keep others from reading.
                let reading = self.runtime.spawn({
                    let inbox = Arc::clone(&self);
                    async move { inbox.load().await }
                });
                match reading.await {
                    Ok(Ok(true)) => continue,
                    Ok(Ok(false)) => {}
                    // What is there is there when the store answers again.
                    Ok(Err(error)) if passes(&error) => {
                        tracing::warn!(code = error.code(), "the inbox can not be read just now");
                        tokio::select! {
                            () = self.rest(limits::BACKOFF_FIRST) => {}
                            () = changed => {}
                        }
                        continue;
                    }
                    Ok(Err(error)) => return Err(error),
                    // The runtime of the client ended, and the client with it.
                    Err(error) if error.is_cancelled() => return Ok(None),
                    Err(error) => tracing::error!(%error, "a reading of the inbox ended early"),
                }
            }
            changed.await;
        }
    }

    /// Waits in a task of the client's runtime: that may end before whoever waits.
    async fn rest(&self, time: core::time::Duration) {
        let resting = self.runtime.spawn(async move { tokio::time::sleep(time).await });
        let _ = AbortOnDropHandle::new(resting).await;
    }

    /// Reads a page of the store into memory; whether there was one.
    async fn load(&self) -> Result<bool> {
        let _one_at_a_time = self.loading.lock().await;
        self.load_passed_over().await?;
        let from = {
            let mut state = self.lock();
            if !state.ready.is_empty() {
                return Ok(true);
            }
            state.loading = true;
            state.loaded_to + 1
        };
        let _loading = Loading(self);
        let scan = Scan::of(Table::Inbox, keys::INBOX).from(from.to_be_bytes()).limit(limits::INBOX_PAGE);
        let rows = self.store.scan(scan).await.map_err(Error::passed)?.rows;
        let mut found = Vec::with_capacity(rows.len());
        let (mut loaded_to, mut unreadable) = (None, None);
        for row in &rows {
            let Ok(seq) = row.key.sort.as_slice().try_into().map(u64::from_be_bytes) else { continue };
            loaded_to = Some(seq);
            match PointerRow::decode(row.value.expose()) {
                Ok(pointer) => found.push((seq, pointer)),
                Err(error) => unreadable = Some(Error::passed(error)),
            }
        }
        let keys: Vec<_> = found.iter().map(|(_, pointer)| keys::pointed(pointer)).collect();
        let messages = self.store.get(&keys).await.map_err(Error::passed)?;
        let rows: Vec<_> =
            messages.into_iter().map(|row| row.map(|row| MessageRow::decode(row.value.expose()))).collect();
        let mut gone = Vec::new();
        let any = {
            let mut state = self.lock();
            state.loaded_to = loaded_to.unwrap_or(state.loaded_to);
            let any = loaded_to.is_some();
            let mut late = core::mem::take(&mut state.late);
            for ((seq, pointer), row) in found.into_iter().zip(rows) {
                // What a commit has yet to report comes by that report.
                if state.in_flight.contains_key(&seq) {
                    continue;
                }
                if state.passed_over.remove(&seq) || state.given_back.remove(&seq) {
                    state.comes(&pointer.peer.user);
                }
                match (late.remove(&seq), row) {
                    (Some(message), _) => state.offer(message),
                    // It stays where it is: what can not be read is not thrown away, but others are not to wait for it.
                    (None, Some(Err(error))) => unreadable = Some(Error::passed(error)),
                    (None, Some(Ok(row))) => {
                        let message = self.message((seq, None), pointer, row);
                        state.offer(message);
                    }
                    // The conversation was deleted before the application took the message.
                    (None, None) => {
                        state.present.insert(seq);
                        gone.push((seq, pointer));
                    }
                }
            }
            for message in late.into_values() {
                Self::admit(&mut state, message);
            }
            let beyond = state.loaded_to.saturating_add(1);
            state.given_back = state.given_back.split_off(&beyond);
            any || !state.ready.is_empty()
        };
        if let Some(error) = unreadable {
            tracing::error!(code = error.code(), "a message of the inbox can not be read");
            self.lock().unreadable = Some(error.code());
            self.skipped.notify_one();
        }
        for (seq, pointer) in gone {
            let consumed = Consumed {
                seq,
                claim: None,
                pointer,
                keep: FOREVER,
                received_at: Timestamp::default(),
                done: None,
            };
            let _ = self.acker.send(consumed).await;
        }
        Ok(any)
    }

    /// Reads what commits stored that reported a failure when the window had gone by. What is not there now never will be: reading makes
    /// void what was given up and has not landed ([`Sealed::commit`]). What can not be read is told at the next start.
    async fn load_passed_over(&self) -> Result<()> {
        let numbers: Vec<u64> = {
            let mut state = self.lock();
            let beyond = state.loaded_to.saturating_add(1);
            let not_reached = state.passed_over.split_off(&beyond);
            if !not_reached.is_empty() {
                self.gave_back.notify_one();
            }
            state.leave_to_window(not_reached);
            state.passed_over.iter().copied().collect()
        };
        for seq in numbers {
            let row = self.store.one(&keys::inbox(seq)).await.map_err(Error::passed)?;
            let pointer = row.and_then(|row| PointerRow::decode(row.value.expose()).ok());
            let row = match &pointer {
                Some(pointer) => self.store.one(&keys::pointed(pointer)).await.map_err(Error::passed)?,
                None => None,
            };
            let row = row.and_then(|row| MessageRow::decode(row.value.expose()).ok());
            let mut state = self.lock();
            state.passed_over.remove(&seq);
            let (Some(pointer), Some(row)) = (pointer, row) else { continue };
            let message = self.message((seq, None), pointer, row);
            state.comes(&message.from);
            state.present.insert(seq);
            // What was put back stands before older ones; what came before of the same sender stays before it all the same.
            let older = |other: &Message| other.from == message.from && other.seq < seq;
            let behind = state.ready.iter().rposition(older).map_or(0, |at| at + 1);
            let at = state.ready.partition_point(|other| other.seq < seq).max(behind);
            state.ready.insert(at, message);
        }
        Ok(())
    }

    fn put_back(&self, message: Message) {
        {
            let mut state = self.lock();
            // After the end it waits in the store, for the next start.
            // A copy of a claim that was lost is nobody's any more.
            let kept =
                !self.instances.is_shared() || state.claims.get(&message.seq).copied() == message.claim;
            if !state.closed && kept {
                state.ready.push_front(message);
            }
        }
        self.changed.notify_waiters();
    }

    /// Messages that the application has not consumed; of a shared inbox those that this instance took.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        if self.instances.is_shared() { state.claims.len() } else { state.waiting }
    }

    /// Forgets what is in memory of a conversation that was deleted.
    pub(crate) async fn forget(&self, peer: &UserId) {
        let forgotten: Vec<Consumed> = {
            let mut state = self.lock();
            let (gone, rest): (Vec<Message>, Vec<Message>) = core::mem::take(&mut state.ready)
                .into_iter()
                .partition(|message| message.from == *peer && message.group.is_none());
            state.ready = rest.into();
            gone.iter().map(|message| Consumed { keep: FOREVER, ..message.consumed(None) }).collect()
        };
        for consumed in forgotten {
            let _ = self.acker.send(consumed).await;
        }
    }

    /// Ends all streams. What streams handed out is consumed, but for those of manual acknowledgement; what was not handed
    /// out stays in the store.
    pub(crate) async fn close(&self) {
        let handed: Vec<Consumed> = {
            let mut state = self.lock();
            state.closed = true;
            state.ready.clear();
            state.handed.drain().map(|(_, message)| message.consumed(None)).collect()
        };
        for consumed in handed {
            let _ = self.acker.send(consumed).await;
        }
        self.changed.notify_waiters();
    }
}

/// Ends a reading, whatever came of it.
struct Loading<'a>(&'a Inbox);

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.loading = false;
        // After a failure these wait in the store, beyond the window.
        state.late.clear();
    }
}

#[cfg(test)]
mod crowded;
#[cfg(test)]
mod tests;
