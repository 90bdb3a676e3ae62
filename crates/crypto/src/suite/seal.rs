//! Authenticated encryption.

use core::fmt;

use stvor_base::Suite;

use super::TAG_BYTES;
use crate::aead::Aes256Gcm;
use crate::xchacha::XChaCha20Poly1305;
use crate::{CryptoError, Secret};

/// A key, ready for use. The caller sees to it that no nonce is used twice with it.
///
/// ```
/// use stvor_crypto::Secret;
/// use stvor_crypto::suite::{Aead, Suite};
/// for suite in Suite::ALL {
///     let key = Aead::new(suite, &Secret::new([1; 32]));
///     let nonce = vec![0; suite.nonce_bytes()];
///     let mut bytes = b"words".to_vec();
///     let tag = key.seal_in_place_separate_tag(&nonce, b"context", &mut bytes)?;
///     bytes.extend_from_slice(&tag);
///     assert_eq!(key.open(&nonce, b"context", &mut bytes)?, b"words");
/// }
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct Aead(Key);

#[allow(clippy::large_enum_variant, reason = "made for one message, on the stack")]
enum Key {
    P256(Aes256Gcm),
    X25519(XChaCha20Poly1305),
}

impl Aead {
    /// Sets the key up.
    #[must_use]
    pub fn new(suite: Suite, key: &Secret<32>) -> Self {
        Self(match suite {
            Suite::X25519 => Key::X25519(XChaCha20Poly1305::new(key)),
            _ => Key::P256(Aes256Gcm::new(key)),
        })
    }

    /// Encrypts `in_out` in place and returns the tag. `nonce` has [`Suite::nonce_bytes`].
    ///
    /// # Errors
    /// [`CryptoError::BadLength`] for another nonce, [`CryptoError::Internal`] when the library fails.
    pub fn seal_in_place_separate_tag(
        &self,
        nonce: &[u8],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CryptoError> {
        match &self.0 {
            Key::P256(key) => key.seal_in_place_separate_tag(exactly(nonce)?, aad, in_out),
            Key::X25519(key) => key.seal_in_place_separate_tag(exactly(nonce)?, aad, in_out),
        }
    }

    /// Opens ciphertext and tag in place; the plaintext is the part of `in_out` that comes back. When the tag does not
    /// verify, `in_out` holds no plaintext.
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`], and [`CryptoError::BadLength`] for a nonce of another suite.
    pub fn open<'a>(
        &self,
        nonce: &[u8],
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        match &self.0 {
            Key::P256(key) => key.open(exactly(nonce)?, aad, in_out),
            Key::X25519(key) => key.open(exactly(nonce)?, aad, in_out),
        }
    }
}

fn exactly<const N: usize>(nonce: &[u8]) -> Result<&[u8; N], CryptoError> {
    nonce.try_into().map_err(|_| CryptoError::BadLength { expected: N, got: nonce.len() })
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}
