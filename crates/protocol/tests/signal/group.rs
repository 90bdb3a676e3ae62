//! Sender keys.

use proptest::prelude::*;
use stvor_crypto::Secret;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::limits::{MAX_ALTERNATE_KEYS, MAX_SENDER_KEY_STATES, MAX_SKIP, MAX_STORED_KEYS};
use stvor_protocol::signal::{Compatibility, SenderKeyDistribution, SenderKeyRecord, SignalError};

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
            let stored = record.encode();
            let mut room = vec![0xff; record.size()];
            assert!(record.encode_into(&mut room));
            assert_eq!(room, stored.expose(), "written in place, and as bytes");
            *record = SenderKeyRecord::decode(stored.expose()).unwrap();
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

/// Bytes of a record with one chain and so many stored keys.
fn size_of(keys: usize) -> usize {
    2 + 141 + 36 * keys
}

#[test]
fn even_only_counters_are_read_for_ever_and_a_hundred_keys_of_the_others_are_kept() {
    let mut group = Group::new();
    let mut unused = Vec::new();
    for number in 0..3_000u32 {
        let message = group.send(&number.to_be_bytes());
        unused.push(group.send(b"late"));
        assert_eq!(group.read(&message).unwrap(), number.to_be_bytes());
        // The last one of `unused` was not passed over yet.
        let keys = (unused.len() - 1).min(MAX_ALTERNATE_KEYS);
        assert_eq!(group.member.encode().len(), size_of(keys));
    }
    group.restart();
    let last = unused.len() - 1;
    let (gone, kept) = (&unused[last - MAX_ALTERNATE_KEYS - 1], &unused[last - MAX_ALTERNATE_KEYS]);
    assert_eq!(group.read(gone).unwrap_err(), SignalError::Duplicate, "the 101st");
    assert_eq!(group.read(kept).unwrap(), b"late", "the 100th");
}

#[test]
fn keys_of_real_gaps_stay_when_a_sender_skips_every_other_number() {
    let mut group = Group::new();
    let late: Vec<_> = (0..50).map(|_| group.send(b"late")).collect();
    for _ in 0..300 {
        let message = group.send(b"even");
        let _ = group.send(b"unused");
        assert_eq!(group.read(&message).unwrap(), b"even");
    }
    assert_eq!(group.member.encode().len(), size_of(MAX_ALTERNATE_KEYS + late.len()));
    for message in late.iter().rev() {
        assert_eq!(group.read(message).unwrap(), b"late");
    }
}

#[test]
fn record_that_is_full_of_unused_keys_gets_small() {
    let mut group = Group::new();
    for _ in 0..MAX_STORED_KEYS {
        let _ = group.send(b"unused");
    }
    let message = group.send(b"far");
    assert_eq!(group.read(&message).unwrap(), b"far");
    // As another library stored them: of every other number.
    let mut parts = group.member.take_apart().unwrap();
    parts[0].message_keys.retain(|(number, _)| number % 2 == 1);
    group.member = SenderKeyRecord::put_together(parts).unwrap();
    let before = group.member.encode();
    assert_eq!(before.len(), size_of(MAX_STORED_KEYS / 2), "taken in whole");
    let next = group.send(b"next");
    assert_eq!(group.read(&next).unwrap(), b"next");
    assert_eq!(group.member.encode().len(), before.len(), "nothing was passed over");
    let _ = group.send(b"unused");
    let after = group.send(b"after");
    assert_eq!(group.read(&after).unwrap(), b"after");
    // The one that was passed over now stands by itself: a message in between came.
    assert_eq!(group.member.encode().len(), size_of(MAX_ALTERNATE_KEYS + 1));
}

/// How a message fares: lost, or this many places late.
fn fate() -> impl Strategy<Value = Option<usize>> {
    let late = 0..MAX_ALTERNATE_KEYS - 10;
    prop_oneof![1 => Just(None), 6 => Just(Some(0)), 3 => (0..4_usize).prop_map(Some), 2 => late.prop_map(Some)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whether a sender uses every number or every other one: whatever is less than 90 messages late is read, once. The
    /// record holds the keys of what is late or lost, each with the two beside it, and 100 of numbers that are not used; more
    /// only while nothing but late messages come.
    #[test]
    fn what_comes_late_is_read_once_whatever_numbers_its_sender_uses(
        fates in prop::collection::vec(fate(), 1..400),
        every_other in any::<bool>(),
    ) {
        let mut group = Group::new();
        let mut under_way: Vec<(usize, usize, Vec<u8>)> = Vec::new();
        let mut lost = 0;
        for (place, fate) in fates.iter().enumerate() {
            let message = group.send(&place.to_be_bytes());
            if every_other {
                let _ = group.send(b"unused");
            }
            match fate {
                Some(late) => under_way.push((place + late, place, message)),
                None => lost += 1,
            }
        }
        under_way.sort_by_key(|(due, place, _)| (*due, *place));
        let order: Vec<usize> = under_way.iter().map(|(_, place, _)| *place).collect();
        let (mut next, mut since) = (0, 0);
        for (turn, (_, place, message)) in under_way.iter().enumerate() {
            prop_assert_eq!(group.read(message).unwrap(), place.to_be_bytes());
            prop_assert_eq!(group.read(message).unwrap_err(), SignalError::Duplicate);
            if turn % 16 == 0 {
                group.restart();
            }
            let number = place * (1 + usize::from(every_other));
            since = if number == next + 1 { 0 } else { since + 1 };
            next = next.max(number + 1);
            let newest = order[..=turn].iter().max().unwrap();
            let missing = lost + order[turn + 1..].iter().filter(|place| *place < newest).count();
            let keys = 3 * missing + MAX_ALTERNATE_KEYS + 2 * since;
            prop_assert!(group.member.encode().len() <= size_of(keys), "{missing} are missing");
        }
    }
}

#[test]
fn what_is_weaker_is_told_of_every_record_with_a_key() {
    let group = Group::new();
    let expected = [Compatibility::NoPostQuantum, Compatibility::NoAssociatedData];
    assert!(SenderKeyRecord::new().compatibility().is_empty());
    assert_eq!(
        (group.own.compatibility(), group.member.compatibility()),
        (expected.to_vec(), expected.to_vec())
    );
    let imported = SenderKeyRecord::put_together(group.member.take_apart().unwrap()).unwrap();
    assert_eq!(imported.compatibility(), expected);
    assert_eq!(expected.map(Compatibility::code), ["no-post-quantum", "no-associated-data"]);
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
