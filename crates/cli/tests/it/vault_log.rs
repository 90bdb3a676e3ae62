//! `stvor vault archive`, `prune`, and what reads archives; and what else keeps the log and its keys safe.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use stvor_keys::recipients::Identity;

use crate::common::finished;
use crate::vault::Served;

#[test]
fn events_are_archived_removed_and_still_read_proved_and_verified() {
    let served = Served::new();
    served.owner("unlock");
    let id = served.owner_stores("Tea at five");
    for _ in 0..5 {
        served.owner(&format!("recall {id} --justification yearly-report"));
    }
    let identity = Identity::generate();
    let key = served.home.path("archive.key");
    std::fs::write(&key, identity.to_secret_line().expose()).unwrap();
    let file = served.home.path("log.age");
    let (file, key, to) = (file.display(), key.display(), identity.recipient());
    served.owner(&format!("archive --out {file} --to {to} --words"));
    let (code, _, err) = served.try_owner(&format!("archive --out {file} --to {to}"));
    assert!(code != 0 && err.contains("VAULT_EXISTS") && !err.contains("there is a vault"), "{err}");
    let reads = format!("--archive {file} --identity {key}");
    assert_eq!(served.owner(&format!("log --said yearly-report {reads}")).len(), 5);

    let pruned = &served.owner(&format!("prune {file} --identity {key}"))[0];
    assert!(pruned["removed"].as_u64().unwrap() > 4 && pruned["kept"].as_u64().unwrap() > 0, "{pruned}");
    assert_eq!(served.owner("log --said yearly-report").len(), 0);
    let found = served.owner(&format!("log --said yearly-report --limit 1 {reads}"));
    let event = found[0]["seq"].as_u64().unwrap();
    let verified = &served.owner(&format!("verify {reads}"))[0];
    assert_eq!((&verified["ok"], &verified["removed"]), (&true.into(), &pruned["removed"]));
    assert_eq!(verified["in_no_archive"], serde_json::json!([]));

    // The vault has the event no more; the archive proves it, also when no daemon runs.
    let (code, _, err) =
        served.try_owner(&format!("proof make {event} --out {}", served.home.path("").display()));
    assert!(code != 0 && err.contains("--archive"), "{err}");
    let verifier = served.owner("status")[0]["verifier"].as_str().unwrap().to_owned();
    let out = served.home.path("proofs");
    std::fs::create_dir(&out).unwrap();
    let make = format!(
        "proof make {event} --out {} {reads} --verifier {verifier} --sockets /nonexistent",
        out.display()
    );
    let made = &served.owner(&make)[0];
    let (entry, proof) = (made["event"].as_str().unwrap(), made["proof"].as_str().unwrap());
    let checked = &served.owner(&format!("proof check {entry} {proof} --verifier {verifier}"))[0];
    assert_eq!((&checked["ok"], &checked["event"]), (&true.into(), &event.into()));
}

#[test]
fn the_log_shows_by_which_key_the_boundary_was_believed() {
    let mut served = Served::new();
    served.owner("unlock");
    served.enrol("assistant", "private");
    assert!(served.owner("status")[0].get("boundary_key").is_none());
    let mut keys = vec![];
    for name in ["one", "other"] {
        let key = served.home.path(name).display().to_string();
        assert!(served.home.run(&format!("vault boundary key {key}")).status.success());
        served.daemon.close_input();
        assert_eq!(finished(&served.daemon), Some(0));
        let socket = served.home.path("boundary.sock");
        let options = format!("--boundary {} --boundary-key {key}.pub", socket.display());
        served.daemon = Served::serve(&served.home, &options);
        served.owner("unlock");
        keys.push(served.owner("status")[0]["boundary_key"].as_str().unwrap().to_owned());
        let text = std::fs::read_to_string(format!("{key}.pub")).unwrap();
        let public = STANDARD.decode(text.trim()).unwrap();
        let sum: String =
            stvor_crypto::kdf::sha256(&[&public]).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(keys.last(), Some(&sum), "as `base64 -d | sha256sum` shows it");
    }
    let logged = served.owner("log --operation unlock");
    let contents: Vec<_> = logged.iter().map(|entry| entry["event"]["content"].as_str()).collect();
    assert_eq!(contents, [Some(&keys[1][..]), Some(&keys[0][..]), None], "newest first");
    assert!(served.agent("assistant", "status")[0].get("boundary_key").is_none());
    let shown = served
        .home
        .run(&format!("vault log --operation unlock --keyfile {}", served.home.path("owner.key").display()));
    assert!(shown.out.contains(&format!("boundary key {}", keys[0])), "{}", shown.out);
}

#[test]
fn a_file_of_checkpoints_that_was_removed_is_told() {
    let mut served = Served::new();
    served.owner("unlock");
    served.owner_stores("Tea at five");
    served.daemon.kill().unwrap();
    std::fs::remove_file(served.home.path("stvor/vault/checkpoints")).unwrap();
    served.daemon = Served::serve(&served.home, "");
    served.owner("unlock");
    assert_eq!(served.owner("status")[0]["missing_checkpoints"].as_array().unwrap().len(), 1);
    let (code, out, _) = served.try_owner("verify");
    assert_eq!((code, &out[0]["ok"]), (7, &false.into()), "{out:?}");
    assert_eq!(served.owner("verify --accept-missing")[0]["ok"], true);
    assert_eq!(served.owner("verify")[0]["ok"], true);
}

#[test]
fn one_checkpoint_is_proved_to_go_on_from_another_and_none_from_what_it_does_not() {
    let (served, other) = (Served::new(), Served::new());
    let place = |name: &str| served.home.path(name).display().to_string();
    let key_of = |one: &Served| one.owner("status")[0]["verifier"].as_str().unwrap().to_owned();
    for one in [&served, &other] {
        one.owner("unlock");
        one.owner_stores("Tea at five");
    }
    let (key, strange) = (key_of(&served), key_of(&other));
    // Each proof of an event carries the newest checkpoint.
    for name in ["old", "new"] {
        served.owner(&format!("proof make 0 --out {}", place(name)));
        served.owner_stores("Tea at six");
    }
    let (old, new, proof) = (place("old/event-0.proof"), place("new/event-0.proof"), place("proof"));
    served.owner(&format!("proof consistency {old} {new} --out {proof}"));
    let check = |line: &str| served.owner(&format!("proof check-consistency {line} --verifier {key}"));
    let found = check(&format!("{old} {proof} {new}"));
    assert_eq!((&found[0]["ok"], &found[0]["log"]), (&true.into(), &"example.com/vault".into()));
    assert!(found[0]["old"].as_u64() < found[0]["size"].as_u64(), "{found:?}");
    // The newest of the vault goes on from it, and a proof carries a checkpoint, too.
    let newest = place("newest");
    served.owner(&format!("proof consistency {proof} --out {newest}"));
    let on = check(&format!("{new} {newest}"));
    assert_eq!(on[0]["old"], found[0]["size"]);
    assert!(on[0]["size"].as_u64() > found[0]["size"].as_u64(), "{on:?}");

    let refused = |line: &str, (exit, said): (i32, &str)| {
        let (code, out, err) = served.try_owner(&format!("proof {line}"));
        assert!(code == exit && out.is_empty() && err.contains(said), "{line}: {code} {out:?} {err}");
    };
    let check = |files: &str, key: &str| format!("check-consistency {files} --verifier {key}");
    refused(&check(&format!("{new} {proof}"), &key), (7, "LOG_PROOF_INVALID"));
    refused(&check(&format!("{old} {proof} {newest}"), &key), (7, "LOG_PROOF_INVALID"));
    refused(&check(&format!("{old} {proof}"), &strange), (1, "LOG_UNTRUSTED"));
    let retired = format!("check-consistency {old} {proof} --verifier {strange} --verifier {key}");
    refused(&retired, (1, "LOG_UNTRUSTED"));
    refused(&check(&format!("{old} {old}"), &key), (1, "LOG_MALFORMED"));
    let (text, size) = (std::fs::read_to_string(&proof).unwrap(), found[0]["size"].as_u64().unwrap());
    let changed = place("changed");
    let first = text.lines().nth(1).unwrap();
    let (next, longer) = (format!("\n{size}\n"), format!("\n{}\n", size + 1));
    let zero = STANDARD.encode([0; 32]);
    for (from, to, code) in
        [(first, zero.as_str(), "LOG_PROOF_INVALID"), (next.as_str(), longer.as_str(), "LOG_FORGED")]
    {
        let other = text.replacen(from, to, 1);
        assert_ne!(other, text);
        std::fs::write(&changed, other).unwrap();
        refused(&check(&format!("{old} {changed}"), &key), (7, code));
        if code == "LOG_FORGED" {
            refused(&check(&format!("{changed} {newest}"), &key), (7, code));
        }
    }
    // The vault proves nothing of what its log did not sign.
    let nothing = place("nothing");
    refused(&format!("consistency {new} {old} --out {nothing}"), (2, "exchange the two"));
    let foreign = place("foreign");
    other.owner(&format!("proof make 0 --out {foreign}"));
    refused(&format!("consistency {foreign}/event-0.proof --out {nothing}"), (1, "LOG_UNTRUSTED"));
    assert!(!std::path::Path::new(&nothing).exists());
}
