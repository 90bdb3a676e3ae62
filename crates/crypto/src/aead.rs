//! AES-256-GCM with the key set up once.

use core::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{CryptoError, Secret};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// A key, ready for use. The caller sees to it that no nonce is used twice with it.
///
/// ```
/// use stvor_crypto::{Secret, aead::Aes256Gcm};
/// let key = Aes256Gcm::new(&Secret::new([1; 32]));
/// let mut bytes = b"words".to_vec();
/// key.seal(&[0; 12], b"context", &mut bytes)?;
/// assert_eq!(bytes.len(), 5 + 16);
/// assert_eq!(key.open(&[0; 12], b"context", &mut bytes)?, b"words");
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct Aes256Gcm(Option<LessSafeKey>);

impl Aes256Gcm {
    /// Sets the key up.
    #[must_use]
    pub fn new(key: &Secret<KEY_BYTES>) -> Self {
        // The library refuses only keys of another length and an exhausted heap; the latter shows at the first use.
        Self(UnboundKey::new(&AES_256_GCM, key.expose()).ok().map(LessSafeKey::new))
    }

    fn key(&self) -> Result<&LessSafeKey, CryptoError> {
        self.0.as_ref().ok_or(CryptoError::Internal("AES key set-up"))
    }

    /// Encrypts `in_out` in place and appends the tag.
    ///
    /// # Errors
    /// [`CryptoError::Internal`] when the library fails (more than 64 GiB).
    pub fn seal(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut Vec<u8>,
    ) -> Result<(), CryptoError> {
        let tag = self.seal_in_place_separate_tag(nonce, aad, in_out)?;
        in_out.extend_from_slice(&tag);
        Ok(())
    }

    /// Encrypts `in_out` in place and returns the tag.
    ///
    /// # Errors
    /// As [`Aes256Gcm::seal`].
    pub fn seal_in_place_separate_tag(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CryptoError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let tag = self
            .key()?
            .seal_in_place_separate_tag(nonce, Aad::from(aad), in_out)
            .map_err(|_| CryptoError::Internal("AES-GCM seal"))?;
        tag.as_ref().try_into().map_err(|_| CryptoError::Internal("AES-GCM tag"))
    }

    /// Opens ciphertext and tag in place; the plaintext is the part of `in_out` that comes back. When the tag does not
    /// verify, `in_out` holds no plaintext.
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`].
    pub fn open<'a>(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.key()?.open_in_place(nonce, Aad::from(aad), in_out).map_err(|_| CryptoError::DecryptFailed)
    }

    /// Opens ciphertext and tag into `out`, which has to have the length of the plaintext, and leaves them as they are. When the
    /// tag does not verify, `out` holds no plaintext.
    ///
    /// ```
    /// use stvor_crypto::{Secret, aead::Aes256Gcm};
    /// let key = Aes256Gcm::new(&Secret::new([1; 32]));
    /// let mut sealed = b"words".to_vec();
    /// key.seal(&[0; 12], b"context", &mut sealed)?;
    /// let mut out = [0; 5];
    /// key.open_into(&[0; 12], b"context", &sealed, &mut out)?;
    /// assert_eq!(&out, b"words");
    /// # Ok::<(), stvor_crypto::CryptoError>(())
    /// ```
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`], also for an `out` of another length.
    pub fn open_into(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        sealed: &[u8],
        out: &mut [u8],
    ) -> Result<(), CryptoError> {
        let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(CryptoError::DecryptFailed)?;
        if body.len() != out.len() {
            return Err(CryptoError::DecryptFailed);
        }
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.key()?.open_separate_gather(nonce, Aad::from(aad), body, tag, out);
        opened.map_err(|_| CryptoError::DecryptFailed)
    }

    /// Opens a ciphertext whose tag came apart, in place.
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`].
    pub fn open_in_place_separate_tag(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        tag: &[u8; TAG_BYTES],
        in_out: &mut [u8],
    ) -> Result<(), CryptoError> {
        let nonce = Nonce::assume_unique_for_key(*nonce);
        self.key()?
            .open_in_place_separate_tag(nonce, Aad::from(aad), tag, in_out)
            .map(|_| ())
            .map_err(|_| CryptoError::DecryptFailed)
    }
}

impl fmt::Debug for Aes256Gcm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_verify_leave_no_plaintext_behind() {
        let key = Aes256Gcm::new(&Secret::new([1; 32]));
        for length in [1, 15, 16, 17, 64, 1_000, 70_000] {
            let plaintext = vec![0x5a; length];
            let mut sealed = plaintext.clone();
            key.seal(&[0; 12], b"right", &mut sealed).unwrap();
            let (body, tag) = sealed.split_last_chunk::<TAG_BYTES>().unwrap();
            let mut apart = body.to_vec();
            let failed = key.open_in_place_separate_tag(&[0; 12], b"wrong", tag, &mut apart);
            assert_eq!(failed, Err(CryptoError::DecryptFailed));
            let mut whole = sealed.clone();
            assert_eq!(key.open(&[0; 12], b"wrong", &mut whole), Err(CryptoError::DecryptFailed));
            let mut out = vec![0; length];
            assert_eq!(key.open_into(&[0; 12], b"wrong", &sealed, &mut out), Err(CryptoError::DecryptFailed));
            for left in [apart.as_slice(), whole.get(..length).unwrap(), &out] {
                // One byte in 256 of a ciphertext equals the plaintext's by chance; a run of them does not.
                assert!(left != plaintext || length == 1, "{length}");
                assert!(!left.windows(8).any(|window| window == [0x5a; 8]), "{length}");
            }
        }
    }
}
