//! Starting, accepting, draining.

use core::time::Duration;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use stvor_base::{ErrorCode, Timestamp};
use stvor_crypto::{Secret, SystemRandom};
use stvor_wire::server::Drain;
use stvor_wire::{Code, ServerMessage};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::cursor::CursorKey;
use crate::gate::{Gate, Gated};
use crate::http::{self, Origin};
use crate::limits;
use crate::metrics::Metrics;
use crate::ratelimit::network_of;
use crate::relay::{Clock, Relay as Shared};
use crate::storage::{Bounds, SharedStore, StoreError, memory::MemoryStore, sqlite::SqliteStore};
use crate::tls::{Tls, TlsError};

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The address can not be listened on.
    #[error("the relay can not listen on {0}: {1}. Is another one running there?")]
    Listen(SocketAddr, std::io::Error),
    /// The configuration can not be used.
    #[error(transparent)]
    Config(#[from] crate::auth::ConfigError),
    /// The store can not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The certificate can not be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no randomness.
    #[error("the relay has no randomness: {0}")]
    Randomness(stvor_crypto::CryptoError),
}

impl ErrorCode for StartError {
    fn code(&self) -> &'static str {
        match self {
            Self::Listen(..) => "LISTEN_FAILED",
            Self::Config(error) => error.code(),
            Self::Store(error) => error.code(),
            Self::Tls(_) => "TLS_UNUSABLE",
            Self::Randomness(error) => error.code(),
        }
    }
}

/// The relay.
pub struct Relay;

impl Relay {
    /// Starts a relay; it runs until [`Handle::drain`] or [`Handle::shutdown`], or until the handle is dropped.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: Config) -> Result<Handle, StartError> {
        Self::start_with_clock(config, Arc::new(Timestamp::system)).await
    }

    /// As [`Relay::start`], with another clock.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with_clock(config: Config, clock: Clock) -> Result<Handle, StartError> {
        let metrics = Metrics::new();
        let bounds = Bounds {
            mailbox_messages: config.limits.mailbox_messages,
            mailbox_bytes: config.limits.mailbox_bytes,
            sender_messages: config.limits.sender_messages,
            sender_bytes: config.limits.sender_bytes,
            database_bytes: config.limits.database_bytes,
            monthly_messages: config.limits.monthly_messages,
            ..Bounds::default()
        };
        let store: SharedStore = match &config.database {
            Some(path) => Arc::new(SqliteStore::open(path, bounds, metrics.store())?),
            None => Arc::new(MemoryStore::new(bounds)),
        };
        let tls = config.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let (listener, local) = listen(config.listen).await?;
        let metrics_listener = match config.metrics_listen {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let fresh = Secret::random(&mut SystemRandom::new()).map_err(StartError::Randomness)?;
        let cursors = CursorKey::new(&Secret::new(store.secret("cursor", *fresh.expose()).await?));
        let relay = Arc::new(Shared::new(config, (store, cursors), metrics, clock)?);
        warn_of_dangers(&relay);
        let handle = Handle {
            relay: relay.clone(),
            local,
            metrics: metrics_listener.as_ref().map(|(_, address)| *address),
            accepting: CancellationToken::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            tls: tls.clone(),
        };
        let door =
            Arc::new(Door { relay: relay.clone(), tls, open: Mutex::default(), tasks: handle.tasks.clone() });
        handle.spawn(door.accept(listener, handle.accepting.clone()));
        if let Some((listener, _)) = metrics_listener {
            handle.spawn(http::serve_metrics(relay.clone(), listener));
        }
        handle.spawn(sweep(relay.clone()));
        handle.spawn(watch_admin(relay));
        Ok(handle)
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |error| StartError::Listen(address, error);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

fn warn_of_dangers(relay: &Shared) {
    let config = &relay.config;
    if config.development && !config.listen.ip().is_loopback() {
        tracing::warn!("DEVELOPMENT relay on a public address: anybody may register any name");
    }
    if config.tls.is_none() && !config.listen.ip().is_loopback() {
        tracing::warn!("no TLS on a public address: put a TLS proxy in front, or set relay.tls");
    }
    if config.origins.is_empty() && !config.development && !config.listen.ip().is_loopback() {
        tracing::warn!(
            "relay.origins is empty: only clients that dial this machine's own address can log in"
        );
    }
    if config.database.is_none() && !config.development {
        tracing::warn!("relay.database is not set: messages are lost when the relay stops");
    }
}

/// A running relay.
pub struct Handle {
    relay: Arc<Shared>,
    local: SocketAddr,
    metrics: Option<SocketAddr>,
    accepting: CancellationToken,
    stop: CancellationToken,
    tasks: TaskTracker,
    tls: Option<Arc<Tls>>,
}

impl core::fmt::Debug for Handle {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Handle")
            .field("local", &self.local)
            .field("metrics", &self.metrics)
            .finish_non_exhaustive()
    }
}

impl Handle {
    /// Where clients connect.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Where `/metrics` is, if anywhere.
    #[must_use]
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// A relay URL for clients on this machine, for example `ws://127.0.0.1:3002`.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "wss" } else { "ws" };
        let mut address = self.local;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                [127, 0, 0, 1].into()
            } else {
                IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
            });
        }
        format!("{scheme}://{address}")
    }

    /// How many connections are logged in.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.relay.hub.len()
    }

    /// How many users receive.
    #[must_use]
    pub fn users_online(&self) -> usize {
        self.relay.hub.users_online()
    }

    /// Reads the TLS files again.
    ///
    /// # Errors
    /// [`TlsError`]; the old certificate stays.
    pub fn reload_tls(&self) -> Result<(), TlsError> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.reload())
    }

    /// Stops gently: takes nobody new in, tells clients to reconnect elsewhere within `spread`, and ends those that are
    /// left after `grace`.
    pub async fn drain(self, spread: Duration, grace: Duration) {
        self.relay.start_draining();
        for conn in self.relay.hub.connections() {
            let resume_cursor = crate::connection::cursor_of(&self.relay, &conn);
            conn.say(&ServerMessage::Drain(Drain { reconnect_after: Duration::ZERO, spread, resume_cursor }));
        }
        let gone = async {
            let mut look = tokio::time::interval(Duration::from_millis(20));
            while self.relay.hub.len() > 0 {
                look.tick().await;
            }
        };
        let _ = tokio::time::timeout(grace, gone).await;
        self.shutdown().await;
    }

    /// Stops now: ends every connection with DRAINING, and returns when all tasks have ended and the store is at rest.
    pub async fn shutdown(self) {
        self.relay.start_draining();
        self.accepting.cancel();
        for conn in self.relay.hub.connections() {
            conn.end_after_queue(Code::Draining, "the relay stops: reconnect in a moment");
        }
        self.tasks.close();
        let served = async {
            let mut look = tokio::time::interval(Duration::from_millis(5));
            while self.relay.hub.len() > 0 {
                look.tick().await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
        self.stop.cancel();
        self.tasks.wait().await;
        // Whatever was queued before this is on disk after it.
        if let Err(error) = self.relay.store.check().await {
            tracing::warn!(%error, "the store could not be written at the end");
        }
        // The file is free for the next relay once nobody but this handle holds the store.
        let alone = async {
            let mut look = tokio::time::interval(Duration::from_millis(2));
            while Arc::strong_count(&self.relay) > 1 {
                look.tick().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(5), alone).await.is_err() {
            tracing::warn!(
                "something still holds the store: a relay on the same file may find it in use for a moment"
            );
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.accepting.cancel();
        self.stop.cancel();
        for conn in self.relay.hub.connections() {
            conn.end(Code::Draining, "the relay stops");
        }
    }
}

/// Lets sockets in.
struct Door {
    relay: Arc<Shared>,
    tls: Option<Arc<Tls>>,
    open: Mutex<Open>,
    tasks: TaskTracker,
}

/// Open sockets, logged in or not.
#[derive(Default)]
struct Open {
    all: usize,
    of: HashMap<IpAddr, usize>,
}

/// One open socket; counted until dropped.
struct Entry(Arc<Door>, IpAddr);

impl Drop for Entry {
    fn drop(&mut self) {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(count) = open.of.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                open.of.remove(&self.1);
            }
        }
    }
}

impl Door {
    async fn accept(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, remote)) = accepted else {
                // Out of file descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let Some(entry) = self.enter(remote.ip()) else { continue };
            let door = self.clone();
            let stop = stop.clone();
            self.tasks.spawn(async move {
                tokio::select! {
                    () = door.serve(stream, remote, entry) => {}
                    () = stop.cancelled() => {}
                }
            });
        }
    }

    fn enter(self: &Arc<Self>, remote: IpAddr) -> Option<Entry> {
        let limits = &self.relay.config.limits;
        let network = network_of(remote);
        if !remote.is_loopback() && self.relay.limiter.connects.take(&network, 1).is_err() {
            self.relay.metrics.rate_limited("address");
            return None;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.of.get(&network).copied().unwrap_or_default();
        let crowded = !remote.is_loopback() && count >= limits.connections_per_address;
        if crowded || open.all >= limits.connections {
            self.relay.metrics.rate_limited("address");
            return None;
        }
        open.all += 1;
        open.of.insert(network, count + 1);
        drop(open);
        Some(Entry(self.clone(), network))
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, remote: SocketAddr, entry: Entry) {
        let _ = stream.set_nodelay(true);
        let Ok(local) = stream.local_addr() else { return };
        let deadline = Instant::now() + self.handshake();
        let (gate, entry) = (Gate::new(), Arc::new(entry));
        let origin = Origin { remote: remote.ip(), local, deadline, gate, entry };
        match &self.tls {
            None => self.http(stream, origin).await,
            Some(tls) => {
                let handshake = tls.acceptor().accept(stream);
                if let Ok(Ok(stream)) = tokio::time::timeout_at(deadline, handshake).await {
                    self.http(stream, origin).await;
                }
            }
        }
    }

    fn handshake(&self) -> Duration {
        Duration::from_millis(self.relay.config.limits.handshake_ms)
    }

    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, origin: Origin) {
        let deadline = origin.deadline;
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let stream = Gated::new(stream, origin.gate.clone());
        let router = http::router(self.relay.clone()).layer(axum::Extension(origin));
        let serving = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(left)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades();
        tokio::pin!(serving);
        if tokio::time::timeout_at(deadline, &mut serving).await.is_err() {
            // No WebSocket came of it in time: a request that is under way may end, no other begins.
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(self.handshake(), serving).await;
        }
    }
}

/// Deletes what expired, batch by batch.
async fn sweep(relay: Arc<Shared>) {
    loop {
        tokio::time::sleep(limits::SWEEP_EVERY).await;
        relay.metrics.upkeep();
        loop {
            match relay.store.sweep(relay.now(), limits::SWEEP_ROWS).await {
                Ok(swept) => {
                    relay.metrics.expired(swept.messages);
                    let most = limits::SWEEP_ROWS as u64;
                    if swept.messages < most && swept.ids < most {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "expired rows could not be deleted");
                    break;
                }
            }
        }
    }
}

/// Notices what the command line changed in the database: revoked tokens, reset users. Expired tokens too.
async fn watch_admin(relay: Arc<Shared>) {
    const REVIEW_EVERY: u32 = 75;
    let mut seen = relay.store.outside_changes().await.unwrap_or_default();
    let mut beats: u32 = 0;
    loop {
        tokio::time::sleep(limits::ADMIN_POLL).await;
        beats = beats.wrapping_add(1);
        let changes = relay.store.outside_changes().await.unwrap_or(seen);
        if changes != seen || beats.is_multiple_of(REVIEW_EVERY) {
            seen = changes;
            relay.review_connections().await;
        }
    }
}
