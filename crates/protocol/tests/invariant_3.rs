//! I3: what fails changes nothing: no row, and nothing in memory, so that the same value reads the original afterwards.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

mod model;

use model::{Dry, Party, code, pair, writes};
use proptest::prelude::*;
use stvor_protocol::*;

/// One message that is refused, with the state that it meets.
struct Case {
    reader: Party,
    from: stvor_base::Address,
    blob: Vec<u8>,
    code: &'static str,
}

fn case(reader: &Party, from: &Party, blob: &[u8], code: &'static str) -> Case {
    Case { reader: reader.fork(), from: from.address(), blob: blob.to_vec(), code }
}

fn changed(blob: &[u8], place: usize) -> Vec<u8> {
    let mut changed = blob.to_vec();
    let place = place.min(blob.len() - 1);
    changed[place] ^= 0x55;
    changed
}

/// Every way to be refused.
fn cases() -> Vec<Case> {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut cases = Vec::new();
    let blobs: Vec<_> = (0..4).map(|_| alice.send(&b, "n").unwrap()).collect();
    bob.receive(&a, &blobs[2]).unwrap();
    for (blob, why) in [
        (changed(&blobs[3], 0), "FORMAT_TOO_NEW"),
        (changed(&blobs[3], 1), "MALFORMED_MESSAGE"),
        (blobs[3][..100].to_vec(), "MALFORMED_MESSAGE"),
        (changed(&blobs[3], 5), "UNKNOWN_SESSION"),
        (changed(&blobs[3], 22), "UNDECRYPTABLE"),
        (changed(&blobs[3], 60), "UNDECRYPTABLE"),
        (changed(&blobs[3], usize::MAX), "UNDECRYPTABLE"),
        (changed(&blobs[0], usize::MAX), "UNDECRYPTABLE"),
        (changed(&blobs[3], 27 + model::suite().key_bytes() + 4), "TOO_FAR_AHEAD"),
        (blobs[2].clone(), "DUPLICATE"),
    ] {
        cases.push(case(&bob, &alice, &blob, why));
    }
    let mut verified_only = case(&bob, &alice, &blobs[3], "IDENTITY_NOT_VERIFIED");
    verified_only.reader.policy.first = FirstContact::VerifiedOnly;
    cases.push(verified_only);
    // Stored rows that are damaged or of a later version.
    for (byte, why) in [(0, "FORMAT_TOO_NEW"), (32, "BAD_RECORD")] {
        let mut damaged = case(&bob, &alice, &blobs[0], why);
        for (key, value) in &mut damaged.reader.rows.0 {
            if key.kind == RecordKind::SkippedKeys {
                if byte == 0 { value[0] = 9 } else { value.truncate(byte) }
            }
        }
        cases.push(damaged);
    }
    // Archived sessions.
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    bob.receive(&a, &fresh).unwrap();
    cases.push(case(&bob, &alice, &blobs[2], "DUPLICATE"));
    cases.push(case(&bob, &alice, &changed(&blobs[3], 200), "UNDECRYPTABLE"));
    // Handshakes.
    let effects = bob.conversation(&a).delete();
    assert!(bob.rows.commit(effects));
    cases.push(case(&bob, &alice, &fresh, "REPLAY"));
    let (mut carol, mut dave) = (Party::new("carol"), Party::new("dave"));
    let first = carol.start(&mut dave, "hello").unwrap();
    cases.push(case(&dave, &carol, &changed(&first, usize::MAX), "UNDECRYPTABLE"));
    cases.push(case(&dave, &carol, &changed(&first, 27 + 4 + 3), "UNKNOWN_PREKEY"));
    cases.push(case(&dave, &carol, &changed(&first, 27 + 4 + 14 + 10), "UNDECRYPTABLE"));
    cases.push(case(
        &dave,
        &carol,
        &changed(&first, 27 + 4 + 14 + model::suite().key_bytes() + 9),
        "UNDECRYPTABLE",
    ));
    cases.push(case(
        &dave,
        &carol,
        &changed(&first, 27 + 4 + 14 + model::suite().key_bytes() + 1_088 + 4 + 30),
        "BAD_DEVICE_LIST",
    ));
    let mut asking = case(&dave, &carol, &first, "AWAITING_TRUST");
    asking.reader.policy.first = FirstContact::Ask;
    cases.push(asking);
    dave.receive(&carol.address(), &first).unwrap();
    let mut intruder = Party::seeded("carol", "intruder");
    let first = intruder.start(&mut dave, "it is me").unwrap();
    cases.push(case(&dave, &intruder, &first, "IDENTITY_CHANGED"));
    cases
}

#[test]
fn every_kind_of_refusal_leaves_rows_and_memory_as_they_were() {
    let mut seen = std::collections::BTreeSet::new();
    for case in cases() {
        let Case { mut reader, from, blob, code: expected } = case;
        let before = reader.rows.clone();
        for _ in 0..2 {
            assert_eq!(code(reader.receive(&from, &blob)), expected);
        }
        assert_eq!(reader.rows, before, "{expected}");
        seen.insert(expected);
    }
    assert!(seen.len() >= 13, "{seen:?}");
}

#[test]
fn a_row_that_was_not_loaded_is_an_error_and_the_loaded_one_reads() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let late = alice.send(&b, "late").unwrap();
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    bob.receive(&a, &fresh).unwrap();
    let incoming = Incoming::parse(&late).unwrap();
    let mut conversation = bob.conversation(&a);
    let delivery = Delivery { incoming: &incoming, records: &Records::new(), decision: None };
    let mut rng = Dry::new("x", usize::MAX);
    assert_eq!(code(conversation.decrypt(&bob.context(), delivery, &mut rng)), "MISSING_ROW");
    assert_eq!(code(bob.open_on(&mut conversation, &late, &mut rng)), "OK");
}

/// Runs an operation with randomness that fails at the first, second, third.. call, always on the same value, until it
/// succeeds; what it then gives is what it gives on a fresh value: nothing was left behind by the failures.
fn dry<T>(
    party: &Party,
    peer: &stvor_base::Address,
    operation: impl Fn(&mut Conversation, &mut Dry) -> Result<(T, Effects), ProtocolError>,
) -> usize
where
    T: PartialEq + std::fmt::Debug,
{
    let (expected, effects) =
        operation(&mut party.conversation(peer), &mut Dry::new("dry", usize::MAX)).unwrap();
    let expected_writes = writes(effects);
    let mut survivor = party.conversation(peer);
    for calls in 0..200 {
        match operation(&mut survivor, &mut Dry::new("dry", calls)) {
            Err(error) => assert_eq!(code::<()>(Err(error)), "RNG_UNAVAILABLE"),
            Ok((value, effects)) => {
                assert_eq!(value, expected);
                assert_eq!(writes(effects), expected_writes);
                return calls;
            }
        }
    }
    panic!("it never succeeds");
}

fn dry_open(reader: &Party, from: &stvor_base::Address, blob: &[u8]) -> usize {
    dry(reader, from, |conversation, rng| {
        let received = reader.open_on(conversation, blob, rng)?;
        Ok(((received.plaintext, received.reply), received.effects))
    })
}

fn dry_send(sender: &Party, to: &stvor_base::Address, text: &Plaintext) -> usize {
    dry(sender, to, |conversation, rng| {
        let sent = conversation.encrypt(&sender.context(), text, rng)?;
        Ok((sent.blob, sent.effects))
    })
}

#[test]
fn randomness_that_fails_at_any_call_leaves_a_conversation_as_it_was() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let (a, b) = (alice.address(), bob.address());
    let bundle = bob.bundle().validate(&model::app(), &b, alice.now).unwrap();
    let calls = dry(&alice, &b, |conversation, rng| {
        let started = conversation.start(&alice.context(), &bundle, None, rng)?;
        Ok((started.identity, started.effects))
    });
    assert!(calls >= 3, "{calls}");
    let first = alice.start_with(&bundle, "hello").unwrap();
    let text = alice.text("words");
    assert_eq!(dry_send(&alice, &b, &text), 1);
    assert_eq!(dry_open(&bob, &a, &first), 0);
    bob.receive(&a, &first).unwrap();
    // A turn draws a key as well.
    assert!(dry_send(&bob, &a, &text) >= 2);

    // The fiftieth since Bob sent is answered: on a chain that is known, and on one that it begins, where the answer is on
    // keys that come with it.
    for turns in [false, true] {
        let (mut alice, mut bob) = pair();
        let opening = alice.send(&b, "a new chain").unwrap();
        bob.receive(&a, &opening).unwrap();
        let receipt = Plaintext::receipt(text.content, false, &[text.content]);
        let receipt = bob.send_content(&a, &receipt).unwrap();
        let mut last = Vec::new();
        for n in 1..=50 {
            if turns && n == 50 {
                alice.receive(&b, &receipt).unwrap();
            }
            last = alice.send(&b, "one way").unwrap();
            if n < 50 {
                assert!(bob.receive_full(&a, &last).unwrap().reply.is_none(), "{n}");
            }
        }
        let calls = dry_open(&bob, &a, &last);
        assert!(calls >= if turns { 3 } else { 2 }, "{calls}");
        let reply = bob.receive_full(&a, &last).unwrap().reply.unwrap();
        assert_eq!(alice.receive_full(&b, &reply).unwrap().plaintext.kind, ContentKind::Control);
        let next = alice.send(&b, "goes on").unwrap();
        assert_eq!(bob.receive(&a, &next).unwrap(), "goes on");
    }
    // A failure is recorded with an id of its own.
    let error = ProtocolError::Undecryptable;
    let failed = Failed { message: stvor_base::MessageId::from_bytes([1; 16]), blob: &first, error: &error };
    dry(&bob, &a, |conversation, rng| {
        let failure = conversation.failed(&bob.context(), &failed, rng)?;
        Ok((failure.request, failure.effects))
    });
}

#[test]
fn randomness_that_fails_makes_no_prekey_and_leaves_the_state_as_it_was() {
    let bob = Party::new("bob");
    let mut prekeys = bob.prekeys.clone();
    let counts = ServerCounts { one_time: 0, kem_one_time: 0 };
    for calls in [0, 1, 5, 150] {
        let outcome = prekeys.maintain(&bob.identity, counts, bob.now, &mut Dry::new("x", calls));
        assert_eq!(code(outcome), "RNG_UNAVAILABLE");
        assert_eq!(prekeys, bob.prekeys);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_damage_to_any_message_leaves_the_original_readable(
        damage in proptest::collection::vec((any::<usize>(), 1..=255_u8), 1..12),
        cut in any::<Option<u16>>(),
    ) {
        let (mut alice, bob) = pair();
        let text = alice.text("still there");
        let blob = alice.send_content(&bob.address(), &text).unwrap();
        let mut bad = blob.clone();
        for (place, bits) in damage {
            let place = place % bad.len();
            bad[place] ^= bits;
        }
        if let Some(cut) = cut {
            bad.truncate(usize::from(cut));
        }
        prop_assume!(bad != blob);
        let mut conversation = bob.conversation(&alice.address());
        let mut rng = Dry::new("x", usize::MAX);
        prop_assert!(bob.open_on(&mut conversation, &bad, &mut rng).is_err());
        let received = bob.open_on(&mut conversation, &blob, &mut rng).unwrap();
        prop_assert_eq!(received.plaintext, text);
    }
}
