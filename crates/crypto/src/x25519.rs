//! Key agreement on Curve25519 (RFC 7748).

use core::fmt;

use aws_lc_rs::agreement::{PrivateKey, X25519};
use curve25519::EdwardsPoint;
use curve25519::montgomery::MontgomeryPoint;
use curve25519::scalar::Scalar;

use crate::random::Random;
use crate::{CryptoError, Secret};

/// Bytes of a private key.
pub const PRIVATE_KEY_BYTES: usize = 32;
/// Bytes of a public key.
pub const PUBLIC_KEY_BYTES: usize = 32;

/// A public key: a u coordinate. Every 32 bytes are one; those that give no secret are refused at the agreement.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; PUBLIC_KEY_BYTES]);

impl PublicKey {
    /// Takes the bytes.
    #[must_use]
    pub const fn new(bytes: [u8; PUBLIC_KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Takes 32 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for another length.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, CryptoError> {
        bytes.try_into().map(Self).map_err(|_| CryptoError::BadKey)
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; PUBLIC_KEY_BYTES] {
        &self.0
    }

    /// Whether the coordinate is below the modulus and the top bit clear: the only form in which it is written.
    #[must_use]
    pub fn is_reduced(&self) -> bool {
        let [first, middle @ .., last] = &self.0;
        let full = *last == 0x7f && middle.iter().all(|byte| *byte == 0xff);
        *last < 0x80 && !(full && *first >= 0xed)
    }

    /// Whether these are the only 32 bytes that agree on the secrets that they agree on: a reduced coordinate, top bit
    /// clear, of a point in the group of prime order. Every key that was made honestly is so. It is to be asked where a
    /// key names something and nothing else authenticates it; about the cost of an agreement.
    ///
    /// ```
    /// use stvor_crypto::{SystemRandom, x25519::{AgreementKey, PublicKey}};
    /// let key = *AgreementKey::generate(&mut SystemRandom::new())?.public();
    /// assert!(key.is_canonical());
    /// let mut other = *key.as_bytes();
    /// other[31] |= 0x80;
    /// assert!(!PublicKey::new(other).is_canonical());
    /// # Ok::<(), stvor_crypto::CryptoError>(())
    /// ```
    #[must_use]
    pub fn is_canonical(&self) -> bool {
        if !self.is_reduced() {
            return false;
        }
        let point = MontgomeryPoint(self.0).to_edwards(0).filter(|point| !point.is_small_order());
        // L - 1 times a point is its negative exactly if L times it is neutral. Keys are public: the time may vary.
        let (negative, zero) = (-Scalar::ONE, Scalar::ZERO);
        point.is_some_and(|point| {
            EdwardsPoint::vartime_double_scalar_mul_basepoint(&negative, &point, &zero) == -point
        })
    }
}

/// The first four bytes: enough to tell keys apart in a log.
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "PublicKey({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// A private key for agreements, with its public key.
///
/// ```
/// use stvor_crypto::{SystemRandom, x25519::AgreementKey};
/// let rng = &mut SystemRandom::new();
/// let (alice, bob) = (AgreementKey::generate(rng)?, AgreementKey::generate(rng)?);
/// assert!(alice.agree(bob.public())? == bob.agree(alice.public())?);
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct AgreementKey {
    scalar: Secret<PRIVATE_KEY_BYTES>,
    public: PublicKey,
}

impl AgreementKey {
    /// A fresh key, all from `rng`, clamped as RFC 7748 says.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, CryptoError> {
        let mut scalar = Secret::random(rng)?;
        let bytes = scalar.expose_mut();
        bytes[0] &= 248;
        bytes[31] = bytes[31] & 127 | 64;
        Self::from_bytes(&scalar)
    }

    /// The key of 32 bytes; every 32 bytes are one. Clamping happens at each use, the bytes stay as they are.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] when the library refuses them, [`CryptoError::Internal`] when it fails.
    pub fn from_bytes(scalar: &Secret<PRIVATE_KEY_BYTES>) -> Result<Self, CryptoError> {
        let key = PrivateKey::from_private_key(&X25519, scalar.expose()).map_err(|_| CryptoError::BadKey)?;
        let public = key.compute_public_key().map_err(|_| CryptoError::Internal("X25519 key"))?;
        let public = PublicKey::from_slice(public.as_ref())?;
        Ok(Self { scalar: scalar.duplicate(), public })
    }

    /// A key whose public half was stored beside it. It is taken as it is: a wrong one makes every agreement fail that
    /// rests on it.
    #[must_use]
    pub fn from_parts(scalar: Secret<PRIVATE_KEY_BYTES>, public: PublicKey) -> Self {
        Self { scalar, public }
    }

    /// The 32 bytes of the private key.
    #[must_use]
    pub fn private(&self) -> &Secret<PRIVATE_KEY_BYTES> {
        &self.scalar
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// A second copy, on purpose.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self::from_parts(self.scalar.duplicate(), self.public)
    }

    /// The shared secret.
    ///
    /// # Errors
    /// [`CryptoError::AgreementFailed`] when it is all zero: the peer's key is of low order.
    pub fn agree(&self, peer: &PublicKey) -> Result<Secret<32>, CryptoError> {
        let secret = multiply(&self.scalar, peer).ok_or(CryptoError::AgreementFailed)?;
        if secret == Secret::zeroed() {
            return Err(CryptoError::AgreementFailed);
        }
        Ok(secret)
    }
}

/// The secret of a private and a public key, clamped as RFC 7748 says; `None` when it is all zero. Of aws-lc's functions this
/// is the one that takes a private key as bytes: to make one of its key objects works the public half out anew, a third of
/// what an agreement costs, and keys of a stored session are used once each time that they are read.
#[allow(unsafe_code)]
fn multiply(scalar: &Secret<PRIVATE_KEY_BYTES>, peer: &PublicKey) -> Option<Secret<32>> {
    let mut secret = Secret::<32>::zeroed();
    // SAFETY: the three pointers are to 32 bytes each, which is what is read and written, in live allocations of which the
    // written one is borrowed by nobody else. Nothing is kept after the call, and every value of the bytes is allowed.
    let agreed = unsafe {
        aws_lc_sys::X25519(
            secret.expose_mut().as_mut_ptr(),
            scalar.expose().as_ptr(),
            peer.as_bytes().as_ptr(),
        )
    };
    (agreed == 1).then_some(secret)
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgreementKey").field("public", &self.public).finish_non_exhaustive()
    }
}
