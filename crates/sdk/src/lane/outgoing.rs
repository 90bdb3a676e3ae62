//! From the application to the relay: outbox rows, encryption, the send window, the relay's answers.

use core::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stvor_base::{ContentId, MessageId};
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_protocol::plaintext::MAX_ACKNOWLEDGED;
use stvor_protocol::{Acknowledged, ContentKind, Plaintext};
use stvor_store::{Key, Op};
use stvor_wire::Code;
use stvor_wire::client::{ClientMessage, Lane as LaneNumber, Recipient, Send};
use stvor_wire::server::{Nack, Subject};
use tokio::time::Instant;

use super::step::Step;
use super::{Held, Lane, Sealed, SendRequest, Waiting, context};
use crate::content::Content;
use crate::core::random;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::keys;
use crate::limits;
use crate::rollback::Rollback;
use crate::rows::{Direction, MessageRow, PendingBody, PendingRow, Place, PointerRow, SealedSend};
use crate::transport::session::{SendRoom, Session};

/// How long the index entry of a message of ours is kept: as long as receipts may come.
const KEEP_INDEX: Duration = limits::KEEP_CONTENT_IDS;

pub(crate) fn kind_of(content: &Content) -> ContentKind {
    match content {
        Content::Text(_) => ContentKind::Text,
        Content::Bytes(_) => ContentKind::Bytes,
        Content::Json(_) => ContentKind::Json,
    }
}

impl Lane {
    pub(super) fn is_ready(&self) -> bool {
        self.conversation.as_ref().is_some_and(|conversation| conversation.is_ready(self.core.now()))
    }

    /// Whether the peer has an identity that we know, so that messages to it may wait in the outbox.
    fn is_known(&self) -> bool {
        self.conversation.as_ref().is_some_and(|conversation| conversation.pin().is_some())
    }

    pub(super) async fn take_send(&mut self, request: SendRequest, step: &mut Step) {
        if let Err(error) = self.core.refuse_undecided() {
            return self.refuse_send(request, error);
        }
        let queued_before = !self.waiting.is_empty() || !step.waiting.is_empty();
        let known = self.is_known() || queued_before;
        // Behind messages that are held, every message is: they keep their order.
        if !self.held.is_empty() || (!known && self.core.session().is_some()) {
            // The relay says first whether there is such a user; until then nothing is queued.
            let deadline = Instant::now() + request.timeout;
            self.held.push(Held { request, deadline });
            if self.unusable > 0 {
                // Whoever sends is told how it is now, not how it was: to look costs the peer nothing.
                self.fetch_after = Instant::now();
            }
            return;
        }
        self.enqueue(request, step);
    }

    pub(super) fn refuse_send(&self, request: SendRequest, error: Error) {
        self.depth.fetch_sub(1, Ordering::Relaxed);
        request.reply.send(Err(error));
    }

    /// Puts a message into the outbox; encrypts it at once where that is possible.
    pub(super) fn enqueue(&mut self, request: SendRequest, step: &mut Step) {
        let now = self.core.now();
        let place = Place { order: self.core.next_order(now), id: request.id };
        let straight = self.waiting.is_empty()
            && step.waiting.is_empty()
            && self.is_ready()
            && self.core.session().is_some()
            && self.core.rollback().is_none()
            && self.room(step) > 0;
        let sealed = if straight {
            match self.seal(
                (kind_of(&request.content), SecretBytes::from_slice(request.content.as_bytes()), request.id),
                step,
            ) {
                Ok(sealed) => Some(sealed),
                Err(error) => return self.refuse_send(request, error),
            }
        } else {
            None
        };
        step.row.order = place.order;
        step.row.queued += 1;
        let queued = step.row.queued;
        let row = MessageRow {
            direction: Direction::Out,
            content: request.content,
            sent_order: place.order,
            sent_at: stvor_base::Timestamp::from_millis(place.order),
            stamped_at: now,
            state: DeliveryState::Queued,
            read: false,
            keep: self.core.keep_of(&self.peer.user),
            verified: false,
            msg_id: None,
            repairs: 0,
            queued,
            identity: None,
            from: None,
        };
        let pointer = PointerRow { peer: self.peer.clone(), place, group: None };
        step.changes
            .push(Op::insert(keys::own_content(request.id), pointer.encode()).expiring(now + KEEP_INDEX));
        if step.peer.is_none() {
            step.peer = self.core.note_peer(&self.peer.user, &mut step.changes);
        }
        match sealed {
            Some(send) => self.store_sealed((queued, place, now), (row, send), step),
            None => {
                self.put_message(place, &row, step);
                let pending = PendingRow { body: PendingBody::Message(place), sealed: None, created_at: now };
                step.changes.insert(keys::pending(&self.peer, queued), pending.encode());
                step.waiting.push(Waiting { queued, place, created_at: now });
            }
        }
        step.counted += 1;
        step.reply(request.reply);
    }

    /// The row of a message of ours, as the step leaves it.
    pub(super) fn put_message(&self, place: Place, row: &MessageRow, step: &mut Step) {
        step.messages.insert(place, Some(row.clone()));
    }

    /// Rows of messages of ours, as the step has them by now.
    pub(super) async fn messages(
        &mut self,
        places: &[Place],
        step: &Step,
    ) -> Result<Vec<Option<MessageRow>>> {
        let stored: Vec<Key> = places
            .iter()
            .filter(|place| !step.messages.contains_key(place))
            .map(|place| keys::message(&self.peer.user, *place))
            .collect();
        let mut stored = self.core.store.get(&stored).await.map_err(Error::passed)?.into_iter();
        let mut rows = Vec::with_capacity(places.len());
        for place in places {
            rows.push(match step.messages.get(place) {
                Some(row) => row.clone(),
                None => stored
                    .next()
                    .flatten()
                    .map(|row| MessageRow::decode(row.value.expose()))
                    .transpose()
                    .map_err(Error::passed)?,
            });
        }
        Ok(rows)
    }

    pub(super) fn store_sealed(
        &mut self,
        (queued, place, created_at): (u64, Place, stvor_base::Timestamp),
        (mut row, send): (MessageRow, SealedSend),
        step: &mut Step,
    ) {
        row.msg_id = Some(send.msg_id);
        row.identity = self.conversation.as_ref().and_then(|c| c.pin()).map(|pin| pin.user_key);
        self.put_message(place, &row, step);
        let pointer = PointerRow { peer: self.peer.clone(), place, group: None };
        step.changes.push(
            Op::put(keys::sent(&self.peer, send.msg_id), pointer.encode())
                .expiring(created_at + limits::KEEP_SENT),
        );
        self.store_pending(
            Sealed {
                queued,
                body: PendingBody::Message(place),
                send,
                created_at,
                sent_in: 0,
                foreign: false,
            },
            step,
        );
    }

    fn store_pending(&mut self, sealed: Sealed, step: &mut Step) {
        step.changes.push(pending_op(keys::pending(&self.peer, sealed.queued), &sealed));
        step.sealed.push(sealed);
    }

    /// Messages that may still be encrypted before the relay has to accept some.
    pub(super) fn room(&self, step: &Step) -> usize {
        limits::LANE_WINDOW.saturating_sub(self.own_sealed() + step.sealed.len())
    }

    /// Messages that this instance sends and that are not accepted.
    pub(super) fn own_sealed(&self) -> usize {
        self.sealed.iter().filter(|one| !one.foreign).count()
    }

    /// Encrypts and numbers one plaintext.
    pub(super) fn seal(
        &mut self,
        (kind, body, content): (ContentKind, SecretBytes, ContentId),
        step: &mut Step,
    ) -> Result<SealedSend> {
        self.core.refuse_rolled_back()?;
        let blob = self.encrypt(&Plaintext { content, kind, body }, step)?;
        self.number(blob, step)
    }

    fn encrypt(&mut self, plaintext: &Plaintext, step: &mut Step) -> Result<Vec<u8>> {
        let Some(conversation) = &mut self.conversation else {
            return Err(Error::not_ready("the conversation is being loaded"));
        };
        let encrypted =
            conversation.encrypt(&context(&self.core), plaintext, &mut self.rng).map_err(Error::passed)?;
        step.effects.append(encrypted.effects);
        Ok(encrypted.blob)
    }

    /// Gives a blob its place in the lane.
    pub(super) fn number(&mut self, blob: Vec<u8>, step: &mut Step) -> Result<SealedSend> {
        if step.row.epoch == 0 {
            step.row.epoch = u64::from_be_bytes(random(&mut self.rng)?).max(1);
            step.row.lane = 0;
        }
        step.row.lane += 1;
        step.row.counter = self.core.next_counter(step.row.counter);
        Ok(SealedSend {
            msg_id: MessageId::from_bytes(random(&mut self.rng)?),
            lane_epoch: step.row.epoch,
            lane: step.row.lane,
            counter: step.row.counter,
            device: self.peer.device.get(),
            blob,
        })
    }

    /// Queues a ciphertext that is no message of the application.
    pub(super) fn push_control(&mut self, blob: Vec<u8>, step: &mut Step) -> Result<()> {
        let send = self.number(blob, step)?;
        self.push_sealed_control(send, step);
        Ok(())
    }

    pub(super) fn push_sealed_control(&mut self, send: SealedSend, step: &mut Step) {
        step.row.queued += 1;
        let sealed = Sealed {
            queued: step.row.queued,
            body: PendingBody::Control,
            send,
            created_at: self.core.now(),
            sent_in: 0,
            foreign: false,
        };
        self.store_pending(sealed, step);
    }

    /// Encrypts waiting messages while the window has room and somebody is there to take them.
    pub(super) async fn fill(&mut self, step: &mut Step) {
        let blocked = self.core.session().is_none()
            || self.core.rollback().is_some()
            || self.paused_until.is_some_and(|until| until > Instant::now());
        if blocked || self.waiting.is_empty() || !self.is_ready() {
            return;
        }
        let count = self.room(step).min(self.waiting.len());
        let wanted: Vec<(u64, Place, stvor_base::Timestamp)> =
            self.waiting.iter().take(count).map(|one| (one.queued, one.place, one.created_at)).collect();
        let rows: Vec<Key> =
            wanted.iter().map(|(_, place, _)| keys::message(&self.peer.user, *place)).collect();
        let Ok(rows) = self.core.store.get(&rows).await else { return };
        for ((queued, place, created_at), row) in wanted.into_iter().zip(rows) {
            if step.is_full() {
                self.more = true;
                break;
            }
            let row = row.and_then(|row| MessageRow::decode(row.value.expose()).ok());
            let Some(row) = row else {
                // Its conversation was deleted while it waited.
                step.changes.delete(keys::pending(&self.peer, queued));
                step.promoted += 1;
                step.released += 1;
                continue;
            };
            let body = SecretBytes::from_slice(row.content.as_bytes());
            let content = (kind_of(&row.content), body, place.id);
            match self.seal(content, step) {
                Ok(send) => self.store_sealed((queued, place, created_at), (row, send), step),
                Err(error) => {
                    tracing::debug!(code = error.code(), "a waiting message could not be encrypted");
                    break;
                }
            }
            step.promoted += 1;
        }
    }

    /// Messages that left the outbox without a commit having counted them in.
    pub(super) fn release(&self, count: usize) {
        self.depth.fetch_sub(count, Ordering::Relaxed);
    }

    /// Whether receipts can be encrypted, `more` of them being on their way beside those that are not accepted.
    pub(super) fn may_flush(&self, more: usize) -> bool {
        self.core.instances.receives()
            && self.is_ready()
            && self.own_sealed() + more < 2 * limits::LANE_WINDOW
    }

    /// One receipt for what arrived, if it is time for it.
    pub(super) fn flush_receipts(&mut self, step: &mut Step) {
        let blocked = self.core.session().is_none() || self.core.rollback().is_some();
        if step.row.due.is_empty() || blocked || !self.may_flush(step.sealed.len()) {
            return;
        }
        let waited = self.due_since.is_some_and(|since| since.elapsed() >= limits::RECEIPT_DELAY);
        let company = !step.sealed.is_empty();
        let full = step.row.due.len() >= limits::RECEIPT_BATCH;
        if !(waited || company || full || self.core.closing.load(Ordering::Relaxed)) {
            return;
        }
        while !step.row.due.is_empty() {
            let count = step.row.due.len().min(limits::RECEIPT_BATCH);
            let ids: Vec<ContentId> = step.row.due[..count].to_vec();
            if let Err(error) = self.push_receipt(false, &ids, step) {
                tracing::debug!(code = error.code(), "a receipt could not be encrypted");
                return;
            }
            step.row.due.drain(..count);
        }
    }

    pub(super) fn push_receipt(&mut self, read: bool, ids: &[ContentId], step: &mut Step) -> Result<()> {
        let id = ContentId::from_bytes(random(&mut self.rng)?);
        let Plaintext { content, kind, body } = Plaintext::receipt(id, read, ids);
        let send = self.seal((kind, body, content), step)?;
        self.push_sealed_control(send, step);
        Ok(())
    }

    /// Sends what was not sent on this connection, in the order of the lane, as far as the connection has room: the lane
    /// does not wait here, for its mail and its commands go on meanwhile.
    pub(super) fn transmit(&mut self, room: Option<(Arc<Session>, SendRoom)>) {
        self.wants_room = None;
        let Some(session) = self.core.session() else { return };
        // Room on an earlier connection is of no use on this one.
        let mut room = room.filter(|(of, _)| Arc::ptr_eq(of, &session)).map(|(_, room)| room);
        if self.core.rollback().is_some() || self.paused_until.is_some_and(|until| until > Instant::now()) {
            return;
        }
        self.paused_until = None;
        for one in &mut self.sealed {
            if one.foreign || one.sent_in == session.generation {
                continue;
            }
            let Some(number) = NonZeroU64::new(one.send.lane) else { continue };
            let message = ClientMessage::Send(Send {
                recipient: Recipient {
                    to: self.peer.clone(),
                    msg_id: one.send.msg_id,
                    lane: Some(LaneNumber { epoch: one.send.lane_epoch, number }),
                },
                blob: one.send.blob.clone().into(),
                counter: one.send.counter,
                counter_mac: Some(self.core.counter_key.mac(one.send.counter)),
                ttl: Duration::ZERO,
            });
            let Some(room) = room.take().or_else(|| session.try_room()) else {
                self.wants_room = Some(session);
                return;
            };
            if !session.minimal {
                self.core.route(one.send.msg_id, &self.peer);
            }
            room.send(message);
            one.sent_in = session.generation;
            if session.minimal
                && let PendingBody::Message(place) = one.body
            {
                self.core.watchers.written(place.id);
            }
            self.progress_at = Instant::now();
        }
    }

    /// Tells the peer what arrived where no relay does. It is in no outbox and nobody answers it: if it is lost, what it
    /// names comes again, and is named again.
    pub(super) fn confirm_arrivals(&mut self, step: &mut Step) {
        let mut arrived = core::mem::take(&mut step.arrived);
        let mut unopened = core::mem::take(&mut step.unopened);
        if step.broken.is_some() || self.core.refuse_rolled_back().is_err() || !self.is_ready() {
            return;
        }
        // What has room in an acknowledgement that is made anyhow takes no key of its own.
        let spare = arrived.len().next_multiple_of(MAX_ACKNOWLEDGED) - arrived.len();
        let rest = unopened.split_off(spare.min(unopened.len()));
        arrived.append(&mut unopened);
        for batch in rest.chunks(MAX_ACKNOWLEDGED) {
            if self.unopened.may(Instant::now()) {
                arrived.extend_from_slice(batch);
            }
        }
        for batch in arrived.chunks(MAX_ACKNOWLEDGED) {
            match self.seal_confirmation(batch, step) {
                Ok(message) => step.confirmations.push(message),
                Err(error) => {
                    return tracing::debug!(code = error.code(), "what arrived could not be acknowledged");
                }
            }
        }
    }

    fn seal_confirmation(&mut self, batch: &[Acknowledged], step: &mut Step) -> Result<ClientMessage> {
        let plaintext = Plaintext::acknowledgement(ContentId::from_bytes(random(&mut self.rng)?), batch);
        let blob = self.encrypt(&plaintext, step)?;
        Ok(ClientMessage::Send(Send {
            recipient: Recipient {
                to: self.peer.clone(),
                msg_id: MessageId::from_bytes(random(&mut self.rng)?),
                lane: None,
            },
            blob: blob.into(),
            counter: 0,
            counter_mac: None,
            ttl: Duration::ZERO,
        }))
    }

    /// The peer has a message of ours, exactly as it was sent.
    pub(super) fn confirmed(&mut self, by: &Acknowledged, step: &mut Step) {
        let ours = self.sealed.iter().find(|one| one.send.msg_id == by.message);
        if ours.is_some_and(|one| sha256(&[&one.send.blob]) == by.blob_hash) {
            self.accept(by.message, step);
        }
    }

    /// The peer came back to a relay that keeps nothing: what they have not acknowledged goes again.
    pub(super) fn resend_to_comer(&mut self, now: Instant) {
        if !self.came || now < self.came_after {
            return;
        }
        self.came = false;
        if self.own_sealed() > 0 {
            self.resend_own();
            self.came_after = now + limits::RESEND_TO_COMER;
        }
    }

    /// Nothing was answered for long: everything goes again.
    pub(super) fn resend_unanswered(&mut self) {
        if self.progress_at.elapsed() < limits::RESEND_AFTER {
            return;
        }
        self.progress_at = Instant::now();
        for one in &mut self.sealed {
            one.sent_in = 0;
        }
        if self.core.instances.is_shared() && !self.sealed.is_empty() {
            // Others may have seen to theirs: what is still there after a look is sent by this one.
            self.seen_epoch = 0;
            self.more = true;
        }
    }

    /// What was refused as the echo of a gap that was answered may have been refused for another one: once no echo can come any
    /// more, what has no place at the relay yet goes again, and tells.
    pub(super) fn resend_doubted(&mut self, now: Instant) {
        if self.doubted_until.is_some_and(|until| until <= now) {
            self.doubted_until = None;
            self.resend_own();
        }
    }

    fn resend_own(&mut self) {
        for one in self.sealed.iter_mut().filter(|one| !one.foreign) {
            one.sent_in = 0;
        }
    }

    /// The relay answers for a message from now on.
    pub(super) fn accept(&mut self, id: MessageId, step: &mut Step) {
        let Some(position) = self.sealed.iter().position(|one| one.send.msg_id == id) else { return };
        let Some(one) = self.sealed.remove(position) else { return };
        self.accepted.push(one.queued);
        self.progress_at = Instant::now();
        (self.refusals, self.answers) = (0, 0);
        self.core.settle(usize::from(!one.foreign));
        if let PendingBody::Message(place) = one.body {
            self.release(1);
            step.advances.push((place.id, DeliveryState::Accepted));
        }
        crate::metrics::accepted(1);
    }

    /// The relay refused a message: nothing is stored under its number.
    pub(super) async fn refused(&mut self, nack: &Nack, step: &mut Step) {
        let Subject::Message(id) = nack.subject else { return };
        let Some(position) = self.sealed.iter().position(|one| one.send.msg_id == id) else { return };
        match nack.code {
            Code::LaneGap => self.gap(nack, position, step).await,
            Code::IdConflict => {
                let Ok(fresh) = random(&mut self.rng) else { return };
                let key = keys::pending(&self.peer, self.sealed[position].queued);
                let one = &mut self.sealed[position];
                one.send.msg_id = MessageId::from_bytes(fresh);
                one.sent_in = 0;
                step.changes.push(pending_op(key, one));
                if let PendingBody::Message(place) = one.body {
                    let pointer = PointerRow { peer: self.peer.clone(), place, group: None };
                    let expires = one.created_at + limits::KEEP_SENT;
                    let key = keys::sent(&self.peer, one.send.msg_id);
                    step.changes.push(Op::put(key, pointer.encode()).expiring(expires));
                    // Under the id that was refused nobody has it.
                    step.changes.delete(keys::sent(&self.peer, id));
                }
                self.resend_from(position);
                self.answered(nack);
            }
            Code::CounterRepeated => {
                let own = self.core.counter();
                let relay = own.saturating_add(1);
                // The relay proves nothing with it.
                if self.core.rollback().is_none() {
                    self.core.set_rollback(Some(Rollback { relay, own, decided: false, noted: true }));
                }
                self.core.hub.emit(Event::RollbackDetected { relay, own });
            }
            Code::BadPadding | Code::FrameTooLarge | Code::MalformedFrame => {
                self.give_up(position, nack.code.as_str(), step).await;
                self.renumber(step).await;
            }
            _ => {
                self.resend_from(position);
                self.rest(nack);
            }
        }
    }

    /// What the relay refused goes again at once, but not for ever: one that accepts nothing is not sent to without a pause.
    fn answered(&mut self, nack: &Nack) {
        self.answers = self.answers.saturating_add(1);
        if self.answers > limits::ANSWERED_AT_ONCE {
            self.rest(nack);
        }
    }

    /// Sends nothing for a while, which is told at once: it is so whatever becomes of the commit.
    fn rest(&mut self, nack: &Nack) {
        let now = Instant::now();
        let asked = now + nack.retry_after.min(limits::BACKOFF_LONGEST);
        // What was on its way with a refused message is refused, too: that is one refusal, and not one for each.
        if let Some(until) = self.paused_until.as_mut().filter(|until| **until > now) {
            *until = asked.max(*until);
            return;
        }
        let floor = limits::REFUSED_FIRST * 2_u32.saturating_pow(self.refusals.min(8));
        self.refusals += 1;
        let wait = nack.retry_after.max(floor).min(limits::BACKOFF_LONGEST);
        self.paused_until = Some(now + wait);
        self.core.hub.emit(Event::SendDelayed {
            peer: self.peer.user.clone(),
            code: nack.code.as_str(),
            retry_after: wait,
        });
    }

    fn resend_from(&mut self, position: usize) {
        let mut taken_over = 0;
        for one in self.sealed.iter_mut().skip(position) {
            one.sent_in = 0;
            taken_over += usize::from(core::mem::take(&mut one.foreign));
        }
        self.core.unaccepted.fetch_add(taken_over, Ordering::Relaxed);
    }

    /// The relay expects another number than the one it got.
    async fn gap(&mut self, nack: &Nack, position: usize, step: &mut Step) {
        // One refused message makes gaps of all that were on their way behind it: one answer serves them all.
        if self.sealed[position].sent_in == 0 {
            return;
        }
        let expected = nack.expected_lane;
        let echo = |(lane, at): &(u64, Instant)| *lane == expected && at.elapsed() < limits::GAP_ECHO;
        if let Some((_, at)) = self.last_gap.filter(echo) {
            // Not all that look like echoes are: each new numbering begins at 1, and another process may number anew meanwhile.
            self.doubted_until = Some(at + limits::GAP_ECHO);
            return;
        }
        self.last_gap = Some((expected, Instant::now()));
        let epoch = self.sealed[position].send.lane_epoch;
        let known =
            self.sealed.iter().position(|one| one.send.lane_epoch == epoch && one.send.lane == expected);
        match known {
            // An earlier one was refused for a while: everything from it on goes again, in order.
            Some(first) if first <= position => self.resend_from(first),
            // The relay forgot what it had accepted: the numbers start over.
            _ => self.renumber(step).await,
        }
        self.answered(nack);
    }

    /// A new lane epoch for what is not accepted. Bytes, ids and counters stay.
    pub(super) async fn renumber(&mut self, step: &mut Step) {
        let Ok(epoch) = random(&mut self.rng) else { return };
        step.row.epoch = u64::from_be_bytes(epoch).max(1);
        step.row.lane = 0;
        let peer = self.peer.clone();
        let mut taken_over = 0;
        for one in self.sealed.iter_mut().chain(step.sealed.iter_mut()) {
            step.row.lane += 1;
            one.send.lane_epoch = step.row.epoch;
            one.send.lane = step.row.lane;
            one.sent_in = 0;
            taken_over += usize::from(core::mem::take(&mut one.foreign));
            step.changes.push(pending_op(keys::pending(&peer, one.queued), one));
        }
        self.core.unaccepted.fetch_add(taken_over, Ordering::Relaxed);
    }

    /// A message that will never be accepted.
    async fn give_up(&mut self, position: usize, code: &'static str, step: &mut Step) {
        let Some(one) = self.sealed.remove(position) else { return };
        self.core.settle(usize::from(!one.foreign));
        step.changes.delete(keys::pending(&self.peer, one.queued));
        if let PendingBody::Message(place) = one.body {
            self.release(1);
            self.mark_failed(place, code, step).await;
        }
    }

    async fn mark_failed(&mut self, place: Place, code: &'static str, step: &mut Step) {
        let row = self.messages(&[place], step).await.ok().and_then(|mut rows| rows.pop()).flatten();
        if let Some(mut row) = row {
            row.state = DeliveryState::Failed;
            row.stamped_at = self.core.now();
            self.put_message(place, &row, step);
        }
        step.advances.push((place.id, DeliveryState::Failed));
        step.events.push(Event::DeliveryFailed { peer: self.peer.user.clone(), id: place.id, code });
    }

    /// Gives up what was not accepted for 30 days.
    pub(super) async fn expire(&mut self, step: &mut Step) {
        let now = self.core.now();
        let old = |created_at| now.since(created_at) >= limits::KEEP_SENT;
        while self.waiting.front().is_some_and(|one| old(one.created_at)) {
            let Some(one) = self.waiting.pop_front() else { break };
            self.core.settle(1);
            self.release(1);
            step.changes.delete(keys::pending(&self.peer, one.queued));
            self.mark_failed(one.place, "EXPIRED", step).await;
        }
        let mut renumber = false;
        while self.sealed.front().is_some_and(|one| old(one.created_at)) {
            self.give_up(0, "EXPIRED", step).await;
            renumber = true;
        }
        if renumber {
            self.renumber(step).await;
        }
    }
}

fn pending_op(key: Key, sealed: &Sealed) -> Op<SecretBytes> {
    let row = PendingRow {
        body: sealed.body.clone(),
        sealed: Some(sealed.send.clone()),
        created_at: sealed.created_at,
    };
    Op::put(key, row.encode())
}
