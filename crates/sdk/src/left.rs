//! Mail that was left at the relay. What follows it in its conversation is left as well, until a later connection brings
//! all of it again: so the order of a conversation holds.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use stvor_base::Address;

use crate::limits;

#[derive(Default)]
struct State {
    /// The latest connection of which mail was left.
    generation: u64,
    peers: HashSet<Address>,
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
            state.peers.insert(peer.clone());
        } else if !state.peers.contains(peer) {
            state.all = true;
        }
    }

    /// Whether what the connection `generation` brings of a peer is left. Of connections before the latest one of which
    /// something was left, everything is: that one brought it again.
    pub(crate) fn has(&self, peer: &Address, generation: u64) -> bool {
        let state = self.lock();
        generation < state.generation
            || generation == state.generation && (state.all || state.peers.contains(peer))
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
