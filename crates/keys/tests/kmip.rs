//! A key in a KMIP server: PyKMIP, started by the test on a free port, both sides with certificates.
#![cfg(feature = "kmip")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::path::Path;
use std::sync::Arc;
use stvor_base::ErrorCode;
use stvor_crypto::SecretBytes;
use stvor_crypto::{Secret, SystemRandom};
use stvor_keys::kmip::{KmipKey, KmipServer};
use stvor_keys::{HolderKind, KeyHolder, Managed};
use stvor_testkit::{Kmip, kmip_certificates};

fn described(address: String, directory: &Path) -> KmipServer {
    let read = |name: &str| std::fs::read(directory.join(name)).unwrap();
    KmipServer {
        address,
        name: "localhost".into(),
        roots: read("ca.pem"),
        certificate: read("client.pem"),
        private_key: Arc::new(SecretBytes::from(read("client.key"))),
    }
}

/// Of a server that is not there.
fn certificates(directory: &Path) -> KmipServer {
    kmip_certificates(directory).unwrap();
    described(String::new(), directory)
}

#[test]
fn a_key_management_server_wraps_and_unwraps_and_each_thing_that_is_wrong_has_its_code() {
    let Some(process) = Kmip::start().unwrap() else { return };
    let server = described(process.address(), process.file("ca.pem").parent().unwrap());
    let ids = process.keys().to_vec();
    let holder = |server: &KmipServer, id: &str| Managed::service(KmipKey::new(server, id).unwrap());
    let data_key = Secret::random(&mut SystemRandom::new()).unwrap();
    let wrap = |holder: &Managed<KmipKey>| holder.wrap(&data_key, b"store", &mut SystemRandom::new());

    let one = holder(&server, &ids[0]);
    let wrapped = wrap(&one).unwrap();
    assert_eq!(wrapped.kind(), HolderKind::Kms);
    assert!(one.unwrap(&wrapped, b"store").unwrap() == data_key);
    assert_ne!(wrap(&one).unwrap().encode(), wrapped.encode());
    assert_eq!(holder(&server, &ids[1]).unwrap(&wrapped, b"store").unwrap_err().code(), "WRONG_KEY");
    assert_eq!(one.unwrap(&wrapped, b"other").unwrap_err().code(), "WRONG_KEY");
    assert_eq!(wrap(&holder(&server, &ids[2])).unwrap_err().code(), "KEY_UNAVAILABLE", "not active");
    assert_eq!(wrap(&holder(&server, "none")).unwrap_err().code(), "KEY_UNAVAILABLE");
    let elsewhere = KmipServer { name: "other.example".into(), ..server.clone() };
    assert_eq!(wrap(&holder(&elsewhere, &ids[0])).unwrap_err().code(), "KEY_UNAVAILABLE");
    let stranger = tempfile::tempdir().unwrap();
    let untrusted = KmipServer { roots: certificates(stranger.path()).roots, ..server.clone() };
    assert_eq!(wrap(&holder(&untrusted, &ids[0])).unwrap_err().code(), "KEY_UNAVAILABLE");
    drop(process);
    let gone = one.unwrap(&wrapped, b"store").unwrap_err();
    assert_eq!((gone.code(), gone.retryable()), ("KEY_UNAVAILABLE", true));
}

#[test]
fn what_can_be_no_certificate_key_or_name_is_malformed() {
    let directory = tempfile::tempdir().unwrap();
    let server = certificates(directory.path());
    let code =
        |server: &KmipServer, id: &str| KmipKey::new(server, id).map(|_| ()).map_err(|error| error.code());
    assert_eq!(code(&server, "1"), Ok(()));
    assert_eq!(code(&server, &"x".repeat(128)), Ok(()));
    for (server, id) in [
        (server.clone(), String::new()),
        (server.clone(), "x".repeat(129)),
        (KmipServer { roots: b"none".to_vec(), ..server.clone() }, "1".into()),
        (KmipServer { certificate: Vec::new(), ..server.clone() }, "1".into()),
        (
            KmipServer { private_key: Arc::new(SecretBytes::from_slice(b"none")), ..server.clone() },
            "1".into(),
        ),
        (KmipServer { name: "not a name".into(), ..server.clone() }, "1".into()),
    ] {
        assert_eq!(code(&server, &id), Err("KEY_MALFORMED"));
    }
}
