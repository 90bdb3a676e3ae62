//! How memories end: forgotten, closed for good, or when their time ran out.

use super::agents::Caller;
use super::reads::{Passed, passed};
use super::{Engine, Later, hour};
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::memory::{Forgotten, Header, MemoryId, Purged, State, Tombstoned, WouldForget};
use crate::storage::{Due, MemoryRow};
use crate::{VaultError, limits};

/// Bytes of headers after which one look for memories whose time ran out ends: what has its hour, but not its time, behind it is read
/// again with each, and the vault has others to answer.
const LOOK: usize = 4 << 20;

impl Engine {
    /// Destroys a memory's key and content; with `with_earlier` also those of the versions that it corrected, as far as the caller
    /// may end them, also when it was ended itself before.
    pub(crate) fn forget(
        &mut self,
        caller: &Caller,
        (id, with_earlier): (MemoryId, bool),
        reason: &str,
    ) -> Result<Forgotten, VaultError> {
        let before = with_earlier && self.find(caller, id).is_ok_and(|(_, header)| header.is_destroyed());
        let end = (id, Operation::Forget, State::Forgotten);
        if !before || self.no_lockdown().is_err() || caller.must_write().is_err() {
            self.end(caller, end, reason)?;
        }
        let (versions, next) = self.earlier(caller, id)?;
        let mut ended = Vec::new();
        for header in versions.iter().filter(|_| with_earlier) {
            if self.may_change(caller, header).is_err() {
                continue;
            }
            let one = self.end(caller, (header.id, Operation::Forget, State::Forgotten), reason);
            match self.sound(one) {
                Ok(done) => ended.extend(done.map(|()| header.id)),
                // The answer names those that are left.
                Err(VaultError::Refused(_)) => break,
                Err(error) => return Err(error),
            }
        }
        if before && ended.is_empty() {
            match next {
                None => self.end(caller, end, reason)?,
                // What is left is told, and logged as a look at it.
                Some(_) => {
                    let mut event = Event::new(self.clock.now(), caller.name(), Operation::List);
                    event.memory = Some(id);
                    self.audited_for(caller, event, |_, _| Ok(()))?;
                }
            }
        }
        let left = versions.iter().map(|header| header.id).filter(|id| !ended.contains(id)).collect();
        // What holds a later version holds the oldest one, too. Not to know them keeps nothing from being destroyed.
        let oldest = ended.last().copied().unwrap_or(id);
        let backups = self.sound(self.backups_with(oldest))?.unwrap_or_default();
        Ok(Forgotten { ended, earlier: left, next, before, backups })
    }

    /// What [`Engine::forget`] would destroy, and what it would leave. Nothing is changed; like a list, it is logged.
    pub(crate) fn would_forget(
        &mut self,
        caller: &Caller,
        (id, with_earlier): (MemoryId, bool),
    ) -> Result<WouldForget, VaultError> {
        let mut event = Event::new(self.clock.now(), caller.name(), Operation::List);
        event.memory = Some(id);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            caller.must_write()?;
            let (_, header) = engine.find(caller, id)?;
            event.level = Some(header.level);
            engine.may_change(caller, &header)?;
            engine.may_read(caller)?;
            let (versions, mut next) = engine.earlier(caller, id)?;
            let (mut forgets, mut keeps, mut bytes) = (Vec::new(), Vec::new(), 0);
            if !header.is_destroyed() {
                forgets.push(engine.seen_by(caller, header)?);
            }
            for version in versions {
                let goes = with_earlier && engine.may_change(caller, &version).is_ok();
                if bytes >= limits::MAX_PAGE_BYTES && goes {
                    next = Some(version.id);
                    break;
                }
                let mut version = engine.seen_by(caller, version)?;
                if bytes >= limits::MAX_PAGE_BYTES {
                    // What stays has no page of its own.
                    version = version.in_short();
                }
                bytes += serde_json::to_vec(&version).map_or(0, |text| text.len());
                if goes { &mut forgets } else { &mut keeps }.push(version);
            }
            if forgets.is_empty() && !(with_earlier && next.is_some()) {
                return Err(Refusal::Gone("it was ended before").into());
            }
            event.count = Some(forgets.len() as u64);
            Ok(WouldForget { forgets, keeps, next })
        })
    }

    /// The versions that a memory corrects and whose content is there, newest first, as far as the caller may know of them; and
    /// where to go on if there are more. What it reads is counted; who had as much read as it may is only told where to go on, for
    /// that is no reason to keep anything from its end.
    fn earlier(
        &mut self,
        caller: &Caller,
        id: MemoryId,
    ) -> Result<(Vec<Header>, Option<MemoryId>), VaultError> {
        let most = if self.may_read(caller).is_ok() { limits::MAX_EARLIER } else { 0 };
        let mut read = Passed::default();
        let found = self.chain((caller, most), id, &mut read);
        self.count_passed(caller, &read);
        found
    }

    /// The same, at most `most`; for none it ends at the first one that the caller may know of, with content or without. Adds up what it
    /// reads.
    ///
    /// Those that the caller may not know of are no steps of it, and none is where to go on: it would tell how many there are. Behind
    /// very many of them it ends; where it may find none, as soon as what it read counts.
    fn chain(
        &self,
        (caller, most): (&Caller, usize),
        id: MemoryId,
        read: &mut Passed,
    ) -> Result<(Vec<Header>, Option<MemoryId>), VaultError> {
        let header = |id: MemoryId, read: &mut Passed| {
            let Some(row) = self.database.memory_header(&id)? else { return Ok(None) };
            let header = self.sound(self.listed(&row))?;
            if let Some(header) = &header {
                read.take(caller, header, passed(&row));
            }
            Ok::<_, VaultError>(header)
        };
        let (mut found, mut next) = (Vec::new(), header(id, read)?.and_then(|header| header.supersedes));
        while let Some(id) = next {
            let Some(older) = header(id, read)? else { break };
            let known = caller.reaches(&older.namespace)
                && caller.may_have(older.level)
                && !self.closed_to(caller, &older)?;
            let counts = known && (most == 0 || !older.is_destroyed());
            if read.ends(most == 0) || (counts && found.len() == most) {
                return Ok((found, known.then_some(id)));
            }
            next = older.supersedes;
            if counts {
                found.push(older);
            }
        }
        Ok((found, None))
    }

    /// Closes a memory for good, and keeps it for the record. The versions that it corrected stay as they are.
    pub(crate) fn tombstone(
        &mut self,
        caller: &Caller,
        id: MemoryId,
        reason: &str,
    ) -> Result<Tombstoned, VaultError> {
        self.end(caller, (id, Operation::Tombstone, State::Tombstoned), reason)?;
        let ((versions, next), now) = (self.earlier(caller, id)?, self.latest(&self.clock.now()));
        let open = versions.into_iter().filter(|version| version.gone(now).is_none());
        Ok(Tombstoned { earlier: open.map(|version| version.id).collect(), next })
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
            if header.is_destroyed() || header.state == state {
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

    /// Destroys memories whose time ran out, of at most `count` of those that are due after the place `after`. With where to go on, if
    /// there are more. While the clock on the wall is far ahead of what was seen of it, none, and while it is behind, only what ran out by it: the
    /// others are not given out any more, but a clock that is wrong must not cost a memory.
    pub(crate) fn purge(
        &mut self,
        after: Option<Due>,
        count: usize,
    ) -> Result<(Purged, Option<Due>), VaultError> {
        let now = self.clock.now();
        let mut purged = Purged::default();
        let settled = self.held.as_mut().is_none_or(|held| {
            held.pace.take(&now);
            held.pace.is_settled()
        });
        let due = self.database.due(hour(now.wall), after, count)?;
        let mut next = due.last().filter(|_| due.len() == count).map(|(place, _)| *place);
        let (mut last, mut read) = (after, 0);
        for (place, id) in due {
            if read >= LOOK {
                next = last;
                break;
            }
            last = Some(place);
            let Some(row) = self.database.memory_header(&id)? else { continue };
            read += row.header.len();
            // A row that somebody changed is for `verify` to name; it keeps no other from its end.
            let Some(header) = self.sound(self.header(&row))? else {
                purged.left += 1;
                continue;
            };
            if header.expires.is_none_or(|end| end > now.wall) {
                continue;
            }
            if !settled {
                purged.left += 1;
                continue;
            }
            let mut event = Event::new(now.clone(), "vault", Operation::Purge);
            (event.memory, event.level) = (Some(id), Some(header.level));
            let done = self.audited(event, |engine, event| {
                let gone = || VaultError::tampered(format!("the memory {id}"), "its row is gone");
                let row = engine.database.memory(&id)?.ok_or_else(gone)?;
                let header = engine.header(&row)?;
                event.row = Some(engine.destroy((row, header), State::Expired, "")?);
                Ok(())
            });
            match self.sound(done)? {
                Some(()) => purged.ended += 1,
                None => purged.left += 1,
            }
        }
        Ok((purged, next))
    }
}
