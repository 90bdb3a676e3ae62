//! Reads the frozen vectors, once with the second implementation and once with the crate. Nothing here is made by the
//! builders: what comes in is the files.

use std::collections::BTreeSet;

use serde_json::Value;
use stvor_base::devices::{DeviceList, device_list_label, login_label};
use stvor_base::{Address, AppId, ContentId, DeviceId, KeyBytes, Timestamp, UserId};
use stvor_crypto::Secret;
use stvor_crypto::kdf::sha256;
use stvor_crypto::kem::{Ciphertext, DecapsulationKey};
use stvor_protocol::*;

use super::party::{NOW, Party, Rows};
use super::{frozen, label, spec, suite};

pub fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap_or_else(|| panic!("not text: {value}"))).unwrap()
}

pub fn array<const N: usize>(value: &Value) -> [u8; N] {
    bytes(value).try_into().unwrap()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

pub fn number(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

pub fn list(value: &Value, count: usize) -> &[Value] {
    let list = value.as_array().unwrap();
    assert_eq!(list.len(), count);
    list
}

fn end(party: &Value) -> spec::End {
    spec::End {
        user: text(&party["user"]).to_owned(),
        device: number(&party["device"]),
        user_key: bytes(&party["user_public"]),
        signing: bytes(&party["signing_public"]),
        agreement: bytes(&party["agreement_public"]),
    }
}

pub use super::spec::verifies;

#[test]
fn device_lists_follow_the_specification_and_are_accepted() {
    let file = frozen("identities.json");
    let app = AppId::new(text(&file["app"])).unwrap();
    for party in list(&file["parties"], 2) {
        let end = end(party);
        for name in ["user", "signing", "agreement"] {
            let private = array(&party[format!("{name}_private")]);
            let public =
                if name == "agreement" { spec::public_of(&private) } else { spec::signer_of(&private) };
            assert_eq!(public, bytes(&party[format!("{name}_public")]));
        }
        let device = spec::Device { id: end.device, signing: end.signing, agreement: end.agreement };
        let expected = spec::device_list(&spec::List {
            app: app.as_str(),
            user: &end.user,
            user_key: &end.user_key,
            version: 1,
            previous: [0; 32],
            devices: &[device],
        });
        let (signed, signature) = (bytes(&party["device_list"]), bytes(&party["device_list_signature"]));
        assert_eq!(signed, expected);
        assert!(verifies(&end.user_key, &label("device list"), &signed, &signature));
        let hash = sha256(&[&signed]);
        assert_eq!(hash, array(&party["device_list_hash"]));
        let incoming = SignedDeviceListIn { bytes: signed, signature };
        let accepted = incoming.validate(&app, &UserId::new(&end.user).unwrap()).unwrap();
        assert_eq!((accepted.hash(), &accepted.list().user_key[..]), (&hash, &end.user_key[..]));
    }
}

#[test]
fn a_list_of_two_devices_has_the_layout_of_the_specification() {
    let file = frozen("identities.json");
    let (party, second) = (&file["parties"][0], &file["second_list"]);
    let devices: Vec<_> = list(&second["devices"], 2)
        .iter()
        .map(|entry| spec::Device {
            id: number(&entry["id"]),
            signing: bytes(&entry["signing_public"]),
            agreement: bytes(&entry["agreement_public"]),
        })
        .collect();
    let end = end(party);
    let expected = spec::device_list(&spec::List {
        app: text(&file["app"]),
        user: &end.user,
        user_key: &end.user_key,
        version: 2,
        previous: array(&party["device_list_hash"]),
        devices: &devices,
    });
    let signed = bytes(&second["device_list"]);
    assert_eq!(signed, expected);
    assert!(verifies(&end.user_key, device_list_label(suite()), &signed, &bytes(&second["signature"])));
    assert_eq!(DeviceList::decode(&signed).unwrap().devices.len(), 2);
}

#[test]
fn log_ins_follow_the_specification_and_an_identity_signs_them() {
    let file = frozen("identities.json");
    for (index, login) in list(&file["log_ins"], 2).iter().enumerate() {
        let transcript = spec::login_transcript(&spec::Login {
            app: text(&login["app"]),
            origin: text(&login["origin"]),
            nonce: array(&login["nonce"]),
            user: text(&login["user"]),
            device: number(&login["device"]),
            time: login["time"].as_u64().unwrap(),
            server_version: text(&login["server_version"]),
        });
        assert_eq!(transcript, bytes(&login["transcript"]));
        let key = bytes(&file["parties"][index]["signing_public"]);
        let said = label("relay login");
        assert!(verifies(&key, &said, &transcript, &bytes(&login["signature"])));
        let party = [super::party::alice, super::party::zoe][index]();
        let signature = party.identity.sign_login(&transcript).unwrap();
        assert!(verifies(&key, login_label(suite()), &transcript, &signature));
        assert!(!verifies(&key, device_list_label(suite()), &transcript, &signature));
    }
}

#[test]
fn signed_prekeys_follow_the_specification_and_make_a_bundle() {
    let file = frozen("prekeys.json");
    let (owner, signed) = (&file["owner"], &file["signed_prekey"]);
    let end = end(owner);
    let object = |value: &Value, kem_kind: Option<u8>| {
        let key = bytes(&value["public"]);
        let object = spec::signed_object(&spec::SignedObject {
            app: text(&file["app"]),
            user: &end.user,
            device: end.device,
            kem_kind,
            id: number(&value["id"]),
            created: value["created"].as_u64().unwrap(),
            key: &key,
        });
        assert_eq!(object, bytes(&value["signed_object"]));
        object
    };
    let signature = bytes(&signed["signature"]);
    assert!(verifies(&end.signing, &label("signed prekey"), &object(signed, None), &signature));
    assert_eq!(spec::public_of(&array(&signed["private"])), bytes(&signed["public"]));
    let mut kinds = Vec::new();
    for kem in list(&file["kem_prekeys"], 3) {
        let kind = u8::try_from(number(&kem["kind"])).unwrap();
        kinds.push(kind);
        assert!(verifies(
            &end.signing,
            &label("KEM prekey"),
            &object(kem, Some(kind)),
            &bytes(&kem["signature"])
        ));
        let key = DecapsulationKey::from_bytes(&Secret::new(array(&kem["private_seed"]))).unwrap();
        assert_eq!(key.public().as_bytes()[..], bytes(&kem["public"]));
        let bundle = PrekeyBundleIn {
            list: SignedDeviceListIn {
                bytes: bytes(&owner["device_list"]),
                signature: bytes(&owner["device_list_signature"]),
            },
            device: end.device,
            signed: SignedPrekeyIn {
                id: number(&signed["id"]),
                created: signed["created"].as_u64().unwrap(),
                public: bytes(&signed["public"]),
                signature: bytes(&signed["signature"]),
            },
            one_time: None,
            kem: KemPrekeyIn {
                kind: KemKind::from_byte(kind).unwrap(),
                id: number(&kem["id"]),
                created: kem["created"].as_u64().unwrap(),
                public: bytes(&kem["public"]),
                signature: bytes(&kem["signature"]),
            },
        };
        let address = Address::new(UserId::new(&end.user).unwrap(), DeviceId::new(end.device).unwrap());
        let app = AppId::new(text(&file["app"])).unwrap();
        let checked = bundle.validate(&app, &address, Timestamp::from_millis(NOW)).unwrap();
        assert_eq!(checked.user_key()[..], end.user_key);
        let mut other = bundle;
        other.kem.kind = if kind == 1 { KemKind::LastResort } else { KemKind::OneTime };
        assert!(other.validate(&app, &address, Timestamp::from_millis(NOW)).is_err(), "the kind is signed");
    }
    assert_eq!(kinds, [2, 1, 1]);
}

/// Both ends of a session, from private keys: the responder's way to the secrets, checked against the initiator's.
fn shake_hands(file: &Value, case: &Value) -> (spec::Session, spec::Session) {
    let (initiator, responder) = (&file["initiator"], &file["responder"]);
    let (signed, one_time, kem) = (&case["signed_prekey"], &case["one_time_prekey"], &case["kem_prekey"]);
    let publics = spec::Publics {
        app: text(&file["app"]).to_owned(),
        initiator: end(initiator),
        responder: end(responder),
        base_key: bytes(&case["base_key"]),
        signed: (number(&signed["id"]), bytes(&signed["public"])),
        one_time: (!one_time.is_null()).then(|| (number(&one_time["id"]), bytes(&one_time["public"]))),
        kem: (u8::try_from(number(&kem["kind"])).unwrap(), number(&kem["id"]), bytes(&kem["public"])),
        kem_ciphertext: bytes(&case["kem_ciphertext"]),
    };
    let (own_a, base): ([u8; 32], [u8; 32]) =
        (array(&initiator["agreement_private"]), array(&case["base_key_private"]));
    let (own_b, signed_b): ([u8; 32], [u8; 32]) =
        (array(&responder["agreement_private"]), array(&signed["private"]));
    assert_eq!(spec::public_of(&base), publics.base_key);
    let mut by_initiator = vec![
        spec::dh(&own_a, &publics.signed.1),
        spec::dh(&base, &publics.responder.agreement),
        spec::dh(&base, &publics.signed.1),
    ];
    let mut by_responder = vec![
        spec::dh(&signed_b, &publics.initiator.agreement),
        spec::dh(&own_b, &publics.base_key),
        spec::dh(&signed_b, &publics.base_key),
    ];
    if let Some((_, key)) = &publics.one_time {
        by_initiator.push(spec::dh(&base, key));
        by_responder.push(spec::dh(&array(&one_time["private"]), &publics.base_key));
    }
    assert_eq!(by_initiator, by_responder);
    let said: Vec<[u8; 32]> = list(&case["dh"], by_initiator.len()).iter().map(array).collect();
    assert_eq!(said, by_responder);
    let kem_private = DecapsulationKey::from_bytes(&Secret::new(array(&kem["private_seed"]))).unwrap();
    let ciphertext = Ciphertext::from_bytes(&publics.kem_ciphertext).unwrap();
    let (made, secret) =
        kem_private.public().encapsulate_deterministic(&Secret::new(array(&case["kem_message"]))).unwrap();
    assert_eq!(made, ciphertext);
    assert_eq!(kem_private.decapsulate(&ciphertext).unwrap(), secret);
    assert_eq!(secret.expose(), &array(&case["kem_secret"]));
    by_responder.push(*secret.expose());

    let transcript = spec::transcript(&publics);
    assert_eq!(transcript, bytes(&case["transcript"]));
    let hash = sha256(&[&transcript]);
    assert_eq!(hash, array(&case["transcript_hash"]));
    let (root, id) = spec::agree(&hash, &by_responder);
    assert_eq!((root, id), (array(&case["root_key"]), array(&case["session_id"])));
    assert_eq!(spec::handshake_mark(&publics.base_key), array(&case["handshake_mark"]));
    let (signed_list, signature) =
        (bytes(&initiator["device_list"]), bytes(&initiator["device_list_signature"]));
    let part = spec::prekey_part(&publics, &signed_list, &signature);
    assert_eq!(part, bytes(&case["prekey_part"]));

    let mut here = spec::Session::new(id, root, (publics.initiator.clone(), publics.responder.clone()));
    here.remote = Some(publics.signed.1);
    here.prekey_part = Some(part);
    let mut there = spec::Session::new(id, root, (publics.responder, publics.initiator));
    there.scalar = Some(signed_b);
    (here, there)
}

/// Seals a message again from its inputs.
fn reseal(session: &mut spec::Session, message: &Value) {
    let kind = u8::try_from(number(&message["kind"])).unwrap();
    let words = spec::plaintext(&bytes(&message["content_id"]), kind, &bytes(&message["body"]));
    let sent_at = message["sent_at"].as_u64().unwrap();
    let random = bytes(&message["random"]);
    let (blob, trace) = session.seal(&words, &spec::Chosen { sent_at, random: &random });
    assert_eq!(blob, bytes(&message["blob"]), "{}", message["name"]);
    assert_eq!(trace.chain_key.unwrap(), array(&message["chain_key"]));
    if let Some(step) = trace.root_step {
        let said = &message["root_step"];
        assert_eq!(step.scalar, array(&said["ratchet_private"]));
        assert_eq!((step.secret, step.root), (array(&said["dh"]), array(&said["root_key"])));
    } else {
        assert!(message["root_step"].is_null());
    }
}

fn reopen(session: &mut spec::Session, message: &Value) {
    let trace = session.open(&bytes(&message["blob"]));
    assert_eq!(trace.seed, array(&message["message_seed"]), "{}", message["name"]);
    assert_eq!(trace.key, array(&message["message_key"]));
    assert_eq!(trace.associated_data, array(&message["associated_data"]));
    assert_eq!(trace.clear, bytes(&message["clear"]));
    let (content, kind, body) = spec::parse_plaintext(&trace.padded);
    assert_eq!((content, body), (bytes(&message["content_id"]), bytes(&message["body"])));
    assert_eq!(u32::from(kind), number(&message["kind"]));
    assert_eq!(trace.padded, bytes(&message["padded_plaintext"]));
    if let Some(step) = trace.root_step {
        assert_eq!(step.root, array(&message["root_step"]["root_key"]));
    }
}

#[test]
fn a_second_implementation_shakes_hands_from_private_keys() {
    let file = frozen("handshakes.json");
    let mut seen = BTreeSet::new();
    for case in list(&file["cases"], 4) {
        let (mut here, mut there) = shake_hands(&file, case);
        reseal(&mut here, &case["first_message"]);
        reopen(&mut there, &case["first_message"]);
        seen.insert((case["one_time_prekey"].is_null(), number(&case["kem_prekey"]["kind"])));
    }
    assert_eq!(seen.len(), 4, "with and without one-time prekey, with either KEM prekey");
}

#[test]
fn a_second_implementation_holds_the_conversation_on_both_sides() {
    let file = frozen("conversation.json");
    let (mut initiator, mut responder) = shake_hands(&file, &file["handshake"]);
    let messages = list(&file["messages"], 12);
    for step in list(&file["timeline"], 24) {
        let message = &messages[usize::try_from(step[1].as_u64().unwrap()).unwrap()];
        let from_initiator = message["from"] == file["initiator"]["user"];
        match (text(&step[0]), from_initiator) {
            ("send", true) => reseal(&mut initiator, message),
            ("send", false) => reseal(&mut responder, message),
            ("deliver", true) => reopen(&mut responder, message),
            ("deliver", false) => reopen(&mut initiator, message),
            other => panic!("{other:?}"),
        }
    }
    let kinds: BTreeSet<u32> = messages.iter().map(|message| number(&message["kind"])).collect();
    assert_eq!(kinds, BTreeSet::from([1, 2, 3, 16, 17, 18, 19, 200]));
    assert!(initiator.passed_over.is_empty() && responder.passed_over.is_empty());
}

/// A responder with the identity and prekeys of a vector, as rows.
fn responder(file: &Value, case: &Value) -> Party {
    let party = &file["responder"];
    let mut rows = Rows::new();
    let identity = [
        vec![1],
        NOW.to_be_bytes().to_vec(),
        number(&party["device"]).to_be_bytes().to_vec(),
        bytes(&party["user_private"]),
        bytes(&party["signing_private"]),
        bytes(&party["agreement_private"]),
        spec::lp(&bytes(&party["device_list"])),
        spec::lp(&bytes(&party["device_list_signature"])),
    ];
    rows.insert(Identity::key(), identity.concat());
    let (signed, one_time, kem) = (&case["signed_prekey"], &case["one_time_prekey"], &case["kem_prekey"]);
    let mut private = |kind, sort: Vec<u8>, secret: Vec<u8>| {
        rows.insert(RecordKey { kind, partition: Vec::new(), sort }, [vec![1], secret].concat());
    };
    let id = |value: &Value| number(value).to_be_bytes().to_vec();
    private(RecordKind::SignedPrekey, id(&signed["id"]), bytes(&signed["private"]));
    if !one_time.is_null() {
        private(RecordKind::OneTimePrekey, id(&one_time["id"]), bytes(&one_time["private"]));
    }
    let kind = u8::try_from(number(&kem["kind"])).unwrap();
    private(RecordKind::KemPrekey, [vec![kind], id(&kem["id"])].concat(), bytes(&kem["private_seed"]));
    Party::stored(rows, "STVOR vectors consumer")
}

fn initiator_address(file: &Value) -> Address {
    let party = &file["initiator"];
    Address::new(UserId::new(text(&party["user"])).unwrap(), DeviceId::new(number(&party["device"])).unwrap())
}

pub fn read(party: &mut Party, peer: &Address, message: &Value) {
    let got = party.receive(peer, &bytes(&message["blob"])).unwrap();
    assert_eq!(got.content.to_string(), text(&message["content_id"]), "{}", message["name"]);
    assert_eq!(got.body.expose(), bytes(&message["body"]));
}

#[test]
fn a_responder_built_from_the_vectors_keys_reads_the_first_message_once() {
    let file = frozen("handshakes.json");
    for case in list(&file["cases"], 4) {
        let mut party = responder(&file, case);
        let (peer, message) = (initiator_address(&file), &case["first_message"]);
        read(&mut party, &peer, message);
        assert!(matches!(party.receive(&peer, &bytes(&message["blob"])), Err(ProtocolError::Duplicate)));
    }
}

#[test]
fn a_responder_built_from_the_vectors_keys_holds_the_conversation() {
    let file = frozen("conversation.json");
    let mut party = responder(&file, &file["handshake"]);
    let peer = initiator_address(&file);
    let messages = list(&file["messages"], 12);
    for step in list(&file["timeline"], 24) {
        let message = &messages[usize::try_from(step[1].as_u64().unwrap()).unwrap()];
        match (text(&step[0]), message["from"] == file["initiator"]["user"]) {
            ("deliver", true) => read(&mut party, &peer, message),
            ("send", false) => {
                party.now = Timestamp::from_millis(message["sent_at"].as_u64().unwrap());
                party.rng.feed(&bytes(&message["random"]));
                let content = ContentId::from_bytes(array(&message["content_id"]));
                let kind = kind(u8::try_from(number(&message["kind"])).unwrap());
                let words = Plaintext { content, kind, body: bytes(&message["body"]).into() };
                assert_eq!(party.send(&peer, &words).0, bytes(&message["blob"]), "{}", message["name"]);
            }
            _ => {}
        }
    }
}

fn kind(byte: u8) -> ContentKind {
    match byte {
        1 => ContentKind::Text,
        16 => ContentKind::Delivered,
        17 => ContentKind::Read,
        19 => ContentKind::Control,
        other => ContentKind::Other(other),
    }
}

#[test]
fn safety_numbers_follow_the_specification_and_the_crate_gives_them() {
    let file = frozen("safety.json");
    for value in list(&file["numbers"], 3) {
        let users: Vec<UserId> =
            list(&value["users"], 2).iter().map(|user| UserId::new(text(user)).unwrap()).collect();
        let keys: Vec<KeyBytes> = list(&value["user_keys"], 2)
            .iter()
            .map(|key| KeyBytes::try_from(&bytes(key)[..]).unwrap())
            .collect();
        let party = |index: usize| SafetyParty { user: &users[index], user_key: &keys[index] };
        let (first, second) =
            (SafetyNumber::of(&party(0), &party(1)), SafetyNumber::of(&party(1), &party(0)));
        let digits = text(&value["digits"]);
        assert_eq!(digits.len(), 60);
        assert_eq!((first.digits().as_str(), second.digits().as_str()), (digits, digits));
        assert_eq!(first.qr(), bytes(&value["qr_of_first"]));
        assert_eq!(second.qr(), bytes(&value["qr_of_second"]));
        assert_eq!(first.compare_qr(&bytes(&value["qr_of_second"])), QrOutcome::Match);
        for index in 0..2 {
            let half: [u8; 64] = array(&value["halves"][index]);
            assert_eq!(half, spec::safety_half(users[index].as_str(), &keys[index]));
            assert!(digits.contains(&spec::safety_digits(&half)));
        }
    }
    let (honest, mallory) = (&file["numbers"][0], &file["numbers"][1]);
    assert_ne!(honest["digits"], mallory["digits"]);
}

#[test]
fn padded_sizes_are_the_published_ones() {
    let file = frozen("padding.json");
    let sizes: Vec<usize> = file["sizes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|size| usize::try_from(size.as_u64().unwrap()).unwrap())
        .collect();
    assert_eq!(sizes[..6], [512, 1_024, 2_048, 4_096, 16_384, 17_408]);
    assert_eq!(sizes.last(), Some(&73_728));
    for row in list(&file["rows"], 30) {
        let length = usize::try_from(row["length"].as_u64().unwrap()).unwrap();
        let smallest = sizes.iter().find(|size| length <= **size).map(|size| *size as u64);
        assert_eq!(row["size"].as_u64(), smallest, "{length}");
    }
}
