//! Corrections: a memory that takes the place of another one is kept no worse than that one.

use super::agents::Caller;
use super::memories::millis;
use super::{Engine, Later};
use crate::audit::{Event, Operation};
use crate::error::Refusal;
use crate::level::Level;
use crate::memory::{Header, MemoryId, NewMemory, State};
use crate::storage::MemoryRow;
use crate::{VaultError, limits};

/// Where and how well a new memory is kept.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) level: Level,
    pub(super) namespace: String,
    pub(super) profile: Option<String>,
    pub(super) expires: Option<u64>,
    pub(super) cooldown: u64,
}

impl Engine {
    /// The memory that another one is to correct, if the caller may do that.
    pub(super) fn correctable(
        &self,
        caller: &Caller,
        (older, new): (MemoryId, &NewMemory),
    ) -> Result<(MemoryRow, Header), VaultError> {
        let (row, header) = self.find(caller, older)?;
        self.may_change(caller, &header)?;
        // What is trusted more is not replaced by what is trusted less, but by the owner.
        if !caller.is_owner() && new.trust < header.trust {
            return Err(Refusal::LessTrusted { old: header.trust, new: new.trust }.into());
        }
        if header.gone(self.latest(&self.clock.now())).is_some() || header.state != State::Live {
            return Err(VaultError::invalid("only a memory that is live can be superseded"));
        }
        self.must_be_whole(&row)?;
        Ok((row, header))
    }

    /// How a new memory is kept: as it says, and where it does not, as what it corrects. Only the owner lowers a level or leaves a
    /// profile, and only by saying so.
    pub(super) fn terms(
        caller: &Caller,
        (new, now): (&NewMemory, u64),
        older: Option<&Header>,
    ) -> Result<Terms, VaultError> {
        let unsaid =
            || VaultError::invalid("a memory that corrects no other one says its level and its namespace");
        let level = new.level.or(older.map(|older| older.level)).ok_or_else(unsaid)?;
        let namespace = new.namespace.as_ref().or(older.map(|older| &older.namespace)).ok_or_else(unsaid)?;
        let kept = older.and_then(|older| older.profile.as_ref());
        let profile = new.profile.as_ref().or(kept.filter(|_| !new.no_profile));
        if let Some(older) = older.filter(|_| !caller.is_owner()) {
            if level < older.level {
                return Err(Refusal::LowerLevel { old: older.level, new: level }.into());
            }
            if let Some(kept) = kept.filter(|kept| profile != Some(*kept)) {
                return Err(Refusal::LeavesProfile(kept.clone()).into());
            }
        }
        Ok(Terms {
            level,
            namespace: namespace.clone(),
            profile: profile.cloned(),
            expires: Self::expiry((new, level), older, now),
            cooldown: Self::pause(caller, (new, level), older)?,
        })
    }

    /// When the time of a new memory runs out.
    fn expiry((new, level): (&NewMemory, Level), older: Option<&Header>, now: u64) -> Option<u64> {
        // The end of level 0 comes with the level.
        let passes_on = |older: &&Header| older.level > Level::Ephemeral || level == Level::Ephemeral;
        let left = older.filter(|_| !new.no_ttl).filter(passes_on).and_then(|older| older.expires);
        let asked = new.ttl.map(|ttl| now.saturating_add(millis(ttl))).or(left);
        let most = (level == Level::Ephemeral).then(|| now.saturating_add(millis(limits::EPHEMERAL_TTL)));
        match (asked, most) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        }
    }

    /// Marks a memory as corrected by another, as a step of storing that one, with an event of its own.
    pub(super) fn supersede(
        &mut self,
        caller: &Caller,
        (mut row, mut header): (MemoryRow, Header),
        newer: MemoryId,
    ) -> Result<(), VaultError> {
        let before = row.size();
        header.superseded_by = Some(newer);
        self.set_state(&mut header, State::Superseded, "");
        row.header = self.seal_header(&header)?;
        self.rewrite(before, &row, &header.creator)?;
        self.later.push(Later::Remove(header.id));
        let mut event = Event::new(self.clock.now(), caller.name(), Operation::Supersede);
        (event.memory, event.level, event.row) = (Some(header.id), Some(header.level), Some(row.digest()));
        self.log(&event)
    }
}
