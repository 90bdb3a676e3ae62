//! Challenges that were given out over HTTP, until they are answered.
//!
//! Whoever has a token of an app can ask for one, before any proof. So none is ever refused for what others asked for: an
//! address keeps its newest ones only, and where all together are too many, the address with the most gives up its oldest.

use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use stvor_base::{Address, Timestamp};
use stvor_wire::limits::NONCE_BYTES;
use stvor_wire::server::Challenge;

use crate::auth::Admission;
use crate::limits::{CHALLENGES, CHALLENGES_PER_ADDRESS};
use crate::ratelimit::network_of;
use crate::storage::UserKey;

/// How long a challenge is good.
pub(super) const CHALLENGE_LIFE: Duration = Duration::from_secs(60);

/// Looking through all of them has a price.
const TRIM_EVERY: Duration = Duration::from_secs(1);

/// Open challenges; each serves once.
#[derive(Default)]
pub(crate) struct Challenges(Mutex<State>);

#[derive(Default)]
struct State {
    open: HashMap<[u8; NONCE_BYTES], Open>,
    /// What each asker was given, oldest first; what was answered is still in it.
    given: HashMap<Asker, VecDeque<[u8; NONCE_BYTES]>>,
    /// How many those are in all.
    total: usize,
    /// When all were last looked through for old ones.
    trimmed: Timestamp,
}

/// What was asked for, and what it was asked with.
pub(super) struct Open {
    pub(super) challenge: Challenge,
    pub(super) address: Address,
    pub(super) admission: Admission,
}

/// Whose share a challenge takes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Asker {
    Network(IpAddr),
    /// Behind a proxy on this machine every address is the same.
    User(UserKey),
}

impl State {
    fn drop_oldest(&mut self, of: &Asker) {
        let Some(given) = self.given.get_mut(of) else { return };
        if let Some(nonce) = given.pop_front() {
            self.open.remove(&nonce);
            self.total -= 1;
        }
        if given.is_empty() {
            self.given.remove(of);
        }
    }

    /// Forgets what was answered or is too old.
    fn trim(&mut self, of: &Asker, now: Timestamp) {
        let good = |open: &Open| now.since(open.challenge.server_time) <= CHALLENGE_LIFE;
        let Some(given) = self.given.get_mut(of) else { return };
        while given.front().is_some_and(|nonce| !self.open.get(nonce).is_some_and(good)) {
            if let Some(nonce) = given.pop_front() {
                self.open.remove(&nonce);
                self.total -= 1;
            }
        }
        if given.is_empty() {
            self.given.remove(of);
        }
    }
}

impl Challenges {
    pub(super) fn put(&self, (open, remote): (Open, IpAddr), now: Timestamp) {
        let asker = match remote.is_loopback() {
            false => Asker::Network(network_of(remote)),
            true => Asker::User(UserKey { app: open.challenge.app.clone(), user: open.address.user.clone() }),
        };
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.trim(&asker, now);
        if state.given.get(&asker).is_some_and(|given| given.len() >= CHALLENGES_PER_ADDRESS) {
            state.drop_oldest(&asker);
        }
        if state.total >= CHALLENGES && now.since(state.trimmed) >= TRIM_EVERY {
            state.trimmed = now;
            let all: Vec<Asker> = state.given.keys().cloned().collect();
            all.iter().for_each(|asker| state.trim(asker, now));
        }
        while state.total >= CHALLENGES {
            let most =
                state.given.iter().max_by_key(|(_, given)| given.len()).map(|(asker, _)| asker.clone());
            let Some(most) = most else { break };
            state.drop_oldest(&most);
        }
        state.total += 1;
        state.given.entry(asker).or_default().push_back(open.challenge.nonce);
        state.open.insert(open.challenge.nonce, open);
    }

    pub(super) fn take(&self, nonce: &[u8; NONCE_BYTES], now: Timestamp) -> Option<Open> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner).open.remove(nonce)?;
        (now.since(open.challenge.server_time) <= CHALLENGE_LIFE).then_some(open)
    }

    #[cfg(test)]
    fn count(&self) -> (usize, usize) {
        let state = self.0.lock().unwrap();
        assert_eq!(state.total, state.given.values().map(VecDeque::len).sum::<usize>());
        (state.open.len(), state.total)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use stvor_base::{AppId, DeviceId, UserId};

    use super::*;
    use crate::connection::TokenRef;

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn open(number: usize) -> Open {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let app = AppId::new("acme").unwrap();
        Open {
            challenge: Challenge {
                nonce,
                app: app.clone(),
                server_time: NOW,
                server_version: "1".into(),
                protocol_version: 1,
                development: false,
                capabilities: Vec::new(),
            },
            address: Address::new(UserId::new("alice").unwrap(), DeviceId::FIRST),
            admission: Admission {
                app: Arc::new(app),
                token: TokenRef::Development,
                user: None,
                may_register: false,
                may_replace: false,
            },
        }
    }

    fn nonce(number: usize) -> [u8; NONCE_BYTES] {
        open(number).challenge.nonce
    }

    fn from(number: usize) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap()).into()
    }

    #[test]
    fn an_address_keeps_its_newest_and_costs_nobody_else_theirs() {
        let all = Challenges::default();
        all.put((open(1_000_000), from(7)), NOW);
        for number in 0..CHALLENGES_PER_ADDRESS {
            all.put((open(number), from(1)), NOW);
        }
        assert_eq!(all.count().0, 1 + CHALLENGES_PER_ADDRESS, "as many as an address may have");
        all.put((open(CHALLENGES_PER_ADDRESS), from(1)), NOW);
        assert_eq!(all.count().0, 1 + CHALLENGES_PER_ADDRESS, "and not one more");
        assert!(all.take(&nonce(0), NOW).is_none(), "its oldest went");
        assert!(all.take(&nonce(1), NOW).is_some() && all.take(&nonce(1), NOW).is_none(), "each serves once");
        assert!(all.take(&nonce(1_000_000), NOW).is_some(), "another address has its own");
    }

    #[test]
    fn many_addresses_fill_it_to_the_bound_and_push_out_their_own_only() {
        let all = Challenges::default();
        all.put((open(1_000_000), from(1_000_000)), NOW);
        let addresses = CHALLENGES.div_ceil(CHALLENGES_PER_ADDRESS) + 3;
        for number in 0..addresses * CHALLENGES_PER_ADDRESS {
            all.put((open(number), from(number % addresses)), NOW);
            assert!(all.count().1 <= CHALLENGES);
        }
        assert_eq!(all.count(), (CHALLENGES, CHALLENGES));
        assert!(all.take(&nonce(1_000_000), NOW).is_some(), "who asked once keeps it");
    }

    #[test]
    fn a_challenge_is_good_for_a_minute_and_its_room_free_after_it() {
        let all = Challenges::default();
        all.put((open(1), from(1)), NOW);
        all.put((open(2), from(1)), NOW);
        assert!(all.take(&nonce(1), NOW + CHALLENGE_LIFE).is_some());
        let late = NOW + CHALLENGE_LIFE + Duration::from_millis(1);
        assert!(all.take(&nonce(2), late).is_none());
        all.put((open(3), from(1)), late);
        assert_eq!(all.count(), (1, 1));
    }

    #[test]
    fn behind_a_proxy_on_this_machine_users_count_instead_of_addresses() {
        let all = Challenges::default();
        let local = Ipv4Addr::LOCALHOST.into();
        let mut other = open(1_000_000);
        other.address = Address::new(UserId::new("bob").unwrap(), DeviceId::FIRST);
        all.put((other, local), NOW);
        for number in 0..=CHALLENGES_PER_ADDRESS {
            all.put((open(number), local), NOW);
        }
        assert!(all.take(&nonce(1_000_000), NOW).is_some());
    }
}
