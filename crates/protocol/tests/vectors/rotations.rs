//! A user's key that handed over twice: statements, chain, and the records of both sides.

use serde_json::{Value, json};
use stvor_base::codec::Reader;
use stvor_base::rotations::rotation_label;
use stvor_base::{Address, AppId, Timestamp, UserId};
use stvor_protocol::*;

use super::consume::{bytes, number, text};
use super::party::{APP, NOW, alice, app, load, zoe};
use super::{frozen, recompute, spec, suite};

/// The scalar of the user key in the record of an identity.
fn scalar(record: &[u8]) -> [u8; 32] {
    let mut input = Reader::new(record);
    input.raw(1 + 8 + 4).unwrap();
    *input.array().unwrap()
}

fn record_of(effects: Effects) -> Vec<u8> {
    match effects.into_vec().pop() {
        Some(Effect::Put { value, .. }) => value.into_exposed(),
        other => panic!("{other:?}"),
    }
}

pub fn rotations() -> Value {
    let mut party = zoe();
    let user = party.address().user.as_str().to_owned();
    let first = party.rows[&Identity::key()].clone();
    let (one, effects) = party.identity.rotate(Timestamp::from_millis(NOW + 1), &mut party.rng).unwrap();
    let second = record_of(effects);
    let (two, effects) = one.rotate(Timestamp::from_millis(NOW + 2), &mut party.rng).unwrap();
    let third = record_of(effects);
    let keys = [party.identity.user_key(), one.user_key(), two.user_key()];
    let scalars = [&first, &second, &third].map(|record| scalar(record));
    let step = |at: usize| {
        let statement = spec::rotation_statement(&spec::Rotation {
            app: APP,
            user: &user,
            number: at as u64 + 1,
            old_key: keys[at],
            new_key: keys[at + 1],
            time: NOW + 1 + at as u64,
        });
        let sign = |key: usize| hex::encode(spec::sign(&scalars[key], rotation_label(suite()), &statement));
        json!({
            "number": at + 1, "time": NOW + 1 + at as u64,
            "old_private": hex::encode(scalars[at]), "old_public": hex::encode(keys[at]),
            "new_private": hex::encode(scalars[at + 1]), "new_public": hex::encode(keys[at + 1]),
            "statement": hex::encode(&statement), "by_old": sign(at), "by_new": sign(at + 1),
        })
    };
    json!({
        "format": 1, "app": APP, "user": user,
        "steps": [step(0), step(1)],
        "chain": hex::encode(two.rotations().unwrap().encode()),
        "identity_record": hex::encode(&third),
        "pin_record": hex::encode(moved_pin(&party.identity, &two)),
    })
}

/// Alice's pin of a user who rotated since.
fn moved_pin(old: &Identity, new: &Identity) -> Vec<u8> {
    let alice = alice();
    let (peer, key) = (old.address(), RecordKey::pin(old.user()));
    let list = old.signed_list().validate(&app(), old.user()).unwrap();
    let pin = Pin::new(&list, true, Timestamp::from_millis(NOW)).to_record();
    let rows = [(key.clone(), pin.into_exposed())].into_iter().collect();
    let mut conversation =
        Conversation::load(&alice.identity, peer, &load(&rows, &Conversation::keys(peer))).unwrap();
    let now = Timestamp::from_millis(NOW + 3);
    let policy = TrustPolicy::default();
    let context = Context { identity: &alice.identity, policy, padding: |size| size, now };
    let chain = new.rotations().unwrap().encode();
    let chain = RotationChain::validate(&chain, &app(), old.user()).unwrap();
    let effects = conversation.follow(&chain, &context).unwrap().unwrap().effects;
    let put = effects.into_vec().into_iter().find_map(|effect| match effect {
        Effect::Put { key: of, value, .. } if of == key => Some(value.into_exposed()),
        _ => None,
    });
    put.unwrap()
}

#[test]
fn rotations_have_the_frozen_bytes() {
    recompute("rotations.json", &rotations());
}

#[test]
fn frozen_rotations_are_read_and_a_second_implementation_checks_them() {
    let file = frozen("rotations.json");
    let (app, user) = (AppId::new(text(&file["app"])).unwrap(), UserId::new(text(&file["user"])).unwrap());
    let chain = RotationChain::validate(&bytes(&file["chain"]), &app, &user).unwrap();
    let steps = file["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 2);
    let mut packed = Vec::new();
    for step in steps {
        let (old, new) = (bytes(&step["old_public"]), bytes(&step["new_public"]));
        let time = step["time"].as_u64().unwrap();
        let statement = spec::rotation_statement(&spec::Rotation {
            app: app.as_str(),
            user: user.as_str(),
            number: number(&step["number"]).into(),
            old_key: &old,
            new_key: &new,
            time,
        });
        assert_eq!(statement, bytes(&step["statement"]));
        let label = super::label("identity rotation");
        assert!(spec::verifies(&old, &label, &statement, &bytes(&step["by_old"])));
        assert!(spec::verifies(&new, &label, &statement, &bytes(&step["by_new"])));
        packed.extend(
            [&time.to_be_bytes()[..], &new, &bytes(&step["by_old"]), &bytes(&step["by_new"])].concat(),
        );
    }
    let oldest = bytes(&steps[0]["old_public"]);
    let head = [&[spec::layout()][..], &1_u64.to_be_bytes(), &oldest, &[2]].concat();
    assert_eq!([head, packed].concat(), bytes(&file["chain"]));
    let identity = Identity::from_record(&bytes(&file["identity_record"]).into()).unwrap();
    assert_eq!(identity.user_key(), chain.newest());
    assert_eq!(identity.rotations().unwrap().encode(), bytes(&file["chain"]));
    let pin = Pin::from_record(&bytes(&file["pin_record"]).into()).unwrap();
    assert_eq!((&pin.user_key, pin.verified, pin.earlier.len()), (chain.newest(), false, 2));
    assert_eq!(pin.earlier[0].user_key[..], oldest);
    let peer = Address::new(user, identity.address().device);
    assert_eq!(*identity.address(), peer);
}
