//! The untrusted STVOR relay: prekey directory, durable mailboxes, live delivery.
//!
//! A relay is trusted with availability and nothing else. It checks who logs in, keeps what it can not read until the
//! recipient's device has it, and hands out public keys whose signatures clients judge.
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), stvor_relay::StartError> {
//! use stvor_relay::{Config, Relay};
//! let handle = Relay::start(Config::mock(0)).await?;
//! println!("listening on {}", handle.url());
//! handle.shutdown().await;
//! # Ok(()) }
//! ```

mod admin;
mod auth;
mod config;
mod connection;
mod cursor;
mod gate;
mod http;
mod hub;
pub mod limits;
mod metrics;
mod ratelimit;
mod relay;
mod server;
pub mod storage;
mod tls;

pub use admin::{Admin, IssuedToken};
pub use auth::ConfigError;
pub use config::{ClientKeyConfig, Config, DEFAULT_PORT, LimitsConfig, MOCK_PORT, TlsConfig, TokenConfig};
pub use relay::Clock;
pub use server::{Handle, Relay, StartError};
pub use tls::TlsError;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
