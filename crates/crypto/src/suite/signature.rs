//! Signatures.

use core::fmt;

use stvor_base::{KeyBytes, Suite};

use super::{PRIVATE_KEY_BYTES, SIGNATURE_BYTES};
use crate::random::{Random, require_health};
use crate::{CryptoError, Secret, ed25519, p256};

/// A private key for signatures, with its public key. Never the same as one for agreements.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_crypto::suite::{SigningKey, Suite, VerifyingKey};
/// for suite in Suite::ALL {
///     let key = SigningKey::generate(suite, &mut SystemRandom::new())?;
///     let signature = key.sign(b"STVOR example", b"message")?;
///     let public = VerifyingKey::from_bytes(&key.public())?;
///     assert!(public.verify(b"STVOR example", b"message", &signature).is_ok());
///     assert!(public.verify(b"STVOR other", b"message", &signature).is_err());
/// }
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct SigningKey(Private);

#[allow(clippy::large_enum_variant, reason = "made for a signature and dropped, or one a group")]
enum Private {
    P256(p256::SigningKey),
    X25519(ed25519::SigningKey),
}

/// A public key for signatures, validated when it was made.
#[derive(Clone, PartialEq, Eq)]
pub struct VerifyingKey(Public);

#[derive(Clone, PartialEq, Eq)]
enum Public {
    P256(p256::PublicKey),
    X25519(ed25519::PublicKey),
}

impl SigningKey {
    /// A fresh key, all from `rng`.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(suite: Suite, rng: &mut dyn Random) -> Result<Self, CryptoError> {
        Ok(Self(match suite {
            Suite::X25519 => Private::X25519(ed25519::SigningKey::generate(rng)?),
            _ => Private::P256(p256::SigningKey::generate(rng)?),
        }))
    }

    /// The key of 32 bytes: of P-256 a scalar, big-endian; of Ed25519 a seed, which may be any.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for a scalar out of range.
    pub fn from_bytes(suite: Suite, secret: &Secret<PRIVATE_KEY_BYTES>) -> Result<Self, CryptoError> {
        Ok(Self(match suite {
            Suite::X25519 => Private::X25519(ed25519::SigningKey::from_seed(secret)?),
            _ => Private::P256(p256::SigningKey::from_bytes(secret)?),
        }))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<PRIVATE_KEY_BYTES> {
        match &self.0 {
            Private::P256(key) => key.to_bytes(),
            Private::X25519(key) => key.seed(),
        }
    }

    /// The bytes of the public key, which was computed once.
    #[must_use]
    pub fn public(&self) -> KeyBytes {
        match &self.0 {
            Private::P256(key) => (*key.public().as_bytes()).into(),
            Private::X25519(key) => (*key.public().as_bytes()).into(),
        }
    }

    /// Signs `label || message`.
    ///
    /// # Errors
    /// [`CryptoError::RandomnessUnhealthy`] after a failed health test, [`CryptoError::Internal`].
    pub fn sign(&self, label: &[u8], message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], CryptoError> {
        match &self.0 {
            Private::P256(key) => key.sign(label, message).map(|signature| *signature.as_bytes()),
            Private::X25519(key) => {
                require_health()?;
                key.sign(&[label, message].concat())
            }
        }
    }

    /// [`SigningKey::sign`], but the same signature each time when `rng` is reproducible.
    ///
    /// # Errors
    /// As [`SigningKey::sign`], and what `rng` says.
    pub fn sign_with(
        &self,
        rng: &mut dyn Random,
        label: &[u8],
        message: &[u8],
    ) -> Result<[u8; SIGNATURE_BYTES], CryptoError> {
        match &self.0 {
            Private::P256(key) => key.sign_with(rng, label, message).map(|signature| *signature.as_bytes()),
            Private::X25519(key) => {
                rng.fill(&mut [])?;
                key.sign(&[label, message].concat())
            }
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl VerifyingKey {
    /// Takes a key.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for a point off the curve; of Ed25519 also for another encoding of a point, and for one
    /// outside the group of prime order.
    pub fn from_bytes(bytes: &KeyBytes) -> Result<Self, CryptoError> {
        if bytes.suite() == Suite::X25519 {
            let key = ed25519::PublicKey::from_bytes(bytes)?;
            return if key.is_canonical() { Ok(Self(Public::X25519(key))) } else { Err(CryptoError::BadKey) };
        }
        p256::PublicKey::from_bytes(bytes).map(|key| Self(Public::P256(key)))
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> KeyBytes {
        match &self.0 {
            Public::P256(key) => (*key.as_bytes()).into(),
            Public::X25519(key) => (*key.as_bytes()).into(),
        }
    }

    /// Verifies a signature over `label || message`.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`], also for one that is not in its one accepted form.
    pub fn verify(&self, label: &[u8], message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        match &self.0 {
            Public::P256(key) => key.verify(label, message, &p256::Signature::from_bytes(signature)?),
            Public::X25519(key) => key.verify(&[label, message].concat(), signature),
        }
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_low_order_and_other_encodings_are_no_key() {
        for point in [
            // The eight points of low order.
            "0100000000000000000000000000000000000000000000000000000000000000",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
            // Not reduced: the identity and y = 0 once more, and a sign where there is none.
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "0100000000000000000000000000000000000000000000000000000000000080",
        ] {
            let bytes = KeyBytes::try_from(&hex::decode(point).unwrap()[..]).unwrap();
            assert_eq!(VerifyingKey::from_bytes(&bytes).err(), Some(CryptoError::BadKey), "{point}");
        }
    }

    #[test]
    fn a_signature_of_one_suite_does_not_verify_under_a_key_of_the_other() {
        let keys = Suite::ALL.map(|suite| SigningKey::from_bytes(suite, &Secret::new([7; 32])).unwrap());
        for signer in &keys {
            let signature = signer.sign(b"label", b"message").unwrap();
            for key in &keys {
                let verified = VerifyingKey::from_bytes(&key.public()).unwrap();
                let same = signer.public() == key.public();
                assert_eq!(verified.verify(b"label", b"message", &signature).is_ok(), same);
            }
        }
    }
}
