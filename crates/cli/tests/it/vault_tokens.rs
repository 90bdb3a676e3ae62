//! Level 5 with FIDO2 tokens, which a program of the test carries in the place of USB.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use stvor_keys::fido2::Ctap2Transport as _;
use stvor_keys::recipients::Identity;
use stvor_testkit::SoftAuthenticator;

use crate::common::{Home, SOON};
use crate::vault::Served;

/// Carries a token until the test ends.
fn carry(home: &Home, name: &str) -> PathBuf {
    carry_shown(home, name).0
}

/// The same, with the token itself.
fn carry_shown(home: &Home, name: &str) -> (PathBuf, Arc<Mutex<SoftAuthenticator>>) {
    let socket = home.path(name);
    let listener = UnixListener::bind(&socket).unwrap();
    let shown = Arc::new(Mutex::new(SoftAuthenticator::new(Some("1234"), true).unwrap()));
    let token = shown.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            while stream.read_exact(&mut length).is_ok() {
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                let answer = token.lock().unwrap().exchange(&request).unwrap();
                stream.write_all(&(answer.len() as u32).to_be_bytes()).unwrap();
                stream.write_all(&answer).unwrap();
            }
        }
    });
    (socket, shown)
}

struct Tokens {
    served: Served,
    pin: String,
}

impl Tokens {
    fn with(&self, socket: &Path, line: &str) -> (i32, Vec<serde_json::Value>, String) {
        self.served.try_owner(&format!("{line} --fido2-socket {}{}", socket.display(), self.pin))
    }

    fn does(&self, socket: &Path, line: &str) -> Vec<serde_json::Value> {
        let (code, out, err) = self.with(socket, line);
        assert_eq!(code, 0, "{line}: {err}");
        out
    }
}

#[test]
fn a_fido2_token_and_shares_open_level_5_and_its_credentials_come_and_go() {
    let home = Home::new();
    let at = |name: &str| home.path(name).display().to_string();
    let (key, second) = (at("owner.key"), at("second.key"));
    home.run(&format!("vault boundary key {}", at("boundary.key")));
    let boundary = home.start(&format!(
        "vault boundary serve --key {} --socket {} --mode cold-room --exit-with-stdin",
        at("boundary.key"),
        at("boundary.sock")
    ));
    boundary.wait_output(1, SOON).unwrap();
    let made =
        home.run(&format!("vault init --origin example.com/vault --keyfile {key} --second-keyfile {second}"));
    assert!(made.status.success(), "{}", made.err);
    let options = format!("--boundary {} --boundary-key {}", at("boundary.sock"), at("boundary.key.pub"));
    let (a, (b, on_the_desk)) = (carry(&home, "a.sock"), carry_shown(&home, "b.sock"));
    let wrong = home.secret("wrong", "4321\n").display().to_string();
    let pin = format!(" --pin-file {}", home.secret("pin", "1234\n").display());
    let shares = at("shares");
    let daemon = Served::serve(&home, &options);
    let tokens = Tokens { served: Served { home, daemon }, pin };
    let served = &tokens.served;
    served.owner(&format!("unlock --second-keyfile {second}"));

    let (code, _, err) = tokens.with(&a, "token open --fido2 a");
    assert!(code == 2 && err.contains("two tokens"), "one loss from none: {code} {err}");
    let keepers: String =
        ["ada", "bob"].map(|name| format!(" --keeper {name}={}", Identity::generate().recipient())).concat();
    let line = format!("token open --fido2 a{keepers} --needed 2 --dir {shares} --second-keyfile {second}");
    let opened = tokens.does(&a, &line);
    assert_eq!(opened[0]["files"].as_array().unwrap().len(), 2);

    let file = served.home.path("black");
    std::fs::write(&file, "the last word").unwrap();
    let stored = served.owner(&format!("store --level black --cooldown 0 --file {}", file.display()));
    let recall = format!("recall {} --justification audit", stored[0]["id"].as_str().unwrap());
    let (code, _, err) = served.try_owner(&recall);
    assert!(code == 4 && err.contains("TOKEN_REQUIRED"), "{code} {err}");
    let (code, _, _) = tokens.with(&b, "token present a --fido2");
    assert_ne!(code, 0, "another token");
    tokens.does(&a, "token present a --fido2");
    assert_eq!(served.owner(&recall)[0]["content"]["text"], "the last word");

    // A second one, which has to be another one.
    tokens.does(&a, "token present a --fido2");
    let (code, _, err) = tokens.with(&a, "token add b --fido2");
    assert!(code == 2 && err.contains("is a already"), "{code} {err}");
    let (code, _, err) =
        served.try_owner(&format!("token add b --fido2 --fido2-socket {} --pin-file {wrong}", b.display()));
    assert!(code != 0 && err.contains("TOKEN_PIN"), "{code} {err}");
    assert_eq!(on_the_desk.lock().unwrap().retries(), 7, "a wrong PIN is given once");
    tokens.does(&b, "token add b --fido2");
    assert_eq!(served.owner("token list").len(), 2);
    let on_b = tokens.does(&b, "token credentials list");
    assert_eq!((on_b.len(), &on_b[0]["token"]), (1, &"b".into()));
    let remove = format!("token credentials remove {}", on_b[0]["credential"].as_str().unwrap());
    let (code, _, err) = tokens.with(&b, &remove);
    assert!(code == 2 && err.contains("token remove b"), "it opens level 5 still: {code} {err}");
    served.owner("token remove b");
    tokens.does(&b, &remove);
    assert_eq!(tokens.does(&b, "token credentials list").len(), 0);
    assert_eq!(tokens.with(&b, &remove).0, 6);
}

#[test]
fn a_token_opens_the_vault_and_a_profile_and_a_lost_one_has_a_recovery_passphrase() {
    let home = Home::new();
    let at = |name: &str| home.path(name).display().to_string();
    let (a, b) = (carry(&home, "a.sock"), carry(&home, "b.sock"));
    let pin = home.secret("pin", "1234\n").display().to_string();
    let recovery = home.secret("recovery", "a long way back\n").display().to_string();
    let by = |socket: &Path| {
        format!(" --owner-token fido2 --token-pin-file {pin} --fido2-socket {}", socket.display())
    };
    let made = home.run(&format!(
        "vault init --origin example.com/vault --cost interactive --recovery-passphrase-file {recovery}{}",
        by(&a)
    ));
    assert!(made.status.success(), "{}", made.err);
    assert!(made.err.contains("physical token"), "{}", made.err);
    let software = at("played.token");
    let daemon = Served::serve(&home, "");
    let run = |line: &str| {
        let ran = home.run(&format!("vault {line} --json"));
        (ran.status.code().unwrap(), ran.out, ran.err)
    };
    let does = |line: &str| {
        let (code, out, err) = run(line);
        assert_eq!(code, 0, "{line}: {err}");
        out
    };
    let (code, _, err) = run("unlock");
    assert!(code == 2 && err.contains("--owner-token"), "{code} {err}");
    let (code, _, err) = run(&format!("unlock{}", by(&b)));
    assert!(code != 0 && !err.contains("panicked"), "another token: {code} {err}");
    does(&format!("unlock{}", by(&a)));
    let file = home.secret("words", "Tea at five");
    let stored = format!("store --level private --namespace home --file {}", file.display());
    let id = does(&format!("{stored}{}", by(&a)));
    let id: serde_json::Value = serde_json::from_str(&id).unwrap();
    let recall = format!("recall {}", id["id"].as_str().unwrap());

    // A profile by a file that plays a token, which nobody takes for one without being told.
    does(&format!("profile create work --profile-token software={software}{}", by(&a)));
    does(&format!("profile close work{}", by(&a)));
    let (code, _, err) = run(&format!("profile open work --profile-keyfile {software}{}", by(&a)));
    assert!(code == 2 && err.contains("--profile-token"), "{code} {err}");
    does(&format!("profile open work --profile-token software={software}{}", by(&a)));

    // The token is lost.
    let way_back = format!(" --token-recovery --passphrase-file {recovery}");
    does(&format!("lock{}", by(&a)));
    does(&format!("unlock{way_back}"));
    let other = home.secret("other", "another way back\n").display().to_string();
    let (code, _, err) = run(&format!("unlock --token-recovery --passphrase-file {other}"));
    assert_eq!(code, 4, "{err}");
    let change = format!(
        "passphrase --cost interactive --recovery-passphrase-file {other} --new-token fido2 --token-pin-file {pin} --fido2-socket {}",
        b.display()
    );
    does(&format!("{change}{way_back}"));
    let (code, _, _) = run(&format!("unlock{}", by(&a)));
    assert_ne!(code, 0, "the lost one opens nothing any more");
    does(&format!("unlock{}", by(&b)));
    assert!(does(&format!("{recall}{}", by(&b))).contains("Tea at five"));
    // And back to a passphrase.
    let phrase = home.secret("phrase", "correct horse\n").display().to_string();
    does(&format!("passphrase --cost interactive --new-passphrase-file {phrase}{}", by(&b)));
    does(&format!("unlock --passphrase-file {phrase}"));

    // A profile by a FIDO2 token: its credential stays on the token as long as nothing else opens the profile.
    let owner = format!(" --passphrase-file {phrase}");
    let on_b = format!("--token-pin-file {pin} --fido2-socket {}{owner}", b.display());
    let (code, _, err) = run(&format!("profile create doctor --profile-token fido2 {on_b}"));
    assert!(code == 0 && err.contains("no shares"), "{code} {err}");
    let stored = does(&format!("{stored} --profile doctor{owner}"));
    let stored: serde_json::Value = serde_json::from_str(&stored).unwrap();
    let with = format!("--pin-file {pin} --fido2-socket {}{owner}", b.display());
    let listed = does(&format!("token credentials list {with}"));
    let listed = listed.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let of_profile = listed.into_iter().find(|one| one["profile"] == "doctor").unwrap();
    let remove = format!("token credentials remove {} {with}", of_profile["credential"].as_str().unwrap());
    let (code, _, err) = run(&remove);
    assert!(code == 2 && err.contains("profile passphrase doctor"), "{code} {err}");
    does(&format!("profile close doctor{owner}"));
    does(&format!("profile open doctor --profile-token fido2 {on_b}"));
    does(&format!(
        "profile passphrase doctor --profile-token fido2 --new-profile-passphrase-file {other} --cost interactive {on_b}"
    ));
    does(&remove);
    does(&format!("profile close doctor{owner}"));
    does(&format!("profile open doctor --profile-passphrase-file {other}{owner}"));
    assert!(does(&format!("recall {}{owner}", stored["id"].as_str().unwrap())).contains("Tea at five"));
    drop(daemon);
}

#[test]
fn one_token_that_answers_challenges_is_not_taken_for_two() {
    let home = Home::new();
    let at = |name: &str| home.path(name).display().to_string();
    let (key, second) = (at("owner.key"), at("second.key"));
    let made =
        home.run(&format!("vault init --origin example.com/vault --keyfile {key} --second-keyfile {second}"));
    assert!(made.status.success(), "{}", made.err);
    let daemon = Served::serve(&home, "");
    let (one, two, three) = (at("one.token"), at("two.token"), at("three.token"));
    let served = Served { home, daemon };
    served.owner(&format!("unlock --second-keyfile {second}"));
    let open = |other: &str| format!("token open --software-token a={one} --software-token b={other}");
    let (code, _, err) = served.try_owner(&open(&one));
    assert!(code == 2 && err.contains("is a already"), "{code} {err}");
    assert_eq!(served.owner("token list").len(), 0);
    served.owner(&open(&two));
    // Each use gives a token another challenge.
    for name in ["a", "b"] {
        let file = if name == "a" { &one } else { &two };
        served.owner(&format!("token present {name} --software-token {file}"));
        let (code, _, err) = served.try_owner(&format!("token add c --software-token {file}"));
        assert!(code != 0 && err.contains(&format!("is {name} already")), "{code} {err}");
        served.owner(&format!("token present {name} --software-token {file}"));
    }
    served.owner(&format!("token add c --software-token {three}"));
    assert_eq!(served.owner("token list").len(), 3);
}
