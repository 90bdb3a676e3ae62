//! I1: only an established session sends or receives.

mod model;

use std::time::Duration;

use model::{Party, app, code, pair};
use stvor_protocol::{RecordKind, RepairRoute, limits};

#[test]
fn nothing_is_sent_before_a_session_was_started_with_a_checked_bundle() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let b = bob.address();
    let before = alice.rows.clone();
    assert!(!alice.conversation(&b).is_ready(alice.now));
    assert_eq!(code(alice.send(&b, "too early")), "NO_SESSION");
    let text = alice.text("too early");
    let mut conversation = alice.conversation(&b);
    let mut rng = stvor_crypto::random::DeterministicRandom::from_label("x");
    assert_eq!(code(conversation.encrypt_repair(&alice.context(), &text, &mut rng)), "NO_SESSION");
    assert_eq!(alice.rows, before);
    assert_eq!(alice.conversation(&b).repair_route(alice.now), RepairRoute::Fresh);

    // A bundle is of one device: with another's no session starts.
    let mut eve = Party::new("eve");
    let foreign = eve.bundle().validate(&app(), &eve.address(), alice.now).unwrap();
    let started = conversation.start(&alice.context(), &foreign, None, &mut rng);
    assert_eq!(code(started.map(|_| ())), "BAD_BUNDLE");
    assert!(!conversation.is_ready(alice.now));
    alice.start(&mut bob, "now").unwrap();
    assert!(alice.conversation(&b).is_ready(alice.now) && !alice.conversation(&b).is_established());
}

#[test]
fn nothing_is_read_from_a_sender_without_a_session_or_a_handshake() {
    let (mut alice, mut bob) = pair();
    let mut carol = Party::new("carol");
    let a = alice.address();
    let blob = alice.send(&bob.address(), "for bob").unwrap();
    let before = carol.rows.clone();
    assert_eq!(code(carol.receive(&a, &blob)), "UNKNOWN_SESSION");
    // Nor under the name of somebody else who has a session.
    let eve = model::address("eve");
    assert_eq!(code(bob.receive(&eve, &blob)), "UNKNOWN_SESSION");
    assert_eq!(carol.rows, before);
    assert_eq!(code(bob.receive(&a, &blob)), "OK");
}

#[test]
fn a_handshake_for_somebody_else_starts_nothing() {
    let (mut alice, mut bob, mut carol) = (Party::new("alice"), Party::new("bob"), Party::new("carol"));
    let first = alice.start(&mut bob, "for bob").unwrap();
    let before = carol.rows.clone();
    assert_eq!(code(carol.receive(&alice.address(), &first)), "UNDECRYPTABLE");
    assert_eq!((carol.rows.clone(), carol.rows.count(RecordKind::Session)), (before, 0));
}

#[test]
fn a_session_that_was_reset_or_never_answered_sends_and_receives_nothing_more() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let late = bob.send(&a, "late").unwrap();
    let effects = alice.conversation(&b).reset();
    assert!(alice.rows.commit(effects));
    assert_eq!(code(alice.receive(&b, &late)), "UNKNOWN_SESSION");
    assert_eq!(code(alice.send(&b, "x")), "NO_SESSION");
    alice.start(&mut bob, "lost on its way").unwrap();
    alice.pass(limits::UNANSWERED_RESTART - Duration::from_millis(1));
    assert_eq!(code(alice.send(&b, "x")), "OK");
    alice.pass(Duration::from_millis(1));
    assert_eq!(code(alice.send(&b, "x")), "NO_SESSION");
}
