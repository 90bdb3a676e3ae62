//! Two parties talk over in-memory rows. Each step loads the conversation from its stored bytes, so each step is also
//! a restart.

pub(crate) mod model;

use std::time::Duration;

use model::{Party, code, pair};
use stvor_protocol::{
    Conversation, FirstContact, IdentityEvent, Incoming, KemKind, OnMismatch, ProtocolError, RecordKind,
    RepairRoute, TrustPolicy, limits,
};

const DAY: Duration = Duration::from_secs(24 * 3_600);

#[test]
fn two_strangers_start_reply_and_go_on() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let (a, b) = (alice.address(), bob.address());
    let first = alice.start(&mut bob, "one").unwrap();
    let second = alice.send(&b, "two").unwrap();
    assert!(Incoming::parse(&second).unwrap().carries_handshake());
    let got = bob.receive_full(&a, &first).unwrap();
    assert!(got.started);
    assert_eq!((got.words.as_str(), got.identity), ("one", IdentityEvent::New));
    assert_eq!(bob.receive(&a, &second).unwrap(), "two");
    for turn in 0..20 {
        let blob = bob.send(&a, &format!("b{turn}")).unwrap();
        assert!(!Incoming::parse(&blob).unwrap().carries_handshake());
        assert_eq!(alice.receive(&b, &blob).unwrap(), format!("b{turn}"));
        let blob = alice.send(&b, &format!("a{turn}")).unwrap();
        assert!(!Incoming::parse(&blob).unwrap().carries_handshake());
        assert_eq!(bob.receive(&a, &blob).unwrap(), format!("a{turn}"));
    }
}

#[test]
fn a_session_starts_without_one_time_prekeys() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    bob.directory.one_time.clear();
    bob.directory.kem_one_time.clear();
    let mut bundle = bob.bundle();
    assert_eq!((bundle.one_time.take(), bundle.kem.kind), (None, KemKind::LastResort));
    let first = alice.start(&mut bob, "hello").unwrap();
    assert_eq!(bob.receive(&alice.address(), &first).unwrap(), "hello");
}

#[test]
fn accepting_destroys_the_one_time_prekeys_that_were_used() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let count =
        |bob: &Party| (bob.rows.count(RecordKind::OneTimePrekey), bob.rows.count(RecordKind::KemPrekey));
    assert_eq!(count(&bob), (100, 51));
    let first = alice.start(&mut bob, "hello").unwrap();
    bob.receive(&alice.address(), &first).unwrap();
    assert_eq!(count(&bob), (99, 50));
}

#[test]
fn messages_out_of_order_and_lost_ones_are_no_trouble() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blobs: Vec<_> = (0..10).map(|n| alice.send(&b, &n.to_string()).unwrap()).collect();
    for n in [3, 0, 9, 5, 1] {
        assert_eq!(bob.receive(&a, &blobs[n]).unwrap(), n.to_string());
    }
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 5);
    // A turn in between: the old chain's missing keys stay.
    let reply = bob.send(&a, "reply").unwrap();
    alice.receive(&b, &reply).unwrap();
    let next = alice.send(&b, "next").unwrap();
    assert_eq!(bob.receive(&a, &next).unwrap(), "next");
    for n in [8, 2, 7] {
        assert_eq!(bob.receive(&a, &blobs[n]).unwrap(), n.to_string());
    }
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 2);
}

#[test]
fn the_end_of_a_chain_that_was_lost_can_still_come_after_a_turn() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blobs: Vec<_> = (0..4).map(|n| alice.send(&b, &n.to_string()).unwrap()).collect();
    bob.receive(&a, &blobs[0]).unwrap();
    let reply = bob.send(&a, "reply").unwrap();
    alice.receive(&b, &reply).unwrap();
    let next = alice.send(&b, "next").unwrap();
    bob.receive(&a, &next).unwrap();
    for (n, blob) in blobs.iter().enumerate().skip(1) {
        assert_eq!(bob.receive(&a, blob).unwrap(), n.to_string());
    }
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 0);
    assert_eq!(bob.rows.count(RecordKind::SkippedIndex), 0);
}

#[test]
fn a_duplicate_is_known_as_one_and_changes_nothing() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blobs: Vec<_> = (0..3).map(|n| alice.send(&b, &n.to_string()).unwrap()).collect();
    for n in [2, 0] {
        bob.receive(&a, &blobs[n]).unwrap();
    }
    let before = bob.rows.clone();
    for n in [2, 0] {
        assert_eq!(code(bob.receive(&a, &blobs[n])), "DUPLICATE");
    }
    assert_eq!(bob.rows, before);
    assert_eq!(bob.receive(&a, &blobs[1]).unwrap(), "1");
    assert_eq!(code(bob.receive(&a, &blobs[1])), "DUPLICATE");
}

#[test]
fn a_duplicate_of_one_of_the_last_chains_is_known_as_one() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut old = Vec::new();
    for turn in 0..5 {
        let blob = alice.send(&b, &turn.to_string()).unwrap();
        bob.receive(&a, &blob).unwrap();
        old.push(blob);
        let reply = bob.send(&a, "reply").unwrap();
        alice.receive(&b, &reply).unwrap();
    }
    assert_eq!(old.iter().map(|blob| code(bob.receive(&a, blob))).collect::<Vec<_>>(), vec!["DUPLICATE"; 5]);
}

#[test]
fn a_retransmitted_handshake_is_a_duplicate_and_a_replayed_one_is_a_replay() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    bob.directory.one_time.clear();
    bob.directory.kem_one_time.clear();
    let (a, b) = (alice.address(), bob.address());
    let first = alice.start(&mut bob, "hello").unwrap();
    bob.receive(&a, &first).unwrap();
    assert_eq!(code(bob.receive(&a, &first)), "DUPLICATE");
    // A later message of the same handshake is the same session.
    let second = alice.send(&b, "again").unwrap();
    assert!(!bob.receive_full(&a, &second).unwrap().started);
    // The session is destroyed; the mark is not.
    let effects = bob.conversation(&a).reset();
    assert!(bob.rows.commit(effects));
    assert_eq!(code(bob.receive(&a, &first)), "REPLAY");
    // What Alice sends on it is not lost silently: Bob asks for it again.
    let third = alice.send(&b, "third").unwrap();
    let error = bob.receive(&a, &third).unwrap_err();
    assert_eq!(code::<()>(Err(error)), "REPLAY");
    assert!(bob.fail(&a, &third, &ProtocolError::Replay).request.is_some());
}

#[test]
fn both_starting_at_once_settle_on_one_session_and_lose_nothing() {
    for seed in 0..6 {
        let (mut alice, mut bob) =
            (Party::seeded("alice", &format!("a{seed}")), Party::seeded("bob", &format!("b{seed}")));
        let (a, b) = (alice.address(), bob.address());
        let from_alice = [alice.start(&mut bob, "a1").unwrap(), alice.send(&b, "a2").unwrap()];
        let from_bob = [bob.start(&mut alice, "b1").unwrap(), bob.send(&a, "b2").unwrap()];
        for n in 0..2 {
            assert_eq!(alice.receive(&b, &from_bob[n]).unwrap(), format!("b{}", n + 1));
            assert_eq!(bob.receive(&a, &from_alice[n]).unwrap(), format!("a{}", n + 1));
        }
        let (at_alice, at_bob) = (alice.conversation(&b), bob.conversation(&a));
        assert_eq!(at_alice.session_id(), at_bob.session_id());
        assert_eq!((at_alice.archived(), at_bob.archived()), (1, 1));
        let blob = alice.send(&b, "settled").unwrap();
        assert_eq!(bob.receive(&a, &blob).unwrap(), "settled");
        let blob = bob.send(&a, "indeed").unwrap();
        assert_eq!(alice.receive(&b, &blob).unwrap(), "indeed");
    }
}

#[test]
fn late_message_on_archived_session_leaves_current_alone() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let late = [alice.send(&b, "late 0").unwrap(), alice.send(&b, "late 1").unwrap()];
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    bob.receive(&a, &fresh).unwrap();
    let current = bob.conversation(&a).session_id().copied();
    assert_eq!(bob.conversation(&a).archived(), 1);
    assert_eq!(bob.receive(&a, &late[1]).unwrap(), "late 1");
    assert_eq!(bob.receive(&a, &late[0]).unwrap(), "late 0");
    assert_eq!(code(bob.receive(&a, &late[0])), "DUPLICATE");
    assert_eq!(bob.conversation(&a).session_id().copied(), current);
    let reply = bob.send(&a, "reply").unwrap();
    assert_eq!(alice.receive(&b, &reply).unwrap(), "reply");
}

#[test]
fn forty_replaced_sessions_still_decrypt_and_the_forty_first_does_not() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut late = Vec::new();
    for _ in 0..=limits::MAX_ARCHIVED_SESSIONS {
        late.push(alice.send(&b, "late").unwrap());
        let fresh = alice.start(&mut bob, "fresh").unwrap();
        bob.receive(&a, &fresh).unwrap();
        let _ = bob.maintain();
    }
    assert_eq!(bob.conversation(&a).archived(), 40);
    assert_eq!(bob.rows.count(RecordKind::ArchivedSession), 40);
    assert_eq!(code(bob.receive(&a, &late[0])), "UNKNOWN_SESSION");
    for blob in &late[1..] {
        assert_eq!(bob.receive(&a, blob).unwrap(), "late");
    }
}

#[test]
fn a_session_unanswered_for_two_weeks_is_started_afresh() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let b = bob.address();
    alice.start(&mut bob, "lost").unwrap();
    alice.pass(14 * DAY - Duration::from_millis(1));
    assert_eq!(code(alice.send(&b, "still")), "OK");
    alice.pass(Duration::from_millis(1));
    assert_eq!(code(alice.send(&b, "no more")), "NO_SESSION");
    let again = alice.start(&mut bob, "again").unwrap();
    assert_eq!(bob.receive(&alice.address(), &again).unwrap(), "again");
}

#[test]
fn the_fiftieth_message_without_an_answer_is_answered_with_a_control_message() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut keys = (std::collections::HashSet::new(), std::collections::HashSet::new());
    for n in 1..=500 {
        let blob = alice.send(&b, "one way").unwrap();
        keys.0.insert(Incoming::parse(&blob).unwrap().position().0);
        let reply = bob.receive_full(&a, &blob).unwrap().reply;
        assert_eq!(reply.is_some(), n % 50 == 0, "{n}");
        if let Some(reply) = reply {
            keys.1.insert(Incoming::parse(&reply).unwrap().position().0);
            let control = alice.receive_full(&b, &reply).unwrap();
            assert!(!control.plaintext.kind.is_application());
            assert!(control.reply.is_none());
        }
    }
    assert!(keys.0.len() >= 9 && keys.1.len() >= 9, "{} and {}", keys.0.len(), keys.1.len());
}

#[test]
fn two_thousand_ahead_is_read_and_one_more_is_refused() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blobs: Vec<_> = (0..=2_001).map(|_| alice.send(&b, "n").unwrap()).collect();
    let before = bob.rows.clone();
    assert_eq!(code(bob.receive(&a, &blobs[2_001])), "TOO_FAR_AHEAD");
    assert_eq!(bob.rows, before);
    assert_eq!(code(bob.receive(&a, &blobs[2_000])), "OK");
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 2_000);
    // One more stored key pushes out the oldest one, and that one only.
    let far = [alice.send(&b, "passed over").unwrap(), alice.send(&b, "far").unwrap()];
    assert_eq!(code(bob.receive(&a, &blobs[2_001])), "OK");
    assert_eq!(code(bob.receive(&a, &far[1])), "OK");
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 2_000);
    assert_eq!(code(bob.receive(&a, &blobs[0])), "MESSAGE_KEY_GONE");
    assert_eq!(code(bob.receive(&a, &blobs[1])), "OK");
    assert_eq!(code(bob.receive(&a, &far[0])), "OK");
    // Those that are left go after thirty days.
    bob.pass(30 * DAY);
    let next = alice.send(&b, "later").unwrap();
    assert_eq!(code(bob.receive(&a, &next)), "OK");
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 0);
}

#[test]
fn the_current_record_has_one_size_below_a_kibibyte() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let size = |party: &Party| {
        let of = |kind| party.rows.of(kind).iter().map(|row| row.len()).collect::<Vec<_>>();
        (of(RecordKind::Session), of(RecordKind::SessionRoot))
    };
    let at_first = (size(&alice), size(&bob));
    for turn in 0..200 {
        let blob = alice.send(&b, "a").unwrap();
        bob.receive(&a, &blob).unwrap();
        let blob = bob.send(&a, "b").unwrap();
        if turn % 7 != 0 {
            alice.receive(&b, &blob).unwrap();
        }
    }
    assert_eq!((size(&alice), size(&bob)), at_first);
    assert!(at_first.0.0[0] < 512 && at_first.0.1[0] < 512, "{at_first:?}");
}

#[test]
fn a_corrupted_message_is_repaired_on_the_working_session() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let content = alice.text("precious");
    let mut blob = alice.send_content(&b, &content).unwrap();
    let last = blob.len() - 1;
    blob[last] ^= 1;
    let before = bob.rows.clone();
    let error = bob.receive(&a, &blob).unwrap_err();
    assert_eq!(bob.rows, before);
    let failure = bob.fail(&a, &blob, &error);
    assert_eq!(failure.route, RepairRoute::Working);
    let request = bob.send_content(&a, &failure.request.unwrap()).unwrap();
    let asked = alice.receive_full(&b, &request).unwrap();
    assert_eq!(asked.plaintext.requested().unwrap().blob_hash, failure.blob_hash);
    let again = alice.send_content(&b, &content).unwrap();
    assert_eq!(bob.receive_full(&a, &again).unwrap().plaintext, content);
}

#[test]
fn a_lost_session_is_repaired_by_a_fresh_one_that_becomes_current_when_answered() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    // Alice's sessions are gone; Bob's messages fail at her.
    let effects = alice.conversation(&b).reset();
    assert!(alice.rows.commit(effects));
    let content = bob.text("precious");
    let blob = bob.send_content(&a, &content).unwrap();
    let error = alice.receive(&b, &blob).unwrap_err();
    let failure = alice.fail(&b, &blob, &error);
    assert_eq!(failure.route, RepairRoute::Fresh);
    let (bundle, now) = (bob.bundle().validate(&model::app(), &b, alice.now).unwrap(), alice.now);
    let mut conversation = alice.conversation(&b);
    let context = stvor_protocol::Context {
        identity: &alice.identity,
        policy: alice.policy,
        padding: model::padding,
        now,
    };
    let mut effects = conversation.start_repair(&context, &bundle, None, &mut alice.rng).unwrap().effects;
    let sent = conversation.encrypt_repair(&context, &failure.request.unwrap(), &mut alice.rng).unwrap();
    effects.append(sent.effects);
    assert!(alice.rows.commit(effects));
    let again = conversation.start_repair(&context, &bundle, None, &mut alice.rng);
    assert_eq!(code(again), "REPAIR_BUDGET");

    bob.receive(&a, &sent.blob).unwrap();
    let answer = bob.send_content(&a, &content).unwrap();
    assert_eq!(alice.receive_full(&b, &answer).unwrap().plaintext, content);
    assert_eq!(alice.conversation(&b).session_id(), bob.conversation(&a).session_id());
}

#[test]
fn three_failures_in_a_row_make_a_session_count_as_broken_and_a_success_clears_them() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut damaged = alice.send(&b, "lost").unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let routes = |bob: &mut Party, count: usize| {
        (0..count).map(|_| bob.fail(&a, &damaged, &ProtocolError::Undecryptable).route).collect::<Vec<_>>()
    };
    assert_eq!(routes(&mut bob, 2), vec![RepairRoute::Working; 2]);
    let good = alice.send(&b, "good").unwrap();
    bob.receive(&a, &good).unwrap();
    let routes = routes(&mut bob, 3);
    assert_eq!(routes, vec![RepairRoute::Working, RepairRoute::Working, RepairRoute::Fresh]);

    // The fresh session waits beside the current one until it is answered.
    let bundle = alice.bundle().validate(&model::app(), &a, bob.now).unwrap();
    let current = bob.conversation(&a).session_id().copied();
    let mut conversation = bob.conversation(&a);
    let context = stvor_protocol::Context {
        identity: &bob.identity,
        policy: bob.policy,
        padding: model::padding,
        now: bob.now,
    };
    let mut effects = conversation.start_repair(&context, &bundle, None, &mut bob.rng).unwrap().effects;
    let request = stvor_protocol::Plaintext::control(stvor_base::ContentId::from_bytes([7; 16]));
    let sent = conversation.encrypt_repair(&context, &request, &mut bob.rng).unwrap();
    effects.append(sent.effects);
    assert!(bob.rows.commit(effects));
    assert_eq!(bob.conversation(&a).session_id().copied(), current);
    alice.receive(&b, &sent.blob).unwrap();
    let answer = alice.send(&b, "answer").unwrap();
    assert_eq!(bob.receive(&a, &answer).unwrap(), "answer");
    assert_ne!(bob.conversation(&a).session_id().copied(), current);
    assert_eq!(bob.conversation(&a).session_id(), alice.conversation(&b).session_id());
    let late = bob.send(&a, "on the new one").unwrap();
    assert_eq!(alice.receive(&b, &late).unwrap(), "on the new one");
}

#[test]
fn another_identity_under_the_same_name_is_refused_in_either_order() {
    for (first, second) in [("mallory", "bob"), ("bob", "mallory")] {
        let mut alice = Party::new("alice");
        let (mut one, mut two) = (Party::seeded("bob", first), Party::seeded("bob", second));
        alice.start(&mut one, "to the first").unwrap();
        assert_eq!(code(alice.start(&mut two, "to the second")), "IDENTITY_CHANGED");
        // Nor does it get in by writing first.
        let intruding = two.start(&mut alice, "it is me").unwrap();
        let before = alice.rows.clone();
        assert_eq!(code(alice.receive(&two.address(), &intruding)), "IDENTITY_CHANGED");
        assert_eq!(alice.rows, before);
    }
}

#[test]
fn a_policy_that_asks_gets_an_answer_and_goes_on() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    bob.policy = TrustPolicy { first: FirstContact::Ask, mismatch: OnMismatch::Ask };
    let a = alice.address();
    let first = alice.start(&mut bob, "hello").unwrap();
    let before = bob.rows.clone();
    let Err(ProtocolError::AwaitingTrust(question)) = bob.open(&a, &first) else { panic!("no question") };
    assert_eq!((question.user.as_str(), question.pinned), ("alice", None));
    assert_eq!(&question.presented, alice.identity.user_key());
    assert_eq!(bob.rows, before);
    assert_eq!(code(bob.open_with(&a, &first, Some(&question.answer(false)))), "IDENTITY_NOT_VERIFIED");
    let received = bob.open_with(&a, &first, Some(&question.answer(true))).unwrap();
    assert_eq!(received.plaintext.body.expose(), b"hello");
    assert!(bob.rows.commit(received.effects));

    let mut other = Party::seeded("alice", "another device, another key");
    let intruding = other.start(&mut bob, "new phone").unwrap();
    let Err(ProtocolError::AwaitingTrust(question)) = bob.open(&a, &intruding) else { panic!("no question") };
    assert_eq!(question.pinned.as_ref(), Some(alice.identity.user_key()));
    let received = bob.open_with(&a, &intruding, Some(&question.answer(true))).unwrap();
    assert_eq!(received.identity, IdentityEvent::Replaced { old: *alice.identity.user_key() });
    assert!(bob.rows.commit(received.effects));
    let late = alice.send(&bob.address(), "still me").unwrap();
    assert_eq!(code(bob.receive(&a, &late)), "REPLAY");
}

#[test]
fn verified_only_exchanges_nothing_before_a_person_compared_numbers() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    bob.policy.first = FirstContact::VerifiedOnly;
    let blob = alice.send(&b, "hello").unwrap();
    assert_eq!(code(bob.receive(&a, &blob)), "IDENTITY_NOT_VERIFIED");
    assert_eq!(code(bob.send(&a, "hello")), "IDENTITY_NOT_VERIFIED");
    let effects = bob.conversation(&a).set_verified(true).unwrap();
    assert!(bob.rows.commit(effects));
    assert_eq!(bob.receive(&a, &blob).unwrap(), "hello");
    assert_eq!(code(bob.send(&a, "hello")), "OK");
}

#[test]
fn two_processes_can_not_both_commit_one_message() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blob = alice.send(&b, "once").unwrap();
    let (one, two) = (bob.open(&a, &blob).unwrap(), bob.open(&a, &blob).unwrap());
    assert!(bob.rows.commit(one.effects));
    let after = bob.rows.clone();
    assert!(!bob.rows.commit(two.effects));
    assert_eq!(bob.rows, after);
}

#[test]
fn reset_destroys_every_session_and_the_next_handshake_works() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let effects = alice.conversation(&b).reset();
    assert!(alice.rows.commit(effects));
    for kind in [RecordKind::Session, RecordKind::SessionRoot, RecordKind::ArchivedSession] {
        assert_eq!(alice.rows.count(kind), 0);
    }
    assert_eq!(code(alice.send(&b, "no session")), "NO_SESSION");
    let blob = alice.start(&mut bob, "fresh").unwrap();
    assert_eq!(bob.receive(&a, &blob).unwrap(), "fresh");
    let effects = alice.conversation(&b).delete();
    assert!(alice.rows.commit(effects));
    assert!(alice.rows.load(&Conversation::keys(&b)).is_empty());
}

#[test]
fn every_blob_has_a_size_that_the_padding_policy_allows() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let b = bob.address();
    let mut sizes = vec![alice.start(&mut bob, "").unwrap().len()];
    for size in [0, 1, 100, 383, 384, 385, 3_000, 65_536] {
        sizes.push(alice.send(&b, &"x".repeat(size)).unwrap().len());
    }
    assert!(sizes.iter().all(|size| *size == model::padding(*size)), "{sizes:?}");
    assert_eq!(code(alice.send(&b, &"x".repeat(65_537))), "MESSAGE_TOO_LARGE");
}
