//! What all connections of a relay share.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use stvor_base::Timestamp;
use stvor_wire::Code;

use crate::auth::{ConfigError, Doorkeeper};
use crate::config::Config;
use crate::cursor::CursorKey;
use crate::hub::Hub;
use crate::metrics::Metrics;
use crate::ratelimit::Limiter;
use crate::storage::SharedStore;

/// Where the relay takes the time from.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

pub(crate) struct Relay {
    pub(crate) config: Config,
    pub(crate) store: SharedStore,
    pub(crate) hub: Arc<Hub>,
    pub(crate) limiter: Limiter,
    pub(crate) doorkeeper: Doorkeeper,
    pub(crate) cursors: CursorKey,
    pub(crate) metrics: Metrics,
    /// In canonical form.
    pub(crate) origins: HashSet<String>,
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) started: Instant,
    pub(crate) challenges: crate::http::Challenges,
    pub(crate) readiness: crate::http::Readiness,
    draining: AtomicBool,
    clock: Clock,
}

impl Relay {
    pub(crate) fn new(
        config: Config,
        (store, cursors): (SharedStore, CursorKey),
        metrics: Metrics,
        clock: Clock,
    ) -> Result<Self, crate::StartError> {
        let origin = |text: &String| {
            stvor_wire::url::canonical_origin(text)
                .map_err(|error| ConfigError::Origin(text.clone(), error.to_string()))
        };
        Ok(Self {
            origins: config.origins.iter().map(origin).collect::<Result<_, _>>()?,
            doorkeeper: Doorkeeper::new(&config)?,
            limiter: Limiter::new(&config.limits),
            cursors,
            hub: Arc::new(Hub::new()),
            metrics,
            store,
            config,
            runtime: tokio::runtime::Handle::current(),
            started: Instant::now(),
            challenges: crate::http::Challenges::default(),
            readiness: crate::http::Readiness::default(),
            draining: AtomicBool::new(false),
            clock,
        })
    }

    /// The relay's clock.
    pub(crate) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Ends connections whose token or device is no longer good.
    pub(crate) async fn review_connections(&self) {
        use std::sync::atomic::Ordering::AcqRel;
        self.hub.generation.fetch_add(1, AcqRel);
        let now = self.now();
        for conn in self.hub.connections() {
            let token = self.doorkeeper.still_good(&self.store, &conn.who.token, now).await;
            let device = self.store.is_current(conn.who.holder()).await;
            // A store that can not answer logs nobody out.
            if token == Ok(false) {
                conn.end_after_queue(Code::LoggedOut, "the token was revoked or has expired");
            } else if device == Ok(false) {
                conn.end_after_queue(Code::LoggedOut, "an operator removed this user or device");
            }
        }
    }
}
