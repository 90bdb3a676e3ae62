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
