//! The page "Recovery" is followed with Python's libraries and nothing of ours.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_crypto::{SecretBytes, SystemRandom};
use stvor_keys::challenge::SoftwareToken;
use stvor_keys::fido2::{Ask, Ctap2, Fido2Token};
use stvor_keys::recipients::{Identity, Sealing};
use stvor_keys::{Keyfile, TokenKey};
use stvor_testkit::SoftAuthenticator;
use stvor_vault::backup::{BackupKind, NewBackup};
use stvor_vault::profiles::{NewProfile, ProfileKey, Rotation};
use stvor_vault::recovery::escrow::{Keeper, NewEscrow};
use stvor_vault::tokens::{Enrolment, Presented, TokenKind};
use stvor_vault::{Caller, Level, NewMemory, Vault, unwrap_root, unwrap_vaulted};

use crate::recovery::open_file;
use crate::world::{World, owner, passphrase, second};

const OWNER: &Caller = &Caller::Owner;

/// Python with what the page takes; nothing where that is not installed.
fn python() -> Option<OsString> {
    let python = std::env::var_os("STVOR_PYTHON").unwrap_or_else(|| "python3".into());
    let modules = ["-c", "import cryptography, argon2, pyrage"];
    let there = Command::new(&python).args(modules).stderr(Stdio::null()).status();
    if there.is_ok_and(|status| status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("CI").is_none(), "Python with cryptography, argon2-cffi and pyrage");
    println!("skipped: pip install cryptography argon2-cffi pyrage");
    None
}

/// A vault, its backups, and files with secrets.
struct Drill {
    python: OsString,
    world: World,
    vault: Vault,
    identity: Identity,
}

impl Drill {
    fn new(world: World, vault: Vault) -> Option<Self> {
        let drill = Self { python: python()?, world, vault, identity: Identity::generate() };
        // As age-keygen writes it, after a key of another kind, which the libraries do not read.
        let mut text = format!(
            "AGE-SECRET-KEY-PQ-1ANOTHER\n# created: 2027-01-15T08:00:00Z\n# public key: {}\n",
            drill.identity.recipient()
        )
        .into_bytes();
        text.extend_from_slice(drill.identity.to_secret_line().expose());
        text.push(b'\n');
        drill.file("identity", &text);
        Some(drill)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.directory.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn store(&self, text: &str, (level, profile): (Level, Option<&str>)) -> stvor_vault::MemoryId {
        let memory = NewMemory::new(text.as_bytes(), level, "home");
        self.vault.store(OWNER, NewMemory { profile: profile.map(str::to_owned), ..memory }).unwrap()
    }

    fn backup(&self, kind: BackupKind) -> PathBuf {
        self.backup_to(kind, Sealing::to(vec![self.identity.recipient()]))
    }

    fn backup_to(&self, kind: BackupKind, sealing: Sealing) -> PathBuf {
        let directory = self.path("backups");
        let new = NewBackup { directory, kind, sealing, description: "drill".into() };
        self.vault.backup(&new).unwrap().path
    }

    /// What the script says. Options name files of this drill after `@`.
    fn run(&self, options: &str, backups: &[&Path]) -> Output {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recovery/recover.py");
        let here = format!("{}/", self.world.directory.path().display());
        let opens = if options.contains("--backup-passphrase-file") { "" } else { "--identity @identity " };
        let options = format!("{opens}{options}");
        Command::new(&self.python)
            .arg(script)
            .args(options.split(' ').map(|option| option.replace('@', &here)))
            .arg("--")
            .args(backups)
            .output()
            .unwrap()
    }

    /// The texts that the script finds; what it says where it fails.
    fn read(&self, options: &str, backups: &[&Path]) -> Result<Vec<String>, String> {
        let output = self.run(options, backups);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(found(&output).iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn found(output: &Output) -> Vec<serde_json::Value> {
    let text = core::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_passphrase_and_a_chain_of_backups_give_the_words_of_all_levels_that_it_opens() {
    let world = World::new();
    let vault = world.open();
    let Some(drill) = Drill::new(world, vault) else { return };
    drill.file("phrase", b"correct horse\n");
    drill.file("second", b"battery staple\n");
    for (text, level) in [("zero", 0), ("one", 1), ("grüße", 2), ("three", 3), ("four", 4)] {
        drill.store(text, (Level::try_from(level).unwrap(), None));
    }
    let mut timed = NewMemory::new(b"with a time", Level::Private, "other/place");
    timed.ttl = Some(Duration::from_secs(90 * 86_400));
    timed.cooldown = Some(Duration::from_secs(5));
    drill.vault.store(OWNER, timed).unwrap();
    let goes = drill.store("forgotten later", (Level::Private, None));
    let full = drill.backup(BackupKind::Full);
    let all = ["zero", "one", "grüße", "three", "with a time", "forgotten later"];
    assert_eq!(drill.read("--passphrase-file @phrase", &[&full]).unwrap(), all);
    let wrong = drill.read("--passphrase-file @second", &[&full]).unwrap_err();
    assert_eq!(wrong, "error: the secret is another one\n");

    // What changed is in those that build on it: a memory more, one less, another passphrase.
    drill.store("later", (Level::Sealed, None));
    let first = drill.backup(BackupKind::Incremental);
    drill.vault.forget(OWNER, goes, "").unwrap();
    drill.store("last", (Level::Vaulted, None));
    drill.vault.change_secret(&owner(), &passphrase("another")).unwrap();
    let last = drill.backup(BackupKind::Incremental);
    drill.file("another", b"another\n");
    let chain: [&Path; 3] = [&full, &first, &last];
    let with = "--passphrase-file @another --second-passphrase-file @second";
    let words = ["zero", "one", "grüße", "three", "four", "with a time", "later", "last"];
    assert_eq!(drill.read(with, &chain).unwrap(), words);
    assert!(
        drill.read("--passphrase-file @phrase", &chain).is_err(),
        "the old passphrase is that of the old backup"
    );

    // Of a backup that a passphrase seals there is no key of age.
    drill.file("backup-phrase", b"for the backup\n");
    let sealing = Sealing::passphrase_with_work(&SecretBytes::from(b"for the backup".to_vec()), 10).unwrap();
    let full = drill.backup_to(BackupKind::Full, sealing);
    let opened = |file: &str| drill.read(&format!("{with} --backup-passphrase-file {file}"), &[&full]);
    assert_eq!(opened("@backup-phrase").unwrap(), words);
    assert!(opened("@second").is_err());
}

#[test]
fn keyfiles_open_levels_to_the_fourth_and_profiles() {
    let directory = tempfile::tempdir().unwrap();
    let mut rng = SystemRandom::new();
    let [one, two, three] = ["one.key", "two.key", "three.key"]
        .map(|name| Keyfile::create(&directory.path().join(name), &mut rng).unwrap());
    let world = World::with(&one, Some(&two));
    let vault = world.cold();
    vault.unlock_with(&one).unwrap();
    let Some(drill) = Drill::new(world, vault) else { return };
    for (name, key) in [("one", &one), ("two", &two), ("three", &three)] {
        std::fs::copy(key.path(), drill.path(name)).unwrap();
    }
    let profile = |name: &str, key| {
        let new = NewProfile { name: name.into(), exportable: false, rotation: Rotation::default() };
        drill.vault.make_profile(new, key).unwrap();
    };
    profile("mine", None);
    profile("doctor", Some(ProfileKey::generate("doctor", &three).unwrap()));
    profile("said", Some(ProfileKey::generate("said", &passphrase("open sesame")).unwrap()));
    drill.file("said", b"open sesame\n");
    drill.store("working, mine", (Level::Working, Some("mine")));
    drill.store("private, doctor's", (Level::Private, Some("doctor")));
    drill.store("vaulted, said", (Level::Vaulted, Some("said")));
    drill.vault.rotate_profile("doctor", |_, _| ()).unwrap();
    drill.store("after the doctor's new key", (Level::Sealed, Some("doctor")));
    let full = drill.backup(BackupKind::Full);
    let with = "--keyfile @one --second-keyfile @two --profile-keyfile doctor=@three --profile-passphrase-file said=@said";
    let words = ["working, mine", "private, doctor's", "vaulted, said", "after the doctor's new key"];
    assert_eq!(drill.read(with, &[&full]).unwrap(), words);
    let wrong = drill.read(&with.replace("@three", "@two"), &[&full]).unwrap_err();
    assert!(wrong.contains("the secret is another one"), "{wrong}");

    // What does not open keeps nobody from the others, and what is no text comes, too.
    let pdf = b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n";
    drill.vault.store(OWNER, NewMemory::new(pdf, Level::Private, "home")).unwrap();
    drill.store("the last one", (Level::Working, None));
    let full = drill.backup(BackupKind::Full);
    let output =
        drill.run("--keyfile @one --second-keyfile @two --profile-passphrase-file said=@said", &[&full]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(said.matches("the profile doctor has a secret of its own").count(), 2, "{said}");
    assert!(!said.contains("left out"), "{said}");
    let without = drill.run("--keyfile @one", &[&full]);
    let said = String::from_utf8(without.stderr).unwrap();
    assert!(said.contains("left out, memories of level 4: 1; what was given opens no key of it"), "{said}");
    let all = found(&output);
    let texts: Vec<_> = all.iter().filter_map(|line| line["text"].as_str()).collect();
    assert_eq!(texts, ["working, mine", "vaulted, said", "the last one"]);
    assert_eq!(
        all.iter().filter_map(|line| line["base64"].as_str()).collect::<Vec<_>>(),
        [STANDARD.encode(pdf)]
    );
}

#[test]
fn shares_stand_for_the_owners_secret_and_the_second_one() {
    let world = World::new();
    let vault = world.open();
    let Some(drill) = Drill::new(world, vault) else { return };
    drill.store("private", (Level::Private, None));
    drill.store("vaulted", (Level::Vaulted, None));
    let full = drill.backup(BackupKind::Full);
    let names = ["ada", "bob", "cleo", "dan"];
    let keepers: Vec<_> =
        names.map(|name| Keeper { name: name.into(), recipient: drill.identity.recipient() }).into();
    let directory = drill.path("shares");
    let new =
        NewEscrow { keepers: &keepers, needed: 3, label: "drill: for the house", directory: &directory };
    let records = drill.vault.records().unwrap();
    let root = unwrap_root(&records.root, &owner()).unwrap();
    let vaulted = unwrap_vaulted(&records.vaulted.unwrap(), &second()).unwrap();
    let (_, files) = drill.vault.escrow((&root, Some(&vaulted)), &new).unwrap();
    for (name, file) in names.iter().zip(&files) {
        drill.file(name, &open_file(file, &drill.identity));
    }
    let with = "--share @dan --share @bob --share @ada";
    assert_eq!(drill.read(with, &[&full]).unwrap(), ["private", "vaulted"]);
    let few = drill.read("--share @dan --share @bob", &[&full]).unwrap_err();
    assert!(few.contains("3 shares are needed"), "{few}");
}

#[test]
fn the_recovery_passphrase_stands_for_a_lost_token() {
    let directory = tempfile::tempdir().unwrap();
    let token = SoftwareToken::create(&directory.path().join("token"), &mut SystemRandom::new()).unwrap();
    let token = TokenKey::challenge(Box::new(token)).with_recovery(passphrase("way back"));
    let world = World::with(&token, None);
    let vault = world.cold();
    vault.unlock_with(&token).unwrap();
    let Some(drill) = Drill::new(world, vault) else { return };
    drill.store("sealed", (Level::Sealed, None));
    let full = drill.backup(BackupKind::Full);
    drill.file("way-back", b"way back\n");
    drill.file("wrong", b"no way back\n");
    assert_eq!(drill.read("--passphrase-file @way-back", &[&full]).unwrap(), ["sealed"]);
    assert!(drill.read("--passphrase-file @wrong", &[&full]).unwrap_err().contains("another one"));
}

#[test]
fn the_answer_of_a_token_opens_level_5_and_so_do_shares_that_hold_it() {
    let world = World::new();
    let vault = world.cold();
    let records = vault.records().unwrap();
    let keys = || {
        let vaulted = unwrap_vaulted(records.vaulted.as_ref().unwrap(), &second()).unwrap();
        (unwrap_root(&records.root, &owner()).unwrap(), vaulted)
    };
    let (root, vaulted) = keys();
    vault.unlock(root, Some(vaulted)).unwrap();
    let Some(drill) = Drill::new(world, vault) else { return };
    drill.file("phrase", b"correct horse\n");
    drill.file("second", b"battery staple\n");
    let mut file = SoftwareToken::create(&drill.path("file"), &mut SystemRandom::new()).unwrap();
    let (mut key, pin) =
        (SoftAuthenticator::new(Some("1234"), true).unwrap(), SecretBytes::from_slice(b"1234"));
    let enrolments = vec![
        Enrolment::challenge("file", &mut file).unwrap(),
        Enrolment::fido2("key", &mut Ctap2::new(&mut key), Some(&pin)).unwrap(),
    ];
    drill.vault.enable_black(enrolments, None).unwrap();
    drill.store("four", (Level::Vaulted, None));
    drill.store("five", (Level::Black, None));
    let full = drill.backup(BackupKind::Full);
    let with = "--passphrase-file @phrase --second-passphrase-file @second";
    let read = |options: &str, full: &Path| drill.read(&format!("{with} {options}"), &[full]);
    assert_eq!(drill.read(with, &[&full]).unwrap(), ["four"], "nobody asked for more");

    // The page says what a token is asked; any program that speaks to it gives the answer.
    let asked = found(&drill.run(&format!("{with} --tokens"), &[&full]));
    let tokens = drill.vault.tokens().unwrap();
    let (TokenKind::Challenge { challenge }, TokenKind::Fido2 { credential, salt, .. }) =
        (&tokens[0].kind, &tokens[1].kind)
    else {
        panic!("{tokens:?}")
    };
    assert_eq!((&asked[0]["token"], &asked[0]["challenge"]), (&"file".into(), &hex(challenge).into()));
    assert_eq!((&asked[1]["credential"], &asked[1]["salt"]), (&hex(credential).into(), &hex(salt).into()));
    let ask = Ask { credential, salt, challenge: &[0; 32], pin: Some(&pin) };
    let answer = Ctap2::new(&mut key).ask(&ask).unwrap();
    drill.file("answer", (hex(answer.secret.expose()) + "\n").as_bytes());
    drill.file("wrong", hex(&[7; 32]).as_bytes());
    for option in ["--token-answer key=@answer", "--token-keyfile file=@file"] {
        assert_eq!(read(option, &full).unwrap(), ["four", "five"], "{option}");
    }
    for (option, reason) in [
        ("--token-answer key=@wrong", "is another one"),
        ("--token-answer file=@answer", "is another one"),
        ("--token-answer other=@answer", "there is no token other"),
    ] {
        let refused = read(option, &full).unwrap_err();
        assert!(refused.contains(reason), "{option}: {refused}");
    }
    let without = drill.read("--passphrase-file @phrase --token-keyfile file=@file", &[&full]).unwrap_err();
    assert!(without.contains("takes the second secret"), "{without}");

    // A use sets the next challenge, and while a token is there shares take in what opens the level.
    let presented = Presented::challenge(&tokens[0], &mut file).unwrap();
    drill.vault.present_token(presented).unwrap();
    let names = ["ada", "bob"];
    let keepers = names.map(|name| Keeper { name: name.into(), recipient: drill.identity.recipient() });
    let directory = drill.path("shares");
    let new = NewEscrow { keepers: &keepers, needed: 2, label: "drill", directory: &directory };
    let (root, vaulted) = keys();
    let (_, files) = drill.vault.escrow((&root, Some(&vaulted)), &new).unwrap();
    for (name, file) in names.iter().zip(&files) {
        drill.file(name, &open_file(file, &drill.identity));
    }
    let later = drill.backup(BackupKind::Full);
    assert_eq!(read("--token-keyfile file=@file", &later).unwrap(), ["four", "five"]);
    assert_eq!(drill.read("--share @ada --share @bob", &[&later]).unwrap(), ["four", "five"]);
    assert_eq!(drill.read("--share @ada --share @bob", &[&full]).unwrap(), ["four"], "of before the shares");
}
