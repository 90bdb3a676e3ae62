//! Certificates of an authority of our own, and a relay that shows one.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "every test uses a part of it; tests fail by panicking"
)]

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use stvor_relay::{Config, Handle, Relay, TlsConfig};

/// What an authority issued, as PEM.
pub struct Issued {
    pub root: String,
    pub certificate: String,
    pub key: String,
}

/// A certificate for `name` under a root that is made for it.
pub fn issue(name: &str) -> Issued {
    let mut root = CertificateParams::new(Vec::new()).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &root).unwrap();
    Issued { root: root.pem(), certificate: leaf.pem(), key: key.serialize_pem() }
}

/// A relay for `name`; the root of its certificate as PEM.
pub async fn relay_for(name: &str, directory: &Path, config: Config) -> (Handle, String) {
    let issued = issue(name);
    let tls = TlsConfig { certificate: directory.join("cert.pem"), key: directory.join("key.pem") };
    std::fs::write(&tls.certificate, issued.certificate).unwrap();
    std::fs::write(&tls.key, issued.key).unwrap();
    let relay = Relay::start(Config { tls: Some(tls), ..config }).await.unwrap();
    (relay, issued.root)
}

pub fn url(relay: &Handle) -> String {
    format!("wss://localhost:{}", relay.local_addr().port())
}
