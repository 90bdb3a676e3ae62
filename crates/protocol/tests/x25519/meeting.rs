//! Two suites never meet: whatever a relay swaps or strips, nothing is agreed on, and nothing stored changes.

use stvor_base::{ErrorCode, KeyBytes, Suite, Timestamp};
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::*;

use super::conversation::model::{Party, address, app, code, pair};

/// A user of the other suite, under the same name: what a relay that wants a downgrade would make up.
fn p256(name: &str) -> (Identity, PrekeyBundleIn) {
    let now = Timestamp::from_millis(1_800_000_000_000);
    let mut rng = DeterministicRandom::from_label("a downgrade");
    let (identity, _) = Identity::create(&app(), &address(name), now, &mut rng).unwrap();
    let made = Prekeys::default().maintain(&identity, ServerCounts::default(), now, &mut rng).unwrap();
    let upload = made.upload.unwrap();
    let (signed, kem) = (upload.signed.unwrap(), upload.kem_last.unwrap());
    let bundle = PrekeyBundleIn {
        list: identity.signed_list().clone(),
        device: 1,
        signed: SignedPrekeyIn {
            id: signed.id,
            created: signed.created,
            public: signed.public.to_vec(),
            signature: signed.signature.to_vec(),
        },
        one_time: None,
        kem: KemPrekeyIn {
            kind: KemKind::LastResort,
            id: kem.id,
            created: kem.created,
            public: kem.public,
            signature: kem.signature.to_vec(),
        },
    };
    (identity, bundle)
}

#[test]
fn a_bundle_of_another_suite_starts_nothing_whatever_the_policy() {
    for known in [false, true] {
        let (mut alice, bob) = if known { pair() } else { (Party::new("alice"), Party::new("bob")) };
        let b = bob.address();
        alice.policy = TrustPolicy { first: FirstContact::FirstUse, mismatch: OnMismatch::Replace };
        let (_, bundle) = p256("bob");
        let bundle = bundle.validate(&app(), &b, alice.now).unwrap();
        assert_eq!(bundle.suite(), Suite::P256);
        let before = alice.rows.clone();
        assert_eq!(code(alice.start_with(&bundle, "down")), "SUITE_MISMATCH");
        assert_eq!(alice.rows, before);
        let pinned = alice.conversation(&b).pin().map(|pin| pin.user_key.suite());
        assert_eq!(pinned, known.then_some(Suite::X25519));
    }
}

#[test]
fn a_bundle_with_keys_of_two_suites_is_refused() {
    let (_, foreign) = p256("bob");
    let mut bob = Party::new("bob");
    let good = bob.bundle();
    let refused = |bundle: &PrekeyBundleIn| {
        assert_eq!(code(bundle.validate(&app(), &address("bob"), bob.now).map(|_| ())), "BAD_BUNDLE");
    };
    refused(&PrekeyBundleIn { signed: foreign.signed.clone(), ..good.clone() });
    refused(&PrekeyBundleIn { kem: foreign.kem.clone(), ..good.clone() });
    refused(&PrekeyBundleIn { list: foreign.list.clone(), ..good.clone() });
    let one_time = Some(OneTimeIn { id: 0, public: foreign.signed.public.clone() });
    refused(&PrekeyBundleIn { one_time, ..good.clone() });
    // A signature that is stripped, and a key that gives no secret.
    let mut stripped = good.clone();
    stripped.signed.signature.clear();
    refused(&stripped);
    let one_time = Some(OneTimeIn { id: 0, public: vec![0xff; 32] });
    refused(&PrekeyBundleIn { one_time, ..good });
}

#[test]
fn a_one_time_prekey_of_low_order_starts_nothing() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    for point in [[0; 32], {
        let mut one = [0; 32];
        one[0] = 1;
        one
    }] {
        let one_time = Some(OneTimeIn { id: 0, public: point.to_vec() });
        let bundle = PrekeyBundleIn { one_time, ..bob.bundle() };
        let bundle = bundle.validate(&app(), &bob.address(), alice.now).unwrap();
        let before = alice.rows.clone();
        assert_eq!(code(alice.start_with(&bundle, "weak")), "BAD_BUNDLE");
        assert_eq!(alice.rows, before);
    }
}

#[test]
fn a_message_whose_suite_was_swapped_or_stripped_changes_nothing_and_the_right_one_is_still_read() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let carol_first = Party::new("carol").start(&mut bob, "first").unwrap();
    let blobs = [(a.clone(), alice.send(&b, "words").unwrap()), (address("carol"), carol_first)];
    for (from, blob) in blobs {
        let before = bob.rows.clone();
        assert_eq!(blob[1], Suite::X25519.number());
        for suite in (0..=u8::MAX).filter(|suite| *suite != 2) {
            let mut swapped = blob.clone();
            swapped[1] = suite;
            let refused = code(bob.receive(&from, &swapped));
            let expected: &[&str] =
                if suite == 1 { &["SUITE_MISMATCH", "MALFORMED_MESSAGE"] } else { &["MALFORMED_MESSAGE"] };
            assert!(expected.contains(&refused), "{suite}: {refused}");
        }
        assert_eq!(bob.rows, before);
        assert_eq!(code(bob.receive(&from, &blob)), "OK");
    }
}

#[test]
fn a_handshake_that_presents_an_identity_of_another_suite_is_refused() {
    let (identity, _) = p256("alice");
    let mut bob = Party::new("bob");
    let mut alice = Party::new("alice");
    let first = alice.start(&mut bob, "first").unwrap();
    let list = alice.identity.signed_list().bytes.clone();
    let at = first.windows(list.len()).position(|window| window == list).unwrap();
    let theirs = identity.signed_list();
    let mut forged = first[..at - 4].to_vec();
    forged.extend(u32::try_from(theirs.bytes.len()).unwrap().to_be_bytes());
    forged.extend(&theirs.bytes);
    forged.extend(&theirs.signature);
    forged.extend(&first[at + list.len() + 64..]);
    let grown = theirs.bytes.len() - list.len();
    let part = u32::from_be_bytes(first[27..31].try_into().unwrap()) + u32::try_from(grown).unwrap();
    forged[27..31].copy_from_slice(&part.to_be_bytes());
    let before = bob.rows.clone();
    assert_eq!(code(bob.receive(&alice.address(), &forged)), "SUITE_MISMATCH");
    assert_eq!(bob.rows, before);
}

#[test]
fn a_pin_keeps_its_suite_and_says_so_in_its_first_byte() {
    let (alice, bob) = pair();
    let row = alice.rows.of(RecordKind::Pin)[0].clone();
    assert_eq!(row[0], Suite::X25519.layout(1));
    let pin = Pin::from_record(&row.clone().into()).unwrap();
    assert_eq!(pin.user_key, *bob.identity.user_key());
    // Read as the other suite's it is damaged, not another key.
    let mut other = row;
    other[0] = Suite::P256.layout(1);
    assert_eq!(Pin::from_record(&other.into()).unwrap_err().code(), "BAD_RECORD");
}

#[test]
fn keys_of_two_suites_have_two_safety_numbers() {
    let (alice, bob) = ("alice".parse().unwrap(), "bob".parse().unwrap());
    let number = |a: KeyBytes, b: KeyBytes| {
        let (a, b) = (SafetyParty { user: &alice, user_key: &a }, SafetyParty { user: &bob, user_key: &b });
        let (here, there) = (SafetyNumber::of(&a, &b), SafetyNumber::of(&b, &a));
        assert_eq!(here.digits(), there.digits());
        assert_eq!(here.compare_qr(&there.qr()), QrOutcome::Match);
        here.digits()
    };
    assert_ne!(number([4; 32].into(), [5; 32].into()), number([4; 65].into(), [5; 65].into()));
}

#[test]
fn a_group_takes_no_change_of_another_suite() {
    let alice = Party::new("alice");
    let now = alice.now;
    let mut rng = DeterministicRandom::from_label("group");
    let (mut group, _) = group::Group::create(&alice.identity, "ours", now, &mut rng).unwrap();
    let (foreign, _) = p256("eve");
    let member = group::Member { user: foreign.user().clone(), key: *foreign.user_key() };
    let added = group.change(&alice.identity, (group::Action::Add(vec![member]), now), &mut rng);
    assert_eq!(code(added.map(|_| ())), "BAD_GROUP_CHANGE");
    let (theirs, made) = group::Group::create(&foreign, "theirs", now, &mut rng).unwrap();
    let change = made.change.validate(&app()).unwrap();
    let mut joined = group::Group::join(&alice.identity, theirs.id());
    assert_eq!(code(joined.apply(change).map(|_| ())), "BAD_GROUP_CHANGE");
}
