//! How memories end: forgotten, closed for good, or when their time ran out.

use super::agents::Caller;
use super::{Engine, Later, hour};
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::memory::{Forgotten, Header, MemoryId, State};
use crate::storage::MemoryRow;
use crate::{VaultError, limits};

impl Engine {
    /// Destroys a memory's key and content.
    pub(crate) fn forget(
        &mut self,
        caller: &Caller,
        id: MemoryId,
        reason: &str,
    ) -> Result<Forgotten, VaultError> {
        self.end(caller, (id, Operation::Forget, State::Forgotten), reason)?;
        // Not to know them keeps nothing from being destroyed.
        let backups = self.sound(self.backups_with(id))?.unwrap_or_default();
        Ok(Forgotten { backups })
    }

    /// Closes a memory for good, and keeps it for the record.
    pub(crate) fn tombstone(
        &mut self,
        caller: &Caller,
        id: MemoryId,
        reason: &str,
    ) -> Result<(), VaultError> {
        self.end(caller, (id, Operation::Tombstone, State::Tombstoned), reason)
    }

    fn end(
        &mut self,
        caller: &Caller,
        (id, operation, state): (MemoryId, Operation, State),
        reason: &str,
    ) -> Result<(), VaultError> {
        let mut event = Event::new(self.clock.now(), caller.name(), operation);
        event.memory = Some(id);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            caller.must_write()?;
            if reason.len() > limits::MAX_TEXT {
                return Err(VaultError::invalid("a reason has at most 4096 bytes"));
            }
            engine.note(event, reason)?;
            let (row, header) = engine.find(caller, id)?;
            event.level = Some(header.level);
            engine.may_change(caller, &header)?;
            if header.state == State::Forgotten && state == State::Forgotten && engine.unwiped() {
                // It is asked for again because it was not overwritten then.
                engine.wipe = true;
                return Ok(());
            }
            if matches!(header.state, State::Forgotten | State::Expired) || header.state == state {
                return Err(Refusal::Gone("it was ended before").into());
            }
            if state == State::Tombstoned {
                // What is destroyed needs not be sound.
                engine.must_be_whole(&row)?;
            }
            event.row = Some(engine.destroy((row, header), state, reason)?);
            Ok(())
        })
    }

    /// Writes the new state of a memory; of all states but a tombstone only the header without what describes the content
    /// is left. Returns the digest of the row.
    pub(super) fn destroy(
        &mut self,
        (mut row, mut header): (MemoryRow, Header),
        state: State,
        reason: &str,
    ) -> Result<String, VaultError> {
        let before = row.size();
        self.set_state(&mut header, state, reason);
        if state != State::Tombstoned {
            for intent in core::mem::take(&mut header.intents) {
                for blind in self.links(&header.namespace, &intent)? {
                    self.database.unlink(&blind, &row.id)?;
                }
            }
            header.metadata.clear();
            header.searchable.clear();
            header.source.clear();
            header.content_hash.clear();
            header.destroyed_at = Some(self.held()?.tree.size());
            (row.wrapped, row.content, row.due) = (None, None, None);
            self.wipe = true;
        }
        row.header = self.seal_header(&header)?;
        self.rewrite(before, &row, &header.creator)?;
        self.later.push(Later::Remove(row.id));
        if matches!(state, State::Forgotten | State::Tombstoned) {
            self.list_as_ended(&header)?;
        }
        Ok(row.digest())
    }

    /// Has a memory that ended written to the lists of such.
    pub(super) fn list_as_ended(&self, header: &Header) -> Result<(), VaultError> {
        let ended = serde_json::to_string(&self.ended(header)?);
        let ended = ended.map_err(|error| VaultError::Database(error.to_string()))?;
        self.database.add_ended(&ended)
    }

    /// Destroys memories whose time ran out, at most `count`. Returns how many. While the clock on the wall is far ahead of what
    /// was seen of it, none: they are not given out any more, but a clock that is wrong must not cost a memory.
    pub(crate) fn purge(&mut self, count: usize) -> Result<usize, VaultError> {
        let now = self.clock.now();
        if let Some(held) = self.held.as_mut() {
            held.pace.take(&now);
            if !held.pace.is_settled() {
                return Ok(0);
            }
        }
        let this_hour = hour(now.wall);
        let mut purged = 0;
        for id in self.database.due(this_hour, count)? {
            let Some(row) = self.database.memory(&id)? else { continue };
            // A row that somebody changed is for `verify` to name; it keeps no other from its end.
            let Ok(header) = self.header(&row) else { continue };
            if header.expires.is_none_or(|end| end > now.wall) {
                continue;
            }
            let mut event = Event::new(now.clone(), "vault", Operation::Purge);
            (event.memory, event.level) = (Some(id), Some(header.level));
            self.audited(event, |engine, event| {
                event.row = Some(engine.destroy((row, header), State::Expired, "")?);
                Ok(())
            })?;
            purged += 1;
        }
        Ok(purged)
    }
}
