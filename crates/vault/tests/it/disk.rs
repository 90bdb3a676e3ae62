//! What is on the disk, and what is not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rusqlite::Connection;
use stvor_vault::{Caller, Level, NewMemory};

use crate::world::World;

const OWNER: &Caller = &Caller::Owner;

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
    for _ in 0..2 {
        for word in words {
            assert_eq!(holds(world.directory.path(), word.as_bytes()), [] as [String; 0], "{word}");
        }
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
    let (wrapped, content): (Vec<u8>, Vec<u8>) = Connection::open(world.path().join("vault.db"))
        .unwrap()
        .query_row("SELECT wrapped, content FROM memory", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap();
    let (key, part) = (&wrapped[..60], &content[100..160]);
    assert!(
        !holds(world.directory.path(), key).is_empty() && !holds(world.directory.path(), part).is_empty()
    );
    let vault = world.open();
    vault.forget(OWNER, id, "no longer true").unwrap();
    assert_eq!(holds(world.directory.path(), key), [] as [String; 0], "before the answer, journal included");
    assert_eq!(holds(world.directory.path(), part), [] as [String; 0]);
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
