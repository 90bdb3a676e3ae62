//! I6: identity keys are created once; a second creation is an error.

mod model;

use model::{Party, app, code};
use stvor_base::Suite;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::{Effect, Identity, RecordKind};

#[test]
fn a_second_identity_conflicts_at_commit_and_the_first_one_stands() {
    let mut bob = Party::new("bob");
    let before = bob.rows.clone();
    for seed in ["bob", "another"] {
        let mut rng = DeterministicRandom::from_label(seed);
        let (_, effects) =
            Identity::create_in(model::suite(), (&app(), &bob.address()), bob.now, &mut rng).unwrap();
        assert!(matches!(effects.as_slice(), [Effect::Insert { key, .. }] if *key == Identity::key()));
        assert!(!bob.rows.commit(effects));
        assert_eq!(bob.rows, before);
    }
}

#[test]
fn no_operation_of_a_conversation_or_of_prekeys_writes_the_identity() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let (a, b) = (alice.address(), bob.address());
    let of = |party: &Party| party.rows.of(RecordKind::Identity).into_iter().cloned().collect::<Vec<_>>();
    let before = (of(&alice), of(&bob));
    let first = alice.start(&mut bob, "one").unwrap();
    bob.receive(&a, &first).unwrap();
    let reply = bob.send(&a, "two").unwrap();
    alice.receive(&b, &reply).unwrap();
    for party in [&mut alice, &mut bob] {
        party.pass(stvor_protocol::limits::PREKEY_ROTATION);
        let _ = party.maintain();
    }
    let effects = alice.conversation(&b).reset();
    assert!(alice.rows.commit(effects));
    let effects = bob.conversation(&a).delete();
    assert!(bob.rows.commit(effects));
    assert_eq!((of(&alice), of(&bob)), before);
    assert_eq!(before.0.len(), 1);
}

#[test]
fn a_damaged_identity_is_an_error_and_not_a_new_one() {
    let bob = Party::new("bob");
    let record = bob.rows.0[&Identity::key()].clone();
    let read = |bytes: Vec<u8>| code(Identity::from_record(&bytes.into()).map(|_| ()));
    assert_eq!(read(record.clone()), "OK");
    // Version, device, scalars, length and version of the list, the list, its signature. The time of creation is not
    // bound to anything.
    let list = 1 + 8 + 4 + 96 + 4;
    // Nor are the bits of an agreement key of X25519 that no agreement looks at.
    let idle = |place: &usize| (1..9).contains(place) || model::suite() == Suite::X25519 && *place == 13 + 64;
    for place in (0..record.len()).filter(|place| !idle(place)) {
        let mut changed = record.clone();
        changed[place] ^= 1;
        let expected = if place == 0 || place == list { "FORMAT_TOO_NEW" } else { "BAD_RECORD" };
        assert_eq!(read(changed), expected, "{place}");
    }
    for length in 0..record.len() {
        assert_eq!(read(record[..length].to_vec()), "BAD_RECORD");
    }
    assert_eq!(read([&record[..], &[0]].concat()), "BAD_RECORD");
}
