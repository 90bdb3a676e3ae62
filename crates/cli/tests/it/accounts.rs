//! What concerns a user as a whole: lost devices, old copies, deletion, peers, history, and who may open the store.

use std::path::Path;

use crate::common::{Home, SOON, TOKEN, all, finished, listening, mock_relay, objects};

/// A line and its objects; the command has to succeed.
fn told(home: &Home, line: &str) -> Vec<serde_json::Value> {
    let ended = home.run(line);
    assert_eq!(ended.status.code(), Some(0), "{line}: {}", ended.err);
    objects(&ended.out.lines().map(ToOwned::to_owned).collect::<Vec<_>>())
}

/// Alice wrote these lines to Bob, who has them.
fn wrote(home: &Home, lines: &str) {
    let bob = listening(home, &format!("listen --as bob --count {}", lines.lines().count()));
    assert_eq!(home.feed("send --as alice --to bob --lines", lines).code, Some(0));
    assert_eq!(finished(&bob), Some(0));
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if entry.is_dir() {
            copy(&entry, &to);
        } else {
            std::fs::copy(&entry, &to).unwrap();
        }
    }
}

#[test]
fn a_lost_device_is_replaced_where_the_relay_allows_it() {
    let (_relay, url) = mock_relay();
    let (old, new) = (Home::at(&url), Home::at(&url));
    let lost = told(&old, "identity show --as bob --json");
    let refused = new.run("identity show --as bob");
    assert_eq!(refused.status.code(), Some(4));
    assert!(refused.err.contains("stvor identity replace --as bob"), "{}", refused.err);
    let unsure = new.run("identity replace --as bob");
    assert_eq!(unsure.status.code(), Some(2), "nobody is asked without a terminal");
    assert!(unsure.err.contains("--yes"), "{}", unsure.err);
    let fresh = told(&new, "identity replace --as bob --yes --json");
    assert_ne!(fresh[0]["fingerprint"], lost[0]["fingerprint"]);
    assert_eq!(told(&new, "identity show --as bob --json"), fresh);
    assert_eq!(old.run("listen --as bob").status.code(), Some(4), "the old device is out");
}

#[test]
fn an_old_copy_of_the_data_sends_nothing_until_it_is_recovered() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "one\n");
    let copied = Home::at(&url);
    copy(&home.path("stvor"), &copied.path("stvor"));
    wrote(&home, "two\nthree\n");
    let refused = copied.feed("send --as alice --to bob", "from the old copy");
    assert_eq!(refused.code, Some(7), "{}", refused.err);
    assert!(refused.err.contains("[ROLLBACK_DETECTED]"), "{}", refused.err);
    assert!(refused.err.contains("stvor account recover"), "{}", refused.err);
    assert!(!refused.err.contains("recover_from_rollback"), "a call is no use at the command line");
    assert_eq!(copied.run("account recover --as alice").status.code(), Some(2), "it is asked first");
    assert_eq!(told(&copied, "account recover --as alice --yes --json")[0]["recovered"], true);
    let bob = listening(&home, "listen --as bob --count 1 --json");
    assert_eq!(copied.feed("send --as alice --to bob", "from the old copy").code, Some(0));
    assert_eq!(finished(&bob), Some(0));
    assert_eq!(all(&objects(&bob.lines(stvor_testkit::Stream::Out)), "text"), ["from the old copy"]);
}

#[test]
fn a_deleted_account_is_gone_there_and_here() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let before = told(&home, "identity show --as bob --json");
    assert_eq!(home.run("account delete --as bob").status.code(), Some(2), "it is asked first");
    assert_eq!(told(&home, "account delete --as bob --yes --json")[0]["deleted"], true);
    let store = before[0]["store"].as_str().unwrap();
    assert!(!Path::new(store).exists(), "{store}");
    let unknown = home.feed("send --as alice --to bob --timeout 1", "hello");
    assert_eq!(unknown.code, Some(6), "{}", unknown.err);
    let anew = told(&home, "identity show --as bob --json");
    assert_ne!(anew[0]["fingerprint"], before[0]["fingerprint"], "the name is free");
}

#[test]
fn history_goes_back_page_by_page_and_needs_no_relay() {
    let (relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "one\ntwo\nthree\n");
    relay.kill().unwrap();
    let last = told(&home, "history --as alice --with bob --limit 2 --json");
    assert_eq!(all(&last, "text"), ["two", "three"]);
    assert_eq!(all(&last, "direction"), ["out", "out"]);
    assert!(last.iter().all(|message| message["status"] != "failed"));
    let two = last[0]["id"].as_str().unwrap();
    let first = told(&home, &format!("history --as alice --with bob --before {two} --json"));
    assert_eq!(all(&first, "text"), ["one"]);
    assert_eq!(all(&told(&home, "history --as bob --with alice --json"), "direction"), ["in", "in", "in"]);
    let shown = home.run("history --as alice --with bob --limit 2");
    assert!(shown.err.contains(&format!("--before {two}")), "{}", shown.err);
    let nowhere = home.run("history --as alice --with bob --before nowhere");
    assert_eq!(nowhere.status.code(), Some(6), "{}", nowhere.err);
    assert_eq!(home.run("history --as alice --with bob --limit 0").status.code(), Some(2));
}

#[test]
fn a_blocked_peer_gets_nothing_and_says_nothing_until_unblocked() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "before\n");
    assert_eq!(told(&home, "peer block --as bob --with alice --json")[0]["blocked"], true);
    assert_eq!(told(&home, "peer list --as bob --json")[0][0]["blocked"], true);
    let refused = home.feed("send --as bob --to alice", "hello");
    assert_eq!(refused.code, Some(4), "{}", refused.err);
    assert!(refused.err.contains("stvor peer unblock --with alice"), "{}", refused.err);
    assert_eq!(home.feed("send --as alice --to bob", "while blocked").code, Some(0));
    // What is dropped is dropped when Bob's client sees it, which it has when it answered what came later.
    let deaf = listening(&home, "listen --as bob --json");
    for later in ["one", "two"] {
        assert_eq!(home.feed("send --as carol --to bob", later).code, Some(0));
        deaf.wait_line(SOON, |_, line| line.contains(&format!("\"text\":\"{later}\""))).unwrap();
    }
    deaf.signal(stvor_testkit::Signal::Term).unwrap();
    assert_eq!(finished(&deaf), Some(0));
    assert_eq!(told(&home, "peer unblock --as bob --with alice --json")[0]["blocked"], false);
    wrote(&home, "after\n");
    assert_eq!(all(&told(&home, "history --as bob --with alice --json"), "text"), ["before", "after"]);
}

#[test]
fn conversations_are_kept_as_long_as_they_are_told_to_and_can_be_deleted() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "one\n");
    assert_eq!(told(&home, "peer keep --as bob --with alice 30d --json")[0]["retention"], "30d");
    assert_eq!(told(&home, "peer list --as bob --json")[0][0]["retention"], "30d");
    assert_eq!(home.run("peer keep --as bob --with alice soon").status.code(), Some(2));
    assert_eq!(told(&home, "peer keep --as bob --with alice none --json")[0]["retention"], "none");
    wrote(&home, "two\n");
    assert_eq!(all(&told(&home, "history --as bob --with alice --json"), "text"), ["one"]);
    assert_eq!(home.run("peer delete --as bob --with alice").status.code(), Some(2), "it is asked first");
    assert_eq!(told(&home, "peer delete --as bob --with alice --yes --json")[0]["deleted"], true);
    assert!(told(&home, "history --as bob --with alice --json").is_empty());
}

#[test]
fn a_fresh_session_carries_on_the_conversation() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    wrote(&home, "one\n");
    assert_eq!(told(&home, "peer reset --as alice --with bob --json")[0]["reset"], true);
    wrote(&home, "two\n");
    assert_eq!(all(&told(&home, "history --as bob --with alice --json"), "text"), ["one", "two"]);
}

#[test]
fn only_the_passphrase_or_key_file_of_a_store_opens_it() {
    let (_relay, url) = mock_relay();
    let home = Home::at(&url);
    let file = |name: &str, text: &str| home.secret(name, text).display().to_string();
    let (right, wrong) = (file("right", "correct horse\n"), file("wrong", "wrong horse\n"));
    told(&home, &format!("identity show --as bob --json --passphrase-file {right}"));
    told(&home, &format!("identity show --as bob --json --passphrase-file {right}"));
    let refused = home.run(&format!("identity show --as bob --passphrase-file {wrong}"));
    assert_eq!(refused.status.code(), Some(4), "{}", refused.err);
    assert!(refused.err.contains("[WRONG_KEY]"), "{}", refused.err);
    let open = home.path("open").display().to_string();
    std::fs::write(&open, "correct horse\n").unwrap();
    let loose = home.run(&format!("identity show --as bob --passphrase-file {open}"));
    assert_eq!(loose.status.code(), Some(3), "{}", loose.err);
    assert!(loose.err.contains("[SECRET_UNREADABLE]") && loose.err.contains("chmod 600"), "{}", loose.err);
    let none = home.run("identity show --as bob");
    assert_eq!(none.status.code(), Some(3), "{}", none.err);
    assert!(none.err.contains("[KEY_REQUIRED]") && none.err.contains("--passphrase-file"), "{}", none.err);
    let key = home.path("key").display().to_string();
    told(&home, &format!("identity show --as carol --json --keyfile {key}"));
    std::fs::rename(home.path("key"), home.path("moved")).unwrap();
    let lost = home.run(&format!("identity show --as carol --keyfile {key}"));
    assert_eq!(lost.status.code(), Some(3), "{}", lost.err);
    assert!(lost.err.contains("[KEY_MISSING]"), "{}", lost.err);
    let both =
        home.run(&format!("identity show --as bob --keyfile {key} --passphrase-file {right} --os-keyring"));
    assert_eq!(both.status.code(), Some(2), "one place for the key");
}

#[cfg(not(feature = "os-keyring"))]
#[test]
fn without_the_systems_keyring_it_is_said_how_to_get_it() {
    let (_relay, url) = mock_relay();
    let refused = Home::at(&url).run("identity show --as bob --os-keyring");
    assert_eq!(refused.status.code(), Some(3), "{}", refused.err);
    assert!(refused.err.contains("[KEYRING_UNAVAILABLE]") && refused.err.contains("--features os-keyring"));
}

/// A backend's key: Ed25519 of RFC 8037, appendix A, and two tokens that it signed for the app `acme` and user `bob`.
mod backend {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};

    pub(super) const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
    const PRIVATE: [u8; 48] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d,
        0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
        0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];

    pub(super) fn token(user: &str, scope: &str) -> String {
        // Chosen by whoever comes first in this process; all providers sign the same.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let now = stvor_base::Timestamp::system().as_millis() / 1000;
        let claims =
            serde_json::json!({ "aud": "acme", "sub": user, "iat": now, "exp": now + 600, "scope": scope });
        let header = Header { kid: Some("2026-1".to_owned()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&PRIVATE)).unwrap()
    }
}

#[test]
fn a_client_token_lets_in_the_user_that_it_names_and_nobody_else() {
    let home = Home::new();
    let settings = home.path("relay.toml");
    let key = format!(
        "[[relay.client_keys]]\nid = \"2026-1\"\napp = \"acme\"\npublic_key = \"{}\"\n",
        backend::PUBLIC
    );
    std::fs::write(&settings, format!("[relay]\nlisten = \"127.0.0.1:0\"\n{key}")).unwrap();
    let relay = home.start(&format!("relay --config {}", settings.display()));
    let url = relay.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    let bob = home.path("bob.jwt");
    std::fs::write(&bob, backend::token("bob", "")).unwrap();
    let people = Home::new();
    let options = format!("--relay {url} --app-id acme --client-token-file {}", bob.display());
    told(&people, &format!("identity show --as bob --json {options}"));
    let other = people.run(&format!("identity show --as carol {options}"));
    assert_eq!(other.status.code(), Some(4), "{}", other.err);
    let no_app =
        people.run(&format!("identity show --as bob --relay {url} --client-token-file {}", bob.display()));
    assert_eq!(no_app.status.code(), Some(3), "{}", no_app.err);
    assert!(no_app.err.contains("app_id"), "{}", no_app.err);
    let doctor = people.run(&format!("doctor --as bob {options}"));
    assert_eq!(doctor.status.code(), Some(0), "{}", doctor.out);
    let lost = Home::new();
    let replacing = backend::token("bob", "identity:replace");
    let line = format!(
        "identity replace --as bob --yes --json --relay {url} --app-id acme --client-token {replacing}"
    );
    told(&lost, &line);
    let shown = people.run(&format!("config show --client-token {replacing} --token {TOKEN}"));
    assert!(!shown.out.contains(&replacing), "it is a secret");
}
