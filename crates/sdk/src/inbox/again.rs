//! What could not be removed, and nobody waits for: it is tried again until it can be.

use core::ops::Bound;
use std::collections::BTreeMap;
use std::time::Duration;

use stvor_store::RowVersion;
use tokio::time::Instant;

use super::Consumed;
use crate::limits;

type Which = (u64, Option<RowVersion>);

/// Messages that are consumed and whose rows are there: each once, so there are never more of them than were handed out.
pub(super) struct Again {
    left: BTreeMap<Which, Consumed>,
    /// The last one that was tried: the others come first.
    tried: Option<Which>,
    /// How many are tried together: fewer after a failure, so that one that can not be removed keeps no others from it.
    together: usize,
    wait: Duration,
    at: Instant,
}

impl Again {
    pub(super) fn new() -> Self {
        Self {
            left: BTreeMap::new(),
            tried: None,
            together: limits::INBOX_PAGE,
            wait: Duration::ZERO,
            at: Instant::now(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// When to try some.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// Those to try now; [`tried`](Self::tried) is told what became of them.
    pub(super) fn some(&mut self) -> Vec<Consumed> {
        let after = self.tried.map_or(Bound::Unbounded, Bound::Excluded);
        let beyond = self.left.range((after, Bound::Unbounded)).map(|(which, _)| *which);
        let mut some: Vec<Which> = beyond.take(self.together).collect();
        if some.is_empty() {
            some = self.left.keys().copied().take(self.together).collect();
        }
        self.tried = some.last().copied();
        some.iter().filter_map(|which| self.left.remove(which)).collect()
    }

    /// Of `count` that were tried again these could not be removed.
    pub(super) fn tried(&mut self, count: usize, failed: Vec<Consumed>) {
        if failed.is_empty() {
            self.together = (2 * self.together).min(limits::INBOX_PAGE);
            (self.wait, self.at) = (Duration::ZERO, Instant::now());
        } else {
            self.together = (count / 2).max(1);
            self.rest();
        }
        self.put(failed);
    }

    /// These could not be removed when they were consumed.
    pub(super) fn add(&mut self, failed: Vec<Consumed>) {
        if self.is_empty() {
            *self = Self::new();
            self.rest();
        }
        self.put(failed);
    }

    fn rest(&mut self) {
        self.wait = (2 * self.wait).clamp(limits::BACKOFF_FIRST, limits::BACKOFF_LONGEST);
        self.at = Instant::now() + self.wait;
    }

    fn put(&mut self, failed: Vec<Consumed>) {
        self.left.extend(failed.into_iter().map(|one| ((one.seq, one.claim), one)));
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{Address, ContentId, DeviceId, Timestamp, UserId};

    use super::*;
    use crate::rows::{FOREVER, Place, PointerRow};

    fn consumed(seq: u64) -> Consumed {
        let place = Place { order: seq, id: ContentId::from_bytes([0; 16]) };
        let peer = Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST);
        Consumed {
            seq,
            claim: None,
            pointer: PointerRow { peer, place, group: None },
            keep: FOREVER,
            received_at: Timestamp::default(),
            done: None,
        }
    }

    #[test]
    fn one_that_can_not_be_removed_keeps_no_others() {
        const COUNT: u64 = 1_000;
        const BAD: u64 = 333;
        let mut again = Again::new();
        again.add((0..COUNT).map(consumed).collect());
        // Said again of the same ones they are not more.
        again.add((0..COUNT).map(consumed).collect());
        let mut rounds = 0;
        while again.left.len() > 1 {
            let some = again.some();
            assert!((1..=limits::INBOX_PAGE).contains(&some.len()));
            let count = some.len();
            let failed = if some.iter().any(|one| one.seq == BAD) { some } else { Vec::new() };
            again.tried(count, failed);
            rounds += 1;
            assert!(rounds < 100, "{} are left", again.left.len());
        }
        assert_eq!(again.some()[0].seq, BAD);
    }

    #[test]
    fn after_each_failure_it_waits_longer_up_to_a_bound_and_then_as_at_first() {
        let mut again = Again::new();
        again.add(vec![consumed(1), consumed(2)]);
        assert_eq!(again.wait, limits::BACKOFF_FIRST);
        for _ in 0..20 {
            let before = again.wait;
            let some = again.some();
            again.tried(some.len(), some);
            assert_eq!(again.wait, (2 * before).min(limits::BACKOFF_LONGEST));
        }
        let count = again.some().len();
        again.tried(count, Vec::new());
        assert_eq!(again.wait, Duration::ZERO, "the store is there again: the rest of it at once");
        let some = again.some();
        again.tried(some.len(), some);
        assert_eq!(again.wait, limits::BACKOFF_FIRST);
    }
}
