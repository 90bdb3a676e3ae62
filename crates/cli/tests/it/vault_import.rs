//! `stvor vault import`: what is taken over, what is not, and how it says so.

use serde_json::json;
use stvor_testkit::Signal;

use crate::common::{SOON, finished};
use crate::vault::Served;

/// A line of an MCP memory server's file.
fn observation(number: usize, text: &str) -> String {
    json!({ "type": "entity", "name": format!("Ann {number}"), "entityType": "person", "observations": [text] })
        .to_string()
}

#[test]
fn an_import_that_a_killed_daemon_stops_fails_and_the_next_one_goes_on_from_there() {
    const LINES: usize = 3_000;
    let mut served = Served::new();
    served.owner("unlock");
    let file = served.home.path("memory.jsonl");
    let lines: Vec<String> = (0..LINES).map(|number| observation(number, "likes tea")).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let line = format!("import {} --namespace home", file.display());
    let importing =
        served.home.start(&format!("vault {line} --keyfile {}", served.home.path("owner.key").display()));
    let stored = || served.owner("list --namespace home").len();
    stvor_testkit::until(SOON, || (stored() > 0).then_some(())).unwrap();
    served.daemon.signal(Signal::Kill).unwrap();
    let code = finished(&importing);
    let said = importing.lines(stvor_testkit::Stream::Err).join("\n");
    assert!(
        code == Some(5) && said.contains("stopped at line") && said.contains("goes on"),
        "{code:?} {said}"
    );
    served.daemon = Served::serve(&served.home, "");
    served.owner("unlock");
    let before = served.owner("list --namespace home --all").len();
    assert!(before < LINES, "it was stopped half-way");
    let taken = served.owner(&line);
    assert_eq!(taken[0]["there"], before);
    assert_eq!(taken[0]["taken"], LINES - before);
    assert_eq!(served.owner("list --namespace home --all").len(), LINES, "no one is lost, no one doubled");
    assert_eq!(served.owner("verify")[0]["ok"], true);
}

#[test]
fn one_memory_that_can_not_be_taken_over_is_named_and_the_exit_code_tells() {
    let served = Served::new();
    served.owner("unlock");
    let file = served.home.path("memory.jsonl");
    let lines =
        [observation(0, "likes tea"), observation(1, "password: hunter22x"), observation(2, "likes tea")];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let (code, out, err) = served.try_owner(&format!("import {} --namespace home", file.display()));
    assert!(code == 4 && err.contains("line 2 was left out"), "{code} {err}");
    assert_eq!(out[0], json!({ "taken": 2, "there": 0, "left_out": 1, "without_content": 0 }));
    // Of a file that is not understood nothing is stored.
    std::fs::write(&file, format!("{}\nno json", observation(3, "likes tea"))).unwrap();
    let (code, _, err) = served.try_owner(&format!("import {} --namespace home", file.display()));
    assert!(code == 2 && err.contains("line 2"), "{code} {err}");
    assert_eq!(served.owner("list --namespace home").len(), 2);
}

#[test]
fn an_import_that_is_not_allowed_to_go_on_stops() {
    let served = Served::new();
    served.owner("unlock");
    let credential = served.home.path("small.cred");
    served.owner(&format!(
        "agents add small --namespace home --quota 20000 --credential-out {}",
        credential.display()
    ));
    let file = served.home.path("memory.jsonl");
    let lines: Vec<String> = (0..600).map(|number| observation(number, "likes tea")).collect();
    std::fs::write(&file, lines.join("\n")).unwrap();
    let line = format!("import {} --namespace home --level working", file.display());
    let (code, out, err) = served.try_agent("small", &line);
    assert!(code == 4 && err.contains("stopped at line") && err.contains("AGENT_QUOTA"), "{code} {err}");
    assert!(out.is_empty(), "{out:?}");
    assert!(served.owner("list --namespace home").len() < 100);
}

#[test]
fn a_corrected_memory_comes_over_corrected_and_nothing_as_the_owners_word() {
    let (from, to) = (Served::new(), Served::new());
    from.owner("unlock");
    from.enrol("assistant", "working");
    let old = from.store("assistant", ("Tea at five", ""));
    let line = from.as_agent("assistant", &format!("supersede {old} --namespace home"));
    assert_eq!(from.home.feed(&line, "Tea at six").code, Some(0));
    from.owner_stores("Ann owns the house");
    let file = from.home.path("export.jsonl");
    from.owner(&format!("export --out {}", file.display()));

    to.owner("unlock");
    let import = format!("import {}", file.display());
    assert_eq!(to.owner(&import)[0]["taken"], 3);
    let headers = to.owner("list --namespace home");
    let trusts: Vec<_> = headers.iter().map(|header| header["trust"].as_str().unwrap()).collect();
    assert_eq!(trusts, ["agent", "agent", "agent"]);
    let states: Vec<_> = headers.iter().map(|header| header["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["live", "live", "superseded"], "newest first");
    assert_eq!(headers[2]["superseded_by"], headers[1]["id"]);
    assert_eq!(headers[1]["metadata"]["imported.creator"], "assistant");
    assert_eq!(headers[2]["metadata"]["imported.id"], old.as_str());
    // A second time nothing is doubled.
    assert_eq!(to.owner(&import)[0], json!({ "taken": 0, "there": 3, "left_out": 0, "without_content": 0 }));
    assert_eq!(from.owner(&import)[0]["there"], 3, "nor in the vault that it is from");
}

#[test]
fn what_a_file_corrects_is_kept_no_worse_than_it_was_here() {
    let (from, to) = (Served::new(), Served::new());
    from.owner("unlock");
    from.enrol("assistant", "working");
    let old = from.store("assistant", ("Tea at five", ""));
    let file = from.home.path("export.jsonl");
    from.owner(&format!("export --out {}", file.display()));
    to.owner("unlock");
    to.owner(&format!("import {} --minimum-level private", file.display()));
    let line = from.as_agent("assistant", &format!("supersede {old}"));
    assert_eq!(from.home.feed(&line, "Tea at six").code, Some(0));
    let newer = from.home.path("newer.jsonl");
    from.owner(&format!("export --out {}", newer.display()));
    assert_eq!(to.owner(&format!("import {}", newer.display()))[0]["taken"], 1);
    let headers = to.owner("list --namespace home");
    assert_eq!(headers[0]["supersedes"], headers[1]["id"]);
    assert_eq!((&headers[0]["level"], &headers[1]["level"]), (&2.into(), &2.into()));
}

#[test]
fn memories_of_the_python_program_come_over_once_and_what_no_key_opens_is_named() {
    let served = Served::new();
    served.owner("unlock");
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/../vault/tests/fixtures/python-vault");
    let key = format!("--old-keyfile static-keyfile={old}/static-keyfile.key");
    let line = format!("import-python {old}/vault.db {key} --minimum-level private");
    for (taken, there) in [(3, 0), (0, 3)] {
        let (code, out, err) = served.try_owner(&line);
        assert_eq!((code, &out[0]), (2, &json!({ "taken": taken, "there": there, "left_out": 1 })), "{err}");
        assert!(err.contains("default-passphrase: --old-keyfile or --old-passphrase-file"), "{err}");
    }
    let headers = served.owner("list --namespace default");
    let levels: Vec<_> = headers.iter().map(|header| header["level"].as_u64()).collect();
    assert_eq!(levels, [Some(2); 3], "none comes over below the level that was asked for");
}

/// Some seconds and a gigabyte for each of the three derivations: the format stores no smaller cost.
#[test]
fn a_backup_and_a_profile_of_the_python_program_come_over_with_the_passphrases_of_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let served = Served::new();
    served.owner("unlock");
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/../vault/tests/fixtures/python-vault");
    let key = format!("--old-keyfile static-keyfile={old}/static-keyfile.key");
    let passphrase = served.home.secret("passphrase", "old passphrase\nanother line\n");
    let backup = served.home.secret("backup-passphrase", "backup passphrase\n");
    let taken = |taken, there, left_out| json!({ "taken": taken, "there": there, "left_out": left_out });

    let of_backup = |file: &std::path::Path| {
        let file = file.display();
        served.try_owner(&format!("import-python {old}/backup.json {key} --backup-passphrase-file {file}"))
    };
    let (code, out, err) = of_backup(&passphrase);
    assert!(code == 4 && out.is_empty() && err.contains("WRONG_KEY"), "{code} {out:?} {err}");
    std::fs::set_permissions(&backup, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, out, err) = of_backup(&backup);
    assert!(code == 3 && out.is_empty() && err.contains("chmod 600"), "{code} {out:?} {err}");
    std::fs::set_permissions(&backup, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(served.owner("list --namespace default").len(), 0);
    let (code, out, err) = of_backup(&backup);
    assert_eq!((code, &out[0]), (2, &taken(1, 0, 1)), "{err}");
    assert!(err.contains("the backup was made without its content"), "{err}");

    // The database has what the backup had, and a memory behind a passphrase.
    let line = format!("import-python {old}/vault.db {key} --old-passphrase-file {}", passphrase.display());
    assert_eq!(served.owner(&line)[0], taken(3, 1, 0));
    let listed = served.owner("list --namespace default");
    assert_eq!(listed.iter().filter(|header| header["state"] == "live").count(), 3, "{listed:?}");
    let of = |number: usize| {
        let name = format!("00000000-0000-4000-8000-{number:012}");
        let header = listed.iter().find(|header| header["metadata"]["memory-vault.id"] == name.as_str());
        let id = header.unwrap()["id"].as_str().unwrap();
        served.owner(&format!("recall {id}"))[0]["content"]["text"].clone()
    };
    assert_eq!([of(1), of(4)], ["tea at five", "behind a passphrase"]);
}
