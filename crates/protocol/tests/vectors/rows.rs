//! Frozen rows: what an older build stored is still read, and mail with it.

use std::collections::BTreeSet;

use serde_json::Value;
use stvor_base::Timestamp;
use stvor_protocol::*;

use super::consume::{bytes, list, read, text, verifies};
use super::party::{NOW, Party, Rows, load};
use super::{frozen, label, spec};

/// All kinds of rows. A new kind wants a vector.
const KINDS: [RecordKind; 16] = [
    RecordKind::Identity,
    RecordKind::PrekeyState,
    RecordKind::SignedPrekey,
    RecordKind::OneTimePrekey,
    RecordKind::KemPrekey,
    RecordKind::Conversation,
    RecordKind::Session,
    RecordKind::SessionRoot,
    RecordKind::PendingHandshake,
    RecordKind::ArchivedSession,
    RecordKind::SkippedIndex,
    RecordKind::SkippedKeys,
    RecordKind::Pin,
    RecordKind::HandshakeMark,
    RecordKind::ReplayMark,
    RecordKind::Repair,
];

fn stored(party: &Value) -> Party {
    let mut rows = Rows::new();
    for row in party["rows"].as_array().unwrap() {
        let kind = *KINDS.iter().find(|kind| format!("{kind:?}") == text(&row["kind"])).unwrap();
        let key = RecordKey { kind, partition: bytes(&row["partition"]), sort: bytes(&row["sort"]) };
        assert!(rows.insert(key, bytes(&row["value"])).is_none());
    }
    Party::stored(rows, "STVOR vectors later build")
}

#[test]
fn records_of_every_kind_and_version_still_load_and_read_mail() {
    let file = frozen("records.json");
    let [alice, zoe] = list(&file["parties"], 2) else { panic!() };
    let (mut alice, mut zoe) = (stored(alice), stored(zoe));
    let (a, z) = (alice.address(), zoe.address());
    let seen: BTreeSet<RecordKind> = alice.rows.keys().chain(zoe.rows.keys()).map(|key| key.kind).collect();
    assert_eq!(seen, BTreeSet::from(KINDS));

    let with_alice = zoe.conversation(&a);
    assert_eq!((with_alice.archived(), with_alice.stored_keys()), (1, 2));
    assert!(with_alice.is_established() && !with_alice.pin().unwrap().verified);
    let with_zoe = alice.conversation(&z);
    assert_eq!(with_zoe.archived(), 1);
    assert!(!with_zoe.is_established() && with_zoe.pin().unwrap().verified);
    assert_eq!(with_zoe.pin().unwrap().user_key, *zoe.identity.user_key());
    // A repair session was started just now, so its row is there and holds the hour.
    let state = &zoe.rows[&RecordKey::of_peer(RecordKind::Repair, &a, &[])];
    assert_eq!(state[..2], [1, 1]);
    assert_eq!(with_alice.repair_route(Timestamp::from_millis(NOW)), RepairRoute::Working);

    for message in list(&file["mail"], 6) {
        let (party, peer) = if message["to"] == "alice" { (&mut alice, &z) } else { (&mut zoe, &a) };
        read(party, peer, message);
        let again = party.receive(peer, &bytes(&message["blob"]));
        assert!(matches!(again, Err(ProtocolError::Duplicate)), "{}", message["name"]);
    }
    assert_eq!(zoe.conversation(&a).stored_keys(), 0);
}

#[test]
fn a_stored_upload_that_was_not_confirmed_is_repeated_as_it_was() {
    let file = frozen("records.json");
    let mut zoe = stored(&file["parties"][1]);
    let counts = ServerCounts { one_time: 100, kem_one_time: 50, ..ServerCounts::default() };
    let now = Timestamp::from_millis(NOW);
    let upload = zoe.prekeys.maintain(&zoe.identity, counts, now, &mut zoe.rng).unwrap().upload.unwrap();
    let signed = upload.signed.unwrap();
    assert_eq!(signed.id, 2);
    let sort = signed.id.to_be_bytes();
    let private: [u8; 32] = zoe.private(RecordKind::SignedPrekey, &sort).try_into().unwrap();
    assert_eq!(signed.public[..], spec::public_of(&private));
    let end = zoe.end();
    let object = spec::signed_object(&spec::SignedObject {
        app: "vectors",
        user: &end.user,
        device: end.device,
        kem_kind: None,
        id: signed.id,
        created: signed.created,
        key: &signed.public,
    });
    assert!(verifies(&end.signing, &label("signed prekey"), &object, &signed.signature));
}

#[test]
fn a_record_of_a_later_version_is_named_as_such() {
    let file = frozen("records.json");
    let zoe = stored(&file["parties"][1]);
    let peer = stored(&file["parties"][0]).address();
    let mut tried = 0;
    for key in Conversation::keys(&peer) {
        let Some(row) = zoe.rows.get(&key) else { continue };
        if key.kind == RecordKind::PendingHandshake {
            continue;
        }
        let mut later = zoe.rows.clone();
        later.insert(key.clone(), [&[99], &row[1..]].concat());
        let records = load(&later, &Conversation::keys(&peer));
        let refused = Conversation::load(&zoe.identity, &peer, &records);
        assert!(matches!(refused, Err(ProtocolError::TooNew { version: 99, .. })), "{:?}", key.kind);
        tried += 1;
    }
    assert_eq!(tried, 8);
}
