//! Sessions: memories of level 0 end with the session that stored them.

use std::collections::HashSet;

use super::Engine;
use crate::audit::{Event, Operation};
use crate::level::Level;
use crate::memory::{MemoryId, State};
use crate::{VaultError, limits};

/// A session of an agent: in the daemon, its connection. The owner's is [`SessionId::OWNER`], which ends with the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(pub(crate) u64);

impl SessionId {
    /// The owner's session, and that of everybody who has none of their own.
    pub const OWNER: Self = Self(0);
}

impl Engine {
    /// Remembers that a memory ends with a session.
    pub(super) fn ends_with(&mut self, session: SessionId, (id, level): (MemoryId, Level)) {
        if level == Level::Ephemeral {
            self.ephemeral.entry(session).or_default().push(id);
            self.ephemeral_here.push(id);
        }
    }

    /// What this group stored was undone with it, so no session has to end it.
    pub(super) fn forget_undone(&mut self) {
        let undone: HashSet<MemoryId> = core::mem::take(&mut self.ephemeral_here).into_iter().collect();
        if undone.is_empty() {
            return;
        }
        self.ephemeral.retain(|_, ids| {
            ids.retain(|id| !undone.contains(id));
            !ids.is_empty()
        });
        self.ending.retain(|id| !undone.contains(id));
    }

    /// Ends a session: of what it stored at level 0 at most `most` is destroyed, and the rest with the next calls of
    /// [`Engine::end_left`], or by who asked. Returns how many were destroyed, and which are left.
    pub(crate) fn end_session(
        &mut self,
        session: SessionId,
        most: usize,
    ) -> Result<(usize, Vec<MemoryId>), VaultError> {
        let ids = self.ephemeral.remove(&session).unwrap_or_default();
        self.ending.extend(&ids);
        let (now, later) = ids.split_at(most.min(ids.len()));
        self.end_ephemeral(now).map(|ended| (ended, later.to_vec()))
    }

    /// Ends all sessions.
    pub(super) fn end_sessions(&mut self) -> Result<(), VaultError> {
        self.ending.extend(core::mem::take(&mut self.ephemeral).into_values().flatten());
        let ids = self.ending.clone();
        self.end_ephemeral(&ids).map(|_| ())
    }

    /// Whether memories are left whose session ended.
    pub(crate) fn leaves_ephemeral(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Destroys some of what is left of sessions that ended.
    pub(crate) fn end_left(&mut self) -> Result<usize, VaultError> {
        let ids: Vec<MemoryId> = self.ending.iter().take(limits::MAX_GROUP).copied().collect();
        // Those that can not be ended keep no others from it.
        self.ending.rotate_left(ids.len());
        self.end_ephemeral(&ids)
    }

    /// What was ended is left no more: that is committed.
    pub(super) fn forget_ended(&mut self) {
        let ended: HashSet<MemoryId> = core::mem::take(&mut self.ended_here).into_iter().collect();
        if !ended.is_empty() {
            self.ending.retain(|id| !ended.contains(id));
        }
    }

    /// Destroys what sessions left that ended with their process.
    pub(super) fn end_lost_sessions(&mut self) -> Result<(), VaultError> {
        let due = self.database.due(i64::MAX, None, usize::MAX)?;
        let ids: Vec<_> = due.into_iter().map(|(_, id)| id).collect();
        self.end_ephemeral(&ids).map(|_| ())
    }

    /// Destroys those of the memories that are of level 0. One where that fails keeps no other from its end.
    pub(crate) fn end_ephemeral(&mut self, ids: &[MemoryId]) -> Result<usize, VaultError> {
        let (mut ended, mut failed) = (0, None);
        for id in ids {
            match self.end_if_ephemeral(*id) {
                Ok(done) => {
                    ended += usize::from(done);
                    self.ended_here.push(*id);
                }
                Err(error) => {
                    failed.get_or_insert(error);
                    if self.broken.is_some() {
                        break;
                    }
                }
            }
        }
        failed.map_or(Ok(ended), Err)
    }

    fn end_if_ephemeral(&mut self, id: MemoryId) -> Result<bool, VaultError> {
        // Most of what has an end is of another level: at the first unlock no contents are read for that.
        let Some(row) = self.database.memory_header(&id)? else { return Ok(false) };
        // A row that somebody changed is for `verify` to name.
        let Some(header) = self.sound(self.header(&row))? else { return Ok(false) };
        let live = matches!(header.state, State::Live | State::Superseded);
        if header.level != Level::Ephemeral || !live {
            return Ok(false);
        }
        let mut event = Event::new(self.clock.now(), "vault", Operation::Purge);
        (event.memory, event.level) = (Some(id), Some(header.level));
        let done = self.audited(event, |engine, event| {
            let gone = || VaultError::tampered(format!("the memory {id}"), "its row is gone");
            let row = engine.database.memory(&id)?.ok_or_else(gone)?;
            let header = engine.header(&row)?;
            event.row = Some(engine.destroy((row, header), State::Expired, "its session ended")?);
            Ok(())
        });
        Ok(self.sound(done)?.is_some())
    }
}
