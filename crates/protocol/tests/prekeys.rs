//! Prekeys over their lives: made, refilled, rotated, retired, destroyed; and what a bundle must hold to be accepted.

mod model;

use std::time::Duration;

use model::{Party, app, code};
use stvor_protocol::{Identity, PrekeyBundleIn, Prekeys, ProtocolError, RecordKind, limits};

const DAY: Duration = Duration::from_secs(24 * 3_600);

#[test]
fn the_first_upload_has_everything_and_the_next_one_nothing() {
    let mut bob = Party::new("bob");
    assert_eq!((bob.directory.one_time.len(), bob.directory.kem_one_time.len()), (100, 50));
    assert_eq!(bob.directory.one_time[0].id, 0);
    assert!(bob.directory.signed.is_some() && bob.directory.kem_last.is_some());
    assert!(bob.maintain().upload.is_none());
}

#[test]
fn one_time_prekeys_are_refilled_below_twenty() {
    let mut bob = Party::new("bob");
    bob.directory.one_time.truncate(20);
    bob.directory.kem_one_time.truncate(20);
    assert!(bob.maintain().upload.is_none());
    bob.directory.one_time.truncate(19);
    bob.directory.kem_one_time.truncate(19);
    let upload = bob.maintain().upload.unwrap();
    assert_eq!((upload.one_time.len(), upload.kem_one_time.len()), (100, 50));
    assert_eq!(upload.one_time[0].id, 100);
    assert!(upload.signed.is_none());
}

#[test]
fn the_private_halves_of_one_time_prekeys_are_bounded() {
    let mut bob = Party::new("bob");
    for _ in 0..25 {
        bob.directory.one_time.clear();
        let _ = bob.maintain();
    }
    assert_eq!(bob.rows.count(RecordKind::OneTimePrekey), 2_000);
    let mut kem = |refills: usize| {
        for _ in 0..refills {
            bob.directory.kem_one_time.clear();
            let _ = bob.maintain();
        }
        bob.rows.count(RecordKind::KemPrekey)
    };
    // The first fifty are there already, and the one of last resort.
    assert_eq!(kem(39), 2_001);
    assert_eq!(kem(1), 2_001);
}

#[test]
fn an_upload_that_was_not_confirmed_is_repeated_after_a_restart() {
    let mut rng = stvor_crypto::random::DeterministicRandom::from_label("x");
    let now = stvor_base::Timestamp::from_millis(1);
    let (identity, _) =
        Identity::create_in(model::suite(), (&app(), &model::address("bob")), now, &mut rng).unwrap();
    let mut rows = model::Rows::default();
    let counts = stvor_protocol::ServerCounts { one_time: 100, kem_one_time: 50 };
    let first = Prekeys::default().maintain(&identity, counts, now, &mut rng).unwrap();
    assert!(rows.commit(first.effects));
    let mut again = Prekeys::load(&rows.load(&[Prekeys::key()])).unwrap();
    let second = again.maintain(&identity, counts, now, &mut rng).unwrap();
    assert_eq!(second.upload, first.upload);
    assert!(rows.commit(again.uploaded(now)));
    let mut later = Prekeys::load(&rows.load(&[Prekeys::key()])).unwrap();
    assert!(later.maintain(&identity, counts, now, &mut rng).unwrap().upload.is_none());
}

#[test]
fn a_relay_that_lost_the_newest_prekeys_gets_the_same_ones_again() {
    let mut bob = Party::new("bob");
    bob.pass(7 * DAY);
    let newest = bob.maintain().upload.unwrap();
    let (signed, kem) = (newest.signed.unwrap(), newest.kem_last.unwrap());
    assert_eq!((signed.id, kem.id), (1, 1));
    bob.pass(DAY);
    let records = bob.rows.load(&bob.prekeys.newest());
    let again = bob.prekeys.repeat(&bob.identity, &records, &mut bob.rng).unwrap().unwrap();
    assert!(again.one_time.is_empty() && again.kem_one_time.is_empty());
    // With the nonces of RFC 6979 even the signatures are the same.
    assert_eq!((again.signed.as_ref(), again.kem_last.as_ref()), (Some(&signed), Some(&kem)));

    bob.directory.kem_one_time.clear();
    (bob.directory.signed, bob.directory.kem_last) = (again.signed, again.kem_last);
    let mut alice = Party::new("alice");
    let first = alice.start(&mut bob, "to the repeated ones").unwrap();
    assert_eq!(bob.receive(&alice.address(), &first).unwrap(), "to the repeated ones");

    let without = bob.prekeys.repeat(&bob.identity, &model::Rows::default().load(&[]), &mut bob.rng);
    assert_eq!(code(without), "MISSING_ROW");
    let nothing = Prekeys::default();
    assert!(nothing.newest().is_empty());
    assert!(nothing.repeat(&bob.identity, &records, &mut bob.rng).unwrap().is_none());
}

#[test]
fn signed_prekeys_rotate_weekly_and_live_sixty_days_after_their_replacement() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let early = alice.start(&mut bob, "slow mail").unwrap();
    bob.pass(7 * DAY - Duration::from_millis(1));
    assert!(bob.maintain().upload.is_none());
    bob.pass(Duration::from_millis(1));
    assert_eq!(bob.maintain().upload.unwrap().signed.unwrap().id, 1);
    bob.pass(60 * DAY - Duration::from_millis(1));
    assert!(bob.maintain().clear.is_empty());
    assert_eq!(bob.receive(&alice.address(), &early).unwrap(), "slow mail");
    // The one-time KEM prekey is gone with it, the generation stays for one more moment.
    bob.pass(Duration::from_millis(1));
    let done = bob.maintain();
    assert_eq!(done.clear, vec![(RecordKind::HandshakeMark, vec![0, 0, 0, 0])]);
    let marks: Vec<_> =
        bob.rows.0.keys().filter(|key| key.kind == RecordKind::HandshakeMark).cloned().collect();
    assert!(marks.iter().all(|key| key.partition == vec![0, 0, 0, 0]) && marks.len() == 1);
}

#[test]
fn a_handshake_on_a_destroyed_prekey_is_refused() {
    let (mut alice, mut bob) = (Party::new("alice"), Party::new("bob"));
    let early = alice.start(&mut bob, "too slow").unwrap();
    bob.pass(7 * DAY);
    let _ = bob.maintain();
    bob.pass(60 * DAY);
    let _ = bob.maintain();
    assert_eq!(code(bob.receive(&alice.address(), &early)), "UNKNOWN_PREKEY");
}

#[test]
fn a_bundle_is_stale_after_thirty_days() {
    let mut bob = Party::new("bob");
    let (bundle, address) = (bob.bundle(), bob.address());
    let at = |age: Duration| code(bundle.validate(&app(), &address, bob.now + age));
    assert_eq!(at(30 * DAY), "OK");
    assert_eq!(at(30 * DAY + Duration::from_millis(1)), "STALE_BUNDLE");
}

#[test]
fn whatever_a_relay_changes_in_a_bundle_is_refused() {
    let mut bob = Party::new("bob");
    let mut eve = Party::new("eve");
    let (good, foreign, address) = (bob.bundle(), eve.bundle(), bob.address());
    let last = {
        bob.directory.kem_one_time.clear();
        bob.bundle()
    };
    let now = bob.now;
    let refused = |change: &dyn Fn(&mut PrekeyBundleIn)| {
        let mut bundle = good.clone();
        change(&mut bundle);
        match bundle.validate(&app(), &address, now) {
            Err(ProtocolError::BadBundle(_) | ProtocolError::BadDeviceList(_)) => true,
            Ok(_) | Err(_) => false,
        }
    };
    assert!(!refused(&|_| ()));
    assert!(refused(&|b| b.device = 2));
    assert!(refused(&|b| b.device = 0));
    assert!(refused(&|b| b.list = foreign.list.clone()));
    assert!(refused(&|b| b.signed.signature = Vec::new()));
    assert!(refused(&|b| b.signed.signature = vec![0; 64]));
    assert!(refused(&|b| b.signed.signature.push(0)));
    assert!(refused(&|b| b.signed.id += 1));
    assert!(refused(&|b| b.signed.created += 1));
    assert!(refused(&|b| b.signed = foreign.signed.clone()));
    assert!(refused(&|b| b.kem.signature = Vec::new()));
    assert!(refused(&|b| b.kem.id += 1));
    assert!(refused(&|b| b.kem.created += 1));
    assert!(refused(&|b| b.kem.kind = stvor_protocol::KemKind::LastResort));
    assert!(refused(&|b| b.kem = foreign.kem.clone()));
    assert!(refused(&|b| b.kem.public[7] ^= 1));
    assert!(refused(&|b| b.kem.public.truncate(1_183)));
    assert!(refused(&|b| b.signed.signature.clone_from(&b.kem.signature)));
    // Off the curve, or not reduced. Another point that is a key shows when the peer answers the handshake.
    assert!(refused(&|b| *b.one_time.as_mut().unwrap().public.last_mut().unwrap() ^= 0x80));
    assert!(refused(&|b| b.one_time.as_mut().unwrap().public.clear()));
    assert!(!refused(&|b| b.one_time = None));
    assert!(!refused(&|b| b.kem = last.kem.clone()));
}

#[test]
fn a_one_time_prekey_exchanged_by_the_relay_ends_in_nothing_read() {
    // One-time prekeys are not signed, as in X3DH: exchanging one is noticed when the message does not decrypt.
    let (mut alice, mut bob, mut eve) = (Party::new("alice"), Party::new("bob"), Party::new("eve"));
    let mut bundle = bob.bundle();
    bundle.one_time.as_mut().unwrap().public = eve.bundle().one_time.unwrap().public;
    let bundle = bundle.validate(&app(), &bob.address(), alice.now).unwrap();
    let blob = alice.start_with(&bundle, "for bob").unwrap();
    let before = bob.rows.clone();
    assert_eq!(code(bob.receive(&alice.address(), &blob)), "UNDECRYPTABLE");
    assert_eq!(bob.rows, before);
}

#[test]
fn an_identity_is_created_once_and_reads_back() {
    let bob = Party::new("bob");
    let mut rng = stvor_crypto::random::DeterministicRandom::from_label("other");
    let (_, effects) =
        Identity::create_in(model::suite(), (&app(), &bob.address()), bob.now, &mut rng).unwrap();
    let mut rows = bob.rows.clone();
    assert!(!rows.commit(effects));
    let record = rows.load(&[Identity::key()]);
    let read = Identity::from_record(record.get(&Identity::key()).unwrap()).unwrap();
    assert_eq!(read.user_key(), bob.identity.user_key());
    assert_eq!(read.signed_list(), bob.identity.signed_list());
    let signature = read.sign_login(b"transcript").unwrap();
    let key = stvor_crypto::suite::VerifyingKey::from_bytes(bob.identity.device_key()).unwrap();
    assert!(key.verify(stvor_base::devices::login_label(model::suite()), b"transcript", &signature).is_ok());
    assert_eq!(limits::ONE_TIME_BATCH, 100);
}
