//! Time, as the gates need it: a clock on the wall that somebody may set, and one that only runs.

use core::time::Duration;

use serde::{Deserialize, Serialize};
use stvor_base::Timestamp;

/// One moment on both clocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Milliseconds since the Unix epoch.
    pub wall: u64,
    /// Milliseconds since the machine started, time asleep included.
    pub uptime: u64,
    /// Which start of the machine that was. Empty when the system does not say.
    pub boot: String,
}

impl Moment {
    /// Whether both moments are of one start of the machine, as far as the system says.
    pub(crate) fn same_boot(&self, other: &Self) -> bool {
        self.names_its_boot() && self.boot == other.boot
    }

    /// Whether the system says which start of the machine this is.
    pub(crate) fn names_its_boot(&self) -> bool {
        !self.boot.is_empty()
    }

    /// How long the machine has been up for sure since `earlier`, whatever the clock on the wall says.
    pub(crate) fn surely_up_since(&self, earlier: &Self) -> Duration {
        let before = if self.same_boot(earlier) { earlier.uptime } else { 0 };
        Duration::from_millis(self.uptime.saturating_sub(before))
    }

    /// How much time has certainly passed since `earlier`. In one start of the machine that is what the clock says that nobody
    /// can set. Otherwise it is what the clock on the wall says, and no less than the machine has been up since.
    #[must_use]
    pub fn certainly_since(&self, earlier: &Self) -> Duration {
        let wall = self.wall.saturating_sub(earlier.wall);
        let millis = if self.same_boot(earlier) {
            self.uptime.saturating_sub(earlier.uptime)
        } else if self.boot.is_empty() || earlier.boot.is_empty() {
            wall
        } else {
            wall.max(self.uptime)
        };
        Duration::from_millis(millis)
    }
}

/// How much the clock on the wall may gain on the other one before that counts as a jump.
pub(crate) const SLACK: u64 = 5 * 60_000;
/// A jump of at least this is one that a machine that was switched off does not explain.
const LONG_JUMP: u64 = 31 * 24 * 3_600_000;
/// How long the machine has to be up with the clock that jumped until that is believed.
const SETTLES: u64 = 3_600_000;
/// How long until a long one is.
const LONG_SETTLES: u64 = 24 * 3_600_000;

/// Holds the clock on the wall against the one that only runs. A machine that starts without the right time, or is told a wrong
/// one, gets the right one within minutes as a rule; what can not be undone waits until then.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pace {
    /// The newest moment that is believed.
    steady: Option<Moment>,
    /// The first moment, in this start of the machine, after a jump that is not believed yet.
    ahead: Option<Moment>,
    /// The newest such moment.
    #[serde(default)]
    newest: Option<Moment>,
    /// How long the machine was up with that clock in earlier starts, in milliseconds.
    #[serde(default)]
    waited: u64,
}

impl From<Option<Moment>> for Pace {
    fn from(steady: Option<Moment>) -> Self {
        Self { steady, ..Self::default() }
    }
}

impl Pace {
    /// The newest moment that is believed.
    pub(crate) fn steady(&self) -> Option<&Moment> {
        self.steady.as_ref()
    }

    /// Whether the last moment that was taken is believed.
    pub(crate) fn is_settled(&self) -> bool {
        self.ahead.is_none()
    }

    /// Whether one who keeps it should write it again: something else is believed or doubted than `before`, or the believed or
    /// the doubted time is so many milliseconds on.
    pub(crate) fn differs_by(&self, millis: u64, before: &Self) -> bool {
        let on = |now: &Option<Moment>, then: &Option<Moment>| match (now, then) {
            (Some(now), Some(then)) => now.boot != then.boot || now.wall.abs_diff(then.wall) >= millis,
            (now, then) => now.is_some() != then.is_some(),
        };
        on(&self.steady, &before.steady) || on(&self.newest, &before.newest) || self.ahead != before.ahead
    }

    /// By how much the clock on the wall gained on the other one.
    fn gained(now: &Moment, earlier: &Moment) -> u64 {
        let wall = now.wall.saturating_sub(earlier.wall);
        if now.same_boot(earlier) {
            wall.saturating_sub(now.uptime.saturating_sub(earlier.uptime))
        } else {
            wall
        }
    }

    /// By how much the clock on the wall gained on what is believed, and did not only run on.
    pub(crate) fn jumped(&self, now: &Moment) -> Option<u64> {
        let jump = self.steady.as_ref().map_or(0, |steady| Self::gained(now, steady));
        Some(jump).filter(|jump| *jump > SLACK)
    }

    /// Whether the clock on the wall is behind what is believed.
    pub(crate) fn is_behind(&self, now: &Moment) -> bool {
        self.steady.as_ref().is_some_and(|steady| now.wall.saturating_add(SLACK) < steady.wall)
    }

    /// What the clock on the wall says, but no time before what is believed: what ran out stays so when it is set back.
    pub(crate) fn latest(&self, now: &Moment) -> u64 {
        self.steady.as_ref().map_or(now.wall, |steady| now.wall.max(steady.wall))
    }

    /// What the clock on the wall says, but while it is ahead of what is believed, only that: nothing is over by a date that may be
    /// wrong.
    pub(crate) fn earliest(&self, now: &Moment) -> u64 {
        let believed = self.steady.as_ref().filter(|_| self.jumped(now).is_some());
        believed.map_or(now.wall, |steady| steady.wall)
    }

    /// Takes a look at the clocks.
    pub(crate) fn take(&mut self, now: &Moment) {
        let Some(jump) = self.jumped(now) else {
            // A clock that was set back does not make the believed time go back.
            if self.steady.as_ref().is_none_or(|steady| steady.wall <= now.wall) {
                self.steady = Some(now.clone());
            }
            (self.ahead, self.newest, self.waited) = (None, None, 0);
            return;
        };
        let (first, waited) = self.doubted_since(now);
        let wait = if jump < LONG_JUMP { SETTLES } else { LONG_SETTLES };
        // The last part of it in one start: what an earlier one waited for says nothing of the first minutes of this one.
        let here = now.uptime.saturating_sub(first.uptime);
        if here >= SETTLES && here.saturating_add(waited) >= wait {
            *self = Self::from(Some(now.clone()));
        } else {
            (self.ahead, self.newest, self.waited) = (Some(first), Some(now.clone()), waited);
        }
    }

    /// Since when, in this start of the machine, the clock is what it is, and how long the machine was up with it in earlier
    /// ones. A clock that begins anew with each start, or jumps again, has to show itself anew.
    fn doubted_since(&self, now: &Moment) -> (Moment, u64) {
        let anew = (now.clone(), 0);
        let Some(first) = &self.ahead else { return anew };
        let newest = self.newest.as_ref().unwrap_or(first);
        if first.boot == now.boot {
            let goes_on = first.wall <= now.wall && Self::gained(now, first) <= SLACK;
            return if goes_on { (first.clone(), self.waited) } else { anew };
        }
        if newest.wall <= now.wall && now.wall - newest.wall < LONG_JUMP {
            return (now.clone(), self.waited.saturating_add(newest.uptime.saturating_sub(first.uptime)));
        }
        anew
    }
}

/// Where moments come from.
pub trait Clock: Send + Sync {
    /// The present.
    fn now(&self) -> Moment;
}

/// The clocks of the system.
#[derive(Debug)]
pub struct SystemClock {
    boot: String,
}

impl SystemClock {
    /// Learns which start of the machine this is.
    #[must_use]
    pub fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { boot: boot.trim().to_owned() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        #[cfg(target_os = "linux")]
        let id = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let id = rustix::time::ClockId::Monotonic;
        let since = rustix::time::clock_gettime(id);
        let millis = since.tv_sec.saturating_mul(1_000).saturating_add(since.tv_nsec / 1_000_000);
        Moment {
            wall: Timestamp::system().as_millis(),
            uptime: u64::try_from(millis).unwrap_or(0),
            boot: self.boot.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, uptime: u64, boot: &str) -> Moment {
        Moment { wall, uptime, boot: boot.into() }
    }

    #[test]
    fn a_clock_that_is_set_ends_no_pause_sooner_and_none_later() {
        let start = at(1_000_000, 5_000, "a");
        let minute = Duration::from_secs(60);
        assert_eq!(at(1_060_000, 65_000, "a").certainly_since(&start), minute);
        assert_eq!(at(9_999_999, 6_000, "a").certainly_since(&start), Duration::from_secs(1), "set forward");
        assert_eq!(at(1, 65_000, "a").certainly_since(&start), minute, "set back");
        assert_eq!(at(1, 5_000, "a").certainly_since(&start), Duration::ZERO, "set back at once");
        assert_eq!(
            at(1, 65_000, "b").certainly_since(&start),
            Duration::from_secs(65),
            "set back, and up since"
        );
        assert_eq!(at(1_060_000, 10, "b").certainly_since(&start), minute, "after a restart");
        assert_eq!(at(1, 65_000, "").certainly_since(&start), Duration::ZERO, "nobody knows");
    }

    #[test]
    fn a_jump_is_believed_when_the_machine_was_up_long_enough() {
        const DAY: u64 = 24 * 3_600_000;
        let mut pace = Pace::default();
        pace.take(&at(1_000, 0, "a"));
        pace.take(&at(1_000 + DAY, DAY, "a"));
        assert!(pace.is_settled(), "time that passed on both clocks");
        let far = 12 * 365 * DAY;
        pace.take(&at(far, DAY + 1, "a"));
        assert!(!pace.is_settled());
        pace.take(&at(far + DAY - 1_000, 2 * DAY - 999, "a"));
        assert!(!pace.is_settled());
        assert_eq!(pace.steady().map(|steady| steady.wall), Some(1_000 + DAY));
        pace.take(&at(1_000 + 2 * DAY, 2 * DAY, "a"));
        assert!(pace.is_settled(), "it was mended");
        pace.take(&at(far, 2 * DAY + 1, "a"));
        pace.take(&at(far + DAY, 3 * DAY + 1, "a"));
        assert!(pace.is_settled(), "it stayed so for a day");

        // Switched off for a week: an hour is enough.
        pace.take(&at(far + 8 * DAY, 10, "b"));
        assert!(!pace.is_settled());
        pace.take(&at(far + 8 * DAY + 3_599_000, 3_599_010, "b"));
        assert!(!pace.is_settled());
        pace.take(&at(far + 8 * DAY + 3_600_000, 3_600_010, "b"));
        assert!(pace.is_settled());
    }

    #[test]
    fn a_jump_is_waited_for_over_starts_of_the_machine_if_the_clock_goes_on() {
        const HOUR: u64 = 3_600_000;
        const DAY: u64 = 24 * HOUR;
        let days = |days: u64, goes_on: bool| {
            let mut pace = Pace::from(Some(at(1_000, 0, "a")));
            (0..days)
                .take_while(|day| {
                    let wall = 400 * DAY + if goes_on { day * DAY } else { 0 };
                    for hour in 0..=10 {
                        pace.take(&at(wall + hour * HOUR, hour * HOUR, &format!("b{day}")));
                    }
                    !pace.is_settled()
                })
                .count()
        };
        assert_eq!(days(100, true), 2, "10 hours a day: believed on the third");
        assert_eq!(days(100, false), 100, "a clock that begins at the same date each time");
    }

    #[test]
    fn what_an_earlier_start_waited_makes_the_first_minutes_of_another_clock_no_truer() {
        const HOUR: u64 = 3_600_000;
        const DAY: u64 = 24 * HOUR;
        let mut pace = Pace::from(Some(at(1_000, 0, "a")));
        // Nearly a day with a clock that gained a year.
        (0..=23).for_each(|hour| pace.take(&at(400 * DAY + hour * HOUR, hour * HOUR, "b")));
        assert!(!pace.is_settled());
        // And then one that is weeks ahead of that.
        for minute in 0..59 {
            pace.take(&at(420 * DAY + minute * 60_000, 1_000 + minute * 60_000, "c"));
            assert!(!pace.is_settled(), "after {minute} minutes");
        }
        assert_eq!(pace.steady().map(|steady| steady.wall), Some(1_000));
        pace.take(&at(420 * DAY + HOUR, 1_000 + HOUR, "c"));
        assert!(pace.is_settled());
    }
}
