//! Identities that follow from a secret which a person keeps: a phrase of 24 words, or a passphrase.
//!
//! See "Recovery" in the specification. Only the long-lived keys follow; sessions and prekeys are always fresh.

use stvor_base::codec::Writer;
use stvor_base::{AppId, DeviceId, UserId};
use stvor_crypto::kdf::{Argon2Params, argon2id, hkdf_sha256, sha256};
use stvor_crypto::suite::SigningKey;
use stvor_crypto::{Secret, SecretBytes};

use crate::error::ProtocolError;
use crate::profile::{self, Suite};

/// What one guess at a phrase costs. Nobody guesses 256 bits; this is against phrases of a broken generator.
const PHRASE_COST: Argon2Params = Argon2Params { memory_kib: 64 * 1_024, iterations: 3, parallelism: 1 };

/// What one guess at a passphrase costs: everybody who knows the public key can guess, for ever.
const PASSPHRASE_COST: Argon2Params = Argon2Params { memory_kib: 256 * 1_024, iterations: 4, parallelism: 1 };

/// What a person keeps.
#[derive(Debug, Clone, Copy)]
pub enum RecoverySecret<'a> {
    /// The 256 bits of a phrase of 24 words.
    Phrase(&'a Secret<32>),
    /// A passphrase. The caller sees to it that it is long enough ([`MIN_PASSPHRASE`] bytes).
    Passphrase(&'a SecretBytes),
}

/// Bytes of a passphrase that stands for an identity, at least.
pub const MIN_PASSPHRASE: usize = 16;

/// What the keys of one user of one app follow from. As secret as the keys.
#[derive(Debug)]
pub struct RecoveryRoot {
    suite: Suite,
    root: Secret<32>,
}

impl RecoveryRoot {
    /// Stretches a secret for one user of one app: the same person elsewhere, or in
    /// another suite, has other keys. Slow on purpose (up to some
    /// seconds and 256 MiB): keep it off an asynchronous executor.
    ///
    /// # Errors
    /// [`ProtocolError::Crypto`] when there is not enough memory.
    pub fn stretch(
        suite: Suite,
        secret: RecoverySecret<'_>,
        app: &AppId,
        user: &UserId,
    ) -> Result<Self, ProtocolError> {
        let mut names = Writer::new();
        names.bytes(app.as_str().as_bytes()).bytes(user.as_str().as_bytes());
        let hash = sha256(&[profile::of(suite).label.recovery_salt, names.as_slice()]);
        let salt = hash.get(..16).unwrap_or_default();
        let (kind, bytes, cost) = match secret {
            RecoverySecret::Phrase(entropy) => (1_u8, &entropy.expose()[..], PHRASE_COST),
            RecoverySecret::Passphrase(text) => (2, text.expose(), PASSPHRASE_COST),
        };
        let mut input = SecretBytes::from(vec![0; bytes.len() + 1]);
        if let Some((first, rest)) = input.expose_mut().split_first_mut() {
            *first = kind;
            rest.copy_from_slice(bytes);
        }
        Ok(Self { suite, root: argon2id(input.expose(), salt, cost)? })
    }

    /// The suite of the keys.
    pub(crate) const fn suite(&self) -> Suite {
        self.suite
    }

    /// The scalars of user key, signing key and agreement key.
    pub(crate) fn scalars(&self, device: DeviceId) -> Result<[Secret<32>; 3], ProtocolError> {
        Ok([self.scalar(1, device)?, self.scalar(2, device)?, self.scalar(3, device)?])
    }

    fn scalar(&self, purpose: u8, device: DeviceId) -> Result<Secret<32>, ProtocolError> {
        let mut refused = None;
        for counter in 0..=u8::MAX {
            let mut info = Writer::new();
            info.raw(profile::of(self.suite).label.recovered_key).u8(purpose).u32(device.get()).u8(counter);
            let scalar = hkdf_sha256::<32>(b"", self.root.expose(), info.as_slice());
            // Of P-256 one in 2^32 is above the order of the group: the next counter then.
            match SigningKey::from_bytes(self.suite, &scalar) {
                Ok(_) => return Ok(scalar),
                Err(error) => refused = Some(error),
            }
        }
        Err(refused.unwrap_or(stvor_crypto::CryptoError::BadKey).into())
    }
}
