//! How much work of the application may wait, and what happens past that.
//!
//! An order waits from the call until the lane of its peer takes it, a message until it is in the outbox: before that a lane may
//! have to hold it, until the relay has answered for its recipient or the application has for their identity. The line of a peer is first come, first served, also for
//! callers that wait for room, so messages keep the order of the calls. What judges the peer or ends the conversation does not stand
//! in it where there is no room: it has a small reserve.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stvor_base::UserId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind, Result};
use crate::events::{Event, Hub};
use crate::limits;

/// What becomes of a call for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnPressure {
    /// It is refused with `BACKPRESSURE`. Nothing of it was begun.
    #[default]
    Reject,
    /// It waits for room as long as its timeout, with as many others at most as may be queued; then `BACKPRESSURE`.
    Wait,
}

/// How much of the application's work a client takes in ([`crate::AppBuilder::executor`]).
///
/// Each number is from 1 to 1,000,000 (bytes: to 4 GiB); anything else is refused when the app is opened.
///
/// ```
/// use stvor::{Executor, OnPressure};
///
/// let small = Executor { max_queued: 1_000, on_pressure: OnPressure::Wait, ..Executor::default() };
/// assert_eq!(small.max_pending, 10_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Executor {
    /// Messages of one conversation that the relay has not accepted yet; they are in the outbox. Past it a send is
    /// `QUOTA_EXCEEDED`, whatever `on_pressure` says: a peer who is away is no pressure that passes. 10,000 if not set.
    pub max_pending: usize,
    /// Calls that no conversation has taken up yet, over all of a client, messages to groups that are not in the outbox, and those
    /// to users that are not because the relay has not answered for their recipient yet, or a question of trust is open. 65,536
    /// if not set.
    pub max_queued: usize,
    /// Such calls for one user or group, so that one whose store or trust callback hangs leaves room for others. A quarter of
    /// `max_queued` if not set. While messages fill it, what judges the user or ends the conversation still gets through (safety
    /// numbers, `verify` and `unverify`, `accept_identity`, `reset_session`, `delete_conversation`): 16 such calls for one user, and
    /// 1,024 over all of a client, have room beyond all of these numbers.
    pub max_queued_per_peer: Option<usize>,
    /// Bytes of contents in such calls; those for one user or group may be a quarter of them, or one message of the greatest size if that
    /// is more. 64 MiB if not set.
    pub max_queued_bytes: usize,
    /// What becomes of calls past these. They are refused if not set.
    pub on_pressure: OnPressure,
}

impl Default for Executor {
    fn default() -> Self {
        Self {
            max_pending: limits::MAX_PENDING,
            max_queued: limits::MAX_QUEUED,
            max_queued_per_peer: None,
            max_queued_bytes: limits::MAX_QUEUED_BYTES,
            on_pressure: OnPressure::Reject,
        }
    }
}

impl Executor {
    fn per_peer(&self) -> usize {
        self.max_queued_per_peer.unwrap_or_else(|| (self.max_queued / 4).max(1))
    }

    fn bytes_per_peer(&self) -> usize {
        let least = stvor_protocol::limits::MAX_PLAINTEXT.min(self.max_queued_bytes);
        (self.max_queued_bytes / 4).max(least)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let fields = [
            ("max_pending", self.max_pending, limits::MOST_QUEUED),
            ("max_queued", self.max_queued, limits::MOST_QUEUED),
            ("max_queued_per_peer", self.per_peer(), limits::MOST_QUEUED),
            ("max_queued_bytes", self.max_queued_bytes, limits::MOST_QUEUED_BYTES),
        ];
        for (name, value, most) in fields {
            if !(1..=most).contains(&value) {
                return Err(Error::config(format!("executor: {name} is {value}; it is from 1 to {most}")));
            }
        }
        Ok(())
    }
}

/// What waits in all lanes of a client.
pub(crate) struct Pressure {
    executor: Executor,
    orders: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Room beyond that for what judges or ends conversations.
    reserve: Arc<Semaphore>,
    /// Callers that wait for room.
    outside: AtomicUsize,
    /// The application was told that more than half of the room is used.
    pressed: AtomicBool,
    told_at: Mutex<Option<Instant>>,
    refusals: Mutex<Refusals>,
}

#[derive(Default)]
struct Refusals {
    told_at: Option<Instant>,
    since: u64,
}

/// How often pressure and refusals are told at most: a flood of them must not push other events out.
const TELL_AGAIN: Duration = Duration::from_secs(1);

impl Default for Pressure {
    fn default() -> Self {
        Self::new(Executor::default())
    }
}

impl Pressure {
    pub(crate) fn new(executor: Executor) -> Self {
        Self {
            executor,
            orders: Arc::new(Semaphore::new(executor.max_queued)),
            bytes: Arc::new(Semaphore::new(executor.max_queued_bytes)),
            reserve: Arc::new(Semaphore::new(limits::RESERVED)),
            outside: AtomicUsize::new(0),
            pressed: AtomicBool::new(false),
            told_at: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    pub(crate) fn max_pending(&self) -> usize {
        self.executor.max_pending
    }

    pub(crate) fn waits(&self) -> bool {
        self.executor.on_pressure == OnPressure::Wait
    }

    /// How many orders wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (
            self.executor.max_queued - self.orders.available_permits(),
            self.executor.max_queued_bytes - self.bytes.available_permits(),
        )
    }

    /// After an order was queued: tells once when more than half of the room is used, and again after it was less than a quarter.
    pub(crate) fn watch(&self, hub: &Hub) {
        let (queued, _) = self.waiting();
        let limit = self.executor.max_queued;
        let pressed = self.pressed.load(Ordering::Relaxed);
        if pressed && queued <= limit / 4 {
            self.pressed.store(false, Ordering::Relaxed);
        } else if !pressed && queued > limit / 2 && !self.pressed.swap(true, Ordering::Relaxed) {
            let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
            if told_at.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
                *told_at = Some(Instant::now());
                hub.emit(Event::QueuePressure {
                    queued,
                    waiting: self.outside.load(Ordering::Relaxed),
                    limit,
                });
            }
        }
    }

    /// A call was refused; told once a second at most.
    pub(crate) fn refused(&self, peer: &UserId, hub: &Hub) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.since += 1;
        if refusals.told_at.is_none_or(|at| at.elapsed() >= TELL_AGAIN) {
            let calls = core::mem::take(&mut refusals.since);
            refusals.told_at = Some(Instant::now());
            hub.emit(Event::CallsRejected { peer: peer.clone(), calls });
        }
    }
}

/// What waits in one lane, or for one group.
pub(crate) struct Share {
    all: Arc<Pressure>,
    orders: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    /// Held by the caller at the head of those that wait, until its order is in the queue.
    line: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
}

/// What an order takes up while it waits.
pub(crate) struct Room {
    /// Of the orders, or of the reserve, of its conversation and of all.
    _orders: [OwnedSemaphorePermit; 2],
    /// Of the bytes of both; nothing for what is in the reserve.
    _bytes: Option<[OwnedSemaphorePermit; 2]>,
}

/// Counts a caller that waits.
struct Outside<'a>(&'a AtomicUsize);

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

impl Share {
    pub(crate) fn new(all: Arc<Pressure>) -> Self {
        let orders = Arc::new(Semaphore::new(all.executor.per_peer()));
        let bytes = Arc::new(Semaphore::new(all.executor.bytes_per_peer()));
        let reserve = Arc::new(Semaphore::new(limits::RESERVED_OF_ONE));
        let line = tokio::sync::Mutex::default();
        Self { all, orders, bytes, reserve, line, waiting: AtomicUsize::new(0) }
    }

    pub(crate) fn max_pending(&self) -> usize {
        self.all.max_pending()
    }

    /// Whether a caller waits here: the lane must not go, or another one would begin a line of its own.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// What an order of so many bytes takes of the bytes of this conversation: one that is larger than its share takes all of it.
    fn part(&self, bytes: usize) -> u32 {
        permits(bytes.min(self.all.executor.bytes_per_peer()))
    }

    /// Room for an order of so many bytes, if there is some and nobody waits for it.
    pub(crate) fn try_room(&self, bytes: usize) -> Result<Room> {
        let Executor { max_queued, max_queued_bytes, .. } = self.all.executor;
        let full = |what, limit| Error::from(ErrorKind::Backpressure { what, limit });
        let per_peer = || full("orders wait for this conversation", self.all.executor.per_peer());
        let _line = self.line.try_lock().map_err(|_| per_peer())?;
        let one = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned();
        let many = |of: &Arc<Semaphore>, count| Arc::clone(of).try_acquire_many_owned(count);
        let bytes_per_peer = self.all.executor.bytes_per_peer();
        let order = one(&self.orders).map_err(|_| per_peer())?;
        let part = many(&self.bytes, self.part(bytes))
            .map_err(|_| full("bytes wait for this conversation", bytes_per_peer))?;
        let order_of_all =
            one(&self.all.orders).map_err(|_| full("orders wait for conversations", max_queued))?;
        let part_of_all = many(&self.all.bytes, permits(bytes))
            .map_err(|_| full("bytes wait for conversations", max_queued_bytes))?;
        Ok(Room { _orders: [order, order_of_all], _bytes: Some([part, part_of_all]) })
    }

    /// Room in the reserve, if there is some. Nobody waits for that.
    pub(crate) fn try_reserve(&self) -> Option<Room> {
        let one = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().ok();
        Some(Room { _orders: [one(&self.reserve)?, one(&self.all.reserve)?], _bytes: None })
    }

    /// Waits for room and hands it to `queue`, before anybody who came later gets some.
    ///
    /// # Errors
    /// BACKPRESSURE when as many wait as may be queued or the order has more bytes than there is room for; what `queue` says.
    pub(crate) async fn wait(&self, bytes: usize, queue: impl FnOnce(Room) -> Result<()>) -> Result<()> {
        let Executor { max_queued, max_queued_bytes, .. } = self.all.executor;
        if bytes > max_queued_bytes {
            let what = "bytes wait for conversations";
            return Err(ErrorKind::Backpressure { what, limit: max_queued_bytes }.into());
        }
        if self.all.outside.fetch_add(1, Ordering::Relaxed) >= max_queued {
            self.all.outside.fetch_sub(1, Ordering::Relaxed);
            return Err(ErrorKind::Backpressure { what: "calls wait for room", limit: max_queued }.into());
        }
        let _outside = Outside(&self.all.outside);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Outside(&self.waiting);
        let closed = |_| Error::not_ready("it is closed");
        let _line = self.line.lock().await;
        let one = |of: &Arc<Semaphore>| Arc::clone(of).acquire_owned();
        let many = |of: &Arc<Semaphore>, count| Arc::clone(of).acquire_many_owned(count);
        let order = one(&self.orders).await.map_err(closed)?;
        let part = many(&self.bytes, self.part(bytes)).await.map_err(closed)?;
        let order_of_all = one(&self.all.orders).await.map_err(closed)?;
        let part_of_all = many(&self.all.bytes, permits(bytes)).await.map_err(closed)?;
        queue(Room { _orders: [order, order_of_all], _bytes: Some([part, part_of_all]) })
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use futures::future::{FutureExt as _, TryFutureExt as _, join_all};
    use futures::poll;

    use super::*;
    use crate::{App, Client, ConnectOptions, SendOptions, SendWait};

    fn code<T>(result: &Result<T>) -> &'static str {
        result.as_ref().map_or_else(|error| error.code(), |_| "OK")
    }

    #[test]
    fn numbers_at_their_bounds_are_taken_and_past_them_refused() {
        let checked = |executor: Executor| code(&executor.check());
        let usual = Executor::default();
        for (good, bad) in [(1, 0), (1_000_000, 1_000_001)] {
            for (value, expected) in [(good, "OK"), (bad, "INVALID_CONFIG")] {
                assert_eq!(checked(Executor { max_pending: value, ..usual }), expected);
                assert_eq!(checked(Executor { max_queued: value, ..usual }), expected);
                assert_eq!(checked(Executor { max_queued_per_peer: Some(value), ..usual }), expected);
            }
        }
        let most = usize::try_from(u32::MAX).unwrap();
        for (value, expected) in
            [(1, "OK"), (0, "INVALID_CONFIG"), (most, "OK"), (most + 1, "INVALID_CONFIG")]
        {
            assert_eq!(checked(Executor { max_queued_bytes: value, ..usual }), expected);
        }
        let _ = Pressure::new(Executor { max_queued: 1_000_000, max_queued_bytes: most, ..usual });
    }

    #[tokio::test]
    async fn callers_get_room_in_the_order_of_their_calls_and_none_overtakes_them() {
        let one = Executor { max_queued: 8, max_queued_per_peer: Some(1), ..Executor::default() };
        let all = Arc::new(Pressure::new(one));
        let (a, b) = (Share::new(Arc::clone(&all)), Share::new(Arc::clone(&all)));
        let queued = Mutex::new(Vec::new());
        let into = &queued;
        let call = |share, name| {
            Share::wait(share, 1, move |room| {
                into.lock().unwrap().push((name, room));
                Ok(())
            })
        };
        call(&a, "a1").await.unwrap();
        let (mut second, mut third) = (Box::pin(call(&a, "a2")), Box::pin(call(&a, "a3")));
        assert!(poll!(&mut second).is_pending() && poll!(&mut third).is_pending());
        // Its line does not keep another peer out.
        call(&b, "b1").await.unwrap();
        // One who stops waiting leaves the line; room that comes free is for the next, not for whoever comes by.
        let (mut fourth, mut given_up) = (Box::pin(call(&a, "a4")), second);
        assert!(poll!(&mut fourth).is_pending() && poll!(&mut given_up).is_pending());
        drop(given_up);
        queued.lock().unwrap().clear();
        assert_eq!(code(&a.try_room(1)), "BACKPRESSURE");
        assert_eq!(poll!(&mut third).map(|result| result.is_ok()), Poll::Ready(true));
        assert!(poll!(&mut fourth).is_pending());
        let names: Vec<_> = queued.lock().unwrap().drain(..).map(|(name, _)| name).collect();
        assert_eq!(names, ["a3"]);
        fourth.await.unwrap();
        queued.lock().unwrap().clear();
        assert_eq!(all.waiting(), (0, 0));
        assert_eq!(all.outside.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn as_many_wait_as_may_be_queued_and_what_can_never_fit_is_refused_at_once() {
        let executor = Executor { max_queued: 2, max_queued_bytes: 10, ..Executor::default() };
        let all = Arc::new(Pressure::new(executor));
        let share = Share::new(Arc::clone(&all));
        let kept = Mutex::new(Vec::new());
        let call = |bytes| {
            share.wait(bytes, |room| {
                kept.lock().unwrap().push(room);
                Ok(())
            })
        };
        assert_eq!(code(&call(11).await), "BACKPRESSURE");
        call(10).await.unwrap();
        let mut waiting = [Box::pin(call(1)), Box::pin(call(1))];
        for one in &mut waiting {
            assert!(poll!(one).is_pending());
        }
        assert_eq!(code(&call(1).await), "BACKPRESSURE");
        kept.lock().unwrap().clear();
        for one in waiting {
            one.await.unwrap();
            kept.lock().unwrap().clear();
        }
        assert_eq!(all.waiting(), (0, 0));
    }

    async fn client(executor: Executor) -> Client {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let app = App::builder().app_token("stvor_dev_test123").relay_url(format!("ws://{nobody}"));
        let app = app.in_memory().executor(executor).open().await.unwrap();
        let options = ConnectOptions { allow_unregistered: true, ..ConnectOptions::default() };
        app.connect_with("alice", options).await.unwrap()
    }

    async fn flood(client: &Client, count: usize) -> Vec<&'static str> {
        let options = SendOptions { wait: SendWait::Committed, timeout: Some(Duration::from_secs(60)) };
        let sends = (0..count).map(|number| client.send_with("bob", format!("number {number}"), options));
        join_all(sends).await.iter().map(code).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_wait_a_flood_is_taken_in_whole_and_in_order() {
        let small = Executor {
            max_queued: 4,
            max_queued_per_peer: Some(4),
            on_pressure: OnPressure::Wait,
            ..Executor::default()
        };
        let client = client(small).await;
        // Four are queued and four wait: so many can be under way.
        for round in 1..=50 {
            assert_eq!(flood(&client, 8).await, ["OK"; 8]);
            assert_eq!(client.pending(), 8 * round);
        }
        let page = client.history("bob").limit(500).load().await.unwrap();
        let numbers: Vec<String> = page.messages.iter().map(|one| format!("{:?}", one.content)).collect();
        let expected: Vec<String> = (0..numbers.len())
            .map(|at| format!("{:?}", crate::Content::from(format!("number {}", at % 8))))
            .collect();
        assert!(numbers == expected || numbers.iter().rev().eq(&expected), "{numbers:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_reject_what_is_too_much_is_refused_and_told() {
        let client = client(Executor { max_queued: 4, ..Executor::default() }).await;
        let mut events = client.events();
        let codes = flood(&client, 1_000).await;
        let refused = codes.iter().filter(|code| **code == "BACKPRESSURE").count();
        assert!(refused > 0 && codes.iter().all(|code| ["OK", "BACKPRESSURE"].contains(code)));
        assert_eq!(client.pending(), 1_000 - refused);
        loop {
            if let Event::CallsRejected { peer, calls } = events.next().await.unwrap() {
                assert_eq!(peer.as_str(), "bob");
                assert!(calls >= 1);
                break;
            }
        }
        // The room is free again.
        assert_eq!(flood(&client, 1).await, ["OK"]);
    }

    #[tokio::test]
    async fn whoever_says_for_ever_waits_and_ends_nothing() {
        let client = client(Executor::default()).await;
        let options = SendOptions { wait: SendWait::Committed, timeout: Some(Duration::MAX) };
        client.send_with("bob", "some day", options).await.unwrap();
        assert_eq!(client.pending(), 1);
        for wait in [
            client.flush(Duration::MAX).boxed(),
            client.wait_for_user("bob", Duration::MAX).map_ok(|()| 0).boxed(),
        ] {
            assert!(tokio::time::timeout(Duration::from_millis(1), wait).await.is_err(), "it waits");
        }
        assert_eq!(flood(&client, 1).await, ["OK"], "the conversation goes on");
    }
}
