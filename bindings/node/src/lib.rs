//! The native half of the npm package `@stvor/sdk`: the engine of the crate `stvor` behind Node's C interface.
//!
//! Nothing here is for people: the TypeScript of `bindings/node/ts` stands in front of it, checks what JavaScript hands
//! in, and turns failures into `StvorError`. Whatever panics below an entry point becomes an error with the code
//! `INTERNAL`; nothing that JavaScript passes can end the process.

use napi_derive::napi;

pub mod adapters;
pub mod app;
#[cfg(feature = "bench")]
pub mod bench;
pub mod client;
pub mod content;
mod events;
mod failure;
#[cfg(debug_assertions)]
pub mod faults;
pub mod groups;
pub mod keeping;
pub mod kms;
mod limits;
pub mod ratchet;
pub mod relay;
pub mod sends;
pub mod storage;
pub mod stream;
pub mod task;

/// The version of this library, which must be that of the TypeScript face. The first call of any process: from here on panics print
/// nothing.
#[napi(catch_unwind)]
#[must_use]
pub fn version() -> String {
    failure::watch_panics();
    env!("CARGO_PKG_VERSION").to_owned()
}

/// Bytes that a content can have.
#[napi(catch_unwind)]
#[must_use]
pub fn max_content() -> u32 {
    u32::try_from(stvor_protocol::limits::MAX_PLAINTEXT).unwrap_or(u32::MAX)
}
