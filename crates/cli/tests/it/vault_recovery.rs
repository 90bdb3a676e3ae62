//! `stvor vault` when things are lost: backups, shares, heirs, tokens, proofs, witnesses, as people meet them.

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use stvor_base::Timestamp;
use stvor_crypto::SecretBytes;
use stvor_keys::recipients::{Identity, Opening};
use stvor_testkit::{Signal, Stream};
use stvor_vault::backup::BackupName;

use crate::common::{Home, SOON, finished};
use crate::vault::Served;

struct Person {
    identity: Identity,
    file: PathBuf,
}

/// Somebody with an age key in a file.
fn person(served: &Served, name: &str) -> Person {
    let identity = Identity::generate();
    let file = served.home.path(&format!("{name}.key"));
    std::fs::write(&file, identity.to_secret_line().expose()).unwrap();
    Person { identity, file }
}

fn open(person: &Person, path: &Path) -> Vec<u8> {
    let text = SecretBytes::from(std::fs::read(&person.file).unwrap());
    let opening = Opening::with(Identity::parse_file(&text).unwrap());
    let mut plain = Vec::new();
    opening.reader(std::fs::File::open(path).unwrap()).unwrap().read_to_end(&mut plain).unwrap();
    plain
}

#[test]
fn a_vault_comes_back_from_its_backups_on_another_disk() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("Tea at five", ""));
    let keeper = person(&served, "keeper");
    let dir = served.home.path("backups");
    let make = format!("backup make --dir {} --to {}", dir.display(), keeper.identity.recipient());
    let full = served.owner(&make)[0]["path"].as_str().unwrap().to_owned();
    let later = served.store("assistant", ("Coffee at ten", ""));
    let one = served.owner(&format!("{make} --incremental"))[0]["path"].as_str().unwrap().to_owned();
    assert_eq!(served.owner("backup list").len(), 2);
    assert_eq!(served.owner(&format!("backup rotate --dir {} --last 1 --dry-run", dir.display())).len(), 0);

    let elsewhere = served.home.path("elsewhere");
    let key = keeper.file.display();
    let restore = |files: &str| {
        served.try_owner(&format!("restore {files} --identity {key} --vault {}", elsewhere.display()))
    };
    let (code, _, err) = restore(&one);
    assert!(code == 1 && err.contains("BACKUP_CHAIN"), "{code} {err}");
    // What is named with the command has to be there; what the settings name may be gone with the machine.
    let gone = served.home.path("gone").display().to_string();
    for list in ["forgotten", "checkpoints"] {
        let (code, _, err) = restore(&format!("{full} {one} --{list} {gone}"));
        assert!(code == 1 && err.contains("VAULT_IO") && err.contains(&gone), "{list}: {code} {err}");
        assert!(!elsewhere.exists() && !Path::new(&gone).exists(), "{list}");
    }
    let empty = served.home.path("empty").display().to_string();
    std::fs::write(&empty, "").unwrap();
    let (code, _, err) = restore(&format!("{full} {one} --checkpoints {empty}"));
    assert!(code != 0 && err.contains(&format!("{empty} holds no checkpoint")), "{code} {err}");
    assert!(!elsewhere.exists());
    let settings = served.home.path("config/stvor");
    std::fs::create_dir_all(&settings).unwrap();
    let text = format!("[vault]\nforgotten = [\"{gone}\"]\ncheckpoints = [\"{gone}\", \"{empty}\"]\n");
    std::fs::write(settings.join("stvor.toml"), text).unwrap();
    let (code, out, err) = restore(&format!("{full} {one}"));
    assert_eq!((code, &out[0]["memories"]), (0, &2.into()), "{err}");
    assert_eq!(err.matches(&format!("{gone} of the settings is not there")).count(), 2, "{err}");
    assert!(err.contains(&format!("{empty} of the settings is empty")), "{err}");
    std::fs::remove_file(settings.join("stvor.toml")).unwrap();
    let (code, _, err) = restore(&format!("{full} {one}"));
    assert!(code == 7 && err.contains("BACKUP_OLDER"), "it lives on there: {code} {err}");
    // Over the vault that is served nothing is restored.
    let (code, _, err) = served.try_owner(&format!("restore {full} {one} --identity {key}"));
    assert!(code != 0 && err.contains("VAULT_BUSY"), "{err}");

    let file = served.home.path("export.jsonl");
    served.owner(&format!("export --out {}", file.display()));
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(&id) && text.contains(&later) && text.contains("Coffee at ten"));
    // What a forgetting does not reach is named, to an agent by its number only.
    let forgotten = served.agent("assistant", &format!("forget {later} --yes"));
    assert_eq!((&forgotten[0]["backups"]["count"], forgotten[0].get("files")), (&1.into(), None));
    let forgotten = served.owner(&format!("forget {id} --yes"));
    assert_eq!(forgotten[0]["files"], serde_json::json!([full, one]));
    // What was exported is taken over again, as other memories.
    let taken = served.owner(&format!("import {}", served.home.path("export.jsonl").display()));
    assert_eq!(taken[0], serde_json::json!({ "taken": 2, "there": 0, "left_out": 0, "without_content": 0 }));
    assert_eq!(served.agent("assistant", "search coffee --namespace home").len(), 1);
}

#[test]
fn a_rotation_removes_what_its_trial_named_and_says_which_backups_it_does_not_count() {
    let served = Served::new();
    let dir = served.home.path("backups");
    std::fs::create_dir(&dir).unwrap();
    let now = Timestamp::system().as_millis() / 1_000 * 1_000;
    let make = |hours: u64| {
        let made = now + hours * 60 * 60 * 1_000;
        let name = BackupName { made, id: format!("{hours:016x}"), parent: None }.to_string();
        std::fs::write(dir.join(&name), "").unwrap();
        dir.join(name).display().to_string()
    };
    let rotate = format!("backup rotate --dir {} --last 1 --dry-run", dir.display());
    let (older, _) = (make(1), make(2));
    for not_counted in [false, true] {
        let (code, out, err) = served.try_owner(&rotate);
        assert_eq!((code, err.contains("not counted")), (0, not_counted), "{err}");
        assert_eq!(out, [serde_json::json!({ "removed": false, "file": older })]);
        make(48);
    }
    assert!(Path::new(&older).exists(), "it was a trial");
    let (code, out, err) = served.try_owner(&rotate.replace(" --dry-run", ""));
    assert_eq!((code, out), (0, vec![serde_json::json!({ "removed": true, "file": older })]), "{err}");
    assert!(!Path::new(&older).exists(), "this time it goes");
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "and nothing else");
}

#[test]
fn an_export_that_fails_leaves_no_file_and_one_that_lacks_contents_says_why() {
    let served = Served::new();
    served.owner("unlock");
    served.owner_stores("Tea at five");
    let sealed = format!(
        "vault store --namespace home --level sealed --json --keyfile {}",
        served.home.path("owner.key").display()
    );
    assert_eq!(served.home.feed(&sealed, "The safe is behind the map").code, Some(0));
    let file = served.home.path("export.jsonl");
    let export = format!("export --out {}", file.display());
    served.owner("lockdown enter");
    let (code, _, err) = served.try_owner(&export);
    assert!(code == 4 && err.contains("VAULT_LOCKDOWN") && !file.exists(), "{code} {err}");
    served.owner("lockdown leave");
    let written = serde_json::json!({
        "memories": 2, "without_content": 1, "refused": { "BOUNDARY_DENIED": 1 },
    });
    assert_eq!(served.owner(&export)[0], written);
    let line = format!("vault export --keyfile {}", served.home.path("owner.key").display());
    let shown = served.home.run(&line);
    assert!(
        shown.err.contains("1 without content") && shown.err.contains("(BOUNDARY_DENIED)"),
        "{}",
        shown.err
    );
    assert_eq!(shown.out.lines().count(), 2);
}

#[test]
fn what_is_left_of_a_vault_whose_log_was_cut_is_written_to_a_file() {
    let mut served = Served::new();
    served.owner("unlock");
    let id = served.owner_stores("Tea at five");
    let database = served.home.path("stvor/vault/vault.db");
    let stop = |served: &Served| {
        served.daemon.close_input();
        assert_eq!(finished(&served.daemon), Some(0));
    };
    stop(&served);
    let before = std::fs::read(&database).unwrap();
    served.daemon = Served::serve(&served.home, "");
    served.owner("unlock");
    served.owner_stores("Coffee at ten");
    let out = served.home.path("rest.jsonl");
    let salvage = format!("salvage --out {}", out.display());
    let (code, _, err) = served.try_owner(&salvage);
    assert!(code != 0 && err.contains("VAULT_BUSY") && !out.exists(), "{code} {err}");
    stop(&served);
    let (code, _, err) = served.try_owner(&salvage);
    assert!(code != 0 && err.contains("the vault opens") && !out.exists(), "{code} {err}");
    // Somebody puts the database of an hour ago back; the checkpoints outside say so.
    std::fs::write(&database, before).unwrap();
    let salvaged = served.owner(&salvage);
    assert_eq!((&salvaged[0]["memories"], &salvaged[0]["with_content"]), (&1.into(), &1.into()));
    assert!(salvaged[0]["wrong"].as_str().unwrap().contains("it was cut"));
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains(&id) && text.contains("Tea at five"), "{text}");
}

#[test]
fn keepers_open_a_vault_whose_owner_lost_the_key() {
    let mut served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("Tea at five", ""));
    let people = ["ada", "bob", "cleo"].map(|name| (name, person(&served, name)));
    let keepers = people.iter().map(|(name, one)| format!(" --keeper {name}={}", one.identity.recipient()));
    let keepers: String = keepers.collect();
    let dir = served.home.path("shares");
    let made = served.owner(&format!("escrow make --needed 2 --dir {}{keepers}", dir.display()));
    let files: Vec<_> =
        made[0]["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert_eq!(files.len(), 3);
    assert_eq!(served.owner("escrow list").len(), 1);
    served.daemon.close_input();
    assert_eq!(finished(&served.daemon), Some(0));
    std::fs::remove_file(served.home.path("owner.key")).unwrap();

    let shares: String = [0, 2]
        .map(|at| {
            let path = served.home.path(&format!("share-{at}.txt"));
            let text = String::from_utf8(open(&people[at].1, Path::new(files[at]))).unwrap();
            served.home.secret(&format!("share-{at}.txt"), &text);
            format!(" --share {}", path.display())
        })
        .concat();
    let phrase = served.home.secret("new-phrase", "a new passphrase\n");
    let open_to_all = served.home.path("open.txt");
    std::fs::write(&open_to_all, "a share").unwrap();
    std::fs::set_permissions(&open_to_all, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let refused = served.home.run(&format!("vault recover --share {}", open_to_all.display()));
    assert!(refused.err.contains("others may read it"), "{}", refused.err);
    let recover =
        format!("vault recover{shares} --new-passphrase-file {} --cost interactive --json", phrase.display());
    let ended = served.home.run(&recover);
    assert!(ended.status.success(), "{}", ended.err);
    served.daemon = Served::serve(&served.home, "");
    let line = format!("vault unlock --passphrase-file {}", phrase.display());
    assert!(served.home.run(&line).status.success());
    assert_eq!(served.agent("assistant", &format!("recall {id}"))[0]["content"]["text"], "Tea at five");
}

#[test]
fn keepers_open_level_5_too_when_all_tokens_are_lost() {
    let home = Home::new();
    let at = |name: &str| home.path(name).display().to_string();
    let (key, second) = (at("owner.key"), at("second.key"));
    let made =
        home.run(&format!("vault init --origin example.com/vault --keyfile {key} --second-keyfile {second}"));
    assert!(made.status.success(), "{}", made.err);
    let daemon = Served::serve(&home, "");
    let mut served = Served { home, daemon };
    let at = |served: &Served, name: &str| served.home.path(name).display().to_string();
    served.owner(&format!("unlock --second-keyfile {second}"));
    let (one, two) = (at(&served, "one.token"), at(&served, "two.token"));
    served.owner(&format!("token open --software-token one={one} --software-token two={two}"));
    served.owner(&format!("token present one --software-token {one}"));
    let people = ["ada", "bob"].map(|name| (name, person(&served, name)));
    let keepers: String =
        people.iter().map(|(name, one)| format!(" --keeper {name}={}", one.identity.recipient())).collect();
    let dir = at(&served, "shares");
    let made =
        served.owner(&format!("escrow make --needed 2 --dir {dir}{keepers} --second-keyfile {second}"));
    let shares: String = made[0]["files"]
        .as_array()
        .unwrap()
        .iter()
        .zip(&people)
        .map(|(file, (name, person))| {
            let path = served.home.path(&format!("{name}.txt"));
            let text = String::from_utf8(open(person, Path::new(file.as_str().unwrap()))).unwrap();
            served.home.secret(&format!("{name}.txt"), &text);
            format!(" --share {}", path.display())
        })
        .collect();
    served.daemon.close_input();
    assert_eq!(finished(&served.daemon), Some(0));
    for token in [one, two] {
        std::fs::remove_file(token).unwrap();
    }

    let phrase = served.home.secret("new-phrase", "a new passphrase\n").display().to_string();
    let recover = format!("vault recover{shares} --new-passphrase-file {phrase} --cost interactive --json");
    let said = served.home.run(&recover);
    assert!(said.status.success() && said.out.contains("\"level_5_stays_shut\":true"), "{}", said.out);
    assert!(said.err.contains("--software-token"), "{}", said.err);
    let new = at(&served, "new.token");
    let said = served.home.run(&format!("{recover} --software-token new={new}"));
    assert!(said.status.success() && said.out.contains("\"tokens\":1"), "{} {}", said.out, said.err);

    served.daemon = Served::serve(&served.home, "");
    let as_owner = format!("--passphrase-file {phrase} --json");
    for line in [
        format!("vault unlock --second-keyfile {second} {as_owner}"),
        format!("vault token present new --software-token {new} {as_owner}"),
    ] {
        let done = served.home.run(&line);
        assert!(done.status.success(), "{line}: {}", done.err);
    }
}

#[test]
fn a_watcher_waits_for_an_owner_who_checks_in() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("The house is yours", ""));
    let heir = person(&served, "heir");
    let (dir, release, state) =
        (served.home.path("watched"), served.home.path("out"), served.home.path("state"));
    let arm = format!(
        "switch arm --days 30 --heir ada={} --memory {id} --dir {}",
        heir.identity.recipient(),
        dir.display()
    );
    let verifier = served.owner(&arm)[0]["verifier"].as_str().unwrap().to_owned();
    served.owner("switch check-in");
    let look = format!(
        "vault watch --once --dir {} --release {} --state {} --verifier {verifier} --json",
        dir.display(),
        release.display(),
        state.display()
    );
    let looked = served.home.run(&look);
    assert!(looked.status.success() && looked.out.contains("waiting"), "{} {}", looked.out, looked.err);
    assert!(!release.exists());
    // Who is started for each look counts nothing where the state can not be written, and has to know.
    let nowhere =
        look.replace(&state.display().to_string(), &served.home.path("no/state").display().to_string());
    let looked = served.home.run(&nowhere);
    assert!(!looked.status.success() && looked.err.contains("VAULT_IO"), "{} {}", looked.out, looked.err);
    let sealed = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let sealed = sealed.into_iter().find(|path| path.to_str().unwrap().contains("heir-ada-")).unwrap();
    let package = open(&heir, &sealed);
    assert!(String::from_utf8(package).unwrap().contains("The house is yours"));
    // What the watcher has says none of it.
    for file in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).chain([state.clone()]) {
        let bytes = std::fs::read(&file).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("house") && !text.contains(&id), "{}: {text}", file.display());
    }
    // The owner was silent, is back, and is waited for again by the same process.
    let mut known: serde_json::Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    let seen = &mut known["seen"][1];
    let long_ago = seen["wall"].as_u64().unwrap() - 40 * 86_400_000;
    (seen["boot"], seen["wall"]) = ("another".into(), long_ago.into());
    std::fs::write(&state, known.to_string()).unwrap();
    // As `nohup` starts it; elsewhere than on Linux the system does not tell.
    let script = format!(
        "trap '' HUP; exec {} {}",
        env!("CARGO_BIN_EXE_stvor"),
        look.replace("--once", "--every 1 --exit-with-stdin")
    );
    let watcher = served.home.program("/bin/sh").args(["-c", &script]).with_input().start().unwrap();
    assert!(watcher.wait_output(1, SOON).unwrap()[0].contains("released"));
    assert!(release.join("heir-ada.age").exists());
    if cfg!(target_os = "linux") {
        watcher.signal(Signal::HangUp).unwrap();
    }
    served.owner("switch check-in");
    assert!(watcher.wait_output(2, SOON).unwrap()[1].contains("waiting"));
    watcher.close_input();
    assert_eq!(finished(&watcher), Some(0));
    // A check-in is for watchers on other machines also where this one has nothing to give.
    std::fs::remove_file(&sealed).unwrap();
    let (code, made, said) = served.try_owner("switch check-in");
    assert!(code != 0 && said.contains("VAULT_PACKAGE_MISSING"), "{code} {said}");
    assert!(made[0]["check_in"].as_str().unwrap().contains("\nnumber "), "{made:?}");
    // The disk is out: it is decided, said, and made up for.
    let away = served.home.path("away");
    std::fs::rename(&dir, &away).unwrap();
    let (code, _, said) = served.try_owner("switch disarm");
    assert!(code == 1 && said.contains("VAULT_WATCHER_NOT_TOLD"), "{code} {said}");
    let status = &served.owner("switch status")[0];
    assert_eq!((&status["every"], &status["untold"][0]["disarmed"]), (&0.into(), &true.into()), "{status}");
    assert_eq!(served.owner("status")[0]["watchers_untold"], 1);
    std::fs::rename(&away, &dir).unwrap();
    served.owner("switch disarm");
    assert!(served.home.run(&look).out.contains("disarmed"));
    // One whose directory is gone for good is given up.
    served.owner(&arm);
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!(served.try_owner("switch disarm").0, 1);
    assert_ne!(served.try_owner("switch give-up --dir /elsewhere").0, 0);
    served.owner(&format!("switch give-up --dir {}", dir.display()));
    assert_eq!(served.owner("status")[0]["watchers_untold"], 0);
}

#[test]
fn a_watcher_watches_on_when_nobody_reads_what_it_says() {
    let served = Served::new();
    served.owner("unlock");
    let id = served.owner_stores("The house is yours");
    let heir = person(&served, "heir");
    let at = |name: &str| served.home.path(name).display().to_string();
    let arm = format!(
        "switch arm --days 30 --heir ada={} --memory {id} --dir {}",
        heir.identity.recipient(),
        at("watched")
    );
    let verifier = served.owner(&arm)[0]["verifier"].as_str().unwrap().to_owned();
    // As `| tee log` whose terminal is closed: the reader is gone before its line is here.
    let script = format!(
        "{} vault watch --every 1 --exit-with-stdin --dir {} --release {} --state {} --verifier {verifier} --json \
         | {{ read -r line; exec <&-; echo \"$line\"; }}",
        env!("CARGO_BIN_EXE_stvor"),
        at("watched"),
        at("out"),
        at("state")
    );
    let watcher = served.home.program("/bin/sh").args(["-c", &script]).with_input().start().unwrap();
    assert!(watcher.wait_output(1, SOON).unwrap()[0].contains("waiting"));
    let warned = |times: usize| {
        let mut seen = 0;
        let warning = watcher.wait_line(SOON, |stream, line| {
            seen += usize::from(stream == Stream::Err && line.contains("the reader of the output went away"));
            seen >= times
        });
        warning.unwrap();
    };
    served.owner("switch disarm");
    warned(1);
    // It sees the next change, too.
    served.owner(&arm);
    warned(2);
    watcher.close_input();
    assert_eq!(finished(&watcher), Some(0));
}

#[test]
fn a_property_is_proved_and_checked_and_a_witness_signs() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("Tea at five", ""));
    let status = served.owner("status");
    let verifier = status[0]["verifier"].as_str().unwrap();
    let file = served.home.path("proof.json");
    let prove = |claim: &str| {
        served.try_owner(&format!("property prove {id} {claim} --audience court --out {}", file.display()))
    };
    assert_eq!(prove("--level-at-most 0").0, 7, "it is not true");
    assert_eq!(prove("--level-at-most 2").0, 0);
    let check = |audience: &str| {
        let line =
            format!("vault property check {} --audience {audience} --verifier {verifier}", file.display());
        served.home.run(&line).status.code()
    };
    assert_eq!(check("court"), Some(0));
    assert_ne!(check("others"), Some(0));
    let other = served.store("assistant", ("Tea at six", ""));
    let early = served.home.path("early");
    let (code, _, err) = served.try_owner(&format!("property open {other} --out {}", early.display()));
    assert!(code == 2 && err.contains("prove something of it first") && !early.exists(), "{code} {err}");
    let proved = served.home.path("of-other.json");
    served.owner(&format!(
        "property prove {other} --level-at-most 2 --audience court --out {}",
        proved.display()
    ));
    let [opening, of_other] = [(&id, "opening"), (&other, "of-other")].map(|(id, name)| {
        let path = served.home.path(name);
        served.owner(&format!("property open {id} --out {}", path.display()));
        path
    });
    assert_eq!(std::fs::metadata(&opening).unwrap().permissions().mode() & 0o777, 0o600);
    let content = served.home.path("content");
    let shown = |words: &str, opening: &Path| {
        std::fs::write(&content, words).unwrap();
        let with = format!("--content {} --opening {}", content.display(), opening.display());
        check(&format!("court {with}"))
    };
    // As it is, and as `recall` writes it to a file.
    assert_eq!(["Tea at five", "Tea at five\n"].map(|words| shown(words, &opening)), [Some(0); 2]);
    for words in ["Tea at six", "Tea at five\n\n", ""] {
        assert_eq!(shown(words, &opening), Some(7), "{words:?}");
    }
    assert_eq!(shown("Tea at five", &of_other), Some(7), "of another memory");
    assert_eq!(shown("Tea at five", &file), Some(7), "no opening");

    let (socket, dir) = (served.home.path("witness.sock"), served.home.path("witness"));
    let serve = format!(
        "vault witness serve --dir {} --socket {} --log {verifier} --exit-with-stdin --json",
        dir.display(),
        socket.display()
    );
    let witness = served.home.start(&serve);
    let said = witness.wait_output(1, SOON).unwrap();
    let key =
        serde_json::from_str::<serde_json::Value>(&said[0]).unwrap()["key"].as_str().unwrap().to_owned();
    let ask = |verb: &str| served.owner(&format!("witness {verb} --socket {} --key {key}", socket.display()));
    assert!(ask("ask")[0]["size"].as_u64().unwrap() > 3);
    let signed = ask("verify")[0]["size"].as_u64().unwrap();
    assert_eq!(ask("verify")[0]["size"], signed);

    // The daemon asks by itself, and tells when the witness is away.
    served.daemon.close_input();
    assert_eq!(finished(&served.daemon), Some(0));
    let (owner, alerts) = (served.home.path("owner.key"), served.home.path("alerts"));
    let options = format!(
        "--unlock --keyfile {} --witness {} --witness-key {key} --witness-every 1 --alerts {}",
        owner.display(),
        socket.display(),
        alerts.display()
    );
    let daemon = Served::serve(&served.home, &options);
    let newer = || ask("verify")[0]["size"].as_u64().filter(|size| *size > signed);
    assert!(stvor_testkit::until(SOON, newer).is_ok());
    witness.close_input();
    assert_eq!(finished(&witness), Some(0));
    let (code, _, err) =
        served.try_owner(&format!("witness verify --socket {} --key {key}", socket.display()));
    assert!(code == 5 && err.contains("WITNESS_UNREACHABLE"), "{code} {err}");
    served.owner_stores("Coffee at ten");
    let told = || std::fs::read_to_string(&alerts).ok().filter(|text| text.contains("witness-failed"));
    assert!(stvor_testkit::until(SOON, told).is_ok());
    daemon.wait_for("ALERT {\"alert\":\"witness-failed\"", SOON).unwrap();
    drop(daemon);
}
