//! Decrypting. Nothing changes before the tag verified.

use stvor_base::{ContentId, Timestamp};
use stvor_crypto::SecretBytes;
use stvor_crypto::random::Random;

use super::Session;
use super::conversation::{Context, Conversation, Place, slot_of};
use super::one::Opened;
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::Incoming;
use crate::error::ProtocolError;
use crate::limits::{FORCED_RATCHET, REPLAY_MARK_LIFETIME};
use crate::plaintext::Plaintext;
use crate::ratchet::{MessageSeed, Step};
use crate::trust::{IdentityEvent, TrustDecision};

/// A message and what goes with it.
#[derive(Debug, Clone, Copy)]
pub struct Delivery<'a> {
    /// The message.
    pub incoming: &'a Incoming<'a>,
    /// The rows that [`Conversation::needs`] named, as far as they exist.
    pub records: &'a Records,
    /// The answer to an earlier [`ProtocolError::AwaitingTrust`].
    pub decision: Option<&'a TrustDecision>,
}

/// A message that was decrypted.
#[derive(Debug)]
#[must_use]
pub struct Received {
    /// What it says.
    pub plaintext: Plaintext,
    /// When it was sent, by the sender's clock.
    pub sent_at: Timestamp,
    /// What to commit, before the message is acknowledged.
    pub effects: Effects,
    /// A control message that renews keys, to be sent once the effects are committed.
    pub reply: Option<Vec<u8>>,
    /// What became of the peer's identity.
    pub identity: IdentityEvent,
    /// Whether the message started a session.
    pub started: bool,
}

/// What came of the session that a message was opened on.
pub(super) struct Advanced {
    pub(super) effects: Effects,
    pub(super) reply: Option<Vec<u8>>,
    pub(super) root_changed: bool,
}

impl Conversation {
    /// Decrypts a message. On an error nothing changed, here or in the rows, and what to do follows from
    /// [`ProtocolError::wants_repair`].
    ///
    /// # Errors
    /// [`ProtocolError::Duplicate`] and [`ProtocolError::Replay`] for what was accepted before;
    /// [`ProtocolError::UnknownSession`], [`ProtocolError::UnknownPrekey`], [`ProtocolError::Undecryptable`] and
    /// [`ProtocolError::TooFarAhead`] for what can not be read; [`ProtocolError::IdentityChanged`],
    /// [`ProtocolError::NotVerified`], [`ProtocolError::BadDeviceList`] and [`ProtocolError::AwaitingTrust`] as the
    /// policy judges the sender: for the last, call again with the decision.
    pub fn decrypt(
        &mut self,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        if let Some(place) = self.place(&incoming.session) {
            return self.decrypt_active(place, context, delivery, rng);
        }
        if self.archive.contains(&incoming.session) {
            return self.decrypt_archived(context, delivery, rng);
        }
        match &incoming.prekey {
            Some(part) => self.accept(part, context, delivery, rng),
            None => Err(ProtocolError::UnknownSession),
        }
    }

    fn decrypt_active(
        &mut self,
        place: Place,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        let stored = self.stored_seed(delivery)?;
        let slot = match place {
            Place::Current => &self.current,
            Place::Candidate => &self.candidate,
        };
        let session = &slot.as_ref().ok_or(ProtocolError::UnknownSession)?.session;
        let Opened { plaintext, step } = session.open(incoming, stored)?;
        self.check_identity(context, &session.terms.peer.user)?;

        let mut active = self.at(place).take().ok_or(ProtocolError::UnknownSession)?;
        let answered_now = active.pending.take().is_some();
        let advanced = self.advance(&mut active.session, (step, &plaintext, incoming), context, rng);
        let promoted = place == Place::Candidate;
        let mut effects = Effects::new();
        if promoted {
            // It was answered: it takes the place of the session that it was to repair.
            for kind in [RecordKind::Session, RecordKind::SessionRoot, RecordKind::PendingHandshake] {
                effects.delete(place.key(kind, &self.peer));
            }
            self.archive_active(Place::Current, &mut effects)?;
        }
        self.current = Some(active);
        let Advanced { effects: writes, reply, root_changed } = advanced?;
        effects.append(writes);
        if promoted {
            let mut whole = Effects::new();
            self.save_active(Place::Current, &mut whole)?;
            effects.append(whole);
            self.save_index(&mut effects);
        } else if let Some(active) = &self.current {
            effects.put(place.key(RecordKind::Session, &self.peer), active.session.chains_record());
            if root_changed {
                effects.put(place.key(RecordKind::SessionRoot, &self.peer), active.session.root_record()?);
            }
            if answered_now {
                effects.delete(place.key(RecordKind::PendingHandshake, &self.peer));
            }
        }
        if self.repair.works() {
            self.repair.save(&self.peer, &mut effects);
        }
        let sent_at = incoming.sent_at;
        Ok(Received { plaintext, sent_at, effects, reply, identity: IdentityEvent::Known, started: false })
    }

    fn decrypt_archived(
        &mut self,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        let key = self.archived_key(&incoming.session);
        let record = delivery.records.get(&key).ok_or(ProtocolError::MissingRow("archived session"))?;
        let mut session = Session::from_archive(record, &self.ends(context))?;
        let stored = self.stored_seed(delivery)?;
        let Opened { plaintext, step } = session.open(incoming, stored)?;
        self.check_identity(context, &session.terms.peer.user)?;
        let Advanced { mut effects, reply, .. } =
            self.advance(&mut session, (step, &plaintext, incoming), context, rng)?;
        effects.put(key, session.archive_record()?);
        let sent_at = incoming.sent_at;
        Ok(Received { plaintext, sent_at, effects, reply, identity: IdentityEvent::Known, started: false })
    }

    fn stored_seed(&self, delivery: Delivery<'_>) -> Result<Option<MessageSeed>, ProtocolError> {
        self.stored.seed(&self.peer, &slot_of(delivery.incoming), delivery.records)
    }

    /// Applies an opened message to its session: keys that were passed over, the lock against copies, and the answer
    /// that renews keys.
    pub(super) fn advance(
        &mut self,
        session: &mut Session,
        (step, plaintext, incoming): (Step, &Plaintext, &Incoming<'_>),
        context: &Context<'_>,
        rng: &mut dyn Random,
    ) -> Result<Advanced, ProtocolError> {
        let mut effects = Effects::new();
        let mark = RecordKey::of_peer(RecordKind::ReplayMark, &self.peer, &incoming.header.nonce);
        effects.insert(mark, SecretBytes::from(vec![1]), Some(context.now + REPLAY_MARK_LIFETIME));
        if matches!(step, Step::Stored) {
            self.stored.used(&self.peer, &slot_of(incoming), &mut effects);
        }
        let (skipped, mut root_changed) = session.apply(step, plaintext.kind.is_application());
        self.stored.expire(&self.peer, context.now, &mut effects);
        self.stored.add(&self.peer, (&session.terms.id, skipped, context.now), &mut effects);
        self.stored.save(&self.peer, &mut effects);

        let mut reply = None;
        if session.received >= FORCED_RATCHET {
            let mut content = [0; 16];
            rng.fill(&mut content)?;
            let control = Plaintext::control(ContentId::from_bytes(content));
            let (blob, turned) = session.seal(&control, (None, context.padding), context.now, rng)?;
            root_changed |= turned;
            reply = Some(blob);
        }
        Ok(Advanced { effects, reply, root_changed })
    }
}
