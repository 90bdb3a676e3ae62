//! How things of a vault are shown.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stvor_base::Timestamp;
use stvor_crypto::ed25519::PublicKey;
use stvor_vault::{Header, Memory, Mode, State, Trust};

use crate::failure::{Failure, Result};
use crate::render::{FAINT, paint, rfc3339, safe, table};

/// The daemon's answer, as what it is.
pub(super) fn parsed<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|_| not_understood())
}

/// An answer of the daemon that is none.
pub(super) fn not_understood() -> Failure {
    Failure::Coded {
        code: "VAULT_BAD_REQUEST",
        message:
            "the daemon's answer is not understood: is it of another version? Restart `stvor vault serve`"
                .into(),
        retryable: false,
    }
}

/// The name of a state of the vault.
pub(super) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Cold => "cold: no key is held; every request is refused",
        Mode::Locked => "locked: levels 0 and 1 can be read, every level can be written",
        Mode::Open => "open",
    }
}

/// Whether the daemon's memory may come into the swap.
pub(super) fn memory(memory: Memory) -> &'static str {
    match memory {
        Memory::Locked => "locked: nothing of it comes into the swap",
        Memory::Unswapped => "in a control group without swap",
        Memory::Exposed => "not locked: it may come into the swap",
    }
}

/// A public key of Ed25519: the first line of a file, in base64.
pub(super) fn public_key(file: &Path) -> Result<PublicKey> {
    let text = crate::secrets::first_line(file, "the boundary daemon's public key")?;
    let malformed = || Failure::Config(format!("{} is not a public key in base64", file.display()));
    let bytes = STANDARD.decode(text.expose()).map_err(|_| malformed())?;
    let bytes: [u8; 32] = bytes.try_into().map_err(|_| malformed())?;
    PublicKey::from_bytes(&bytes).map_err(|_| malformed())
}

fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::Untrusted => "untrusted",
        Trust::Agent => "agent",
        Trust::Owner => "owner",
    }
}

/// The name of a memory's state; a live one needs none.
pub(super) fn state(state: State) -> &'static str {
    match state {
        State::Live => "",
        State::Superseded => "superseded",
        State::Tombstoned => "tombstoned",
        State::Forgotten => "forgotten",
        State::Expired => "expired",
    }
}

/// Memories as a table, with their namespaces where these are not all the same.
pub(super) fn headers(headers: &[Header], namespaces: bool) -> String {
    let mut lines = if namespaces {
        table(["id", "level", "stored", "by", "trust", "bytes", "about", "state", "namespace"])
    } else {
        table(["id", "level", "stored", "by", "trust", "bytes", "about", "state"])
    };
    let shown =
        |cells: [String; 9]| cells.into_iter().take(if namespaces { 9 } else { 8 }).collect::<Vec<_>>();
    for header in headers {
        let about: Vec<String> =
            header.metadata.iter().map(|(key, value)| format!("{}={}", safe(key), safe(value))).collect();
        // Of one that is closed to who asked nothing else is told.
        let known = |text: String| if header.closed { "-".to_owned() } else { text };
        lines.add_row(shown([
            header.id.to_string(),
            header.level.to_string(),
            known(rfc3339(Timestamp::from_millis(header.created))),
            known(safe(&header.creator)),
            known(trust(header.trust).to_owned()),
            known(header.length.to_string()),
            about.join(" ").replace('\n', " "),
            paint(FAINT, state(header.state)),
            safe(&header.namespace),
        ]));
    }
    crate::render::rows(&lines)
}
