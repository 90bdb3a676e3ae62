//! Every bound, at n and n + 1.

use stvor_protocol::limits::{MAX_ARCHIVED_SESSIONS, MAX_SKIP, MAX_STORED_KEYS};
use stvor_protocol::signal::{MessageKind, SessionRecord, SignalError};

use crate::party::{Party, talking};

/// Alice sends this many messages that do not come, then one.
fn after(alice: &mut Party, lost: u32) -> stvor_protocol::signal::Encrypted {
    send_after(alice, lost, b"comes")
}

fn send_after(alice: &mut Party, lost: u32, text: &[u8]) -> stvor_protocol::signal::Encrypted {
    for _ in 0..lost {
        let _ = alice.send(b"lost");
    }
    alice.send(text)
}

#[test]
fn two_thousand_ahead_are_read_and_one_more_is_not() {
    let (mut alice, mut bob) = talking(Some(1));
    let far = after(&mut alice, MAX_SKIP);
    assert_eq!(bob.text(&far), b"comes");
    let too_far = after(&mut alice, MAX_SKIP + 1);
    let limit = MAX_SKIP;
    assert_eq!(bob.read(&too_far).unwrap_err(), SignalError::TooFarAhead { ahead: limit + 1, limit });
    let (mut alice, mut bob) = talking(Some(1));
    let back = bob.send(b"turn");
    assert_eq!(alice.text(&back), b"turn");
    let too_far = after(&mut alice, MAX_SKIP + 1);
    assert!(matches!(bob.read(&too_far).unwrap_err(), SignalError::TooFarAhead { .. }), "on a new chain");
}

#[test]
fn two_thousand_keys_are_stored_and_the_oldest_goes() {
    let (mut alice, mut bob) = talking(Some(1));
    let lost: Vec<_> = (0..MAX_STORED_KEYS + 1).map(|_| alice.send(b"late")).collect();
    let come = alice.send(b"comes");
    // In two steps: one message may pass 2,000 over.
    assert_eq!(bob.text(&lost[1_000]), b"late");
    assert_eq!(bob.text(&come), b"comes");
    assert_eq!(bob.text(&lost[0]), b"late", "2,000 are stored");
    let (mut alice, mut bob) = talking(Some(1));
    let lost: Vec<_> = (0..MAX_STORED_KEYS + 2).map(|_| alice.send(b"late")).collect();
    assert_eq!(bob.text(&lost[1_000]), b"late");
    assert_eq!(bob.text(&lost[2_001]), b"late");
    let extra = after(&mut alice, 1);
    assert_eq!(bob.text(&extra), b"comes");
    assert_eq!(bob.read(&lost[0]).unwrap_err(), SignalError::Duplicate, "the oldest went");
    assert_eq!(bob.text(&lost[2]), b"late");
    assert!(bob.record.encode().len() < 36 * MAX_STORED_KEYS + 1_000);
}

#[test]
fn five_receiving_chains_are_kept() {
    let (mut alice, mut bob) = talking(Some(1));
    let mut late = Vec::new();
    for _ in 0..6 {
        late.push(alice.send(b"late"));
        let turn = alice.send(b"turn");
        assert_eq!(bob.text(&turn), b"turn");
        let back = bob.send(b"back");
        assert_eq!(alice.text(&back), b"back");
    }
    let verdict = bob.read(&late[0]).unwrap_err();
    assert_eq!(verdict, SignalError::Undecryptable, "its chain is the sixth");
    for message in &late[1..] {
        assert_eq!(bob.text(message), b"late");
    }
}

#[test]
fn record_does_not_grow_over_ten_thousand_round_trips() {
    let (mut alice, mut bob) = talking(Some(1));
    let mut largest = (0, 0);
    for turn in 0..10_000u32 {
        let to = alice.send(b"ping");
        assert_eq!(bob.text(&to), b"ping");
        let back = bob.send(b"pong");
        assert_eq!(alice.text(&back), b"pong");
        if turn == 10 {
            largest = (alice.record.encode().len(), bob.record.to_json().unwrap().len());
        }
    }
    assert_eq!(alice.record.encode().len(), largest.0);
    // A counter has another digit, perhaps.
    assert!(bob.record.to_json().unwrap().len() <= largest.1 + 16);
    assert!(largest.0 < 1_024, "{largest:?}");
}

#[test]
fn forty_sessions_are_archived_and_the_oldest_is_remembered_as_used() {
    let mut bob = Party::new("bob");
    let (mut firsts, mut lates) = (Vec::new(), Vec::new());
    let mut alice = Party::new("alice");
    for _ in 0..MAX_ARCHIVED_SESSIONS + 2 {
        alice.record = SessionRecord::new();
        alice.start(&bob.bundle(None));
        firsts.push(alice.send(b"first"));
        lates.push(alice.send(b"late"));
        assert_eq!(bob.text(firsts.last().unwrap()), b"first");
    }
    bob.restart();
    assert_eq!(bob.record.sessions().unwrap().len(), MAX_ARCHIVED_SESSIONS + 1);
    assert_eq!(bob.read(&lates[0]).unwrap_err(), SignalError::Replay, "the 41st archived one is gone");
    assert_eq!(bob.text(&lates[1]), b"late", "the 40th is there");
    bob.restart_as_json();
    assert_eq!(bob.record.sessions().unwrap().len(), MAX_ARCHIVED_SESSIONS + 1);
    assert_eq!(bob.read(&firsts[0]).unwrap_err(), SignalError::Replay);
}

/// Of a record with all the sessions that it may hold, newest first: which read a message whose ratchet key none of them
/// knows, after `lost` ones that did not come, with so many bytes.
fn reached(lost: u32, bytes: usize) -> Vec<bool> {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let mut hers = Vec::new();
    for _ in 0..=MAX_ARCHIVED_SESSIONS {
        alice.start(&bob.bundle(None));
        let first = alice.send(b"first");
        assert_eq!(bob.text(&first), b"first");
        let answer = bob.send(b"answer");
        assert_eq!(alice.text(&answer), b"answer");
        hers.push(std::mem::take(&mut alice.record));
    }
    let kept = bob.record.encode();
    let mut reads = |record| {
        alice.record = record;
        let _ = (0..lost).map(|_| alice.send(b"lost")).collect::<Vec<_>>();
        let message = alice.send(&vec![7; bytes]);
        bob.record = SessionRecord::decode(kept.expose()).unwrap();
        match bob.read(&message) {
            Ok(received) => received.plaintext.len() == bytes,
            Err(error) => {
                assert_eq!(error, SignalError::Undecryptable);
                assert!(bob.record.encode() == kept);
                false
            }
        }
    };
    hers.into_iter().rev().map(&mut reads).collect()
}

#[test]
fn new_ratchet_key_is_read_on_the_newest_sessions_and_on_fewer_the_dearer_the_message_is() {
    let large = stvor_protocol::limits::MAX_SIGNAL_MESSAGE - 256;
    for (lost, bytes, sessions) in
        [(0, 5, 21), (28, 5, 16), (MAX_SKIP - 1, 5, 1), (0, 64 * 1024, 9), (0, large, 2)]
    {
        let expected: Vec<bool> = (0..=MAX_ARCHIVED_SESSIONS).map(|place| place < sessions).collect();
        assert_eq!(reached(lost, bytes), expected, "number {lost}, {bytes} bytes");
    }
}

/// A first message after `lost` others that names its one-time prekey, which is the one with id 0, by leaving the id out.
fn without_its_zero(lost: u32, text: &[u8]) -> (Party, Vec<u8>) {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(Some(0)));
    let message = send_after(&mut alice, lost, text);
    assert_eq!((message.kind, &message.body[1..3]), (MessageKind::PreKey, &[8, 0][..]));
    (bob, [&message.body[..1], &message.body[3..]].concat())
}

#[test]
fn first_message_that_leaves_its_zero_out_may_be_a_thousand_ahead() {
    let (mut bob, body) = without_its_zero(MAX_SKIP / 2, b"comes");
    let received = bob.read_bytes(MessageKind::PreKey, &body).unwrap();
    assert_eq!((received.plaintext.expose(), received.remove_prekey), (&b"comes"[..], Some(0)));
    let (mut bob, body) = without_its_zero(MAX_SKIP / 2 + 1, b"comes");
    let verdict = bob.read_bytes(MessageKind::PreKey, &body).unwrap_err();
    assert_eq!(verdict, SignalError::Undecryptable, "it is tried twice, and both take 2,000 steps at most");
    assert!(!bob.record.has_current() && bob.one_time.contains_key(&0));
}

#[test]
fn what_a_first_message_without_its_zero_costs_counts_its_bytes() {
    // A MAC over 512 KiB takes as long as 1,024 steps, and what is forged is checked twice.
    let large = vec![7; stvor_protocol::limits::MAX_SIGNAL_MESSAGE - 256];
    let (mut bob, body) = without_its_zero(480, &large);
    assert_eq!(bob.read_bytes(MessageKind::PreKey, &body).unwrap().plaintext.len(), large.len());
    let (mut bob, body) = without_its_zero(490, &large);
    assert_eq!(bob.read_bytes(MessageKind::PreKey, &body).unwrap_err(), SignalError::Undecryptable);
}

#[test]
fn content_of_the_limit_is_sent_and_read_and_one_byte_more_is_refused() {
    let (mut alice, mut bob) = talking(Some(1));
    let limit = stvor_protocol::limits::MAX_SIGNAL_MESSAGE - 256;
    let largest = alice.send(&vec![7; limit]);
    assert_eq!(bob.text(&largest).len(), limit);
    let context = stvor_protocol::signal::Context {
        identity: &alice.identity,
        registration_id: 1,
        now: stvor_base::Timestamp::from_millis(1),
    };
    let refused = stvor_protocol::signal::cipher::encrypt(&mut alice.record, &context, &vec![7; limit + 1]);
    assert_eq!(refused.unwrap_err(), SignalError::TooLarge { size: limit + 1, limit });
}
