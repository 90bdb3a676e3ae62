//! How much log the requests of each agent may write. Who is allowed everything could fill the log's disk as well as who is
//! refused, and a full disk means no for everybody.

use core::time::Duration;

use super::agents::Caller;
use super::{Engine, budget};
use crate::VaultError;
use crate::audit::Event;
use crate::clock::Moment;
use crate::error::Refusal;
use crate::metrics::Alert;

/// A day in milliseconds.
const DAY: u128 = 24 * 60 * 60 * 1_000;
/// What an event takes beside its own bytes: its hashes in the tree, and its rows.
const BESIDE: u64 = 100;

/// What an agent wrote, less what the time since then gave back.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Bytes, times the milliseconds of a day: so what each millisecond gives back is a whole number.
    debt: u128,
    at: Option<Moment>,
}

impl Written {
    /// Takes what an agent that may write `most` bytes a day got back until `now`. Returns how long it has to wait until it may write again.
    fn settle(&mut self, now: &Moment, most: u64) -> Duration {
        let passed = self.at.as_ref().map_or(Duration::ZERO, |at| now.certainly_since(at));
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
        self.debt = self.debt.saturating_add(bytes.saturating_mul(DAY));
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

    /// Refuses an agent that wrote as much as it may, without a log entry for each: they are counted, and logged as a number.
    fn may_log(&mut self, caller: &Caller, event: &Event) -> Result<(), VaultError> {
        let Caller::Agent(agent) = caller else { return Ok(()) };
        let most = agent.log_quota();
        let left = self.written.entry(agent.name.clone()).or_default().settle(&event.at, most);
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
}
