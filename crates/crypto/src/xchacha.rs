//! XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03).

use core::fmt;

use chacha20poly1305::aead::inout::InOutBuf;
use chacha20poly1305::aead::{AeadInOut, KeyInit};

use crate::{CryptoError, Secret};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce: enough that random ones never meet.
pub const NONCE_BYTES: usize = 24;
/// Bytes of a tag.
pub const TAG_BYTES: usize = 16;

/// A key. The caller sees to it that no nonce is used twice with it.
///
/// ```
/// use stvor_crypto::{Secret, xchacha::XChaCha20Poly1305};
/// let key = XChaCha20Poly1305::new(&Secret::new([1; 32]));
/// let mut bytes = b"words".to_vec();
/// let tag = key.seal_in_place_separate_tag(&[0; 24], b"context", &mut bytes)?;
/// bytes.extend_from_slice(&tag);
/// assert_eq!(key.open(&[0; 24], b"context", &mut bytes)?, b"words");
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
pub struct XChaCha20Poly1305(chacha20poly1305::XChaCha20Poly1305);

impl XChaCha20Poly1305 {
    /// Takes the key.
    #[must_use]
    pub fn new(key: &Secret<KEY_BYTES>) -> Self {
        Self(chacha20poly1305::XChaCha20Poly1305::new(key.expose().into()))
    }

    /// Encrypts `in_out` in place and returns the tag.
    ///
    /// # Errors
    /// [`CryptoError::Internal`] when the library fails (more than 256 GiB).
    pub fn seal_in_place_separate_tag(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CryptoError> {
        self.0
            .encrypt_inout_detached(nonce.into(), aad, InOutBuf::from(in_out))
            .map(Into::into)
            .map_err(|_| CryptoError::Internal("XChaCha20-Poly1305 seal"))
    }

    /// Opens ciphertext and tag in place; the plaintext is the part of `in_out` that comes back. When the tag does not
    /// verify, `in_out` is as it was.
    ///
    /// # Errors
    /// [`CryptoError::DecryptFailed`].
    pub fn open<'a>(
        &self,
        nonce: &[u8; NONCE_BYTES],
        aad: &[u8],
        in_out: &'a mut [u8],
    ) -> Result<&'a mut [u8], CryptoError> {
        let (body, tag) = in_out.split_last_chunk_mut::<TAG_BYTES>().ok_or(CryptoError::DecryptFailed)?;
        self.0
            .decrypt_inout_detached(nonce.into(), aad, InOutBuf::from(&mut *body), (&*tag).into())
            .map_err(|_| CryptoError::DecryptFailed)?;
        Ok(body)
    }
}

impl fmt::Debug for XChaCha20Poly1305 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealing_is_that_of_the_draft() {
        // Appendix A.3.1.
        let key: Vec<u8> = (0x80..=0x9f).collect();
        let nonce: Vec<u8> = (0x40..=0x57).collect();
        let aad = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
        let mut text =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, \
                         sunscreen would be it."
                .to_vec();
        let plaintext = text.clone();
        let key = XChaCha20Poly1305::new(&Secret::from_slice(&key).unwrap());
        let nonce: [u8; 24] = nonce.try_into().unwrap();
        let tag = key.seal_in_place_separate_tag(&nonce, &aad, &mut text).unwrap();
        assert_eq!(
            hex::encode(&text),
            "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39\
             ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff9\
             21f9664c97637da9768812f615c68b13b52e"
        );
        assert_eq!(hex::encode(tag), "c0875924c1c7987947deafd8780acf49");
        text.extend_from_slice(&tag);
        for changed in 0..text.len() {
            let mut other = text.clone();
            other[changed] ^= 1;
            let kept = other.clone();
            assert_eq!(key.open(&nonce, &aad, &mut other), Err(CryptoError::DecryptFailed));
            assert_eq!(other, kept);
        }
        assert_eq!(key.open(&nonce, b"other", &mut text.clone()), Err(CryptoError::DecryptFailed));
        assert_eq!(key.open(&nonce, &aad, &mut text).unwrap(), &plaintext[..]);
        assert_eq!(key.open(&nonce, &aad, &mut [0; 15]), Err(CryptoError::DecryptFailed));
    }
}
