//! Profiles, and keys that are changed: what still opens, what does not, and what a kill in between leaves.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use stvor_base::ErrorCode as _;
use stvor_crypto::Secret;
use stvor_keys::Passphrase;
use stvor_keys::recipients::{Identity, Opening, Sealing};
use stvor_testkit::until;
use stvor_vault::audit::Operation;
use stvor_vault::backup::{BackupKind, NewBackup, Restore, restore};
use stvor_vault::profiles::{NewProfile, ProfileKey, ProfileState, Rotation, unwrap_profile};
use stvor_vault::{
    Caller, Level, LogQuery, MemoryId, NewMemory, NewRoot, Options, Refusal, Vault, VaultError, limits,
    unwrap_root, unwrap_vaulted,
};

use crate::world::{World, agent, owner, passphrase, refusal, second};

const OWNER: &Caller = &Caller::Owner;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Which vault the child works on.
const PATH: &str = "STVOR_VAULT_KEYS_PATH";

fn make(vault: &Vault, name: &str, rotation: Rotation) {
    let new = NewProfile { name: name.into(), exportable: name == "open", rotation };
    vault.make_profile(new, None).unwrap();
}

fn store(vault: &Vault, text: &str, (level, profile): (Level, Option<&str>)) -> MemoryId {
    let memory = NewMemory::new(text.as_bytes(), level, "home");
    vault.store(OWNER, NewMemory { profile: profile.map(str::to_owned), ..memory }).unwrap()
}

fn says(vault: &Vault, id: MemoryId) -> String {
    String::from_utf8(vault.recall(OWNER, id, "").unwrap().content.expose().to_vec()).unwrap()
}

fn state(vault: &Vault, name: &str) -> ProfileState {
    vault.profiles().unwrap().into_iter().find(|state| state.profile.name == name).unwrap()
}

fn code<T: std::fmt::Debug>(result: Result<T, VaultError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn a_profile_with_a_secret_of_its_own_opens_with_it_and_closes_with_the_session() {
    let world = World::new();
    let vault = world.open();
    let own = passphrase("profile");
    let new = NewProfile { name: "work".into(), exportable: false, rotation: Rotation::default() };
    let key = ProfileKey::generate("work", &own).unwrap();
    vault.make_profile(new.clone(), Some(key)).unwrap();
    let again = ProfileKey::generate("work", &own).unwrap();
    assert_eq!(code(vault.make_profile(new, Some(again))), "VAULT_BAD_REQUEST");
    let ids: Vec<MemoryId> =
        [Level::Working, Level::Private].map(|level| store(&vault, "zebra", (level, Some("work")))).into();
    let other = store(&vault, "lion", (Level::Private, None));
    assert_eq!(vault.search(OWNER, "home", "zebra").unwrap().len(), 2);

    vault.close_profile("work").unwrap();
    for id in &ids {
        assert_eq!(refusal(vault.recall(OWNER, *id, "")), Refusal::ProfileClosed("work".into()));
    }
    assert_eq!(vault.search(OWNER, "home", "zebra").unwrap(), [], "nothing of it stays in the index");
    assert_eq!(says(&vault, other), "lion");
    // Storing takes no secret.
    let late = store(&vault, "zebra late", (Level::Private, Some("work")));
    assert_eq!(vault.search(OWNER, "home", "zebra").unwrap(), []);
    assert_eq!(vault.verify().unwrap().problems, []);
    assert_eq!(vault.verify_content().unwrap().memories, 1, "what is closed is not opened");

    let record = vault.profile_record("work").unwrap();
    assert_eq!(code(unwrap_profile(&record, "work", &owner())), "WRONG_KEY");
    assert_eq!(code(unwrap_profile(&record, "play", &own)), "WRONG_KEY");
    assert_eq!(code(vault.open_profile("work", Secret::new([7; 32]))), "VAULT_TAMPERED");
    assert!(!state(&vault, "work").open);
    vault.open_profile("work", unwrap_profile(&record, "work", &own).unwrap()).unwrap();
    assert_eq!((says(&vault, ids[0]), says(&vault, late)), ("zebra".into(), "zebra late".into()));

    // Another secret, the same key.
    let key = unwrap_profile(&record, "work", &own).unwrap();
    let wrong = ProfileKey::wrap("work", Secret::new([7; 32]), &own).unwrap();
    assert_eq!(code(vault.change_profile_secret("work", wrong)), "VAULT_TAMPERED");
    vault.change_profile_secret("work", ProfileKey::wrap("work", key, &second()).unwrap()).unwrap();
    vault.lock().unwrap();
    vault.unlock_with(&owner()).unwrap();
    assert!(!state(&vault, "work").open, "the lock closed it");
    let record = vault.profile_record("work").unwrap();
    assert_eq!(code(unwrap_profile(&record, "work", &own)), "WRONG_KEY");
    vault.open_profile("work", unwrap_profile(&record, "work", &second()).unwrap()).unwrap();
    assert_eq!(says(&vault, ids[1]), "zebra");
}

#[test]
fn a_vault_without_a_second_secret_gets_one_and_then_only_the_old_one_changes_it() {
    let world = World::with(&owner(), None);
    let vault = world.open();
    let deed = || NewMemory::new(b"the deed", Level::Vaulted, "home");
    assert!(vault.store(OWNER, deed()).is_err(), "nothing of level 4 is written without its keys");
    assert_eq!(code(vault.change_second(&owner(), Some(&second()), &second())), "VAULT_BAD_REQUEST");
    assert_eq!(code(vault.change_second(&passphrase("wrong"), None, &second())), "WRONG_KEY");
    vault.change_second(&owner(), None, &second()).unwrap();
    vault.store(OWNER, deed()).unwrap();
    assert_eq!(vault.verify_content().unwrap().memories, 0, "reading takes an unlock with it");

    // It is in the log, with the level.
    let changes = LogQuery { operation: Some(Operation::ChangeSecret), ..LogQuery::default() };
    let logged = vault.read_log(changes).unwrap();
    let levels: Vec<_> = logged.entries.iter().map(|event| event.event.level).collect();
    assert!(levels.contains(&Some(Level::Vaulted)), "{levels:?}");
    drop(vault);

    let opens_with = |second: &Passphrase| {
        let vault = world.cold();
        let records = vault.records().unwrap();
        let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), second)?;
        vault.unlock(unwrap_root(&records.root, &owner()).unwrap(), Some(vaulted))?;
        assert_eq!(vault.verify_content().unwrap().memories, 1);
        assert_eq!(vault.verify().unwrap().problems, []);
        Ok::<_, VaultError>(vault)
    };
    let vault = opens_with(&second()).unwrap();
    let third = passphrase("a third one");
    assert_eq!(code(vault.change_second(&owner(), None, &third)), "VAULT_BAD_REQUEST");
    assert_eq!(code(vault.change_second(&owner(), Some(&third), &third)), "WRONG_KEY");
    vault.change_second(&owner(), Some(&second()), &third).unwrap();
    drop(vault);
    assert_eq!(code(opens_with(&second())), "WRONG_KEY");
    opens_with(&third).unwrap();
}

#[test]
fn a_second_secret_whose_record_was_removed_is_not_taken_for_none() {
    let world = World::new();
    let vault = world.open();
    vault.store(OWNER, NewMemory::new(b"the deed", Level::Vaulted, "home")).unwrap();
    drop(vault);
    let read = || {
        let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
        let record = |name: &str| -> Vec<u8> {
            database.query_row("SELECT record FROM slot WHERE name = ?1", [name], |row| row.get(0)).unwrap()
        };
        (record("level-4/private"), record("level-4/public"))
    };
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    database.execute("DELETE FROM slot WHERE name = 'vaulted'", []).unwrap();
    drop(database);
    let before = read();
    let vault = world.open();
    assert_eq!(code(vault.change_second(&owner(), None, &second())), "VAULT_TAMPERED");
    drop(vault);
    assert!(read() == before, "the keys of level 4 are those that they were");
}

#[test]
fn profiles_of_the_owner_open_with_the_session_and_say_what_is_exported() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "open", Rotation::default());
    make(&vault, "kept", Rotation::default());
    let ids = ["open", "kept"].map(|name| store(&vault, name, (Level::Working, Some(name))));
    let lines: Vec<_> = vault.export(0).unwrap().0;
    assert_eq!(lines[0].content.as_ref().unwrap().expose(), b"open");
    assert_eq!(lines[1].content.as_ref().unwrap_err(), &"PROFILE_NOT_EXPORTABLE");
    vault.lock().unwrap();
    assert_eq!(refusal(vault.recall(OWNER, ids[0], "")), Refusal::ProfileClosed("open".into()));
    drop(vault);
    let vault = world.open();
    assert_eq!(ids.map(|id| says(&vault, id)), ["open", "kept"]);
    let bad = NewMemory { profile: Some("none".into()), ..NewMemory::new(b"x", Level::Working, "home") };
    assert_eq!(code(vault.store(OWNER, bad)), "VAULT_NOT_FOUND");
}

#[test]
fn a_vault_has_at_most_64_profiles() {
    let world = World::new();
    let vault = world.open();
    for number in 0..limits::MAX_PROFILES {
        make(&vault, &format!("p{number}"), Rotation::default());
    }
    let more = NewProfile { name: "more".into(), exportable: false, rotation: Rotation::default() };
    assert_eq!(code(vault.make_profile(more, None)), "VAULT_BAD_REQUEST");
}

#[test]
fn a_profiles_key_is_changed_for_every_memory_and_the_old_one_is_gone() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "work", Rotation::default());
    // More than one step.
    let count = limits::ROTATION_STEP + 20;
    let pending: Vec<_> = (0..count)
        .map(|number| {
            let memory = NewMemory::new(format!("memory {number}").as_bytes(), Level::Private, "home");
            vault.begin_store(OWNER, NewMemory { profile: Some("work".into()), ..memory })
        })
        .collect();
    let ids: Vec<MemoryId> = pending.into_iter().map(|one| one.wait().unwrap()).collect();
    vault.forget(OWNER, ids[0], "over").unwrap();
    let mut steps = 0;
    let wrapped = vault.rotate_profile("work", |done, total| {
        steps += 1;
        assert!(done <= total);
    });
    assert_eq!((wrapped.unwrap(), steps), (count as u64 - 1, 2));
    let after = state(&vault, "work").profile;
    assert_eq!((after.generation, after.rotating), (2, None));
    for (number, id) in ids.iter().enumerate().skip(1) {
        assert_eq!(says(&vault, *id), format!("memory {number}"));
    }
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    let names: Vec<String> = database
        .prepare("SELECT name FROM slot WHERE name LIKE 'profile/work/private/%'")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(names, ["profile/work/private/2"]);
    drop(database);
    assert_eq!(says(&world.open(), ids[1]), "memory 1", "also after a restart");
}

#[test]
fn no_memory_loses_its_key_when_somebody_changes_the_number_of_its_row_while_keys_are_changed() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "work", Rotation::default());
    let store = |number: usize| {
        let memory = NewMemory::new(format!("memory {number}").as_bytes(), Level::Private, "home");
        vault.begin_store(OWNER, NewMemory { profile: Some("work".into()), ..memory })
    };
    let pending: Vec<_> = (0..limits::ROTATION_STEP + 20).map(store).collect();
    let ids: Vec<MemoryId> = pending.into_iter().map(|one| one.wait().unwrap()).collect();
    // Who asked goes away after the first step.
    let stop = || vault.rotate_profile("work", |_, _| panic!("broken off"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(stop)).unwrap_err();
    assert_eq!(state(&vault, "work").profile.rotating, i64::try_from(limits::ROTATION_STEP).ok());
    drop(vault);
    let database = rusqlite::Connection::open(world.path().join("vault.db")).unwrap();
    let under_the_old_key = "substr(wrapped, 1, 4) = x'00000001'";
    let sql = format!(
        "UPDATE memory SET seq = 0 WHERE seq = (SELECT max(seq) FROM memory WHERE {under_the_old_key})"
    );
    assert_eq!(database.execute(&sql, []).unwrap(), 1);
    drop(database);
    let vault = world.open();
    let all = |vault: &Vault| {
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(says(vault, *id), format!("memory {number}"));
        }
    };
    vault.rotate_profile("work", |_, _| ()).unwrap();
    assert!(!state(&vault, "work").due);
    all(&vault);
    vault.rotate_root(&owner()).unwrap();
    all(&vault);
}

#[test]
fn a_key_that_is_due_is_changed_by_itself() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "count", Rotation { days: None, memories: Some(3) });
    make(&vault, "age", Rotation { days: Some(30), memories: None });
    make(&vault, "asked", Rotation::default());
    let ids: Vec<MemoryId> = (0..3).map(|_| store(&vault, "x", (Level::Working, Some("count")))).collect();
    let generation = |name: &str| state(&vault, name).profile.generation;
    let changed = |name: &'static str| {
        until(Duration::from_secs(60), || (generation(name) == 2 && !state(&vault, name).due).then_some(()))
    };
    changed("count").unwrap();
    assert_eq!((generation("age"), generation("asked")), (1, 1));
    world.clock.pass(30 * DAY);
    changed("age").unwrap();
    assert_eq!((generation("count"), generation("asked")), (2, 1));
    assert_eq!(says(&vault, ids[0]), "x");
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_is_due_is_done_while_the_vault_is_never_idle() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "age", Rotation { days: Some(30), memories: None });
    let short = NewMemory { ttl: Some(DAY), ..NewMemory::new(b"over soon", Level::Working, "home") };
    vault.store(OWNER, short).unwrap();
    let purges = || {
        let query = LogQuery { operation: Some(Operation::Purge), ..LogQuery::default() };
        vault.read_log(query).unwrap().entries.len()
    };
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    vault.status().unwrap();
                }
            });
        }
        world.clock.pass(30 * DAY);
        let done = until(Duration::from_secs(60), || {
            (state(&vault, "age").profile.generation > 1 && purges() == 1).then_some(())
        });
        over.store(true, Ordering::Relaxed);
        done.expect("the key is changed and the memory destroyed");
    });
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn the_root_key_is_changed_with_everything_that_follows_from_it() {
    let world = World::new();
    let vault = world.open();
    let caller = agent(&vault, "helper", Level::Sealed);
    make(&vault, "work", Rotation::default());
    let levels = [Level::Working, Level::Private, Level::Sealed, Level::Vaulted];
    let ids = levels.map(|level| store(&vault, "zebra", (level, None)));
    let mine = store(&vault, "zebra", (Level::Private, Some("work")));
    let request = vault.request_approval(&caller, ids[2], "monthly report").unwrap();
    vault.forget(OWNER, store(&vault, "over", (Level::Working, None)), "over").unwrap();
    let identity = Identity::generate();
    let backup = |kind| {
        let sealing = Sealing::to(vec![identity.recipient()]);
        let directory = world.directory.path().join("backups");
        vault.backup(&NewBackup { directory, kind, sealing, description: String::new() })
    };
    let before = backup(BackupKind::Full).unwrap();
    let old = unwrap_root(&vault.records().unwrap().root, &owner()).unwrap();

    assert_eq!(code(vault.rotate_root(&passphrase("wrong"))), "WRONG_KEY");
    vault.close_profile("work").unwrap();
    assert_eq!(code(vault.rotate_root(&owner())), "PROFILE_CLOSED");
    vault.lock().unwrap();
    assert_eq!(code(vault.rotate_root(&owner())), "VAULT_LOCKED");
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.rotate_root(&owner()).unwrap(), 6);

    let works = |vault: &Vault, listed: usize| {
        assert_eq!(vault.verify().unwrap().problems, []);
        assert_eq!((says(vault, ids[0]), says(vault, ids[1])), ("zebra".into(), "zebra".into()));
        assert_eq!(says(vault, mine), "zebra");
        assert_eq!(vault.search(OWNER, "home", "zebra").unwrap().len(), 3);
        assert_eq!(vault.list(&caller, "home", None).unwrap().0.len(), listed);
        assert_eq!(vault.agents().unwrap().len(), 1);
        assert!(vault.approvals().unwrap().iter().any(|approval| approval.id == request));
        let said = LogQuery { words: Some("monthly report".into()), ..LogQuery::default() };
        assert_eq!(vault.read_log(said).unwrap().entries.len(), 1);
    };
    works(&vault, 4);
    // No key of before opens it; the owner's secret does, after a restart too.
    let other = NewRoot::generate(&owner()).unwrap();
    assert_eq!(code(vault.begin_rotate_root(old.duplicate(), other).0.wait()), "VAULT_TAMPERED");
    assert_eq!(code(vault.leave_lockdown_with(old.duplicate())), "VAULT_TAMPERED");
    assert_eq!(code(backup(BackupKind::Incremental)), "VAULT_BAD_REQUEST", "it can not build on the old key");
    backup(BackupKind::Full).unwrap();
    store(&vault, "later", (Level::Private, Some("work")));
    backup(BackupKind::Incremental).unwrap();
    drop(vault);
    let vault = world.cold();
    assert_eq!(code(vault.unlock(old, None)), "VAULT_TAMPERED");
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    vault.unlock(root, Some(vaulted)).unwrap();
    works(&vault, 5);
    // Levels 2 to 4 are opened where no gate stands before it.
    assert_eq!(vault.verify_content().unwrap().problems, []);
    assert_eq!(vault.verify_content().unwrap().memories, 6);
    drop(vault);

    // The backup of before restores with the secret of then.
    let target = world.directory.path().join("restored");
    let opening = Opening::with(vec![identity]);
    let (files, owner) = ([before.path], owner());
    restore(&Restore::new(&target, &files, (&opening, &owner))).unwrap();
    let vault = Vault::open(&target, world.options()).unwrap();
    vault.unlock_with(&owner).unwrap();
    assert_eq!(says(&vault, mine), "zebra");
    assert_eq!(vault.verify().unwrap().problems, []);
}

/// What the child does: it changes keys, one after the other, until it is killed.
#[test]
fn child_that_changes_keys_until_it_ends() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let say = |word: &str| std::io::stdout().write_all(format!("{word}\n").as_bytes()).unwrap();
    loop {
        vault.rotate_profile("work", |_, _| say("did step")).unwrap();
        let old = unwrap_root(&vault.records().unwrap().root, &owner()).unwrap();
        let (pending, _) = vault.begin_rotate_root(old, NewRoot::generate(&owner()).unwrap());
        // Told while it is under way, so that the kill may come in the middle of it.
        pending.wait_while(Duration::from_millis(5), || say("did part")).unwrap();
        say("did root");
        vault.rotate_signing_key().unwrap();
        vault.change_secret(&owner(), &owner()).unwrap();
        say("did secret");
    }
}

#[test]
fn a_kill_while_keys_are_changed_leaves_a_vault_that_opens_whole() {
    let world = World::new();
    let vault = world.open();
    make(&vault, "work", Rotation::default());
    let ids: Vec<MemoryId> = (0..limits::ROTATION_STEP + 40)
        .map(|number| {
            let memory = NewMemory::new(format!("{number}").as_bytes(), Level::Private, "home");
            let profile = (number % 2 == 0).then(|| "work".to_owned());
            vault.begin_store(OWNER, NewMemory { profile, ..memory })
        })
        .collect::<Vec<_>>()
        .into_iter()
        .map(|one| one.wait().unwrap())
        .collect();
    drop(vault);
    for round in [1, 2, 3, 5, 8, 13, 21] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "keys::child_that_changes_keys_until_it_ends", "--nocapture"])
            .env(PATH, world.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let did = lines.filter(|line| line.contains("did ")).take(round).count();
        assert_eq!(did, round, "the child works");
        child.kill().unwrap();
        child.wait().unwrap();
        let vault = Vault::open(&world.path(), Options::default()).unwrap();
        vault.unlock_with(&owner()).unwrap();
        assert_eq!(vault.verify().unwrap().problems, []);
        for (number, id) in ids.iter().enumerate() {
            assert_eq!(says(&vault, *id), number.to_string());
        }
        // What was broken off goes on.
        vault.rotate_profile("work", |_, _| ()).unwrap();
        assert!(!state(&vault, "work").due);
    }
}
