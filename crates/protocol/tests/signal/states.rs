//! Two parties under any interleaving: each message is read exactly once, or reported.

use std::collections::BTreeSet;

use proptest::prelude::*;
use stvor_protocol::signal::{Encrypted, SignalError};

use crate::party::Party;

#[derive(Debug, Clone)]
enum Event {
    Send(bool),
    /// Delivers the message at this place of what is under way.
    Deliver(bool, u8),
    Drop(bool, u8),
    /// Delivers, and leaves a copy under way.
    Duplicate(bool, u8),
    /// Delivers with a bit flipped, and leaves the good one under way.
    Corrupt(bool, u8, u16),
    Restart(bool),
    Json(bool),
    /// Starts a new session on the peer's bundle.
    Start(bool),
}

fn event() -> impl Strategy<Value = Event> {
    let (side, place) = (any::<bool>, any::<u8>);
    prop_oneof![
        8 => side().prop_map(Event::Send),
        8 => (side(), place()).prop_map(|(s, p)| Event::Deliver(s, p)),
        1 => (side(), place()).prop_map(|(s, p)| Event::Drop(s, p)),
        2 => (side(), place()).prop_map(|(s, p)| Event::Duplicate(s, p)),
        2 => (side(), place(), any::<u16>()).prop_map(|(s, p, b)| Event::Corrupt(s, p, b)),
        1 => side().prop_map(Event::Restart),
        1 => side().prop_map(Event::Json),
        1 => side().prop_map(Event::Start),
    ]
}

struct World {
    parties: [Party; 2],
    /// Under way to each.
    mail: [Vec<(u32, Encrypted)>; 2],
    /// Read by each.
    read: [BTreeSet<u32>; 2],
    sent: u32,
    prekeys: u32,
}

impl World {
    fn new() -> Self {
        let parties = [Party::new("a"), Party::new("b")];
        let mut world =
            Self { parties, mail: Default::default(), read: Default::default(), sent: 0, prekeys: 0 };
        world.start(0);
        world.start(1);
        world
    }

    fn start(&mut self, side: usize) {
        // 0 is an id, and so is none.
        let id = (self.prekeys % 3 != 2).then_some(self.prekeys);
        self.prekeys += 1;
        let bundle = self.parties[1 - side].bundle(id);
        self.parties[side].start(&bundle);
    }

    fn take(&mut self, side: usize, place: u8, keep: bool) -> Option<(u32, Encrypted)> {
        let mail = &mut self.mail[side];
        let at = usize::from(place).checked_rem(mail.len())?;
        let (number, message) = &mail[at];
        let copy = (*number, Encrypted { body: message.body.clone(), ..*message });
        if !keep {
            drop(mail.remove(at));
        }
        Some(copy)
    }

    fn deliver(&mut self, side: usize, (number, message): (u32, Encrypted)) {
        match self.parties[side].read(&message) {
            Ok(received) => {
                assert_eq!(received.plaintext.expose(), number.to_be_bytes());
                assert!(self.read[side].insert(number), "message {number} was read twice");
            }
            Err(SignalError::Duplicate) => {
                assert!(self.read[side].contains(&number), "message {number} is new");
            }
            // Beyond five chains.
            Err(SignalError::Undecryptable) => {}
            Err(error) => panic!("message {number}: {error}"),
        }
    }

    fn run(&mut self, event: &Event) {
        match *event {
            Event::Send(side) => {
                let side = usize::from(side);
                let message = self.parties[side].send(&self.sent.to_be_bytes());
                self.mail[1 - side].push((self.sent, message));
                self.sent += 1;
            }
            Event::Deliver(side, place) => {
                if let Some(message) = self.take(usize::from(side), place, false) {
                    self.deliver(usize::from(side), message);
                }
            }
            Event::Duplicate(side, place) => {
                if let Some(message) = self.take(usize::from(side), place, true) {
                    self.deliver(usize::from(side), message);
                }
            }
            Event::Drop(side, place) => drop(self.take(usize::from(side), place, false)),
            Event::Corrupt(side, place, bit) => {
                let side = usize::from(side);
                if let Some((_, mut message)) = self.take(side, place, true) {
                    // Past the outer fields that nothing authenticates: into the MAC at the end of what is inside.
                    let inner = message.body.windows(2).rposition(|pair| pair == [0x28, 77]);
                    let end = inner.unwrap_or(message.body.len());
                    message.body[end - 1 - usize::from(bit % 8)] ^= 1 << (bit >> 8 & 7);
                    let before = self.parties[side].record.encode();
                    assert!(self.parties[side].read(&message).is_err());
                    assert!(self.parties[side].record.encode() == before);
                }
            }
            Event::Restart(side) => self.parties[usize::from(side)].restart(),
            Event::Json(side) => self.parties[usize::from(side)].restart_as_json(),
            Event::Start(side) => self.start(usize::from(side)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_message_is_read_once_or_reported(events in prop::collection::vec(event(), 1..160)) {
        let mut world = World::new();
        for event in &events {
            world.run(event);
        }
        // Whatever happened, what is sent now arrives.
        for side in [0, 1] {
            let message = world.parties[side].send(b"in the end");
            prop_assert_eq!(world.parties[1 - side].text(&message), b"in the end");
        }
    }
}
