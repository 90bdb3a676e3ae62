//! What binds records to the log: with every checkpoint, sums over the tables of records and the newest time that was believed are
//! sealed for exactly that size and root. An older seal does not open for a newer log, so setting a record back takes setting
//! the log back, which the checkpoints outside show.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use stvor_tlog::Frontier;

use super::Engine;
use crate::VaultError;
use crate::audit::Operation;
use crate::clock::{Moment, Pace};
use crate::error::Refusal;
use crate::memory::MemoryId;
use crate::reading;
use crate::storage::{MemoryRow, Sums, Table};

/// Rows that are read at a time.
const BATCH: usize = 4_096;

/// What is sealed with a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    sums: Sums,
    steady: Option<Moment>,
}

/// The digest of each memory's newest row.
pub(super) type Digests = HashMap<MemoryId, [u8; 32]>;

fn place(tree: &Frontier) -> Vec<u8> {
    [b"bound", &tree.size().to_be_bytes()[..], &tree.root().0].concat()
}

/// What is said of a row whose header is not the newest of its memory.
pub(super) fn set_back(row: &MemoryRow) -> VaultError {
    VaultError::tampered(format!("the memory {}", row.id), "its row was changed or set back")
}

impl Engine {
    /// What is sealed for the log as it is now.
    pub(crate) fn seal_bound(&mut self) -> Result<Vec<u8>, VaultError> {
        let sums = self.database.sums()?;
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let bound = Bound { sums, steady: held.pace.steady().cloned() };
        let plain = serde_json::to_vec(&bound).map_err(|error| VaultError::Database(error.to_string()))?;
        Ok(held.base.rows.seal(&mut self.rng, &place(&held.tree), &plain)?)
    }

    /// Holds the records against what was sealed, and learns the newest time that was believed. What does not hold is doubted.
    pub(super) fn bind(&mut self) -> Result<(), VaultError> {
        let held = self.held()?;
        let (size, key) = (held.tree.size(), held.base.bound.duplicate());
        let sealed = self.database.bound()?.unwrap_or_default();
        let plain = held.base.rows.open(&place(&held.tree), &sealed).ok();
        let bound = plain.and_then(|plain| serde_json::from_slice::<Bound>(plain.expose()).ok());
        let steady = match bound {
            Some(bound) => {
                self.database.bind(key, Some(&bound.sums))?;
                bound.steady
            }
            // Nothing was logged yet, so nothing is bound.
            None if size == 0 => {
                self.database.bind(key, None)?;
                None
            }
            None => {
                self.database.bind(key, Some(&Sums::unknown()))?;
                self.newest_time(size)?
            }
        };
        if let Some(held) = self.held.as_mut() {
            held.pace = Pace::from(steady);
        }
        Ok(())
    }

    /// Refuses while records are not what they should be.
    pub(crate) fn no_doubt(&self) -> Result<(), VaultError> {
        let doubted: Vec<_> = self.database.doubted()?.into_iter().map(Table::what).collect();
        if doubted.is_empty() {
            return Ok(());
        }
        let reason = "a record was removed, added or set back; everything stays shut until the owner ends that with \
                      `stvor vault lockdown leave`";
        Err(VaultError::tampered(format!("what the vault keeps of {}", doubted.join(", ")), reason))
    }

    /// The row is the newest that was written for its memory.
    pub(crate) fn must_be_fresh(&self, row: &MemoryRow) -> Result<(), VaultError> {
        match self.database.is_fresh(row)? {
            true => Ok(()),
            false => Err(set_back(row)),
        }
    }

    /// All of the row is what the log has. A change of the header alone logs a digest over everything: it must not make sound
    /// what was damaged before.
    pub(super) fn must_be_whole(&self, row: &MemoryRow) -> Result<(), VaultError> {
        let whole = match self.database.is_whole(row)? {
            Some(whole) => whole,
            None => self.logged(row.id)? == Some(row.digest_bytes()),
        };
        if whole {
            return Ok(());
        }
        let reason = "its content was changed or set back; forget it, or restore a backup that holds it";
        Err(VaultError::tampered(format!("the memory {}", row.id), reason))
    }

    /// The digest of a memory's newest row, by the log.
    fn logged(&self, id: MemoryId) -> Result<Option<[u8; 32]>, VaultError> {
        let mut end = self.held()?.tree.size();
        while end > 0 {
            let start = end.saturating_sub(BATCH as u64);
            let rows = self.database.events_from(start, BATCH)?;
            for row in rows.iter().rev().filter(|row| row.seq < end) {
                let read = reading::event(&self.held()?.base, row).and_then(|event| event.row);
                if let Some((_, digest)) = read.filter(|(memory, _)| *memory == id) {
                    return Ok(Some(digest));
                }
            }
            end = start;
        }
        Ok(None)
    }

    /// Goes on with what can be trusted: recalls, intents and the newest rows follow from the log again; approvals end; where
    /// the agents are doubted, all of them have to be enrolled anew. Keys and settings are each sealed, and stay as they are.
    pub(super) fn end_doubt(&mut self) -> Result<(), VaultError> {
        if self.database.doubted()?.contains(&Table::Agent) {
            self.database.clear(Table::Agent)?;
        }
        for table in [Table::Approval, Table::Intent, Table::Recall, Table::Fresh] {
            self.database.clear(table)?;
        }
        let digests = self.recalls_and_rows()?;
        let mut after = i64::MIN;
        loop {
            let rows = self.database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { break };
            after = *last;
            for (_, row) in rows {
                // Any other row than the one of the log stays what it is: refused, and named by `verify`.
                if digests.get(&row.id) != Some(&row.digest_bytes()) {
                    continue;
                }
                self.database.put_fresh(&row)?;
                let header = self.any_header(&row)?;
                for intent in &header.intents {
                    for blind in self.links(&header.namespace, intent)? {
                        self.database.link(&blind, &row.id)?;
                    }
                }
            }
        }
        self.database.bind_anew()
    }

    /// Reads the log: writes when each memory was last recalled, and returns the digest of each one's newest row.
    fn recalls_and_rows(&self) -> Result<HashMap<MemoryId, [u8; 32]>, VaultError> {
        let (digests, recalls) = self.read_rows()?;
        recalls.iter().try_for_each(|(id, seq)| self.database.put_recall(id, *seq))?;
        Ok(digests)
    }

    /// Reads the log: the digest of each memory's newest row, and the event of its newest recall.
    pub(super) fn read_rows(&self) -> Result<(Digests, HashMap<MemoryId, u64>), VaultError> {
        let (mut next, mut digests, mut recalls) = (0, HashMap::new(), HashMap::new());
        loop {
            let rows = self.database.events_from(next, BATCH)?;
            let Some(last) = rows.last() else { break };
            next = last.seq + 1;
            for row in &rows {
                let Some(event) = reading::event(&self.held()?.base, row) else { continue };
                digests.extend(event.row);
                match (event.operation, event.memory) {
                    (Operation::Recall, Some(id)) if !event.refused => drop(recalls.insert(id, row.seq)),
                    (Operation::EndPause, Some(id)) if !event.refused => drop(recalls.remove(&id)),
                    _ => {}
                }
            }
        }
        Ok((digests, recalls))
    }
}
