//! What was written once: a record that libsignal-node stored, and frozen messages and records of ours. They must read for ever.
//! `STVOR_WRITE_VECTORS=1 cargo test -p stvor-protocol --test signal` writes ours anew, when a format changes on purpose.

use std::path::PathBuf;

use serde_json::{Value, json};
use stvor_crypto::Secret;
use stvor_protocol::signal::{
    Compatibility, Encrypted, KeyPair, MessageKind, SenderKeyDistribution, SenderKeyRecord, SessionRecord,
    SignalError,
};

use crate::party::Party;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/signal/vectors.json")
}

fn conversation() -> Value {
    let (mut alice, mut bob) = (Party::new("vector alice"), Party::new("vector bob"));
    alice.start(&bob.bundle(Some(0)));
    let first = alice.send(b"first");
    assert_eq!(bob.text(&first), b"first");
    let _lost = bob.send(b"lost");
    let second = bob.send(b"second");
    assert_eq!(alice.text(&second), b"second");
    let third = alice.send(b"third");
    let mut group = SenderKeyRecord::new();
    let distribution = group.distribution(&mut alice.rng).unwrap().encode();
    let group_message = group.encrypt(b"to all", &mut alice.rng).unwrap();
    let text = |secret: stvor_crypto::SecretBytes| String::from_utf8(secret.expose().to_vec()).unwrap();
    json!({
        "about": "Bob's next message is `third`. Generators: HMAC-SHA256(SHA-256(name), counter), see tests.",
        "alice_identity": hex::encode(alice.identity.private().expose()),
        "bob_identity": hex::encode(bob.identity.private().expose()),
        "first": hex::encode(first.body),
        "second": hex::encode(second.body),
        "third": hex::encode(third.body),
        "alice_record": hex::encode(alice.record.encode().expose()),
        "bob_record": hex::encode(bob.record.encode().expose()),
        "bob_record_json": text(bob.record.to_json().unwrap()),
        "distribution": hex::encode(distribution),
        "group_message": hex::encode(group_message),
        "group_record": hex::encode(group.encode().expose()),
    })
}

fn frozen() -> Value {
    if std::env::var_os("STVOR_WRITE_VECTORS").is_some() {
        let text = serde_json::to_string_pretty(&conversation()).unwrap();
        std::fs::write(path(), text + "\n").unwrap();
    }
    serde_json::from_str(&std::fs::read_to_string(path()).unwrap()).unwrap()
}

fn bytes(frozen: &Value, name: &str) -> Vec<u8> {
    hex::decode(frozen[name].as_str().unwrap()).unwrap()
}

#[test]
fn what_is_made_today_is_what_was_frozen() {
    let (frozen, today) = (frozen(), conversation());
    for (name, value) in today.as_object().unwrap() {
        assert_eq!(&frozen[name], value, "{name}");
    }
}

#[test]
fn frozen_records_of_either_form_read_the_next_message() {
    let frozen = frozen();
    let third =
        || Encrypted { kind: MessageKind::Whisper, body: bytes(&frozen, "third"), registration_id: 77 };
    let mut bob = Party::new("another");
    bob.identity =
        KeyPair::from_private(&Secret::from_slice(&bytes(&frozen, "bob_identity")).unwrap()).unwrap();
    bob.record = SessionRecord::decode(&bytes(&frozen, "bob_record")).unwrap();
    assert_eq!(bob.text(&third()), b"third");
    bob.record = SessionRecord::from_json(frozen["bob_record_json"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(bob.text(&third()), b"third");
    let mut member = SenderKeyRecord::new();
    member.process(&SenderKeyDistribution::parse(&bytes(&frozen, "distribution")).unwrap()).unwrap();
    assert_eq!(member.decrypt(&bytes(&frozen, "group_message")).unwrap().expose(), b"to all");
    SenderKeyRecord::decode(&bytes(&frozen, "group_record")).unwrap();
}

#[test]
fn damaged_records_are_refused_and_say_so() {
    let frozen = frozen();
    let good = bytes(&frozen, "bob_record");
    for length in 0..good.len() {
        assert!(matches!(SessionRecord::decode(&good[..length]), Err(SignalError::BadRecord(_))), "{length}");
    }
    let mut later = good.clone();
    later[0] = 2;
    assert_eq!(SessionRecord::decode(&later).unwrap_err(), SignalError::TooNew(2));
    assert!(SessionRecord::decode(&[&good[..], &[0]].concat()).is_err());
    let group = bytes(&frozen, "group_record");
    for length in 0..group.len() {
        assert!(SenderKeyRecord::decode(&group[..length]).is_err(), "{length}");
    }
}

/// Written by npm libsignal 6.0.0, whose party was the responder; test keys.
const OF_LIBSIGNAL_NODE: &str = include_str!("libsignal-node-record.json");

#[test]
fn a_record_of_libsignal_node_is_read_and_written_back_equal() {
    let record = SessionRecord::from_json(OF_LIBSIGNAL_NODE.as_bytes()).unwrap();
    assert!(record.has_current());
    assert_eq!(record.compatibility(), [Compatibility::NoPostQuantum, Compatibility::ShortMac]);
    let back: Value = serde_json::from_slice(record.to_json().unwrap().expose()).unwrap();
    assert_eq!(back, serde_json::from_str::<Value>(OF_LIBSIGNAL_NODE).unwrap());
}

#[test]
fn a_record_of_before_versions_has_one_registration_id_and_later_versions_are_refused() {
    let good: Value = serde_json::from_str(OF_LIBSIGNAL_NODE).unwrap();
    let mut old = good.clone();
    let sessions = old["_sessions"].as_object_mut().unwrap().values_mut();
    let ids: Vec<_> =
        sessions.map(|one| one.as_object_mut().unwrap().remove("registrationId").unwrap()).collect();
    old["registrationId"] = ids[0].clone();
    old.as_object_mut().unwrap().remove("version").unwrap();
    let record = SessionRecord::from_json(old.to_string().as_bytes()).unwrap();
    let back: Value = serde_json::from_slice(record.to_json().unwrap().expose()).unwrap();
    assert_eq!(back, good);
    let refused = |version: &str| {
        let mut other = good.clone();
        other["version"] = json!(version);
        SessionRecord::from_json(other.to_string().as_bytes()).unwrap_err()
    };
    assert_eq!(refused("v2"), SignalError::TooNew(2));
    assert_eq!(refused("v255"), SignalError::TooNew(255));
    for version in ["v0", "", "v", "2", "v1 ", "v2.1", "v256"] {
        let error = refused(version);
        assert!(matches!(error, SignalError::BadRecord(_)), "{version}: {error:?}");
    }
}

#[test]
fn a_later_version_is_known_whatever_its_shape() {
    let refused = |record: Value| SessionRecord::from_json(record.to_string().as_bytes()).unwrap_err();
    for version in [json!("v2"), json!(2)] {
        for sessions in [json!({}), json!([]), json!({ "AAAA": {} }), json!(null), json!("AAAA")] {
            let record = json!({ "_sessions": sessions, "version": version });
            assert_eq!(refused(record.clone()), SignalError::TooNew(2), "{record}");
        }
        let record = json!({ "sessions": [1], "_used": 7, "version": version });
        assert_eq!(refused(record.clone()), SignalError::TooNew(2), "{record}");
    }
    for version in [
        json!("v1"),
        json!("x"),
        json!(1),
        json!(0),
        json!(256),
        json!(-2),
        json!(2.5),
        json!(true),
        json!([2]),
    ] {
        let record = json!({ "_sessions": [], "version": version });
        assert!(matches!(refused(record.clone()), SignalError::BadRecord(_)), "{record}");
    }
    let cut = SessionRecord::from_json(b"{\"version\":\"v2\",\"_sessions\":{").unwrap_err();
    assert!(matches!(cut, SignalError::BadRecord(_)), "{cut:?}");
}

#[test]
fn json_that_is_no_record_is_refused_without_quoting_it() {
    let good: Value = serde_json::from_str(OF_LIBSIGNAL_NODE).unwrap();
    let name = good["_sessions"].as_object().unwrap().keys().next().unwrap().clone();
    let pointers = [
        "/currentRatchet/rootKey",
        "/currentRatchet/ephemeralKeyPair/privKey",
        "/currentRatchet/ephemeralKeyPair/pubKey",
        "/currentRatchet/lastRemoteEphemeralKey",
        "/indexInfo/baseKey",
        "/indexInfo/remoteIdentityKey",
        "/indexInfo/baseKeyType",
        "/_chains",
    ];
    for pointer in pointers {
        for bad in [json!("AAAA"), json!("not base64 !"), json!(7), json!(null), json!({ "x": 1 })] {
            let mut changed = good.clone();
            *changed["_sessions"][&name].pointer_mut(pointer).unwrap() = bad;
            let refused = SessionRecord::from_json(changed.to_string().as_bytes()).unwrap_err();
            assert!(matches!(refused, SignalError::BadRecord(_)), "{pointer}: {refused:?}");
        }
    }
    for text in ["", "{", "[]", "7", "\"secret\"", "{}", "{\"version\":\"v1\"}", "{\"_used\":[]}"] {
        let refused = SessionRecord::from_json(text.as_bytes()).unwrap_err();
        assert!(!refused.to_string().contains("secret"));
    }
    assert!(!SessionRecord::from_json(b"{\"_sessions\":{}}").unwrap().has_current());
}
