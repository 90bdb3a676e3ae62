//! What has to hold of every row and every state, tried on each.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use rusqlite::types::Value;
use stvor_base::ErrorCode;
use stvor_keys::recipients::{Identity, Opening, Sealing};
use stvor_vault::backup::{BackupKind, NewBackup, Restore, restore};
use stvor_vault::profiles::{NewProfile, ProfileKey, Rotation, unwrap_profile};
use stvor_vault::{Caller, Level, MemoryId, NewMemory, State, Vault};

use crate::tampering::found;
use crate::world::{World, owner, passphrase};

const OWNER: &Caller = &Caller::Owner;

fn store(vault: &Vault, text: &str, level: Level) -> MemoryId {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), level, "home")).unwrap()
}

/// Puts the files of `from` in the place of those of `to`.
fn put(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// A closed vault with some history, and a copy of its files.
fn closed() -> (World, Vec<MemoryId>, PathBuf) {
    let world = World::new();
    let vault = world.open();
    let levels = [Level::Working, Level::Private, Level::Sealed];
    let ids: Vec<_> = levels
        .into_iter()
        .enumerate()
        .map(|(n, level)| store(&vault, &format!("content {n}"), level))
        .collect();
    vault.recall(OWNER, ids[0], "for the report").unwrap();
    vault.set_intent(OWNER, ids[1], ("travel", true)).unwrap();
    for _ in 0..4 {
        vault.list(OWNER, "home", None).unwrap();
    }
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);
    let saved = world.directory.path().join("saved");
    put(&world.path(), &saved);
    (world, ids, saved)
}

fn connection(world: &World) -> Connection {
    Connection::open(world.path().join("vault.db")).unwrap()
}

fn read<T: rusqlite::types::FromSql>(world: &World, sql: &str) -> Vec<T> {
    let connection = connection(world);
    let mut statement = connection.prepare(sql).unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// The bytes with one of them changed: the first, one in the middle, the last.
fn flips(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let places = [0, bytes.len() / 2, bytes.len() - 1];
    places.into_iter().map(|at| {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        flipped
    })
}

fn run(world: &World, sql: &str, values: &[Value]) {
    let changed = connection(world).execute(sql, rusqlite::params_from_iter(values)).unwrap();
    assert!(changed > 0, "{sql}");
}

#[test]
fn whichever_row_of_the_log_is_changed_removed_or_moved_verify_names_it() {
    let (world, _, saved) = closed();
    let events = read::<Vec<u8>>(&world, "SELECT sealed FROM event ORDER BY seq");
    let nodes = read::<Vec<u8>>(&world, "SELECT hash FROM node ORDER BY level, at");
    let places = read::<i64>(&world, "SELECT level * 1000 + at FROM node ORDER BY level, at");
    assert!(events.len() >= 8 && nodes.len() > events.len());
    let (mut tried, mut edge) = (0, 0_u32);
    let mut missed = Vec::new();
    let mut attack = |changes: &[(&str, Vec<Value>)], name: &str| {
        put(&saved, &world.path());
        changes.iter().for_each(|(sql, values)| run(&world, sql, values));
        let said = found(&world);
        if !said.contains(name) {
            missed.push(format!("{changes:?}: {said:?}"));
        }
        tried += 1;
    };
    for (seq, sealed) in events.iter().enumerate() {
        let name = format!("the event {seq}: ");
        let at = i64::try_from(seq).unwrap();
        for flipped in flips(sealed) {
            attack(
                &[("UPDATE event SET sealed = ?1 WHERE seq = ?2", vec![flipped.into(), at.into()])],
                &name,
            );
        }
        attack(&[("DELETE FROM event WHERE seq = ?1", vec![at.into()])], &name);
        if seq + 1 < events.len() {
            let moved = |from: i64, to: i64| {
                ("UPDATE event SET seq = ?2 WHERE seq = ?1", vec![from.into(), to.into()])
            };
            attack(&[moved(at, -1), moved(at + 1, at), moved(-1, at + 1)], &name);
        }
    }
    for (place, hash) in places.iter().zip(&nodes) {
        let (level, at) = (place / 1000, place % 1000);
        let hash_of = format!("the hash {at} of level {level}");
        // Those at the right edge, the roots of the trees that the log is made of, shut the vault before anything else is looked at.
        let trees = events.len() >> level;
        let (changed, removed) = match trees % 2 == 1 && usize::try_from(at).unwrap() == trees - 1 {
            true => ("the log's right edge does not match".to_owned(), format!("{hash_of} is missing")),
            false => {
                let found = format!("{hash_of}: it is not that of its events");
                (found.clone(), found)
            }
        };
        edge += u32::from(changed != removed);
        let row = || vec![level.into(), at.into()];
        for flipped in flips(hash) {
            let values = [vec![flipped.into()], row()].concat();
            attack(&[("UPDATE node SET hash = ?1 WHERE level = ?2 AND at = ?3", values)], &changed);
        }
        attack(&[("DELETE FROM node WHERE level = ?1 AND at = ?2", row())], &removed);
    }
    assert_eq!(edge, events.len().count_ones(), "the log's right edge was met");
    let note = read::<String>(&world, "SELECT note FROM checkpoint").remove(0);
    for (number, line) in note.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let mut lines: Vec<String> = note.lines().map(str::to_owned).collect();
        // A digit or letter in the middle of the line becomes another.
        let middle = line.char_indices().filter(|(_, c)| c.is_ascii_alphanumeric()).nth(line.len() / 3);
        let (at, old) = middle.unwrap_or((0, '0'));
        let new = if old == '7' { "8" } else { "7" };
        lines[number].replace_range(at..at + old.len_utf8(), new);
        let changed = lines.join("\n") + "\n";
        let name = "the signature of example.com/vault does not verify";
        attack(&[("UPDATE checkpoint SET note = ?1", vec![changed.into()])], name);
    }
    assert!(missed.is_empty(), "{} of {tried}: {missed:#?}", missed.len());
    assert!(tried > 100, "{tried}");
}

#[test]
fn whichever_part_of_a_memory_is_changed_its_recall_fails_and_verify_names_it() {
    let (world, ids, saved) = closed();
    for (seq, id) in (1_i64..).zip(&ids[..2]) {
        for column in ["header", "wrapped", "content", "space"] {
            let bytes =
                read::<Vec<u8>>(&world, &format!("SELECT {column} FROM memory WHERE seq = {seq}")).remove(0);
            for flipped in flips(&bytes) {
                put(&saved, &world.path());
                let sql = format!("UPDATE memory SET {column} = ?1 WHERE seq = ?2");
                run(&world, &sql, &[flipped.into(), seq.into()]);
                let vault = world.open();
                let refused = vault.recall(OWNER, *id, "").unwrap_err();
                assert_eq!(refused.code(), "VAULT_TAMPERED", "{column} of {seq}");
                let problems = vault.verify().unwrap().problems;
                assert!(
                    problems.iter().any(|problem| problem.place.contains(&id.to_string())),
                    "{problems:?}"
                );
            }
        }
    }
}

#[test]
fn whichever_state_before_a_vault_is_set_back_to_the_checkpoint_outside_shows_it() {
    let world = World::new();
    let states: Vec<PathBuf> = (0..6)
        .map(|number| {
            drop(world.open());
            let vault = world.open();
            store(&vault, &format!("content {number}"), Level::Working);
            drop(vault);
            let state = world.directory.path().join(format!("state-{number}"));
            put(&world.path(), &state);
            state
        })
        .collect();
    let outside = std::fs::read(world.path().join("checkpoints")).unwrap();
    for state in &states[..5] {
        put(state, &world.path());
        std::fs::write(world.path().join("checkpoints"), &outside).unwrap();
        let vault = world.cold();
        let refused = vault.unlock_with(&owner()).unwrap_err();
        assert_eq!(refused.code(), "VAULT_TAMPERED");
        assert!(refused.to_string().contains("it was cut"), "{refused}");
    }
    put(&states[5], &world.path());
    assert_eq!(found(&world), "");
}

#[test]
fn of_a_forgotten_memory_no_word_is_left_for_who_has_the_owners_secret() {
    let words = ["zebracontent", "zebrakey", "zebravalue", "zebraintent", "zebrasource"];
    let [content, key, value, intent, source] = words;
    let world = World::new();
    let vault = world.open();
    let mut memory = NewMemory::new(content.as_bytes(), Level::Private, "home");
    memory.metadata.insert(key.into(), value.into());
    memory.searchable.push(key.into());
    (memory.intents, memory.source) = (vec![intent.into()], source.into());
    let id = vault.store(OWNER, memory).unwrap();
    assert_eq!(vault.search(OWNER, "home", content).unwrap().len(), 1);
    assert_eq!(vault.by_intent(OWNER, intent).unwrap().len(), 1);
    let everything = |vault: &Vault| {
        let (exported, next) = vault.export(0).unwrap();
        assert_eq!(next, None);
        let lines: Vec<String> = exported.iter().map(|one| one.to_json().to_string()).collect();
        let log = vault.read_log(Default::default()).unwrap();
        let listed = vault.list(OWNER, "home", None).unwrap();
        format!("{lines:?} {log:?} {listed:?} {:?} {:?}", vault.approvals(), vault.backups())
    };
    let before = everything(&vault);
    assert!(words.iter().all(|word| before.contains(word)), "the look shows them: {before}");
    vault.forget(OWNER, id, "").unwrap();
    let nothing = |vault: &Vault| {
        let after = everything(vault);
        for word in words {
            assert!(!after.contains(word), "{word}: {after}");
        }
        assert_eq!(vault.search(OWNER, "home", content).unwrap(), []);
        assert_eq!(vault.by_intent(OWNER, intent).unwrap(), []);
    };
    nothing(&vault);
    drop(vault);
    nothing(&world.open());
}

#[test]
fn a_restored_vault_has_the_log_with_its_proofs_the_tombstones_and_all_profiles() {
    let world = World::new();
    let vault = world.open();
    let kept = store(&vault, "kept", Level::Private);
    let closed = store(&vault, "closed", Level::Private);
    vault.tombstone(OWNER, closed, "over").unwrap();
    let own = passphrase("the profile's own");
    let new = |name: &str| NewProfile { name: name.into(), exportable: false, rotation: Rotation::default() };
    vault.make_profile(new("work"), None).unwrap();
    vault.make_profile(new("doctor"), Some(ProfileKey::generate("doctor", &own).unwrap())).unwrap();
    let of = |profile: &str| {
        let memory = NewMemory {
            profile: Some(profile.into()),
            ..NewMemory::new(profile.as_bytes(), Level::Private, "home")
        };
        vault.store(OWNER, memory).unwrap()
    };
    let (work, doctor) = (of("work"), of("doctor"));
    let size = vault.status().unwrap().events;
    let proved: Vec<_> = (0..size).map(|event| vault.prove(event).unwrap().0).collect();
    let identity = Identity::generate();
    let sealing = Sealing::to(vec![identity.recipient()]);
    let directory = world.directory.path().join("backups");
    let new = NewBackup { directory, kind: BackupKind::Full, sealing, description: String::new() };
    let files = [vault.backup(&new).unwrap().path];
    let profiles: Vec<_> = vault.profiles().unwrap().into_iter().map(|state| state.profile).collect();
    drop(vault);

    let target = world.directory.path().join("elsewhere");
    let (opening, secret) = (Opening::with(vec![identity]), owner());
    let mut wanted = Restore::new(&target, &files, (&opening, &secret));
    wanted.clock = world.clock.clone();
    restore(&wanted).unwrap();
    let vault = Vault::open(&target, world.options()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
    let restored: Vec<_> = vault.profiles().unwrap().into_iter().map(|state| state.profile).collect();
    assert_eq!(restored, profiles);
    let record = vault.profile_record("doctor").unwrap();
    vault.open_profile("doctor", unwrap_profile(&record, "doctor", &own).unwrap()).unwrap();
    for (id, text) in [(kept, "kept"), (work, "work"), (doctor, "doctor")] {
        assert_eq!(vault.recall(OWNER, id, "").unwrap().content.expose(), text.as_bytes());
    }
    assert_eq!(vault.recall(OWNER, closed, "").unwrap_err().code(), "MEMORY_GONE");
    let (listed, _) = vault.list(OWNER, "home", None).unwrap();
    assert!(listed.iter().any(|header| header.id == closed && header.state == State::Tombstoned));
    let trusted = [stvor_tlog::Verifier::parse(&vault.status().unwrap().verifier).unwrap()];
    for (event, entry) in (0..).zip(&proved) {
        let (now, proof) = vault.prove(event).unwrap();
        assert_eq!(now, *entry, "the event {event} is the one from before");
        proof.verify(entry, "example.com/vault", &trusted).unwrap();
    }
}
