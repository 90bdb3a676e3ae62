//! Key agreement on Curve25519 (RFC 7748).

use core::fmt;
use std::sync::OnceLock;

use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use curve25519::montgomery::MontgomeryPoint;

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
        let point = MontgomeryPoint(self.0).to_edwards(0);
        point.is_some_and(|point| {
            point.to_montgomery().0 == self.0 && point.is_torsion_free() && !point.is_small_order()
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
    /// Set up when it is first needed: most keys of a stored session are not.
    key: OnceLock<PrivateKey>,
}

fn set_up(scalar: &Secret<PRIVATE_KEY_BYTES>) -> Result<PrivateKey, CryptoError> {
    PrivateKey::from_private_key(&X25519, scalar.expose()).map_err(|_| CryptoError::BadKey)
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
        let key = set_up(scalar)?;
        let public = key.compute_public_key().map_err(|_| CryptoError::Internal("X25519 key"))?;
        let public = PublicKey::from_slice(public.as_ref())?;
        Ok(Self { scalar: scalar.duplicate(), public, key: key.into() })
    }

    /// A key whose public half was stored beside it. It is taken as it is: a wrong one makes every agreement fail that
    /// rests on it.
    #[must_use]
    pub fn from_parts(scalar: Secret<PRIVATE_KEY_BYTES>, public: PublicKey) -> Self {
        Self { scalar, public, key: OnceLock::new() }
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
        let key = match self.key.get() {
            Some(key) => key,
            None => {
                let key = set_up(&self.scalar)?;
                self.key.get_or_init(|| key)
            }
        };
        let peer = UnparsedPublicKey::new(&X25519, peer.as_bytes());
        let secret = agree(key, peer, CryptoError::AgreementFailed, Secret::from_slice)?;
        if secret == Secret::zeroed() {
            return Err(CryptoError::AgreementFailed);
        }
        Ok(secret)
    }
}

impl fmt::Debug for AgreementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgreementKey").field("public", &self.public).finish_non_exhaustive()
    }
}
