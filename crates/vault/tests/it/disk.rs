//! What is on the disk, and what is not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use stvor_base::ErrorCode as _;
use stvor_keys::recipients::{Identity, Sealing};
use stvor_vault::backup::{BackupKind, NewBackup};
use stvor_vault::{Caller, Level, NewKeys, NewMemory, Vault};

use crate::world::World;

const OWNER: &Caller = &Caller::Owner;

#[test]
fn where_files_can_not_be_private_no_vault_is_made() {
    let directory = tempfile::tempdir().unwrap();
    // As on FAT, where a file that is made for its owner only is everybody's.
    let lock = directory.path().join("lock");
    std::fs::write(&lock, "").unwrap();
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o644)).unwrap();
    let keys = NewKeys { owner: &crate::world::owner(), vaulted: None, origin: "example.com/vault" };
    let refused = Vault::create(directory.path(), &keys).unwrap_err();
    assert_eq!(refused.code(), "VAULT_IO");
    assert!(refused.to_string().contains("FAT"), "{refused}");
    assert!(!directory.path().join("vault.db").exists());
    std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o600)).unwrap();
    Vault::create(directory.path(), &keys).unwrap();
}

fn holds(directory: &Path, needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() {
            found.extend(holds(&entry.path(), needle));
        } else if std::fs::read(entry.path()).unwrap().windows(needle.len()).any(|window| window == needle) {
            found.push(entry.path().display().to_string());
        }
    }
    found
}

/// Files that this process has open, also those without a name any more, as SQLite's temporary ones.
fn open_files_with(needle: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok) {
        let regular = std::fs::metadata(entry.path()).is_ok_and(|about| about.is_file());
        let bytes = if regular { std::fs::read(entry.path()).unwrap_or_default() } else { Vec::new() };
        if bytes.windows(needle.len()).any(|window| window == needle) {
            let name = std::fs::read_link(entry.path()).unwrap_or_default();
            // The program's own words are in the program.
            if !std::env::current_exe().is_ok_and(|program| program == name) {
                found.push(name.display().to_string());
            }
        }
    }
    found
}

#[test]
fn no_plaintext_is_in_any_file() {
    let world = World::new();
    let vault = world.open();
    let words =
        ["zebracontent", "zebraspace", "zebrakey", "zebravalue", "zebraintent", "zebrasource", "zebrawhy"];
    let [content, space, key, value, intent, source, why] = words;
    for level in [Level::Ephemeral, Level::Working, Level::Private, Level::Sealed, Level::Vaulted] {
        let mut memory = NewMemory::new(content.as_bytes(), level, space);
        memory.metadata.insert(key.into(), value.into());
        memory.searchable.push(key.into());
        memory.intents.push(intent.into());
        memory.source = source.into();
        let id = vault.store(OWNER, memory).unwrap();
        vault.search(OWNER, space, content).unwrap();
        let _ = vault.recall(OWNER, id, why);
        vault.request_approval(OWNER, id, why).unwrap();
    }
    // While it is open, with its journal, and after.
    for word in words {
        assert_eq!(holds(world.directory.path(), word.as_bytes()), [] as [String; 0], "{word}");
        assert_eq!(open_files_with(word.as_bytes()), [] as [String; 0], "{word}");
    }
    // A search of much makes SQLite sort; a backup writes a copy beside the vault and one elsewhere.
    for number in 0..300 {
        vault
            .store(OWNER, NewMemory::new(format!("{content} {number}").as_bytes(), Level::Working, space))
            .unwrap();
    }
    assert_eq!(vault.search(OWNER, space, content).unwrap().len(), 200);
    let sealing = Sealing::to(vec![Identity::generate().recipient()]);
    let directory = world.directory.path().join("backups");
    let new = NewBackup { directory, kind: BackupKind::Full, sealing, description: why.into() };
    std::thread::scope(|scope| {
        let making = scope.spawn(|| vault.backup(&new).unwrap());
        while !making.is_finished() {
            assert_eq!(open_files_with(content.as_bytes()), [] as [String; 0]);
        }
    });
    for word in words {
        assert_eq!(holds(world.directory.path(), word.as_bytes()), [] as [String; 0], "{word}");
        assert_eq!(open_files_with(word.as_bytes()), [] as [String; 0], "{word}");
    }
    drop(vault);
    for word in words {
        assert_eq!(holds(world.directory.path(), word.as_bytes()), [] as [String; 0], "{word}");
    }
    assert!(!holds(world.directory.path(), b"example.com/vault").is_empty(), "the search works");
}

#[test]
fn nothing_of_a_forgotten_memory_is_left_on_the_disk() {
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(&[b'x'; 3_000], Level::Private, "home")).unwrap();
    drop(vault);
    let parts = || -> [Vec<u8>; 3] {
        Connection::open(world.path().join("vault.db"))
            .unwrap()
            .query_row("SELECT header, wrapped, content FROM memory", [], |row| {
                Ok([row.get(0)?, row.get(1)?, row.get(2)?])
            })
            .unwrap()
    };
    // A header is sealed under a key that the owner keeps: an old one would show its words.
    let first = parts();
    let vault = world.open();
    vault.set_intent(OWNER, id, ("travel", true)).unwrap();
    drop(vault);
    let all: Vec<Vec<u8>> = first.into_iter().chain(parts()).map(|part| part[20..60].to_vec()).collect();
    for part in &all[3..] {
        assert!(!holds(world.directory.path(), part).is_empty(), "the search finds what is there");
    }
    let vault = world.open();
    vault.forget(OWNER, id, "no longer true").unwrap();
    for (number, part) in all.iter().enumerate() {
        assert_eq!(
            holds(world.directory.path(), part),
            [] as [String; 0],
            "{number}: before the answer, journal included"
        );
    }
}

#[test]
fn files_are_for_their_owner_only() {
    let world = World::new();
    let vault = world.open();
    vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&world.path()), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(world.path()).unwrap().map(Result::unwrap) {
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        files += 1;
    }
    assert!(files >= 3, "database, journal, checkpoints, lock");
}
