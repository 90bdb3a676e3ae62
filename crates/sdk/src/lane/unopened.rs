//! How much a conversation acknowledges of what nothing authenticated, where the relay answers for nothing.
//!
//! Anybody can send copies, groups' mail and later versions in a peer's name, and each acknowledgement takes a key of our sending
//! chain, of which the peer may miss some only. Still none of it may go without an answer for ever: it may be the peer, whose window
//! is full of what we have, and who can say nothing new before they hear so.

use tokio::time::Instant;

use crate::limits;

/// Acknowledgements of that since something of the peer was opened that is none itself.
#[derive(Default)]
pub(super) struct Unopened {
    count: u32,
    /// No further one before this.
    after: Option<Instant>,
}

impl Unopened {
    /// Whether there may be one more, which then counts.
    pub(super) fn may(&mut self, now: Instant) -> bool {
        if self.after.is_some_and(|after| now < after) {
            return false;
        }
        self.count = self.count.saturating_add(1);
        if let Some(past) = self.count.checked_sub(limits::MAX_UNOPENED_CONFIRMED) {
            let pause = limits::UNOPENED_AGAIN.saturating_mul(2_u32.saturating_pow(past));
            self.after = Some(now + pause.min(limits::UNOPENED_LONGEST));
        }
        true
    }

    /// Something was opened.
    pub(super) fn opened(&mut self) {
        *self = Self::default();
    }

    /// Whether it counts nothing: a lane that sleeps forgets what it counted.
    pub(super) fn is_none(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    #[test]
    fn past_a_number_there_is_one_more_after_pauses_that_grow_to_an_hour_and_a_day_costs_few() {
        let mut unopened = Unopened::default();
        let begin = Instant::now();
        for _ in 0..limits::MAX_UNOPENED_CONFIRMED {
            assert!(unopened.may(begin));
        }
        assert!(!unopened.is_none() && !unopened.may(begin));
        let mut now = begin;
        for minutes in [1, 2, 4, 8, 16, 32, 60, 60] {
            let pause = Duration::from_secs(60 * minutes);
            assert!(!unopened.may(now + pause - Duration::from_millis(1)));
            now += pause;
            assert!(unopened.may(now), "somebody whose window is full hears of something");
        }
        let minutes = (0..24 * 60).map(|minute| now + Duration::from_secs(60 * minute));
        assert!(minutes.filter(|minute| unopened.may(*minute)).count() <= 24);
        unopened.opened();
        assert!(unopened.is_none() && unopened.may(now));
    }
}
