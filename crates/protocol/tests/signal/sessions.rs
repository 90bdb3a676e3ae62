//! Sessions: what must not happen to them.

use stvor_protocol::signal::{
    Compatibility, KeyPair, MessageKind, PreKeyMessage, SessionRecord, SignalError, WhisperMessage,
};

use crate::party::{Party, talking};

#[test]
fn messages_cross_in_both_directions_and_orders() {
    let (mut alice, mut bob) = talking(Some(3));
    let messages: Vec<_> = (0..5u8).map(|number| alice.send(&[number; 20])).collect();
    for number in [4u8, 0, 2, 1, 3] {
        assert_eq!(bob.text(&messages[usize::from(number)]), [number; 20]);
    }
    let back = bob.send(b"");
    assert_eq!((back.kind, alice.text(&back)), (MessageKind::Whisper, b"".to_vec()));
    assert_eq!(bob.read(&messages[0]).unwrap_err(), SignalError::Duplicate);
}

#[test]
fn prekey_zero_is_used_and_removed_and_no_prekey_is_told() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(Some(0)));
    let first = alice.send(b"zero");
    assert_eq!(PreKeyMessage::parse(&first.body).unwrap().prekey(), Some(0));
    let received = bob.read(&first).unwrap();
    assert_eq!((received.remove_prekey, received.new_session), (Some(0), true));
    assert!(bob.one_time.is_empty());
    assert!(!received.compatibility.contains(&Compatibility::NoOneTimePrekey));

    let mut carol = Party::new("carol");
    bob.record = SessionRecord::new();
    carol.start(&bob.bundle(None));
    let received = carol.send(b"none");
    let received = bob.read(&received).unwrap();
    assert_eq!(received.remove_prekey, None);
    assert!(received.compatibility.contains(&Compatibility::NoOneTimePrekey));
    assert!(received.compatibility.contains(&Compatibility::NoPostQuantum));
}

#[test]
fn what_is_weaker_is_told_of_records_wherever_they_come_from() {
    let always = vec![Compatibility::NoPostQuantum, Compatibility::ShortMac];
    assert!(SessionRecord::new().compatibility().is_empty());
    for one_time in [None, Some(0)] {
        let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
        alice.start(&bob.bundle(one_time));
        let started = match one_time {
            Some(_) => always.clone(),
            None => [&always[..], &[Compatibility::NoOneTimePrekey]].concat(),
        };
        assert_eq!(alice.record.compatibility(), started);
        alice.restart_as_json();
        assert_eq!(alice.record.compatibility(), started, "imported");
        let first = alice.send(b"first");
        let received = bob.read(&first).unwrap();
        assert_eq!(received.compatibility, started);
        let answer = bob.send(b"answer");
        assert_eq!(alice.text(&answer), b"answer");
        for party in [&mut alice, &mut bob] {
            party.record.close_current(stvor_base::Timestamp::from_millis(5));
            party.restart();
            assert_eq!(party.record.compatibility(), always, "archived");
            party.record.clear();
            assert!(party.record.compatibility().is_empty());
        }
    }
}

#[test]
fn bundle_without_a_signature_that_verifies_starts_nothing() {
    let mut bob = Party::new("bob");
    let good = bob.bundle(Some(1));
    for bad in [vec![], vec![0; 64], vec![1; 63], good.signature[..63].to_vec()] {
        let bundle = stvor_protocol::signal::PreKeyBundleIn { signature: bad, ..good.clone() };
        assert!(matches!(bundle.validate(), Err(SignalError::BadBundle(_))));
    }
    for bit in 0..512 {
        let mut bundle = good.clone();
        bundle.signature[bit / 8] ^= 1 << (bit % 8);
        assert!(bundle.validate().is_err(), "bit {bit}");
    }
    let mut other = good.clone();
    other.signed[5] ^= 1;
    assert!(other.validate().is_err());
    good.validate().unwrap();
}

#[test]
fn late_message_on_a_replaced_session_leaves_the_current_one_alone() {
    let (mut alice, mut bob) = talking(Some(1));
    let late = alice.send(b"late");
    alice.start(&bob.bundle(Some(2)));
    let new = alice.send(b"new");
    assert_eq!(bob.text(&new), b"new");
    let answer = bob.send(b"answer");
    assert_eq!(alice.text(&answer), b"answer");
    assert_eq!(bob.text(&late), b"late");
    for _ in 0..3 {
        let one = alice.send(b"after");
        assert_eq!(bob.text(&one), b"after");
        let two = bob.send(b"after");
        assert_eq!(alice.text(&two), b"after");
    }
}

#[test]
fn failed_decrypt_leaves_the_record_as_it_was() {
    let (mut alice, mut bob) = talking(Some(1));
    alice.start(&bob.bundle(Some(2)));
    let first = alice.send(b"with a handshake");
    let (mut carol, mut dave) = talking(Some(1));
    let _ = carol.send(b"lost");
    let later = carol.send(b"without");
    for (reader, message) in [(&mut bob, &first), (&mut dave, &later)] {
        let before = reader.record.encode();
        let keys: Vec<_> = reader.one_time.iter().map(|(id, pair)| (*id, pair.duplicate())).collect();
        for bit in 0..message.body.len() * 8 {
            let mut changed = message.body.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let registration = PreKeyMessage::parse(&changed)
                .is_ok_and(|parsed| parsed.registration_id() != 77 && message.kind == MessageKind::PreKey);
            match reader.read_bytes(message.kind, &changed) {
                Err(_) => assert!(reader.record.encode() == before, "bit {bit} changed the record"),
                Ok(_) => {
                    assert!(registration, "bit {bit} is not of the registration id");
                    // Nothing authenticates it; nothing but the hint follows from it. Undone for the next bit.
                    reader.record = SessionRecord::decode(before.expose()).unwrap();
                    assert_eq!(reader.one_time.len() + 1, keys.len());
                    reader.one_time = keys.iter().map(|(id, pair)| (*id, pair.duplicate())).collect();
                }
            }
        }
        assert!(reader.read(message).is_ok());
    }
}

#[test]
fn flipped_registration_id_of_a_later_copy_changes_nothing() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(None));
    let (first, mut second) = (alice.send(b"one"), alice.send(b"two"));
    assert_eq!(bob.text(&first), b"one");
    // Field 5 of the outer message, one byte of value.
    let at = second.body.windows(2).rposition(|pair| pair == [0x28, 77]).unwrap();
    second.body[at + 1] = 78;
    assert_eq!(bob.text(&second), b"two");
    assert_eq!(bob.record.sessions().unwrap()[0].registration_id, 77);
}

#[test]
fn replayed_first_message_is_a_duplicate_while_its_session_is_known() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(Some(5)));
    let first = alice.send(b"first");
    assert_eq!(bob.text(&first), b"first");
    let before = bob.record.encode();
    assert_eq!(bob.read(&first).unwrap_err(), SignalError::Duplicate);
    assert!(bob.record.encode() == before);
    let second = alice.send(b"second");
    assert_eq!(second.kind, MessageKind::PreKey);
    assert_eq!(bob.text(&second), b"second", "the handshake is not asked for its prekey again");
}

#[test]
fn replayed_first_message_is_refused_when_its_session_is_gone() {
    for one_time in [None, Some(0)] {
        let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
        alice.start(&bob.bundle(one_time));
        let first = alice.send(b"first");
        assert_eq!(bob.text(&first), b"first");
        bob.record.clear();
        bob.restart();
        assert_eq!(bob.read(&first).unwrap_err(), SignalError::Replay);
        bob.restart_as_json();
        assert_eq!(bob.read(&first).unwrap_err(), SignalError::Replay);
        // Another client's record knows nothing; the prekey does.
        bob.record = SessionRecord::new();
        match one_time {
            Some(id) => assert_eq!(bob.read(&first).unwrap_err(), SignalError::UnknownPrekey("one-time", id)),
            None => assert!(bob.read(&first).is_ok(), "X3DH without a one-time prekey can not tell"),
        }
    }
}

#[test]
fn handshake_under_another_encoding_of_its_key_is_no_new_one() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(None));
    let first = alice.send(b"first");
    let base = PreKeyMessage::parse(&first.body).unwrap().base_key().to_bytes();
    let at = first.body.windows(33).position(|window| window == base).unwrap();
    // The top bit of a coordinate takes no part in agreements.
    let mut again = first.body.clone();
    again[at + 32] ^= 0x80;
    assert_eq!(bob.text(&first), b"first");
    assert_eq!(bob.read_bytes(MessageKind::PreKey, &again).unwrap_err(), SignalError::Undecryptable);
    assert_eq!(bob.record.sessions().unwrap().len(), 1);
}

#[test]
fn message_of_an_unknown_signed_prekey_names_it() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(None));
    let first = alice.send(b"first");
    bob.signed.clear();
    assert_eq!(bob.read(&first).unwrap_err(), SignalError::UnknownPrekey("signed", 1));
}

#[test]
fn forged_first_message_proves_no_identity() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(Some(1)));
    let genuine = alice.send(b"genuine");
    // Mallory's identity in the place of Alice's: nothing comes back that could be pinned.
    let mallory = Party::new("mallory").identity.public().to_bytes();
    let at =
        genuine.body.windows(33).position(|window| window == alice.identity.public().to_bytes()).unwrap();
    let mut forged = genuine.body.clone();
    forged[at..at + 33].copy_from_slice(&mallory);
    assert_eq!(bob.read_bytes(MessageKind::PreKey, &forged).unwrap_err(), SignalError::Undecryptable);
    assert!(bob.one_time.contains_key(&1) && !bob.record.has_current());
    let received = bob.read(&genuine).unwrap();
    assert_eq!(received.identity, alice.identity.public());
}

#[test]
fn known_session_under_another_identity_is_refused() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    alice.start(&bob.bundle(Some(1)));
    let (first, second) = (alice.send(b"one"), alice.send(b"two"));
    assert_eq!(bob.text(&first), b"one");
    let at = second.body.windows(33).position(|window| window == alice.identity.public().to_bytes()).unwrap();
    let mut forged = second.body.clone();
    forged[at..at + 33].copy_from_slice(&Party::new("mallory").identity.public().to_bytes());
    assert_eq!(bob.read_bytes(MessageKind::PreKey, &forged).unwrap_err(), SignalError::IdentityChanged);
    assert_eq!(bob.text(&second), b"two");
}

#[test]
fn simultaneous_starts_lose_nothing_and_meet_on_one_session() {
    for round in 0..8 {
        let (mut alice, mut bob) =
            (Party::new(&format!("alice {round}")), Party::new(&format!("bob {round}")));
        let (for_bob, for_alice) = (alice.bundle(Some(1)), bob.bundle(Some(1)));
        bob.start(&for_bob);
        alice.start(&for_alice);
        for turn in 0..20u8 {
            let (from_alice, from_bob) = (alice.send(&[turn]), bob.send(&[turn]));
            assert_eq!(bob.text(&from_alice), [turn]);
            assert_eq!(alice.text(&from_bob), [turn]);
        }
        let (a, b) = (alice.record.sessions().unwrap(), bob.record.sessions().unwrap());
        assert_eq!(a[0].base_key, b[0].base_key, "round {round}");
        assert!(a[0].base_key.to_bytes() <= a[1].base_key.to_bytes(), "the smaller base key");
        assert!(!a[0].unanswered && !b[0].unanswered);
    }
}

#[test]
fn reflected_and_cross_wired_messages_are_refused() {
    let (mut alice, bob) = talking(Some(1));
    let message = alice.send(b"to bob");
    assert_eq!(alice.read(&message).unwrap_err(), SignalError::Undecryptable, "our own message comes back");
    let (_, mut dave) = talking(Some(1));
    // Dave has Bob's keys of another conversation, so the same labels and another ratchet.
    dave.record = SessionRecord::new();
    assert_eq!(dave.read(&message).unwrap_err(), SignalError::NoSession);
    drop(bob);
}

#[test]
fn keys_of_low_order_are_refused_everywhere() {
    let zero = [&[5][..], &[0; 32]].concat();
    let mut bob = Party::new("bob");
    let mut bundle = bob.bundle(Some(1));
    bundle.one_time.as_mut().unwrap().public = zero.clone();
    let mut alice = Party::new("alice");
    let context = stvor_protocol::signal::Context {
        identity: &alice.identity,
        registration_id: 1,
        now: stvor_base::Timestamp::from_millis(1),
    };
    let started = stvor_protocol::signal::session::start(
        &mut alice.record,
        &context,
        &bundle.validate().unwrap(),
        &mut alice.rng,
    );
    assert!(started.is_err() && !alice.record.has_current());

    let (mut alice, mut bob) = talking(Some(1));
    let message = alice.send(b"x");
    let at = message.body.iter().position(|byte| *byte == 5).unwrap();
    let mut forged = message.body.clone();
    forged[at..at + 33].copy_from_slice(&zero);
    assert_eq!(bob.read_bytes(MessageKind::Whisper, &forged).unwrap_err(), SignalError::Undecryptable);
}

#[test]
fn closing_stops_sending_and_late_messages_still_come() {
    let (mut alice, mut bob) = talking(Some(1));
    let late = alice.send(b"late");
    bob.record.close_current(stvor_base::Timestamp::from_millis(5));
    assert!(!bob.record.has_current());
    assert_eq!(bob.text(&late), b"late");
    let views = bob.record.sessions().unwrap();
    assert!(views[0].closed.is_some() && !views[0].initiator);
}

#[test]
fn nothing_secret_is_printed() {
    let (alice, _) = talking(Some(1));
    let printed =
        format!("{:?} {:?}", alice.record, KeyPair::from_private(alice.identity.private()).unwrap());
    let json = String::from_utf8(alice.record.to_json().unwrap().expose().to_vec()).unwrap();
    let secret = json.split("\"privKey\":\"").nth(1).unwrap().split('"').next().unwrap();
    assert!(secret.len() == 44 && !printed.contains(&secret[..8]));
    assert!(printed.len() < 1_000, "{printed}");
    assert!(WhisperMessage::parse(b"3").is_err());
}

#[test]
fn a_record_takes_over_which_handshakes_another_knows_as_used() {
    let mut used = Vec::new();
    let mut records = Vec::new();
    let mut bob = Party::new("bob");
    for name in ["alice", "the same, anew"] {
        let mut alice = Party::new(name);
        alice.start(&bob.bundle(None));
        let first = alice.send(b"first");
        assert_eq!(bob.text(&first), b"first");
        bob.record.clear();
        used.push(first);
        records.push(std::mem::take(&mut bob.record));
    }
    let other = records.pop().unwrap();
    bob.record = records.pop().unwrap();
    bob.record.remember(&other);
    bob.record.remember(&other);
    bob.restart();
    assert_eq!(bob.record.encode().len(), SessionRecord::new().encode().len() + 2 * 16, "each once");
    for first in &used {
        assert_eq!(bob.read(first).unwrap_err(), SignalError::Replay);
    }
    let whisper = talking(None).0.send(b"without a handshake");
    assert_eq!(bob.read(&whisper).unwrap_err(), SignalError::NoSession, "there is none to read it with");
}

#[test]
fn a_wrong_half_of_a_ratchet_key_in_json_spoils_no_other_session() {
    let (mut alice, mut bob) = talking(Some(1));
    alice.start(&bob.bundle(Some(2)));
    let new = alice.send(b"new");
    assert_eq!(bob.text(&new), b"new");
    let json: serde_json::Value = serde_json::from_slice(alice.record.to_json().unwrap().expose()).unwrap();
    let wrong = serde_json::json!(
        json["_sessions"].as_object().unwrap().values().next().unwrap()["indexInfo"]["baseKey"]
    );
    let (mut archived, mut current) = (0, 0);
    for name in json["_sessions"].as_object().unwrap().keys() {
        let mut changed = json.clone();
        let session = &mut changed["_sessions"][name];
        session["currentRatchet"]["ephemeralKeyPair"]["pubKey"] = wrong.clone();
        let closed = session["indexInfo"]["closed"] != -1;
        let read = SessionRecord::from_json(changed.to_string().as_bytes());
        if closed {
            alice.record = read.unwrap();
            let message = alice.send(b"on the current one");
            assert_eq!(bob.text(&message), b"on the current one");
            archived += 1;
        } else {
            assert!(matches!(read.unwrap_err(), SignalError::BadRecord(_)));
            current += 1;
        }
    }
    assert_eq!((archived, current), (1, 1));
}
