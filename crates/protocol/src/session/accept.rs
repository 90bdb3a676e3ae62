//! Accepting a handshake, and which of two sessions that started at once is kept.

use stvor_base::KeyBytes;
use stvor_crypto::random::Random;
use stvor_crypto::{SecretBytes, ShieldKey};

use super::conversation::{Active, Context, Conversation, Place};
use super::decrypt::{Delivery, Received, Standing};
use super::one::{Applied, Sealing};
use super::{Session, SessionRecords, Terms};
use crate::effects::Effects;
use crate::envelope::PrekeyPartIn;
use crate::error::ProtocolError;
use crate::handshake;
use crate::plaintext::ContentKind;
use crate::profile;
use crate::ratchet::Ratchet;
use crate::trust::{IdentityEvent, judge};

/// The records of our active sessions, made before anything changes because making them can fail.
struct Archived {
    current: Option<SecretBytes>,
    candidate: Option<SecretBytes>,
    /// The candidate's, should it become current.
    promoted: Option<SessionRecords>,
}

impl Conversation {
    pub(super) fn accept(
        &mut self,
        part: &PrekeyPartIn,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        let shield = ShieldKey::new();
        let accepted = handshake::accept(context.identity, &self.peer, part, delivery.records)?;
        if accepted.agreed.session != incoming.session {
            return Err(ProtocolError::Undecryptable);
        }
        let terms = Terms {
            id: accepted.agreed.session,
            profile: profile::of(context.identity.suite()),
            initiator: false,
            created: context.now,
            base_key: part.base_key,
            peer: accepted.peer,
        };
        let ratchet = Ratchet::responder(&accepted.agreed.root, accepted.ratchet_key, &shield)?;
        let mut session = Session::new(terms, ratchet, &self.ends(context));
        let opened = session.open(incoming, None, &shield)?;
        // The sender holds the keys that it presents; whether they are whom we know is judged now.
        let judging = (context.policy, delivery.decision);
        let verdict = judge(self.pin.as_ref(), &accepted.list, judging, context.now)?;
        let with = Sealing { padding: context.padding, now: context.now, shield: &shield };
        let (plaintext, Applied { skipped, reply, .. }) = session.apply(opened, with, rng)?;
        let records = session.records(&shield)?;
        let archived = Archived {
            current: self.archive_record(Place::Current, &shield)?,
            candidate: self.archive_record(Place::Candidate, &shield)?,
            promoted: self.candidate.as_ref().map(|active| active.session.records(&shield)).transpose()?,
        };

        // Nothing fails from here on, so nothing changed if something did.
        let mut effects = accepted.effects;
        if verdict.changed {
            self.write_pin(&verdict.pin, &mut effects);
        }
        if matches!(verdict.event, IdentityEvent::Replaced { .. }) {
            self.forget_sessions(&mut effects);
        }
        self.pin = Some(verdict.pin);
        let mut writes = Effects::new();
        self.note(incoming, (&session.terms.id, skipped, context.now), &mut writes);
        effects.append(writes);
        // A peer that asks again can not read our session, whichever of the two has the smaller key.
        let asks = plaintext.kind == ContentKind::RetryRequest;
        effects.append(self.place_accepted((session, records), archived, asks));
        if self.session_id() == Some(&incoming.session) && self.repair.works() {
            self.repair.save(&self.peer, &mut effects);
        }
        let (sent_at, identity, standing) = (incoming.sent_at, verdict.event, Standing::Current);
        Ok(Received { plaintext, sent_at, effects, reply, identity, started: true, standing })
    }

    /// The base key and place of a session of ours that nobody answered yet.
    fn own_unanswered(&self) -> Option<(Place, &KeyBytes)> {
        [Place::Candidate, Place::Current].into_iter().find_map(|place| {
            let session = &self.active(place)?.session;
            session.unanswered().then_some((place, &session.terms.base_key))
        })
    }

    /// Both sides started at once: the session with the smaller base key becomes current on both sides, the other is
    /// archived and still decrypts. Otherwise, or if the peer `asks` for messages again, the new one becomes current.
    fn place_accepted(
        &mut self,
        (session, records): (Session, SessionRecords),
        archived: Archived,
        asks: bool,
    ) -> Effects {
        let mut effects = Effects::new();
        let wins = |base_key: &KeyBytes| !asks && *base_key < session.terms.base_key;
        let ours = self.own_unanswered().filter(|(_, base_key)| wins(base_key));
        match ours.map(|(place, _)| place) {
            Some(Place::Current) => self.archive_session(session.terms.id, records.archived(), &mut effects),
            Some(Place::Candidate) => {
                self.archive_active(Place::Current, archived.current, &mut effects);
                self.archive_session(session.terms.id, records.archived(), &mut effects);
                if let (Some(active), Some(records)) = (self.candidate.take(), archived.promoted) {
                    self.delete_active(Place::Candidate, &mut effects);
                    self.place_active(Place::Current, (active, records), &mut effects);
                }
            }
            None => {
                self.archive_active(Place::Current, archived.current, &mut effects);
                self.archive_active(Place::Candidate, archived.candidate, &mut effects);
                let active = Active { session, pending: None };
                self.place_active(Place::Current, (active, records), &mut effects);
            }
        }
        self.save_index(&mut effects);
        effects
    }
}
