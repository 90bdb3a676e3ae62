//! Memories of the Python program memory-vault are taken over. The fixtures are made by `fixtures/python-vault/make.py`.

use std::path::PathBuf;

use std::time::Duration;

use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes};
use stvor_vault::import::python_vault::{Key, read_backup, read_database};
use stvor_vault::import::{TakeOver, take_over};
use stvor_vault::{Caller, Level, LogQuery, NewMemory, Trust, limits};

use crate::world::World;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/python-vault").join(name)
}

/// At private, into `home`, believing nothing.
fn at(now: u64) -> TakeOver<'static> {
    TakeOver { level: Level::Private, namespace: "home", minimum: Level::Ephemeral, keep_trust: false, now }
}

fn keyfile() -> Key {
    Key::Keyfile(Secret::from_slice(&std::fs::read(fixture("static-keyfile.key")).unwrap()).unwrap())
}

#[test]
fn memories_under_a_keyfile_come_over_with_what_was_known_of_them() {
    let old = read_database(&fixture("vault.db")).unwrap();
    assert_eq!(old.len(), 4);
    let memory = old[0].open(&keyfile(), "old").unwrap();
    assert_eq!((memory.content.expose(), memory.level), (&b"tea at five"[..], Some(Level::Private)));
    assert_eq!(memory.metadata["topic"], "habits");
    assert_eq!(memory.metadata["count"], "3");
    assert_eq!(memory.metadata["memory-vault.created-at"], "2026-02-20T08:00:00+00:00");
    assert_eq!(memory.intents, ["tea", "time"]);
    assert_eq!(memory.cooldown.unwrap().as_secs(), 30);
    assert_eq!(memory.trust, Trust::Agent, "what a column says of its maker is nobody's word");
    assert_eq!(old[1].open(&keyfile(), "old").unwrap().intents, ["greeting"]);
    assert!(old[2].tombstoned && !old[1].tombstoned);

    let world = World::new();
    let vault = world.open();
    let id = vault.store(&Caller::Owner, memory).unwrap();
    assert_eq!(vault.recall(&Caller::Owner, id, "").unwrap().content.expose(), b"tea at five");
}

#[test]
fn what_was_known_of_a_memory_and_is_too_long_is_cut_and_named() {
    let mut old = read_database(&fixture("vault.db")).unwrap().remove(0);
    let long = "é".repeat(limits::MAX_TEXT / 2);
    old.metadata = Some(serde_json::json!({ "fits": long, "cut": format!("x{long}") }).to_string());
    assert_eq!(old.cut(), ["cut"]);
    let memory = old.open(&keyfile(), "old").unwrap();
    assert_eq!(memory.metadata["fits"], long);
    assert_eq!(memory.metadata["cut"].len(), limits::MAX_TEXT - 1, "no half of a character");
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

#[test]
fn what_was_closed_elsewhere_is_closed_from_the_moment_it_is_stored() {
    let world = World::new();
    let vault = world.open();
    let memory = NewMemory {
        tombstone: Some("it was tombstoned in memory-vault".into()),
        ..NewMemory::new(b"tea at five", Level::Private, "home")
    };
    let id = vault.store(&Caller::Owner, memory).unwrap();
    let gone = vault.recall(&Caller::Owner, id, "").unwrap_err();
    assert_eq!(gone.code(), "MEMORY_GONE");
    assert_eq!(vault.search(&Caller::Owner, "home", "tea").unwrap(), []);
    let operations: Vec<_> = vault
        .read_log(LogQuery { memory: Some(id), ..LogQuery::default() })
        .unwrap()
        .entries
        .iter()
        .map(|entry| (entry.event.operation, entry.said.clone()))
        .collect();
    assert_eq!(
        operations.last().unwrap().1.as_deref(),
        Some("it was tombstoned in memory-vault"),
        "{operations:?}"
    );
    let list = std::fs::read_to_string(world.path().join("forgotten")).unwrap();
    assert!(list.contains(&id.to_string()), "no restore opens it either");
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn an_export_is_taken_over_by_another_vault_with_what_was_known_of_each_memory() {
    let (from, to) = (World::new(), World::new());
    let vault = from.open();
    let mut memory = NewMemory::new(b"tea at five", Level::Private, "home");
    memory.metadata.insert("topic".into(), "habits".into());
    memory.intents.push("travel".into());
    memory.trust = Trust::Owner;
    memory.ttl = Some(Duration::from_secs(3_600));
    let kept = vault.store(&Caller::Owner, memory).unwrap();
    vault.store(&Caller::Owner, NewMemory::new(&[0, 255], Level::Working, "bytes")).unwrap();
    let gone = vault.store(&Caller::Owner, NewMemory::new(b"gone", Level::Working, "home")).unwrap();
    vault.forget(&Caller::Owner, gone, "").unwrap();
    let (exported, _) = vault.export(0).unwrap();
    let lines: Vec<String> = exported.iter().map(|one| one.to_json().to_string()).collect();
    let file = lines.join("\n") + "\n";

    let now = from.clock.wall() + 600_000;
    let taken = take_over(file.as_bytes(), &TakeOver { keep_trust: true, ..at(now) }).unwrap();
    assert_eq!((taken.memories.len(), taken.passed_over, taken.stale), (2, 1, 0));
    assert_eq!(taken.memories[1].line, 2);
    let other = to.open();
    let ids: Vec<_> =
        taken.memories.into_iter().map(|one| other.store(&Caller::Owner, one.memory).unwrap()).collect();
    let recalled = other.recall(&Caller::Owner, ids[0], "").unwrap();
    assert_eq!((recalled.content.expose(), recalled.header.level), (&b"tea at five"[..], Level::Private));
    assert_eq!((&recalled.header.namespace[..], &recalled.header.metadata["topic"][..]), ("home", "habits"));
    assert_eq!(
        (&recalled.header.intents[..], recalled.header.trust),
        (&["travel".to_owned()][..], Trust::Owner)
    );
    assert_eq!(recalled.header.expires, Some(to.clock.wall() + 3_000_000), "what was left of its time");
    assert!(ids[0] != kept, "a name is of one vault");
    let known = &recalled.header.metadata;
    assert_eq!(known["imported.id"], kept.to_string());
    assert_eq!(known["imported.creator"], "owner");
    assert_eq!(known["imported.created"], from.clock.wall().to_string());
    assert_eq!(other.recall(&Caller::Owner, ids[1], "").unwrap().content.expose(), [0, 255]);

    // What is left when its time is over, when a line is not understood, and what an MCP server kept.
    let late = take_over(file.as_bytes(), &at(now + 3_600_000)).unwrap();
    assert_eq!((late.memories.len(), late.passed_over), (1, 2));
    let broken = take_over(format!("{file}no json\n").as_bytes(), &at(now)).unwrap_err();
    assert!(broken.to_string().contains("line 4"), "{broken}");
    let mcp = br#"{"type":"entity","name":"Ann","entityType":"person","observations":["likes tea"]}"#;
    let taken = take_over(mcp, &at(now)).unwrap();
    let memory = &taken.memories[0].memory;
    assert_eq!((memory.level, memory.namespace.as_deref()), (Some(Level::Private), Some("home")));
    let taken = take_over(mcp, &TakeOver { minimum: Level::Sealed, ..at(now) }).unwrap();
    assert_eq!(taken.memories[0].memory.level, Some(Level::Sealed));
}

#[test]
fn a_file_makes_nothing_the_owners_word_and_lowers_no_level_below_what_was_asked_for() {
    let world = World::new();
    let vault = world.open();
    let mut memory = NewMemory::new(b"the owner trusts the caller", Level::Working, "home");
    memory.trust = Trust::Owner;
    vault.store(&Caller::Owner, memory).unwrap();
    let mut memory = NewMemory::new(b"a page said so", Level::Sealed, "home");
    memory.trust = Trust::Untrusted;
    memory.metadata = (0..64).map(|number| (number.to_string(), "full".to_owned())).collect();
    vault.store(&Caller::Owner, memory).unwrap();
    let (exported, _) = vault.export(0).unwrap();
    let mut lines: Vec<_> = exported.iter().map(|one| one.to_json()).collect();
    // The second needs a boundary daemon to be given out; somebody writes a content into the file.
    lines[1]["content"] = serde_json::json!({ "text": "a page said so" });
    let file = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let read = |wanted| {
        let taken = take_over(file.as_bytes(), &wanted).unwrap();
        taken.memories.iter().map(|one| (one.memory.level.unwrap(), one.memory.trust)).collect::<Vec<_>>()
    };
    assert_eq!(read(at(1)), [(Level::Working, Trust::Agent), (Level::Sealed, Trust::Untrusted)]);
    assert_eq!(
        read(TakeOver { keep_trust: true, minimum: Level::Private, ..at(1) }),
        [(Level::Private, Trust::Owner), (Level::Sealed, Trust::Untrusted)]
    );
    // Metadata that leaves no room for more is no reason to lose a memory.
    let taken = take_over(file.as_bytes(), &at(1)).unwrap();
    assert_eq!(taken.memories[1].memory.metadata.len(), 64);
}

#[test]
fn what_was_corrected_stays_corrected_or_says_so() {
    let world = World::new();
    let vault = world.open();
    let mut last = None;
    for content in [b"tea at five", b"tea at six!", b"tea at ten!"] {
        let supersedes = last;
        let memory = NewMemory { supersedes, ..NewMemory::new(content, Level::Working, "home") };
        last = Some(vault.store(&Caller::Owner, memory).unwrap());
    }
    let (exported, _) = vault.export(0).unwrap();
    let lines: Vec<String> = exported.iter().map(|one| one.to_json().to_string()).collect();
    let names: Vec<_> = exported.iter().map(|one| one.id).collect();
    let take = |lines: &[&String]| {
        let file = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        take_over(file.as_bytes(), &at(1)).unwrap()
    };
    let all = take(&[&lines[0], &lines[1], &lines[2]]);
    let corrects: Vec<_> = all.memories.iter().map(|one| one.corrects).collect();
    assert_eq!(corrects, [None, Some(names[0]), Some(names[1])]);
    assert_eq!(all.stale, 0);
    // The corrections are missing, or stand before what they correct: the old word must not pass for the last one.
    for lines in [&[&lines[0]][..], &[&lines[1], &lines[0]]] {
        let some = take(lines);
        assert_eq!(some.stale, lines.len() as u64);
        assert!(some.memories.iter().all(|one| one.memory.metadata["imported.state"] == "superseded"));
    }
    // Lines that were doubled by hand correct nothing twice.
    let doubled = take(&[&lines[0], &lines[1], &lines[1]]);
    assert_eq!(doubled.memories.iter().filter(|one| one.corrects.is_some()).count(), 1);
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
