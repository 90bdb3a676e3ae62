//! Some parties and a network that does anything to their messages. Driven by bytes, so that property tests and fuzzers
//! share it. The machine itself checks, after each action, that no blob is read twice, that nothing changed is read,
//! that a refused message changes no row, and that nothing genuine is silently taken for a duplicate; at the end, that
//! everybody talks again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::OnceLock;
use std::time::Duration;

use stvor_base::{ErrorCode, KeyBytes, MessageId};
use stvor_protocol::*;

use super::{Party, app, padding};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// How many bytes say one action.
pub const ACTION: usize = 4;

/// A blob on its way.
#[derive(Clone)]
struct Flight {
    /// The relay's id: the place in the list of all flights.
    id: usize,
    from: usize,
    to: usize,
    blob: Vec<u8>,
    /// Which content of the sender it carries; none for the protocol's own.
    content: Option<usize>,
    sent: stvor_base::Timestamp,
}

/// What a sender keeps of a content.
struct Row {
    to: usize,
    plaintext: Plaintext,
    pinned: KeyBytes,
    resends: u32,
    /// How often the receiver's application was shown it.
    shown: usize,
    /// Some copy of it failed at the receiver, who knows.
    reported: bool,
    /// The network lost a copy of it, or the sender was told that it can not go out.
    lost: bool,
}

/// Who wants something again from whom.
struct Request {
    by: usize,
    from: usize,
    plaintext: Plaintext,
}

pub struct Machine {
    parties: Vec<Party>,
    /// Conversations in memory, until a restart.
    live: HashMap<(usize, usize), Conversation>,
    wire: VecDeque<Flight>,
    /// Everything that was ever on the wire, unchanged.
    seen: Vec<Flight>,
    rows: Vec<Vec<Row>>,
    accepted: HashSet<usize>,
    requests: Vec<Request>,
    /// What happened, for the tests of the machine.
    pub codes: HashMap<&'static str, usize>,
}

fn templates() -> &'static [Party] {
    static TEMPLATES: OnceLock<Vec<Party>> = OnceLock::new();
    TEMPLATES.get_or_init(|| ["alice", "bob", "carol"].into_iter().map(Party::new).collect())
}

impl Machine {
    /// Two or three parties that never met.
    pub fn new(parties: usize) -> Self {
        let parties: Vec<_> = templates()[..parties].iter().map(Party::fork).collect();
        Self {
            rows: parties.iter().map(|_| Vec::new()).collect(),
            parties,
            live: HashMap::new(),
            wire: VecDeque::new(),
            seen: Vec::new(),
            accepted: HashSet::new(),
            requests: Vec::new(),
            codes: HashMap::new(),
        }
    }

    /// Carries out the actions that the bytes say, then lets everybody recover.
    pub fn run(&mut self, bytes: &[u8]) {
        for action in bytes.chunks_exact(ACTION) {
            self.act([action[0], action[1], action[2], action[3]]);
        }
        self.recover();
    }

    fn act(&mut self, [what, who, which, extra]: [u8; ACTION]) {
        let from = usize::from(who) % self.parties.len();
        let to = (from + 1 + usize::from(which) % (self.parties.len() - 1)) % self.parties.len();
        let pick = (!self.wire.is_empty()).then(|| usize::from(which) % self.wire.len().max(1));
        match (what % 16, pick) {
            (0..=2, _) => self.send(from, to),
            (3, _) => (0..=extra % 60).for_each(|_| self.send(from, to)),
            // In order, out of order, twice, never.
            (4..=6, Some(_)) => self.deliver_at(0),
            (7, Some(pick)) => self.deliver_at(pick),
            (8, Some(pick)) => {
                self.arrive(&self.wire[pick].clone(), None);
                self.deliver_at(pick);
            }
            (9, Some(pick)) => {
                let flight = self.wire.remove(pick).unwrap();
                self.lost(&flight);
            }
            (10, Some(pick)) => {
                let flight = self.wire[pick].clone();
                let bit = (usize::from(extra) << 8 | usize::from(who)) % (flight.blob.len() * 8);
                self.arrive(&flight, Some(bit));
            }
            (11, _) if !self.seen.is_empty() => {
                let pick = usize::from(which) << 8 | usize::from(extra);
                self.arrive(&self.seen[pick % self.seen.len()].clone(), None);
            }
            (12, _) => self.live.retain(|(owner, _), _| *owner != from),
            // A start though there may be a session: with one of the other side on its way, both start at once.
            (13, _) => self.start(from, to),
            (14, _) if extra % 4 == 0 => {
                let effects = self.take(from, to).reset();
                assert!(self.parties[from].rows.commit(effects));
            }
            (14, _) => self.pass(DAY * u32::from(extra % 20)),
            (15, _) => self.pass(Duration::from_secs(60 * u64::from(extra))),
            _ => {}
        }
        self.check_bounds();
    }

    /// Time goes by for all; prekeys are looked after at the end of it.
    fn pass(&mut self, time: Duration) {
        for party in &mut self.parties {
            party.pass(time);
            let _ = party.maintain();
        }
        self.send_requests();
    }

    fn take(&mut self, owner: usize, peer: usize) -> Conversation {
        let address = self.parties[peer].address();
        self.live.remove(&(owner, peer)).unwrap_or_else(|| self.parties[owner].conversation(&address))
    }

    fn count(&mut self, code: &'static str) {
        *self.codes.entry(code).or_default() += 1;
    }

    fn lost(&mut self, flight: &Flight) {
        if let Some(content) = flight.content {
            self.rows[flight.from][content].lost = true;
        }
    }

    fn send(&mut self, from: usize, to: usize) {
        let words = format!("{from} to {to}, {}", self.rows[from].len());
        let plaintext = self.parties[from].text(&words);
        let row =
            Row { to, plaintext, pinned: [0; 65].into(), resends: 0, shown: 0, reported: false, lost: false };
        self.rows[from].push(row);
        self.send_row(from, self.rows[from].len() - 1);
    }

    fn send_row(&mut self, from: usize, row: usize) {
        let to = self.rows[from][row].to;
        let mut conversation = self.take(from, to);
        let mut effects = Effects::new();
        if !conversation.is_ready(self.parties[from].now) {
            match self.start_on(&mut conversation, (from, to), false) {
                Ok(started) => effects = started,
                Err(error) => {
                    self.count(error.code());
                    self.rows[from][row].lost = true;
                    self.live.insert((from, to), conversation);
                    return;
                }
            }
        }
        let party = &mut self.parties[from];
        let context = Context { identity: &party.identity, policy: party.policy, padding, now: party.now };
        let sent = conversation.encrypt(&context, &self.rows[from][row].plaintext, &mut party.rng).unwrap();
        effects.append(sent.effects);
        assert!(party.rows.commit(effects));
        self.rows[from][row].pinned = conversation.pin().unwrap().user_key;
        self.live.insert((from, to), conversation);
        self.launch((from, to), sent.blob, Some(row));
    }

    fn start(&mut self, from: usize, to: usize) {
        let mut conversation = self.take(from, to);
        if let Ok(effects) = self.start_on(&mut conversation, (from, to), false) {
            assert!(self.parties[from].rows.commit(effects));
        }
        self.live.insert((from, to), conversation);
        self.send(from, to);
    }

    fn start_on(
        &mut self,
        conversation: &mut Conversation,
        (from, to): (usize, usize),
        repair: bool,
    ) -> Result<Effects, ProtocolError> {
        let (address, now) = (self.parties[to].address(), self.parties[from].now);
        let bundle = self.parties[to].bundle().validate(&app(), &address, now)?;
        let party = &mut self.parties[from];
        let context = Context { identity: &party.identity, policy: party.policy, padding, now };
        let started = if repair {
            conversation.start_repair(&context, &bundle, None, &mut party.rng)?
        } else {
            conversation.start(&context, &bundle, None, &mut party.rng)?
        };
        Ok(started.effects)
    }

    fn launch(&mut self, (from, to): (usize, usize), blob: Vec<u8>, content: Option<usize>) {
        let flight = Flight { id: self.seen.len(), from, to, blob, content, sent: self.parties[from].now };
        self.seen.push(flight.clone());
        self.wire.push_back(flight);
    }

    fn deliver_at(&mut self, place: usize) {
        let flight = self.wire.remove(place).unwrap();
        self.arrive(&flight, None);
    }

    /// A blob, or one bit of it changed, reaches its receiver.
    fn arrive(&mut self, flight: &Flight, flipped: Option<usize>) {
        let mut blob = flight.blob.clone();
        if let Some(bit) = flipped {
            blob[bit / 8] ^= 1 << (bit % 8);
        }
        let (owner, peer) = (flight.to, flight.from);
        let mut conversation = self.take(owner, peer);
        let before = self.parties[owner].rows.clone();
        let mut rng =
            std::mem::replace(&mut self.parties[owner].rng, super::DeterministicRandom::new([0; 32]));
        let outcome = self.parties[owner].open_on(&mut conversation, &blob, &mut rng);
        self.parties[owner].rng = rng;
        match outcome {
            Ok(received) => {
                assert_eq!(flipped, None, "a changed message was read");
                assert!(self.accepted.insert(flight.id), "a blob was read twice");
                assert!(self.parties[owner].rows.commit(received.effects));
                self.live.insert((owner, peer), conversation);
                self.count("OK");
                if let Some(reply) = received.reply {
                    self.count("REPLY");
                    self.launch((owner, peer), reply, None);
                }
                self.read((owner, peer), flight, &received.plaintext);
            }
            Err(error) => {
                assert_eq!(self.parties[owner].rows, before, "a refused message changed a row");
                self.live.insert((owner, peer), conversation);
                self.count(error.code());
                self.failed((flight, flipped.is_some()), &blob, &error);
            }
        }
    }

    fn read(&mut self, (owner, peer): (usize, usize), flight: &Flight, plaintext: &Plaintext) {
        if plaintext.kind.is_application() {
            let row = &mut self.rows[peer][flight.content.expect("a content that was sent")];
            assert_eq!(*plaintext, row.plaintext);
            // The application's once-only key: copies that were sent again are shown once.
            row.shown = 1;
        } else if let Ok(request) = plaintext.requested() {
            let number = u64::from_be_bytes(request.message.as_bytes()[8..].try_into().unwrap());
            let asked = &self.seen[usize::try_from(number).unwrap()];
            let (sent_to, asked_by) = (self.parties[asked.to].address(), self.parties[peer].address());
            let Some(content) = asked.content.filter(|_| asked.from == owner) else { return };
            let row = &self.rows[owner][content];
            let facts = ResendFacts {
                receipted: row.shown > 0,
                sent_to: &sent_to,
                asked_by: &asked_by,
                pinned_then: &row.pinned,
                resends: row.resends,
            };
            let pin = self.live.get(&(owner, peer)).and_then(Conversation::pin).cloned();
            if may_resend(&facts, pin.as_ref()) == Resend::Yes {
                self.rows[owner][content].resends += 1;
                self.send_row(owner, content);
            }
        }
    }

    fn failed(&mut self, (flight, changed): (&Flight, bool), blob: &[u8], error: &ProtocolError) {
        let read_before = self.accepted.contains(&flight.id);
        let key_expired = self.parties[flight.to].now.since(flight.sent) >= limits::STORED_KEY_LIFETIME;
        if matches!(error, ProtocolError::Duplicate) && !changed {
            assert!(read_before || key_expired, "a message that was never read is called a duplicate");
        }
        if !error.wants_repair() {
            let quiet = matches!(error, ProtocolError::Duplicate) || changed;
            assert!(quiet, "{error:?}");
            if let (false, Some(content)) = (changed, flight.content) {
                self.rows[flight.from][content].reported |= !read_before;
            }
            return;
        }
        if let Some(content) = flight.content {
            self.rows[flight.from][content].reported = true;
        }
        let (by, from) = (flight.to, flight.from);
        let mut conversation = self.take(by, from);
        let mut id = [0; 16];
        id[8..].copy_from_slice(&u64::try_from(flight.id).unwrap().to_be_bytes());
        let party = &mut self.parties[by];
        let context = Context { identity: &party.identity, policy: party.policy, padding, now: party.now };
        let failed = Failed { message: MessageId::from_bytes(id), blob, error };
        let failure = conversation.failed(&context, &failed, &mut party.rng).unwrap();
        assert!(party.rows.commit(failure.effects));
        self.live.insert((by, from), conversation);
        self.requests.push(Request { by, from, plaintext: failure.request.expect("a request") });
        self.send_requests();
    }

    /// Sends the requests that can go out now.
    fn send_requests(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            let (by, from) = (request.by, request.from);
            let mut conversation = self.take(by, from);
            let mut effects = Effects::new();
            let ready = match conversation.repair_route(self.parties[by].now) {
                RepairRoute::Working => true,
                RepairRoute::Wait => false,
                RepairRoute::Fresh => match self.start_on(&mut conversation, (by, from), true) {
                    Ok(started) => {
                        effects = started;
                        true
                    }
                    Err(error) => {
                        self.count(error.code());
                        false
                    }
                },
            };
            if ready {
                let party = &mut self.parties[by];
                let context =
                    Context { identity: &party.identity, policy: party.policy, padding, now: party.now };
                let sent = conversation.encrypt_repair(&context, &request.plaintext, &mut party.rng).unwrap();
                effects.append(sent.effects);
                assert!(party.rows.commit(effects));
                self.launch((by, from), sent.blob, None);
            } else {
                self.requests.push(request);
            }
            self.live.insert((by, from), conversation);
        }
    }

    fn check_bounds(&self) {
        for (owner, party) in self.parties.iter().enumerate() {
            for peer in (0..self.parties.len()).filter(|peer| *peer != owner) {
                let conversation = party.conversation(&self.parties[peer].address());
                assert!(conversation.archived() <= limits::MAX_ARCHIVED_SESSIONS);
                assert!(conversation.stored_keys() <= limits::MAX_STORED_KEYS);
            }
            let largest = |kind| party.rows.of(kind).iter().map(|row| row.len()).max().unwrap_or(0);
            assert!(largest(RecordKind::Session) < 512 && largest(RecordKind::SessionRoot) < 512);
            assert!(largest(RecordKind::ArchivedSession) < 1_024);
            assert!(party.rows.count(RecordKind::Session) <= 2 * (self.parties.len() - 1));
        }
    }

    /// The network behaves from here on. Within a few exchanges everybody reads everybody at once, and every content
    /// that no network lost was shown, or its failure is known.
    fn recover(&mut self) {
        let others = self.parties.len() - 1;
        for _ in 0..6 {
            self.settle();
            self.pass(HOUR);
            let first: Vec<_> = self.rows.iter().map(Vec::len).collect();
            for from in 0..=others {
                for step in 1..=others {
                    self.send(from, (from + step) % (others + 1));
                }
            }
            self.settle();
            let probes = self.rows.iter().zip(first).flat_map(|(rows, first)| &rows[first..]);
            if probes.into_iter().all(|row| row.shown == 1 && !row.reported) && self.requests.is_empty() {
                return self.check_contents();
            }
        }
        panic!("they do not talk again: {:?}", self.codes);
    }

    fn settle(&mut self) {
        for _ in 0..5_000 {
            if self.wire.is_empty() {
                return;
            }
            self.deliver_at(0);
        }
        panic!("the exchange does not come to an end: {:?}", self.codes);
    }

    fn check_contents(&self) {
        for (from, rows) in self.rows.iter().enumerate() {
            for (number, row) in rows.iter().enumerate() {
                assert!(row.shown == 1 || row.reported || row.lost, "content {number} of {from} vanished");
            }
        }
    }
}
