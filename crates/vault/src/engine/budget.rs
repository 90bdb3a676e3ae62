//! How much log the requests of each agent may write. Who is allowed everything could fill the log's disk as well as who is
//! refused, and a full disk means no for everybody. What was written is kept in a record of the database, so a daemon that starts
//! anew gives nobody anything back.

use core::time::Duration;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::agents::Caller;
use super::{Engine, budget};
use crate::VaultError;
use crate::audit::{Event, Operation};
use crate::clock::Moment;
use crate::error::Refusal;
use crate::metrics::Alert;

/// A day in milliseconds.
const DAY: u128 = 24 * 60 * 60 * 1_000;
/// What an event takes beside its own bytes: its hashes in the tree, and its rows.
const BESIDE: u64 = 100;
/// The record of it.
const SLOT: &str = "log budgets";
/// It is written anew when an agent added this part of what it may in a day, and when the vault is closed: a kill forgets less.
const PART: u128 = 64;

/// What an agent wrote, less what the time since then gave back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// Bytes, times the milliseconds of a day: so what each millisecond gives back is a whole number.
    debt: u128,
    at: Option<Moment>,
    /// What of it is in no record yet.
    #[serde(skip)]
    unsaved: u128,
    /// Bytes a day that it may write.
    #[serde(skip)]
    most: u64,
}

/// What each agent wrote.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    /// Nothing before the record was read.
    agents: Option<BTreeMap<String, Written>>,
    /// With the next commit the record is written, however little there is to write.
    save: bool,
}

impl Budgets {
    /// Counts an event of so many bytes, if it is one of an agent that has a budget.
    pub(super) fn count(&mut self, actor: &str, bytes: usize) {
        if let Some(written) = self.agents.as_mut().and_then(|agents| agents.get_mut(actor)) {
            written.count(bytes);
        }
    }

    pub(super) fn save_next(&mut self) {
        self.save = true;
    }

    /// What is to be written now, if anything is: who wrote nothing for a day owes nothing.
    fn take_unsaved(&mut self, now: &Moment) -> Option<&BTreeMap<String, Written>> {
        let agents = self.agents.as_mut()?;
        let due = |written: &Written| written.unsaved > u128::from(written.most).saturating_mul(DAY) / PART;
        let asked = core::mem::take(&mut self.save) && agents.values().any(|written| written.unsaved > 0);
        if !asked && !agents.values().any(due) {
            return None;
        }
        let owes = |written: &Written| {
            let at = written.at.as_ref();
            written.debt > 0 && at.is_some_and(|at| now.certainly_since(at).as_millis() <= DAY)
        };
        agents.retain(|_, written| owes(written));
        agents.values_mut().for_each(|written| written.unsaved = 0);
        Some(agents)
    }
}

impl Written {
    /// Takes what an agent that may write `most` bytes a day got back until `now`. Returns how long it has to wait until it may write again.
    fn settle(&mut self, now: &Moment, most: u64) -> Duration {
        let passed = self.at.as_ref().map_or(Duration::ZERO, |at| now.certainly_since(at));
        self.most = most;
        let most = u128::from(most);
        self.debt = self.debt.saturating_sub(most.saturating_mul(passed.as_millis()));
        self.at = Some(now.clone());
        let full = most.saturating_mul(DAY);
        if self.debt < full {
            return Duration::ZERO;
        }
        // Who may write nothing waits for ever, a day at a time.
        let millis = (self.debt - full).checked_div(most).unwrap_or(DAY).saturating_add(1);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
    }

    /// Counts an event of so many bytes.
    pub(super) fn count(&mut self, bytes: usize) {
        let bytes = u128::from(BESIDE).saturating_add(bytes as u128);
        let bytes = bytes.saturating_mul(DAY);
        self.debt = self.debt.saturating_add(bytes);
        self.unsaved = self.unsaved.saturating_add(bytes);
    }
}

impl Engine {
    /// As [`Engine::audited`], for a caller whose requests may write so much of the log and no more.
    pub(crate) fn audited_for<T>(
        &mut self,
        caller: &Caller,
        event: Event,
        work: impl FnOnce(&mut Self, &mut Event) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        if self.held.is_some() && self.stands() {
            self.may_log(caller, &event)?;
        }
        self.audited(event, work)
    }

    /// Refuses what an agent sent for what it is itself, and logs that. `verb` is the one of the owner that it asked for.
    pub(crate) fn refuse_request<T>(
        &mut self,
        caller: &Caller,
        (operation, verb): (Operation, Option<&'static str>),
        error: VaultError,
    ) -> Result<T, VaultError> {
        let event = Event::new(self.clock.now(), caller.name(), operation);
        self.audited_for(caller, event, |engine, event| {
            if let Some(verb) = verb {
                engine.note(event, verb)?;
            }
            Err(error)
        })
    }

    /// What each agent wrote. Of a record that somebody changed nothing is known.
    fn written(&mut self) -> Result<&mut BTreeMap<String, Written>, VaultError> {
        if self.budgets.agents.is_none() {
            let stored = self.sound(self.sealed_slot(SLOT))?.flatten();
            self.budgets.agents = Some(stored.unwrap_or_default());
        }
        Ok(self.budgets.agents.get_or_insert_default())
    }

    /// Writes what each agent wrote, when there is enough of it or the vault is closed.
    pub(super) fn save_budgets(&mut self) -> Result<(), VaultError> {
        let now = self.clock.now();
        match self.held.is_some().then(|| self.budgets.take_unsaved(&now).cloned()).flatten() {
            Some(agents) => self.put_sealed_slot(SLOT, &agents),
            None => Ok(()),
        }
    }

    /// An agent is gone, and what it wrote with it.
    pub(super) fn drop_budget(&mut self, name: &str) -> Result<(), VaultError> {
        self.written()?.remove(name);
        self.budgets.save_next();
        Ok(())
    }

    /// Refuses an agent that wrote as much as it may, without a log entry for each: they are counted, and logged as a number.
    fn may_log(&mut self, caller: &Caller, event: &Event) -> Result<(), VaultError> {
        let Caller::Agent(agent) = caller else { return Ok(()) };
        let most = agent.log_quota();
        let written = self.written()?.entry(agent.name.clone()).or_default();
        let left = written.settle(&event.at, most);
        if left.is_zero() {
            return Ok(());
        }
        let refused = Refusal::LogQuota { most, left };
        let who = budget(event);
        self.log_suppressed(&event.at, |other, over| over && *other == who)?;
        let refusals = self.refusals.entry(who).or_default();
        if refusals.logged == 0 && refusals.suppressed == 0 {
            refusals.since = event.at.wall;
            self.alerts.push(Alert::Denied {
                at: event.at.clone(),
                actor: event.actor.clone(),
                operation: event.operation,
                memory: event.memory,
                code: stvor_base::ErrorCode::code(&refused).to_owned(),
            });
        }
        refusals.suppressed = refusals.suppressed.saturating_add(1);
        self.metrics.suppressed.increment(1);
        Err(refused.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(uptime: u64) -> Moment {
        Moment { wall: 1_000 + uptime, uptime, boot: "b".into() }
    }

    #[test]
    fn what_was_written_comes_back_over_a_day_to_the_last_byte() {
        const MOST: u64 = 1_000;
        let day = u64::try_from(DAY).unwrap();
        let mut written = Written::default();
        assert_eq!(written.settle(&at(0), MOST), Duration::ZERO);
        written.count(usize::try_from(MOST - BESIDE).unwrap() - 1);
        assert_eq!(written.settle(&at(0), MOST), Duration::ZERO, "one byte is left");
        written.count(1);
        // 101 bytes later it is 100 over.
        let last = 100 * day / MOST + 1;
        assert_eq!(written.settle(&at(0), MOST), Duration::from_millis(last));
        // However often it asks.
        for millis in 1..=1_000 {
            written.settle(&at(millis), MOST);
        }
        assert_eq!(written.settle(&at(last - 1), MOST), Duration::from_millis(1));
        assert_eq!(written.settle(&at(last), MOST), Duration::ZERO);
        assert_eq!(
            Written::default().settle(&at(0), 0),
            Duration::from_millis(day + 1),
            "nothing is nothing"
        );
    }

    #[test]
    fn what_was_written_is_kept_part_by_part_and_read_back_as_it_was() {
        const MOST: u64 = 64_000;
        let mut budgets = Budgets { agents: Some(BTreeMap::new()), save: false };
        budgets.count("stranger", 1_000);
        assert_eq!(budgets.take_unsaved(&at(0)), None, "who has no budget is not counted");
        let agents = budgets.agents.as_mut().unwrap();
        agents.entry("one".into()).or_default().settle(&at(0), MOST);
        budgets.count("one", 1_000 - usize::try_from(BESIDE).unwrap());
        assert_eq!(budgets.take_unsaved(&at(0)), None, "a 64th");
        budgets.count("one", 0);
        let saved = serde_json::to_vec(budgets.take_unsaved(&at(0)).unwrap()).unwrap();
        assert_eq!(budgets.take_unsaved(&at(0)), None, "it is in the record");
        let read: BTreeMap<String, Written> = serde_json::from_slice(&saved).unwrap();
        assert_eq!(read["one"].debt, budgets.agents.as_ref().unwrap()["one"].debt);
        assert_eq!(read["one"].debt, 1_100 * DAY);
        // When the vault is closed all of it is; a day later nobody owes anything.
        budgets.count("one", 1);
        budgets.save_next();
        assert_eq!(budgets.take_unsaved(&at(1)).unwrap().len(), 1);
        budgets.count("one", 1);
        budgets.save_next();
        assert!(budgets.take_unsaved(&at(u64::try_from(DAY).unwrap() + 1)).unwrap().is_empty());
    }
}
