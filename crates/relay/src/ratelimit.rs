//! Token buckets (GCRA) per address, app and device, with bounded memory.

use core::hash::Hash;
use core::num::NonZeroU32;
use core::time::Duration;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock as _, DefaultClock};
use governor::nanos::Nanos;
use governor::state::keyed::{DefaultKeyedStateStore, ShrinkableKeyedStateStore};
use governor::state::{InMemoryState, NotKeyed, StateStore};
use governor::{Quota, RateLimiter};
use stvor_base::AppId;

use crate::config::LimitsConfig;
use crate::limits::{LIMITER_KEYS, ONE_TIME_PER_PAIR, STRAY_ACKS_PER_SECOND, UPLOADS_PER_MINUTE};
use crate::storage::{MailboxId, UserKey};

/// The buckets of at most [`LIMITER_KEYS`] keys.
struct Bounded<K: Hash + Eq + Clone> {
    own: DefaultKeyedStateStore<K>,
    /// What keys share that find the map full: an attacker with many names gets one bucket for all of them, and who has
    /// a bucket keeps it.
    shared: InMemoryState,
}

impl<K: Hash + Eq + Clone> StateStore for Bounded<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        if self.own.contains_key(key) || self.own.len() < LIMITER_KEYS {
            self.own.measure_and_replace(key, measure)
        } else {
            self.shared.measure_and_replace(&NotKeyed::NonKey, measure)
        }
    }
}

impl<K: Hash + Eq + Clone> ShrinkableKeyedStateStore<K> for Bounded<K> {
    fn retain_recent(&self, drop_below: Nanos) {
        ShrinkableKeyedStateStore::retain_recent(&self.own, drop_below);
    }

    fn len(&self) -> usize {
        self.own.len()
    }

    fn is_empty(&self) -> bool {
        self.own.is_empty()
    }
}

/// One kind of bucket, one bucket a key.
pub(crate) struct Buckets<K: Hash + Eq + Clone> {
    quota: Quota,
    keyed: RateLimiter<K, Bounded<K>, DefaultClock>,
    clock: DefaultClock,
    checks: AtomicU32,
}

/// How often a bucket map is looked at for idle keys.
const TRIM_EVERY: u32 = 1024;

impl<K: Hash + Eq + Clone> Buckets<K> {
    fn new(quota: Quota) -> Self {
        let clock = DefaultClock::default();
        let buckets = Bounded { own: DefaultKeyedStateStore::default(), shared: InMemoryState::default() };
        let keyed = RateLimiter::new(quota, buckets, clock.clone());
        Self { quota, keyed, clock, checks: AtomicU32::new(0) }
    }

    /// `amount` a second, `burst` at once.
    fn per_second(amount: u32, burst: u32) -> Self {
        Self::new(Quota::per_second(positive(amount)).allow_burst(positive(burst)))
    }

    fn per_minute(amount: u32) -> Self {
        Self::new(Quota::per_minute(positive(amount)))
    }

    /// Takes `amount` from the key's bucket, or says how long to wait.
    pub(crate) fn take(&self, key: &K, amount: u32) -> Result<(), Duration> {
        let trim = self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIM_EVERY);
        if trim && self.keyed.len() > LIMITER_KEYS / 2 {
            self.keyed.retain_recent();
        }
        let amount = positive(amount.min(self.quota.burst_size().get()));
        let now = self.clock.now();
        match self.keyed.check_key_n(key, amount) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(wait)) => Err(whole_millis(wait.wait_time_from(now))),
            // Not reached: the amount was cut to the burst.
            Err(_) => Err(Duration::from_secs(1)),
        }
    }

    /// What the bucket holds when it is full.
    pub(crate) fn burst(&self) -> u32 {
        self.quota.burst_size().get()
    }
}

/// Rounded up to what the wire can say, so that a client that waits as told is not refused again; 0 would mean unknown.
fn whole_millis(wait: Duration) -> Duration {
    let millis = wait.as_nanos().div_ceil(1_000_000).max(1);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

fn positive(amount: u32) -> NonZeroU32 {
    NonZeroU32::new(amount).unwrap_or(NonZeroU32::MIN)
}

/// All buckets of a relay.
pub(crate) struct Limiter {
    pub(crate) connects: Buckets<IpAddr>,
    pub(crate) requests_http: Buckets<IpAddr>,
    pub(crate) logins: Buckets<AppId>,
    pub(crate) registrations: Buckets<AppId>,
    pub(crate) address_registrations: Buckets<IpAddr>,
    pub(crate) sends: Buckets<MailboxId>,
    pub(crate) bytes: Buckets<MailboxId>,
    pub(crate) app_sends: Buckets<AppId>,
    pub(crate) requests: Buckets<MailboxId>,
    pub(crate) uploads: Buckets<MailboxId>,
    pub(crate) stray_acks: Buckets<MailboxId>,
    pub(crate) fetcher: Buckets<MailboxId>,
    pub(crate) target: Buckets<UserKey>,
    pub(crate) pair: Buckets<(MailboxId, UserKey)>,
}

impl Limiter {
    pub(crate) fn new(limits: &LimitsConfig) -> Self {
        let twice = |amount: u32| amount.saturating_mul(2);
        Self {
            connects: Buckets::per_second(
                limits.connects_per_address,
                limits.connects_per_address.saturating_mul(10),
            ),
            requests_http: Buckets::per_second(
                limits.connects_per_address,
                limits.connects_per_address.saturating_mul(10),
            ),
            logins: Buckets::per_second(limits.logins_per_app, twice(limits.logins_per_app)),
            registrations: Buckets::per_minute(limits.registrations_per_app),
            address_registrations: Buckets::per_minute(limits.registrations_per_address),
            sends: Buckets::per_second(limits.sends_per_device, twice(limits.sends_per_device)),
            bytes: Buckets::per_second(limits.bytes_per_device, limits.bytes_per_device.saturating_mul(16)),
            app_sends: Buckets::per_second(limits.sends_per_app, twice(limits.sends_per_app)),
            requests: Buckets::per_second(
                limits.requests_per_device,
                limits.requests_per_device.saturating_mul(5),
            ),
            uploads: Buckets::per_minute(UPLOADS_PER_MINUTE),
            stray_acks: Buckets::per_second(STRAY_ACKS_PER_SECOND, STRAY_ACKS_PER_SECOND * 10),
            fetcher: Buckets::per_minute(limits.one_time_per_fetcher),
            target: Buckets::per_minute(limits.one_time_per_target),
            pair: Buckets::per_minute(ONE_TIME_PER_PAIR),
        }
    }
}

/// What an address counts as: itself, or its /64 when it is IPv6, since a host has all of one.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_and_then_says_how_long_to_wait() {
        let buckets = Buckets::<u8>::per_minute(5);
        assert!((0..5).all(|_| buckets.take(&1, 1).is_ok()));
        let wait = buckets.take(&1, 1).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_secs(12));
        assert!(buckets.take(&2, 1).is_ok(), "another key has a bucket of its own");
    }

    #[test]
    fn a_wait_is_rounded_up_to_a_millisecond() {
        for (nanos, millis) in [(0, 1), (1, 1), (1_000_000, 1), (1_000_001, 2), (2_500_000, 3)] {
            assert_eq!(whole_millis(Duration::from_nanos(nanos)), Duration::from_millis(millis), "{nanos}");
        }
    }

    #[test]
    fn an_amount_past_the_burst_takes_the_whole_bucket() {
        let buckets = Buckets::<u8>::per_minute(5);
        assert!(buckets.take(&1, 100).is_ok());
        assert!(buckets.take(&1, 1).is_err());
    }

    #[test]
    fn the_key_map_is_bounded_and_strangers_share_a_bucket() {
        let buckets = Buckets::<u32>::per_minute(1);
        for key in 0..u32::try_from(LIMITER_KEYS).unwrap() {
            assert!(buckets.take(&key, 1).is_ok());
        }
        assert!(buckets.take(&u32::MAX, 1).is_ok());
        assert!(buckets.take(&(u32::MAX - 1), 1).is_err(), "the shared bucket is empty");
        assert!(buckets.keyed.len() <= LIMITER_KEYS);
    }

    #[test]
    fn who_has_a_bucket_keeps_it_when_strangers_fill_the_map() {
        let buckets = Buckets::<u32>::per_minute(2);
        for key in 0..u32::try_from(LIMITER_KEYS).unwrap() {
            assert!(buckets.take(&key, 1).is_ok());
        }
        while buckets.take(&u32::MAX, 1).is_ok() {}
        assert!(buckets.take(&7, 1).is_ok(), "its second, though the shared bucket is empty");
        assert!(buckets.take(&7, 1).is_err(), "and no third");
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
