//! The relay of `npx @stvor/sdk mock-relay`: the same one as production's, in memory.

use std::net::SocketAddr;
use std::sync::Mutex;

use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;
use stvor_relay::{Config, Handle, Relay, TokenConfig};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::failure::{argument, coded};
use crate::task::{Kept, promise};

/// A relay that runs.
#[napi]
pub struct NativeRelay {
    handle: Mutex<Kept<Handle>>,
    url: String,
    port: u16,
}

/// How a relay is set up.
#[napi(object)]
pub struct RelaySettings {
    /// An IP address.
    pub host: String,
    /// 0 takes any free one.
    pub port: u32,
    /// More tokens that are let in.
    pub tokens: Vec<String>,
    /// Writes what it does to standard error.
    pub verbose: bool,
    /// The file that keeps accounts and mail; absent: they are gone with the process.
    pub database: Option<String>,
}

/// Starts a relay for development.
///
/// # Errors
/// `LISTEN_FAILED` when the port is taken.
#[napi(catch_unwind)]
pub fn start_relay(env: &Env, settings: RelaySettings) -> napi::Result<PromiseRaw<'_, NativeRelay>> {
    let host =
        settings.host.parse().map_err(|_| argument("host is an IP address, for example \"127.0.0.1\""))?;
    let port = u16::try_from(settings.port).map_err(|_| argument("port is 0 to 65535"))?;
    if settings.verbose {
        talk();
    }
    promise(env, None, async move {
        let tokens = settings.tokens.into_iter().map(|token| TokenConfig { token, app: None }).collect();
        let (listen, database) = (SocketAddr::new(host, port), settings.database.map(Into::into));
        let config = Config { listen, tokens, database, ..Config::mock(port) };
        let handle = Relay::start(config).await.map_err(coded)?;
        let (url, port) = (handle.url(), handle.local_addr().port());
        Ok(NativeRelay { handle: Mutex::new(Kept::new(handle)), url, port })
    })
}

/// Writes what the relay does to standard error.
fn talk() {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let relay = Targets::new().with_target("stvor_relay", LevelFilter::DEBUG);
    // A second relay of this process finds it done.
    let _ = tracing_subscriber::registry().with(lines.with_filter(relay)).try_init();
}

#[napi]
impl NativeRelay {
    /// Where clients connect.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Its port.
    #[napi(getter, catch_unwind)]
    #[must_use]
    pub fn port(&self) -> u32 {
        u32::from(self.port)
    }

    /// Connections and users that are connected.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn load(&self) -> Vec<u32> {
        let handle = self.handle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        handle
            .get()
            .map(|handle| vec![count(handle.connections()), count(handle.users_online())])
            .unwrap_or_default()
    }

    /// Ends it. Twice is no error.
    ///
    /// # Errors
    /// None.
    #[napi(catch_unwind)]
    pub fn close<'env>(&self, env: &'env Env) -> napi::Result<PromiseRaw<'env, ()>> {
        let handle = self.handle.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        promise(env, None, async move {
            if let Some(handle) = handle {
                handle.shutdown().await;
            }
            Ok(())
        })
    }
}
