//! The daemon: one process owns the vault and its keys; agents and the owner talk to it over two Unix sockets.
//!
//! Both carry JSON, one object a line. An agent's first line is `{"credential": "..."}`; from then on each line is an
//! [`AgentVerb`], answered by `{"ok": ...}` or `{"error": {"code", "message", "retryable"}}`. The agents' socket knows no
//! verb of the owner. On the owner's socket the daemon speaks first, with the records that the owner's secret unwraps and a
//! challenge; each line is an action and a proof (HMAC-SHA256 over challenge and action, under the verb key that only the
//! owner's secret unwraps), and each answer brings the next challenge. So a program that can open the owner's socket, but has
//! not the secret, can ask for the status and no more.

mod asked;
mod client;
mod confine;
mod keys;
mod line;
mod outbox;
mod recovery;
mod seats;
mod server;
mod verbs;

pub use client::Client;
pub use confine::{confine, keep_memory, memory_limit};
pub use keys::{KeysVerb, NewRootVerb, ProfileKeyVerb};
pub use recovery::{EnrolmentVerb, EscrowVerb, HeirVerb, Hidden, KeeperVerb, PresentedVerb, RecoveryVerb};
pub use server::{AGENTS_SOCKET, Admitted, Daemon, OWNER_SOCKET, harden};
pub use verbs::{AgentVerb, Content, OwnerVerb, StoreVerb};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stvor_base::ErrorCode as _;
use stvor_crypto::kdf::hmac_sha256;

use crate::keys::VerbKey;
use crate::{VaultError, limits};

/// A failure on its way to the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The stable code.
    pub code: String,
    /// What happened, to what, what to do.
    pub message: String,
    /// Whether the same call may succeed later.
    pub retryable: bool,
}

impl From<&VaultError> for Failure {
    fn from(error: &VaultError) -> Self {
        Self { code: error.code().into(), message: error.to_string(), retryable: error.retryable() }
    }
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(Failure),
}

fn answer(result: Result<Value, VaultError>) -> Answer {
    match result {
        Ok(value) => Answer::Ok(value),
        Err(error) => Answer::Error(Failure::from(&error)),
    }
}

/// An agent's first line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    credential: Hidden,
}

/// What the daemon says first on the owner's socket.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum First {
    Greeting(Greeting),
    Refused(Answer),
}

/// How the daemon greets who connects to the owner's socket. Bytes are in base64.
#[derive(Debug, Serialize, Deserialize)]
struct Greeting {
    root: String,
    verbs: String,
    vaulted: Option<String>,
    challenge: String,
}

/// An action of the owner. It may hold keys.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Action<T> {
    /// An [`OwnerVerb`] as JSON text: what the proof is over.
    action: T,
    /// In base64; nothing for the verbs that need none.
    #[serde(default)]
    proof: String,
}

/// The answer to an action, and the next challenge.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    answer: Answer,
    challenge: String,
}

/// A line on the owner's socket after an action: how far it is, or the answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Told {
    Progress { progress: [u64; 2] },
    Reply(Reply),
}

fn proof(key: &VerbKey, challenge: &[u8], action: &[u8]) -> stvor_crypto::Secret<32> {
    hmac_sha256(key.expose(), &[b"STVOR vault owner action v1", challenge, action])
}

/// Bytes of a line: a content at its longest, escaped.
const MAX_LINE: usize = 6 * limits::MAX_CONTENT + (1 << 20);

/// The user and the number of the process at the other end, as it was when it connected.
#[cfg(target_os = "linux")]
fn peer(stream: &std::os::unix::net::UnixStream) -> seats::Peer {
    let peer = rustix::net::sockopt::socket_peercred(stream).ok()?;
    Some((peer.uid.as_raw(), peer.pid.as_raw_nonzero().get()))
}

/// The process at the other end; this system does not tell it in a way that is read here.
#[cfg(not(target_os = "linux"))]
fn peer(_: &std::os::unix::net::UnixStream) -> seats::Peer {
    None
}
