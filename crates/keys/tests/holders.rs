//! What opens, what does not, and how it says so.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use stvor_base::ErrorCode;
use stvor_crypto::kdf::sha256;
use stvor_crypto::random::DeterministicRandom;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::{
    DataKey, KeyHolder, Keyfile, KeyringItem, NamedKeyring, OsKeyring, Passphrase, PassphraseCost,
    SecretService, WrappedKey, limits,
};
use stvor_testkit::MemoryKeyring;

const CHEAP: PassphraseCost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };

fn rng() -> DeterministicRandom {
    DeterministicRandom::from_label("keys")
}

fn phrase(text: &[u8]) -> Passphrase {
    Passphrase::new(SecretBytes::from_slice(text)).unwrap().with_cost(CHEAP).unwrap()
}

fn data_key() -> DataKey {
    Secret::new([42; 32])
}

fn item() -> KeyringItem {
    KeyringItem { service: "stvor".into(), account: "alice".into() }
}

/// Puts a right checksum under bytes that were changed.
fn checksummed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 16;
    let sum = sha256(&[&bytes[..body]]);
    bytes[body..].copy_from_slice(&sum[..16]);
    bytes
}

#[test]
fn every_holder_opens_what_it_sealed_and_only_in_its_context() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    Keyfile::create(&path, &mut rng()).unwrap();
    OsKeyring::create(&MemoryKeyring::default(), &item(), &mut rng()).unwrap();
    let ring = MemoryKeyring::default();
    let made = OsKeyring::create(&ring, &item(), &mut rng()).unwrap();
    let pairs: [(Box<dyn KeyHolder>, Box<dyn KeyHolder>); 3] = [
        (Box::new(phrase(b"secret")), Box::new(phrase(b"secret"))),
        (Box::new(Keyfile::read(&path).unwrap()), Box::new(Keyfile::read(&path).unwrap())),
        (Box::new(made), Box::new(OsKeyring::read(&ring, &item()).unwrap())),
    ];
    for (sealing, opening) in pairs {
        let wrapped = sealing.wrap(&data_key(), b"store", &mut rng()).unwrap();
        let bytes = wrapped.encode();
        assert!(bytes.len() <= limits::MAX_WRAPPED);
        assert!(!bytes.windows(32).any(|window| window == [42; 32]));
        let read = WrappedKey::decode(&bytes).unwrap();
        assert_eq!(read, wrapped);
        assert!(opening.unwrap(&read, b"store").unwrap() == data_key());
        assert_eq!(opening.unwrap(&read, b"stole").unwrap_err().code(), "WRONG_KEY");
    }
}

#[test]
fn another_key_and_another_kind_of_key_have_their_own_codes() {
    let directory = tempfile::tempdir().unwrap();
    let file = Keyfile::create(&directory.path().join("key"), &mut rng()).unwrap();
    let wrapped = phrase(b"right").wrap(&data_key(), b"store", &mut rng()).unwrap();
    assert_eq!(phrase(b"wrong").unwrap(&wrapped, b"store").unwrap_err().code(), "WRONG_KEY");
    let error = file.unwrap(&wrapped, b"store").unwrap_err();
    assert_eq!(error.code(), "KEY_REQUIRED");
    assert!(error.to_string().contains("passphrase"), "{error}");
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_record_is_damage_and_not_a_wrong_key() {
    let bytes = phrase(b"right").wrap(&data_key(), b"store", &mut rng()).unwrap().encode();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(WrappedKey::decode(&damaged).unwrap_err().code(), "STORE_CORRUPT");
    }
    for length in 0..bytes.len() {
        assert_eq!(WrappedKey::decode(&bytes[..length]).unwrap_err().code(), "STORE_CORRUPT");
    }
    let mut longer = bytes.clone();
    longer.insert(bytes.len() - 16, 0);
    assert_eq!(WrappedKey::decode(&checksummed(longer)).unwrap_err().code(), "STORE_CORRUPT");
    let mut newer = bytes;
    newer[0] = 2;
    assert_eq!(WrappedKey::decode(&checksummed(newer)).unwrap_err().code(), "STORE_TOO_NEW");
}

#[test]
fn a_sealed_key_that_was_altered_with_its_checksum_does_not_open() {
    let bytes = phrase(b"right").wrap(&data_key(), b"store", &mut rng()).unwrap().encode();
    // Version and kind and cost decide before; from the salt on nothing may be changed.
    for byte in 18..bytes.len() - 16 {
        let mut altered = bytes.clone();
        altered[byte] ^= 1;
        let wrapped = WrappedKey::decode(&checksummed(altered)).unwrap();
        let code = phrase(b"right").unwrap(&wrapped, b"store").unwrap_err().code();
        assert!(["WRONG_KEY", "STORE_CORRUPT"].contains(&code), "{code}");
    }
}

#[test]
fn a_hostile_record_cannot_ask_for_more_work_than_the_bounds() {
    let bytes = phrase(b"right").wrap(&data_key(), b"store", &mut rng()).unwrap().encode();
    // Parameters start after version, kind and their length: memory, passes, lanes.
    let costs = [(6, limits::MAX_MEMORY_KIB + 1), (6, u32::MAX), (6, 7), (10, limits::MAX_ITERATIONS + 1)];
    for (at, cost) in costs.into_iter().chain([(10, 0), (14, 0), (14, limits::MAX_PARALLELISM + 1)]) {
        let mut greedy = bytes.clone();
        greedy[at..at + 4].copy_from_slice(&cost.to_be_bytes());
        let wrapped = WrappedKey::decode(&checksummed(greedy)).unwrap();
        assert_eq!(phrase(b"right").unwrap(&wrapped, b"store").unwrap_err().code(), "STORE_CORRUPT");
    }
    let base = || Passphrase::new(SecretBytes::from_slice(b"x")).unwrap();
    let most =
        PassphraseCost { memory_kib: limits::MAX_MEMORY_KIB, iterations: limits::MAX_ITERATIONS, ..CHEAP };
    base().with_cost(most).unwrap();
    let over = PassphraseCost { memory_kib: limits::MAX_MEMORY_KIB + 1, ..CHEAP };
    assert_eq!(base().with_cost(over).unwrap_err().code(), "KEY_MALFORMED");
}

#[test]
fn passphrases_are_1_to_4096_bytes() {
    let code = |length| Passphrase::new(vec![b'x'; length].into()).map_err(|error| error.code()).map(|_| ());
    assert_eq!(code(0), Err("KEY_MALFORMED"));
    assert_eq!(code(1), Ok(()));
    assert_eq!(code(limits::MAX_PASSPHRASE), Ok(()));
    assert_eq!(code(limits::MAX_PASSPHRASE + 1), Err("KEY_MALFORMED"));
}

#[test]
fn a_keyfile_is_private_is_never_overwritten_and_leaves_no_draft() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    Keyfile::create(&path, &mut rng()).unwrap();
    let made = std::fs::read(&path).unwrap();
    assert_eq!(made.len(), 32);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let again = Keyfile::create(&path, &mut DeterministicRandom::from_label("other")).unwrap_err();
    assert_eq!(again.code(), "KEY_EXISTS");
    assert_eq!(std::fs::read(&path).unwrap(), made);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    let nowhere = Keyfile::create(&directory.path().join("no/key"), &mut rng()).unwrap_err();
    assert_eq!(nowhere.code(), "KEY_MISSING");
}

#[test]
fn a_keyfile_that_others_may_touch_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key");
    Keyfile::create(&path, &mut rng()).unwrap();
    for (mode, allowed) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o620, false)] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        match Keyfile::read(&path) {
            Ok(_) => assert!(allowed, "{mode:o}"),
            Err(error) => {
                assert!(!allowed, "{mode:o}");
                assert_eq!(error.code(), "KEY_PERMISSIONS");
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
    }
    assert_eq!(Keyfile::read(directory.path()).unwrap_err().code(), "KEY_MALFORMED");
    assert_eq!(Keyfile::read(&directory.path().join("none")).unwrap_err().code(), "KEY_MISSING");
}

#[test]
fn a_key_in_the_keyring_is_never_overwritten_and_checked_when_read() {
    let ring = MemoryKeyring::default();
    assert_eq!(OsKeyring::read(&ring, &item()).unwrap_err().code(), "KEY_MISSING");
    OsKeyring::create(&ring, &item(), &mut rng()).unwrap();
    assert_eq!(OsKeyring::create(&ring, &item(), &mut rng()).unwrap_err().code(), "KEY_EXISTS");
    ring.save(&item(), &SecretBytes::from_slice(b"short")).unwrap();
    assert_eq!(OsKeyring::read(&ring, &item()).unwrap_err().code(), "KEY_MALFORMED");
    ring.remove(&item()).unwrap();
    assert_eq!(OsKeyring::read(&ring, &item()).unwrap_err().code(), "KEY_MISSING");
}

#[test]
fn a_key_that_was_made_and_tried_is_removed_all_the_same_when_the_store_has_anothers() {
    let ring = Arc::new(MemoryKeyring::default());
    let holder = || NamedKeyring::new(Arc::clone(&ring) as Arc<dyn SecretService>, item());
    let (first, second) = (holder(), holder());
    let wrap = |holder: &NamedKeyring| holder.wrap(&data_key(), b"store", &mut SystemRandom::new()).unwrap();
    let (ours, theirs) = (wrap(&first), wrap(&second));
    for (holder, wrapped) in [(&first, &ours), (&second, &theirs)] {
        assert!(holder.unwrap(wrapped, b"store").unwrap() == data_key());
    }
    assert!(first.unwrap(&theirs, b"store").unwrap() == data_key());
    assert_eq!(holder().unwrap(&ours, b"store").unwrap_err().code(), "KEY_MISSING");
    assert!(holder().unwrap(&theirs, b"store").unwrap() == data_key());
}

#[test]
fn nothing_that_holds_a_secret_shows_it() {
    let shown = format!("{:?}", phrase(b"hunter2"));
    assert!(!shown.contains("hunter2") && !shown.contains("104, 117"), "{shown}");
    let directory = tempfile::tempdir().unwrap();
    let key = Keyfile::create(&directory.path().join("key"), &mut rng()).unwrap();
    assert!(format!("{key:?}").contains("[redacted]"));
}

/// Bytes that look like white space or text are bytes all the same: a loader that trims them loses one key in twenty.
#[test]
fn two_thousand_of_two_thousand_generated_keyfiles_load() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = rng();
    let mut with_space_at_an_end = 0;
    for number in 0..2_000 {
        let path = directory.path().join(number.to_string());
        let made = Keyfile::create(&path, &mut rng).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        with_space_at_an_end += u32::from(bytes[0].is_ascii_whitespace() || bytes[31].is_ascii_whitespace());
        let wrapped = made.wrap(&data_key(), b"c", &mut rng).unwrap();
        let read = Keyfile::read(&path).unwrap();
        assert!(read.unwrap(&wrapped, b"c").unwrap() == data_key(), "{number}");
    }
    assert!(
        with_space_at_an_end > 40,
        "{with_space_at_an_end}: the sample holds what a loader could get wrong"
    );
}
