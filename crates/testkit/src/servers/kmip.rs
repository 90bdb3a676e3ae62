//! A key management server that speaks KMIP: PyKMIP, on a free port, with certificates on both sides.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Process, Spawn};
use crate::temp::{TempDir, temp_dir};

/// Starts the server on a port that the system chooses, and says which.
const SERVER: &str = r#"
import logging, multiprocessing, socket, sys
from kmip.services.server import KmipServer
directory = sys.argv[1]
# Policies are shared by a process of their own otherwise, which a server that is killed leaves behind. There are none here.
class Policies:
    dict = dict
multiprocessing.Manager = Policies
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

/// A server of a test's own. Ends with the value, and with the test process however that ends.
pub struct Kmip {
    directory: TempDir,
    port: String,
    keys: Vec<String>,
    _process: Process,
}

/// Certificates of an authority, of a server `localhost` and of a client `stvor`, as files `ca.pem`, `server.pem`, `server.key`,
/// `client.pem` and `client.key`.
///
/// # Errors
/// When they can not be made or written.
pub fn kmip_certificates(directory: &Path) -> io::Result<()> {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let write = |name: &str, text: String| std::fs::write(directory.join(name), text);
    let ca_key = KeyPair::generate().map_err(io::Error::other)?;
    let mut ca = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write("ca.pem", ca.self_signed(&ca_key).map_err(io::Error::other)?.pem())?;
    let issuer = Issuer::new(ca, ca_key);
    for (file, name, purpose) in [
        ("server", "localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", "stvor", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(io::Error::other)?;
        // PyKMIP takes the common name of a client for its identity.
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer).map_err(io::Error::other)?;
        write(&format!("{file}.pem"), certificate.pem())?;
        write(&format!("{file}.key"), key.serialize_pem())?;
    }
    Ok(())
}

impl Kmip {
    /// Starts a server with two active keys and one that is not; `None` where PyKMIP is not installed.
    ///
    /// # Errors
    /// When it does not start.
    ///
    /// # Panics
    /// In CI, when it is not installed.
    #[allow(clippy::panic, reason = "a test that could not run must not pass in CI")]
    pub fn start() -> io::Result<Option<Self>> {
        let Some(python) = python() else { return Ok(None) };
        let directory = temp_dir()?;
        kmip_certificates(directory.path())?;
        std::fs::create_dir(directory.path().join("policies"))?;
        let shown = directory.path().to_string_lossy().into_owned();
        let process = Spawn::new(&python).args(["-c", SERVER, &shown]).start()?;
        let line = process.wait_output(1, super::SOON)?;
        let port = line.first().and_then(|line| line.strip_prefix("port "));
        let port = port.ok_or_else(|| io::Error::other("PyKMIP said no port"))?.to_owned();
        // The port is printed before the first connection is taken, and taken after it.
        let made = Command::new(&python).args(["-c", CLIENT, &shown, &port]).output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        let keys = String::from_utf8_lossy(&made.stdout).lines().map(str::to_owned).collect();
        Ok(Some(Self { directory, port, keys, _process: process }))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// One of its certificates or keys, as [`kmip_certificates`] names them.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The identifiers of its keys.
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.keys
    }
}

fn python() -> Option<PathBuf> {
    let named = std::env::var_os("STVOR_KMIP_PYTHON").map(PathBuf::from);
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kmip/bin/python");
    let found = named.into_iter().chain([ours]).find(|path| path.exists());
    if found.is_none() {
        const LINE: &str = "PyKMIP is not installed: run `./x setup-keys`";
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{LINE}");
        eprintln!("skipped: {LINE}");
    }
    found
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::super::SOON;
    use super::*;
    use crate::process::until;

    /// Processes that were told of this directory.
    fn processes(directory: &str) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
        let told = |process: &PathBuf| {
            let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
            arguments.split(|byte| *byte == 0).any(|argument| argument == directory.as_bytes())
        };
        all.filter(told).collect()
    }

    #[test]
    fn a_server_that_is_dropped_leaves_no_process_behind() {
        let Some(server) = Kmip::start().unwrap() else { return };
        let directory = server.directory.path().to_string_lossy().into_owned();
        assert!(!processes(&directory).is_empty());
        drop(server);
        until(SOON, || processes(&directory).is_empty().then_some(())).unwrap();
    }
}
