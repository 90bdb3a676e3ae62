//! Memories of the Python program memory-vault are taken over. The fixtures are made by `fixtures/python-vault/make.py`.

use std::path::PathBuf;

use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes};
use stvor_vault::import::python_vault::{Key, read_backup, read_database};
use stvor_vault::{Caller, Level, Trust};

use crate::world::World;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/python-vault").join(name)
}

fn keyfile() -> Key {
    Key::Keyfile(Secret::from_slice(&std::fs::read(fixture("static-keyfile.key")).unwrap()).unwrap())
}

#[test]
fn memories_under_a_keyfile_come_over_with_what_was_known_of_them() {
    let old = read_database(&fixture("vault.db")).unwrap();
    assert_eq!(old.len(), 4);
    let memory = old[0].open(&keyfile(), "old").unwrap();
    assert_eq!((memory.content.expose(), memory.level), (&b"tea at five"[..], Level::Private));
    assert_eq!(memory.metadata["topic"], "habits");
    assert_eq!(memory.metadata["count"], "3");
    assert_eq!(memory.metadata["memory-vault.created-at"], "2026-02-20T08:00:00+00:00");
    assert_eq!(memory.intents, ["tea", "time"]);
    assert_eq!(memory.cooldown.unwrap().as_secs(), 30);
    assert_eq!(memory.trust, Trust::Owner);
    assert_eq!(old[1].open(&keyfile(), "old").unwrap().intents, ["greeting"]);
    assert!(old[2].tombstoned && !old[1].tombstoned);

    let world = World::new();
    let vault = world.open();
    let id = vault.store(&Caller::Owner, memory).unwrap();
    assert_eq!(vault.recall(&Caller::Owner, id, "").unwrap().content.expose(), b"tea at five");
}

#[test]
fn another_key_and_a_changed_row_are_told_apart() {
    let old = read_database(&fixture("vault.db")).unwrap();
    let wrong = Key::Keyfile(Secret::new([1; 32]));
    assert_eq!(old[0].open(&wrong, "old").unwrap_err().code(), "WRONG_KEY");
    let mut changed = old[0].clone();
    changed.content_hash = old[1].content_hash.clone();
    assert_eq!(changed.open(&keyfile(), "old").unwrap_err().code(), "VAULT_TAMPERED");
    let mut changed = old[0].clone();
    changed.classification = 6;
    assert_eq!(changed.open(&keyfile(), "old").unwrap_err().code(), "VAULT_BAD_REQUEST");
    let phrase = Key::Passphrase(SecretBytes::from_slice(b"old passphrase"));
    assert_eq!(old[0].open(&phrase, "old").unwrap_err().code(), "VAULT_BAD_REQUEST", "it has no salt");
    for other in ["make.py", "backup.json"] {
        assert_eq!(read_database(&fixture(other)).unwrap_err().code(), "VAULT_BAD_REQUEST");
    }
    let file = std::fs::read(fixture("make.py")).unwrap();
    let refused = read_backup(&file, &SecretBytes::from_slice(b"x")).unwrap_err();
    assert_eq!(refused.code(), "VAULT_BAD_REQUEST");
}

/// One gigabyte and some seconds for each of the two derivations: the format stores no smaller cost.
#[test]
fn passphrases_and_backups_open_at_the_cost_of_the_old_program() {
    let old = read_database(&fixture("vault.db")).unwrap();
    let phrase = Key::Passphrase(SecretBytes::from_slice(b"old passphrase"));
    assert_eq!(old[3].open(&phrase, "old").unwrap().content.expose(), b"behind a passphrase");

    let file = std::fs::read(fixture("backup.json")).unwrap();
    let backup = read_backup(&file, &SecretBytes::from_slice(b"backup passphrase")).unwrap();
    assert_eq!(backup.len(), 2);
    assert_eq!(backup[0].open(&keyfile(), "old").unwrap().content.expose(), b"tea at five");
    assert_eq!(backup[1].open(&keyfile(), "old").unwrap_err().code(), "VAULT_BAD_REQUEST", "left out there");
}
