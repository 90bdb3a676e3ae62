//! Sender keys.

use stvor_crypto::Secret;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::limits::{MAX_SENDER_KEY_STATES, MAX_SKIP, MAX_STORED_KEYS};
use stvor_protocol::signal::{SenderKeyDistribution, SenderKeyRecord, SignalError};

struct Group {
    own: SenderKeyRecord,
    member: SenderKeyRecord,
    rng: DeterministicRandom,
}

impl Group {
    fn new() -> Self {
        let rng = DeterministicRandom::from_label("group");
        let mut group = Self { own: SenderKeyRecord::new(), member: SenderKeyRecord::new(), rng };
        group.distribute();
        group
    }

    fn distribute(&mut self) {
        let bytes = self.own.distribution(&mut self.rng).unwrap().encode();
        self.member.process(&SenderKeyDistribution::parse(&bytes).unwrap()).unwrap();
    }

    fn send(&mut self, text: &[u8]) -> Vec<u8> {
        self.own.encrypt(text, &mut self.rng).unwrap()
    }

    fn read(&mut self, message: &[u8]) -> Result<Vec<u8>, SignalError> {
        self.member.decrypt(message).map(|text| text.expose().to_vec())
    }

    fn restart(&mut self) {
        for record in [&mut self.own, &mut self.member] {
            *record = SenderKeyRecord::decode(record.encode().expose()).unwrap();
        }
    }
}

#[test]
fn group_messages_are_read_once_in_any_order() {
    let mut group = Group::new();
    let messages: Vec<_> = (0..6u8).map(|number| group.send(&[number])).collect();
    for number in [5u8, 0, 3, 1, 4, 2] {
        assert_eq!(group.read(&messages[usize::from(number)]).unwrap(), [number]);
        group.restart();
        assert_eq!(group.read(&messages[usize::from(number)]).unwrap_err(), SignalError::Duplicate);
    }
}

#[test]
fn every_flipped_bit_is_refused_and_changes_nothing() {
    let mut group = Group::new();
    let _ = group.send(b"lost");
    let message = group.send(b"text");
    let before = group.member.encode();
    for bit in 0..message.len() * 8 {
        let mut changed = message.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(group.read(&changed).is_err(), "bit {bit}");
        assert!(group.member.encode() == before, "bit {bit}");
    }
    assert_eq!(group.read(&message).unwrap(), b"text");
}

#[test]
fn a_distribution_that_comes_again_rewinds_nothing() {
    let mut group = Group::new();
    let early = group.own.distribution(&mut group.rng).unwrap();
    let message = group.send(b"one");
    assert_eq!(group.read(&message).unwrap(), b"one");
    group.member.process(&early).unwrap();
    assert_eq!(group.read(&message).unwrap_err(), SignalError::Duplicate);
}

#[test]
fn who_missed_too_much_reads_again_from_a_new_distribution_on() {
    let mut group = Group::new();
    let late = group.send(b"late");
    let one = group.send(b"one");
    assert_eq!(group.read(&one).unwrap(), b"one");
    for _ in 0..=MAX_SKIP {
        let _ = group.send(b"missed");
    }
    let far = group.send(b"far");
    assert!(matches!(group.read(&far).unwrap_err(), SignalError::TooFarAhead { .. }));
    let again = group.own.distribution(&mut group.rng).unwrap();
    group.member.process(&again).unwrap();
    let next = group.send(b"again");
    assert_eq!(group.read(&next).unwrap(), b"again");
    assert_eq!(group.read(&late).unwrap(), b"late", "keys that were kept stay");
    // Ours is not moved by anybody.
    let own = group.own.encode();
    group.own.process(&again).unwrap();
    assert!(group.own.encode() == own);
}

#[test]
fn a_late_joiner_reads_from_its_distribution_on() {
    let mut group = Group::new();
    let before = group.send(b"before");
    let mut joiner = SenderKeyRecord::new();
    joiner.process(&group.own.distribution(&mut group.rng).unwrap()).unwrap();
    let after = group.send(b"after");
    assert_eq!(joiner.decrypt(&before).unwrap_err(), SignalError::Duplicate);
    assert_eq!(joiner.decrypt(&after).unwrap().expose(), b"after");
}

#[test]
fn a_rotated_key_is_new_to_who_has_the_old_one() {
    let mut group = Group::new();
    let late = group.send(b"late");
    group.own.rotate(&mut group.rng).unwrap();
    let message = group.send(b"new chain");
    assert_eq!(group.read(&message).unwrap_err(), SignalError::NoSenderKey);
    // The copy that the distribution brings starts after that message.
    group.distribute();
    let next = group.send(b"next");
    assert_eq!(group.read(&next).unwrap(), b"next");
    assert_eq!(group.read(&late).unwrap(), b"late", "the old chain is kept");
}

#[test]
fn five_chains_are_kept() {
    let mut group = Group::new();
    let oldest = group.send(b"oldest");
    for _ in 1..MAX_SENDER_KEY_STATES {
        group.own.rotate(&mut group.rng).unwrap();
        group.distribute();
    }
    group.restart();
    let before = SenderKeyRecord::decode(group.member.encode().expose()).unwrap();
    assert_eq!(group.read(&oldest).unwrap(), b"oldest");
    group.member = before;
    group.own.rotate(&mut group.rng).unwrap();
    group.distribute();
    assert_eq!(group.read(&oldest).unwrap_err(), SignalError::NoSenderKey);
}

#[test]
fn a_member_can_not_send_in_the_name_of_another() {
    let mut group = Group::new();
    assert_eq!(group.member.encrypt(b"mine", &mut group.rng).unwrap_err(), SignalError::NoSenderKey);
    assert_eq!(group.member.distribution(&mut group.rng).unwrap_err(), SignalError::NoSenderKey);
    // A member knows the chain, and signs with a key of its own.
    let known = group.own.distribution(&mut group.rng).unwrap();
    let mut mallory = SenderKeyRecord::new();
    let signing = mallory.distribution(&mut group.rng).unwrap().signing_key;
    let parts = mallory.take_apart().unwrap().pop().unwrap();
    let forged = stvor_protocol::signal::SenderKeyText {
        id: known.id,
        chain_key: known.chain_key.duplicate(),
        signing_public: signing,
        ..parts
    };
    let message =
        SenderKeyRecord::put_together(vec![forged]).unwrap().encrypt(b"forged", &mut group.rng).unwrap();
    assert_eq!(group.read(&message).unwrap_err(), SignalError::Undecryptable);
}

#[test]
fn even_only_counters_are_read_for_ever_in_bounded_space() {
    let mut group = Group::new();
    let mut size = 0;
    for number in 0..3_000u32 {
        let message = group.send(&number.to_be_bytes());
        let _ = group.send(b"never sent");
        assert_eq!(group.read(&message).unwrap(), number.to_be_bytes());
        size = size.max(group.member.encode().len());
    }
    assert!(size <= 36 * MAX_STORED_KEYS + 200, "{size}");
}

#[test]
fn two_thousand_ahead_are_read_and_one_more_is_not() {
    let mut group = Group::new();
    for _ in 0..MAX_SKIP {
        let _ = group.send(b"lost");
    }
    let message = group.send(b"far");
    assert_eq!(group.read(&message).unwrap(), b"far");
    for _ in 0..=MAX_SKIP {
        let _ = group.send(b"lost");
    }
    let message = group.send(b"too far");
    let (ahead, limit) = (MAX_SKIP + 1, MAX_SKIP);
    assert_eq!(group.read(&message).unwrap_err(), SignalError::TooFarAhead { ahead, limit });
}

#[test]
fn records_taken_apart_are_put_together_and_checked() {
    let mut group = Group::new();
    let (late, message) = (group.send(b"late"), group.send(b"one"));
    assert_eq!(group.read(&message).unwrap(), b"one");
    for record in [&mut group.own, &mut group.member] {
        let again = SenderKeyRecord::put_together(record.take_apart().unwrap()).unwrap();
        assert!(again.encode() == record.encode());
        *record = again;
    }
    assert_eq!(group.read(&late).unwrap(), b"late");
    let mut parts = group.member.take_apart().unwrap();
    parts[0].message_keys.push((9, Secret::new([1; 32])));
    assert!(matches!(SenderKeyRecord::put_together(parts), Err(SignalError::BadRecord(_))));
    let twice = [group.member.take_apart().unwrap(), group.member.take_apart().unwrap()];
    assert!(SenderKeyRecord::put_together(twice.into_iter().flatten().collect()).is_err());
    assert!(!format!("{:?} {:?}", group.own, group.own.take_apart().unwrap()).contains("Secret("));
}
