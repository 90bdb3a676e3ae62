//! One connection as the rest of the relay sees it: a bounded queue of frames, and a way to end it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use stvor_base::{Address, AppId};
use stvor_wire::server::End;
use stvor_wire::{Code, ServerMessage, frame};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::delivery::Delivery;
use crate::limits::{EPHEMERAL_OUTBOUND_BYTES, LIVE_OUTBOUND_BYTES, OUTBOUND_BYTES, OUTBOUND_FRAMES};
use crate::storage::{Holder, MailboxId};

/// What work on the receiving half may queue.
pub(crate) struct Queue<'a> {
    pub(crate) frames: &'a mut Vec<Bytes>,
    /// The socket has room.
    pub(crate) has_room: bool,
}

/// Who a connection belongs to.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) app: std::sync::Arc<AppId>,
    pub(crate) address: std::sync::Arc<Address>,
    pub(crate) device: MailboxId,
    /// Of the device's keys that the log-in proved.
    pub(crate) generation: u64,
    /// Which token let it in.
    pub(crate) token: TokenRef,
    /// 0 for connections that only send.
    pub(crate) fence: u64,
    /// Which store the device's keys are in, as far as it says.
    pub(crate) store_mark: Option<[u8; stvor_wire::limits::STORE_MARK_BYTES]>,
    /// It understands CLONE_SEEN.
    pub(crate) hears_of_clones: bool,
}

impl Who {
    /// The device, with the keys that it proved.
    pub(crate) const fn holder(&self) -> Holder {
        Holder { device: self.device, generation: self.generation }
    }
}

/// What has to stay valid for a connection to stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenRef {
    /// The app token with this hash.
    App([u8; 32]),
    /// A client token; it was valid at log-in, and lives at most an hour.
    Client,
    /// A development token.
    Development,
}

/// One logged-in connection.
pub(crate) struct Conn {
    pub(crate) id: u64,
    pub(crate) who: Who,
    /// The mailbox epoch of a connection that receives, else 0.
    pub(crate) epoch: u64,
    state: Mutex<State>,
    /// Frames wait, or the end.
    pub(crate) wake: Notify,
    /// An answer to a send came, or the end.
    pub(crate) answered: Notify,
    /// The end was announced.
    pub(crate) ended: Notify,
    /// The socket took enough that more may be offered.
    pub(crate) drained: Notify,
    /// The socket is gone: whoever works for the connection stops.
    pub(crate) gone: CancellationToken,
    pub(crate) unanswered: AtomicUsize,
    pub(crate) requests: AtomicUsize,
    pub(crate) waits: AtomicUsize,
    /// READY is on its way: what comes after is for a client that is logged in.
    pub(crate) greeted: AtomicBool,
}

struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    end: Option<End>,
    closed: bool,
    delivery: Option<Box<Delivery>>,
}

impl Conn {
    pub(crate) fn new(id: u64, who: Who, delivery: Option<Delivery>) -> Self {
        let epoch = delivery.as_ref().map_or(0, |delivery| delivery.epoch);
        let state = State {
            frames: VecDeque::new(),
            bytes: 0,
            end: None,
            closed: false,
            delivery: delivery.map(Box::new),
        };
        Self {
            id,
            who,
            epoch,
            state: Mutex::new(state),
            wake: Notify::new(),
            answered: Notify::new(),
            ended: Notify::new(),
            drained: Notify::new(),
            gone: CancellationToken::new(),
            unanswered: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            waits: AtomicUsize::new(0),
            greeted: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a frame. Past the cap the connection ends.
    pub(crate) fn push(&self, frame: Bytes) {
        let mut state = self.state();
        self.push_locked(&mut state, frame);
    }

    fn push_locked(&self, state: &mut State, frame: Bytes) {
        if state.closed || state.end.is_some() {
            return;
        }
        if state.bytes + frame.len() > OUTBOUND_BYTES || state.frames.len() >= OUTBOUND_FRAMES {
            self.end_locked(state, Code::SlowConsumer, "the client does not read what it is sent");
            return;
        }
        state.bytes += frame.len();
        state.frames.push_back(frame);
        self.wake.notify_one();
    }

    /// Queues a message.
    pub(crate) fn say(&self, message: &ServerMessage) {
        self.push(frame::encode_server(message));
    }

    /// Queues a frame that may be dropped. Returns whether it was queued.
    pub(crate) fn push_if_idle(&self, frame: Bytes) -> bool {
        let mut state = self.state();
        let room =
            state.bytes + frame.len() <= EPHEMERAL_OUTBOUND_BYTES && !state.closed && state.end.is_none();
        if room {
            self.push_locked(&mut state, frame);
        }
        room
    }

    /// Ends the connection with a code; what waits for the socket is dropped, the mailbox keeps it.
    pub(crate) fn end(&self, code: Code, detail: &str) {
        self.end_locked(&mut self.state(), code, detail);
    }

    /// Ends it after what waits for the socket was written.
    pub(crate) fn end_after_queue(&self, code: Code, detail: &str) {
        let mut state = self.state();
        let frames = std::mem::take(&mut state.frames);
        self.end_locked(&mut state, code, detail);
        state.frames = frames;
    }

    fn end_locked(&self, state: &mut State, code: Code, detail: &str) {
        if state.end.is_some() || state.closed {
            return;
        }
        state.end = Some(super::end(code, detail));
        state.frames = VecDeque::new();
        state.bytes = 0;
        state.delivery = None;
        self.wake.notify_one();
        self.answered.notify_one();
        self.ended.notify_one();
    }

    /// Whether it is to end.
    #[cfg(test)]
    pub(crate) fn is_ending(&self) -> bool {
        self.state().end.is_some()
    }

    /// The socket is gone.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.frames = VecDeque::new();
        state.delivery = None;
        drop(state);
        self.gone.cancel();
    }

    /// Takes up to `limit` bytes of frames to write; the end comes when no frame is left.
    pub(crate) fn take(&self, limit: usize, out: &mut Vec<Bytes>) -> Option<End> {
        let mut state = self.state();
        let mut taken = 0;
        while taken < limit
            && let Some(frame) = state.frames.pop_front()
        {
            taken += frame.len();
            out.push(frame);
        }
        let before = state.bytes;
        state.bytes = before.saturating_sub(taken);
        if before > LIVE_OUTBOUND_BYTES && state.bytes <= LIVE_OUTBOUND_BYTES {
            self.drained.notify_one();
        }
        if state.frames.is_empty() {
            // An idle connection keeps no buffer.
            if state.frames.capacity() > 64 {
                state.frames = VecDeque::new();
            }
            if out.is_empty() { state.end.clone() } else { None }
        } else {
            None
        }
    }

    /// Whether more may be offered on the socket just now.
    pub(crate) fn is_drained(&self) -> bool {
        self.state().bytes <= LIVE_OUTBOUND_BYTES
    }

    /// Works on the receiving half; `None` for connections that only send, or that ended. The work is told whether the
    /// socket has room, and may queue frames.
    pub(crate) fn deliver<R>(&self, work: impl FnOnce(&mut Delivery, Queue<'_>) -> R) -> Option<R> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut delivery = state.delivery.take()?;
        let mut frames: Vec<Bytes> = Vec::new();
        let has_room = state.bytes <= LIVE_OUTBOUND_BYTES;
        let result = work(&mut delivery, Queue { frames: &mut frames, has_room });
        state.delivery = Some(delivery);
        for frame in frames {
            self.push_locked(state, frame);
        }
        Some(result)
    }

    /// A send was answered.
    pub(crate) fn answer(&self, frame: Bytes) {
        self.unanswered.fetch_sub(1, Ordering::AcqRel);
        self.push(frame);
        self.answered.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{DeviceId, UserId};

    use super::*;
    use crate::limits::PUMP_BYTES;

    fn conn() -> Conn {
        with(None)
    }

    fn receiving() -> Conn {
        with(Some(Delivery::new(1)))
    }

    fn with(delivery: Option<Delivery>) -> Conn {
        let who = Who {
            app: AppId::new("app").unwrap().into(),
            address: Address::new(UserId::new("a").unwrap(), DeviceId::FIRST).into(),
            device: MailboxId(1),
            generation: 0,
            token: TokenRef::Development,
            fence: 0,
            store_mark: None,
            hears_of_clones: false,
        };
        Conn::new(1, who, delivery)
    }

    #[test]
    fn the_outbound_cap_holds_and_one_byte_more_ends_the_connection() {
        let mut out = Vec::new();
        let conn = conn();
        conn.push(Bytes::from(vec![0; OUTBOUND_BYTES]));
        assert_eq!(conn.take(usize::MAX, &mut out), None);
        assert_eq!(out.len(), 1);
        conn.push(Bytes::from(vec![0; OUTBOUND_BYTES]));
        conn.push(Bytes::from(vec![0; 1]));
        out.clear();
        assert_eq!(conn.take(usize::MAX, &mut out).map(|end| end.code), Some(Code::SlowConsumer));
        assert!(out.is_empty());
    }

    #[test]
    fn ephemeral_flood_leaves_mail_room_on_the_socket() {
        let conn = receiving();
        let noise = || Bytes::from(vec![0; 4096]);
        let taken = (0..2 * OUTBOUND_FRAMES).take_while(|_| conn.push_if_idle(noise())).count();
        assert!(taken > 0, "signals are taken while there is room");
        assert!(!conn.push_if_idle(noise()), "and then dropped");
        // The page of mail that is read next fits beside what is queued, and so does the one after it.
        let (told, page) = (conn.deliver(|_, queue| queue.has_room), Bytes::from(vec![0; PUMP_BYTES]));
        assert_eq!(told, Some(true));
        conn.push(page.clone());
        assert_eq!(conn.deliver(|_, queue| queue.has_room), Some(true));
        conn.push(page);
        let mut out = Vec::new();
        assert_eq!(conn.take(usize::MAX, &mut out), None);
        assert_eq!(out.len(), taken + 2, "nothing was lost and the connection goes on");
    }

    #[test]
    fn many_tiny_frames_are_bounded_too() {
        let conn = conn();
        for _ in 0..OUTBOUND_FRAMES {
            conn.push(Bytes::from_static(b"x"));
        }
        assert_eq!(conn.take(1, &mut Vec::new()), None);
        conn.push(Bytes::from_static(b"x"));
        assert_eq!(conn.take(1, &mut Vec::new()), None);
        conn.push(Bytes::from_static(b"x"));
        conn.push(Bytes::from_static(b"x"));
        assert_eq!(conn.take(1, &mut Vec::new()).map(|end| end.code), Some(Code::SlowConsumer));
    }
}
