//! What the client asks of a conversation beside sending.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use stvor_base::{ContentId, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_protocol::{
    Delivery, IdentityEvent, Incoming, Pin, Plaintext, PrekeyBundle, ProtocolError, TrustDecision,
};
use stvor_store::{Expect, Op, Table};
use stvor_wire::server::Bundles;

use super::guarded::Objection;
use super::opening::{of_protocol, read_bundle};
use super::outgoing::kind_of;
use super::step::Step;
use super::{FoundBundle, Lane, context};
use crate::content::Content;
use crate::core::random;
use crate::error::{Error, ErrorKind, Result};
use crate::events::{DeliveryState, Event};
use crate::journal::{Deed, JournalEntry, fingerprint};
use crate::keys;
use crate::limits;
use crate::rows::{FOREVER, MessageRow, PendingBody, Place};

/// A content that came by the application's own transport.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Unsealed {
    /// The same at both ends.
    pub id: ContentId,
    /// Who sealed it: proven by the session.
    pub from: stvor_base::UserId,
    /// What it says; `None` for a message that only renews keys.
    pub content: Option<Content>,
    /// When it was sealed, by the sender's clock.
    pub sent_at: Timestamp,
}

type Answer<T> = super::handle::Answer<Result<T>>;

/// Why sessions are given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivingUp {
    /// An old copy of the store would use them a second time.
    RolledBack,
    /// They are of an identity that handed over to ours: they are still read.
    Rotated {
        /// The peer is to learn of it by a fresh one at once.
        tell: bool,
    },
}

/// An identity that a person takes.
#[derive(Clone)]
pub(crate) struct Adopted {
    /// What the relay shows.
    pub(crate) bundles: Bundles,
    /// The fingerprint that it has to have; without it whatever is shown, but for what rotations speak against.
    pub(crate) named: Option<String>,
    /// Whether safety numbers were compared.
    pub(crate) verified: bool,
}

/// A request to a lane.
#[derive(Clone)]
pub(crate) enum Command {
    /// The application read these.
    MarkRead(Vec<ContentId>, Answer<()>),
    /// Destroys the sessions.
    Reset(Answer<()>),
    /// Sets the mark that a person compared the safety number of this key, or clears it.
    Verify(Option<Vec<u8>>, Answer<()>),
    /// Starts a session with an identity that the relay shows and a person judged.
    Adopt(Box<Adopted>, Answer<()>),
    /// Starts a session with what the relay shows, as the policy judges it.
    Start(Box<Bundles>, Answer<()>),
    /// Starts a session with a bundle that came by another way.
    Import(Box<PrekeyBundle>, Answer<()>),
    /// Removes messages and sessions.
    Delete(Answer<()>),
    /// Encrypts without sending.
    Seal(Content, Answer<Vec<u8>>),
    /// Decrypts what did not come from the relay.
    Open(Vec<u8>, Answer<Unsealed>),
    /// Gives up sessions.
    Recover(GivingUp, Answer<()>),
    /// The pinned identity.
    Pin(Answer<Option<Pin>>),
}

impl Command {
    /// Bytes that it holds, roughly.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::MarkRead(ids, _) => 16 * ids.len(),
            Self::Seal(content, _) => content.as_bytes().len(),
            Self::Open(bytes, _) => bytes.len(),
            Self::Adopt(..) | Self::Start(..) | Self::Import(..) => 4_096,
            _ => 0,
        }
    }

    /// Whether it judges the peer or ends what there is with them: messages that wait for just that must not shut it out.
    pub(super) fn judges(&self) -> bool {
        matches!(
            self,
            Self::Pin(_)
                | Self::Verify(..)
                | Self::Adopt(..)
                | Self::Reset(_)
                | Self::Recover(..)
                | Self::Delete(_)
        )
    }

    pub(super) fn refuse(self, error: Error) {
        match self {
            Self::MarkRead(_, reply)
            | Self::Reset(reply)
            | Self::Recover(_, reply)
            | Self::Verify(_, reply)
            | Self::Adopt(_, reply)
            | Self::Start(_, reply)
            | Self::Import(_, reply)
            | Self::Delete(reply) => reply.send(Err(error)),
            Self::Seal(_, reply) => reply.send(Err(error)),
            Self::Open(_, reply) => reply.send(Err(error)),
            Self::Pin(reply) => reply.send(Err(error)),
        }
    }
}

impl Command {
    pub(super) fn is_answered(&self) -> bool {
        match self {
            Self::MarkRead(_, reply)
            | Self::Reset(reply)
            | Self::Recover(_, reply)
            | Self::Verify(_, reply)
            | Self::Adopt(_, reply)
            | Self::Start(_, reply)
            | Self::Import(_, reply)
            | Self::Delete(reply) => reply.is_answered(),
            Self::Seal(_, reply) => reply.is_answered(),
            Self::Open(_, reply) => reply.is_answered(),
            Self::Pin(reply) => reply.is_answered(),
        }
    }
}

/// Answers once the step is durable.
fn answer<T: Send + Sync + 'static>(step: &mut Step, reply: Answer<T>, value: T) {
    step.replies.push(Box::new(move |result| {
        reply.send(result.map(|()| value));
    }));
}

impl Lane {
    pub(super) async fn take_command(&mut self, command: Command, step: &mut Step) {
        match command {
            Command::MarkRead(ids, reply) => match self.mark_read(&ids, step).await {
                Ok(()) => answer(step, reply, ()),
                Err(error) => reply.send(Err(error)),
            },
            Command::Reset(reply) => {
                self.reset(step);
                self.rehandshake = true;
                self.fetch_after = tokio::time::Instant::now();
                answer(step, reply, ());
            }
            Command::Recover(why, reply) => {
                if let Err(error) = self.give_up_sessions(why, step) {
                    return reply.send(Err(error));
                }
                step.row.counter = step.row.counter.max(self.core.counter());
                self.renumber(step).await;
                answer(step, reply, ());
            }
            Command::Verify(compared, reply) => {
                let Some(conversation) = &mut self.conversation else { return };
                let verified = compared.is_some();
                let other = |key: &[u8]| conversation.pin().is_some_and(|pin| pin.user_key[..] != *key);
                if compared.as_deref().is_some_and(other) {
                    return reply
                        .send(Err(ErrorKind::IdentityChanged { user: self.peer.user.clone() }.into()));
                }
                match conversation.set_verified(verified) {
                    Ok(effects) => {
                        step.effects.append(effects);
                        let pin =
                            conversation.pin().map(|pin| fingerprint(&pin.user_key)).unwrap_or_default();
                        let deed = if verified { Deed::IdentityVerified } else { Deed::IdentityUnverified };
                        let entry = JournalEntry::new(self.core.now(), &self.core.config.actor, deed);
                        step.journal(entry.about(self.peer.user.to_string(), pin));
                        if verified {
                            self.welcome_refused();
                        }
                        answer(step, reply, ());
                    }
                    Err(error) => reply.send(Err(of_protocol(error))),
                }
            }
            Command::Adopt(adopted, reply) => match self.judge_shown(&adopted, step) {
                Ok((found, decision)) => self.adopt((&found, Some(&decision)), reply, step),
                Err(error) => reply.send(Err(error)),
            },
            Command::Start(bundles, reply) => {
                let found = self.follow(&bundles, step).and_then(|shown| {
                    let bundle = read_bundle(&self.core, &self.peer, &bundles)?;
                    Ok(FoundBundle { bundle, chain: shown.chain })
                });
                match found {
                    Ok(found) => self.adopt((&found, None), reply, step),
                    Err(error) => reply.send(Err(error)),
                }
            }
            Command::Import(bundle, reply) => {
                self.adopt((&FoundBundle { bundle: *bundle, chain: None }, None), reply, step);
            }
            Command::Delete(reply) => {
                self.delete(step);
                answer(step, reply, ());
            }
            Command::Seal(content, reply) => match self.seal_out(&content, step) {
                Ok(blob) => answer(step, reply, blob),
                Err(error) => reply.send(Err(error)),
            },
            Command::Open(blob, reply) => match self.open_in(&blob, step).await {
                Ok(unsealed) => answer(step, reply, unsealed),
                Err(error) => reply.send(Err(error)),
            },
            Command::Pin(reply) => {
                let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin().cloned());
                reply.send(Ok(pin));
            }
        }
    }

    /// Notes that messages were read, and tells their sender.
    async fn mark_read(&mut self, ids: &[ContentId], step: &mut Step) -> Result<()> {
        let marks: Vec<_> = ids.iter().map(|id| keys::content(&self.peer, *id)).collect();
        let marks = self.core.store.get(&marks).await.map_err(Error::passed)?;
        let mut news = Vec::new();
        // Consuming a message writes the same rows: neither may undo what the other did.
        let shared = self.core.instances.is_shared();
        if !shared && step.rows.is_none() {
            step.rows = Some(Arc::clone(&self.core.inbox.rows).lock_owned().await);
        }
        for (id, mark) in ids.iter().zip(marks) {
            // Only what came from this peer can be read.
            let Some(mark) = mark else { continue };
            let place = Place::from_bytes(mark.value.expose()).map_err(Error::passed)?;
            let key = keys::message(&self.peer.user, place);
            // An earlier command of this step marks it.
            if step.changes.ops.iter().any(|op| matches!(op, Op::Put { key: other, .. } if *other == key)) {
                continue;
            }
            match self.core.store.one(&key).await.map_err(Error::passed)? {
                Some(row) => {
                    let (expires, version) = (row.expires, row.version);
                    let mut row = MessageRow::decode(row.value.expose()).map_err(Error::passed)?;
                    if row.read {
                        continue;
                    }
                    row.read = true;
                    let put = Op::put(key, row.encode()).expiring(expires);
                    step.changes.push(if shared { put.expecting(Expect::Version(version)) } else { put });
                }
                // The conversation keeps no history; the sender is told all the same.
                None if self.core.keep_of(&self.peer.user) != FOREVER => {}
                None => continue,
            }
            news.push(*id);
        }
        if !self.core.config.receipts.read || self.core.rollback().is_some() {
            return Ok(());
        }
        for batch in news.chunks(limits::RECEIPT_BATCH) {
            if self.is_ready() && self.sealed.len() + step.sealed.len() < 4 * limits::LANE_WINDOW {
                self.push_receipt(true, batch, step)?;
            }
        }
        Ok(())
    }

    fn give_up_sessions(&mut self, why: GivingUp, step: &mut Step) -> Result<()> {
        let GivingUp::Rotated { tell } = why else {
            self.reset(step);
            return Ok(());
        };
        let Some(conversation) = &mut self.conversation else { return Ok(()) };
        let tell = tell && conversation.session_id().is_some();
        step.effects.append(conversation.retire().map_err(Error::passed)?);
        if tell {
            self.announce(step);
        }
        Ok(())
    }

    /// The peer is to be told of our present identity, by the first message of a fresh session. It stands in the lane's row
    /// until that message is sealed.
    pub(super) fn announce(&mut self, step: &mut Step) {
        let no_session =
            self.conversation.as_ref().is_some_and(|conversation| conversation.session_id().is_none());
        if no_session && step.row.announce.is_none() {
            step.row.announce = Some(0);
            self.tell_after = tokio::time::Instant::now();
        }
    }

    fn reset(&mut self, step: &mut Step) {
        let Some(conversation) = &mut self.conversation else { return };
        step.effects.append(conversation.reset());
    }

    /// The identity that a person takes, if nothing that is known of rotations speaks against it, or the person names it.
    fn judge_shown(&mut self, adopted: &Adopted, step: &mut Step) -> Result<(FoundBundle, TrustDecision)> {
        let followed = self.follow(&adopted.bundles, step);
        let bundle = read_bundle(&self.core, &self.peer, &adopted.bundles)?;
        let (key, user) = (*bundle.user_key(), || self.peer.user.clone());
        let shown = fingerprint(&key);
        if adopted.named.as_ref().is_some_and(|named| *named != shown) {
            return Err(ErrorKind::IdentityChanged { user: user() }.into());
        }
        let chain = match (followed, &adopted.named) {
            (Ok(shown), _) => shown.chain,
            (Err(error), None) => return Err(error),
            // The person knows better.
            (Err(_), Some(_)) => None,
        };
        if adopted.named.is_none() {
            let pin = self.conversation.as_ref().and_then(|conversation| conversation.pin());
            if let Some(pin) = pin.filter(|pin| pin.user_key != key) {
                if pin.had(&key) {
                    return Err(of_protocol(ProtocolError::IdentitySuperseded(user())));
                }
                if pin.forked {
                    return Err(of_protocol(ProtocolError::IdentityForked(user())));
                }
            }
        }
        let decision = TrustDecision { user_key: key, accept: true, verified: adopted.verified };
        Ok((FoundBundle { bundle, chain }, decision))
    }

    fn adopt(
        &mut self,
        (found, decision): (&FoundBundle, Option<&TrustDecision>),
        reply: Answer<()>,
        step: &mut Step,
    ) {
        let Some(conversation) = &mut self.conversation else { return };
        match conversation.start(&context(&self.core), &found.bundle, decision, &mut self.rng) {
            Ok(started) => {
                step.effects.append(started.effects);
                if decision.is_some() {
                    step.decide(match &started.identity {
                        IdentityEvent::Replaced { old } => Some(*old),
                        _ => None,
                    });
                }
                step.events.push(Event::SessionStarted { peer: self.peer.user.clone() });
                let who = self.core.config.actor.clone();
                self.note_identity(&started.identity, &who, step);
                self.note_earlier(found.chain.as_ref(), step);
                if step.peer.is_none() {
                    step.peer = self.core.note_peer(&self.peer.user, &mut step.changes);
                }
                self.welcome_refused();
                answer(step, reply, ());
            }
            Err(error) => {
                if matches!(error, ProtocolError::SuiteMismatch { .. }) {
                    self.alarm(&error);
                }
                reply.send(Err(of_protocol(error)));
            }
        }
    }

    /// Tells of another identity that took the place of a pinned one, and notes who decided it.
    pub(super) fn note_identity(&self, event: &IdentityEvent, who: &str, step: &mut Step) {
        let IdentityEvent::Replaced { old } = event else { return };
        let peer = &self.peer.user;
        step.events.push(Event::IdentityChanged { peer: peer.clone(), accepted: true });
        let new = self.conversation.as_ref().and_then(|conversation| conversation.pin());
        let keys = (&old[..], new.map(|pin| &pin.user_key[..]));
        step.journal(JournalEntry::accepted((self.core.now(), who), peer, keys));
    }

    fn delete(&mut self, step: &mut Step) {
        self.reset(step);
        let messages =
            self.waiting.len() + self.sealed.iter().filter(|one| one.body != PendingBody::Control).count();
        self.core.settle(self.waiting.len() + self.own_sealed());
        self.depth.fetch_sub(messages, Ordering::Relaxed);
        let places = self.waiting.drain(..).map(|one| one.place);
        let sealed = self.sealed.drain(..).filter_map(|one| match one.body {
            PendingBody::Message(place) => Some(place),
            PendingBody::Control => None,
        });
        let given_up: Vec<_> = places.chain(sealed).map(|place| (place.id, DeliveryState::Failed)).collect();
        step.advances.extend(given_up);
        step.messages.clear();
        for entry in self.core.parked.of(&self.peer) {
            step.changes.delete(entry.key());
            step.unparked.push(entry.number);
        }
        self.requests.clear();
        self.refused.clear();
        step.row.due.clear();
        step.row.announce = None;
        step.row.epoch = 0;
        step.row.lane = 0;
        step.changes
            .delete_partition(Table::History, keys::history(&self.peer.user))
            .delete_partition(Table::Outbox, keys::pending_of(&self.peer))
            .delete_partition(Table::Outbox, keys::sent_of(&self.peer));
        self.core.failures.forget_all(&self.peer, &mut step.changes);
        // A block outlives its conversation.
        if !self.core.is_blocked(&self.peer.user) {
            step.changes.delete(keys::peer(&self.core.store, &self.peer.user));
            // The pin stays, and a backup finds it by this.
            let name = self.peer.user.as_str().as_bytes().to_vec();
            step.changes.put(keys::pinned(&self.core.store, &self.peer.user), name);
            step.forget_peer = true;
        }
    }

    fn seal_out(&mut self, content: &Content, step: &mut Step) -> Result<Vec<u8>> {
        self.core.refuse_rolled_back()?;
        let id = ContentId::from_bytes(random(&mut self.rng)?);
        let body = SecretBytes::from_slice(content.as_bytes());
        let plaintext = Plaintext { content: id, kind: kind_of(content), body };
        let Some(conversation) = &mut self.conversation else {
            return Err(Error::not_ready("the conversation is being loaded"));
        };
        let encrypted =
            conversation.encrypt(&context(&self.core), &plaintext, &mut self.rng).map_err(of_protocol)?;
        step.effects.append(encrypted.effects);
        Ok(encrypted.blob)
    }

    async fn open_in(&mut self, blob: &[u8], step: &mut Step) -> Result<Unsealed> {
        let incoming = Incoming::parse(blob).map_err(of_protocol)?;
        let Some(conversation) = &mut self.conversation else {
            return Err(Error::not_ready("the conversation is being loaded"));
        };
        let wanted = conversation.needs(&incoming);
        let records = crate::records::load(&self.core.store, &wanted, &step.effects).await?;
        let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
        let received =
            conversation.decrypt(&context(&self.core), delivery, &mut self.rng).map_err(of_protocol)?;
        match self.object(&incoming, &received, step).await {
            None => {}
            Some(Objection::Refused(error)) => return Err(of_protocol(error)),
            Some(Objection::Unknown(error)) => return Err(error),
        }
        // A key-renewing answer has no way back unless the application seals one itself: the next sealed message renews.
        step.effects.append(received.effects);
        if received.started {
            step.events.push(Event::SessionStarted { peer: self.peer.user.clone() });
        }
        if received.identity != IdentityEvent::Known {
            self.ask_for_earlier();
        }
        let Plaintext { content: id, kind, body } = received.plaintext;
        let content = match kind {
            stvor_protocol::ContentKind::Text => Some(Content::decode(1, body.expose())),
            stvor_protocol::ContentKind::Bytes => Some(Content::decode(2, body.expose())),
            stvor_protocol::ContentKind::Json => Some(Content::decode(3, body.expose())),
            _ => None,
        };
        if content.is_some() && !step.marks.insert(id) {
            return Err(of_protocol(ProtocolError::Duplicate));
        }
        if content.is_some() {
            let now = self.core.now();
            let mark = keys::content(&self.peer, id);
            let place = Place { order: self.core.next_order(now), id };
            step.row.order = step.row.order.max(place.order);
            step.changes.push(Op::put(mark, place.to_bytes()).expiring(now + limits::KEEP_CONTENT_IDS));
        }
        if step.peer.is_none() {
            step.peer = self.core.note_peer(&self.peer.user, &mut step.changes);
        }
        Ok(Unsealed {
            id,
            from: self.peer.user.clone(),
            content: content.transpose().map_err(Error::passed)?,
            sent_at: received.sent_at,
        })
    }
}
