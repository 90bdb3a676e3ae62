//! Key agreement.

use core::fmt;

use stvor_base::{KeyBytes, Suite};

use super::PRIVATE_KEY_BYTES;
use crate::random::Random;
use crate::{CryptoError, Secret, p256, x25519};

/// A private key for agreements, with its public key.
///
/// ```
/// use stvor_crypto::SystemRandom;
/// use stvor_crypto::suite::{AgreementKey, PublicKey, Suite};
/// let rng = &mut SystemRandom::new();
/// for suite in Suite::ALL {
///     let (alice, bob) = (AgreementKey::generate(suite, rng)?, AgreementKey::generate(suite, rng)?);
///     let to_bob = PublicKey::from_bytes(&bob.public())?;
///     assert_eq!(alice.agree(&to_bob)?, bob.agree(&PublicKey::from_bytes(&alice.public())?)?);
/// }
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct AgreementKey(Private);

// Sessions keep a key or none: the larger variant costs what a pointer to it would.
#[allow(clippy::large_enum_variant, reason = "a box would cost an allocation at each turn of a ratchet")]
enum Private {
    P256(p256::AgreementKey),
    X25519(x25519::AgreementKey),
}

/// A public key for agreements, validated when it was made.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(Public);

#[derive(Clone, PartialEq, Eq)]
enum Public {
    P256(p256::PublicKey),
    X25519(x25519::PublicKey),
}

impl AgreementKey {
    /// A fresh key. Where the scalar comes from is for the suite's primitive to say
    /// ([`p256::AgreementKey::generate`], [`x25519::AgreementKey::generate`]).
    ///
    /// # Errors
    /// What `rng` says, [`CryptoError::RandomnessUnhealthy`] after a failed health test, [`CryptoError::Internal`].
    pub fn generate(suite: Suite, rng: &mut dyn Random) -> Result<Self, CryptoError> {
        Ok(Self(match suite {
            Suite::X25519 => Private::X25519(x25519::AgreementKey::generate(rng)?),
            _ => Private::P256(p256::AgreementKey::generate(rng)?),
        }))
    }

    /// The key of 32 bytes: of P-256 a scalar, big-endian; of X25519 any.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for a scalar out of range.
    pub fn from_bytes(suite: Suite, secret: &Secret<PRIVATE_KEY_BYTES>) -> Result<Self, CryptoError> {
        Ok(Self(match suite {
            Suite::X25519 => Private::X25519(x25519::AgreementKey::from_bytes(secret)?),
            _ => Private::P256(p256::AgreementKey::from_bytes(secret)?),
        }))
    }

    /// The 32 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<PRIVATE_KEY_BYTES> {
        match &self.0 {
            Private::P256(key) => key.to_bytes(),
            Private::X25519(key) => key.private().duplicate(),
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

    /// The shared secret.
    ///
    /// # Errors
    /// [`CryptoError::AgreementFailed`] when it is all zero, [`CryptoError::BadKey`] when the other key is of another suite.
    pub fn agree(&self, peer: &PublicKey) -> Result<Secret<32>, CryptoError> {
        match (&self.0, &peer.0) {
            (Private::P256(own), Public::P256(peer)) => own.agree(peer),
            (Private::X25519(own), Public::X25519(peer)) => own.agree(peer),
            _ => Err(CryptoError::BadKey),
        }
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgreementKey").field("public", &self.public()).finish_non_exhaustive()
    }
}

impl PublicKey {
    /// Takes a key for one agreement, which refuses what gives no secret.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for a point off the curve, and for a coordinate that is not reduced.
    pub fn from_bytes(bytes: &KeyBytes) -> Result<Self, CryptoError> {
        if bytes.suite() == Suite::X25519 {
            let key = x25519::PublicKey::from_slice(bytes)?;
            return if key.is_reduced() { Ok(Self(Public::X25519(key))) } else { Err(CryptoError::BadKey) };
        }
        p256::PublicKey::from_bytes(bytes).map(|key| Self(Public::P256(key)))
    }

    /// Takes a key that stands for somebody. For X25519 about the cost of an agreement.
    ///
    /// # Errors
    /// As [`PublicKey::from_bytes`], also for a point outside the group of prime order, which has twins that agree on the
    /// same secrets, and for one of low order, which agrees on none.
    pub fn identity_from_bytes(bytes: &KeyBytes) -> Result<Self, CryptoError> {
        let key = Self::from_bytes(bytes)?;
        match &key.0 {
            Public::X25519(point) if !point.is_canonical() => Err(CryptoError::BadKey),
            _ => Ok(key),
        }
    }

    /// The bytes.
    #[must_use]
    pub fn to_bytes(&self) -> KeyBytes {
        match &self.0 {
            Public::P256(key) => (*key.as_bytes()).into(),
            Public::X25519(key) => (*key.as_bytes()).into(),
        }
    }

    /// The suite.
    #[must_use]
    pub const fn suite(&self) -> Suite {
        match &self.0 {
            Public::P256(_) => Suite::P256,
            Public::X25519(_) => Suite::X25519,
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn x25519(hex: &str) -> KeyBytes {
        KeyBytes::try_from(&hex::decode(hex).unwrap()[..]).unwrap()
    }

    #[test]
    fn points_of_low_order_and_coordinates_that_are_not_reduced_are_no_identity() {
        for (point, reduced) in [
            // Orders 4 (twice in the other form), 1, 8, 8, and 2 below; then what is not below the modulus.
            ("0000000000000000000000000000000000000000000000000000000000000000", true),
            ("0100000000000000000000000000000000000000000000000000000000000000", true),
            ("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800", true),
            ("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157", true),
            ("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", true),
            ("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", false),
            ("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", false),
            ("ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", false),
            ("0900000000000000000000000000000000000000000000000000000000000080", false),
        ] {
            let bytes = x25519(point);
            assert!(PublicKey::identity_from_bytes(&bytes).is_err(), "{point}");
            assert_eq!(PublicKey::from_bytes(&bytes).is_ok(), reduced, "{point}");
            if let Ok(key) = PublicKey::from_bytes(&bytes) {
                let own = AgreementKey::from_bytes(Suite::X25519, &Secret::new([7; 32])).unwrap();
                assert_eq!(own.agree(&key).err(), Some(CryptoError::AgreementFailed), "{point}");
            }
        }
        let own = AgreementKey::from_bytes(Suite::X25519, &Secret::new([7; 32])).unwrap();
        assert!(PublicKey::identity_from_bytes(&own.public()).is_ok());
    }

    #[test]
    fn keys_of_two_suites_do_not_agree() {
        let [p256, x25519] = [Suite::P256, Suite::X25519]
            .map(|suite| AgreementKey::from_bytes(suite, &Secret::new([7; 32])).unwrap());
        let of = |key: &AgreementKey| PublicKey::from_bytes(&key.public()).unwrap();
        assert_eq!(p256.agree(&of(&x25519)).err(), Some(CryptoError::BadKey));
        assert_eq!(x25519.agree(&of(&p256)).err(), Some(CryptoError::BadKey));
    }

    #[test]
    fn agreements_are_those_of_rfc_7748() {
        // Section 5.2, the iterated test: the secret becomes the next scalar, the scalar the next coordinate.
        let (mut scalar, mut point) = (Secret::new([0; 32]), [0; 32]);
        (scalar.expose_mut()[0], point[0]) = (9, 9);
        for round in 1..=1_000 {
            let own = AgreementKey::from_bytes(Suite::X25519, &scalar).unwrap();
            let secret = own.agree(&PublicKey::from_bytes(&point.into()).unwrap()).unwrap();
            point = *scalar.expose();
            scalar = secret;
            let published = match round {
                1 => "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079",
                1_000 => "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51",
                _ => continue,
            };
            assert_eq!(hex::encode(scalar.expose()), published);
        }
    }
}
