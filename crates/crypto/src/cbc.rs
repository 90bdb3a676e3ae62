//! AES-256 in CBC mode, without padding or authentication. CTAP 2 wants it between a computer and a FIDO2 token; use [`crate::aead`]
//! for everything else.

use aws_lc_rs::cipher::{
    AES_256, DecryptingKey, DecryptionContext, EncryptingKey, EncryptionContext, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;

use crate::{CryptoError, Secret};

fn key(key: &Secret<32>) -> Result<UnboundCipherKey, CryptoError> {
    UnboundCipherKey::new(&AES_256, key.expose()).map_err(|_| CryptoError::Internal("AES-CBC key"))
}

/// Encrypts whole blocks of 16 bytes in place.
///
/// ```
/// use stvor_crypto::{Secret, cbc};
/// let key = Secret::new([1; 32]);
/// let mut block = *b"sixteen bytes ..";
/// cbc::aes256_cbc_encrypt(&key, &[0; 16], &mut block)?;
/// assert_ne!(&block, b"sixteen bytes ..");
/// cbc::aes256_cbc_decrypt(&key, &[0; 16], &mut block)?;
/// assert_eq!(&block, b"sixteen bytes ..");
/// # Ok::<(), stvor_crypto::CryptoError>(())
/// ```
///
/// # Errors
/// [`CryptoError::Internal`] for another length.
pub fn aes256_cbc_encrypt(secret: &Secret<32>, iv: &[u8; 16], in_out: &mut [u8]) -> Result<(), CryptoError> {
    let failed = |_| CryptoError::Internal("AES-CBC");
    let cipher = EncryptingKey::cbc(key(secret)?).map_err(failed)?;
    let context = EncryptionContext::Iv128(FixedLength::from(*iv));
    cipher.less_safe_encrypt(in_out, context).map(|_| ()).map_err(failed)
}

/// Decrypts whole blocks of 16 bytes in place.
///
/// # Errors
/// [`CryptoError::DecryptFailed`] for another length.
pub fn aes256_cbc_decrypt(secret: &Secret<32>, iv: &[u8; 16], in_out: &mut [u8]) -> Result<(), CryptoError> {
    let cipher = DecryptingKey::cbc(key(secret)?).map_err(|_| CryptoError::DecryptFailed)?;
    let context = DecryptionContext::Iv128(FixedLength::from(*iv));
    cipher.decrypt(in_out, context).map(|_| ()).map_err(|_| CryptoError::DecryptFailed)
}
