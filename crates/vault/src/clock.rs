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
    /// How much time has certainly passed since `earlier`: what the clock on the wall says, and never more than the one that
    /// nobody can set says, where both moments are of one start of the machine.
    #[must_use]
    pub fn certainly_since(&self, earlier: &Self) -> Duration {
        let wall = self.wall.saturating_sub(earlier.wall);
        let same_boot = !self.boot.is_empty() && self.boot == earlier.boot;
        let millis = if same_boot { wall.min(self.uptime.saturating_sub(earlier.uptime)) } else { wall };
        Duration::from_millis(millis)
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
    fn a_clock_that_is_set_ends_no_pause_sooner() {
        let start = at(1_000_000, 5_000, "a");
        let minute = Duration::from_secs(60);
        assert_eq!(at(1_060_000, 65_000, "a").certainly_since(&start), minute);
        assert_eq!(at(9_999_999, 6_000, "a").certainly_since(&start), Duration::from_secs(1), "set forward");
        assert_eq!(at(1, 65_000, "a").certainly_since(&start), Duration::ZERO, "set back");
        assert_eq!(at(1, 65_000, "b").certainly_since(&start), Duration::ZERO, "set back, after a restart");
        assert_eq!(at(1_060_000, 10, "b").certainly_since(&start), minute, "after a restart");
    }
}
