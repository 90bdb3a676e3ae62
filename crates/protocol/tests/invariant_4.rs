//! I4: any flipped bit of any message is refused, and a message under other names or keys is. Every bit of a sample of
//! each kind; blobs of 512 bytes for established sessions, unpadded ones for those that carry a handshake.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

mod model;

use model::{Party, code, pair};
use stvor_base::ContentId;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::{
    ContentKind, Context, Conversation, Incoming, Plaintext, RecordKey, RecordKind, RetryRequest, effects,
    plaintext::unpadded,
};

/// Flips every bit in turn, on one conversation in memory; then the message itself is read there.
fn refuse_every_bit(reader: &Party, from: &Party, blob: &[u8]) {
    let mut conversation = reader.conversation(&from.address());
    let mut rng = DeterministicRandom::from_label("reader");
    let mut changed = blob.to_vec();
    for bit in 0..blob.len() * 8 {
        changed[bit / 8] ^= 1 << (bit % 8);
        let outcome = reader.open_on(&mut conversation, &changed, &mut rng);
        assert!(outcome.is_err(), "bit {bit} of {}", blob.len() * 8);
        changed[bit / 8] ^= 1 << (bit % 8);
    }
    for length in (0..blob.len()).step_by(7) {
        assert!(reader.open_on(&mut conversation, &blob[..length], &mut rng).is_err());
    }
    changed.push(0);
    assert!(reader.open_on(&mut conversation, &changed, &mut rng).is_err());
    assert!(reader.open_on(&mut conversation, blob, &mut rng).is_ok());
}

#[test]
fn normal_messages_receipts_and_retry_requests() {
    let (mut alice, mut bob) = pair();
    let (a, b, id) = (alice.address(), bob.address(), ContentId::from_bytes([7; 16]));
    let request = RetryRequest { message: stvor_base::MessageId::from_bytes([3; 16]), blob_hash: [4; 32] };
    let contents = [
        alice.text("words"),
        Plaintext { content: id, kind: ContentKind::Json, body: b"{}".to_vec().into() },
        Plaintext::receipt(id, false, &[id]),
        Plaintext::receipt(id, true, &[id, id]),
        Plaintext::retry_request(id, &request),
        Plaintext::control(id),
    ];
    for content in contents {
        let blob = alice.send_content(&b, &content).unwrap();
        assert_eq!(blob.len(), 512);
        // The first is a turn for Bob, the others come on the chain that it started.
        refuse_every_bit(&bob, &alice, &blob);
        bob.receive(&a, &blob).unwrap();
    }
}

#[test]
fn the_control_message_that_renews_keys() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut reply = None;
    for _ in 0..50 {
        let blob = alice.send(&b, "one way").unwrap();
        reply = bob.receive_full(&a, &blob).unwrap().reply;
    }
    refuse_every_bit(&alice, &bob, &reply.unwrap());
}

fn first_message(with_one_time: bool) -> (Party, Party, Vec<u8>, Vec<u8>) {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    if !with_one_time {
        bob.directory.one_time.clear();
        bob.directory.kem_one_time.clear();
    }
    let bundle = bob.bundle().validate(&model::app(), &bob.address(), alice.now).unwrap();
    let (one, two) = (alice.text(""), alice.text(""));
    let mut conversation = alice.conversation(&bob.address());
    let context =
        Context { identity: &alice.identity, policy: alice.policy, padding: unpadded, now: alice.now };
    let _ = conversation.start(&context, &bundle, None, &mut alice.rng).unwrap();
    let first = conversation.encrypt(&context, &one, &mut alice.rng).unwrap().blob;
    let second = conversation.encrypt(&context, &two, &mut alice.rng).unwrap().blob;
    (alice, bob, first, second)
}

#[test]
fn first_messages_with_one_time_prekeys() {
    let (alice, bob, first, _) = first_message(true);
    refuse_every_bit(&bob, &alice, &first);
}

#[test]
fn first_messages_without_one_time_prekeys() {
    let (alice, bob, first, _) = first_message(false);
    refuse_every_bit(&bob, &alice, &first);
}

#[test]
fn handshakes_on_a_session_that_is_known_already() {
    let (alice, mut bob, first, second) = first_message(true);
    bob.receive(&alice.address(), &first).unwrap();
    refuse_every_bit(&bob, &alice, &second);
}

/// Bob's rows of his conversation with `from`, filed under `to`.
fn refile(bob: &mut Party, from: &str, to: &str) {
    let (old, new) =
        (effects::partition_of(&model::address(from)), effects::partition_of(&model::address(to)));
    let rows: Vec<_> = bob
        .rows
        .0
        .iter()
        .filter(|(key, _)| key.partition == old)
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    for (key, value) in rows {
        bob.rows.0.insert(RecordKey { partition: new.clone(), ..key }, value);
    }
}

#[test]
fn a_message_under_another_sender_name_or_to_another_recipient_is_refused() {
    let (mut alice, mut bob) = pair();
    let blob = alice.send(&bob.address(), "for bob, from alice").unwrap();
    // The same session rows under another sender's name.
    refile(&mut bob, "alice", "eve");
    assert_eq!(code(bob.open(&model::address("eve"), &blob)), "UNDECRYPTABLE");
    // A recipient with Bob's very keys and rows, but another name.
    let mut carol = Party::seeded("carol", "bob");
    assert_eq!(carol.identity.user_key(), bob.identity.user_key());
    let identity = carol.rows.0[&stvor_protocol::Identity::key()].clone();
    carol.rows = bob.rows.clone();
    carol.rows.0.insert(stvor_protocol::Identity::key(), identity);
    assert_eq!(code(carol.open(&alice.address(), &blob)), "UNDECRYPTABLE");
    assert_eq!(code(bob.open(&alice.address(), &blob)), "OK");
    // Handshakes bind both names as well.
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let first = alice.start(&mut bob, "for bob").unwrap();
    let mut carol = Party::seeded("carol", "bob");
    assert_eq!(code(carol.open(&alice.address(), &first)), "UNDECRYPTABLE");
    assert_eq!(code(bob.open(&model::address("eve"), &first)), "BAD_DEVICE_LIST");
    assert_eq!(code(bob.open(&alice.address(), &first)), "OK");
}

#[test]
fn a_message_between_other_user_keys_or_device_keys_is_refused() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blob = alice.send(&b, "between us").unwrap();
    let root = RecordKey::of_peer(RecordKind::SessionRoot, &a, &[0]);
    let good = bob.rows.0[&root].clone();
    // Version, id, side, time, base key; then the peer's user, signing and agreement key.
    let size = model::suite().key_bytes();
    for key in 0..3 {
        bob.rows.0.get_mut(&root).unwrap()[1 + 16 + 1 + 8 + size * (1 + key) + size / 2] ^= 1;
        assert_eq!(code(bob.open(&a, &blob)), "UNDECRYPTABLE", "{key}");
        bob.rows.0.insert(root.clone(), good.clone());
    }
    // Our own keys are bound too: another identity of the same name reads nothing with these rows.
    let other = Party::seeded("bob", "other keys");
    let rows = bob.rows.load(&Conversation::keys(&a));
    let mut conversation = Conversation::load(&other.identity, &a, &rows).unwrap();
    let mut rng = DeterministicRandom::from_label("x");
    assert_eq!(code(other.open_on(&mut conversation, &blob, &mut rng)), "UNDECRYPTABLE");
    assert_eq!(code(bob.open(&a, &blob)), "OK");
}

#[test]
fn a_message_that_names_another_session_of_ours_is_refused() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let old = alice.send(&b, "old").unwrap();
    let fresh = alice.start(&mut bob, "fresh").unwrap();
    bob.receive(&a, &fresh).unwrap();
    let (old_id, new_id) =
        (*Incoming::parse(&old).unwrap().session(), *Incoming::parse(&fresh).unwrap().session());
    for (blob, id) in [(&old, new_id), (&fresh, old_id)] {
        let mut moved = blob.clone();
        moved[3..19].copy_from_slice(&id);
        assert!(bob.open(&a, &moved).is_err());
    }
    assert_eq!(code(bob.open(&a, &old)), "OK");
}
