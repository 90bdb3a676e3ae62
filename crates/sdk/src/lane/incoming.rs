//! From the relay to the inbox: decryption, receipts, repairs.

use std::collections::HashSet;
use std::sync::Arc;

use stvor_base::codec::{CodecError, Reader};
use stvor_base::{ContentId, MessageId, Timestamp};
use stvor_protocol::group::GroupIncoming;
use stvor_protocol::{
    Acknowledged, ContentKind, Delivery, Failed, IdentityEvent, Incoming, Plaintext, ProtocolError,
    RetryRequest, Standing, TrustDecision,
};
use stvor_store::{Key, Op};
use stvor_wire::server::Deliver;
use tokio::time::Instant;

use super::guarded::Objection;
use super::repairs::refused;
use super::step::Step;
use super::{Lane, Mail, context};
use crate::content::Content;
use crate::error::{Error, Result};
use crate::events::{DeliveryState, Event};
use crate::inbox::Arrival;
use crate::keys;
use crate::limits;
use crate::metrics;
use crate::parked::{self, Entry, Reserved};
use crate::rows::{Direction, LaneRow, MessageRow, Place, PointerRow};
use crate::transport::session::Session;
use crate::trust::MismatchPolicy;

/// The kind of a content that is sent again after a failure: the relay's id of the failed message, when it was first
/// sent, its kind and its body.
pub(super) const RESENT: ContentKind = ContentKind::Other(20);
pub(super) const RESENT_HEAD: usize = 16 + 8 + 1;

/// Where a delivery comes from.
pub(super) enum Source {
    Relay(Arc<Session>),
    /// It waited for an answer under this number.
    Parked(u64),
}

/// What the application is to see of a plaintext.
pub(super) struct Shown {
    id: ContentId,
    content: Content,
    sent_at: Timestamp,
    repaired: bool,
    /// It came on a session between identities as they are now.
    current: bool,
}

impl Shown {
    /// Bytes of its content.
    pub(super) fn size(&self) -> usize {
        self.content.as_bytes().len()
    }
}

impl Lane {
    pub(super) async fn receive(&mut self, deliver: Box<Deliver>, source: Source, step: &mut Step) {
        if deliver.ephemeral || !self.core.instances.receives() {
            // The relay keeps mail for the instance that receives from now on.
            return;
        }
        if self.core.is_blocked(&self.peer.user) {
            step.ack(&deliver, &source);
            return;
        }
        if let Source::Relay(session) = &source
            && self.core.left.has(&self.peer, session.generation)
        {
            return;
        }
        if step.broken.is_some() {
            self.leave(&source);
            return;
        }
        let room = self.core.groups.has_room_of(&self.peer.user, step.mailed)
            && self.core.inbox.has_room(&self.peer.user, step.shown.len());
        if !room {
            // A fresh connection brings it once there is room. Until then it must take none from others.
            if let Source::Relay(session) = source {
                self.core.left.leave(&self.peer, session.generation);
                self.held_back.push((session, deliver.msg_id));
            }
            return;
        }
        if matches!(source, Source::Relay(_)) && !self.asking && self.core.parked.has(&self.peer) {
            // Behind mail that is being judged all mail waits: it keeps its order.
            if let Some((_, source)) = self.park(deliver, source, step) {
                self.leave(&source);
            }
            return;
        }
        self.judging.push(deliver.msg_id);
        if let Some(faults) = self.suspects.get(&deliver.msg_id).copied()
            && faults >= limits::FAULTS_AT_MOST
        {
            return self.give_up_faulty(faults, (deliver, source), step);
        }
        if GroupIncoming::is_one(&deliver.blob) {
            return self.receive_group(deliver, source, step);
        }
        match self.open(&deliver, &source, step).await {
            Ok(received) => {
                let confirms = received.plaintext.kind == ContentKind::Acknowledgement;
                if let Err(error) = self.take_plaintext(received, step).await {
                    step.broken = Some(error);
                    self.leave(&source);
                    return;
                }
                if !confirms {
                    self.unopened.opened();
                    step.confirm(&deliver, &source);
                }
                step.take(deliver, source);
            }
            Err(Trouble::Store(error)) => {
                self.core.hub.emit(Event::StoreFailing { code: error.code() });
                self.leave(&source);
            }
            Err(Trouble::Protocol(error)) if self.may_have_rotated(&error, &source) => {
                // Past the bounds it is judged as it is.
                match self.park(deliver, source, step) {
                    None => self.look_for_rotations(step),
                    Some(over) => {
                        let refused = match error {
                            ProtocolError::IdentityForked(_) => error,
                            _ => ProtocolError::IdentityChanged(self.peer.user.clone()),
                        };
                        self.take_failure(&refused, over, step);
                    }
                }
            }
            Err(Trouble::Protocol(ProtocolError::AwaitingTrust(question))) => {
                self.ask(&question);
                // Past the bounds the answer is no for now.
                if let Some(over) = self.park(deliver, source, step) {
                    let refused = ProtocolError::NotVerified(self.peer.user.clone());
                    self.take_failure(&refused, over, step);
                }
            }
            Err(Trouble::Protocol(error)) => self.take_failure(&error, (deliver, source), step),
        }
    }

    /// Whether mail was being judged in so many faults that it is judged by itself.
    pub(super) fn is_suspect(&self, mail: &Mail) -> bool {
        let Mail::Deliver(deliver, _) = mail else { return false };
        self.met_faults(deliver.msg_id)
    }

    fn met_faults(&self, id: MessageId) -> bool {
        self.suspects.get(&id).is_some_and(|faults| *faults >= limits::FAULTS_TOGETHER)
    }

    /// What was being judged is, without a fault.
    pub(super) fn judged(&mut self) {
        if !self.suspects.is_empty() {
            self.suspects.retain(|id, _| !self.judging.contains(id));
            self.core.revival.clear(&self.peer, &self.judging);
        }
        self.judging.clear();
    }

    /// A message by which the program met one fault after the other is taken like one that can not be read; if that is a
    /// fault too, without a look at it.
    fn give_up_faulty(&mut self, faults: u32, (deliver, source): (Box<Deliver>, Source), step: &mut Step) {
        tracing::error!(faults, "a message by which the program meets faults is given up");
        if faults == limits::FAULTS_AT_MOST {
            self.take_failure(&ProtocolError::Undecryptable, (deliver, source), step);
            return;
        }
        step.events.push(Event::MessageUndecryptable {
            peer: self.peer.user.clone(),
            code: stvor_base::ErrorCode::code(&ProtocolError::Undecryptable),
            repair_requested: false,
        });
        step.ack(&deliver, &source);
    }

    /// Mail stays where it is.
    pub(super) fn leave(&self, source: &Source) {
        if let Source::Relay(session) = source {
            self.core.leave(&self.peer, session.generation);
        }
    }

    /// Keeps mail until a question of trust is answered; gives back what is past the bounds. What is parked stays.
    fn park(
        &mut self,
        deliver: Box<Deliver>,
        source: Source,
        step: &mut Step,
    ) -> Option<(Box<Deliver>, Source)> {
        if matches!(source, Source::Parked(_)) {
            return None;
        }
        let known = |entry: &Entry| entry.id == deliver.msg_id;
        if step.parked.iter().map(Reserved::entry).any(known)
            || self.core.parked.of(&self.peer).iter().any(known)
        {
            step.ack(&deliver, &source);
            return None;
        }
        let Some(reserved) = self.core.parked.reserve(&deliver, &step.parked) else {
            return Some((deliver, source));
        };
        step.changes.put(reserved.entry().key(), parked::encode(&deliver));
        step.parked.push(reserved);
        step.take(deliver, source);
        None
    }

    /// Judges mail that waited, as much as fits into this commit, while no question is open.
    pub(super) async fn judge_parked(&mut self, step: &mut Step) {
        if self.asking || self.looking || self.parked_after > Instant::now() {
            return;
        }
        for entry in self.core.parked.of(&self.peer) {
            if step.is_full() || self.asking || self.looking || step.broken.is_some() {
                return;
            }
            if step.unparked.contains(&entry.number) {
                continue;
            }
            let apart = self.met_faults(entry.id);
            if apart && !self.judging.is_empty() {
                self.more = true;
                return;
            }
            let row = self.core.store.one(&entry.key()).await.map_err(Error::passed);
            let row = row.and_then(|row| {
                row.map(|row| parked::decode(row.value.expose())).transpose().map_err(Error::passed)
            });
            let before = step.unparked.len();
            match row {
                Ok(Some(deliver)) => {
                    self.receive(Box::new(deliver), Source::Parked(entry.number), step).await;
                }
                Ok(None) => step.unparked.push(entry.number),
                Err(error) => self.core.hub.emit(Event::StoreFailing { code: error.code() }),
            }
            if step.unparked.len() == before {
                // It was not taken: nothing that follows it is, before it.
                self.parked_after = Instant::now() + limits::BACKOFF_FIRST;
                return;
            }
            if apart {
                self.more = true;
                return;
            }
        }
        // An answer counts for the question that was asked, not for what comes later; but what was refused before it came
        // is asked for on its strength.
        let answered = |decision: &TrustDecision| !decision.accept || self.requests.is_empty();
        if step.parked.is_empty() && self.decision.as_ref().is_some_and(answered) {
            self.decision = None;
        }
    }

    async fn open(
        &mut self,
        deliver: &Deliver,
        source: &Source,
        step: &mut Step,
    ) -> core::result::Result<stvor_protocol::Received, Trouble> {
        let incoming = Incoming::parse(&deliver.blob).map_err(Trouble::Protocol)?;
        let asks = self.asks_for_rotations(source);
        let Some(conversation) = &mut self.conversation else {
            return Err(Trouble::Store(Error::not_ready("the conversation is being loaded")));
        };
        let wanted = conversation.needs(&incoming);
        let records =
            crate::records::load(&self.core.store, &wanted, &step.effects).await.map_err(Trouble::Store)?;
        let delivery = Delivery { incoming: &incoming, records: &records, decision: self.decision.as_ref() };
        let mut context = context(&self.core);
        if asks && context.policy.mismatch == MismatchPolicy::Replace {
            // Not before the relay said whether the pinned identity handed over to it.
            context.policy.mismatch = MismatchPolicy::Reject;
        }
        let received = conversation.decrypt(&context, delivery, &mut self.rng).map_err(Trouble::Protocol)?;
        match self.object(&incoming, &received, step).await {
            None => Ok(received),
            Some(Objection::Refused(error)) => Err(Trouble::Protocol(error)),
            Some(Objection::Unknown(error)) => Err(Trouble::Store(error)),
        }
    }

    async fn take_plaintext(&mut self, received: stvor_protocol::Received, step: &mut Step) -> Result<()> {
        let stvor_protocol::Received { plaintext, sent_at, effects, reply, identity, started, standing } =
            received;
        step.effects.append(effects);
        // An old copy of the store answers nothing on a session that it is about to give up: the key may be used already.
        if let Some(reply) = reply
            && self.core.rollback().is_none()
        {
            self.push_control(reply, step)?;
        }
        self.note_identity(&identity, super::opening::decider(self.decision.as_ref()), step);
        if identity != IdentityEvent::Known {
            self.ask_for_earlier();
        }
        if standing == Standing::OursEarlier {
            // The peer writes to an identity of ours that handed over: it is told of the present one.
            self.announce(step);
        }
        let has_session =
            self.conversation.as_ref().is_some_and(|conversation| conversation.session_id().is_some());
        if standing == Standing::Current && has_session {
            // The peer wrote to our present identity: there is nothing to tell.
            step.row.announce = None;
        }
        if started {
            step.events.push(Event::SessionStarted { peer: self.peer.user.clone() });
        }
        match plaintext.kind {
            ContentKind::Delivered | ContentKind::Read => {
                let state = if plaintext.kind == ContentKind::Read {
                    DeliveryState::Read
                } else {
                    DeliveryState::Delivered
                };
                match plaintext.receipted() {
                    Ok(ids) => self.take_receipt(&ids, (state, standing), step).await?,
                    Err(error) => self.unreadable(&error, false, step),
                }
            }
            ContentKind::RetryRequest => match plaintext.requested() {
                Ok(request) => {
                    if standing == Standing::Current {
                        // It came, for all that it could not be read.
                        let RetryRequest { message, blob_hash } = request;
                        self.confirmed(&Acknowledged { message, blob_hash }, step);
                    }
                    self.resend(&request, step).await?;
                }
                Err(error) => self.unreadable(&error, false, step),
            },
            ContentKind::Acknowledgement => match plaintext.acknowledged() {
                Ok(named) if standing == Standing::Current => {
                    for one in &named {
                        self.confirmed(one, step);
                    }
                }
                // Whoever has the old keys may say so.
                Ok(_) => {}
                Err(error) => self.unreadable(&error, false, step),
            },
            ContentKind::Control => {}
            // A sender key, or what a member says of a group, is taken from present identities only.
            ContentKind::Group if standing != Standing::Current => {
                self.unreadable(&ProtocolError::KeyGone, false, step);
            }
            ContentKind::Group => self.receive_content(&plaintext.body, step)?,
            _ => match shown(&plaintext, (sent_at, standing)) {
                Ok(shown) => step.shown.push(shown),
                Err(error) => {
                    let error = ProtocolError::Malformed(error);
                    self.unreadable(&error, false, step);
                }
            },
        }
        Ok(())
    }

    fn unreadable(&self, error: &ProtocolError, repair_requested: bool, step: &mut Step) {
        metrics::rejected();
        step.events.push(Event::MessageUndecryptable {
            peer: self.peer.user.clone(),
            code: stvor_base::ErrorCode::code(error),
            repair_requested,
        });
    }

    /// The contents of a turn go into the inbox, each once. Whether they are known is one question to the store.
    pub(super) async fn show_all(&mut self, step: &mut Step) {
        let shown = core::mem::take(&mut step.shown);
        if shown.is_empty() || step.broken.is_some() {
            return;
        }
        let marks: Vec<_> = shown.iter().map(|shown| keys::content(&self.peer, shown.id)).collect();
        match self.core.store.get(&marks).await {
            Ok(known) => {
                for ((shown, mark), known) in shown.into_iter().zip(marks).zip(known) {
                    self.show(shown, (mark, known.is_some()), step);
                }
            }
            Err(error) => step.broken = Some(Error::passed(error)),
        }
    }

    /// A content goes into the inbox, unless its mark is known.
    fn show(&mut self, shown: Shown, (mark, stored): (Key, bool), step: &mut Step) {
        let Shown { id, content, sent_at, repaired, current } = shown;
        let known = stored || step.marks.contains(&id);
        if self.core.config.receipts.delivered {
            owe(&mut step.row, id);
        }
        if known {
            metrics::duplicate();
            return;
        }
        step.marks.insert(id);
        let now = self.core.now();
        let place = Place { order: self.core.next_order(now), id };
        step.row.order = step.row.order.max(place.order);
        let keep = self.core.keep_of(&self.peer.user);
        let verified = self
            .conversation
            .as_ref()
            .and_then(|conversation| conversation.pin())
            .is_some_and(|pin| pin.verified && current);
        let row = MessageRow {
            direction: Direction::In,
            content,
            sent_order: sent_at.as_millis(),
            sent_at,
            stamped_at: now,
            state: DeliveryState::Delivered,
            read: false,
            keep,
            verified,
            msg_id: None,
            repairs: 0,
            queued: 0,
            identity: None,
            from: None,
        };
        let pointer = PointerRow { peer: self.peer.clone(), place, group: None };
        let reserved = self.core.inbox.reserve(&self.peer.user);
        step.changes
            .push(Op::insert(mark, place.to_bytes()).expiring(now + limits::KEEP_CONTENT_IDS))
            .insert(keys::message(&self.peer.user, place), row.encode())
            .insert(keys::inbox(reserved.seq()), pointer.encode());
        if step.peer.is_none() {
            step.peer = self.core.note_peer(&self.peer.user, &mut step.changes);
        }
        step.arrivals.push(Arrival { reserved, pointer, row });
        if repaired {
            metrics::repaired();
            step.events.push(Event::Repaired { peer: self.peer.user.clone(), id });
        }
    }

    /// The peer tells how far messages of ours came. On a session that was left it may be somebody who has the old keys: what
    /// sending again needs stays then.
    pub(super) async fn take_receipt(
        &mut self,
        ids: &[ContentId],
        (state, standing): (DeliveryState, Standing),
        step: &mut Step,
    ) -> Result<()> {
        let current = standing == Standing::Current;
        let store = &self.core.store;
        let index: Vec<_> = ids.iter().map(|id| keys::own_content(*id)).collect();
        let mut places = HashSet::new();
        let mut of_groups = Vec::new();
        for row in store.get(&index).await.map_err(Error::passed)?.into_iter().flatten() {
            let pointer = PointerRow::decode(row.value.expose()).map_err(Error::passed)?;
            if let Some(group) = pointer.group {
                // Its id is known to those only who read it.
                of_groups.push((group, pointer.place.id));
                continue;
            }
            // A receipt counts only from whom the message was sent to.
            if pointer.peer == self.peer {
                places.insert(pointer.place);
            }
        }
        self.take_group_receipts(of_groups, state, step).await?;
        let places: Vec<Place> = places.into_iter().collect();
        let rows = self.messages(&places, step).await?;
        for (place, row) in places.into_iter().zip(rows) {
            let Some(mut row) = row else { continue };
            if row.direction != Direction::Out || row.state >= state && row.state != DeliveryState::Failed {
                continue;
            }
            row.state = state;
            row.stamped_at = self.core.now();
            if let Some(id) = row.msg_id
                && current
            {
                step.changes.delete(keys::sent(&self.peer, id));
                // The relay's own answer may be late or lost: whoever has the message answers for it.
                self.accept(id, step);
            }
            let stays = row.keep != 0 || !current;
            step.messages.insert(place, stays.then_some(row));
            step.advances.push((place.id, state));
        }
        Ok(())
    }

    /// A message that can not be read: it changes nothing, is told, acknowledged, and asked for again.
    fn take_failure(&mut self, error: &ProtocolError, taken: (Box<Deliver>, Source), step: &mut Step) {
        let (deliver, source) = taken;
        if matches!(error, ProtocolError::Duplicate) {
            metrics::duplicate();
            // A second copy of an acknowledgement may be among these.
            step.confirm_unopened(&deliver, &source);
            step.ack(&deliver, &source);
            return;
        }
        if self.is_asked_for(&deliver) {
            step.ack(&deliver, &source);
            return;
        }
        if matches!(
            error,
            ProtocolError::BadRecord(_) | ProtocolError::MissingRow(_) | ProtocolError::Crypto(_)
        ) {
            // The fault is here, so the message stays where it is.
            self.core.hub.emit(Event::StoreFailing { code: stvor_base::ErrorCode::code(error) });
            self.leave(&source);
            return;
        }
        if matches!(error, ProtocolError::IdentityChanged(_)) {
            step.events.push(Event::IdentityChanged { peer: self.peer.user.clone(), accepted: false });
        }
        // What was here before the pin moved may have been under way: it is asked for again, and that is all.
        let waited = matches!(source, Source::Parked(number) if number <= self.rotations_told);
        if matches!(error, ProtocolError::IdentitySuperseded(_)) && !waited {
            step.events.push(Event::IdentitySuperseded { peer: self.peer.user.clone() });
        }
        let failed = Failed { message: deliver.msg_id, blob: &deliver.blob, error };
        let Some(conversation) = &mut self.conversation else { return };
        let mut requested = false;
        match conversation.failed(&context(&self.core), &failed, &mut self.rng) {
            Ok(failure) => {
                step.effects.append(failure.effects);
                // What a policy refused is asked for again once the identity is accepted.
                let refused = refused(stvor_base::ErrorCode::code(error));
                if failure.request.is_some() || refused {
                    requested = !refused;
                    let request = RetryRequest { message: deliver.msg_id, blob_hash: failure.blob_hash };
                    self.remember_request(request, stvor_base::ErrorCode::code(error), step);
                }
            }
            Err(error) => {
                // It could be neither recorded nor asked for: it stays where it is.
                tracing::warn!(code = stvor_base::ErrorCode::code(&error), "a failure could not be recorded");
                self.leave(&source);
                return;
            }
        }
        self.unreadable(error, requested, step);
        if matches!(error, ProtocolError::TooNew { what: "message", .. }) {
            // Nobody asks for it, and there is no use in its coming again.
            step.confirm_unopened(&deliver, &source);
        }
        step.ack(&deliver, &source);
    }
}

/// Why a message could not be opened.
enum Trouble {
    Store(Error),
    Protocol(ProtocolError),
}

/// One more content that the peer is to be told of. Past the bound the oldest goes: its sender keeps it a while longer.
fn owe(row: &mut LaneRow, id: ContentId) {
    if row.due.contains(&id) {
        return;
    }
    if row.due.len() >= LaneRow::MAX_DUE {
        row.due.remove(0);
    }
    row.due.push(id);
}

fn shown(
    plaintext: &Plaintext,
    (sent_at, standing): (Timestamp, Standing),
) -> core::result::Result<Shown, CodecError> {
    let current = standing == Standing::Current;
    let content = |kind, body: &[u8]| match kind {
        ContentKind::Text => Content::decode(1, body),
        ContentKind::Bytes => Content::decode(2, body),
        ContentKind::Json => Content::decode(3, body),
        _ => Err(CodecError::Value),
    };
    let id = plaintext.content;
    if plaintext.kind != RESENT {
        return Ok(Shown {
            id,
            content: content(plaintext.kind, plaintext.body.expose())?,
            sent_at,
            repaired: false,
            current,
        });
    }
    let mut input = Reader::new(plaintext.body.expose());
    let _failed: &[u8; 16] = input.array()?;
    let sent_at = Timestamp::from_millis(input.u64()?);
    let tag = input.u8()?;
    Ok(Shown { id, content: Content::decode(tag, input.rest())?, sent_at, repaired: true, current })
}
