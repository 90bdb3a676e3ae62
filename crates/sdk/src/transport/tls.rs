//! TLS towards the relay: rustls with aws-lc, the public roots that the WebSocket library brings, and the application's own.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::error::{Error, Result};

/// Reads the certificates of a PEM text.
pub(crate) fn parse_roots(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| Error::config(format!("the root certificate is not PEM: {error}")))?;
    if certificates.is_empty() {
        return Err(Error::config(
            "the root certificate holds no certificate; give a PEM file with BEGIN CERTIFICATE",
        ));
    }
    Ok(certificates)
}

/// The TLS set-up of a client.
pub(crate) fn client_config(extra: &[Vec<u8>]) -> Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for pem in extra {
        for certificate in parse_roots(pem)? {
            roots
                .add(certificate)
                .map_err(|error| Error::config(format!("a root certificate can not be used: {error}")))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::config(format!("TLS can not be set up: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
