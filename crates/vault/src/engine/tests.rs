//! What can not be tried from outside.

use std::path::Path;

use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_keys::{Passphrase, PassphraseCost};
use stvor_tlog::{Checkpoint, Hash, Signer};

use super::agents::Caller;
use crate::backup::{BackupKind, BackupRecord, FORMAT, Manifest};
use crate::keys::NewKeys;
use crate::level::Level;
use crate::memory::{MemoryId, NewMemory};
use crate::storage::Table;
use crate::{Options, Vault, limits};

fn owner() -> Passphrase {
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    Passphrase::new(SecretBytes::from_slice(b"correct horse")).unwrap().with_cost(cost).unwrap()
}

fn vault(directory: &Path) -> Vault {
    let path = directory.join("vault");
    if !path.exists() {
        Vault::create(&path, &NewKeys { owner: &owner(), vaulted: None, origin: "example.com/vault" })
            .unwrap();
    }
    let vault = Vault::open(&path, Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    vault
}

#[test]
fn of_backups_the_oldest_is_dropped_first() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let record = |number: usize| BackupRecord {
        manifest: Manifest {
            format: FORMAT,
            id: MemoryId::from_bytes([1; 16]),
            kind: BackupKind::Full,
            parent: None,
            made: number as u64,
            origin: "example.com/vault".into(),
            size: 1,
            root: String::new(),
            memories: 0,
            description: String::new(),
        },
        path: number.to_string().into(),
        problems: 0,
        newest: None,
    };
    let almost: Vec<_> = (0..limits::MAX_BACKUPS - 1).map(record).collect();
    vault.ask(move |engine| engine.put_sealed_slot("backups", &almost)).wait().unwrap();
    let remember = |number: usize| {
        let one = record(number);
        vault.ask(move |engine| engine.remember_backup(one)).wait().unwrap();
        let all = vault.backups().unwrap();
        (all.len(), all[0].manifest.made)
    };
    assert_eq!(remember(limits::MAX_BACKUPS - 1), (limits::MAX_BACKUPS, 0));
    assert_eq!(remember(limits::MAX_BACKUPS), (limits::MAX_BACKUPS, 1));
    // One that this version does not restore is no newest backup, and the doctor is told.
    let told = vault.status().unwrap();
    assert_eq!(told.newest_backup, Some(limits::MAX_BACKUPS as u64));
    assert_eq!(told.backups_of_other_formats, 0);
    let mut old = record(limits::MAX_BACKUPS + 1);
    old.manifest.format = FORMAT - 1;
    vault.ask(move |engine| engine.remember_backup(old)).wait().unwrap();
    let told = vault.status().unwrap();
    assert_eq!(told.newest_backup, Some(limits::MAX_BACKUPS as u64));
    assert_eq!(told.backups_of_other_formats, 1);
}

#[test]
fn a_key_that_signed_the_log_before_does_not_say_that_it_went_on() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let seed = vault.ask(|engine| Ok(engine.held()?.base.signer.seed())).wait().unwrap();
    let origin = "example.com/vault";
    let old = Signer::from_seed(origin, &seed).unwrap();
    let size = vault.rotate_signing_key().and_then(|()| vault.status()).unwrap().events;
    vault.store(&Caller::Owner, NewMemory::new(b"later", Level::Working, "home")).unwrap();
    drop(vault);
    let file = directory.path().join("vault/checkpoints");
    let before = std::fs::read_to_string(&file).unwrap();
    let says = |before: &str, size: u64| {
        let note = Checkpoint::new(origin, size, Hash::leaf(b"forged")).unwrap().sign(&[&old]).unwrap();
        std::fs::write(&file, format!("{before}{note}\n")).unwrap();
        let vault = Vault::open(&directory.path().join("vault"), Options::default()).unwrap();
        vault.unlock_with(&owner())
    };
    says(&before, size + 1_000).unwrap();
    // What it signed while it was the one that signs still counts.
    let anew = says("", size - 2).unwrap_err();
    assert!(anew.to_string().contains("written anew"), "{anew}");
}

/// Vaults of before have a hash of the header only; the log knows the rest.
#[test]
fn a_row_of_which_only_the_header_was_kept_is_held_against_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let caller = &Caller::Owner;
    let ids = ["one", "two"]
        .map(|text| vault.store(caller, NewMemory::new(text.as_bytes(), Level::Working, "home")).unwrap());
    vault
        .ask(move |engine| {
            for id in ids {
                let row = engine.database.memory(&id)?.unwrap();
                engine.database.put_record(Table::Fresh, id.as_bytes(), &sha256(&[&row.header]))?;
            }
            engine.database.run(&format!("UPDATE memory SET content = zeroblob(9) WHERE id = x'{}'", ids[1]))
        })
        .wait()
        .unwrap();
    vault.recall(caller, ids[0], "").unwrap();
    vault.set_intent(caller, ids[0], ("travel", true)).unwrap();
    let refused = vault.set_intent(caller, ids[1], ("travel", true)).unwrap_err();
    assert!(refused.to_string().contains("forget it, or restore"), "{refused}");
    vault.forget(caller, ids[1], "").unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
}
