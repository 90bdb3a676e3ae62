//! Groups: changes, a sender key, a message.

use serde_json::{Value, json};
use stvor_base::{Address, AppId, GroupId, Suite};
use stvor_crypto::kdf::{hkdf_sha256, hmac_sha256, sha256};
use stvor_protocol::group::*;
use stvor_protocol::profile;
use stvor_protocol::*;

use super::consume::{array, bytes, number, text, verifies};
use super::party::{APP, NOW, Recorder, Rows, alice, commit, zoe};
use super::{frozen, label, recompute, spec, suite};

fn change(name: &str, made: &SignedChangeIn) -> Value {
    let checked = made.clone().validate(&AppId::new(APP).unwrap()).unwrap();
    json!({
        "what": name, "bytes": hex::encode(&made.bytes), "signature": hex::encode(&made.signature),
        "hash": hex::encode(checked.hash()),
    })
}

pub fn groups() -> Value {
    let (ann, zoe) = (alice(), zoe());
    let mut rng = Recorder::new("groups");
    let now = stvor_base::Timestamp::from_millis(NOW);
    let mut rows = Rows::default();
    let (mut group, made) = Group::create(&ann.identity, "Freunde", now, &mut rng).unwrap();
    let mut changes = vec![change("create", &made.change)];
    commit(&mut rows, made.effects);
    let member = Member { user: zoe.identity.user().clone(), key: *zoe.identity.user_key() };
    for (name, action) in [
        ("add", Action::Add(vec![member.clone()])),
        ("rename", Action::Rename("Přátelé".into())),
        ("remove", Action::Remove(member.user.clone())),
        ("add again", Action::Add(vec![member])),
    ] {
        let (made, _) = group.change(&ann.identity, (action, now), &mut rng).unwrap();
        commit(&mut rows, made.effects);
        changes.push(change(name, &made.change));
    }
    let plaintext = Plaintext {
        content: stvor_base::ContentId::from_bytes([7; 16]),
        kind: ContentKind::Text,
        body: stvor_crypto::SecretBytes::from_slice("Hallo, Gruppe".as_bytes()),
    };
    let padding = |size: usize| spec::bucket(size).unwrap();
    let context = Context { identity: &ann.identity, policy: TrustPolicy::default(), padding, now };
    let sealed = group.encrypt(&context, &plaintext, &mut rng).unwrap();
    let (key, _) = sealed.introduction.unwrap();
    commit(&mut rows, sealed.effects);
    let row = |(key, value): (&RecordKey, &Vec<u8>)| {
        json!({
            "kind": format!("{:?}", key.kind), "partition": hex::encode(&key.partition),
            "sort": hex::encode(&key.sort), "value": hex::encode(value),
        })
    };
    json!({
        "format": 1,
        "app": APP,
        "group": group.id().to_string(),
        "sender": {
            "user": ann.identity.user().as_str(), "device": ann.identity.address().device.get(),
            "user_public": hex::encode(ann.identity.user_key()),
            "signing_public": hex::encode(ann.identity.device_key()),
        },
        "changes": changes,
        "state": hex::encode(group.state()),
        "epoch": group.epoch(),
        "sender_key": hex::encode(key.expose()),
        "message": {
            "blob": hex::encode(&sealed.blob), "content": hex::encode([7; 16]), "kind": 1,
            "body": hex::encode(plaintext.body.expose()),
        },
        "rows": rows.iter().map(row).collect::<Vec<_>>(),
    })
}

/// The versions of changes that were ever made in this suite.
fn released() -> &'static [(u8, &'static str)] {
    const ALL: [(u8, &str); 2] = [(1, "groups.json"), (2, "groups-2.json")];
    if suite() == Suite::P256 { &ALL } else { &ALL[1..] }
}

#[test]
fn groups_have_the_frozen_bytes() {
    recompute("groups-2.json", &groups());
}

/// From the page, not from the crate.
#[test]
fn a_group_message_is_read_as_the_specification_says() {
    for (version, name) in released() {
        reads_as_the_page_says(*version, &frozen(name));
    }
}

fn reads_as_the_page_says(version: u8, file: &Value) {
    let sender = &file["sender"];
    let (user_key, signing) = (bytes(&sender["user_public"]), bytes(&sender["signing_public"]));
    let lp = |bytes: &[u8]| [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();

    let mut head = [0; 32];
    for change in file["changes"].as_array().unwrap() {
        let made = bytes(&change["bytes"]);
        assert_eq!(made[0], version);
        assert!(verifies(&signing, &label("group change"), &made, &bytes(&change["signature"])));
        head = sha256(&[&label("group change"), &made]);
        assert_eq!(head, array::<32>(&change["hash"]));
    }
    let group: GroupId = text(&file["group"]).parse().unwrap();
    assert_eq!(group.as_bytes(), &array::<32>(&file["changes"][0]["hash"])[..16]);
    let state = sha256(&[&label("group state"), group.as_bytes(), &head]);
    assert_eq!(state, array::<32>(&file["state"]));

    let key = bytes(&file["sender_key"]);
    assert_eq!(&key[..2], &[1, 2]);
    assert_eq!((&key[2..18], key[18], &key[19..51]), (&group.as_bytes()[..], 1, &head[..]));
    let (chain, counter, chain_key, signer) = (&key[51..67], &key[67..71], &key[71..103], &key[103..]);

    let blob = bytes(&file["message"]["blob"]);
    let (clear, rest) = blob.split_at(63 + spec::sizes().2);
    let (sealed, signature) = rest.split_at(rest.len() - 64);
    assert_eq!((&clear[..3], &clear[3..19]), (&[1, spec::sizes().0, 3][..], chain));
    assert_eq!((&clear[19..27], &clear[27..59]), (&NOW.to_be_bytes()[..], &state[..]));
    assert_eq!(&clear[59..63], counter);
    let names = [
        lp(text(&file["app"]).as_bytes()),
        group.as_bytes().to_vec(),
        lp(text(&sender["user"]).as_bytes()),
        number(&sender["device"]).to_be_bytes().to_vec(),
    ]
    .concat();
    let aad = sha256(&[&label("group associated data"), &[spec::sizes().0], &names, &user_key, clear]);
    let signed = [aad, sha256(&[sealed])].concat();
    assert!(verifies(signer, &label("group sender signature"), &signed, signature));
    let seed = hmac_sha256(chain_key, &[&[1]]);
    let message_key = hkdf_sha256::<32>(&[], seed.expose(), &label("group message key"));
    let plain = spec::open(*message_key.expose(), &clear[63..], &aad, &mut sealed.to_vec());
    let body = bytes(&file["message"]["body"]);
    assert_eq!((&plain[..16], plain[16]), (&array::<16>(&file["message"]["content"])[..], 1));
    assert_eq!((&plain[17..21], &plain[21..21 + body.len()]), (&lp(&body)[..4], &body[..]));
    assert!(plain[21 + body.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(profile::of(suite()).label.group_recipient, label("group recipient"));
}

#[test]
fn the_crate_reads_the_frozen_groups() {
    for (_, name) in released() {
        reads(&frozen(name));
    }
}

fn reads(file: &Value) {
    let zoe = zoe();
    let app = AppId::new(text(&file["app"])).unwrap();
    let id: GroupId = text(&file["group"]).parse().unwrap();
    let mut group = Group::join(&zoe.identity, id);
    for change in file["changes"].as_array().unwrap() {
        let made = SignedChangeIn { bytes: bytes(&change["bytes"]), signature: bytes(&change["signature"]) };
        assert!(group.apply(made.validate(&app).unwrap()).unwrap().new);
    }
    assert_eq!((hex::encode(group.state()), group.name()), (text(&file["state"]).to_owned(), "Přátelé"));
    let sender = &file["sender"];
    let user = stvor_base::UserId::new(text(&sender["user"])).unwrap();
    let address = Address::new(user, stvor_base::DeviceId::new(number(&sender["device"])).unwrap());
    let key = bytes(&file["sender_key"]).into();
    let GroupContent::SenderKey(key) = GroupContent::decode(suite(), &key).unwrap() else {
        panic!("no sender key")
    };
    let mut rows = Rows::default();
    let user_key = stvor_base::KeyBytes::try_from(&bytes(&sender["user_public"])[..]).unwrap();
    let introduction = Introduction { sender: &address, user_key: &user_key };
    commit(&mut rows, introduction.accept(&key, &Records::new()).unwrap());
    let blob = bytes(&file["message"]["blob"]);
    let incoming = GroupIncoming::parse(&blob).unwrap();
    let records = super::party::load(&rows, &PeerChain::keys(&address, incoming.chain()));
    let chain = PeerChain::load(&address, incoming.chain(), &records).unwrap().unwrap();
    let now = stvor_base::Timestamp::from_millis(NOW);
    let received = chain.open(&app, &incoming, (&Records::new(), now)).unwrap();
    assert_eq!(received.plaintext.body.expose(), bytes(&file["message"]["body"]));

    // The sender's rows, which were written by the build that froze them, still make the same group.
    let kind = |name: &str| match name {
        "GroupChange" => RecordKind::GroupChange,
        "OwnChain" => RecordKind::OwnChain,
        "ChainRecipients" => RecordKind::ChainRecipients,
        other => panic!("{other}"),
    };
    let rows = file["rows"].as_array().unwrap();
    let rows = rows.iter().map(|row| (kind(text(&row["kind"])), bytes(&row["value"]).into()));
    let again = Group::load(&alice().identity, id, rows).unwrap();
    assert_eq!(again.state(), group.state());
    assert!(again.sent_on(incoming.chain()));
}
