//! A key in a PKCS #11 token, with SoftHSM2 in the place of a device.
#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::path::{Path, PathBuf};
use std::process::Command;
use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::pkcs11::{Token, TokenKey};
use stvor_keys::{HolderKind, KeyHolder, Managed};

const MODULES: [&str; 4] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];

fn module() -> Option<PathBuf> {
    let found = MODULES.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        stvor_testkit::servers::missing("SoftHSM2", "softhsm2");
    }
    found
}

fn run(program: &str, directory: &Path, args: &[&str]) {
    let ended = Command::new(program)
        .env("SOFTHSM2_CONF", directory.join("softhsm2.conf"))
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(ended.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// The test itself, in a process whose environment names a token directory of its own: modules read it when they are loaded.
#[test]
#[ignore = "is run by the test below in a process of its own"]
fn inner() {
    let module = module().unwrap();
    let token = |pin: &str, key: &str, label: &str| {
        let which = TokenKey { module: module.clone(), token: label.into(), key: key.into() };
        Token::new(which, SecretBytes::from_slice(pin.as_bytes())).unwrap()
    };
    let holder = |pin: &str, key: &str| Managed::token(token(pin, key, "stvor"));
    let mut rng = SystemRandom::new();
    let data_key = Secret::random(&mut rng).unwrap();
    let wrap = |holder: &Managed<Token>| holder.wrap(&data_key, b"store", &mut SystemRandom::new());

    assert_eq!(wrap(&holder("1234", "one")).unwrap_err().code(), "KEY_MISSING");
    token("1234", "one", "stvor").create().unwrap();
    assert_eq!(token("1234", "one", "stvor").create().unwrap_err().code(), "KEY_EXISTS");
    token("1234", "two", "stvor").create().unwrap();
    let wrapped = wrap(&holder("1234", "one")).unwrap();
    assert_eq!(wrapped.kind(), HolderKind::Pkcs11);
    assert!(holder("1234", "one").unwrap(&wrapped, b"store").unwrap() == data_key);
    assert_ne!(wrap(&holder("1234", "one")).unwrap().encode(), wrapped.encode());
    assert_eq!(holder("1234", "two").unwrap(&wrapped, b"store").unwrap_err().code(), "WRONG_KEY");
    assert_eq!(holder("1234", "one").unwrap(&wrapped, b"other").unwrap_err().code(), "WRONG_KEY");
    assert_eq!(holder("1234", "three").unwrap(&wrapped, b"store").unwrap_err().code(), "KEY_MISSING");
    let absent = Managed::token(token("1234", "one", "no such token"));
    assert_eq!(absent.unwrap(&wrapped, b"store").unwrap_err().code(), "KEY_MISSING");
    let wrong_pin = holder("9999", "one").unwrap(&wrapped, b"store").unwrap_err();
    assert_eq!(wrong_pin.code(), "WRONG_KEY");
    assert!(wrong_pin.to_string().contains("PIN"), "{wrong_pin}");
    assert!(!format!("{:?}", holder("1234", "one")).contains("1234"));
    // Many at once, each in a session of its own.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(holder("1234", "one").unwrap(&wrapped, b"store").unwrap() == data_key));
        }
    });
}

#[test]
fn a_token_wraps_and_unwraps_and_each_thing_that_is_wrong_has_its_code() {
    if module().is_none() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tokens = directory.path().join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let config = format!("directories.tokendir = {}\nobjectstore.backend = file\n", tokens.display());
    std::fs::write(directory.path().join("softhsm2.conf"), config).unwrap();
    let label = ["--init-token", "--free", "--label", "stvor", "--pin", "1234", "--so-pin", "5678"];
    run("softhsm2-util", directory.path(), &label);
    let this = std::env::current_exe().unwrap();
    run(this.to_str().unwrap(), directory.path(), &["--exact", "inner", "--ignored"]);
}

#[test]
fn a_module_that_can_not_be_loaded_is_unavailable() {
    let which = TokenKey { module: "/nonexistent.so".into(), token: "t".into(), key: "k".into() };
    let error = Token::new(which, SecretBytes::from_slice(b"1234")).unwrap_err();
    assert_eq!(error.code(), "KEY_UNAVAILABLE");
}
