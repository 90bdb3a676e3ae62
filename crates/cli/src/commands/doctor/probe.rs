//! One look at a relay from the outside: name, socket, TLS, WebSocket, challenge. Nobody is logged in.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use stvor_base::{Address, DeviceId, Timestamp, UserId};
use stvor_wire::client::{ClientMessage, Credential, Hello};
use stvor_wire::frame::{Phase, decode_server, encode_client};
use stvor_wire::server::{Challenge, End, ServerMessage};
use stvor_wire::url::RelayUrl;
use tokio::net::TcpStream;
use tokio_tungstenite::Connector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

/// The protocol that a client asks for when it opens the socket.
const SUBPROTOCOL: &str = "stvor.v1";

/// Version of the protocol that is probed.
const PROTOCOL_VERSION: u32 = 1;

/// The first thing that is wrong.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The name means no address.
    Name(String),
    /// Nobody listens there.
    Socket(String),
    /// The certificate is not trusted, or there is no TLS there.
    Tls {
        /// What is wrong.
        found: String,
        /// What to do.
        fix: &'static str,
    },
    /// Somebody answers, and is no relay.
    NoRelay(String),
    /// A relay answers and ends the conversation.
    Refused(End),
}

/// What a relay says of itself.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its answer to HELLO.
    pub(crate) challenge: Challenge,
    /// How far its clock is ahead of ours, in milliseconds; half the time of the question is taken off.
    pub(crate) ahead_ms: i64,
    /// How long the question took.
    pub(crate) took: Duration,
}

/// Who looks.
pub(crate) struct Visitor {
    /// The user to ask for.
    pub(crate) user: String,
    /// What lets them in.
    pub(crate) credential: Credential,
    /// PEM of a further root certificate.
    pub(crate) roots: Option<Vec<u8>>,
}

/// Looks at the relay, for at most `patience` a step.
pub(crate) async fn probe(url: &RelayUrl, visitor: Visitor, patience: Duration) -> Result<Found, Trouble> {
    let greeting = hello(&visitor)?;
    let address = resolve(url, patience).await?;
    let silent =
        || Trouble::Socket(format!("nothing answers at {address} within {} seconds", patience.as_secs()));
    let stream = tokio::time::timeout(patience, TcpStream::connect(address))
        .await
        .map_err(|_| silent())?
        .map_err(|error| Trouble::Socket(format!("nothing listens at {address}: {error}")))?;
    let connector =
        if url.is_secure() { Connector::Rustls(tls(visitor.roots.as_deref())?) } else { Connector::Plain };
    let mut request =
        url.socket_url().into_client_request().map_err(|error| Trouble::NoRelay(error.to_string()))?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static(SUBPROTOCOL));
    let opening = tokio_tungstenite::client_async_tls_with_config(request, stream, None, Some(connector));
    let (mut socket, _) = tokio::time::timeout(patience, opening)
        .await
        .map_err(|_| Trouble::NoRelay("it accepts connections and then says nothing".to_owned()))?
        .map_err(|error| explain(&error))?;
    let asked = tokio::time::Instant::now();
    let answer = async {
        socket.send(Message::Binary(greeting.clone())).await.map_err(|error| explain(&error))?;
        while let Some(message) = socket.next().await {
            if let Message::Binary(bytes) = message.map_err(|error| explain(&error))? {
                return decode_server(bytes, Phase::LoggingIn)
                    .map_err(|error| Trouble::NoRelay(error.to_string()));
            }
        }
        Err(Trouble::NoRelay("it closes the connection without a word".to_owned()))
    };
    let answer = tokio::time::timeout(patience, answer)
        .await
        .map_err(|_| Trouble::NoRelay("it opens a WebSocket and then says nothing".to_owned()))??;
    let took = asked.elapsed();
    match answer {
        ServerMessage::Challenge(challenge) => {
            let now = Timestamp::system().as_millis();
            let there = challenge.server_time.as_millis().saturating_add(took.as_millis() as u64 / 2);
            let ahead_ms = i64::try_from(there).unwrap_or(i64::MAX) - i64::try_from(now).unwrap_or(i64::MAX);
            Ok(Found { challenge, ahead_ms, took })
        }
        ServerMessage::End(end) => Err(Trouble::Refused(end)),
        _ => Err(Trouble::NoRelay("its first word is not a challenge".to_owned())),
    }
}

async fn resolve(url: &RelayUrl, patience: Duration) -> Result<SocketAddr, Trouble> {
    let host = url.host().trim_matches(['[', ']']);
    let looked_up = tokio::time::timeout(patience, tokio::net::lookup_host((host, url.port())))
        .await
        .map_err(|_| Trouble::Name(format!("the name server did not answer for {host}")))?
        .map_err(|error| Trouble::Name(format!("the name {host} is not known: {error}")))?;
    // IPv4 first: what listens on a loopback name usually does.
    let addresses: Vec<SocketAddr> = looked_up.collect();
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or_else(|| addresses.first())
        .copied()
        .ok_or_else(|| Trouble::Name(format!("the name {host} has no address")))
}

fn hello(visitor: &Visitor) -> Result<bytes::Bytes, Trouble> {
    let user = UserId::new(&visitor.user).map_err(|error| Trouble::NoRelay(error.to_string()))?;
    let device = DeviceId::new(1).map_err(|error| Trouble::NoRelay(error.to_string()))?;
    Ok(encode_client(&ClientMessage::Hello(Hello {
        protocol_version: PROTOCOL_VERSION,
        credential: visitor.credential.clone(),
        address: Address::new(user, device),
        capabilities: Vec::new(),
    })))
}

fn tls(extra: Option<&[u8]>) -> Result<Arc<rustls::ClientConfig>, Trouble> {
    let failed = |found: String| Trouble::Tls { found, fix: "correct the file of --root-certificate" };
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in CertificateDer::pem_slice_iter(extra.unwrap_or_default()) {
        let certificate =
            certificate.map_err(|error| failed(format!("the root certificate is not PEM: {error}")))?;
        roots
            .add(certificate)
            .map_err(|error| failed(format!("the root certificate can not be used: {error}")))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn explain(error: &WsError) -> Trouble {
    match error {
        WsError::Io(io) => match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => explain_tls(error),
            None => Trouble::NoRelay(io.to_string()),
        },
        WsError::Tls(error) => Trouble::Tls { found: error.to_string(), fix: NO_TLS },
        WsError::Http(response) => {
            Trouble::NoRelay(format!("it answers {} to a WebSocket", response.status()))
        }
        other => Trouble::NoRelay(other.to_string()),
    }
}

/// What to do where something else than TLS is spoken.
const NO_TLS: &str = "if this relay has no TLS, use ws:// (on this machine or a private network only)";

fn explain_tls(error: &rustls::Error) -> Trouble {
    use CertificateError as Bad;
    let rustls::Error::InvalidCertificate(bad) = error else {
        return Trouble::Tls { found: format!("no TLS comes about: {error}"), fix: NO_TLS };
    };
    let (found, fix) = match bad {
        Bad::UnknownIssuer => (
            "the certificate is signed by nobody that this machine trusts (self-signed, or of a private authority)"
                .to_owned(),
            "give the certificate of that authority with --root-certificate, after making sure that it is the right one",
        ),
        Bad::Expired | Bad::ExpiredContext { .. } => (
            format!("the certificate has expired: {bad}"),
            "have the operator renew it (and send SIGHUP to the relay); if it is fresh, correct this machine's clock",
        ),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => (
            format!("the certificate is not valid yet: {bad}"),
            "correct this machine's clock (timedatectl set-ntp true)",
        ),
        Bad::NotValidForName | Bad::NotValidForNameContext { .. } => (
            format!("the certificate is for another name: {bad}"),
            "write the name that the certificate is for in --relay, or have the operator get one for this name",
        ),
        other => (
            format!("the certificate is refused: {other}"),
            "have the operator replace it; a certificate of an authority (CA:TRUE) is none of a server",
        ),
    };
    Trouble::Tls { found, fix }
}
