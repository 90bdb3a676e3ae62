//! Writes the seeds under `seeds/<target>/`: real samples, and each of them cut short and with one byte changed.
//! `fuzz/run 0 --write-seeds` does it; the output is kept in the repository and changes only when a format does.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use stvor_base::codec::Writer;
use stvor_base::devices::{DeviceEntry, DeviceList};
use stvor_base::{Address, AppId, DeviceId, MessageId, Timestamp, UserId};
use stvor_crypto::kem::DecapsulationKey;
use stvor_crypto::p256::{AgreementKey, SigningKey};
use stvor_crypto::random::{DeterministicRandom, Random};
use stvor_crypto::{Secret, kdf};
use stvor_keys::{KeyHolder, Passphrase, PassphraseCost};
use stvor_wire::client::{
    Ack, AckOne, Credential, Credit, FetchBundle, Hello, Hold, Lane, Recipient, Send, UploadKeys,
};
use stvor_wire::frame::{encode_client, encode_server};
use stvor_wire::keys::{OneTimePrekey, SignedPrekey};
use stvor_wire::server::{Challenge, Deliver, Nack, Subject};
use stvor_wire::token::{AppToken, TokenKind};
use stvor_wire::{ClientMessage, Code, ServerMessage};

fn write(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&folder).expect("a folder for seeds");
    fs::write(folder.join(name), bytes).expect("a seed");
}

/// A sample and two corruptions of it.
fn sample(target: &str, name: &str, bytes: &[u8]) {
    write(target, name, bytes);
    write(target, &format!("{name}-cut"), &bytes[..bytes.len() / 2]);
    let mut changed = bytes.to_vec();
    if let Some(byte) = changed.get_mut(bytes.len() / 3) {
        *byte ^= 0x81;
    }
    write(target, &format!("{name}-changed"), &changed);
}

/// The text of the signed note among the seeds.
pub const CHECKPOINT: &str = "example.com/log\n5\nX5T8u5Tab9JzXQBNEvJHs1LspfbGtGLSbNvKVHVVq+c=\n";

/// Writes all of them.
pub fn write_all() {
    let rng = &mut DeterministicRandom::from_label("seeds");
    let user = UserId::new("alice@example.com").expect("a user");
    let app = AppId::new("demo").expect("an app");
    let address = Address::new(user.clone(), DeviceId::FIRST);
    let signing = SigningKey::generate(rng).expect("a key");
    let agreement = AgreementKey::generate(rng).expect("a key");
    let kem = DecapsulationKey::generate(rng).expect("a key");

    let list = DeviceList {
        app: app.clone(),
        user,
        user_key: (*signing.public().as_bytes()).into(),
        version: 1,
        previous: [0; 32],
        devices: vec![DeviceEntry {
            id: DeviceId::FIRST,
            signing_key: (*signing.public().as_bytes()).into(),
            agreement_key: (*agreement.public().as_bytes()).into(),
        }],
    };
    sample("base-device-list", "one-device", &list.encode());
    let mut out = Writer::new();
    address.encode(&mut out);
    sample("base-address", "alice", &out.finish());
    let mut out = Writer::new();
    out.raw(&[0, 1, 2, 3, 4, 5, 14, 15]).u8(1).u16(2).u32(3).u64(4).u8(1).raw(&[6; 26]).bytes(b"seven");
    sample("base-reader", "script", &out.finish());
    for name in ["alice@example.com", "bob", "Ünï-cødé", "demo"] {
        sample("base-names", &hex(name), name.as_bytes());
    }

    sample("crypto-public-key", "point", agreement.public().as_bytes());
    let signature = signing.sign_deterministic(b"label", b"message").expect("a signature");
    sample("crypto-signature", "signature", &[&signature.as_bytes()[..], b"message"].concat());
    sample("crypto-private-key", "scalar", &Secret::<32>::random(rng).expect("bytes").expose()[..]);
    sample("crypto-kem", "public", kem.public().as_bytes());
    let (ciphertext, _) = kem.public().encapsulate(rng).expect("a ciphertext");
    sample("crypto-kem", "ciphertext", ciphertext.as_bytes());
    sample("crypto-aead", "bytes", &[7; 48]);

    let token = AppToken::issue(TokenKind::Live, &app, rng).expect("a token");
    sample("wire-token", "issued", token.expose().as_bytes());
    sample("wire-token", "literal", b"stvor_dev_test123");
    sample("wire-cursor", "cursor", &[1; 64]);
    for url in ["ws://localhost:4444", "https://relay.example.com/base", "wss://[::1]:3002"] {
        sample("wire-url", &hex(url), url.as_bytes());
    }
    for length in [0u32, 513, 16_385, 73_729] {
        write("wire-padding", &length.to_string(), &length.to_be_bytes());
    }
    frames(&address, rng);

    sample("store-sealed-row", "unchanged", &[0, 0, 0, 0]);
    sample("store-sealed-row", "one-bit", &[0, 0, 0, 0, 0, 1]);
    sample("store-sealed-row", "shorter", &[3]);
    stored(rng);
    protocol();
    signal();
    tlog();
}

fn tlog() {
    use stvor_tlog::{InclusionProof, Note, ProofFile};
    let signer = crate::tlog::signer();
    sample("tlog-checkpoint", "five", CHECKPOINT.as_bytes());
    let note = Note::sign(CHECKPOINT, &[&signer]).expect("a note");
    sample("tlog-note", "signed", note.to_string().as_bytes());
    sample("tlog-keys", "verifier", signer.verifier().to_string().as_bytes());
    sample("tlog-keys", "signer", signer.to_text().expose());
    let hashes = vec![stvor_tlog::Hash::empty(); 3];
    let proof = InclusionProof(hashes);
    let file = ProofFile { index: 2, proof, extra: Some(b"extra".to_vec()), checkpoint: note };
    sample("tlog-proof-file", "whole", file.to_string().as_bytes());
    let mut proof = [0; 16 + 3 * 32];
    (proof[7], proof[15]) = (2, 5);
    sample("tlog-proofs", "two-of-five", &proof);
    sample("tlog-tiles", "path", b"tile/0/x001/x234/067.p/5");
    let mut bundle = vec![2];
    stvor_tlog::tile::encode_entry(&mut bundle, b"one").expect("an entry");
    stvor_tlog::tile::encode_entry(&mut bundle, b"").expect("an entry");
    sample("tlog-tiles", "bundle", &bundle);
}

fn frames(address: &Address, rng: &mut DeterministicRandom) {
    let mut id = [0; 16];
    rng.fill(&mut id).expect("bytes");
    let msg_id = MessageId::from_bytes(id);
    let request_id = NonZeroU64::MIN;
    let blob: Bytes = vec![5; 512].into();
    let credential = Credential::AppToken("stvor_dev_test123".into());
    let hello = Hello { protocol_version: 1, credential, address: address.clone(), capabilities: vec![] };
    let lane = Some(Lane { epoch: 9, number: NonZeroU64::MIN });
    let recipient = Recipient { to: address.clone(), msg_id, lane };
    let send = Send { recipient, blob: blob.clone(), counter: 1, counter_mac: None, ttl: Duration::ZERO };
    let one_time = (1..4).map(|id| OneTimePrekey { id, key: [4; 65].into() }).collect();
    let signed_prekey = Some(SignedPrekey {
        id: 1,
        key: [4; 65].into(),
        created_at: Timestamp::from_millis(1),
        signature: [9; 64],
    });
    let upload = UploadKeys {
        request_id,
        signed_prekey,
        kem_last_resort: None,
        one_time,
        kem_one_time: vec![],
        replace_one_time: false,
    };
    let fetch = FetchBundle {
        request_id,
        user: address.user.clone(),
        wait: Duration::from_secs(1),
        devices_only: false,
        without_one_time: false,
        devices: vec![address.device],
    };
    let ack = Ack { mailbox_epoch: 7, up_to: Some(AckOne { seq: 3, msg_id }), single: vec![] };
    let credit = Credit { window_messages: 16, window_bytes: 65_536 };
    let hold = Hold { msg_ids: vec![MessageId::from_bytes([7; 16]); 2] };
    for (name, message) in [
        ("hello", ClientMessage::Hello(hello)),
        ("send", ClientMessage::Send(send)),
        ("upload", ClientMessage::UploadKeys(upload)),
        ("fetch", ClientMessage::FetchBundle(fetch)),
        ("ack", ClientMessage::Ack(ack)),
        ("credit", ClientMessage::Credit(credit)),
        ("hold", ClientMessage::Hold(hold)),
    ] {
        sample("wire-client-frame", name, &encode_client(&message));
    }
    let challenge = Challenge {
        nonce: [8; 32],
        app: AppId::new("demo").expect("an app"),
        server_time: Timestamp::from_millis(1_700_000_000_000),
        server_version: "3.6.0".into(),
        protocol_version: 1,
        development: true,
        capabilities: vec![],
    };
    let deliver = Deliver {
        from: address.clone(),
        mailbox_epoch: 7,
        seq: 3,
        msg_id,
        blob,
        received_at: Timestamp::from_millis(2),
        ephemeral: false,
    };
    let nack = Nack {
        subject: Subject::Message(msg_id),
        code: Code::parse("RATE_LIMITED").expect("a code"),
        detail: "slow down".into(),
        retry_after: Duration::from_secs(1),
        expected_lane: 0,
    };
    for (name, message) in [
        ("challenge", ServerMessage::Challenge(challenge)),
        ("deliver", ServerMessage::Deliver(deliver)),
        ("nack", ServerMessage::Nack(nack)),
        ("done", ServerMessage::Done { request_id }),
        ("ping", ServerMessage::Ping { nonce: 4, resume_cursor: vec![1; 8].into() }),
    ] {
        sample("wire-server-frame", name, &encode_server(&message));
    }
}

/// A wrapped key and a store header, without their checksums: the targets put those on.
fn stored(rng: &mut DeterministicRandom) {
    let cost = PassphraseCost { memory_kib: 8, iterations: 1, parallelism: 1 };
    let holder = Passphrase::new(b"correct horse".to_vec().into()).and_then(|holder| holder.with_cost(cost));
    let key = Secret::new([6; 32]);
    let wrapped = holder.and_then(|holder| holder.wrap(&key, &[7; 16], rng)).expect("a wrapped key").encode();
    let without = &wrapped[..wrapped.len() - 16];
    sample("keys-wrapped", "passphrase", without);
    let mut header = Writer::new();
    header.raw(b"STVORSTO").u16(1).raw(&[7; 16]).bytes(&wrapped);
    sample("store-header", "passphrase", &header.finish());
}

fn protocol() {
    let world = crate::world::World::new();
    for (number, blob) in world.blobs().into_iter().enumerate() {
        sample("protocol-envelope", &number.to_string(), blob);
        let number = u8::try_from(number).expect("few messages");
        sample("protocol-decrypt", &format!("{number}-body"), &[number, 0, 200, 0, 1]);
        sample("protocol-decrypt", &format!("{number}-front"), &[number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    for part in 0..8u8 {
        sample("protocol-bundle", &part.to_string(), &[part, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let list = world.bob.identity.signed_list();
    sample("protocol-device-list", "bob", &[&list.signature[..], &list.bytes].concat());
    let peer = world.alice.identity.address();
    let mut keys = stvor_protocol::Conversation::keys(peer);
    keys.extend([stvor_protocol::Identity::key(), stvor_protocol::Prekeys::key()]);
    for (which, key) in (0u8..).zip(&keys) {
        if let Some(row) = world.bob.rows.get(key) {
            sample("protocol-records", &format!("{which}-replaced"), &[&[which, 0], &row[..]].concat());
            write("protocol-records", &format!("{which}-one-bit"), &[which, 1, 0, 0, 0, 1]);
        }
    }
    sample("protocol-plaintext", "receipt", &[3; 32]);
    sample("protocol-plaintext", "retry", &[4; 48]);
    let party = |who: &stvor_protocol::Identity| {
        let (user, key) = (who.user().clone(), *who.user_key());
        (user, key)
    };
    let ((bob, bob_key), (alice, alice_key)) = (party(&world.bob.identity), party(&world.alice.identity));
    let of = |user, user_key| stvor_protocol::SafetyParty { user, user_key };
    let code = stvor_protocol::SafetyNumber::of(&of(&bob, &bob_key), &of(&alice, &alice_key)).qr();
    sample("protocol-safety-code", "match", &code);
}

fn signal() {
    let talk = crate::signal::Talk::new();
    for (name, bytes) in [
        ("first", &talk.first),
        ("later", &talk.later),
        ("distribution", &talk.distribution),
        ("to-group", &talk.to_group),
    ] {
        sample("signal-decoders", name, bytes);
    }
    sample("signal-first-message", "first", &talk.first);
    sample("signal-message", "later", &talk.later);
    sample("signal-group-message", "to-group", &talk.to_group);
    sample("signal-record", "bob", &talk.record);
    sample("signal-record-json", "bob", &talk.json);
    let foreign = include_bytes!("../../crates/protocol/tests/signal/libsignal-node-record.json");
    sample("signal-record-json", "libsignal-node", foreign);
    sample("signal-group-record", "member", &talk.group_record);
}

/// A file name for a text.
fn hex(name: &str) -> String {
    kdf::sha256(&[name.as_bytes()])[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}
