//! The native half of the npm package `@stvor/libsignal`: the Signal profile of `stvor-protocol` behind Node's C interface.
//!
//! Every function is pure and synchronous: records come in as bytes and go out as bytes, so nothing is shared between calls and
//! a failure changes nothing. The TypeScript of `bindings/libsignal/ts` keeps order, asks storages, and turns failures into
//! typed errors. Whatever panics below an entry point becomes an error.

use napi_derive::napi;

pub mod curve;
mod failure;
#[cfg(debug_assertions)]
pub mod faults;
pub mod group;
pub mod hot;
mod out;
pub mod record;
pub mod session;

/// The version of this library, which must be that of the TypeScript face. The first call of any process: from here on
/// panics print nothing.
#[napi(catch_unwind)]
#[must_use]
pub fn version() -> String {
    failure::watch_panics();
    env!("CARGO_PKG_VERSION").to_owned()
}
