//! Backups, restores, what they keep and what they never bring back.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, setrlimit};
use stvor_base::ErrorCode;
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::{Identity, Opening, Sealing};
use stvor_vault::backup::{BackupKind, BackupRecord, NewBackup, Restore, Restored, read_manifest, restore};
use stvor_vault::recovery::switch::{Heir, NewSwitch};
use stvor_vault::{Agent, Caller, Level, MemoryId, NewMemory, Options, Refusal, Vault, VaultError, limits};

use crate::world::{World, agent, owner, passphrase, refusal};

const OWNER: &Caller = &Caller::Owner;

/// The key for backups of a world. It is in a file, for the process that restores too.
fn identity(directory: &Path) -> Identity {
    let file = directory.join("identity");
    if !file.exists() {
        std::fs::write(&file, Identity::generate().to_secret_line().expose()).unwrap();
    }
    let text = SecretBytes::from(std::fs::read(file).unwrap());
    Identity::parse_file(&text).unwrap().remove(0)
}

fn backup(vault: &Vault, world: &World, kind: BackupKind) -> BackupRecord {
    let sealing = Sealing::to(vec![identity(world.directory.path()).recipient()]);
    let directory = world.directory.path().join("backups");
    vault.backup(&NewBackup { directory, kind, sealing, description: "drill".into() }).unwrap()
}

fn bring_back(world: &World, target: &Path, files: &[PathBuf], loss: bool) -> Result<Restored, VaultError> {
    let opening = Opening::with(vec![identity(world.directory.path())]);
    let owner = owner();
    let mut wanted = Restore::new(target, files, (&opening, &owner));
    wanted.clock = world.clock.clone();
    wanted.accept_loss = loss;
    restore(&wanted)
}

fn store(vault: &Vault, text: &str, level: Level) -> MemoryId {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), level, "home")).unwrap()
}

fn says(vault: &Vault, id: MemoryId) -> String {
    String::from_utf8(vault.recall(OWNER, id, "").unwrap().content.expose().to_vec()).unwrap()
}

fn unlocked(world: &World, path: &Path) -> Vault {
    let vault = Vault::open(path, world.options()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    vault
}

#[test]
fn a_full_backup_and_those_after_it_bring_everything_back() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Private);
    let kept = store(&vault, "kept", Level::Private);
    let (closed, gone) = (store(&vault, "closed", Level::Working), store(&vault, "gone", Level::Working));
    let full = backup(&vault, &world, BackupKind::Full);
    assert_eq!((full.manifest.memories, full.manifest.parent.is_none()), (3, true));

    vault.tombstone(OWNER, closed, "over").unwrap();
    vault.set_intent(OWNER, kept, ("tea", true)).unwrap();
    let second_memory = store(&vault, "second", Level::Sealed);
    let one = backup(&vault, &world, BackupKind::Incremental);
    assert_eq!(one.manifest.memories, 3, "changed or new ones only");
    vault.forget(OWNER, gone, "not true").unwrap();
    let third = vault.store(&caller, NewMemory::new(b"third", Level::Working, "home")).unwrap();
    let two = backup(&vault, &world, BackupKind::Incremental);
    assert_eq!(two.manifest.memories, 2);
    assert_eq!(vault.backups().unwrap(), [full.clone(), one.clone(), two.clone()]);
    let events = two.manifest.size;
    drop(vault);

    // The machine is gone; the backups are not.
    let target = world.directory.path().join("elsewhere");
    let files = [full.path, one.path, two.path];
    let restored = bring_back(&world, &target, &files, false).unwrap();
    assert_eq!((restored.memories, restored.lost_events, restored.before), (5, 0, None));
    let vault = unlocked(&world, &target);
    assert_eq!(vault.verify().unwrap().problems, []);
    assert_eq!((says(&vault, kept), says(&vault, third)), ("kept".into(), "third".into()));
    assert_eq!(refusal(vault.recall(OWNER, closed, "")), Refusal::Gone("it was tombstoned"));
    assert_eq!(refusal(vault.recall(OWNER, gone, "")), Refusal::Gone("it was forgotten"));
    assert_eq!(vault.by_intent(OWNER, "tea").unwrap().len(), 1);
    assert_eq!(vault.agents().unwrap().len(), 1, "agents are part of it");
    assert!(vault.records().unwrap().vaulted.is_some(), "so is the key of level 4");
    let header =
        vault.list(OWNER, "home", None).unwrap().0.into_iter().find(|h| h.id == second_memory).unwrap();
    assert_eq!(header.level, Level::Sealed);
    // Events of before the backup can be proved from the restored log.
    for event in [0, events / 2, events - 1] {
        let (entry, proof) = vault.prove(event).unwrap();
        let verifier = vault.status().unwrap().verifier.parse_verifier();
        proof.verify(&entry, "example.com/vault", &[verifier]).unwrap();
    }
    store(&vault, "life goes on", Level::Private);
    assert_eq!(vault.verify().unwrap().problems, []);
}

/// Reads the verifier that a status names.
trait Named {
    fn parse_verifier(&self) -> stvor_tlog::Verifier;
}

impl Named for String {
    fn parse_verifier(&self) -> stvor_tlog::Verifier {
        stvor_tlog::Verifier::parse(self).unwrap()
    }
}

#[test]
fn a_restore_says_that_the_dead_man_switch_is_armed() {
    let world = World::new();
    let vault = world.open();
    let calm = backup(&vault, &world, BackupKind::Full);
    let (memory, recipient) =
        (store(&vault, "yours", Level::Private), identity(world.directory.path()).recipient());
    let heirs = [Heir { name: "ada".into(), recipient, memories: vec![memory] }];
    let directory = world.directory.path().join("watched");
    let every = limits::MIN_SILENCE;
    vault.arm_switch(&NewSwitch { every, heirs: &heirs, directory: &directory }).unwrap();
    let armed = backup(&vault, &world, BackupKind::Full);
    vault.disarm_switch().unwrap();
    let disarmed = backup(&vault, &world, BackupKind::Full);
    drop(vault);
    for (at, (file, wanted)) in [(calm, false), (armed, true), (disarmed, false)].into_iter().enumerate() {
        let target = world.directory.path().join(format!("target-{at}"));
        assert_eq!(bring_back(&world, &target, &[file.path], true).unwrap().armed, wanted, "{at}");
    }
}

#[test]
fn an_agent_that_was_removed_after_the_backup_stays_out_or_is_named() {
    let world = World::new();
    let vault = world.open();
    let enrol = |name: &str| vault.enrol(Agent::new(name, &["home"], Level::Working)).unwrap();
    let (good, bad) = (enrol("good"), enrol("bad"));
    let full = backup(&vault, &world, BackupKind::Full);
    vault.remove_agent("bad").unwrap();
    drop(vault);
    // Where nothing else is left, the owner is told who can enter again.
    let target = world.directory.path().join("elsewhere");
    let restored = bring_back(&world, &target, std::slice::from_ref(&full.path), false).unwrap();
    assert_eq!(restored.agents.len(), 2);
    // Where a list of what ended is left, who was removed is out.
    let list = world.directory.path().join("backups/forgotten");
    std::fs::copy(world.path().join("forgotten"), &list).unwrap();
    let target = world.directory.path().join("elsewhere too");
    let restored = bring_back(&world, &target, std::slice::from_ref(&full.path), false).unwrap();
    assert_eq!(restored.agents, ["good"]);
    std::fs::remove_file(&list).unwrap();
    // Where the vault that is replaced can be read, who was removed stays removed.
    let restored = bring_back(&world, &world.path(), &[full.path], true).unwrap();
    assert_eq!(restored.agents, ["good"]);
    let vault = world.open();
    assert_eq!(vault.authenticate(bad.expose()).unwrap_err().code(), "AGENT_NOT_ALLOWED");
    vault.authenticate(good.expose()).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn checkpoints_of_a_history_that_was_given_up_are_put_aside() {
    let world = World::new();
    let copy = world.directory.path().join("outside");
    let open = || {
        let options = Options { checkpoints: vec![copy.clone()], ..world.options() };
        let vault = Vault::open(&world.path(), options).unwrap();
        vault.unlock_with(&owner()).map(|()| vault)
    };
    let vault = open().unwrap();
    let full = backup(&vault, &world, BackupKind::Full);
    store(&vault, "lost", Level::Working);
    drop(vault);
    // The disk of the vault is lost; what is outside is not.
    std::fs::remove_dir_all(world.path()).unwrap();
    // Named twice, say with the command and in the settings.
    let (files, checkpoints) = ([full.path], [copy.clone(), copy.clone()]);
    let opening = Opening::with(vec![identity(world.directory.path())]);
    let owner_ = owner();
    let target = world.path();
    let mut wanted = Restore::new(&target, &files, (&opening, &owner_));
    (wanted.clock, wanted.checkpoints) = (world.clock.clone(), &checkpoints);
    assert_eq!(restore(&wanted).unwrap_err().code(), "BACKUP_OLDER");
    assert!(copy.is_file(), "a refused restore changes nothing");
    wanted.accept_loss = true;
    let restored = restore(&wanted).unwrap();
    assert!(restored.lost_events >= 1);
    assert!(restored.set_aside.len() == 1 && restored.set_aside[0].is_file() && !copy.exists());
    let vault = open().unwrap();
    store(&vault, "life goes on", Level::Working);
    drop(vault);
    open().unwrap();
}

#[test]
fn a_vault_that_was_only_backed_up_and_closed_is_restored_without_accepting_a_loss() {
    // That somebody recalled something is in no backup, and a witness does not forget what it signed: neither is given up in silence.
    for (recalled, witnessed) in [(false, false), (true, false), (false, true)] {
        let world = World::new();
        let vault = world.open();
        let kept = store(&vault, "kept", Level::Private);
        let full = backup(&vault, &world, BackupKind::Full);
        if recalled {
            assert_eq!(says(&vault, kept), "kept");
        }
        vault.lock().unwrap();
        drop(vault);
        drop(world.open());
        if witnessed {
            std::fs::write(world.path().join("witnessed"), "").unwrap();
        }
        let restored = bring_back(&world, &world.path(), &[full.path], false);
        if recalled || witnessed {
            assert_eq!(restored.unwrap_err().code(), "BACKUP_OLDER", "{recalled} {witnessed}");
        } else {
            assert!(restored.unwrap().lost_events > 0, "it says what the log has no more");
        }
        let vault = world.open();
        assert_eq!(says(&vault, kept), "kept");
        assert_eq!(vault.verify().unwrap().problems, []);
    }
}

#[test]
fn which_backups_hold_a_memory_is_told_by_no_clock() {
    let world = World::new();
    let vault = world.open();
    let now = world.clock.wall();
    let early = store(&vault, "early", Level::Working);
    let before = backup(&vault, &world, BackupKind::Full);
    // The clock was ahead when it was stored, and back when the backup was made.
    world.clock.set_wall(now + 1_000_000_000);
    let id = store(&vault, "words", Level::Private);
    world.clock.set_wall(now - 1_000_000_000);
    let full = backup(&vault, &world, BackupKind::Full);
    let incremental = backup(&vault, &world, BackupKind::Incremental);
    let holds = [full, incremental];
    assert_eq!(vault.backups_with(id).unwrap(), holds);
    assert_eq!(vault.forget(OWNER, id, "").unwrap().backups, holds);
    // The next one, made when the clock says that it was before that, holds nothing of it.
    world.clock.set_wall(now - 2_000_000_000);
    let after = backup(&vault, &world, BackupKind::Full);
    assert_eq!(vault.backups_with(id).unwrap(), holds);
    let [full, incremental] = holds;
    assert_eq!(vault.backups_with(early).unwrap(), [before, full, incremental, after]);
}

#[test]
fn a_backup_that_holds_a_memory_is_named_whatever_number_somebody_gave_its_row() {
    let exchanged = "UPDATE memory SET seq = -1 WHERE seq = 1; UPDATE memory SET seq = 1 WHERE seq = 2;
                     UPDATE memory SET seq = 2 WHERE seq = -1";
    for change in ["UPDATE memory SET seq = 1000000 WHERE seq = 1", exchanged] {
        let world = World::new();
        let vault = world.open();
        let id = store(&vault, "words", Level::Private);
        world.clock.pass(std::time::Duration::from_secs(1));
        let full = backup(&vault, &world, BackupKind::Full);
        world.clock.pass(std::time::Duration::from_secs(1));
        store(&vault, "later", Level::Private);
        drop(vault);
        let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
        database.execute_batch(change).unwrap();
        drop(database);
        let vault = world.open();
        assert_eq!(vault.forget(OWNER, id, "").unwrap().backups, [full], "{change}");
    }
}

#[test]
fn what_ended_after_the_backup_does_not_come_back() {
    let world = World::new();
    let vault = world.open();
    let ids = ["forgotten", "tombstoned", "alive"].map(|text| store(&vault, text, Level::Private));
    let full = backup(&vault, &world, BackupKind::Full);
    let forgotten = vault.forget(OWNER, ids[0], "").unwrap();
    assert_eq!(forgotten.backups, std::slice::from_ref(&full), "it names what still holds it");
    assert_eq!(vault.backups_with(ids[0]).unwrap(), forgotten.backups);
    vault.tombstone(OWNER, ids[1], "").unwrap();
    drop(vault);
    let files = [full.path];

    let older = bring_back(&world, &world.path(), &files, false).unwrap_err();
    assert_eq!(older.code(), "BACKUP_OLDER");
    let vault = unlocked(&world, &world.path());
    assert_eq!(says(&vault, ids[2]), "alive", "a refused restore changes nothing");
    drop(vault);

    let restored = bring_back(&world, &world.path(), &files, true).unwrap();
    assert_eq!(restored.ended, 2);
    assert!(restored.lost_events >= 2, "{restored:?}");
    assert!(restored.before.unwrap().join("vault.db").is_file());
    let vault = unlocked(&world, &world.path());
    assert_eq!(refusal(vault.recall(OWNER, ids[0], "")), Refusal::Gone("it was forgotten"));
    assert_eq!(refusal(vault.recall(OWNER, ids[1], "")), Refusal::Gone("it was tombstoned"));
    assert_eq!(says(&vault, ids[2]), "alive");
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_ended_stays_ended_whatever_number_its_row_has_in_the_vault_that_is_replaced() {
    let world = World::new();
    let vault = world.open();
    let gone = store(&vault, "gone", Level::Private);
    let files = [backup(&vault, &world, BackupKind::Full).path];
    vault.forget(OWNER, gone, "").unwrap();
    drop(vault);
    std::fs::remove_file(world.path().join("forgotten")).unwrap();
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    assert_eq!(database.execute("UPDATE memory SET seq = 0", []).unwrap(), 1);
    drop(database);
    assert_eq!(bring_back(&world, &world.path(), &files, true).unwrap().ended, 1);
    assert_eq!(refusal(world.open().recall(OWNER, gone, "")), Refusal::Gone("it was forgotten"));
}

#[test]
fn the_list_beside_the_backups_is_enough_and_nobody_else_can_add_to_it() {
    let world = World::new();
    let list = world.directory.path().join("backups/forgotten");
    std::fs::create_dir(list.parent().unwrap()).unwrap();
    let mut options = world.options();
    options.forgotten = vec![list.clone()];
    let vault = Vault::open(&world.path(), options).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let (gone, kept) = (store(&vault, "gone", Level::Working), store(&vault, "kept", Level::Working));
    let full = backup(&vault, &world, BackupKind::Full);
    vault.forget(OWNER, gone, "").unwrap();
    drop(vault);
    let line = std::fs::read_to_string(&list).unwrap();
    let forged = line.replace(&gone.to_string(), &kept.to_string());
    // What is no text voids no other line.
    std::fs::write(&list, [&b"non\xffsense\n"[..], line.as_bytes(), forged.as_bytes()].concat()).unwrap();
    std::fs::remove_dir_all(world.path()).unwrap();

    let restored = bring_back(&world, &world.path(), &[full.path], false).unwrap();
    assert_eq!(restored.ended, 1);
    let vault = unlocked(&world, &world.path());
    assert_eq!(refusal(vault.recall(OWNER, gone, "")), Refusal::Gone("it was forgotten"));
    assert_eq!(says(&vault, kept), "kept");
}

#[test]
fn a_restore_that_can_not_read_what_it_is_told_of_brings_nothing_back() {
    let world = World::new();
    let vault = world.open();
    let gone = store(&vault, "gone", Level::Working);
    let files = [backup(&vault, &world, BackupKind::Full).path];
    vault.forget(OWNER, gone, "").unwrap();
    drop(vault);
    let list = world.directory.path().join("list");
    std::fs::rename(world.path().join("forgotten"), &list).unwrap();
    std::fs::remove_dir_all(world.path()).unwrap();
    let (opening, owner, target) =
        (Opening::with(vec![identity(world.directory.path())]), owner(), world.path());
    let with = |forgotten: &[&Path], checkpoints: &[&Path]| {
        let [forgotten, checkpoints] =
            [forgotten, checkpoints].map(|all| all.iter().map(PathBuf::from).collect::<Vec<_>>());
        let mut wanted = Restore::new(&target, &files, (&opening, &owner));
        (wanted.forgotten, wanted.checkpoints) = (&forgotten, &checkpoints);
        wanted.clock = world.clock.clone();
        restore(&wanted)
    };
    let [missing, empty] = ["typo", "empty"].map(|name| world.directory.path().join(name));
    std::fs::write(&empty, "").unwrap();
    let (list, typo, directory) = (list.as_path(), missing.as_path(), world.directory.path());
    let cases: [(&[&Path], &[&Path], &str); 6] = [
        (&[list, typo], &[], "VAULT_IO"),
        (&[list, directory], &[], "VAULT_IO"),
        (&[list], &[typo], "VAULT_IO"),
        (&[list], &[directory], "VAULT_BAD_REQUEST"),
        // There, and without a checkpoint.
        (&[list], &[empty.as_path()], "VAULT_BAD_REQUEST"),
        (&[list], &[list], "VAULT_BAD_REQUEST"),
    ];
    for (forgotten, checkpoints, code) in cases {
        let refused = with(forgotten, checkpoints).unwrap_err();
        assert_eq!(refused.code(), code, "{forgotten:?} {checkpoints:?}: {refused}");
        assert!(!target.exists() && !typo.exists(), "{forgotten:?} {checkpoints:?}");
    }
    let beside = world.directory.path().join("backups/forgotten");
    std::fs::create_dir(&beside).unwrap();
    assert_eq!(with(&[list], &[]).unwrap_err().code(), "VAULT_IO", "the one beside the backups");
    std::fs::remove_dir(beside).unwrap();
    assert_eq!(with(&[list], &[]).unwrap().ended, 1);
}

#[test]
fn a_list_beside_the_backups_that_can_not_be_read_is_not_replaced() {
    let world = World::new();
    let (vault, own) = (world.open(), world.path().join("forgotten"));
    let list = world.directory.path().join("backups/forgotten");
    let gone = store(&vault, "gone", Level::Working);
    vault.forget(OWNER, gone, "").unwrap();
    let line = std::fs::read_to_string(&own).unwrap();
    std::fs::create_dir(list.parent().unwrap()).unwrap();
    // Of another vault, say; its last line was cut.
    std::fs::write(&list, b"one\n\xff\ntwo").unwrap();
    for _ in 0..2 {
        backup(&vault, &world, BackupKind::Full);
        let all = [&b"one\n\xff\ntwo\n"[..], line.as_bytes()].concat();
        assert_eq!(std::fs::read(&list).unwrap(), all, "every byte stays, and no line comes twice");
    }
    let again = || {
        let sealing = Sealing::to(vec![identity(world.directory.path()).recipient()]);
        let directory = list.parent().unwrap().to_owned();
        vault.backup(&NewBackup { directory, kind: BackupKind::Full, sealing, description: String::new() })
    };
    for unreadable in [&own, &list] {
        let bytes = std::fs::read(unreadable).unwrap();
        std::fs::remove_file(unreadable).unwrap();
        std::fs::create_dir(unreadable).unwrap();
        let refused = again().unwrap_err();
        assert!(refused.code() == "VAULT_IO" && refused.to_string().contains("forgotten"), "{refused}");
        std::fs::remove_dir(unreadable).unwrap();
        std::fs::write(unreadable, bytes).unwrap();
    }
    again().unwrap();
}

#[test]
fn files_that_do_not_follow_each_other_or_were_changed_are_refused() {
    let world = World::new();
    let vault = world.open();
    store(&vault, "one", Level::Working);
    let full = backup(&vault, &world, BackupKind::Full);
    store(&vault, "two", Level::Working);
    let one = backup(&vault, &world, BackupKind::Incremental);
    store(&vault, "three", Level::Working);
    let two = backup(&vault, &world, BackupKind::Incremental);
    let later = backup(&vault, &world, BackupKind::Full);
    drop(vault);
    let target = world.directory.path().join("elsewhere");
    let [full, one, two, later] = [full, one, two, later].map(|record| record.path);
    for files in [
        vec![],
        vec![one.clone()],
        vec![full.clone(), two.clone()],
        vec![full.clone(), two.clone(), one.clone()],
        vec![later.clone(), one.clone()],
        vec![full.clone(), one.clone(), one.clone()],
        vec![full.clone(), full.clone()],
    ] {
        let refused = bring_back(&world, &target, &files, false).unwrap_err();
        assert_eq!(refused.code(), "BACKUP_CHAIN", "{files:?}: {refused}");
        assert!(!target.exists(), "all or nothing");
    }
    let bytes = std::fs::read(&one).unwrap();
    for change in [bytes.len() / 2, bytes.len() - 1, 30] {
        let mut changed = bytes.clone();
        changed[change] ^= 1;
        std::fs::write(&one, &changed).unwrap();
        bring_back(&world, &target, &[full.clone(), one.clone()], false).unwrap_err();
        std::fs::write(&one, &bytes[..change]).unwrap();
        bring_back(&world, &target, &[full.clone(), one.clone()], false).unwrap_err();
        assert!(!target.exists(), "all or nothing");
    }
    let left: Vec<_> =
        std::fs::read_dir(world.directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "vault, backups and key, and no drafts: {left:?}");
    let wrong = passphrase("wrong");
    let opening = Opening::with(vec![identity(world.directory.path())]);
    let files = [full.clone()];
    let refused = restore(&Restore::new(&target, &files, (&opening, &wrong))).unwrap_err();
    assert_eq!(refused.code(), "WRONG_KEY");
    let stranger = Opening::with(vec![Identity::generate()]);
    assert_eq!(read_manifest(&full, &stranger).unwrap_err().code(), "WRONG_KEY");
    assert!(!target.exists());
}

/// What is in a backup, by name.
fn unpacked(path: &Path, world: &World) -> Vec<(String, Vec<u8>)> {
    use std::io::Read;
    let opening = Opening::with(vec![identity(world.directory.path())]);
    let mut archive = tar::Archive::new(opening.reader(std::fs::File::open(path).unwrap()).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, _>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

/// Seals such a list to the owner's public key, as everybody can who knows it.
fn pack(path: &Path, world: &World, files: &[(String, Vec<u8>)]) {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        archive.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    let sealing = Sealing::to(vec![identity(world.directory.path()).recipient()]);
    let mut writer = sealing.writer(std::fs::File::create(path).unwrap()).unwrap();
    std::io::Write::write_all(&mut writer, &archive.into_inner().unwrap()).unwrap();
    writer.finish().unwrap();
}

/// Changes the database of a backup as somebody does who keeps it and has the owner's public key.
fn doctored(path: &Path, world: &World, statements: &str) {
    let mut files = unpacked(path, world);
    let draft = world.directory.path().join("doctored.db");
    for (name, bytes) in &mut files {
        if name == "vault.db" {
            std::fs::write(&draft, &*bytes).unwrap();
            let database = rusqlite::Connection::open(&draft).unwrap();
            database.execute_batch("PRAGMA journal_mode = DELETE").unwrap();
            database.execute_batch(statements).unwrap();
            drop(database);
            *bytes = std::fs::read(&draft).unwrap();
        }
    }
    std::fs::remove_file(&draft).unwrap();
    pack(path, world, &files);
}

#[test]
fn a_backup_that_somebody_else_made_or_changed_runs_nothing_and_brings_nothing() {
    let world = World::new();
    let victim = world.directory.path().join("victim.db");
    let database = rusqlite::Connection::open(&victim).unwrap();
    database.execute_batch("CREATE TABLE memory (id); INSERT INTO memory VALUES (1)").unwrap();
    drop(database);
    // What is read as the name of a table is more than one.
    let evil = format!(
        "CREATE TABLE \"event; COMMIT; ATTACH DATABASE '{}' AS v; DELETE FROM v.memory; BEGIN; --\"(x)",
        victim.display()
    );
    let target = world.directory.path().join("elsewhere");
    let untouched = |what: &str| {
        let database = rusqlite::Connection::open(&victim).unwrap();
        let count = database.query_row("SELECT count(*) FROM memory", [], |row| row.get::<_, i64>(0));
        assert_eq!(count.unwrap(), 1, "{what}");
        assert!(!target.exists(), "{what}");
    };

    // A vault of the attacker's own, sealed to the owner's public key.
    let foreign = World::new();
    identity(world.directory.path());
    std::fs::copy(world.directory.path().join("identity"), foreign.directory.path().join("identity"))
        .unwrap();
    let vault = foreign.open();
    vault.change_secret(&owner(), &passphrase("the attacker's")).unwrap();
    let full = backup(&vault, &foreign, BackupKind::Full).path;
    store(&vault, "x", Level::Working);
    let one = backup(&vault, &foreign, BackupKind::Incremental).path;
    drop(vault);
    doctored(&one, &foreign, &evil);
    let refused = bring_back(&world, &target, &[full, one], false).unwrap_err();
    assert_eq!(refused.code(), "WRONG_KEY", "{refused}");
    untouched("a vault of somebody else");

    // The owner's own, changed.
    for statements in [
        evil.as_str(),
        "CREATE VIEW v AS SELECT 1",
        "UPDATE memory SET header = zeroblob(10)",
        "DELETE FROM approval",
        "DELETE FROM slot WHERE name = 'codes'",
    ] {
        let world = World::new();
        let vault = world.open();
        store(&vault, "one", Level::Working);
        let full = backup(&vault, &world, BackupKind::Full).path;
        store(&vault, "two", Level::Working);
        let one = backup(&vault, &world, BackupKind::Incremental).path;
        drop(vault);
        let sound = std::fs::read(&full).unwrap();
        for file in [&full, &one] {
            std::fs::write(&full, &sound).unwrap();
            doctored(file, &world, statements);
            let refused = bring_back(&world, &target, &[full.clone(), one.clone()], false).unwrap_err();
            assert_eq!(refused.code(), "VAULT_TAMPERED", "{statements}: {refused}");
            untouched(statements);
        }
    }
}

#[test]
fn a_backup_of_another_version_is_refused_by_name() {
    let world = World::new();
    let vault = world.open();
    let full = backup(&vault, &world, BackupKind::Full).path;
    for (from, code) in [("1", "VAULT_TOO_OLD"), ("3", "VAULT_TOO_NEW")] {
        let mut files = unpacked(&full, &world);
        let manifest = String::from_utf8(files[0].1.clone()).unwrap();
        files[0].1 = manifest.replace("\"format\": 2", &format!("\"format\": {from}")).into_bytes();
        let other = world.directory.path().join("other.age");
        pack(&other, &world, &files);
        let opening = Opening::with(vec![identity(world.directory.path())]);
        assert_eq!(read_manifest(&other, &opening).unwrap_err().code(), code);
        let target = world.directory.path().join("elsewhere");
        assert_eq!(bring_back(&world, &target, &[other], false).unwrap_err().code(), code);
    }
}

#[test]
fn a_backup_under_a_passphrase_shows_nothing_and_opens_with_it() {
    let world = World::new();
    let vault = world.open();
    store(&vault, "unmistakable words", Level::Working);
    let phrase = SecretBytes::from_slice(b"backup phrase");
    let sealing = Sealing::passphrase_with_work(&phrase, 4).unwrap();
    let directory = world.directory.path().join("backups");
    let made =
        vault.backup(&NewBackup { directory, kind: BackupKind::Full, sealing, description: String::new() });
    let path = made.unwrap().path;
    let bytes = std::fs::read(&path).unwrap();
    for words in ["unmistakable", "SQLite", "manifest", "example.com"] {
        assert!(!bytes.windows(words.len()).any(|window| window == words.as_bytes()), "{words}");
    }
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let opening = Opening::passphrase(&phrase).unwrap();
    assert_eq!(read_manifest(&path, &opening).unwrap().origin, "example.com/vault");
    let incremental = vault.backup(&NewBackup {
        directory: world.directory.path().join("other"),
        kind: BackupKind::Incremental,
        sealing: Sealing::to(vec![identity(world.directory.path()).recipient()]),
        description: String::new(),
    });
    assert!(incremental.is_ok(), "the parent may lie in another directory");
    std::fs::remove_file(incremental.unwrap().path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let refused = vault.backup(&NewBackup {
        directory: world.directory.path().join("other"),
        kind: BackupKind::Incremental,
        sealing: Sealing::to(vec![identity(world.directory.path()).recipient()]),
        description: String::new(),
    });
    assert_eq!(refused.unwrap_err().code(), "VAULT_BAD_REQUEST");
}

/// Which directory the child restores in.
const PATH: &str = "STVOR_VAULT_RESTORE_PATH";

/// Restores what its parent prepared, and says when it begins and how it ends. With a word in the environment files may grow no
/// further than that.
#[test]
fn child_that_restores() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    if let Ok(limit) = std::env::var("STVOR_VAULT_RESTORE_LIMIT") {
        let current = Some(limit.parse().unwrap());
        setrlimit(Resource::Fsize, Rlimit { current, maximum: None }).unwrap();
    }
    let mut files: Vec<_> =
        std::fs::read_dir(path.join("backups")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "age"));
    files.sort();
    let opening = Opening::with(vec![identity(&path)]);
    let target = path.join("vault");
    let owner = owner();
    let mut wanted = Restore::new(&target, &files, (&opening, &owner));
    wanted.accept_loss = true;
    println!("begins");
    println!("\nended {}", restore(&wanted).map_or_else(|error| error.code(), |_| "OK"));
}

#[test]
fn a_restore_that_can_not_take_the_list_along_changes_nothing() {
    let world = World::new();
    let vault = world.open();
    let gone = store(&vault, "gone", Level::Working);
    backup(&vault, &world, BackupKind::Full);
    vault.forget(OWNER, gone, "").unwrap();
    drop(vault);
    // So long that it is the one file that finds no room.
    let list = std::fs::OpenOptions::new().append(true).open(world.path().join("forgotten")).unwrap();
    list.set_len(8 << 20).unwrap();
    std::io::Write::write_all(&mut &list, b"\n").unwrap();
    for (limit, end) in [(4 << 20, "VAULT_IO"), (16 << 20, "OK")] {
        let run = "trap '' XFSZ; exec \"$0\" --exact backups::child_that_restores --nocapture";
        let child = Command::new("sh")
            .args(["-c", run])
            .arg(std::env::current_exe().unwrap())
            .env(PATH, world.directory.path())
            .env("STVOR_VAULT_RESTORE_LIMIT", limit.to_string())
            .stderr(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8(child.stdout).unwrap();
        assert!(said.contains(&format!("\nended {end}\n")), "{limit}: {said}");
        let list = std::fs::metadata(world.path().join("forgotten")).unwrap();
        assert!(list.len() > 8 << 20, "{limit}: it goes on in the vault that is there");
        let vault = unlocked(&world, &world.path());
        assert_eq!(refusal(vault.recall(OWNER, gone, "")), Refusal::Gone("it was forgotten"));
    }
}

#[test]
fn a_restore_that_is_killed_leaves_the_old_vault_or_the_new_one() {
    use std::io::{BufRead, BufReader};
    let world = World::new();
    let vault = world.open();
    for number in 0..300 {
        store(&vault, &format!("before {number}"), Level::Working);
    }
    backup(&vault, &world, BackupKind::Full);
    let after = store(&vault, "after", Level::Working);
    drop(vault);
    let (mut old, mut new) = (0, 0);
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "backups::child_that_restores", "--nocapture"])
            .env(PATH, world.directory.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("begins")));
        // At another point each time: how many polls pass depends on how fast the machine is, and the last rounds let it end.
        let mut polls = round * 40;
        while polls > 0 && child.try_wait().unwrap().is_none() {
            polls -= u64::from(round < 11);
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
        let vault = unlocked(&world, &world.path());
        assert_eq!(vault.verify().unwrap().problems, []);
        let count = vault.verify().unwrap().memories;
        match vault.recall(OWNER, after, "") {
            Ok(_) => {
                assert_eq!(count, 301);
                old += 1;
            }
            Err(_) => {
                assert_eq!(count, 300);
                new += 1;
                break;
            }
        }
    }
    assert_eq!(new, 1, "at last it was left alone; {old} were killed before");
}

#[test]
fn an_export_holds_everything_that_the_owner_can_read() {
    let world = World::new();
    let vault = world.open();
    for number in 0..70 {
        store(&vault, &format!("memory {number}"), Level::Working);
    }
    let sealed = store(&vault, "sealed", Level::Sealed);
    let gone = store(&vault, "gone", Level::Private);
    vault.forget(OWNER, gone, "").unwrap();
    let (mut lines, mut after) = (Vec::new(), Some(0));
    while let Some(place) = after {
        let (page, next) = vault.export(place).unwrap();
        lines.extend(page.iter().map(stvor_vault::export::Exported::to_json));
        after = next;
    }
    assert_eq!(lines.len(), 72);
    for (number, line) in lines.iter().take(70).enumerate() {
        assert_eq!(line["content"]["text"], format!("memory {number}"));
    }
    let of = |id: MemoryId| lines.iter().find(|line| line["memory"]["id"] == id.to_string()).unwrap();
    assert_eq!(of(sealed)["refused"], "BOUNDARY_DENIED", "the gates hold for an export too");
    assert_eq!(of(gone)["refused"], "MEMORY_GONE");
}

#[test]
fn damage_shows_when_a_backup_is_made_and_the_rest_of_it_can_be_brought_back() {
    let world = World::new();
    let vault = world.open();
    let ids = ["one", "two", "three"].map(|text| store(&vault, text, Level::Working));
    assert_eq!(backup(&vault, &world, BackupKind::Full).problems, 0);
    drop(vault);
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    database.execute("UPDATE memory SET header = zeroblob(200) WHERE seq = 2", []).unwrap();
    drop(database);
    let vault = unlocked(&world, &world.path());
    let made = backup(&vault, &world, BackupKind::Full);
    assert_eq!(made.problems, 1);
    vault.forget(OWNER, ids[2], "").unwrap();
    drop(vault);
    let opening = Opening::with(vec![identity(world.directory.path())]);
    let (target, files, owner) = (world.directory.path().join("elsewhere"), [made.path], owner());
    let list = [world.path().join("forgotten")];
    let mut wanted = Restore::new(&target, &files, (&opening, &owner));
    wanted.clock = world.clock.clone();
    wanted.forgotten = &list;
    let refused = restore(&wanted).unwrap_err();
    assert_eq!(refused.code(), "VAULT_TAMPERED");
    assert!(refused.to_string().contains("--accept-damage"), "{refused}");
    wanted.accept_damage = true;
    let restored = restore(&wanted).unwrap();
    let places: Vec<_> = restored.damage.iter().map(|problem| problem.place.clone()).collect();
    assert_eq!(places, [format!("the memory {}", ids[1])]);
    let vault = unlocked(&world, &target);
    assert_eq!(says(&vault, ids[0]), "one");
    assert_eq!(refusal(vault.recall(OWNER, ids[2], "")), Refusal::Gone("it was forgotten"));
    assert_eq!(vault.recall(OWNER, ids[1], "").unwrap_err().code(), "VAULT_TAMPERED");
}
