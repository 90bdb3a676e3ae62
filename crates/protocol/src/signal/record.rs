//! What is stored for one device of a peer: the current session, up to 40 archived ones, and marks of handshakes
//! whose sessions are gone. Its size is bounded, and does not grow with the number of messages.
//!
//! ```text
//! record  = u8 version 1 | u8 has current [| session] | u16 archived | sessions, newest first | u16 marks | marks, 16 each
//! session = u32 length | u8 version 1 | u8 we started it | u32 registration id | identity 32 | base key 32
//!           | u64 created | u64 used | u64 closed, 0 for none | u8 pending, u8 with prekey, u32 prekey, u32 signed
//!           | u32 stored keys | u8 chains | their ratchet keys, 32 each
//!           | root 32 | own private 32 | own public 32 | remote 32 | u32 previous | u8 sending, key 32, u32 next
//!           | each chain: u8 open, key 32, u32 next, u32 stored, each u32 number, seed 32
//! ```

use std::collections::VecDeque;

use stvor_base::Timestamp;
use stvor_base::codec::{CodecError, Reader, Sink, Writer};
use stvor_crypto::{Secret, SecretBytes, kdf, x25519};

use super::keys::{KeyPair, PublicKey};
use super::ratchet::{Pending, Receiving, Session};
use super::session::Compatibility;
use super::{SignalError, json};
use crate::limits::{
    MAX_ARCHIVED_SESSIONS, MAX_RECEIVING_CHAINS, MAX_SIGNAL_MARKS, MAX_SIGNAL_RECORD, MAX_STORED_KEYS,
};
use crate::ratchet::{ChainKey, MessageSeed};

const VERSION: u8 = 1;

/// Bytes of a session without its chains.
const FIXED: usize = 109 + 4 * 32 + 4 + 33 + 4;
/// Bytes of a chain without its stored keys, and of a stored key.
const CHAIN: usize = 32 + 1 + 32 + 4 + 4;
const STORED: usize = 4 + 32;

/// Where in a record a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Current,
    Archived(usize),
}

/// A handshake that was accepted: the beginning of SHA-256 of its base key.
type Mark = [u8; 16];

/// The sessions with one device of a peer.
///
/// ```
/// use stvor_protocol::signal::SessionRecord;
/// let record = SessionRecord::new();
/// let stored = record.encode();
/// assert!(!SessionRecord::decode(stored.expose())?.has_current());
/// assert_eq!(SessionRecord::from_json(record.to_json()?.expose())?.sessions()?.len(), 0);
/// # Ok::<(), stvor_protocol::signal::SignalError>(())
/// ```
#[derive(Default)]
pub struct SessionRecord {
    current: Option<Session>,
    /// As stored, and read only when needed. Newest first.
    archived: VecDeque<Archived>,
    /// Newest first.
    marks: VecDeque<Mark>,
}

struct Archived {
    base_key: PublicKey,
    initiator: bool,
    ratchets: Vec<PublicKey>,
    stored: usize,
    bytes: SecretBytes,
}

/// What can be told of a session without a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// The peer's registration id, as it said.
    pub registration_id: u32,
    /// The peer's identity.
    pub identity: PublicKey,
    /// What names the session.
    pub base_key: PublicKey,
    /// Whether we started it.
    pub initiator: bool,
    /// Whether we started it and nobody answered.
    pub unanswered: bool,
    /// When it was made.
    pub created: Timestamp,
    /// When something was last sent or received on it.
    pub used: Timestamp,
    /// When another took its place.
    pub closed: Option<Timestamp>,
}

impl SessionRecord {
    /// One without sessions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether there is a session to send on.
    #[must_use]
    pub fn has_current(&self) -> bool {
        self.current.is_some()
    }

    /// Whom the session to send on is with.
    #[must_use]
    pub fn remote_identity(&self) -> Option<PublicKey> {
        self.current.as_ref().map(|session| session.remote_identity)
    }

    /// What there is, the current session first, then the archived ones, newest first.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`] when an archived one does not read back.
    pub fn sessions(&self) -> Result<Vec<SessionView>, SignalError> {
        let mut views: Vec<_> = self.current.iter().map(Session::view).collect();
        for archived in &self.archived {
            views.push(Session::decode(archived.bytes.expose())?.view());
        }
        Ok(views)
    }

    /// What is weaker about the sessions of the record than about those of our own profiles, wherever it comes from; empty when
    /// there are none. Whether the handshake of the current session used no one-time prekey is known here until the peer
    /// answered, and is told when the session starts: records do not keep it longer, here or in other libraries.
    ///
    /// ```
    /// use stvor_protocol::signal::SessionRecord;
    /// assert!(SessionRecord::new().compatibility().is_empty());
    /// ```
    #[must_use]
    pub fn compatibility(&self) -> Vec<Compatibility> {
        if self.has_none() {
            return Vec::new();
        }
        let pending = self.current.as_ref().and_then(|session| session.pending);
        Compatibility::of(pending.is_none_or(|pending| pending.prekey.is_some()))
    }

    /// Whether this handshake's session is in the record, so that its message needs no prekeys.
    #[must_use]
    pub fn knows(&self, base_key: &PublicKey) -> bool {
        self.place_of(base_key).is_some()
    }

    /// Archives the current session: nothing is sent on it any more, but late messages decrypt.
    pub fn close_current(&mut self, now: Timestamp) {
        if let Some(session) = self.current.take() {
            self.archive(session, now);
        }
    }

    /// Destroys every session. The handshakes stay known as used.
    pub fn clear(&mut self) {
        if let Some(session) = self.current.take()
            && !session.initiator
        {
            self.mark(&session.base_key);
        }
        while let Some(archived) = self.archived.pop_back() {
            if !archived.initiator {
                self.mark(&archived.base_key);
            }
        }
    }

    /// Takes over which handshakes another record knows as used, because this one takes its place.
    pub fn remember(&mut self, other: &Self) {
        for mark in &other.marks {
            if self.marks.len() < MAX_SIGNAL_MARKS && !self.marks.contains(mark) {
                self.marks.push_back(*mark);
            }
        }
    }

    /// The record as it is stored. Its size is a few hundred bytes for each session, and 36 for each stored message key.
    #[must_use]
    pub fn encode(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(self.size());
        self.write(&mut out);
        SecretBytes::from(out.finish())
    }

    /// How many bytes [`Self::encode`] gives.
    #[must_use]
    pub fn size(&self) -> usize {
        let archived: usize = self.archived.iter().map(|one| 4 + one.bytes.len()).sum();
        let current = self.current.as_ref().map_or(0, |session| 4 + session.size());
        6 + current + archived + self.marks.len() * 16
    }

    /// Writes what [`Self::encode`] gives into `room`, which has [`Self::size`] bytes: whether it has.
    ///
    /// ```
    /// use stvor_protocol::signal::SessionRecord;
    /// let record = SessionRecord::new();
    /// let mut room = vec![0; record.size()];
    /// assert!(record.encode_into(&mut room));
    /// assert_eq!(room, record.encode().expose());
    /// ```
    #[must_use = "of a record that did not fit a part is written"]
    pub fn encode_into(&self, room: &mut [u8]) -> bool {
        let mut out = Writer::into_room(room);
        self.write(&mut out);
        out.is_full()
    }

    fn write(&self, out: &mut Writer<impl Sink>) {
        out.u8(VERSION).u8(u8::from(self.current.is_some()));
        if let Some(session) = &self.current {
            out.u32(u32::try_from(session.size()).unwrap_or(u32::MAX));
            session.write(out);
        }
        out.u16(u16::try_from(self.archived.len()).unwrap_or(u16::MAX));
        for one in &self.archived {
            out.bytes(one.bytes.expose());
        }
        out.u16(u16::try_from(self.marks.len()).unwrap_or(u16::MAX));
        for mark in &self.marks {
            out.raw(mark);
        }
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`], [`SignalError::TooNew`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SignalError> {
        let mut input = Reader::new(bytes);
        version(&mut input)?;
        let current = match input.bool()? {
            true => Some(Session::decode(input.bytes(MAX_SIGNAL_RECORD)?)?),
            false => None,
        };
        let mut record = Self { current, ..Self::default() };
        for _ in 0..bounded(input.u16()?, MAX_ARCHIVED_SESSIONS)? {
            record
                .archived
                .push_back(Archived::read(SecretBytes::from_slice(input.bytes(MAX_SIGNAL_RECORD)?))?);
        }
        for _ in 0..bounded(input.u16()?, MAX_SIGNAL_MARKS)? {
            record.marks.push_back(*input.array()?);
        }
        input.finish()?;
        Ok(record)
    }

    /// The record as libsignal-node stores it, as JSON. It holds the private keys in the clear, as there. Marks are in a field
    /// of our own that libsignal-node drops.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`] when an archived session does not read back.
    pub fn to_json(&self) -> Result<SecretBytes, SignalError> {
        let mut sessions: Vec<_> = Vec::with_capacity(self.archived.len());
        for archived in self.archived.iter().rev() {
            sessions.push(Session::decode(archived.bytes.expose())?);
        }
        json::write(sessions.iter().chain(&self.current), self.marks.iter())
    }

    /// Reads the JSON of libsignal-node 6, and of records that it wrote before they had a version. What is beyond our limits
    /// is dropped, the oldest first: receiving chains, stored message keys, sessions. That the halves of a ratchet key belong
    /// together is checked of open sessions; of an archived one whose halves do not it is that session alone that is
    /// spoilt.
    ///
    /// # Errors
    /// [`SignalError::BadRecord`], [`SignalError::TooNew`].
    pub fn from_json(text: &[u8]) -> Result<Self, SignalError> {
        let json::Read { mut sessions, marks } = json::read(text)?;
        let mut record = Self { marks: marks.into(), ..Self::default() };
        // Oldest first. Of several open ones the last used is current.
        sessions.sort_by_key(|session| (session.closed.is_none(), session.used));
        let current = sessions.pop_if(|session| session.closed.is_none() && session.sending.is_some());
        for session in sessions {
            let closed = session.closed.unwrap_or(session.used);
            record.archive(session, closed);
        }
        if let Some(mut session) = current {
            session.evict(MAX_STORED_KEYS.saturating_sub(record.stored()));
            record.current = Some(session);
        }
        Ok(record)
    }

    pub(super) fn current(&self) -> Option<&Session> {
        self.current.as_ref()
    }

    pub(super) fn current_mut(&mut self) -> Option<&mut Session> {
        self.current.as_mut()
    }

    /// Whether there is no session at all.
    pub(super) fn has_none(&self) -> bool {
        self.current.is_none() && self.archived.is_empty()
    }

    /// Which sessions may have a message's key, in the order in which they are tried: those that know its ratchet key,
    /// then the others, newest first.
    pub(super) fn candidates(&self, ratchet: &PublicKey) -> impl Iterator<Item = Place> {
        let sessions = move |known: bool| {
            let current = self.current.iter().map(move |session| (Place::Current, session.knows(ratchet)));
            let archived = self.archived.iter().enumerate();
            let archived =
                archived.map(move |(index, one)| (Place::Archived(index), one.ratchets.contains(ratchet)));
            current.chain(archived).filter(move |(_, knows)| *knows == known).map(|(place, _)| place)
        };
        sessions(true).chain(sessions(false))
    }

    /// The session at a place, if it is decoded.
    pub(super) fn session(&self, place: Place) -> Option<&Session> {
        self.current.as_ref().filter(|_| place == Place::Current)
    }

    /// The archived session at a place.
    pub(super) fn archived(&self, place: Place) -> Result<Session, SignalError> {
        let Place::Archived(index) = place else { return Err(SignalError::Undecryptable) };
        let archived = self.archived.get(index).ok_or(SignalError::Undecryptable)?;
        Ok(Session::decode(archived.bytes.expose())?)
    }

    /// Changes the session at a place. The closure is given how many keys the others store.
    pub(super) fn change(
        &mut self,
        place: Place,
        change: impl FnOnce(&mut Session, usize),
    ) -> Result<(), SignalError> {
        match place {
            Place::Current => {
                let elsewhere = self.archived.iter().map(|one| one.stored).sum();
                if let Some(session) = &mut self.current {
                    change(session, elsewhere);
                }
            }
            Place::Archived(index) => {
                let mut session = self.archived(place)?;
                let elsewhere = self.stored() - session.stored();
                change(&mut session, elsewhere);
                let changed = Archived::of(&session);
                if let Some(slot) = self.archived.get_mut(index) {
                    *slot = changed;
                }
            }
        }
        Ok(())
    }

    /// Makes an archived session the current one.
    pub(super) fn make_current(&mut self, place: Place, now: Timestamp) -> Result<(), SignalError> {
        if let Place::Archived(index) = place {
            let mut session = self.archived(place)?;
            session.closed = None;
            self.archived.remove(index);
            self.replace_current(session, now);
        }
        Ok(())
    }

    pub(super) fn place_of(&self, base_key: &PublicKey) -> Option<Place> {
        if self.current.as_ref().is_some_and(|session| session.base_key == *base_key) {
            return Some(Place::Current);
        }
        self.archived.iter().position(|one| one.base_key == *base_key).map(Place::Archived)
    }

    /// Whether the handshake was accepted and its session is gone.
    pub(super) fn was_used(&self, base_key: &PublicKey) -> bool {
        self.marks.contains(&mark_of(base_key))
    }

    /// How many keys of messages that have not come are stored.
    pub(super) fn stored(&self) -> usize {
        self.current.as_ref().map_or(0, Session::stored)
            + self.archived.iter().map(|one| one.stored).sum::<usize>()
    }

    pub(super) fn replace_current(&mut self, session: Session, now: Timestamp) {
        self.close_current(now);
        self.current = Some(session);
    }

    /// Adds a session to the archive, as the newest of it.
    pub(super) fn archive(&mut self, mut session: Session, now: Timestamp) {
        session.closed = Some(now.max(Timestamp::from_millis(1)));
        self.archived.push_front(Archived::of(&session));
        while self.archived.len() > MAX_ARCHIVED_SESSIONS || self.excess() {
            let Some(gone) = self.archived.pop_back() else { break };
            if !gone.initiator {
                self.mark(&gone.base_key);
            }
        }
    }

    /// Whether more keys are stored than there may be, and old sessions can go.
    fn excess(&self) -> bool {
        self.stored() > MAX_STORED_KEYS && self.archived.len() > 1
    }

    fn mark(&mut self, base_key: &PublicKey) {
        self.marks.push_front(mark_of(base_key));
        self.marks.truncate(MAX_SIGNAL_MARKS);
    }
}

/// Nothing secret.
impl core::fmt::Debug for SessionRecord {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SessionRecord")
            .field("current", &self.current.as_ref().map(Session::view))
            .field("archived", &self.archived.len())
            .finish_non_exhaustive()
    }
}

fn mark_of(base_key: &PublicKey) -> Mark {
    let mut mark = [0; 16];
    mark.copy_from_slice(&kdf::sha256(&[&base_key.to_bytes()])[..16]);
    mark
}

fn bounded(count: u16, limit: usize) -> Result<usize, CodecError> {
    Some(usize::from(count)).filter(|count| *count <= limit).ok_or(CodecError::Length)
}

fn version(input: &mut Reader<'_>) -> Result<(), CodecError> {
    match input.u8()? {
        VERSION => Ok(()),
        other => Err(CodecError::Version(other)),
    }
}

impl Archived {
    fn of(session: &Session) -> Self {
        Self {
            base_key: session.base_key,
            initiator: session.initiator,
            ratchets: session.receiving.iter().map(|chain| chain.ratchet).collect(),
            stored: session.stored(),
            bytes: session.encode(),
        }
    }

    /// Reads the front of the bytes only.
    fn read(bytes: SecretBytes) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes.expose());
        let front = Front::read(&mut input)?;
        Ok(Self {
            base_key: front.base_key,
            initiator: front.initiator,
            ratchets: front.ratchets().collect(),
            stored: front.stored,
            bytes,
        })
    }
}

/// What stands before the secrets.
struct Front<'a> {
    initiator: bool,
    registration_id: u32,
    remote_identity: PublicKey,
    base_key: PublicKey,
    times: [u64; 3],
    pending: Option<Pending>,
    stored: usize,
    /// Of its chains, 32 bytes each.
    ratchets: &'a [[u8; x25519::PUBLIC_KEY_BYTES]],
}

fn public(input: &mut Reader<'_>) -> Result<PublicKey, CodecError> {
    Ok(PublicKey(x25519::PublicKey::new(*input.array()?)))
}

fn secret(input: &mut Reader<'_>) -> Result<Secret<32>, CodecError> {
    Secret::from_slice(input.raw(32)?).map_err(|_| CodecError::Length)
}

fn chain_key(input: &mut Reader<'_>) -> Result<Option<ChainKey>, CodecError> {
    let (present, key) = (input.bool()?, secret(input)?);
    Ok(present.then(|| ChainKey::new(key)))
}

fn write_chain_key(out: &mut Writer<impl Sink>, key: Option<&ChainKey>) {
    match key {
        Some(key) => out.u8(1).raw(key.expose()),
        None => out.u8(0).raw(&[0; 32]),
    };
}

impl<'a> Front<'a> {
    fn read(input: &mut Reader<'a>) -> Result<Self, CodecError> {
        version(input)?;
        let initiator = input.bool()?;
        let registration_id = input.u32()?;
        let (remote_identity, base_key) = (public(input)?, public(input)?);
        let times = [input.u64()?, input.u64()?, input.u64()?];
        let (pending, with) = (input.bool()?, input.bool()?);
        let (prekey, signed) = (input.u32()?, input.u32()?);
        let pending = pending.then_some(Pending { prekey: with.then_some(prekey), signed });
        let stored = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
        let chains = usize::from(input.u8()?);
        if stored > MAX_STORED_KEYS || chains > MAX_RECEIVING_CHAINS {
            return Err(CodecError::Length);
        }
        let (ratchets, _) = input.raw(chains * x25519::PUBLIC_KEY_BYTES)?.as_chunks();
        Ok(Self { initiator, registration_id, remote_identity, base_key, times, pending, stored, ratchets })
    }

    fn ratchets(&self) -> impl Iterator<Item = PublicKey> + use<'a> {
        self.ratchets.iter().map(|ratchet| PublicKey(x25519::PublicKey::new(*ratchet)))
    }
}

impl Session {
    fn view(&self) -> SessionView {
        SessionView {
            registration_id: self.registration_id,
            identity: self.remote_identity,
            base_key: self.base_key,
            initiator: self.initiator,
            unanswered: self.unanswered(),
            created: self.created,
            used: self.used,
            closed: self.closed,
        }
    }

    /// How many bytes [`Session::write`] writes.
    fn size(&self) -> usize {
        FIXED + self.receiving.len() * CHAIN + self.stored() * STORED
    }

    fn encode(&self) -> SecretBytes {
        let mut out = Writer::with_capacity(self.size());
        self.write(&mut out);
        SecretBytes::from(out.finish())
    }

    fn write(&self, out: &mut Writer<impl Sink>) {
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let pending = self.pending.unwrap_or(Pending { prekey: None, signed: 0 });
        out.u8(VERSION)
            .u8(u8::from(self.initiator))
            .u32(self.registration_id)
            .raw(self.remote_identity.0.as_bytes())
            .raw(self.base_key.0.as_bytes())
            .u64(self.created.as_millis())
            .u64(self.used.as_millis())
            .u64(self.closed.map_or(0, Timestamp::as_millis))
            .u8(u8::from(self.pending.is_some()))
            .u8(u8::from(pending.prekey.is_some()))
            .u32(pending.prekey.unwrap_or(0))
            .u32(pending.signed)
            .u32(count(self.stored()))
            .u8(u8::try_from(self.receiving.len()).unwrap_or(u8::MAX));
        for chain in &self.receiving {
            out.raw(chain.ratchet.0.as_bytes());
        }
        out.raw(self.root.expose())
            .raw(self.own.private().expose())
            .raw(self.own.public().0.as_bytes())
            .raw(self.remote.0.as_bytes())
            .u32(self.previous);
        write_chain_key(out, self.sending.as_ref().map(|(key, _)| key));
        out.u32(self.sending.as_ref().map_or(0, |(_, next)| *next));
        for chain in &self.receiving {
            write_chain_key(out, chain.key.as_ref());
            out.u32(chain.next).u32(count(chain.stored.len()));
            for (number, seed) in &chain.stored {
                out.u32(*number).raw(seed.expose());
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut input = Reader::new(bytes);
        let front = Front::read(&mut input)?;
        let root = secret(&mut input)?;
        let own = KeyPair::from_parts(secret(&mut input)?, public(&mut input)?);
        let (remote, previous) = (public(&mut input)?, input.u32()?);
        let (sending, next) = (chain_key(&mut input)?, input.u32()?);
        let mut left = front.stored;
        let mut receiving = Vec::with_capacity(front.ratchets.len());
        for ratchet in front.ratchets() {
            let (key, next, count) = (chain_key(&mut input)?, input.u32()?, input.u32()?);
            let count = usize::try_from(count).map_err(|_| CodecError::Length)?;
            left = left.checked_sub(count).ok_or(CodecError::Length)?;
            let stored = (0..count)
                .map(|_| Ok((input.u32()?, MessageSeed::new(secret(&mut input)?))))
                .collect::<Result<_, CodecError>>()?;
            receiving.push(Receiving { ratchet, key, next, stored });
        }
        input.finish()?;
        if left != 0 {
            return Err(CodecError::Length);
        }
        let [created, used, closed] = front.times;
        Ok(Self {
            registration_id: front.registration_id,
            remote_identity: front.remote_identity,
            base_key: front.base_key,
            initiator: front.initiator,
            created: Timestamp::from_millis(created),
            used: Timestamp::from_millis(used),
            closed: (closed != 0).then(|| Timestamp::from_millis(closed)),
            pending: front.pending,
            root,
            own,
            remote,
            previous,
            sending: sending.map(|key| (key, next)),
            receiving,
        })
    }
}
