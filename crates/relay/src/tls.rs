//! TLS from PEM files, reloaded without a restart.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::TlsConfig;

/// Certificates that can not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file can not be read, or holds no PEM of the right kind.
    #[error("{0} can not be read as PEM: {1}")]
    Pem(String, String),
    /// Certificate and key do not fit.
    #[error("certificate and key can not be used: {0}")]
    Unusable(#[from] rustls::Error),
}

/// The current certificate.
pub(crate) struct Tls {
    files: TlsConfig,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub(crate) fn load(files: TlsConfig) -> Result<Self, TlsError> {
        let current = RwLock::new(read(&files)?);
        Ok(Self { files, current })
    }

    /// Reads the files again; keeps the old certificate when the new one can not be used.
    pub(crate) fn reload(&self) -> Result<(), TlsError> {
        let fresh = read(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

fn read(files: &TlsConfig) -> Result<Arc<ServerConfig>, TlsError> {
    let pem = |path: &Path, error: &dyn core::fmt::Display| {
        TlsError::Pem(path.display().to_string(), error.to_string())
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem(&files.certificate, &error))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| pem(&files.key, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::{Config, Relay};

    /// Writes a fresh certificate for localhost into the folder and returns it.
    fn issue(folder: &Path) -> (TlsConfig, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let files = TlsConfig { certificate: folder.join("cert.pem"), key: folder.join("key.pem") };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        (files, made.cert.der().clone())
    }

    /// The answer of `/livez` to a client that trusts only this certificate.
    async fn livez(address: SocketAddr, trusted: &CertificateDer<'static>) -> Result<String, std::io::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await?;
        let mut answer = Vec::new();
        // The server closes without a TLS close_notify at times; what it said before counts.
        let _ = stream.read_to_end(&mut answer).await;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    #[tokio::test]
    async fn a_certificate_is_served_and_replaced_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (files, first) = issue(folder.path());
        let relay = Relay::start(Config { tls: Some(files), ..Config::mock(0) }).await.unwrap();
        assert!(relay.url().starts_with("wss://"));
        assert!(livez(relay.local_addr(), &first).await.unwrap().starts_with("HTTP/1.1 200"));
        let (_, second) = issue(folder.path());
        assert!(livez(relay.local_addr(), &second).await.is_err(), "not reloaded yet");
        relay.reload_tls().unwrap();
        assert!(livez(relay.local_addr(), &second).await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(livez(relay.local_addr(), &first).await.is_err());
        relay.shutdown().await;
    }

    #[tokio::test]
    async fn a_broken_certificate_keeps_the_old_one_and_stops_a_start() {
        let folder = tempfile::tempdir().unwrap();
        let (files, good) = issue(folder.path());
        let relay = Relay::start(Config { tls: Some(files.clone()), ..Config::mock(0) }).await.unwrap();
        std::fs::write(&files.certificate, "no certificate").unwrap();
        assert!(relay.reload_tls().is_err());
        assert!(livez(relay.local_addr(), &good).await.is_ok());
        let refused = Relay::start(Config { tls: Some(files), ..Config::mock(0) }).await.unwrap_err();
        assert_eq!(stvor_base::ErrorCode::code(&refused), "TLS_UNUSABLE");
        relay.shutdown().await;
    }

    #[tokio::test]
    async fn a_client_without_tls_gets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (files, _) = issue(folder.path());
        let relay = Relay::start(Config { tls: Some(files), ..Config::mock(0) }).await.unwrap();
        let mut stream = TcpStream::connect(relay.local_addr()).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"));
        relay.shutdown().await;
    }
}
