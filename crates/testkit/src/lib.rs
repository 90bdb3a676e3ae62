//! What the tests of STVOR share. Never shipped.
//!
//! - [`mount`]: file systems of a test's own.
//! - [`process`]: real binaries with captured logs, waited for without sleeping, stopped, continued and killed by
//!   pid, and never left behind.
//! - [`proxy`]: a TCP proxy that delays, throttles, freezes and cuts.
//! - [`clock`]: time that only moves when a test says so.
//! - [`history`]: decides whether every accepted message arrived exactly once and in order.
//! - [`authenticator`]: a FIDO2 token in memory.
//! - [`keyring`]: a keyring in memory.
//! - [`servers`]: PostgreSQL, Redis and KMIP servers, keyrings of a session, tokens and TPMs in software of a test's own.
//! - [`temp`]: directories that go away, with short paths.
//!
//! Everything here is synchronous (threads, not tasks), so that it serves tests with and without a runtime, and so
//! that a test that blocks its runtime does not block the proxy it talks through.

pub mod authenticator;
pub mod clock;
pub mod history;
pub mod keyring;
pub mod mount;
pub mod process;
pub mod proxy;
pub mod servers;
pub mod temp;

pub use authenticator::SoftAuthenticator;
pub use clock::VirtualClock;
pub use history::{Checker, Violation};
pub use keyring::MemoryKeyring;
pub use process::{Process, Signal, Spawn, Stream, binary, until};
pub use proxy::{ChaosProxy, Direction};
pub use servers::{
    Kmip, Postgres, Promotion, Redis, RedisCluster, RedisPair, RedisSettings, SecretService, SoftHsm, Swtpm,
    kmip_certificates,
};
pub use temp::temp_dir;

/// The code blocks of README and the book, compiled by `cargo test --doc`.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../../../README.md")]
    struct Readme;
    #[doc = include_str!("../../../docs/quick-start.md")]
    struct QuickStart;
    #[doc = include_str!("../../../docs/sdk.md")]
    struct SdkGuide;
}
