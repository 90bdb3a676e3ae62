//! What a device signs to log in.
//!
//! The device signing key signs [`stvor_base::devices::login_label`] followed by the transcript. The client puts in the
//! origin which it dialled, never one that the relay names, so that a relay can not pass its challenge on to another.

use stvor_base::codec::Writer;
use stvor_base::{Address, AppId, Timestamp};

pub use stvor_base::devices::login_label;

use crate::limits::NONCE_BYTES;

/// Everything that a log-in signature binds.
#[derive(Debug, Clone, Copy)]
pub struct Transcript<'a> {
    /// The app of the challenge.
    pub app: &'a AppId,
    /// The origin that the client dialled, in canonical form (see [`crate::url`]).
    pub origin: &'a str,
    /// The challenge's nonce.
    pub nonce: &'a [u8; NONCE_BYTES],
    /// Who logs in.
    pub address: &'a Address,
    /// The challenge's server time.
    pub time: Timestamp,
    /// The challenge's server version.
    pub server_version: &'a str,
}

impl Transcript<'_> {
    /// The bytes that follow [`login_label`] under the signature: version 1, then app, origin, nonce, address, time
    /// (u64 BE, milliseconds) and server version; texts are length-prefixed (u32 BE).
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(1).bytes(self.app.as_str().as_bytes()).bytes(self.origin.as_bytes()).raw(self.nonce);
        self.address.encode(&mut out);
        out.u64(self.time.as_millis()).bytes(self.server_version.as_bytes());
        out.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use stvor_base::{DeviceId, UserId};

    use super::*;

    #[test]
    fn every_field_changes_the_transcript() {
        let (app, other) = (AppId::new("app").unwrap(), AppId::new("other").unwrap());
        let address = |name, id| Address::new(UserId::new(name).unwrap(), DeviceId::new(id).unwrap());
        let (alice, bob, second) = (address("alice", 1), address("bob", 1), address("alice", 2));
        let base = Transcript {
            app: &app,
            origin: "wss://a.example",
            nonce: &[1; 32],
            address: &alice,
            time: Timestamp::from_millis(5),
            server_version: "3.6.0",
        };
        let all = [
            base.encode(),
            Transcript { app: &other, ..base }.encode(),
            Transcript { origin: "wss://b.example", ..base }.encode(),
            Transcript { nonce: &[2; 32], ..base }.encode(),
            Transcript { address: &bob, ..base }.encode(),
            Transcript { address: &second, ..base }.encode(),
            Transcript { time: Timestamp::from_millis(6), ..base }.encode(),
            Transcript { server_version: "3.6.1", ..base }.encode(),
        ];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}
