//! Archives of the log, and removing what they hold: every proof goes on verifying, and everything else goes on.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::{Resource, Rlimit, setrlimit};
use stvor_base::ErrorCode;
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::{Identity, Opening, Sealing};
use stvor_tlog::Verifier;
use stvor_vault::archive::{Archive, ArchiveHead, check, each};
use stvor_vault::backup::{BackupKind, NewBackup, Restore, restore};
use stvor_vault::proofs::Claim;
use stvor_vault::{Caller, Level, LogQuery, MemoryId, NewMemory, Options, Refusal, Vault, limits};

use crate::tampering::found;
use crate::world::{World, owner, refusal};

const OWNER: &Caller = &Caller::Owner;
const ORIGIN: &str = "example.com/vault";
/// Which vault a child works on.
const PATH: &str = "STVOR_VAULT_ARCHIVE_PATH";

/// The key of archives, in a file beside the vault, for processes that are killed too.
fn identity(vault: &Path) -> Identity {
    let file = vault.with_file_name("identity");
    if !file.exists() {
        std::fs::write(&file, Identity::generate().to_secret_line().expose()).unwrap();
    }
    Identity::parse_file(&SecretBytes::from(std::fs::read(file).unwrap())).unwrap().remove(0)
}

fn keys(vault: &Vault) -> Vec<Verifier> {
    let status = vault.status().unwrap();
    core::iter::once(&status.verifier)
        .chain(&status.retired)
        .map(|key| Verifier::parse(key).unwrap())
        .collect()
}

/// Archives the log, and reads the archive.
fn archive(vault: &Vault, name: &str, words: bool) -> (PathBuf, ArchiveHead) {
    let (path, identity) = (vault.path().with_file_name(name), identity(vault.path()));
    vault.archive(&path, &Sealing::to(vec![identity.recipient()]), words).unwrap();
    let (head, _) = check(&path, &Opening::with(vec![identity]), (ORIGIN, &keys(vault))).unwrap();
    (path, head)
}

fn opened(vault: &Vault, path: &Path) -> Archive {
    Archive::open(path, &Opening::with(vec![identity(vault.path())]), (ORIGIN, &keys(vault))).unwrap()
}

fn store(vault: &Vault, text: &str, level: Level) -> MemoryId {
    vault.store(OWNER, NewMemory::new(text.as_bytes(), level, "home")).unwrap()
}

/// Every event is proved by the vault or by one of the archives.
fn all_proved(vault: &Vault, archives: &[PathBuf]) {
    let keys = keys(vault);
    let archives: Vec<Archive> = archives.iter().map(|path| opened(vault, path)).collect();
    let size = vault.status().unwrap().events;
    for event in 0..size {
        let (entry, proof) = match vault.prove(event) {
            Ok(proved) => proved,
            Err(_) => {
                let proved = archives.iter().find_map(|archive| archive.prove(event).ok());
                let (entry, proof) = proved.unwrap_or_else(|| panic!("the event {event} is nowhere"));
                (entry.to_vec(), proof)
            }
        };
        proof.verify(&entry, ORIGIN, &keys).unwrap();
    }
}

/// A vault that is open, with something of everything in its log, and a memory with a pause that was just recalled.
fn busy(world: &World) -> (Vault, MemoryId) {
    let vault = world.open();
    let pause = Some(Duration::from_secs(3_600));
    let slow = NewMemory { cooldown: pause, ..NewMemory::new(b"slow", Level::Working, "home") };
    let slow = vault.store(OWNER, slow).unwrap();
    let [one, two, three] = ["tea", "bread", "salt"].map(|text| store(&vault, text, Level::Working));
    vault.prove_property(two, Claim::LevelAtMost(Level::Working), "somebody").unwrap();
    vault.tombstone(OWNER, one, "over").unwrap();
    vault.forget(OWNER, three, "not true").unwrap();
    vault.enter_lockdown(OWNER, "a look around").unwrap();
    vault.leave_lockdown(&owner()).unwrap();
    for _ in 0..20 {
        vault.recall(OWNER, two, "for the yearly report").unwrap();
        vault.list(OWNER, "home", None).unwrap();
    }
    vault.recall(OWNER, slow, "slowly").unwrap();
    (vault, slow)
}

#[test]
fn everything_goes_on_when_archived_events_are_removed() {
    let world = World::new();
    let (vault, slow) = busy(&world);
    let new = NewMemory {
        ttl: Some(Duration::from_secs(7_200)),
        ..NewMemory::new(b"brief", Level::Working, "home")
    };
    let brief = vault.store(OWNER, new).unwrap();
    let back = |kind| {
        let sealing = Sealing::to(vec![identity(vault.path()).recipient()]);
        let directory = world.directory.path().join("backups");
        vault.backup(&NewBackup { directory, kind, sealing, description: String::new() }).unwrap().path
    };
    let full = back(BackupKind::Full);
    let (path, head) = archive(&vault, "one.age", true);
    let done = vault.prune(&head, false).unwrap();
    assert!(done.removed > 40 && done.kept > 4 && done.removed + done.kept == head.size, "{done:?}");
    let report = vault.verify().unwrap();
    assert_eq!((report.problems, report.removed, report.removed_before), (vec![], done.removed, head.size));
    all_proved(&vault, core::slice::from_ref(&path));
    let gone = (0..head.size).find_map(|event| vault.prove(event).err()).unwrap();
    assert!(gone.to_string().contains("--archive"), "{gone}");

    // The gates, the search and the log know what they knew.
    assert!(matches!(refusal(vault.recall(OWNER, slow, "again")), Refusal::Cooldown { .. }));
    assert_eq!(vault.search(OWNER, "home", "bread").unwrap().len(), 1);
    let query = LogQuery { words: Some("yearly report".into()), ..LogQuery::default() };
    let page = vault.read_log(query.clone()).unwrap();
    assert_eq!((page.entries.len(), page.removed_before), (0, Some(head.size)));
    let (mut said, opening) = (0, Opening::with(vec![identity(vault.path())]));
    let count = |event: stvor_vault::archive::Archived<'_>| {
        said += u32::from(query.matches(&event.event()?));
        Ok(())
    };
    each(&path, &opening, (ORIGIN, &keys(&vault)), count).unwrap();
    assert_eq!(said, 20, "what was said is in the archive");

    // So do purging, forgetting, backups from before and after, and a second archive.
    world.clock.pass(Duration::from_secs(3 * 3_600));
    assert_eq!(vault.purge().unwrap().ended, 1);
    assert_eq!(vault.recall(OWNER, brief, "").unwrap_err().code(), "MEMORY_GONE");
    vault.recall(OWNER, slow, "the pause is over").unwrap();
    let later = back(BackupKind::Incremental);
    let (second, next) = archive(&vault, "two.age", true);
    assert_eq!((next.from, next.words), (head.size, true));
    vault.prune(&next, false).unwrap();
    assert!(matches!(refusal(vault.recall(OWNER, slow, "again")), Refusal::Cooldown { .. }));
    all_proved(&vault, &[path.clone(), second.clone()]);
    let whole = back(BackupKind::Full);
    for (name, files) in [("chain", vec![full, later]), ("whole", vec![whole])] {
        let target = world.directory.path().join(name);
        let opening = Opening::with(vec![identity(vault.path())]);
        let owner = owner();
        let mut wanted = Restore::new(&target, &files, (&opening, &owner));
        wanted.clock = world.clock.clone();
        restore(&wanted).unwrap();
        let restored = Vault::open(&target, world.options()).unwrap();
        restored.unlock_with(&owner).unwrap();
        assert_eq!(restored.verify().unwrap().problems, [], "{name}");
        assert!(matches!(refusal(restored.recall(OWNER, slow, "again")), Refusal::Cooldown { .. }), "{name}");
        assert_eq!(restored.recall(OWNER, brief, "").unwrap_err().code(), "MEMORY_GONE");
    }
    vault.rotate_root(&owner()).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);
    let vault = world.open();
    assert_eq!(vault.verify().unwrap().problems, []);
    all_proved(&vault, &[path, second]);
}

#[test]
fn whatever_is_changed_of_a_pruned_vault_is_found() {
    let world = World::new();
    let (vault, _) = busy(&world);
    let (_, head) = archive(&vault, "one.age", true);
    vault.prune(&head, false).unwrap();
    drop(vault);
    let database = world.path().join("vault.db");
    let connect = || Connection::open(&database).unwrap();
    let first: Vec<u8> =
        connect().query_row("SELECT record FROM slot WHERE name = 'removed'", [], |row| row.get(0)).unwrap();
    let vault = world.open();
    store(&vault, "more", Level::Working);
    let (_, next) = archive(&vault, "two.age", true);
    vault.prune(&next, false).unwrap();
    drop(vault);
    let saved: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(world.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let tried = |sql: &str, values: &[&dyn rusqlite::ToSql], place: &str| {
        saved.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
        for rest in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(world.path().join(format!("vault.db{rest}")));
        }
        assert!(connect().execute(sql, values).unwrap() > 0, "{sql}");
        let said = found(&world);
        assert!(said.contains(place), "{sql}: {said:?}");
    };
    let kept: Vec<i64> = {
        let connection = connect();
        let mut rows = connection.prepare("SELECT seq FROM event WHERE seq < ?1").unwrap();
        let size = i64::try_from(next.size).unwrap();
        rows.query_map([size], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert!(kept.len() > 4);
    for seq in &kept {
        tried("DELETE FROM event WHERE seq = ?1", &[seq], &format!("the event {seq}"));
    }
    for at in (0..i64::try_from(next.size).unwrap()).filter(|at| !kept.contains(at)).step_by(7) {
        let flipped = "UPDATE node SET hash = zeroblob(32) WHERE level = 0 AND at = ?1";
        tried(flipped, &[&at], "it is not that of its events");
    }
    // The record of what was removed can be neither taken away nor set back.
    tried("DELETE FROM slot WHERE name = 'removed'", &[], "the record of removed events");
    tried("UPDATE slot SET record = ?1 WHERE name = 'removed'", &[&first], "the record of removed events");
    let mut damaged = first.clone();
    damaged[20] ^= 1;
    tried("UPDATE slot SET record = ?1 WHERE name = 'removed'", &[&damaged], "the record of removed events");
}

#[test]
fn an_archive_that_does_not_fit_removes_nothing() {
    let (world, other) = (World::new(), World::new());
    let ((vault, _), (stranger, _)) = (busy(&world), busy(&other));
    let (_, head) = archive(&vault, "one.age", false);
    let (_, strange) = archive(&stranger, "other.age", true);
    let bad = |head: &ArchiveHead| vault.prune(head, false).unwrap_err();
    assert!(bad(&head).to_string().contains("said"), "words would be lost");
    let words = ArchiveHead { words: true, ..head.clone() };
    for (wrong, reason) in [
        (strange, "not of this log"),
        (ArchiveHead { size: head.size - 1, ..words.clone() }, "not of this log"),
        (ArchiveHead { size: 1_000_000, ..words.clone() }, "not of this log"),
        (ArchiveHead { from: 1, ..words.clone() }, "begins with event 1"),
    ] {
        let said = bad(&wrong).to_string();
        assert!(said.contains(reason), "{said}");
    }
    vault.enter_lockdown(OWNER, "").unwrap();
    assert_eq!(refusal(vault.prune(&words, false)), Refusal::Lockdown);
    vault.leave_lockdown(&owner()).unwrap();
    let report = vault.verify().unwrap();
    assert_eq!((report.problems, report.removed), (vec![], 0));
    drop(vault);

    // A row that is not what the log hashed may be all that tells of it.
    let sql = "UPDATE event SET sealed = zeroblob(80) WHERE seq = 3";
    assert_eq!(Connection::open(world.path().join("vault.db")).unwrap().execute(sql, []).unwrap(), 1);
    let vault = world.open();
    let tampered = vault.prune(&words, false).unwrap_err();
    assert!(tampered.to_string().contains("the event 3"), "{tampered}");
    assert_eq!(vault.verify().unwrap().removed, 0);
}

#[test]
fn who_does_not_want_the_words_may_lose_them() {
    let world = World::new();
    let (vault, _) = busy(&world);
    let (path, head) = archive(&vault, "one.age", false);
    vault.prune(&head, true).unwrap();
    let opening = Opening::with(vec![identity(vault.path())]);
    let silent = |event: stvor_vault::archive::Archived<'_>| {
        assert_eq!(event.said, None);
        Ok(())
    };
    each(&path, &opening, (ORIGIN, &keys(&vault)), silent).unwrap();
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_log_that_was_set_back_does_not_go_on_from_its_archive() {
    let world = World::new();
    let (vault, _) = busy(&world);
    drop(vault);
    let saved: Vec<_> = std::fs::read_dir(world.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    let vault = world.open();
    store(&vault, "what is undone", Level::Working);
    let (path, _) = archive(&vault, "one.age", true);
    let opening = Opening::with(vec![identity(vault.path())]);
    let (_, note) = check(&path, &opening, (ORIGIN, &keys(&vault))).unwrap();
    let against = |vault: &Vault| vault.begin_verify_against(false, vec![note.clone()]).0.wait().unwrap();
    assert_eq!(against(&vault).problems, []);
    drop(vault);
    saved.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let vault = world.open();
    assert_eq!(vault.verify().unwrap().problems, [], "every copy here was set back");
    let problems = against(&vault).problems;
    assert!(problems.iter().any(|problem| problem.reason.contains("archive")), "{problems:?}");
}

#[test]
fn a_line_of_an_archive_has_so_many_bytes() {
    let world = World::new();
    let (vault, _) = busy(&world);
    let (path, _) = archive(&vault, "one.age", false);
    let identity = identity(vault.path());
    let mut text = String::new();
    let opening = Opening::with(vec![identity]);
    opening.reader(std::fs::File::open(&path).unwrap()).unwrap().read_to_string(&mut text).unwrap();
    let first = text.lines().next().unwrap();
    let most = usize::try_from(limits::MAX_ARCHIVE_LINE).unwrap();
    for (length, said) in
        [(most, "are not those that its checkpoint signs"), (most + 1, "longer than any event")]
    {
        let forged = path.with_file_name("forged.age");
        let sealing = Sealing::to(vec![self::identity(vault.path()).recipient()]);
        let mut out = sealing.writer(std::fs::File::create(&forged).unwrap()).unwrap();
        writeln!(out, "{first}\n{}", "x".repeat(length)).unwrap();
        out.finish().unwrap();
        let error = check(&forged, &opening, (ORIGIN, &keys(&vault))).unwrap_err().to_string();
        assert!(error.contains(said), "{length}: {error}");
    }
}

/// What the child does: it uses the vault, archives and prunes, until it is killed.
#[test]
fn child_that_archives_and_prunes_until_it_ends() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let say = |word: &str| std::io::stdout().write_all(format!("did {word}\n").as_bytes()).unwrap();
    loop {
        let id = store(&vault, "something", Level::Working);
        for _ in 0..50 {
            vault.recall(OWNER, id, "to have an event").unwrap();
        }
        let name = format!("{}.age", vault.status().unwrap().events);
        let (_, head) = archive(&vault, &name, true);
        say("archive");
        vault.prune(&head, false).unwrap();
        say("prune");
    }
}

#[test]
fn a_kill_while_events_are_archived_and_removed_loses_none() {
    let world = World::new();
    drop(busy(&world));
    identity(&world.path());
    for round in [1, 2, 3, 4, 7, 8] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archive::child_that_archives_and_prunes_until_it_ends", "--nocapture"])
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
        let report = vault.verify().unwrap();
        assert_eq!(report.problems, []);
        let archives: Vec<PathBuf> = std::fs::read_dir(world.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "age"))
            .collect();
        all_proved(&vault, &archives);
    }
}

/// Prunes while the files may not grow; and once more when there is room again.
#[test]
fn child_that_prunes_on_a_full_disk() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    let vault = Vault::open(&path, Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let (_, head) = archive(&vault, "full.age", true);
    let room = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    room(Some(std::fs::metadata(path.join("vault.db-wal")).unwrap().len()));
    let refused = vault.prune(&head, false).unwrap_err().code();
    let report = vault.verify().unwrap();
    room(None);
    let removed = vault.prune(&head, false).unwrap().removed;
    let sound = report.problems.is_empty() && vault.verify().unwrap().problems.is_empty();
    println!("\nfull: {refused} {} {sound} {}", report.removed, removed > 0);
}

#[test]
fn events_that_do_not_fit_on_a_full_disk_are_not_removed_at_all() {
    let world = World::new();
    drop(busy(&world));
    identity(&world.path());
    let run = "trap '' XFSZ; exec \"$0\" --exact archive::child_that_prunes_on_a_full_disk --nocapture";
    let out = Command::new("sh")
        .args(["-c", run])
        .arg(std::env::current_exe().unwrap())
        .env(PATH, world.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(said.contains("full: VAULT_LOG_UNAVAILABLE 0 true true"), "{said}");
}

#[test]
fn what_removed_events_took_goes_back_to_the_file_system_and_a_bar_can_show_how_far_it_is() {
    let world = World::new();
    let (vault, _) = busy(&world);
    for _ in 0..300 {
        vault.list(OWNER, "home", None).unwrap();
    }
    let passing = store(&vault, "passing", Level::Working);
    // Destroying brings everything into the one file.
    vault.forget(OWNER, passing, "").unwrap();
    let bytes = || std::fs::metadata(vault.path().join("vault.db")).unwrap().len();
    let before = bytes();
    let mut told = Vec::new();
    let (path, sealing) =
        (vault.path().with_file_name("one.age"), Sealing::to(vec![identity(vault.path()).recipient()]));
    vault.archive_telling(&path, (&sealing, true), |done, total| told.push((done, total))).unwrap();
    let (done, total) = *told.last().unwrap();
    assert!(done == total && done > 300, "{told:?}");
    let opening = Opening::with(vec![identity(vault.path())]);
    let (head, _) = check(&path, &opening, (ORIGIN, &keys(&vault))).unwrap();
    let (pruned, progress) = vault.begin_prune(&head, false);
    assert!(pruned.wait().unwrap().removed > 300);
    let (done, total) = progress.now();
    assert!(done == total && done > 300, "{done} of {total}");
    assert!(bytes() + 80_000 < before, "{before} bytes before, {} now", bytes());
    assert_eq!(vault.verify().unwrap().problems, []);
}
