//! Removing archived events from the database. Their hashes stay, and so do the rows that something still depends on: so every
//! proof goes on verifying, and nothing else changes.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use stvor_crypto::kdf::sha256;
use stvor_tlog::{Frontier, Hash};

use super::Engine;
use super::agents::OWNER;
use crate::VaultError;
use crate::audit::{Event, Operation, hex};
use crate::error::Refusal;
use crate::memory::MemoryId;
use crate::reading::{self, ReadEvent};
use crate::verify::Progress;

/// The record of what was removed.
const SLOT: &str = "removed";
/// Rows that are read at a time.
const PART: usize = 1_024;

/// Which events have no row any more. What is hashed over it is in the log, so it is as hard to change as that.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Removed {
    upto: u64,
    /// A bit for each event before that.
    bits: Vec<u8>,
}

fn place(seq: u64) -> (usize, u8) {
    (usize::try_from(seq / 8).unwrap_or(usize::MAX), 1 << (seq % 8))
}

impl Removed {
    /// Events from this number on all have their rows.
    pub(crate) fn upto(&self) -> u64 {
        self.upto
    }

    /// Whether an event has no row any more.
    pub(crate) fn contains(&self, seq: u64) -> bool {
        let (at, bit) = place(seq);
        seq < self.upto && self.bits.get(at).is_some_and(|byte| byte & bit != 0)
    }

    fn grow(&mut self, upto: u64) {
        if upto > self.upto {
            self.upto = upto;
            self.bits.resize(usize::try_from(upto.div_ceil(8)).unwrap_or(usize::MAX), 0);
        }
    }

    fn add(&mut self, seq: u64) {
        let (at, bit) = place(seq);
        self.bits.get_mut(at).into_iter().for_each(|byte| *byte |= bit);
    }

    fn encode(&self) -> Vec<u8> {
        [&self.upto.to_be_bytes()[..], &self.bits].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (upto, bits) = bytes.split_first_chunk::<8>()?;
        let upto = u64::from_be_bytes(*upto);
        let fits = usize::try_from(upto.div_ceil(8)).ok()? == bits.len();
        fits.then(|| Self { upto, bits: bits.to_vec() })
    }

    /// What the log has of it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        sha256(&[b"STVOR vault removed events v1", &self.encode()])
    }
}

/// What an archive says about itself, for who removes what is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArchiveHead {
    /// The first event in it.
    pub from: u64,
    /// The size of the log that its checkpoint signs; its last event is the one before.
    pub size: u64,
    /// The root of that log, in base64.
    pub root: String,
    /// Whether what was said to requests is in it, too.
    pub words: bool,
}

/// What was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Rows of events that were removed.
    pub removed: u64,
    /// Rows of events of the archive that stay: something depends on them.
    pub kept: u64,
}

/// What of the log is still needed.
#[derive(Debug, Default)]
struct Needed {
    /// The newest event with a digest of each memory's row.
    rows: HashMap<MemoryId, u64>,
    /// The newest one that stopped everything, or let it go on.
    stop: Option<u64>,
    /// Commitments, which proofs of properties show.
    commitments: Vec<u64>,
    /// Events of the archive that have a row.
    present: Vec<u64>,
    /// The first of them with words beside it.
    words: Option<u64>,
    next: u64,
}

impl Engine {
    /// What was removed from the log so far.
    pub(crate) fn removed(&self) -> Result<Removed, VaultError> {
        match self.database.slot(SLOT)? {
            Some(record) => self.open_removed(&record),
            None => Ok(Removed::default()),
        }
    }

    /// The record of it, sealed, for who looks whether it changed.
    pub(crate) fn removed_record(&self) -> Result<Option<Vec<u8>>, VaultError> {
        self.database.slot(SLOT)
    }

    /// Opens such a record.
    pub(crate) fn open_removed(&self, record: &[u8]) -> Result<Removed, VaultError> {
        let tampered = || VaultError::tampered("the record of removed events", "it does not open");
        let plain = self.held()?.base.rows.open(SLOT.as_bytes(), record).map_err(|_| tampered())?;
        Removed::decode(plain.expose()).ok_or_else(tampered)
    }

    /// Removes the rows of events that an archive holds, but for those that are needed. `lose_words`: also if what was said to
    /// requests is not in the archive.
    pub(crate) fn prune(
        &mut self,
        archive: &ArchiveHead,
        lose_words: bool,
        progress: &Progress,
    ) -> Result<Pruned, VaultError> {
        let event = Event::new(self.clock.now(), OWNER, Operation::Prune);
        self.audited(event, |engine, event| {
            engine.no_lockdown()?;
            let mut removed = engine.removed()?;
            engine.fits(archive, &removed)?;
            let needed = engine.needed(archive.size, &removed, progress)?;
            if let Some(seq) = needed.words.filter(|_| !archive.words && !lose_words) {
                return Err(VaultError::invalid(format!(
                    "what was said to requests (the first is event {seq}) is not in the archive and would be lost; make the \
                     archive with the words, or accept that"
                )));
            }
            let (gone, kept) = engine.unneeded(&needed)?;
            removed.grow(archive.size);
            for run in gone.chunk_by(|a, b| a + 1 == *b) {
                if let (Some(first), Some(last)) = (run.first(), run.last()) {
                    engine.database.remove_events((*first, *last))?;
                }
                run.iter().for_each(|seq| removed.add(*seq));
            }
            let held = engine.held.as_ref().ok_or(Refusal::Cold)?;
            let sealed = held.base.rows.seal(&mut engine.rng, SLOT.as_bytes(), &removed.encode())?;
            engine.database.put_slot(SLOT, &sealed)?;
            engine.database.give_back()?;
            engine.wipe = true;
            let done = Pruned { removed: gone.len() as u64, kept };
            (event.count, event.content) = (Some(done.removed), Some(hex(&removed.digest())));
            Ok(done)
        })
    }

    /// The archive is of this log, and goes on where the rows begin.
    fn fits(&self, archive: &ArchiveHead, removed: &Removed) -> Result<(), VaultError> {
        let size = self.held()?.tree.size();
        if archive.size > size
            || Frontier::load(&self.database, archive.size)?.root().to_base64() != archive.root
        {
            return Err(VaultError::invalid("the archive is not of this log, or of a later state of it"));
        }
        if archive.from > removed.upto() {
            return Err(VaultError::invalid(format!(
                "the archive begins with event {}, and nothing is removed yet from event {} on; prune the one before it first",
                archive.from,
                removed.upto()
            )));
        }
        Ok(())
    }

    /// Reads the log, and learns what is needed of it. A row that is damaged, or gone without having been removed, ends it: the
    /// archive may be what it can be mended with.
    fn needed(&self, size: u64, removed: &Removed, progress: &Progress) -> Result<Needed, VaultError> {
        let base = &self.held()?.base;
        progress.expect(self.database.event_count()?);
        let (mut next, mut needed) = (0, Needed::default());
        let read = |spare| {
            let part = self.database.event_part((next, PART), spare)?;
            next = part.last().map_or(next, |last| last + 1);
            progress.add(part.len());
            Ok(Some(part).filter(|part| part.len() > 0))
        };
        let take = |events| self.take_needed(&mut needed, events, (size, removed));
        reading::piped(read, |part| reading::events(base, part), take)?;
        Self::no_gap(needed.next, size, removed)?;
        Ok(needed)
    }

    fn no_gap(from: u64, to: u64, removed: &Removed) -> Result<(), VaultError> {
        match (from..to).find(|seq| !removed.contains(*seq)) {
            Some(seq) => Err(VaultError::tampered(format!("the event {seq}"), "its row is gone")),
            None => Ok(()),
        }
    }

    fn take_needed(
        &self,
        needed: &mut Needed,
        events: Vec<(u64, Option<ReadEvent>)>,
        (size, removed): (u64, &Removed),
    ) -> Result<(), VaultError> {
        let Some((first, _)) = events.first() else { return Ok(()) };
        let first = *first;
        let mut leaves = HashMap::new();
        if first < size {
            // Rows may be far apart: as many hashes as rows, or those of each row by itself.
            let dense = events.last().is_some_and(|(last, _)| last - first < 4 * PART as u64);
            if dense {
                leaves.extend(self.database.node_range(0, (first, 4 * PART))?);
            }
        }
        for (seq, event) in events {
            let tampered = |reason| VaultError::tampered(format!("the event {seq}"), reason);
            Self::no_gap(needed.next.min(size), seq.min(size), removed)?;
            needed.next = seq + 1;
            let event = event.ok_or_else(|| tampered("it was changed, or stands in another's place"))?;
            if seq < size {
                let leaf = match leaves.get(&seq) {
                    Some(leaf) => Some(*leaf),
                    None => self.leaf(seq)?,
                };
                if leaf != Some(event.leaf) {
                    return Err(tampered("its hash is not the one of the log"));
                }
                needed.present.push(seq);
                needed.words = needed.words.or_else(|| Some(seq).filter(|_| event.spoke));
            }
            if let Some((id, _)) = event.row {
                needed.rows.insert(id, seq);
            }
            match event.operation {
                Operation::EnterLockdown | Operation::LeaveLockdown if !event.refused => {
                    needed.stop = Some(seq);
                }
                Operation::Commit => needed.commitments.push(seq),
                _ => {}
            }
        }
        Ok(())
    }

    fn leaf(&self, seq: u64) -> Result<Option<Hash>, VaultError> {
        let found = self.database.node_range(0, (seq, 1))?;
        Ok(found.first().filter(|(at, _)| *at == seq).map(|(_, hash)| *hash))
    }

    /// The events of the archive that nothing depends on, in order, and how many stay.
    fn unneeded(&self, needed: &Needed) -> Result<(Vec<u64>, u64), VaultError> {
        let mut stays: std::collections::HashSet<u64> = needed.rows.values().copied().collect();
        stays.extend(needed.stop);
        stays.extend(&needed.commitments);
        // A pause is counted from the time of the newest recall.
        stays.extend(self.database.recall_events()?);
        let gone: Vec<u64> = needed.present.iter().copied().filter(|seq| !stays.contains(seq)).collect();
        let kept = (needed.present.len() - gone.len()) as u64;
        Ok((gone, kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_of_each_event_whether_its_row_was_removed() {
        let mut removed = Removed::default();
        assert!(!removed.contains(0) && removed.upto() == 0);
        removed.grow(20);
        for seq in [0, 7, 8, 19] {
            removed.add(seq);
        }
        removed.add(4_000);
        let read = Removed::decode(&removed.encode()).unwrap();
        assert_eq!(read, removed);
        let gone: Vec<u64> = (0..100).filter(|seq| read.contains(*seq)).collect();
        assert_eq!(gone, [0, 7, 8, 19]);
        let before = removed.digest();
        removed.grow(21);
        assert_ne!(removed.digest(), before, "how far it goes is part of it");
        removed.grow(5);
        assert_eq!(removed.upto(), 21);
        for bytes in [&[][..], &[0; 7], &[0; 9], &[0, 0, 0, 0, 0, 0, 0, 9, 0]] {
            assert_eq!(Removed::decode(bytes), None, "{bytes:?}");
        }
    }
}
