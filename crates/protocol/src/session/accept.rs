//! Accepting a handshake, and which of two sessions that started at once is kept.

use stvor_crypto::random::Random;

use super::conversation::{Active, Context, Conversation, Place};
use super::decrypt::{Advanced, Delivery, Received};
use super::one::Opened;
use super::{Session, Terms};
use crate::effects::{Effects, RecordKey};
use crate::envelope::PrekeyPartIn;
use crate::error::ProtocolError;
use crate::handshake;
use crate::profile::active::PUBLIC_KEY;
use crate::ratchet::Ratchet;
use crate::trust::{IdentityEvent, judge};

impl Conversation {
    pub(super) fn accept(
        &mut self,
        part: &PrekeyPartIn,
        context: &Context<'_>,
        delivery: Delivery<'_>,
        rng: &mut dyn Random,
    ) -> Result<Received, ProtocolError> {
        let incoming = delivery.incoming;
        let accepted = handshake::accept(context.identity, &self.peer, part, delivery.records)?;
        if accepted.agreed.session != incoming.session {
            return Err(ProtocolError::Undecryptable);
        }
        let terms = Terms {
            id: accepted.agreed.session,
            initiator: false,
            created: context.now,
            base_key: part.base_key,
            peer: accepted.peer,
        };
        let ratchet = Ratchet::responder(&accepted.agreed.root, accepted.ratchet_key)?;
        let mut session = Session::new(terms, ratchet, &self.ends(context));
        let Opened { plaintext, step } = session.open(incoming, None)?;
        // The sender holds the keys that it presents; whether they are whom we know is judged now.
        let judging = (context.policy, delivery.decision);
        let verdict = judge(self.pin.as_ref(), &accepted.list, judging, context.now)?;

        let mut effects = accepted.effects;
        if verdict.changed {
            effects.put(RecordKey::pin(&self.peer.user), verdict.pin.to_record());
        }
        if matches!(verdict.event, IdentityEvent::Replaced { .. }) {
            self.forget_sessions(&mut effects);
        }
        self.pin = Some(verdict.pin);
        let Advanced { effects: writes, reply, .. } =
            self.advance(&mut session, (step, &plaintext, incoming), context, rng)?;
        effects.append(writes);
        effects.append(self.place_accepted(session)?);
        let sent_at = incoming.sent_at;
        Ok(Received { plaintext, sent_at, effects, reply, identity: verdict.event, started: true })
    }

    /// The base key and place of a session of ours that nobody answered yet.
    fn own_unanswered(&self) -> Option<(Place, &[u8; PUBLIC_KEY])> {
        let unanswered = |place, active: &'_ Option<Active>| {
            active.as_ref().filter(|active| active.session.unanswered()).map(|_| place)
        };
        let place = unanswered(Place::Candidate, &self.candidate)
            .or_else(|| unanswered(Place::Current, &self.current))?;
        let active = match place {
            Place::Current => self.current.as_ref(),
            Place::Candidate => self.candidate.as_ref(),
        };
        active.map(|active| (place, &active.session.terms.base_key))
    }

    /// Both sides started at once: the session with the smaller base key becomes current on both sides, the other is
    /// archived and still decrypts. Otherwise the new one becomes current.
    fn place_accepted(&mut self, session: Session) -> Result<Effects, ProtocolError> {
        let mut effects = Effects::new();
        let ours = self.own_unanswered().filter(|(_, base_key)| **base_key < session.terms.base_key);
        match ours.map(|(place, _)| place) {
            Some(Place::Current) => self.archive_session(&session, &mut effects)?,
            Some(Place::Candidate) => {
                self.archive_active(Place::Current, &mut effects)?;
                self.archive_session(&session, &mut effects)?;
                self.current = self.candidate.take();
                self.save_and_clear_candidate(&mut effects)?;
            }
            None => {
                self.archive_active(Place::Current, &mut effects)?;
                self.archive_active(Place::Candidate, &mut effects)?;
                self.current = Some(Active { session, pending: None });
                let mut writes = Effects::new();
                self.save_active(Place::Current, &mut writes)?;
                effects.append(writes);
            }
        }
        self.save_index(&mut effects);
        Ok(effects)
    }

    fn save_and_clear_candidate(&mut self, effects: &mut Effects) -> Result<(), ProtocolError> {
        use crate::effects::RecordKind::{PendingHandshake, Session, SessionRoot};
        let mut writes = Effects::new();
        for kind in [Session, SessionRoot, PendingHandshake] {
            writes.delete(Place::Candidate.key(kind, &self.peer));
        }
        self.save_active(Place::Current, &mut writes)?;
        effects.append(writes);
        Ok(())
    }
}
