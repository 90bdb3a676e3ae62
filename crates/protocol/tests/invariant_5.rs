//! I5: one (session, key, number) is accepted once, also after a restart and from two processes at the same instant.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

mod model;

use model::{Party, code, pair};
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::{Conversation, Incoming, Received, RecordKind, limits};

fn rng() -> DeterministicRandom {
    DeterministicRandom::from_label("process")
}

/// Opens on a conversation of a process of its own, loaded from the rows as they are.
fn process<'a>(party: &'a Party, from: &Party) -> impl Fn(&[u8]) -> Received + 'a {
    let address = from.address();
    move |blob| party.open_on(&mut party.conversation(&address), blob, &mut rng()).unwrap()
}

#[test]
fn each_message_of_a_long_exchange_is_accepted_once_in_memory_and_after_a_restart() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut seen = Vec::new();
    for turn in 0..4 {
        let blobs: Vec<_> = (0..6).map(|n| alice.send(&b, &format!("{turn} {n}")).unwrap()).collect();
        for n in [4, 0, 5, 2, 1, 3] {
            let mut live = bob.conversation(&a);
            let first = bob.open_on(&mut live, &blobs[n], &mut rng()).unwrap();
            assert!(bob.rows.commit(first.effects));
            assert_eq!(code(bob.open_on(&mut live, &blobs[n], &mut rng())), "DUPLICATE");
            assert_eq!(code(bob.open_on(&mut bob.conversation(&a), &blobs[n], &mut rng())), "DUPLICATE");
            seen.push(blobs[n].clone());
        }
        let reply = bob.send(&a, "reply").unwrap();
        alice.receive(&b, &reply).unwrap();
    }
    let positions: std::collections::HashSet<_> =
        seen.iter().map(|blob| Incoming::parse(blob).unwrap().position()).collect();
    assert_eq!(positions.len(), seen.len());
    let before = bob.rows.clone();
    for blob in &seen {
        assert_eq!(code(bob.receive(&a, blob)), "DUPLICATE");
    }
    // Nor when the five minutes of the second lock are over and its marks are swept, or after months.
    bob.rows.0.retain(|key, _| key.kind != RecordKind::ReplayMark);
    bob.pass(limits::REPLAY_MARK_LIFETIME * 20_000);
    for blob in &seen {
        assert_eq!(code(bob.receive(&a, blob)), "DUPLICATE");
    }
    bob.rows.0.extend(before.0.clone());
    assert_eq!(bob.rows, before);
}

#[test]
fn of_two_processes_that_read_one_message_at_once_the_second_can_not_commit() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let (a, b) = (alice.address(), bob.address());
    let first = alice.start(&mut bob, "with its handshake").unwrap();
    let known = alice.send(&b, "on the new session").unwrap();
    let race = |bob: &mut Party, alice: &Party, blob: &[u8]| {
        let (one, two) = (process(bob, alice)(blob), process(bob, alice)(blob));
        assert_eq!(one.plaintext, two.plaintext);
        assert!(bob.rows.commit(one.effects));
        let after = bob.rows.clone();
        assert!(!bob.rows.commit(two.effects));
        assert_eq!(bob.rows, after);
    };
    race(&mut bob, &alice, &first);
    race(&mut bob, &alice, &known);
    // In the middle of a chain, with a stored key, at a turn, and on an archived session.
    let reply = bob.send(&a, "reply").unwrap();
    alice.receive(&b, &reply).unwrap();
    let blobs: Vec<_> = (0..4).map(|_| alice.send(&b, "n").unwrap()).collect();
    for n in [2, 0, 3] {
        race(&mut bob, &alice, &blobs[n]);
    }
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    race(&mut bob, &alice, &fresh);
    race(&mut bob, &alice, &blobs[1]);
    for blob in [&first, &known, &blobs[0], &blobs[1], &blobs[2], &blobs[3], &fresh] {
        assert_eq!(code(bob.receive(&a, blob)), "DUPLICATE");
    }
}

#[test]
fn two_processes_that_accept_one_handshake_with_different_messages_make_one_session() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let (a, b) = (alice.address(), bob.address());
    let blobs = [alice.start(&mut bob, "one").unwrap(), alice.send(&b, "two").unwrap()];
    let (one, two) = (process(&bob, &alice)(&blobs[0]), process(&bob, &alice)(&blobs[1]));
    assert!(bob.rows.commit(one.effects));
    assert!(!bob.rows.commit(two.effects), "the mark of the handshake was there");
    assert_eq!(bob.receive(&a, &blobs[1]).unwrap(), "two");
    assert_eq!(bob.rows.count(RecordKind::HandshakeMark), 1);
}

#[test]
fn a_handshake_is_accepted_once_even_when_its_session_and_peer_are_forgotten() {
    for one_time in [true, false] {
        let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
        if !one_time {
            bob.directory.one_time.clear();
            bob.directory.kem_one_time.clear();
        }
        let a = alice.address();
        let first = alice.start(&mut bob, "once").unwrap();
        bob.receive(&a, &first).unwrap();
        let effects = bob.conversation(&a).delete();
        assert!(bob.rows.commit(effects));
        assert!(bob.rows.load(&Conversation::keys(&a)).is_empty());
        assert_eq!(code(bob.receive(&a, &first)), "REPLAY");
        // The prekeys outlive the mark nowhere: when the mark goes, they are gone.
        bob.pass(limits::PREKEY_ROTATION);
        let _ = bob.maintain();
        bob.pass(limits::PREKEY_RETENTION);
        for (kind, partition) in bob.maintain().clear {
            bob.rows.0.retain(|key, _| key.kind != kind || key.partition != partition);
        }
        assert_eq!(bob.rows.count(RecordKind::HandshakeMark), 0);
        assert_eq!(code(bob.receive(&a, &first)), "UNKNOWN_PREKEY");
    }
}
