//! wss to a relay whose certificate a root of our own signs.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests fail by panicking"
)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{builder, code, soon};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use stvor_relay::{Config, Handle, Relay, TlsConfig};

/// A relay for `name` under a root that is made for it; the root as PEM.
async fn relay_for(name: &str, directory: &Path) -> (Handle, String) {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    let tls = TlsConfig { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
    std::fs::write(&tls.certificate, leaf.pem()).unwrap();
    std::fs::write(&tls.key, key.serialize_pem()).unwrap();
    let relay = Relay::start(Config { tls: Some(tls), ..Config::mock(0) }).await.unwrap();
    (relay, root.pem())
}

fn url(relay: &Handle) -> String {
    format!("wss://localhost:{}", relay.local_addr().port())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_under_a_root_of_our_own_is_trusted_and_carries_messages() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, root) = relay_for("localhost", directory.path()).await;
    let app = builder(&url(&relay)).in_memory().root_certificate(root).open().await.unwrap();
    let (alice, bob) = (app.connect("alice").await.unwrap(), app.connect("bob").await.unwrap());
    soon(alice.send("bob", "over TLS")).await.unwrap();
    assert_eq!(soon(bob.messages().next()).await.unwrap().text(), Some("over TLS"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_a_trusted_certificate_for_its_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (relay, _root) = relay_for("localhost", directory.path()).await;
    let connect = async |builder: stvor::AppBuilder| {
        let app = builder.in_memory().timeout(Duration::from_secs(5)).open().await.unwrap();
        code(soon(app.connect("alice")).await)
    };
    assert_eq!(connect(builder(&url(&relay))).await, "RELAY_PROTOCOL", "nobody vouches for it");
    let elsewhere = tempfile::tempdir().unwrap();
    let (other, other_root) = relay_for("relay.example", elsewhere.path()).await;
    assert_eq!(connect(builder(&url(&relay)).root_certificate(other_root.clone())).await, "RELAY_PROTOCOL");
    let misnamed = builder(&url(&other)).root_certificate(other_root);
    assert_eq!(connect(misnamed).await, "RELAY_PROTOCOL", "it is not localhost");
    let broken = builder(&url(&relay)).root_certificate("no certificate").in_memory().open().await;
    assert_eq!(code(broken), "INVALID_CONFIG");
}
