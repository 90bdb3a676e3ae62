//! The vectors as this build makes them: bytes from the crate, what lies between from the second implementation, which
//! must agree with the crate wherever both speak.

use serde_json::{Value, json};
use stvor_base::devices::{DeviceEntry, DeviceList, device_list_label, login_label};
use stvor_base::{DeviceId, MessageId, Suite, UserId};
use stvor_crypto::kdf::sha256;
use stvor_crypto::kem::EncapsulationKey;
use stvor_crypto::{Secret, kem};
use stvor_protocol::profile;
use stvor_protocol::*;

use super::party::{APP, NOW, Party, alice, app, content, zoe};
use super::spec;

fn sign(scalar: &[u8; 32], label: &[u8], message: &[u8]) -> String {
    hex::encode(spec::sign(scalar, label, message))
}

pub fn identities() -> Value {
    let parties = [alice(), zoe()];
    let login = |party: &Party, origin: &str| {
        let end = party.end();
        let (nonce, time, server_version) = ([0x5a; 32], NOW + 1, "3.6.0");
        let transcript = spec::login_transcript(&spec::Login {
            app: APP,
            origin,
            nonce,
            user: &end.user,
            device: end.device,
            time,
            server_version,
        });
        json!({
            "user": end.user, "device": end.device, "app": APP, "origin": origin, "nonce": hex::encode(nonce),
            "time": time, "server_version": server_version, "transcript": hex::encode(&transcript),
            "signature": sign(&party.scalars()[1], login_label(super::suite()), &transcript),
        })
    };
    json!({
        "format": 1,
        "app": APP,
        "parties": parties.each_ref().map(Party::to_json),
        "second_list": second_list(&parties[0]),
        "log_ins": [
            login(&parties[0], "wss://relay.example.com"),
            login(&parties[1], "ws://127.0.0.1:8443"),
        ],
    })
}

/// A list of two devices that follows the first one. Today's clients refuse it (one device), its layout is fixed.
fn second_list(party: &Party) -> Value {
    let end = party.end();
    let keys = [spec::signer_of(&[11; 32]), spec::public_of(&[12; 32])];
    let previous = sha256(&[&party.identity.signed_list().bytes]);
    let entry = |id, signing: &[u8], agreement: &[u8]| DeviceEntry {
        id: DeviceId::new(id).unwrap(),
        signing_key: signing.try_into().unwrap(),
        agreement_key: agreement.try_into().unwrap(),
    };
    let list = DeviceList {
        app: app(),
        user: UserId::new(&end.user).unwrap(),
        user_key: end.user_key[..].try_into().unwrap(),
        version: 2,
        previous,
        devices: vec![entry(1, &end.signing, &end.agreement), entry(3, &keys[0], &keys[1])],
    };
    let bytes = list.encode();
    json!({
        "user": end.user, "version": 2, "previous": hex::encode(previous),
        "devices": [
            { "id": 1, "signing_public": hex::encode(&end.signing),
              "agreement_public": hex::encode(&end.agreement) },
            { "id": 3, "signing_public": hex::encode(&keys[0]), "agreement_public": hex::encode(&keys[1]) },
        ],
        "device_list": hex::encode(&bytes),
        "signature": sign(&party.scalars()[0], device_list_label(super::suite()), &bytes),
    })
}

pub fn prekeys() -> Value {
    let party = zoe();
    let end = party.end();
    let object = |kind: Option<KemKind>, (id, created): (u32, u64), key: &[u8]| {
        spec::signed_object(&spec::SignedObject {
            app: APP,
            user: &end.user,
            device: end.device,
            kem_kind: kind.map(KemKind::to_byte),
            id,
            created,
            key,
        })
    };
    let signed = party.upload.signed.clone().unwrap();
    let kem = |kind: KemKind, key: &KemPublicPrekey| {
        json!({
            "kind": kind.to_byte(), "id": key.id, "created": key.created,
            "private_seed": hex::encode(party.private(RecordKind::KemPrekey, &kem_sort(kind, key.id))),
            "public": hex::encode(&key.public),
            "signed_object": hex::encode(object(Some(kind), (key.id, key.created), &key.public)),
            "signature": hex::encode(key.signature),
        })
    };
    json!({
        "format": 1,
        "owner": party.to_json(),
        "app": APP,
        "signed_prekey": {
            "id": signed.id, "created": signed.created,
            "private": hex::encode(party.private(RecordKind::SignedPrekey, &signed.id.to_be_bytes())),
            "public": hex::encode(signed.public),
            "signed_object": hex::encode(object(None, (signed.id, signed.created), &signed.public)),
            "signature": hex::encode(signed.signature),
        },
        "kem_prekeys": [
            kem(KemKind::LastResort, party.upload.kem_last.as_ref().unwrap()),
            kem(KemKind::OneTime, &party.upload.kem_one_time[0]),
            kem(KemKind::OneTime, &party.upload.kem_one_time[49]),
        ],
    })
}

fn kem_sort(kind: KemKind, id: u32) -> Vec<u8> {
    [&[kind.to_byte()][..], &id.to_be_bytes()].concat()
}

/// A session that Alice started, as both implementations hold it.
struct Opened {
    case: Value,
    alice: spec::Session,
    zoe: spec::Session,
}

/// Alice starts a session with Zoë; the first message is the caller's.
fn open(alice: &mut Party, zoe: &mut Party, (one_time, kem): (Option<u32>, (KemKind, u32))) -> Opened {
    let bundle = zoe.bundle(one_time, kem);
    let drawn = alice.start(&bundle, &zoe.address());
    let (mut base_private, kem_message): ([u8; 32], [u8; 32]) =
        (drawn[..32].try_into().unwrap(), drawn[32..].try_into().unwrap());
    if super::suite() == Suite::X25519 {
        (base_private[0], base_private[31]) = (base_private[0] & 248, base_private[31] & 127 | 64);
    }
    let kem_public = EncapsulationKey::from_bytes(&bundle.kem.public).unwrap();
    let (ciphertext, kem_secret) = kem_public.encapsulate_deterministic(&Secret::new(kem_message)).unwrap();
    let publics = spec::Publics {
        app: APP.to_owned(),
        initiator: alice.end(),
        responder: zoe.end(),
        base_key: spec::public_of(&base_private),
        signed: (bundle.signed.id, bundle.signed.public.clone()),
        one_time: bundle.one_time.as_ref().map(|key| (key.id, key.public.clone())),
        kem: (kem.0.to_byte(), bundle.kem.id, bundle.kem.public.clone()),
        kem_ciphertext: ciphertext.as_bytes().to_vec(),
    };
    let mut secrets = vec![
        spec::dh(&alice.scalars()[2], &publics.signed.1),
        spec::dh(&base_private, &publics.responder.agreement),
        spec::dh(&base_private, &publics.signed.1),
    ];
    secrets.extend(publics.one_time.as_ref().map(|(_, key)| spec::dh(&base_private, key)));
    let dhs: Vec<String> = secrets.iter().map(hex::encode).collect();
    secrets.push(*kem_secret.expose());
    let transcript = spec::transcript(&publics);
    let hash = sha256(&[&transcript]);
    let (root, id) = spec::agree(&hash, &secrets);
    let list = alice.identity.signed_list();
    let part = spec::prekey_part(&publics, &list.bytes, &list.signature);

    let signed_private = zoe.private(RecordKind::SignedPrekey, &bundle.signed.id.to_be_bytes());
    let case = json!({
        "base_key_private": hex::encode(base_private),
        "base_key": hex::encode(&publics.base_key),
        "signed_prekey": {
            "id": bundle.signed.id, "private": hex::encode(&signed_private),
            "public": hex::encode(&bundle.signed.public),
        },
        "one_time_prekey": bundle.one_time.as_ref().map(|key| json!({
            "id": key.id, "public": hex::encode(&key.public),
            "private": hex::encode(zoe.private(RecordKind::OneTimePrekey, &key.id.to_be_bytes())),
        })),
        "kem_prekey": {
            "kind": kem.0.to_byte(), "id": bundle.kem.id, "public": hex::encode(&bundle.kem.public),
            "private_seed": hex::encode(zoe.private(RecordKind::KemPrekey, &kem_sort(kem.0, bundle.kem.id))),
        },
        "kem_message": hex::encode(kem_message),
        "kem_ciphertext": hex::encode(ciphertext.as_bytes()),
        "dh": dhs,
        "kem_secret": hex::encode(kem_secret.expose()),
        "transcript": hex::encode(&transcript),
        "transcript_hash": hex::encode(hash),
        "root_key": hex::encode(root),
        "session_id": hex::encode(id),
        "handshake_mark": hex::encode(spec::handshake_mark(&publics.base_key)),
        "prekey_part": hex::encode(&part),
    });
    let mut at_alice = spec::Session::new(id, root, (alice.end(), zoe.end()));
    at_alice.remote = Some(publics.signed.1);
    at_alice.prekey_part = Some(part);
    let mut at_zoe = spec::Session::new(id, root, (zoe.end(), alice.end()));
    at_zoe.scalar = Some(signed_private[..].try_into().unwrap());
    Opened { case, alice: at_alice, zoe: at_zoe }
}

fn kind_byte(kind: ContentKind) -> u8 {
    match kind {
        ContentKind::Text => 1,
        ContentKind::Bytes => 2,
        ContentKind::Json => 3,
        ContentKind::Delivered => 16,
        ContentKind::Read => 17,
        ContentKind::RetryRequest => 18,
        ContentKind::Control => 19,
        ContentKind::Group => 32,
        ContentKind::Other(byte) => byte,
        _ => panic!("a kind that this test does not know"),
    }
}

/// Sends on both implementations, which must agree; gives the vector of the message.
fn send(party: &mut Party, session: &mut spec::Session, peer: &Party, words: (&str, &Plaintext)) -> Value {
    let (name, words) = words;
    let (blob, random) = party.send(&peer.address(), words);
    let kind = kind_byte(words.kind);
    let encoded = spec::plaintext(words.content.as_bytes(), kind, words.body.expose());
    let sent_at = party.now.as_millis();
    let (expected, trace) = session.seal(&encoded, &spec::Chosen { sent_at, random: &random });
    assert_eq!(hex::encode(&expected), hex::encode(&blob), "the implementations differ: {name}");
    json!({
        "name": name,
        "from": party.end().user,
        "content_id": words.content.to_string(), "kind": kind, "body": hex::encode(words.body.expose()),
        "sent_at": sent_at,
        "random": hex::encode(&random),
        "root_step": trace.root_step.map(|step| json!({
            "ratchet_private": hex::encode(step.scalar),
            "dh": hex::encode(step.secret),
            "root_key": hex::encode(step.root),
        })),
        "chain_key": hex::encode(trace.chain_key.unwrap()),
        "message_seed": hex::encode(trace.seed),
        "message_key": hex::encode(trace.key),
        "clear": hex::encode(&trace.clear),
        "associated_data": hex::encode(trace.associated_data),
        "padded_plaintext": hex::encode(&trace.padded),
        "blob": hex::encode(&blob),
    })
}

pub fn handshakes() -> Value {
    let (mut alice, mut zoe) = (alice(), zoe());
    let parties = [alice.to_json(), zoe.to_json()];
    let before = (alice.rows.clone(), zoe.rows.clone());
    let cases = [
        ("one-time prekey and one-time KEM prekey", Some(0), (KemKind::OneTime, 0)),
        ("one-time prekey and last-resort KEM prekey", Some(99), (KemKind::LastResort, 0)),
        ("no one-time prekey, one-time KEM prekey", None, (KemKind::OneTime, 49)),
        ("no one-time prekey, last-resort KEM prekey", None, (KemKind::LastResort, 0)),
    ]
    .map(|(name, one_time, kem)| {
        (alice.rows, zoe.rows) = before.clone();
        let Opened { mut case, alice: mut session, .. } = open(&mut alice, &mut zoe, (one_time, kem));
        let words = content(1, ContentKind::Text, b"hello");
        let message = send(&mut alice, &mut session, &zoe, ("first", &words));
        let blob = hex::decode(message["blob"].as_str().unwrap()).unwrap();
        assert_eq!(zoe.receive(&alice.address(), &blob).unwrap(), words);
        case["name"] = name.into();
        case["first_message"] = message;
        case
    });
    json!({ "format": 1, "app": APP, "initiator": parties[0], "responder": parties[1], "cases": cases })
}

/// A message: its name, whether the initiator sends it, and what it says.
type Line = (&'static str, bool, Plaintext);

/// `send` or `deliver`, and the message's place in the script.
type Step = (&'static str, usize);

/// What is said, by whom; and in which order it is sent and delivered.
fn script() -> (Vec<Line>, Vec<Step>) {
    let named =
        [content(1, ContentKind::Control, &[]).content, content(2, ContentKind::Control, &[]).content];
    let own = |number: u8| content(number, ContentKind::Control, &[]).content;
    let request = RetryRequest { message: MessageId::from_bytes([0xee; 16]), blob_hash: [0xdd; 32] };
    let messages = vec![
        ("first message", true, content(1, ContentKind::Text, "hello, zo\u{eb}".as_bytes())),
        ("second message before an answer", true, content(2, ContentKind::Json, br#"{"n":2}"#)),
        ("reply", false, content(3, ContentKind::Text, b"hello, alice")),
        ("later message", true, content(4, ContentKind::Text, b"")),
        ("message that comes late", true, content(5, ContentKind::Bytes, &[0, 255, 128])),
        ("message that comes early", true, content(6, ContentKind::Text, b"out of order")),
        ("delivery receipt", false, Plaintext::receipt(own(7), false, &named)),
        ("read receipt", false, Plaintext::receipt(own(8), true, &named[..1])),
        ("retry request", true, Plaintext::retry_request(own(9), &request)),
        ("control", false, Plaintext::control(own(10))),
        ("kind of a later version", false, content(11, ContentKind::Other(200), b"?")),
        ("message in a larger bucket", true, content(12, ContentKind::Bytes, &[7; 3_000])),
    ];
    let timeline = "s0 s1 d0 d1 s2 d2 s3 s4 s5 d3 d5 s6 s7 d6 d7 s8 d8 d4 s9 d9 s10 s11 d11 d10";
    let step = |word: &str| {
        (if word.starts_with('s') { "send" } else { "deliver" }, word[1..].parse::<usize>().unwrap())
    };
    (messages, timeline.split(' ').map(step).collect())
}

struct Talk {
    alice: Party,
    zoe: Party,
    value: Value,
}

fn talk() -> Talk {
    let (mut alice, mut zoe) = (alice(), zoe());
    let parties = [alice.to_json(), zoe.to_json()];
    let Opened { case, alice: mut at_alice, zoe: mut at_zoe } =
        open(&mut alice, &mut zoe, (Some(0), (KemKind::OneTime, 0)));
    let (messages, timeline) = script();
    let mut sent = vec![Value::Null; messages.len()];
    for (action, index) in &timeline {
        let (name, from_alice, words) = &messages[*index];
        let (here, there) = if *from_alice { (&mut alice, &mut zoe) } else { (&mut zoe, &mut alice) };
        let (sender, receiver) =
            if *from_alice { (&mut at_alice, &mut at_zoe) } else { (&mut at_zoe, &mut at_alice) };
        if *action == "send" {
            sent[*index] = send(here, sender, there, (name, words));
            here.now = here.now + std::time::Duration::from_secs(1);
        } else {
            let blob = hex::decode(sent[*index]["blob"].as_str().unwrap()).unwrap();
            assert_eq!(there.receive(&here.address(), &blob).unwrap(), *words, "{name}");
            let trace = receiver.open(&blob);
            assert_eq!(hex::encode(trace.padded), sent[*index]["padded_plaintext"], "{name}");
        }
    }
    let value = json!({
        "format": 1, "app": APP, "initiator": parties[0], "responder": parties[1],
        "handshake": case, "messages": sent, "timeline": timeline,
    });
    Talk { alice, zoe, value }
}

pub fn conversation() -> Value {
    talk().value
}

pub fn padding() -> Value {
    let lengths = [
        0, 1, 511, 512, 513, 1_024, 1_025, 2_048, 2_049, 4_096, 4_097, 16_383, 16_384, 16_385, 17_408,
        17_409, 20_000, 32_767, 32_768, 32_769, 34_817, 49_153, 65_535, 65_536, 65_537, 69_632, 71_680,
        73_727, 73_728, 73_729,
    ];
    let row = |length: usize| json!({ "length": length, "size": spec::bucket(length), "strict": spec::strict_bucket(length) });
    let sizes: Vec<usize> = (1..=80_000).filter(|size| spec::bucket(*size) == Some(*size)).collect();
    json!({ "format": 1, "rows": lengths.map(row), "sizes": sizes })
}

pub fn safety() -> Value {
    let ends = [alice().end(), zoe().end()];
    let mallory = spec::End { user_key: spec::signer_of(&[9; 32]), ..ends[1].clone() };
    let number = |(a, b): (&spec::End, &spec::End)| {
        let halves = [spec::safety_half(&a.user, &a.user_key), spec::safety_half(&b.user, &b.user_key)];
        let mut digits = halves.map(|half| spec::safety_digits(&half));
        digits.sort();
        json!({
            "users": [a.user, b.user],
            "user_keys": [hex::encode(&a.user_key), hex::encode(&b.user_key)],
            "halves": [hex::encode(halves[0]), hex::encode(halves[1])],
            "digits": digits.concat(),
            "qr_of_first": hex::encode(spec::qr(&halves[0], &halves[1])),
            "qr_of_second": hex::encode(spec::qr(&halves[1], &halves[0])),
        })
    };
    let pairs = [(&ends[0], &ends[1]), (&ends[0], &mallory), (&ends[1], &ends[1])];
    json!({ "format": 1, "numbers": pairs.map(number) })
}

/// Rows of every kind, and mail that can be read with them.
pub fn records() -> Value {
    const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 3_600);
    let Talk { mut alice, mut zoe, .. } = talk();
    let (a, z) = (alice.address(), zoe.address());
    let mut mail = Vec::new();
    let mut post = |to: &str, name: &str, (blob, words): (Vec<u8>, &Plaintext)| {
        mail.push(json!({
            "to": to, "name": name, "content_id": words.content.to_string(),
            "body": hex::encode(words.body.expose()), "blob": hex::encode(blob),
        }));
    };
    let words: Vec<_> = (20..30).map(|n| content(n, ContentKind::Text, &[n; 5])).collect();

    let late = alice.send(&z, &words[0]).0;
    let _ = open(&mut alice, &mut zoe, (Some(1), (KemKind::OneTime, 1)));
    let on_second: Vec<_> = (1..5).map(|n| alice.send(&z, &words[n]).0).collect();
    zoe.receive(&a, &on_second[0]).unwrap();
    zoe.receive(&a, &on_second[3]).unwrap();
    post("zo\u{eb}", "a stored key", (on_second[1].clone(), &words[2]));
    post("zo\u{eb}", "an archived session", (late, &words[0]));
    post("zo\u{eb}", "another stored key", (on_second[2].clone(), &words[3]));
    post("zo\u{eb}", "the current session", (alice.send(&z, &words[5]).0, &words[5]));
    post("alice", "an answer to a pending handshake", (zoe.send(&a, &words[6]).0, &words[6]));

    let bundle = alice.bundle(Some(0), (KemKind::LastResort, 0)).validate(&app(), &a, zoe.now).unwrap();
    zoe.with(&a, |conversation, context, rng| {
        let mut broken = on_second[3].clone();
        *broken.last_mut().unwrap() ^= 1;
        let failed = Failed {
            message: MessageId::from_bytes([3; 16]),
            blob: &broken,
            error: &ProtocolError::Undecryptable,
        };
        let mut effects = conversation.failed(context, &failed, rng).unwrap().effects;
        effects.append(conversation.start_repair(context, &bundle, None, rng).unwrap().effects);
        let asked = conversation.encrypt_repair(context, &words[7], rng).unwrap();
        effects.append(asked.effects);
        post("alice", "a handshake on stored prekeys", (asked.blob, &words[7]));
        ((), effects)
    });
    alice.with(&z, |conversation, _, _| ((), conversation.set_verified(true).unwrap()));

    for confirmed in [true, false] {
        zoe.now = zoe.now + 8 * DAY;
        let counts = ServerCounts { one_time: 100, kem_one_time: 50, ..ServerCounts::default() };
        let made = zoe.prekeys.maintain(&zoe.identity, counts, zoe.now, &mut zoe.rng).unwrap();
        super::party::commit(&mut zoe.rows, made.effects);
        if confirmed {
            let effects = zoe.prekeys.uploaded(zoe.now);
            super::party::commit(&mut zoe.rows, effects);
        }
    }
    let rows =
        |party: &Party| -> Vec<Value> { party.rows.iter().filter(|(key, _)| wanted(key)).map(row).collect() };
    json!({
        "format": 1, "record_version": 1,
        "parties": [
            { "user": "alice", "address": hex::encode(spec::address("alice", 1)), "rows": rows(&alice) },
            { "user": "zo\u{eb}", "address": hex::encode(spec::address("zo\u{eb}", 7)), "rows": rows(&zoe) },
        ],
        "mail": mail,
    })
}

/// All rows but the hundreds of one-time prekeys that nothing here uses.
fn wanted(key: &RecordKey) -> bool {
    match key.kind {
        RecordKind::OneTimePrekey => key.sort[3] < 3,
        RecordKind::KemPrekey => key.sort[0] == 2 || key.sort[4] < 3,
        _ => true,
    }
}

fn row((key, value): (&RecordKey, &Vec<u8>)) -> Value {
    json!({
        "kind": format!("{:?}", key.kind),
        "partition": hex::encode(&key.partition),
        "sort": hex::encode(&key.sort),
        "value": hex::encode(value),
    })
}

/// Every file with its content.
pub fn all() -> Vec<(&'static str, Value)> {
    assert_eq!(profile::of(super::suite()).label.transcript, super::label("handshake transcript"));
    assert_eq!(kem::SEED_BYTES, 64);
    let mut all = vec![
        ("identities.json", identities()),
        ("prekeys.json", prekeys()),
        ("handshakes.json", handshakes()),
        ("conversation.json", conversation()),
        ("padding.json", padding()),
        ("safety.json", safety()),
        ("records.json", records()),
        ("groups-2.json", super::groups::groups()),
        ("recovery.json", super::recovery::cases()),
        ("rotations.json", super::rotations::rotations()),
    ];
    if super::suite() == Suite::P256 {
        // Of version 1 of changes, which is only read.
        all.push(("groups.json", super::frozen("groups.json")));
    }
    all
}
