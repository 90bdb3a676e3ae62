//! The rows of memories, against the log.

use core::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use super::{PART, PARTS, Verification};
use crate::VaultError;
use crate::engine::Engine;
use crate::memory::State;
use crate::reading::{self, ReadMemory};

/// Contents that one step opens: each may have a megabyte.
const CONTENTS: usize = 64;

/// A memory that the log knows of.
#[derive(Debug)]
pub(super) struct Known {
    /// The digest of its row as the log has it.
    pub(super) digest: [u8; 32],
    /// Whether there is a row.
    pub(super) seen: bool,
    /// The event that stored it, if that has a row.
    pub(super) stored: Option<u64>,
}

/// Ids are random and the log is the vault's own, so some bytes of one are as good as a hash of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ById(u64);

impl BuildHasher for ById {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.as_chunks::<8>().0 {
            self.0 ^= u64::from_ne_bytes(*chunk);
        }
    }
}

impl Engine {
    /// Holds some memories' rows against the log, more than [`PARTS`] while `alone`. Returns whether these were the last ones.
    pub(super) fn verify_memories(
        &self,
        state: &mut Verification,
        mut alone: impl FnMut() -> bool,
    ) -> Result<bool, VaultError> {
        let base = &self.held()?.base;
        let progress = Arc::clone(&state.progress);
        let (mut after, mut left, mut end) = (state.after, PARTS, false);
        let read = |spare| {
            if left == 0 && !alone() {
                return Ok(None);
            }
            let part = self.database.memory_part((after, PART), spare)?;
            left = left.saturating_sub(1);
            after = part.last.unwrap_or(after);
            progress.add(part.len());
            end = part.len() == 0;
            Ok(Some(part).filter(|part| part.len() > 0))
        };
        let take = |rows| {
            take_memories(state, rows);
            Ok::<_, VaultError>(())
        };
        reading::piped(read, |part| reading::memories(base, part), take)?;
        state.after = after;
        Ok(end)
    }

    /// Opens some contents whose keys are held. Returns whether there are no more.
    pub(super) fn verify_contents(&self, state: &mut Verification) -> Result<bool, VaultError> {
        let session = self.held()?.session.as_ref();
        let rows = self.database.memories_after(state.opened, CONTENTS)?;
        let Some((last, _)) = rows.last() else { return Ok(true) };
        state.opened = *last;
        state.progress.add(rows.len());
        for (_, row) in rows {
            let opened = self.header(&row).and_then(|header| {
                let ended = matches!(header.state, State::Forgotten | State::Expired);
                let held =
                    !header.level.needs_session() || session.is_some_and(|keys| keys.opens(header.level));
                if ended || !held || !self.profile_open(&header) {
                    Ok(0)
                } else {
                    self.open(&row, &header).map(|_| 1)
                }
            });
            match opened {
                Ok(opened) => state.contents.memories += opened,
                Err(error) => state.contents.add(format!("the memory {}", row.id), error.to_string()),
            }
        }
        Ok(false)
    }
}

fn take_memories(state: &mut Verification, rows: Vec<ReadMemory>) {
    for ReadMemory { id, digest, problem } in rows {
        state.report.memories += 1;
        let place = || format!("the memory {id}");
        let Some(known) = state.known.get_mut(&id) else {
            state.report.add(place(), "the log does not know of it");
            continue;
        };
        known.seen = true;
        // Rows are numbered in the order in which their memories were stored. Where that event was archived and removed, nothing
        // tells.
        if known.stored.is_some_and(|stored| stored < state.stored) {
            state.report.add(place(), "its row stands in the place of another");
        }
        state.stored = state.stored.max(known.stored.unwrap_or(0));
        if known.digest != digest {
            let reason = "its row is not the one that the log has: it was changed or set back";
            state.report.add(place(), reason);
        } else if let Some(problem) = problem {
            state.report.add(place(), problem);
        }
    }
}
