//! A relay process reads its certificate again on SIGHUP.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use crate::common::{Home, SOON};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use stvor_testkit::Signal;

/// Writes a fresh certificate for localhost and its key into a folder, and returns it.
fn issue(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

/// Whether the server shows this certificate and proves that it has its key.
fn serves(address: &str, trusted: &CertificateDer<'static>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    while client.is_handshaking() {
        if client.complete_io(&mut socket).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn hangup_reads_the_certificate_again_and_keeps_the_old_one_if_the_new_one_is_broken() {
    let home = Home::new();
    let folder = home.dir.path();
    let first = issue(folder);
    let settings = format!(
        "[relay.tls]\ncertificate = {:?}\nkey = {:?}\n",
        folder.join("cert.pem"),
        folder.join("key.pem")
    );
    std::fs::write(home.path("stvor.toml"), settings).unwrap();
    let config = home.path("stvor.toml");
    let line = ["relay", "--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()];
    let relay = home.stvor(line).with_input().start().unwrap();
    let url = relay.wait_output(1, SOON).unwrap()[0].trim_start_matches("listening on ").to_owned();
    let address = url.strip_prefix("wss://").unwrap();
    assert!(serves(address, &first));

    let second = issue(folder);
    relay.signal(Signal::HangUp).unwrap();
    relay.wait_for("read again", SOON).unwrap();
    assert!(serves(address, &second) && !serves(address, &first));

    std::fs::write(folder.join("cert.pem"), "no certificate").unwrap();
    relay.signal(Signal::HangUp).unwrap();
    relay.wait_for("stays as it was", SOON).unwrap();
    assert!(serves(address, &second), "the relay goes on with what it has");
}
