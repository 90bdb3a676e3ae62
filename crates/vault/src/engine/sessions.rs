//! Sessions: memories of level 0 end with the session that stored them.

use super::Engine;
use crate::VaultError;
use crate::audit::{Event, Operation};
use crate::level::Level;
use crate::memory::{MemoryId, State};

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
        }
    }

    /// Ends a session: what it stored at level 0 is destroyed, and what is left of sessions before it.
    pub(crate) fn end_session(&mut self, session: SessionId) -> Result<usize, VaultError> {
        self.ending.extend(self.ephemeral.remove(&session).unwrap_or_default());
        self.end_left()
    }

    /// Ends all sessions.
    pub(super) fn end_sessions(&mut self) -> Result<(), VaultError> {
        self.ending.extend(core::mem::take(&mut self.ephemeral).into_values().flatten());
        self.end_left().map(|_| ())
    }

    /// Whether memories are left whose session ended.
    pub(crate) fn leaves_ephemeral(&self) -> bool {
        !self.ending.is_empty()
    }

    /// Destroys what is left of sessions that ended. It is left until that is committed.
    pub(crate) fn end_left(&mut self) -> Result<usize, VaultError> {
        let ids = self.ending.clone();
        let ended = self.end_ephemeral(&ids)?;
        self.ended_here = ids.len();
        Ok(ended)
    }

    /// Destroys what sessions left that ended with their process.
    pub(super) fn end_lost_sessions(&mut self) -> Result<(), VaultError> {
        let due = self.database.due(i64::MAX, None, usize::MAX)?;
        let ids: Vec<_> = due.into_iter().map(|(_, id)| id).collect();
        self.end_ephemeral(&ids).map(|_| ())
    }

    /// Destroys those of the memories that are of level 0.
    fn end_ephemeral(&mut self, ids: &[MemoryId]) -> Result<usize, VaultError> {
        let mut ended = 0;
        for id in ids {
            let Some(row) = self.database.memory(id)? else { continue };
            // A row that somebody changed is for `verify` to name.
            let Ok(header) = self.header(&row) else { continue };
            let live = matches!(header.state, State::Live | State::Superseded);
            if header.level != Level::Ephemeral || !live {
                continue;
            }
            let mut event = Event::new(self.clock.now(), "vault", Operation::Purge);
            (event.memory, event.level) = (Some(*id), Some(header.level));
            self.audited(event, |engine, event| {
                event.row = Some(engine.destroy((row, header), State::Expired, "its session ended")?);
                Ok(())
            })?;
            ended += 1;
        }
        Ok(ended)
    }
}
