//! The Signal profile: messages of strangers, and records of a damaged or foreign store.

use std::sync::OnceLock;

use stvor_base::Timestamp;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::signal::{
    Context, KeyPair, OneTimeIn, PreKeyBundleIn, PreKeyMessage, Prekeys, SenderKeyDistribution,
    SenderKeyRecord, SessionRecord, WhisperMessage, cipher, session, wire::SenderKeyMessage,
};

/// The targets of this profile.
pub const TARGETS: &[crate::Target] = &[
    ("signal-decoders", decoders),
    ("signal-first-message", first_message),
    ("signal-message", message),
    ("signal-group-message", group_message),
    ("signal-record", record),
    ("signal-record-json", record_json),
    ("signal-group-record", group_record),
];

/// Alice wrote to Bob, and both to a group; always the same.
pub struct Talk {
    bob: KeyPair,
    signed: KeyPair,
    one_time: KeyPair,
    /// The first message, which carries a handshake.
    pub first: Vec<u8>,
    /// One after an answer.
    pub later: Vec<u8>,
    /// Bob's record before that one.
    pub record: Vec<u8>,
    /// The same as JSON.
    pub json: Vec<u8>,
    /// Alice's sender key.
    pub distribution: Vec<u8>,
    /// Her message to the group.
    pub to_group: Vec<u8>,
    /// A member's record before that one.
    pub group_record: Vec<u8>,
}

fn context(identity: &KeyPair) -> Context<'_> {
    Context { identity, registration_id: 7, now: Timestamp::from_millis(1_700_000_000_000) }
}

impl Talk {
    /// Lets them talk.
    pub fn new() -> Self {
        let rng = &mut DeterministicRandom::from_label("signal");
        let mut pair = || KeyPair::generate(rng).expect("a key");
        let (alice, bob, signed, one_time) = (pair(), pair(), pair(), pair());
        let bundle = PreKeyBundleIn {
            registration_id: 7,
            identity: bob.public().to_bytes().to_vec(),
            signed_id: 1,
            signed: signed.public().to_bytes().to_vec(),
            signature: bob.sign(&signed.public().to_bytes(), rng).expect("a signature").to_vec(),
            one_time: Some(OneTimeIn { id: 0, public: one_time.public().to_bytes().to_vec() }),
        };
        let (mut hers, mut his) = (SessionRecord::new(), SessionRecord::new());
        let bundle = bundle.validate().expect("a good bundle");
        let _ = session::start(&mut hers, &context(&alice), &bundle, rng).expect("a session");
        let first = cipher::encrypt(&mut hers, &context(&alice), b"first").expect("a message").body;
        let parsed = PreKeyMessage::parse(&first).expect("a message");
        let prekeys = Prekeys { signed: Some(&signed), one_time: Some(&one_time) };
        let _ = cipher::decrypt_prekey(&mut his, &context(&bob), (&parsed, prekeys), rng).expect("read");
        let answer = cipher::encrypt(&mut his, &context(&bob), b"answer").expect("a message").body;
        let answer = WhisperMessage::parse(&answer).expect("a message");
        let _ = cipher::decrypt(&mut hers, &context(&alice), &answer, rng).expect("read");
        let _ = cipher::encrypt(&mut hers, &context(&alice), b"lost").expect("a message");
        let later = cipher::encrypt(&mut hers, &context(&alice), b"later").expect("a message").body;
        let (mut own, mut member) = (SenderKeyRecord::new(), SenderKeyRecord::new());
        let distribution = own.distribution(rng).expect("a sender key");
        member.process(&distribution).expect("taken in");
        let to_group = own.encrypt(b"to all", rng).expect("a message");
        let (record, json) = (his.encode(), his.to_json().expect("a record"));
        Self {
            bob,
            signed,
            one_time,
            first,
            later,
            record: record.expose().to_vec(),
            json: json.expose().to_vec(),
            distribution: distribution.encode(),
            to_group,
            group_record: member.encode().expose().to_vec(),
        }
    }

    fn shared() -> &'static Self {
        static TALK: OnceLock<Talk> = OnceLock::new();
        TALK.get_or_init(Self::new)
    }
}

fn rng() -> DeterministicRandom {
    DeterministicRandom::from_label("signal targets")
}

fn decoders(data: &[u8]) {
    if let Ok(message) = WhisperMessage::parse(data) {
        assert!(message.ciphertext().len() % 16 == 0 && !message.ciphertext().is_empty());
        let _ = format!("{message:?}");
    }
    if let Ok(message) = PreKeyMessage::parse(data) {
        assert_eq!(message.identity().to_bytes()[0], 5);
    }
    let _ = SenderKeyMessage::parse(data);
    if let Ok(key) = SenderKeyDistribution::parse(data) {
        assert_eq!(SenderKeyDistribution::parse(&key.encode()).expect("what was written"), key);
    }
}

/// What was changed is refused and changes nothing, but for the registration id, which nothing authenticates.
fn first_message(data: &[u8]) {
    let talk = Talk::shared();
    let Ok(message) = PreKeyMessage::parse(data) else { return };
    let mut record = SessionRecord::new();
    let prekeys = Prekeys { signed: Some(&talk.signed), one_time: Some(&talk.one_time) };
    match cipher::decrypt_prekey(&mut record, &context(&talk.bob), (&message, prekeys), &mut rng()) {
        Ok(read) => assert_eq!(read.plaintext.expose(), b"first"),
        Err(_) => assert!(record.encode() == SessionRecord::new().encode()),
    }
}

fn message(data: &[u8]) {
    let talk = Talk::shared();
    let Ok(parsed) = WhisperMessage::parse(data) else { return };
    let mut record = SessionRecord::decode(&talk.record).expect("a record");
    let read = cipher::decrypt(&mut record, &context(&talk.bob), &parsed, &mut rng());
    assert_eq!(read.is_ok(), data == talk.later, "a changed message was read, or a good one was not");
    if read.is_err() {
        assert!(record.encode().expose() == talk.record);
    }
}

fn group_message(data: &[u8]) {
    let talk = Talk::shared();
    let mut record = SenderKeyRecord::decode(&talk.group_record).expect("a record");
    assert_eq!(record.decrypt(data).is_ok(), data == talk.to_group);
}

/// What loads must bear a message, and read back as it is written.
fn record(data: &[u8]) {
    let talk = Talk::shared();
    let Ok(mut record) = SessionRecord::decode(data) else { return };
    let stored = record.encode();
    let again = SessionRecord::decode(stored.expose()).expect("what was written");
    assert!(again.encode() == stored);
    let _ = record.sessions();
    let _ = record.to_json();
    let later = WhisperMessage::parse(&talk.later).expect("a message");
    let _ = cipher::decrypt(&mut record, &context(&talk.bob), &later, &mut rng());
    let _ = cipher::encrypt(&mut record, &context(&talk.bob), b"x");
}

fn record_json(data: &[u8]) {
    if let Ok(record) = SessionRecord::from_json(data) {
        let stored = record.encode();
        let again = SessionRecord::decode(stored.expose()).expect("what was written");
        let json = again.to_json().expect("what was read");
        let back = SessionRecord::from_json(json.expose()).expect("what was written");
        assert!(back.sessions().expect("sessions").len() == again.sessions().expect("sessions").len());
    }
}

fn group_record(data: &[u8]) {
    let talk = Talk::shared();
    if let Ok(mut record) = SenderKeyRecord::decode(data) {
        let _ = record.take_apart().and_then(SenderKeyRecord::put_together);
        let _ = record.decrypt(&talk.to_group);
        let _ = record.encrypt(b"x", &mut rng());
    }
}
