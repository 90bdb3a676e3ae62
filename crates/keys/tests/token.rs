//! A key in a PKCS #11 token, with SoftHSM2 in the place of a device.
#![cfg(feature = "pkcs11")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::process::Command;
use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::pkcs11::{Token, TokenKey};
use stvor_keys::{HolderKind, KeyHolder, Managed};
use stvor_testkit::SoftHsm;

/// The test itself, in a process whose environment names a token directory of its own: modules read it when they are loaded.
#[test]
#[ignore = "is run by the test below in a process of its own"]
fn inner() {
    let module = std::path::PathBuf::from(std::env::var_os("STVOR_TEST_MODULE").unwrap());
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
    let Some(token) = SoftHsm::new().unwrap() else { return };
    let (name, value) = token.variable();
    let this = std::env::current_exe().unwrap();
    let mut inner = Command::new(this);
    inner.env(name, value).env("STVOR_TEST_MODULE", token.module()).args(["--exact", "inner", "--ignored"]);
    let ended = inner.output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stdout));
}

#[test]
fn a_module_that_can_not_be_loaded_is_unavailable() {
    let which = TokenKey { module: "/nonexistent.so".into(), token: "t".into(), key: "k".into() };
    let error = Token::new(which, SecretBytes::from_slice(b"1234")).unwrap_err();
    assert_eq!(error.code(), "KEY_UNAVAILABLE");
}
