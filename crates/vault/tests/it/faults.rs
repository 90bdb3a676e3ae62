//! Processes that are killed, and disks that are full. The tests start this test binary again as the one that suffers.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use stvor_base::ErrorCode;
use stvor_vault::{Caller, Level, MemoryId, NewMemory, Options, Vault};

use crate::world::{World, owner};

const OWNER: &Caller = &Caller::Owner;
/// Which vault the child works on.
const PATH: &str = "STVOR_VAULT_FAULT_PATH";

/// What the child does: it opens the vault and stores until it is killed or refused, four threads at once. What is
/// acknowledged it says on standard output, and why it ended.
#[test]
fn child_that_stores_until_it_ends() {
    let Some(path) = std::env::var_os(PATH) else { return };
    let vault = Vault::open(path.as_ref(), Options::default()).unwrap();
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

/// Starts the child; `shell` is run before it.
fn child(world: &World, shell: &str) -> Child {
    let program = std::env::current_exe().unwrap();
    let run = "exec \"$0\" --exact faults::child_that_stores_until_it_ends --nocapture";
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

#[test]
fn nothing_that_was_acknowledged_is_lost_when_the_process_is_killed() {
    let world = World::new();
    let mut all = Vec::new();
    for round in 1..=5_usize {
        let mut child = child(&world, "");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // At another moment each time; what it says after that is acknowledged all the same.
        let some: Vec<_> = lines.by_ref().filter_map(|line| said(&line, "stored")).take(round * 13).collect();
        assert_eq!(some.len(), round * 13, "the child works");
        child.kill().unwrap();
        child.wait().unwrap();
        all.extend(some);
        // The last line may be cut.
        let rest: Vec<_> = lines.filter_map(|line| said(&line, "stored")).collect();
        all.extend(rest.into_iter().filter(|line| line.split(' ').count() == 3 && !line.ends_with(' ')));
        check(&world, &all);
    }
    assert!(all.len() >= 195);
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
    assert!(stored.len() > 20, "{} stored before the disk was full", stored.len());
    check(&world, &stored);
    let vault = world.cold();
    vault.unlock_with(&owner()).unwrap();
    vault.store(OWNER, NewMemory::new(b"there is room again", Level::Working, "home")).unwrap();
}
