//! The keys of messages that have not come: which there are, and which there were. The keys themselves are rows of their
//! own. Of keys that were destroyed unused, or never came, the numbers are remembered, as ranges: a message that comes
//! after its key is lost and must be told, while one that was read is a duplicate.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, Timestamp};
use stvor_crypto::{Secret, SecretBytes};

use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::SessionId;
use crate::error::ProtocolError;
use crate::limits::{MAX_LOST_RANGES, MAX_STORED_KEYS, STORED_KEY_LIFETIME};
use crate::ratchet::{KeyId, MessageSeed, Skipped};

const VERSION: u8 = 1;
/// The version of an index that holds lost ranges after the stored ones.
const VERSION_LOST: u8 = 2;

/// Keys `from..to` of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    session: SessionId,
    chain: KeyId,
    from: u32,
    to: u32,
    at: Timestamp,
}

/// Numbers `from..to` of one chain, whose keys were destroyed unused or never came.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lost {
    session: SessionId,
    chain: KeyId,
    from: u32,
    to: u32,
}

/// Whose keys these are: rows of different kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Realm {
    /// Of sessions between two devices.
    #[default]
    Sessions,
    /// Of the group chains of a device; a chain has the place of a session.
    Groups,
}

impl Realm {
    fn index(self) -> RecordKind {
        match self {
            Self::Sessions => RecordKind::SkippedIndex,
            Self::Groups => RecordKind::SenderSkippedIndex,
        }
    }

    fn keys(self) -> RecordKind {
        match self {
            Self::Sessions => RecordKind::SkippedKeys,
            Self::Groups => RecordKind::SenderSkippedKeys,
        }
    }
}

/// Which keys are stored, and which were lost; oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StoredKeys {
    realm: Realm,
    ranges: Vec<Range>,
    lost: Vec<Lost>,
    changed: bool,
}

/// The name of one stored key.
#[derive(Clone, Copy)]
pub(crate) struct Slot<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) chain: KeyId,
    pub(crate) number: u32,
}

impl Slot<'_> {
    fn key(&self, realm: Realm, peer: &Address) -> RecordKey {
        let mut sort = Vec::with_capacity(52);
        sort.extend_from_slice(self.session);
        sort.extend_from_slice(&self.chain);
        sort.extend_from_slice(&self.number.to_be_bytes());
        RecordKey::of_peer(realm.keys(), peer, &sort)
    }
}

impl StoredKeys {
    pub(crate) fn load(peer: &Address, records: &Records) -> Result<Self, ProtocolError> {
        Self::load_of(Realm::Sessions, peer, records)
    }

    pub(crate) fn load_of(realm: Realm, peer: &Address, records: &Records) -> Result<Self, ProtocolError> {
        let Some(record) = records.get(&Self::key_of(realm, peer)) else {
            return Ok(Self { realm, ..Self::default() });
        };
        let (ranges, lost) = decode(record.expose()).map_err(ProtocolError::record("skipped index"))?;
        Ok(Self { realm, ranges, lost, changed: false })
    }

    pub(crate) fn key(peer: &Address) -> RecordKey {
        Self::key_of(Realm::Sessions, peer)
    }

    pub(crate) fn key_of(realm: Realm, peer: &Address) -> RecordKey {
        RecordKey::of_peer(realm.index(), peer, &[])
    }

    /// The row of a key, if it is stored.
    pub(crate) fn row(&self, peer: &Address, slot: &Slot<'_>) -> Option<RecordKey> {
        self.find(slot).map(|_| slot.key(self.realm, peer))
    }

    /// The seed of a message, if it is stored; [`ProtocolError::KeyGone`] if it was destroyed unused or never came.
    pub(crate) fn seed(
        &self,
        peer: &Address,
        slot: &Slot<'_>,
        (records, now): (&Records, Timestamp),
    ) -> Result<Option<MessageSeed>, ProtocolError> {
        if self.lost.iter().any(|lost| lost.holds(slot)) {
            return Err(ProtocolError::KeyGone);
        }
        let Some(range) = self.find(slot).and_then(|index| self.ranges.get(index)) else { return Ok(None) };
        let Some(record) = records.get(&slot.key(self.realm, peer)) else {
            // The row is swept on its own once its time is up. Before that, another process took it with the message.
            return if range.expired(now) { Err(ProtocolError::KeyGone) } else { Ok(None) };
        };
        match record.expose().split_first() {
            Some((&VERSION, seed)) => {
                let seed = Secret::from_slice(seed).map_err(|_| ProtocolError::BadRecord("message key"))?;
                Ok(Some(MessageSeed::new(seed)))
            }
            Some((&version, _)) => Err(ProtocolError::TooNew { what: "message key", version }),
            None => Err(ProtocolError::BadRecord("message key")),
        }
    }

    /// Destroys a key that was used.
    pub(crate) fn used(&mut self, peer: &Address, slot: &Slot<'_>, effects: &mut Effects) {
        let Some(index) = self.find(slot) else { return };
        effects.delete(slot.key(self.realm, peer));
        let range = self.ranges.remove(index);
        let before = Range { to: slot.number, ..range.clone() };
        let after = Range { from: slot.number + 1, ..range };
        for part in [after, before] {
            if part.from < part.to {
                self.ranges.insert(index, part);
            }
        }
        self.changed = true;
    }

    /// The loss of a message was told: from here on it is a duplicate, so that it is told once.
    pub(crate) fn told(&mut self, peer: &Address, slot: &Slot<'_>, effects: &mut Effects) {
        // Its row may be gone while the index still holds it.
        self.used(peer, slot, effects);
        let Some(index) = self.lost.iter().position(|lost| lost.holds(slot)) else { return };
        let lost = self.lost.remove(index);
        let before = Lost { to: slot.number, ..lost.clone() };
        let after = Lost { from: slot.number + 1, ..lost };
        for part in [after, before] {
            if part.from < part.to {
                self.lost.insert(index, part);
            }
        }
        self.bound_lost();
        self.changed = true;
    }

    /// A message came whose key never will, and nobody has read it: it is no duplicate.
    pub(crate) fn missed(&mut self, slot: &Slot<'_>) {
        let (from, to) = (slot.number, slot.number + 1);
        self.lose(Lost { session: *slot.session, chain: slot.chain, from, to });
        self.changed = true;
    }

    /// Stores the keys that a message passed over; the oldest make room.
    pub(crate) fn add(
        &mut self,
        peer: &Address,
        (session, skipped, now): (&SessionId, Vec<Skipped>, Timestamp),
        effects: &mut Effects,
    ) {
        if skipped.is_empty() {
            return;
        }
        self.changed = true;
        // One message can pass over more than are kept at all; the first of those are not stored in the first place.
        let mut surplus = skipped;
        let skipped = surplus.split_off(surplus.len().saturating_sub(MAX_STORED_KEYS));
        for key in surplus {
            self.lose(Lost { session: *session, chain: key.id, from: key.number, to: key.number + 1 });
        }
        let total = self.len() + skipped.len();
        self.drop_oldest(peer, total.saturating_sub(MAX_STORED_KEYS), effects);
        for key in skipped {
            let slot = Slot { session, chain: key.id, number: key.number };
            let mut out = Writer::with_capacity(33);
            out.u8(VERSION).raw(key.seed.expose());
            effects.put_until(
                slot.key(self.realm, peer),
                SecretBytes::from(out.finish()),
                now + STORED_KEY_LIFETIME,
            );
            match self.ranges.last_mut() {
                Some(last) if last.session == *session && last.chain == key.id && last.to == key.number => {
                    last.to += 1;
                }
                _ => self.ranges.push(Range {
                    session: *session,
                    chain: key.id,
                    from: key.number,
                    to: key.number + 1,
                    at: now,
                }),
            }
        }
    }

    /// Destroys keys past their time.
    pub(crate) fn expire(&mut self, peer: &Address, now: Timestamp, effects: &mut Effects) {
        // Each by its own time: a clock that once ran ahead must not keep what was stored after it.
        let expired: Vec<Range> = self.ranges.extract_if(.., |range| range.expired(now)).collect();
        self.changed |= !expired.is_empty();
        for range in expired {
            range.delete((self.realm, peer), range.len(), effects);
            let Range { session, chain, from, to, .. } = range;
            self.lose(Lost { session, chain, from, to });
        }
    }

    /// Destroys the keys of a session that is gone.
    pub(crate) fn forget(&mut self, peer: &Address, session: &SessionId, effects: &mut Effects) {
        self.ranges.retain(|range| {
            if range.session == *session {
                range.delete((self.realm, peer), range.len(), effects);
                self.changed = true;
            }
            range.session != *session
        });
        let before = self.lost.len();
        self.lost.retain(|lost| lost.session != *session);
        self.changed |= self.lost.len() != before;
    }

    /// Writes the index if it changed.
    pub(crate) fn save(&mut self, peer: &Address, effects: &mut Effects) {
        if !core::mem::take(&mut self.changed) {
            return;
        }
        if self.is_empty() && self.lost.is_empty() {
            effects.delete(Self::key_of(self.realm, peer));
        } else {
            effects.put(Self::key_of(self.realm, peer), encode(&self.ranges, &self.lost));
        }
    }

    /// Whether no key is stored.
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many keys are stored.
    pub(crate) fn len(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    fn find(&self, slot: &Slot<'_>) -> Option<usize> {
        self.ranges.iter().position(|range| {
            range.session == *slot.session
                && range.chain == slot.chain
                && (range.from..range.to).contains(&slot.number)
        })
    }

    fn drop_oldest(&mut self, peer: &Address, mut count: usize, effects: &mut Effects) {
        while count > 0
            && let Some(range) = self.ranges.first_mut()
        {
            self.changed = true;
            let dropped = range.len().min(count);
            range.delete((self.realm, peer), dropped, effects);
            let from = range.from;
            range.from = from.saturating_add(u32::try_from(dropped).unwrap_or(u32::MAX)).min(range.to);
            count -= dropped;
            let lost = Lost { session: range.session, chain: range.chain, from, to: range.from };
            if range.from >= range.to {
                self.ranges.remove(0);
            }
            self.lose(lost);
        }
    }

    /// Remembers keys that were destroyed unused or never came.
    fn lose(&mut self, lost: Lost) {
        match self.lost.last_mut() {
            Some(last)
                if last.session == lost.session && last.chain == lost.chain && last.to == lost.from =>
            {
                last.to = lost.to;
            }
            _ => self.lost.push(lost),
        }
        self.bound_lost();
    }

    fn bound_lost(&mut self) {
        self.lost.drain(..self.lost.len().saturating_sub(MAX_LOST_RANGES));
    }
}

impl Lost {
    fn holds(&self, slot: &Slot<'_>) -> bool {
        self.session == *slot.session
            && self.chain == slot.chain
            && (self.from..self.to).contains(&slot.number)
    }
}

impl Range {
    fn len(&self) -> usize {
        usize::try_from(self.to.saturating_sub(self.from)).unwrap_or(usize::MAX)
    }

    fn expired(&self, now: Timestamp) -> bool {
        now.since(self.at) >= STORED_KEY_LIFETIME
    }

    /// Deletes the rows of the first `count` keys.
    fn delete(&self, (realm, peer): (Realm, &Address), count: usize, effects: &mut Effects) {
        for number in (self.from..self.to).take(count) {
            effects.delete(Slot { session: &self.session, chain: self.chain, number }.key(realm, peer));
        }
    }
}

/// An index without lost ranges is written as version 1, which is all that it takes.
fn encode(ranges: &[Range], lost: &[Lost]) -> SecretBytes {
    let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let mut out = Writer::with_capacity(16 + 64 * ranges.len() + 56 * lost.len());
    out.u8(if lost.is_empty() { VERSION } else { VERSION_LOST }).u32(count(ranges.len()));
    for range in ranges {
        out.raw(&range.session).raw(&range.chain).u32(range.from).u32(range.to).u64(range.at.as_millis());
    }
    if !lost.is_empty() {
        out.u32(count(lost.len()));
        for range in lost {
            out.raw(&range.session).raw(&range.chain).u32(range.from).u32(range.to);
        }
    }
    SecretBytes::from(out.finish())
}

fn decode(bytes: &[u8]) -> Result<(Vec<Range>, Vec<Lost>), CodecError> {
    let mut input = Reader::new(bytes);
    let version = match input.u8()? {
        known @ (VERSION | VERSION_LOST) => known,
        other => return Err(CodecError::Version(other)),
    };
    let count = bounded(&mut input, MAX_STORED_KEYS)?;
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let (session, chain, from, to) = numbers(&mut input)?;
        ranges.push(Range { session, chain, from, to, at: Timestamp::from_millis(input.u64()?) });
    }
    let mut lost = Vec::new();
    if version == VERSION_LOST {
        for _ in 0..bounded(&mut input, MAX_LOST_RANGES)? {
            let (session, chain, from, to) = numbers(&mut input)?;
            lost.push(Lost { session, chain, from, to });
        }
    }
    input.finish()?;
    Ok((ranges, lost))
}

fn bounded(input: &mut Reader<'_>, limit: usize) -> Result<usize, CodecError> {
    let count = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
    if count > limit { Err(CodecError::Length) } else { Ok(count) }
}

/// Session, chain, and a range of numbers that is not empty.
fn numbers(input: &mut Reader<'_>) -> Result<(SessionId, KeyId, u32, u32), CodecError> {
    let (session, chain, from, to) = (*input.array()?, *input.array()?, input.u32()?, input.u32()?);
    if from < to { Ok((session, chain, from, to)) } else { Err(CodecError::Value) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_base::{DeviceId, UserId};

    fn peer() -> Address {
        Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST)
    }

    fn slot(number: u32) -> Slot<'static> {
        Slot { session: &[1; 16], chain: [2; 32], number }
    }

    /// Every second number of one chain, lost.
    fn lost(count: usize) -> StoredKeys {
        let mut stored = StoredKeys::default();
        for index in 0..u32::try_from(count).unwrap() {
            stored.lose(Lost { session: [1; 16], chain: [2; 32], from: 2 * index, to: 2 * index + 1 });
        }
        stored
    }

    fn gone(stored: &StoredKeys, number: u32) -> bool {
        let records = Records::new();
        let seed = stored.seed(&peer(), &slot(number), (&records, Timestamp::default()));
        matches!(seed, Err(ProtocolError::KeyGone))
    }

    #[test]
    fn lost_ranges_are_remembered_up_to_the_limit_and_the_oldest_makes_room() {
        let stored = lost(MAX_LOST_RANGES);
        assert!(gone(&stored, 0) && gone(&stored, 2) && !gone(&stored, 1));
        let stored = lost(MAX_LOST_RANGES + 1);
        assert!(!gone(&stored, 0) && gone(&stored, 2));
        assert_eq!(stored.lost.len(), MAX_LOST_RANGES);
    }

    #[test]
    fn a_told_loss_in_the_middle_of_a_range_leaves_its_neighbours() {
        let mut stored = StoredKeys::default();
        stored.lose(Lost { session: [1; 16], chain: [2; 32], from: 3, to: 5 });
        stored.lose(Lost { session: [1; 16], chain: [2; 32], from: 5, to: 8 });
        assert_eq!(stored.lost.len(), 1, "ranges that touch are one");
        stored.told(&peer(), &slot(5), &mut Effects::new());
        assert_eq!(
            [2, 3, 4, 5, 6, 7, 8].map(|number| gone(&stored, number)),
            [false, true, true, false, true, true, false]
        );
        stored.forget(&peer(), &[1; 16], &mut Effects::new());
        assert!(stored.lost.is_empty());
    }

    #[test]
    fn what_was_missed_is_written_and_gone_until_it_is_told_and_neighbours_are_one_range() {
        let mut stored = StoredKeys::default();
        for number in [3, 5, 6] {
            stored.missed(&slot(number));
        }
        assert_eq!(stored.lost.len(), 2);
        let mut effects = Effects::new();
        stored.save(&peer(), &mut effects);
        assert!(!effects.is_empty());
        assert_eq!([3, 4, 5, 6, 7].map(|number| gone(&stored, number)), [true, false, true, true, false]);
        for number in [3, 5, 6] {
            stored.told(&peer(), &slot(number), &mut effects);
        }
        assert!(stored.lost.is_empty());
    }

    #[test]
    fn an_index_with_lost_ranges_reads_back_and_is_bounded_and_one_without_keeps_its_first_form() {
        let mut stored = lost(MAX_LOST_RANGES);
        let at = Timestamp::from_millis(7);
        stored.ranges.push(Range { session: [1; 16], chain: [3; 32], from: 1, to: 4, at });
        let bytes = encode(&stored.ranges, &stored.lost).into_exposed();
        assert_eq!(decode(&bytes), Ok((stored.ranges.clone(), stored.lost.clone())));
        assert_eq!(bytes[0], 2);
        assert_eq!(decode(&bytes[..bytes.len() - 1]), Err(CodecError::Short));
        assert_eq!(decode(&[&bytes[..], &[0]].concat()), Err(CodecError::Trailing));
        stored.lost.extend(stored.lost.first().cloned());
        let over = encode(&stored.ranges, &stored.lost).into_exposed();
        assert_eq!(decode(&over), Err(CodecError::Length));
        let plain = encode(&stored.ranges, &[]).into_exposed();
        assert_eq!((plain[0], plain.len()), (1, 5 + 64));
        assert_eq!(decode(&plain), Ok((stored.ranges, Vec::new())));
    }
}
