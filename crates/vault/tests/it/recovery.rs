//! Drills: the owner's secret is lost, or the owner.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use stvor_base::ErrorCode;
use stvor_keys::recipients::{Identity, Opening};
use stvor_keys::shares::Share;
use stvor_tlog::Note;
use stvor_vault::recovery::escrow::{Keeper, NewEscrow, NewSecrets, recover};
use stvor_vault::recovery::switch::{CHECK_IN, Heir, NewSwitch};
use stvor_vault::recovery::watch::{Standing, Watcher};
use stvor_vault::{
    Caller, Clock, Level, MemoryId, NewMemory, Vault, VaultError, unwrap_root, unwrap_vaulted,
};

use crate::world::{World, owner, passphrase, second};

const OWNER: &Caller = &Caller::Owner;
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) fn open_file(path: &PathBuf, identity: &Identity) -> Vec<u8> {
    let line = identity.to_secret_line();
    let opening = Opening::with(Identity::parse_file(&line).unwrap());
    let mut text = Vec::new();
    let file = std::fs::File::open(path).unwrap();
    opening.reader(file).unwrap().read_to_end(&mut text).unwrap();
    text
}

/// Makes an escrow of 2 in 3. Returns the keepers' keys and files.
fn escrow(vault: &Vault, world: &World) -> (Vec<Identity>, Vec<PathBuf>) {
    let identities: Vec<_> = (0..3).map(|_| Identity::generate()).collect();
    let names = ["ada", "bob", "cleo"];
    let keepers: Vec<_> = identities
        .iter()
        .zip(names)
        .map(|(identity, name)| Keeper { name: name.into(), recipient: identity.recipient() })
        .collect();
    let directory = world.directory.path().join("shares");
    let new = NewEscrow { keepers: &keepers, needed: 2, label: "drill", directory: &directory };
    let records = vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    assert!(vault.escrow((&root, None), &new).is_err(), "the key of level 4 is not left out");
    let (record, files) = vault.escrow((&root, Some(&vaulted)), &new).unwrap();
    assert_eq!((record.needed, record.keepers), (2, names.map(String::from).to_vec()));
    assert_eq!(vault.escrows().unwrap().len(), 1);
    (identities, files)
}

#[test]
fn two_keepers_of_three_open_the_vault_of_an_owner_who_forgot_the_secrets() {
    let world = World::new();
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(b"tea at five", Level::Private, "home")).unwrap();
    let (identities, files) = escrow(&vault, &world);
    drop(vault);

    let share = |at: usize| Share::parse(&open_file(&files[at], &identities[at])).unwrap();
    let secrets = || NewSecrets {
        owner: passphrase("a new one"),
        vaulted: Some(passphrase("another new one")),
        tokens: vec![],
    };
    let few = recover(&world.path(), &[share(1)], (secrets(), world.options())).unwrap_err();
    assert_eq!(few.code(), "TOO_FEW_SHARES");
    let vault = recover(&world.path(), &[share(2), share(0)], (secrets(), world.options())).unwrap();
    assert_eq!(vault.recall(OWNER, id, "").unwrap().content.expose(), b"tea at five");
    assert_eq!(vault.verify().unwrap().problems, []);
    drop(vault);

    let vault = world.cold();
    assert_eq!(vault.unlock_with(&owner()).unwrap_err().code(), "WRONG_KEY");
    vault.unlock_with(&passphrase("a new one")).unwrap();
    let record = vault.records().unwrap().vaulted.unwrap();
    assert!(unwrap_vaulted(&record, &second()).is_err());
    unwrap_vaulted(&record, &passphrase("another new one")).unwrap();
}

#[test]
fn shares_of_another_vault_open_nothing_and_change_nothing() {
    let (world, other) = (World::new(), World::new());
    let vault = other.open();
    let (identities, files) = escrow(&vault, &other);
    let shares: Vec<_> =
        (0..2).map(|at| Share::parse(&open_file(&files[at], &identities[at])).unwrap()).collect();
    let secrets = NewSecrets { owner: passphrase("x"), vaulted: None, tokens: vec![] };
    let refused = recover(&world.path(), &shares, (secrets, world.options())).unwrap_err();
    assert_eq!(refused.code(), "WRONG_KEY");
    assert_eq!(world.open().verify().unwrap().problems, []);
}

#[test]
fn shares_from_before_a_second_secret_leave_level_4_alone() {
    let world = World::with(&owner(), None);
    let vault = world.open();
    let keeper = Identity::generate();
    let keepers: Vec<_> =
        ["ada", "bob"].map(|name| Keeper { name: name.into(), recipient: keeper.recipient() }).into();
    let directory = world.directory.path().join("shares");
    let new = NewEscrow { keepers: &keepers, needed: 2, label: "drill", directory: &directory };
    let root = unwrap_root(&vault.records().unwrap().root, &owner()).unwrap();
    let (_, files) = vault.escrow((&root, None), &new).unwrap();
    drop(vault);

    let shares: Vec<_> = files.iter().map(|file| Share::parse(&open_file(file, &keeper)).unwrap()).collect();
    let secrets = |vaulted| NewSecrets { owner: passphrase("a new one"), vaulted, tokens: vec![] };
    let asked = || recover(&world.path(), &shares, (secrets(Some(second())), world.options()));
    let refused = asked().unwrap_err();
    assert_eq!(refused.code(), "VAULT_BAD_REQUEST");
    assert!(refused.to_string().contains("level 4"), "{refused}");
    let vault = world.open();
    vault.change_second(&owner(), None, &second()).unwrap();
    drop(vault);
    assert_eq!(asked().unwrap_err().code(), "VAULT_BAD_REQUEST", "they do not hold its key now, either");
    drop(recover(&world.path(), &shares, (secrets(None), world.options())).unwrap());
    let vault = world.cold();
    vault.unlock_with(&passphrase("a new one")).unwrap();
    unwrap_vaulted(&vault.records().unwrap().vaulted.unwrap(), &second()).unwrap();
}

#[test]
fn shares_that_are_newer_than_a_backup_open_what_does_not_take_the_key_of_level_4() {
    let world = World::with(&owner(), None);
    let vault = world.open();
    let id = vault.store(OWNER, NewMemory::new(b"tea at five", Level::Private, "home")).unwrap();
    drop(vault);
    let keep = ["vault.db", "checkpoints"];
    let older = keep.map(|name| std::fs::read(world.path().join(name)).unwrap());
    let vault = world.open();
    vault.change_second(&owner(), None, &second()).unwrap();
    let (identities, files) = escrow(&vault, &world);
    drop(vault);
    for (name, bytes) in keep.into_iter().zip(older) {
        std::fs::write(world.path().join(name), bytes).unwrap();
    }

    let shares: Vec<_> =
        (0..2).map(|at| Share::parse(&open_file(&files[at], &identities[at])).unwrap()).collect();
    let secrets = |vaulted| NewSecrets { owner: passphrase("a new one"), vaulted, tokens: vec![] };
    let asked = recover(&world.path(), &shares, (secrets(Some(second())), world.options()));
    assert_eq!(asked.unwrap_err().code(), "VAULT_TAMPERED", "there is no level 4 to open");
    let vault = recover(&world.path(), &shares, (secrets(None), world.options())).unwrap();
    assert_eq!(vault.recall(OWNER, id, "").unwrap().content.expose(), b"tea at five");
    assert!(!vault.status().unwrap().vaulted);
    drop(vault);
    world.cold().unlock_with(&passphrase("a new one")).unwrap();
}

pub(crate) struct Armed {
    pub(crate) world: World,
    pub(crate) vault: Vault,
    heir: Identity,
    pub(crate) memory: MemoryId,
    verifier: String,
}

impl Armed {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let vault = world.open();
        let memory =
            vault.store(OWNER, NewMemory::new(b"the house is yours", Level::Private, "home")).unwrap();
        let heir = Identity::generate();
        let heirs = [Heir { name: "ada".into(), recipient: heir.recipient(), memories: vec![memory] }];
        let directory = world.directory.path().join("watched");
        let switch = NewSwitch { every: 30 * DAY, heirs: &heirs, directory: &directory };
        let verifier = vault.arm_switch(&switch).unwrap();
        Self { world, vault, heir, memory, verifier }
    }

    /// The process ends, and another opens the vault.
    pub(crate) fn again(self) -> Self {
        self.again_with(|| ())
    }

    /// The same, with something done in between.
    pub(crate) fn again_with(self, between: impl FnOnce()) -> Self {
        let Self { world, vault, heir, memory, verifier } = self;
        drop(vault);
        between();
        Self { vault: world.open(), world, heir, memory, verifier }
    }

    /// Arms for ada again, in a directory of this name.
    pub(crate) fn arm_in(&self, name: &str) -> Result<String, VaultError> {
        let heirs =
            [Heir { name: "ada".into(), recipient: self.heir.recipient(), memories: vec![self.memory] }];
        let directory = self.path(name);
        self.vault.arm_switch(&NewSwitch { every: 30 * DAY, heirs: &heirs, directory: &directory })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    pub(crate) fn watcher(&self) -> Watcher {
        let (watched, released, state) = (self.path("watched"), self.path("released"), self.path("state"));
        Watcher::open((&watched, &released), &state, &self.verifier).unwrap()
    }

    pub(crate) fn look(&self, watcher: &mut Watcher) -> Standing {
        let (standing, unbelieved) = watcher.look(&self.world.clock.now()).unwrap();
        assert!(unbelieved.is_none(), "{unbelieved:?}");
        standing
    }
}

#[test]
fn an_owner_who_is_silent_for_too_long_leaves_memories_to_the_heir() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    assert!(matches!(armed.look(&mut watcher), Standing::Waiting { .. }));
    for _ in 0..4 {
        armed.world.clock.pass(20 * DAY);
        assert!(matches!(armed.look(&mut watcher), Standing::Waiting { .. }));
        armed.vault.check_in().unwrap();
        // A restart of the watcher counts on.
        watcher = armed.watcher();
        assert!(matches!(armed.look(&mut watcher), Standing::Waiting { left } if left == 30 * 86_400_000));
    }
    armed.world.clock.pass(30 * DAY - Duration::from_millis(1));
    assert_eq!(armed.look(&mut watcher), Standing::Waiting { left: 1 });
    assert!(!armed.path("released").exists());
    armed.world.clock.pass(Duration::from_millis(1));
    assert_eq!(armed.look(&mut watcher), Standing::Released);

    let package = open_file(&armed.path("released/heir-ada.age"), &armed.heir);
    let line: serde_json::Value = serde_json::from_slice(&package).unwrap();
    assert_eq!(line["content"]["text"], "the house is yours");
    assert_eq!(line["memory"]["id"], armed.memory.to_string());
    assert_eq!(armed.look(&mut armed.watcher()), Standing::Released, "it stays so");
}

/// What was given out so far.
fn given(armed: &Armed) -> Vec<String> {
    let entries = std::fs::read_dir(armed.path("released")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_owner_who_comes_back_after_a_release_is_waited_for_again() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    armed.world.clock.pass(31 * DAY);
    assert_eq!(armed.look(&mut watcher), Standing::Released);
    assert_eq!(given(&armed), ["heir-ada.age"]);

    armed.vault.check_in().unwrap();
    assert_eq!(armed.look(&mut watcher), Standing::Waiting { left: 30 * 86_400_000 });
    let bob = Identity::generate();
    let heirs = [("ada", &armed.heir), ("bob", &bob)].map(|(name, heir)| Heir {
        name: name.into(),
        recipient: heir.recipient(),
        memories: vec![armed.memory],
    });
    let directory = armed.path("watched");
    armed.vault.arm_switch(&NewSwitch { every: 30 * DAY, heirs: &heirs, directory: &directory }).unwrap();
    armed.look(&mut watcher);
    armed.world.clock.pass(29 * DAY);
    // A restart of the watcher changes nothing of it.
    let mut watcher = armed.watcher();
    assert!(matches!(armed.look(&mut watcher), Standing::Waiting { .. }));
    assert_eq!(given(&armed), ["heir-ada.age"]);
    armed.world.clock.pass(DAY);
    assert_eq!(armed.look(&mut watcher), Standing::Released);
    let all = given(&armed);
    assert_eq!(all[1..], ["heir-ada.age", "heir-bob.age"]);
    assert!(all[0].starts_with("heir-ada-"), "what was given stays given: {all:?}");
    let package = open_file(&armed.path("released/heir-bob.age"), &bob);
    assert!(String::from_utf8(package).unwrap().contains("the house is yours"));

    armed.vault.disarm_switch().unwrap();
    assert_eq!(armed.look(&mut watcher), Standing::Disarmed);
}

#[test]
fn a_clock_that_is_ahead_after_a_restart_lets_nothing_go_at_once() {
    let hour = Duration::from_secs(3_600);
    let armed = Armed::new();
    armed.look(&mut armed.watcher());
    armed.world.clock.pass(10 * DAY);
    armed.look(&mut armed.watcher());
    let right = armed.world.clock.wall();
    armed.world.clock.reboot();
    armed.world.clock.set_wall(right + 400 * 86_400_000);
    // Each look is that of a process of its own, as from a timer.
    for _ in 0..23 {
        let standing = armed.look(&mut armed.watcher());
        assert!(matches!(standing, Standing::Waiting { left } if left >= 19 * 86_400_000), "{standing:?}");
        armed.world.clock.pass(hour);
    }
    assert!(!armed.path("released").exists());
    // The time came from the network.
    armed.world.clock.set_wall(right + 86_400_000);
    let standing = armed.look(&mut armed.watcher());
    assert!(matches!(standing, Standing::Waiting { left } if left >= 18 * 86_400_000), "{standing:?}");

    // A machine that was off for long, and is up with the right time, lets go after a day.
    armed.world.clock.reboot();
    armed.world.clock.set_wall(right + 40 * 86_400_000);
    assert!(matches!(armed.look(&mut armed.watcher()), Standing::Waiting { .. }));
    armed.world.clock.pass(DAY - hour);
    assert!(matches!(armed.look(&mut armed.watcher()), Standing::Waiting { .. }));
    armed.world.clock.pass(hour);
    assert_eq!(armed.look(&mut armed.watcher()), Standing::Released);
}

#[test]
fn a_check_in_after_a_restart_counts_from_then_however_long_the_machine_was_up_before() {
    let armed = Armed::new();
    let minutes = |minutes: u64| armed.world.clock.set_wall(armed.world.clock.wall() + minutes * 60_000);
    armed.look(&mut armed.watcher());
    for _ in 0..3 {
        armed.world.clock.pass(20 * DAY);
        armed.vault.check_in().unwrap();
        armed.look(&mut armed.watcher());
    }
    armed.world.clock.reboot();
    minutes(10);
    armed.vault.check_in().unwrap();
    armed.look(&mut armed.watcher());
    armed.world.clock.reboot();
    minutes(20);
    let standing = armed.look(&mut armed.watcher());
    assert!(matches!(standing, Standing::Waiting { left } if left >= 29 * 86_400_000), "{standing:?}");
}

#[test]
fn a_clock_that_was_ahead_at_the_first_look_is_not_believed_when_it_is_so_again() {
    let armed = Armed::new();
    let right = armed.world.clock.wall();
    let ahead = right + 400 * 86_400_000;
    armed.world.clock.set_wall(ahead);
    armed.look(&mut armed.watcher());
    armed.world.clock.set_wall(right);
    armed.vault.check_in().unwrap();
    armed.look(&mut armed.watcher());
    armed.world.clock.pass(5 * DAY);
    armed.look(&mut armed.watcher());
    armed.world.clock.reboot();
    armed.world.clock.set_wall(ahead);
    let standing = armed.look(&mut armed.watcher());
    assert!(matches!(standing, Standing::Waiting { left } if left >= 24 * 86_400_000), "{standing:?}");
}

#[test]
fn a_check_in_that_is_seen_while_the_clock_is_wrong_counts_from_when_it_came() {
    for wrong in [400 * 86_400_000, -400 * 86_400_000] {
        let armed = Armed::new();
        armed.look(&mut armed.watcher());
        armed.world.clock.reboot();
        let right = armed.world.clock.wall();
        armed.world.clock.set_wall(right.checked_add_signed(wrong).unwrap());
        armed.vault.check_in().unwrap();
        assert!(matches!(armed.look(&mut armed.watcher()), Standing::Waiting { .. }));
        armed.world.clock.set_wall(right);
        armed.world.clock.pass(Duration::from_secs(60));
        assert!(matches!(armed.look(&mut armed.watcher()), Standing::Waiting { .. }));
        // The machine is never up for as long as the owner has.
        for day in 0..32 {
            if day % 10 == 5 {
                armed.world.clock.reboot();
            }
            let standing = armed.look(&mut armed.watcher());
            assert_eq!(standing == Standing::Released, day >= 30, "{wrong} on day {day}: {standing:?}");
            armed.world.clock.pass(DAY);
        }
    }
}

#[test]
fn a_machine_that_was_off_for_long_and_is_up_for_hours_a_day_lets_go_in_the_end() {
    let armed = Armed::new();
    armed.look(&mut armed.watcher());
    let start = armed.world.clock.wall();
    let released = (0..5).find(|day| {
        armed.world.clock.reboot();
        armed.world.clock.set_wall(start + (32 + day) * 86_400_000);
        (0..=10).any(|_| {
            armed.world.clock.pass(Duration::from_secs(3_600));
            armed.look(&mut armed.watcher()) == Standing::Released
        })
    });
    assert_eq!(released, Some(2), "a day, taken together");
}

#[test]
fn nobody_but_the_owner_can_check_in_or_hurry_the_clock() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    let old = std::fs::read(armed.path("watched/check-in")).unwrap();
    armed.world.clock.set_wall(armed.world.clock.wall() + 400 * 86_400_000);
    assert!(matches!(armed.look(&mut watcher), Standing::Waiting { .. }), "a clock that was set forward");
    armed.world.clock.set_wall(armed.world.clock.wall() - 400 * 86_400_000);

    armed.world.clock.pass(20 * DAY);
    let note = armed.vault.check_in().unwrap();
    armed.look(&mut watcher);
    armed.world.clock.pass(20 * DAY);
    // An old check-in, one with a larger number, one of another key: none begins the count anew.
    let text = note.to_string();
    let other = Armed::new();
    let forged = [
        old,
        text.replace("\nnumber 1", "\nnumber 9").into_bytes(),
        other.vault.check_in().unwrap().to_string().into_bytes(),
    ];
    for bytes in forged {
        std::fs::write(armed.path("watched").join(CHECK_IN), bytes).unwrap();
        let (standing, _) = watcher.look(&armed.world.clock.now()).unwrap();
        assert_eq!(standing, Standing::Waiting { left: 10 * 86_400_000 });
    }
    assert!(Note::parse(text.as_bytes()).is_ok());
    armed.world.clock.pass(10 * DAY);
    let (standing, _) = watcher.look(&armed.world.clock.now()).unwrap();
    assert_eq!(standing, Standing::Released);
}

/// How many packages the watched directory holds.
pub(crate) fn packages(armed: &Armed) -> usize {
    let entries = std::fs::read_dir(armed.path("watched")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("heir-")).count()
}

#[test]
fn an_heir_who_is_not_named_any_more_gets_nothing() {
    let armed = Armed::new();
    let (ada, bob) = (Identity::generate(), Identity::generate());
    let heir = |name: &str, identity: &Identity| Heir {
        name: name.into(),
        recipient: identity.recipient(),
        memories: vec![armed.memory],
    };
    let directory = armed.path("watched");
    let arm = |heirs: &[Heir]| {
        armed.vault.arm_switch(&NewSwitch { every: 30 * DAY, heirs, directory: &directory }).unwrap();
    };
    arm(&[heir("ada", &ada), heir("bob", &bob)]);
    assert_eq!(packages(&armed), 2);
    let old: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().contains("bob"))
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    assert_eq!(armed.vault.heirs_with(armed.memory).unwrap(), ["ada", "bob"]);
    arm(&[heir("ada", &ada)]);
    assert_eq!(packages(&armed), 1, "the package of who is not named any more is removed");
    // Somebody puts it back: it is not what the owner signed.
    old.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    armed.world.clock.pass(31 * DAY);
    assert_eq!(armed.look(&mut watcher), Standing::Released);
    assert_eq!(given(&armed), ["heir-ada.age"]);
}

#[test]
fn a_package_that_is_not_the_signed_one_is_not_given_out() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    let path = std::fs::read_dir(armed.path("watched"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().contains("heir-ada"))
        .unwrap();
    let right = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"another").unwrap();
    armed.world.clock.pass(31 * DAY);
    let (standing, wrong) = watcher.look(&armed.world.clock.now()).unwrap();
    assert_eq!((standing, wrong.unwrap().code()), (Standing::Released, "VAULT_TAMPERED"));
    assert!(!armed.path("released/heir-ada.age").exists());
    std::fs::write(&path, right).unwrap();
    armed.look(&mut watcher);
    assert!(armed.path("released/heir-ada.age").exists(), "it came in the end");
}

#[test]
fn check_ins_count_on_after_a_vault_came_back_from_an_older_state() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    let Armed { world, vault, heir, memory, verifier } = armed;
    drop(vault);
    let keep = ["vault.db", "checkpoints"];
    let old = keep.map(|name| std::fs::read(world.path().join(name)).unwrap());
    let vault = world.open();
    for _ in 0..5 {
        world.clock.pass(DAY);
        vault.check_in().unwrap();
    }
    drop(vault);
    for (name, bytes) in keep.into_iter().zip(old) {
        std::fs::write(world.path().join(name), bytes).unwrap();
    }
    let armed = Armed { vault: world.open(), world, heir, memory, verifier };
    armed.look(&mut watcher);
    armed.world.clock.pass(20 * DAY);
    armed.vault.check_in().unwrap();
    assert_eq!(armed.look(&mut watcher), Standing::Waiting { left: 30 * 86_400_000 });

    // One with an older number is not passed over in silence.
    let older = std::fs::read(armed.path("watched/check-in")).unwrap();
    armed.vault.check_in().unwrap();
    armed.look(&mut watcher);
    std::fs::write(armed.path("watched").join(CHECK_IN), older).unwrap();
    let (_, unbelieved) = watcher.look(&armed.world.clock.now()).unwrap();
    assert_eq!(unbelieved.unwrap().code(), "VAULT_TAMPERED");
}

#[test]
fn a_memory_with_a_pause_between_recalls_goes_to_several_heirs() {
    let armed = Armed::new();
    let slow = NewMemory { cooldown: Some(DAY), ..NewMemory::new(b"slow", Level::Private, "home") };
    let slow = armed.vault.store(OWNER, slow).unwrap();
    let identities = [Identity::generate(), Identity::generate()];
    let heirs: Vec<_> = identities
        .iter()
        .zip(["ada", "bob"])
        .map(|(identity, name)| Heir {
            name: name.into(),
            recipient: identity.recipient(),
            memories: vec![slow, armed.memory],
        })
        .collect();
    let directory = armed.path("watched");
    armed.vault.arm_switch(&NewSwitch { every: 30 * DAY, heirs: &heirs, directory: &directory }).unwrap();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    armed.world.clock.pass(31 * DAY);
    armed.look(&mut watcher);
    for (identity, name) in identities.iter().zip(["ada", "bob"]) {
        let text = open_file(&armed.path(&format!("released/heir-{name}.age")), identity);
        assert_eq!(String::from_utf8(text).unwrap().lines().count(), 2);
    }
}

#[test]
fn a_disarmed_switch_gives_nothing_out() {
    let armed = Armed::new();
    let mut watcher = armed.watcher();
    armed.look(&mut watcher);
    armed.vault.disarm_switch().unwrap();
    armed.world.clock.pass(100 * DAY);
    assert_eq!(armed.look(&mut watcher), Standing::Disarmed);
    assert_eq!(packages(&armed), 0);
    assert_eq!(armed.vault.check_in().unwrap_err().code(), "VAULT_NOT_FOUND");
}
