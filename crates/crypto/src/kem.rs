//! ML-KEM-768 (FIPS 203).
//!
//! A private key is stored as its 64-byte seed (d, z), the form that FIPS 203 prefers and 37 times smaller than the
//! expanded one; expanding it again costs one key generation. RustCrypto expands seeds and validates public keys (aws-lc's safe
//! interface does neither); aws-lc encapsulates and decapsulates. Both agree in tests.

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
    key: library::DecapsulationKey,
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
    /// [`CryptoError::Internal`] when the library fails; every seed is a key.
    pub fn from_bytes(seed: &Secret<SEED_BYTES>) -> Result<Self, CryptoError> {
        let twin = TwinPrivate::from_seed((*seed.expose()).into());
        let public = EncapsulationKey::of(twin.encapsulation_key());
        #[allow(deprecated)]
        let mut expanded = twin.to_expanded_bytes();
        let key = library::DecapsulationKey::new(&ML_KEM_768, &expanded);
        expanded.as_mut_slice().zeroize();
        let key = key.map_err(|_| CryptoError::Internal("ML-KEM key"))?;
        Ok(Self { seed: seed.duplicate(), key, public })
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
        let secret = self
            .key
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
        let twin = Self::twin(bytes)?;
        Ok(Self::of(&twin))
    }

    fn of(twin: &TwinPublic) -> Self {
        Self(Box::new(twin.to_bytes().into()))
    }

    fn twin(bytes: &[u8]) -> Result<TwinPublic, CryptoError> {
        let bytes = bytes.try_into().map_err(|_| CryptoError::BadKey)?;
        TwinPublic::new(bytes).map_err(|_| CryptoError::BadKey)
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
        let (ciphertext, secret) =
            Self::twin(self.0.as_slice())?.encapsulate_deterministic(&(*message.expose()).into());
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
