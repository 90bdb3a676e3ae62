//! Against npm `libsignal` 6, `whatsapp-rust-bridge` and `@signalapp/libsignal-client`, which `./x test` installs by name.
//! They are peers of these tests only; nothing of them ships.

#![cfg(test)]

mod corpus;
mod decoder;
mod matrix;
#[path = "../signal/party.rs"]
#[allow(dead_code, reason = "shared with tests that use all of it")]
mod party;
mod peer;
mod primitives;
