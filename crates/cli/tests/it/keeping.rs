//! Backups, restores, identities from a phrase, keys of the store, the journal, production.

use std::path::Path;

use crate::common::{Home, SOON, finished, listening, mock_relay, objects};

/// A line and its objects; the command has to succeed.
fn told(home: &Home, line: &str) -> Vec<serde_json::Value> {
    let ended = home.run(line);
    assert_eq!(ended.status.code(), Some(0), "{line}: {}", ended.err);
    objects(&ended.out.lines().map(ToOwned::to_owned).collect::<Vec<_>>())
}

fn wrote(home: &Home, lines: &str) {
    let bob = listening(home, &format!("listen --as bob --count {}", lines.lines().count()));
    assert_eq!(home.feed("send --as alice --to bob --lines", lines).code, Some(0));
    assert_eq!(finished(&bob), Some(0));
}

/// A passphrase in a file of this home.
fn passphrase(home: &Home, words: &str) -> String {
    home.secret("backup-passphrase", &format!("{words}\n")).display().to_string()
}

fn stores(directory: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() { stores(&path) } else { path.file_name().is_some_and(|name| name == "store.db") }
    })
}

#[test]
fn a_mistyped_name_makes_and_registers_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    told(&home, "identity create --as alice --json");
    let secret = passphrase(&home, "correct horse battery staple");
    let backup = home.path("typo.age");
    for line in [
        "history --as typo --with alice".to_owned(),
        "journal --as typo".to_owned(),
        "peer list --as typo".to_owned(),
        "key show --as typo".to_owned(),
        "key rotate --as typo".to_owned(),
        "group list --as typo".to_owned(),
        format!("backup --as typo {} --backup-passphrase-file {secret}", backup.display()),
    ] {
        let refused = home.run(&line);
        assert_ne!(refused.status.code(), Some(0), "{line}");
        assert!(refused.err.contains("[IDENTITY_NOT_FOUND]"), "{line}: {}", refused.err);
    }
    assert!(!backup.exists());
    let sent = home.feed("send --as alice --to typo --timeout 1", "hello");
    assert!(sent.err.contains("[RECIPIENT_TIMEOUT]"), "nobody registered: {}", sent.err);
}

#[test]
fn a_backup_restores_the_same_person_elsewhere_and_a_killed_restore_is_whole_or_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let lines: String = (0..60).map(|number| format!("line {number}\n")).collect();
    wrote(&home, &lines);
    let secret = passphrase(&home, "correct horse");
    let file = home.path("alice.age").display().to_string();
    let made = told(&home, &format!("backup --as alice {file} --backup-passphrase-file {secret} --json"));
    assert_eq!((made[0]["messages"].as_u64(), made[0]["conversations"].as_u64()), (Some(60), Some(1)));
    let own = told(&home, "identity show --as alice --json");
    let again = home.run(&format!("backup --as alice {file} --backup-passphrase-file {secret}"));
    assert!(again.err.contains("[BACKUP_FILE_EXISTS]"), "{}", again.err);

    let elsewhere = Home::at(&url);
    let wrong = passphrase(&elsewhere, "wrong");
    let refused = elsewhere.run(&format!("restore {file} --backup-passphrase-file {wrong}"));
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert!(refused.err.contains("[BACKUP_WRONG_KEY]"), "{}", refused.err);
    assert!(!stores(&elsewhere.path("stvor")));

    let line = format!("restore {file} --backup-passphrase-file {secret} --json");
    // Killed at a point that the machine's speed decides; whatever it is, the next restore makes it whole.
    let kill_after = |place: &Home, wait: u64| {
        let process = place.start(&line);
        std::thread::sleep(std::time::Duration::from_millis(wait * 60));
        drop(process.kill());
        drop(process.wait_exit(SOON));
    };
    let (mut killed, mut latest) = (0, 0);
    for wait in [0, 1, 2, 3, 5, 8, 13, 21] {
        kill_after(&elsewhere, wait);
        let opened = elsewhere.run("history --as alice --with bob --limit 100 --json");
        match opened.status.code() {
            // Whole, if it is there at all: looking makes nothing.
            Some(0) if opened.out.lines().count() == 60 => break,
            _ => (killed, latest) = (killed + 1, wait),
        }
        assert!(
            opened.err.contains("RESTORE_INCOMPLETE") || opened.err.contains("IDENTITY_NOT_FOUND"),
            "{}",
            opened.err
        );
    }
    assert!(killed > 0, "at least the first one was killed in time");
    // Those that nobody kills, where one was killed as late as left it unfinished, and where many were. It may have come to its end.
    let once = Home::at(&url);
    kill_after(&once, latest);
    for place in [&once, &elsewhere] {
        let last = place.run(&line);
        let whole = last.status.code() == Some(0) || last.err.contains("RESTORE_STORE_EXISTS");
        assert!(whole, "{}", last.err);
    }
    let target = Home::at(&url);
    let restored = told(&target, &line);
    assert_eq!((restored[0]["user"].as_str(), restored[0]["messages"].as_u64()), (Some("alice"), Some(60)));
    for place in [&once, &elsewhere, &target] {
        let shown = told(place, "identity show --as alice --json");
        assert_eq!(shown[0]["fingerprint"], own[0]["fingerprint"]);
        let found = told(place, "history --as alice --with bob --search LINE --limit 100 --json");
        assert_eq!(found.len(), 60);
        let deeds: Vec<_> =
            told(place, "journal --as alice --json").iter().map(|one| one["deed"].clone()).collect();
        assert_eq!(deeds, ["restored"]);
    }
    let refused = target.run(&line);
    assert!(refused.err.contains("RESTORE_STORE_EXISTS"), "{}", refused.err);
    // The conversation goes on: Bob gets it, from the person that he knows.
    let bob = listening(&home, "listen --as bob --count 1 --json");
    assert_eq!(target.feed("send --as alice --to bob", "from the restored one").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
}

#[test]
fn a_phrase_is_shown_once_and_makes_the_same_person_elsewhere() {
    let (_relay, url) = mock_relay();
    let (home, elsewhere) = (Home::at(&url), Home::at(&url));
    let made = told(&home, "identity create --as alice --phrase --json");
    let words = made[0]["phrase"].as_str().unwrap();
    assert_eq!(words.split(' ').count(), 24);
    let twice = home.run("identity create --as alice --phrase");
    assert_eq!(twice.status.code(), Some(1), "{}", twice.err);
    assert!(twice.err.contains("[IDENTITY_EXISTS]") && twice.out.is_empty(), "{}", twice.err);
    let file = elsewhere.secret("words", &format!("{}\n", words.to_uppercase()));
    let again =
        told(&elsewhere, &format!("identity create --as alice --phrase-file {} --json", file.display()));
    assert_eq!(again[0]["fingerprint"], made[1]["fingerprint"]);
    std::fs::write(&file, "abandon abandon\n").unwrap();
    let refused = Home::at(&url).run(&format!("identity create --as bob --phrase-file {}", file.display()));
    assert_eq!(refused.status.code(), Some(3), "{}", refused.err);
    assert!(refused.err.contains("[KEY_MALFORMED]") && !refused.err.contains("abandon"), "{}", refused.err);
}

#[test]
fn the_key_of_a_store_is_shown_changed_and_rotated() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "one\ntwo\n");
    let shown = told(&home, "key show --as alice --json");
    assert_eq!((shown[0]["opens_with"].as_str(), shown[0]["rotations"].as_u64()), (Some("keyfile"), Some(0)));
    let rotated = told(&home, "key rotate --as alice --json");
    assert_eq!(rotated[0]["rotations"].as_u64(), Some(1));
    let secret = passphrase(&home, "a new passphrase");
    let changed = told(&home, &format!("key change --as alice --new-passphrase-file {secret} --json"));
    assert_eq!(changed[0]["opens_with"].as_str(), Some("passphrase"));
    let refused = home.run("history --as alice --with bob");
    assert_eq!(refused.status.code(), Some(3), "{}", refused.err);
    let found = told(&home, &format!("history --as alice --with bob --passphrase-file {secret} --json"));
    assert_eq!(found.len(), 2);
}

#[test]
fn production_refuses_with_one_error_that_lists_everything_and_doctor_shows_the_same() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let refused = home.run("--production history --as alice --with bob");
    assert_eq!(refused.status.code(), Some(3), "{}", refused.err);
    for found in ["keyfile_beside_store", "relay_without_tls", "development_token", "[NOT_FOR_PRODUCTION]"] {
        assert!(refused.err.contains(found), "{found}: {}", refused.err);
    }
    assert!(!stores(&home.path("stvor")), "nothing was made");
    let codes = |line: &str| -> Vec<String> {
        let ended = home.run(line);
        let lines: Vec<_> = ended.out.lines().map(ToOwned::to_owned).collect();
        let checks = objects(&lines).into_iter().filter(|check| check["name"] == "production");
        checks
            .map(|check| {
                format!("{} {}", check["verdict"].as_str().unwrap(), check["code"].as_str().unwrap())
            })
            .collect()
    };
    assert_eq!(
        codes("doctor --as alice --json"),
        ["warning keyfile_beside_store", "warning relay_without_tls", "warning development_token"]
    );
    assert_eq!(codes("--production doctor --as alice --json"), ["problem NOT_FOR_PRODUCTION"; 3]);
}
