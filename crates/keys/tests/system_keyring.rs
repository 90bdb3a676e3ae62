//! A key in the system's keyring: a real Secret Service, on a bus of the test's own.
#![cfg(all(feature = "os-keyring", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::process::Command;
use std::sync::Arc;
use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::{
    HolderKind, KeyHolder, KeyringItem, NamedKeyring, OsKeyring, SecretService as _, SystemKeyring,
    WrappedKey,
};
use stvor_testkit::SecretService;

fn item(account: &str) -> KeyringItem {
    KeyringItem { service: "stvor".into(), account: account.into() }
}

fn store() -> NamedKeyring {
    NamedKeyring::new(Arc::new(SystemKeyring), item("/var/lib/of a store"))
}

/// Runs a test of below in a process of its own: which bus it uses is in its environment.
fn run(name: &str, service: &SecretService) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .envs(service.variables())
        .args(["--exact", name, "--ignored"])
        .output()
        .unwrap();
    assert!(ended.status.success(), "{name}: {}", String::from_utf8_lossy(&ended.stdout));
}

/// A file in the folder of the service.
fn kept() -> std::path::PathBuf {
    std::path::Path::new(&std::env::var_os("XDG_RUNTIME_DIR").unwrap()).join("wrapped")
}

#[test]
fn keys_are_kept_over_a_log_out_and_a_keyring_that_is_away_says_so() {
    let Some(mut service) = SecretService::start().unwrap() else { return };
    run("inner_without_a_keyring", &service);
    service.log_in(true).unwrap();
    run("inner_keeps", &service);
    service.log_in(true).unwrap();
    run("inner_finds_again", &service);
    service.log_out().unwrap();
    run("inner_without_a_keyring", &service);
}

#[test]
#[ignore = "is run by the test above in a process of its own"]
fn inner_without_a_keyring() {
    let mut rng = SystemRandom::new();
    for error in [
        SystemKeyring.load(&item("a")).unwrap_err(),
        SystemKeyring.save(&item("a"), &SecretBytes::from_slice(b"secret")).unwrap_err(),
        OsKeyring::create(&SystemKeyring, &item("a"), &mut rng).unwrap_err(),
        store().wrap(&Secret::random(&mut rng).unwrap(), b"store", &mut rng).unwrap_err(),
    ] {
        assert_eq!(error.code(), "KEYRING_UNAVAILABLE", "{error}");
    }
}

#[test]
#[ignore = "is run by the test above in a process of its own"]
fn inner_keeps() {
    let mut rng = SystemRandom::new();
    let data_key = Secret::random(&mut rng).unwrap();
    assert_eq!(OsKeyring::read(&SystemKeyring, &item("plain")).unwrap_err().code(), "KEY_MISSING");
    let plain = OsKeyring::create(&SystemKeyring, &item("plain"), &mut rng).unwrap();
    let again = OsKeyring::create(&SystemKeyring, &item("plain"), &mut rng).unwrap_err();
    assert_eq!(again.code(), "KEY_EXISTS");
    let wrapped = plain.wrap(&data_key, b"store", &mut rng).unwrap();
    assert!(
        OsKeyring::read(&SystemKeyring, &item("plain")).unwrap().unwrap(&wrapped, b"store").unwrap()
            == data_key
    );
    let other = OsKeyring::create(&SystemKeyring, &item("other"), &mut rng).unwrap();
    assert_eq!(other.unwrap(&wrapped, b"store").unwrap_err().code(), "WRONG_KEY");
    SystemKeyring.remove(&item("other")).unwrap();
    SystemKeyring.remove(&item("other")).unwrap();
    assert!(SystemKeyring.load(&item("other")).unwrap().is_none());
    SystemKeyring.save(&item("short"), &SecretBytes::from_slice(b"\0 not text \xff")).unwrap();
    assert_eq!(SystemKeyring.load(&item("short")).unwrap().unwrap().expose(), b"\0 not text \xff");
    assert_eq!(OsKeyring::read(&SystemKeyring, &item("short")).unwrap_err().code(), "KEY_MALFORMED");

    let wrapped = store().wrap(&data_key, b"store", &mut rng).unwrap();
    assert_eq!(wrapped.kind(), HolderKind::OsKeyring);
    std::fs::write(kept(), [data_key.expose().as_slice(), &wrapped.encode()].concat()).unwrap();
}

#[test]
#[ignore = "is run by the test above in a process of its own"]
fn inner_finds_again() {
    let bytes = std::fs::read(kept()).unwrap();
    let (data_key, wrapped) = bytes.split_first_chunk::<32>().unwrap();
    let wrapped = WrappedKey::decode(wrapped).unwrap();
    assert!(store().unwrap(&wrapped, b"store").unwrap() == Secret::new(*data_key));
    assert_eq!(store().unwrap(&wrapped, b"another store").unwrap_err().code(), "WRONG_KEY");
    let elsewhere = NamedKeyring::new(Arc::new(SystemKeyring), item("/var/lib/of another store"));
    assert_eq!(elsewhere.unwrap(&wrapped, b"store").unwrap_err().code(), "KEY_MISSING");
}
