//! `stvor-protocol`: messages from a hostile relay, and rows from a damaged store.

use std::sync::OnceLock;

use stvor_crypto::SecretBytes;
use stvor_protocol::group::{
    Action, Group, GroupContent, GroupIncoming, Introduction, Member, PeerChain, SignedChangeIn,
};
use stvor_protocol::{
    ContentKind, Conversation, Identity, Incoming, Pin, Plaintext, Prekeys, QrOutcome, RecordKey, Records,
    SafetyNumber, SafetyParty, SignedDeviceListIn,
};

use crate::world::{NOW, World};

/// The targets of this floor.
pub const TARGETS: &[crate::Target] = &[
    ("protocol-envelope", envelope),
    ("protocol-decrypt", decrypt),
    ("protocol-bundle", bundle),
    ("protocol-device-list", device_list),
    ("protocol-records", records),
    ("protocol-plaintext", plaintext),
    ("protocol-safety-code", safety_code),
    ("protocol-group-change", group_change),
    ("protocol-group-content", group_content),
    ("protocol-group-message", group_message),
];

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(World::new)
}

fn envelope(data: &[u8]) {
    if let Ok(incoming) = Incoming::parse(data) {
        let _ = (incoming.session(), incoming.sent_at(), incoming.carries_handshake(), incoming.position());
        let _ = format!("{incoming:?}");
    }
}

/// Lays `data` over `sample`: XOR where both are, and what is longer follows.
fn laid_over(sample: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = sample.to_vec();
    for (index, byte) in data.iter().enumerate() {
        match out.get_mut(index) {
            Some(place) => *place ^= byte,
            None => out.push(*byte),
        }
    }
    out
}

/// First byte: which message; second and third: where the rest is laid over it. A changed message is refused, and the
/// good one is read afterwards as if nothing had been.
fn decrypt(data: &[u8]) {
    let [which, high, low, rest @ ..] = data else { return };
    let world = world();
    let blobs = world.blobs();
    let which = usize::from(*which) % blobs.len();
    let (good, reader) = (blobs[which], if which == 0 { &world.bob_before } else { &world.bob });
    let at = usize::from(u16::from_be_bytes([*high, *low])) % good.len();
    let (head, tail) = good.split_at(at);
    let bad = [head, &laid_over(tail, rest)].concat();

    let mut conversation = reader.conversation(world.alice.identity.address());
    if bad != good {
        assert!(reader.decrypt(&mut conversation, &bad).is_err(), "a changed message was read");
    }
    let received = reader.decrypt(&mut conversation, good).expect("the good message");
    assert_eq!(received.plaintext.body.expose(), b"hello");
}

/// First byte: which part of a good bundle; the rest is laid over it.
fn bundle(data: &[u8]) {
    let [part, rest @ ..] = data else { return };
    let world = world();
    let mut changed = world.bundle.clone();
    match part % 8 {
        0 => changed.list.bytes = laid_over(&changed.list.bytes, rest),
        1 => changed.list.signature = laid_over(&changed.list.signature, rest),
        2 => changed.signed.public = laid_over(&changed.signed.public, rest),
        3 => changed.signed.signature = laid_over(&changed.signed.signature, rest),
        4 => changed.kem.public = laid_over(&changed.kem.public, rest),
        5 => changed.kem.signature = laid_over(&changed.kem.signature, rest),
        6 => {
            let Some(numbers) = rest.first_chunk::<12>() else { return };
            changed.signed.id ^= u32::from(numbers[0]);
            changed.kem.id ^= u32::from(numbers[1]);
            changed.device ^= u32::from(numbers[2]);
            changed.signed.created ^= u64::from(numbers[3]);
            changed.kem.created ^= u64::from(numbers[4]);
        }
        // A one-time prekey is not signed: any point passes, and the handshake binds it.
        _ => {
            if let Some(key) = &mut changed.one_time {
                key.public = laid_over(&key.public, rest);
            }
        }
    }
    let bob = &world.bob.identity;
    let verdict = changed.validate(bob.app(), bob.address(), NOW);
    if changed == world.bundle {
        assert!(verdict.is_ok());
    } else if part % 8 != 7 {
        assert!(verdict.is_err(), "a changed bundle passed");
    }
}

fn device_list(data: &[u8]) {
    let Some((signature, bytes)) = data.split_at_checked(64) else { return };
    let list = SignedDeviceListIn { bytes: bytes.to_vec(), signature: signature.to_vec() };
    let bob = &world().bob.identity;
    if list != *bob.signed_list() {
        assert!(list.validate(bob.app(), bob.user()).is_err());
    }
}

/// First byte: which row of Bob's; the rest replaces it, or is laid over it. Loading refuses or loads, and what it loads
/// must bear a message.
fn records(data: &[u8]) {
    let [which, over, rest @ ..] = data else { return };
    let world = world();
    let peer = world.alice.identity.address();
    let mut keys = Conversation::keys(peer);
    keys.extend([Identity::key(), Prekeys::key()]);
    let key = &keys[usize::from(*which) % keys.len()];
    let old = world.bob.rows.get(key).map_or(&[][..], Vec::as_slice);
    let value = if over % 2 == 0 { rest.to_vec() } else { laid_over(old, rest) };
    let damaged = SecretBytes::from(value);

    let _ = Identity::from_record(&damaged);
    let _ = Pin::from_record(&damaged);
    let mut rows: Records = world.bob.records(keys.clone());
    rows.insert(RecordKey::clone(key), damaged);
    let _ = Prekeys::load(&rows);
    if let Ok(mut conversation) = Conversation::load(&world.bob.identity, peer, &rows) {
        let _ = world.bob.decrypt(&mut conversation, &world.later[0]);
        let text = Plaintext {
            content: stvor_base::ContentId::from_bytes([9; 16]),
            kind: ContentKind::Text,
            body: vec![1].into(),
        };
        let rng = &mut stvor_crypto::random::DeterministicRandom::from_label("records");
        let _ = conversation.encrypt(&world.bob.context(), &text, rng);
    }
}

/// What receipts, retry requests and acknowledgements say is read from a peer's plaintext.
fn plaintext(data: &[u8]) {
    for kind in [
        ContentKind::Delivered,
        ContentKind::Read,
        ContentKind::RetryRequest,
        ContentKind::Acknowledgement,
        ContentKind::Text,
    ] {
        let content = stvor_base::ContentId::from_bytes([1; 16]);
        let plaintext = Plaintext { content, kind, body: stvor_crypto::SecretBytes::from_slice(data) };
        if let Ok(ids) = plaintext.receipted() {
            let again = Plaintext::receipt(content, kind == ContentKind::Read, &ids);
            assert_eq!(again, plaintext);
        }
        if let Ok(request) = plaintext.requested() {
            assert_eq!(Plaintext::retry_request(content, &request), plaintext);
        }
        if let Ok(named) = plaintext.acknowledged() {
            assert_eq!(Plaintext::acknowledgement(content, &named), plaintext);
        }
    }
}

fn safety_code(data: &[u8]) {
    // Made once: a safety number is slow on purpose.
    static CODE: OnceLock<(SafetyNumber, Vec<u8>)> = OnceLock::new();
    let (number, expected) = CODE.get_or_init(|| {
        let (alice, bob) = (&world().alice.identity, &world().bob.identity);
        let party = |who: &'static Identity| SafetyParty { user: who.user(), user_key: who.user_key() };
        let number = SafetyNumber::of(&party(alice), &party(bob));
        (number, SafetyNumber::of(&party(bob), &party(alice)).qr())
    });
    assert_eq!(number.compare_qr(data) == QrOutcome::Match, data == expected);
}

/// A group of Alice's with Bob in it, Bob's copy of it with her sender key, and a message of hers.
struct GroupWorld {
    group: Group,
    rows: Records,
    changes: Vec<SignedChangeIn>,
    blob: Vec<u8>,
}

fn group_world() -> &'static GroupWorld {
    static WORLD: OnceLock<GroupWorld> = OnceLock::new();
    WORLD.get_or_init(|| {
        let (alice, bob) = (&world().alice.identity, &world().bob.identity);
        let rng = &mut stvor_crypto::random::DeterministicRandom::from_label("groups");
        let (mut group, _) = Group::create(alice, "group", NOW, rng).expect("a group");
        let member = Member { user: bob.user().clone(), key: *bob.user_key() };
        let _ = group.change(alice, (Action::Add(vec![member]), NOW), rng).expect("a member");
        let text = Plaintext {
            content: stvor_base::ContentId::from_bytes([9; 16]),
            kind: ContentKind::Text,
            body: vec![1].into(),
        };
        let sealed = group.encrypt(&world().alice.context(), &text, rng).expect("a message");
        let (body, _) = sealed.introduction.expect("a sender key");
        let Ok(GroupContent::SenderKey(key)) = GroupContent::decode(alice.suite(), &body) else {
            unreachable!("a sender key")
        };
        let introduction = Introduction { sender: alice.address(), user_key: alice.user_key() };
        let effects = introduction.accept(&key, &Records::new()).expect("the sender key");
        let rows = effects.into_vec().into_iter().filter_map(|effect| match effect {
            stvor_protocol::Effect::Put { key, value, .. } => Some((key, value)),
            _ => None,
        });
        let rows = rows.collect();
        let changes = group.changes().map(|change| change.signed().clone()).collect();
        GroupWorld { group, rows, changes, blob: sealed.blob }
    })
}

/// First byte: which change; the rest is laid over it. A changed one is refused.
fn group_change(data: &[u8]) {
    let [which, rest @ ..] = data else { return };
    let world = group_world();
    let good = &world.changes[usize::from(*which) % world.changes.len()];
    let bytes = laid_over(&good.bytes, rest);
    let changed = SignedChangeIn { bytes, signature: good.signature.clone() };
    let same = changed == *good;
    let app = crate::protocol::world().alice.identity.app();
    assert_eq!(changed.validate(app).is_ok(), same);
}

/// What members tell one another reads back as it was.
fn group_content(data: &[u8]) {
    let bob = &world().bob.identity;
    if let Ok(content) = GroupContent::decode(bob.suite(), &SecretBytes::from_slice(data)) {
        assert_eq!(content.encode().expose(), data);
        if let GroupContent::Changes(id, changes) = content {
            let mut group = Group::join(bob, id);
            for change in changes {
                if let Ok(change) = change.validate(bob.app()) {
                    let _ = group.apply(change);
                }
            }
        }
    }
}

/// First two bytes: where the rest is laid over a good message. A changed one is refused.
fn group_message(data: &[u8]) {
    let [high, low, rest @ ..] = data else { return };
    let _ = GroupIncoming::parse(rest);
    let world = group_world();
    let at = usize::from(u16::from_be_bytes([*high, *low])) % world.blob.len();
    let (head, tail) = world.blob.split_at(at);
    let blob = [head, &laid_over(tail, rest)].concat();
    let alice = &crate::protocol::world().alice.identity;
    let read = || {
        let incoming = GroupIncoming::parse(&blob).ok()?;
        let chain = PeerChain::load(alice.address(), incoming.chain(), &world.rows).ok()??;
        assert!(world.group.admits(alice.user(), chain.user_key()));
        chain.open(alice.app(), &incoming, (&world.rows, NOW)).ok()
    };
    assert_eq!(read().is_some(), blob == world.blob);
}
