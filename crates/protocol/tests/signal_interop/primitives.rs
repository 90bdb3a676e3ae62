//! Keys, signatures, safety numbers and groups against what others make of them.

use serde_json::json;
use stvor_crypto::Secret;
use stvor_crypto::random::DeterministicRandom;
use stvor_protocol::signal::{Fingerprint, KeyPair, PublicKey, SenderKeyDistribution, SenderKeyRecord};

use crate::peer::{Peer, bytes};

#[test]
fn signatures_and_agreements_are_those_of_libsignal_with_either_sign() {
    let Some(mut peer) = Peer::start() else { return };
    let rng = &mut DeterministicRandom::from_label("interop signatures");
    let mut signs = [0, 0];
    for number in 0..24 {
        let id = format!("signer {number}");
        let made = peer.call(json!({ "op": "party", "id": id }));
        let theirs = PublicKey::from_bytes(&bytes(&made["identity"])).unwrap();
        let private = Secret::from_slice(&bytes(&made["private"])).unwrap();
        assert_eq!(KeyPair::from_private(&private).unwrap().public(), theirs);
        let message = vec![number; 33];
        let signature = bytes(
            &peer.call(json!({ "op": "sign", "id": id, "message": hex::encode(&message) }))["signature"],
        );
        theirs.verify(&message, &signature).unwrap();
        signs[usize::from(signature[63] >> 7)] += 1;

        let own = KeyPair::generate(rng).unwrap();
        let mut signature = own.sign(&message, rng).unwrap();
        for expected in [true, false] {
            let verdict = peer.call(json!({
                "op": "verify", "key": hex::encode(own.public().to_bytes()),
                "message": hex::encode(&message), "signature": hex::encode(signature),
            }));
            assert_eq!(verdict["valid"], expected);
            signature[7] ^= 1;
        }
        let secret = bytes(
            &peer.call(json!({ "op": "agree", "id": id, "key": hex::encode(own.public().to_bytes()) }))["secret"],
        );
        assert_eq!(own.agree(&theirs).unwrap().expose()[..], secret[..]);
    }
    assert!(signs[0] > 0 && signs[1] > 0, "{signs:?}");
}

#[test]
fn safety_numbers_are_those_of_signal() {
    let Some(mut peer) = Peer::start() else { return };
    let rng = &mut DeterministicRandom::from_label("interop fingerprints");
    for (own_id, peer_id) in
        [("+14152222222", "+14153333333"), ("9d0652a3-dcc3-4d11-975f-74d61598733f", "bob")]
    {
        let (own, theirs) =
            (KeyPair::generate(rng).unwrap().public(), KeyPair::generate(rng).unwrap().public());
        let made = peer.call(json!({
            "op": "fingerprint", "own": own_id, "ownKey": hex::encode(own.to_bytes()),
            "peer": peer_id, "peerKey": hex::encode(theirs.to_bytes()),
        }));
        let ours = Fingerprint::new((own_id.as_bytes(), &own), (peer_id.as_bytes(), &theirs));
        assert_eq!(made["digits"], ours.digits());
        assert_eq!(bytes(&made["scannable"]), ours.scannable());
    }
}

#[test]
fn groups_cross_with_whatsapp_rust_bridge_in_both_directions() {
    let Some(mut peer) = Peer::start() else { return };
    let rng = &mut DeterministicRandom::from_label("interop groups");
    peer.call(json!({ "op": "party", "id": "group" }));
    // They send.
    let distribution = peer.call(json!({ "op": "groupCreate", "id": "group", "name": "theirs" }));
    let mut member = SenderKeyRecord::new();
    member.process(&SenderKeyDistribution::parse(&bytes(&distribution["distribution"])).unwrap()).unwrap();
    let mut sent: Vec<(u32, Vec<u8>)> = Vec::new();
    for number in 0..300u32 {
        let text = hex::encode(number.to_be_bytes().repeat(1 + (number % 40) as usize));
        let message =
            peer.call(json!({ "op": "groupEncrypt", "id": "group", "name": "theirs", "text": text }));
        sent.push((number, bytes(&message["body"])));
    }
    // Out of order within windows, every seventh lost, every fifth twice.
    for window in sent.chunks(8) {
        for (number, body) in window.iter().rev().filter(|(number, _)| number % 7 != 0) {
            let text = member.decrypt(body).unwrap();
            assert_eq!(text.expose(), number.to_be_bytes().repeat(1 + (number % 40) as usize));
            assert!(number % 5 != 0 || member.decrypt(body).is_err());
        }
    }
    // We send.
    let mut own = SenderKeyRecord::new();
    let distribution = hex::encode(own.distribution(rng).unwrap().encode());
    peer.call(json!({ "op": "groupProcess", "id": "group", "name": "ours", "distribution": distribution }));
    let sent: Vec<_> =
        (0..300u32).map(|number| (number, own.encrypt(&number.to_be_bytes(), rng).unwrap())).collect();
    for window in sent.chunks(8) {
        for (number, body) in window.iter().rev().filter(|(number, _)| number % 7 != 0) {
            let command =
                json!({ "op": "groupDecrypt", "id": "group", "name": "ours", "body": hex::encode(body) });
            assert_eq!(bytes(&peer.call(command.clone())["text"]), number.to_be_bytes());
            assert!(number % 5 != 0 || peer.try_call(command).is_err());
        }
    }
}

#[test]
fn groups_cross_with_a_sender_of_even_numbers_in_both_directions() {
    let Some(mut peer) = Peer::start() else { return };
    let rng = &mut DeterministicRandom::from_label("interop even numbers");
    // They send, on every other number.
    let distribution = peer.call(json!({ "op": "skippingCreate", "name": "theirs" }));
    let mut member = SenderKeyRecord::new();
    member.process(&SenderKeyDistribution::parse(&bytes(&distribution["distribution"])).unwrap()).unwrap();
    let sent: Vec<_> = (0..300u32)
        .map(|number| {
            let text = number.to_be_bytes().repeat(1 + (number % 40) as usize);
            let made =
                peer.call(json!({ "op": "skippingEncrypt", "name": "theirs", "text": hex::encode(&text) }));
            assert_eq!(made["number"], 2 * number);
            (number, text, bytes(&made["body"]))
        })
        .collect();
    for window in sent.chunks(8) {
        for (number, text, body) in window.iter().rev().filter(|(number, ..)| number % 7 != 0) {
            assert_eq!(member.decrypt(body).unwrap().expose(), text);
            assert!(number % 5 != 0 || member.decrypt(body).is_err());
        }
        member = SenderKeyRecord::decode(member.encode().expose()).unwrap();
    }
    // We send, and they read with the same code.
    let mut own = SenderKeyRecord::new();
    let distribution = hex::encode(own.distribution(rng).unwrap().encode());
    peer.call(json!({ "op": "skippingProcess", "name": "ours", "distribution": distribution }));
    let sent: Vec<_> =
        (0..300u32).map(|number| (number, own.encrypt(&number.to_be_bytes(), rng).unwrap())).collect();
    for window in sent.chunks(8) {
        for (number, body) in window.iter().rev().filter(|(number, _)| number % 7 != 0) {
            let command = json!({ "op": "skippingDecrypt", "name": "ours", "body": hex::encode(body) });
            assert_eq!(bytes(&peer.call(command.clone())["text"]), number.to_be_bytes());
            assert!(number % 5 != 0 || peer.try_call(command).is_err());
        }
    }
}
