//! A new root key, and what was sealed, shared, damaged or half done under the old one.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, setrlimit};
use stvor_base::ErrorCode as _;
use stvor_keys::recipients::{Identity, Opening, Sealing};
use stvor_keys::shares::Share;
use stvor_vault::backup::{BackupKind, BackupRecord, NewBackup, Restore, Restored, restore};
use stvor_vault::recovery::escrow::{Keeper, NewEscrow, NewSecrets, recover};
use stvor_vault::{
    Caller, Level, MemoryId, Mode, NewMemory, Options, Refusal, Vault, VaultError, unwrap_root,
    unwrap_vaulted,
};

use crate::recovery::open_file;
use crate::world::{World, agent, owner, passphrase, refusal, second};

const OWNER: &Caller = &Caller::Owner;
/// Which vault the child works on.
const PATH: &str = "STVOR_VAULT_ROTATION_PATH";
/// By how many bytes its files may grow.
const ROOM: &str = "STVOR_VAULT_ROTATION_ROOM";

fn store(vault: &Vault, text: &str, level: Level) -> MemoryId {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), level, "home")).unwrap()
}

fn says(vault: &Vault, id: MemoryId) -> String {
    String::from_utf8(vault.recall(OWNER, id, "").unwrap().content.expose().to_vec()).unwrap()
}

fn sql(world: &World, statement: &str) {
    let database = Connection::open(world.path().join("vault.db")).unwrap();
    assert!(database.execute(statement, []).unwrap() > 0, "{statement} changes something");
}

fn backup(
    vault: &Vault,
    (world, identity): (&World, &Identity),
    kind: BackupKind,
) -> Result<BackupRecord, VaultError> {
    let sealing = Sealing::to(vec![identity.recipient()]);
    let directory = world.directory.path().join("backups");
    vault.backup(&NewBackup { directory, kind, sealing, description: String::new() })
}

fn bring_back(
    (world, identity): (&World, &Identity),
    name: &str,
    files: &[&BackupRecord],
) -> (Restored, Vault) {
    let target = world.directory.path().join(name);
    let files: Vec<PathBuf> = files.iter().map(|record| record.path.clone()).collect();
    let opening = Opening::with(Identity::parse_file(&identity.to_secret_line()).unwrap());
    let secret = owner();
    let mut wanted = Restore::new(&target, &files, (&opening, &secret));
    wanted.clock = world.clock.clone();
    let restored = restore(&wanted).unwrap();
    let vault = Vault::open(&target, world.options()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
    assert_eq!(vault.verify_content().unwrap().problems, []);
    (restored, vault)
}

#[test]
fn backups_from_before_and_after_a_new_root_key_come_back_with_all_that_belongs_to_them() {
    let world = World::new();
    let vault = world.open();
    let identity = Identity::generate();
    let with = (&world, &identity);
    let pausing = NewMemory {
        cooldown: Some(Duration::from_secs(600)),
        ..NewMemory::new(b"pauses", Level::Working, "home")
    };
    let pausing = vault.store(OWNER, pausing).unwrap();
    let (kept, gone) = (store(&vault, "kept", Level::Private), store(&vault, "gone", Level::Working));
    let full = backup(&vault, with, BackupKind::Full).unwrap();
    let early = store(&vault, "early", Level::Private);
    let more = backup(&vault, with, BackupKind::Incremental).unwrap();
    assert_eq!(says(&vault, pausing), "pauses");

    vault.rotate_root(&owner()).unwrap();
    let pauses = |vault: &Vault| {
        let refused = refusal(vault.recall(OWNER, pausing, ""));
        assert!(matches!(refused, Refusal::Cooldown { .. }), "a new key ends no pause: {refused:?}");
    };
    pauses(&vault);
    let refused = backup(&vault, with, BackupKind::Incremental).unwrap_err();
    assert_eq!(refused.code(), "VAULT_BAD_REQUEST", "it can not build on the old key");
    let anew = backup(&vault, with, BackupKind::Full).unwrap();
    let late = store(&vault, "late", Level::Private);
    vault.set_intent(OWNER, kept, ("tea", true)).unwrap();
    vault.forget(OWNER, gone, "").unwrap();
    let after = backup(&vault, with, BackupKind::Incremental).unwrap();
    drop(vault);

    // Of today.
    let (restored, vault) = bring_back(with, "of-today", &[&anew, &after]);
    assert_eq!((restored.lost_events, restored.ended), (0, 0));
    for (id, text) in [(kept, "kept"), (early, "early"), (late, "late")] {
        assert_eq!(says(&vault, id), text);
    }
    assert_eq!(vault.by_intent(OWNER, "tea").unwrap().len(), 1);
    pauses(&vault);
    vault.rotate_root(&owner()).unwrap();
    assert_eq!(says(&vault, late), "late", "and its key can be changed again");
    drop(vault);
    // Of then, without what was forgotten since: the list says so under either key.
    let (restored, vault) = bring_back(with, "of-then", &[&full, &more]);
    assert_eq!((restored.lost_events, restored.ended), (0, 1));
    assert_eq!((says(&vault, kept), says(&vault, early)), ("kept".into(), "early".into()));
    assert!(matches!(refusal(vault.recall(OWNER, gone, "")), Refusal::Gone(_)));
}

#[test]
fn shares_of_the_old_root_key_open_nothing_and_are_not_counted_any_more() {
    let world = World::new();
    let vault = world.open();
    let id = store(&vault, "kept", Level::Private);
    let identities = [Identity::generate(), Identity::generate()];
    let keeper =
        |(identity, name): (&Identity, &str)| Keeper { name: name.into(), recipient: identity.recipient() };
    let keepers: Vec<_> = identities.iter().zip(["ada", "bob"]).map(keeper).collect();
    let make = |vault: &Vault, directory: &str| {
        let directory = world.directory.path().join(directory);
        let new = NewEscrow { keepers: &keepers, needed: 2, label: "drill", directory: &directory };
        let records = vault.records().unwrap();
        let root = unwrap_root(&records.root, &owner()).unwrap();
        let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
        let files = vault.escrow((&root, Some(&vaulted)), &new).unwrap().1;
        let shares = files.iter().zip(&identities);
        shares.map(|(file, key)| Share::parse(&open_file(file, key)).unwrap()).collect::<Vec<Share>>()
    };
    let old = make(&vault, "before");
    vault.rotate_root(&owner()).unwrap();
    assert_eq!(vault.escrows().unwrap(), []);
    let new = make(&vault, "after");
    assert_eq!(vault.escrows().unwrap().len(), 1);
    drop(vault);
    let secrets = || NewSecrets { owner: passphrase("a new one"), vaulted: None, tokens: vec![] };
    let refused = recover(&world.path(), &old, (secrets(), world.options())).unwrap_err();
    assert_eq!(refused.code(), "WRONG_KEY");
    let vault = recover(&world.path(), &new, (secrets(), world.options())).unwrap();
    assert_eq!(says(&vault, id), "kept");
}

#[test]
fn what_was_damaged_before_does_not_become_sound_by_a_new_root_key() {
    let world = World::new();
    let vault = world.open();
    let ids = [1, 2, 3].map(|number| store(&vault, &format!("content {number}"), Level::Private));
    let event = vault.status().unwrap().events - 1;
    says(&vault, ids[2]);
    drop(vault);
    let flip = "CAST(substr(content, 1, length(content) - 1) || x'00' AS BLOB)";
    sql(&world, &format!("UPDATE memory SET content = {flip} WHERE id = x'{}'", ids[0]));
    sql(&world, &format!("UPDATE event SET sealed = x'00' WHERE seq = {event}"));
    let vault = world.open();
    let named = |vault: &Vault| {
        let problems = vault.verify().unwrap().problems;
        let places: Vec<_> = problems.into_iter().map(|problem| problem.place).collect();
        assert!(places.contains(&format!("the memory {}", ids[0])), "{places:?}");
        assert!(places.contains(&format!("the event {event}")), "{places:?}");
    };
    named(&vault);
    assert_eq!(vault.rotate_root(&owner()).unwrap(), 2);
    named(&vault);
    assert_eq!(vault.recall(OWNER, ids[0], "").unwrap_err().code(), "VAULT_TAMPERED");
    assert_eq!((says(&vault, ids[1]), says(&vault, ids[2])), ("content 2".into(), "content 3".into()));
}

#[test]
fn a_root_key_is_not_changed_over_records_that_are_doubted() {
    let world = World::new();
    let vault = world.open();
    agent(&vault, "helper", Level::Private);
    drop(vault);
    sql(&world, "DELETE FROM agent");
    let vault = world.open();
    assert_eq!(vault.rotate_root(&owner()).unwrap_err().code(), "VAULT_TAMPERED");
    vault.leave_lockdown(&owner()).unwrap();
    vault.rotate_root(&owner()).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
}

/// What the child does: it changes the root key while the disk is full, and says how that ended and in what state the vault is.
#[test]
fn child_that_changes_the_root_key_on_a_full_disk() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let (path, more) = (Path::new(&path), std::env::var(ROOM).unwrap().parse::<u64>().unwrap());
    let vault = Vault::open(path, Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let room = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    let journal = std::fs::metadata(path.join("vault.db-wal")).unwrap().len();
    room(Some(journal + more));
    let code = vault.rotate_root(&owner()).map_or_else(|error| error.code(), |_| "OK");
    room(None);
    let mode = vault.status().unwrap().mode;
    if mode == Mode::Cold {
        vault.unlock_with(&owner()).unwrap();
    }
    assert_eq!(vault.verify().unwrap().problems, []);
    println!("\nchanged {code} {mode:?}");
}

#[test]
fn a_root_key_that_does_not_fit_on_the_disk_is_not_changed_at_all() {
    let world = World::new();
    let vault = world.open();
    let ids: Vec<_> = (0..60).map(|number| store(&vault, &format!("{number}"), Level::Private)).collect();
    drop(vault);
    let mut ends = Vec::new();
    for more in [0, 30_000, 120_000, 50_000_000_u64] {
        let run = "trap '' XFSZ; exec \"$0\" --exact \
                   rotation::child_that_changes_the_root_key_on_a_full_disk --nocapture";
        let child = Command::new("sh")
            .args(["-c", run])
            .arg(std::env::current_exe().unwrap())
            .env(PATH, world.path())
            .env(ROOM, more.to_string())
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8(child.stdout).unwrap();
        let said = text.lines().find_map(|line| line.split_once("changed ")).map(|(_, end)| end.to_owned());
        ends.push(said.unwrap_or_else(|| panic!("{text} {}", String::from_utf8_lossy(&child.stderr))));
        let vault = Vault::open(&world.path(), Options::default()).unwrap();
        vault.unlock_with(&owner()).unwrap();
        assert_eq!(vault.verify().unwrap().problems, []);
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(says(&vault, *id), number.to_string());
        }
    }
    let full = "VAULT_LOG_UNAVAILABLE Cold";
    assert_eq!(ends, [full, full, full, "OK Open"]);
}
