//! The owner's key in a TPM, from a terminal: swtpm in the place of a chip.

use std::process::Command;

use stvor_keys::recipients::Identity;
use stvor_testkit::Swtpm;

use crate::common::Home;
use crate::vault::Served;

fn secret(home: &Home, name: &str, text: &str) -> String {
    home.secret(name, text).display().to_string()
}

/// Runs a command of the owner with the text in this file as secret.
fn run(home: &Home, file: &str, line: &str) -> (i32, String) {
    let ended = home.run(&format!("vault {line} --passphrase-file {file}"));
    (ended.status.code().unwrap(), ended.out + &ended.err)
}

/// Follows docs/vault/recovery.md, where Python has what that takes.
fn read_by_hand(args: &[&str]) {
    let python = std::env::var_os("STVOR_PYTHON").unwrap_or_else(|| "python3".into());
    let there = Command::new(&python).args(["-c", "import cryptography, argon2, pyrage"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "Python with cryptography, argon2-cffi and pyrage");
        println!("skipped in part: pip install cryptography argon2-cffi pyrage");
        return;
    }
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../vault/tests/recovery/recover.py");
    let output = Command::new(python).arg(script).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("Tea at five"), "{out} {err}");
}

#[test]
fn a_vault_is_sealed_by_a_tpm_opened_recovered_and_taken_out_of_it() {
    let Some(mut tpm) = Swtpm::start().unwrap() else { return };
    let home = Home::new();
    let at = format!("--tpm-place {}", tpm.place());
    let [pin, wrong, recovery, later] =
        [("pin", "1234"), ("wrong", "4321"), ("recovery", "correct horse"), ("new", "battery")]
            .map(|(name, text)| secret(&home, name, text));
    let making = format!("init --cost interactive --tpm {at} --tpm-pcrs 7");
    let (code, said) = run(&home, &pin, &making);
    assert!(code == 2 && said.contains("--recovery-passphrase-file"), "{said}");
    let (code, said) = run(&home, &pin, &format!("{making} --recovery-passphrase-file {recovery}"));
    assert!(code == 0 && said.contains("key in the TPM"), "{said}");

    let daemon = Served::serve(&home, "");
    // That it is a TPM, the vault says itself.
    let (code, said) = run(&home, &wrong, &format!("unlock {at}"));
    assert!(code == 4 && said.contains("WRONG_KEY") && said.contains("PIN"), "{said}");
    let (code, said) = run(&home, &pin, &format!("doctor {at}"));
    assert!(said.contains("1 of") && said.contains("wrong PINs"), "{code} {said}");
    let (code, said) = run(&home, &pin, &format!("unlock {at}"));
    assert_eq!(code, 0, "{said}");
    assert_eq!(run(&home, &pin, &format!("lock {at}")).0, 0);
    let (code, said) = run(&home, &pin, "unlock --tpm-place device:/nonexistent/tpm");
    assert!(code == 1 && said.contains("KEY_UNAVAILABLE"), "{said}");

    // A backup opens with the recovery passphrase and Python's libraries, without the TPM and this program.
    let stored =
        home.feed(&format!("vault store --namespace home {at} --passphrase-file {pin}"), "Tea at five");
    assert_eq!(stored.code, Some(0), "{}", stored.err);
    let identity = Identity::generate();
    let key = secret(&home, "backup.key", core::str::from_utf8(identity.to_secret_line().expose()).unwrap());
    let dir = home.path("backups");
    let (code, said) =
        run(&home, &pin, &format!("backup make --dir {} --to {} {at}", dir.display(), identity.recipient()));
    assert_eq!(code, 0, "{said}");
    let backup = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    read_by_hand(&["--identity", &key, "--passphrase-file", &recovery, backup.to_str().unwrap()]);

    tpm.clear().unwrap();
    let (code, said) = run(&home, &pin, &format!("unlock {at}"));
    assert!(code == 7 && said.contains("TPM_FOREIGN"), "{said}");
    let (code, said) = run(&home, &recovery, "unlock --tpm-recovery");
    assert_eq!(code, 0, "{said}");
    // Sealed anew by the TPM that was cleared, then taken out of it.
    let anew =
        format!("passphrase --tpm-recovery {at} --new-tpm --new-passphrase-file {pin} --cost interactive");
    let (code, said) = run(&home, &recovery, &anew);
    assert_eq!(code, 0, "{said}");
    assert_eq!(run(&home, &pin, &format!("unlock {at}")).0, 0);
    let out = format!("passphrase {at} --new-passphrase-file {later} --cost interactive");
    let (code, said) = run(&home, &pin, &out);
    assert_eq!(code, 0, "{said}");
    assert_eq!(run(&home, &later, "unlock").0, 0);
    assert_eq!(run(&home, &pin, &format!("unlock {at} --tpm")).0, 4, "the PIN opens it no more");
    drop(daemon);
}
