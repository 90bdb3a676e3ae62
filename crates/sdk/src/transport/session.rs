//! One logged-in connection: a reader that hands frames out and never waits for whom it hands them to, a writer that
//! sends what queues up in one go, and requests that wait for their answers.

use core::num::NonZeroU64;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use stvor_base::{Address, MessageId, UserId};
use stvor_wire::Code;
use stvor_wire::client::{Ack, AckOne, ClientMessage, FetchBundle, Hold, UploadKeys};
use stvor_wire::frame::{self, Phase};
use stvor_wire::keys::KeyCounts;
use stvor_wire::server::{Bundles, Deliver, Nack, Ready, ServerMessage, Subject, UserState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;

use super::dial::Socket;
use super::gather::gather;
use super::login::Abilities;
use super::refusal::{self, Refusal};
use crate::error::{Error, Result};
use crate::limits;

/// What a connection hands up. None of these may block: the reader calls them.
pub(crate) trait Upcalls: Send + Sync + 'static {
    /// A message came.
    fn deliver(&self, deliver: Deliver);
    /// The relay accepted a message.
    fn accepted(&self, msg_id: MessageId);
    /// Somebody announced themselves at a relay that keeps nothing.
    fn came(&self, who: &Address);
    /// The relay refused a message.
    fn refused(&self, nack: Nack);
    /// One-time prekeys run out at the relay.
    fn keys_low(&self, keys: KeyCounts);
    /// The relay restarts soon.
    fn draining(&self);
    /// The relay refused this device with its keys in another store.
    fn clone_seen(&self);
    /// Mail that waited is in.
    fn caught_up(&self);
}

/// What is asked for of a user.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    NoOneTime,
    Devices,
}

/// A connection that is logged in.
pub(crate) struct Session {
    /// Counts connections of this client from 1.
    pub(crate) generation: u64,
    pub(crate) ready: Ready,
    user: UserId,
    outgoing: mpsc::Sender<ClientMessage>,
    acks: mpsc::Sender<AckOne>,
    /// Of a relay that holds nobody back, nobody takes out what is put in.
    holds: Option<mpsc::Sender<MessageId>>,
    requests: Mutex<HashMap<NonZeroU64, oneshot::Sender<Answer>>>,
    next_request: AtomicU64,
    /// Held while a request that the relay asked to slow down pauses, so that they are asked again one by one, at its pace.
    slowed: tokio::sync::Mutex<()>,
    /// Sends that are not answered: past its bound the relay would stop reading.
    pub(super) unanswered: Arc<Semaphore>,
    /// The relay answers for nothing: what is written is as good as it gets.
    pub(crate) minimal: bool,
    /// The relay lets a user's key hand over to another one.
    pub(crate) rotates: bool,
}

/// Room for one SEND: among those that are not answered, and in the queue of the socket. Dropped unused, it is there
/// for others again.
pub(crate) struct SendRoom {
    unanswered: OwnedSemaphorePermit,
    outgoing: mpsc::OwnedPermit<ClientMessage>,
}

impl SendRoom {
    /// Queues a SEND.
    pub(crate) fn send(self, message: ClientMessage) {
        self.unanswered.forget();
        self.outgoing.send(message);
    }
}

pub(super) type Answer = core::result::Result<ServerMessage, Nack>;

/// The socket's side of a [`Session`].
pub(crate) struct Ends {
    pub(super) outgoing: mpsc::Receiver<ClientMessage>,
    pub(super) acks: mpsc::Receiver<AckOne>,
    holds: mpsc::Receiver<MessageId>,
    session: Arc<Session>,
}

#[cfg(test)]
impl Ends {
    /// What was acknowledged since this was asked last.
    pub(crate) fn acked(&mut self) -> Vec<MessageId> {
        core::iter::from_fn(|| self.acks.try_recv().ok()).map(|one| one.msg_id).collect()
    }
}

/// Whoever waits on the session learns that it ended, however it ended.
impl Drop for Ends {
    fn drop(&mut self) {
        self.session.lock().clear();
        self.session.unanswered.close();
    }
}

impl Session {
    pub(crate) fn new(
        generation: u64,
        ready: Ready,
        (user, knows): (UserId, Abilities),
    ) -> (Arc<Self>, Ends) {
        Self::of((generation, ready, user), (false, knows))
    }

    /// At a minimal relay.
    pub(super) fn minimal(generation: u64, ready: Ready, user: UserId) -> (Arc<Self>, Ends) {
        Self::of((generation, ready, user), (true, Abilities::default()))
    }

    fn of(
        (generation, ready, user): (u64, Ready, UserId),
        (minimal, knows): (bool, Abilities),
    ) -> (Arc<Self>, Ends) {
        let (outgoing, outgoing_end) = mpsc::channel(limits::LINK_QUEUE);
        let (acks, acks_end) = mpsc::channel(4 * limits::LANE_QUEUE);
        let (hold, holds_end) = mpsc::channel(stvor_wire::limits::MAX_HELD);
        let session = Self {
            generation,
            ready,
            user,
            outgoing,
            acks,
            holds: knows.holds.then_some(hold),
            requests: Mutex::default(),
            next_request: AtomicU64::new(1),
            slowed: tokio::sync::Mutex::default(),
            unanswered: Arc::new(Semaphore::new(limits::MAX_UNANSWERED)),
            minimal,
            rotates: knows.rotates,
        };
        let session = Arc::new(session);
        let ends =
            Ends { outgoing: outgoing_end, acks: acks_end, holds: holds_end, session: Arc::clone(&session) };
        (session, ends)
    }

    /// Queues a frame; waits while the socket is busy.
    pub(crate) async fn send(&self, message: ClientMessage) -> Result<()> {
        self.outgoing.send(message).await.map_err(|_| gone())
    }

    /// Room for one SEND, if there is some now.
    pub(crate) fn try_room(&self) -> Option<SendRoom> {
        let unanswered = Arc::clone(&self.unanswered).try_acquire_owned().ok()?;
        let outgoing = self.outgoing.clone().try_reserve_owned().ok()?;
        Some(SendRoom { unanswered, outgoing })
    }

    /// Room for one SEND; waits while too many are not answered or the socket is busy. Whoever waits comes before those
    /// who only [try](Self::try_room).
    pub(crate) async fn room(&self) -> Result<SendRoom> {
        let unanswered = Arc::clone(&self.unanswered).acquire_owned().await.map_err(|_| gone())?;
        let outgoing = self.outgoing.clone().reserve_owned().await.map_err(|_| gone())?;
        Ok(SendRoom { unanswered, outgoing })
    }

    /// Tells the relay that a message is stored here. An ACK that is lost with its connection brings the message
    /// again, and it is then acknowledged as a duplicate.
    pub(crate) fn ack(&self, one: AckOne) {
        let _ = self.acks.try_send(one);
    }

    /// Asks the relay to deliver nothing more of the sender of an un-ACKed message on this connection, and to let what it did
    /// deliver take no room from others. More senders than a connection holds back are delivered as before. False if it has to
    /// be asked again.
    pub(crate) fn hold(&self, message: MessageId) -> bool {
        self.holds.as_ref().is_none_or(|holds| holds.try_send(message).is_ok())
    }

    /// The bundles of a user; the relay waits up to `wait` for the user to appear.
    pub(crate) async fn fetch_bundle(
        &self,
        user: &UserId,
        wait: Duration,
        timeout: Duration,
    ) -> Result<Bundles> {
        let wait = wait.min(Duration::from_millis(stvor_wire::limits::MAX_WAIT_MS.into()));
        self.fetch(user, (wait, Wanted::All), timeout).await
    }

    /// The bundles of a user without one-time prekeys, of which each question costs the user one: it only looks.
    pub(crate) async fn look_at_bundle(&self, user: &UserId, timeout: Duration) -> Result<Bundles> {
        self.fetch(user, (Duration::ZERO, Wanted::NoOneTime), timeout).await
    }

    /// A user's device list and rotations, without prekeys.
    pub(crate) async fn fetch_rotations(&self, user: &UserId, timeout: Duration) -> Result<Bundles> {
        self.fetch(user, (Duration::ZERO, Wanted::Devices), timeout).await
    }

    async fn fetch(
        &self,
        user: &UserId,
        (wait, wanted): (Duration, Wanted),
        timeout: Duration,
    ) -> Result<Bundles> {
        let request = |request_id| {
            ClientMessage::FetchBundle(FetchBundle {
                request_id,
                user: user.clone(),
                wait,
                devices_only: wanted == Wanted::Devices,
                without_one_time: wanted == Wanted::NoOneTime,
                devices: Vec::new(),
            })
        };
        match self.ask(request, user, timeout).await? {
            ServerMessage::Bundles(bundles) if bundles.user == *user => Ok(bundles),
            _ => Err(Error::relay_protocol("it answered another question")),
        }
    }

    /// Whether the relay knows a user.
    pub(crate) async fn user_state(&self, user: &UserId, timeout: Duration) -> Result<UserState> {
        let request = |request_id| ClientMessage::UserStatus { request_id, user: user.clone() };
        match self.ask(request, user, timeout).await? {
            ServerMessage::UserState(state) if state.user == *user => Ok(state),
            _ => Err(Error::relay_protocol("it answered another question")),
        }
    }

    /// Adds prekeys.
    pub(crate) async fn upload(&self, keys: UploadKeys, timeout: Duration) -> Result<KeyCounts> {
        let request = |request_id| ClientMessage::UploadKeys(UploadKeys { request_id, ..keys.clone() });
        match self.ask(request, &self.user, timeout).await? {
            ServerMessage::KeysUploaded { keys, .. } => Ok(keys),
            _ => Err(Error::relay_protocol("it answered another question")),
        }
    }

    /// Deletes the account at the relay.
    pub(crate) async fn delete_account(&self, timeout: Duration) -> Result<()> {
        match self.ask(|request_id| ClientMessage::DeleteAccount { request_id }, &self.user, timeout).await? {
            ServerMessage::Done { .. } => Ok(()),
            _ => Err(Error::relay_protocol("it answered another question")),
        }
    }

    /// Asks, and asks again while the relay says that the device asks too often: it tells when, and who adds a thousand members
    /// to a group asks more than it answers at once. Fails when that, or an answer, would take longer than `timeout`.
    async fn ask(
        &self,
        request: impl Fn(NonZeroU64) -> ClientMessage,
        about: &UserId,
        timeout: Duration,
    ) -> Result<ServerMessage> {
        let deadline = Instant::now() + timeout;
        let mut late = Error::unavailable("the relay did not answer a request in time");
        let answered = async {
            loop {
                let nack = match self.exchange(&request).await? {
                    Ok(answer) => return Ok(answer),
                    Err(nack) => nack,
                };
                let refused = refusal::error_of(nack.code, &nack.detail, nack.retry_after, about);
                let wait = nack.retry_after.max(limits::SLOWED_LEAST);
                if nack.code != Code::RateLimited || Instant::now() + wait >= deadline {
                    return Err(refused);
                }
                late = refused;
                let pause = async {
                    let _turn = self.slowed.lock().await;
                    tokio::time::sleep(wait).await;
                };
                tokio::select! {
                    () = self.outgoing.closed() => return Err(gone()),
                    () = pause => {}
                }
            }
        };
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(answer) => answer,
            Err(_) => Err(late),
        }
    }

    /// A request and its answer.
    async fn exchange(&self, request: impl Fn(NonZeroU64) -> ClientMessage) -> Result<Answer> {
        let id = loop {
            if let Some(id) = NonZeroU64::new(self.next_request.fetch_add(1, Ordering::Relaxed)) {
                break id;
            }
        };
        let (answer, answered) = oneshot::channel();
        {
            let mut requests = self.lock();
            if requests.len() >= limits::MAX_REQUESTS {
                return Err(Error::not_ready("too many requests wait for the relay"));
            }
            requests.insert(id, answer);
        }
        let _forget = Forget { session: self, id };
        self.send(request(id)).await?;
        answered.await.map_err(|_| gone())
    }

    pub(super) fn answer(&self, id: NonZeroU64, answer: Answer) {
        if let Some(waiting) = self.lock().remove(&id) {
            let _ = waiting.send(answer);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<NonZeroU64, oneshot::Sender<Answer>>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Forget<'a> {
    session: &'a Session,
    id: NonZeroU64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.session.lock().remove(&self.id);
    }
}

fn gone() -> Error {
    Error::unavailable("the connection to the relay broke")
}

/// What the reader learns for the next connection.
#[derive(Default)]
pub(crate) struct Carry {
    pub(crate) cursor: bytes::Bytes,
    /// The relay asked to come back after this.
    pub(crate) drain: Option<(Duration, Duration)>,
}

/// Runs a connection until it ends; says why it ended.
pub(crate) async fn run(
    socket: Socket,
    session: &Arc<Session>,
    ends: Ends,
    (upcalls, carry): (&dyn Upcalls, &mut Carry),
) -> Refusal {
    let (sink, stream) = socket.split();
    let writer = write(sink, ends, session.ready.mailbox_epoch);
    let reader = Reader { session, upcalls, carry, last_heard: Instant::now(), pinged: false };
    tokio::select! {
        refusal = reader.run(stream) => refusal,
        refusal = writer => refusal,
    }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut ends: Ends, mailbox_epoch: u64) -> Refusal {
    let broken =
        |error| Refusal::retry(Error::unavailable(format!("the connection to the relay broke: {error}")));
    loop {
        let (mut acks, mut holds) = (Vec::new(), Vec::new());
        let first = tokio::select! {
            message = ends.outgoing.recv() => match message {
                Some(message) => Some(message),
                None => return Refusal::retry(Error::not_ready("it was closed")),
            },
            Some(ack) = ends.acks.recv() => {
                acks.push(ack);
                None
            }
            Some(hold) = ends.holds.recv() => {
                holds.push(hold);
                None
            }
        };
        // Everything that is there already shares one flush.
        let mut next = first;
        let mut frames = 0;
        while let Some(message) = next.take() {
            let (message, following) = gather(message, &mut ends.outgoing);
            if let Err(error) = sink.feed(Message::Binary(frame::encode_client(&message))).await {
                return broken(error);
            }
            frames += 1;
            if frames >= limits::LINK_QUEUE {
                // What was taken out of the queue is fed all the same.
                if let Some(following) = following
                    && let Err(error) = sink.feed(Message::Binary(frame::encode_client(&following))).await
                {
                    return broken(error);
                }
                break;
            }
            next = following.or_else(|| ends.outgoing.try_recv().ok());
        }
        while acks.len() < stvor_wire::limits::MAX_SINGLE_ACKS {
            match ends.acks.try_recv() {
                Ok(ack) => acks.push(ack),
                Err(_) => break,
            }
        }
        if !acks.is_empty() {
            let ack = ClientMessage::Ack(Ack { mailbox_epoch, up_to: None, single: acks });
            if let Err(error) = sink.feed(Message::Binary(frame::encode_client(&ack))).await {
                return broken(error);
            }
        }
        // After the ACKs of what was taken of the same senders.
        while holds.len() < stvor_wire::limits::MAX_HELD
            && let Ok(hold) = ends.holds.try_recv()
        {
            holds.push(hold);
        }
        if !holds.is_empty() {
            let hold = ClientMessage::Hold(Hold { msg_ids: holds });
            if let Err(error) = sink.feed(Message::Binary(frame::encode_client(&hold))).await {
                return broken(error);
            }
        }
        if let Err(error) = sink.flush().await {
            return broken(error);
        }
    }
}

struct Reader<'a> {
    session: &'a Arc<Session>,
    upcalls: &'a dyn Upcalls,
    carry: &'a mut Carry,
    last_heard: Instant,
    pinged: bool,
}

/// Quiet for this long after READY means that what waited at the relay has come in.
const QUIET: Duration = Duration::from_millis(120);

impl Reader<'_> {
    async fn run(mut self, mut stream: SplitStream<Socket>) -> Refusal {
        let beat = self.session.ready.heartbeat.clamp(Duration::from_secs(1), 2 * limits::HEARTBEAT);
        let mut catching_up = true;
        loop {
            let wait = if catching_up { QUIET } else { beat.mul_f64(1.2) };
            let message = match tokio::time::timeout(wait, stream.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => {
                    return Refusal::retry(Error::unavailable(format!(
                        "the connection to the relay broke: {error}"
                    )));
                }
                Ok(None) => return Refusal::retry(Error::unavailable("the relay closed the connection")),
                Err(_) if catching_up => {
                    catching_up = false;
                    self.upcalls.caught_up();
                    continue;
                }
                // Nothing was heard for more than one beat: ask, and give up after two.
                Err(_) if self.last_heard.elapsed() > beat.mul_f64(2.3) => {
                    return Refusal::retry(Error::unavailable(
                        "nothing was heard from the relay for two heartbeats",
                    ));
                }
                Err(_) => {
                    if !self.pinged {
                        self.pinged = true;
                        let _ = self.session.outgoing.try_send(ClientMessage::Ping { nonce: 1 });
                    }
                    continue;
                }
            };
            self.last_heard = Instant::now();
            self.pinged = false;
            if let Err(refusal) = self.heard(message) {
                return refusal;
            }
        }
    }

    fn heard(&mut self, message: Message) -> core::result::Result<(), Refusal> {
        let bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Ping(_) | Message::Pong(_) => return Ok(()),
            Message::Close(frame) => {
                let code = frame.and_then(|frame| Code::from_close_code(frame.code.into()));
                return Err(match code {
                    Some(code) => refusal::of_end(code, "", Duration::ZERO, &self.session.user),
                    None => Refusal::retry(Error::unavailable("the relay closed the connection")),
                });
            }
            Message::Text(_) | Message::Frame(_) => {
                return Err(Refusal::retry(Error::relay_protocol("it sent text where frames belong")));
            }
        };
        let message = frame::decode_server(bytes, Phase::LoggedIn)
            .map_err(|error| Refusal::retry(Error::relay_protocol(error.to_string())))?;
        match message {
            ServerMessage::Deliver(deliver) => self.upcalls.deliver(deliver),
            ServerMessage::Accepted { msg_id, .. } => {
                self.session.unanswered.add_permits(1);
                self.upcalls.accepted(msg_id);
            }
            ServerMessage::Nack(nack) => match nack.subject {
                Subject::Message(_) => {
                    if nack.code != Code::AckMismatch {
                        self.session.unanswered.add_permits(1);
                    }
                    self.upcalls.refused(nack);
                }
                Subject::Request(id) => self.session.answer(id, Err(nack)),
            },
            ServerMessage::Ping { nonce, resume_cursor } => {
                if !resume_cursor.is_empty() {
                    self.carry.cursor = resume_cursor;
                }
                // A full queue means that the socket is busy, which is sign of life enough.
                let _ = self.session.outgoing.try_send(ClientMessage::Pong { nonce });
            }
            ServerMessage::Pong { .. } => {}
            ServerMessage::KeysLow { keys } => self.upcalls.keys_low(keys),
            ServerMessage::CloneSeen => self.upcalls.clone_seen(),
            ServerMessage::Drain(drain) => {
                self.carry.drain = Some((drain.reconnect_after, drain.spread));
                if !drain.resume_cursor.is_empty() {
                    self.carry.cursor = drain.resume_cursor;
                }
                self.upcalls.draining();
            }
            ServerMessage::End(end) => {
                return Err(refusal::of_end(end.code, &end.detail, end.retry_after, &self.session.user));
            }
            ServerMessage::KeysUploaded { request_id, .. } | ServerMessage::Done { request_id } => {
                self.session.answer(request_id, Ok(message));
            }
            ServerMessage::Bundles(ref bundles) => self.session.answer(bundles.request_id, Ok(message)),
            ServerMessage::UserState(ref state) => self.session.answer(state.request_id, Ok(message)),
            ServerMessage::Challenge(_) | ServerMessage::Ready(_) => {
                return Err(Refusal::retry(Error::relay_protocol("it sent a log-in frame after the log-in")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use stvor_wire::server::{Limits, Registration, Resumed};

    use super::*;

    fn connected() -> (Arc<Session>, Ends) {
        let bounds = Limits {
            max_frame_bytes: 0,
            max_blob_bytes: 0,
            window_messages: 0,
            window_bytes: 0,
            retention: Duration::ZERO,
            dedup: Duration::ZERO,
            max_recipients: 0,
        };
        let ready = Ready {
            mailbox_epoch: 1,
            resumed: Resumed::Full,
            registration: Registration::Known,
            highest_counter: 0,
            counter_mac: None,
            lost_seq: 0,
            keys: KeyCounts::default(),
            limits: bounds,
            resume_cursor: bytes::Bytes::new(),
            heartbeat: Duration::from_secs(1),
        };
        let knows = Abilities { holds: false, rotates: true };
        Session::new(1, ready, (UserId::new("alice").unwrap(), knows))
    }

    #[tokio::test]
    async fn whoever_waits_for_the_relay_learns_that_the_connection_was_dropped() {
        let user = UserId::new("alice").unwrap();
        let (session, ends) = connected();
        session.unanswered.acquire_many(limits::MAX_UNANSWERED.try_into().unwrap()).await.unwrap().forget();
        let sending = {
            let session = Arc::clone(&session);
            tokio::spawn(async move { session.room().await.map(|_| ()) })
        };
        let asking = tokio::spawn(async move { session.user_state(&user, Duration::from_secs(3_600)).await });
        tokio::task::yield_now().await;
        drop(ends);
        let patience = Duration::from_secs(30);
        let sent = tokio::time::timeout(patience, sending).await.expect("a sender is told").unwrap();
        assert_eq!(sent.unwrap_err().code(), "RELAY_UNAVAILABLE");
        let answer = tokio::time::timeout(patience, asking).await.expect("an asker is told").unwrap();
        assert_eq!(answer.unwrap_err().code(), "RELAY_UNAVAILABLE");
    }

    #[tokio::test]
    async fn one_request_more_than_may_wait_is_refused_until_one_is_given_up() {
        let (session, _ends) = connected();
        let user = UserId::new("bob").unwrap();
        let ask = || Box::pin(session.user_state(&user, Duration::from_secs(3_600)));
        let mut waiting: Vec<_> = (0..limits::MAX_REQUESTS).map(|_| ask()).collect();
        for request in &mut waiting {
            assert!(futures::poll!(request.as_mut()).is_pending());
        }
        assert_eq!(ask().await.unwrap_err().code(), "CLIENT_NOT_READY");
        waiting.pop();
        assert!(futures::poll!(ask().as_mut()).is_pending(), "a request that is dropped makes room");
    }

    /// The next request that goes to the relay.
    async fn asked(ends: &mut Ends) -> NonZeroU64 {
        let patience = Duration::from_secs(30);
        let message = tokio::time::timeout(patience, ends.outgoing.recv()).await.expect("it is asked");
        match message.expect("the session is there") {
            ClientMessage::UserStatus { request_id, .. } => request_id,
            other => panic!("not asked for: {other:?}"),
        }
    }

    fn slow_down(session: &Session, id: NonZeroU64, retry_after: Duration) {
        let subject = Subject::Request(id);
        let code = Code::RateLimited;
        session.answer(id, Err(Nack { subject, code, detail: String::new(), retry_after, expected_lane: 0 }));
    }

    #[tokio::test]
    async fn requests_that_came_too_fast_are_asked_again_though_another_has_no_answer_yet() {
        let (session, mut ends) = connected();
        let ask = || {
            let (session, user) = (Arc::clone(&session), UserId::new("bob").unwrap());
            tokio::spawn(async move { session.user_state(&user, Duration::from_secs(3_600)).await })
        };
        let asking = [ask(), ask()];
        let ids = [asked(&mut ends).await, asked(&mut ends).await];
        for id in ids {
            slow_down(&session, id, Duration::ZERO);
        }
        // The relay may wait for the user that the first one is about before it answers.
        let again = [asked(&mut ends).await, asked(&mut ends).await];
        assert!(again[0] != again[1] && again.iter().all(|id| !ids.contains(id)));
        // Who pauses learns that the connection broke, however long the pause is.
        slow_down(&session, again[1], Duration::from_secs(3_000));
        drop(ends);
        for one in asking {
            let answer =
                tokio::time::timeout(Duration::from_secs(30), one).await.expect("it is told").unwrap();
            assert_eq!(answer.unwrap_err().code(), "RELAY_UNAVAILABLE");
        }
    }
}
