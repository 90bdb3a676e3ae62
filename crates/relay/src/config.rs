//! What an operator can set: the table `[relay]` of the one TOML file.

use core::time::Duration;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The port of the durable relay.
pub const DEFAULT_PORT: u16 = 3002;

/// The port of `stvor mock-relay`.
pub const MOCK_PORT: u16 = 4444;

/// Configuration of a relay. Unknown keys are refused.
///
/// ```
/// # use stvor_relay::Config;
/// let config = Config::mock(0);
/// assert!(config.development && config.database.is_none());
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Where `/metrics` is served; nowhere when absent. Never on the clients' port.
    pub metrics_listen: Option<SocketAddr>,
    /// The SQLite file; absent: everything is forgotten with the process.
    pub database: Option<PathBuf>,
    /// The origins that clients may have dialled, for example `wss://relay.example.com`. Loopback clients may also have
    /// dialled the name in their `Host` header; with `development` every client may.
    pub origins: Vec<String>,
    /// Lets any `stvor_` token in, lets anybody register a free name, and lets a lost device take its name over.
    pub development: bool,
    /// Tokens that are let in, besides those that were issued.
    pub tokens: Vec<TokenConfig>,
    /// Keys that verify client tokens.
    pub client_keys: Vec<ClientKeyConfig>,
    /// Whether app tokens may register new users. Otherwise, that takes a client token that names the user. Off by
    /// default, except with `development`.
    pub open_registration: bool,
    /// TLS; plain when absent (behind a proxy, or on loopback).
    pub tls: Option<TlsConfig>,
    /// Bounds that an operator may move.
    pub limits: LimitsConfig,
}

/// A token by its literal.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenConfig {
    /// Any literal, for example `sk_live_...`.
    pub token: String,
    /// The app it belongs to; absent: what the token itself says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
}

impl core::fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("TokenConfig").field("token", &"[redacted]").field("app", &self.app).finish()
    }
}

/// A key of a customer's backend that signs client tokens.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientKeyConfig {
    /// The `kid` of the tokens.
    pub id: String,
    /// The app that the key may speak for.
    pub app: String,
    /// The Ed25519 public key as a JWK's `x`: 32 bytes in unpadded base64url.
    pub public_key: String,
}

/// Certificate and key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file of the certificate chain.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
}

/// Bounds that an operator may move; the rest is fixed (see [`crate::limits`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Connections at once.
    pub connections: usize,
    /// Connections at once from one address (one /64 of IPv6); loopback is exempt.
    pub connections_per_address: usize,
    /// Connection attempts from one address a second, and as many as ten seconds' worth at once; loopback is exempt.
    pub connects_per_address: u32,
    /// Log-ins of one app a second.
    pub logins_per_app: u32,
    /// New users of one app a minute, and at once.
    pub registrations_per_app: u32,
    /// New users from one address a minute, and at once; loopback is exempt.
    pub registrations_per_address: u32,
    /// Messages of one device a second, and twice as many at once.
    pub sends_per_device: u32,
    /// Messages of one app a second, and twice as many at once.
    pub sends_per_app: u32,
    /// Blob bytes of one device a second; the burst is sixteen times that.
    pub bytes_per_device: u32,
    /// Bundles that one device may fetch a minute with one-time prekeys; past it they come without.
    pub one_time_per_fetcher: u32,
    /// Bundles of one user that may be fetched a minute with one-time prekeys; past it they come without.
    pub one_time_per_target: u32,
    /// Requests (uploads, fetches, status) of one device a second; the burst is five times that.
    pub requests_per_device: u32,
    /// Days that a mailbox keeps a message.
    pub retention_days: u32,
    /// Messages in one mailbox.
    pub mailbox_messages: u64,
    /// Blob bytes in one mailbox.
    pub mailbox_bytes: u64,
    /// Messages of one sender in one mailbox; others still get theirs in.
    pub sender_messages: u64,
    /// Blob bytes of one sender in one mailbox.
    pub sender_bytes: u64,
    /// Bytes of the database; past it nothing new is stored, as on a full disk.
    pub database_bytes: Option<u64>,
    /// Messages an app may send in a calendar month.
    pub monthly_messages: Option<u64>,
    /// Milliseconds from connecting to READY.
    pub handshake_ms: u64,
    /// Mean milliseconds between pings.
    pub heartbeat_ms: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_address: 1_000,
            connects_per_address: 20,
            logins_per_app: 5_000,
            registrations_per_app: 6_000,
            registrations_per_address: 100,
            sends_per_device: 5_000,
            sends_per_app: 100_000,
            bytes_per_device: 16 * 1024 * 1024,
            one_time_per_fetcher: 60,
            one_time_per_target: 60,
            requests_per_device: 50,
            retention_days: 30,
            mailbox_messages: crate::limits::MAILBOX_MESSAGES,
            mailbox_bytes: crate::limits::MAILBOX_BYTES,
            sender_messages: crate::limits::SENDER_MESSAGES,
            sender_bytes: crate::limits::SENDER_BYTES,
            database_bytes: None,
            monthly_messages: None,
            handshake_ms: 10_000,
            heartbeat_ms: 27_500,
        }
    }
}

impl LimitsConfig {
    /// How long a mailbox keeps a message.
    #[must_use]
    pub fn retention(&self) -> Duration {
        Duration::from_secs(u64::from(self.retention_days) * 24 * 3600)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)),
            metrics_listen: None,
            database: None,
            origins: Vec::new(),
            development: false,
            tokens: Vec::new(),
            client_keys: Vec::new(),
            open_registration: false,
            tls: None,
            limits: LimitsConfig::default(),
        }
    }
}

impl Config {
    /// The development relay of `stvor mock-relay`: in memory, on loopback. Port 0 takes any free one.
    #[must_use]
    pub fn mock(port: u16) -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], port)), development: true, ..Self::default() }
    }

    /// A durable relay on loopback.
    #[must_use]
    pub fn durable(database: impl Into<PathBuf>, port: u16) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], port)),
            database: Some(database.into()),
            ..Self::default()
        }
    }

    /// Whether app tokens may register new users.
    #[must_use]
    pub fn registration_is_open(&self) -> bool {
        self.development || self.open_registration
    }
}
