//! The key of a store moves into a token, a key management server or the keyring, and the client works with it there.

use std::time::Duration;

use stvor_testkit::process::Finished;
use stvor_testkit::{Kmip, SoftHsm};

use crate::common::{Home, SOON, finished, listening, mock_relay, objects};

/// Settings that go to every command of a test.
type Settings = Vec<(&'static str, String)>;

fn run(home: &Home, settings: &Settings, line: &str) -> Finished {
    let mut spawn = home.stvor(line.split(' '));
    for (name, value) in settings {
        spawn = spawn.env(name, value);
    }
    spawn.run(SOON).unwrap()
}

/// How many messages with bob alice's history has; the code of the refusal if it does not open.
fn history(home: &Home, settings: &Settings) -> Result<usize, String> {
    let ended = run(home, settings, "history --as alice --with bob --json");
    let code =
        || ended.err.split("\"code\":\"").nth(1).and_then(|code| code.split('"').next()).unwrap_or_default();
    if ended.status.code() == Some(0) { Ok(ended.out.lines().count()) } else { Err(code().to_owned()) }
}

fn wrote(home: &Home, settings: &Settings, text: &str) {
    let bob = listening(home, "listen --as bob --count 1");
    let mut spawn = home.stvor("send --as alice --to bob".split(' ')).with_input();
    for (name, value) in settings {
        spawn = spawn.env(name, value);
    }
    let sender = spawn.start().unwrap();
    sender.write_line(text).unwrap();
    sender.close_input();
    assert_eq!(finished(&sender), Some(0));
    assert_eq!(finished(&bob), Some(0));
}

fn changed(home: &Home, settings: &Settings, line: &str) -> String {
    let ended = run(home, settings, &format!("key change --as alice --json {line}"));
    assert_eq!(ended.status.code(), Some(0), "{line}: {}", ended.err);
    let lines: Vec<_> = ended.out.lines().map(ToOwned::to_owned).collect();
    objects(&lines)[0]["opens_with"].as_str().unwrap().to_owned()
}

/// The command fails with this exit code and code, and the store opens as before.
fn refused(home: &Home, settings: &Settings, (line, exit, code): (&str, i32, &str)) {
    let ended = run(home, settings, &format!("key change --as alice {line}"));
    assert_eq!(ended.status.code(), Some(exit), "{line}: {}", ended.err);
    assert!(ended.err.contains(code), "{line}: {}", ended.err);
    assert_eq!(history(home, settings), Ok(1), "{line}");
}

fn in_token(token: &SoftHsm, pin_file: &str) -> (String, Settings) {
    let module = token.module().display().to_string();
    let line = format!(
        "--new-token-module {module} --new-token-label {} --new-token-key store --new-token-pin-file {pin_file}",
        SoftHsm::TOKEN
    );
    let (name, config) = token.variable();
    let settings = vec![
        (name, config.display().to_string()),
        ("STVOR_TOKEN_MODULE", module),
        ("STVOR_TOKEN_LABEL", SoftHsm::TOKEN.to_owned()),
        ("STVOR_TOKEN_KEY", "store".to_owned()),
        ("STVOR_TOKEN_PIN_FILE", pin_file.to_owned()),
    ];
    (line, settings)
}

#[test]
fn the_key_moves_into_a_token_and_the_client_sends_restarts_and_reads_with_it() {
    let Some(token) = SoftHsm::new().unwrap() else { return };
    token.add_key("store").unwrap();
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let pin = home.secret("pin", "1234\n").display().to_string();
    let wrong_pin = home.secret("wrong-pin", "4321\n").display().to_string();
    let (line, with_token) = in_token(&token, &pin);
    // The module finds its token by this; no setting names a key yet.
    let without: Settings = with_token[..1].to_vec();
    wrote(&home, &without, "before");
    refused(&home, &without, ("--new-token-module /nowhere.so", 2, "--new-token-label"));
    refused(&home, &without, (&format!("{line} --new-keyfile x"), 2, "cannot be used with"));
    refused(&home, &without, (&in_token(&token, &wrong_pin).0, 4, "WRONG_KEY"));
    let elsewhere = line.replace("--new-token-key store", "--new-token-key another");
    refused(&home, &without, (&elsewhere, 3, "KEY_MISSING"));

    assert_eq!(changed(&home, &without, &line), "token");
    assert_eq!(history(&home, &without), Err("KEY_REQUIRED".to_owned()));
    assert_eq!(history(&home, &with_token), Ok(1));
    wrote(&home, &with_token, "after");
    assert_eq!(history(&home, &with_token), Ok(2));
    let mut mistyped = with_token.clone();
    mistyped[4].1 = wrong_pin;
    assert_eq!(history(&home, &mistyped), Err("WRONG_KEY".to_owned()));
    let journal = run(&home, &with_token, "journal --as alice --json");
    assert!(journal.out.contains("keyfile -> token"), "{}", journal.out);
}

#[test]
fn a_change_that_is_killed_leaves_a_store_that_opens_with_one_of_the_two_keys() {
    let Some(token) = SoftHsm::new().unwrap() else { return };
    token.add_key("store").unwrap();
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let pin = home.secret("pin", "1234\n").display().to_string();
    let (to_token, with_token) = in_token(&token, &pin);
    let keyfile = home.path("another.key").display().to_string();
    let to_keyfile = format!("--new-keyfile {keyfile}");
    let without: Settings = with_token[..1].to_vec();
    wrote(&home, &without, "before");
    assert_eq!(changed(&home, &without, &to_keyfile), "keyfile");
    let with_keyfile: Settings = [&without[..], &[("STVOR_KEYFILE", keyfile)]].concat();
    let mut is_token = false;
    for wait in [0, 1, 2, 3, 4, 6, 8, 12] {
        let (line, settings) = if is_token { (&to_keyfile, &with_token) } else { (&to_token, &with_keyfile) };
        let line = format!("key change --as alice {line}");
        let mut spawn = home.stvor(line.split(' '));
        for (name, value) in settings {
            spawn = spawn.env(name, value);
        }
        let process = spawn.start().unwrap();
        // At a point that the machine's speed decides.
        std::thread::sleep(Duration::from_millis(wait * 40));
        drop(process.kill());
        drop(process.wait_exit(SOON));
        let opens = [history(&home, &with_keyfile), history(&home, &with_token)];
        match &opens {
            [Ok(1), Err(code)] if code == "KEY_REQUIRED" => is_token = false,
            [Err(code), Ok(1)] if code == "KEY_REQUIRED" => is_token = true,
            other => panic!("after {wait}: {other:?}"),
        }
    }
}

#[test]
fn the_key_moves_into_a_key_management_server_and_the_client_sends_restarts_and_reads_with_it() {
    let Some(server) = Kmip::start().unwrap() else { return };
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let none = Settings::new();
    wrote(&home, &none, "before");
    // They outlive the server.
    let file = |name: &str| {
        let kept = home.path(name);
        std::fs::copy(server.file(name), &kept).unwrap();
        kept.display().to_string()
    };
    let line = |key: &str| {
        format!(
            "--new-kmip-server {} --new-kmip-name localhost --new-kmip-key {key} --new-kmip-roots {} \
             --new-kmip-certificate {} --new-kmip-private-key {}",
            server.address(),
            file("ca.pem"),
            file("client.pem"),
            file("client.key")
        )
    };
    let [key, _, inactive] = server.keys() else { panic!("three keys") };
    refused(&home, &none, ("--new-kmip-server localhost", 2, "--new-kmip-key"));
    refused(&home, &none, (&line(inactive), 1, "KEY_UNAVAILABLE"));

    assert_eq!(changed(&home, &none, &line(key)), "key management server");
    assert_eq!(history(&home, &none), Err("KEY_REQUIRED".to_owned()));
    let settings = vec![
        ("STVOR_KMIP_SERVER", server.address()),
        ("STVOR_KMIP_NAME", "localhost".to_owned()),
        ("STVOR_KMIP_KEY", key.clone()),
        ("STVOR_KMIP_ROOTS", file("ca.pem")),
        ("STVOR_KMIP_CERTIFICATE", file("client.pem")),
        ("STVOR_KMIP_PRIVATE_KEY", file("client.key")),
    ];
    assert_eq!(history(&home, &settings), Ok(1));
    wrote(&home, &settings, "after");
    assert_eq!(history(&home, &settings), Ok(2));
    drop(server);
    assert_eq!(history(&home, &settings), Err("KEY_UNAVAILABLE".to_owned()));
}

#[cfg(not(feature = "os-keyring"))]
#[test]
fn a_build_without_the_keyring_says_so_and_changes_nothing() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let none = Settings::new();
    wrote(&home, &none, "before");
    refused(&home, &none, ("--new-os-keyring", 3, "KEYRING_UNAVAILABLE"));
}

#[test]
fn whoever_acts_is_named_in_the_journal_also_without_any_variable() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let none = Settings::new();
    wrote(&home, &none, "before");
    let who = |settings: &Settings| {
        let keyfile = home.path(&format!("{}.key", settings.len())).display().to_string();
        let mut spawn = home.stvor(["key", "change", "--as", "alice", "--new-keyfile", &keyfile]);
        for name in ["USER", "LOGNAME", "USERNAME"] {
            spawn = spawn.env_remove(name);
        }
        for (name, value) in settings {
            spawn = spawn.env(name, value);
        }
        let ended = spawn.run(SOON).unwrap();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.err);
        let with_key = vec![("STVOR_KEYFILE", keyfile)];
        let journal = run(&home, &with_key, "journal --as alice --json");
        let lines: Vec<_> = journal.out.lines().map(ToOwned::to_owned).collect();
        (objects(&lines).last().unwrap()["who"].as_str().unwrap().to_owned(), with_key)
    };
    let (name, with_key) = who(&none);
    assert!(!name.is_empty() && name != "unknown", "{name}");
    let settings = [&with_key[..], &[("STVOR_ACTOR", "nightly job".to_owned())]].concat();
    assert_eq!(who(&settings).0, "nightly job");
}
