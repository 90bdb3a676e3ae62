//! The daemon's memory and the swap: under whichever limit it locks all of it, or says that it does not.

use stvor_testkit::Process;

use crate::common::{Home, SOON, skipped};
use crate::vault::Served;

/// Why what happens to exposed memory can not be tried everywhere.
const WITHOUT_SWAP: &str =
    "these tests run in a control group with memory.swap.max=0; run them in one that may swap";

/// What the system says is locked of a process, in KiB.
fn locked(daemon: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
    locked.trim().split(' ').next().unwrap().parse().unwrap()
}

/// The daemon, in a process that may lock so many KiB and has no capability to lock more.
fn limited(home: &Home, kib: u32, options: &str) -> Process {
    let stvor = env!("CARGO_BIN_EXE_stvor");
    let script = format!("ulimit -l {kib} && exec {stvor} vault serve --exit-with-stdin{options}");
    let shell = ["sh", "-c", &script];
    let spawn = match rustix::process::getuid().is_root() {
        true => {
            let without = ["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
            home.program("setpriv").args(without.into_iter().chain(shell).collect::<Vec<_>>())
        }
        false => home.program("sh").args(shell.into_iter().skip(1).collect::<Vec<_>>()),
    };
    spawn.with_input().start().unwrap()
}

#[test]
fn the_daemon_locks_its_memory_or_says_that_it_does_not() {
    let served = Served::new();
    let said = served.owner("status")[0]["memory"].as_str().unwrap().to_owned();
    assert_eq!(locked(&served.daemon) > 0, said == "locked", "{said}");
    if said == "exposed" {
        served.daemon.wait_for("may come into the swap", SOON).unwrap();
    }
}

#[test]
fn under_a_small_limit_the_daemon_works_and_says_that_its_memory_is_exposed() {
    // Nobody but root raises a limit.
    let most = stvor_vault::daemon::memory_limit().unwrap_or(u64::MAX) >> 10;
    for kib in [64, 8 * 1_024].into_iter().filter(|kib| u64::from(*kib) <= most) {
        let mut served = Served::new();
        drop(served.daemon);
        served.daemon = limited(&served.home, kib, "");
        served.daemon.wait_output(1, SOON).unwrap();
        let status = &served.owner("status")[0];
        if status["memory"] == "unswapped" {
            assert_eq!(locked(&served.daemon), 0);
            served.owner("unlock");
            served.owner_stores("tea");
            skipped("a daemon whose memory is exposed", WITHOUT_SWAP);
            return;
        }
        assert_eq!((status["memory"].as_str(), locked(&served.daemon)), (Some("exposed"), 0));
        served.daemon.wait_for("may come into the swap", SOON).unwrap();
        served.daemon.wait_for(&format!("lets it lock {kib} KiB"), SOON).unwrap();
        let doctor = served.try_owner("doctor").1;
        let memory = doctor.iter().find(|check| check["name"] == "memory").unwrap();
        assert!(memory["found"].as_str().unwrap().contains("not locked"), "{memory}");
        // Nothing is held back for the limit's sake.
        served.owner("unlock");
        let id = served.owner_stores(&"x".repeat(100_000));
        assert_eq!(
            served.owner(&format!("recall {id}"))[0]["content"]["text"].as_str().unwrap().len(),
            100_000
        );
    }
}

#[test]
fn where_locked_memory_is_demanded_the_daemon_does_not_serve_without() {
    let mut served = Served::new();
    let anyway = served.owner("status")[0]["memory"] == "unswapped";
    drop(served.daemon);
    let settings = served.home.path("config/stvor");
    std::fs::create_dir_all(&settings).unwrap();
    for by_settings in [false, true] {
        let text = format!("[vault]\nrequire_locked_memory = {by_settings}\n");
        std::fs::write(settings.join("stvor.toml"), text).unwrap();
        served.daemon = limited(&served.home, 64, if by_settings { "" } else { " --require-locked-memory" });
        if anyway {
            served.daemon.wait_output(1, SOON).unwrap();
            assert_eq!(served.try_owner("status").0, 0, "it is kept out of the swap, so it serves");
            skipped("a daemon that does not serve with its memory exposed", WITHOUT_SWAP);
            continue;
        }
        assert_eq!(crate::common::finished(&served.daemon), Some(3));
        served.daemon.wait_for("VAULT_MEMORY_EXPOSED", SOON).unwrap();
        assert_eq!(served.try_owner("status").0, 5, "nobody serves");
    }
}
