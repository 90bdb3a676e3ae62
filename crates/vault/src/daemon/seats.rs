//! Who holds the connections of a socket: no one peer may hold so many that there are none for others, and who is not known yet
//! holds few, for a short time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits;

/// A process at the other end: its user and its own number, where the system tells them.
pub(super) type Peer = Option<(u32, i32)>;

#[derive(Debug, Default)]
struct Taken {
    unknown: HashMap<Peer, usize>,
    known: HashMap<String, usize>,
}

/// The connections of a socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

/// A connection. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    peer: Peer,
    name: Option<String>,
}

/// One less of `key`.
fn leave<K: Eq + core::hash::Hash>(held: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = held.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            held.remove(key);
        }
    }
}

impl Seats {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for somebody who is not known yet, if there is one left: for all, for the user and for the process.
    pub(super) fn take(&self, peer: Peer) -> Option<Seat> {
        let mut taken = self.taken();
        let all: usize = taken.unknown.values().sum();
        let of = |same: &dyn Fn(&(u32, i32)) -> bool| -> usize {
            let held = taken.unknown.iter().filter(|(peer, _)| peer.as_ref().is_some_and(same));
            held.map(|(_, count)| count).sum()
        };
        let room = peer.is_none_or(|(uid, pid)| {
            of(&|peer| peer.0 == uid) < limits::MAX_UNKNOWN_CONNECTIONS_OF_USER
                && of(&|peer| *peer == (uid, pid)) < limits::MAX_UNKNOWN_CONNECTIONS_OF_PROCESS
        });
        if !room || all >= limits::MAX_UNKNOWN_CONNECTIONS {
            return None;
        }
        *taken.unknown.entry(peer).or_default() += 1;
        Some(Seat { seats: self.clone(), peer, name: None })
    }
}

impl Seat {
    /// From here on it is known whose it is. Says no when that one has too many, or all of them are taken.
    pub(super) fn known_as(&mut self, name: &str) -> bool {
        if self.name.is_some() {
            return true;
        }
        let mut taken = self.seats.taken();
        let all: usize = taken.known.values().sum();
        let own = taken.known.get(name).copied().unwrap_or_default();
        if own >= limits::MAX_CONNECTIONS_OF_ONE || all >= limits::MAX_CONNECTIONS {
            return false;
        }
        leave(&mut taken.unknown, &self.peer);
        taken.known.insert(name.to_owned(), own + 1);
        self.name = Some(name.to_owned());
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        match &self.name {
            None => leave(&mut taken.unknown, &self.peer),
            Some(name) => leave(&mut taken.known, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process of a user; each of another.
    fn somebody(number: usize) -> Peer {
        Some((u32::try_from(number).unwrap(), 1))
    }

    #[test]
    fn all_that_are_known_together_have_so_many_seats() {
        let seats = Seats::default();
        let of = |name: usize| {
            let mut seat = seats.take(somebody(name))?;
            seat.known_as(&name.to_string()).then_some(seat)
        };
        let mut held: Vec<_> = (0..limits::MAX_CONNECTIONS).map(|name| of(name).unwrap()).collect();
        assert!(of(limits::MAX_CONNECTIONS).is_none());
        held.pop();
        assert!(of(limits::MAX_CONNECTIONS).is_some());
    }

    #[test]
    fn one_peer_leaves_room_for_others_and_what_is_dropped_is_free_again() {
        let seats = Seats::default();
        let of = |name: &str| {
            let mut seat = seats.take(somebody(1))?;
            seat.known_as(name).then_some(seat)
        };
        let held: Vec<_> = (0..limits::MAX_CONNECTIONS_OF_ONE).map(|_| of("one").unwrap()).collect();
        assert!(of("one").is_none());
        let other = of("two").unwrap();
        drop(held);
        assert!(of("one").is_some());
        let most = limits::MAX_UNKNOWN_CONNECTIONS;
        let unknown: Vec<_> = (0..most).map(|number| seats.take(somebody(number)).unwrap()).collect();
        assert!(seats.take(somebody(most)).is_none() && seats.take(None).is_none());
        drop((unknown, other));
        assert!(seats.take(None).is_some());
        assert!(seats.taken().known.is_empty() && seats.taken().unknown.is_empty());
    }

    #[test]
    fn one_process_and_one_user_that_say_nothing_leave_room_for_others() {
        let seats = Seats::default();
        let (process, user) =
            (limits::MAX_UNKNOWN_CONNECTIONS_OF_PROCESS, limits::MAX_UNKNOWN_CONNECTIONS_OF_USER);
        let mut held: Vec<_> = (0..process).map(|_| seats.take(Some((1, 1))).unwrap()).collect();
        assert!(seats.take(Some((1, 1))).is_none(), "the process");
        for pid in 0..user - process {
            held.push(seats.take(Some((1, 2 + i32::try_from(pid).unwrap()))).unwrap());
        }
        assert!(seats.take(Some((1, -1))).is_none(), "the user");
        assert!(seats.take(Some((2, 1))).is_some() && seats.take(None).is_some());
        // Who says who it is waits for nobody.
        assert!(held[0].known_as("one"));
        assert!(seats.take(Some((1, 1))).is_some());
    }
}
