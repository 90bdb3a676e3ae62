//! Processes that are killed, and disks that are full. The tests start this test binary again as the one that suffers.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, setrlimit};
use stvor_base::ErrorCode;
use stvor_crypto::{Random as _, SystemRandom};
use stvor_keys::challenge::SoftwareToken;
use stvor_vault::tokens::Enrolment;
use stvor_vault::{Alert, Caller, Level, MemoryId, NewMemory, Options, Vault, unwrap_root, unwrap_vaulted};

use crate::world::{World, owner, second};

const OWNER: &Caller = &Caller::Owner;
/// Which vault the child works on.
const PATH: &str = "STVOR_VAULT_FAULT_PATH";

/// What the child does: it opens the vault and stores until it is killed or refused, four threads at once. What is
/// acknowledged it says on standard output, and why it ended.
#[test]
fn child_that_stores_until_it_ends() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let mut options = Options::default();
    options.alerts.push(Arc::new(|alert: &Alert| {
        if let Alert::LogFailed { code, .. } = alert {
            std::io::stdout().write_all(format!("alerted {code}\n").as_bytes()).unwrap();
        }
    }));
    let vault = Vault::open(path.as_ref(), options).unwrap();
    vault.unlock_with(&owner()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let vault = &vault;
            scope.spawn(move || {
                for number in 0.. {
                    let level = if number % 2 == 0 { Level::Working } else { Level::Private };
                    let content = format!("{thread} {number} {}", "x".repeat(500));
                    let line = match vault.store(OWNER, NewMemory::new(content.as_bytes(), level, "home")) {
                        Ok(id) => format!("stored {id} {thread} {number}\n"),
                        Err(error) => format!("refused {}\n", error.code()),
                    };
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    if line.starts_with("refused") {
                        return;
                    }
                }
            });
        }
    });
}

/// How far files may grow in this process; writing past it fails as on a full disk.
fn room(bytes: Option<u64>) {
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// Says what became of stores that were begun at one time. Returns whether all were done.
fn tell(batch: Vec<(u32, stvor_vault::Pending<MemoryId>)>) -> bool {
    let mut all = true;
    for (number, pending) in batch {
        let line = match pending.wait() {
            Ok(id) => format!("stored {id} 0 {number}\n"),
            Err(error) => format!("refused {}\n", error.code()),
        };
        all &= line.starts_with("stored");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    }
    all
}

/// Stores small memories and such of a megabyte between them, 32 at a time, until the disk is full; and once more when there is
/// room again, if that is wanted. They are more than SQLite keeps in memory, so that it meets the disk in the middle of a
/// transaction.
#[test]
fn child_that_fills_the_disk_with_large_memories() {
    let (Some(path), Ok(limit)) = (std::env::var_os(PATH), std::env::var("STVOR_VAULT_FAULT_LIMIT")) else {
        return;
    };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let mut number = 0;
    let mut batch = || {
        let store = |_| {
            number += 1;
            let filler = "x".repeat(if number % 5 == 2 { 1_000_000 } else { 10 });
            let memory = NewMemory::new(format!("0 {number} {filler}").as_bytes(), Level::Working, "home");
            (number, vault.begin_store(OWNER, memory))
        };
        tell((0..32).map(store).collect())
    };
    room(Some(limit.parse().unwrap()));
    while batch() {}
    if std::env::var_os("STVOR_VAULT_FAULT_ROOM").is_some() {
        room(None);
        assert!(batch() && batch());
    }
}

/// The disk is full while level 5 is opened; then there is room, and something is stored at level 5.
#[test]
fn child_that_opens_level_five_on_a_full_disk() {
    let (Some(path), None) = (std::env::var_os(PATH), std::env::var_os("STVOR_VAULT_FAULT_LIMIT")) else {
        return;
    };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    vault.unlock(root, Some(unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap())).unwrap();
    let tokens = ["first", "spare"].map(|name| {
        let path = std::path::Path::new(&path).join(name);
        let mut token = SoftwareToken::create(&path, &mut SystemRandom::new()).unwrap();
        Enrolment::challenge(name, &mut token).unwrap()
    });
    room(Some(std::fs::metadata(std::path::Path::new(&path).join("vault.db-wal")).unwrap().len()));
    let enabled = vault.enable_black(tokens.into(), None).unwrap_err().code();
    room(None);
    let stored = vault.store(OWNER, NewMemory::new(b"to nobody", Level::Black, "home"));
    println!("\nenabled {enabled} stored {}", stored.map_or_else(|error| error.code(), |_| "OK"));
}

/// Forgets a memory while the database's file may not grow, so that its journal can not be brought into it. With a word in the
/// environment it dies then; without, it makes room and forgets again.
#[test]
fn child_that_forgets_on_a_full_disk() {
    let Some(path) = std::env::var_os(PATH).map(std::path::PathBuf::from) else { return };
    let vault = Vault::open(&path, Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let store = || vault.store(OWNER, NewMemory::new(&[7; 1_000_000], Level::Working, "home")).unwrap();
    for _ in 0..6 {
        store();
    }
    vault.forget(OWNER, store(), "").unwrap();
    let (gone, other) = (store(), store());
    room(Some(std::fs::metadata(path.join("vault.db")).unwrap().len()));
    let forgotten = vault.forget(OWNER, gone, "").unwrap_err();
    println!("\nforgotten {} {other}", forgotten.code());
    assert_eq!(vault.recall(OWNER, gone, "").unwrap_err().code(), "MEMORY_GONE");
    if std::env::var_os("STVOR_VAULT_FAULT_ROOM").is_none() {
        std::process::abort();
    }
    room(None);
    let again = vault.forget(OWNER, gone, "");
    // It may be done already, while nobody asked.
    match again {
        Ok(_) => assert_eq!(std::fs::metadata(path.join("vault.db-wal")).unwrap().len(), 0),
        Err(error) => assert_eq!(error.code(), "MEMORY_GONE"),
    }
}

/// Forgets three memories; of the second one the list that the parent made longer than every other file of the vault has room for a
/// part of its line only.
#[test]
fn child_whose_list_of_ended_memories_is_cut() {
    let (Some(path), Some(list)) = (std::env::var_os(PATH), std::env::var_os("STVOR_VAULT_FAULT_LIST"))
    else {
        return;
    };
    let options = Options { forgotten: vec![list.clone().into()], ..Options::default() };
    let vault = Vault::open(path.as_ref(), options).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let ids = [1, 2, 3].map(|_| vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap());
    let length = || std::fs::metadata(&list).unwrap().len();
    vault.forget(OWNER, ids[0], "").unwrap();
    let before = length();
    room(Some(before + 20));
    vault.forget(OWNER, ids[1], "").unwrap();
    assert_eq!(length(), before + 20, "it was cut");
    room(None);
    vault.forget(OWNER, ids[2], "").unwrap();
    println!("\nforgotten all");
}

/// Starts the child; `shell` is run before it.
fn child(world: &World, shell: &str) -> Child {
    child_of(world, "child_that_stores_until_it_ends", shell)
}

fn child_of(world: &World, name: &str, shell: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    let run = format!("exec \"$0\" --exact faults::{name} --nocapture");
    Command::new("sh")
        .args(["-c", &format!("{shell} {run}")])
        .arg(program)
        .env(PATH, world.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lines of the child that begin with `word`, without it. The test runner writes lines of its own between them.
fn said(line: &str, word: &str) -> Option<String> {
    line.split_once(&format!("{word} ")).map(|(_, rest)| rest.to_owned())
}

/// Everything that was acknowledged is there, and the log is whole.
fn check(world: &World, acknowledged: &[String]) {
    // The kernel gives the lock back when the process is gone, which may take a moment after the kill.
    let vault = Vault::open(&world.path(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    for line in acknowledged {
        let mut parts = line.split(' ');
        let id: MemoryId = parts.next().unwrap().parse().unwrap();
        let content = vault.recall(OWNER, id, "").unwrap().content;
        let expected = format!("{} {} ", parts.next().unwrap(), parts.next().unwrap());
        assert!(content.expose().starts_with(expected.as_bytes()));
    }
    assert_eq!(vault.verify().unwrap().problems, []);
}

/// What the child does: it works until it is killed, four threads at once, with everything that changes a memory. It says what is
/// acknowledged, and what it is about to end. Each line has an end of its own: the last one may be cut.
#[test]
fn child_that_works_until_it_is_killed() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let tell = |line: String| std::io::stdout().write_all(format!("{line} .\n").as_bytes()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (vault, tell) = (&vault, &tell);
            scope.spawn(move || {
                let mut mine: Vec<MemoryId> = Vec::new();
                for number in 0_usize.. {
                    let known = mine.get(number * 7 % mine.len().max(1)).copied();
                    match (number % 8, known) {
                        (3, Some(id)) => drop(vault.recall(OWNER, id, "kept").unwrap()),
                        (4, Some(id)) => vault.set_intent(OWNER, id, ("travel", true)).unwrap(),
                        (5, Some(_)) => drop(vault.search(OWNER, "home", "x").unwrap()),
                        (6 | 7, Some(id)) => {
                            mine.retain(|other| *other != id);
                            tell(format!("ending {id}"));
                            match number % 8 {
                                6 => drop(vault.forget(OWNER, id, "over").unwrap()),
                                _ => drop(vault.tombstone(OWNER, id, "over").unwrap()),
                            }
                            tell(format!("ended {id}"));
                        }
                        _ => {
                            let level = if number % 2 == 0 { Level::Working } else { Level::Private };
                            let content = format!("{thread} {number} x");
                            mine.push(
                                vault
                                    .store(OWNER, NewMemory::new(content.as_bytes(), level, "home"))
                                    .unwrap(),
                            );
                            tell(format!("stored {} {content}", mine[mine.len() - 1]));
                        }
                    }
                    tell("done".into());
                }
            });
        }
    });
}

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_process_is_killed() {
    let world = World::new();
    let (mut stored, mut ending, mut ended) = (HashMap::new(), HashSet::new(), HashSet::new());
    let (mut done, mut kills) = (0, 0);
    while done < 2_000 {
        let mut child = child_of(&world, "child_that_works_until_it_is_killed", "");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut random = [0; 1];
        SystemRandom::new().fill(&mut random).unwrap();
        let (enough, before) = (done + 1 + usize::from(random[0]), done);
        let mut take = |line: &str| {
            let Some(line) = line.strip_suffix(" .") else { return 0 };
            // The test runner writes lines of its own, and one of ours may follow on one of those.
            if let Some(rest) = said(line, "stored") {
                let (id, content) = rest.split_once(' ').unwrap();
                stored.insert(id.to_owned(), content.to_owned());
            } else if let Some(id) = said(line, "ending") {
                ending.insert(id);
            } else if let Some(id) = said(line, "ended") {
                ended.insert(id);
            }
            usize::from(line.ends_with("done"))
        };
        for line in lines.by_ref() {
            done += take(&line);
            if done >= enough {
                break;
            }
        }
        assert!(done > before, "the child works");
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // What it said before it was killed is acknowledged all the same.
        done += lines.map(|line| take(&line)).sum::<usize>();
        check(&world, &[]);
    }
    assert!(
        kills >= 5 && stored.len() > 500 && ended.len() > 200,
        "{kills} {} {}",
        stored.len(),
        ended.len()
    );
    let vault = Vault::open(&world.path(), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    for (id, content) in &stored {
        let recalled = vault.recall(OWNER, id.parse().unwrap(), "");
        if ended.contains(id) {
            assert_eq!(
                recalled.unwrap_err().code(),
                "MEMORY_GONE",
                "an end that was acknowledged stands: {id}"
            );
        } else if !ending.contains(id) {
            assert_eq!(recalled.unwrap().content.expose(), content.as_bytes());
        }
    }
    assert_eq!(vault.verify().unwrap().problems, []);
}

#[test]
fn a_full_disk_means_no_and_costs_nothing_that_was_acknowledged() {
    let world = World::new();
    // Files may not grow past 1 MiB (in units of 512 bytes); the write fails as on a full disk.
    let child = child(&world, "trap '' XFSZ; ulimit -f 2048;");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let of = |word| text.lines().filter_map(|line| said(line, word)).collect::<Vec<_>>();
    let (stored, refused) = (of("stored"), of("refused"));
    assert_eq!(refused, ["VAULT_LOG_UNAVAILABLE"; 4], "{text}");
    let alerted = of("alerted");
    assert!(!alerted.is_empty() && alerted.iter().all(|code| code == "VAULT_LOG_UNAVAILABLE"), "{text}");
    assert!(stored.len() > 20, "{} stored before the disk was full", stored.len());
    check(&world, &stored);
    let vault = world.cold();
    vault.unlock_with(&owner()).unwrap();
    vault.store(OWNER, NewMemory::new(b"there is room again", Level::Working, "home")).unwrap();
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_group_undoes_the_group_and_nothing_else() {
    for limit in [3, 4, 5, 6].map(|mebibytes| mebibytes << 20) {
        for room in ["", "export STVOR_VAULT_FAULT_ROOM=1;"] {
            let world = World::new();
            let shell = format!("trap '' XFSZ; export STVOR_VAULT_FAULT_LIMIT={limit}; {room}");
            let child = child_of(&world, "child_that_fills_the_disk_with_large_memories", &shell);
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(output.status.success(), "{limit} {room} {text}");
            let of = |word| text.lines().filter_map(|line| said(line, word)).collect::<Vec<_>>();
            let (stored, refused) = (of("stored"), of("refused"));
            assert!(
                !refused.is_empty() && refused.iter().all(|code| code == "VAULT_LOG_UNAVAILABLE"),
                "{text}"
            );
            check(&world, &stored);
            let vault = world.cold();
            vault.unlock_with(&owner()).unwrap();
            let memories = vault.verify().unwrap().memories;
            assert_eq!(memories, stored.len() as u64, "what was refused is not there: {limit} {room}");
        }
    }
}

#[test]
fn a_key_of_level_five_that_is_not_on_the_disk_is_not_written_to() {
    let world = World::new();
    let child = child_of(&world, "child_that_opens_level_five_on_a_full_disk", "trap '' XFSZ;");
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    assert!(text.contains("enabled VAULT_LOG_UNAVAILABLE stored VAULT_COLD"), "{text}");
    check(&world, &[]);
}

#[test]
fn a_memory_that_was_forgotten_but_not_overwritten_is_told_and_made_up_for() {
    for room in ["", "export STVOR_VAULT_FAULT_ROOM=1;"] {
        let world = World::new();
        let child = child_of(&world, "child_that_forgets_on_a_full_disk", &format!("trap '' XFSZ; {room}"));
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let told: Vec<_> = text.lines().filter_map(|line| said(line, "forgotten")).collect();
        let Some((code, other)) = told.first().and_then(|line| line.split_once(' ')) else {
            panic!("{text}")
        };
        assert_eq!(code, "VAULT_WIPE_PENDING", "{text}");
        assert_eq!(output.status.success(), !room.is_empty(), "{text}");
        let journal = world.path().join("vault.db-wal");
        let left = std::fs::metadata(&journal).map_or(0, |file| file.len());
        assert_eq!(left > 1_000_000, room.is_empty(), "what was killed left its journal");
        let vault = world.cold();
        assert_eq!(std::fs::metadata(&journal).unwrap().len(), 0, "opening it overwrites");
        let list = std::fs::read_to_string(world.path().join("forgotten")).unwrap();
        assert_eq!(list.lines().count(), 2, "{list}");
        vault.unlock_with(&owner()).unwrap();
        vault.recall(OWNER, other.parse().unwrap(), "").unwrap();
        assert_eq!(vault.verify().unwrap().problems, []);
    }
}

#[test]
fn a_name_that_a_full_disk_cut_in_the_list_of_ended_memories_is_written_whole_when_there_is_room() {
    let world = World::new();
    let list = world.directory.path().join("list");
    let file = std::fs::File::create(&list).unwrap();
    file.set_len(8 << 20).unwrap();
    std::io::Seek::seek(&mut &file, std::io::SeekFrom::End(0)).unwrap();
    (&file).write_all(b"\n").unwrap();
    let shell = format!("trap '' XFSZ; export STVOR_VAULT_FAULT_LIST='{}';", list.display());
    let child = child_of(&world, "child_whose_list_of_ended_memories_is_cut", &shell);
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("\nforgotten all"), "{}", output.status);
    let (own, list) = (
        std::fs::read_to_string(world.path().join("forgotten")).unwrap(),
        std::fs::read_to_string(list).unwrap(),
    );
    let lines: Vec<&str> = own.lines().collect();
    assert_eq!(lines.len(), 3, "{own}");
    for line in lines {
        assert_eq!(list.lines().filter(|other| *other == line).count(), 1, "{line}");
    }
}
