//! The dead-man switch when the watcher's directory is away, can not be written, or the process dies before it wrote there.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stvor_base::ErrorCode;
use stvor_crypto::{Random as _, SystemRandom};
use stvor_keys::recipients::Identity;
use stvor_vault::limits::MAX_OWED;
use stvor_vault::recovery::switch::{CHECK_IN, Heir, NewSwitch};
use stvor_vault::recovery::watch::{Standing, Watcher};
use stvor_vault::{Caller, Clock as _, Level, NewMemory, Options, SystemClock, Vault};

use crate::recovery::{Armed, DAY, packages};
use crate::world::{World, owner};

const OWNER: &Caller = &Caller::Owner;
/// Which vault the child works on.
const PATH: &str = "STVOR_VAULT_SWITCH_PATH";

fn rename(armed: &Armed, from: &str, to: &str) {
    std::fs::rename(armed.path(from), armed.path(to)).unwrap();
}

fn not_told<T: std::fmt::Debug>(result: Result<T, stvor_vault::VaultError>) {
    assert_eq!(result.unwrap_err().code(), "VAULT_WATCHER_NOT_TOLD");
}

/// An owner who disarmed lives on, and the watcher gives nothing out.
fn disarmed(armed: &Armed) {
    let mut watcher = armed.watcher();
    armed.world.clock.pass(100 * DAY);
    assert_eq!(armed.look(&mut watcher), Standing::Disarmed);
    assert_eq!(packages(armed), 0);
    assert!(!armed.path("released").exists());
}

#[test]
fn a_watcher_whose_directory_was_away_when_the_owner_disarmed_is_told_when_it_is_back() {
    let armed = Armed::new();
    armed.look(&mut armed.watcher());
    rename(&armed, "watched", "away");
    not_told(armed.vault.disarm_switch());
    assert_eq!(armed.vault.switch().unwrap().unwrap().every, 0, "it is decided");
    let armed = armed.again();
    assert_eq!(armed.vault.status().unwrap().watchers_untold, 1);
    let untold = armed.vault.untold_watchers().unwrap();
    assert!(untold[0].disarmed && untold[0].directory == armed.path("watched"), "{untold:?}");
    assert!(!untold[0].reason.is_empty());
    assert_eq!(armed.vault.heirs_with(armed.memory).unwrap(), ["ada"], "the package is there still");
    assert_eq!(armed.vault.check_in().unwrap_err().code(), "VAULT_NOT_FOUND", "it is not armed");
    not_told(armed.vault.disarm_switch());
    rename(&armed, "away", "watched");
    let armed = armed.again();
    assert_eq!(armed.vault.untold_watchers().unwrap(), []);
    assert_eq!(armed.vault.status().unwrap().watchers_untold, 0);
    assert!(armed.vault.heirs_with(armed.memory).unwrap().is_empty());
    disarmed(&armed);
    let armed = armed.again();
    assert_eq!(armed.vault.verify().unwrap().problems, []);
}

#[test]
fn a_disarm_that_is_asked_for_again_reaches_the_watcher() {
    let armed = Armed::new();
    rename(&armed, "watched", "away");
    not_told(armed.vault.disarm_switch());
    rename(&armed, "away", "watched");
    armed.vault.disarm_switch().unwrap();
    disarmed(&armed);
}

#[test]
fn a_vault_that_runs_on_tells_the_watcher_by_itself() {
    let armed = Armed::new();
    rename(&armed, "watched", "away");
    not_told(armed.vault.disarm_switch());
    rename(&armed, "away", "watched");
    let until = Instant::now() + Duration::from_secs(60);
    while !armed.vault.untold_watchers().unwrap().is_empty() {
        assert!(Instant::now() < until, "nobody told it");
        std::thread::yield_now();
    }
    disarmed(&armed);
}

#[test]
fn a_watcher_that_was_left_for_another_directory_is_told_to_stop() {
    let armed = Armed::new();
    armed.look(&mut armed.watcher());
    rename(&armed, "watched", "away");
    armed.arm_in("other").unwrap();
    assert_eq!(armed.vault.untold_watchers().unwrap().len(), 1, "the new one knows, the old one not");
    armed.vault.check_in().unwrap();
    not_told(armed.vault.disarm_switch());
    armed.arm_in("other").unwrap();
    rename(&armed, "away", "watched");
    let armed = armed.again();
    disarmed(&armed);
    // One whose directory is there is told at once, and a watcher that moves with it counts on.
    armed.arm_in("watched").unwrap();
    assert!(std::fs::read_to_string(armed.path("other").join(CHECK_IN)).unwrap().contains("\nevery 0\n"));
    assert!(matches!(armed.look(&mut armed.watcher()), Standing::Waiting { .. }));
}

#[test]
fn the_empty_place_of_a_disk_that_is_out_is_not_taken_for_the_disk() {
    let armed = Armed::new();
    rename(&armed, "watched", "stick");
    std::fs::create_dir(armed.path("watched")).unwrap();
    not_told(armed.vault.disarm_switch());
    not_told(armed.vault.disarm_switch());
    assert_eq!(std::fs::read_dir(armed.path("watched")).unwrap().count(), 0, "nothing is written there");
    std::fs::remove_dir(armed.path("watched")).unwrap();
    rename(&armed, "stick", "watched");
    armed.vault.disarm_switch().unwrap();
    disarmed(&armed);
}

#[test]
fn a_directory_that_can_not_be_written_is_told_of_and_written_later() {
    let armed = Armed::new();
    // Root may write where others may not; nobody makes a file of a directory.
    let blocked = armed.path("watched/check-in.new");
    std::fs::create_dir(&blocked).unwrap();
    let before = std::fs::read(armed.path("watched/check-in")).unwrap();
    not_told(armed.vault.check_in());
    not_told(armed.vault.check_in());
    assert_eq!(std::fs::read(armed.path("watched/check-in")).unwrap(), before);
    assert_eq!(armed.vault.untold_watchers().unwrap().len(), 1, "the newest only");
    assert!(!armed.vault.untold_watchers().unwrap()[0].disarmed);
    not_told(armed.vault.disarm_switch());
    std::fs::remove_dir(&blocked).unwrap();
    armed.vault.disarm_switch().unwrap();
    disarmed(&armed);
}

#[test]
fn a_watcher_whose_directory_is_gone_for_good_can_be_given_up() {
    let armed = Armed::new();
    std::fs::remove_dir_all(armed.path("watched")).unwrap();
    not_told(armed.vault.disarm_switch());
    assert!(armed.vault.give_up_watcher(&armed.path("elsewhere")).is_err());
    armed.vault.give_up_watcher(&armed.path("watched")).unwrap();
    let armed = armed.again();
    assert_eq!(armed.vault.untold_watchers().unwrap(), []);
    assert!(armed.vault.heirs_with(armed.memory).unwrap().is_empty());
    assert_eq!(armed.vault.verify().unwrap().problems, []);
}

#[test]
fn a_vault_that_was_set_back_does_not_tell_what_was_owed_then() {
    let armed = Armed::new();
    rename(&armed, "watched", "away");
    not_told(armed.vault.disarm_switch());
    let (path, saved) = (armed.world.path(), armed.path("saved"));
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for name in ["vault.db", "checkpoints"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    };
    let armed = armed.again_with(|| copy(&path, &saved));
    rename(&armed, "away", "watched");
    armed.world.clock.pass(DAY);
    armed.arm_in("watched").unwrap();
    let newer = std::fs::read(armed.path("watched/check-in")).unwrap();
    let armed = armed.again_with(|| copy(&saved, &path));
    assert_eq!(armed.vault.switch().unwrap().unwrap().every, 0, "it is the old state");
    assert_eq!(std::fs::read(armed.path("watched/check-in")).unwrap(), newer);
    assert_eq!(packages(&armed), 1);
}

/// The packages in the watched directory.
fn package_files(armed: &Armed) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(armed.path("watched")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("heir-")).collect()
}

fn missing<T: std::fmt::Debug>(result: Result<T, stvor_vault::VaultError>) {
    let error = result.unwrap_err();
    assert!(error.code() == "VAULT_PACKAGE_MISSING" && error.to_string().contains("ada"), "{error}");
}

/// What a watcher that waits says is wrong.
fn waits_and_says(armed: &Armed, watcher: &mut Watcher) -> Option<&'static str> {
    let (standing, wrong) = watcher.look(&armed.world.clock.now()).unwrap();
    assert!(matches!(standing, Standing::Waiting { .. }), "{standing:?}");
    wrong.map(|error| error.code())
}

#[test]
fn a_package_that_is_gone_is_told_while_the_owner_lives() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    assert_eq!(waits_and_says(&armed, &mut watcher), None);
    std::fs::remove_file(&package_files(&armed)[0]).unwrap();
    assert_eq!(waits_and_says(&armed, &mut watcher), Some("VAULT_TAMPERED"));
    armed.world.clock.pass(20 * DAY);
    missing(armed.vault.check_in());
    // Who carries check-ins to other machines has this one all the same.
    let made = armed.vault.make_check_in().unwrap();
    assert_eq!(made.untold.iter().map(|one| one.without.as_deref()).collect::<Vec<_>>(), [Some("ada")]);
    let written = std::fs::read_to_string(armed.path("watched").join(CHECK_IN)).unwrap();
    assert_eq!(made.note.to_string(), written);
    assert_eq!(armed.vault.heirs_without_package().unwrap(), ["ada"]);
    assert_eq!(armed.vault.status().unwrap().watchers_untold, 1);
    let (standing, _) = watcher.look(&armed.world.clock.now()).unwrap();
    assert_eq!(standing, Standing::Waiting { left: 30 * 86_400_000 }, "that the owner lives is told");
    armed.arm_in("watched").unwrap();
    armed.vault.check_in().unwrap();
    assert_eq!(armed.vault.status().unwrap().watchers_untold, 0);
    assert_eq!(waits_and_says(&armed, &mut watcher), None);
}

#[test]
fn a_package_that_is_not_the_signed_one_is_told_while_the_owner_lives() {
    let armed = Armed::new();
    let path = package_files(&armed).remove(0);
    let right = std::fs::read(&path).unwrap();
    std::fs::write(&path, &right[1..]).unwrap();
    let mut watcher = armed.watcher();
    assert_eq!(waits_and_says(&armed, &mut watcher), Some("VAULT_TAMPERED"));
    assert_eq!(waits_and_says(&armed, &mut watcher), Some("VAULT_TAMPERED"), "and not only once");
    missing(armed.vault.check_in());
    std::fs::write(&path, right).unwrap();
    armed.vault.check_in().unwrap();
    assert_eq!(waits_and_says(&armed, &mut watcher), None);
}

#[test]
fn check_ins_while_the_switch_is_armed_anew_take_no_package_from_it() {
    let armed = Armed::new();
    let recipient = Identity::generate().recipient();
    let heirs: Vec<_> = (0..60)
        .map(|number| Heir {
            name: format!("heir-{number}"),
            recipient: recipient.clone(),
            memories: vec![armed.memory],
        })
        .collect();
    let directory = armed.path("watched");
    let done = AtomicBool::new(false);
    let during = std::thread::scope(|scope| {
        let check_ins = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                armed.vault.check_in().unwrap();
                count += 1;
            }
            count
        });
        for _ in 0..3 {
            let new = NewSwitch { every: 30 * DAY, heirs: &heirs, directory: &directory };
            armed.vault.arm_switch(&new).unwrap();
            assert!(armed.vault.heirs_without_package().unwrap().is_empty());
        }
        done.store(true, Ordering::Relaxed);
        check_ins.join().unwrap()
    });
    assert!(during > 3, "{during} check-ins came in between");
    armed.vault.check_in().unwrap();
    assert_eq!(packages(&armed), heirs.len(), "and none of before is left");
}

#[test]
fn packages_of_a_switch_that_could_not_be_armed_do_not_stay() {
    let armed = Armed::new();
    let number = |number: usize| format!("number-{number}");
    for at in 0..MAX_OWED {
        armed.arm_in(&number(at)).unwrap();
        rename(&armed, &number(at), &format!("away-{at}"));
    }
    // Nobody may be owed more.
    let refused = armed.arm_in("watched").unwrap_err();
    assert!(refused.to_string().contains("give-up"), "{refused}");
    assert_eq!(package_files(&armed), Vec::<PathBuf>::new());
}

#[test]
fn a_vault_from_before_the_switch_was_armed_anew_removes_no_package() {
    let armed = Armed::new();
    let path = armed.world.path();
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for name in ["vault.db", "checkpoints"] {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    };
    let (old, new) = (armed.path("old"), armed.path("new"));
    let armed = armed.again_with(|| copy(&path, &old));
    armed.arm_in("watched").unwrap();
    let newer = package_files(&armed);
    let armed = armed.again_with(|| {
        copy(&path, &new);
        copy(&old, &path);
    });
    missing(armed.vault.check_in());
    assert_eq!(package_files(&armed), newer);
    assert_eq!(waits_and_says(&armed, &mut armed.watcher()), Some("VAULT_TAMPERED"));
    // The newer vault is found after all.
    let armed = armed.again_with(|| copy(&new, &path));
    armed.vault.check_in().unwrap();
    assert_eq!(package_files(&armed), newer);
    assert_eq!(waits_and_says(&armed, &mut armed.watcher()), None);
}

/// What the child does: it arms, checks in and disarms, in two directories, until it is killed. It says what is done.
#[test]
fn child_that_sets_the_switch_until_it_is_killed() {
    let Some(path) = std::env::var_os(PATH).map(PathBuf::from) else { return };
    let vault = Vault::open(&path.join("vault"), Options::default()).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let memory = vault.store(OWNER, NewMemory::new(b"yours", Level::Working, "home")).unwrap();
    let recipient = Identity::generate().recipient();
    for number in 0_usize.. {
        let directory = path.join(if number % 8 < 5 { "one" } else { "two" });
        let heirs = ["ada", "bob"].map(|name| Heir {
            name: name.into(),
            recipient: recipient.clone(),
            memories: vec![memory],
        });
        let heirs = &heirs[..1 + number % 2];
        match number % 8 {
            0 | 3 | 5 => {
                let verifier =
                    vault.arm_switch(&NewSwitch { every: 30 * DAY, heirs, directory: &directory }).unwrap();
                std::fs::write(path.join("verifier.new"), verifier).unwrap();
                std::fs::rename(path.join("verifier.new"), path.join("verifier")).unwrap();
            }
            2 | 7 => vault.disarm_switch().unwrap(),
            _ => drop(vault.check_in()),
        }
        std::io::stdout().write_all(b"\ndone\n").unwrap();
    }
}

#[test]
fn whenever_the_process_is_killed_the_watcher_knows_in_the_end_what_the_vault_says() {
    let world = World::new();
    let path = world.directory.path();
    let mut standings = [0; 2];
    for _ in 0..8 {
        let program = std::env::current_exe().unwrap();
        let mut child = Command::new(program)
            .args(["--exact", "switch::child_that_sets_the_switch_until_it_is_killed", "--nocapture"])
            .env(PATH, path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut random = [0; 1];
        SystemRandom::new().fill(&mut random).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let done = lines.filter(|line| line == "done").take(1 + usize::from(random[0] % 16)).count();
        assert!(done > 0, "the child works");
        child.kill().unwrap();
        child.wait().unwrap();

        let vault = Vault::open(&world.path(), Options::default()).unwrap();
        vault.unlock_with(&owner()).unwrap();
        assert_eq!(vault.untold_watchers().unwrap(), []);
        let record = vault.switch().unwrap().unwrap();
        let verifier = std::fs::read_to_string(path.join("verifier")).unwrap();
        for name in ["one", "two"] {
            let directory = path.join(name);
            let Ok(note) = std::fs::read_to_string(directory.join(CHECK_IN)) else { continue };
            let state = tempfile::tempdir().unwrap();
            let (release, state) = (state.path().join("out"), state.path().join("state"));
            let mut watcher = Watcher::open((&directory, &release), &state, &verifier).unwrap();
            let (standing, unbelieved) = watcher.look(&SystemClock::new().now()).unwrap();
            assert!(unbelieved.is_none(), "{unbelieved:?}");
            let armed = record.every > 0 && record.directory == directory;
            assert_eq!(standing != Standing::Disarmed, armed, "{name}: {note} {record:?}");
            if record.directory == directory {
                assert!(note.contains(&format!("\nnumber {}\n", record.number)), "{note} {record:?}");
                for heir in &record.heirs {
                    let package = format!("heir-{}-{}.age", heir.name, &heir.package[..16]);
                    assert!(directory.join(&package).exists(), "{package} is there to be given out");
                }
            }
            standings[usize::from(armed)] += 1;
        }
        assert_eq!(vault.verify().unwrap().problems, []);
    }
    assert!(standings[0] + standings[1] >= 8, "{standings:?}");
}
