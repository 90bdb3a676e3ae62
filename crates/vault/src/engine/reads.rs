//! How much the requests of each agent may have the vault read beside what they show: searches that bring a namespace into the index,
//! memories that a list or a search passes over or that are closed, and the versions that a memory corrects. The vault has one thread, and what it reads for one nobody else gets.

use core::time::Duration;
use std::collections::HashMap;

use super::Engine;
use super::agents::Caller;
use crate::clock::Moment;
use crate::error::Refusal;
use crate::limits;
use crate::memory::Header;
use crate::storage::MemoryRow;
use crate::storage::index::Bounds;

/// What a row takes beside its bytes: its header is opened and understood.
const ROW: u64 = 256;
/// Bytes that an agent may have read in an hour.
#[cfg(not(test))]
const MOST: u64 = limits::AGENT_READS;
#[cfg(test)]
const MOST: u64 = limits::AGENT_READS >> 7;
/// What one request passes over is counted in whole ones of these.
const PART: u64 = 1 << 20;
/// Bytes that one request passes over.
#[cfg(not(test))]
const AT_ONCE: u64 = limits::MAX_PASSED;
#[cfg(test)]
const AT_ONCE: u64 = limits::MAX_PASSED >> 3;
/// Steps in the index that count as one such part.
const STEPS: u64 = 1 << 10;
/// Steps that words with a star may take in one search.
#[cfg(not(test))]
const PREFIX: u64 = limits::MAX_PREFIX_STEPS;
#[cfg(test)]
const PREFIX: u64 = limits::MAX_PREFIX_STEPS >> 5;
/// Steps that each part of one may take else.
#[cfg(not(test))]
const SEARCH: u64 = limits::MAX_SEARCH_STEPS;
#[cfg(test)]
const SEARCH: u64 = limits::MAX_SEARCH_STEPS >> 5;
/// That hour, in milliseconds.
const HOUR: u64 = 60 * 60 * 1_000;

/// What it takes to read a row.
pub(super) fn passed(row: &MemoryRow) -> u64 {
    row.size().saturating_add(ROW)
}

/// Bytes that one request read beside what it shows. What the caller stored itself is apart: who knows that part could fill up a
/// whole mebibyte with it, and see how much of others is in the same.
#[derive(Debug, Default)]
pub(super) struct Passed {
    own: u64,
    others: u64,
}

impl Passed {
    pub(super) fn take(&mut self, caller: &Caller, header: &Header, bytes: u64) {
        let sum = if header.creator == caller.name() { &mut self.own } else { &mut self.others };
        *sum = sum.saturating_add(bytes);
    }

    /// Whether it is as much as one request may pass over: the vault has others to answer.
    pub(super) fn is_much(&self) -> bool {
        self.own.max(self.others) >= AT_ONCE
    }

    /// Whether one request may pass over no more: that, or for a caller who had as much read as it may any that counts. To end there
    /// tells no more of others' than the quota does.
    pub(super) fn ends(&self, spent: bool) -> bool {
        self.is_much() || (spent && self.own.max(self.others) >= PART)
    }
}

/// What a search may take: of a caller who had as much read as it may, so little that it does not count.
pub(super) fn bounds(caller: &Caller, spent: bool) -> Bounds {
    let count = limits::MAX_PAGE + 1;
    let most = match caller {
        Caller::Owner => return Bounds { count, beginnings: u64::MAX, steps: u64::MAX },
        Caller::Agent(_) if spent => STEPS / 2,
        Caller::Agent(_) => u64::MAX,
    };
    Bounds { count, beginnings: PREFIX.min(most), steps: SEARCH.min(most) }
}

/// What each agent had read, less what the time since then gave back, and when that was.
#[derive(Debug, Default)]
pub(super) struct Reads(HashMap<String, (u64, Moment)>);

impl Engine {
    /// Refuses an agent that had as much read as it may.
    pub(super) fn may_read(&mut self, caller: &Caller) -> Result<(), Refusal> {
        let now = self.clock.now();
        let Some((debt, at)) = self.reads.0.get_mut(caller.name()) else { return Ok(()) };
        let (rate, back) = (u128::from(MOST), now.certainly_since(at).as_millis());
        *debt = debt.saturating_sub(u64::try_from(rate * back / u128::from(HOUR)).unwrap_or(u64::MAX));
        *at = now;
        if *debt < MOST {
            return Ok(());
        }
        let over = u128::from(*debt - MOST) + 1;
        // To the millisecond it would tell how much others store where it searched.
        let minutes = u64::try_from((over * u128::from(HOUR)).div_ceil(rate * 60_000)).unwrap_or(u64::MAX);
        Err(Refusal::ReadQuota { left: Duration::from_secs(minutes.saturating_mul(60)) })
    }

    /// Counts what one request read beside what it shows, in whole mebibytes: counted row by row it would tell an agent how much others
    /// store. The owner may have everything read.
    pub(super) fn count_passed(&mut self, caller: &Caller, read: &Passed) {
        self.count_parts(caller, read.own / PART + read.others / PART);
    }

    /// Counts the reading of a namespace into the index, which takes something also where there is little in it.
    pub(super) fn count_indexed(&mut self, caller: &Caller, read: &Passed) {
        self.count_parts(caller, 1 + read.own / PART + read.others / PART);
    }

    /// Counts the steps that each part of a search took, and a search that was `ended` because they were too many.
    pub(super) fn count_steps(&mut self, caller: &Caller, taken: &[u64], ended: bool) {
        let parts: u64 = taken.iter().map(|steps| steps / STEPS).sum();
        self.count_parts(caller, parts + u64::from(ended));
    }

    fn count_parts(&mut self, caller: &Caller, parts: u64) {
        let Caller::Agent(agent) = caller else { return };
        if parts > 0 {
            let now = self.clock.now();
            let (debt, _) = self.reads.0.entry(agent.name.clone()).or_insert((0, now));
            *debt = debt.saturating_add(parts.saturating_mul(PART));
        }
    }

    /// An agent is gone, and what it had read with it.
    pub(super) fn drop_reads(&mut self, name: &str) {
        self.reads.0.remove(name);
    }
}
