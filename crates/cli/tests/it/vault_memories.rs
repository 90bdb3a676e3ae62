//! Memories from a terminal: correcting, forgetting, finding and exporting them; and what the doctor says.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use stvor_testkit::Signal;

use crate::common::{Home, SOON, finished, objects};
use crate::terminal::{Kind, Terminal, USUAL};
use crate::vault::Served;

/// Takes over so many memories of level 1.
fn import_many(served: &Served, count: usize) {
    let file = served.home.path("many.jsonl");
    let line = |number: usize| {
        serde_json::json!({
            "type": "entity", "name": format!("n{number}"), "entityType": "person", "observations": ["likes tea"],
        })
        .to_string()
    };
    std::fs::write(&file, (0..count).map(line).collect::<Vec<_>>().join("\n")).unwrap();
    served.owner(&format!("import {} --namespace home --level working", file.display()));
}

#[test]
fn a_correction_keeps_the_level_from_a_terminal_too() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let feed = |line: &str, text: &str| {
        let ended = served.home.feed(line, text);
        (ended.code, objects(&ended.out), ended.err)
    };
    let as_owner = |line: &str, text: &str| {
        let (code, out, err) = feed(&Served::line(&served.home, &format!("vault {line} --json")), text);
        assert_eq!(code, Some(0), "{line}: {err}");
        out[0]["id"].as_str().unwrap().to_owned()
    };
    let level = |id: &str| {
        let all = served.owner("list --namespace home");
        all.iter().find(|header| header["id"] == id).map(|header| header["level"].as_u64().unwrap())
    };
    let old = as_owner("store --namespace home --level sealed", "The PIN is 4711");
    let new = as_owner(&format!("supersede {old}"), "The PIN is 4712");
    assert_eq!(level(&new), Some(3));
    let (code, _, err) = served.try_agent("assistant", &format!("recall {new}"));
    assert!(code == 6 && err.contains("MEMORY_NOT_FOUND"), "{code} {err}");
    // Without the words it is what it was; with them the owner says so.
    let low = as_owner(&format!("supersede {new} --level working"), "There is no PIN any more");
    assert_eq!(level(&low), Some(1));

    let private = served.store("assistant", ("The alarm code is on the fridge", " --level private"));
    let line = |more: &str| served.as_agent("assistant", &format!("supersede {private}{more}"));
    let (code, _, err) = feed(&line(" --level working"), "It is in the drawer");
    assert!(code == Some(4) && err.contains("MEMORY_LOWER_LEVEL"), "{code:?} {err}");
    let (code, out, err) = feed(&line(""), "It is in the drawer");
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(level(out[0]["id"].as_str().unwrap()), Some(2));
}

#[test]
fn who_forgets_a_corrected_memory_is_told_of_the_versions_that_are_left() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let old = served.store("assistant", ("Ann lives in Bern", ""));
    let line = served.as_agent("assistant", &format!("supersede {old}"));
    let ended = served.home.feed(&line, "Ann lives in Basel");
    let new = objects(&ended.out)[0]["id"].as_str().unwrap().to_owned();
    let reach = &served.agent("assistant", &format!("forget {new} --with-earlier --dry-run"))[0];
    let named = |name: &str| -> Vec<_> {
        reach[name].as_array().unwrap().iter().map(|header| header["id"].as_str().unwrap()).collect()
    };
    assert_eq!((named("forgets"), named("keeps")), (vec![&new[..], &old[..]], vec![]));
    let line = Served::line(&served.home, &format!("vault forget {new} --with-earlier"));
    let mut asked = Terminal::open(&served.home, &line, Kind { columns: 160, ..USUAL });
    asked.wait_for(&format!("Destroy {new} and 1 earlier version (level 1) for good?"));
    asked.press("n");
    assert_eq!(asked.ended(), 2);
    served.agent("assistant", &format!("recall {new}"));
    let (code, out, err) = served.try_agent("assistant", &format!("forget {new} --yes"));
    assert_eq!((code, &out[0]["earlier"]), (0, &serde_json::json!([old])));
    assert!(err.contains(&old) && err.contains(&format!("forget {new} --with-earlier")), "{err}");
    served.agent("assistant", &format!("recall {old}"));
    let out = served.agent("assistant", &format!("forget {new} --with-earlier --yes"));
    assert_eq!(out[0], serde_json::json!({ "before": true, "ended": [old] }));
    let (code, _, err) = served.try_agent("assistant", &format!("recall {old}"));
    assert!(code == 6 && err.contains("MEMORY_GONE"), "{code} {err}");
}

#[test]
fn who_closes_a_corrected_memory_is_told_of_the_versions_that_can_be_recalled() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let old = served.store("assistant", ("Ann lives in Bern", ""));
    let ended =
        served.home.feed(&served.as_agent("assistant", &format!("supersede {old}")), "Ann lives in Basel");
    let new = objects(&ended.out)[0]["id"].as_str().unwrap().to_owned();
    let (code, out, err) = served.try_agent("assistant", &format!("tombstone {new} --yes"));
    assert_eq!((code, &out[0]["earlier"]), (0, &serde_json::json!([old])));
    assert!(err.contains(&format!("forget {new} --with-earlier")), "{err}");
    assert_eq!(served.agent("assistant", &format!("tombstone {old} --yes"))[0]["done"], true);
}

#[test]
fn a_search_that_ends_at_a_full_page_says_so() {
    let served = Served::new();
    served.owner("unlock");
    import_many(&served, stvor_vault::limits::MAX_PAGE + 1);
    let (code, out, err) = served.try_owner("search tea");
    assert_eq!((code, out.len()), (0, stvor_vault::limits::MAX_PAGE));
    assert!(err.contains("there are more than these"), "{err}");
    let (_, out, err) = served.try_owner("search n7");
    assert!(out.len() == 1 && !err.contains("more than these"), "{err}");
}

#[test]
fn half_an_export_stays_under_no_name_and_what_lacks_its_content_is_said() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "sealed");
    let gone = served.owner_stores("Tea at five");
    served.owner_stores("Tea at six");
    served.store("assistant", ("The contract is with Acme", " --level sealed"));
    served.owner(&format!("forget {gone} --yes"));
    let file = |name: &str| served.home.path(name);
    let told = served.owner(&format!("export --out {}", file("one.jsonl").display()));
    let refused = serde_json::json!({ "MEMORY_GONE": 1, "BOUNDARY_DENIED": 1 });
    assert_eq!(told[0], serde_json::json!({ "memories": 3, "without_content": 2, "refused": refused }));
    let line = format!("vault export --out {}", file("two.jsonl").display());
    let ended = served.home.run(&Served::line(&served.home, &line));
    for said in ["they ended (MEMORY_GONE)", "the boundary daemon does not allow it"] {
        assert!(ended.err.contains(said), "{said}: {}", ended.err);
    }
    served.home.run("vault lockdown enter");
    let (code, _, err) = served.try_owner(&format!("export --out {}", file("three.jsonl").display()));
    assert!(code == 4 && err.contains("VAULT_LOCKDOWN"), "{code} {err}");
    assert!(!file("three.jsonl").exists());
    // Its words are open: they are for the owner only.
    assert_eq!(std::fs::metadata(file("two.jsonl")).unwrap().permissions().mode() & 0o777, 0o600);
}

/// A vault with so many memories that an export of them is met half-way.
struct Exports {
    served: Served,
    dir: PathBuf,
}

impl Exports {
    const LINES: usize = 3_000;

    fn new() -> Self {
        let served = Served::new();
        served.owner("unlock");
        import_many(&served, Self::LINES);
        let dir = served.home.path("exports");
        std::fs::create_dir(&dir).unwrap();
        Self { served, dir }
    }

    /// Where the exports go.
    fn file(&self) -> PathBuf {
        self.dir.join("all.jsonl")
    }

    /// What stands there.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// The command line of an export.
    fn line(&self) -> String {
        Served::line(&self.served.home, &format!("vault export --out {}", self.file().display()))
    }

    /// Waits until an export began to write.
    fn wait(&self) {
        stvor_testkit::until(SOON, || (!self.names().is_empty()).then_some(())).unwrap();
    }

    /// Removes an export, which has to be whole.
    fn remove_whole(&self) {
        let whole = std::fs::read_to_string(self.file()).unwrap();
        assert_eq!(whole.lines().count(), Self::LINES, "only all of it has the name");
        std::fs::remove_file(self.file()).unwrap();
    }
}

#[test]
fn an_export_that_is_interrupted_leaves_no_half_of_it() {
    let exports = Exports::new();
    // One that was whole before the signal came is no trial: there are few of those.
    let interrupted = (0..20).any(|_| {
        let exporting = exports.served.home.start(&exports.line());
        exports.wait();
        exporting.signal(Signal::Interrupt).unwrap();
        let (code, left) = (finished(&exporting), exports.names());
        if left != ["all.jsonl"] {
            assert_eq!((code, left), (Some(130), vec![]));
            return true;
        }
        exports.remove_whole();
        false
    });
    assert!(interrupted, "none was interrupted half-way");
}

#[test]
fn an_export_takes_no_name_that_another_file_got_meanwhile() {
    let exports = Exports::new();
    let refused = (0..20).any(|_| {
        let exporting = exports.served.home.start(&exports.line());
        exports.wait();
        let other = std::fs::OpenOptions::new().write(true).create_new(true).open(exports.file());
        let came_first = other.is_ok_and(|mut other| other.write_all(b"mine").is_ok());
        let code = finished(&exporting);
        if came_first {
            assert_eq!((code, exports.names()), (Some(1), vec!["all.jsonl".to_owned()]));
            assert_eq!(std::fs::read_to_string(exports.file()).unwrap(), "mine");
            return true;
        }
        assert_eq!(code, Some(0));
        exports.remove_whole();
        false
    });
    assert!(refused, "none was met half-way");
}

/// As on some file systems of FUSE: neither is a file renamed only where nothing is, nor linked.
#[cfg(target_os = "linux")]
#[test]
fn an_export_gets_its_name_also_where_the_file_system_can_do_little() {
    let Some(strace) = crate::common::strace() else { return };
    let served = Served::new();
    served.owner("unlock");
    served.owner_stores("Tea at five");
    let (dir, trace) = (served.home.path("exports"), served.home.path("trace"));
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("all.jsonl");
    let line = Served::line(&served.home, &format!("vault export --out {}", file.display()));
    let fails =
        ["-e", "inject=renameat2:error=EINVAL", "-e", "inject=?link,linkat:error=EPERM", "-e", "signal=none"];
    let exporting = served.home.program(strace.to_str().unwrap()).args(["-f", "-qq", "-o"]).arg(&trace);
    let exporting = exporting.args(["-e", "trace=renameat2,?link,linkat"]).args(fails);
    let exported = exporting.arg(env!("CARGO_BIN_EXE_stvor")).args(line.split(' ')).run(SOON).unwrap();
    assert!(exported.status.success(), "{}", exported.err);
    let trace = std::fs::read_to_string(&trace).unwrap();
    assert!(trace.contains("INJECTED"), "nothing failed: {trace}");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1, "nothing else is left");
}

/// Elsewhere the system does not tell how a process was started.
#[cfg(target_os = "linux")]
#[test]
fn an_export_that_is_to_outlive_its_terminal_does() {
    let exports = Exports::new();
    // As `nohup` starts it.
    let script = format!("trap '' HUP; exec {} {}", env!("CARGO_BIN_EXE_stvor"), exports.line());
    let hung_up = (0..20).any(|_| {
        let exporting = exports.served.home.program("/bin/sh").args(["-c", &script]).start().unwrap();
        exports.wait();
        exporting.signal(Signal::HangUp).unwrap();
        let half_way = exports.names() != ["all.jsonl"];
        assert_eq!(finished(&exporting), Some(0));
        exports.remove_whole();
        half_way
    });
    assert!(hung_up, "none was met half-way");
}

#[test]
fn the_doctor_tells_the_age_of_log_and_backups_of_a_cold_vault_from_its_files() {
    let served = Served::new();
    let doctor = |served: &Served, options: &str| {
        let ended = served.home.run(&format!("vault doctor --json{options}"));
        objects(&ended.out.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let found = |checks: &[serde_json::Value], name: &str| {
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        (check["verdict"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
    };
    let cold = doctor(&served, "");
    let (verdict, said) = found(&cold, "log");
    assert!(verdict == "ok" && said.starts_with("last written 2"), "{verdict} {said}");
    assert_eq!(found(&cold, "clock").0, "ok");
    let (verdict, said) = found(&cold, "backup");
    assert!(verdict == "warning" && said.contains("a cold vault does not say"), "{verdict} {said}");
    let none = served.home.path("none");
    std::fs::create_dir(&none).unwrap();
    let options = |dir: &std::path::Path| format!(" --backups {}", dir.display());
    assert_eq!(found(&doctor(&served, &options(&none)), "backup").1, "none was made");
    served.owner("unlock");
    let to = stvor_keys::recipients::Identity::generate().recipient().to_string();
    let dir = served.home.path("backups");
    served.owner(&format!("backup make --dir {} --to {to}", dir.display()));
    let Served { home, daemon } = served;
    drop(daemon);
    let served = Served { daemon: Served::serve(&home, ""), home };
    let (verdict, said) = found(&doctor(&served, &options(&dir)), "backup");
    assert_eq!((&verdict[..], &said[..]), ("ok", "the newest is 0 days old"));
    std::fs::write(none.join("vault-20200101T000000Z-0011223344556677-full.age"), "").unwrap();
    let (verdict, said) = found(&doctor(&served, &options(&none)), "backup");
    assert!(verdict == "warning" && said.ends_with("days old"), "{verdict} {said}");
}

#[test]
fn the_doctor_finds_a_clock_that_was_set_back_and_a_database_of_another_program() {
    let served = Served::new();
    let check = |home: &Home, name: &str| {
        let ended = home.run("vault doctor --json");
        let checks = objects(&ended.out.lines().map(str::to_owned).collect::<Vec<_>>());
        checks.into_iter().find(|check| check["name"] == name).unwrap()
    };
    let database = served.home.path("stvor/vault/vault.db");
    // As if the clock had been set back by an hour since the vault wrote last.
    let ahead = SystemTime::now() + Duration::from_secs(3_600);
    std::fs::File::options().write(true).open(&database).unwrap().set_modified(ahead).unwrap();
    let clock = check(&served.home, "clock");
    assert_eq!(
        (&clock["verdict"], &clock["code"]),
        (&"problem".into(), &"CLOCK_BACKWARDS".into()),
        "{clock}"
    );
    let (found, fix) = (clock["found"].as_str().unwrap(), clock["fix"].as_str().unwrap());
    assert!(found.ends_with(" s behind the newest write of the database"), "{clock}");
    assert!(fix.contains("set the clock") && fix.contains("stay closed"), "{clock}");

    assert_eq!(check(&served.home, "format")["verdict"], "ok");
    let Served { home, daemon } = served;
    drop(daemon);
    for (version, code, fix) in [
        (1_u32, "VAULT_TOO_OLD", "export with the program that made it"),
        (99, "VAULT_TOO_NEW", "update this program"),
    ] {
        // Where SQLite keeps `user_version`.
        let mut bytes = std::fs::read(&database).unwrap();
        bytes[60..64].copy_from_slice(&version.to_be_bytes());
        std::fs::write(&database, bytes).unwrap();
        let format = check(&home, "format");
        assert_eq!((&format["verdict"], &format["code"]), (&"problem".into(), &code.into()), "{format}");
        assert!(format["fix"].as_str().unwrap().contains(fix), "{format}");
    }
}

#[test]
fn intents_and_pauses_are_managed_from_a_terminal() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("Ann likes tea", " --intent trip --cooldown 600"));
    let serves = |intent: &str| served.owner(&format!("by-intent {intent}")).len();
    assert_eq!((serves("trip"), serves("party")), (1, 0));
    served.owner(&format!("link {id} party"));
    served.agent("assistant", &format!("unlink {id} trip"));
    assert_eq!((serves("trip"), serves("party")), (0, 1));
    let recall = format!("recall {id}");
    served.agent("assistant", &recall);
    let (code, _, err) = served.try_agent("assistant", &recall);
    assert!(code == 4 && err.contains("COOLDOWN"), "{code} {err}");
    served.owner(&format!("end-pause {id}"));
    served.agent("assistant", &recall);
    let purged = &served.owner("purge")[0];
    assert_eq!((&purged["purged"], &purged["left"]), (&0.into(), &0.into()));
}

#[test]
fn the_doctor_names_what_others_may_read_and_what_mends_it() {
    let served = Served::new();
    served.owner("unlock");
    let database = served.home.path("stvor/vault/vault.db");
    let doctor = |mode| {
        std::fs::set_permissions(&database, std::fs::Permissions::from_mode(mode)).unwrap();
        let ended = served.home.run("vault doctor");
        (ended.status.code(), ended.out)
    };
    let mends = format!("chmod 600 {}", database.display());
    let (code, said) = doctor(0o644);
    assert!(code == Some(1) && said.contains(&mends), "{code:?} {said}");
    let (_, said) = doctor(0o600);
    assert!(said.contains("is private") && !said.contains("chmod"), "{said}");
}

#[test]
fn the_doctor_tells_the_age_of_a_served_log_and_names_copies_that_a_restore_left() {
    let served = Served::new();
    let checks = || {
        let ended = served.home.run("vault doctor --json");
        objects(&ended.out.lines().map(str::to_owned).collect::<Vec<_>>())
    };
    let check = |name: &str| checks().into_iter().find(|check| check["name"] == name);
    served.owner("unlock");
    let said = check("log").unwrap()["found"].as_str().unwrap().to_owned();
    assert!(said.contains(" events, the newest of 2") && said.ends_with("(0 h ago)"), "{said}");
    assert_eq!(check("copies"), None);
    let beside = |name: &str| served.home.path("stvor").join(name);
    std::fs::create_dir(beside("vault.before-1800000000000")).unwrap();
    std::fs::create_dir(beside(".vault.restoring-0011223344556677")).unwrap();
    for other in ["vaults", "vault.backups", "other.before-1"] {
        std::fs::create_dir(beside(other)).unwrap();
    }
    let found = check("copies").unwrap();
    assert!(found["verdict"] == "warning" && found["found"].as_str().unwrap().starts_with("2 "), "{found}");
    let said = found.to_string();
    assert!(said.contains("stored after the backup") && !said.contains("rm -r"), "{said}");
    assert!(said.contains("vault.before-1800000000000") && said.contains(".vault.restoring-"), "{said}");
    assert!(!said.contains("other.before-1"), "{said}");
}
