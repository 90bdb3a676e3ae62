//! `stvor vault profile` and `rotate`: keys of their own for some memories, and changing keys.

use crate::vault::Served;

#[test]
fn memories_of_a_profile_take_its_key_and_leave_only_if_it_says_so() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let key = served.home.path("doctor.key");
    let made = served.owner(&format!("profile create doctor --profile-keyfile {}", key.display()));
    assert_eq!(made[0]["own_secret"], true);
    served.owner("profile create work --exportable --rotate-days 90");
    let kept = served.store("assistant", ("Blood type A", " --level private --profile doctor"));
    let open = served.store("assistant", ("Tea at five", " --profile work"));
    let (code, _, err) = served.try_owner("profile create work");
    assert!(code == 2 && err.contains("VAULT_BAD_REQUEST"), "{code} {err}");

    served.owner("profile close doctor");
    let (code, _, err) = served.try_agent("assistant", &format!("recall {kept}"));
    assert!(code == 4 && err.contains("PROFILE_CLOSED"), "{code} {err}");
    let listed = served.owner("profile list");
    let state = |at: usize| (listed[at]["profile"]["name"].as_str().unwrap(), listed[at]["open"].as_bool());
    assert_eq!([state(0), state(1)], [("doctor", Some(false)), ("work", Some(true))]);
    served.owner(&format!("profile open doctor --profile-keyfile {}", key.display()));
    assert_eq!(served.agent("assistant", &format!("recall {kept}"))[0]["content"]["text"], "Blood type A");
    let file = served.home.path("export.jsonl");
    served.owner(&format!("export --out {}", file.display()));
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains("Tea at five") && !text.contains("Blood type A"), "{text}");
    assert!(text.contains("PROFILE_NOT_EXPORTABLE"), "{text}");

    let rotated = served.owner("profile rotate doctor");
    assert_eq!(rotated[0]["rewrapped"], 1);
    assert_eq!(served.agent("assistant", &format!("recall {open}"))[0]["content"]["text"], "Tea at five");
    assert_eq!(served.agent("assistant", &format!("recall {kept}"))[0]["content"]["text"], "Blood type A");
}

#[test]
fn the_secret_of_a_profile_is_changed_from_a_terminal() {
    let served = Served::new();
    served.owner("unlock");
    let [old, new] = ["old.key", "new.key"].map(|name| served.home.path(name).display().to_string());
    served.owner(&format!("profile create doctor --profile-keyfile {old}"));
    let stored = served.home.feed(
        &format!(
            "vault store --namespace home --profile doctor --json --keyfile {}",
            served.home.path("owner.key").display()
        ),
        "Blood type A",
    );
    let id = crate::common::objects(&stored.out)[0]["id"].as_str().unwrap().to_owned();
    let change = format!("profile passphrase doctor --profile-keyfile {old} --new-profile-keyfile {new}");
    assert_eq!(served.owner(&change)[0]["opens_with"], "keyfile");
    served.owner("profile close doctor");
    let (code, _, err) = served.try_owner(&format!("profile open doctor --profile-keyfile {old}"));
    assert!(code == 4 && err.contains("WRONG_KEY"), "{code} {err}");
    let (code, _, err) = served.try_owner(&change);
    assert!(code == 4 && err.contains("WRONG_KEY"), "the old secret is asked for: {code} {err}");
    served.owner(&format!("profile open doctor --profile-keyfile {new}"));
    assert_eq!(served.owner(&format!("recall {id}"))[0]["content"]["text"], "Blood type A");
    served.owner("profile create work");
    let (code, _, err) = served.try_owner(&change.replace("doctor", "work"));
    assert!(code == 2 && err.contains("opens with the owner's session"), "{code} {err}");
}

#[test]
fn a_vault_gets_a_second_secret_later_and_changes_it() {
    let served = Served::new();
    served.owner("unlock");
    let [first, later, wrong] =
        ["first.key", "later.key", "wrong.key"].map(|name| served.home.path(name).display().to_string());
    let owner = served.home.path("owner.key");
    let store = || {
        let line =
            format!("vault store --namespace home --level vaulted --json --keyfile {}", owner.display());
        served.home.feed(&line, "The deed is in the vault")
    };
    assert_ne!(store().code, Some(0), "level 4 takes a second secret");
    let (code, _, err) = served.try_owner(&format!("unlock --second-keyfile {}", owner.display()));
    assert!(code != 0 && err.contains("no second secret"), "{code} {err}");
    let added = served.owner(&format!("passphrase --new-second-keyfile {first}"));
    assert_eq!(
        added[0],
        serde_json::json!({ "opens_with": null, "second_secret": "keyfile", "first": true })
    );
    let stored = store();
    assert_eq!(stored.code, Some(0), "{}", stored.err);
    served.owner(&format!("unlock --second-keyfile {first}"));
    assert_eq!(served.owner("status")[0]["vaulted"], true);

    // Where the new secret of the owner can not be read nothing is changed.
    let missing = served.home.path("missing").display().to_string();
    let both = format!(
        "passphrase --second-keyfile {first} --new-second-keyfile {} --new-passphrase-file {missing}",
        served.home.path("not-taken.key").display()
    );
    let (code, _, err) = served.try_owner(&both);
    assert!(code != 0 && err.contains("missing"), "{code} {err}");
    served.owner(&format!("unlock --second-keyfile {first}"));

    // From then on the old one is asked for.
    let (code, _, err) = served.try_owner(&format!("passphrase --new-second-keyfile {later}"));
    assert!(code == 2 && err.contains("give the old one too"), "{code} {err}");
    let other = served.try_owner(&format!("passphrase --new-second-keyfile {wrong}")).0;
    assert_ne!(other, 0);
    let change = |from: &str| format!("passphrase --second-keyfile {from} --new-second-keyfile {later}");
    let (code, _, err) = served.try_owner(&change(&wrong));
    assert!(code == 4 && err.contains("WRONG_KEY"), "{code} {err}");
    assert_eq!(served.owner(&change(&first))[0]["first"], false);
    let (code, _, err) = served.try_owner(&format!("unlock --second-keyfile {first}"));
    assert!(code == 4 && err.contains("WRONG_KEY"), "{code} {err}");
    served.owner(&format!("unlock --second-keyfile {later}"));
    assert_eq!(served.owner("verify --content")[0]["ok"], true);
    let (code, _, err) = served.try_owner(&format!("passphrase --second-keyfile {later}"));
    assert!(code == 2 && err.contains("--new-second-keyfile"), "{code} {err}");
}

#[test]
fn root_and_signing_keys_are_changed_from_a_terminal_and_everything_still_opens() {
    let served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    let id = served.store("assistant", ("Tea at five", " --level private"));
    let before = served.owner("status")[0]["verifier"].as_str().unwrap().to_owned();
    assert_eq!(served.owner("rotate root-key")[0]["resealed"], 1);
    assert_eq!(served.owner("status")[0]["verifier"], before.as_str(), "the log is signed by the same key");
    let after = served.owner("rotate signing-key")[0]["verifier"].as_str().unwrap().to_owned();
    assert_ne!(before, after);
    served.owner("lock");
    served.owner("unlock");
    assert_eq!(served.agent("assistant", &format!("recall {id}"))[0]["content"]["text"], "Tea at five");
    assert_eq!(served.owner("verify --content")[0]["ok"], true);
}
