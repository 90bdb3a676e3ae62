//! The binary as people and scripts meet it: real processes, real relays on free ports. One test binary, so that it is
//! linked once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod accounts;
mod chat;
mod command_line;
mod common;
mod demo;
mod doctor;
mod groups;
mod keeping;
mod messages;
#[cfg(unix)]
mod progress;
mod relays;
#[cfg(unix)]
mod reload;
#[cfg(unix)]
mod store_keys;
mod stores;
mod terminal;
#[cfg(unix)]
mod vault;
#[cfg(unix)]
mod vault_clients;
#[cfg(target_os = "linux")]
mod vault_contained;
#[cfg(unix)]
mod vault_import;
mod vault_keys;
#[cfg(unix)]
mod vault_log;
#[cfg(unix)]
mod vault_memories;
#[cfg(target_os = "linux")]
mod vault_memory;
#[cfg(unix)]
mod vault_recovery;
#[cfg(unix)]
mod vault_tokens;
#[cfg(all(unix, feature = "tpm"))]
mod vault_tpm;
