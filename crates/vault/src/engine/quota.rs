//! How many bytes the memories of each agent take: an agent must not be able to fill the disk that the log needs.

use std::collections::BTreeMap;

use super::Engine;
use super::agents::{Agent, Caller, OWNER};
use crate::VaultError;
use crate::error::Refusal;
use crate::storage::MemoryRow;

/// The record of it.
const SLOT: &str = "usage";
/// Rows that are read at a time.
const BATCH: usize = 64;

/// Bytes by agent.
#[derive(Debug, Default)]
pub(super) struct Usage {
    /// As the group that is under way leaves them; nothing before they were read.
    now: Option<BTreeMap<String, u64>>,
    /// What this group changed, and what it was before.
    undo: Vec<(String, u64)>,
}

impl Usage {
    /// Changes of this group.
    pub(super) fn changes(&self) -> usize {
        self.undo.len()
    }

    /// Takes back all changes but the first `count`.
    pub(super) fn take_back(&mut self, count: usize) {
        while self.undo.len() > count {
            let (Some((agent, bytes)), Some(now)) = (self.undo.pop(), self.now.as_mut()) else { return };
            now.insert(agent, bytes);
        }
    }

    /// Reads them anew when they are needed.
    pub(super) fn drop_all(&mut self) {
        *self = Self::default();
    }

    fn change(&mut self, agent: &str, change: impl FnOnce(u64) -> u64) {
        if let Some(now) = self.now.as_mut() {
            let bytes = now.entry(agent.to_owned()).or_default();
            self.undo.push((agent.to_owned(), *bytes));
            *bytes = change(*bytes);
        }
    }
}

impl Engine {
    /// Bytes that the memories of each agent take, also of those that are not enrolled any more.
    pub(crate) fn usage(&mut self) -> Result<&BTreeMap<String, u64>, VaultError> {
        if self.usage.now.is_none() {
            let stored = self.sound(self.sealed_slot(SLOT))?.flatten();
            let counted = match stored {
                Some(stored) => stored,
                None => self.count_usage()?,
            };
            self.usage.now = Some(counted);
        }
        Ok(self.usage.now.get_or_insert_default())
    }

    /// Reads every memory.
    fn count_usage(&self) -> Result<BTreeMap<String, u64>, VaultError> {
        let (mut after, mut all) = (0, BTreeMap::new());
        loop {
            let rows = self.database.memories_after(after, BATCH)?;
            let Some((last, _)) = rows.last() else { return Ok(all) };
            after = *last;
            for (_, row) in rows {
                let Some(header) = self.sound(self.header(&row))? else { continue };
                if header.creator != OWNER {
                    *all.entry(header.creator).or_default() += row.size();
                }
            }
        }
    }

    /// Counts a new memory, if its writer may have that much.
    pub(super) fn charge(&mut self, caller: &Caller, row: &MemoryRow) -> Result<(), VaultError> {
        let Caller::Agent(agent) = caller else { return Ok(()) };
        let after = self.after(agent, row.size())?;
        self.usage.change(&agent.name, |_| after);
        Ok(())
    }

    /// Refuses an agent under whose hands a memory of its own would grow to more than it may have.
    pub(super) fn may_grow(
        &mut self,
        caller: &Caller,
        creator: &str,
        (before, after): (u64, u64),
    ) -> Result<(), VaultError> {
        match caller {
            Caller::Agent(agent) if agent.name == creator && after > before => {
                self.after(agent, after - before).map(|_| ())
            }
            _ => Ok(()),
        }
    }

    /// Bytes that an agent's memories take with some more, if it may have them.
    fn after(&mut self, agent: &Agent, needed: u64) -> Result<u64, VaultError> {
        let used = self.usage()?.get(&agent.name).copied().unwrap_or_default();
        let (after, most) = (used.saturating_add(needed), agent.quota());
        if after > most {
            return Err(Refusal::Quota { used, needed, most }.into());
        }
        Ok(after)
    }

    /// Writes a memory's row, which had `before` bytes, and counts the difference for who stored it.
    pub(super) fn rewrite(&mut self, before: u64, row: &MemoryRow, creator: &str) -> Result<(), VaultError> {
        self.database.update_memory(row)?;
        if creator != OWNER {
            self.usage()?;
            self.usage.change(creator, |bytes| bytes.saturating_sub(before).saturating_add(row.size()));
        }
        Ok(())
    }

    /// Writes what this group changed of it.
    pub(super) fn save_usage(&mut self) -> Result<(), VaultError> {
        if self.usage.undo.is_empty() {
            return Ok(());
        }
        self.usage.undo.clear();
        if let Some(mut now) = self.usage.now.take() {
            now.retain(|_, bytes| *bytes > 0);
            let saved = self.put_sealed_slot(SLOT, &now);
            self.usage.now = Some(now);
            saved?;
        }
        Ok(())
    }
}
