//! Decrypting. Nothing changes before the tag verified.

use stvor_base::Timestamp;
use stvor_crypto::random::Random;
use stvor_crypto::{SecretBytes, ShieldKey};

use super::conversation::{Active, Context, Conversation, Place, slot_of};
use super::one::{Applied, Ends, Opened, Sealing};
use super::{Session, SessionRecords};
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::{Incoming, SessionId};
use crate::error::ProtocolError;
use crate::limits::{LEFT_BEHIND_READING, REPLAY_MARK_LIFETIME};
use crate::plaintext::{ContentKind, Plaintext};
use crate::ratchet::{MessageSeed, Skipped, Step};
use crate::trust::{FirstContact, IdentityEvent, TrustDecision};

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

/// Between which identities the session of a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Theirs and ours as they are now.
    Current,
    /// Theirs handed over to another one since: whoever has the old keys may have written the message. It counts as verified by
    /// nobody.
    TheirsEarlier,
    /// Ours handed over to another one since: the peer may not know of that, or somebody else who had our old keys may have
    /// written the message. It counts as verified by nobody.
    OursEarlier,
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
    /// Between which identities its session is.
    pub standing: Standing,
}

impl Conversation {
    /// Decrypts a message. On an error nothing changed, here or in the rows, and what to do follows from
    /// [`ProtocolError::wants_repair`].
    ///
    /// # Errors
    /// [`ProtocolError::Duplicate`] and [`ProtocolError::Replay`] for what was accepted before;
    /// [`ProtocolError::UnknownSession`], [`ProtocolError::UnknownPrekey`], [`ProtocolError::Undecryptable`] and
    /// [`ProtocolError::TooFarAhead`] for what can not be read, [`ProtocolError::SuiteMismatch`] for what is of another suite, and [`ProtocolError::KeyGone`] for what came too late; [`ProtocolError::IdentityChanged`],
    /// [`ProtocolError::NotVerified`], [`ProtocolError::BadDeviceList`] and [`ProtocolError::AwaitingTrust`] as the
    /// policy judges the sender: for the last, call again with the decision.
    pub fn decrypt(
        &mut self,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        context.identity.speaks(incoming.suite)?;
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
        let shield = ShieldKey::new();
        let stored = self.stored_seed(context, delivery)?;
        let session = &self.active(place).ok_or(ProtocolError::UnknownSession)?.session;
        let opened = session.open(incoming, stored, &shield)?;
        self.check_identity(context, &session.terms.peer.user)?;
        // A candidate that is answered takes the place of the session that it was to repair. What can fail comes first.
        let promotion = match place {
            Place::Current => None,
            Place::Candidate => {
                Some((session.root_record(&shield)?, self.archive_record(Place::Current, &shield)?))
            }
        };
        let with = Sealing { padding: context.padding, now: context.now, shield: &shield };
        let active = self.at(place).as_mut().ok_or(ProtocolError::UnknownSession)?;
        let (plaintext, Applied { skipped, reply, root }) = active.session.apply(opened, with, rng)?;

        let answered_now = active.pending.take().is_some();
        let (id, chains) = (active.session.terms.id, active.session.chains_record());
        let mut effects = Effects::new();
        self.note(incoming, (&id, skipped, context.now), &mut effects);
        if let Some((unchanged, replaced)) = promotion {
            if let Some(active) = self.candidate.take() {
                self.delete_active(Place::Candidate, &mut effects);
                self.archive_active(Place::Current, replaced, &mut effects);
                let records = SessionRecords { root: root.unwrap_or(unchanged), chains };
                self.place_active(Place::Current, (active, records), &mut effects);
            }
            self.save_index(&mut effects);
        } else {
            effects.put(place.key(RecordKind::Session, &self.peer), chains);
            if let Some(root) = root {
                effects.put(place.key(RecordKind::SessionRoot, &self.peer), root);
            }
            if answered_now {
                effects.delete(place.key(RecordKind::PendingHandshake, &self.peer));
            }
        }
        if self.repair.works() {
            self.repair.save(&self.peer, &mut effects);
        }
        let (sent_at, identity, standing) = (incoming.sent_at, IdentityEvent::Known, Standing::Current);
        Ok(Received { plaintext, sent_at, effects, reply, identity, started: false, standing })
    }

    fn decrypt_archived(
        &mut self,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        let shield = ShieldKey::new();
        let key = self.archived_key(&incoming.session);
        let record = delivery.records.get(&key).ok_or(ProtocolError::MissingRow("archived session"))?;
        let (mut session, opened, own) = self.open_archived(record, (context, delivery), &shield)?;
        let standing = self.standing(context, &session, (own, &opened.step))?;
        let left_behind = standing != Standing::Current;
        let with = Sealing { padding: context.padding, now: context.now, shield: &shield };
        let (plaintext, Applied { skipped, reply, .. }) = session.apply(opened, with, rng)?;
        let reply = reply.filter(|_| !left_behind);
        let records = session.records(&shield)?;
        let replaced = self.archive_record(Place::Current, &shield)?;

        let mut effects = Effects::new();
        self.note(incoming, (&session.terms.id, skipped, context.now), &mut effects);
        if plaintext.kind == ContentKind::RetryRequest && !left_behind {
            // The peer asks on the session that works for it, so ours is one that it can not read: without going over
            // to its session, what is sent again would fail again.
            effects.delete(key);
            self.archive.retain(|id| *id != session.terms.id);
            self.archive_active(Place::Current, replaced, &mut effects);
            self.place_active(Place::Current, (Active { session, pending: None }, records), &mut effects);
            self.save_index(&mut effects);
            if self.repair.works() {
                self.repair.save(&self.peer, &mut effects);
            }
        } else {
            effects.put(key, records.archived());
        }
        let (sent_at, identity) = (incoming.sent_at, IdentityEvent::Known);
        Ok(Received { plaintext, sent_at, effects, reply, identity, started: false, standing })
    }

    /// Between which identities an archived session is. Of one that rotated since, theirs or ours, what was under way is read for
    /// a while: the chains that had begun by then and no new one, for whoever has the old keys could begin it. Nothing goes out
    /// on such a session.
    fn standing(
        &self,
        context: &Context<'_>,
        session: &Session,
        (own, step): (bool, &Step),
    ) -> Result<Standing, ProtocolError> {
        let theirs = &session.terms.peer.user;
        let earlier = self.pin.as_ref().filter(|pin| pin.user_key != *theirs && pin.had(theirs));
        if earlier.is_none() {
            self.check_identity(context, theirs)?;
        }
        if earlier.is_none() && own {
            return Ok(Standing::Current);
        }
        let late = earlier.is_some_and(|pin| !pin.still_reads(theirs, context.now));
        if late || matches!(step, Step::Turn(_)) {
            return Err(ProtocolError::KeyGone);
        }
        if context.policy.first == FirstContact::VerifiedOnly {
            return Err(ProtocolError::NotVerified(self.peer.user.clone()));
        }
        Ok(if earlier.is_some() { Standing::TheirsEarlier } else { Standing::OursEarlier })
    }

    /// Opens a message on an archived session: with our keys, or with those of an identity of ours that handed over not long
    /// ago. Also whether it was ours as it is now.
    fn open_archived(
        &self,
        record: &SecretBytes,
        (context, delivery): (&Context<'_>, Delivery<'_>),
        shield: &ShieldKey,
    ) -> Result<(Session, Opened, bool), ProtocolError> {
        let open = |ends: &Ends<'_>| {
            let session = Session::from_archive(record, ends, shield)?;
            let stored = self.stored_seed(context, delivery)?;
            let opened = session.open(delivery.incoming, stored, shield)?;
            Ok((session, opened))
        };
        let mut tried = open(&self.ends(context)).map(|(session, opened)| (session, opened, true));
        for earlier in context.identity.earlier() {
            let recent = context.now.since(earlier.left) <= LEFT_BEHIND_READING;
            if !recent || !matches!(tried, Err(ProtocolError::Undecryptable)) {
                break;
            }
            let ends = Ends { own: (context.identity.address(), &earlier.keys), peer: &self.peer };
            tried = open(&ends).map(|(session, opened)| (session, opened, false));
        }
        tried
    }

    fn stored_seed(
        &self,
        context: &Context<'_>,
        delivery: Delivery<'_>,
    ) -> Result<Option<MessageSeed>, ProtocolError> {
        self.stored.seed(&self.peer, &slot_of(delivery.incoming), (delivery.records, context.now))
    }

    /// Notes that a message was accepted: the lock against copies, and which message keys are stored.
    pub(super) fn note(
        &mut self,
        incoming: &Incoming<'_>,
        (session, skipped, now): (&SessionId, Vec<Skipped>, Timestamp),
        effects: &mut Effects,
    ) {
        let mark = RecordKey::of_peer(RecordKind::ReplayMark, &self.peer, incoming.header.nonce);
        effects.insert(mark, SecretBytes::from(vec![1]), Some(now + REPLAY_MARK_LIFETIME));
        self.stored.used(&self.peer, &slot_of(incoming), effects);
        self.stored.expire(&self.peer, now, effects);
        self.stored.add(&self.peer, (session, skipped, now), effects);
        self.stored.save(&self.peer, effects);
    }
}
