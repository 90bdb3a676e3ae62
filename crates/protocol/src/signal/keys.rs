//! Key pairs. A public key is 33 bytes on the wire: the byte 05, then the u coordinate.

use core::fmt;

use stvor_crypto::random::Random;
use stvor_crypto::x25519::{self, AgreementKey};
use stvor_crypto::xeddsa::{self, SIGNATURE_BYTES, SigningKey};
use stvor_crypto::{CryptoError, Secret};

use super::SignalError;

/// Bytes of a public key with its type byte.
pub const PUBLIC_KEY: usize = 33;
/// What a public key begins with: the curve.
pub const CURVE: u8 = 5;
/// The largest registration id that is made; they have 14 bits.
pub const MAX_REGISTRATION_ID: u32 = 0x3fff;

/// A public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub(super) x25519::PublicKey);

impl PublicKey {
    /// Takes 33 bytes of which the first is 05.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        match bytes.split_first() {
            Some((&CURVE, key)) => x25519::PublicKey::from_slice(key).map(Self),
            _ => Err(CryptoError::BadKey),
        }
    }

    /// The 33 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; PUBLIC_KEY] {
        let mut out = [CURVE; PUBLIC_KEY];
        out[1..].copy_from_slice(self.0.as_bytes());
        out
    }

    /// Verifies a signature (XEdDSA) of `message`: 64 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        xeddsa::verify(&self.0, message, signature)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key pair: of an identity, a prekey, or a step of a ratchet. One key agrees and signs, as this protocol has it.
pub struct KeyPair(pub(super) AgreementKey);

impl KeyPair {
    /// A fresh one.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, SignalError> {
        Ok(Self(AgreementKey::generate(rng)?))
    }

    /// The pair of a private key.
    ///
    /// # Errors
    /// [`CryptoError::Internal`].
    pub fn from_private(private: &Secret<32>) -> Result<Self, SignalError> {
        Ok(Self(AgreementKey::from_bytes(private)?))
    }

    /// A pair that was stored in two halves, taken as it is.
    #[must_use]
    pub fn from_parts(private: Secret<32>, public: PublicKey) -> Self {
        Self(AgreementKey::from_parts(private, public.0))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.public())
    }

    /// The private half.
    #[must_use]
    pub fn private(&self) -> &Secret<32> {
        self.0.private()
    }

    /// A second copy, on purpose.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(self.0.duplicate())
    }

    /// The secret shared with the owner of `peer`.
    ///
    /// # Errors
    /// [`CryptoError::AgreementFailed`] for a key of low order.
    pub fn agree(&self, peer: &PublicKey) -> Result<Secret<32>, CryptoError> {
        #[cfg(test)]
        super::work::agreement();
        self.0.agree(&peer.0)
    }

    /// Signs `message` (XEdDSA).
    ///
    /// # Errors
    /// What `rng` says.
    pub fn sign(&self, message: &[u8], rng: &mut dyn Random) -> Result<[u8; SIGNATURE_BYTES], SignalError> {
        Ok(SigningKey::new(self.0.private()).sign(message, rng)?)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", self.0.public()).finish_non_exhaustive()
    }
}

/// A fresh registration id: 1 to 16,380, as Signal's libraries draw it.
///
/// # Errors
/// What `rng` says.
pub fn registration_id(rng: &mut dyn Random) -> Result<u32, SignalError> {
    loop {
        let mut bytes = [0; 2];
        rng.fill(&mut bytes)?;
        let id = u32::from(u16::from_be_bytes(bytes)) & MAX_REGISTRATION_ID;
        if (1..=16_380).contains(&id) {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stvor_crypto::random::DeterministicRandom;

    #[test]
    fn only_33_bytes_of_this_curve_are_a_key() {
        let mut bytes = [7; 33];
        bytes[0] = 5;
        assert_eq!(PublicKey::from_bytes(&bytes).unwrap().to_bytes(), bytes);
        for bad in [&bytes[..32], &bytes[1..], &[bytes.as_slice(), &[0]].concat(), &[6; 33], &[]] {
            assert_eq!(PublicKey::from_bytes(bad), Err(CryptoError::BadKey));
        }
    }

    #[test]
    fn registration_ids_have_fourteen_bits_and_are_not_zero() {
        let rng = &mut DeterministicRandom::from_label("registration");
        for _ in 0..10_000 {
            let id = registration_id(rng).unwrap();
            assert!((1..=16_380).contains(&id), "{id}");
        }
    }

    #[test]
    fn a_pair_prints_no_private_half() {
        let pair = KeyPair::from_private(&Secret::new([0xab; 32])).unwrap();
        assert!(!format!("{pair:?}").contains("abab"));
    }
}
