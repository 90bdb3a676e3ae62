//! The relay of `npx @stvor/sdk mock-relay`: the same one as production's, in memory.

use std::net::SocketAddr;
use std::sync::Mutex;

use napi::Env;
use napi::bindgen_prelude::PromiseRaw;
use napi_derive::napi;
use stvor_relay::{Config, Handle, Relay, TokenConfig};

use crate::failure::{argument, coded};
use crate::task::{Kept, promise};

/// A relay that runs.
#[napi]
pub struct NativeRelay {
    handle: Mutex<Kept<Handle>>,
    url: String,
    port: u16,
}

/// Starts a relay for development, in memory. Port 0 takes any free one.
///
/// # Errors
/// `LISTEN_FAILED` when the port is taken.
#[napi(catch_unwind)]
pub fn start_relay<'env>(
    env: &'env Env,
    (host, port): (String, u32),
    tokens: Vec<String>,
    verbose: bool,
) -> napi::Result<PromiseRaw<'env, NativeRelay>> {
    let host = host.parse().map_err(|_| argument("host is an IP address, for example \"127.0.0.1\""))?;
    let port = u16::try_from(port).map_err(|_| argument("port is 0 to 65535"))?;
    if verbose {
        talk();
    }
    promise(env, None, async move {
        let tokens = tokens.into_iter().map(|token| TokenConfig { token, app: None }).collect();
        let config = Config { listen: SocketAddr::new(host, port), tokens, ..Config::mock(port) };
        let handle = Relay::start(config).await.map_err(coded)?;
        let (url, port) = (handle.url(), handle.local_addr().port());
        Ok(NativeRelay { handle: Mutex::new(Kept::new(handle)), url, port })
    })
}

/// Writes what the relay does to standard error.
fn talk() {
    // A second relay of this process finds it done.
    let _ = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter("stvor_relay=debug")
        .try_init();
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
