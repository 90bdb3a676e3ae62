//! Files of checkpoints that others write to, that a kill cuts, or that can not be written.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use stvor_base::ErrorCode;
use stvor_crypto::SystemRandom;
use stvor_tlog::{Checkpoint, Hash, Signer};
use stvor_vault::{Alert, Caller, Level, NewMemory, Options, Vault, VaultError};

use crate::world::{World, owner};

const OWNER: &Caller = &Caller::Owner;

fn append(path: &Path, text: &str) {
    OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// A vault with a copy of its checkpoints elsewhere.
fn options(world: &World) -> (Options, PathBuf) {
    let copy = world.directory.path().join("copy");
    (Options { checkpoints: vec![copy.clone()], ..world.options() }, copy)
}

fn open(world: &World) -> Result<Vault, VaultError> {
    let vault = Vault::open(&world.path(), options(world).0)?;
    vault.unlock_with(&owner())?;
    Ok(vault)
}

/// Opens the vault, and leaves its files as a kill does right after the unlock was logged: one checkpoint was written.
fn killed(world: &World) {
    let (copy, image) = (options(world).1, world.directory.path().join("image"));
    std::fs::create_dir(&image).unwrap();
    let vault = open(world).unwrap();
    for entry in std::fs::read_dir(world.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), image.join(entry.file_name())).unwrap();
    }
    let outside = std::fs::read(&copy).unwrap();
    drop(vault);
    std::fs::remove_dir_all(world.path()).unwrap();
    std::fs::rename(image, world.path()).unwrap();
    std::fs::write(copy, outside).unwrap();
}

fn store(vault: &Vault) {
    vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap();
}

fn problems(vault: &Vault) -> String {
    let problems = vault.verify().unwrap().problems;
    problems.iter().map(|problem| format!("{}: {}\n", problem.place, problem.reason)).collect()
}

#[test]
fn a_checkpoint_that_a_kill_or_a_full_disk_cut_costs_nothing() {
    let world = World::new();
    let copy = options(&world).1;
    store(&open(&world).unwrap());
    let whole = std::fs::read_to_string(&copy).unwrap();
    let last = whole.trim_end().rfind("\n\nexample.com").unwrap() + 2;
    for cut in [last + 3, last + 25, whole.len() - 20, whole.len() - 2, whole.len() - 1] {
        for file in [&copy, &world.path().join("checkpoints")] {
            let text = std::fs::read_to_string(file).unwrap();
            append(file, &whole[last..cut]);
            // The next one is written behind it, and the process ends without another.
            killed(&world);
            let vault = open(&world).unwrap_or_else(|error| panic!("{cut} {}: {error}", file.display()));
            assert_eq!(problems(&vault), "", "{cut}");
            assert!(text.len() < std::fs::read_to_string(file).unwrap().len());
        }
    }
    // The newest one still counts.
    let early = std::fs::read(world.path().join("vault.db")).unwrap();
    store(&open(&world).unwrap());
    append(&copy, "example.com/vault\n3\nAAAA");
    std::fs::write(world.path().join("vault.db"), early).unwrap();
    std::fs::remove_file(world.path().join("checkpoints")).unwrap();
    assert!(open(&world).unwrap_err().to_string().contains("it was cut"));
}

#[test]
fn who_may_append_to_the_file_neither_locks_the_owner_out_nor_hides_a_vault_that_was_set_back() {
    let world = World::new();
    let copy = options(&world).1;
    store(&open(&world).unwrap());
    let early = std::fs::read(world.path().join("vault.db")).unwrap();
    let genuine = std::fs::read_to_string(&copy).unwrap();
    store(&open(&world).unwrap());

    let stranger = Signer::generate("example.com/vault", &mut SystemRandom::new()).unwrap();
    let forged = Checkpoint::new("example.com/vault", 1_000_000, Hash([7; 32])).unwrap();
    let forged = forged.sign(&[&stranger]).unwrap().to_string();
    for text in ["nonsense", "\u{2014} x y\n\n\n\n", forged.as_str()] {
        append(&copy, text);
        drop(open(&world).unwrap());
    }
    let vault = open(&world).unwrap();
    assert!(problems(&vault).contains("a note that this log did not sign"), "{}", problems(&vault));
    drop(vault);

    // The database of before, and a genuine checkpoint of before at the end of the file.
    std::fs::write(world.path().join("vault.db"), early).unwrap();
    std::fs::remove_file(world.path().join("checkpoints")).unwrap();
    append(&copy, &format!("\n\n{genuine}"));
    assert!(open(&world).unwrap_err().to_string().contains("it was cut"));
    // A file with nothing of this vault in it vouches for nothing.
    std::fs::write(&copy, &forged).unwrap();
    assert_eq!(open(&world).unwrap_err().code(), "LOG_UNTRUSTED");
    std::fs::File::create(&copy).unwrap().set_len((16 << 20) + 1).unwrap();
    assert!(open(&world).unwrap_err().to_string().contains("larger than"));
}

/// What hooks were told.
fn hooked(mut options: Options) -> (Options, Arc<Mutex<Vec<Alert>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = Arc::clone(&told);
    options.alerts = vec![Arc::new(move |alert: &Alert| hook.lock().unwrap().push(alert.clone()))];
    (options, told)
}

#[test]
fn a_copy_that_can_not_be_written_fails_nothing_and_keeps_no_other_copy_from_being_written() {
    let world = World::new();
    let (mut options, copy) = options(&world);
    // A disk that is always full.
    options.checkpoints.insert(0, "/dev/full".into());
    let (options, told) = hooked(options);
    let vault = Vault::open(&world.path(), options).unwrap();
    vault.unlock_with(&owner()).unwrap();
    let id = vault.store(OWNER, NewMemory::new(b"once", Level::Working, "home")).unwrap();
    assert_eq!(vault.recall(OWNER, id, "").unwrap().content.expose(), b"once");
    vault.search(OWNER, "home", "once").unwrap();
    vault.forget(OWNER, id, "").unwrap();
    let status = vault.status().unwrap();
    assert_eq!((status.checkpoint_files, status.checkpoint_files_behind), (3, 1));
    let newest = format!("example.com/vault\n{}\n", status.events);
    assert!(std::fs::read_to_string(copy).unwrap().contains(&newest));
    let told: Vec<Alert> = told.lock().unwrap().clone();
    assert!(matches!(told[..], [Alert::CheckpointFailed { code: "VAULT_IO", .. }]), "told once: {told:?}");
}

#[test]
fn a_list_of_ended_memories_that_can_not_be_written_is_made_up_for() {
    let world = World::new();
    let list = world.directory.path().join("media/forgotten");
    let own = world.path().join("forgotten");
    let open = |hooks: &mut Option<Arc<Mutex<Vec<Alert>>>>| {
        let (mut options, told) = hooked(world.options());
        options.forgotten = vec![list.clone()];
        *hooks = Some(told);
        let vault = Vault::open(&world.path(), options).unwrap();
        vault.unlock_with(&owner()).unwrap();
        vault
    };
    let mut told = None;
    let vault = open(&mut told);
    let ids = [1, 2, 3].map(|_| vault.store(OWNER, NewMemory::new(b"x", Level::Working, "home")).unwrap());
    vault.forget(OWNER, ids[0], "").unwrap();
    vault.forget(OWNER, ids[1], "").unwrap();
    assert!(matches!(told.unwrap().lock().unwrap()[..], [Alert::ListFailed { .. }]), "told once");
    drop(vault);
    // The disk is there again, and a process later.
    std::fs::create_dir(list.parent().unwrap()).unwrap();
    let vault = open(&mut None);
    vault.forget(OWNER, ids[2], "").unwrap();
    for file in [&list, &own] {
        let text = std::fs::read_to_string(file).unwrap();
        let named = ids.map(|id| text.lines().filter(|line| line.contains(&id.to_string())).count());
        assert_eq!(named, [1, 1, 1], "{}: {text}", file.display());
    }
    drop(vault);
    assert_eq!(std::fs::read_to_string(&list).unwrap(), std::fs::read_to_string(&own).unwrap());
}

#[test]
fn a_file_of_checkpoints_that_is_gone_is_told_until_the_owner_accepts_it() {
    let world = World::new();
    let copy = world.directory.path().join("copy");
    let open = || {
        let options = Options { checkpoints: vec![copy.clone()], ..world.options() };
        let vault = Vault::open(&world.path(), options).unwrap();
        vault.unlock_with(&owner()).unwrap();
        vault
    };
    let named = |vault: &Vault| {
        let problems = vault.verify().unwrap().problems;
        let missing = vault.status().unwrap().missing_checkpoints;
        assert_eq!(problems.len(), missing.len(), "{problems:?}");
        missing.len()
    };
    drop(world.open());
    let vault = open();
    assert_eq!(named(&vault), 0, "a file that was just named has none yet");
    drop(vault);
    let own = world.path().join("checkpoints");
    for (file, count) in [(&own, 1), (&copy, 2)] {
        // Cut short to nothing, or removed.
        std::fs::write(file, "").unwrap();
        std::fs::remove_file(file).unwrap();
        let vault = open();
        assert_eq!(named(&vault), count);
        drop(vault);
        // The next one that was written does not hide it.
        assert_eq!(named(&open()), count);
    }
    let accept = |count| {
        let vault = open();
        assert_eq!(vault.accept_checkpoints().unwrap(), count);
        assert_eq!(named(&vault), 0);
        drop(vault);
        assert_eq!(named(&open()), 0);
    };
    accept(2);
    // Something is in them, and no checkpoint.
    let cut = std::fs::read_to_string(&copy).unwrap()[..40].to_owned();
    for junk in ["x", "\n\n", cut.as_str(), "a\n1\nb\n\n\u{2014} x y\n\n"] {
        std::fs::write(&own, junk).unwrap();
        assert_eq!(named(&open()), 1, "{junk}");
        std::fs::write(&copy, junk).unwrap();
        assert_eq!(named(&open()), 2, "{junk}");
        assert_eq!(named(&open()), 2, "{junk}: the next one that was written does not hide it");
        accept(2);
    }
}

#[test]
fn whether_a_file_has_checkpoints_is_seen_when_the_vault_is_unlocked_and_not_before() {
    let world = World::new();
    drop(world.open());
    let own = world.path().join("checkpoints");
    let some = std::fs::read(&own).unwrap();
    let cases: [(&[u8], &[u8], usize); 4] =
        [(b"", &some, 0), (&some, b"", 1), (b"x", &some, 0), (&some, b"x", 1)];
    for (opened, unlocked, count) in cases {
        std::fs::write(&own, opened).unwrap();
        let vault = world.cold();
        std::fs::write(&own, unlocked).unwrap();
        vault.unlock_with(&owner()).unwrap();
        assert_eq!(vault.status().unwrap().missing_checkpoints.len(), count, "{opened:?} {unlocked:?}");
        assert_eq!(vault.accept_checkpoints().unwrap(), count);
        assert_eq!(vault.verify().unwrap().problems, []);
    }
}

#[test]
fn junk_in_place_of_the_checkpoints_does_not_hide_a_vault_that_was_set_back() {
    let world = World::new();
    let copy = options(&world).1;
    store(&open(&world).unwrap());
    let early = std::fs::read(world.path().join("vault.db")).unwrap();
    store(&open(&world).unwrap());
    std::fs::write(world.path().join("vault.db"), early).unwrap();
    for file in [&copy, &world.path().join("checkpoints")] {
        std::fs::write(file, "x").unwrap();
    }
    let vault = open(&world).unwrap();
    let found = problems(&vault);
    assert_eq!(found.matches("whether the log was set back before").count(), 2, "{found}");
}
