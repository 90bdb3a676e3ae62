//! HTTP beside the socket: health, status, users and keys, metrics.

mod challenges;
mod keys;
mod problem;
mod readiness;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use serde::Serialize;
use stvor_wire::limits::MAX_FRAME_AFTER_AUTH;
use stvor_wire::{Code, SOCKET_PATH, SUBPROTOCOL};
use tokio::net::TcpListener;
use utoipa::{OpenApi, ToSchema};

use crate::connection::{self, Arrival, Peer};
use crate::gate::Gate;
use crate::limits::SOCKET_BUFFER;
use crate::ratelimit::network_of;
use crate::relay::Relay;
pub(crate) use challenges::Challenges;
use problem::Refused;
pub(crate) use readiness::Readiness;

/// Where a request comes from, and what keeps its socket counted.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) remote: IpAddr,
    pub(crate) local: SocketAddr,
    /// When the connection has to be a logged-in WebSocket.
    pub(crate) deadline: tokio::time::Instant,
    pub(crate) gate: Arc<Gate>,
    pub(crate) entry: Arc<dyn core::any::Any + Send + Sync>,
}

type Shared = State<Arc<Relay>>;

/// The clients' side.
pub(crate) fn router(relay: Arc<Relay>) -> Router {
    Router::new()
        .route("/", get(front))
        .route(SOCKET_PATH, get(socket))
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(openapi))
        .route("/status/{user}", get(status))
        .merge(keys::router())
        .fallback(|| async { Refused::new(Code::NotFound, "there is nothing here; see /openapi.json") })
        .method_not_allowed_fallback(|| async {
            Refused::new(Code::MethodNotAllowed, "this method is not offered here; see /openapi.json")
        })
        .layer(axum::middleware::from_fn_with_state(relay.clone(), limit))
        .with_state(relay)
}

/// Takes one request from the address's bucket. Probes of the machine itself are free.
async fn limit(
    State(relay): Shared,
    Extension(origin): Extension<Origin>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    if !origin.remote.is_loopback() {
        let buckets = &relay.limiter.requests_http;
        if let Err(wait) = buckets.take(&network_of(origin.remote), 1) {
            relay.metrics.rate_limited("http");
            return Refused::limited(wait, ("address", buckets.burst(), 10)).into_response();
        }
    }
    next.run(request).await
}

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// A person with a browser gets a sentence, a client its socket.
async fn front(relay: Shared, origin: Extension<Origin>, headers: HeaderMap, upgrade: Upgrade) -> Response {
    if headers.contains_key(header::UPGRADE) {
        return socket(relay, origin, headers, upgrade).await;
    }
    let text = "This is a STVOR relay: it carries end-to-end encrypted messages that it can not read. \
                Point a client at this address. The API is described in /openapi.json.\n";
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn socket(
    State(relay): Shared,
    Extension(origin): Extension<Origin>,
    headers: HeaderMap,
    upgrade: Upgrade,
) -> Response {
    let Ok(upgrade) = upgrade else {
        let detail = "this is the socket of a STVOR relay: connect with a WebSocket client that offers the subprotocol \
                      stvor.v1";
        return Refused::new(Code::WebsocketRequired, detail).into_response();
    };
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let offers = offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if !offers.map(str::trim).any(|name| name == SUBPROTOCOL) {
        let detail = "the WebSocket client has to offer the subprotocol stvor.v1";
        return Refused::new(Code::UnsupportedVersion, detail).into_response();
    }
    if relay.is_draining() {
        return Refused::new(Code::Draining, "the relay is stopping: reconnect in a moment").into_response();
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let peer = Peer { remote: origin.remote, local: origin.local, host };
    origin.gate.arm();
    upgrade
        .protocols([SUBPROTOCOL])
        .read_buffer_size(SOCKET_BUFFER)
        .write_buffer_size(SOCKET_BUFFER)
        .max_message_size(MAX_FRAME_AFTER_AUTH)
        .max_frame_size(MAX_FRAME_AFTER_AUTH)
        .on_upgrade(move |socket| async move {
            let Origin { deadline, gate, entry, .. } = origin;
            connection::run(relay, socket, Arrival { peer, deadline, gate }).await;
            drop(entry);
        })
}

/// How the relay is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Health {
    /// `ok`, or `draining`.
    status: &'static str,
    /// `stvor-relay`, or `stvor-mock-relay` for one that forgets.
    server: &'static str,
    /// The version of the relay.
    version: &'static str,
    /// Seconds since it started.
    uptime: f64,
    /// Users with a receiving device.
    connected_users: usize,
}

/// Whether a relay is there, and which.
#[utoipa::path(get, path = "/health", responses((status = 200, body = Health)))]
async fn health(State(relay): Shared) -> Json<Health> {
    let mock = relay.config.development && relay.config.database.is_none();
    Json(Health {
        status: if relay.is_draining() { "draining" } else { "ok" },
        server: if mock { "stvor-mock-relay" } else { "stvor-relay" },
        version: crate::VERSION,
        uptime: relay.started.elapsed().as_secs_f64(),
        connected_users: relay.hub.users_online(),
    })
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/livez", responses((status = 200, description = "alive")))]
async fn livez() -> &'static str {
    "ok\n"
}

/// Whether clients should be sent here: the store can be written, and the relay is not draining.
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "ready"),
    (status = 503, description = "not ready", body = problem::ProblemBody, content_type = "application/problem+json"),
))]
async fn readyz(State(relay): Shared) -> Response {
    if relay.is_draining() {
        return Refused::new(Code::Draining, "the relay is stopping").into_response();
    }
    let store = relay.store.clone();
    match relay.readiness.ask(async move { store.check().await }).await {
        Ok(()) => "ready\n".into_response(),
        Err(error) => Refused::new(Code::StoreUnavailable, error.to_string()).into_response(),
    }
}

/// What a development relay says of a user.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Status {
    /// As asked.
    user_id: String,
    /// A device of the user receives.
    online: bool,
    /// A device of the user has uploaded keys.
    has_public_key: bool,
}

/// Whether somebody of this name is here, in any app. Development relays only.
#[utoipa::path(get, path = "/status/{user}", params(("user" = String, Path, description = "a user id")), responses(
    (status = 200, body = Status),
    (status = 404, description = "not a development relay", body = problem::ProblemBody,
     content_type = "application/problem+json"),
))]
async fn status(State(relay): Shared, Path(user): Path<String>) -> Response {
    if !relay.config.development {
        return Refused::new(Code::NotFound, "only a development relay says who is online").into_response();
    }
    let Ok(name) = stvor_base::UserId::new(&user) else {
        return Refused::new(Code::BadRequest, "this is no user id").into_response();
    };
    let has_public_key = relay.store.has_keys_anywhere(&name).await.unwrap_or(false);
    let online = relay.hub.is_online_anywhere(&name);
    Json(Status { user_id: user, online, has_public_key }).into_response()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "STVOR relay",
        description = "What is not a stream. Messages travel over the WebSocket at /v1/socket (subprotocol stvor.v1)."
    ),
    paths(health, livez, readyz, status, keys::challenge, keys::upload, keys::user, keys::bundle),
    components(schemas(problem::ProblemBody))
)]
struct Api;

async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Api::openapi())
}

/// Serves `/metrics` on its own listener, until the task is dropped.
pub(crate) async fn serve_metrics(relay: Arc<Relay>, listener: TcpListener) {
    let page = |State(relay): Shared| async move {
        let text = relay.metrics.render(relay.hub.users_online());
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
    };
    let router = Router::new()
        .route("/metrics", get(page))
        .fallback(|| async { (StatusCode::NOT_FOUND, "metrics are at /metrics\n") })
        .with_state(relay);
    if let Err(error) = axum::serve(listener, router).await {
        tracing::warn!(%error, "the metrics listener stopped");
    }
}
