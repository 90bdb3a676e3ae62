//! Starting sessions and encrypting.

use stvor_crypto::ShieldKey;
use stvor_crypto::random::Random;

use super::conversation::{Active, Context, Conversation, Place};
use super::one::Sealing;
use super::{Session, Terms};
use crate::effects::{Effects, RecordKind};
use crate::error::ProtocolError;
use crate::handshake;
use crate::limits::FRESH_SESSION_INTERVAL;
use crate::plaintext::Plaintext;
use crate::prekey::PrekeyBundle;
use crate::profile;
use crate::ratchet::Ratchet;
use crate::trust::{IdentityEvent, TrustDecision, judge};

/// An encrypted message.
#[derive(Debug)]
#[must_use]
pub struct Encrypted {
    /// What to send, once the effects are committed.
    pub blob: Vec<u8>,
    /// What to commit.
    pub effects: Effects,
}

/// A session that was started.
#[derive(Debug)]
#[must_use]
pub struct Started {
    /// What to commit, in one transaction with the effects of the first message that is encrypted on it.
    pub effects: Effects,
    /// What became of the peer's identity.
    pub identity: IdentityEvent,
}

impl Conversation {
    /// Starts a session with a bundle. It becomes current, and the one before is archived.
    ///
    /// # Errors
    /// [`ProtocolError::BadBundle`] for a bundle of another device, [`ProtocolError::SuiteMismatch`] for one of another
    /// suite; what [`judge`] says of the identity: on
    /// [`ProtocolError::AwaitingTrust`] call again with the decision.
    pub fn start(
        &mut self,
        context: &Context<'_>,
        bundle: &PrekeyBundle,
        decision: Option<&TrustDecision>,
        rng: &mut dyn Random,
    ) -> Result<Started, ProtocolError> {
        self.start_at(Place::Current, (context, bundle, decision), rng)
    }

    /// Starts a session for [`Conversation::encrypt_repair`]: it becomes current when it is answered. At most one an
    /// hour.
    ///
    /// # Errors
    /// [`ProtocolError::RepairBudget`] within the hour; otherwise as [`Conversation::start`].
    pub fn start_repair(
        &mut self,
        context: &Context<'_>,
        bundle: &PrekeyBundle,
        decision: Option<&TrustDecision>,
        rng: &mut dyn Random,
    ) -> Result<Started, ProtocolError> {
        let within = |at| context.now.since(at) < FRESH_SESSION_INTERVAL;
        if self.repair.fresh_at.is_some_and(within) {
            return Err(ProtocolError::RepairBudget(self.peer.clone()));
        }
        // Without a session there is none to protect from an unanswered one.
        let place = if self.current.is_some() { Place::Candidate } else { Place::Current };
        let mut started = self.start_at(place, (context, bundle, decision), rng)?;
        self.repair.fresh(context.now);
        self.repair.save(&self.peer, &mut started.effects);
        Ok(started)
    }

    fn start_at(
        &mut self,
        place: Place,
        (context, bundle, decision): (&Context<'_>, &PrekeyBundle, Option<&TrustDecision>),
        rng: &mut dyn Random,
    ) -> Result<Started, ProtocolError> {
        if bundle.address != self.peer {
            return Err(ProtocolError::BadBundle("it is of another device"));
        }
        // Before the identity is judged: no policy lets a peer talk us into another suite.
        context.identity.speaks(bundle.keys.suite())?;
        let shield = ShieldKey::new();
        let verdict = judge(self.pin.as_ref(), &bundle.list, (context.policy, decision), context.now)?;
        let initiated = handshake::initiate(context.identity, bundle, rng)?;
        let ratchet = Ratchet::initiator(&initiated.agreed.root, bundle.signed.1.clone(), &shield)?;
        let terms = Terms {
            id: initiated.agreed.session,
            profile: profile::of(context.identity.suite()),
            initiator: true,
            created: context.now,
            base_key: initiated.base_key,
            peer: bundle.keys.clone(),
        };
        let session = Session::new(terms, ratchet, &self.ends(context));
        let records = session.records(&shield)?;
        let replaced = self.archive_record(place, &shield)?;
        let active = Active { session, pending: Some(initiated.part.encode()) };

        // Nothing fails from here on, so nothing changed if something did.
        let mut effects = Effects::new();
        // Sessions are with an identity: when it goes, they go.
        let place = if matches!(verdict.event, IdentityEvent::Replaced { .. }) {
            self.forget_sessions(&mut effects);
            Place::Current
        } else {
            place
        };
        self.archive_active(place, replaced, &mut effects);
        if verdict.changed {
            self.write_pin(&verdict.pin, &mut effects);
        }
        self.pin = Some(verdict.pin);
        self.place_active(place, (active, records), &mut effects);
        self.save_index(&mut effects);
        Ok(Started { effects, identity: verdict.event })
    }

    /// Encrypts on the current session.
    ///
    /// # Errors
    /// [`ProtocolError::NoSession`] when there is none or nobody answered it for 14 days: fetch a bundle and
    /// [`start`](Conversation::start). [`ProtocolError::MessageTooLarge`] above 64 KiB. [`ProtocolError::NotVerified`]
    /// when the policy asks for a verified peer.
    pub fn encrypt(
        &mut self,
        context: &Context<'_>,
        plaintext: &Plaintext,
        rng: &mut dyn Random,
    ) -> Result<Encrypted, ProtocolError> {
        if !self.is_ready(context.now) {
            return Err(ProtocolError::NoSession(self.peer.clone()));
        }
        self.encrypt_at(Place::Current, context, plaintext, rng)
    }

    /// Encrypts a retry request: on the repair candidate if there is one, otherwise on the current session.
    ///
    /// # Errors
    /// As [`Conversation::encrypt`].
    pub fn encrypt_repair(
        &mut self,
        context: &Context<'_>,
        plaintext: &Plaintext,
        rng: &mut dyn Random,
    ) -> Result<Encrypted, ProtocolError> {
        if self.candidate.is_some() {
            return self.encrypt_at(Place::Candidate, context, plaintext, rng);
        }
        self.encrypt(context, plaintext, rng)
    }

    fn encrypt_at(
        &mut self,
        place: Place,
        context: &Context<'_>,
        plaintext: &Plaintext,
        rng: &mut dyn Random,
    ) -> Result<Encrypted, ProtocolError> {
        let Some(active) = self.active(place) else {
            return Err(ProtocolError::NoSession(self.peer.clone()));
        };
        self.check_identity(context, &active.session.terms.peer.user)?;
        let shield = ShieldKey::new();
        let with = Sealing { padding: context.padding, now: context.now, shield: &shield };
        let Some(active) = self.at(place) else { return Err(ProtocolError::NoSession(self.peer.clone())) };
        let sealed = active.session.seal(plaintext, active.pending.as_deref(), with, rng)?;
        let chains = active.session.chains_record();
        let mut effects = Effects::new();
        effects.put(place.key(RecordKind::Session, &self.peer), chains);
        if let Some(root) = sealed.root {
            effects.put(place.key(RecordKind::SessionRoot, &self.peer), root);
        }
        Ok(Encrypted { blob: sealed.blob, effects })
    }
}
