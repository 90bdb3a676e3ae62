//! SEND and SEND_MANY.

use core::time::Duration;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stvor_base::{Address, MessageId};
use stvor_wire::client::{CounterMac, Lane, Recipient, Send, SendMany};
use stvor_wire::server::{Acceptance, Nack, Subject};
use stvor_wire::{Code, ServerMessage, frame, padding};

use super::Conn;
use super::delivery::{Committed, Item, Live};
use super::pump::{deliver_frame, pump};
use crate::limits::ROUTES_PER_CONNECTION;
use crate::relay::Relay;
use crate::storage::{MailboxId, Put, StoreError, Stored};

/// What a connection remembers of one recipient.
struct Route {
    mailbox: MailboxId,
    lane_epoch: u64,
    last: u64,
    /// The store has accepted a message of this lane from this connection, and refused none since: then the next number
    /// will be accepted too, and a live copy may go out before the commit.
    established: Arc<AtomicBool>,
}

/// Recipients that a connection wrote to, void when any device lost its mailbox.
pub(super) struct Routes {
    generation: u64,
    known: HashMap<Address, Route>,
}

impl Routes {
    pub(super) fn new(relay: &Relay) -> Self {
        Self { generation: relay.hub.generation.load(Ordering::Acquire), known: HashMap::new() }
    }
}

/// What the messages of one SEND or SEND_MANY share.
struct Parcel {
    blob: bytes::Bytes,
    counter: u64,
    counter_mac: Option<CounterMac>,
    ttl: Duration,
}

fn refuse(conn: &Conn, msg_id: MessageId, code: Code, detail: &str) {
    conn.say(&ServerMessage::Nack(nack(msg_id, code, detail)));
}

fn nack(msg_id: MessageId, code: Code, detail: &str) -> Nack {
    Nack {
        subject: Subject::Message(msg_id),
        code,
        detail: detail.to_owned(),
        retry_after: Duration::ZERO,
        expected_lane: 0,
    }
}

pub(super) async fn send(relay: &Arc<Relay>, conn: &Arc<Conn>, routes: &mut Routes, message: Send) {
    let Send { recipient, blob, counter, counter_mac, ttl } = message;
    one(relay, conn, routes, (recipient, &Parcel { blob, counter, counter_mac, ttl })).await;
}

pub(super) async fn send_many(relay: &Arc<Relay>, conn: &Arc<Conn>, routes: &mut Routes, message: SendMany) {
    let SendMany { recipients, blob, counter, counter_mac, ttl } = message;
    let parcel = Parcel { blob, counter, counter_mac, ttl };
    for recipient in recipients {
        one(relay, conn, routes, (recipient, &parcel)).await;
    }
}

async fn one(relay: &Arc<Relay>, conn: &Arc<Conn>, routes: &mut Routes, (to, parcel): (Recipient, &Parcel)) {
    relay.metrics.send(to.lane.is_none());
    if !padding::is_bucket(parcel.blob.len()) {
        refuse(conn, to.msg_id, Code::BadPadding, "the blob is not exactly one padding bucket long");
        return;
    }
    if let Err(wait) = take_rates(relay, conn, parcel.blob.len()) {
        relay.metrics.rate_limited("send");
        let limited =
            nack(to.msg_id, Code::RateLimited, "too many messages or bytes: retry after the given time");
        conn.say(&ServerMessage::Nack(Nack { retry_after: wait, ..limited }));
        return;
    }
    let route = match route(relay, conn, routes, &to.to).await {
        Ok(Some(route)) => route,
        Ok(None) => {
            refuse(conn, to.msg_id, Code::RecipientNotFound, "the relay knows no such user or device");
            return;
        }
        Err(_) => {
            refuse(conn, to.msg_id, Code::StoreUnavailable, "the relay can not look the recipient up: retry");
            return;
        }
    };
    match to.lane {
        None => ephemeral(relay, conn, route.mailbox, (to.msg_id, parcel)),
        Some(lane) => durable(relay, conn, route, (to.msg_id, lane, parcel)),
    }
}

fn take_rates(relay: &Relay, conn: &Conn, length: usize) -> Result<(), Duration> {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    relay.limiter.sends.take(&conn.who.device, 1)?;
    relay.limiter.bytes.take(&conn.who.device, length)?;
    relay.limiter.app_sends.take(&conn.who.app, 1)
}

async fn route<'a>(
    relay: &Relay,
    conn: &Conn,
    routes: &'a mut Routes,
    to: &Address,
) -> Result<Option<&'a mut Route>, StoreError> {
    let generation = relay.hub.generation.load(Ordering::Acquire);
    if generation != routes.generation {
        *routes = Routes { generation, known: HashMap::new() };
    }
    if !routes.known.contains_key(to) {
        let Some(mailbox) = relay.store.resolve(&conn.who.app, to).await? else { return Ok(None) };
        if routes.known.len() >= ROUTES_PER_CONNECTION {
            routes.known.clear();
        }
        let route = Route { mailbox, lane_epoch: 0, last: 0, established: Arc::default() };
        routes.known.insert(to.clone(), route);
    }
    Ok(routes.known.get_mut(to))
}

fn put(relay: &Relay, conn: &Conn, to: MailboxId, (msg_id, lane, parcel): (MessageId, Lane, &Parcel)) -> Put {
    let now = relay.now();
    let retention = relay.config.limits.retention();
    let ttl = if parcel.ttl.is_zero() { retention } else { parcel.ttl.min(retention) };
    Put {
        mailbox: to,
        app: conn.who.app.clone(),
        sender: conn.who.device,
        generation: conn.who.generation,
        from: conn.who.address.clone(),
        msg_id,
        lane,
        counter: parcel.counter,
        counter_mac: parcel.counter_mac,
        blob: parcel.blob.clone(),
        received_at: now,
        expires_at: now + ttl,
    }
}

/// To whoever listens, now or never.
fn ephemeral(relay: &Relay, conn: &Conn, to: MailboxId, (msg_id, parcel): (MessageId, &Parcel)) {
    let Some(receiver) = relay.hub.receiver(to) else { return };
    let nowhere = Lane { epoch: 0, number: core::num::NonZeroU64::MIN };
    let put = put(relay, conn, to, (msg_id, nowhere, parcel));
    let epoch = receiver.epoch;
    if receiver.push_if_idle(deliver_frame(&put, epoch, 0, true)) {
        relay.metrics.delivered(1);
    }
}

/// Into the mailbox; a copy goes out at the same time if nothing older waits.
fn durable(
    relay: &Arc<Relay>,
    conn: &Arc<Conn>,
    route: &mut Route,
    (msg_id, lane, parcel): (MessageId, Lane, &Parcel),
) {
    let number = lane.number.get();
    let follows = route.lane_epoch == lane.epoch && number == route.last + 1;
    if !follows {
        route.established = Arc::default();
        route.lane_epoch = lane.epoch;
    }
    route.last = number;
    let eligible = route.established.load(Ordering::Acquire);
    let put = Arc::new(put(relay, conn, route.mailbox, (msg_id, lane, parcel)));
    let item = Item { msg_id, sender: put.sender, bytes: put.blob.len() };
    let target = relay.hub.receiver(route.mailbox).and_then(|receiver| {
        let live = receiver.deliver(|delivery, queue| delivery.live(item, eligible && queue.has_room))?;
        Some((receiver, live))
    });
    let copy = match &target {
        Some((receiver, Live::Sent)) => {
            Some((receiver.clone(), deliver_frame(&put, receiver.epoch, 0, false)))
        }
        _ => None,
    };
    // A receiver that comes before this message is queued does not know that it waits: until its commit nothing that
    // follows goes live.
    if target.is_none() {
        route.established = Arc::default();
    }
    conn.unanswered.fetch_add(1, Ordering::AcqRel);
    let sent = Sent {
        relay: relay.clone(),
        sender: conn.clone(),
        put: put.clone(),
        established: route.established.clone(),
        target,
    };
    // First into the queue of the store, then to the device: its ACK must not come before the message.
    relay.store.put(put, Box::new(move |result| sent.finish(result)));
    if let Some((receiver, frame)) = copy {
        let behind = receiver.deliver(|delivery, queue| {
            queue.frames.push(frame);
            delivery.copied()
        });
        relay.metrics.delivered(1);
        if behind == Some(true) {
            pump(relay, &receiver);
        }
    }
}

/// A message whose commit is awaited.
struct Sent {
    relay: Arc<Relay>,
    sender: Arc<Conn>,
    put: Arc<Put>,
    established: Arc<AtomicBool>,
    target: Option<(Arc<Conn>, Live)>,
}

impl Sent {
    fn item(&self) -> Item {
        Item { msg_id: self.put.msg_id, sender: self.put.sender, bytes: self.put.blob.len() }
    }

    fn finish(self, result: Result<Stored, StoreError>) {
        let msg_id = self.put.msg_id;
        let answer = match result {
            Ok(Stored::New { seq }) => {
                // In this order: whoever finds the lane established finds this message offered, too.
                self.committed(seq);
                self.established.store(true, Ordering::Release);
                self.relay.metrics.accepted();
                ServerMessage::Accepted { msg_id, acceptance: Acceptance::Durable }
            }
            Ok(Stored::Duplicate) => {
                self.not_committed();
                ServerMessage::Accepted { msg_id, acceptance: Acceptance::Duplicate }
            }
            Err(error) => {
                self.established.store(false, Ordering::Release);
                self.not_committed();
                ServerMessage::Nack(self.refusal(&error))
            }
        };
        self.sender.answer(frame::encode_server(&answer));
    }

    fn refusal(&self, error: &StoreError) -> Nack {
        let StoreError::Refused(refusal) = error else {
            tracing::warn!(%error, "a message could not be stored");
            self.relay.metrics.nack(Code::StoreUnavailable);
            let detail = "the relay can not store messages just now: retry";
            let refused = nack(self.put.msg_id, Code::StoreUnavailable, detail);
            return Nack { retry_after: Duration::from_secs(1), ..refused };
        };
        self.relay.metrics.nack(refusal.code);
        let retry_after =
            if refusal.code == Code::MailboxFull { Duration::from_secs(5) } else { Duration::ZERO };
        Nack {
            retry_after,
            expected_lane: refusal.expected_lane,
            ..nack(self.put.msg_id, refusal.code, refusal.detail)
        }
    }

    fn not_committed(&self) {
        if let Some((receiver, live)) = &self.target {
            receiver.deliver(|delivery, _| delivery.failed(self.item(), *live));
        }
    }

    fn committed(&self, seq: u64) {
        let told = self.target.as_ref().map(|(receiver, live)| {
            self.tell(receiver, seq, Some(*live));
            receiver.id
        });
        // A connection that took over, or came, since the message was queued.
        if let Some(receiver) = self.relay.hub.receiver(self.put.mailbox)
            && Some(receiver.id) != told
        {
            self.tell(&receiver, seq, None);
        }
    }

    fn tell(&self, receiver: &Arc<Conn>, seq: u64, live: Option<Live>) {
        let next = receiver.deliver(|delivery, queue| {
            let next = delivery.committed(self.item(), seq, (live, queue.has_room));
            if next == Committed::Deliver {
                queue.frames.push(deliver_frame(&self.put, delivery.epoch, seq, false));
                self.relay.metrics.delivered(1);
            }
            next
        });
        if next == Some(Committed::Pump) {
            pump(&self.relay, receiver);
        }
    }
}
