//! ECDSA with SHA-256.

use core::fmt;

use ::p256::ecdsa::signature::MultipartSigner;
use aws_lc_rs::rand::SystemRandom as LibraryRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::{AgreementKey, PRIVATE_KEY_BYTES, PUBLIC_KEY_BYTES, PublicKey, SIGNATURE_BYTES, draw_scalar};
use crate::random::{Random, require_health};
use crate::{CryptoError, Secret};

/// r and s, 32 bytes big-endian each. Made by [`SigningKey`], or parsed; parsing refuses a high s.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; SIGNATURE_BYTES]);

impl Signature {
    /// Parses 64 bytes.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] for another length, r or s out of [1, n-1], or s in the upper half: of the two
    /// signatures that would verify one is accepted.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CryptoError> {
        let parsed = ::p256::ecdsa::Signature::from_slice(bytes).map_err(|_| CryptoError::BadSignature)?;
        if parsed.normalize_s() != parsed {
            return Err(CryptoError::BadSignature);
        }
        Ok(Self(parsed.to_bytes().into()))
    }

    /// The 64 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.0
    }

    /// Reads the DER form that FIDO2 tokens and X.509 use. An s in the upper half, which many signers leave there, is brought
    /// to the lower.
    ///
    /// # Errors
    /// [`CryptoError::BadSignature`] for other bytes, or r or s out of [1, n-1].
    pub fn from_der(bytes: &[u8]) -> Result<Self, CryptoError> {
        let parsed = ::p256::ecdsa::Signature::from_der(bytes).map_err(|_| CryptoError::BadSignature)?;
        Ok(Self(parsed.normalize_s().to_bytes().into()))
    }

    /// The DER form.
    ///
    /// # Errors
    /// [`CryptoError::Internal`].
    pub fn to_der(&self) -> Result<Vec<u8>, CryptoError> {
        let parsed =
            ::p256::ecdsa::Signature::from_slice(&self.0).map_err(|_| CryptoError::Internal("ECDSA"))?;
        Ok(parsed.to_der().as_bytes().to_vec())
    }

    fn normalised(bytes: &[u8]) -> Result<Self, CryptoError> {
        let parsed =
            ::p256::ecdsa::Signature::from_slice(bytes).map_err(|_| CryptoError::Internal("ECDSA"))?;
        Ok(Self(parsed.normalize_s().to_bytes().into()))
    }

    pub(super) fn verify_under(
        &self,
        key: &[u8; PUBLIC_KEY_BYTES],
        label: &[u8],
        message: &[u8],
    ) -> Result<(), CryptoError> {
        aws_lc_rs::signature::UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key)
            .verify(&[label, message].concat(), &self.0)
            .map_err(|_| CryptoError::BadSignature)
    }
}

impl TryFrom<&[u8]> for Signature {
    type Error = CryptoError;

    fn try_from(bytes: &[u8]) -> Result<Self, CryptoError> {
        Self::from_bytes(bytes)
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "Signature({a:02x}{b:02x}{c:02x}{d:02x}..)")
    }
}

/// A private key for signatures, with its public key. Never the same as an [`AgreementKey`].
///
/// ```
/// use stvor_crypto::{SystemRandom, p256::SigningKey};
/// let key = SigningKey::generate(&mut SystemRandom::new())?;
/// let signature = key.sign(b"STVOR example", b"message")?;
/// assert!(key.public().verify(b"STVOR example", b"message", &signature).is_ok());
/// assert!(key.public().verify(b"STVOR other", b"message", &signature).is_err());
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct SigningKey {
    scalar: Secret<PRIVATE_KEY_BYTES>,
    key: EcdsaKeyPair,
    public: PublicKey,
}

impl SigningKey {
    /// A fresh key, all from `rng`, by rejection.
    ///
    /// # Errors
    /// What `rng` says.
    pub fn generate(rng: &mut dyn Random) -> Result<Self, CryptoError> {
        Self::from_bytes(&draw_scalar(rng)?)
    }

    /// The key of a scalar.
    ///
    /// # Errors
    /// [`CryptoError::BadKey`] for 0 and for the group order and above.
    pub fn from_bytes(scalar: &Secret<PRIVATE_KEY_BYTES>) -> Result<Self, CryptoError> {
        let public = AgreementKey::from_bytes(scalar)?.public().clone();
        let key = EcdsaKeyPair::from_private_key_and_public_key(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            scalar.expose(),
            public.as_bytes(),
        )
        .map_err(|_| CryptoError::BadKey)?;
        Ok(Self { scalar: scalar.duplicate(), key, public })
    }

    /// The scalar, 32 bytes big-endian.
    #[must_use]
    pub fn to_bytes(&self) -> Secret<PRIVATE_KEY_BYTES> {
        self.scalar.duplicate()
    }

    /// The public key, computed once.
    #[must_use]
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `label || message` with aws-lc, whose own generator makes the nonce; s is brought to the lower half.
    ///
    /// # Errors
    /// [`CryptoError::RandomnessUnhealthy`] after a failed health test, [`CryptoError::Internal`].
    pub fn sign(&self, label: &[u8], message: &[u8]) -> Result<Signature, CryptoError> {
        require_health()?;
        let signature = self
            .key
            .sign(&LibraryRandom::new(), &[label, message].concat())
            .map_err(|_| CryptoError::Internal("ECDSA"))?;
        Signature::normalised(signature.as_ref())
    }

    /// Signs `label || message` with the nonce of RFC 6979: the same signature every time. For vectors.
    ///
    /// # Errors
    /// [`CryptoError::Internal`].
    pub fn sign_deterministic(&self, label: &[u8], message: &[u8]) -> Result<Signature, CryptoError> {
        let key =
            ::p256::ecdsa::SigningKey::from_slice(self.scalar.expose()).map_err(|_| CryptoError::BadKey)?;
        let signature: ::p256::ecdsa::Signature =
            key.try_multipart_sign(&[label, message]).map_err(|_| CryptoError::Internal("ECDSA"))?;
        Signature::normalised(&signature.to_bytes())
    }

    /// [`SigningKey::sign`], or [`SigningKey::sign_deterministic`] when `rng` is reproducible.
    ///
    /// # Errors
    /// As those two, and what `rng` says.
    pub fn sign_with(
        &self,
        rng: &mut dyn Random,
        label: &[u8],
        message: &[u8],
    ) -> Result<Signature, CryptoError> {
        rng.fill(&mut [])?;
        if rng.deterministic() { self.sign_deterministic(label, message) } else { self.sign(label, message) }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("public", &self.public).finish_non_exhaustive()
    }
}
