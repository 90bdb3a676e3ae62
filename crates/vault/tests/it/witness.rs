//! A vault and its witness: what a rewrite of everything on the owner's machine leaves to be seen.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use stvor_base::ErrorCode;
use stvor_crypto::SystemRandom;
use stvor_tlog::Verifier;
use stvor_tlog::witness::{CosignatureVerifier, Cosigner};
use stvor_vault::witness::WitnessService;
use stvor_vault::{Caller, Level, NewMemory, Vault};

use crate::world::World;

const OWNER: &Caller = &Caller::Owner;

fn store(vault: &Vault, text: &str) {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), Level::Working, "home")).unwrap();
}

/// Starts a witness of the vault's log.
fn witness(world: &World, vault: &Vault) -> (PathBuf, CosignatureVerifier) {
    let cosigner = Cosigner::generate("witness.example/1", &mut SystemRandom::new()).unwrap();
    let mut service = WitnessService::open(&world.directory.path().join("witness"), cosigner).unwrap();
    let status = vault.status().unwrap();
    service.trust("example.com/vault", Verifier::parse(&status.verifier).unwrap()).unwrap();
    let verifier = service.verifier().clone();
    let socket = world.directory.path().join("witness.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let clock = world.clock.clone();
    std::thread::spawn(move || service.serve(&listener, &*clock));
    (socket, verifier)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_log_that_grows_is_signed_and_verifies() {
    let world = World::new();
    let vault = world.open();
    let (socket, key) = witness(&world, &vault);
    assert!(vault.verify_with_witness(&socket, &key).is_err(), "it has not signed anything");
    for number in 0..3 {
        store(&vault, &format!("memory {number}"));
        let (size, _) = vault.ask_witness(&socket, &key).unwrap();
        assert_eq!(vault.verify_with_witness(&socket, &key).unwrap().0, size);
    }
    assert!(world.path().join("witnessed").is_file());
    store(&vault, "more");
    vault.verify_with_witness(&socket, &key).unwrap();
}

#[test]
fn a_vault_that_was_set_back_with_every_local_copy_is_found() {
    let world = World::new();
    let vault = world.open();
    store(&vault, "old");
    let (socket, key) = witness(&world, &vault);
    vault.ask_witness(&socket, &key).unwrap();
    drop(vault);
    let before = world.directory.path().join("before");
    copy(&world.path(), &before);

    let vault = world.open();
    store(&vault, "what somebody wants to undo");
    vault.ask_witness(&socket, &key).unwrap();
    drop(vault);
    // Database, checkpoints, everything on this machine is set back.
    std::fs::remove_dir_all(world.path()).unwrap();
    copy(&before, &world.path());
    let vault = world.open();
    assert_eq!(vault.verify().unwrap().problems, [], "nothing here shows it");
    assert_eq!(vault.verify_with_witness(&socket, &key).unwrap_err().code(), "VAULT_TAMPERED");
    assert_eq!(vault.ask_witness(&socket, &key).unwrap_err().code(), "VAULT_TAMPERED");

    // Somebody with the keys lets it grow past what the witness saw: another history.
    for number in 0..10 {
        store(&vault, &format!("other {number}"));
    }
    assert_eq!(vault.verify().unwrap().problems, []);
    assert_eq!(vault.verify_with_witness(&socket, &key).unwrap_err().code(), "VAULT_TAMPERED");
    assert_eq!(vault.ask_witness(&socket, &key).unwrap_err().code(), "VAULT_TAMPERED");
}

#[test]
fn a_vault_that_was_set_back_proves_no_consistency_with_what_it_signed_before() {
    let world = World::new();
    let vault = world.open();
    let newest = |vault: &Vault| vault.prove(0).unwrap().1.checkpoint;
    store(&vault, "old");
    let old = newest(&vault);
    drop(vault);
    let before = world.directory.path().join("before");
    copy(&world.path(), &before);
    let vault = world.open();
    store(&vault, "what somebody wants to undo");
    let new = newest(&vault);
    let proof = vault.prove_consistency(old.clone(), Some(new.clone())).unwrap();
    assert_eq!(proof.note, new);
    let key = [Verifier::parse(&vault.status().unwrap().verifier).unwrap()];
    proof.verify(&old, "example.com/vault", &key).unwrap();
    drop(vault);
    std::fs::remove_dir_all(world.path()).unwrap();
    copy(&before, &world.path());
    let vault = world.open();
    let both = vault.prove_consistency(old.clone(), Some(new.clone())).unwrap_err();
    assert!(both.to_string().contains("it was cut"), "{both}");
    for number in 0..10 {
        store(&vault, &format!("other {number}"));
    }
    let refused = vault.prove_consistency(new, None).unwrap_err();
    assert!(refused.code() == "VAULT_TAMPERED" && refused.to_string().contains("written anew"), "{refused}");
    vault.prove_consistency(old, None).unwrap();
}

#[test]
fn a_witness_signs_no_log_that_it_was_not_told_of() {
    let world = World::new();
    let vault = world.open();
    let (socket, key) = witness(&world, &vault);
    let other = World::new();
    let stranger = other.open();
    assert_eq!(stranger.ask_witness(&socket, &key).unwrap_err().code(), "LOG_UNTRUSTED");
    vault.ask_witness(&socket, &key).unwrap();
}

#[test]
fn every_event_can_be_proved_from_an_archive_when_the_vault_is_gone() {
    use stvor_keys::recipients::{Identity, Opening, Sealing};
    use stvor_vault::archive::Archive;
    let world = World::new();
    let vault = world.open();
    for number in 0..20 {
        store(&vault, &format!("unmistakable {number}"));
    }
    let keys = [Verifier::parse(&vault.status().unwrap().verifier).unwrap()];
    let identity = Identity::generate();
    let path = world.directory.path().join("log.age");
    let count = vault.archive(&path, &Sealing::to(vec![identity.recipient()]), false).unwrap();
    assert_eq!(
        vault.archive(&path, &Sealing::to(vec![identity.recipient()]), false).unwrap_err().code(),
        "VAULT_EXISTS"
    );
    drop(vault);
    std::fs::remove_dir_all(world.path()).unwrap();

    let opening = Opening::with(vec![identity]);
    let archive = Archive::open(&path, &opening, ("example.com/vault", &keys)).unwrap();
    assert_eq!(archive.checkpoint().size(), count);
    for event in 0..count {
        let (entry, proof) = archive.prove(event).unwrap();
        proof.verify(entry, "example.com/vault", &keys).unwrap();
        assert!(!String::from_utf8_lossy(entry).contains("unmistakable"));
    }
    assert!(archive.prove(count).is_err());
    assert!(Archive::open(&path, &opening, ("example.com/other", &keys)).is_err());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(Archive::open(&path, &opening, ("example.com/vault", &keys)).is_err());
}
