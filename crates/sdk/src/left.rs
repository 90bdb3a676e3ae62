//! Mail that was left at the relay. What follows it in its conversation is left as well, until a later connection brings
//! all of it again: so the order of a conversation holds.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stvor_base::Address;

use crate::limits;

#[derive(Default)]
struct State {
    /// The latest connection of which mail was left.
    generation: u64,
    /// Whose, and whether the relay was asked to hold them back.
    peers: HashMap<Address, bool>,
    /// More than are counted: everybody's mail is left.
    all: bool,
}

/// Whose mail of which connection is left at the relay.
#[derive(Default)]
pub(crate) struct Left(Mutex<State>);

impl Left {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the mail of a peer from here on, as far as the connection `generation` brings it. The caller sees to it
    /// that this connection ends.
    pub(crate) fn leave(&self, peer: &Address, generation: u64) {
        let mut state = self.lock();
        if generation > state.generation {
            *state = State { generation, ..State::default() };
        }
        if state.peers.len() < limits::MAX_LANES {
            state.peers.entry(peer.clone()).or_default();
        } else if !state.peers.contains_key(peer) {
            state.all = true;
        }
    }

    /// Has the relay asked to hold a peer back whose mail the connection `generation` brings in vain, until one `ask` went out.
    pub(crate) fn hold(&self, peer: &Address, generation: u64, ask: impl FnOnce() -> bool) {
        let mut state = self.lock();
        if state.generation == generation
            && let Some(held) = state.peers.get_mut(peer)
            && !*held
        {
            *held = ask();
        }
    }

    /// Whether what the connection `generation` brings of a peer is left. Of connections before the latest one of which
    /// something was left, everything is: that one brought it again.
    pub(crate) fn has(&self, peer: &Address, generation: u64) -> bool {
        let state = self.lock();
        generation < state.generation
            || generation == state.generation && (state.all || state.peers.contains_key(peer))
    }
}

#[cfg(test)]
mod tests {
    use stvor_base::{DeviceId, UserId};

    use super::*;

    fn peer(name: &str) -> Address {
        Address::new(UserId::new(name).unwrap(), DeviceId::FIRST)
    }

    #[test]
    fn what_follows_on_the_same_connection_is_left_and_a_later_one_brings_it() {
        let left = Left::default();
        assert!(!left.has(&peer("alice"), 1));
        left.leave(&peer("alice"), 2);
        assert!(left.has(&peer("alice"), 2) && !left.has(&peer("bob"), 2));
        assert!(left.has(&peer("alice"), 1) && left.has(&peer("bob"), 1), "the second brought it again");
        assert!(!left.has(&peer("alice"), 3));
        left.leave(&peer("bob"), 3);
        assert!(left.has(&peer("bob"), 3) && !left.has(&peer("alice"), 3) && left.has(&peer("alice"), 2));
    }

    #[test]
    fn a_peer_whose_mail_is_left_is_held_once_on_each_connection() {
        let left = Left::default();
        let alice = peer("alice");
        let asks = |generation: u64, goes_out: bool| {
            let mut asked = false;
            left.hold(&alice, generation, || {
                asked = true;
                goes_out
            });
            asked
        };
        assert!(!asks(1, true), "nothing of them is left");
        left.leave(&alice, 1);
        assert!(asks(1, false) && asks(1, true), "until it went out");
        assert!(!asks(1, true));
        left.leave(&alice, 1);
        assert!(!asks(1, true), "they are held already");
        left.leave(&alice, 2);
        assert!(asks(2, true) && !asks(1, true));
    }

    #[test]
    fn one_peer_more_than_are_counted_leaves_all_mail_of_the_connection() {
        let left = Left::default();
        for number in 0..limits::MAX_LANES {
            left.leave(&peer(&format!("peer{number}")), 1);
        }
        left.leave(&peer("peer0"), 1);
        assert!(!left.has(&peer("alice"), 1));
        left.leave(&peer("late"), 1);
        assert!(left.has(&peer("alice"), 1) && !left.has(&peer("alice"), 2));
    }
}
