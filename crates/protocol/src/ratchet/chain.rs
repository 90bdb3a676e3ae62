//! Chain keys and message keys.

use stvor_crypto::Secret;
use stvor_crypto::kdf::{hkdf_sha256_unsalted, hmac_sha256, hmac_sha256_pair};

use crate::profile::active::{Aead, label};

/// The state of a chain: the keys of its messages from here on follow from it.
pub(crate) struct ChainKey(Secret<32>);

/// What one message's key follows from. This is what is stored for messages that have not come.
pub(crate) struct MessageSeed(Secret<32>);

impl ChainKey {
    pub(crate) fn new(key: Secret<32>) -> Self {
        Self(key)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The seed of the message at this place, and the chain after it.
    pub(crate) fn step(&self) -> (MessageSeed, Self) {
        let (seed, next) = hmac_sha256_pair(self.0.expose(), &[1], &[2]);
        (MessageSeed(seed), Self(next))
    }

    /// The chain one message on.
    pub(crate) fn next(&self) -> Self {
        Self(hmac_sha256(self.0.expose(), &[&[2]]))
    }
}

impl MessageSeed {
    pub(crate) fn new(seed: Secret<32>) -> Self {
        Self(seed)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// The key of the message, ready to seal or open.
    pub(crate) fn key(&self) -> Aead {
        Aead::new(&hkdf_sha256_unsalted(self.0.expose(), label::MESSAGE))
    }
}
