//! Two parties under any interleaving: each message is read exactly once, or reported.

use std::collections::{BTreeSet, HashMap};

use proptest::prelude::*;
use stvor_protocol::limits::{MAX_ARCHIVED_SESSIONS, MAX_RECEIVING_CHAINS};
use stvor_protocol::signal::{Encrypted, MessageKind, PreKeyMessage, SignalError, WhisperMessage};

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
    /// Each sends, and it arrives: both are a chain further.
    Turn(bool),
}

/// As many as a record keeps: none of them is destroyed.
const MOST_SESSIONS: usize = MAX_ARCHIVED_SESSIONS + 1;

/// On how many sessions, newest first, a message with this number is tried whose ratchet key is new.
fn tried(number: u32) -> usize {
    usize::try_from((2_000 + 100) / (number + 100)).unwrap()
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
        4 => side().prop_map(Event::Start),
        3 => side().prop_map(Event::Turn),
    ]
}

type Key = [u8; 33];

/// A message under way.
struct Mail {
    number: u32,
    /// The session and the ratchet key.
    chain: (Key, Key),
    message: Encrypted,
}

struct World {
    parties: [Party; 2],
    /// Under way to each.
    mail: [Vec<Mail>; 2],
    /// Read by each.
    read: [BTreeSet<u32>; 2],
    /// The chains of each session that each has read of, newest first.
    heard: [HashMap<Key, Vec<Key>>; 2],
    sent: u32,
    prekeys: u32,
    /// Messages that came where their session was out of reach.
    unreached: BTreeSet<u32>,
}

impl World {
    fn new() -> Self {
        let parties = [Party::new("a"), Party::new("b")];
        let mut world = Self {
            parties,
            mail: Default::default(),
            read: Default::default(),
            heard: Default::default(),
            sent: 0,
            prekeys: 0,
            unreached: BTreeSet::new(),
        };
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

    fn send(&mut self, side: usize) {
        let party = &mut self.parties[side];
        let message = party.send(&self.sent.to_be_bytes());
        let session = party.record.sessions().unwrap()[0].base_key;
        let ratchet = match message.kind {
            MessageKind::PreKey => PreKeyMessage::parse(&message.body).unwrap().message().ratchet_key(),
            MessageKind::Whisper => WhisperMessage::parse(&message.body).unwrap().ratchet_key(),
        };
        let chain = (session.to_bytes(), ratchet.to_bytes());
        self.mail[1 - side].push(Mail { number: self.sent, chain, message });
        self.sent += 1;
    }

    fn take(&mut self, side: usize, place: u8, keep: bool) -> Option<Mail> {
        let mail = &mut self.mail[side];
        let at = usize::from(place).checked_rem(mail.len())?;
        let Mail { number, chain, message } = &mail[at];
        let message = Encrypted { body: message.body.clone(), ..*message };
        let copy = Mail { number: *number, chain: *chain, message };
        if !keep {
            drop(mail.remove(at));
        }
        Some(copy)
    }

    fn deliver(&mut self, side: usize, Mail { number, chain: (session, ratchet), message }: Mail) {
        let heard = self.heard[side].entry(session).or_default();
        let chain = heard.iter().position(|known| *known == ratchet);
        let forgotten = chain.is_some_and(|place| place >= MAX_RECEIVING_CHAINS);
        let out_of_reach = chain.is_none() && message.kind == MessageKind::Whisper && {
            let sessions = self.parties[side].record.sessions().unwrap();
            let place = sessions.iter().position(|known| known.base_key.to_bytes() == session).unwrap();
            place >= tried(WhisperMessage::parse(&message.body).unwrap().counter())
        };
        match self.parties[side].read(&message) {
            Ok(received) => {
                assert_eq!(received.plaintext.expose(), number.to_be_bytes());
                assert!(self.read[side].insert(number), "message {number} was read twice");
                assert!(!forgotten, "message {number} is of a chain that should be gone");
                assert!(!out_of_reach, "message {number} cost more than it may");
                if chain.is_none() {
                    heard.insert(0, ratchet);
                }
            }
            Err(SignalError::Duplicate) => {
                assert!(self.read[side].contains(&number), "message {number} is new");
            }
            Err(SignalError::Undecryptable) => {
                assert!(
                    forgotten || out_of_reach,
                    "message {number} is of chain {chain:?}, and five are kept"
                );
                if out_of_reach {
                    self.unreached.insert(number);
                }
            }
            Err(error) => panic!("message {number}: {error}"),
        }
    }

    fn run(&mut self, event: &Event) {
        match *event {
            Event::Send(side) => self.send(usize::from(side)),
            Event::Turn(first) => {
                for side in [usize::from(first), usize::from(!first)] {
                    self.send(side);
                    let message = self.mail[1 - side].pop().unwrap();
                    self.deliver(1 - side, message);
                }
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
                if let Some(Mail { mut message, .. }) = self.take(side, place, true) {
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
            Event::Start(side) if (self.prekeys as usize) < MOST_SESSIONS => self.start(usize::from(side)),
            Event::Start(_) => {}
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
        // Whatever happened, what is sent now arrives, at the latest when the other side was heard of.
        for side in [0, 1, 0, 1] {
            let number = world.sent;
            world.send(side);
            let message = world.mail[1 - side].pop().unwrap();
            world.deliver(1 - side, message);
            prop_assert!(world.read[1 - side].contains(&number) || world.unreached.contains(&number));
        }
        prop_assert!(!world.unreached.contains(&(world.sent - 1)) && !world.unreached.contains(&(world.sent - 2)));
    }
}
