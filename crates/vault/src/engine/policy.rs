//! What agents may see and change: agents use memories, and the owner controls them.

use core::time::Duration;

use super::Engine;
use super::agents::{Caller, Ends};
use super::memories::millis;
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::level::Level;
use crate::memory::{Header, MemoryId, NewMemory};
use crate::{VaultError, limits};

impl Engine {
    /// Whether a memory is closed to the caller: an agent needs an approval for it, the owner's session or the key of its profile,
    /// and there is none. Then it is told that the memory is there, and no more.
    pub(super) fn closed_to(&self, caller: &Caller, header: &Header) -> Result<bool, VaultError> {
        let level = header.level;
        let locked = level.needs_session() && self.held()?.session.is_none();
        Ok(!caller.is_owner() && (level.needs_approval() || locked || !self.profile_open(header)))
    }

    /// What an agent may not read without approval it may not change or end either, nor what the owner locked, nor, unless it
    /// was enrolled so, what it did not store.
    pub(super) fn may_change(&self, caller: &Caller, header: &Header) -> Result<(), VaultError> {
        let Caller::Agent(agent) = caller else { return Ok(()) };
        let level = header.level;
        if level.needs_approval() {
            return Err(Refusal::NotAllowed { what: "change or end a memory of this level" }.into());
        }
        if self.closed_to(caller, header)? {
            return Err(match header.profile.as_ref().filter(|_| !self.profile_open(header)) {
                Some(profile) => Refusal::ProfileClosed(profile.clone()),
                None => Refusal::Locked { level },
            }
            .into());
        }
        if agent.ends == Ends::Own && header.creator != agent.name {
            return Err(Refusal::NotAllowed { what: "change or end what it did not store" }.into());
        }
        Ok(())
    }

    /// The pause between two recalls of a new memory at a level, in milliseconds.
    pub(super) fn pause(
        caller: &Caller,
        (memory, level): (&NewMemory, Level),
        older: Option<&Header>,
    ) -> Result<u64, VaultError> {
        let sealed = level.needs_approval();
        let Some(asked) = memory.cooldown else {
            let usual = if sealed { millis(limits::COOLDOWN) } else { 0 };
            return Ok(match older {
                None => usual,
                // What the owner chose for this level holds.
                Some(older) if older.level == level => older.cooldown,
                Some(older) => older.cooldown.max(usual),
            });
        };
        if !caller.is_owner() && asked > limits::MAX_COOLDOWN_OF_AGENT {
            return Err(VaultError::invalid("an agent may ask for a pause of an hour at most"));
        }
        if !caller.is_owner() && sealed && asked < limits::COOLDOWN {
            return Err(VaultError::invalid("from level 3 on an agent may ask for a pause of 60 s at least"));
        }
        Ok(millis(asked))
    }

    /// What a caller sees of a memory. Of one that is closed to it: that it is there.
    pub(super) fn seen_by(&self, caller: &Caller, mut header: Header) -> Result<Header, VaultError> {
        if self.closed_to(caller, &header)? {
            return Ok(header.closed());
        }
        if !caller.is_owner() {
            self.withhold(caller, &mut header);
        }
        // A keyed hash tells whether two contents are equal; nobody needs that here.
        header.content_hash.clear();
        Ok(header)
    }

    /// Ends the pause of a memory that was recalled, on behalf of the owner.
    pub(crate) fn end_pause(&mut self, id: MemoryId) -> Result<(), VaultError> {
        let owner = Caller::Owner;
        let mut event = Event::new(self.clock.now(), owner.name(), Operation::EndPause);
        event.memory = Some(id);
        self.audited(event, |engine, event| {
            engine.no_lockdown()?;
            let (_, header) = engine.find(&owner, id)?;
            event.level = Some(header.level);
            let last = match engine.database.last_recall(&id)? {
                Some(seq) => engine.event_time(seq)?,
                None => None,
            };
            let pause = Duration::from_millis(header.cooldown);
            if last.is_none_or(|last| engine.certainly_since(&event.at, &last) >= pause) {
                return Err(VaultError::invalid("no pause of this memory is under way"));
            }
            engine.database.remove_recall(&id)
        })
    }
}
