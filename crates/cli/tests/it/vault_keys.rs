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
