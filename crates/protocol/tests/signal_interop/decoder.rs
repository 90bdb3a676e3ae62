//! Our decoder beside the reference's, on messages that its peers wrote and that were changed: whatever ours takes the other
//! reads the same. Ours takes less, on purpose: each reason for that stands in [`STRICTER`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use stvor_protocol::signal::{PreKeyMessage, SignalError, WhisperMessage};

use crate::corpus::{Kind, of_libsignal};
use crate::party::Party;
use crate::peer::Peer;

/// That what the inner message is refused for by itself is what the outer one is refused for.
const INNER: &str = "the inner message is refused";

/// What the reference's decoder takes and ours refuses, and why.
const STRICTER: &[(&str, &str)] = &[
    ("a field occurs twice", "the last one would count, and a filter in between may look at the first"),
    (
        "an integer is not in its shortest form",
        "one message, one encoding: what is signed or filtered is what is read",
    ),
    ("an integer has more than 32 bits", "the reference cuts it to 32 bits: another number than was written"),
    ("a field has another type than it should", "the reference reads its bytes as the type that it expects"),
    ("a field has a type that is not in use", "groups of the first protobuf: no encoder writes them here"),
    ("a field number is out of range", "0 and what has more than 29 bits are no field numbers"),
    ("a field runs past the end", "the reference takes what there is"),
    ("the ciphertext is not a number of blocks", "AES-CBC would refuse it, after the work of deriving keys"),
    ("the ratchet key is absent or malformed", "the reference fails later, when it computes with it"),
    ("the base key is absent or malformed", "the reference fails later, when it computes with it"),
    ("the identity key is absent or malformed", "the reference fails later, when it computes with it"),
    ("the inner message is absent", "the reference fails later, when it opens it"),
    ("no signed prekey is named", "the reference fails later, when it looks for it"),
    (INNER, "ours reads it at once, the reference when it opens it"),
];

/// The reason in [`STRICTER`] for which ours refuses.
fn reason(error: &SignalError) -> &'static str {
    match error {
        SignalError::Malformed(why) => why,
        other => panic!("{other}"),
    }
}

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

/// Rounds of changed messages; `STVOR_DIFFERENTIAL_ROUNDS` says how many, for a long run.
fn rounds() -> u32 {
    std::env::var("STVOR_DIFFERENTIAL_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000)
}

#[test]
fn what_our_decoder_takes_the_reference_reads_the_same_and_what_it_refuses_it_refuses_for_a_reason() {
    let Some(mut peer) = Peer::start() else { return };
    let mut dice = Party::new("decoder");
    let corpus = of_libsignal(&mut peer);
    let (mut taken, mut refused) = (0, 0);
    // How often for each reason, and the last of them.
    let mut stricter: BTreeMap<&str, (u32, String)> = BTreeMap::new();
    for round in 0..rounds() {
        let (kind, good) = &corpus[round as usize % corpus.len()];
        let outer = *kind == Kind::PreKey;
        // The ends that are no fields stay: version, and the MAC of 8 bytes.
        let (body, tail) = if outer { (&good[1..], &[][..]) } else { good[1..].split_at(good.len() - 9) };
        let fields = if (round as usize) < corpus.len() { body.to_vec() } else { changed(body, &mut dice) };
        let bytes = [&[0x33][..], &fields, tail].concat();
        let name = if outer { "PreKeyWhisperMessage" } else { "WhisperMessage" };
        let theirs = peer.try_call(json!({ "op": "decode", "kind": name, "fields": hex::encode(&fields) }));
        match (compare(outer, &bytes, theirs.as_ref().ok()), theirs) {
            (Ok(()), Ok(_)) => taken += 1,
            (Ok(()), Err(error)) => panic!("ours takes what the reference refuses ({error}): {bytes:02x?}"),
            (Err(error), Ok(theirs)) => {
                let inner =
                    theirs["message"].as_str().filter(|_| outer).map(|text| hex::decode(text).unwrap());
                let of_inner = inner.and_then(|inner| WhisperMessage::parse(&inner).err());
                let why = if of_inner.as_ref() == Some(&error) { INNER } else { reason(&error) };
                let (count, last) = stricter.entry(why).or_default();
                (*count, *last) = (*count + 1, format!("{name} {}: {theirs}", hex::encode(&fields)));
            }
            (Err(_), Err(_)) => refused += 1,
        }
    }
    let known: BTreeSet<&str> = STRICTER.iter().map(|(reason, _)| *reason).collect();
    assert!(STRICTER.iter().all(|(_, why)| !why.is_empty()) && known.len() == STRICTER.len());
    let unknown: Vec<_> = stricter.iter().filter(|(reason, _)| !known.contains(*reason)).collect();
    assert!(
        unknown.is_empty(),
        "the reference takes these and ours does not, for no listed reason: {unknown:?}"
    );
    let both: u32 = stricter.values().map(|(count, _)| count).sum();
    assert!(
        taken > 300 && both > 100 && stricter.len() > 5,
        "{taken} taken, {refused} refused, {stricter:?}"
    );
}

/// Parses what came, and holds it against what the reference read.
fn compare(outer: bool, bytes: &[u8], theirs: Option<&Value>) -> Result<(), SignalError> {
    let text = |bytes: &[u8]| json!(hex::encode(bytes));
    if outer {
        let ours = PreKeyMessage::parse(bytes)?;
        let Some(theirs) = theirs else { return Ok(()) };
        assert_eq!(theirs["preKeyId"], json!(ours.prekey()));
        assert_eq!(number(&theirs["signedPreKeyId"]), ours.signed_prekey());
        assert_eq!(number(&theirs["registrationId"]), ours.registration_id());
        assert_eq!(theirs["baseKey"], text(&ours.base_key().to_bytes()));
        assert_eq!(theirs["identityKey"], text(&ours.identity().to_bytes()));
        assert_eq!(theirs["message"], text(&ours.message().to_bytes()));
    } else {
        let ours = WhisperMessage::parse(bytes)?;
        let Some(theirs) = theirs else { return Ok(()) };
        assert_eq!(theirs["ephemeralKey"], text(&ours.ratchet_key().to_bytes()));
        assert_eq!(number(&theirs["counter"]), ours.counter());
        assert_eq!(number(&theirs["previousCounter"]), ours.previous_counter());
        assert_eq!(theirs["ciphertext"], text(ours.ciphertext()));
    }
    Ok(())
}
