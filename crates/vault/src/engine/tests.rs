//! What can not be tried from outside.

use core::time::Duration;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stvor_base::ErrorCode as _;
use stvor_crypto::SecretBytes;
use stvor_crypto::kdf::sha256;
use stvor_keys::{Passphrase, PassphraseCost};
use stvor_tlog::{Checkpoint, Hash, Signer};

use super::agents::{Agent, Caller, Ends};
use super::indexing::MOST;
use super::sessions::SessionId;
use crate::backup::{BackupKind, BackupRecord, FORMAT, Manifest};
use crate::gates::approval::Stand;
use crate::keys::NewKeys;
use crate::level::Level;
use crate::memory::{MemoryId, NewMemory, Purged, State};
use crate::metrics::{Alert, AlertHook};
use crate::profiles::{NewProfile, Rotation};
use crate::storage::{Table, index};
use crate::{Clock, Moment, Options, Vault, VaultError, limits};

fn owner() -> Passphrase {
    let cost = PassphraseCost { memory_kib: 64, iterations: 1, parallelism: 1 };
    Passphrase::new(SecretBytes::from_slice(b"correct horse")).unwrap().with_cost(cost).unwrap()
}

/// A clock that only moves when a test says so.
#[derive(Debug, Default)]
struct Still(AtomicU64);

impl Clock for Still {
    fn now(&self) -> Moment {
        let uptime = self.0.load(Ordering::Relaxed);
        Moment { wall: 1_800_000_000_000 + uptime, uptime, boot: "first".into() }
    }
}

/// A clock on the wall that a test sets ahead of the one that only runs: nothing is destroyed by it.
#[derive(Debug, Default)]
struct Ahead(AtomicU64);

impl Clock for Ahead {
    fn now(&self) -> Moment {
        let wall = 1_800_000_000_000 + self.0.load(Ordering::Relaxed);
        Moment { wall, uptime: 1, boot: "first".into() }
    }
}

fn vault(directory: &Path) -> Vault {
    vault_at(directory, Options::default())
}

fn vault_at(directory: &Path, options: Options) -> Vault {
    let path = directory.join("vault");
    if !path.exists() {
        Vault::create(&path, &NewKeys { owner: &owner(), vaulted: None, origin: "example.com/vault" })
            .unwrap();
    }
    let vault = Vault::open(&path, options).unwrap();
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
    let named = anew.to_string().contains(&file.display().to_string());
    assert!(anew.to_string().contains("written anew") && named, "{anew}");
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

fn enrol(vault: &Vault, name: &str, namespaces: &[&str]) -> Caller {
    let credential = vault.enrol(Agent::new(name, namespaces, Level::Working)).unwrap();
    vault.authenticate(credential.expose()).unwrap()
}

/// Stores a memory of so many bytes of words.
fn store(vault: &Vault, namespace: &str, bytes: usize) -> MemoryId {
    let words = "word".repeat(25) + " ";
    let text = format!("tea {}", words.repeat(bytes / words.len()));
    vault.store(&Caller::Owner, NewMemory::new(text.as_bytes(), Level::Working, namespace)).unwrap()
}

fn held(vault: &Vault) -> usize {
    vault.ask(|engine| Ok(engine.index.namespaces())).wait().unwrap()
}

#[test]
fn names_of_nothing_that_an_agent_searches_take_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let agent = enrol(&vault, "curious", &["project/*"]);
    let asker = agent.clone();
    let searches = move |engine: &mut super::Engine| {
        for number in 0..1_000 {
            assert_eq!(engine.search(&asker, &format!("project/{number}"), "tea")?.memories, []);
        }
        Ok::<_, VaultError>(engine.index.namespaces())
    };
    assert_eq!(vault.ask(searches).wait().unwrap(), 0);
    store(&vault, "project/tea", 10);
    assert_eq!(vault.search(&agent, "project/tea", "tea").unwrap().len(), 1);
    assert_eq!(held(&vault), 1);
}

#[test]
fn a_header_that_is_set_back_after_its_words_were_read_is_not_found() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let owner = &Caller::Owner;
    let [first, second] = [0, 1].map(|_| store(&vault, "home", 10));
    let found = || vault.search(owner, "home", "tea").unwrap();
    assert_eq!(found().len(), 2);
    let header = move |engine: &mut super::Engine| {
        let row = engine.database.memory_header(&first)?;
        Ok::<_, VaultError>(row.unwrap().header)
    };
    let old = vault.ask(header).wait().unwrap();
    vault.set_intent(owner, first, ("travel", true)).unwrap();
    assert_eq!(found().len(), 2);
    let sql = format!("UPDATE memory SET header = x'{}' WHERE id = x'{first}'", crate::audit::hex(&old));
    vault.ask(move |engine| engine.database.run(&sql)).wait().unwrap();
    assert_eq!(found().iter().map(|header| header.id).collect::<Vec<_>>(), [second]);
}

#[test]
fn a_namespace_of_too_many_words_is_refused_before_anything_makes_room_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let owner = &Caller::Owner;
    store(&vault, "small", 10);
    assert_eq!(vault.search(owner, "small", "tea").unwrap().len(), 1);
    let part = MOST / 4 - 100;
    let ids: Vec<_> = (0..5).map(|_| store(&vault, "large", part)).collect();
    let refused = vault.search(owner, "large", "tea").unwrap_err();
    assert!(refused.to_string().contains("more words than can be searched"), "{refused}");
    assert_eq!((held(&vault), vault.search(owner, "small", "tea").unwrap().len()), (1, 1));
    // What can not be found by its content takes no room for it.
    for _ in 0..5 {
        let sealed = NewMemory::new(&vec![b'x'; part], Level::Sealed, "sealed");
        vault.store(owner, sealed).unwrap();
    }
    assert_eq!(vault.search(owner, "sealed", "tea").unwrap(), []);
    assert_eq!(held(&vault), 2);
    // Nor does what is gone.
    for id in &ids[..2] {
        vault.forget(owner, *id, "").unwrap();
    }
    assert_eq!(vault.search(owner, "large", "tea").unwrap().len(), 3);
    // A namespace that becomes too large is not half in it.
    for _ in 0..2 {
        store(&vault, "large", part);
    }
    assert_eq!(vault.search(owner, "small", "tea").unwrap().len(), 1);
    vault.search(owner, "large", "tea").unwrap_err();
}

#[test]
fn namespaces_take_turns_in_the_index_and_none_loses_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        store(&vault, name, MOST / 4);
    }
    for _ in 0..2 {
        for name in names {
            assert_eq!(vault.search(&Caller::Owner, name, "tea").unwrap().len(), 1, "{name}");
        }
    }
    assert!((1..5).contains(&held(&vault)));
}

#[test]
fn an_agent_has_the_vault_read_only_so_much() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock: clock.clone(), ..Options::default() });
    let (greedy, other) = (enrol(&vault, "greedy", &["*"]), enrol(&vault, "other", &["*"]));
    let part = MOST / 4 - 100;
    for _ in 0..5 {
        store(&vault, "large", part);
    }
    store(&vault, "small", 10);
    store(&vault, "third", 10);
    vault.search(&greedy, "small", "tea").unwrap();
    let search =
        |caller: &Caller, name: &str| vault.search(caller, name, "tea").map_err(|error| error.code());
    let tries = (0..60).position(|_| search(&greedy, "large") == Err("AGENT_READ_QUOTA"));
    assert_eq!(tries, Some(3), "each counts six mebibytes of the sixteen");
    assert_eq!(search(&greedy, "third"), Err("AGENT_READ_QUOTA"));
    assert_eq!(search(&greedy, "small").map(|found| found.len()), Ok(1), "what is there costs nothing");
    assert_eq!(search(&other, "third").map(|found| found.len()), Ok(1), "others go on");
    let Err(VaultError::Refused(refused)) = vault.search(&greedy, "large", "tea") else { panic!("read") };
    let crate::Refusal::ReadQuota { left } = refused else { panic!("{refused}") };
    let millis = u64::try_from(left.as_millis()).unwrap();
    assert_eq!(millis % 60_000, 0, "of the namespace it tells no bytes");
    clock.0.fetch_add(millis - 60_000, Ordering::Relaxed);
    assert_eq!(search(&greedy, "large"), Err("AGENT_READ_QUOTA"));
    clock.0.fetch_add(60_001, Ordering::Relaxed);
    assert_eq!(search(&greedy, "large"), Err("VAULT_BAD_REQUEST"), "it is too large, as before");
    // So does what a list passes over, and who is enrolled anew begins anew.
    assert_eq!(vault.list(&greedy, "small", None).map_err(|error| error.code()), Err("AGENT_READ_QUOTA"));
    vault.remove_agent("greedy").unwrap();
    let again = enrol(&vault, "greedy", &["*"]);
    vault.list(&again, "small", None).unwrap();
    (0..5).for_each(|_| drop(vault.search(&Caller::Owner, "large", "tea")));
    assert_eq!(search(&Caller::Owner, "large"), Err("VAULT_BAD_REQUEST"), "the owner may");
}

#[test]
fn what_forgetting_would_reach_is_read_only_so_often_for_an_agent() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let greedy = enrol(&vault, "greedy", &["*"]);
    let about = |number: usize| (format!("key {number}"), "x".repeat(limits::MAX_TEXT));
    let mut newest = None;
    for _ in 0..10 {
        let version = NewMemory {
            metadata: (0..limits::MAX_METADATA).map(about).collect(),
            supersedes: newest,
            ..NewMemory::new(b"version", Level::Working, "home")
        };
        newest = Some(vault.store(&greedy, version).unwrap());
    }
    let newest = newest.unwrap();
    let ask = |caller: &Caller| {
        let reach = vault.would_forget(caller, newest, false);
        reach.map(|reach| reach.keeps.len()).map_err(|error| error.code())
    };
    let tries = (0..60).position(|_| ask(&greedy) == Err("AGENT_READ_QUOTA"));
    assert_eq!(tries, Some(8), "each reads two whole mebibytes of the sixteen");
    assert_eq!(ask(&Caller::Owner), Ok(9), "the owner may");
}

/// A memory of which a quarter of a mebibyte is known.
fn large(level: Level) -> NewMemory {
    let about = |number: usize| (format!("key {number}"), "x".repeat(limits::MAX_TEXT));
    NewMemory {
        metadata: (0..limits::MAX_METADATA).map(about).collect(),
        intents: vec!["travel".into()],
        ..NewMemory::new(b"large", level, "home")
    }
}

/// Stores what an agent of level 1 may not know of.
fn hide(vault: &Vault, count: usize) {
    for _ in 0..count {
        vault.store(&Caller::Owner, large(Level::Private)).unwrap();
    }
}

#[test]
fn of_little_that_is_hidden_the_quota_of_what_is_read_tells_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let curious = enrol(&vault, "curious", &["*"]);
    let refused = || (0..30).position(|_| vault.list(&curious, "home", None).is_err());
    hide(&vault, 3);
    // What it adds itself fills no mebibyte that others began.
    let own = vault.store(&curious, large(Level::Working)).unwrap();
    vault.tombstone(&curious, own, "").unwrap();
    assert_eq!(refused(), None, "each list passes over less than a mebibyte of others");
    hide(&vault, 2);
    assert_eq!(refused(), Some(16), "each passes over a mebibyte and some more, of the sixteen");
}

#[test]
fn the_first_search_of_a_namespace_does_not_tell_how_much_others_store_there() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    hide(&vault, 3);
    for (name, namespace) in [("here", "home"), ("there", "empty")] {
        let curious = enrol(&vault, name, &["*"]);
        vault.store(&curious, NewMemory::new(b"tea", Level::Working, namespace)).unwrap();
        // So that each search is the first one.
        let first = || {
            let drop_index = |engine: &mut super::Engine| {
                engine.drop_index();
                Ok(())
            };
            vault.ask(drop_index).wait().unwrap();
            vault.search(&curious, namespace, "tea").is_err()
        };
        assert_eq!((0..30).position(|_| first()), Some(16), "{namespace}");
    }
}

#[test]
fn headers_that_are_read_twice_for_the_index_are_counted_twice() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let curious = enrol(&vault, "curious", &["*"]);
    // More than the index holds, and no words: they are looked at before, and then read.
    for _ in 0..18 {
        vault.store(&Caller::Owner, large(Level::Sealed)).unwrap();
    }
    let first = || {
        let drop_index = |engine: &mut super::Engine| {
            engine.drop_index();
            Ok(())
        };
        vault.ask(drop_index).wait().unwrap();
        vault.search(&curious, "home", "tea").is_err()
    };
    assert_eq!((0..30).position(|_| first()), Some(2), "each reads nine mebibytes of the sixteen");
}

/// How many memories of `home` have a word in the index, whoever may know of them.
fn hits(vault: &Vault, word: &str) -> usize {
    let words = index::words(word).unwrap();
    let find = move |engine: &mut super::Engine| {
        let bounds = index::Bounds { count: 10, beginnings: u64::MAX, steps: u64::MAX };
        let levels = [Level::Working, Level::Private];
        engine.index.find(("home", &levels), &words, bounds, &mut Vec::new())
    };
    vault.ask(find).wait().unwrap().unwrap().len()
}

#[test]
fn words_of_level_2_do_not_come_into_the_index_after_a_lock() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let agent = enrol(&vault, "agent", &["home"]);
    store(&vault, "home", 10);
    vault.search(&agent, "home", "tea").unwrap();
    // All in one commit.
    let together = move |engine: &mut super::Engine| {
        let private = NewMemory::new(b"a hidden tea", Level::Private, "home");
        engine.store((&Caller::Owner, SessionId::OWNER), &private)?;
        engine.lock()?;
        engine.search(&agent, "home", "tea").map(|found| found.memories.len())
    };
    assert_eq!(vault.ask(together).wait().unwrap(), 1);
    assert_eq!((hits(&vault, "tea"), hits(&vault, "hidden")), (1, 0));
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.search(&Caller::Owner, "home", "hidden").unwrap().len(), 1, "nothing is lost by that");
}

#[test]
fn words_of_a_profile_do_not_come_into_the_index_after_it_was_closed() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let profile = NewProfile { name: "work".into(), exportable: false, rotation: Rotation::default() };
    vault.make_profile(profile, None).unwrap();
    store(&vault, "home", 10);
    vault.search(&Caller::Owner, "home", "tea").unwrap();
    // All in one commit.
    let together = |engine: &mut super::Engine| {
        let hidden = NewMemory::new(b"a hidden tea", Level::Working, "home");
        let hidden = NewMemory { profile: Some("work".into()), ..hidden };
        engine.store((&Caller::Owner, SessionId::OWNER), &hidden)?;
        engine.close_profile("work")?;
        engine.search(&Caller::Owner, "home", "tea").map(|found| found.memories.len())
    };
    assert_eq!(vault.ask(together).wait().unwrap(), 1);
    assert_eq!((hits(&vault, "tea"), hits(&vault, "hidden")), (1, 0));
    vault.unlock_with(&owner()).unwrap();
    assert_eq!(vault.search(&Caller::Owner, "home", "hidden").unwrap().len(), 1, "nothing is lost by that");
}

#[test]
fn searches_for_beginnings_of_very_many_words_are_refused_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let (greedy, other) = (enrol(&vault, "greedy", &["*"]), enrol(&vault, "other", &["*"]));
    for number in 0..100 {
        let words: String = (0..1_000).map(|word| format!("a{:05} ", number * 1_000 + word)).collect();
        vault.store(&Caller::Owner, NewMemory::new(words.as_bytes(), Level::Working, "home")).unwrap();
    }
    let tea = |_| vault.begin_store(&Caller::Owner, NewMemory::new(b"tea", Level::Working, "home"));
    for one in (0..400).map(tea).collect::<Vec<_>>() {
        one.wait().unwrap();
    }
    let search = |caller: &Caller, query: &str| {
        vault.search(caller, "home", query).map(|found| found.len()).map_err(|error| error.code())
    };
    assert_eq!(search(&Caller::Owner, "a*"), Ok(100), "the owner may");
    let refused = vault.search(&greedy, "home", "a*").unwrap_err();
    assert!(refused.to_string().contains("write more of each"), "{refused}");
    let tries = (1..60).position(|_| search(&greedy, "a*") == Err("AGENT_READ_QUOTA"));
    assert_eq!(tries, Some(15), "each counts a mebibyte of the sixteen");
    assert_eq!((search(&greedy, "a123*"), search(&greedy, "a12345")), (Ok(1), Ok(1)));
    assert_eq!(search(&greedy, "te*"), Ok(limits::MAX_PAGE), "few words, and many memories");
    assert_eq!(search(&other, "a*"), Err("VAULT_BAD_REQUEST"));
}

#[test]
fn searches_that_go_through_long_lists_often_are_refused_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let (greedy, other) = (enrol(&vault, "greedy", &["*"]), enrol(&vault, "other", &["*"]));
    for _ in 0..8 {
        let tea = NewMemory::new("tea ".repeat(5_000).as_bytes(), Level::Working, "home");
        vault.store(&Caller::Owner, tea).unwrap();
    }
    let search = |caller: &Caller, query: &str| {
        vault.search(caller, "home", query).map(|found| found.len()).map_err(|error| error.code())
    };
    // Of one word many: the list of each is gone through.
    let long = ["tea"; 40].join("-");
    assert_eq!(search(&Caller::Owner, &long), Ok(8), "the owner may");
    let refused = vault.search(&greedy, "home", &long).unwrap_err();
    assert!(refused.to_string().contains("fewer of them"), "{refused}");
    let tries = (1..60).position(|_| search(&greedy, &long) == Err("AGENT_READ_QUOTA"));
    assert_eq!(tries, Some(15), "each counts a mebibyte of the sixteen");
    assert_eq!((search(&greedy, "tea"), search(&greedy, "tea-tea")), (Ok(8), Ok(8)));
    assert_eq!(search(&other, &long), Err("VAULT_BAD_REQUEST"));
}

#[test]
fn what_an_agent_asks_for_without_a_log_entry_reads_no_records_but_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let told = Arc::new(AtomicU64::default());
    let damaged = told.clone();
    let hook: Arc<AlertHook> = Arc::new(move |alert: &Alert| {
        damaged.fetch_add(u64::from(matches!(alert, Alert::Damaged { .. })), Ordering::Relaxed);
    });
    let vault = vault_at(directory.path(), Options { alerts: vec![hook], ..Options::default() });
    let agent = Agent::new("agent", &["home"], Level::Sealed);
    let agent = vault.enrol(agent).and_then(|credential| vault.authenticate(credential.expose())).unwrap();
    let other = enrol(&vault, "other", &["home"]);
    let id = vault.store(&agent, NewMemory::new(b"sealed", Level::Sealed, "home")).unwrap();
    let request = vault.request_approval(&agent, id, "report").unwrap();
    // Whoever reads these is told of it.
    let damage = |engine: &mut super::Engine| {
        engine.database.put_record(Table::Approval, &[9; 16], b"damaged")?;
        engine.database.put_slot("backups", b"damaged")
    };
    vault.ask(damage).wait().unwrap();
    assert_eq!(vault.approval(&agent, request).unwrap().unwrap().stand, Stand::Pending);
    assert_eq!(vault.approval(&other, request).unwrap(), None);
    assert!(vault.status_for(&agent).unwrap().1.is_some_and(|used| used > 0));
    assert_eq!(told.load(Ordering::Relaxed), 0);
    assert_eq!((vault.approvals().unwrap().len(), vault.status().unwrap().newest_backup), (1, None));
    assert_eq!(told.load(Ordering::Relaxed), 2, "the owner sees both");
}

#[test]
fn a_session_whose_end_could_not_be_committed_is_ended_later() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let session = vault.begin_session();
    let draft = NewMemory::new(b"draft", Level::Ephemeral, "home");
    let id = vault.begin_store_in(session, &Caller::Owner, draft).wait().unwrap();
    let end = move |engine: &mut super::Engine| {
        let ended = engine.end_session(session, usize::MAX)?;
        engine.broken = Some(VaultError::LogUnavailable("the disk is full".into()));
        Ok(ended)
    };
    assert_eq!(vault.ask(end).wait().unwrap_err().code(), "VAULT_LOG_UNAVAILABLE");
    let gone = || vault.recall(&Caller::Owner, id, "").is_err_and(|error| error.code() == "MEMORY_GONE");
    stvor_testkit::until(Duration::from_secs(60), || gone().then_some(())).unwrap();
    // Once.
    let left = vault.ask(|engine| Ok((engine.leaves_ephemeral(), engine.end_left()?))).wait().unwrap();
    assert_eq!(left, (false, 0));
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn what_a_full_disk_refuses_is_not_remembered_for_the_end_of_its_session() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let draft = || NewMemory::new(b"draft", Level::Ephemeral, "home");
    let (lasting, short) = (vault.begin_session(), vault.begin_session());
    vault.begin_store_in(lasting, &Caller::Owner, draft()).wait().unwrap();
    for session in [lasting, short] {
        let refused = move |engine: &mut super::Engine| {
            engine.store((&Caller::Owner, session), &draft())?;
            if session == short {
                engine.end_session(session, 0)?;
            }
            engine.broken = Some(VaultError::LogUnavailable("the disk is full".into()));
            Ok(())
        };
        assert_eq!(vault.ask(refused).wait().unwrap_err().code(), "VAULT_LOG_UNAVAILABLE");
    }
    let known = |engine: &mut super::Engine| {
        Ok((engine.ephemeral.values().map(Vec::len).sum::<usize>(), engine.ending.len()))
    };
    assert_eq!(vault.ask(known).wait().unwrap(), (1, 0), "the one that was stored");
    assert_eq!(vault.end_session(lasting).unwrap(), 1);
}

/// A session with more memories than a part of its end destroys.
fn large_session(vault: &Vault) -> (SessionId, Vec<MemoryId>) {
    let session = vault.begin_session();
    let draft = |_| {
        let draft = NewMemory::new(b"draft", Level::Ephemeral, "home");
        vault.begin_store_in(session, &Caller::Owner, draft)
    };
    let begun: Vec<_> = (0..limits::MAX_GROUP + 3).map(draft).collect();
    (session, begun.into_iter().map(|one| one.wait().unwrap()).collect())
}

fn all_gone(vault: &Vault, ids: &[MemoryId]) -> bool {
    ids.iter()
        .all(|id| vault.recall(&Caller::Owner, *id, "").is_err_and(|error| error.code() == "MEMORY_GONE"))
}

#[test]
fn a_session_with_very_many_memories_ends_in_parts() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let (session, ids) = large_session(&vault);
    let part = move |engine: &mut super::Engine| engine.end_session(session, limits::MAX_GROUP);
    let left = ids[limits::MAX_GROUP..].to_vec();
    assert_eq!(vault.ask(part).wait().unwrap(), (limits::MAX_GROUP, left));
    // Who asks for the end has all of it when there is an answer.
    let (session, ids) = large_session(&vault);
    vault.end_session(session).unwrap();
    assert!(all_gone(&vault, &ids));
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn who_ends_a_session_has_all_of_it_ended_whatever_is_left_of_others() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let ((other, _), (session, ids)) = (large_session(&vault), large_session(&vault));
    vault.ask(move |engine| engine.end_session(other, 0)).wait().unwrap();
    vault.end_session(session).unwrap();
    assert!(all_gone(&vault, &ids));
}

#[test]
fn what_a_list_reads_of_closed_memories_and_does_not_show_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let agent = Agent::new("greedy", &["*"], Level::Sealed);
    let greedy = vault.enrol(agent).and_then(|credential| vault.authenticate(credential.expose())).unwrap();
    for _ in 0..5 {
        vault.store(&greedy, large(Level::Sealed)).unwrap();
    }
    let listed = || vault.list(&greedy, "home", None).map(|(found, next)| (found.len(), next));
    assert_eq!(listed().unwrap(), (5, None), "its page is as long as ever");
    assert_eq!((1..30).position(|_| listed().is_err()), Some(15), "each read a mebibyte of the sixteen");
}

#[test]
fn one_list_passes_over_only_so_much_and_the_next_goes_on_from_there() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let agent = enrol(&vault, "assistant", &["*"]);
    let store = |text: &[u8]| vault.store(&agent, NewMemory::new(text, Level::Working, "home")).unwrap();
    let old = store(b"old");
    hide(&vault, 20);
    let new = store(b"new");
    let page = |before: Option<&str>| {
        let (found, next) = vault.list(&agent, "home", before).unwrap();
        (found.iter().map(|header| header.id).collect::<Vec<_>>(), next)
    };
    let (found, next) = page(None);
    assert_eq!(found, [new], "four of five mebibytes are hidden behind it");
    assert_eq!(page(Some(&next.unwrap())), (vec![old], None));
    // Of the memories of an intent nobody takes what was found until there for all.
    let found = vault.find_by_intent(&agent, "travel").unwrap();
    assert!(found.memories.is_empty() && found.more, "{found:?}");
}

#[test]
fn an_agent_that_had_much_read_still_forgets_and_is_told_where_to_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let agent = enrol(&vault, "assistant", &["*"]);
    let correct =
        |older| vault.store(&agent, NewMemory { supersedes: older, ..large(Level::Working) }).unwrap();
    let first = correct(None);
    let second = correct(Some(first));
    let third = correct(Some(second));
    hide(&vault, 5);
    while vault.list(&agent, "home", None).is_ok() {}
    let refused = vault.would_forget(&agent, third, true).unwrap_err();
    assert_eq!(refused.code(), "AGENT_READ_QUOTA");
    let left = vault.forget_with_earlier(&agent, third, "").unwrap();
    assert_eq!((left.ended, left.next), (vec![], Some(second)));
    let left = vault.forget_with_earlier(&agent, second, "").unwrap();
    assert_eq!((left.ended, left.next), (vec![], Some(first)));
    assert_eq!(vault.forget_with_earlier(&agent, first, "").unwrap().next, None);
}

/// Asks for something, and gets what comes of it or not.
type Ask = fn(&Vault, &Caller) -> Result<(), VaultError>;

/// Has the database fail where it reads the newest record of one memory.
fn fail_at(vault: &Vault, memory: &str) {
    let overflow = "abs(-9223372036854775807 - (length(header) > 0))";
    let sql = format!(
        "ALTER TABLE fresh RENAME TO records;
         CREATE VIEW fresh AS SELECT id, CASE WHEN id = ({memory}) THEN {overflow} ELSE header END AS header FROM records"
    );
    vault.ask(move |engine| engine.database.run(&sql)).wait().unwrap();
}

#[test]
fn what_was_read_is_counted_also_where_the_reading_fails_half_way() {
    let oldest = "SELECT id FROM memory ORDER BY seq LIMIT 1";
    let newest = "SELECT id FROM memory ORDER BY seq DESC LIMIT 1";
    let last = "SELECT max(id) FROM memory";
    let list: Ask = |vault, caller| vault.list(caller, "home", None).map(drop);
    let by_intent: Ask = |vault, caller| vault.by_intent(caller, "travel").map(drop);
    let search: Ask = |vault, caller| vault.search(caller, "home", "tea").map(drop);
    // Each list and look reads a mebibyte and some more of the sixteen, each first search four, and one for itself.
    let cases = [
        ("list", list, oldest, 6, 16),
        ("intent", by_intent, last, 6, 16),
        ("search", search, newest, 18, 4),
    ];
    for (name, ask, memory, hidden, most) in cases {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(Still::default());
        let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
        let curious = enrol(&vault, "curious", &["*"]);
        hide(&vault, hidden);
        fail_at(&vault, memory);
        let refused = || ask(&vault, &curious).unwrap_err().code() == "AGENT_READ_QUOTA";
        assert_eq!((0..30).position(|_| refused()), Some(most), "{name}");
    }
}

#[test]
fn who_had_as_much_read_as_it_may_has_no_long_row_of_hidden_versions_read() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock, ..Options::default() });
    let agent = Agent { ends: Ends::Any, ..Agent::new("curious", &["*"], Level::Working) };
    let curious = vault.enrol(agent).and_then(|credential| vault.authenticate(credential.expose())).unwrap();
    let store = |memory| vault.store(&Caller::Owner, memory).unwrap();
    let small = || NewMemory::new(b"small", Level::Working, "home");
    let versions = |hidden: usize| {
        let oldest = store(small());
        let hide = |older, _| store(NewMemory { supersedes: Some(older), ..large(Level::Private) });
        let older = (0..hidden).fold(oldest, hide);
        (oldest, store(NewMemory { supersedes: Some(older), ..small() }))
    };
    let (oldest, near) = versions(3);
    let (_, far) = versions(15);
    while vault.list(&curious, "home", None).is_ok() {}
    let left = || match vault.list(&curious, "home", None) {
        Err(VaultError::Refused(crate::Refusal::ReadQuota { left })) => left.as_secs() / 60,
        other => panic!("{other:?}"),
    };
    let before = left();
    let next = |id| vault.forget_with_earlier(&curious, id, "").unwrap().next;
    assert_eq!((next(near), left()), (Some(oldest), before), "less than a mebibyte is read, and not counted");
    assert_eq!(next(far), None, "three mebibytes are hidden behind it");
    assert!(left() - before <= 4, "one of the sixteen mebibytes of an hour is read, and no more");
}

#[test]
fn what_a_search_passes_over_is_counted_and_less_of_it_where_the_quota_is_used_up() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Ahead::default());
    let vault = vault_at(directory.path(), Options { clock: clock.clone(), ..Options::default() });
    let greedy = enrol(&vault, "greedy", &["*"]);
    store(&vault, "home", 10);
    vault.search(&Caller::Owner, "home", "tea").unwrap();
    for _ in 0..5 {
        let short = NewMemory { ttl: Some(Duration::from_secs(60)), ..large(Level::Working) };
        vault.store(&greedy, short).unwrap();
    }
    let find =
        || vault.find(&greedy, "home", "large").map(|found| (found.memories.len(), found.more)).unwrap();
    assert_eq!(find(), (5, false));
    clock.0.store(3_600_000, Ordering::Relaxed);
    for _ in 0..16 {
        assert_eq!(find(), (0, false), "each passes over a mebibyte and some more, of the sixteen");
    }
    assert_eq!(vault.list(&greedy, "home", None).unwrap_err().code(), "AGENT_READ_QUOTA");
    assert_eq!(find(), (0, true), "it looks no further than a mebibyte");
    assert_eq!(vault.search(&greedy, "home", "tea").unwrap().len(), 1, "what is in the index costs nothing");
}

#[test]
fn one_list_reads_only_so_much_of_closed_memories_and_the_next_goes_on_from_there() {
    let directory = tempfile::tempdir().unwrap();
    let vault = vault(directory.path());
    let agent = Agent::new("greedy", &["*"], Level::Sealed);
    let greedy = vault.enrol(agent).and_then(|credential| vault.authenticate(credential.expose())).unwrap();
    let stored: BTreeSet<_> = (0..18).map(|_| vault.store(&greedy, large(Level::Sealed)).unwrap()).collect();
    let (first, next) = vault.list(&greedy, "home", None).unwrap();
    assert!(first.len() < 18, "four mebibytes are read, of almost five");
    let (rest, end) = vault.list(&greedy, "home", Some(&next.unwrap())).unwrap();
    assert_eq!((first.len() + rest.len(), end), (18, None));
    assert_eq!(first.iter().chain(&rest).map(|header| header.id).collect::<BTreeSet<_>>(), stored);
}

#[test]
fn one_look_for_what_ran_out_reads_only_so_much_and_the_next_goes_on_from_there() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(Still::default());
    let vault = vault_at(directory.path(), Options { clock: clock.clone(), ..Options::default() });
    for _ in 0..18 {
        let short = NewMemory { ttl: Some(Duration::from_secs(1_800)), ..large(Level::Working) };
        vault.store(&Caller::Owner, short).unwrap();
    }
    // The hour in which they end has begun.
    clock.0.store(1, Ordering::Relaxed);
    let look = |after| vault.ask(move |engine| engine.purge(after, limits::MAX_GROUP)).wait().unwrap();
    let (purged, next) = look(None);
    assert!(next.is_some() && purged == Purged::default(), "four mebibytes are read, of almost five");
    assert_eq!(look(next), (Purged::default(), None));
    clock.0.store(1_800_000, Ordering::Relaxed);
    vault.purge().unwrap();
    let (ended, _) = vault.list(&Caller::Owner, "home", None).unwrap();
    assert_eq!(ended.iter().filter(|header| header.state == State::Expired).count(), 18);
}
