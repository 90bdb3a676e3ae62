//! Who holds the connections of a socket: no one peer may hold so many that there are none for others, and who is not known yet
//! holds few, for a short time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limits;

#[derive(Debug, Default)]
struct Taken {
    unknown: usize,
    known: HashMap<String, usize>,
}

/// The connections of a socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Taken>>);

/// A connection. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    name: Option<String>,
}

impl Seats {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection for somebody who is not known yet, if there is one left.
    pub(super) fn take(&self) -> Option<Seat> {
        let mut taken = self.taken();
        if taken.unknown >= limits::MAX_UNKNOWN_CONNECTIONS {
            return None;
        }
        taken.unknown += 1;
        Some(Seat { seats: self.clone(), name: None })
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
        taken.unknown -= 1;
        taken.known.insert(name.to_owned(), own + 1);
        self.name = Some(name.to_owned());
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken();
        match &self.name {
            None => taken.unknown -= 1,
            Some(name) => {
                let left = taken.known.get(name).map_or(0, |count| count - 1);
                match left {
                    0 => taken.known.remove(name),
                    left => taken.known.insert(name.clone(), left),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_are_known_together_have_so_many_seats() {
        let seats = Seats::default();
        let of = |name: usize| {
            let mut seat = seats.take()?;
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
            let mut seat = seats.take()?;
            seat.known_as(name).then_some(seat)
        };
        let held: Vec<_> = (0..limits::MAX_CONNECTIONS_OF_ONE).map(|_| of("one").unwrap()).collect();
        assert!(of("one").is_none());
        let other = of("two").unwrap();
        drop(held);
        assert!(of("one").is_some());
        let unknown: Vec<_> = (0..limits::MAX_UNKNOWN_CONNECTIONS).map(|_| seats.take().unwrap()).collect();
        assert!(seats.take().is_none());
        drop((unknown, other));
        assert!(seats.take().is_some());
        assert!(seats.taken().known.is_empty());
    }
}
