//! Sessions with npm `libsignal` 6 and with `whatsapp-rust-bridge`: every way to begin, then what networks do, in thousands
//! of steps.

use serde_json::json;
use stvor_protocol::signal::{Encrypted, MessageKind, SessionRecord, SignalError};

use crate::party::Party;
use crate::peer::Peer;

/// We and a party of the peer, with what is under way.
struct World {
    peer: Peer,
    id: String,
    over: Over,
    own: Party,
    to_us: Vec<(u32, Encrypted)>,
    to_them: Vec<(u32, Encrypted)>,
    sent: u32,
    prekeys: u32,
    read: (u32, u32),
    /// The step at which each message set out.
    born: std::collections::HashMap<u32, u32>,
    now: u32,
}

/// What the other party is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Libsignal,
    Bridge,
}

const BOTH: [Over; 2] = [Over::Libsignal, Over::Bridge];

/// Steps that a message is under way at most: fewer than five turns take, beyond which its chain is forgotten here, and
/// in records of theirs that went through ours.
const LONGEST: u32 = 30;

impl World {
    fn new(peer: Peer, name: &str) -> Self {
        Self::with(peer, Over::Libsignal, name)
    }

    fn with(peer: Peer, over: Over, name: &str) -> Self {
        let mut world = Self {
            peer,
            id: format!("{name} {over:?}"),
            over,
            own: Party::new(name),
            to_us: Vec::new(),
            to_them: Vec::new(),
            sent: 0,
            prekeys: 0,
            read: (0, 0),
            born: std::collections::HashMap::new(),
            now: 0,
        };
        let over = if over == Over::Bridge { "bridge" } else { "libsignal" };
        world.peer.call(json!({ "op": "party", "id": world.id, "over": over }));
        world
    }

    fn we_start(&mut self, prekey: Option<u32>) {
        let bundle = self.peer.bundle(&self.id, prekey);
        self.own.start(&bundle);
    }

    fn they_start(&mut self, prekey: Option<u32>) {
        let bundle = self.own.bundle(prekey);
        self.peer.start_session(&self.id, &bundle);
    }

    fn next_prekey(&mut self) -> Option<u32> {
        self.prekeys += 1;
        (!self.prekeys.is_multiple_of(3)).then_some(self.prekeys)
    }

    fn text(number: u32) -> Vec<u8> {
        number.to_be_bytes().repeat(1 + (number % 50) as usize)
    }

    fn we_send(&mut self) {
        let message = self.own.send(&Self::text(self.sent));
        self.to_them.push((self.sent, message));
        self.born.insert(self.sent, self.now);
        self.sent += 1;
    }

    fn they_send(&mut self) {
        let message = self.peer.send(&self.id, &Self::text(self.sent));
        self.to_us.push((self.sent, message));
        self.born.insert(self.sent, self.now);
        self.sent += 1;
    }

    fn we_read(&mut self, (number, message): &(u32, Encrypted)) {
        assert_eq!(self.own.text(message), Self::text(*number), "message {number} to us");
        self.read.0 += 1;
    }

    fn they_read(&mut self, (number, message): &(u32, Encrypted)) {
        let read = self.peer.read(&self.id, message);
        assert_eq!(read, Ok(Self::text(*number)), "message {number} to them");
        self.read.1 += 1;
    }

    /// One turn each way.
    fn turn(&mut self) {
        self.we_send();
        let message = self.to_them.pop().unwrap();
        self.they_read(&message);
        self.they_send();
        let message = self.to_us.pop().unwrap();
        self.we_read(&message);
    }
}

#[test]
fn every_way_to_begin_works_from_both_sides() {
    let Some(mut peer) = Peer::start() else { return };
    for (over, prekey) in BOTH
        .iter()
        .flat_map(|over| [None, Some(0), Some(1), Some(16_777_215)].into_iter().map(|prekey| (*over, prekey)))
    {
        for we in [true, false] {
            let mut world = World::with(peer, over, &format!("begin {prekey:?} {we}"));
            if we {
                world.we_start(prekey);
                world.turn();
            } else {
                world.they_start(prekey);
                world.they_send();
                let message = world.to_us.pop().unwrap();
                assert_eq!(message.1.kind, MessageKind::PreKey);
                world.we_read(&message);
                assert!(
                    world.own.one_time.is_empty(),
                    "the one-time prekey is destroyed, also if its id is 0"
                );
            }
            for _ in 0..5 {
                world.turn();
            }
            peer = world.peer;
        }
    }
}

#[test]
fn thousands_of_random_steps_with_libsignal() {
    assert_eq!(random_steps(Over::Libsignal), 3_200);
}

#[test]
fn thousands_of_random_steps_with_the_bridge() {
    assert_eq!(random_steps(Over::Bridge), 3_200);
}

/// How many were taken.
fn random_steps(over: Over) -> u32 {
    let (rounds, each) = (10, 320);
    let Some(mut peer) = Peer::start() else { return rounds * each };
    let mut steps = 0;
    for round in 0..rounds {
        let mut world = World::with(peer, over, &format!("random {round}"));
        let prekey = world.next_prekey();
        if round % 2 == 0 {
            world.we_start(prekey)
        } else {
            world.they_start(prekey)
        }
        if round % 2 == 0 {
            world.we_send()
        } else {
            world.they_send()
        }
        for number in 0..each {
            step(&mut world, number);
            steps += 1;
        }
        // What is under way arrives, whatever its order.
        while let Some(message) = world.to_us.pop() {
            world.we_read(&message);
        }
        while let Some(message) = world.to_them.pop() {
            world.they_read(&message);
        }
        for _ in 0..3 {
            world.turn();
        }
        assert!(world.read.0 > 30 && world.read.1 > 30, "{:?}", world.read);
        peer = world.peer;
    }
    steps
}

fn step(world: &mut World, number: u32) {
    world.now = number;
    while let Some(at) = world.to_us.iter().position(|(sent, _)| number - world.born[sent] > LONGEST) {
        let message = world.to_us.remove(at);
        world.we_read(&message);
    }
    while let Some(at) = world.to_them.iter().position(|(sent, _)| number - world.born[sent] > LONGEST) {
        let message = world.to_them.remove(at);
        world.they_read(&message);
    }
    let (roll, place) = (world.own.byte(), usize::from(world.own.byte()));
    let established = world.read.0 > 0 && world.read.1 > 0;
    // Whoever has no session yet waits for the first message.
    match roll % 32 {
        0..=7 if world.own.record.has_current() => world.we_send(),
        8..=15 if world.peer.call(json!({ "op": "export", "id": world.id }))["record"].is_string() => {
            world.they_send()
        }
        16..=20 if !world.to_us.is_empty() => {
            let message = world.to_us.remove(place % world.to_us.len());
            world.we_read(&message);
        }
        21..=24 if !world.to_them.is_empty() => {
            let message = world.to_them.remove(place % world.to_them.len());
            world.they_read(&message);
        }
        25 if !world.to_us.is_empty() && established => drop(world.to_us.remove(place % world.to_us.len())),
        26 if !world.to_them.is_empty() && established => {
            drop(world.to_them.remove(place % world.to_them.len()))
        }
        // Twice: the copy is refused, by both.
        27 if !world.to_us.is_empty() => {
            let message = world.to_us.remove(place % world.to_us.len());
            world.we_read(&message);
            assert_eq!(world.own.read(&message.1).unwrap_err(), SignalError::Duplicate);
        }
        28 if !world.to_them.is_empty() => {
            let message = world.to_them.remove(place % world.to_them.len());
            world.they_read(&message);
            assert!(world.peer.read(&world.id, &message.1).is_err());
        }
        // Changed: refused, and the good one is read after it.
        29 if !world.to_us.is_empty() => {
            let message = world.to_us.remove(place % world.to_us.len());
            let mut bad = message.1.body.clone();
            let at = bad.len() / 2;
            bad[at] ^= 0x40;
            assert!(world.own.read_bytes(message.1.kind, &bad).is_err());
            world.we_read(&message);
        }
        // Our record through storage, theirs through ours.
        30 => {
            if number.is_multiple_of(2) {
                world.own.restart()
            } else {
                world.own.restart_as_json()
            }
            let theirs = world.peer.call(json!({ "op": "export", "id": world.id }));
            // The bridge has records of its own kind.
            if let Some(record) = theirs["record"].as_str().filter(|_| world.over == Over::Libsignal) {
                let read = SessionRecord::from_json(record.as_bytes()).unwrap();
                let back = String::from_utf8(read.to_json().unwrap().expose().to_vec()).unwrap();
                world.peer.call(json!({ "op": "import", "id": world.id, "record": back }));
            }
        }
        // A new session. A message on the old one that came after it would destroy the new one at their side (a defect of
        // theirs), so what is under way to them arrives before. What is under way to us may be late.
        31 if established && number.is_multiple_of(4) => {
            for message in std::mem::take(&mut world.to_them) {
                world.they_read(&message);
            }
            let prekey = world.next_prekey();
            if roll & 32 == 0 {
                world.we_start(prekey);
                world.we_send();
                let message = world.to_them.pop().unwrap();
                world.they_read(&message);
            } else {
                world.they_start(prekey);
                world.they_send();
                let message = world.to_us.pop().unwrap();
                world.we_read(&message);
            }
        }
        _ => {}
    }
}

#[test]
fn late_message_after_a_replacement_is_read_by_us_and_destroys_their_session() {
    let Some(peer) = Peer::start() else { return };
    let mut world = World::new(peer, "late");
    world.we_start(Some(1));
    world.turn();
    world.they_send();
    let late = world.to_us.pop().unwrap();
    world.they_start(Some(2));
    world.they_send();
    let new = world.to_us.pop().unwrap();
    world.we_read(&new);
    world.turn();
    world.we_read(&late);
    for _ in 0..3 {
        world.turn();
    }

    // The same with the roles turned: the reference loses its session by it.
    let mut world = World::new(world.peer, "late to them");
    world.we_start(Some(1));
    world.turn();
    world.we_send();
    let late = world.to_them.pop().unwrap();
    world.we_start(Some(2));
    world.turn();
    world.they_read(&late);
    world.we_send();
    let after = world.to_them.pop().unwrap();
    assert!(
        world.peer.read(&world.id, &after.1).is_err(),
        "fixed upstream? then say so in the documentation"
    );
}

#[test]
fn simultaneous_starts_lose_nothing() {
    let Some(mut peer) = Peer::start() else { return };
    for round in 0..12 {
        let over = BOTH[round % 2];
        let mut world = World::with(peer, over, &format!("simultaneous {round}"));
        world.we_start(Some(1));
        world.they_start(Some(1));
        for _ in 0..=round / 2 % 3 {
            world.we_send();
            world.they_send();
        }
        for message in std::mem::take(&mut world.to_us) {
            world.we_read(&message);
        }
        for message in std::mem::take(&mut world.to_them) {
            world.they_read(&message);
        }
        for _ in 0..8 {
            world.we_send();
            world.they_send();
            let (to_them, to_us) = (world.to_them.pop().unwrap(), world.to_us.pop().unwrap());
            world.we_read(&to_us);
            world.they_read(&to_them);
        }
        assert!(!world.own.record.sessions().unwrap()[0].unanswered);
        peer = world.peer;
    }
}

#[test]
fn records_go_from_libsignal_to_us_and_back_in_the_middle_of_a_conversation() {
    let Some(peer) = Peer::start() else { return };
    let mut world = World::new(peer, "move");
    world.they_start(Some(1));
    world.they_send();
    let first = world.to_us.pop().unwrap();
    world.we_read(&first);
    world.turn();
    // A second Node party takes our side over, and gives it back.
    let theirs = world.peer.call(json!({ "op": "party", "id": "heir" }));
    drop(theirs);
    let record = String::from_utf8(world.own.record.to_json().unwrap().expose().to_vec()).unwrap();
    world.peer.call(json!({ "op": "import", "id": "heir", "record": record }));
    let back =
        world.peer.call(json!({ "op": "export", "id": "heir" }))["record"].as_str().unwrap().to_owned();
    world.own.record = SessionRecord::from_json(back.as_bytes()).unwrap();
    world.turn();
    // What was not read before the move is read after it.
    world.they_send();
    world.they_send();
    let (later, sooner) = (world.to_us.pop().unwrap(), world.to_us.pop().unwrap());
    world.we_read(&later);
    world.own.restart_as_json();
    world.we_read(&sooner);
}
