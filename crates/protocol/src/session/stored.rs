//! The keys of messages that have not come: which there are. The keys themselves are rows of their own.

use stvor_base::codec::{CodecError, Reader, Writer};
use stvor_base::{Address, Timestamp};
use stvor_crypto::{Secret, SecretBytes};

use crate::effects::{Effects, RecordKey, RecordKind, Records};
use crate::envelope::SessionId;
use crate::error::ProtocolError;
use crate::limits::{MAX_STORED_KEYS, STORED_KEY_LIFETIME};
use crate::ratchet::{KeyId, MessageSeed, Skipped};

const VERSION: u8 = 1;

/// Keys `from..to` of one chain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Range {
    session: SessionId,
    chain: KeyId,
    from: u32,
    to: u32,
    at: Timestamp,
}

/// Which keys are stored, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct StoredKeys {
    ranges: Vec<Range>,
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
    fn key(&self, peer: &Address) -> RecordKey {
        let mut sort = Vec::with_capacity(52);
        sort.extend_from_slice(self.session);
        sort.extend_from_slice(&self.chain);
        sort.extend_from_slice(&self.number.to_be_bytes());
        RecordKey::of_peer(RecordKind::SkippedKeys, peer, &sort)
    }
}

impl StoredKeys {
    pub(crate) fn load(peer: &Address, records: &Records) -> Result<Self, ProtocolError> {
        let Some(record) = records.get(&Self::key(peer)) else { return Ok(Self::default()) };
        let ranges = decode(record.expose()).map_err(ProtocolError::record("skipped index"))?;
        Ok(Self { ranges, changed: false })
    }

    pub(crate) fn key(peer: &Address) -> RecordKey {
        RecordKey::of_peer(RecordKind::SkippedIndex, peer, &[])
    }

    /// The row of a key, if it is stored.
    pub(crate) fn row(&self, peer: &Address, slot: &Slot<'_>) -> Option<RecordKey> {
        self.find(slot).map(|_| slot.key(peer))
    }

    /// The seed of a message, if it is stored.
    pub(crate) fn seed(
        &self,
        peer: &Address,
        slot: &Slot<'_>,
        records: &Records,
    ) -> Result<Option<MessageSeed>, ProtocolError> {
        let Some(key) = self.row(peer, slot) else { return Ok(None) };
        // The row expires on its own; without it the message is treated as any other.
        let Some(record) = records.get(&key) else { return Ok(None) };
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
        effects.delete(slot.key(peer));
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
        let surplus = skipped.len().saturating_sub(MAX_STORED_KEYS);
        let skipped = skipped.into_iter().skip(surplus).collect::<Vec<_>>();
        let total = self.len() + skipped.len();
        self.drop_oldest(peer, total.saturating_sub(MAX_STORED_KEYS), effects);
        for key in skipped {
            let slot = Slot { session, chain: key.id, number: key.number };
            let mut out = Writer::with_capacity(33);
            out.u8(VERSION).raw(key.seed.expose());
            effects.put_until(slot.key(peer), SecretBytes::from(out.finish()), now + STORED_KEY_LIFETIME);
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
        let expired = |range: &&Range| now.since(range.at) >= STORED_KEY_LIFETIME;
        let count = self.ranges.iter().take_while(expired).map(Range::len).sum();
        self.drop_oldest(peer, count, effects);
    }

    /// Destroys the keys of a session that is gone.
    pub(crate) fn forget(&mut self, peer: &Address, session: &SessionId, effects: &mut Effects) {
        self.ranges.retain(|range| {
            if range.session == *session {
                range.delete(peer, range.len(), effects);
                self.changed = true;
            }
            range.session != *session
        });
    }

    /// Writes the index if it changed.
    pub(crate) fn save(&mut self, peer: &Address, effects: &mut Effects) {
        if !core::mem::take(&mut self.changed) {
            return;
        }
        if self.ranges.is_empty() {
            effects.delete(Self::key(peer));
        } else {
            effects.put(Self::key(peer), encode(&self.ranges));
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
            range.delete(peer, dropped, effects);
            range.from += u32::try_from(dropped).unwrap_or(u32::MAX);
            count -= dropped;
            if range.from >= range.to {
                self.ranges.remove(0);
            }
        }
    }
}

impl Range {
    fn len(&self) -> usize {
        usize::try_from(self.to.saturating_sub(self.from)).unwrap_or(usize::MAX)
    }

    /// Deletes the rows of the first `count` keys.
    fn delete(&self, peer: &Address, count: usize, effects: &mut Effects) {
        for number in (self.from..self.to).take(count) {
            effects.delete(Slot { session: &self.session, chain: self.chain, number }.key(peer));
        }
    }
}

fn encode(ranges: &[Range]) -> SecretBytes {
    let mut out = Writer::with_capacity(8 + 64 * ranges.len());
    out.u8(VERSION).u32(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
    for range in ranges {
        out.raw(&range.session).raw(&range.chain).u32(range.from).u32(range.to).u64(range.at.as_millis());
    }
    SecretBytes::from(out.finish())
}

fn decode(bytes: &[u8]) -> Result<Vec<Range>, CodecError> {
    let mut input = Reader::new(bytes);
    match input.u8()? {
        VERSION => {}
        other => return Err(CodecError::Version(other)),
    }
    let count = usize::try_from(input.u32()?).map_err(|_| CodecError::Length)?;
    if count > MAX_STORED_KEYS {
        return Err(CodecError::Length);
    }
    let mut ranges = Vec::with_capacity(count);
    for _ in 0..count {
        let range = Range {
            session: *input.array()?,
            chain: *input.array()?,
            from: input.u32()?,
            to: input.u32()?,
            at: Timestamp::from_millis(input.u64()?),
        };
        if range.from >= range.to {
            return Err(CodecError::Value);
        }
        ranges.push(range);
    }
    input.finish()?;
    Ok(ranges)
}
