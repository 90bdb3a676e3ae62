//! What the command can do, one module for each noun.

pub(crate) mod account;
pub(crate) mod backup;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod group;
pub(crate) mod history;
pub(crate) mod identity;
pub(crate) mod key;
pub(crate) mod listen;
pub(crate) mod mock_relay;
pub(crate) mod peer;
pub(crate) mod relay;
pub(crate) mod send;
mod server;
pub(crate) mod up;
#[cfg(unix)]
pub(crate) mod vault;
