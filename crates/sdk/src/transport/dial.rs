//! From a URL to an open WebSocket that speaks the right subprotocol.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{Connector, MaybeTlsStream, WebSocketStream};

use stvor_wire::url::RelayUrl;

use super::minimal;
use super::refusal::Refusal;
use crate::error::Error;

pub(crate) type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

const PROTOCOL: &str = "sec-websocket-protocol";

/// What a server that does not answer in time is called.
pub(crate) const SILENT: &str = "Relay handshake timeout";

/// What the server chose to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Stvor,
    /// What the minimal relay is offered, or any server that takes the first offer.
    Minimal,
}

/// Opens the socket before `deadline`; with `minimal`, a minimal relay will do.
pub(crate) async fn dial(
    url: &RelayUrl,
    tls: &Arc<rustls::ClientConfig>,
    (deadline, minimal): (Instant, bool),
) -> Result<(Socket, Speaks), Refusal> {
    tokio::time::timeout_at(deadline, open(url, tls, minimal))
        .await
        .unwrap_or_else(|_| Err(Refusal::retry(Error::unavailable(SILENT))))
}

async fn open(
    url: &RelayUrl,
    tls: &Arc<rustls::ClientConfig>,
    minimal: bool,
) -> Result<(Socket, Speaks), Refusal> {
    let unusable =
        |error: WsError| Refusal::fatal(Error::config(format!("the relay URL can not be used: {error}")));
    let mut request = url.socket_url().into_client_request().map_err(unusable)?;
    let ours = HeaderValue::from_static(stvor_wire::SUBPROTOCOL);
    let offer = if minimal {
        // A plain server takes the first offer, our relay the one that it knows.
        HeaderValue::try_from(format!("{}, {}", minimal::SUBPROTOCOL, stvor_wire::SUBPROTOCOL))
            .unwrap_or(ours)
    } else {
        ours
    };
    request.headers_mut().insert(PROTOCOL, offer);
    // Blobs are a third longer in JSON.
    let longest = stvor_wire::limits::MAX_FRAME_AFTER_AUTH * if minimal { 2 } else { 1 };
    let config = WebSocketConfig::default()
        .read_buffer_size(16 * 1024)
        .write_buffer_size(16 * 1024)
        .max_message_size(Some(longest))
        .max_frame_size(Some(longest));
    let connector = if url.is_secure() { Connector::Rustls(Arc::clone(tls)) } else { Connector::Plain };
    let opened =
        tokio_tungstenite::connect_async_tls_with_config(request, Some(config), true, Some(connector)).await;
    match opened {
        Ok((socket, response)) => {
            let chosen = response.headers().get(PROTOCOL).map(HeaderValue::as_bytes);
            let is_minimal = minimal && chosen == Some(minimal::SUBPROTOCOL.as_bytes());
            Ok((socket, if is_minimal { Speaks::Minimal } else { Speaks::Stvor }))
        }
        Err(error) => Err(refusal(url, error)),
    }
}

fn refusal(url: &RelayUrl, error: WsError) -> Refusal {
    let origin = &url.origin();
    match error {
        WsError::Http(response) => http_refusal(origin, response.status(), response.body().as_deref()),
        WsError::Io(error) if is_tls(&error) => {
            Refusal::retry(Error::relay_protocol(format!("TLS with {origin} failed: {error}")))
        }
        WsError::Io(error) => {
            Refusal::retry(Error::unavailable(format!("{origin} can not be reached: {error}")))
        }
        WsError::Tls(error) => {
            Refusal::retry(Error::relay_protocol(format!("TLS with {origin} failed: {error}")))
        }
        // No relay, or a minimal one that is set up to choose none.
        WsError::Protocol(ProtocolError::SecWebSocketSubProtocolError(_)) => Refusal::retry(
            Error::unavailable(format!("{origin} speaks neither stvor.v1 nor what minimal relays do")),
        ),
        WsError::ConnectionClosed
        | WsError::AlreadyClosed
        | WsError::Protocol(ProtocolError::HandshakeIncomplete) => {
            Refusal::retry(Error::unavailable(format!("{origin} closed the connection during the handshake")))
        }
        other => {
            Refusal::retry(Error::relay_protocol(format!("{origin} does not open a WebSocket: {other}")))
        }
    }
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}

/// A relay that refuses before the socket opens says why in problem+json; a proxy in front of it has only a status.
fn http_refusal(origin: &str, status: StatusCode, body: Option<&[u8]>) -> Refusal {
    let problem = body
        .and_then(|body| serde_json::from_slice::<serde_json::Value>(body).ok())
        .and_then(|problem| problem.get("code")?.as_str().map(str::to_owned));
    let retryable = matches!(
        status,
        StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
    );
    if status == StatusCode::TOO_MANY_REQUESTS || problem.as_deref() == Some("RATE_LIMITED") {
        let retry_after = Duration::from_secs(1);
        let error = crate::error::ErrorKind::RateLimited { retry_after }.into();
        Refusal { error, fatal: false, retry_after }
    } else if retryable {
        Refusal::retry(Error::unavailable(format!("{origin} answers HTTP {status}")))
    } else {
        Refusal::retry(Error::relay_protocol(format!(
            "{origin} answers HTTP {status} instead of opening a WebSocket"
        )))
    }
}
