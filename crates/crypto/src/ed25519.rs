//! Ed25519 signatures (RFC 8032): of the X25519 suite, and for what other programs verify, transparency logs and their signed
//! notes.

use core::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use curve25519::edwards::CompressedEdwardsY;

use crate::random::Random;
use crate::{CryptoError, Secret};

/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;
/// Bytes of a seed, from which everything else of a private key follows.
pub const SEED_BYTES: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

/// A private key for signatures, with its public key. Signing the same message twice gives the same signature.
///
/// ```
/// use stvor_crypto::{Secret, ed25519::SigningKey};
/// let key = SigningKey::from_seed(&Secret::new([1; 32]))?;
/// let signature = key.sign(b"a checkpoint")?;
/// assert!(key.public().verify(b"a checkpoint", &signature).is_ok());
/// assert!(key.public().verify(b"another", &signature).is_err());
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct SigningKey {
    seed: Secret<SEED_BYTES>,
    key: Ed25519KeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A fresh key, all from `rng`.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, CryptoError> {
        Self::from_seed(&Secret::random(rng)?)
    }

    /// The key of a seed; every seed is one.
    ///
    /// # Errors
    /// [`CryptoError::Internal`] when the library fails.
    pub fn from_seed(seed: &Secret<SEED_BYTES>) -> Result<Self, CryptoError> {
        let key = Ed25519KeyPair::from_seed_unchecked(seed.expose())
            .map_err(|_| CryptoError::Internal("Ed25519 key set-up"))?;
        let public = PublicKey::from_bytes(key.public_key().as_ref())?;
        Ok(Self { seed: seed.duplicate(), key, public })
    }

    /// The seed, for storing the key.
    #[must_use]
    pub fn seed(&self) -> Secret<SEED_BYTES> {
        self.seed.duplicate()
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message`.
    ///
    /// # Errors
    /// [`CryptoError::Internal`] when the library fails.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], CryptoError> {
        let signature = self.key.try_sign(message).map_err(|_| CryptoError::Internal("Ed25519"))?;
        signature.as_ref().try_into().map_err(|_| CryptoError::Internal("Ed25519 signature"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// A public key: 32 bytes. Whether they are a point on the curve shows when a signature is verified.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// Takes 32 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for another length.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        bytes.try_into().map(Self).map_err(|_| CryptoError::BadKey)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }

    /// Whether these are the one encoding of a point in the group of prime order that is not the identity. Every key that
    /// was made honestly is so; under one of low order a signature can verify for any message.
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        let encoded = CompressedEdwardsY(self.0);
        encoded.decompress().is_some_and(|point| {
            point.compress() == encoded && !point.is_small_order() && point.is_torsion_free()
        })
    }

    /// Verifies a signature over `message`. Of the encodings of one signature only the canonical one verifies.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`], also for a signature of another length than 64 bytes and for a key that is not a
    /// point on the curve.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_| CryptoError::BadSignature)
    }
}

/// The first four bytes: enough to tell keys apart in a log.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_signatures_are_those_of_rfc_8032() {
        // Section 7.1, tests 1 and 2.
        for (seed, public, message, signature) in [
            (
                "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
                "",
                "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
            ),
            (
                "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
                "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
                "72",
                "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
            ),
        ] {
            let seed = Secret::from_slice(&hex::decode(seed).unwrap()).unwrap();
            let message = hex::decode(message).unwrap();
            let key = SigningKey::from_seed(&seed).unwrap();
            assert_eq!(hex::encode(key.public().as_bytes()), public);
            assert_eq!(hex::encode(key.sign(&message).unwrap()), signature);
        }
    }

    #[test]
    fn a_key_does_not_print_its_seed() {
        let key = SigningKey::from_seed(&Secret::new([0xab; 32])).unwrap();
        assert!(!format!("{key:?}").contains("abab"));
    }
}
