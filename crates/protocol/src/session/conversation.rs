//! What is kept of a conversation, in memory and in rows.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, KeyBytes, Timestamp};
use stvor_crypto::{SecretBytes, ShieldKey};

use super::stored::{Slot, StoredKeys};
use super::{Ends, Session, SessionRecords};
use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::{Incoming, SessionId};
use crate::error::ProtocolError;
use crate::handshake;
use crate::identity::Identity;
use crate::limits::{MAX_ARCHIVED_SESSIONS, UNANSWERED_RESTART};
use crate::plaintext::Padding;
use crate::ratchet::key_id;
use crate::repair::RepairState;
use crate::trust::{FirstContact, Pin, TrustPolicy};

const VERSION: u8 = 1;

/// What every operation of a conversation is given: who we are, how we judge, and the time.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Our identity.
    pub identity: &'a Identity,
    /// How identities are judged.
    pub policy: TrustPolicy,
    /// How blobs are padded.
    pub padding: Padding,
    /// The time.
    pub now: Timestamp,
}

/// All sessions with one device of a peer, decoded. Keep it in memory; every call that changes it hands back the
/// [`Effects`] that store the change. When those are not committed, throw the value away and load it again.
pub struct Conversation {
    pub(crate) peer: Address,
    pub(crate) pin: Option<Pin>,
    pub(crate) current: Option<Active>,
    pub(crate) candidate: Option<Active>,
    /// Newest first.
    pub(crate) archive: Vec<SessionId>,
    pub(crate) stored: StoredKeys,
    pub(crate) repair: RepairState,
}

/// A session that can send.
pub(crate) struct Active {
    pub(crate) session: Session,
    /// The prekey part that goes with each message until the session is answered.
    pub(crate) pending: Option<Vec<u8>>,
}

/// Where the rows of an active session are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Current,
    Candidate,
}

impl Place {
    pub(crate) const fn sort(self) -> [u8; 1] {
        match self {
            Self::Current => [0],
            Self::Candidate => [1],
        }
    }

    pub(crate) fn key(self, kind: RecordKind, peer: &Address) -> RecordKey {
        RecordKey::of_peer(kind, peer, &self.sort())
    }
}

const ACTIVE_KINDS: [RecordKind; 3] =
    [RecordKind::Session, RecordKind::SessionRoot, RecordKind::PendingHandshake];

impl core::fmt::Debug for Conversation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Conversation")
            .field("peer", &self.peer)
            .field("has_session", &self.current.is_some())
            .field("archived", &self.archive.len())
            .finish_non_exhaustive()
    }
}

impl Conversation {
    /// The rows that [`Conversation::load`] reads.
    #[must_use]
    pub fn keys(peer: &Address) -> Vec<RecordKey> {
        let mut keys = vec![
            RecordKey::of_peer(RecordKind::Conversation, peer, &[]),
            StoredKeys::key(peer),
            RecordKey::of_peer(RecordKind::Repair, peer, &[]),
            RecordKey::pin(&peer.user),
        ];
        for place in [Place::Current, Place::Candidate] {
            keys.extend(ACTIVE_KINDS.map(|kind| place.key(kind, peer)));
        }
        keys
    }

    /// Reads a conversation. Without rows it is a new one.
    ///
    /// # Errors
    /// [`ProtocolError::BadRecord`], [`ProtocolError::TooNew`].
    pub fn load(identity: &Identity, peer: &Address, records: &Records) -> Result<Self, ProtocolError> {
        let archive = match records.get(&RecordKey::of_peer(RecordKind::Conversation, peer, &[])) {
            Some(record) => decode_archive(record.expose()).map_err(ProtocolError::record("conversation"))?,
            None => Vec::new(),
        };
        let shield = ShieldKey::new();
        let ends = Ends { own: (identity.address(), identity.keys()), peer };
        let active = |place: Place| -> Result<Option<Active>, ProtocolError> {
            let [chains, root, pending] = ACTIVE_KINDS.map(|kind| records.get(&place.key(kind, peer)));
            let Some(chains) = chains else { return Ok(None) };
            let root = root.ok_or(ProtocolError::BadRecord("session root"))?;
            let session = Session::from_records((root.expose(), chains.expose()), &ends, &shield)?;
            let pending = pending.map(|record| record.expose().to_vec()).filter(|_| session.unanswered());
            if session.unanswered() && pending.is_none() {
                return Err(ProtocolError::BadRecord("pending handshake"));
            }
            Ok(Some(Active { session, pending }))
        };
        Ok(Self {
            peer: peer.clone(),
            pin: records.get(&RecordKey::pin(&peer.user)).map(Pin::from_record).transpose()?,
            current: active(Place::Current)?,
            candidate: active(Place::Candidate)?,
            archive,
            stored: StoredKeys::load(peer, records)?,
            repair: RepairState::load(peer, records)?,
        })
    }

    /// The pinned identity, once there is one.
    #[must_use]
    pub fn pin(&self) -> Option<&Pin> {
        self.pin.as_ref()
    }

    /// Whether a message can be encrypted. If not, fetch a bundle and call [`Conversation::start`].
    #[must_use]
    pub fn is_ready(&self, now: Timestamp) -> bool {
        self.current.as_ref().is_some_and(|active| {
            let session = &active.session;
            !session.unanswered() || now.since(session.terms.created) < UNANSWERED_RESTART
        })
    }

    /// Whether the current session was answered by the peer (or started by it).
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.current.as_ref().is_some_and(|active| !active.session.unanswered())
    }

    /// The id of the current session.
    #[must_use]
    pub fn session_id(&self) -> Option<&SessionId> {
        self.current.as_ref().map(|active| &active.session.terms.id)
    }

    /// How many replaced sessions are kept.
    #[must_use]
    pub fn archived(&self) -> usize {
        self.archive.len()
    }

    /// How many keys of messages that have not come are stored.
    #[must_use]
    pub fn stored_keys(&self) -> usize {
        self.stored.len()
    }

    /// The rows that decrypting a message needs.
    #[must_use]
    pub fn needs(&self, incoming: &Incoming<'_>) -> Vec<RecordKey> {
        let active = self.place(&incoming.session).is_some();
        if active && self.stored.is_empty() {
            return Vec::new();
        }
        let mut keys = Vec::from_iter(self.stored.row(&self.peer, &slot_of(incoming)));
        if active {
            return keys;
        }
        if self.archive.contains(&incoming.session) {
            keys.push(self.archived_key(&incoming.session));
        } else if let Some(part) = &incoming.prekey {
            keys.extend(handshake::needs(part));
        }
        keys
    }

    /// A first pin is written once: who finds another one that was written meanwhile fails, and judges by that.
    pub(crate) fn write_pin(&self, pin: &Pin, effects: &mut Effects) {
        let key = RecordKey::pin(&self.peer.user);
        match self.pin {
            None => effects.insert(key, pin.to_record(), None),
            Some(_) => effects.put(key, pin.to_record()),
        };
    }

    /// Marks the pinned identity as verified by a person, or takes that back.
    ///
    /// # Errors
    /// [`ProtocolError::NotVerified`] when nothing is pinned yet.
    pub fn set_verified(&mut self, verified: bool) -> Result<Effects, ProtocolError> {
        let pin = self.pin.as_mut().ok_or_else(|| ProtocolError::NotVerified(self.peer.user.clone()))?;
        (pin.verified, pin.compared_before) = (verified, false);
        let mut effects = Effects::new();
        effects.put(RecordKey::pin(&self.peer.user), pin.to_record());
        Ok(effects)
    }

    /// Destroys all sessions and keys of this conversation; the pin stays. The next message starts a new session.
    pub fn reset(&mut self) -> Effects {
        let mut effects = Effects::new();
        self.forget_sessions(&mut effects);
        self.save_index(&mut effects);
        effects
    }

    /// Puts all sessions away, because our identity handed over to another one: of what is under way on them the chains that
    /// have begun are read for [`crate::limits::LEFT_BEHIND_READING`], and the next message starts a new session. What was to be
    /// repaired on them counts no more. A mark that a person compared safety numbers becomes [`Pin::compared_before`]: the numbers
    /// were of the old identity.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when a session can not be put away; then nothing changed.
    pub fn retire(&mut self) -> Result<Effects, ProtocolError> {
        let mut effects = Effects::new();
        self.put_away(&ShieldKey::new(), &mut effects)?;
        if let Some(pin) = self.pin.as_mut().filter(|pin| pin.verified) {
            (pin.verified, pin.compared_before) = (false, true);
            effects.put(RecordKey::pin(&self.peer.user), pin.to_record());
        }
        self.repair = RepairState::default();
        effects.delete(RecordKey::of_peer(RecordKind::Repair, &self.peer, &[]));
        Ok(effects)
    }

    /// Destroys everything about this peer, the pin as well.
    pub fn delete(&mut self) -> Effects {
        let mut effects = self.reset();
        self.repair = RepairState::default();
        effects.delete(RecordKey::of_peer(RecordKind::Repair, &self.peer, &[]));
        effects.delete(RecordKey::of_peer(RecordKind::Conversation, &self.peer, &[]));
        effects.delete(RecordKey::pin(&self.peer.user));
        self.pin = None;
        effects
    }

    /// Puts all active sessions into the archive. On an error nothing changed.
    pub(crate) fn put_away(
        &mut self,
        shield: &ShieldKey,
        effects: &mut Effects,
    ) -> Result<(), ProtocolError> {
        let current = self.archive_record(Place::Current, shield)?;
        let candidate = self.archive_record(Place::Candidate, shield)?;
        self.archive_active(Place::Current, current, effects);
        self.archive_active(Place::Candidate, candidate, effects);
        self.save_index(effects);
        Ok(())
    }

    /// Whether a session with this user key may be used.
    pub(crate) fn check_identity(
        &self,
        context: &Context<'_>,
        user_key: &KeyBytes,
    ) -> Result<(), ProtocolError> {
        let user = || self.peer.user.clone();
        match &self.pin {
            Some(pin) if pin.user_key != *user_key => Err(ProtocolError::IdentityChanged(user())),
            pin => {
                let compared = pin.as_ref().is_some_and(Pin::was_compared);
                if context.policy.first == FirstContact::VerifiedOnly && !compared {
                    return Err(ProtocolError::NotVerified(user()));
                }
                Ok(())
            }
        }
    }

    pub(crate) fn ends<'a>(&'a self, context: &'a Context<'_>) -> Ends<'a> {
        Ends { own: (context.identity.address(), context.identity.keys()), peer: &self.peer }
    }

    pub(crate) fn place(&self, session: &SessionId) -> Option<Place> {
        let is =
            |place: &Place| self.active(*place).is_some_and(|active| active.session.terms.id == *session);
        [Place::Current, Place::Candidate].into_iter().find(is)
    }

    pub(crate) fn at(&mut self, place: Place) -> &mut Option<Active> {
        match place {
            Place::Current => &mut self.current,
            Place::Candidate => &mut self.candidate,
        }
    }

    pub(crate) fn archived_key(&self, session: &SessionId) -> RecordKey {
        RecordKey::of_peer(RecordKind::ArchivedSession, &self.peer, session)
    }

    pub(crate) fn active(&self, place: Place) -> Option<&Active> {
        match place {
            Place::Current => self.current.as_ref(),
            Place::Candidate => self.candidate.as_ref(),
        }
    }

    /// Puts an active session in its place and writes it whole.
    pub(crate) fn place_active(
        &mut self,
        place: Place,
        (active, records): (Active, SessionRecords),
        effects: &mut Effects,
    ) {
        let mut writes = Effects::new();
        writes.put(place.key(RecordKind::Session, &self.peer), records.chains);
        writes.put(place.key(RecordKind::SessionRoot, &self.peer), records.root);
        let pending = place.key(RecordKind::PendingHandshake, &self.peer);
        match &active.pending {
            Some(part) => writes.put(pending, SecretBytes::from_slice(part)),
            None => writes.delete(pending),
        };
        effects.append(writes);
        *self.at(place) = Some(active);
    }

    /// The record that an active session will have in the archive.
    pub(crate) fn archive_record(
        &self,
        place: Place,
        shield: &ShieldKey,
    ) -> Result<Option<SecretBytes>, ProtocolError> {
        let record = |active: &Active| active.session.records(shield).map(|records| records.archived());
        self.active(place).map(record).transpose()
    }

    /// Moves an active session to the archive, with its record from [`Conversation::archive_record`].
    pub(crate) fn archive_active(
        &mut self,
        place: Place,
        record: Option<SecretBytes>,
        effects: &mut Effects,
    ) {
        if let Some(active) = self.at(place).take() {
            self.delete_active(place, effects);
            if let Some(record) = record {
                self.archive_session(active.session.terms.id, record, effects);
            }
        }
    }

    /// Deletes the rows of a place.
    pub(crate) fn delete_active(&self, place: Place, effects: &mut Effects) {
        for kind in ACTIVE_KINDS {
            effects.delete(place.key(kind, &self.peer));
        }
    }

    /// Puts a session into the archive; the oldest one makes room.
    pub(crate) fn archive_session(&mut self, id: SessionId, record: SecretBytes, effects: &mut Effects) {
        effects.put(self.archived_key(&id), record);
        self.archive.insert(0, id);
        while self.archive.len() > MAX_ARCHIVED_SESSIONS {
            if let Some(oldest) = self.archive.pop() {
                effects.delete(self.archived_key(&oldest));
                self.stored.forget(&self.peer, &oldest, effects);
            }
        }
    }

    pub(crate) fn forget_sessions(&mut self, effects: &mut Effects) {
        let mut gone = core::mem::take(&mut self.archive);
        for session in &gone {
            effects.delete(self.archived_key(session));
        }
        for place in [Place::Current, Place::Candidate] {
            gone.extend(self.at(place).take().map(|active| active.session.terms.id));
            self.delete_active(place, effects);
        }
        for session in &gone {
            self.stored.forget(&self.peer, session, effects);
        }
    }

    /// Writes the lists: which sessions are archived, which keys are stored.
    pub(crate) fn save_index(&mut self, effects: &mut Effects) {
        let mut out = Writer::with_capacity(2 + 16 * self.archive.len());
        out.u8(VERSION).u8(u8::try_from(self.archive.len()).unwrap_or(u8::MAX));
        for session in &self.archive {
            out.raw(session);
        }
        effects.put(RecordKey::of_peer(RecordKind::Conversation, &self.peer, &[]), out.finish().into());
        self.stored.save(&self.peer, effects);
    }
}

/// The stored key that a message would use.
pub(crate) fn slot_of<'a>(incoming: &'a Incoming<'_>) -> Slot<'a> {
    Slot {
        session: &incoming.session,
        chain: key_id(&incoming.header.ratchet_key),
        number: incoming.header.number,
    }
}

fn decode_archive(bytes: &[u8]) -> Result<Vec<SessionId>, CodecError> {
    let mut input = Reader::new(bytes);
    match input.u8()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let count = usize::from(input.u8()?);
    if count > MAX_ARCHIVED_SESSIONS {
        return Err(CodecError::Length);
    }
    let archive = (0..count).map(|_| input.array().copied()).collect::<Result<_, _>>()?;
    input.finish()?;
    Ok(archive)
}
