//! ML-KEM-768 (FIPS 203).
//!
//! A private key is stored as its 64-byte seed (d, z), the form that FIPS 203 prefers and 37 times smaller than the
//! expanded one; expanding it again costs one key generation. RustCrypto expands seeds (aws-lc's safe interface does not);
//! aws-lc encapsulates and decapsulates. Both agree in tests. The check of a public key is a comparison, and is made here:
//! either library would expand the key's matrix for it.

use core::fmt;

use aws_lc_rs::kem::{self as library, ML_KEM_768};
#[allow(deprecated)] // The expanded form is how aws-lc takes a key; it is never stored.
use ml_kem::ExpandedKeyEncoding;
use ml_kem::KeyExport;
use zeroize::Zeroize;

use crate::random::{Random, require_health};
use crate::{CryptoError, Secret};

/// Bytes of a stored private key.
pub const SEED_BYTES: usize = 64;
/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 1184;
/// Bytes of a ciphertext.
pub const CIPHERTEXT_BYTES: usize = 1088;

/// Bytes of a public key that hold coefficients; the rest is a seed.
const COEFFICIENT_BYTES: usize = 1152;
/// The modulus of ML-KEM.
const Q: u16 = 3329;

type TwinPrivate = ml_kem::DecapsulationKey<ml_kem::MlKem768>;
type TwinPublic = ml_kem::EncapsulationKey<ml_kem::MlKem768>;

/// A private key.
///
/// ```
/// use stvor_crypto::{SystemRandom, kem::DecapsulationKey};
/// let mut rng = SystemRandom::new();
/// let key = DecapsulationKey::generate(&mut rng)?;
/// let (ciphertext, secret) = key.public().encapsulate(&mut rng)?;
/// assert_eq!(key.decapsulate(&ciphertext)?, secret);
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct DecapsulationKey {
    seed: Secret<SEED_BYTES>,
    twin: TwinPrivate,
    public: EncapsulationKey,
}

impl DecapsulationKey {
    /// A fresh key, all from `rng`.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, CryptoError> {
        Self::from_bytes(&Secret::random(rng)?)
    }

    /// The key of a seed (d, z).
    ///
    /// # Errors
    /// None: every seed is a key.
    pub fn from_bytes(seed: &Secret<SEED_BYTES>) -> Result<Self, CryptoError> {
        let twin = TwinPrivate::from_seed((*seed.expose()).into());
        let public = EncapsulationKey(Box::new(twin.encapsulation_key().to_bytes().into()));
        Ok(Self { seed: seed.duplicate(), twin, public })
    }

    /// The seed, 64 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<SEED_BYTES> {
        self.seed.duplicate()
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &EncapsulationKey {
        &self.public
    }

    /// The shared secret of a ciphertext. A ciphertext that was made for another key or changed gives another secret, not
    /// an error (implicit rejection).
    ///
    /// # Errors
    /// [`CryptoError::Internal`] when the library fails.
    pub fn decapsulate(&self, ciphertext: &Ciphertext) -> Result<Secret<32>, CryptoError> {
        #[allow(deprecated)]
        let mut expanded = self.twin.to_expanded_bytes();
        let key = library::DecapsulationKey::new(&ML_KEM_768, &expanded);
        expanded.as_mut_slice().zeroize();
        let secret = key
            .map_err(|_| CryptoError::Internal("ML-KEM key"))?
            .decapsulate(ciphertext.0.as_slice().into())
            .map_err(|_| CryptoError::Internal("ML-KEM decapsulation"))?;
        Secret::from_slice(secret.as_ref())
    }
}

impl fmt::Debug for DecapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecapsulationKey").field("public", &self.public).finish_non_exhaustive()
    }
}

/// A public key, validated when it was made (FIPS 203, 7.2).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct EncapsulationKey(Box<[u8; PUBLIC_KEY_BYTES]>);

impl EncapsulationKey {
    /// Parses 1,184 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for another length, or a coefficient that is not reduced.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let bytes: Box<[u8; PUBLIC_KEY_BYTES]> =
            Box::<[u8]>::from(bytes).try_into().map_err(|_| CryptoError::BadKey)?;
        let reduced = |three: &[u8; 3]| {
            let [low, middle, high] = three.map(u16::from);
            (low | (middle & 15) << 8) < Q && (middle >> 4 | high << 4) < Q
        };
        let (coefficients, _) = bytes[..COEFFICIENT_BYTES].as_chunks::<3>();
        if coefficients.iter().all(reduced) { Ok(Self(bytes)) } else { Err(CryptoError::BadKey) }
    }

    /// The 1,184 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }

    /// A fresh shared secret, and the ciphertext that carries it. aws-lc draws its own randomness, unless `rng` is
    /// reproducible: then 32 bytes of `rng` decide.
    ///
    /// # Errors
    /// What `rng` says, [`CryptoError::RandomnessUnhealthy`], [`CryptoError::Internal`].
    pub fn encapsulate(&self, rng: &mut dyn Random) -> Result<(Ciphertext, Secret<32>), CryptoError> {
        rng.fill(&mut [])?;
        if rng.deterministic() {
            return self.encapsulate_deterministic(&Secret::random(rng)?);
        }
        require_health()?;
        let failed = |_| CryptoError::Internal("ML-KEM encapsulation");
        let key = library::EncapsulationKey::new(&ML_KEM_768, self.0.as_slice())
            .map_err(|_| CryptoError::BadKey)?;
        let (ciphertext, secret) = key.encapsulate().map_err(failed)?;
        Ok((Ciphertext::from_bytes(ciphertext.as_ref())?, Secret::from_slice(secret.as_ref())?))
    }

    /// The ciphertext and shared secret that follow from `message` (m of FIPS 203). For vectors.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] never for a validated key.
    pub fn encapsulate_deterministic(
        &self,
        message: &Secret<32>,
    ) -> Result<(Ciphertext, Secret<32>), CryptoError> {
        let twin = TwinPublic::new(&(*self.0).into()).map_err(|_| CryptoError::BadKey)?;
        let (ciphertext, secret) = twin.encapsulate_deterministic(&(*message.expose()).into());
        Ok((Ciphertext::from_bytes(&ciphertext)?, Secret::new(secret.into())))
    }
}

impl TryFrom<&[u8]> for EncapsulationKey {
    type Error = CryptoError;

    fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for EncapsulationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = *self.0;
        write!(f, "EncapsulationKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// What carries a shared secret to the holder of the private key.
#[derive(Clone, PartialEq, Eq)]
pub struct Ciphertext(Box<[u8; CIPHERTEXT_BYTES]>);

impl Ciphertext {
    /// Takes 1,088 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadLength`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        match Box::try_from(bytes.to_vec()) {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(CryptoError::BadLength { expected: CIPHERTEXT_BYTES, got: bytes.len() }),
        }
    }

    /// The 1,088 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; CIPHERTEXT_BYTES] {
        &self.0
    }
}

impl TryFrom<&[u8]> for Ciphertext {
    type Error = CryptoError;

    fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ciphertext(1088 bytes)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::DeterministicRandom;

    /// Writes a coefficient where FIPS 203 (algorithm 5) has it.
    fn with_coefficient(key: &EncapsulationKey, index: usize, value: u16) -> Vec<u8> {
        let mut bytes = key.as_bytes().to_vec();
        let three = &mut bytes[index / 2 * 3..][..3];
        let [low, high] = value.to_le_bytes();
        if index.is_multiple_of(2) {
            (three[0], three[1]) = (low, three[1] & 0xf0 | high);
        } else {
            (three[1], three[2]) = (three[1] & 0x0f | low << 4, high << 4 | low >> 4);
        }
        bytes
    }

    #[test]
    fn every_coefficient_may_be_one_less_than_the_modulus_and_no_more_as_the_library_says() {
        let key = DecapsulationKey::generate(&mut DeterministicRandom::from_label("kem")).unwrap();
        for index in 0..768 {
            for value in [0, 1, 255, 256, Q - 1, Q, Q + 1, 4095] {
                let bytes = with_coefficient(key.public(), index, value);
                let ours = EncapsulationKey::from_bytes(&bytes);
                assert_eq!(ours.is_ok(), value < Q, "{index} {value}");
                if index % 96 < 2 {
                    let theirs = TwinPublic::new(bytes.as_slice().try_into().unwrap());
                    assert_eq!(ours.is_ok(), theirs.is_ok(), "{index} {value}");
                    assert_eq!(
                        ours.ok().map(|key| *key.as_bytes()),
                        theirs.ok().map(|key| key.to_bytes().into())
                    );
                }
            }
        }
    }

    #[test]
    fn a_public_key_of_another_length_is_refused() {
        let key = DecapsulationKey::generate(&mut DeterministicRandom::from_label("kem")).unwrap();
        let bytes = key.public().as_bytes();
        assert!(EncapsulationKey::from_bytes(bytes).is_ok());
        assert_eq!(EncapsulationKey::from_bytes(&bytes[1..]), Err(CryptoError::BadKey));
        assert_eq!(EncapsulationKey::from_bytes(&[&bytes[..], &[0]].concat()), Err(CryptoError::BadKey));
    }
}
