//! Our decoder beside the reference's, on messages that were changed: whatever ours takes the other reads the same. Ours takes
//! less, on purpose.

use serde_json::{Value, json};
use stvor_protocol::signal::{PreKeyMessage, WhisperMessage};

use crate::party::Party;
use crate::peer::Peer;

/// Changes that fuzzers make: flips, cuts, repeats, insertions, other numbers.
fn changed(good: &[u8], party: &mut Party) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=party.byte() % 3 {
        let at = usize::from(party.byte()) * bytes.len() / 256;
        let other = party.byte();
        match party.byte() % 6 {
            0 if at < bytes.len() => bytes[at] ^= 1 << (other % 8),
            1 if at < bytes.len() => bytes[at] = other,
            2 => bytes.truncate(at),
            3 => bytes.insert(at, other),
            4 => {
                let again = bytes[at..].to_vec();
                bytes.extend_from_slice(&again);
            }
            _ if at < bytes.len() => drop(bytes.remove(at)),
            _ => {}
        }
    }
    bytes
}

fn number(value: &Value) -> u32 {
    value.as_u64().map_or(0, |value| u32::try_from(value).unwrap())
}

#[test]
fn whatever_our_decoder_takes_the_reference_reads_the_same() {
    let Some(mut peer) = Peer::start() else { return };
    let mut alice = Party::new("decoder");
    alice.start(&Party::new("bob").bundle(Some(7)));
    let good = alice.send(&[1; 40]).body;
    let inner_at = good.windows(2).rposition(|pair| pair == [0x33, 0x0a]).unwrap();
    let inner_end = good.windows(2).rposition(|pair| pair == [0x28, 77]).unwrap();
    let inner = good[inner_at..inner_end].to_vec();
    assert!(WhisperMessage::parse(&inner).is_ok() && PreKeyMessage::parse(&good).is_ok());
    let (mut taken, mut refused) = (0, 0);
    for round in 0..4_000u32 {
        let outer = round % 2 == 0;
        // The ends that are no fields stay: version, and the MAC of 8 bytes.
        let (body, tail) = if outer { (&good[1..], &[][..]) } else { inner[1..].split_at(inner.len() - 9) };
        let fields = if round < 2 { body.to_vec() } else { changed(body, &mut alice) };
        let bytes = [&[0x33][..], &fields, tail].concat();
        let read = |peer: &mut Peer, kind| {
            peer.try_call(json!({ "op": "decode", "kind": kind, "fields": hex::encode(&fields) }))
        };
        let text = |bytes: &[u8]| json!(hex::encode(bytes));
        if outer {
            let Ok(ours) = PreKeyMessage::parse(&bytes) else {
                refused += 1;
                continue;
            };
            let theirs =
                read(&mut peer, "PreKeyWhisperMessage").expect("the reference takes what ours takes");
            assert_eq!(theirs["preKeyId"], json!(ours.prekey()));
            assert_eq!(number(&theirs["signedPreKeyId"]), ours.signed_prekey());
            assert_eq!(number(&theirs["registrationId"]), ours.registration_id());
            assert_eq!(theirs["baseKey"], text(&ours.base_key().to_bytes()));
            assert_eq!(theirs["identityKey"], text(&ours.identity().to_bytes()));
        } else {
            let Ok(ours) = WhisperMessage::parse(&bytes) else {
                refused += 1;
                continue;
            };
            let theirs = read(&mut peer, "WhisperMessage").expect("the reference takes what ours takes");
            assert_eq!(theirs["ephemeralKey"], text(&ours.ratchet_key().to_bytes()));
            assert_eq!(number(&theirs["counter"]), ours.counter());
            assert_eq!(number(&theirs["previousCounter"]), ours.previous_counter());
            assert_eq!(theirs["ciphertext"], text(ours.ciphertext()));
        }
        taken += 1;
    }
    assert!(taken > 300 && refused > 300, "{taken} taken, {refused} refused");
}
