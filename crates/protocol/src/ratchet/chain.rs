//! Chain keys and message keys.

use stvor_crypto::Secret;
use stvor_crypto::kdf::{hkdf_sha256, hkdf_sha256_unsalted, hmac_sha256, hmac_sha256_pair};
use stvor_crypto::suite::Aead;

use crate::profile::Profile;

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
        #[cfg(test)]
        crate::signal::work::step();
        let (seed, next) = hmac_sha256_pair(self.0.expose(), &[1], &[2]);
        (MessageSeed(seed), Self(next))
    }

    /// The chain one message on.
    pub(crate) fn next(&self) -> Self {
        #[cfg(test)]
        crate::signal::work::step();
        Self(hmac_sha256(self.0.expose(), &[&[2]]))
    }

    /// The seed `ahead` messages on, and the chain after it. The caller has bounded `ahead`.
    pub(crate) fn ahead(&self, ahead: u32) -> (MessageSeed, Self) {
        if ahead == 0 {
            return self.step();
        }
        let mut at = self.next();
        for _ in 1..ahead {
            at = at.next();
        }
        at.step()
    }

    /// Hands over the seeds of the next `count` messages, in order, and gives the chain after them. The caller has
    /// bounded `count`.
    pub(crate) fn pass(&self, count: u32, mut keep: impl FnMut(MessageSeed)) -> Self {
        let mut at = Self(self.0.duplicate());
        for _ in 0..count {
            let (seed, next) = at.step();
            keep(seed);
            at = next;
        }
        at
    }
}

/// A step of the root chain: the next root and the key of the chain that begins, 32 bytes each.
pub(crate) fn turn(root: &[u8], secret: &Secret<32>, label: &[u8]) -> Secret<64> {
    hkdf_sha256(root, secret.expose(), label)
}

impl MessageSeed {
    pub(crate) fn new(seed: Secret<32>) -> Self {
        Self(seed)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// A second copy, on purpose.
    pub(crate) fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }

    /// The key of the message, ready to seal or open.
    pub(crate) fn key(&self, profile: &Profile) -> Aead {
        Aead::new(profile.suite, &hkdf_sha256_unsalted(self.0.expose(), profile.label.message))
    }

    /// The key of a group message, ready to seal or open.
    pub(crate) fn group_key(&self, profile: &Profile) -> Aead {
        Aead::new(profile.suite, &hkdf_sha256_unsalted(self.0.expose(), profile.label.group_message))
    }
}
