//! Messages that the application has not consumed.
//!
//! There is one inbox and one cursor, and both are in the store: a row for each message that is not consumed, written
//! by the commit that decrypted it and removed when the application is done with it. Memory holds a window of them.

use core::pin::Pin;
use core::task::{Context, Poll};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::Stream;
use stvor_base::{ContentId, DeviceId, Timestamp, UserId};
use stvor_store::{ChangeSet, Op, Scan, Sealed, Table};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::ReusableBoxFuture;

use crate::content::Content;
use crate::error::{Error, Result};
use crate::keys;
use crate::limits;
use crate::rows::{FOREVER, MessageRow, PointerRow};

/// A message that arrived.
///
/// It is *consumed* when the stream that handed it out is asked for the next one or is dropped, or when
/// [`ack`](Self::ack) is called; with [`Messages::manual_ack`] only by `ack`. Until then it is offered again, with the
/// same id, after a restart.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// The same at sender and receiver, and whenever the message is offered again.
    pub id: ContentId,
    /// Who sent it: proven by the session, not by the relay.
    pub from: UserId,
    /// Which of the sender's devices.
    pub device: DeviceId,
    /// What it says.
    pub content: Content,
    /// When it was sent, by the sender's clock.
    pub sent_at: Timestamp,
    /// When it was stored here, by our clock.
    pub received_at: Timestamp,
    /// Whether the sender's identity was verified when it arrived.
    pub verified: bool,
    seq: u64,
    keep: u64,
    acker: mpsc::Sender<Consumed>,
}

impl Message {
    /// The text, if it is text.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        self.content.as_text()
    }

    /// Says that the application is done with the message; when this returns, it will not be offered again. Saying it
    /// twice is no error.
    ///
    /// # Errors
    /// `CLIENT_NOT_READY` after the client closed, or what the store met: the message is then offered again.
    pub async fn ack(&self) -> Result<()> {
        let (done, stored) = oneshot::channel();
        let closed =
            || Error::not_ready("it is closed, so the message was not acknowledged and will come again");
        self.acker.send(self.consumed(Some(done))).await.map_err(|_| closed())?;
        stored.await.map_err(|_| closed())?
    }

    fn consumed(&self, done: Option<oneshot::Sender<Result<()>>>) -> Consumed {
        Consumed {
            seq: self.seq,
            pointer: self.pointer(),
            keep: self.keep,
            received_at: self.received_at,
            done,
        }
    }

    fn pointer(&self) -> PointerRow {
        PointerRow {
            peer: stvor_base::Address::new(self.from.clone(), self.device),
            place: crate::rows::Place { order: self.received_at.as_millis(), id: self.id },
        }
    }
}

impl core::fmt::Debug for Message {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}

/// A message that the application is done with.
pub(crate) struct Consumed {
    seq: u64,
    pointer: PointerRow,
    keep: u64,
    received_at: Timestamp,
    done: Option<oneshot::Sender<Result<()>>>,
}

#[derive(Default)]
struct State {
    /// In memory, not handed out.
    ready: VecDeque<Message>,
    /// Rows up to this one are in memory, handed out, in flight or gone.
    loaded_to: u64,
    /// The last number given.
    last: u64,
    /// Numbers given to commits that have not ended: only their end brings them into memory.
    in_flight: HashSet<u64>,
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
    /// Mail was refused for want of room.
    refused: bool,
    /// Why rows were skipped, until it is told.
    unreadable: Option<&'static str>,
    closed: bool,
}

impl State {
    fn offer(&mut self, message: Message) {
        self.present.insert(message.seq);
        self.ready.push_back(message);
    }
}

/// The inbox of one client.
pub(crate) struct Inbox {
    store: Arc<Sealed>,
    state: Mutex<State>,
    changed: Notify,
    loading: tokio::sync::Mutex<()>,
    acker: mpsc::Sender<Consumed>,
    limit: usize,
    /// There is room again after mail was refused.
    pub(crate) room_again: Notify,
    skipped: Notify,
}

/// A message that a commit puts into the inbox.
pub(crate) struct Arrival {
    pub(crate) seq: u64,
    pub(crate) pointer: PointerRow,
    pub(crate) row: MessageRow,
}

impl Inbox {
    /// Reads how much waits.
    pub(crate) async fn open(store: Arc<Sealed>) -> Result<(Arc<Self>, mpsc::Receiver<Consumed>)> {
        let rows = store
            .scan_all(Scan::of(Table::Inbox, keys::INBOX), 2 * limits::MAX_INBOX)
            .await
            .map_err(Error::passed)?;
        let last =
            rows.last().and_then(|row| row.key.sort.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes);
        let (acker, consumed) = mpsc::channel(limits::LANE_QUEUE);
        let state = State { last, waiting: rows.len(), ..State::default() };
        let inbox = Self {
            store,
            state: Mutex::new(state),
            changed: Notify::new(),
            loading: tokio::sync::Mutex::new(()),
            acker,
            limit: limits::MAX_INBOX,
            room_again: Notify::new(),
            skipped: Notify::new(),
        };
        Ok((Arc::new(inbox), consumed))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is room for one more beside `coming`. If not, the mail stays at the relay.
    pub(crate) fn has_room(&self, coming: usize) -> bool {
        let mut state = self.lock();
        let room = state.waiting + coming < self.limit;
        state.refused |= !room;
        room
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
    pub(crate) fn reserve(&self) -> u64 {
        let mut state = self.lock();
        state.last += 1;
        state.waiting += 1;
        let seq = state.last;
        state.in_flight.insert(seq);
        seq
    }

    /// The commit of reserved places failed.
    pub(crate) fn give_back(&self, seqs: impl IntoIterator<Item = u64>) {
        let mut state = self.lock();
        for seq in seqs {
            if state.in_flight.remove(&seq) {
                state.waiting = state.waiting.saturating_sub(1);
            }
        }
    }

    /// The commit of reserved places is durable.
    pub(crate) fn arrived(&self, arrivals: Vec<Arrival>) {
        if arrivals.is_empty() {
            return;
        }
        {
            let mut state = self.lock();
            for arrival in arrivals {
                let seq = arrival.seq;
                state.in_flight.remove(&seq);
                let message = self.message(seq, arrival.pointer, arrival.row);
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
        (state.loaded_to + 1..seq).all(|other| state.in_flight.contains(&other))
    }

    fn message(&self, seq: u64, pointer: PointerRow, row: MessageRow) -> Message {
        Message {
            id: pointer.place.id,
            from: pointer.peer.user,
            device: pointer.peer.device,
            content: row.content,
            sent_at: row.sent_at,
            received_at: Timestamp::from_millis(pointer.place.order),
            verified: row.verified,
            seq,
            keep: row.keep,
            acker: self.acker.clone(),
        }
    }

    /// The next message; `None` after the client closed.
    async fn take(self: Arc<Self>) -> Result<Option<Message>> {
        loop {
            let changed = self.changed.notified();
            let behind = {
                let mut state = self.lock();
                if let Some(message) = state.ready.pop_front() {
                    return Ok(Some(message));
                }
                if state.closed {
                    return Ok(None);
                }
                state.loaded_to < state.last
            };
            if !(behind && self.load().await?) {
                changed.await;
            }
        }
    }

    /// Reads a page of the store into memory; whether there was one.
    async fn load(&self) -> Result<bool> {
        let _one_at_a_time = self.loading.lock().await;
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
        let keys: Vec<_> =
            found.iter().map(|(_, pointer)| keys::message(&pointer.peer.user, pointer.place)).collect();
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
                if state.in_flight.contains(&seq) {
                    continue;
                }
                match (late.remove(&seq), row) {
                    (Some(message), _) => state.offer(message),
                    // It stays where it is: what can not be read is not thrown away, but others are not to wait for it.
                    (None, Some(Err(error))) => unreadable = Some(Error::passed(error)),
                    (None, Some(Ok(row))) => {
                        let message = self.message(seq, pointer, row);
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
            any || !state.ready.is_empty()
        };
        if let Some(error) = unreadable {
            tracing::error!(code = error.code(), "a message of the inbox can not be read");
            self.lock().unreadable = Some(error.code());
            self.skipped.notify_one();
        }
        for (seq, pointer) in gone {
            let consumed =
                Consumed { seq, pointer, keep: FOREVER, received_at: Timestamp::default(), done: None };
            let _ = self.acker.send(consumed).await;
        }
        Ok(any)
    }

    fn put_back(&self, message: Message) {
        self.lock().ready.push_front(message);
        self.changed.notify_waiters();
    }

    /// Messages that the application has not consumed.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting
    }

    /// Forgets what is in memory of a conversation that was deleted.
    pub(crate) async fn forget(&self, peer: &UserId) {
        let forgotten: Vec<Consumed> = {
            let mut state = self.lock();
            let (gone, rest): (Vec<Message>, Vec<Message>) =
                core::mem::take(&mut state.ready).into_iter().partition(|message| message.from == *peer);
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

    /// Removes consumed messages, many in one commit, until every sender is gone or `stop` ends.
    pub(crate) async fn run_acks(
        self: Arc<Self>,
        mut consumed: mpsc::Receiver<Consumed>,
        stop: tokio_util::sync::CancellationToken,
    ) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                count = consumed.recv_many(&mut batch, limits::INBOX_PAGE) => if count == 0 { break },
                () = stop.cancelled() => {
                    consumed.close();
                    if consumed.recv_many(&mut batch, limits::INBOX_PAGE).await == 0 {
                        break;
                    }
                }
            }
            let result = self.remove(&batch).await;
            for one in batch.drain(..) {
                if let Some(done) = one.done {
                    let _ = done.send(result.clone());
                }
            }
        }
    }

    async fn remove(&self, batch: &[Consumed]) -> Result<()> {
        // What was consumed before is not counted twice. Nobody but this task removes rows.
        let mut seen = HashSet::new();
        let news: Vec<&Consumed> = {
            let state = self.lock();
            batch.iter().filter(|one| state.present.contains(&one.seq) && seen.insert(one.seq)).collect()
        };
        let mut changes = ChangeSet::new();
        for one in news {
            changes.delete(keys::inbox(one.seq));
            let key = keys::message(&one.pointer.peer.user, one.pointer.place);
            match one.keep {
                FOREVER => {}
                0 => {
                    changes.delete(key);
                }
                millis => {
                    // From here on nothing but the retention keeps it.
                    let Some(row) = self.store.one(&key).await.map_err(Error::passed)? else { continue };
                    let expires = one.received_at + std::time::Duration::from_millis(millis);
                    changes.push(Op::put(key, row.value).expiring(expires));
                }
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.store.commit(changes).await.map_err(Error::passed)?;
        let mut state = self.lock();
        state.waiting = state.waiting.saturating_sub(seen.len());
        for seq in &seen {
            state.present.remove(seq);
        }
        let room = state.refused && state.waiting <= self.limit / 4 * 3;
        if room {
            state.refused = false;
        }
        drop(state);
        if room {
            self.room_again.notify_one();
        }
        Ok(())
    }

    pub(crate) fn stream(self: &Arc<Self>) -> Messages {
        let id = {
            let mut state = self.lock();
            state.next_stream += 1;
            state.next_stream
        };
        Messages {
            id,
            pending: ReusableBoxFuture::new(Arc::clone(self).take()),
            inbox: Arc::clone(self),
            manual: false,
            done: false,
        }
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

/// Messages in the order of arrival, per conversation in the order of sending.
///
/// All streams of a client take from one inbox: each message goes to one of them, like work to workers. Ends when the
/// client closes.
pub struct Messages {
    id: u64,
    inbox: Arc<Inbox>,
    pending: ReusableBoxFuture<'static, Result<Option<Message>>>,
    manual: bool,
    done: bool,
}

impl Messages {
    /// The next message; `None` after the client closed. Consumes the one before (but see [`manual_ack`](Self::manual_ack)).
    /// Dropping the returned future loses nothing.
    pub async fn next(&mut self) -> Option<Message> {
        futures::StreamExt::next(self).await
    }

    /// Messages of this stream are consumed by [`Message::ack`] and by nothing else. What was not consumed when the
    /// client closes is offered again at the next start.
    #[must_use]
    pub fn manual_ack(mut self) -> Self {
        self.manual = true;
        self
    }

    fn settle(&mut self) {
        let Some(message) = self.inbox.lock().handed.remove(&self.id) else { return };
        if std::thread::panicking() {
            self.inbox.put_back(message);
        } else if self.inbox.acker.try_send(message.consumed(None)).is_err() {
            // The store is far behind; the message is offered again, which at-least-once allows.
            tracing::debug!("a consumed message could not be noted");
        }
    }
}

impl Stream for Messages {
    type Item = Message;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Message>> {
        if self.done {
            return Poll::Ready(None);
        }
        self.settle();
        match self.pending.poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(Some(message))) => {
                let inbox = Arc::clone(&self.inbox);
                self.pending.set(inbox.take());
                if !self.manual {
                    let id = self.id;
                    self.inbox.lock().handed.insert(id, message.clone());
                }
                Poll::Ready(Some(message))
            }
            Poll::Ready(Ok(None)) => {
                self.done = true;
                Poll::Ready(None)
            }
            Poll::Ready(Err(error)) => {
                tracing::error!(code = error.code(), "the inbox can not be read");
                self.done = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        self.settle();
    }
}

impl core::fmt::Debug for Messages {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Messages").field("manual_ack", &self.manual).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::Address;

    use super::*;
    use crate::events::DeliveryState;
    use crate::rows::{Direction, Place};

    fn row(number: u64) -> MessageRow {
        MessageRow {
            direction: Direction::In,
            content: Content::from(number.to_string()),
            sent_order: number,
            sent_at: Timestamp::from_millis(number),
            stamped_at: Timestamp::from_millis(number),
            state: DeliveryState::Delivered,
            read: false,
            keep: FOREVER,
            verified: false,
            msg_id: None,
            repairs: 0,
            queued: 0,
            identity: None,
        }
    }

    /// What a lane does with messages that came together.
    async fn commit(inbox: &Arc<Inbox>, peer: &Address, numbers: core::ops::Range<u64>) {
        let mut changes = ChangeSet::new();
        let mut arrivals = Vec::new();
        for number in numbers {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&number.to_be_bytes());
            let place = Place { order: number, id: ContentId::from_bytes(id) };
            let pointer = PointerRow { peer: peer.clone(), place };
            let seq = inbox.reserve();
            changes.insert(keys::message(&peer.user, place), row(number).encode());
            changes.insert(keys::inbox(seq), pointer.encode());
            arrivals.push(Arrival { seq, pointer, row: row(number) });
        }
        inbox.store.commit(changes).await.unwrap();
        inbox.arrived(arrivals);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn messages_that_arrive_while_a_page_is_read_are_offered_once_and_in_order() {
        const COUNT: u64 = 600;
        let directory = tempfile::tempdir().unwrap();
        let opened =
            stvor_store::open(&directory.path().join("store.db"), stvor_store::OpenKey::Default).await;
        let (inbox, consumed) = Inbox::open(Arc::new(opened.unwrap().store)).await.unwrap();
        let acks =
            tokio::spawn(Arc::clone(&inbox).run_acks(consumed, tokio_util::sync::CancellationToken::new()));
        let names = ["alice", "bob", "carol"];
        for name in names {
            let inbox = Arc::clone(&inbox);
            tokio::spawn(async move {
                let peer = Address::new(UserId::new(name).unwrap(), DeviceId::FIRST);
                for number in 0..COUNT {
                    commit(&inbox, &peer, number..number + 1).await;
                }
            });
        }
        let mut messages = inbox.stream();
        let mut next = HashMap::new();
        for _ in 0..COUNT * 3 {
            let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next())
                .await
                .unwrap()
                .unwrap();
            let expected = next.entry(message.from.clone()).or_insert(0);
            assert_eq!(message.text(), Some(expected.to_string().as_str()), "from {}", message.from);
            *expected += 1;
        }
        assert_eq!(inbox.lock().ready.len(), 0);
        acks.abort();
    }

    #[tokio::test]
    async fn a_row_that_can_not_be_read_is_told_and_does_not_end_the_stream() {
        let directory = tempfile::tempdir().unwrap();
        let opened =
            stvor_store::open(&directory.path().join("store.db"), stvor_store::OpenKey::Default).await;
        let store = Arc::new(opened.unwrap().store);
        let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        let (before, _consumed) = Inbox::open(Arc::clone(&store)).await.unwrap();
        commit(&before, &peer, 0..4).await;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&2_u64.to_be_bytes());
        let place = Place { order: 2, id: ContentId::from_bytes(id) };
        let mut changes = ChangeSet::new();
        changes.put(keys::inbox(2), vec![99]).put(keys::message(&peer.user, place), vec![99]);
        store.commit(changes).await.unwrap();
        let (inbox, _consumed) = Inbox::open(store).await.unwrap();
        let mut messages = inbox.stream();
        for expected in ["0", "3"] {
            let message = tokio::time::timeout(std::time::Duration::from_secs(60), messages.next());
            assert_eq!(message.await.unwrap().expect("the stream goes on").text(), Some(expected));
        }
        assert_eq!(inbox.skipped().await, Error::passed(stvor_base::codec::CodecError::Version(99)).code());
    }

    #[tokio::test]
    async fn a_full_inbox_takes_no_more_until_a_quarter_of_it_is_free() {
        const LIMIT: u64 = 8;
        let (mut inbox, consumed) = Inbox::open(Arc::new(Sealed::in_memory().unwrap())).await.unwrap();
        Arc::get_mut(&mut inbox).unwrap().limit = LIMIT as usize;
        let acks =
            tokio::spawn(Arc::clone(&inbox).run_acks(consumed, tokio_util::sync::CancellationToken::new()));
        let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        commit(&inbox, &peer, 0..LIMIT - 1).await;
        assert!(inbox.has_room(0), "one fits");
        assert!(!inbox.has_room(1), "one that is on its way takes the last place");
        commit(&inbox, &peer, LIMIT - 1..LIMIT).await;
        assert!(!inbox.has_room(0));
        let mut messages = inbox.stream().manual_ack();
        for left in (0..LIMIT).rev() {
            let message = messages.next().await.unwrap();
            message.ack().await.unwrap();
            message.ack().await.unwrap();
            assert_eq!(inbox.waiting(), left as usize, "twice consumed is once counted");
            let told = inbox.room_again.notified();
            tokio::pin!(told);
            let told = futures::poll!(told).is_ready();
            assert_eq!(told, left == LIMIT / 4 * 3, "{left} left");
        }
        acks.abort();
    }
}
