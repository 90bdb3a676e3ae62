//! A key in a KMIP server: PyKMIP, started by the test on a free port, both sides with certificates.
#![cfg(feature = "kmip")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // Clippy exempts `#[test]` functions, not their helpers.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use stvor_base::ErrorCode;
use stvor_crypto::{Secret, SecretBytes, SystemRandom};
use stvor_keys::kmip::{KmipKey, KmipServer};
use stvor_keys::{HolderKind, KeyHolder, Managed};
use stvor_testkit::{Process, Spawn};

const SOON: Duration = Duration::from_secs(60);

/// Starts the server on a port that the system chooses, and says which.
const SERVER: &str = r#"
import logging, socket, sys
from kmip.services.server import KmipServer
directory = sys.argv[1]
probe = socket.socket()
probe.bind(("127.0.0.1", 0))
port = probe.getsockname()[1]
probe.close()
server = KmipServer(
    hostname="127.0.0.1", port=port, certificate_path=directory + "/server.pem", key_path=directory + "/server.key",
    ca_path=directory + "/ca.pem", auth_suite="TLS1.2", config_path=None, policy_path=directory + "/policies",
    log_path=directory + "/server.log", enable_tls_client_auth=True, logging_level="INFO",
    database_path=directory + "/kmip.db")
with server:
    print("port", port, flush=True)
    server.serve()
"#;

/// Makes keys: two that are active and one that is not.
const CLIENT: &str = r#"
import sys
from kmip.pie.client import ProxyKmipClient
from kmip import enums
directory, port = sys.argv[1], int(sys.argv[2])
masks = [enums.CryptographicUsageMask.ENCRYPT, enums.CryptographicUsageMask.DECRYPT]
with ProxyKmipClient(hostname="127.0.0.1", port=port, cert=directory + "/client.pem", key=directory + "/client.key",
                     ca=directory + "/ca.pem", ssl_version="PROTOCOL_TLSv1_2",
                     kmip_version=enums.KMIPVersion.KMIP_1_2) as client:
    for active in [True, True, False]:
        uid = client.create(enums.CryptographicAlgorithm.AES, 256, cryptographic_usage_mask=masks)
        if active:
            client.activate(uid)
        print(uid, flush=True)
"#;

fn python() -> Option<PathBuf> {
    let named = std::env::var_os("STVOR_KMIP_PYTHON").map(PathBuf::from);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kmip/bin/python");
    let found = named.into_iter().chain([ours]).find(|path| path.exists());
    if found.is_none() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "PyKMIP is not installed: run `./x setup-keys`"
        );
        eprintln!("skipped: PyKMIP is not installed: run `./x setup-keys`");
    }
    found
}

fn certificates(directory: &Path) -> KmipServer {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let issue = |name: &str, purpose| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        // PyKMIP takes the common name of a client for its identity.
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let (server, server_key) = issue("localhost", ExtendedKeyUsagePurpose::ServerAuth);
    let (client, client_key) = issue("stvor", ExtendedKeyUsagePurpose::ClientAuth);
    write("ca.pem", &root.pem());
    write("server.pem", &server);
    write("server.key", &server_key);
    write("client.pem", &client);
    write("client.key", &client_key);
    std::fs::create_dir(directory.join("policies")).unwrap();
    KmipServer {
        address: String::new(),
        name: "localhost".into(),
        roots: root.pem().into_bytes(),
        certificate: client.into_bytes(),
        private_key: Arc::new(SecretBytes::from_slice(client_key.as_bytes())),
    }
}

/// A server, and the identifiers of two active keys and one that is not.
fn start(python: &Path, directory: &Path) -> (Process, KmipServer, Vec<String>) {
    let mut server = certificates(directory);
    let shown = directory.to_str().unwrap();
    let process = Spawn::new(python).args(["-c", SERVER, shown]).start().unwrap();
    let line = process.wait_output(1, SOON).unwrap()[0].clone();
    let port = line.strip_prefix("port ").unwrap().to_owned();
    server.address = format!("127.0.0.1:{port}");
    // The port is printed before the first connection is taken, and taken after it.
    let made = Command::new(python).args(["-c", CLIENT, shown, &port]).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let ids = String::from_utf8(made.stdout).unwrap().lines().map(str::to_owned).collect();
    (process, server, ids)
}

#[test]
fn a_key_management_server_wraps_and_unwraps_and_each_thing_that_is_wrong_has_its_code() {
    let Some(python) = python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (process, server, ids) = start(&python, directory.path());
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
