//! I2: nothing secret in what is shown: Debug of every public type that holds secrets, errors, names of rows. Secrets
//! are in the values of rows only, which are sealed when they are stored.
#![allow(clippy::unwrap_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

mod model;

use model::{Party, app, pair};
use stvor_protocol::{ContentKind, Delivery, Effect, Incoming, ProtocolError, RecordKind};

/// The secrets of a party: each run of 16 bytes of the values that hold private keys.
fn secrets(party: &Party) -> Vec<Vec<u8>> {
    let secret = [
        RecordKind::Identity,
        RecordKind::SignedPrekey,
        RecordKind::OneTimePrekey,
        RecordKind::KemPrekey,
        RecordKind::Session,
        RecordKind::SkippedKeys,
    ];
    let mut all = Vec::new();
    for kind in secret {
        for value in party.rows.of(kind) {
            // Identity: version, time, device, then three scalars; a session: the two chain keys; others: all but the version.
            let range = match kind {
                RecordKind::Identity => 13..13 + 96,
                RecordKind::Session => 23..55,
                _ => 1..value.len().min(33),
            };
            all.extend(
                value[range]
                    .windows(16)
                    .step_by(8)
                    .filter(|run| run.iter().any(|b| *b != 0))
                    .map(<[u8]>::to_vec),
            );
        }
    }
    for value in party.rows.of(RecordKind::SessionRoot) {
        let root = 1 + 16 + 1 + 8 + 4 * model::suite().key_bytes();
        all.extend(
            value[root..root + 65]
                .windows(16)
                .step_by(8)
                .filter(|run| run.iter().any(|b| *b != 0))
                .map(<[u8]>::to_vec),
        );
    }
    all
}

fn assert_hidden(shown: &str, secrets: &[Vec<u8>]) {
    let lower = shown.to_lowercase();
    for secret in secrets {
        let list = secret.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        assert!(!lower.contains(&hex::encode(secret)) && !shown.contains(&list), "{shown}");
        assert!(!shown.contains(&format!("{:?}", String::from_utf8_lossy(secret))));
    }
    assert!(!shown.contains("precious"), "{shown}");
}

#[test]
fn debug_of_every_type_that_holds_a_secret_shows_none() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let blobs: Vec<_> = (0..3).map(|_| alice.send(&b, "precious").unwrap()).collect();
    bob.receive(&a, &blobs[1]).unwrap();
    let mut hidden = secrets(&alice);
    hidden.extend(secrets(&bob));
    assert!(hidden.len() > 300, "{}", hidden.len());

    let incoming = Incoming::parse(&blobs[2]).unwrap();
    let mut conversation = bob.conversation(&a);
    let records = bob.rows.load(&conversation.needs(&incoming));
    let delivery = Delivery { incoming: &incoming, records: &records, decision: None };
    let mut rng = stvor_crypto::random::DeterministicRandom::from_label("x");
    let mut shown = vec![
        format!("{:#?}", bob.identity),
        format!("{conversation:?} {conversation:#?}"),
        format!("{:?} {:?} {delivery:?}", bob.context(), bob.prekeys),
        format!("{:?}", bob.rows.load(&stvor_protocol::Conversation::keys(&a))),
        format!("{:?}", conversation.pin()),
        format!("{:?}", alice.text("precious")),
    ];
    let received = conversation.decrypt(&bob.context(), delivery, &mut rng).unwrap();
    shown.push(format!("{received:?} {received:#?}"));
    let text = bob.text("precious");
    let encrypted = conversation.encrypt(&bob.context(), &text, &mut rng).unwrap();
    shown.push(format!("{:?}", encrypted.effects));
    let bundle = alice.bundle();
    let checked = bundle.validate(&app(), &a, bob.now).unwrap();
    shown.push(format!("{bundle:?} {checked:?}"));
    shown
        .push(format!("{:?}", bob.conversation(&a).start(&bob.context(), &checked, None, &mut rng).unwrap()));
    bob.directory.one_time.clear();
    bob.directory.kem_one_time.clear();
    let counts = stvor_protocol::ServerCounts { one_time: 0, kem_one_time: 0 };
    let mut prekeys = bob.prekeys.clone();
    shown.push(format!("{:?}", prekeys.maintain(&bob.identity, counts, bob.now, &mut rng).unwrap()));
    shown.push(format!("{:?}", bob.fail(&a, &blobs[0], &ProtocolError::Undecryptable)));
    for shown in &shown {
        assert_hidden(shown, &hidden);
    }
}

#[test]
fn the_redaction_reads_as_it_should() {
    let (mut alice, bob) = pair();
    let b = bob.address();
    assert_eq!(
        format!("{:?}", alice.conversation(&b)),
        format!("Conversation {{ peer: {b:?}, has_session: true, archived: 0, .. }}")
    );
    let text = alice.text("precious");
    let shown = format!("{text:?}");
    assert!(shown.contains("body: [redacted, 8 bytes]"), "{shown}");
    let identity = format!("{:?}", alice.identity);
    assert!(identity.starts_with("Identity { app: ") && identity.ends_with(", .. }"), "{identity}");
    let effect = Effect::Put {
        key: stvor_protocol::Identity::key(),
        value: b"precious".to_vec().into(),
        expires: None,
    };
    assert!(format!("{effect:?}").contains("value: [redacted]"));
}

#[test]
fn errors_and_row_names_hold_no_secret_and_no_content() {
    let (mut alice, mut bob) = pair();
    let (a, b) = (alice.address(), bob.address());
    let mut hidden = secrets(&alice);
    hidden.extend(secrets(&bob));
    let blob = alice.send(&b, "precious").unwrap();
    for place in (0..blob.len()).step_by(5) {
        let mut changed = blob.clone();
        changed[place] ^= 4;
        let error = bob.receive(&a, &changed).unwrap_err();
        assert_hidden(&format!("{error} {error:?}"), &hidden);
    }
    for key in alice.rows.0.keys().chain(bob.rows.0.keys()) {
        assert_hidden(&hex::encode([&key.partition[..], &key.sort[..]].concat()), &hidden);
    }
    assert!(ContentKind::Text.is_application());
}
