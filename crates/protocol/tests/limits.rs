//! Bounds at n and n + 1 that no other test file of this crate meets.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

mod model;

use std::time::Duration;

use model::{Dry, Party, code, pair};
use stvor_protocol::{ContentKind, KemKind, Plaintext, RecordKind, RepairRoute, ServerCounts, limits};

#[test]
fn a_late_duplicate_is_known_for_five_chains_and_unreadable_after_that() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut old = Vec::new();
    for turn in 0..=limits::MAX_RECEIVING_CHAINS {
        let blob = alice.send(&b, &turn.to_string()).unwrap();
        bob.receive(&a, &blob).unwrap();
        old.push(blob);
        let reply = bob.send(&a, "reply").unwrap();
        alice.receive(&b, &reply).unwrap();
    }
    let codes: Vec<_> = old.iter().map(|blob| code(bob.receive(&a, blob))).collect();
    assert_eq!((codes[0], &codes[1..]), ("UNDECRYPTABLE", &["DUPLICATE"; limits::MAX_RECEIVING_CHAINS][..]));
}

#[test]
fn sixteen_replaced_generations_of_prekeys_are_kept_and_one_more_destroys_the_oldest() {
    let mut bob = Party::new("bob");
    let rotate = |bob: &mut Party| {
        bob.pass(limits::PREKEY_ROTATION);
        // Nothing is confirmed, so nothing is retired by time.
        let counts = ServerCounts { one_time: 100, kem_one_time: 50 };
        let done = bob.prekeys.maintain(&bob.identity, counts, bob.now, &mut bob.rng).unwrap();
        assert!(bob.rows.commit(done.effects));
        done.clear
    };
    for _ in 0..limits::MAX_RETIRED_PREKEYS {
        assert!(rotate(&mut bob).is_empty());
    }
    assert_eq!(bob.rows.count(RecordKind::SignedPrekey), limits::MAX_RETIRED_PREKEYS + 1);
    assert_eq!(rotate(&mut bob), vec![(RecordKind::HandshakeMark, vec![0; 4])]);
    assert_eq!(bob.rows.count(RecordKind::SignedPrekey), limits::MAX_RETIRED_PREKEYS + 1);
}

#[test]
fn kem_prekeys_are_made_fifty_at_once_below_twenty() {
    let bob = Party::new("bob");
    let made = |kem_one_time| {
        let mut prekeys = bob.prekeys.clone();
        let counts = ServerCounts { one_time: 100, kem_one_time };
        let done = prekeys.maintain(&bob.identity, counts, bob.now, &mut Dry::new("x", usize::MAX)).unwrap();
        done.upload.map_or(0, |upload| upload.kem_one_time.len())
    };
    assert_eq!((made(limits::ONE_TIME_LOW), made(limits::ONE_TIME_LOW - 1)), (0, 50));
}

#[test]
fn a_bundle_with_an_old_last_resort_prekey_is_stale_and_an_old_one_time_one_is_not() {
    let mut bob = Party::new("bob");
    let early = bob.directory.kem_one_time[0].clone();
    let early_last = bob.directory.kem_last.clone();
    bob.pass(limits::BUNDLE_MAX_AGE + Duration::from_millis(1));
    let _ = bob.maintain();
    let bundle = bob.bundle();
    assert_eq!((bundle.kem.kind, bundle.kem.id), (KemKind::OneTime, early.id));
    assert_eq!(code(bundle.validate(&model::app(), &bob.address(), bob.now)), "OK");
    bob.directory.kem_one_time.clear();
    bob.directory.kem_last = early_last;
    assert_eq!(code(bob.bundle().validate(&model::app(), &bob.address(), bob.now)), "STALE_BUNDLE");
}

#[test]
fn one_fresh_repair_session_is_started_an_hour() {
    let (alice, mut bob) = pair();
    let b = bob.address();
    let bundle = bob.bundle().validate(&model::app(), &b, alice.now).unwrap();
    let mut conversation = alice.conversation(&b);
    let mut rng = Dry::new("x", usize::MAX);
    let mut start = |after: Duration| {
        let context = stvor_protocol::Context { now: alice.now + after, ..alice.context() };
        code(conversation.start_repair(&context, &bundle, None, &mut rng).map(|_| ()))
    };
    assert_eq!(start(Duration::ZERO), "OK");
    assert_eq!(start(limits::FRESH_SESSION_INTERVAL - Duration::from_millis(1)), "REPAIR_BUDGET");
    assert_eq!(start(limits::FRESH_SESSION_INTERVAL), "OK");
}

#[test]
fn a_repair_session_that_nobody_answers_for_two_weeks_no_longer_counts_as_working() {
    let (mut alice, mut bob) = pair();
    let b = bob.address();
    let mut bundle = || bob.bundle().validate(&model::app(), &b, alice.now).unwrap();
    let (first, second) = (bundle(), bundle());
    let mut conversation = alice.conversation(&b);
    let mut effects = conversation.reset();
    let mut rng = Dry::new("x", 999);
    effects.append(conversation.start(&alice.context(), &first, None, &mut rng).unwrap().effects);
    effects.append(conversation.start_repair(&alice.context(), &second, None, &mut rng).unwrap().effects);
    assert!(alice.rows.commit(effects));
    let conversation = alice.conversation(&b);
    let at = |after| conversation.repair_route(alice.now + after);
    assert_eq!(at(limits::UNANSWERED_RESTART - Duration::from_millis(1)), RepairRoute::Working);
    assert_eq!(at(limits::UNANSWERED_RESTART), RepairRoute::Fresh);
}

#[test]
fn three_failures_in_a_row_end_a_repair_on_the_session_that_there_is() {
    let (mut alice, mut bob) = pair();
    let b = bob.address();
    let bundle = bob.bundle().validate(&model::app(), &b, alice.now).unwrap();
    let mut conversation = alice.conversation(&b);
    let effects =
        conversation.start_repair(&alice.context(), &bundle, None, &mut Dry::new("x", 99)).unwrap().effects;
    assert!(alice.rows.commit(effects));
    let mut damaged = bob.send(&alice.address(), "x").unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    for _ in 1..limits::BROKEN_SESSION_FAILURES {
        let _ = alice.fail(&b, &damaged, &stvor_protocol::ProtocolError::UnknownSession);
    }
    assert_eq!(alice.conversation(&b).repair_route(alice.now), RepairRoute::Working);
    let _ = alice.fail(&b, &damaged, &stvor_protocol::ProtocolError::UnknownSession);
    let conversation = alice.conversation(&b);
    let at = |after| conversation.repair_route(alice.now + after);
    assert_eq!(at(limits::FRESH_SESSION_INTERVAL - Duration::from_millis(1)), RepairRoute::Wait);
    assert_eq!(at(limits::FRESH_SESSION_INTERVAL), RepairRoute::Fresh);
}

#[test]
fn a_retry_request_on_an_archived_session_makes_it_current_and_other_messages_do_not() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let old = *bob.conversation(&a).session_id().unwrap();
    let request = stvor_protocol::RetryRequest {
        message: stvor_base::MessageId::from_bytes([1; 16]),
        blob_hash: [2; 32],
    };
    let (text, content) = (alice.text("late"), stvor_base::ContentId::from_bytes([9; 16]));
    let late = alice.send_content(&b, &text).unwrap();
    let asks = alice.send_content(&b, &Plaintext::retry_request(content, &request)).unwrap();
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    bob.receive(&a, &fresh).unwrap();
    let new = *bob.conversation(&a).session_id().unwrap();
    bob.receive(&a, &late).unwrap();
    assert_eq!(bob.conversation(&a).session_id(), Some(&new));
    assert_eq!(bob.receive_full(&a, &asks).unwrap().plaintext.kind, ContentKind::RetryRequest);
    assert_eq!(bob.conversation(&a).session_id(), Some(&old));
    assert_eq!((bob.conversation(&a).archived(), bob.rows.count(RecordKind::ArchivedSession)), (1, 1));
    let again = bob.send(&a, "again").unwrap();
    assert_eq!(alice.receive(&b, &again).unwrap(), "again");
}

#[test]
fn the_records_of_a_session_do_not_grow_in_ten_thousand_round_trips() {
    let (alice, bob) = pair();
    let (mut to_bob, mut to_alice) = (alice.conversation(&bob.address()), bob.conversation(&alice.address()));
    let mut rng = Dry::new("x", usize::MAX);
    let text = Plaintext::control(stvor_base::ContentId::from_bytes([1; 16]));
    let sizes = |effects: stvor_protocol::Effects| {
        let writes = model::writes(effects).into_iter();
        writes.map(|(what, key, value, _)| (what, key.kind, value.len())).collect::<Vec<_>>()
    };
    let mut first = None;
    for _ in 0..10_000 {
        let sent = to_bob.encrypt(&alice.context(), &text, &mut rng).unwrap();
        let received = bob.open_on(&mut to_alice, &sent.blob, &mut rng).unwrap();
        let answer = to_alice.encrypt(&bob.context(), &text, &mut rng).unwrap();
        let heard = alice.open_on(&mut to_bob, &answer.blob, &mut rng).unwrap();
        let now = [sent.effects, received.effects, answer.effects, heard.effects].map(sizes);
        assert_eq!(*first.get_or_insert_with(|| now.clone()), now);
        assert_eq!(to_bob.stored_keys() + to_alice.stored_keys(), 0);
    }
}

/// Delivers the last of `count` messages, and gives back the others.
fn skip(alice: &mut Party, bob: &mut Party, count: usize) -> Vec<Vec<u8>> {
    let (a, b) = (alice.address(), bob.address());
    let mut blobs: Vec<_> = (0..count).map(|number| alice.send(&b, &number.to_string()).unwrap()).collect();
    bob.receive(&a, &blobs.pop().unwrap()).unwrap();
    blobs
}

#[test]
fn two_thousand_keys_are_stored_and_a_message_whose_key_made_room_is_told_once_and_asked_for() {
    let (mut alice, mut bob) = pair();
    let a = alice.address();
    let late = skip(&mut alice, &mut bob, limits::MAX_STORED_KEYS + 1);
    assert_eq!(bob.conversation(&a).stored_keys(), limits::MAX_STORED_KEYS);
    assert_eq!(code(bob.fork().receive(&a, &late[0])), "OK");

    skip(&mut alice, &mut bob, 2);
    assert_eq!(bob.conversation(&a).stored_keys(), limits::MAX_STORED_KEYS);
    let before = bob.rows.clone();
    assert_eq!(code(bob.receive(&a, &late[0])), "MESSAGE_KEY_GONE");
    assert_eq!(bob.rows.0, before.0, "a message that can not be read changes no row");
    for _ in 0..limits::BROKEN_SESSION_FAILURES {
        let failure = bob.fail(&a, &late[0], &stvor_protocol::ProtocolError::KeyGone);
        assert!(failure.request.is_some());
        assert_eq!(failure.route, RepairRoute::Working, "the session is as good as before");
    }
    assert_eq!(code(bob.receive(&a, &late[0])), "DUPLICATE");
    assert_eq!(bob.receive(&a, &late[1]).unwrap(), "1");
    assert_eq!(code(bob.receive(&a, &late[1])), "DUPLICATE");
}

#[test]
fn of_four_thousand_skipped_messages_the_newer_half_is_read_and_the_older_is_told_as_lost() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let skipped = usize::try_from(limits::MAX_SKIP).unwrap();
    // Bob has the chain; its other messages stay out until Alice turned.
    skip(&mut alice, &mut bob, 1);
    let old: Vec<_> = (0..skipped).map(|_| alice.send(&b, "old").unwrap()).collect();
    let reply = bob.send(&a, "reply").unwrap();
    alice.receive(&b, &reply).unwrap();
    let new = skip(&mut alice, &mut bob, skipped + 1);
    assert_eq!(bob.conversation(&a).stored_keys(), limits::MAX_STORED_KEYS);
    for blob in [&old[0], &old[skipped - 1]] {
        assert_eq!(code(bob.receive(&a, blob)), "MESSAGE_KEY_GONE");
    }
    assert_eq!(bob.receive(&a, &new[0]).unwrap(), "0");
}

#[test]
fn a_message_that_comes_after_thirty_days_is_told_as_lost_whether_its_row_was_swept_or_not() {
    let (mut alice, mut bob) = pair();
    let a = alice.address();
    let late = skip(&mut alice, &mut bob, 3);
    let stored = bob.fork();
    // Another process of the same user read it a moment ago: its row is gone, but not because of its age.
    let swept = |bob: &mut Party| bob.rows.0.retain(|key, _| key.kind != RecordKind::SkippedKeys);
    bob.pass(limits::STORED_KEY_LIFETIME - Duration::from_millis(1));
    let mut twin = bob.fork();
    swept(&mut twin);
    assert_eq!(code(twin.receive(&a, &late[0])), "DUPLICATE");
    assert_eq!(bob.receive(&a, &late[0]).unwrap(), "0");

    // Swept, and nothing was received since.
    let mut bob = stored.fork();
    bob.pass(limits::STORED_KEY_LIFETIME);
    swept(&mut bob);
    assert_eq!(code(bob.receive(&a, &late[0])), "MESSAGE_KEY_GONE");
    let _ = bob.fail(&a, &late[0], &stvor_protocol::ProtocolError::KeyGone);
    assert_eq!(code(bob.receive(&a, &late[0])), "DUPLICATE");
    assert_eq!(code(bob.receive(&a, &late[1])), "MESSAGE_KEY_GONE");

    // Destroyed by the next message, and remembered across a restart.
    let mut bob = stored.fork();
    bob.pass(limits::STORED_KEY_LIFETIME);
    skip(&mut alice, &mut bob, 1);
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 0);
    let mut bob = bob.fork();
    assert_eq!(code(bob.receive(&a, &late[0])), "MESSAGE_KEY_GONE");
    let mut conversation = bob.conversation(&a);
    assert!(bob.rows.commit(conversation.reset()));
    assert_eq!(bob.rows.count(RecordKind::SkippedIndex), 0);
}

#[test]
fn a_clock_that_ran_ahead_once_does_not_keep_the_keys_that_were_stored_after_it() {
    let (mut alice, mut bob) = pair();
    let a = alice.address();
    let right = bob.now;
    bob.pass(limits::STORED_KEY_LIFETIME * 12);
    skip(&mut alice, &mut bob, 2);
    bob.now = right;
    let late = skip(&mut alice, &mut bob, 2);
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 2);
    bob.pass(limits::STORED_KEY_LIFETIME);
    skip(&mut alice, &mut bob, 1);
    assert_eq!(bob.rows.count(RecordKind::SkippedKeys), 1, "only what claims to be of next year is left");
    assert_eq!(code(bob.receive(&a, &late[0])), "MESSAGE_KEY_GONE");
}
