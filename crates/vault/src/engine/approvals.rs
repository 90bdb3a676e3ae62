//! Asking for approvals, granting and using them.

use core::time::Duration;

use stvor_crypto::Random;

use super::Engine;
use super::agents::{Caller, OWNER};
use super::memories::Recall;
use crate::audit::{Event, Operation};
use crate::clock::Moment;
use crate::error::Refusal;
use crate::gates::approval::{Approval, Request, Stand, Wanted};
use crate::memory::MemoryId;
use crate::storage::{MemoryRow, Table};
use crate::{VaultError, limits};

impl Engine {
    fn put_approval(&mut self, approval: &Approval) -> Result<(), VaultError> {
        let plain = serde_json::to_vec(approval).map_err(|error| VaultError::Database(error.to_string()))?;
        let held = self.held.as_ref().ok_or(VaultError::Refused(Refusal::Cold))?;
        let key = approval.id.as_bytes();
        let sealed = held.base.rows.seal(&mut self.rng, &approval_ad(key), &plain)?;
        self.database.put_record(Table::Approval, key, &sealed)
    }

    /// All approvals that were not used, denied or outdated.
    pub(crate) fn approvals(&self) -> Result<Vec<Approval>, VaultError> {
        self.held()?;
        let mut sound = Vec::new();
        for (key, record) in self.database.records(Table::Approval)? {
            // One that somebody changed allows nothing, and keeps no other from being asked for.
            sound.extend(self.sound(self.open_approval(&key, &record))?);
        }
        Ok(sound)
    }

    /// One of them. An agent may ask for its own as often as it likes, so no other is read.
    pub(crate) fn approval(&self, id: MemoryId) -> Result<Option<Approval>, VaultError> {
        self.held()?;
        match self.database.record(Table::Approval, id.as_bytes())? {
            Some(record) => self.sound(self.open_approval(id.as_bytes(), &record)),
            None => Ok(None),
        }
    }

    fn open_approval(&self, key: &[u8], record: &[u8]) -> Result<Approval, VaultError> {
        let tampered = || VaultError::tampered("the record of an approval", "it does not open");
        let plain = self.held()?.base.rows.open(&approval_ad(key), record).map_err(|_| tampered())?;
        serde_json::from_slice(plain.expose()).map_err(|_| tampered())
    }

    /// The same as the owner sees them, with what is known of their memories.
    pub(crate) fn requests(&self) -> Result<Vec<Request>, VaultError> {
        let now = self.clock.now();
        let mut seen = Vec::new();
        for approval in self.approvals()? {
            let row = self.database.memory(&approval.memory)?;
            let waits = approval.stand == Stand::Pending;
            let outdated = outdated(&approval, (row.as_ref(), &now)).filter(|_| waits);
            let about = match &row {
                Some(row) => self.sound(self.header(row))?,
                None => None,
            };
            seen.push(Request::new(approval, about, outdated));
        }
        Ok(seen)
    }

    /// Asks the owner to approve one recall.
    pub(crate) fn request_approval(
        &mut self,
        caller: &Caller,
        id: MemoryId,
        purpose: &str,
    ) -> Result<MemoryId, VaultError> {
        let mut event = Event::new(self.clock.now(), caller.name(), Operation::RequestApproval);
        event.memory = Some(id);
        self.audited_for(caller, event, |engine, event| {
            engine.no_lockdown()?;
            engine.note(event, purpose)?;
            let (row, header) = engine.find(caller, id)?;
            event.level = Some(header.level);
            if let Some(why) = header.gone(engine.latest(&event.at)) {
                return Err(Refusal::Gone(why).into());
            }
            if purpose.trim().is_empty() || purpose.len() > limits::MAX_TEXT {
                return Err(Refusal::NoJustification { level: header.level }.into());
            }
            let digest = row.digest();
            engine.drop_old_approvals((id, &digest))?;
            let known = engine.approvals()?;
            let same = |known: &&Approval| {
                known.stand == Stand::Pending
                    && (known.agent.as_str(), known.memory, known.purpose.as_str())
                        == (caller.name(), id, purpose)
            };
            if let Some(known) = known.iter().find(same) {
                return Ok(known.id);
            }
            let own = known.iter().filter(|known| known.agent == caller.name()).count();
            if own >= limits::MAX_PENDING_OF_ONE && !caller.is_owner() {
                return Err(VaultError::invalid(
                    "10 approvals of this agent are waiting or unused; the owner has to decide on them first",
                ));
            }
            if known.len() >= limits::MAX_PENDING {
                return Err(VaultError::invalid(
                    "100 approvals are waiting; the owner has to decide on them first",
                ));
            }
            let mut name = [0; 16];
            engine.rng.fill(&mut name)?;
            let approval = Approval {
                id: MemoryId::from_bytes(name),
                agent: caller.name().to_owned(),
                memory: id,
                purpose: purpose.to_owned(),
                row: digest,
                asked: event.at.clone(),
                decided: None,
                valid: 0,
                stand: Stand::Pending,
            };
            engine.put_approval(&approval)?;
            Ok(approval.id)
        })
    }

    /// Grants or denies a request. `valid` is how long a grant may be used; nothing denies. A grant takes the one-time code
    /// of the owner's app where one is enrolled.
    pub(crate) fn decide_approval(
        &mut self,
        id: MemoryId,
        (valid, code): (Option<Duration>, Option<&str>),
    ) -> Result<(), VaultError> {
        let operation = if valid.is_some() { Operation::Approve } else { Operation::Deny };
        let event = Event::new(self.clock.now(), OWNER, operation);
        // Outside of what a refusal undoes: a wrong code is counted. In a lockdown none is used up, nor for what can not be granted.
        let code = match valid {
            None => Ok(()),
            Some(_) if self.held.is_some() && self.no_lockdown().is_ok() && self.may_grant(id, &event.at) => {
                self.check_code(code)?
            }
            Some(_) => Err(Refusal::OneTimeCode("missing").into()),
        };
        self.audited(event, |engine, event| {
            match valid {
                Some(_) => engine.no_lockdown()?,
                // To say no takes nothing but sound records.
                None => engine.no_doubt()?,
            }
            let known = engine.approvals()?.into_iter().find(|approval| approval.id == id);
            let waiting = known.filter(|approval| approval.stand == Stand::Pending);
            let mut approval = waiting
                .ok_or_else(|| VaultError::unknown(format!("request {id} that waits for a decision")))?;
            event.memory = Some(approval.memory);
            engine.note(event, &approval.purpose)?;
            if valid.is_some() {
                let row = engine.database.memory(&approval.memory)?;
                if let Some(why) = outdated(&approval, (row.as_ref(), &event.at)) {
                    return Err(Refusal::RequestOutdated(why).into());
                }
            }
            code?;
            let valid = valid.map(|valid| valid.min(limits::MAX_APPROVAL));
            approval.stand = if valid.is_some() { Stand::Granted } else { Stand::Denied };
            approval.valid = u64::try_from(valid.unwrap_or_default().as_millis()).unwrap_or(0);
            approval.decided = Some(event.at.clone());
            engine.put_approval(&approval)
        })
    }

    /// Whether a request waits, and is for what there is.
    fn may_grant(&self, id: MemoryId, now: &Moment) -> bool {
        let waits = |approval: &Approval| approval.id == id && approval.stand == Stand::Pending;
        let Ok(known) = self.approvals() else { return false };
        known.iter().find(|approval| waits(approval)).is_some_and(|approval| {
            let row = self.database.memory(&approval.memory);
            row.is_ok_and(|row| outdated(approval, (row.as_ref(), now)).is_none())
        })
    }

    /// The approval that allows exactly this recall now.
    pub(super) fn approval_for(
        &self,
        recall: &Recall<'_>,
        row: &MemoryRow,
        event: &Event,
    ) -> Result<Option<Approval>, VaultError> {
        if recall.caller.is_owner() {
            return Ok(None);
        }
        let digest = row.digest();
        let wanted = Wanted {
            agent: recall.caller.name(),
            memory: recall.id,
            purpose: recall.justification,
            row: &digest,
        };
        Ok(self.approvals()?.into_iter().find(|approval| approval.allows(&wanted, &event.at)))
    }

    /// An approval is used once.
    pub(super) fn use_approval(&mut self, approval: Approval) -> Result<(), VaultError> {
        self.put_approval(&Approval { stand: Stand::Used, ..approval })
    }

    /// Ends every grant that was not used, and returns how many there were. Requests that wait stay.
    pub(super) fn end_grants(&self) -> Result<u64, VaultError> {
        let mut ended = 0;
        for approval in self.approvals()? {
            if approval.stand == Stand::Granted {
                self.database.remove_record(Table::Approval, approval.id.as_bytes())?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// Removes what was used or denied, requests and grants of another day, and those for a row of a memory that is another one
    /// now.
    fn drop_old_approvals(&self, (memory, row): (MemoryId, &str)) -> Result<(), VaultError> {
        let now = self.clock.now();
        for approval in self.approvals()? {
            let old = approval.is_old(&now) || (approval.memory == memory && approval.row != row);
            if old || matches!(approval.stand, Stand::Used | Stand::Denied) {
                self.database.remove_record(Table::Approval, approval.id.as_bytes())?;
            }
        }
        Ok(())
    }
}

/// Why a request can not be granted any more: what was asked for is not what would be given.
fn outdated(approval: &Approval, (row, now): (Option<&MemoryRow>, &Moment)) -> Option<&'static str> {
    if approval.is_old(now) {
        return Some("it is more than a day old");
    }
    let same = row.is_some_and(|row| row.digest() == approval.row);
    (!same).then_some("the memory was changed since")
}

pub(super) fn approval_ad(key: &[u8]) -> Vec<u8> {
    [b"approval ", key].concat()
}
